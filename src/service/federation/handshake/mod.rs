//! How users enter and leave rooms that their server is not in, and how other servers' users enter and leave ours.
//!
//! The asking side gets a template from a server in the room, fills it in, signs it and sends it back; the answering
//! side checks it as any event, writes it, and from then on has to tell the others in the room. No lock of a room is
//! held while somebody else is waited for: what was checked before is checked again when it is written.

pub(super) mod ask;
mod invite;
mod join;
mod resident;
mod stripped;

use std::{collections::HashMap, sync::Arc};

use http::StatusCode;
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, EventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName,
    UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};

use super::Federation;
use crate::{
    error::{Error, Result},
    protocol::{
        ingest::{self, Dropped, Need, Pdu, Received},
        version,
    },
    service::{keyring::Keyring, limits::Limits, rooms::Outcome},
};

/// How many states of rooms are put together for others at the same time. Each may be as large as the largest room.
const ANSWERS: usize = 4;

/// How many rooms are entered at the same time. Each may be told with as much as a large room has.
const ENTRANCES: usize = 8;

/// What is remembered of handshakes while they last.
pub struct Handshakes {
    limits: Limits,
    /// The rooms that are being entered, each by one user at a time: who comes second finds the room there.
    flights: Mutex<HashMap<OwnedRoomId, Flight>>,
    answers: Semaphore,
    entrances: Semaphore,
}

type Flight = Arc<AsyncMutex<()>>;

/// The right to enter a room.
struct Ticket<'f> {
    federation: &'f Federation,
    room: OwnedRoomId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut flights = self.federation.0.handshakes.flights.lock();
        let is_last = |flight: &Flight| Arc::strong_count(flight) == 1;
        if flights.get(&self.room).is_some_and(is_last) {
            flights.remove(&self.room);
        }
    }
}

impl Handshakes {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            flights: Mutex::default(),
            answers: Semaphore::new(ANSWERS),
            entrances: Semaphore::new(ENTRANCES),
        }
    }
}

/// What a user of ours wants in a room of others.
#[derive(Clone, Debug)]
pub struct Wish<'w> {
    /// The room.
    pub room: &'w RoomId,
    /// Who.
    pub user: &'w UserId,
    /// What the member event says besides the membership.
    pub content: CanonicalJsonObject,
    /// The servers to ask, in this order.
    pub via: Vec<OwnedServerName>,
}

/// What a member event that another server sends must be.
struct Expected<'e> {
    origin: &'e ServerName,
    room: &'e RoomId,
    id: &'e EventId,
    membership: MembershipState,
}

impl<'e> Expected<'e> {
    fn of(
        origin: &'e ServerName,
        (room, id): (&'e RoomId, &'e EventId),
        membership: MembershipState,
    ) -> Self {
        Self {
            origin,
            room,
            id,
            membership,
        }
    }
}

impl Federation {
    /// Waits for everybody who enters this room at this moment.
    async fn ticket(&self, room: &RoomId) -> Ticket<'_> {
        let flight = {
            let mut flights = self.0.handshakes.flights.lock();
            flights.entry(room.to_owned()).or_default().clone()
        };
        Ticket {
            federation: self,
            room: room.to_owned(),
            guard: Some(flight.lock_owned().await),
        }
    }

    /// Waits until nobody enters a room any more. What a server sends right after it has let us in comes before this
    /// node has read what it was told of the room; it must wait, not be dropped as of an unknown room.
    pub async fn until_entered(&self, room: &RoomId) {
        let is_entered = !self.0.handshakes.flights.lock().contains_key(room);
        if !is_entered {
            drop(self.ticket(room).await);
        }
    }

    /// Checks the keys and signatures of one event.
    async fn verify_one(
        &self,
        received: Received,
        rules: &RoomVersionRules,
    ) -> Result<Result<Pdu, Dropped>> {
        let needs = Keyring::needs(received.object(), rules);
        Box::pin(self.0.keyring.obtain(&needs)).await?;
        let keys = self.0.keyring.key_map(&needs)?;
        Ok(received.verify(&keys))
    }
}

/// Parses a member event and checks all that can be seen by looking at it alone.
fn read_member(
    text: &str,
    rules: &'static RoomVersionRules,
    expected: &Expected<'_>,
) -> Result<Received> {
    let received = ingest::receive(text, rules).map_err(|dropped| malformed(&dropped))?;
    let header = &received.event().header;
    let refused = |problem: String| Err(Error::invalid_param(problem));
    if header.event_type != TimelineEventType::RoomMember || header.state_key.is_none() {
        return refused("It is no member event".to_owned());
    }
    if header.membership.as_ref() != Some(&expected.membership) {
        return refused(format!("Its membership is not {}", expected.membership));
    }
    if header.room_id != expected.room {
        return refused(format!("It is not in room {}", expected.room));
    }
    if header.id != expected.id {
        return refused(format!("It is event {}, not {}", header.id, expected.id));
    }
    if header.sender.server_name() != expected.origin {
        return refused(format!("Its sender is not a user of {}", expected.origin));
    }
    let is_own = header.state_key.as_deref() == Some(header.sender.as_str());
    if expected.membership != MembershipState::Invite && !is_own {
        return refused("It is about another user than its sender".to_owned());
    }
    if !received.intact {
        return refused("Its content is not what was hashed".to_owned());
    }
    Ok(received)
}

pub(super) fn malformed(dropped: &Dropped) -> Error {
    match dropped {
        Dropped::Signature(_) => Error::invalid_param(dropped.to_string()),
        Dropped::Json(_) | Dropped::Format(_) => Error::bad_json(dropped.to_string()),
    }
}

/// The room is of a version that the other side does not serve, or this one does not.
fn incompatible(version: &RoomVersionId) -> Error {
    let problem = format!("The room is of version {version}");
    Error::api(
        StatusCode::BAD_REQUEST,
        "M_INCOMPATIBLE_ROOM_VERSION",
        problem,
    )
    .with("room_version", version.as_str())
}

fn rules_of(version: &RoomVersionId) -> Result<&'static RoomVersionRules> {
    version::rules(version).ok_or_else(|| incompatible(version))
}

/// What became of an event that must become a part of the room, or the request makes no sense.
fn wanted(outcome: Outcome) -> Result<()> {
    use crate::protocol::ingest::Verdict;
    match outcome {
        Outcome::Known => Ok(()),
        Outcome::Needs(Need::Recommendation(_)) => Err(Error::forbidden(
            "The room's policy server has not signed the event",
        )),
        Outcome::Needs(_) => Err(Error::invalid_param(
            "The event refers to events that this server does not have; get a new template",
        )),
        Outcome::Written { verdict, .. } => match verdict {
            Verdict::Accepted => Ok(()),
            Verdict::SoftFailed(denied) | Verdict::Rejected(denied) => Err(denied.into()),
        },
    }
}
