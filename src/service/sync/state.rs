//! The state section of one room in a sync: what the client must know that its timeline does not tell.
//!
//! The timeline is the newest part of the room; the state section brings the client from what it knew at its token to
//! where the timeline begins, or, if it asked so, to where the timeline ends.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use ruma::{
    OwnedUserId,
    events::{StateEventType, room::member::MembershipState},
};

use super::{Sync, json::Object, timeline::Window, v3::RoomPart};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{EventNid, SnapshotId, StateKeyNid},
        summary,
    },
    store::{
        StateMap, difference,
        schema::{CURRENT_STATE, ROOM_MEMBERS, TIMELINE},
    },
};

/// The type under which memberships lie, and the first key after them.
const MEMBER: &str = "m.room.member";
const AFTER_MEMBER: &str = "m.room.member\u{0}";

/// How many members are looked at to find those by whom a room is called.
const MAX_HERO_ROWS: usize = 200;

impl Sync {
    /// What stands between the brackets of the state section.
    pub(super) fn state_events(
        &self,
        part: &RoomPart<'_>,
        window: &Window,
        upto: i64,
        owed: &[StateKeyNid],
    ) -> Result<String> {
        let filter = &part.asking.request.filter.room;
        let lazy = filter.state.lazy_load_members || filter.timeline.lazy_load_members;
        let after = part.asking.request.state_after.is_some();
        let full = part.known.is_none() || part.asking.request.full_state;
        let is_told_by_timeline = !window.limited && !window.split;
        if !full
            && is_told_by_timeline
            && window.shown.is_empty()
            && window.unshown_state.is_empty()
            && owed.is_empty()
        {
            return Ok(String::new());
        }

        let end = self.snapshot_at(part, upto)?;
        let target = match window.shown.first() {
            // Where history was split, the timeline does not lead from one state to the other: what it does not tell of
            // the state at the end is told here.
            Some(first) if !after && !window.split => first.stored.facts.before,
            _ => end,
        };
        let mut wanted: Vec<EventNid> = if full {
            self.whole_state(part, target, lazy)?
        } else if window.limited || window.split || after {
            let known = self.snapshot_at(part, part.known.unwrap_or(i64::MIN))?;
            self.changed_state(known, target)?
        } else {
            Vec::new()
        };
        let in_timeline: HashSet<EventNid> =
            window.shown.iter().map(|seen| seen.stored.nid).collect();
        if !owed.is_empty() {
            let state = self.store.state(end)?;
            wanted.extend(owed.iter().filter_map(|key| state.get(key)));
        }
        if !after {
            // What the filter kept out of the timeline would be lost, so it is told here if it still holds.
            let state = self.store.state(end)?;
            for stored in &window.unshown_state {
                let header = &stored.event.header;
                let (kind, key) = (header.event_type.to_string(), header.state_key.as_deref());
                let key = self.store.find_state_key(&kind, key.unwrap_or_default())?;
                if key.is_some_and(|key| state.get(&key) == Some(&stored.nid)) {
                    wanted.push(stored.nid);
                }
            }
        }
        if lazy {
            self.add_members(part, window, &self.store.state(target)?, full, &mut wanted)?;
        }
        if !after {
            wanted.retain(|nid| !in_timeline.contains(nid));
        }
        let mut seen = HashSet::new();
        wanted.retain(|nid| seen.insert(*nid));
        let mut events = Vec::with_capacity(wanted.len());
        for stored in self.rooms.events(part.asking.view, &wanted)? {
            if part.sight.passes(&stored, &filter.state)? {
                events.push(stored);
            }
        }
        let mut out = String::new();
        part.write_state(&events, &mut out)?;
        Ok(out)
    }

    /// The state right after the newest event at or before a place in the timeline.
    pub(super) fn snapshot_at(&self, part: &RoomPart<'_>, order: i64) -> Result<SnapshotId> {
        if order >= part.head.last.0.try_into().unwrap_or(i64::MAX) {
            return Ok(part.head.chain.tip);
        }
        let bounds = (Bound::Unbounded, Bound::Included((part.room, order)));
        let mut rows = TIMELINE.range_back(part.asking.view, &(part.room,), bounds);
        match rows.next().transpose()? {
            Some((_, (nid,))) => Ok(self.rooms.event(part.asking.view, nid)?.current()),
            None => Ok(SnapshotId(0)),
        }
    }

    /// Whether the user was in the room at a place in the timeline.
    pub(super) fn was_joined(&self, part: &RoomPart<'_>, order: i64) -> Result<bool> {
        let user = part.asking.requester.user_id.as_str();
        self.was_member(part, order, user)
    }

    /// Whether somebody was in the room at a place in the timeline.
    pub(super) fn was_member(&self, part: &RoomPart<'_>, order: i64, user: &str) -> Result<bool> {
        let state = self.store.state(self.snapshot_at(part, order)?)?;
        let member = self.rooms.entry(part.asking.view, &state, MEMBER, user)?;
        Ok(member.is_some_and(|m| m.event.header.membership == Some(MembershipState::Join)))
    }

    /// All of a room's state, or all but the members.
    fn whole_state(
        &self,
        part: &RoomPart<'_>,
        at: SnapshotId,
        lazy: bool,
    ) -> Result<Vec<EventNid>> {
        let state = self.store.state(at)?;
        if !lazy {
            return Ok(state.values().copied().collect());
        }
        // The few that are no members are found in the present state, and what has changed since is taken back: the
        // number of members does not matter.
        let mut found: BTreeMap<StateKeyNid, EventNid> = BTreeMap::new();
        let view = part.asking.view;
        let before = (Bound::Unbounded, Bound::Excluded((part.room, MEMBER, "")));
        let after = (
            Bound::Included((part.room, AFTER_MEMBER, "")),
            Bound::Unbounded,
        );
        let rows = CURRENT_STATE.range(view, &(part.room,), before);
        for row in rows.chain(CURRENT_STATE.range(view, &(part.room,), after)) {
            let ((_, kind, key), (nid,)) = row?;
            if let Some(key) = self.store.find_state_key(&kind, &key)? {
                found.insert(key, nid);
            }
        }
        let (set, removed) = difference(&self.store.state(part.head.chain.tip)?, &state);
        for (key, nid) in set {
            if self.store.state_key(key)?.0 != MEMBER {
                found.insert(key, nid);
            }
        }
        for key in removed {
            found.remove(&key);
        }
        Ok(found.into_values().collect())
    }

    fn changed_state(&self, from: SnapshotId, to: SnapshotId) -> Result<Vec<EventNid>> {
        if from == to {
            return Ok(Vec::new());
        }
        let (set, _) = difference(&self.store.state(from)?, &self.store.state(to)?);
        Ok(set.into_iter().map(|(_, nid)| nid).collect())
    }

    /// Adds the members that the client needs to show what it gets, unless it has got them already.
    fn add_members(
        &self,
        part: &RoomPart<'_>,
        window: &Window,
        state: &StateMap,
        full: bool,
        wanted: &mut Vec<EventNid>,
    ) -> Result<()> {
        let filter = &part.asking.request.filter.room;
        let redundant =
            filter.state.include_redundant_members || filter.timeline.include_redundant_members;
        let mut needed: Vec<OwnedUserId> = window
            .shown
            .iter()
            .map(|seen| seen.stored.event.header.sender.clone())
            .collect();
        if full {
            needed.push(part.asking.requester.user_id.clone());
            needed.extend_from_slice(self.heroes(part)?);
        }
        needed.sort_unstable();
        needed.dedup();
        let sent = self.sent_members.of(part.asking.requester, part.room, full);
        // What has changed is told anyway; the whole state holds no members here.
        let changed: &[EventNid] = if full { &[] } else { wanted };
        for stored in self.rooms.events(part.asking.view, changed)? {
            if let (Some(_), Some(user)) = (
                &stored.event.header.membership,
                &stored.event.header.state_key,
            ) && let Some(key) = self.store.find_state_key(MEMBER, user)?
            {
                sent.remember(part.asking, key, stored.nid);
            }
        }
        for user in needed {
            let Some(key) = self.store.find_state_key(MEMBER, user.as_str())? else {
                continue;
            };
            let Some(&nid) = state.get(&key) else {
                continue;
            };
            if sent.remember(part.asking, key, nid) || redundant {
                wanted.push(nid);
            }
        }
        // The timeline tells members too.
        for seen in window
            .shown
            .iter()
            .filter(|seen| seen.stored.event.header.membership.is_some())
        {
            let user = seen
                .stored
                .event
                .header
                .state_key
                .as_deref()
                .unwrap_or_default();
            if let Some(key) = self.store.find_state_key(MEMBER, user)? {
                sent.remember(part.asking, key, seen.stored.nid);
            }
        }
        Ok(())
    }

    /// Writes how many members there are, and by whom a room without a name is called.
    pub(super) fn summary(&self, part: &RoomPart<'_>, out: &mut String) -> Result<()> {
        let mut object = Object::new(out);
        let heroes = self.heroes(part)?;
        if !heroes.is_empty() {
            let heroes =
                serde_json::to_string(heroes).map_err(|e| Error::Internal(e.to_string()))?;
            object.json("m.heroes", &heroes);
        }
        object.json("m.invited_member_count", &part.head.invited.to_string());
        object.json("m.joined_member_count", &part.head.joined.to_string());
        object.finish();
        Ok(())
    }

    /// By whom a room without a name is called; worked out once.
    fn heroes<'p>(&self, part: &'p RoomPart<'_>) -> Result<&'p [OwnedUserId]> {
        if let Some(heroes) = part.heroes.get() {
            return Ok(heroes);
        }
        let is_named = self.is_named(part)?;
        let heroes = if is_named {
            Vec::new()
        } else {
            self.find_heroes(part)?
        };
        Ok(part.heroes.get_or_init(|| heroes))
    }

    /// By whom the room would be called if it had no name.
    pub(super) fn find_heroes(&self, part: &RoomPart<'_>) -> Result<Vec<OwnedUserId>> {
        let mut members: Vec<(Arc<OwnedUserId>, MembershipState)> = Vec::new();
        let mut present = 0;
        for row in ROOM_MEMBERS
            .scan(part.asking.view, &(part.room,))
            .take(MAX_HERO_ROWS)
        {
            let ((_, user), member) = row?;
            let is_present = matches!(
                member.membership,
                MembershipState::Join | MembershipState::Invite
            );
            present += usize::from(is_present);
            members.push((self.store.user_id(user)?, member.membership));
            if present > summary::MAX_HEROES {
                break;
            }
        }
        let members = members
            .iter()
            .map(|(user, membership)| (&***user, membership));
        let heroes = summary::heroes(&part.asking.requester.user_id, members);
        Ok(heroes.into_iter().map(ToOwned::to_owned).collect())
    }

    fn is_named(&self, part: &RoomPart<'_>) -> Result<bool> {
        for (event_type, member) in [
            (StateEventType::RoomName, "name"),
            (StateEventType::RoomCanonicalAlias, "alias"),
        ] {
            let event = self
                .rooms
                .current(part.asking.view, part.room, &event_type, "")?;
            let content = event.and_then(|e| e.event.content_as::<serde_json::Value>().ok());
            let text = content
                .as_ref()
                .and_then(|content| content.get(member)?.as_str());
            if text.is_some_and(|text| !text.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
