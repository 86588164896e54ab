//! What one user sees of one room: each event by the visibility that held when it was sent.
//!
//! A user who has left keeps what they could see until then. See "Room history visibility" in the client-server API.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    OwnedUserId, UserId,
    events::{
        TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Rooms, Stored};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        ids::{RoomNid, SnapshotId, StateKeyNid, UserNid},
        visibility::{Moment, may_see},
    },
    service::Requester,
    store::{
        View,
        schema::{ACCOUNT_DATA, MemberRow, ROOM_HEADS, ROOM_MEMBERS},
    },
};

/// The most changes of a membership that are followed back to the last time when the user was in the room.
const MAX_CHANGES: usize = 64;

/// One user's eyes on one room at one moment. What was looked up once is kept, so use it for a whole answer.
pub struct Sight<'r> {
    pub(super) rooms: &'r Rooms,
    pub(super) view: &'r View,
    /// The room.
    pub room: RoomNid,
    pub(super) asker: &'r Requester,
    presence: Presence,
    pub(super) ignored: HashSet<OwnedUserId>,
    member_key: Option<StateKeyNid>,
    visibility_key: Option<StateKeyNid>,
    moments: RefCell<HashMap<SnapshotId, Known>>,
}

/// The state that decides, and where in the timeline it came to be so.
#[derive(Clone)]
struct Known {
    moment: Moment,
    since: i64,
}

/// Whether the user is, was, or never was in the room.
enum Presence {
    /// Since this place in the timeline.
    Joined { since: i64 },
    /// Until this event.
    Left { by: Arc<Stored> },
    /// Never, or so long ago or so thoroughly that it does not count.
    Stranger,
}

/// How far a user may read a room's state.
#[derive(Clone, Debug)]
pub enum Reach {
    /// As it is.
    Now,
    /// As it was when the user left: right after this event.
    Until(Arc<Stored>),
}

impl Rooms {
    /// What a user sees of a room.
    pub fn sight<'r>(
        &'r self,
        view: &'r View,
        room: RoomNid,
        asker: &'r Requester,
    ) -> Result<Sight<'r>> {
        let row = ROOM_MEMBERS.get(view, &(room, asker.nid))?;
        let presence = self.presence_of(view, row)?;
        let key = |event_type, state_key| self.store.find_state_key(event_type, state_key);
        Ok(Sight {
            rooms: self,
            view,
            room,
            asker,
            presence,
            ignored: ignored(view, asker.nid)?,
            member_key: key("m.room.member", asker.user_id.as_str())?,
            visibility_key: key("m.room.history_visibility", "")?,
            moments: RefCell::default(),
        })
    }

    fn presence_of(&self, view: &View, row: Option<MemberRow>) -> Result<Presence> {
        let Some(row) = row.filter(|row| !row.forgotten) else {
            return Ok(Presence::Stranger);
        };
        if row.membership == MembershipState::Join {
            return Ok(Presence::Joined {
                since: row.since.live_order(),
            });
        }
        let mut by = self.event(view, row.event)?;
        for _ in 0..MAX_CHANGES {
            let Some(before) = by.facts.replaces else {
                break;
            };
            let before = self.event(view, before)?;
            if before.event.header.membership == Some(MembershipState::Join) {
                return Ok(Presence::Left { by });
            }
            by = before;
        }
        Ok(Presence::Stranger)
    }
}

impl Sight<'_> {
    /// The asker's membership right after the event; `None` when they may not see the event.
    pub fn sees(&self, stored: &Stored) -> Result<Option<MembershipState>> {
        let header = &stored.event.header;
        if header.flags.rejected || header.flags.soft_failed {
            return Ok(None);
        }
        if !stored.event.is_state() && self.ignored.contains(&header.sender) {
            return Ok(None);
        }
        self.open_at(stored)
    }

    /// The asker's membership right after the event; `None` when the room was closed to them then.
    pub(super) fn open_at(&self, stored: &Stored) -> Result<Option<MembershipState>> {
        let header = &stored.event.header;
        let own = self.own_membership(&stored.event);
        let Some(order) = stored.facts.order else {
            // The state around an event outside the timeline is unknown; of those only one's own are told.
            return Ok(own.cloned());
        };
        if matches!(self.presence, Presence::Joined { since } if since <= order) {
            return Ok(Some(MembershipState::Join));
        }
        let before = self.moment(stored.facts.before)?.moment;
        let mut after = before.clone();
        if let Some(membership) = own {
            after.membership = membership.clone();
        }
        if header.event_type == TimelineEventType::RoomHistoryVisibility
            && header.state_key.as_deref() == Some("")
        {
            after.visibility = visibility_of(&stored.event);
        }
        Ok(may_see(&before, &after, self.joined_after(order)).then_some(after.membership))
    }

    /// Those of the events that the asker may see, each with their membership at the time.
    pub fn visible(&self, events: Vec<Arc<Stored>>) -> Result<Vec<Seen>> {
        let mut seen = Vec::with_capacity(events.len());
        for stored in events {
            if let Some(membership) = self.sees(&stored)? {
                seen.push(Seen { stored, membership });
            }
        }
        Ok(seen)
    }

    /// How far the asker may read the room's state.
    ///
    /// # Errors
    /// 403 when not at all, the same for a room that does not exist.
    pub fn reach(&self) -> Result<Reach> {
        if self.is_joined() || self.is_open()? {
            return Ok(Reach::Now);
        }
        match &self.presence {
            Presence::Left { by } => Ok(Reach::Until(by.clone())),
            _ => Err(not_in_room()),
        }
    }

    /// Whether the asker is in the room now.
    pub fn is_joined(&self) -> bool {
        matches!(self.presence, Presence::Joined { .. })
    }

    /// Whether the asker was in the room and is not any more.
    pub fn was_joined(&self) -> bool {
        matches!(self.presence, Presence::Left { .. })
    }

    /// Whether events of this sender are kept from the asker, unless they are state.
    pub fn ignores(&self, sender: UserNid) -> Result<bool> {
        if self.ignored.is_empty() {
            return Ok(false);
        }
        Ok(self.ignored.contains(&*self.rooms.store.user_id(sender)?))
    }

    /// From this place in the timeline on the asker sees nothing, unless the room shows it to everybody.
    pub(super) fn horizon(&self) -> i64 {
        match &self.presence {
            Presence::Left { by } => by.facts.order.map_or(i64::MAX, |order| order + 1),
            _ => i64::MAX,
        }
    }

    /// Whether anybody may read the room now.
    fn is_open(&self) -> Result<bool> {
        let current = self.rooms.current(
            self.view,
            self.room,
            &"m.room.history_visibility".into(),
            "",
        )?;
        Ok(current
            .is_some_and(|stored| visibility_of(&stored.event) == HistoryVisibility::WorldReadable))
    }

    fn joined_after(&self, order: i64) -> bool {
        match &self.presence {
            Presence::Joined { .. } => true,
            Presence::Left { by } => by.facts.order.is_some_and(|left| order < left),
            Presence::Stranger => false,
        }
    }

    /// What the event makes of the asker, if it is about them.
    fn own_membership<'e>(&self, event: &'e Event) -> Option<&'e MembershipState> {
        let header = &event.header;
        (header.state_key.as_deref() == Some(self.asker.user_id.as_str()))
            .then_some(header.membership.as_ref())
            .flatten()
    }

    /// From where on the events up to this hidden one are hidden for the same reason.
    pub(super) fn hidden_since(&self, stored: &Stored) -> Result<Option<i64>> {
        let Known { moment, since } = self.moment(stored.facts.before)?;
        let order = stored.facts.order;
        let hidden =
            order.is_some_and(|order| !may_see(&moment, &moment, self.joined_after(order)));
        if !hidden {
            return Ok(None);
        }
        // Where history was split, what held at this event need not have held at the one that is told before it.
        let head = ROOM_HEADS.get(self.view, &(self.room,))?;
        let straight_from = head.map_or(i64::MIN, |head| head.straight_from);
        Ok(Some(since.max(straight_from)))
    }

    fn moment(&self, snapshot: SnapshotId) -> Result<Known> {
        if let Some(known) = self.moments.borrow().get(&snapshot) {
            return Ok(known.clone());
        }
        let state = self.rooms.store.state(snapshot)?;
        let entry = |key: Option<StateKeyNid>| {
            let nid = key.and_then(|key| state.get(&key).copied());
            nid.map(|nid| self.rooms.event(self.view, nid)).transpose()
        };
        let (visibility, member) = (entry(self.visibility_key)?, entry(self.member_key)?);
        let orders = [&visibility, &member].map(|entry| entry.as_ref()?.facts.order);
        let known = Known {
            moment: Moment::new(
                visibility.map(|stored| visibility_of(&stored.event)),
                member.and_then(|stored| stored.event.header.membership.clone()),
            ),
            since: orders.into_iter().flatten().max().unwrap_or(i64::MIN),
        };
        self.moments.borrow_mut().insert(snapshot, known.clone());
        Ok(known)
    }
}

/// An event that somebody may see.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The event.
    pub stored: Arc<Stored>,
    /// Their membership right after it.
    pub membership: MembershipState,
}

/// Said of a room that the asker is not in, and of one that does not exist.
pub(super) fn not_in_room() -> Error {
    Error::forbidden("You are not in this room, and it is not open to everybody")
}

/// Who may read what was said, by an event of history visibility.
pub fn visibility_of(event: &Event) -> HistoryVisibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    // What can not be read is as good as not set.
    event
        .content_as::<Content>()
        .map_or(HistoryVisibility::Shared, |content| {
            content.history_visibility
        })
}

/// The users whose messages this user does not want. See "Ignoring Users".
pub fn ignored(view: &View, user: UserNid) -> Result<HashSet<OwnedUserId>> {
    #[derive(Deserialize)]
    struct Content<'r> {
        #[serde(borrow)]
        ignored_users: HashMap<String, &'r RawValue>,
    }
    let key = (user, RoomNid::default(), "m.ignored_user_list");
    let Some(row) = ACCOUNT_DATA.get(view, &key)? else {
        return Ok(HashSet::new());
    };
    // Clients may store anything; what is no list ignores nobody.
    let content = serde_json::from_str::<Content<'_>>(&row.content).ok();
    Ok(content
        .into_iter()
        .flat_map(|content| content.ignored_users.into_keys())
        .filter_map(|user| UserId::parse(user).ok())
        .collect())
}

#[cfg(test)]
mod tests;
