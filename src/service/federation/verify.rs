//! Turns what other servers send into events that are known to be genuine.

use std::{num::NonZero, thread};

use ruma::room_version_rules::RoomVersionRules;

use super::Federation;
use crate::{
    error::{Error, Result},
    protocol::ingest::{self, Dropped, Pdu, Received},
    service::keyring::Keyring,
};

impl Federation {
    /// Parses events of rooms of one version, gets the keys that they need, and checks their signatures, on all cores.
    /// The answer has the order of what was given.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn verify(
        &self,
        rules: &'static RoomVersionRules,
        texts: Vec<String>,
    ) -> Result<Vec<Result<Pdu, Dropped>>> {
        let received = parse(rules, texts).await?;
        self.check(rules, received).await
    }

    /// The second half of [`Self::verify`], for what was parsed already.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn check(
        &self,
        rules: &'static RoomVersionRules,
        received: Vec<Result<Received, Dropped>>,
    ) -> Result<Vec<Result<Pdu, Dropped>>> {
        let mut needs = Vec::new();
        for event in received.iter().flatten() {
            for need in Keyring::needs(event.object(), rules) {
                if !needs.contains(&need) {
                    needs.push(need);
                }
            }
        }
        self.0.keyring.obtain(&needs).await?;
        let keyring = self.0.keyring.clone();
        let verify = move |event: Received| {
            let keys = keyring.key_map(&Keyring::needs(event.object(), rules))?;
            Ok(event.verify(&keys))
        };
        let checked = beside(move || {
            on_all_cores(received, |event| match event {
                Ok(event) => verify(event),
                Err(dropped) => Ok(Err(dropped)),
            })
        });
        checked.await?.into_iter().collect()
    }
}

/// The first half of [`Federation::verify`]: what the events are, whoever may have made them.
pub(super) async fn parse(
    rules: &'static RoomVersionRules,
    texts: Vec<String>,
) -> Result<Vec<Result<Received, Dropped>>> {
    beside(move || on_all_cores(texts, |text| ingest::receive(&text, rules))).await
}

/// Computes on a thread for that.
pub(super) async fn beside<T: Send + 'static>(
    compute: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let computed = tokio::task::spawn_blocking(compute).await;
    computed.map_err(|error| Error::Internal(format!("checking events broke off: {error}")))
}

/// Few items are not worth a thread.
const LEAST_PER_THREAD: usize = 16;

fn on_all_cores<T: Send, U: Send>(items: Vec<T>, each: impl Fn(T) -> U + Sync) -> Vec<U> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let share = items.len().div_ceil(cores).max(LEAST_PER_THREAD);
    if items.len() <= share {
        return items.into_iter().map(each).collect();
    }
    let mut shares = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        shares.push(items.by_ref().take(share).collect::<Vec<_>>());
    }
    let each = &each;
    thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.into_iter().map(each).collect::<Vec<_>>()))
            .collect();
        let joined = threads.into_iter();
        let joined =
            joined.flat_map(|thread| thread.join().expect("checking an event does not panic"));
        joined.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_stays_whatever_the_number() {
        for number in [0, 1, 15, 16, 17, 1_000] {
            let doubled = on_all_cores((0..number).collect(), |n: i32| n * 2);
            assert_eq!(doubled, (0..number).map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
