//! Gets the keys of servers: from themselves, or from a notary that the administrator trusts.
//!
//! See "Retrieving server keys". What comes back is checked by its own signatures; whether it is still good is for the
//! caller to judge, who knows for what time it is needed.

use std::time::Duration;

use js_int::UInt;
use ruma::{
    MilliSecondsSinceUnixEpoch, ServerName,
    api::federation::discovery::{get_remote_server_keys, get_server_keys},
};

use super::{
    Limits, Remote,
    error::{Kind, Result, tame},
};
use crate::protocol::server_keys::{MAX_DOCUMENT_BYTES, ServerKeys};

/// Somebody waits for the keys to be let in or to see an event.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most documents that a notary may send about one server.
const MOST_DOCUMENTS: usize = 20;

fn limits(documents: usize) -> Limits {
    let bytes = u64::try_from(documents * MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
    Limits {
        time: PATIENCE,
        body: bytes,
    }
}

/// The document in an answer, checked.
pub(super) fn keys_in(
    response: &get_server_keys::v2::Response,
    server: &ServerName,
) -> Result<ServerKeys> {
    ServerKeys::parse(response.server_key.json().get(), server)
        .map_err(|error| Kind::BadAnswer(tame(&error.to_string(), 300)).of(server))
}

impl Remote {
    /// The keys of a server, from the server itself.
    ///
    /// # Errors
    /// When it cannot be reached, or its keys have not signed what it says.
    pub async fn server_keys(&self, server: &ServerName) -> Result<ServerKeys> {
        let request = get_server_keys::v2::Request::new();
        let response = self.send_unsigned(server, request, limits(1)).await?;
        keys_in(&response, server)
    }

    /// The keys of a server as a notary knows them. Documents that are not in order are left out.
    ///
    /// # Errors
    /// When the notary cannot be reached.
    pub async fn server_keys_from(
        &self,
        notary: &ServerName,
        server: &ServerName,
        valid_until: u64,
    ) -> Result<Vec<ServerKeys>> {
        let valid_until = UInt::try_from(valid_until).unwrap_or(UInt::MAX);
        let request = get_remote_server_keys::v2::Request::new(
            server.to_owned(),
            MilliSecondsSinceUnixEpoch(valid_until),
        );
        let limits = limits(MOST_DOCUMENTS);
        let response = self.send_unsigned(notary, request, limits).await?;
        let documents = response.server_keys.iter().take(MOST_DOCUMENTS);
        let checked = documents.filter_map(|document| {
            let checked = ServerKeys::parse(document.json().get(), server);
            checked
                .inspect_err(
                    |error| tracing::debug!(%notary, %server, %error, "keys are not believed"),
                )
                .ok()
        });
        Ok(checked.collect())
    }
}
