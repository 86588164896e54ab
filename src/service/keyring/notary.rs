//! What this node says about the keys of others, with its own signature below. See "Querying Keys Through Another Server".

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use ruma::{CanonicalJsonObject, OwnedServerName};
use tokio::{task::JoinSet, time::timeout};

use super::{Keyring, others::Vouchers};
use crate::{
    error::{Error, Result},
    protocol::{integrity, xmatrix::is_key_id},
    store::schema::KEY_DOCUMENTS,
};

/// The most servers that one request may ask about.
pub const MOST_ASKED: usize = 100;

/// How long whoever asks waits for servers that we must ask first.
const PATIENCE: Duration = Duration::from_secs(12);

/// What somebody wants to know of one server.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whose keys.
    pub server: OwnedServerName,
    /// A key that must be in the document; none for whatever there is.
    pub key_id: Option<String>,
    /// Until when the document must be valid, in milliseconds since 1970; none for now.
    pub valid_until: Option<u64>,
}

impl Keyring {
    /// The documents of the servers asked about, as far as there are any, each signed by us too.
    ///
    /// # Errors
    /// 400 when too many are asked about; when the store fails.
    pub async fn documents(
        self: &Arc<Self>,
        asked: Vec<Asked>,
    ) -> Result<Vec<CanonicalJsonObject>> {
        if asked.len() > MOST_ASKED {
            return Err(Error::api(
                StatusCode::BAD_REQUEST,
                "M_TOO_LARGE",
                format!("Ask about at most {MOST_ASKED} keys at once"),
            ));
        }
        let mut tasks = JoinSet::new();
        for asked in &asked {
            if self.remote.admits(&asked.server) && !self.answers(asked)? {
                let (keyring, asked) = (self.clone(), asked.clone());
                tasks.spawn(async move {
                    let answers = || keyring.answers(&asked);
                    let at = asked.valid_until.unwrap_or_else(|| keyring.clock.now_ms());
                    let asking = keyring.fly(&asked.server, at, Vouchers::None, &answers);
                    asking.await.map(drop)
                });
            }
        }
        let all = async {
            while let Some(done) = tasks.join_next().await {
                if let Ok(outcome) = done {
                    outcome?;
                }
            }
            Ok::<_, Error>(())
        };
        // Late is as good as never for whoever asks; what is known of the server is said all the same.
        timeout(PATIENCE, all).await.unwrap_or(Ok(()))?;

        let mut servers: Vec<_> = asked.into_iter().map(|asked| asked.server).collect();
        servers.sort();
        servers.dedup();
        let view = self.store.latest();
        let mut documents = Vec::new();
        for server in servers {
            if server == self.name {
                documents.push(self.document());
                continue;
            }
            let Some(row) = KEY_DOCUMENTS.get(&view, &(server.as_str(),))? else {
                continue;
            };
            let damaged = |e: &dyn std::fmt::Display| {
                Error::Internal(format!("the stored keys of {server} are damaged: {e}"))
            };
            let mut document = integrity::parse_object(&row.json).map_err(|e| damaged(&e))?;
            integrity::sign_json(&mut document, &self.own.key, &self.name)
                .map_err(|e| damaged(&e))?;
            documents.push(document);
        }
        Ok(documents)
    }

    /// Whether what is known of a server answers the question about it.
    fn answers(&self, asked: &Asked) -> Result<bool> {
        if asked.server == self.name {
            return Ok(true);
        }
        let at = asked.valid_until.unwrap_or_else(|| self.clock.now_ms());
        let row = KEY_DOCUMENTS.get(&self.store.latest(), &(asked.server.as_str(),))?;
        Ok(row.is_some_and(|row| {
            let mut key_id = asked.key_id.iter().filter(|id| is_key_id(id));
            row.valid_until >= at && key_id.all(|id| row.json.contains(id.as_str()))
        }))
    }
}
