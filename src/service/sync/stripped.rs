//! The few events by which an invited or knocking user knows a room. See "Stripped state".

use std::borrow::Cow;

use ruma::UserId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Sync,
    json::{Object, push_item},
    v3::Asking,
};
use crate::{
    error::Result,
    protocol::{format, ids::RoomNid, invite_permission::Permission, summary::stripped_state},
    service::rooms::Stored,
    store::schema::{MemberRow, STRIPPED},
};

impl Sync {
    /// Whether an invite comes from somebody whom the user does not want to hear of. See "Ignoring Users" and "Invite
    /// permission".
    pub(super) fn is_unwanted(
        &self,
        asking: &Asking<'_>,
        room: RoomNid,
        member: &MemberRow,
    ) -> Result<bool> {
        let event = self.rooms.event(asking.view, member.event)?;
        let (sender, user) = (&event.event.header.sender, asking.requester.nid);
        let permission = self.rooms.invite_permission(asking.view, user, sender)?;
        if permission != Permission::Allowed {
            return Ok(true);
        }
        let sight = self.rooms.sight(asking.view, room, asking.requester)?;
        sight.ignores(self.store.user_nid(sender)?)
    }

    /// The room as it was when the user was invited or knocked, as the member `name` of an object.
    pub(super) fn stripped(
        &self,
        asking: &Asking<'_>,
        room: (RoomNid, &MemberRow),
        name: &str,
    ) -> Result<String> {
        let events = self.stripped_events(asking, room)?;
        let mut out = String::new();
        let mut object = Object::new(&mut out);
        object.event_list(name, &events);
        object.finish();
        Ok(out)
    }

    /// The room as it was when the user was invited or knocked: what stands between the brackets of a list of events.
    pub(super) fn stripped_events(
        &self,
        asking: &Asking<'_>,
        (room, member): (RoomNid, &MemberRow),
    ) -> Result<String> {
        let event = self.rooms.event(asking.view, member.event)?;
        if event.facts.aside {
            return Self::stripped_from_outside(asking, (room, &event));
        }
        let state = self.store.state(event.facts.before)?;
        let members: [&UserId; 1] = [&event.event.header.sender];
        let mut events = String::new();
        for (event_type, key) in stripped_state(&members) {
            let found = self
                .rooms
                .entry(asking.view, &state, &event_type.to_string(), key)?;
            // The user's own event comes last, in its newest form.
            let found = found.filter(|_| key != asking.requester.user_id.as_str());
            if let Some(found) = found {
                push_item(&mut events, &format::stripped(&found.event));
            }
        }
        push_item(&mut events, &format::stripped_membership(&event.event));
        Ok(events)
    }

    /// A room that this node does not know, as the server that invites has described it.
    fn stripped_from_outside(
        asking: &Asking<'_>,
        (room, event): (RoomNid, &Stored),
    ) -> Result<String> {
        #[derive(Deserialize)]
        struct Key<'e> {
            #[serde(borrow, rename = "type")]
            event_type: Option<Cow<'e, str>>,
            #[serde(borrow)]
            state_key: Option<Cow<'e, str>>,
        }
        let told = STRIPPED.get(asking.view, &(room, asking.requester.nid))?;
        let told = told.unwrap_or_else(|| "[]".to_owned());
        let told: Vec<&RawValue> = serde_json::from_str(&told).unwrap_or_default();
        let mut events = String::new();
        for json in told {
            let Ok(key) = serde_json::from_str::<Key<'_>>(json.get()) else {
                continue;
            };
            // The user's own event comes last, in its newest form.
            let is_own = key.event_type.as_deref() == Some("m.room.member")
                && key.state_key.as_deref() == Some(asking.requester.user_id.as_str());
            if !is_own {
                push_item(&mut events, json.get());
            }
        }
        push_item(&mut events, &format::stripped_membership(&event.event));
        Ok(events)
    }
}
