//! Entering a room: a server in it takes our join and tells the room's state, which is checked, event by event, before
//! anything of it is believed. Until the one commit that makes the room nobody here sees any of it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{
    OwnedEventId, RoomId, ServerName, api::federation::membership::create_join_event,
    events::room::member::MembershipState, state_res::Event as _,
};

use tokio::time::timeout;

use super::{
    super::search::Search,
    Federation, Wish,
    ask::{Filled, knows_only_v1, nonsense},
    wanted,
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::Position,
        ingest::{self, Need, Pdu},
    },
    remote::Limits,
    service::rooms::{Before, Entered, Outcome},
};

/// The state of a large room has a hundred megabytes, and its server must first put it together.
const ENTRANCE: Limits = Limits {
    time: Duration::from_mins(5),
    body: 256 << 20,
};

/// How long somebody waits until fewer rooms are being entered.
const LONGEST_QUEUE: Duration = Duration::from_secs(30);

/// From how many events on the log is told that this takes a while.
const MANY: usize = 5_000;

/// The greatest number of events that a room is told with.
const MOST: usize = 1_000_000;

impl Federation {
    /// Joins a room by way of the servers in it. None when this node has come into the room in the meantime, so that the
    /// user can join as in any room of ours; with `always` the others are asked all the same, because nobody here can let
    /// the user in.
    ///
    /// # Errors
    /// The most telling error of the servers that were asked.
    pub async fn join(&self, wish: &Wish<'_>, always: bool) -> Result<Option<OwnedEventId>> {
        let ticket = self.ticket(wish.room).await;
        if let Some(id) = self.is_in(wish).await? {
            return Ok(Some(id));
        }
        if !always && self.0.rooms.takes_part_in(wish.room).await? {
            return Ok(None);
        }
        let mut asking = self.asking(wish);
        while let Some(server) = asking.next() {
            match Box::pin(self.join_by(&server, wish)).await {
                Ok(id) => {
                    drop(ticket);
                    return Ok(Some(id));
                }
                Err(error) => asking.failed(&server, error)?,
            }
        }
        Err(asking.end())
    }

    /// The event by which a user is in a room that this node is in.
    async fn is_in(&self, wish: &Wish<'_>) -> Result<Option<OwnedEventId>> {
        let rooms = &self.0.rooms;
        let Ok(mut guard) = rooms.lock(wish.room).await else {
            return Ok(None);
        };
        let head = guard.head();
        if rooms.membership_now(head.nid, wish.user)? != MembershipState::Join {
            return Ok(None);
        }
        let view = self.0.store.latest();
        let kind = "m.room.member".into();
        let event = rooms.current(&view, head.nid, &kind, wish.user.as_str())?;
        Ok(event.map(|event| event.event.header.id.clone()))
    }

    async fn join_by(&self, server: &ServerName, wish: &Wish<'_>) -> Result<OwnedEventId> {
        let filled = self.join_template(server, wish).await?;
        let entrances = self.0.handshakes.entrances.acquire();
        let _seat = timeout(LONGEST_QUEUE, entrances)
            .await
            .map_err(|_| Error::limit_exceeded(LONGEST_QUEUE))?;
        let request = create_join_event::v2::Request::new(
            wish.room.to_owned(),
            filled.id().clone(),
            filled.raw()?,
        );
        let answer = match self.0.remote.send_within(server, request, ENTRANCE).await {
            Ok(answer) => answer.room_state,
            Err(error) if knows_only_v1(&error) => {
                let (of, body) = ((wish.room, &**filled.id()), filled.text());
                self.put_as_v1(server, "send_join", of, body, ENTRANCE)
                    .await?
            }
            Err(error) => return Err(error.into()),
        };
        let join = self.final_join(server, &filled, answer.event).await?;
        let position = self
            .take_in(server, &filled, &join, (answer.state, answer.auth_chain))
            .await?;
        self.0.store.durable(position).await?;
        Ok(join.event.header.id)
    }

    /// The join as it is sent to the room. Where somebody lets the user in, their server has signed it as well.
    async fn final_join(
        &self,
        server: &ServerName,
        filled: &Filled,
        signed: Option<Box<serde_json::value::RawValue>>,
    ) -> Result<Pdu> {
        let ours = ingest::receive_object(filled.object.clone(), filled.rules);
        let ours = ours.map_err(|bad| nonsense(server, bad))?;
        if ours.signers.len() <= 1 {
            return Ok(ours.signed());
        }
        let signed = signed.ok_or_else(|| filled.nonsense(server, "it was not signed"))?;
        let signed = ingest::receive(signed.get(), filled.rules);
        let signed = signed.map_err(|bad| nonsense(server, bad))?;
        if signed.event().header.id != *filled.id() || !signed.intact {
            return Err(filled.nonsense(server, "another one came back"));
        }
        let pdu = self.verify_one(signed, filled.rules).await?;
        pdu.map_err(|bad| nonsense(server, bad))
    }

    /// Checks what a server has told of a room, stores it, and enters the room.
    async fn take_in(
        &self,
        server: &ServerName,
        filled: &Filled,
        join: &Pdu,
        (state, auth_chain): (
            Vec<Box<serde_json::value::RawValue>>,
            Vec<Box<serde_json::value::RawValue>>,
        ),
    ) -> Result<Position> {
        let in_state = state.len();
        if in_state + auth_chain.len() > MOST {
            return Err(nonsense(
                server,
                "the room has more state than any room needs",
            ));
        }
        // Most servers tell most events twice.
        let mut texts: Vec<String> = Vec::with_capacity(in_state);
        let mut seen = HashSet::new();
        let mut is_state = Vec::with_capacity(in_state);
        for (at, json) in state.into_iter().chain(auth_chain).enumerate() {
            if seen.insert(hash(json.get())) {
                is_state.push(at < in_state);
                texts.push(Box::<str>::from(json).into());
            }
        }
        drop(seen);
        if texts.len() >= MANY {
            tracing::info!(room = %join.event.header.room_id, %server, events = texts.len(), "a large room is being entered; its events are being checked");
        }
        let mut pdus = Vec::with_capacity(texts.len());
        let mut ids: Vec<OwnedEventId> = Vec::with_capacity(in_state);
        let mut left_out = 0_usize;
        let checked = self.verify(filled.rules, texts).await?;
        for (checked, is_state) in checked.into_iter().zip(is_state) {
            match checked {
                Ok(pdu) => {
                    if is_state {
                        ids.push(pdu.event.header.id.clone());
                    }
                    pdus.push(pdu);
                }
                Err(dropped) => {
                    left_out += 1;
                    tracing::debug!(%server, %dropped, "an event of a room's state is left out");
                }
            }
        }
        check_state(server, &pdus, &ids, filled)?;

        let rooms = self.0.rooms.clone();
        let room = &join.event.header.room_id;
        pdus.extend(self.untold(server, filled, room, &pdus).await?);
        let mut guard = rooms.lock_or_make(room, &filled.version).await?;
        if guard.head().row.version != filled.version {
            return Err(nonsense(server, "the room is of another version"));
        }
        let stored = tokio::task::spawn_blocking(move || {
            let report = rooms.store_unplaced_events(guard.head(), pdus);
            (guard, report)
        });
        let (mut guard, report) = stored
            .await
            .map_err(|error| Error::Internal(format!("storing a state broke off: {error}")))?;
        let report = report?;
        let left_out = left_out + report.left_out;
        if left_out + report.rejected > 0 {
            tracing::warn!(%room, %server, left_out, rejected = report.rejected, "a server has told events of a room's state that can not be believed; they are left out");
        }
        let rooms = &self.0.rooms;
        let head = guard.head();
        let view = self.0.store.latest();
        let mut known = Vec::with_capacity(ids.len());
        for id in ids {
            if rooms.find_event(&view, &id)?.is_some() {
                known.push(id);
            }
        }
        if rooms.takes_part(head) {
            let mut join = join.clone();
            loop {
                let head = guard.head();
                let mut outcome = rooms.receive(head, &join, Before::Previous, |_| {})?;
                if let Outcome::Needs(Need::AuthEvents(_) | Need::PrevEvents(_)) = outcome {
                    outcome = rooms.receive(head, &join, Before::Given(&known), |_| {})?;
                }
                let Outcome::Needs(Need::Recommendation(policy)) = &outcome else {
                    wanted(outcome)?;
                    return Ok(self.0.store.latest().position());
                };
                drop(guard);
                join = self.judged(policy, &join, filled.rules).await?;
                guard = rooms.lock(room).await?;
            }
        }
        match rooms.enter(head, join, &known) {
            Ok(Entered::Done(position)) => {
                tracing::info!(%room, %server, state = known.len(), "a room was entered");
                Ok(position)
            }
            Ok(Entered::Needs(Need::AuthEvents(missing) | Need::PrevEvents(missing))) => {
                let problem = format!(
                    "{} events that authorise the join are missing",
                    missing.len()
                );
                Err(nonsense(server, problem))
            }
            Ok(Entered::Needs(Need::StateBefore | Need::Recommendation(_))) => {
                Err(nonsense(server, "the state is missing"))
            }
            Err(error) if error.is_internal() => Err(error),
            // The server has accepted the join and says that the room does not allow it.
            Err(error) => Err(nonsense(server, error)),
        }
    }
}

impl Federation {
    /// Gets what authorises the events of a room's state and was not told with it, for as long as it is little.
    async fn untold(
        &self,
        server: &ServerName,
        filled: &Filled,
        room: &RoomId,
        told: &[Pdu],
    ) -> Result<Vec<Pdu>> {
        let known: HashSet<_> = told.iter().map(|pdu| &pdu.event.header.id).collect();
        let cited = told.iter().flat_map(|pdu| pdu.event.auth_events());
        let missing: HashSet<_> = cited.filter(|id| !known.contains(id)).cloned().collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let nid = self.0.store.room_nid(room)?;
        let servers = vec![server.to_owned()];
        let search = Arc::new(Search::only((nid, room.to_owned()), filled.rules, servers));
        let missing = missing.into_iter().collect();
        let (found, _) = Box::pin(self.fetch_upwards(&search, missing)).await?;
        Ok(found)
    }
}

/// A state has one event for each of its keys, and begins with the room's beginning.
fn check_state(
    server: &ServerName,
    pdus: &[Pdu],
    state: &[OwnedEventId],
    filled: &Filled,
) -> Result<()> {
    let by_id: HashMap<_, _> = pdus
        .iter()
        .map(|pdu| (&pdu.event.header.id, &pdu.event.header))
        .collect();
    let mut keys = HashSet::new();
    let mut has_create = false;
    for header in state.iter().filter_map(|id| by_id.get(id)) {
        let Some(key) = &header.state_key else {
            return Err(nonsense(server, "its state has an event that is none"));
        };
        let kind = header.event_type.to_string();
        has_create |= kind == "m.room.create" && key.is_empty();
        if header.room_id == filled.pdu.event.header.room_id && !keys.insert((kind, key.as_str())) {
            return Err(nonsense(server, "its state has two events for one key"));
        }
    }
    if !has_create {
        return Err(nonsense(server, "the create event of the room is missing"));
    }
    Ok(())
}

/// What tells texts apart.
fn hash(text: &str) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text.as_bytes()).into()
}
