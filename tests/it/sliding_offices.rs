//! Simplified sliding sync, MSC4186, in rooms of two offices. However rooms are entered and left, whatever gets lost between
//! the offices or on the way to the app, and whenever the node is started anew: the app ends up knowing what is so, each
//! room is told as new once for each stay, and messages to its device come once and in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kontor::{clock::Entropy, protocol::ids::Position, remote::Lan, store::schema::USER_ROOMS};
use ruma::RoomId;
use serde_json::{Value, json};

use crate::{
    device_lists::upload,
    key_properties::below,
    room::Room,
    server::{Client, TestServer, ok, refused, text},
    several::{attach, named, network, node, sound},
    sliding::Sliding,
};

const OURS: &str = "a.example";
const THEIRS: &str = "b.example";

/// What the app remembers of a room.
#[derive(Clone, Debug, Default)]
struct Known {
    state: BTreeMap<(String, String), String>,
    /// Without gaps, the newest last.
    timeline: Vec<String>,
    invited: bool,
    gone: bool,
    /// Since when the user was what they were when the room was told as new.
    since: Position,
}

/// An app with a connection for its rooms and one for its messages and keys.
struct App {
    me: Client,
    rooms: Sliding,
    known: BTreeMap<String, Known>,
    /// Answers about rooms that have not come yet.
    late: Vec<Value>,
    /// How often the node had been started when the connection began.
    began_in: usize,
    crypto: Sliding,
    /// What an answer told that got lost.
    lost: Vec<Value>,
    messages: Vec<Value>,
    changed: BTreeSet<String>,
}

impl App {
    fn new(me: &Client, name: &str) -> Self {
        let mut rooms = Sliding::of_all(me, 3, json!([["*", "*"]]));
        rooms.body["conn_id"] = json!(name);
        let extensions = json!({
            "to_device": { "enabled": true, "limit": 2 }, "e2ee": { "enabled": true },
        });
        let crypto = json!({ "conn_id": "encryption", "extensions": extensions });
        Self {
            me: me.clone(),
            rooms,
            known: BTreeMap::new(),
            late: Vec::new(),
            began_in: 0,
            crypto: Sliding::new(me, crypto),
            lost: Vec::new(),
            messages: Vec::new(),
            changed: BTreeSet::new(),
        }
    }

    /// What is answered about rooms; the app begins anew if the node does not know the connection any more.
    async fn ask(&mut self, server: &TestServer, lives: usize) -> Value {
        let mut answer = self.ask_for_rooms(lives).await;
        // Which stay it is about, as the next may have begun when the answer comes.
        let me = server.requester(&self.me).nid;
        let store = server.services.store();
        for (room, told) in answer["rooms"].as_object_mut().into_iter().flatten() {
            let id = RoomId::parse(room).expect("an id");
            let nid = store
                .find_room(&id)
                .expect("it works")
                .expect("it is known");
            let row = USER_ROOMS.get(&store.view(), &(me, nid)).expect("it works");
            told["since"] = row.expect("one has been there").since.0.into();
        }
        answer
    }

    async fn ask_for_rooms(&mut self, lives: usize) -> Value {
        let answer = self.rooms.ask().await;
        if answer.0.is_success() {
            return answer.1;
        }
        refused(answer, 400, "M_UNKNOWN_POS");
        assert!(lives > self.began_in, "the connection was forgotten");
        self.rooms.pos = None;
        self.known.clear();
        self.late.clear();
        self.began_in = lives;
        ok(self.rooms.ask().await)
    }

    fn take(&mut self, answer: &Value) {
        self.late.clear();
        self.rooms.pos = Some(text(answer, "pos"));
        for (room, told) in answer["rooms"].as_object().into_iter().flatten() {
            let since = Position(told["since"].as_u64().expect("a number"));
            let known = self.known.entry(room.clone()).or_default();
            if told["initial"] == true {
                let is_first = known.since == Position::default();
                assert!(
                    is_first || known.gone || known.since != since,
                    "{room} is told as new again"
                );
                *known = Known {
                    since,
                    ..Known::default()
                };
            }
            known.take(told, &self.me.user_id);
        }
    }

    /// Messages and keys; an answer may get lost, and then the same is told again.
    async fn hear(&mut self, is_lost: bool) {
        let answer = ok(self.crypto.ask().await);
        let told = &answer["extensions"]["to_device"];
        let events = told["events"].as_array().expect("a list");
        assert!(events.len() <= 2);
        assert!(
            events.starts_with(&self.lost),
            "{:?} became {events:?}",
            self.lost
        );
        if is_lost {
            self.lost.clone_from(events);
            return;
        }
        self.lost.clear();
        self.messages.extend(events.iter().cloned());
        let next = text(told, "next_batch");
        self.crypto.body["extensions"]["to_device"]["since"] = json!(next);
        self.crypto.pos = Some(text(&answer, "pos"));
        let lists = &answer["extensions"]["e2ee"]["device_lists"];
        let changed = lists["changed"].as_array().into_iter().flatten();
        self.changed
            .extend(changed.filter_map(|user| user.as_str().map(ToOwned::to_owned)));
    }

    /// The numbers of the messages that somebody has sent, as they came.
    fn numbers(&self, from: &Client) -> Vec<u64> {
        let of = self.messages.iter();
        of.filter(|event| event["sender"] == json!(from.user_id))
            .map(|event| event["content"]["n"].as_u64().expect("a number"))
            .collect()
    }

    fn joined(&self) -> BTreeSet<&String> {
        let joined = self.known.iter();
        joined
            .filter(|(_, known)| !known.gone && !known.invited)
            .map(|(room, _)| room)
            .collect()
    }

    fn invited(&self) -> BTreeSet<&String> {
        let invited = self.known.iter().filter(|(_, known)| known.invited);
        invited.map(|(room, _)| room).collect()
    }
}

impl Known {
    fn take(&mut self, told: &Value, me: &str) {
        self.invited = told["invite_state"].is_array();
        for event in told["required_state"].as_array().into_iter().flatten() {
            let key = (text(event, "type"), text(event, "state_key"));
            if key == ("m.room.member".to_owned(), me.to_owned()) {
                let membership = event["content"]["membership"].as_str();
                self.gone = matches!(membership, Some("leave" | "ban"));
            }
            self.state.insert(key, text(event, "event_id"));
        }
        if told["limited"] == true {
            self.timeline.clear();
        }
        let events = told["timeline"].as_array().into_iter().flatten();
        self.timeline
            .extend(events.map(|event| text(event, "event_id")));
    }
}

/// Two offices, and who is there.
struct Scene {
    lan: Lan,
    entropy: Entropy,
    ours: TestServer,
    theirs: TestServer,
    /// How often our node was started anew.
    lives: usize,
    me: Client,
    ann: Client,
    bob: Client,
    /// Where me is always, and bob.
    anchor: Room,
    rooms: Vec<Room>,
    /// How many messages ann and bob have sent to the device of me.
    sent: [u64; 2],
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let lan = network();
        let (ours, theirs) = (node(&lan, OURS), node(&lan, THEIRS));
        let (me, ann) = (ours.register("me").await, ours.register("ann").await);
        let bob = theirs.register("bob").await;
        let levels = json!({ "state_default": 0, "invite": 0, "kick": 0 });
        let mut rooms = Vec::new();
        for (creator, rule) in [
            (&ann, "public"),
            (&bob, "public"),
            (&bob, "public"),
            (&bob, "knock"),
        ] {
            let body = json!({
                "preset": "public_chat",
                "power_level_content_override": levels,
                "initial_state": [{ "type": "m.room.join_rules", "content": { "join_rule": rule } }],
            });
            rooms.push(Room::create(creator, body).await);
        }
        let anchor = Room::new(&bob, "shared").await;
        let path = format!("/_matrix/client/v3/join/{}?via={THEIRS}", anchor.0);
        ok(me.post(&path, json!({})).await);
        Self {
            lan,
            entropy: Entropy::seeded(seed),
            ours,
            theirs,
            lives: 0,
            me,
            ann,
            bob,
            anchor,
            rooms,
            sent: [0, 0],
        }
    }

    fn draw(&self, most: usize) -> usize {
        below(&self.entropy, most)
    }

    /// What may fail, as the other office may not be reached or the room not allow it.
    async fn tries(&self, who: &Client, path: &str, body: Value) {
        let (status, answer) = who.post(path, body).await;
        assert!(!matches!(status.as_u16(), 401 | 500), "{path}: {answer}");
    }

    async fn something_happens(mut self, step: usize) -> Self {
        let room = &self.rooms[self.draw(self.rooms.len())];
        let id = &room.0;
        let via = format!("via={OURS}&via={THEIRS}");
        let of_me = json!({ "user_id": self.me.user_id });
        match self.draw(16) {
            0 | 1 => {
                let path = format!("/_matrix/client/v3/join/{id}?{via}");
                self.tries(&self.me, &path, json!({})).await;
            }
            2 => self.tries(&self.me, &room.path("leave"), json!({})).await,
            3 => {
                let path = format!("/_matrix/client/v3/knock/{id}?{via}");
                self.tries(&self.me, &path, json!({})).await;
            }
            4 => self.tries(&self.bob, &room.path("invite"), of_me).await,
            5 => self.tries(&self.bob, &room.path("kick"), of_me).await,
            6 => {
                let path = format!("/_matrix/client/v3/join/{id}?{via}");
                let who = if self.draw(2) == 0 {
                    &self.ann
                } else {
                    &self.bob
                };
                self.tries(who, &path, json!({})).await;
            }
            7..=9 => {
                let who = [&self.me, &self.ann, &self.bob][self.draw(3)];
                let path = room.path(&format!("send/m.room.message/{step}"));
                who.put(
                    &path,
                    json!({ "msgtype": "m.text", "body": step.to_string() }),
                )
                .await;
            }
            10 => {
                let who = [&self.ann, &self.bob][self.draw(2)];
                let path = room.path("state/m.room.topic");
                who.put(&path, json!({ "topic": step.to_string() })).await;
            }
            11 | 12 => {
                let who = self.draw(2);
                let sender = [&self.ann, &self.bob][who];
                let content = json!({ "n": self.sent[who] });
                let to = json!({ &self.me.user_id: { &self.me.device_id: content } });
                let path = format!("/_matrix/client/v3/sendToDevice/m.test/{step}");
                ok(sender.put(&path, json!({ "messages": to })).await);
                self.sent[who] += 1;
            }
            13 => {
                let is_up = self.draw(2) == 0;
                self.lan.set_link(&named(OURS), &named(THEIRS), is_up);
            }
            14 => {
                self.theirs.clock.advance(Duration::from_secs(60));
                self.ours.clock.advance(Duration::from_secs(60));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            _ if self.draw(3) == 0 => {
                self.lan.detach(&named(OURS));
                self.ours.stop().await;
                sound(&[&self.ours]);
                self.ours = self.ours.restart();
                attach(&self.lan, &named(OURS), &self.ours);
                self.lives += 1;
            }
            _ => {}
        }
        self
    }

    /// Lets everything arrive.
    async fn rest(&self) {
        self.lan.set_link(&named(OURS), &named(THEIRS), true);
        let all: Vec<&Room> = self.rooms.iter().chain([&self.anchor]).collect();
        // What is said last comes after all that was said before.
        let mut last = Vec::new();
        for who in [&self.me, &self.bob] {
            for room in &all {
                let path = room.path(&format!("send/m.room.message/last-{}", who.user_id));
                let body = json!({ "msgtype": "m.text", "body": "last" });
                let (status, answer) = who.put(&path, body).await;
                if status.is_success() {
                    last.push((who, *room, text(&answer, "event_id")));
                }
            }
        }
        for _ in 0..1_000 {
            self.theirs.clock.advance(Duration::from_secs(60));
            self.ours.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut is_there = true;
            for (who, room, event) in &last {
                let other = if who.user_id == self.me.user_id {
                    &self.bob
                } else {
                    &self.me
                };
                // Who was sent out meanwhile spoke to nobody.
                if is_in(room, who, who).await && is_in(room, who, other).await {
                    let found = room.get(other, &format!("event/{event}")).await;
                    is_there &= found.0.is_success();
                }
            }
            if is_there {
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

/// Whether somebody is in the room, as another sees it.
async fn is_in(room: &Room, viewer: &Client, who: &Client) -> bool {
    let path = format!("state/m.room.member/{}", who.user_id);
    room.get(viewer, &path).await.1["membership"] == "join"
}

/// The whole timeline of a room as its members can read it, the newest last.
async fn timeline(who: &Client, room: &str) -> Vec<String> {
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=500");
    let page = ok(who.get(&path).await);
    let events = page["chunk"].as_array().expect("a list").iter().rev();
    events.map(|event| text(event, "event_id")).collect()
}

async fn try_one(seed: u64) {
    let mut scene = Scene::new(seed).await;
    let mut apps = ["one", "two"].map(|name| App::new(&scene.me, name));
    apps[0].hear(false).await;
    apps[0].changed.clear();
    let mut uploads = 0;
    for step in 0..120 {
        scene = scene.something_happens(step).await;
        if scene.draw(20) == 0 {
            uploads += 1;
            upload(&scene.bob, uploads).await;
            upload(&scene.bob, 0).await;
        }
        for app in &mut apps {
            match scene.draw(6) {
                0 | 1 => {
                    let mut answer = app.ask(&scene.ours, scene.lives).await;
                    if app.rooms.pos.is_some() {
                        // Whatever was lost on the way, one of the answers to this position arrives now.
                        app.late.push(answer);
                        let start = app.late.len().saturating_sub(4);
                        let index = start + scene.draw(app.late.len() - start);
                        answer = app.late.swap_remove(index);
                    }
                    app.take(&answer);
                }
                2 if app.rooms.pos.is_some() => {
                    let answer = app.ask(&scene.ours, scene.lives).await;
                    // It may have begun anew.
                    if app.rooms.pos.is_some() {
                        app.late.push(answer);
                    }
                }
                _ => {}
            }
        }
        if scene.draw(4) == 0 {
            let is_lost = scene.draw(2) == 0;
            apps[0].hear(is_lost).await;
        }
    }
    scene.rest().await;
    for _ in 0..1_000 {
        apps[0].hear(false).await;
        let all = scene.sent.iter().sum::<u64>();
        let has_all = u64::try_from(apps[0].messages.len()).is_ok_and(|count| count >= all);
        let knows = uploads == 0 || apps[0].changed.contains(&scene.bob.user_id);
        if has_all && knows {
            break;
        }
        scene.theirs.clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let context = format!("seed {seed}");
    for (sender, sent) in [&scene.ann, &scene.bob].into_iter().zip(scene.sent) {
        let expected: Vec<_> = (0..sent).collect();
        assert_eq!(apps[0].numbers(sender), expected, "{context}");
    }
    // What was got is not told again, also to whoever begins anew.
    let mut again = App::new(&scene.me, "again");
    again.crypto.body["extensions"]["to_device"]["since"] =
        apps[0].crypto.body["extensions"]["to_device"]["since"].clone();
    again.hear(false).await;
    again.crypto.body["extensions"]["to_device"]
        .as_object_mut()
        .expect("an object")
        .remove("since");
    again.hear(false).await;
    assert_eq!(again.messages, Vec::<Value>::new(), "{context}");
    if uploads > 0 {
        assert!(apps[0].changed.contains(&scene.bob.user_id), "{context}");
    }
    let mut fresh = App::new(&scene.me, "fresh");
    let answer = fresh.ask(&scene.ours, scene.lives).await;
    fresh.take(&answer);
    assert!(fresh.joined().contains(&scene.anchor.0), "{context}");
    for app in &mut apps {
        let answer = app.ask(&scene.ours, scene.lives).await;
        app.take(&answer);
        assert_eq!(app.joined(), fresh.joined(), "{context}");
        assert_eq!(app.invited(), fresh.invited(), "{context}");
        for room in app.joined() {
            let (known, new) = (&app.known[room], &fresh.known[room]);
            assert_eq!(known.state, new.state, "{context}, {room}");
            let real = timeline(&scene.me, room).await;
            assert!(
                known.timeline.len() >= real.len().min(3),
                "{context}, {room}"
            );
            assert!(
                real.ends_with(&known.timeline),
                "{context}, {room}: {:?} of {real:?}",
                known.timeline
            );
        }
    }
    sound(&[&scene.ours, &scene.theirs]);
}

#[tokio::test]
async fn rooms_of_two_offices_are_told_whole_whatever_fails() {
    for seed in 0..8 {
        try_one(seed).await;
    }
}
