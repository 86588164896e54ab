//! However a client cuts its time into syncs, it ends up knowing the same.
//!
//! Random things happen in a few rooms while several clients of one user sync: one after each event, one now and then,
//! one with lazy loading, one with the state after the timeline, one not before the end. All of them must know the
//! state that the rooms really have, and must have been shown every event or been told of the gap.

mod foreign;
mod sliding;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::{CanonicalJsonObject, OwnedRoomId, events::StateEventType};
use serde_json::{Value, json};

use super::SyncRequest;
use crate::{
    clock::Entropy,
    protocol::{filter::Filter, token::SyncToken},
    service::{Requester, rooms::testing::Node},
};

/// What a client remembers of a room.
#[derive(Default, Debug)]
struct Known {
    state: BTreeMap<(String, String), String>,
    /// Events in the order in which they were told; a gap is an empty id.
    timeline: Vec<String>,
}

struct Client {
    filter: Arc<Filter>,
    state_after: Option<&'static str>,
    since: Option<SyncToken>,
    joined: BTreeMap<String, Known>,
    invited: BTreeSet<String>,
    /// The timelines of all stays in each room, as a client has them that throws none away.
    kept: BTreeMap<String, Vec<String>>,
}

impl Client {
    fn new(filter: Value, state_after: bool) -> Self {
        Self {
            filter: Arc::new(Filter::from_json(&filter.to_string()).unwrap()),
            state_after: state_after.then_some("state_after"),
            since: None,
            joined: BTreeMap::new(),
            invited: BTreeSet::new(),
            kept: BTreeMap::new(),
        }
    }

    async fn sync(&mut self, node: &Node, user: &Requester) {
        let request = SyncRequest {
            since: self.since,
            filter: self.filter.clone(),
            full_state: false,
            timeout: Duration::ZERO,
            state_after: self.state_after,
        };
        let answer = node.services.sync.sync(user, request).await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        self.since = Some(answer["next_batch"].as_str().unwrap().parse().unwrap());
        for (room, part) in members(&answer["rooms"]["leave"]) {
            self.invited.remove(room);
            let mut known = self.joined.remove(room).unwrap_or_default();
            self.take(&mut known, room, part);
        }
        for (room, _) in members(&answer["rooms"]["invite"]) {
            self.invited.insert(room.clone());
        }
        for (room, part) in members(&answer["rooms"]["join"]) {
            self.invited.remove(room);
            let mut known = self.joined.remove(room).unwrap_or_default();
            self.take(&mut known, room, part);
            self.joined.insert(room.clone(), known);
        }
    }

    fn take(&mut self, known: &mut Known, room: &str, part: &Value) {
        let section = self.state_after.unwrap_or("state");
        let state = part[section]["events"].as_array().into_iter().flatten();
        for event in state {
            set(known, event);
        }
        let kept = self.kept.entry(room.to_owned()).or_default();
        if part["timeline"]["limited"] == true {
            known.timeline.push(String::new());
            kept.push(String::new());
        }
        for event in part["timeline"]["events"].as_array().into_iter().flatten() {
            let id = event["event_id"].as_str().unwrap();
            known.timeline.push(id.to_owned());
            kept.push(id.to_owned());
            if self.state_after.is_none() && event.get("state_key").is_some() {
                set(known, event);
            }
        }
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn set(known: &mut Known, event: &Value) {
    let text = |name: &str| event[name].as_str().unwrap().to_owned();
    known
        .state
        .insert((text("type"), text("state_key")), text("event_id"));
}

/// The present state of a room, as the node has it.
async fn real_state(node: &Node, room: &OwnedRoomId) -> BTreeMap<(String, String), String> {
    let mut guard = node.services.rooms.lock(room).await.unwrap();
    let head = guard.head();
    let view = node.services.store().latest();
    let mut state = BTreeMap::new();
    for (key, nid) in &head.state {
        let name = node.services.store().state_key(*key).unwrap();
        let event = node.services.rooms.event(&view, *nid).unwrap();
        state.insert((*name).clone(), event.event.header.id.to_string());
    }
    state
}

/// Draws from `0..below`.
fn draw(entropy: &Entropy, below: usize) -> usize {
    usize::try_from(entropy.number() % u64::try_from(below).unwrap()).unwrap()
}

async fn something_happens(
    node: &Node,
    entropy: &Entropy,
    users: &[Requester],
    rooms: &[OwnedRoomId],
    step: usize,
) {
    let lifecycle = &node.services.lifecycle;
    let who = &users[draw(entropy, users.len())];
    let whom = &users[draw(entropy, users.len())];
    let room = &rooms[draw(entropy, rooms.len())];
    let content = |value: Value| -> CanonicalJsonObject { serde_json::from_value(value).unwrap() };
    // Much of this is refused, which is as good a thing to happen as any.
    match draw(entropy, 14) {
        0..=5 => {
            let body = content(json!({ "msgtype": "m.text", "body": format!("{step}") }));
            let kind = "m.room.message".into();
            let _ = lifecycle
                .send_message(who, room, kind, body, &step.to_string())
                .await;
        }
        6 => {
            let name = content(json!({ "name": format!("{step}") }));
            let _ = lifecycle
                .send_state(who, room, StateEventType::RoomName, "", name)
                .await;
        }
        7 => {
            let key = format!("{}", draw(entropy, 3));
            let kind = StateEventType::from("org.example.thing");
            let value = content(json!({ "value": step.to_string() }));
            let _ = lifecycle.send_state(who, room, kind, &key, value).await;
        }
        8 | 9 => drop(
            lifecycle
                .join(who, room, &[], CanonicalJsonObject::new())
                .await,
        ),
        10 => drop(lifecycle.leave(who, room, CanonicalJsonObject::new()).await),
        11 => drop(
            lifecycle
                .invite(who, room, &whom.user_id, CanonicalJsonObject::new())
                .await,
        ),
        12 => drop(
            lifecycle
                .kick(who, room, &whom.user_id, CanonicalJsonObject::new())
                .await,
        ),
        _ => {
            let ban = lifecycle
                .ban(who, room, &whom.user_id, CanonicalJsonObject::new())
                .await;
            if ban.is_err() {
                let _ = lifecycle
                    .unban(who, room, &whom.user_id, CanonicalJsonObject::new())
                    .await;
            }
        }
    }
}

async fn try_one(seed: u64) {
    let (node, entropy) = (Node::new(), Entropy::seeded(seed));
    let users: Vec<_> = ["me", "ann", "bob", "eve"]
        .map(|name| node.user(name))
        .into();
    let mut rooms = Vec::new();
    for creator in &users[..3] {
        let request = json!({
            "preset": "public_chat",
            "power_level_content_override": { "users_default": 100, "events_default": 0 },
        });
        let request = serde_json::from_value::<Value>(request).unwrap();
        let mut asked = ruma::api::client::room::create_room::v3::Request::new();
        asked.preset = Some("public_chat".into());
        asked.power_level_content_override =
            serde_json::from_value(request["power_level_content_override"].clone()).ok();
        rooms.push(
            node.services
                .lifecycle
                .create_room(creator, asked)
                .await
                .unwrap(),
        );
    }
    let me = &users[0];
    let small = json!({ "room": { "timeline": { "limit": 3 } } });
    let lazy =
        json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 4 } } });
    let unnamed = json!({ "room": { "timeline": { "limit": 5, "not_types": ["m.room.name"] } } });
    let large = json!({ "room": { "timeline": { "limit": 100 } } });
    // With the name of each: how often it syncs, one in so many steps.
    let mut clients = vec![
        (1, Client::new(small.clone(), false)),
        (1, Client::new(small.clone(), true)),
        (7, Client::new(small.clone(), false)),
        (7, Client::new(small, true)),
        (5, Client::new(lazy.clone(), false)),
        (4, Client::new(lazy, true)),
        (3, Client::new(unnamed, false)),
        (2, Client::new(large, false)),
        (1000, Client::new(json!({}), false)),
    ];
    for step in 0..80 {
        something_happens(&node, &entropy, &users, &rooms, step).await;
        for (every, client) in &mut clients {
            if draw(&entropy, *every) == 0 {
                client.sync(&node, me).await;
            }
        }
    }
    for (_, client) in &mut clients {
        client.sync(&node, me).await;
    }
    let every_event = &clients[0].1;
    for (index, (_, client)) in clients.iter().enumerate() {
        let context = format!("seed {seed}, client {index}");
        assert_eq!(client.invited, every_event.invited, "{context}");
        let names = |client: &Client| client.joined.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(client), names(every_event), "{context}");
        for timeline in client.kept.values() {
            check_kept(timeline, &context);
        }
        let is_lazy = client.filter.room.state.lazy_load_members;
        for room in &rooms {
            let Some(known) = client.joined.get(room.as_str()) else {
                continue;
            };
            let mut real = real_state(&node, room).await;
            if is_lazy {
                // It need not know all members, but what it knows must be so.
                let knows = |key: &(String, String)| known.state.contains_key(key);
                real.retain(|key, _| key.0 != "m.room.member" || knows(key));
            }
            assert_eq!(known.state, real, "{context}, {room}");
            check_timeline(known, &every_event.joined[room.as_str()], &context);
        }
    }
}

/// What a client has seen since its last gap is the end of what the one has seen that saw everything.
fn check_timeline(known: &Known, all: &Known, context: &str) {
    let told: Vec<_> = all.timeline.iter().filter(|id| !id.is_empty()).collect();
    let unique: BTreeSet<_> = told.iter().collect();
    assert_eq!(
        unique.len(),
        told.len(),
        "{context}: an event was told twice"
    );
    for piece in known.timeline.split(String::is_empty) {
        let Some(first) = piece.first() else { continue };
        // Names are filtered out for one of the clients, so a piece may leave out some.
        let Some(start) = told.iter().position(|id| *id == first) else {
            continue;
        };
        let mut rest = told[start..].iter();
        for id in piece {
            assert!(rest.any(|told| *told == id), "{context}: {id} out of order");
        }
    }
}

/// Between two gaps a client may put together what it is told, also across its stays in a room.
fn check_kept(timeline: &[String], context: &str) {
    for piece in timeline.split(String::is_empty) {
        let unique: BTreeSet<_> = piece.iter().collect();
        assert_eq!(
            unique.len(),
            piece.len(),
            "{context}: an event was told again without a gap"
        );
    }
}

#[tokio::test]
async fn any_split_into_syncs_tells_the_same() {
    for seed in 0..40 {
        try_one(seed).await;
    }
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_what_happens() {
    let node = Node::new();
    let (me, ann) = (node.user("me"), node.user("ann"));
    let mut asked = ruma::api::client::room::create_room::v3::Request::new();
    asked.preset = Some("public_chat".into());
    let room = node
        .services
        .lifecycle
        .create_room(&me, asked)
        .await
        .unwrap();
    let mut client = Client::new(json!({}), false);
    client.sync(&node, &me).await;
    let request = SyncRequest {
        since: client.since,
        filter: client.filter.clone(),
        full_state: false,
        timeout: Duration::from_secs(1000),
        state_after: None,
    };
    let waiting = node.services.sync.sync(&me, request);
    let joining = async {
        tokio::task::yield_now().await;
        let custom = CanonicalJsonObject::new();
        node.services
            .lifecycle
            .join(&ann, &room, &[], custom)
            .await
            .unwrap();
    };
    // The clock stands still, so only the join can end the wait.
    let (answer, ()) = tokio::join!(waiting, joining);
    let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    let timeline = &answer["rooms"]["join"][room.as_str()]["timeline"];
    assert_eq!(timeline["events"][0]["state_key"], "@ann:localhost");
    assert_eq!(timeline["limited"], false);
}
