//! The only writer of events. A *run* is one or more events of one room that are written together, all or nothing,
//! with everything derived from them.
//!
//! Numbers are given inside the commit, so until then the events of a run refer to each other by their place in it.

mod context;
mod known;
pub(super) mod write;

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, UInt,
    UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde_json::value::RawValue;

use self::{known::Known, write::write};
use super::{RoomHead, Rooms, Stored, aggregations::Tie};
use crate::{
    error::{Error, Result},
    protocol::{
        auth,
        event::{Event, Origin},
        ids::{EventNid, Position, ServerNid, StateKeyNid, UserNid},
        integrity,
        template::{self, Draft, Legacy},
    },
    store::{
        Batch, View,
        schema::{MemberRow, ROOM_HEADS},
    },
};

/// The most events that nothing follows yet which are kept. A new event follows all of them, so that every local event
/// heals every fork. See "PDUs" in the server-server API.
pub(super) const MAX_HEADS: usize = integrity::MAX_PREV_EVENTS;

/// What a local user wants to add to a room.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Who.
    pub sender: OwnedUserId,
    /// The type.
    pub event_type: TimelineEventType,
    /// The state key, for a state event.
    pub state_key: Option<String>,
    /// The content.
    pub content: CanonicalJsonObject,
    /// The event to redact.
    pub redacts: Option<OwnedEventId>,
    /// The device's transaction.
    pub transaction: Option<Transaction>,
}

/// What a device asked for, so that asking again gives the same answer.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The device and its own name of the transaction.
    pub origin: Origin,
    /// The endpoint and its path, within which that name means one thing.
    pub scope: String,
}

impl Transaction {
    /// What names it among all transactions of the device.
    pub fn key(&self) -> String {
        // Both may contain any character, so the length says where one ends.
        format!("{}/{}/{}", self.scope.len(), self.scope, self.origin.txn_id)
    }
}

impl NewEvent {
    /// A state event.
    pub fn state(
        sender: &UserId,
        event_type: StateEventType,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Self {
        Self {
            sender: sender.to_owned(),
            event_type: event_type.into(),
            state_key: Some(state_key.to_owned()),
            content,
            redacts: None,
            transaction: None,
        }
    }
}

/// An event before it has a number: one that is stored, or one of the same run.
#[derive(Clone, Copy)]
enum Ref {
    Known(EventNid),
    InRun(usize),
}

struct Drafted {
    event: Event,
    sender: UserNid,
    transaction: Option<Transaction>,
    auth: Vec<Ref>,
    state: Option<StateDelta>,
    context: Context,
}

/// What an event has to do with others.
#[derive(Default)]
pub(super) struct Context {
    /// What it relates to, and how.
    pub(super) relation: Option<(EventNid, Tie)>,
    /// The order of the newest reply of the thread that it is a reply in, if there is one.
    pub(super) last_reply: Option<i64>,
    /// The root of its thread.
    pub(super) thread: Option<OwnedEventId>,
    /// The event that it empties.
    pub(super) redacted: Option<Redacted>,
    /// Events that it refers to and that are not there yet.
    pub(super) awaited: Vec<OwnedEventId>,
}

/// An event that another one empties.
pub(super) struct Redacted {
    pub(super) target: Arc<Stored>,
    pub(super) emptied: Event,
    pub(super) sender: UserNid,
    /// What it related to, and how: it does so no longer.
    pub(super) relation: Option<(EventNid, Tie)>,
    /// The order of the reply before it, if it was a reply in a thread.
    pub(super) last_reply: Option<i64>,
}

struct StateDelta {
    change: Change,
    replaces: Option<Ref>,
}

/// One entry of the current state that changes.
pub(super) struct Change {
    pub(super) key: StateKeyNid,
    pub(super) event_type: String,
    pub(super) state_key: String,
    pub(super) member: Option<Member>,
}

/// What a change means for a membership.
pub(super) struct Member {
    pub(super) user: UserNid,
    pub(super) server: ServerNid,
    pub(super) is_local: bool,
    pub(super) before: Option<MemberRow>,
    pub(super) after: MembershipState,
}

/// Events of one room that are written together.
pub struct Run<'r> {
    rooms: &'r Rooms,
    head: &'r mut RoomHead,
    view: View,
    drafted: Vec<Drafted>,
    overlay: HashMap<StateKeyNid, usize>,
    prev: Vec<OwnedEventId>,
    depth: u64,
}

impl<'r> Run<'r> {
    /// Starts a run at the end of a room.
    pub fn new(rooms: &'r Rooms, head: &'r mut RoomHead) -> Self {
        let newest = head.row.extremities.iter().rev().take(MAX_HEADS);
        let prev = newest.map(|(id, _)| id.clone()).collect();
        let depth = head.row.depth;
        let view = rooms.store.latest();
        Self {
            rooms,
            head,
            view,
            drafted: Vec::new(),
            overlay: HashMap::new(),
            prev,
            depth,
        }
    }

    /// Drafts, signs and checks one more event.
    ///
    /// # Errors
    /// [`Error::Denied`] when the room does not allow it; the run is then as it was before.
    pub fn add(&mut self, new: NewEvent) -> Result<OwnedEventId> {
        let transaction = new.transaction.clone();
        let (event, auth) = self.draft(new)?;
        self.admit(event, transaction, auth)
    }

    /// The next event as it would be, signed and checked, for somebody else to sign as well. Nothing is written.
    ///
    /// # Errors
    /// [`Error::Denied`] when the room does not allow it.
    pub fn try_out(&self, new: NewEvent) -> Result<Event> {
        let (event, _) = self.draft(new)?;
        self.check(&event)?;
        let _may_be_redacted = self.redacted(&event)?;
        Ok(event)
    }

    fn draft(&self, new: NewEvent) -> Result<(Event, Vec<Ref>)> {
        let rules = self.head.rules;

        let content = integrity::canonical(&new.content);
        let raw: &RawValue =
            serde_json::from_str(&content).map_err(|e| Error::bad_json(e.to_string()))?;
        let wanted = auth::auth_types(
            rules,
            &new.event_type,
            &new.sender,
            new.state_key.as_deref(),
            raw,
        )
        .map_err(|denied| Error::bad_json(denied.rule))?;
        let (mut auth_refs, mut auth_ids) = (Vec::new(), Vec::new());
        for (kind, key) in &wanted {
            let Some(found) = self.find(&kind.to_string(), key)? else {
                continue;
            };
            auth_ids.push(self.id_of(found)?);
            auth_refs.push(found);
        }

        let now = self.rooms.clock.now_ms();
        let legacy = self.legacy(&auth_ids)?;
        let draft = Draft {
            room_id: Some(self.head.id.clone()),
            sender: new.sender.clone(),
            event_type: new.event_type,
            state_key: new.state_key.clone(),
            content: new.content,
            redacts: new.redacts,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(now)),
            prev_events: self.prev.clone(),
            auth_events: auth_ids,
            depth: self.depth + 1,
            legacy,
        };
        let event = template::finish(
            draft,
            self.rooms.keyring.key(),
            self.rooms.keyring.name(),
            rules,
        )?;
        Ok((event, auth_refs))
    }

    /// Adds the create event, which made the room's id and so had to be made before the run.
    pub fn add_create(&mut self, create: Event) -> Result<OwnedEventId> {
        self.admit(create, None, Vec::new())
    }

    /// Checks a finished event and takes note of all that follows from it.
    fn admit(
        &mut self,
        event: Event,
        transaction: Option<Transaction>,
        auth: Vec<Ref>,
    ) -> Result<OwnedEventId> {
        self.check(&event)?;
        let header = &event.header;
        let state = match &header.state_key {
            Some(key) => Some(self.state_delta(&event, &header.event_type.to_string(), key)?),
            None => None,
        };
        let mut context = self.rooms.context_of(&self.view, &event)?;
        context.redacted = self.redacted(&event)?;
        if context.redacted.is_none() {
            context.awaited.extend(event.header.redacts.clone());
        }

        let id = header.id.clone();
        if let Some(delta) = &state {
            self.overlay.insert(delta.change.key, self.drafted.len());
        }
        self.prev = vec![id.clone()];
        self.depth = header.depth;
        let sender = self.rooms.store.user_nid(&header.sender)?;
        self.drafted.push(Drafted {
            event,
            sender,
            transaction,
            auth,
            state,
            context,
        });
        Ok(id)
    }

    /// Writes the run and whatever `more` adds to the same commit.
    pub fn commit(self, more: impl FnOnce(&mut Batch<'_>)) -> Result<()> {
        let Self {
            rooms,
            head,
            drafted,
            depth,
            ..
        } = self;
        let mut next = head.clone();
        let now = rooms.clock.now_ms();
        let states = drafted.iter().filter(|item| item.state.is_some()).count();
        let base = next.row.chain.base(&rooms.store, states)?;
        let committed = rooms.store.commit(|batch| {
            let stored = write(&mut next, batch, drafted, base, now);
            next.row.depth = depth;
            ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            more(batch);
            Ok(stored)
        })?;
        let (stored, changed) = committed.value;
        rooms.store.cache_state(next.row.chain.tip, &next.state);
        *head = next;
        rooms.events.replace(committed.position, changed);
        for stored in stored {
            rooms.events.add(stored);
        }
        Ok(())
    }

    fn find(&self, event_type: &str, state_key: &str) -> Result<Option<Ref>> {
        let Some(key) = self.rooms.store.find_state_key(event_type, state_key)? else {
            return Ok(None);
        };
        if let Some(index) = self.overlay.get(&key) {
            return Ok(Some(Ref::InRun(*index)));
        }
        Ok(self.head.state.get(&key).map(|nid| Ref::Known(*nid)))
    }

    fn id_of(&self, found: Ref) -> Result<OwnedEventId> {
        match found {
            Ref::Known(nid) => Ok(self.rooms.event(&self.view, nid)?.event.header.id.clone()),
            Ref::InRun(index) => Ok(self.drafted[index].event.header.id.clone()),
        }
    }

    /// Room versions 1 and 2 name events by our choice and cite them with their hashes.
    fn legacy(&self, auth_ids: &[OwnedEventId]) -> Result<Option<Legacy>> {
        let rules = self.head.rules;
        let Some(mut legacy) = self.rooms.legacy_id(rules)? else {
            return Ok(None);
        };
        for id in self.prev.iter().chain(auth_ids) {
            let object = match self
                .drafted
                .iter()
                .find(|drafted| drafted.event.header.id == *id)
            {
                Some(drafted) => drafted.event.to_canonical(),
                None => match self.rooms.find_event(&self.view, id)? {
                    Some(stored) => stored.event.to_canonical(),
                    None => continue,
                },
            };
            let object =
                object.map_err(|e| Error::Internal(format!("event {id} is damaged: {e}")))?;
            let hash = ruma::signatures::reference_hash(&object, rules)
                .map_err(|e| Error::Internal(e.to_string()))?;
            legacy.reference_hashes.insert(id.clone(), hash);
        }
        Ok(Some(legacy))
    }

    fn check(&self, event: &Event) -> Result<()> {
        // The rules ask by closures that can not fail, so a failure of the store is kept aside.
        let failure = RefCell::new(None);
        let by_state = |event_type: &StateEventType, state_key: &str| {
            let found = self.find(&event_type.to_string(), state_key);
            kept(
                &failure,
                found.and_then(|found| found.map(|f| self.known(f)).transpose()),
            )
        };
        let by_id = |id: &EventId| {
            let in_run = |drafted: &Drafted| drafted.event.header.id == *id;
            if let Some(drafted) = self.drafted.iter().find(|drafted| in_run(drafted)) {
                return Some(Known::Drafted(&drafted.event));
            }
            let found = self.rooms.find_event(&self.view, id);
            kept(&failure, found.map(|found| found.map(Known::Stored)))
        };
        let verdict = auth::check(self.head.rules, event, by_state, by_id);
        match failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(verdict?),
        }
    }

    fn known(&self, found: Ref) -> Result<Known<'_>> {
        match found {
            Ref::Known(nid) => Ok(Known::Stored(self.rooms.event(&self.view, nid)?)),
            Ref::InRun(index) => Ok(Known::Drafted(&self.drafted[index].event)),
        }
    }

    fn state_delta(&self, event: &Event, event_type: &str, state_key: &str) -> Result<StateDelta> {
        let key = self.rooms.store.state_key_nid(event_type, state_key)?;
        let member = match &event.header.membership {
            Some(after) => Some(self.member(state_key, after.clone())?),
            None => None,
        };
        Ok(StateDelta {
            change: Change {
                key,
                event_type: event_type.to_owned(),
                state_key: state_key.to_owned(),
                member,
            },
            replaces: self.find(event_type, state_key)?,
        })
    }

    fn member(&self, state_key: &str, after: MembershipState) -> Result<Member> {
        let target =
            UserId::parse(state_key).map_err(|e| Error::bad_json(format!("the state key: {e}")))?;
        let mut member = self
            .rooms
            .member_of(&self.view, self.head.nid, &target, after)?;
        let in_run = self.drafted.iter().rev().find_map(|drafted| {
            let earlier = drafted.state.as_ref()?.change.member.as_ref()?;
            (earlier.user == member.user).then(|| MemberRow {
                membership: earlier.after.clone(),
                event: EventNid::default(),
                since: Position::default(),
                forgotten: false,
            })
        });
        member.before = in_run.or(member.before);
        Ok(member)
    }

    /// The event that this one redacts, emptied, if its sender may do that.
    fn redacted(&self, event: &Event) -> Result<Option<Redacted>> {
        let Some(target) = self.rooms.target_of(&self.view, event)? else {
            return Ok(None);
        };
        let in_run = self
            .drafted
            .iter()
            .filter_map(|drafted| drafted.context.redacted.as_ref());
        if in_run
            .into_iter()
            .any(|other| other.target.nid == target.nid)
        {
            return Ok(None);
        }
        let rules = self.head.rules;
        let power = self
            .rooms
            .power_levels(&self.view, &self.head.state, rules)?;
        if !power.may_redact(&event.header.sender, &target.event.header.sender) {
            return Err(Error::forbidden(
                "You may not redact events of others in this room",
            ));
        }
        self.rooms.redaction(&self.view, target, rules).map(Some)
    }
}

fn kept<T>(failure: &RefCell<Option<Error>>, found: Result<Option<T>>) -> Option<T> {
    found.unwrap_or_else(|error| {
        failure.borrow_mut().replace(error);
        None
    })
}
