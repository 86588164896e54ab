//! Tells other servers what happens here: follows what has become durable, and wakes those whom it concerns.
//!
//! No row is written for an event and a destination. What a server has not got follows from its cursor, the rooms that it
//! is in, and `LOCAL_EVENTS`; so a link may be down for as long as it likes, and the node be stopped meanwhile.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{ServerName, events::room::member::MembershipState};
use tokio::sync::Notify;

use super::{
    Federation, Parts,
    courier::{STORE_PAUSE, serve},
    destination::{Destination, Item, What},
    introductions::introduce,
};
use crate::{
    error::Result,
    protocol::ids::{EventNid, Position, RoomNid, ServerNid, UserNid},
    store::{
        View,
        outgoing::Note,
        schema::{DESTINATIONS, EXTRA_TARGETS, LASTING_EDUS, ROOM_SERVERS, USER_ROOMS},
    },
};

/// How often it is written down how far the destinations are. What was told since is told again after a crash, and
/// recognised by whoever is told.
const SAVE: Duration = Duration::from_secs(1);

/// How often rows are looked for that nobody is to be told of any more.
const SWEEP: Duration = Duration::from_hours(1);

/// Telling other servers what happens here.
pub(super) struct Outbox {
    pub(super) parts: Arc<Parts>,
    pub(super) all: Mutex<HashMap<ServerNid, Arc<Destination>>>,
    /// Those whose rows are out of date.
    pub(super) unsaved: Mutex<HashSet<ServerNid>>,
    /// Told when there is one more of them.
    pub(super) unsaved_wake: Arc<Notify>,
    /// Told when users here and servers have met.
    pub(super) met: Arc<Notify>,
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
        parts.tasks.spawn(introduce(Arc::downgrade(outbox)));
    }

    /// A server has become a peer, or is none any more. A new one is greeted, so that what waits on both sides comes.
    ///
    /// # Errors
    /// When the store fails.
    pub fn peer_changed(&self, server: &ServerName) -> Result<()> {
        let outbox = &self.1;
        let remote = &outbox.parts.remote;
        let nid = outbox.parts.store.server_nid(server)?;
        let Some(destination) = outbox.destination(nid)? else {
            return Ok(());
        };
        destination.regard(remote.is_peer(server), remote.schedule(server));
        if remote.is_peer(server) {
            outbox.hello(destination);
        }
        Ok(())
    }

    /// Whether a server could not be reached when it was tried the last time.
    pub(super) fn is_down(&self, server: &ServerName) -> bool {
        let outbox = &self.1;
        let Ok(Some(nid)) = outbox.parts.store.find_server(server) else {
            return false;
        };
        let known = outbox.all.lock().get(&nid).cloned();
        known.is_some_and(|known| known.with(|state| state.row.down_since > 0))
    }

    /// A server has proven that it is there, so what waits for it is tried at once, and so is what has come from it and
    /// lacks something.
    pub fn heard_from(&self, server: &ServerName) {
        self.0.silent.heard(server);
        let outbox = &self.1;
        let Ok(Some(nid)) = outbox.parts.store.find_server(server) else {
            return;
        };
        let now = outbox.parts.clock.instant();
        self.0.inbox.heard(nid, now);
        if let Some(destination) = outbox.all.lock().get(&nid) {
            destination.heard(now);
        }
    }
}

impl Outbox {
    pub(super) fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            all: Mutex::default(),
            unsaved: Mutex::default(),
            unsaved_wake: Arc::default(),
            met: Arc::default(),
        }
    }

    /// The destination of this number; none if it is not to be told anything.
    pub(super) fn destination(&self, nid: ServerNid) -> Result<Option<Arc<Destination>>> {
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
            let (room, event, what) = match &note {
                Note::Event { room, event } => (*room, *event, What::Event),
                Note::Typing { room, .. } => (*room, EventNid::default(), What::Event),
                Note::Receipt { room } => (*room, EventNid::default(), What::Receipt),
                Note::Extra { server, .. } | Note::Lasting { server } => {
                    let (room, event, what) = match &note {
                        Note::Extra { room, event, .. } => (*room, *event, What::Extra),
                        _ => (RoomNid::default(), EventNid::default(), What::Lasting),
                    };
                    if let Some(destination) = self.destination(*server)?
                        && destination.push(
                            Item {
                                position,
                                room,
                                event,
                                what,
                            },
                            now,
                        )
                    {
                        self.run(destination);
                    }
                    continue;
                }
                Note::Left { server } => {
                    if let Some(destination) = self.destination(*server)?
                        && destination.look_again()
                    {
                        self.run(destination);
                    }
                    continue;
                }
                Note::Introduction => {
                    self.met.notify_one();
                    continue;
                }
                Note::Presence { user, json } => {
                    self.tell_presence(&view, *user, json)?;
                    continue;
                }
            };
            if let Entry::Vacant(vacant) = servers.entry(room) {
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
                            event,
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

    /// Says hello to all peers.
    fn greet(self: &Arc<Self>) -> Result<()> {
        for (peer, _) in self.parts.remote.peers() {
            let nid = self.parts.store.server_nid(&peer)?;
            if let Some(destination) = self.destination(nid)? {
                self.hello(destination);
            }
        }
        Ok(())
    }

    fn hello(self: &Arc<Self>, destination: Arc<Destination>) {
        if destination.hello() {
            self.run(destination);
        } else {
            destination.wake.notify_one();
        }
    }

    pub(super) fn run(self: &Arc<Self>, destination: Arc<Destination>) {
        let task = serve(Arc::downgrade(self), destination);
        self.parts.tasks.spawn(task);
    }

    /// Writes down how far the destinations are, all in one commit.
    pub(super) fn save(&self) -> Result<()> {
        let unsaved = std::mem::take(&mut *self.unsaved.lock());
        let mut rows = Vec::with_capacity(unsaved.len());
        for nid in unsaved {
            if let Some(destination) = self.all.lock().get(&nid) {
                rows.push(destination.with(|state| {
                    let extras = std::mem::take(&mut state.done_extras);
                    let edus = std::mem::take(&mut state.done_edus);
                    (nid, state.row.clone(), extras, edus)
                }));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let _not_awaited = self.parts.store.commit(|batch| {
            for (nid, row, extras, edus) in &rows {
                DESTINATIONS.put(batch, &(*nid,), row);
                for position in extras {
                    EXTRA_TARGETS.delete(batch, &(*nid, *position));
                }
                for position in edus {
                    LASTING_EDUS.delete(batch, &(*nid, *position));
                }
            }
            Ok(())
        })?;
        Ok(())
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
        let Some(mut outbox_now) = outbox.upgrade() else {
            return;
        };
        let (notes, incomplete) = outgoing.take();
        look |= incomplete;
        if incomplete {
            outbox_now.met.notify_one();
        }
        if look {
            let looked = tokio::task::spawn_blocking(move || outbox_now.look_again()).await;
            // Not held meanwhile: the node may stop.
            let Some(again) = outbox.upgrade() else {
                return;
            };
            outbox_now = again;
            match looked {
                Ok(Ok(())) => look = false,
                Ok(Err(error)) => {
                    tracing::error!(%error, "it could not be found out what other servers are to be told");
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
