//! Everything that writing an event of another server needs, read before the commit: verdict, state before and after,
//! and what becomes of the room's current state.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
    state_res::Event as _,
};

use super::{Before, arrivals::Arrivals};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        ids::{EventNid, SnapshotId, StateKeyNid, UserNid},
        ingest::{self, Known, Need, Pdu, Step, Verdict},
    },
    service::rooms::{
        RoomHead, Rooms, Stored,
        append::{Change, Context, MAX_HEADS, Transaction},
        recommended::Advice,
    },
    store::{Base, Chain, StateMap, View, difference},
};

/// The most events that are not shown through which it is looked for what an event follows.
const MAX_HIDDEN: usize = 200;

/// The most gaps that are marked in a room.
const MAX_GAPS: usize = 100;

/// A difference of two states: what is set, and what is removed.
pub(super) type Delta = (Vec<(StateKeyNid, EventNid)>, Vec<StateKeyNid>);

/// A state and the chain of snapshots that it is written on.
pub(super) struct Ground {
    pub(super) chain: Chain,
    pub(super) state: StateMap,
    /// How it differs from the end of the chain; none if it is the end of the chain.
    pub(super) fresh: Option<Delta>,
    pub(super) base: Base,
}

/// What becomes of the room's current state.
pub(super) enum Current {
    /// It stays.
    Same,
    /// It becomes the state after the event.
    After,
    /// It becomes this one, which is written on top of the old one.
    Resolved {
        state: StateMap,
        delta: Delta,
        base: Base,
    },
}

/// Which event an entry of the current state becomes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    This,
    Other(EventNid),
    Nothing,
}

pub(super) struct Plan {
    pub(super) event: Event,
    pub(super) sender: UserNid,
    /// Its number, if it was known without its place in the room.
    pub(super) promoted: Option<Arc<Stored>>,
    pub(super) auth: Vec<EventNid>,
    pub(super) ground: Ground,
    pub(super) verdict: Verdict,
    /// The entry of the state that it sets, and what it replaces there.
    pub(super) sets: Option<(StateKeyNid, Option<EventNid>)>,
    pub(super) context: Context,
    pub(super) arrivals: Arrivals,
    /// The ends of the room beside the event.
    pub(super) others: Vec<(OwnedEventId, EventNid)>,
    pub(super) current: Current,
    pub(super) changes: Vec<(Change, Target)>,
    /// Whether the event was sent on top of what was current, and became what is current.
    pub(super) is_straight: bool,
    /// Whether it is the newest of its room, not one from before.
    pub(super) is_live: bool,
    /// What it follows and what is not here, so that its timeline has a gap below it.
    pub(super) lacks: Vec<OwnedEventId>,
    /// What there is to say about an event of a user of ours.
    pub(super) own: Option<Own>,
    /// Whether this node tells the other servers of it.
    pub(super) is_answered_for: bool,
}

/// What is written with an event of a user of ours besides.
pub(super) struct Own {
    pub(super) transaction: Option<Transaction>,
    /// When it was carried out, in milliseconds since 1970.
    pub(super) at: u64,
}

impl Plan {
    pub(super) fn verdict_name(&self) -> &'static str {
        match self.verdict {
            Verdict::Accepted => "accepted",
            Verdict::SoftFailed(_) => "soft-failed",
            Verdict::Rejected(_) => "rejected",
        }
    }
}

pub(super) enum Planned {
    Known,
    Needs(Need),
    Ready(Box<Plan>),
}

/// The events that are asked for while one is judged, each read once.
struct Around<'a> {
    rooms: &'a Rooms,
    view: &'a View,
    found: RefCell<HashMap<OwnedEventId, Option<Arc<Stored>>>>,
    failure: RefCell<Option<Error>>,
}

impl Around<'_> {
    fn find(&self, id: &EventId) -> Option<Arc<Stored>> {
        if let Some(found) = self.found.borrow().get(id) {
            return found.clone();
        }
        let found = self.kept(self.rooms.find_event(self.view, id));
        self.found.borrow_mut().insert(id.to_owned(), found.clone());
        found
    }

    fn entry(
        &self,
        state: &StateMap,
        event_type: &StateEventType,
        key: &str,
    ) -> Option<Arc<Event>> {
        let found = self
            .rooms
            .entry(self.view, state, &event_type.to_string(), key);
        Some(self.kept(found)?.event.clone())
    }

    /// The rules ask by closures that can not fail, so a failure of the store is kept aside.
    fn kept<T>(&self, found: Result<Option<T>>) -> Option<T> {
        found.unwrap_or_else(|error| {
            self.failure.borrow_mut().replace(error);
            None
        })
    }
}

impl Rooms {
    pub(super) fn plan(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        before: Before<'_>,
        is_live: bool,
    ) -> Result<Planned> {
        let view = self.store.latest();
        let header = &pdu.event.header;
        let promoted = self.find_event(&view, &header.id)?;
        if promoted
            .as_ref()
            .is_some_and(|stored| stored.has_state() || stored.event.header.flags.rejected)
        {
            return Ok(Planned::Known);
        }
        let around = Around {
            rooms: self,
            view: &view,
            found: RefCell::default(),
            failure: RefCell::default(),
        };
        let find = |id: &EventId| around.find(id).map(|stored| stored.event.clone());
        let has_state = |id: &EventId| {
            let found = around.find(id);
            found.is_some_and(|prev| prev.has_state() && prev.event.header.room_id == head.id)
        };
        let prev: Vec<OwnedEventId> = pdu.event.prev_events().cloned().collect();
        let mut ground = None;
        let verdict = loop {
            let ask = |state: &StateMap, event_type: &StateEventType, key: &str| {
                around.entry(state, event_type, key)
            };
            let before_state = ground.as_ref().map(|ground: &Ground| &ground.state);
            let by_before = |event_type: &StateEventType, key: &str| {
                before_state.and_then(|state| ask(state, event_type, key))
            };
            let by_current =
                |event_type: &StateEventType, key: &str| ask(&head.state, event_type, key);
            let is_current = ground.as_ref().is_some_and(|ground| is_tip(head, ground));
            let step = ingest::step(
                head.rules,
                &pdu.event,
                &Known {
                    event: &find,
                    has_state: &has_state,
                    before: before_state.is_some().then_some(&by_before),
                    current: (is_live && !is_current).then_some(&by_current),
                },
            );
            if let Some(error) = around.failure.take() {
                return Err(error);
            }
            match (step, before) {
                (Step::Done(verdict), _) => break verdict,
                (Step::Need(Need::StateBefore | Need::PrevEvents(_)), Before::Given(ids)) => {
                    match self.given(&view, head, ids)? {
                        Ok(given) => {
                            let known = prev.iter().filter(|id| has_state(id));
                            let known = known.filter_map(|id| around.find(id)).collect();
                            ground = Some(self.agreed(&view, head, given, known)?);
                        }
                        Err(missing) => return Ok(Planned::Needs(Need::PrevEvents(missing))),
                    }
                }
                (Step::Need(Need::StateBefore), Before::Previous) => {
                    let prev = prev.iter().filter_map(|id| around.find(id)).collect();
                    ground = Some(self.ground(&view, head, prev)?);
                }
                (Step::Need(need), _) => return Ok(Planned::Needs(need)),
            }
        };
        // A second beginning of the room would bring a state of its own.
        let verdict = match verdict {
            Verdict::Accepted
                if header.event_type == TimelineEventType::RoomCreate
                    && header.state_key.is_some()
                    && promoted
                        .as_ref()
                        .is_none_or(|stored| stored.nid != head.row.create) =>
            {
                Verdict::Rejected("the room has been created already".to_owned().into())
            }
            verdict => verdict,
        };
        let verdict = match verdict {
            // The seventh check.
            Verdict::Accepted if is_live => match self.advice(head, pdu)? {
                Advice::For => Verdict::Accepted,
                Advice::Against => Verdict::SoftFailed(
                    "the room's policy server does not recommend it"
                        .to_owned()
                        .into(),
                ),
                Advice::Unknown(server) => {
                    return Ok(Planned::Needs(Need::Recommendation(server)));
                }
            },
            verdict => verdict,
        };
        let ground = match (ground, before) {
            (Some(ground), _) => ground,
            // Judged by its auth events alone. Others may follow it, so the state before it is worth having.
            (None, Before::Previous) if prev.iter().all(|id| has_state(id)) => {
                let prev = prev.iter().filter_map(|id| around.find(id)).collect();
                self.ground(&view, head, prev)?
            }
            (None, _) => nothing(),
        };
        let mut event = match &promoted {
            Some(stored) if stored.facts.redacted_by.is_some() => (*stored.event).clone(),
            _ => pdu.event.clone(),
        };
        event.header.flags.rejected = matches!(verdict, Verdict::Rejected(_));
        event.header.flags.soft_failed = matches!(verdict, Verdict::SoftFailed(_));
        if event.header.flags.rejected && promoted.is_some() {
            // It may be a part of states already, as other servers told them.
            return Ok(Planned::Known);
        }

        let auth = event.auth_events().filter_map(|id| around.find(id));
        let auth: Vec<EventNid> = auth.map(|stored| stored.nid).collect();
        // What is not live is not shown yet, and nobody has waited for it to be.
        let mut context = Context::default();
        let mut arrivals = Arrivals::default();
        if is_live {
            context = self.context_of(&view, &event)?;
            let unplaced = prev.iter().filter(|id| !has_state(id));
            context.awaited.extend(unplaced.cloned());
            arrivals = self.arrivals(&view, head, &event)?;
        }
        if is_live && verdict == Verdict::Accepted {
            self.redact_by(&view, head, &event, &ground, &mut context)?;
        }
        let sets = match &event.header.state_key {
            Some(key) if verdict_counts(&verdict) => {
                let kind = event.header.event_type.to_string();
                let key = self.store.state_key_nid(&kind, key)?;
                Some((key, ground.state.get(&key).copied()))
            }
            _ => None,
        };
        let followed = followed(&around, &prev);
        let extremities = head.row.extremities.iter();
        let mut others: Vec<_> = extremities
            .filter(|(id, _)| !followed.contains(id))
            .cloned()
            .collect();
        if !arrivals.is_followed && others.len() >= MAX_HEADS {
            others.drain(..=others.len() - MAX_HEADS);
        }
        let sender = self.store.user_nid(&event.header.sender)?;
        let mut plan = Plan {
            sender,
            promoted,
            auth,
            ground,
            verdict,
            sets,
            context,
            others,
            current: Current::Same,
            changes: Vec::new(),
            is_straight: false,
            is_live,
            lacks: Vec::new(),
            own: None,
            is_answered_for: false,
            event,
            arrivals,
        };
        if is_live && plan.verdict == Verdict::Accepted && matches!(before, Before::Given(_)) {
            let unknown = prev.into_iter().filter(|id| !has_state(id));
            let unknown: Vec<_> = unknown.collect();
            // Whoever makes events with nothing before them must not make the room slow to read.
            if !unknown.is_empty() && self.gaps(&view, head.nid)?.len() < MAX_GAPS {
                plan.lacks = unknown;
            }
        }
        if is_live && plan.verdict == Verdict::Accepted {
            if plan.arrivals.is_followed {
                self.plan_without(&view, head, &mut plan)?;
            } else {
                self.plan_current(&view, head, &mut plan)?;
            }
        }
        Ok(Planned::Ready(Box::new(plan)))
    }

    /// The state that another server says was before an event, or the events that are not here.
    fn given(
        &self,
        view: &View,
        head: &RoomHead,
        ids: &[OwnedEventId],
    ) -> Result<std::result::Result<Ground, Vec<OwnedEventId>>> {
        let (state, missing) = self.state_of(view, head.nid, ids)?;
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        self.on_top_of(head.row.chain.clone(), &head.state, state)
            .map(Ok)
    }

    /// A state that was told, brought together with that after what is known of what the event follows: so nobody can
    /// undo what is known here by not telling of it.
    fn agreed(
        &self,
        view: &View,
        head: &RoomHead,
        given: Ground,
        known: Vec<Arc<Stored>>,
    ) -> Result<Ground> {
        if known.is_empty() {
            return Ok(given);
        }
        let ours = self.ground(view, head, known)?;
        if is_same(&ours.state, &given.state) {
            return Ok(ours);
        }
        let states = [ours.state, given.state];
        let state = self.resolve_states(view, head.rules, &states)?;
        self.on_top_of(head.row.chain.clone(), &head.state, state)
    }

    /// A state as another server told it, as far as its events are here; none of them may be rejected or of another room.
    pub(in crate::service::rooms) fn state_of(
        &self,
        view: &View,
        room: crate::protocol::ids::RoomNid,
        ids: &[OwnedEventId],
    ) -> Result<(StateMap, Vec<OwnedEventId>)> {
        let room = self.store.room_id(room)?;
        let (mut state, mut missing) = (StateMap::new(), Vec::new());
        for id in ids {
            let Some(stored) = self.find_event(view, id)? else {
                missing.push(id.clone());
                continue;
            };
            let header = &stored.event.header;
            let Some(key) = &header.state_key else {
                continue;
            };
            if header.flags.rejected || header.room_id != *room {
                continue;
            }
            let key = self
                .store
                .state_key_nid(&header.event_type.to_string(), key)?;
            state.insert(key, stored.nid);
        }
        Ok((state, missing))
    }

    /// The state after some events, all of which have one.
    fn ground(&self, view: &View, head: &RoomHead, prev: Vec<Arc<Stored>>) -> Result<Ground> {
        if prev.is_empty() {
            return Ok(nothing());
        }
        let ends = &head.row.extremities;
        if prev.len() == ends.len()
            && prev
                .iter()
                .all(|prev| ends.iter().any(|(_, end)| *end == prev.nid))
        {
            return Ok(tip(head));
        }
        let snapshots = sorted(prev.iter().map(|prev| prev.after()));
        if let [only] = &snapshots[..] {
            if *only == head.row.chain.tip {
                return Ok(tip(head));
            }
            return self.at_snapshot(*only);
        }
        let state = self.resolve(view, head.rules, &snapshots)?;
        for snapshot in snapshots {
            // Most often one side has nothing that the other does not have.
            if is_same(&self.store.state(snapshot)?, &state) {
                return self.at_snapshot(snapshot);
            }
        }
        self.on_top_of(head.row.chain.clone(), &head.state, state)
    }

    fn at_snapshot(&self, id: SnapshotId) -> Result<Ground> {
        Ground {
            base: Base::default(),
            chain: Chain::of(&self.store, id)?,
            state: self.store.state(id)?,
            fresh: None,
        }
        .with_base(self)
    }

    fn on_top_of(&self, chain: Chain, at: &StateMap, state: StateMap) -> Result<Ground> {
        let delta = difference(at, &state);
        let is_new = !delta.0.is_empty() || !delta.1.is_empty();
        Ground {
            base: Base::default(),
            chain,
            state,
            fresh: is_new.then_some(delta),
        }
        .with_base(self)
    }

    /// What the event redacts.
    fn redact_by(
        &self,
        view: &View,
        head: &RoomHead,
        event: &Event,
        ground: &Ground,
        context: &mut Context,
    ) -> Result<()> {
        let Some(id) = &event.header.redacts else {
            return Ok(());
        };
        let Some(target) = self.target_of(view, event)? else {
            context.awaited.push(id.clone());
            return Ok(());
        };
        let power = self.power_levels(view, &ground.state, head.rules)?;
        if target.facts.redacted_by.is_none()
            && power.redaction_applies(&event.header.sender, &target.event.header.sender)
        {
            context.redacted = Some(self.redaction(view, target, head.rules)?);
        }
        Ok(())
    }
}

impl Ground {
    fn with_base(mut self, rooms: &Rooms) -> Result<Self> {
        // The state before the event, and the one after it.
        self.base = self.chain.base(&rooms.store, 2)?;
        Ok(self)
    }
}

/// The state before the beginning.
fn nothing() -> Ground {
    Ground {
        chain: Chain::default(),
        state: StateMap::new(),
        fresh: None,
        base: Base::default(),
    }
}

fn tip(head: &RoomHead) -> Ground {
    Ground {
        chain: head.row.chain.clone(),
        state: head.state.clone(),
        fresh: None,
        base: Base::default(),
    }
}

pub(super) fn is_tip(head: &RoomHead, ground: &Ground) -> bool {
    ground.fresh.is_none() && ground.chain.tip == head.row.chain.tip
}

/// What an event follows, also by way of events that are no ends of the room because they are not shown.
fn followed(around: &Around<'_>, prev: &[OwnedEventId]) -> HashSet<OwnedEventId> {
    let mut followed = HashSet::new();
    let mut todo = prev.to_vec();
    while let Some(id) = todo.pop() {
        if followed.len() >= MAX_HIDDEN {
            break;
        }
        let hidden = around.find(&id).filter(|stored| {
            let flags = stored.event.header.flags;
            flags.rejected || flags.soft_failed
        });
        if followed.insert(id)
            && let Some(hidden) = hidden
        {
            todo.extend(hidden.event.prev_events().cloned());
        }
    }
    followed
}

pub(super) fn is_same(one: &StateMap, other: &StateMap) -> bool {
    let (set, removed) = difference(one, other);
    set.is_empty() && removed.is_empty()
}

fn verdict_counts(verdict: &Verdict) -> bool {
    !matches!(verdict, Verdict::Rejected(_))
}

pub(super) fn sorted(ids: impl Iterator<Item = SnapshotId>) -> Vec<SnapshotId> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
