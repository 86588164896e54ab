//! The only writer of events. A *run* is one or more events of one room that are written together, all or nothing,
//! with everything derived from them.
//!
//! Numbers are given inside the commit, so until then the events of a run refer to each other by their place in it.

use std::{cell::RefCell, collections::HashMap};

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomId,
    UInt, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    state_res,
};
use serde_json::value::RawValue;

use super::{RoomHead, Rooms, Stored};
use crate::{
    error::{Error, Result},
    protocol::{
        auth,
        event::{Event, Origin},
        ids::{EventNid, Position, StateKeyNid, UserNid},
        integrity,
        summary::Counts,
        template::{self, Draft, Legacy},
    },
    store::{
        self, Batch, View,
        notify::Kinds,
        schema::{
            AUTH_EDGES, CURRENT_STATE, EVENT_NIDS, EVENTS, EventList, EventRow, Facts, MemberRow,
            RELATIONS, ROOM_HEADS, ROOM_MEMBERS, RelationRow, TIMELINE, TRANSACTIONS,
            TransactionRow, USER_ROOMS,
        },
    },
};

/// The most extremities that a new event follows.
const MAX_PREV: usize = 10;

/// The longest that a chain of relations is followed to the root of a thread.
const MAX_RELATION_HOPS: usize = 3;

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
    pub origin: Option<Origin>,
}

/// An event before it has a number: one that is stored, or one of the same run.
#[derive(Clone, Copy)]
enum Ref {
    Known(EventNid),
    InRun(usize),
}

struct Drafted {
    event: Event,
    origin: Option<Origin>,
    auth: Vec<Ref>,
    state: Option<StateDelta>,
    relation: Option<(EventNid, String)>,
    thread: Option<OwnedEventId>,
    redacted: Option<Redacted>,
}

/// An event that a run empties.
struct Redacted {
    nid: EventNid,
    row: EventRow,
    /// What it related to, and how: it does so no longer.
    relation: Option<(EventNid, String)>,
}

struct StateDelta {
    key: StateKeyNid,
    replaces: Option<Ref>,
    member: Option<MemberDelta>,
}

struct MemberDelta {
    user: UserNid,
    is_local: bool,
    before: Option<MemberRow>,
    after: MembershipState,
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
    last_ts: Option<u64>,
}

/// What a run has written.
#[derive(Debug)]
pub struct Written {
    /// The position of its last event; await it before telling anyone.
    pub position: Position,
    /// The ids of its events.
    pub ids: Vec<OwnedEventId>,
}

impl<'r> Run<'r> {
    /// Starts a run at the end of a room.
    pub fn new(rooms: &'r Rooms, head: &'r mut RoomHead) -> Self {
        let newest = head.row.extremities.iter().rev().take(MAX_PREV);
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
            last_ts: None,
        }
    }

    /// The room as it was before the run.
    pub fn head(&self) -> &RoomHead {
        self.head
    }

    /// Runs `read` on the state event of this type and key as it stands after what was added so far.
    pub fn state_event<T>(
        &self,
        event_type: &str,
        state_key: &str,
        read: impl FnOnce(&Event) -> T,
    ) -> Result<Option<T>> {
        let Some(key) = self.rooms.store.find_state_key(event_type, state_key)? else {
            return Ok(None);
        };
        if let Some(drafted) = self
            .overlay
            .get(&key)
            .and_then(|&index| self.drafted.get(index))
        {
            return Ok(Some(read(&drafted.event)));
        }
        let nid = self.head.state.get(&key).copied();
        let stored = nid
            .map(|nid| self.rooms.event(&self.view, nid))
            .transpose()?;
        Ok(stored.map(|stored| read(&stored.event)))
    }

    /// Drafts, signs and checks one more event.
    ///
    /// # Errors
    /// [`Error::Denied`] when the room does not allow it; the run is then as it was before.
    pub fn add(&mut self, new: NewEvent) -> Result<OwnedEventId> {
        let rules = self.head.rules;
        let store = &self.rooms.store;
        let event_type = new.event_type.to_string();

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
            room_id: Some(self.head.id.clone()).filter(|_| !self.is_unnamed_create(&new)),
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
        self.check(&event)?;

        let state = match &new.state_key {
            Some(state_key) => Some(self.state_delta(&event, &event_type, state_key)?),
            None => None,
        };
        let relation = match &event.header.relation {
            Some(relation) => {
                let parent = self.rooms.find_event(&self.view, &relation.event_id)?;
                parent
                    .filter(|parent| parent.event.header.room_id == event.header.room_id)
                    .map(|parent| (parent, relation.rel_type.clone()))
            }
            None => None,
        };
        let thread = match &event.header.relation {
            Some(relation) if relation.rel_type == "m.thread" => Some(relation.event_id.clone()),
            Some(_) => self.thread_of(relation.as_ref().map(|(parent, _)| &**parent))?,
            None => None,
        };
        let redacted = self.redacted(&event)?;

        let id = event.header.id.clone();
        let index = self.drafted.len();
        if let Some(delta) = &state {
            self.overlay.insert(delta.key, index);
        }
        self.prev = vec![id.clone()];
        self.depth += 1;
        self.last_ts = Some(now);
        let _ = store;
        self.drafted.push(Drafted {
            event,
            origin: new.origin,
            auth: auth_refs,
            state,
            relation: relation.map(|(parent, kind)| (parent.nid, kind)),
            thread,
            redacted,
        });
        Ok(id)
    }

    /// Writes the run and whatever `more` adds to the same commit.
    pub fn commit(self, more: impl FnOnce(&mut Batch<'_>) -> store::Result<()>) -> Result<Written> {
        let Self {
            rooms,
            head,
            view,
            drafted,
            depth,
            last_ts,
            ..
        } = self;
        let mut next = head.clone();
        let now = last_ts.unwrap_or_default();
        let committed = rooms.store.commit(|batch| {
            let stored = write(rooms, &mut next, &view, batch, drafted, now)?;
            next.row.depth = depth;
            ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            more(batch)?;
            Ok(stored)
        })?;
        let (stored, changed) = committed.value;
        rooms.store.cache_state(next.row.chain.tip, &next.state);
        *head = next;
        let ids = stored
            .iter()
            .map(|stored| stored.event.header.id.clone())
            .collect();
        for stored in changed.into_iter().chain(stored) {
            rooms.remember(stored);
        }
        Ok(Written {
            position: committed.position,
            ids,
        })
    }

    fn is_unnamed_create(&self, new: &NewEvent) -> bool {
        new.event_type == TimelineEventType::RoomCreate
            && !self.head.rules.event_format.require_room_create_room_id
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
        if !rules.event_format.require_event_id {
            return Ok(None);
        }
        let mut reference_hashes = std::collections::BTreeMap::new();
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
            reference_hashes.insert(id.clone(), hash);
        }
        let id = format!(
            "${}:{}",
            self.rooms.entropy.token(18),
            self.rooms.server_name
        );
        let event_id = EventId::parse(id).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Some(Legacy {
            event_id,
            reference_hashes,
        }))
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
            Some(after) => Some(self.member_delta(state_key, after.clone())?),
            None => None,
        };
        Ok(StateDelta {
            key,
            replaces: self.find(event_type, state_key)?,
            member,
        })
    }

    fn member_delta(&self, state_key: &str, after: MembershipState) -> Result<MemberDelta> {
        let target =
            UserId::parse(state_key).map_err(|e| Error::bad_json(format!("the state key: {e}")))?;
        let user = self.rooms.store.user_nid(&target)?;
        let in_run = self.drafted.iter().rev().find_map(|drafted| {
            let member = drafted.state.as_ref()?.member.as_ref()?;
            (member.user == user).then(|| MemberRow {
                membership: member.after.clone(),
                event: EventNid::default(),
                since: Position::default(),
                forgotten: false,
            })
        });
        let before = match in_run {
            Some(row) => Some(row),
            None => ROOM_MEMBERS.get(&self.view, &(self.head.nid, user))?,
        };
        let is_local = target.server_name() == self.rooms.server_name;
        Ok(MemberDelta {
            user,
            is_local,
            before,
            after,
        })
    }

    /// The thread of an event that relates to one in a thread, such as an edit or a reaction.
    fn thread_of(&self, parent: Option<&Stored>) -> Result<Option<OwnedEventId>> {
        let Some(parent) = parent else {
            return Ok(None);
        };
        let mut thread = parent.facts.thread.clone();
        let mut relation = parent.event.header.relation.clone();
        for _ in 0..MAX_RELATION_HOPS {
            let (None, Some(up)) = (&thread, relation) else {
                break;
            };
            let Some(next) = self.rooms.find_event(&self.view, &up.event_id)? else {
                break;
            };
            thread.clone_from(&next.facts.thread);
            relation = next.event.header.relation.clone();
        }
        Ok(thread)
    }

    /// The event that this one redacts, emptied, if its sender may do that.
    fn redacted(&self, event: &Event) -> Result<Option<Redacted>> {
        let Some(target) = &event.header.redacts else {
            return Ok(None);
        };
        let Some(target) = self.rooms.find_event(&self.view, target)? else {
            return Ok(None);
        };
        if target.event.header.room_id != event.header.room_id {
            return Ok(None);
        }
        let rules = self.head.rules;
        let power = self
            .rooms
            .power_levels(&self.view, &self.head.state, rules)?;
        if !power.redaction_applies(&event.header.sender, &target.event.header.sender) {
            return Err(Error::forbidden(
                "You may not redact events of others in this room",
            ));
        }
        let damaged = |e: &dyn std::fmt::Display| {
            Error::Internal(format!("event {} is damaged: {e}", target.nid))
        };
        let object = target.event.to_canonical().map_err(|e| damaged(&e))?;
        let emptied = integrity::redact(object, rules).map_err(|e| damaged(&e))?;
        let header = &target.event.header;
        let mut emptied = Event::new(header.id.clone(), header.room_id.clone(), &emptied, rules)
            .map_err(|e| damaged(&e))?;
        emptied.header.flags = header.flags;
        let relation = match &header.relation {
            Some(relation) => self
                .rooms
                .find_event(&self.view, &relation.event_id)?
                .map(|parent| (parent.nid, relation.rel_type.clone())),
            None => None,
        };
        Ok(Some(Redacted {
            nid: target.nid,
            row: EventRow::new(&emptied, target.facts.clone()),
            relation,
        }))
    }
}

fn kept<T>(failure: &RefCell<Option<Error>>, found: Result<Option<T>>) -> Option<T> {
    found.unwrap_or_else(|error| {
        failure.borrow_mut().replace(error);
        None
    })
}

/// An event that the rules look at.
enum Known<'a> {
    Stored(std::sync::Arc<Stored>),
    Drafted(&'a Event),
}

impl Known<'_> {
    fn event(&self) -> &Event {
        match self {
            Self::Stored(stored) => &stored.event,
            Self::Drafted(event) => event,
        }
    }
}

impl state_res::Event for Known<'_> {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        self.event().event_id()
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.event().room_id()
    }
    fn sender(&self) -> &UserId {
        self.event().sender()
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.event().origin_server_ts()
    }
    fn event_type(&self) -> &TimelineEventType {
        self.event().event_type()
    }
    fn content(&self) -> &RawValue {
        self.event().content()
    }
    fn state_key(&self) -> Option<&str> {
        self.event().state_key()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        self.event().prev_events()
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        self.event().auth_events()
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.event().redacts()
    }
    fn rejected(&self) -> bool {
        self.event().rejected()
    }
}

type Outcome = (Vec<Stored>, Vec<Stored>);

/// Gives numbers and encodes. Nothing is read here but what was read before.
fn write(
    rooms: &Rooms,
    head: &mut RoomHead,
    _view: &View,
    batch: &mut Batch<'_>,
    drafted: Vec<Drafted>,
    now: u64,
) -> store::Result<Outcome> {
    let mut nids: Vec<EventNid> = Vec::with_capacity(drafted.len());
    let (mut written, mut changed) = (Vec::new(), Vec::new());
    for item in drafted {
        let position = batch.position();
        let nid = EventNid(position.0);
        let number = |found: Ref| match found {
            Ref::Known(nid) => nid,
            Ref::InRun(index) => nids[index],
        };
        let header = &item.event.header;
        let facts = Facts {
            before: head.row.chain.tip,
            order: Some(nid.live_order()),
            replaces: item
                .state
                .as_ref()
                .and_then(|state| state.replaces)
                .map(number),
            redacted_by: None,
            thread: item.thread,
            origin: item.origin,
        };
        EVENT_NIDS.put(batch, &(header.id.as_str(),), &(nid,));
        TIMELINE.put(batch, &(head.nid, nid.live_order()), &(nid,));
        AUTH_EDGES.put(
            batch,
            &(nid,),
            &EventList(item.auth.iter().copied().map(number).collect()),
        );
        if let Some((parent, kind)) = &item.relation {
            let row = RelationRow {
                event: nid,
                sender: rooms.store.user_nid(&header.sender)?,
            };
            RELATIONS.put(batch, &(*parent, kind.as_str(), nid.live_order()), &row);
        }
        if let Some(origin) = &facts.origin {
            let sender = rooms.store.user_nid(&header.sender)?;
            let row = TransactionRow {
                event_id: header.id.clone(),
                ts: now,
            };
            TRANSACTIONS.put(
                batch,
                &(sender, origin.device_id.as_str(), origin.txn_id.as_str()),
                &row,
            );
        }
        if let Some(Redacted {
            nid: target,
            mut row,
            relation,
        }) = item.redacted
        {
            row.facts.redacted_by = Some(nid);
            EVENTS.put(batch, &(target,), &row);
            if let (Some((parent, kind)), Some(order)) = (relation, row.facts.order) {
                RELATIONS.delete(batch, &(parent, kind, order));
            }
            let (event, facts) = row.into_parts();
            changed.push(Stored {
                nid: target,
                event,
                facts,
            });
        }
        let mut kinds = Kinds::TIMELINE;
        if let Some(state) = item.state {
            head.state.insert(state.key, nid);
            let (chain, after) = (&mut head.row.chain, &head.state);
            chain.write(
                &rooms.store,
                batch,
                nid.snapshot_after(),
                after,
                (vec![(state.key, nid)], Vec::new()),
            )?;
            let key = (
                head.nid,
                header.event_type.to_string(),
                header.state_key.clone().unwrap_or_default(),
            );
            CURRENT_STATE.put(batch, &key, &(nid,));
            if let Some(member) = state.member {
                kinds = kinds.and(Kinds::MEMBERSHIP);
                write_member(head, batch, position, nid, &member);
            }
        }
        EVENTS.put(batch, &(nid,), &EventRow::new(&item.event, facts.clone()));
        head.row.extremities = vec![(header.id.clone(), nid)];
        head.row.last = position;
        batch.touch_users(position, head.members.clone(), head.nid, kinds);
        nids.push(nid);
        written.push(Stored {
            nid,
            event: item.event,
            facts,
        });
    }
    Ok((written, changed))
}

fn write_member(
    head: &mut RoomHead,
    batch: &mut Batch<'_>,
    position: Position,
    nid: EventNid,
    member: &MemberDelta,
) {
    let before = member
        .before
        .as_ref()
        .map_or(MembershipState::Leave, |row| row.membership.clone());
    let same = member
        .before
        .as_ref()
        .filter(|row| row.membership == member.after);
    let row = MemberRow {
        membership: member.after.clone(),
        event: nid,
        since: same.map_or(position, |row| row.since),
        // Whoever comes back remembers the room again.
        forgotten: same.is_some_and(|row| row.forgotten),
    };
    ROOM_MEMBERS.put(batch, &(head.nid, member.user), &row);
    USER_ROOMS.put(batch, &(member.user, head.nid), &row);
    let counts = Counts {
        joined: head.row.joined,
        invited: head.row.invited,
    }
    .after(&before, &member.after);
    (head.row.joined, head.row.invited) = (counts.joined, counts.invited);
    if member.is_local {
        batch.touch_user(
            position,
            member.user,
            Some(head.nid),
            Kinds::TIMELINE.and(Kinds::MEMBERSHIP),
        );
        if member.after == MembershipState::Join {
            head.members.insert(member.user);
        } else {
            head.members.remove(&member.user);
        }
    }
}
