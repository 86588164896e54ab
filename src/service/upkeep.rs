//! What a node does by itself now and then, so that it runs for years without care.

use std::time::Duration;

use super::Services;
use crate::{
    error::Result,
    store::{self, schema::TRANSACTIONS},
};

/// How long a client may take to ask again for a transaction whose answer it has not got.
const TRANSACTION_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often users are looked for who do not sync any more.
const ROUND: Duration = Duration::from_secs(10 * 60);

/// After how many rounds old rows are looked for.
const ROUNDS_PER_SWEEP: u32 = 6;

/// How many changed users the user directory looks at in one round.
const MOST_USERS: usize = 50_000;

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

impl Services {
    /// Tidies up until the node stops.
    pub async fn keep_up(&self) {
        self.federation.resume();
        let mut round = 0_u32;
        loop {
            tokio::select! {
                () = self.clock.sleep(ROUND) => {}
                () = self.stop.cancelled() => return,
            }
            self.store.notify().forget_idle();
            // Whoever searches does the same, but not much of it at a time.
            if let Err(error) = self.user_directory.catch_up(MOST_USERS) {
                tracing::error!(%error, "the user directory could not be brought up to date");
            }
            round = round.wrapping_add(1);
            if round.is_multiple_of(ROUNDS_PER_SWEEP)
                && let Err(error) = self.forget_transactions()
            {
                tracing::error!(%error, "old transactions could not be removed");
            }
            if round.is_multiple_of(ROUNDS_PER_SWEEP)
                && let Err(error) = self.delayed.forget_transactions(TRANSACTION_AGE)
            {
                tracing::error!(%error, "old transactions of delayed events could not be removed");
            }
            if round.is_multiple_of(ROUNDS_PER_SWEEP)
                && let Err(error) = self.delayed.forget_ended()
            {
                tracing::error!(%error, "delayed events that have ended could not be forgotten");
            }
            if round.is_multiple_of(ROUNDS_PER_SWEEP)
                && let Err(error) = self.encryption.forget_sent()
            {
                tracing::error!(%error, "old transactions of devices could not be removed");
            }
            if round.is_multiple_of(ROUNDS_PER_SWEEP)
                && let Err(error) = self.accounts.forget_openid_tokens()
            {
                tracing::error!(%error, "old OpenID tokens could not be removed");
            }
        }
    }

    /// Removes transactions that nobody asks for any more; says how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_transactions(&self) -> Result<usize> {
        let age = u64::try_from(TRANSACTION_AGE.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.clock.now_ms().saturating_sub(age);
        let view = self.store.view();
        let mut old = TRANSACTIONS
            .scan(&view, &())
            .filter(|row| row.as_ref().map_or(true, |(_, row)| row.ts < oldest));
        let mut removed = 0;
        loop {
            let chunk: Vec<_> = old.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok(removed);
            }
            let _not_awaited = self.store.commit(|batch| {
                for (key, _) in &chunk {
                    TRANSACTIONS.delete(batch, key);
                }
                Ok(())
            })?;
            removed += chunk.len();
        }
    }
}
