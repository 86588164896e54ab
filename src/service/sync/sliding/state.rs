//! The state that a client requires of a room: all of it at first, then what has changed, and more when it wants more.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::events::room::member::MembershipState;

use super::{
    super::{Sync, timeline::Window, v3::RoomPart},
    connection::Detail,
    request::{Config, Keys, MEMBER, Wanted},
};
use crate::{
    error::Result,
    protocol::ids::{EventNid, SnapshotId, StateKeyNid},
    service::rooms::Stored,
    store::{StateMap, difference, schema::CURRENT_STATE},
};

/// Of how many members it is remembered that the client has them.
const MOST_MEMBERS: usize = 500;

/// What a client is told of the state of a room.
pub(super) struct State {
    pub(super) events: Vec<Arc<Stored>>,
    /// The state at the end of the timeline.
    pub(super) end: StateMap,
    /// Which state the client has then as it is.
    pub(super) wanted: Arc<Wanted>,
    /// The members that it has then because a timeline needed them.
    pub(super) members: HashMap<StateKeyNid, EventNid>,
    pub(super) name_changed: bool,
    pub(super) avatar_changed: bool,
    pub(super) members_changed: bool,
}

impl Sync {
    /// What the client has to be told of the state right after the place `upto`, by what it was told `before`, if it was.
    pub(super) fn required_state(
        &self,
        part: &RoomPart<'_>,
        (window, upto): (&Window, i64),
        (config, before): (&Config, Option<&Detail>),
    ) -> Result<State> {
        let end_at = self.snapshot_at(part, upto)?;
        let mut state = State {
            events: Vec::new(),
            end: self.store.state(end_at)?,
            wanted: config.wanted.clone(),
            members: before
                .map(|before| before.members.clone())
                .unwrap_or_default(),
            name_changed: false,
            avatar_changed: false,
            members_changed: false,
        };
        let wanted = &config.wanted;
        let mut found = BTreeSet::new();
        let mut lazy = HashSet::new();
        if let Some(before) = before {
            let from = self.snapshot_at(part, part.known.unwrap_or(i64::MIN))?;
            let may_stay = self.changes(
                from,
                window,
                wanted,
                before,
                &mut state,
                (&mut found, &mut lazy),
            )?;
            if !before.wanted.covers(wanted) {
                self.select(
                    part,
                    &state.end,
                    end_at,
                    (wanted, Some(&before.wanted)),
                    &mut found,
                )?;
            }
            if may_stay {
                state.wanted = if before.wanted.covers(wanted) {
                    before.wanted.clone()
                } else {
                    before.wanted.with(wanted)
                };
            }
        } else {
            self.select(part, &state.end, end_at, (wanted, None), &mut found)?;
        }
        if part.member.membership != MembershipState::Join {
            // By this the client knows that the user has gone.
            found.insert(part.member.event);
        }
        if wanted.lazy {
            self.needed_members(window, &mut lazy)?;
        }
        let mut told = HashMap::new();
        for key in lazy {
            if let Some(nid) = state.end.get(&key) {
                told.insert(key, *nid);
                if state.members.insert(key, *nid) != Some(*nid) {
                    found.insert(*nid);
                }
            }
        }
        if state.members.len() > MOST_MEMBERS {
            state.members = told;
        }
        let found: Vec<_> = found.into_iter().collect();
        state.events = self.rooms.events(part.asking.view, &found)?;
        Ok(state)
    }

    /// Finds what has changed. False if the client now has of what it was told before something that is out of date.
    fn changes(
        &self,
        from: SnapshotId,
        window: &Window,
        wanted: &Wanted,
        before: &Detail,
        state: &mut State,
        (found, lazy): (&mut BTreeSet<EventNid>, &mut HashSet<StateKeyNid>),
    ) -> Result<bool> {
        let mut is_up_to_date = true;
        let (set, removed) = difference(&self.store.state(from)?, &state.end);
        let changed = set.into_iter().map(|(key, nid)| (key, Some(nid)));
        for (key, nid) in changed.chain(removed.into_iter().map(|key| (key, None))) {
            let name = self.store.state_key(key)?;
            let (kind, state_key) = (name.0.as_str(), name.1.as_str());
            state.name_changed |= kind == "m.room.name" && state_key.is_empty();
            state.avatar_changed |= kind == "m.room.avatar" && state_key.is_empty();
            state.members_changed |= kind == MEMBER;
            if wanted.has(kind, state_key) {
                found.extend(nid);
            } else {
                // Who has all members stays up to date as long as nothing is left out of the timeline.
                if kind == MEMBER && wanted.lazy && !window.limited {
                    lazy.insert(key);
                }
                is_up_to_date &= !before.wanted.has(kind, state_key);
            }
        }
        Ok(is_up_to_date)
    }

    /// Finds the state that is wanted, but for what the client has.
    fn select(
        &self,
        part: &RoomPart<'_>,
        state: &StateMap,
        at: SnapshotId,
        (wanted, has): (&Wanted, Option<&Wanted>),
        found: &mut BTreeSet<EventNid>,
    ) -> Result<()> {
        let has = |kind: &str, key: &str| has.is_some_and(|has| has.has(kind, key));
        let by_type = |keys: &Keys| matches!(keys, Keys::All);
        let is_current = at == part.head.chain.tip;
        if wanted.everything
            || !wanted.keys.is_empty()
            || (!is_current && wanted.types.values().any(by_type))
        {
            for (key, nid) in state {
                let name = self.store.state_key(*key)?;
                if wanted.has(&name.0, &name.1) && !has(&name.0, &name.1) {
                    found.insert(*nid);
                }
            }
            return Ok(());
        }
        for (kind, keys) in &wanted.types {
            match keys {
                Keys::All => {
                    for row in CURRENT_STATE.scan(part.asking.view, &(part.room, kind.as_str())) {
                        let ((_, _, key), (nid,)) = row?;
                        if !has(kind, &key) {
                            found.insert(nid);
                        }
                    }
                }
                Keys::These(keys) => {
                    for key in keys.iter().filter(|key| !has(kind, key)) {
                        let key = self.store.find_state_key(kind, key)?;
                        found.extend(key.and_then(|key| state.get(&key)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds those who speak in the timeline, and of whom it says that they come and go.
    fn needed_members(&self, window: &Window, needed: &mut HashSet<StateKeyNid>) -> Result<()> {
        for seen in &window.shown {
            let header = &seen.stored.event.header;
            needed.extend(self.store.find_state_key(MEMBER, header.sender.as_str())?);
            if let (Some(_), Some(user)) = (&header.membership, &header.state_key) {
                needed.extend(self.store.find_state_key(MEMBER, user)?);
            }
        }
        Ok(())
    }
}
