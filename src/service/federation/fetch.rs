//! Getting from other servers what an event needs: those that authorise it, those before it, the state before it.
//!
//! Nothing here holds a room's lock while it asks. What is answered is bounded in size and number, and only what is genuine
//! and of the room is taken from it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use js_int::UInt;
use ruma::{
    EventId, OwnedEventId,
    api::federation::{
        authorization::get_event_authorization,
        event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
    },
    state_res::Event as _,
};
use serde_json::value::RawValue;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Federation,
    search::{Failed, Search},
    verify::beside,
};
use crate::{
    error::Result,
    protocol::ingest::Pdu,
    remote::Limits,
    service::rooms::{MAX_MISSING_EVENTS, connected},
};

/// How often it is asked for what lies before.
const MOST_ROUNDS: usize = 10;

/// The most events that are looked at of an answer about what lies before; others give more than they are asked for.
const MOST_MISSING: usize = 100;

/// How many events are got one by one; for more the whole state is fetched.
const MOST_SINGLE: usize = 100;

/// How many are asked for at the same time.
const AT_ONCE: usize = 8;

/// How far the events are followed that authorise others, when they must be got one by one.
const MOST_STEPS: usize = 20;

/// One in so many events of a state may be missing.
const FEW: usize = 10;

/// The most events of an auth chain that are looked at. That of one event is a small part of the room's.
const MOST_OF_CHAIN: usize = 20_000;

/// The most events of a state.
const MOST_OF_STATE: usize = 200_000;

/// How many rows are read without a thread for that.
const FEW_ROWS: usize = 500;

/// For one event, which has at most 64 KiB.
const SINGLE: Limits = Limits {
    time: Duration::from_secs(20),
    body: 1 << 20,
};

/// For an auth chain, and for the ids of a state.
const CHAIN: Limits = Limits {
    time: Duration::from_secs(60),
    body: 32 << 20,
};

/// For a whole state.
const STATE: Limits = Limits {
    time: Duration::from_secs(120),
    body: 128 << 20,
};

impl Federation {
    /// What of some events is genuine and of the room.
    pub(super) async fn genuine(
        &self,
        search: &Search,
        events: impl IntoIterator<Item = Box<RawValue>>,
    ) -> Result<Vec<Pdu>> {
        let texts = events.into_iter().map(|raw| Box::<str>::from(raw).into());
        // Boxed, as the compiler gives up on futures that are nested too deeply.
        let checked = Box::pin(self.verify(search.rules, texts.collect())).await?;
        let genuine = checked.into_iter().filter_map(|checked| {
            checked
                .inspect_err(|dropped| {
                    tracing::debug!(room = %search.room, %dropped, "an event that was asked for is dropped");
                })
                .ok()
        });
        let of_room = |pdu: &Pdu| pdu.event.header.room_id == search.room;
        Ok(genuine.filter(of_room).collect())
    }

    /// Stores events that authorise others or are parts of states.
    pub(super) async fn keep(&self, search: &Search, pdus: Vec<Pdu>) -> Result<()> {
        if pdus.is_empty() {
            return Ok(());
        }
        let rooms = self.0.rooms.clone();
        let mut guard = rooms.lock(&search.room).await?;
        let stored = beside(move || rooms.store_unplaced_events(guard.head(), pdus)).await??;
        tracing::debug!(room = %search.room, ?stored, "events that authorise others were fetched");
        Ok(())
    }

    /// Those of some events of which nothing is known here.
    async fn unknown(
        &self,
        ids: impl IntoIterator<Item = OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>> {
        let (rooms, view) = (self.0.rooms.clone(), self.0.store.latest());
        let mut unknown: Vec<_> = ids.into_iter().collect();
        let is_few = unknown.len() <= FEW_ROWS;
        let look = move || {
            let mut failure = Ok(());
            unknown.retain(|id| match rooms.find_event(&view, id) {
                Ok(found) => found.is_none(),
                Err(error) => {
                    failure = Err(error);
                    false
                }
            });
            failure.map(|()| unknown)
        };
        if is_few { look() } else { beside(look).await? }
    }

    /// Gets what authorises an event.
    pub(super) async fn fetch_auth(
        &self,
        search: &Arc<Search>,
        event: &EventId,
        missing: Vec<OwnedEventId>,
    ) -> Result<Result<(), Failed>> {
        let request =
            || get_event_authorization::v1::Request::new(search.room.clone(), event.to_owned());
        let mut failed = Failed::Nowhere;
        match self.ask(search, request, CHAIN).await {
            Ok(answer) => {
                let chain = answer.auth_chain.into_iter().take(MOST_OF_CHAIN);
                let pdus = self.genuine(search, chain).await?;
                self.keep(search, leading_to(&missing, pdus)).await?;
            }
            Err(how) => failed = how,
        }
        let (got, how) = self.fetch_upwards(search, missing.clone()).await?;
        failed = how.unwrap_or(failed);
        self.keep(search, got).await?;
        let is_complete = self.unknown(missing).await?.is_empty();
        Ok(if is_complete { Ok(()) } else { Err(failed) })
    }

    /// Gets those of some events that are not here, one by one, and what authorises them; says whether somebody was
    /// silent.
    pub(super) async fn fetch_upwards(
        &self,
        search: &Arc<Search>,
        events: Vec<OwnedEventId>,
    ) -> Result<(Vec<Pdu>, Option<Failed>)> {
        let mut wanted = self.unknown(events).await?;
        let (mut seen, mut got, mut failed) = (HashSet::new(), Vec::new(), None);
        for _ in 0..MOST_STEPS {
            seen.extend(wanted.iter().cloned());
            if wanted.is_empty() || seen.len() > MOST_SINGLE {
                break;
            }
            let (pdus, how) = self.fetch_events(search, wanted).await?;
            failed = failed.or(how);
            let cited = pdus.iter().flat_map(|pdu| pdu.event.auth_events());
            let cited: BTreeSet<_> = cited.filter(|id| !seen.contains(*id)).cloned().collect();
            wanted = self.unknown(cited).await?;
            got.extend(pdus);
        }
        Ok((got, failed))
    }

    /// Gets events one by one; says whether somebody was silent who may have one that is missing.
    async fn fetch_events(
        &self,
        search: &Arc<Search>,
        ids: Vec<OwnedEventId>,
    ) -> Result<(Vec<Pdu>, Option<Failed>)> {
        let seats = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for id in ids {
            let (federation, search, seats) = (self.clone(), search.clone(), seats.clone());
            tasks.spawn(async move {
                let _seat = seats.acquire_owned().await;
                let request = || get_event::v1::Request::new(id.clone());
                let answer = federation.ask(&search, request, SINGLE).await;
                (id, answer)
            });
        }
        let (mut asked, mut events, mut failed) = (HashSet::new(), Vec::new(), None);
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((id, Ok(answer))) => {
                    asked.insert(id);
                    events.push(answer.pdu);
                }
                Ok((_, Err(Failed::Silent))) => failed = Some(Failed::Silent),
                Ok((_, Err(Failed::Nowhere))) => {}
                Err(error) => tracing::error!(%error, "asking for an event broke off"),
            }
        }
        let mut pdus = self.genuine(search, events).await?;
        pdus.retain(|pdu| asked.contains(&pdu.event.header.id));
        Ok((pdus, failed))
    }

    /// Gets what lies between an event and what is here, each after those that it follows. How asking failed is told
    /// only if nothing was had.
    pub(super) async fn fetch_before(
        &self,
        search: &Arc<Search>,
        pdu: &Pdu,
    ) -> Result<Result<Vec<Pdu>, Failed>> {
        let limit = UInt::try_from(MAX_MISSING_EVENTS).unwrap_or(UInt::MAX);
        let earliest = {
            let mut guard = self.0.rooms.lock(&search.room).await?;
            let ends = guard.head().row.extremities.iter();
            ends.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        let mut found: Vec<Pdu> = Vec::new();
        let mut seen = HashSet::from([pdu.event.header.id.clone()]);
        let mut latest = vec![pdu.event.header.id.clone()];
        for _ in 0..MOST_ROUNDS {
            let request = || {
                let (earliest, latest) = (earliest.clone(), latest.clone());
                let room = search.room.clone();
                let mut request = get_missing_events::v1::Request::new(room, earliest, latest);
                request.limit = limit;
                request
            };
            let Ok(answer) = self.ask(search, request, Limits::USUAL).await else {
                break;
            };
            // Whoever gives fewer than they were asked for has no more, or gives no more.
            let is_all = answer.events.len() < MAX_MISSING_EVENTS;
            let events = answer.events.into_iter().take(MOST_MISSING);
            let before = found.len();
            for event in self.genuine(search, events).await? {
                if seen.insert(event.event.header.id.clone()) {
                    found.push(event);
                }
            }
            if is_all || found.len() == before {
                break;
            }
            // Those that still hang in the air.
            latest.clear();
            for event in &found {
                let cited = event.event.prev_events().filter(|id| !seen.contains(*id));
                if !self.placeless(cited)?.is_empty() && latest.len() < MAX_MISSING_EVENTS {
                    latest.push(event.event.header.id.clone());
                }
            }
            if latest.is_empty() {
                break;
            }
        }
        if found.is_empty() {
            return Ok(Err(search.failed()));
        }
        let wanted: Vec<_> = pdu.event.prev_events().cloned().collect();
        let order = connected(&wanted, &found);
        let mut slots: Vec<_> = found.into_iter().map(Some).collect();
        let in_order = order.into_iter().filter_map(|at| slots.get_mut(at)?.take());
        Ok(Ok(in_order.collect()))
    }

    /// Those of some events around which the state is not known.
    pub(super) fn placeless<'e>(
        &self,
        ids: impl Iterator<Item = &'e OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>> {
        let view = self.0.store.latest();
        let mut placeless = Vec::new();
        for id in ids {
            let found = self.0.rooms.find_event(&view, id)?;
            if !found.is_some_and(|stored| stored.has_state()) {
                placeless.push(id.clone());
            }
        }
        Ok(placeless)
    }

    /// Gets one event.
    pub(super) async fn fetch_event(
        &self,
        search: &Arc<Search>,
        id: &EventId,
    ) -> Result<Result<Pdu, Failed>> {
        let (events, failed) = self.fetch_events(search, vec![id.to_owned()]).await?;
        let event = events.into_iter().next();
        Ok(event.ok_or(failed.unwrap_or(Failed::Nowhere)))
    }

    /// Gets the state before an event as another server tells it, with all of its events.
    pub(super) async fn fetch_state(
        &self,
        search: &Arc<Search>,
        event: &EventId,
    ) -> Result<Result<Vec<OwnedEventId>, Failed>> {
        let request =
            || get_room_state_ids::v1::Request::new(event.to_owned(), search.room.clone());
        let told = match self.ask(search, request, CHAIN).await {
            Ok(told) => told,
            Err(failed) => return Ok(Err(failed)),
        };
        let all: BTreeSet<_> = told.pdu_ids.iter().chain(&told.auth_chain_ids).collect();
        if all.len() > MOST_OF_STATE {
            return Ok(Err(Failed::Nowhere));
        }
        let unknown = self.unknown(all.into_iter().cloned()).await?;
        let mut failed = None;
        if unknown.len() > MOST_SINGLE {
            let turn = search.on_behalf_of();
            let turn = turn.map(|server| self.0.inbox.turn(server));
            let _turn = match &turn {
                Some(turn) => Some(turn.lock().await),
                None => None,
            };
            let _seat = self.0.inbox.states.acquire().await;
            let request =
                || get_room_state::v1::Request::new(event.to_owned(), search.room.clone());
            match self.ask(search, request, STATE).await {
                Ok(state) => {
                    let events = state.pdus.into_iter().chain(state.auth_chain);
                    let events = events.take(MOST_OF_STATE);
                    let pdus = self.genuine(search, events).await?;
                    self.keep(search, pdus).await?;
                }
                Err(how) => return Ok(Err(how)),
            }
        } else {
            let (pdus, how) = self.fetch_events(search, unknown).await?;
            failed = how;
            self.keep(search, pdus).await?;
        }
        let missing = self.unknown(told.pdu_ids.clone()).await?;
        let missing: HashSet<_> = missing.into_iter().collect();
        if let (Some(failed), false) = (failed, missing.is_empty()) {
            return Ok(Err(failed));
        }
        // A few that nobody has are no part of it, here as elsewhere; the current state must allow the event besides.
        if missing.len() * FEW > told.pdu_ids.len() {
            return Ok(Err(Failed::Nowhere));
        }
        let state = told.pdu_ids.into_iter().filter(|id| !missing.contains(id));
        let state: Vec<_> = state.collect();
        Ok(if state.is_empty() {
            Err(Failed::Nowhere)
        } else {
            Ok(state)
        })
    }
}

/// Those of the events that authorise some, directly or not.
fn leading_to(wanted: &[OwnedEventId], pdus: Vec<Pdu>) -> Vec<Pdu> {
    let by_id: HashMap<&OwnedEventId, usize> = pdus
        .iter()
        .enumerate()
        .map(|(at, pdu)| (&pdu.event.header.id, at))
        .collect();
    let mut todo: Vec<&OwnedEventId> = wanted.iter().collect();
    let mut reached = vec![false; pdus.len()];
    while let Some(id) = todo.pop() {
        if let Some(at) = by_id.get(id)
            && !std::mem::replace(&mut reached[*at], true)
        {
            todo.extend(
                pdus.iter()
                    .skip(*at)
                    .take(1)
                    .flat_map(|pdu| pdu.event.auth_events()),
            );
        }
    }
    let pdus = pdus.into_iter().zip(reached);
    pdus.filter(|(_, reached)| *reached)
        .map(|(pdu, _)| pdu)
        .collect()
}
