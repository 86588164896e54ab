//! Simplified sliding sync, MSC4186: lists, rooms and connections.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    room::{Room, ids},
    server::{Answer, Client, TestServer, ok, refused, text},
};

const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// One client's connection, each request going on where the last answer ended.
pub(crate) struct Sliding {
    client: Client,
    pub(crate) body: Value,
    pub(crate) pos: Option<String>,
}

impl Sliding {
    pub(crate) fn new(client: &Client, body: Value) -> Self {
        Self {
            client: client.clone(),
            body,
            pos: None,
        }
    }

    /// One with a list of all rooms.
    pub(crate) fn of_all(client: &Client, limit: u64, required: Value) -> Self {
        let all =
            json!({ "ranges": [[0, 99]], "timeline_limit": limit, "required_state": required });
        Self::new(client, json!({ "lists": { "all": all } }))
    }

    pub(crate) async fn ask(&self) -> Answer {
        self.ask_waiting(0).await
    }

    pub(crate) async fn ask_waiting(&self, timeout: u64) -> Answer {
        let mut path = format!("{PATH}?timeout={timeout}");
        if let Some(pos) = &self.pos {
            path = format!("{path}&pos={pos}");
        }
        self.client.post(&path, self.body.clone()).await
    }

    pub(crate) async fn next(&mut self) -> Value {
        let answer = ok(self.ask().await);
        self.pos = Some(text(&answer, "pos"));
        answer
    }

    /// What the next answer says of a room.
    async fn room(&mut self, room: &Room) -> Value {
        self.next().await["rooms"][&room.0].clone()
    }
}

fn rooms(answer: &Value) -> Vec<String> {
    let rooms = answer["rooms"].as_object();
    rooms
        .into_iter()
        .flatten()
        .map(|(id, _)| id.clone())
        .collect()
}

fn bodies(room: &Value) -> Vec<String> {
    let events = room["timeline"].as_array().into_iter().flatten();
    let bodies = events.filter_map(|event| event["content"]["body"].as_str());
    bodies.map(ToOwned::to_owned).collect()
}

fn state(room: &Value) -> Vec<(String, String)> {
    let events = room["required_state"].as_array().into_iter().flatten();
    let mut keys: Vec<_> = events
        .map(|event| (text(event, "type"), text(event, "state_key")))
        .collect();
    keys.sort();
    keys
}

fn key(kind: &str, key: &str) -> (String, String) {
    (kind.to_owned(), key.to_owned())
}

#[tokio::test]
async fn a_room_is_told_whole_and_then_what_is_new() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "preset": "public_chat", "name": "Hall" })).await;
    room.does(&bob, "join").await;
    for number in 0..5 {
        room.say(&alice, &number.to_string()).await;
    }
    let required = json!([["m.room.name", ""], ["m.room.member", "$ME"]]);
    let mut sliding = Sliding::of_all(&bob, 3, required);
    let first = sliding.next().await;
    assert_eq!(first["lists"], json!({ "all": { "count": 1 } }));
    let told = &first["rooms"][&room.0];
    assert_eq!(
        (&told["initial"], &told["name"]),
        (&json!(true), &json!("Hall"))
    );
    assert_eq!(bodies(told), ["2", "3", "4"]);
    assert_eq!(
        (&told["limited"], &told["num_live"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(
        (&told["joined_count"], &told["invited_count"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(
        (&told["notification_count"], &told["highlight_count"]),
        (&json!(5), &json!(0))
    );
    assert_eq!(
        state(told),
        [key("m.room.member", &bob.user_id), key("m.room.name", "")]
    );
    let bump = told["bump_stamp"].as_u64().expect("a number");
    let path = format!("messages?dir=b&from={}&limit=2", text(told, "prev_batch"));
    let page = ok(room.get(&bob, &path).await);
    let before = json!({ "timeline": page["chunk"] });
    assert_eq!(bodies(&before), ["1", "0"], "the page before");
    let path = format!("messages?dir=b&from={}&limit=1", text(&first, "pos"));
    let page = json!({ "timeline": ok(room.get(&bob, &path).await)["chunk"] });
    assert_eq!(bodies(&page), ["4"], "a position serves for pages too");

    let answer = sliding.next().await;
    assert_eq!(rooms(&answer), [""; 0]);
    assert_eq!(answer["lists"]["all"]["count"], 1);

    room.say(&alice, "news").await;
    let told = sliding.room(&room).await;
    assert_eq!(
        (&told["initial"], &told["name"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(bodies(&told), ["news"]);
    assert_eq!(
        (&told["limited"], &told["num_live"]),
        (&json!(false), &json!(1))
    );
    assert_eq!(told["notification_count"], 6);
    assert!(told["bump_stamp"].as_u64() > Some(bump));
    assert_eq!(told["required_state"], Value::Null);

    room.set(&alice, "m.room.name", json!({ "name": "Cellar" }))
        .await;
    room.set(&alice, "m.room.topic", json!({ "topic": "nobody asked" }))
        .await;
    room.set(&alice, "m.room.avatar", json!({ "url": "mxc://a/b" }))
        .await;
    let told = sliding.room(&room).await;
    assert_eq!(
        (&told["name"], &told["avatar"]),
        (&json!("Cellar"), &json!("mxc://a/b"))
    );
    assert_eq!(state(&told), [key("m.room.name", "")]);
    room.set(&alice, "m.room.name", json!({})).await;
    let told = sliding.room(&room).await;
    assert!(
        told.as_object()
            .is_some_and(|told| told.contains_key("name"))
    );
    assert_eq!(told["name"], Value::Null);
    assert_eq!(
        told["heroes"],
        json!([{ "user_id": alice.user_id, "displayname": "alice" }])
    );
}

#[tokio::test]
async fn lists_show_the_newest_rooms_and_say_how_many_there_are() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(Room::new(&alice, "shared").await);
    }
    let list = |ranges: Value| json!({ "lists": { "l": { "ranges": ranges, "timeline_limit": 1, "required_state": [] } } });
    let mut sliding = Sliding::new(&alice, list(json!([[0, 1]])));
    let answer = sliding.next().await;
    let mut newest = vec![all[3].0.clone(), all[4].0.clone()];
    newest.sort();
    assert_eq!(rooms(&answer), newest);
    assert_eq!(answer["lists"]["l"]["count"], 5);
    // What happens in a room brings it into the window.
    all[0].say(&alice, "look").await;
    let answer = sliding.next().await;
    assert_eq!(rooms(&answer), [&*all[0].0]);
    assert_eq!(answer["rooms"][&all[0].0]["initial"], true);
    assert_eq!(answer["rooms"][&all[0].0]["num_live"], 1);
    // Two rooms have gone out of the window; what happens there is told when they come back.
    all[1].say(&alice, "push").await;
    assert_eq!(rooms(&sliding.next().await), [&*all[1].0]);
    sliding.body = list(json!([[0, 0]]));
    all[0].say(&alice, "unseen").await;
    all[4].say(&alice, "above").await;
    let answer = sliding.next().await;
    assert_eq!(rooms(&answer), [&*all[4].0]);
    assert_eq!(bodies(&answer["rooms"][&all[4].0]), ["above"]);
    assert_eq!(
        answer["rooms"][&all[4].0]["initial"],
        Value::Null,
        "it was told before"
    );
    sliding.body = list(json!([[0, u64::MAX]]));
    let answer = sliding.next().await;
    let mut rest = vec![all[0].0.clone(), all[2].0.clone()];
    rest.sort();
    assert_eq!(rooms(&answer), rest);
    assert_eq!(bodies(&answer["rooms"][&all[0].0]), ["unseen"]);
    assert_eq!(answer["rooms"][&all[2].0]["initial"], true);
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
}

#[tokio::test]
async fn who_leaves_makes_place_in_the_window() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (below, above) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let list = json!({ "ranges": [[0, 0]], "timeline_limit": 1, "required_state": [] });
    let mut sliding = Sliding::new(&alice, json!({ "lists": { "l": list } }));
    assert_eq!(rooms(&sliding.next().await), [&*above.0]);
    above.does(&alice, "leave").await;
    let answer = sliding.next().await;
    let mut both = vec![below.0.clone(), above.0.clone()];
    both.sort();
    assert_eq!(
        rooms(&answer),
        both,
        "the room that is left, and the one that takes its place"
    );
    assert_eq!(answer["rooms"][&below.0]["initial"], true);
    assert_eq!(answer["lists"]["l"]["count"], 1);
}

#[tokio::test]
async fn a_lost_answer_is_told_again() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut sliding = Sliding::of_all(&alice, 5, json!([["*", "*"]]));
    sliding.next().await;
    room.say(&alice, "one").await;
    let lost = ok(sliding.ask().await);
    assert_eq!(bodies(&lost["rooms"][&room.0]), ["one"]);
    room.say(&alice, "two").await;
    let again = sliding.next().await;
    assert_eq!(bodies(&again["rooms"][&room.0]), ["one", "two"]);
    let old = sliding.pos.clone();
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    // It went on from the second answer, so the first is not there any more.
    let mut other = Sliding::new(&alice, sliding.body.clone());
    other.pos = Some(text(&lost, "pos"));
    refused(other.ask().await, 400, "M_UNKNOWN_POS");
    sliding.next().await;
    sliding.pos = old;
    refused(sliding.ask().await, 400, "M_UNKNOWN_POS");
    // An answer that came late is as good as another.
    let mut sliding = Sliding::of_all(&alice, 5, json!([]));
    sliding.next().await;
    room.say(&alice, "three").await;
    let late = ok(sliding.ask().await);
    room.say(&alice, "four").await;
    ok(sliding.ask().await);
    sliding.pos = Some(text(&late, "pos"));
    assert_eq!(bodies(&sliding.room(&room).await), ["four"]);
}

#[tokio::test]
async fn a_position_is_good_for_one_connection_only() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let tablet = server.log_in("alice").await;
    Room::new(&alice, "shared").await;
    let mut sliding = Sliding::of_all(&alice, 1, json!([]));
    sliding.next().await;
    for (who, conn) in [(&bob, None), (&tablet, None), (&alice, Some("other"))] {
        let mut thief = Sliding::new(who, sliding.body.clone());
        if let Some(conn) = conn {
            thief.body["conn_id"] = json!(conn);
        }
        thief.pos.clone_from(&sliding.pos);
        refused(thief.ask().await, 400, "M_UNKNOWN_POS");
        thief.pos = None;
        thief.next().await;
        thief.pos.clone_from(&sliding.pos);
        refused(thief.ask().await, 400, "M_UNKNOWN_POS");
    }
    for pos in ["nonsense", "5", "s5", "p1_2_3_4", "p1_2_3", "p-1_2_3_4"] {
        let mut bad = Sliding::new(&alice, sliding.body.clone());
        bad.pos = Some(pos.to_owned());
        refused(bad.ask().await, 400, "M_UNKNOWN_POS");
    }
    // Who begins anew ends what was before.
    let mut anew = Sliding::new(&alice, sliding.body.clone());
    anew.next().await;
    refused(sliding.ask().await, 400, "M_UNKNOWN_POS");
    // A restart forgets which rooms were told.
    let server = server.restart();
    refused(anew.ask().await, 400, "M_UNKNOWN_POS");
    drop(server);
}

#[tokio::test]
async fn a_subscription_tells_more_of_a_room() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let secret = Room::create(&bob, json!({ "preset": "private_chat" })).await;
    room.set(&alice, "m.room.topic", json!({ "topic": "t" }))
        .await;
    for number in 0..8 {
        room.say(&alice, &number.to_string()).await;
    }
    let mut sliding = Sliding::of_all(&alice, 1, json!([["m.room.create", ""]]));
    assert_eq!(bodies(&sliding.room(&room).await), ["7"]);
    let subscription = json!({ "timeline_limit": 4, "required_state": [["m.room.topic", ""], ["m.room.create", ""]] });
    sliding.body["room_subscriptions"] = json!({ &room.0: subscription });
    let told = sliding.room(&room).await;
    assert_eq!(told["unstable_expanded_timeline"], true);
    assert_eq!(
        (&told["initial"], &told["limited"]),
        (&Value::Null, &json!(true))
    );
    assert_eq!(
        (bodies(&told), &told["num_live"]),
        (
            vec!["4".into(), "5".into(), "6".into(), "7".into()],
            &json!(0)
        )
    );
    assert_eq!(
        state(&told),
        [key("m.room.topic", "")],
        "only what is new to it"
    );
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    // Less, and the same again, is not told again.
    let subscriptions = sliding.body["room_subscriptions"].take();
    sliding.body["room_subscriptions"] = json!({});
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    sliding.body["room_subscriptions"] = subscriptions;
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    // But what was not told meanwhile is.
    sliding.body["room_subscriptions"] = json!({});
    room.set(&alice, "m.room.topic", json!({ "topic": "u" }))
        .await;
    assert_eq!(state(&sliding.room(&room).await), []);
    sliding.body["room_subscriptions"] =
        json!({ &room.0: { "timeline_limit": 1, "required_state": [["m.room.topic", ""]] } });
    let told = sliding.room(&room).await;
    assert_eq!(told["required_state"][0]["content"]["topic"], "u");
    // Without a list, and for rooms that one cannot see.
    let mut only = Sliding::new(
        &alice,
        json!({ "conn_id": "only", "room_subscriptions": {
        &room.0: { "timeline_limit": 1, "required_state": [] },
        &secret.0: { "timeline_limit": 1, "required_state": [["*", "*"]] },
        "!nowhere:localhost": { "timeline_limit": 1, "required_state": [] },
    } }),
    );
    assert_eq!(rooms(&only.next().await), [&*room.0]);
    secret.say(&bob, "hidden").await;
    room.say(&alice, "open").await;
    assert_eq!(rooms(&only.next().await), [&*room.0]);
}

#[tokio::test]
async fn members_are_told_when_the_timeline_needs_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    room.does(&carol, "join").await;
    room.say(&bob, "1").await;
    let mut sliding = Sliding::of_all(&alice, 1, json!([["m.room.member", "$LAZY"]]));
    let member = |who: &Client| key("m.room.member", &who.user_id);
    assert_eq!(state(&sliding.room(&room).await), [member(&bob)]);
    room.say(&bob, "2").await;
    assert_eq!(state(&sliding.room(&room).await), [], "it has him");
    room.say(&carol, "3").await;
    assert_eq!(state(&sliding.room(&room).await), [member(&carol)]);
    // Whoever comes is told while nothing is left out.
    let dora = server.register("dora").await;
    room.does(&dora, "join").await;
    assert_eq!(state(&sliding.room(&room).await), [member(&dora)]);
    // In a gap only those who are needed, with what has become of them.
    let named = json!({ "membership": "join", "displayname": "Robert" });
    let path = format!("state/m.room.member/{}", bob.user_id);
    ok(room.put(&bob, &path, named).await);
    room.does(&dora, "leave").await;
    for number in 0..3 {
        room.say(&bob, &number.to_string()).await;
    }
    let told = sliding.room(&room).await;
    assert_eq!(
        (&told["limited"], state(&told)),
        (&json!(true), vec![member(&bob)])
    );
    assert_eq!(
        told["required_state"][0]["content"]["displayname"],
        "Robert"
    );
    assert_eq!(told["joined_count"], 3);
}

#[tokio::test]
async fn invites_knocks_and_farewells() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let rule = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = Room::create(&alice, json!({ "name": "Club", "initial_state": rule })).await;
    let mut sliding = Sliding::of_all(&bob, 5, json!([["m.room.member", "$ME"]]));
    sliding.body["lists"]["invites"] = json!({ "ranges": [[0, 9]], "timeline_limit": 0, "required_state": [], "filters": { "is_invite": true } });
    sliding.next().await;
    room.does_to(&alice, "invite", &bob).await;
    let answer = sliding.next().await;
    assert_eq!(
        answer["lists"],
        json!({ "all": { "count": 1 }, "invites": { "count": 1 } })
    );
    let told = &answer["rooms"][&room.0];
    let names: Vec<_> = told["invite_state"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| text(e, "type"))
        .collect();
    assert!(
        names.contains(&"m.room.name".to_owned())
            && names.last().is_some_and(|n| n == "m.room.member")
    );
    assert_eq!(
        (&told["timeline"], &told["required_state"], &told["name"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    room.say(&alice, "before the join").await;
    assert_eq!(rooms(&sliding.next().await), [""; 0]);

    room.does(&bob, "leave").await;
    let answer = sliding.next().await;
    let told = &answer["rooms"][&room.0];
    assert_eq!(told["required_state"][0]["content"]["membership"], "leave");
    assert_eq!(
        (bodies(told), &answer["lists"]["all"]["count"]),
        (vec![], &json!(0))
    );

    ok(bob
        .post(&format!("/_matrix/client/v3/knock/{}", room.0), json!({}))
        .await);
    let told = sliding.room(&room).await;
    let own = told["invite_state"]
        .as_array()
        .expect("events")
        .last()
        .cloned()
        .expect("one");
    assert_eq!(own["content"]["membership"], "knock");
    assert!(own["origin_server_ts"].is_u64(), "{own}");

    room.does_to(&alice, "invite", &bob).await;
    room.does(&bob, "join").await;
    let told = sliding.room(&room).await;
    assert_eq!(
        (&told["initial"], &told["name"]),
        (&json!(true), &json!("Club"))
    );
    room.say(&alice, "last words").await;
    room.does(&bob, "leave").await;
    room.say(&alice, "behind his back").await;
    let told = sliding.room(&room).await;
    assert_eq!(bodies(&told), ["last words"]);
    assert_eq!(told["required_state"][0]["content"]["membership"], "leave");
    assert_eq!(rooms(&sliding.next().await), [""; 0]);
    room.say(&alice, "still").await;
    assert_eq!(rooms(&sliding.next().await), [""; 0]);

    // Who is sent out sees that, even on a new connection; who has left does not.
    let other = Room::new(&alice, "shared").await;
    other.does(&bob, "join").await;
    other.say(&alice, "seen").await;
    other.does_to(&alice, "kick", &bob).await;
    other.say(&alice, "unseen").await;
    let mut anew = Sliding::of_all(&bob, 2, json!([]));
    let answer = anew.next().await;
    assert_eq!(rooms(&answer), [&*other.0]);
    let told = &answer["rooms"][&other.0];
    assert_eq!(bodies(told), ["seen"]);
    assert_eq!(told["required_state"][0]["content"]["membership"], "leave");
    assert_eq!(told["joined_count"], Value::Null);
}

#[tokio::test]
async fn a_wait_ends_when_something_happens() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut sliding = Sliding::of_all(&bob, 5, json!([]));
    sliding.next().await;
    let says = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        room.say(&alice, "wake up").await;
    };
    // The clock stands still, so only the message can end the wait.
    let (answer, ()) = tokio::join!(sliding.ask_waiting(60_000), says);
    let answer = ok(answer);
    assert_eq!(bodies(&answer["rooms"][&room.0]), ["wake up"]);
    sliding.pos = Some(text(&answer, "pos"));
    // A request takes the place of the one that waits.
    let replaces = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ok(sliding.ask().await)
    };
    let moves = async {
        let answer = replaces.await;
        let mut next = Sliding::new(&bob, sliding.body.clone());
        next.pos = Some(text(&answer, "pos"));
        next.next().await;
        room.say(&alice, "for the other").await;
    };
    let (old, ()) = tokio::join!(sliding.ask_waiting(60_000), moves);
    refused(old, 400, "M_UNKNOWN_POS");
}

#[tokio::test]
async fn the_feature_is_told() {
    let server = TestServer::new();
    let versions = ok(server.anonymous().get("/_matrix/client/versions").await);
    assert_eq!(
        versions["unstable_features"]["org.matrix.simplified_msc3575"],
        true
    );
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut sliding = Sliding::of_all(&alice, 100, json!([]));
    sliding.body["txn_id"] = json!("mine");
    let answer = sliding.next().await;
    assert_eq!(answer["txn_id"], "mine");
    let told = &answer["rooms"][&room.0];
    assert_eq!(told["limited"], false, "that is all");
    assert!(!ids(&told["timeline"]).is_empty());
}
