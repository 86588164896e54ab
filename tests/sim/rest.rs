//! How everything comes to rest, and what must hold then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use kontor::{
    service::rooms::Stored,
    store::schema::{INBOX, TIMELINE},
};
use ruma::{EventId, RoomId};
use serde_json::Value;

use crate::{
    deeds::Deed,
    follower::history,
    room::Room,
    server::{ok, text},
    several::sound,
    world::World,
};

/// The rooms of all seeds, and those of them in which no agreement can be asked for.
pub(crate) static ROOMS: AtomicU64 = AtomicU64::new(0);
pub(crate) static DIVIDED: AtomicU64 = AtomicU64::new(0);

/// The state of a room: types and keys with the ids of their events.
type State = BTreeMap<(String, String), String>;

/// A room as one node has it.
pub(crate) struct Held {
    pub(crate) at: usize,
    /// A local user who is in the room.
    pub(crate) by: usize,
    state: State,
    /// The events that can be had, newest first.
    history: Vec<Value>,
}

impl World {
    /// Restores all links, and waits until nobody has anything to do.
    pub(crate) async fn rest(&mut self) {
        self.heal();
        self.settle().await;
        self.ask_again().await;
        // Whoever has missed something is led to it by what follows; and a fork ends with what follows both sides.
        for round in 0..2 {
            for room in self.rooms.clone() {
                for at in 0..self.offices.len() {
                    if let Some(who) = self.member(at, &room).await {
                        let text = format!("end{round}-{at}");
                        let room = room.clone();
                        self.begin(who, Deed::Say { room, text });
                    }
                }
            }
            self.settle().await;
        }
        self.fall_silent().await;
        for who in 0..self.people.len() {
            // Where a timeline had to tell of what another branch has undone, the answer after it puts that right.
            for _ in 0..2 {
                self.follow(who).await;
            }
            let mut follower = std::mem::take(&mut self.people[who].follower);
            let looked = async move {
                follower.look_back().await;
                follower
            };
            self.people[who].follower = self.until(looked).await;
        }
        // Whoever looked was there.
        self.fall_silent().await;
    }

    /// Repeats what nobody has answered, as clients do, and joins that were half done.
    async fn ask_again(&mut self) {
        for _ in 0..3 {
            let unanswered = std::mem::take(&mut *self.unanswered.lock().expect("it is whole"));
            for (who, deed) in unanswered {
                if matches!(deed, Deed::Say { .. } | Deed::Whisper { .. }) {
                    self.begin(who, deed);
                }
            }
            for (who, deed) in self.half_joined().await {
                self.begin(who, deed);
            }
            self.settle().await;
        }
    }

    /// Who is in a room as others see it, but not as their own node does: the answer to a join was lost. They try again.
    async fn half_joined(&self) -> Vec<(usize, Deed)> {
        let mut half = Vec::new();
        for room in &self.rooms {
            for (who, person) in self.people.iter().enumerate() {
                let user = &person.client.user_id;
                if self.is_in(person.home, room, user).await {
                    continue;
                }
                for at in (0..self.offices.len()).filter(|at| *at != person.home) {
                    if self.member(at, room).await.is_some() && self.is_in(at, room, user).await {
                        let via = self.offices[at].name.clone();
                        let room = room.clone();
                        half.push((who, Deed::Join { room, via }));
                        break;
                    }
                }
            }
        }
        half
    }

    /// Waits until nobody has anything to do.
    pub(crate) async fn settle(&mut self) {
        let mut pause = Duration::from_millis(200);
        for _ in 0..200 {
            self.step(pause).await;
            self.gather();
            if self.unrest().is_none() {
                return;
            }
            // Some wait for hours until they try again.
            pause = (pause * 5 / 4).min(Duration::from_secs(600));
        }
        panic!("there is no rest: {}", self.unrest().unwrap_or_default());
    }

    /// Who has something to do.
    fn unrest(&self) -> Option<String> {
        for office in &self.offices {
            let name = &office.name;
            if !office.asked.is_empty() {
                return Some(format!("{name} has not answered its users"));
            }
            let services = &office.node().services;
            let waiting = services.federation.destinations().expect("it is readable");
            if let Some(waiting) = waiting.iter().find(|to| to.waiting > 0) {
                return Some(format!("{name} has something for {}", waiting.server));
            }
            if INBOX.scan(&services.store().view(), &()).next().is_some() {
                return Some(format!("{name} has not placed all events"));
            }
        }
        None
    }

    /// What an office knows of a room's state.
    async fn state(&self, at: usize, room: &Room) -> Option<State> {
        let services = &self.offices[at].node().services;
        let id = RoomId::parse(&*room.0).expect("it is an id");
        let mut guard = services.rooms.lock(&id).await.ok()?;
        let view = services.store().latest();
        let mut state = State::new();
        for nid in guard.head().state.values() {
            let stored = services.rooms.event(&view, *nid).expect("it is there");
            let header = &stored.event.header;
            let key = header.state_key.clone().expect("it is a state event");
            state.insert((header.event_type.to_string(), key), header.id.to_string());
        }
        Some(state)
    }

    /// Whether a user is in a room, as an office sees it.
    pub(crate) async fn is_in(&self, at: usize, room: &Room, user: &str) -> bool {
        let Some(state) = self.state(at, room).await else {
            return false;
        };
        let key = ("m.room.member".to_owned(), user.to_owned());
        state.get(&key).is_some_and(|id| {
            let stored = self.stored(at, id).expect("it is there");
            stored.event.header.membership == Some("join".into())
        })
    }

    /// A user of an office who is in a room, as the office sees it.
    async fn member(&self, at: usize, room: &Room) -> Option<usize> {
        for (who, person) in self.people.iter().enumerate() {
            if person.home == at && self.is_in(at, room, &person.client.user_id).await {
                return Some(who);
            }
        }
        None
    }

    pub(crate) fn stored(&self, at: usize, id: &str) -> Option<Arc<Stored>> {
        let services = &self.offices[at].node().services;
        let id = <&EventId>::try_from(id).expect("it is an id");
        let found = services.rooms.find_event(&services.store().latest(), id);
        found.expect("it is readable")
    }

    /// Fails unless all agree, and nothing is lost or there twice.
    pub(crate) async fn judge(&mut self) {
        for office in &self.offices {
            sound(&[office.node()]);
        }
        self.all_whispers_heard();
        self.nobody_is_there().await;
        let mut whole = Vec::new();
        for room in self.rooms.clone() {
            let mut held = Vec::new();
            for at in 0..self.offices.len() {
                if let Some(by) = self.member(at, &room).await {
                    let client = self.people[by].client.clone();
                    let history = self.until(history(&client, &room, "")).await;
                    let state = self.state(at, &room).await.expect("it is there");
                    held.push(Held {
                        at,
                        by,
                        state,
                        history,
                    });
                }
            }
            ROOMS.fetch_add(1, Ordering::Relaxed);
            Self::nothing_twice(&room, &held);
            let at: Vec<_> = held.iter().map(|held| held.at).collect();
            self.all_is_explained(&room, &at).await;
            let is_divided = self.is_divided(&held);
            if is_divided {
                DIVIDED.fetch_add(1, Ordering::Relaxed);
                self.tell(&format!("{} is divided", room.0));
            } else {
                self.same_state(&room, &held);
                self.same_history(&room, &held);
                self.nothing_lost(&room, &held);
                self.same_receipts(&room, &held).await;
            }
            for held in &held {
                self.told_all(&room, held).await;
                self.nobody_types(&room, held);
            }
            if !is_divided {
                whole.push((room, held));
            }
        }
        self.same_devices(&whole).await;
    }

    /// Whether one node shows what another has soft-failed. It then builds on what that one leaves aside, and their states
    /// may differ for as long as neither sends something that the other accepts; each may even take the other's users for
    /// people who have left, and tell them nothing. Soft failure is each server's own judgement of its own present (see
    /// "Soft failure"), so more is not to be had when rights are taken away. Where they are not, it must not happen.
    fn is_divided(&self, held: &[Held]) -> bool {
        let is_aside = |at: usize, event: &Value| {
            let stored = self.stored(at, &text(event, "event_id"));
            stored.is_some_and(|stored| stored.event.header.flags.soft_failed)
        };
        !self.is_peaceful
            && held.iter().any(|one| {
                let mut others = held.iter().filter(|other| other.at != one.at);
                others.any(|other| one.history.iter().any(|event| is_aside(other.at, event)))
            })
    }

    /// Whoever was to be told something alone was told so once.
    fn all_whispers_heard(&self) {
        for person in &self.people {
            let user = &person.client.user_id;
            let heard = &person.follower.whispers;
            let different: BTreeSet<_> = heard.iter().collect();
            assert_eq!(
                different.len(),
                heard.len(),
                "{user} was told twice: {heard:?}"
            );
            for done in self
                .done
                .iter()
                .filter(|done| done.status == StatusCode::OK)
            {
                if let Deed::Whisper { whom, text } = &done.deed
                    && whom == user
                {
                    assert!(different.contains(text), "{user} was not told {text}");
                }
            }
        }
    }

    fn nothing_twice(room: &Room, held: &[Held]) {
        for held in held {
            let (mut ids, mut said) = (BTreeSet::new(), BTreeSet::new());
            for event in &held.history {
                let id = text(event, "event_id");
                assert!(ids.insert(id.clone()), "{id} is in {} twice", room.0);
                if let Some(body) = event["content"]["body"].as_str() {
                    assert!(said.insert(body), "{body} is in {} twice", room.0);
                }
            }
        }
    }

    /// Every node that is in the room knows it by the same events.
    fn same_state(&self, room: &Room, held: &[Held]) {
        let Some((first, others)) = held.split_first() else {
            return;
        };
        for other in others {
            let keys: BTreeSet<_> = first.state.keys().chain(other.state.keys()).collect();
            let differ: Vec<_> = keys
                .into_iter()
                .filter(|key| first.state.get(*key) != other.state.get(*key))
                .map(|key| (key, first.state.get(key), other.state.get(key)))
                .collect();
            assert!(
                differ.is_empty(),
                "{} and {} disagree about {}: {differ:?}",
                self.offices[first.at].name,
                self.offices[other.at].name,
                room.0
            );
        }
        // Whoever is in the room as all others see it must know that.
        for ((kind, user), id) in &first.state {
            let stored = self.stored(first.at, id).expect("it is there");
            if kind == "m.room.member" && stored.event.header.membership == Some("join".into()) {
                let person = self.people.iter().find(|p| p.client.user_id == *user);
                let home = person.expect("all users are known").home;
                assert!(
                    held.iter().any(|held| held.at == home),
                    "{user} is in {}, but the own node does not know",
                    room.0
                );
            }
        }
    }

    /// What one node shows every other shows.
    fn same_history(&self, room: &Room, held: &[Held]) {
        let ids = |held: &Held| -> BTreeSet<String> {
            let ids = held.history.iter().map(|event| text(event, "event_id"));
            ids.collect()
        };
        let shown: Vec<_> = held.iter().map(|held| (held, ids(held))).collect();
        for (one, of_one) in &shown {
            for (other, of_other) in &shown {
                if let Some(id) = of_one.difference(of_other).next() {
                    let stored = self.stored(other.at, id);
                    panic!(
                        "{} shows {id} of {}, {} does not: {:?}",
                        self.offices[one.at].name,
                        room.0,
                        self.offices[other.at].name,
                        stored.map(|stored| stored.facts.clone()),
                    );
                }
            }
        }
        // A redaction that is shown by both has the same effect on both.
        for (one, of_one) in &shown {
            for (other, of_other) in &shown {
                for event in &one.history {
                    let id = text(event, "event_id");
                    let Some(by) = event["unsigned"]["redacted_because"]["event_id"].as_str()
                    else {
                        continue;
                    };
                    if of_one.contains(by) && of_other.contains(by) && of_other.contains(&id) {
                        let there = other.history.iter().find(|event| event["event_id"] == id);
                        let there = there.expect("it is shown");
                        assert!(
                            there["unsigned"]["redacted_because"].is_object(),
                            "{id} is redacted on {} but not on {}",
                            self.offices[one.at].name,
                            self.offices[other.at].name
                        );
                    }
                }
            }
        }
    }

    /// Whatever was acknowledged is everywhere.
    fn nothing_lost(&self, room: &Room, all: &[Held]) {
        for done in &self.done {
            let Some(id) = done
                .event()
                .filter(|_| done.deed.room().is_some_and(|of| of.0 == room.0))
            else {
                continue;
            };
            for held in all {
                let is_shown = held.history.iter().any(|event| event["event_id"] == id);
                let stored = self.stored(held.at, &id);
                let soft_failed = stored.is_some_and(|s| s.event.header.flags.soft_failed);
                assert!(
                    is_shown || (soft_failed && !self.is_peaceful),
                    "{} has not got {id} of {}: {:?}",
                    self.offices[held.at].name,
                    room.0,
                    done.deed
                );
            }
        }
    }

    /// Every client was told all that has come since its user came, and knows the state.
    async fn told_all(&self, room: &Room, held: &Held) {
        let services = &self.offices[held.at].node().services;
        let view = services.store().latest();
        let id = RoomId::parse(&*room.0).expect("it is an id");
        let nid = services.store().find_room(&id).expect("it is readable");
        let nid = nid.expect("it is there");
        for person in self.people.iter().filter(|person| person.home == held.at) {
            let user = &person.client.user_id;
            if !self.is_in(held.at, room, user).await {
                continue;
            }
            let joined = &held.state[&("m.room.member".to_owned(), user.clone())];
            let joined = self.stored(held.at, joined).expect("it is there");
            let known = person.follower.rooms.get(&room.0);
            let known = known.unwrap_or_else(|| panic!("{user} does not know of {}", room.0));
            assert!(known.is_in, "{user} does not know to be in {}", room.0);
            let from = joined.facts.order.unwrap_or(i64::MAX);
            for row in TIMELINE.scan(&view, &(nid,)) {
                let ((_, order), (event,)) = row.expect("it is readable");
                // What is put into a gap later is found by whoever looks back.
                if order < from || order < event.live_order() {
                    continue;
                }
                let stored = services.rooms.event(&view, event).expect("it is there");
                let id = stored.event.header.id.as_str();
                assert!(
                    known.seen.contains(id),
                    "{user} was not told of {id} in {}",
                    room.0
                );
            }
            let differ: Vec<_> = held
                .state
                .iter()
                .filter(|(key, id)| known.state.get(*key) != Some(id))
                .map(|(key, id)| (key, id, known.state.get(key)))
                .collect();
            assert!(
                differ.is_empty(),
                "{user} knows another state of {}: {differ:?}",
                room.0
            );
        }
        let members = self.people[held.by].client.clone();
        let answer = ok(room.get(&members, "joined_members").await);
        let told = answer["joined"].as_object().map_or(0, serde_json::Map::len);
        let counted = held.state.iter().filter(|((kind, _), id)| {
            let stored = self.stored(held.at, id).expect("it is there");
            kind == "m.room.member" && stored.event.header.membership == Some("join".into())
        });
        assert_eq!(told, counted.count(), "members of {}", room.0);
    }
}
