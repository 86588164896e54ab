//! Keeps fresh what may change while the node runs: the certificate that it shows, whom it believes, and the peers of its
//! configuration.

use std::{fmt::Display, path::PathBuf, sync::Arc, time::Duration};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Federation},
    http::serve::Identity,
    service::Services,
};

/// How often the files with certificates are read again; they are few and small.
const ROUND: Duration = Duration::from_mins(1);

/// What rests on files.
pub(super) struct Fresh {
    services: Arc<Services>,
    identity: Option<Arc<Identity>>,
    /// Where the configuration stands; none if there was no file at the start.
    file: Option<PathBuf>,
    /// What that says of other servers, as it was read the last time.
    federation: Federation,
}

impl Fresh {
    /// Of a node that has begun with the configuration in this file.
    pub(super) fn new(
        services: Arc<Services>,
        identity: Option<Arc<Identity>>,
        file: Option<PathBuf>,
    ) -> Self {
        let federation = services.config.federation.clone();
        Self {
            services,
            identity,
            file,
            federation,
        }
    }

    /// Reads the files with certificates each minute, and everything at each hangup, until the node stops. The configuration is
    /// not read unasked, as somebody may be writing in it.
    pub(super) async fn keep(mut self, mut hangups: Signal, stop: CancellationToken) {
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hangups.recv() => true,
                () = self.services.clock.sleep(ROUND) => false,
            };
            // Reads and perhaps writes files, and computes keys.
            let read = tokio::task::spawn_blocking(move || {
                if is_asked {
                    tracing::info!("reading the peers and the files with certificates again");
                    self.configure();
                }
                self.read();
                self
            });
            match read.await {
                Ok(fresh) => self = fresh,
                Err(_) => return,
            }
        }
    }

    /// Takes from the configuration what can change while the node runs.
    fn configure(&mut self) {
        let mut new = match Config::load(self.file.as_deref()) {
            Ok(new) => new,
            Err(mistakes) => {
                tracing::error!(
                    "the configuration is wrong, so what was read before stays in force:\n{mistakes}"
                );
                return;
            }
        };
        self.federation = new.federation.clone();
        let begun = &self.services.config;
        new.federation.peers.clone_from(&begun.federation.peers);
        new.federation
            .ca_files
            .clone_from(&begun.federation.ca_files);
        if new != **begun {
            tracing::warn!(
                "more than federation.peers and federation.ca_files has changed in the configuration; the rest needs a start of the node"
            );
        }
    }

    fn read(&self) {
        let federation = &self.federation;
        if let Some(identity) = &self.identity {
            let outcome = identity.refresh(&federation.ca_files);
            tell("the certificate of this node", outcome);
        }
        let outcome = self.services.peers.reload(federation);
        tell("the peers and the authorities for other servers", outcome);
    }
}

fn tell(what: &str, outcome: Result<bool, impl Display>) {
    match outcome {
        Ok(true) => tracing::info!("{what}: what the files say now is in force"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(%error, "{what}: cannot be read; what was read before stays in force");
        }
    }
}
