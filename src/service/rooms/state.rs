//! The state of a room and its members, as one user may read them.
//!
//! Who has left reads them as they were then. Answers are put together from what is stored, whatever their size.

use std::{ops::Bound, sync::Arc};

use ruma::{
    OwnedRoomId, RoomId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Reach, Rooms, Sight, Stored, visibility::not_in_room};
use crate::{
    error::{Error, Result},
    protocol::{
        format::{self, Shape},
        ids::EventNid,
        token::PageToken,
    },
    service::Requester,
    store::{
        self, StateMap,
        schema::{CURRENT_STATE, TIMELINE, USER_ROOMS},
    },
};

/// Which members are asked for.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// At this point of the timeline instead of now.
    pub at: Option<PageToken>,
    /// Those with this membership.
    pub membership: Option<MembershipState>,
    /// Those with another membership than this.
    pub not_membership: Option<MembershipState>,
}

impl Members {
    fn wants(&self, stored: &Stored) -> bool {
        let has = stored.event.header.membership.as_ref();
        match (&self.membership, &self.not_membership) {
            (None, None) => true,
            (yes, no) => {
                yes.as_ref().is_some_and(|yes| has == Some(yes))
                    || no.as_ref().is_some_and(|no| has != Some(no))
            }
        }
    }
}

impl Rooms {
    /// The whole state, as the answer of `/state`.
    ///
    /// # Errors
    /// 403 when the user was never in the room and it is not open to everybody.
    pub fn full_state(&self, asker: &Requester, room: &RoomId) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        let events = sight.readable_state()?;
        let mut out = String::with_capacity(events.len() * 640);
        out.push('[');
        sight.show_state(
            &mut out,
            events.iter().map(|stored| &**stored),
            Shape::Client,
        )?;
        out.push(']');
        Ok(out)
    }

    /// One piece of state: its content, or the whole event.
    ///
    /// # Errors
    /// 403 as for the whole state, 404 when it is not set.
    pub fn state_event(
        &self,
        asker: &Requester,
        room: &RoomId,
        (event_type, state_key): (&StateEventType, &str),
        whole: bool,
    ) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        let found = match sight.reach()? {
            Reach::Now => self.current(&view, sight.room, event_type, state_key)?,
            Reach::Until(by) => {
                let state = self.store.state(by.after())?;
                self.entry(&view, &state, &event_type.to_string(), state_key)?
            }
        };
        let stored = found.ok_or_else(|| Error::not_found("The state event"))?;
        if !whole {
            return Ok(stored.event.content_json().to_owned());
        }
        let mut out = String::new();
        sight.show_state(&mut out, [&*stored], Shape::Client)?;
        Ok(out)
    }

    /// The member events, as the answer of `/members`.
    ///
    /// # Errors
    /// 403 as for the state, also when the user was not in the room at the point asked for.
    pub fn members(&self, asker: &Requester, room: &RoomId, which: &Members) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        let mut events = match (sight.reach()?, which.at) {
            (Reach::Now, None) => sight.current_state(Some(&StateEventType::RoomMember))?,
            (Reach::Until(by), None) => sight.events_of(&self.store.state(by.after())?)?,
            (_, Some(at)) => sight.events_of(&sight.state_at(at)?)?,
        };
        events.retain(|stored| {
            stored.event.header.event_type == TimelineEventType::RoomMember && which.wants(stored)
        });
        let mut out = String::with_capacity(events.len() * 640 + 16);
        out.push_str("{\"chunk\":[");
        sight.show_state(
            &mut out,
            events.iter().map(|stored| &**stored),
            Shape::Client,
        )?;
        out.push_str("]}");
        Ok(out)
    }

    /// The joined members with their names and pictures, as the answer of `/joined_members`.
    ///
    /// # Errors
    /// 403 when the user is not in the room now.
    pub fn joined_members(&self, asker: &Requester, room: &RoomId) -> Result<String> {
        #[derive(Default, Deserialize)]
        struct Profile<'e> {
            #[serde(borrow)]
            displayname: Option<&'e RawValue>,
            #[serde(borrow)]
            avatar_url: Option<&'e RawValue>,
        }
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        if !sight.is_joined() {
            return Err(not_in_room());
        }
        let events = sight.current_state(Some(&StateEventType::RoomMember))?;
        let mut out = String::with_capacity(events.len() * 160 + 16);
        out.push_str("{\"joined\":{");
        let mut is_first = true;
        for stored in events {
            let header = &stored.event.header;
            if header.membership != Some(MembershipState::Join) {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                out.push(',');
            }
            format::push_string(&mut out, header.state_key.as_deref().unwrap_or_default());
            out.push(':');
            let profile = stored.event.content_as::<Profile<'_>>().unwrap_or_default();
            // Clients have come to expect both members. What is no text is no name.
            for (before, json) in [
                ("{\"display_name\":", profile.displayname),
                (",\"avatar_url\":", profile.avatar_url),
            ] {
                let text = json.map(RawValue::get);
                let text = text.filter(|json| json.starts_with('"'));
                out.push_str(before);
                out.push_str(text.unwrap_or("null"));
            }
            out.push('}');
        }
        out.push_str("}}");
        Ok(out)
    }

    /// The rooms that a user is in.
    ///
    /// # Errors
    /// When the store fails.
    pub fn joined_rooms(&self, asker: &Requester) -> Result<Vec<OwnedRoomId>> {
        let view = self.store.view();
        let mut rooms = Vec::new();
        for row in USER_ROOMS.scan(&view, &(asker.nid,)) {
            let ((_, room), member) = row?;
            if member.membership == MembershipState::Join {
                rooms.push((*self.store.room_id(room)?).clone());
            }
        }
        Ok(rooms)
    }
}

impl Sight<'_> {
    /// The state that the user may read: that of now, or of when they left.
    ///
    /// # Errors
    /// 403 when the user was never in the room and it is not open to everybody.
    pub fn readable_state(&self) -> Result<Vec<Arc<Stored>>> {
        match self.reach()? {
            Reach::Now => self.current_state(None),
            Reach::Until(by) => self.events_of(&self.rooms.store.state(by.after())?),
        }
    }

    /// The state events of now, all or those of one type.
    fn current_state(&self, event_type: Option<&StateEventType>) -> Result<Vec<Arc<Stored>>> {
        let rows = match event_type {
            Some(event_type) => CURRENT_STATE.scan(self.view, &(self.room, event_type.to_string())),
            None => CURRENT_STATE.scan(self.view, &(self.room,)),
        };
        let nids: Vec<EventNid> = rows
            .map(|row| row.map(|(_, (nid,))| nid))
            .collect::<store::Result<_>>()?;
        self.rooms.events(self.view, &nids)
    }

    /// The events of a state of the past.
    fn events_of(&self, state: &StateMap) -> Result<Vec<Arc<Stored>>> {
        let nids: Vec<_> = state.values().copied().collect();
        self.rooms.events(self.view, &nids)
    }

    /// The state behind the last event before a point of the timeline.
    ///
    /// Nobody is in a room before its creator, so points before that are taken for the one right after: the timeline of
    /// a client that has got all of a room begins before its first event, and there it asks who its members are.
    fn state_at(&self, PageToken(at): PageToken) -> Result<StateMap> {
        let bounds = (
            Bound::Included((self.room, i64::MIN)),
            Bound::Included((self.room, at)),
        );
        let mut rows = TIMELINE.range_back(self.view, &(self.room,), bounds);
        let last = rows.next().transpose()?;
        let last = last.map(|(_, (nid,))| self.rooms.event(self.view, nid));
        let stored = match last.transpose()? {
            Some(stored) if !is_creation(&stored) => stored,
            _ => self.first_with_members()?.ok_or_else(not_in_room)?,
        };
        if self.open_at(&stored)?.is_none() {
            return Err(not_in_room());
        }
        Ok(self.rooms.store.state(stored.current())?)
    }

    /// The first event of the timeline after which somebody is in the room.
    fn first_with_members(&self) -> Result<Option<Arc<Stored>>> {
        // Whatever comes after the creation has a sender who is in the room, and the creator's join comes first.
        for row in TIMELINE.scan(self.view, &(self.room,)).take(2) {
            let (_, (nid,)) = row?;
            let stored = self.rooms.event(self.view, nid)?;
            if !is_creation(&stored) {
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }
}

fn is_creation(stored: &Stored) -> bool {
    stored.event.header.event_type == TimelineEventType::RoomCreate && stored.event.is_state()
}
