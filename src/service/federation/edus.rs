//! Messages of other servers that are no events: who types, who has read what, who is there, and what devices say to
//! each other.
//!
//! A server speaks for its own users only, and of a room only while it is in it and not kept out. What is not understood
//! is ignored. Most of these messages are short-lived: one that is lost does no harm that the next one does not mend.
//! Those to devices come only once, so the sender is not told that they have come before they are safe.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    api::client::receipt::create_receipt::v3::ReceiptType,
    events::{receipt::ReceiptThread, room::member::MembershipState},
    presence::PresenceState,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::Federation;
use crate::{
    error::Result,
    protocol::ids::{Position, UserNid},
    service::ephemeral::{Mark, Told},
    store::schema::ROOM_MEMBERS,
};

/// How long all messages of one transaction may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many users one message may speak of.
const MOST_USERS: usize = 1_000;

/// How many events are looked at for one receipt.
const MOST_EVENTS: usize = 20;

#[derive(Deserialize)]
struct Edu<'e> {
    edu_type: String,
    #[serde(borrow)]
    content: &'e RawValue,
}

#[derive(Deserialize)]
struct TypingNews {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

/// By room, then type, then user. Anything may stand beside `m.read`.
type ReceiptNews<'e> = BTreeMap<OwnedRoomId, ReadNews<'e>>;

#[derive(Deserialize)]
struct ReadNews<'e> {
    #[serde(borrow, rename = "m.read", default)]
    read: BTreeMap<OwnedUserId, &'e RawValue>,
}

#[derive(Deserialize)]
struct Receipt {
    data: ReceiptData,
    event_ids: Vec<OwnedEventId>,
}

#[derive(Deserialize)]
struct ReceiptData {
    #[serde(default)]
    ts: u64,
    thread_id: Option<String>,
}

#[derive(Deserialize)]
struct PresenceNews<'e> {
    #[serde(borrow)]
    push: Vec<&'e RawValue>,
}

#[derive(Deserialize)]
struct PersonNews {
    user_id: OwnedUserId,
    presence: PresenceState,
    status_msg: Option<String>,
    last_active_ago: Option<u64>,
    #[serde(default)]
    currently_active: bool,
}

impl Federation {
    /// Takes in what comes only once; says from when on it is safe.
    ///
    /// # Errors
    /// When the store fails: then all of it must come again.
    pub(super) fn receive_lasting(
        &self,
        origin: &ServerName,
        edus: &[Box<RawValue>],
    ) -> Result<Option<Position>> {
        let (mut safe, mut noted) = (None, BTreeSet::new());
        for edu in edus {
            let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.get()) else {
                continue;
            };
            let (encryption, content) = (&self.0.encryption, edu.content.get());
            let received = match edu.edu_type.as_str() {
                "m.direct_to_device" => encryption.receive_to_device(origin, content),
                name @ ("m.device_list_update"
                | "m.signing_key_update"
                | "org.matrix.signing_key_update") => {
                    encryption.receive_update(origin, (name, content), &mut noted)
                }
                _ => continue,
            };
            safe = safe.max(received?);
        }
        Ok(safe)
    }

    /// Takes in what is of the moment. What is not understood is ignored.
    pub(super) async fn receive_edus(&self, origin: &ServerName, edus: Vec<Box<RawValue>>) {
        let all = async {
            for edu in edus {
                let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.get()) else {
                    continue;
                };
                let content = edu.content.get();
                let outcome = match edu.edu_type.as_str() {
                    "m.typing" => self.receive_typing(origin, content).await,
                    "m.receipt" => self.receive_receipts(origin, content).await,
                    "m.presence" => self.receive_presence(origin, content),
                    _ => Ok(()),
                };
                if let Err(error) = outcome {
                    if error.is_internal() {
                        tracing::error!(%origin, %error, "a short-lived message could not be taken in");
                    } else {
                        tracing::debug!(%origin, %error, "a short-lived message is ignored");
                    }
                }
            }
        };
        // A room that is being written for long holds nobody's answer back.
        if timeout(PATIENCE, all).await.is_err() {
            tracing::debug!(%origin, "short-lived messages took too long and are dropped");
        }
    }

    /// A user of the server who is in a room in which the server may speak.
    fn speaker(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Option<UserNid>> {
        let (view, rooms) = (self.0.store.latest(), &self.0.rooms);
        let (Some(room), Some(nid)) = (rooms.nid_of(room)?, self.0.store.find_user(user)?) else {
            return Ok(None);
        };
        let member = ROOM_MEMBERS.get(&view, &(room, nid))?;
        let is_joined = member.is_some_and(|member| member.membership == MembershipState::Join);
        let may_speak = user.server_name() == origin
            && is_joined
            && rooms.has_server(&view, room, rooms.server_name())?
            && rooms.acl_allows(&view, room, origin)?;
        Ok(may_speak.then_some(nid))
    }

    async fn receive_typing(&self, origin: &ServerName, content: &str) -> Result<()> {
        let Ok(news) = serde_json::from_str::<TypingNews>(content) else {
            return Ok(());
        };
        match self.speaker(origin, &news.room_id, &news.user_id)? {
            Some(user) => {
                let typing = &self.0.typing;
                typing.set_of_other(&news.room_id, user, news.typing).await
            }
            None => Ok(()),
        }
    }

    async fn receive_receipts(&self, origin: &ServerName, content: &str) -> Result<()> {
        let Ok(news) = serde_json::from_str::<ReceiptNews<'_>>(content) else {
            return Ok(());
        };
        let of_room = |(room, news): (OwnedRoomId, ReadNews<'_>)| {
            let read = news.read.into_iter();
            let read = read.map(|(user, receipt)| (user, receipt.get().to_owned()));
            read.map(|(user, receipt)| (room.clone(), user, receipt))
                .collect::<Vec<_>>()
        };
        for (room, user, receipt) in news.into_iter().flat_map(of_room).take(MOST_USERS) {
            let Ok(receipt) = serde_json::from_str::<Receipt>(&receipt) else {
                continue;
            };
            let Some(user) = self.speaker(origin, &room, &user)? else {
                continue;
            };
            let Ok(thread) = ReceiptThread::try_from(receipt.data.thread_id) else {
                continue;
            };
            for event_id in receipt.event_ids.into_iter().take(MOST_EVENTS) {
                let mark = Mark {
                    receipt_type: ReceiptType::Read,
                    event_id,
                    thread: thread.clone(),
                };
                let (receipts, ts) = (&self.0.receipts, receipt.data.ts);
                receipts.set_of_other(&room, user, &mark, ts).await?;
            }
        }
        Ok(())
    }

    fn receive_presence(&self, origin: &ServerName, content: &str) -> Result<()> {
        let Ok(news) = serde_json::from_str::<PresenceNews<'_>>(content) else {
            return Ok(());
        };
        for person in news.push.into_iter().take(MOST_USERS) {
            let Ok(person) = serde_json::from_str::<PersonNews>(person.get()) else {
                continue;
            };
            if person.user_id.server_name() != origin {
                continue;
            }
            // Whoever shares no room with anybody here is nothing to anybody here.
            let Some(user) = self.0.store.find_user(&person.user_id)? else {
                continue;
            };
            let told = Told {
                state: person.presence,
                status_msg: person.status_msg,
                last_active_ago: person.last_active_ago,
                currently_active: person.currently_active,
            };
            self.0.presence.set_of_other(user, told)?;
        }
        Ok(())
    }
}
