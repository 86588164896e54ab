//! Keeps certificates fresh while the node runs: what it shows, and whom it believes.

use std::{fmt::Display, sync::Arc, time::Duration};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, http::serve::Identity, remote::Network};

/// How often the files are read again; they are few and small.
const ROUND: Duration = Duration::from_mins(1);

/// What rests on files.
pub(super) struct Fresh {
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) network: Network,
    pub(super) clock: Clock,
}

impl Fresh {
    /// Reads the files each minute, and at each hangup, until the node stops.
    pub(super) async fn keep(self, mut hangups: Signal, stop: CancellationToken) {
        let fresh = Arc::new(self);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hangups.recv() => tracing::info!("reading the files with certificates again"),
                () = fresh.clock.sleep(ROUND) => {}
            }
            let fresh = fresh.clone();
            // Reads and perhaps writes files, and computes keys.
            let read = tokio::task::spawn_blocking(move || fresh.read()).await;
            if read.is_err() {
                return;
            }
        }
    }

    fn read(&self) {
        if let Some(identity) = &self.identity {
            tell("the certificate of this node", identity.refresh());
        }
        tell("the authorities for other servers", self.network.reload());
    }
}

fn tell(what: &str, outcome: Result<bool, impl Display>) {
    match outcome {
        Ok(true) => tracing::info!("{what}: the new file is in force"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(%error, "{what}: cannot be read; what was read before stays in force");
        }
    }
}
