//! Entering a room on other servers: its state is taken as one of them tells it, and history begins anew.
//!
//! Before, the events of the state and those that authorise them are stored without their places (`unplaced`). Here one
//! commit makes the room, or replaces what this node remembers from the time when it was in it last.

use std::{collections::HashMap, sync::Arc};

use ruma::{
    OwnedEventId, RoomVersionId, UserId,
    events::{StateEventType, room::member::MembershipState},
    state_res::Event as _,
};
use serde::Deserialize;

use super::{
    RoomHead, Rooms, Stored,
    append::{
        Change,
        write::{put_current, put_event, put_relations},
    },
};
use crate::{
    error::{Error, Result},
    protocol::{
        auth,
        event::Event,
        ids::{EventNid, Position, SnapshotId, StateKeyNid, UserNid},
        ingest::{self, Need, Pdu},
        version,
    },
    store::{
        Base, Chain, StateMap, View, difference,
        schema::{Facts, GAPS, GapRow, MemberRow, ROOM_HEADS, ROOM_MEMBERS, STRIPPED},
    },
};

/// How many places are kept free for what has happened while nobody here was in the room.
pub(super) const FREE_PLACES: u64 = 1 << 20;

/// How entering a room went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Not yet: these events must be stored first.
    Needs(Need),
    /// The room is there, from this position on.
    Done(Position),
}

/// What is read before the one commit.
struct Entrance {
    event: Event,
    sender: UserNid,
    known: Option<EventNid>,
    auth: Vec<EventNid>,
    /// The state before the event.
    state: StateMap,
    key: StateKeyNid,
    create: EventNid,
    changes: Vec<(Change, Option<EventNid>)>,
    own: Change,
    missing: Vec<OwnedEventId>,
}

impl Rooms {
    /// Whether this node is told what happens in a room: somebody here is in it, or nobody else is.
    pub fn takes_part(&self, head: &RoomHead) -> bool {
        !head.row.extremities.is_empty()
            && (!head.members.is_empty()
                || head.servers.keys().all(|server| *server == self.server))
    }

    /// Enters a room by the event `join` of a local user, as a server in the room has accepted it. `state` is the state
    /// before it as that server tells it.
    ///
    /// # Errors
    /// 403 when the event is not allowed by that state, 400 when the state is of another room or version.
    pub fn enter(
        &self,
        head: &mut RoomHead,
        join: &Pdu,
        state: &[OwnedEventId],
    ) -> Result<Entered> {
        let view = self.store.latest();
        let (state, missing) = self.state_of(&view, head.nid, state)?;
        let unknown = join.event.auth_events().map(|id| {
            let found = self.find_event(&view, id)?;
            Ok(found.is_none().then(|| id.clone()))
        });
        let unknown: Vec<_> = unknown.collect::<Result<Vec<_>>>()?;
        let missing: Vec<_> = missing
            .into_iter()
            .chain(unknown.into_iter().flatten())
            .collect();
        if !missing.is_empty() {
            return Ok(Entered::Needs(Need::AuthEvents(missing)));
        }
        let entrance = self.entrance(&view, head, join, state)?;
        let mut next = head.clone();
        let committed = self.store.commit(|batch| {
            let Entrance {
                event,
                sender,
                known,
                auth,
                mut state,
                key,
                create,
                changes,
                own,
                missing,
            } = entrance;
            let floor = (!next.row.extremities.is_empty()).then(|| next.row.last.live_order());
            let before = SnapshotId(batch.position().0);
            let mut chain = Chain::default();
            chain.write(
                batch,
                before,
                &state,
                (Vec::new(), Vec::new()),
                &mut Base::default(),
            );
            if floor.is_some() && !missing.is_empty() {
                batch.skip(FREE_PLACES);
            }
            let position = batch.position();
            let order = position.live_order();
            let nid = known.unwrap_or(EventNid(position.0));
            let replaces = state.insert(key, nid);
            let after = SnapshotId(position.0);
            let delta = (vec![(key, nid)], Vec::new());
            chain.write(batch, after, &state, delta, &mut Base::default());
            let facts = Facts {
                before,
                order: Some(order),
                replaces,
                after: known.map(|_| after),
                current: Some(after),
                ..Facts::default()
            };
            put_event(batch, &next, nid, (&event, sender), &facts, auth);
            let context = super::append::Context {
                awaited: missing.clone(),
                ..Default::default()
            };
            put_relations(batch, &next, (nid, order), sender, &context);
            for (change, event) in &changes {
                put_current(batch, &mut next, position, change, *event);
            }
            put_current(batch, &mut next, position, &own, Some(nid));
            if let Some(member) = &own.member {
                STRIPPED.delete(batch, &(next.nid, member.user));
            }
            let row = &mut next.row;
            // An older gap stays where it is.
            if !missing.is_empty() {
                let gap = GapRow {
                    next: if floor.is_some() { order - 1 } else { -1 },
                    floor: floor.unwrap_or(i64::MIN),
                    missing,
                };
                row.gap = Some(gap.next);
                GAPS.put(batch, &(next.nid, order), &gap);
            }
            row.extremities = vec![(event.header.id.clone(), nid)];
            row.depth = event.header.depth;
            row.chain = chain;
            row.last = position;
            row.create = create;
            row.straight_from = order;
            next.state = state;
            ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            Ok(Stored {
                nid,
                event: Arc::new(event),
                facts,
            })
        })?;
        self.store.cache_state(next.row.chain.tip, &next.state);
        *head = next;
        let position = committed.position;
        self.events.replace(position, vec![committed.value]);
        Ok(Entered::Done(position))
    }

    fn entrance(
        &self,
        view: &View,
        head: &mut RoomHead,
        join: &Pdu,
        state: StateMap,
    ) -> Result<Entrance> {
        #[derive(Deserialize)]
        struct Created {
            room_version: Option<RoomVersionId>,
        }
        let event = join.event.clone();
        let create = self.entry(view, &state, "m.room.create", "")?;
        let create = create.ok_or_else(|| Error::bad_json("The state has no create event"))?;
        let created: Created = create
            .event
            .content_as()
            .map_err(|e| Error::bad_json(format!("the create event: {e}")))?;
        if created.room_version.unwrap_or(version::UNNAMED) != head.row.version {
            return Err(Error::bad_json("The room is of another version"));
        }
        let target = event.header.state_key.clone().unwrap_or_default();
        let target = UserId::parse(target).map_err(|e| Error::bad_json(e.to_string()))?;
        if event.header.membership != Some(MembershipState::Join)
            || target.server_name() != self.server_name
            || event.header.room_id != head.id
        {
            return Err(Error::bad_json("A room is entered by a user's own joining"));
        }
        let find = |id: &ruma::EventId| {
            let found = self.find_event(view, id).ok().flatten();
            found.map(|stored| stored.event.clone())
        };
        ingest::check_by_auth_events(head.rules, &event, &find)?;
        auth::check_against(head.rules, &&event, |kind: &StateEventType, key: &str| {
            let found = self
                .entry(view, &state, &kind.to_string(), key)
                .ok()
                .flatten();
            found.map(|stored| stored.event.clone())
        })?;

        let mut rows: HashMap<UserNid, MemberRow> = HashMap::new();
        for row in ROOM_MEMBERS.scan(view, &(head.nid,)) {
            let ((_, user), row) = row?;
            rows.insert(user, row);
        }
        if head.row.extremities.is_empty() {
            // Invites are counted from now on.
            let invited = rows
                .values()
                .filter(|row| row.membership == MembershipState::Invite);
            head.row.invited = u64::try_from(invited.count()).unwrap_or(u64::MAX);
        }
        let key = self.store.state_key_nid("m.room.member", target.as_str())?;
        let changes = self.replacing(view, head, (&state, key), &mut rows)?;
        let member = self.member_of(view, head.nid, &target, MembershipState::Join)?;
        let own = Change {
            key,
            event_type: "m.room.member".to_owned(),
            state_key: target.to_string(),
            member: Some(member),
        };
        let known = self
            .find_event(view, &event.header.id)?
            .map(|stored| stored.nid);
        let mut auth = Vec::new();
        for id in event.auth_events() {
            auth.extend(self.find_event(view, id)?.map(|stored| stored.nid));
        }
        let mut missing = Vec::new();
        for id in event.prev_events() {
            let found = self.find_event(view, id)?;
            if found.is_none_or(|prev| prev.facts.order.is_none()) {
                missing.push(id.clone());
            }
        }
        Ok(Entrance {
            sender: self.store.user_nid(&event.header.sender)?,
            event,
            known,
            auth,
            state,
            key,
            create: create.nid,
            changes,
            own,
            missing,
        })
    }

    /// What changes when a state takes the place of the one that this node remembers, but for the entry `own`.
    fn replacing(
        &self,
        view: &View,
        head: &RoomHead,
        (state, own): (&StateMap, StateKeyNid),
        rows: &mut HashMap<UserNid, MemberRow>,
    ) -> Result<Vec<(Change, Option<EventNid>)>> {
        let (set, removed) = difference(&head.state, state);
        let set = set.into_iter().map(|(key, nid)| (key, Some(nid)));
        let mut changes = Vec::new();
        for (key, nid) in set.chain(removed.into_iter().map(|key| (key, None))) {
            if key == own {
                continue;
            }
            let name = self.store.state_key(key)?;
            let mut member = None;
            if name.0 == "m.room.member"
                && let Ok(user) = <&UserId>::try_from(name.1.as_str())
            {
                let after = match nid {
                    Some(nid) => self.event(view, nid)?.event.header.membership.clone(),
                    None => None,
                };
                let after = after.unwrap_or(MembershipState::Leave);
                let user_nid = self.store.user_nid(user)?;
                member = Some(self.member_from(rows.remove(&user_nid), user_nid, user, after)?);
            }
            let change = Change {
                key,
                event_type: name.0.clone(),
                state_key: name.1.clone(),
                member,
            };
            changes.push((change, nid));
        }
        Ok(changes)
    }
}
