//! What other servers list in their directories of rooms. See "Public Room Directory" in the server-server API.

use std::time::Duration;

use http::Method;
use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, ServerName, exports::serde_html_form};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Federation, handshake::ask::nonsense};
use crate::{
    error::{Error, Result},
    remote::Limits,
    service::rooms::{Listed, Listing, Summary},
};

/// Somebody looks at a screen meanwhile.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(15),
    body: 4 << 20,
};

/// How many questions about rooms that users look for are asked at the same time. Anybody may ask for an alias, so that
/// this must not take all we have.
static QUESTIONS: Semaphore = Semaphore::const_new(64);

/// The right to ask another server because a user is looking around.
///
/// # Errors
/// 429 when too many do.
pub(super) fn question() -> Result<SemaphorePermit<'static>> {
    QUESTIONS
        .try_acquire()
        .map_err(|_| Error::limit_exceeded(Duration::from_secs(1)))
}

/// The most rooms that are asked for at once.
const MOST_ROOMS: u64 = 500;

/// A directory as another server tells it.
#[derive(Deserialize)]
struct Told {
    chunk: Vec<Value>,
    #[serde(default)]
    next_batch: Option<String>,
    #[serde(default)]
    prev_batch: Option<String>,
    #[serde(default)]
    total_room_count_estimate: Option<u64>,
}

impl Federation {
    /// The room that an alias of another server stands for, for somebody who only wants to know.
    ///
    /// # Errors
    /// As [`find_alias`](Self::find_alias), and 429 when too many ask.
    pub async fn look_up_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        let _question = question()?;
        self.find_alias(alias).await
    }

    /// A part of the directory of another server.
    ///
    /// # Errors
    /// What the server says, or why it does not; 429 when too many ask.
    pub async fn public_rooms(&self, server: &ServerName, listing: &Listing) -> Result<Listed> {
        let _question = question()?;
        let limit = listing.limit.unwrap_or(MOST_ROOMS).clamp(1, MOST_ROOMS);
        let path = "/_matrix/federation/v1/publicRooms";
        let (method, uri, body) = if listing.term.is_some() || listing.types.is_some() {
            let mut filter = json!({});
            if let Some(term) = &listing.term {
                filter["generic_search_term"] = term.as_str().into();
            }
            if let Some(types) = &listing.types {
                filter["room_types"] = types.clone().into();
            }
            let mut body = json!({ "filter": filter, "limit": limit });
            if let Some(since) = &listing.since {
                body["since"] = since.as_str().into();
            }
            if listing.elsewhere {
                body["include_all_networks"] = true.into();
            }
            (Method::POST, path.to_owned(), body.to_string().into_bytes())
        } else {
            let mut query = vec![("limit", limit.to_string())];
            query.extend(listing.since.clone().map(|since| ("since", since)));
            let query = serde_html_form::to_string(query);
            let query = query.map_err(|e| Error::invalid_param(e.to_string()))?;
            (Method::GET, format!("{path}?{query}"), Vec::new())
        };
        let answer = self
            .0
            .remote
            .send_signed(server, method, &uri, body, QUESTION)
            .await?;
        let told: Told = serde_json::from_slice(answer.body()).map_err(|e| nonsense(server, e))?;
        // One room that makes no sense does not hide the others.
        let rooms = told.chunk.into_iter();
        let rooms = rooms.filter_map(|room| Summary::deserialize(room).ok());
        Ok(Listed {
            chunk: rooms
                .map(Summary::listed)
                .take(usize::try_from(limit).unwrap_or(usize::MAX))
                .collect(),
            next_batch: told.next_batch,
            prev_batch: told.prev_batch,
            total_room_count_estimate: told.total_room_count_estimate,
        })
    }
}
