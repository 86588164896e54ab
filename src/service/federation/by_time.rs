//! The event of a room that was sent next to some time, as other servers know it: they are asked where events are
//! missing here, and what they name is fetched. See `/timestamp_to_event` in the server-server API.

use std::time::Duration;

use js_int::UInt;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId, ServerName,
    api::federation::event::get_event_by_timestamp,
};
use serde_json::json;

use super::{Federation, directory::question, serve::guest};
use crate::{
    error::{Error, Result},
    protocol::token::PageToken,
    remote::Limits,
    service::{
        Requester,
        rooms::{AtTime, When},
    },
};

/// Somebody looks at a screen meanwhile.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(8),
    body: 64 << 10,
};

/// How many pieces of history are fetched to find an event that another server has named.
const MAX_PIECES: usize = 5;

impl Federation {
    /// The event next to a time, as `GET /_matrix/federation/v1/timestamp_to_event/{roomId}` answers it.
    ///
    /// # Errors
    /// 403 when the server is not in the room or kept out, 404 when there is no such event.
    pub async fn told_at(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        when: When,
    ) -> Result<String> {
        let origin = origin.to_owned();
        self.read(move |rooms, view| {
            let found = guest(rooms, view, &room, &origin)?.seen_at(when)?.found;
            let (id, ts) = found.ok_or_else(nothing)?;
            Ok(json!({ "event_id": id, "origin_server_ts": ts }).to_string())
        })
        .await
    }

    /// The event next to a time that a user may see, and its time. Where events are missing here, other servers are
    /// asked.
    ///
    /// # Errors
    /// 403 for users who may not read the room now, 404 when there is no such event.
    pub async fn event_at(
        &self,
        asker: &Requester,
        room: &RoomId,
        when: When,
    ) -> Result<(OwnedEventId, u64)> {
        let mut known = self.known_at(asker, room, when).await?;
        let told = match known.gap {
            Some(_) => self.ask_at(room, when).await?,
            None => None,
        };
        let lacks = |known: &AtTime| {
            told.is_some_and(|told| {
                let found = known.found.as_ref();
                found.is_none_or(|(_, here)| when.is_nearer(told, *here))
            })
        };
        for _ in 0..MAX_PIECES {
            let Some(gap) = known.gap.filter(|_| lacks(&known)) else {
                break;
            };
            self.fill_before(asker, room, gap).await;
            let now = self.known_at(asker, room, when).await?;
            let came_closer = now.gap.map(|PageToken(at)| at) != known.gap.map(|PageToken(at)| at);
            known = now;
            if !came_closer {
                break;
            }
        }
        known.found.ok_or_else(nothing)
    }

    async fn known_at(&self, asker: &Requester, room: &RoomId, when: When) -> Result<AtTime> {
        let (rooms, asker, room) = (self.0.rooms.clone(), asker.clone(), room.to_owned());
        let known = move || rooms.seen_at(&asker, &room, when);
        super::verify::beside(known).await?
    }

    /// The time of the event that another server in the room names: the first that names one.
    async fn ask_at(&self, room: &RoomId, when: When) -> Result<Option<u64>> {
        let _question = question()?;
        let Some(nid) = self.0.rooms.nid_of(room)? else {
            return Ok(None);
        };
        for server in self.whom_to_ask(nid)? {
            let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(when.ts));
            let request = get_event_by_timestamp::v1::Request::new(room.to_owned(), ts, when.dir);
            match self.0.remote.send_within(&server, request, QUESTION).await {
                Ok(answer) => {
                    let told = answer.origin_server_ts.get().into();
                    if when.fits(told) {
                        return Ok(Some(told));
                    }
                }
                Err(error) => {
                    tracing::debug!(%room, %server, %error, "it knows no event of a time");
                }
            }
        }
        Ok(None)
    }
}

fn nothing() -> Error {
    Error::not_found("An event of such a time")
}
