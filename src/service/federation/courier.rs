//! Carries what waits to one server, for as long as anything waits: one transaction at a time, again and again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use ruma::ServerName;
use tokio::task::{JoinError, JoinSet};

use super::{
    destination::{Destination, News, Step, Verdict},
    outbox::Outbox,
    transaction::{Answer, Flight},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    remote::{self, Kind, Limits, Remote},
};

/// How long a destination rests when the store does not let it go on.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(30);

/// Who was away for so long, in milliseconds, may have given up telling us whose keys have changed.
const LONG_AWAY: u64 = 60 * 60 * 1_000;

/// How long after a doubted attempt the next one comes at the soonest; it doubles up to a most.
const LEAST_APART: Duration = Duration::from_secs(1);
const MOST_APART: Duration = Duration::from_secs(4);

impl Outbox {
    fn load(&self, destination: &Destination) -> Result<()> {
        let cursor = destination.begin_load();
        let view = self.parts.store.view();
        let found = Self::find(&view, destination.nid, cursor);
        let (found, is_all) = found.inspect_err(|_| {
            destination.look_again();
        })?;
        destination.end_load(found, view.position(), is_all);
        Ok(())
    }

    /// Takes note of what came of an attempt.
    fn settle(&self, destination: &Destination, verdict: Verdict) {
        let (clock, server) = (&self.parts.clock, &destination.name);
        let reason = match &verdict {
            Verdict::Failed { problem, .. } => problem.clone(),
            Verdict::Delivered { .. } => String::new(),
        };
        let now = (clock.instant(), clock.now_ms());
        let is_delivered = matches!(verdict, Verdict::Delivered { .. });
        if matches!(verdict, Verdict::Delivered { contact: true, .. }) {
            self.parts.inbox.heard(destination.nid, now.0);
            let down_since = destination.with(|state| state.row.down_since);
            if down_since > 0 && now.1.saturating_sub(down_since) >= LONG_AWAY {
                let look = self.parts.clone().look_at_keys(server.clone());
                self.parts.tasks.spawn(look);
            }
        }
        tell(
            server,
            &reason,
            destination.settle(verdict, now, self.parts.entropy.number()),
        );
        // How often exactly it has failed need not be known after a restart.
        if is_delivered || destination.with(|state| state.row.failures.is_power_of_two()) {
            self.unsaved.lock().insert(destination.nid);
            self.unsaved_wake.notify_one();
        }
    }
}

/// Tells one server all that waits for it.
pub(super) async fn serve(outbox: Weak<Outbox>, destination: Arc<Destination>) {
    let mut flight: Option<Flight> = None;
    loop {
        let Some(outbox_now) = outbox.upgrade() else {
            return;
        };
        let parts = &outbox_now.parts;
        let (clock, stop) = (parts.clock.clone(), parts.stop.clone());
        let pause = match destination.next(flight.is_some(), clock.instant()) {
            Step::Done(news) => return tell(&destination.name, "", news),
            Step::Wait(pause) => {
                drop(outbox_now);
                Some(pause)
            }
            Step::Load => {
                let destination = destination.clone();
                let loaded = tokio::task::spawn_blocking(move || outbox_now.load(&destination));
                match loaded.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(stuck(&error)),
                    Err(_) => return,
                }
            }
            Step::Send(new) => {
                if let Some(new) = new {
                    flight = Some(new);
                }
                let Some(sending) = &mut flight else { continue };
                let server = &destination.name;
                match sending.request(parts, (destination.nid, server)) {
                    Ok(None) => {
                        flight = None;
                        let verdict = Verdict::Delivered {
                            contact: false,
                            events: 0,
                        };
                        outbox_now.settle(&destination, verdict);
                        None
                    }
                    Ok(Some((path, body))) => {
                        let (remote, events) = (parts.remote.clone(), sending.events());
                        // The node may stop meanwhile.
                        drop(outbox_now);
                        let outcome = tokio::select! {
                            outcome = attempt(&remote, &clock, &destination, (&path, body)) => outcome,
                            () = stop.cancelled() => return,
                        };
                        let Some(outbox_now) = outbox.upgrade() else {
                            return;
                        };
                        let verdict = match outcome {
                            Ok(answer) => {
                                complain(server, answer.body());
                                flight = None;
                                Verdict::Delivered {
                                    contact: true,
                                    events,
                                }
                            }
                            Err(error) => failed(error),
                        };
                        if matches!(&verdict, Verdict::Failed { refused: true, .. }) {
                            flight = None;
                        }
                        outbox_now.settle(&destination, verdict);
                        continue;
                    }
                    Err(error) => {
                        drop(outbox_now);
                        Some(stuck(&error))
                    }
                }
            }
        };
        if let Some(pause) = pause {
            tokio::select! {
                () = clock.sleep(pause) => {}
                () = destination.wake.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Sends a transaction. If the server is heard of while it does not answer, the connection may have died with the link,
/// which nobody would notice for long: then it is sent once more on a new one. The other side knows it by its id.
async fn attempt(
    remote: &Remote,
    clock: &Clock,
    destination: &Destination,
    (path, body): (&str, Vec<u8>),
) -> remote::Result<Response<Bytes>> {
    let server = &*destination.name;
    // They end with this.
    let mut attempts = JoinSet::new();
    let begin = |attempts: &mut JoinSet<_>| {
        let (remote, server) = (remote.clone(), server.to_owned());
        let (path, body) = (path.to_owned(), body.clone());
        attempts.spawn(async move {
            let limits = Limits::USUAL;
            let sent = remote.send_signed(&server, Method::PUT, &path, body, limits);
            sent.await
        });
    };
    begin(&mut attempts);
    let mut patience = destination.patience();
    let mut begun = clock.instant();
    let mut is_doubted = false;
    loop {
        let rest = (begun + patience).saturating_duration_since(clock.instant());
        tokio::select! {
            Some(outcome) = attempts.join_next() => {
                let broken = |error: JoinError| Kind::Broken(error.to_string()).of(server);
                let outcome = outcome.map_err(broken).flatten();
                if outcome.is_ok() || attempts.is_empty() {
                    return outcome;
                }
            }
            () = destination.doubt.notified() => is_doubted = true,
            () = clock.sleep(rest), if is_doubted => {
                remote.reconnect(server);
                begin(&mut attempts);
                begun = clock.instant();
                (is_doubted, patience) = (false, (patience * 2).clamp(LEAST_APART, MOST_APART));
            }
        }
    }
}

fn stuck(error: &Error) -> Duration {
    tracing::error!(%error, "what a server is to be told could not be read");
    STORE_PAUSE
}

fn failed(error: remote::Error) -> Verdict {
    let (mut pause, mut refused) = (None, false);
    if let Kind::Status {
        status,
        retry_after,
        ..
    } = &error.kind
    {
        pause = *retry_after;
        refused = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE].contains(status);
    }
    Verdict::Failed {
        problem: error.kind.to_string(),
        pause,
        refused,
    }
}

/// Tells the log what a server does not want to have, in one line.
fn complain(server: &ServerName, answer: &[u8]) {
    let answer: Answer = serde_json::from_slice(answer).unwrap_or_default();
    let refused = answer.pdus.iter();
    let mut refused = refused.filter_map(|(id, processed)| Some((id, processed.error.as_ref()?)));
    if let Some((event, error)) = refused.next() {
        let error: String = error
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        let others = refused.count();
        tracing::warn!(%server, %event, error, others, "a server does not accept events of this one");
    }
}

fn tell(server: &ServerName, reason: &str, news: News) {
    match news {
        News::Nothing => {}
        News::Down => {
            tracing::info!(%server, reason, "a server cannot be reached; what it is to be told waits");
        }
        News::Back { events, took, down } => {
            tracing::info!(%server, events, ?took, ?down, "a server is back and has got all that waited");
        }
        News::GaveUp => {
            tracing::error!(%server, reason, "a server refuses an event whatever comes with it; it is left out");
        }
    }
}
