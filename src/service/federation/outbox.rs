//! Tells other servers what happens here: follows what has become durable, and wakes those whom it concerns.
//!
//! No row is written for an event and a destination. What a server has not got follows from its cursor, the rooms that it
//! is in, and `LOCAL_EVENTS`; so a link may be down for as long as it likes, and the node be stopped meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::{Arc, Weak},
    time::Duration,
};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, events::room::member::MembershipState};
use tokio::sync::Notify;

use super::{
    Federation, Parts,
    destination::{Destination, Item, MAX_QUEUE, News, Step, Verdict, What},
    transaction::{Answer, Flight},
};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, RoomNid, ServerNid, UserNid},
    remote::{self, Kind, Limits},
    store::{
        View,
        outgoing::Note,
        schema::{
            DESTINATIONS, DestinationRow, EXTRA_TARGETS, LOCAL_EVENTS, RECEIPTS, ROOM_SERVERS,
            SERVER_ROOMS, USER_ROOMS,
        },
    },
};

/// How often it is written down how far the destinations are. What was told since is told again after a crash, and
/// recognised by whoever is told.
const SAVE: Duration = Duration::from_secs(1);

/// How often rows are looked for that nobody is to be told of any more.
const SWEEP: Duration = Duration::from_hours(1);

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

/// How long a destination rests when the store does not let it go on.
const STORE_PAUSE: Duration = Duration::from_secs(30);

/// Telling other servers what happens here.
pub(super) struct Outbox {
    parts: Arc<Parts>,
    all: Mutex<HashMap<ServerNid, Arc<Destination>>>,
    /// Those whose rows are out of date.
    unsaved: Mutex<HashSet<ServerNid>>,
    /// Told when there is one more of them.
    unsaved_wake: Arc<Notify>,
}

/// How it stands with a server that is told what happens here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStatus {
    /// The server.
    pub server: OwnedServerName,
    /// Whether it is in the peer table.
    pub is_peer: bool,
    /// Since when it cannot be reached, in milliseconds since the epoch.
    pub down_since: Option<u64>,
    /// How many events and receipts wait.
    pub waiting: usize,
    /// Whether more wait than were counted.
    pub more: bool,
    /// When the oldest event that waits was sent, in milliseconds since the epoch.
    pub oldest: Option<u64>,
    /// When it was reached the last time, in milliseconds since the epoch.
    pub last_success: Option<u64>,
    /// When it could not be reached the last time, in milliseconds since the epoch.
    pub last_failure: Option<u64>,
    /// Why not.
    pub last_error: Option<String>,
}

impl Federation {
    /// Begins to tell other servers what happens here, and says hello to the peers, so that they try again what they
    /// have for us.
    pub fn start(&self) {
        let outbox = &self.1;
        let parts = &outbox.parts;
        if !parts.remote.is_on() {
            return;
        }
        parts.store.outgoing().follow();
        parts.tasks.spawn(follow(Arc::downgrade(outbox)));
    }

    /// A server has proven that it is there, so what waits for it is tried at once.
    pub fn heard_from(&self, server: &ServerName) {
        let outbox = &self.1;
        if let Ok(Some(nid)) = outbox.parts.store.find_server(server)
            && let Some(destination) = outbox.all.lock().get(&nid)
        {
            destination.heard(outbox.parts.clock.instant());
        }
    }

    /// How it stands with all servers that were ever told anything, in the order of their names.
    ///
    /// # Errors
    /// When the store fails.
    pub fn destinations(&self) -> Result<Vec<DestinationStatus>> {
        let outbox = &self.1;
        let view = outbox.parts.store.view();
        let mut rows: BTreeMap<ServerNid, DestinationRow> = BTreeMap::new();
        for row in DESTINATIONS.scan(&view, &()) {
            let ((nid,), row) = row?;
            rows.insert(nid, row);
        }
        let known: Vec<_> = outbox.all.lock().values().cloned().collect();
        for destination in known {
            let row = destination.with(|state| state.row.clone());
            rows.insert(destination.nid, row);
        }
        let mut all = Vec::new();
        for (nid, row) in rows {
            let (found, is_all) = outbox.find(&view, nid, row.cursor)?;
            let first = found.iter().find(|item| item.what != What::Receipt);
            let oldest = match first {
                Some(item) => {
                    let stored = outbox.parts.rooms.event(&view, item.position.0.into())?;
                    Some(u64::from(stored.event.header.origin_server_ts.0))
                }
                None => None,
            };
            let server = (*outbox.parts.store.server_name(nid)?).clone();
            let some = |time: u64| (time > 0).then_some(time);
            all.push(DestinationStatus {
                is_peer: outbox.parts.remote.is_peer(&server),
                server,
                down_since: some(row.down_since),
                waiting: found.len(),
                more: !is_all,
                oldest,
                last_success: some(row.last_success),
                last_failure: some(row.last_failure),
                last_error: row.last_error,
            });
        }
        all.sort_by(|a, b| a.server.cmp(&b.server));
        Ok(all)
    }

    /// Removes the rows of events that every server of their room has got; says how many. What a server that is gone has
    /// not got is kept: a row has twenty bytes, and the server may come back.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_delivered(&self) -> Result<usize> {
        self.1.sweep()
    }
}

impl Outbox {
    pub(super) fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            all: Mutex::default(),
            unsaved: Mutex::default(),
            unsaved_wake: Arc::default(),
        }
    }

    /// The destination of this number; none if it is not to be told anything.
    fn destination(&self, nid: ServerNid) -> Result<Option<Arc<Destination>>> {
        if nid == self.parts.rooms.own_server() {
            return Ok(None);
        }
        if let Some(known) = self.all.lock().get(&nid) {
            return Ok(Some(known.clone()));
        }
        let parts = &self.parts;
        let name = (*parts.store.server_name(nid)?).clone();
        if !parts.remote.admits(&name) {
            return Ok(None);
        }
        let row = DESTINATIONS.get(&parts.store.latest(), &(nid,))?;
        let schedule = parts.remote.schedule(&name);
        let is_peer = parts.remote.is_peer(&name);
        let new = Destination::new(nid, name, is_peer, schedule, row.unwrap_or_default());
        new.resume(
            parts.clock.now_ms(),
            parts.clock.instant(),
            parts.entropy.number(),
        );
        Ok(Some(
            self.all
                .lock()
                .entry(nid)
                .or_insert_with(|| Arc::new(new))
                .clone(),
        ))
    }

    /// Carries out one round of news.
    fn spread(self: &Arc<Self>, notes: Vec<(Position, Note)>) -> Result<()> {
        let view = self.parts.store.view();
        let now = self.parts.clock.instant();
        let mut servers: HashMap<RoomNid, Vec<(Arc<Destination>, Position)>> = HashMap::new();
        for (position, note) in notes {
            let (room, what) = match &note {
                Note::Event { room } => (*room, What::Event),
                Note::Receipt { room } => (*room, What::Receipt),
                Note::Typing { room, .. } => (*room, What::Event),
                Note::Extra { server, room } => {
                    let (room, what) = (*room, What::Extra);
                    if let Some(destination) = self.destination(*server)?
                        && destination.push(
                            Item {
                                position,
                                room,
                                what,
                            },
                            now,
                        )
                    {
                        self.run(destination);
                    }
                    continue;
                }
                Note::Presence { user, json } => {
                    self.tell_presence(&view, *user, json)?;
                    continue;
                }
            };
            if let std::collections::hash_map::Entry::Vacant(vacant) = servers.entry(room) {
                let mut found = Vec::new();
                for row in ROOM_SERVERS.scan(&view, &(room,)) {
                    let ((_, server), row) = row?;
                    if let Some(destination) = self.destination(server)? {
                        found.push((destination, row.since));
                    }
                }
                vacant.insert(found);
            }
            for (destination, since) in servers.get(&room).into_iter().flatten() {
                let must_run = match &note {
                    Note::Typing { room, user, typing } => {
                        destination.set_typing(*room, *user, *typing)
                    }
                    _ if position < *since => false,
                    _ => destination.push(
                        Item {
                            position,
                            room,
                            what,
                        },
                        now,
                    ),
                };
                if must_run {
                    self.run(destination.clone());
                }
            }
        }
        Ok(())
    }

    /// Presence goes to all servers with which a user shares a room.
    fn tell_presence(self: &Arc<Self>, view: &View, user: UserNid, json: &Arc<str>) -> Result<()> {
        let mut told: BTreeSet<ServerNid> = BTreeSet::new();
        for row in USER_ROOMS.scan(view, &(user,)) {
            let ((_, room), member) = row?;
            if member.membership != MembershipState::Join {
                continue;
            }
            for row in ROOM_SERVERS.scan(view, &(room,)) {
                told.insert(row?.0.1);
            }
        }
        for server in told {
            if let Some(destination) = self.destination(server)?
                && destination.set_presence(user, json.clone())
            {
                self.run(destination);
            }
        }
        Ok(())
    }

    /// Finds all to whom something is still to be told, and has them told.
    fn look_again(self: &Arc<Self>) -> Result<()> {
        let view = self.parts.store.view();
        let mut behind: BTreeSet<ServerNid> = BTreeSet::new();
        let mut newest: (RoomNid, Position) = Default::default();
        let mut cursors: HashMap<ServerNid, Position> = HashMap::new();
        for row in ROOM_SERVERS.scan(&view, &()) {
            let ((room, server), row) = row?;
            if newest.0 != room {
                let event = LOCAL_EVENTS.last(&view, &(room,))?;
                let receipt = RECEIPTS.last(&view, &(room,))?;
                let event = event.map(|((_, position), ())| position);
                let receipt = receipt.map(|((_, position), _)| position);
                newest = (room, event.max(receipt).unwrap_or_default());
            }
            let cursor = match cursors.get(&server) {
                Some(cursor) => *cursor,
                None => {
                    let row = DESTINATIONS.get(&view, &(server,))?;
                    let cursor = row.map(|row| row.cursor).unwrap_or_default();
                    *cursors.entry(server).or_insert(cursor)
                }
            };
            if newest.1 > cursor && newest.1 >= row.since {
                behind.insert(server);
            }
        }
        for row in EXTRA_TARGETS.scan(&view, &()) {
            behind.insert(row?.0.0);
        }
        for server in behind {
            if let Some(destination) = self.destination(server)?
                && destination.look_again()
            {
                self.run(destination);
            }
        }
        Ok(())
    }

    /// Says hello to all peers.
    fn greet(self: &Arc<Self>) -> Result<()> {
        let peers: Vec<OwnedServerName> =
            self.parts.remote.peers().map(ToOwned::to_owned).collect();
        for peer in peers {
            let nid = self.parts.store.server_nid(&peer)?;
            if let Some(destination) = self.destination(nid)?
                && destination.hello()
            {
                self.run(destination);
            }
        }
        Ok(())
    }

    /// What a server has not got yet, oldest first, and whether that is all.
    fn find(&self, view: &View, server: ServerNid, cursor: Position) -> Result<(Vec<Item>, bool)> {
        let mut found: BTreeMap<Position, Item> = BTreeMap::new();
        let mut is_all = true;
        let mut add = |item: Item| {
            // Another row with the same position is about the same event.
            found.entry(item.position).or_insert(item);
            if found.len() > MAX_QUEUE {
                is_all = false;
                found.pop_last();
            }
            // Whether a later one still may have a place.
            is_all
                || found
                    .last_key_value()
                    .is_none_or(|(last, _)| item.position < *last)
        };
        let after = Bound::Excluded((server, cursor));
        for row in EXTRA_TARGETS.range(view, &(server,), (after, Bound::Unbounded)) {
            let ((_, position), (room,)) = row?;
            let what = What::Extra;
            if !add(Item {
                position,
                room,
                what,
            }) {
                break;
            }
        }
        for row in SERVER_ROOMS.scan(view, &(server,)) {
            let ((_, room), ()) = row?;
            let Some(row) = ROOM_SERVERS.get(view, &(room, server))? else {
                continue;
            };
            let from = Position(row.since.0.max(cursor.0 + 1));
            let bounds = (Bound::Included((room, from)), Bound::Unbounded);
            for row in LOCAL_EVENTS.range(view, &(room,), bounds) {
                let ((_, position), ()) = row?;
                let what = What::Event;
                if !add(Item {
                    position,
                    room,
                    what,
                }) {
                    break;
                }
            }
            for row in RECEIPTS.range(view, &(room,), bounds) {
                let ((_, position), _) = row?;
                let what = What::Receipt;
                if !add(Item {
                    position,
                    room,
                    what,
                }) {
                    break;
                }
            }
        }
        Ok((found.into_values().collect(), is_all))
    }

    fn run(self: &Arc<Self>, destination: Arc<Destination>) {
        let task = serve(Arc::downgrade(self), destination);
        self.parts.tasks.spawn(task);
    }

    fn load(&self, destination: &Destination) -> Result<()> {
        let cursor = destination.begin_load();
        let view = self.parts.store.view();
        let found = self.find(&view, destination.nid, cursor);
        let (found, is_all) = found.inspect_err(|_| {
            destination.look_again();
        })?;
        destination.end_load(found, view.position(), is_all);
        Ok(())
    }

    /// Takes note of what came of an attempt.
    fn settle(&self, destination: &Destination, verdict: Verdict) {
        let (clock, server) = (&self.parts.clock, &destination.name);
        let reason = match &verdict {
            Verdict::Failed { problem, .. } => problem.clone(),
            Verdict::Delivered { .. } => String::new(),
        };
        let now = (clock.instant(), clock.now_ms());
        tell(
            server,
            &reason,
            destination.settle(verdict, now, self.parts.entropy.number()),
        );
        self.unsaved.lock().insert(destination.nid);
        self.unsaved_wake.notify_one();
    }

    /// Writes down how far the destinations are, all in one commit.
    fn save(&self) -> Result<()> {
        let unsaved = std::mem::take(&mut *self.unsaved.lock());
        let mut rows = Vec::with_capacity(unsaved.len());
        for nid in unsaved {
            if let Some(destination) = self.all.lock().get(&nid) {
                rows.push(destination.with(|state| {
                    let extras = std::mem::take(&mut state.done_extras);
                    (nid, state.row.clone(), extras)
                }));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let _not_awaited = self.parts.store.commit(|batch| {
            for (nid, row, extras) in &rows {
                DESTINATIONS.put(batch, &(*nid,), row);
                for position in extras {
                    EXTRA_TARGETS.delete(batch, &(*nid, *position));
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn sweep(&self) -> Result<usize> {
        self.save()?;
        let view = self.parts.store.view();
        let (mut removed, mut room) = (0, RoomNid::default());
        loop {
            let from = Bound::Included((room, Position::default()));
            let mut rest = LOCAL_EVENTS.range(&view, &(), (from, Bound::Unbounded));
            let Some(row) = rest.next() else {
                return Ok(removed);
            };
            room = row?.0.0;
            let until = self.got_by_all(&view, room)?;
            let bounds = (Bound::Unbounded, Bound::Included((room, until)));
            let mut done = LOCAL_EVENTS.range(&view, &(room,), bounds);
            loop {
                let chunk = done.by_ref().take(CHUNK);
                let keys: Vec<_> = chunk.map(|row| Ok(row?.0)).collect::<Result<_>>()?;
                if keys.is_empty() {
                    break;
                }
                let _not_awaited = self.parts.store.commit(|batch| {
                    for key in &keys {
                        LOCAL_EVENTS.delete(batch, key);
                    }
                    Ok(())
                })?;
                removed += keys.len();
            }
            room.0 += 1;
        }
    }

    /// Up to where every server of a room has got everything.
    fn got_by_all(&self, view: &View, room: RoomNid) -> Result<Position> {
        let mut until = view.position();
        for row in ROOM_SERVERS.scan(view, &(room,)) {
            let ((_, server), _) = row?;
            if server != self.parts.rooms.own_server() {
                let row = DESTINATIONS.get(view, &(server,))?;
                until = until.min(row.map(|row| row.cursor).unwrap_or_default());
            }
        }
        Ok(until)
    }
}

/// Spreads the news until the node stops.
async fn follow(outbox: Weak<Outbox>) {
    let Some(first) = outbox.upgrade() else {
        return;
    };
    let (clock, stop) = (first.parts.clock.clone(), first.parts.stop.clone());
    let (outgoing, unsaved) = (
        first.parts.store.outgoing().clone(),
        first.unsaved_wake.clone(),
    );
    let greeted = first.greet();
    if let Err(error) = greeted {
        tracing::error!(%error, "the peers could not be greeted");
    }
    let mut look = true;
    drop(first);
    let mut saved = clock.instant();
    let mut swept = saved;
    let mut is_unsaved = false;
    loop {
        let Some(outbox_now) = outbox.upgrade() else {
            return;
        };
        let (notes, incomplete) = outgoing.take();
        look |= incomplete;
        if look {
            let outbox = outbox_now.clone();
            let looked = tokio::task::spawn_blocking(move || outbox.look_again()).await;
            match looked {
                Ok(Ok(())) => look = false,
                Ok(Err(error)) => {
                    tracing::error!(%error, "it could not be found out what other servers are to be told")
                }
                Err(_) => return,
            }
        }
        if let Err(error) = outbox_now.spread(notes) {
            tracing::error!(%error, "other servers could not be told at once; they will be later");
            look = true;
        }
        let now = clock.instant();
        if is_unsaved && now >= saved + SAVE {
            (saved, is_unsaved) = (now, false);
            if let Err(error) = outbox_now.save() {
                tracing::error!(%error, "it could not be written down what other servers were told");
            }
        }
        if now >= swept + SWEEP {
            swept = now;
            let outbox = outbox_now.clone();
            match tokio::task::spawn_blocking(move || outbox.sweep()).await {
                Ok(Ok(removed)) => tracing::debug!(removed, "rows of what all servers have got"),
                Ok(Err(error)) => tracing::error!(%error, "rows could not be removed"),
                Err(_) => return,
            }
        }
        drop(outbox_now);
        let mut next = (swept + SWEEP).saturating_duration_since(now);
        if is_unsaved {
            next = next.min((saved + SAVE).saturating_duration_since(now));
        }
        if look {
            next = next.min(STORE_PAUSE);
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = outgoing.wait() => {}
            () = unsaved.notified() => is_unsaved = true,
            () = clock.sleep(next) => {}
        }
    }
    if let Some(outbox) = outbox.upgrade()
        && let Err(error) = outbox.save()
    {
        tracing::debug!(%error, "the last of what other servers were told was not written down");
    }
}

/// Tells one server all that waits for it.
async fn serve(outbox: Weak<Outbox>, destination: Arc<Destination>) {
    let mut flight: Option<Flight> = None;
    loop {
        let Some(outbox_now) = outbox.upgrade() else {
            return;
        };
        let parts = &outbox_now.parts;
        let (clock, stop) = (parts.clock.clone(), parts.stop.clone());
        let pause = match destination.next(flight.is_some(), clock.instant()) {
            Step::Done(news) => return tell(&destination.name, "", news),
            Step::Wait(pause) => Some(pause),
            Step::Load => {
                let (outbox, destination) = (outbox_now.clone(), destination.clone());
                let loaded = tokio::task::spawn_blocking(move || outbox.load(&destination)).await;
                match loaded {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(stuck(&error)),
                    Err(_) => return,
                }
            }
            Step::Send(new) => {
                if let Some(new) = new {
                    flight = Some(new);
                }
                let Some(sending) = &mut flight else { continue };
                let server = &destination.name;
                match sending.request(parts, (destination.nid, server)) {
                    Ok(None) => {
                        flight = None;
                        let verdict = Verdict::Delivered {
                            contact: false,
                            events: 0,
                        };
                        outbox_now.settle(&destination, verdict);
                        None
                    }
                    Ok(Some((path, body))) => {
                        let (remote, events) = (parts.remote.clone(), sending.events());
                        // The node may stop meanwhile.
                        drop(outbox_now);
                        let sent =
                            remote.send_signed(server, Method::PUT, &path, body, Limits::USUAL);
                        let outcome = tokio::select! {
                            outcome = sent => outcome,
                            () = stop.cancelled() => return,
                        };
                        let Some(outbox_now) = outbox.upgrade() else {
                            return;
                        };
                        let verdict = match outcome {
                            Ok(answer) => {
                                complain(server, answer.body());
                                flight = None;
                                Verdict::Delivered {
                                    contact: true,
                                    events,
                                }
                            }
                            Err(error) => failed(error),
                        };
                        if matches!(&verdict, Verdict::Failed { refused: true, .. }) {
                            flight = None;
                        }
                        outbox_now.settle(&destination, verdict);
                        continue;
                    }
                    Err(error) => Some(stuck(&error)),
                }
            }
        };
        drop(outbox_now);
        if let Some(pause) = pause {
            tokio::select! {
                () = clock.sleep(pause) => {}
                () = destination.wake.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

fn stuck(error: &Error) -> Duration {
    tracing::error!(%error, "what a server is to be told could not be read");
    STORE_PAUSE
}

fn failed(error: remote::Error) -> Verdict {
    let (mut pause, mut refused) = (None, false);
    if let Kind::Status {
        status,
        retry_after,
        ..
    } = &error.kind
    {
        pause = *retry_after;
        refused = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE].contains(status);
    }
    Verdict::Failed {
        problem: error.kind.to_string(),
        pause,
        refused,
    }
}

/// Tells the log what a server does not want to have, in one line.
fn complain(server: &ServerName, answer: &[u8]) {
    let answer: Answer = serde_json::from_slice(answer).unwrap_or_default();
    let refused = answer.pdus.iter();
    let mut refused = refused.filter_map(|(id, processed)| Some((id, processed.error.as_ref()?)));
    if let Some((event, error)) = refused.next() {
        let error: String = error
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        let others = refused.count();
        tracing::warn!(%server, %event, error, others, "a server does not accept events of this one");
    }
}

fn tell(server: &ServerName, reason: &str, news: News) {
    match news {
        News::Nothing => {}
        News::Down => {
            tracing::info!(%server, reason, "a server cannot be reached; what it is to be told waits")
        }
        News::Back { events, took, down } => {
            tracing::info!(%server, events, ?took, ?down, "a server is back and has got all that waited");
        }
        News::GaveUp => {
            tracing::error!(%server, reason, "a server refuses an event whatever comes with it; it is left out");
        }
    }
}
