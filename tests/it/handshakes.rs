//! What other servers send us when their users enter, leave or invite, as a server that plays by no rules would. What
//! such a server answers us is in `hosts`.

use http::Method;
use kontor::{
    protocol::{
        integrity::{canonical, event_id, hash_and_sign, parse_object},
        version,
    },
    store::schema::LOCAL_EVENTS,
};
use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};
use serde_json::{Value, json};

use crate::{
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{Answer, Client, START, TestServer, ok, refused, text},
    several::sound,
};

pub(crate) const FEDERATION: &str = "/_matrix/federation";

fn rules(version: &str) -> &'static RoomVersionRules {
    let version = RoomVersionId::try_from(version).expect("it is a version");
    version::rules(&version).expect("it is served")
}

/// An event with hash and signature, and its id.
pub(crate) fn finished(neighbour: &Neighbour, version: &str, event: &Value) -> (String, String) {
    let mut object = parse_object(&event.to_string()).expect("it is an event");
    let id = hash_and_sign(&mut object, &neighbour.key, &neighbour.name, rules(version));
    (id.expect("it has an id").to_string(), canonical(&object))
}

async fn put(node: &TestServer, neighbour: &Neighbour, path: &str, body: &str) -> Answer {
    let header = neighbour.sign(&Method::PUT, path, body);
    neighbour.send(node, Method::PUT, path, &header, body).await
}

/// A node, a user, and a server that is not in the room that they make.
struct Scene {
    node: TestServer,
    alice: Client,
    room: Room,
    version: &'static str,
    other: Neighbour,
}

impl Scene {
    async fn new(version: &'static str) -> Self {
        let node = TestServer::new();
        let other = Neighbour::new(&node.lan, "other.example", 3);
        let alice = node.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": version });
        let room = Room::create(&alice, body).await;
        Self {
            node,
            alice,
            room,
            version,
            other,
        }
    }

    fn make(&self, what: &str, user: &str, query: &str) -> String {
        let (room, user) = (encoded(&self.room.0), encoded(user));
        format!("{FEDERATION}/v1/make_{what}/{room}/{user}{query}")
    }

    /// The template, with a time.
    async fn template(&self, what: &str, user: &str) -> Value {
        let query = format!("?ver={}", self.version);
        let path = self.make(what, user, &query);
        let mut told = ok(self.other.get(&self.node, &path).await);
        assert_eq!(told["room_version"], self.version);
        told["event"]["origin_server_ts"] = START.into();
        told["event"].take()
    }

    /// Sends an event for what it is not, or is.
    async fn send(&self, what: &str, event: &Value) -> Answer {
        let (id, body) = finished(&self.other, self.version, event);
        self.send_as(what, &id, &body).await
    }

    async fn send_as(&self, what: &str, id: &str, body: &str) -> Answer {
        let (room, id) = (encoded(&self.room.0), encoded(id));
        let path = format!("{FEDERATION}/{what}/{room}/{id}");
        put(&self.node, &self.other, &path, body).await
    }

    /// How many events this node must tell others of.
    fn to_be_told(&self) -> usize {
        let view = self.node.services.store().latest();
        LOCAL_EVENTS.scan(&view, &()).count()
    }
}

const ZOE: &str = "@zoe:other.example";

#[tokio::test]
async fn a_join_is_answered_with_the_room_and_told_to_the_others() {
    for version in ["6", "11", "12"] {
        let scene = Scene::new(version).await;
        let before = scene.to_be_told();
        let event = scene.template("join", ZOE).await;
        let answer = ok(scene.send("v2/send_join", &event).await);
        let types = |list: &str| -> Vec<String> {
            let events = answer[list].as_array().expect("a list").iter();
            events.map(|event| text(event, "type")).collect()
        };
        for needed in ["m.room.create", "m.room.member", "m.room.power_levels"] {
            assert!(types("state").iter().any(|kind| kind == needed), "{needed}");
            // In room version 12 nothing cites the create event.
            let is_cited = version != "12" || needed != "m.room.create";
            let chain = types("auth_chain");
            assert_eq!(
                chain.iter().any(|kind| kind == needed),
                is_cited,
                "{needed}"
            );
        }
        assert_eq!(answer["members_omitted"], false);
        assert_eq!(answer["servers_in_room"], json!(["localhost"]));
        assert_eq!(answer["event"]["sender"], ZOE);
        assert_eq!(scene.to_be_told(), before + 1);
        // The answer may have been lost.
        let path = "v2/send_join";
        let again = ok(scene.send(path, &event).await);
        assert_eq!(
            again["state"].as_array().unwrap().len(),
            types("state").len()
        );
        assert_eq!(scene.to_be_told(), before + 1);
        // As old servers ask, and with less of it.
        let old = ok(scene.send("v1/send_join", &event).await);
        assert_eq!(old[0], 200);
        assert_eq!(old[1]["state"], again["state"]);
        let (id, body) = finished(&scene.other, version, &event);
        let (room, event_id) = (encoded(&scene.room.0), encoded(&id));
        let query = "omit_members=true";
        let less = format!("{FEDERATION}/{path}/{room}/{event_id}?{query}");
        let less = ok(put(&scene.node, &scene.other, &less, &body).await);
        assert_eq!(less["auth_chain"], json!([]), "all of it is state");
        let members = ok(scene.room.get(&scene.alice, "joined_members").await);
        assert!(members["joined"][ZOE].is_object());
        // And out again.
        let event = scene.template("leave", ZOE).await;
        ok(scene.send("v2/send_leave", &event).await);
        assert_eq!(ok(scene.send("v1/send_leave", &event).await)[0], 200);
        sound(&[&scene.node]);
    }
}

#[tokio::test]
async fn templates_are_only_for_those_who_may() {
    let scene = Scene::new("11").await;
    let get = async |path: String| scene.other.get(&scene.node, &path).await;
    let all = "?ver=10&ver=11";
    for what in ["join", "leave", "knock"] {
        // Somebody of another server; a room of which nobody here is; a version that is not asked for.
        let foreign = scene.make(what, "@zoe:third.example", all);
        refused(get(foreign).await, 403, "M_FORBIDDEN");
        let path = scene.make(what, ZOE, all);
        let nowhere = path.replace(&encoded(&scene.room.0), "!nowhere:localhost");
        refused(get(nowhere).await, 404, "M_NOT_FOUND");
        if what != "leave" {
            let answer = get(scene.make(what, ZOE, "?ver=10")).await;
            assert_eq!(answer.1["room_version"], "11");
            refused(answer, 400, "M_INCOMPATIBLE_ROOM_VERSION");
        }
    }
    // Who has not come can not leave; nobody knocks at an open door.
    refused(get(scene.make("leave", ZOE, all)).await, 403, "M_FORBIDDEN");
    refused(get(scene.make("knock", ZOE, all)).await, 403, "M_FORBIDDEN");
    let acl = json!({ "allow": ["*"], "deny": ["other.example"] });
    scene.room.set(&scene.alice, "m.room.server_acl", acl).await;
    refused(get(scene.make("join", ZOE, all)).await, 403, "M_FORBIDDEN");
    scene.room.does(&scene.alice, "leave").await;
    refused(get(scene.make("join", ZOE, all)).await, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_is_not_the_event_that_belongs_there_is_refused() {
    for version in ["11", "12"] {
        let scene = Scene::new(version).await;
        let good = scene.template("join", ZOE).await;
        let before = scene.to_be_told();
        let with = |change: &dyn Fn(&mut Value)| {
            let mut event = good.clone();
            change(&mut event);
            event
        };
        for what in [
            "v1/send_join",
            "v2/send_join",
            "v1/send_leave",
            "v2/send_leave",
            "v1/send_knock",
        ] {
            let bad = [
                with(&|event| event["type"] = "m.room.message".into()),
                with(&|event| drop(event.as_object_mut().unwrap().remove("state_key"))),
                with(&|event| event["state_key"] = "@doris:other.example".into()),
                with(&|event| event["content"]["membership"] = "ban".into()),
                with(&|event| event["content"]["membership"] = "invite".into()),
                with(&|event| drop(event.as_object_mut().unwrap().remove("content"))),
                with(&|event| event["room_id"] = "!elsewhere:localhost".into()),
                with(&|event| {
                    event["sender"] = "@eve:third.example".into();
                    event["state_key"] = "@eve:third.example".into();
                }),
                with(&|event| event["content"]["reason"] = "x".repeat(70_000).into()),
            ];
            for event in &bad {
                let (status, body) = scene.send(what, event).await;
                let status = status.as_u16();
                assert!(matches!(status, 400 | 413), "{what}: {status} {body}");
            }
            // Under another id.
            let (id, body) = finished(&scene.other, version, &good);
            refused(
                scene.send_as(what, "$other", &body).await,
                400,
                "M_INVALID_PARAM",
            );
            // Changed after it was signed, and not signed at all.
            let changed = body.replace("\"join\"", "\"join\",\"reason\":\"x\"");
            refused(
                scene.send_as(what, &id, &changed).await,
                400,
                "M_INVALID_PARAM",
            );
            let mut unsigned = parse_object(&body).unwrap();
            unsigned.remove("signatures");
            let unsigned = canonical(&unsigned);
            refused(scene.send_as(what, &id, &unsigned).await, 400, "M_BAD_JSON");
        }
        // Signed with a key that the server does not have.
        let mut forged = parse_object(&good.to_string()).unwrap();
        let eve = Neighbour::new(&scene.node.lan, "eve.example", 9);
        let id = hash_and_sign(&mut forged, &eve.key, &scene.other.name, rules(version)).unwrap();
        let forged = canonical(&forged);
        let answer = scene.send_as("v2/send_join", id.as_str(), &forged).await;
        refused(answer, 400, "M_INVALID_PARAM");
        // Sent by another server than the user's.
        let (id, body) = finished(&scene.other, version, &good);
        let path = format!(
            "{FEDERATION}/v2/send_join/{}/{}",
            encoded(&scene.room.0),
            encoded(&id)
        );
        refused(
            put(&scene.node, &eve, &path, &body).await,
            400,
            "M_INVALID_PARAM",
        );
        // It follows what nobody knows, or is authorised by it.
        let odd = with(&|event| event["prev_events"] = json!(["$unknown"]));
        refused(
            scene.send("v2/send_join", &odd).await,
            400,
            "M_INVALID_PARAM",
        );
        let odd = with(&|event| event["auth_events"] = json!(["$unknown"]));
        refused(
            scene.send("v2/send_join", &odd).await,
            400,
            "M_INVALID_PARAM",
        );
        // Banned after the template was made.
        let ban = json!({ "user_id": ZOE });
        ok(scene.room.post(&scene.alice, "ban", ban).await);
        refused(scene.send("v2/send_join", &good).await, 403, "M_FORBIDDEN");
        assert_eq!(scene.to_be_told(), before);
        let members = ok(scene.room.get(&scene.alice, "joined_members").await);
        assert_eq!(members["joined"].as_object().unwrap().len(), 1);
        sound(&[&scene.node]);
    }
}

#[tokio::test]
async fn a_join_that_needs_a_member_is_signed_only_if_it_may_be() {
    let scene = Scene::new("11").await;
    let hall = Room::create(&scene.alice, json!({ "preset": "public_chat" })).await;
    let allow = |room: &str| {
        json!({
            "join_rule": "restricted",
            "allow": [{ "type": "m.room_membership", "room_id": room }],
        })
    };
    let good = scene.template("join", ZOE).await;
    let rule = allow(&hall.0);
    scene
        .room
        .set(&scene.alice, "m.room.join_rules", rule)
        .await;
    let path = scene.make("join", ZOE, "?ver=11");
    let get = async || scene.other.get(&scene.node, &path).await;
    refused(get().await, 403, "M_FORBIDDEN");
    // They say so themselves.
    let mut made_up = good.clone();
    made_up["content"]["join_authorised_via_users_server"] = json!(scene.alice.user_id);
    refused(
        scene.send("v2/send_join", &made_up).await,
        403,
        "M_FORBIDDEN",
    );
    // A room that this node does not know.
    let rule = allow("!unknown:third.example");
    scene
        .room
        .set(&scene.alice, "m.room.join_rules", rule)
        .await;
    refused(get().await, 400, "M_UNABLE_TO_AUTHORISE_JOIN");
    sound(&[&scene.node]);
}

/// What is wrong with an invite.
type Change = fn(&mut Invite);

/// An invite to a room that the node does not know.
struct Invite {
    room: String,
    version: &'static str,
    event: Value,
    told: Value,
}

impl Invite {
    fn to(user: &str, version: &'static str, other: &Neighbour) -> Self {
        let mut create = json!({
            "type": "m.room.create", "state_key": "", "sender": ZOE, "origin_server_ts": START,
            "content": { "room_version": version }, "auth_events": [], "prev_events": [],
            "depth": 1,
        });
        let mut room = "!there:other.example".to_owned();
        if version == "12" {
            let (id, _) = finished(other, version, &create);
            room = id.replace('$', "!");
        } else {
            create["room_id"] = room.clone().into();
        }
        if version == "1" {
            create["event_id"] = "$create:other.example".into();
        }
        let (_, create) = finished(other, version, &create);
        let event = json!({
            "type": "m.room.member", "state_key": user, "sender": ZOE, "room_id": room,
            "origin_server_ts": START, "content": { "membership": "invite" },
            "auth_events": ["$a"], "prev_events": ["$b"], "depth": 7,
        });
        let create: Value = serde_json::from_str(&create).expect("JSON");
        Self {
            room,
            version,
            event,
            told: json!([create]),
        }
    }

    async fn send(&self, node: &TestServer, other: &Neighbour) -> Answer {
        let (id, event) = finished(other, self.version, &self.event);
        let event: Value = serde_json::from_str(&event).expect("JSON");
        let body = json!({
            "room_version": self.version, "event": event, "invite_room_state": self.told,
        });
        let path = format!(
            "{FEDERATION}/v2/invite/{}/{}",
            encoded(&self.room),
            encoded(&id)
        );
        put(node, other, &path, &body.to_string()).await
    }
}

#[tokio::test]
async fn an_invite_is_signed_and_shown() {
    let node = TestServer::new();
    let other = Neighbour::new(&node.lan, "other.example", 3);
    let alice = node.register("alice").await;
    for version in ["10", "12"] {
        let invite = Invite::to(&alice.user_id, version, &other);
        let answer = ok(invite.send(&node, &other).await);
        assert!(answer["event"]["signatures"]["localhost"].is_object());
        assert!(answer["event"]["signatures"]["other.example"].is_object());
        let object = parse_object(&answer["event"].to_string()).unwrap();
        let (id, _) = finished(&other, version, &invite.event);
        assert_eq!(event_id(&object, rules(version)).unwrap(), *id);
        let sync = ok(alice.get("/_matrix/client/v3/sync").await);
        let events = &sync["rooms"]["invite"][&invite.room]["invite_state"]["events"];
        assert_eq!(events[0]["type"], "m.room.create", "{sync}");
        assert_eq!(events[0]["origin_server_ts"], START);
        assert_eq!(events[1]["sender"], ZOE);
        // Nothing of the room is there.
        let room = Room(invite.room.clone());
        refused(room.get(&alice, "state").await, 403, "M_FORBIDDEN");
    }
    // Old servers.
    let invite = Invite::to(&alice.user_id, "1", &other);
    let mut event = invite.event.clone();
    event["event_id"] = "$old:other.example".into();
    event["auth_events"] = json!([]);
    event["prev_events"] = json!([]);
    let (id, body) = finished(&other, "1", &event);
    let path = format!(
        "{FEDERATION}/v1/invite/{}/{}",
        encoded(&invite.room),
        encoded(&id)
    );
    let answer = ok(put(&node, &other, &path, &body).await);
    assert_eq!(answer[0], 200);
    assert!(answer[1]["event"]["signatures"]["localhost"].is_object());
    sound(&[&node]);
}

#[tokio::test]
async fn what_is_no_proper_invite_is_not_signed() {
    let node = TestServer::with(|config| config.registration.guests = true);
    let other = Neighbour::new(&node.lan, "other.example", 3);
    let alice = node.register("alice").await;
    for version in ["10", "12"] {
        let cases: [(Change, u16, &str); 6] = [
            (
                |i| i.event["type"] = "m.room.topic".into(),
                400,
                "M_INVALID_PARAM",
            ),
            (
                |i| i.event["content"]["membership"] = "join".into(),
                400,
                "M_INVALID_PARAM",
            ),
            (
                |i| i.event["sender"] = "@eve:third.example".into(),
                400,
                "M_INVALID_PARAM",
            ),
            (
                |i| i.event["state_key"] = "@bob:third.example".into(),
                400,
                "M_INVALID_PARAM",
            ),
            (
                |i| i.event["state_key"] = "@nobody:localhost".into(),
                403,
                "M_FORBIDDEN",
            ),
            (
                |i| i.room = "!other:other.example".to_owned(),
                400,
                "M_INVALID_PARAM",
            ),
        ];
        for (change, status, errcode) in cases {
            let mut invite = Invite::to(&alice.user_id, version, &other);
            change(&mut invite);
            refused(invite.send(&node, &other).await, status, errcode);
        }
        // A version that nobody knows, and another server's event.
        let invite = Invite::to(&alice.user_id, version, &other);
        let (id, event) = finished(&other, version, &invite.event);
        let event: Value = serde_json::from_str(&event).expect("JSON");
        let path = format!(
            "{FEDERATION}/v2/invite/{}/{}",
            encoded(&invite.room),
            encoded(&id)
        );
        let body = json!({ "room_version": "99", "event": event, "invite_room_state": [] });
        let answer = put(&node, &other, &path, &body.to_string()).await;
        refused(answer, 400, "M_INCOMPATIBLE_ROOM_VERSION");
        let eve = Neighbour::new(&node.lan, "eve.example", 9);
        let body = json!({ "room_version": version, "event": event, "invite_room_state": [] });
        let answer = put(&node, &eve, &path, &body.to_string()).await;
        refused(answer, 400, "M_INVALID_PARAM");
        let mut forged = event.clone();
        forged["signatures"]["other.example"] = json!({ "ed25519:k3": "AAAA" });
        let body = json!({ "room_version": version, "event": forged, "invite_room_state": [] });
        let answer = put(&node, &other, &path, &body.to_string()).await;
        refused(answer, 400, "M_INVALID_PARAM");
    }
    // The id of such a room can be proven, so it must be.
    let mut invite = Invite::to(&alice.user_id, "12", &other);
    invite.told = json!([]);
    refused(invite.send(&node, &other).await, 400, "M_INVALID_PARAM");
    let mut invite = Invite::to(&alice.user_id, "12", &other);
    invite.told[0]["content"]["room_version"] = "11".into();
    refused(invite.send(&node, &other).await, 400, "M_INVALID_PARAM");
    let sync = ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(sync["rooms"]["invite"], Value::Null, "{sync}");
    sound(&[&node]);
}

#[tokio::test]
async fn invites_to_a_room_of_ours_are_judged_by_the_room() {
    let scene = Scene::new("10").await;
    let bob = scene.node.register("bob").await;
    let mut invite = Invite::to(&bob.user_id, "10", &scene.other);
    invite.room.clone_from(&scene.room.0);
    invite.event["room_id"] = json!(scene.room.0);
    // They are not in the room.
    let answer = invite.send(&scene.node, &scene.other).await;
    refused(answer, 403, "M_FORBIDDEN");
    // Of another version than the room is.
    let (id, event) = finished(&scene.other, "11", &invite.event);
    let event: Value = serde_json::from_str(&event).expect("JSON");
    let (room, id) = (encoded(&scene.room.0), encoded(&id));
    let path = format!("{FEDERATION}/v2/invite/{room}/{id}");
    let body = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
    let answer = put(&scene.node, &scene.other, &path, &body.to_string()).await;
    refused(answer, 400, "M_INVALID_PARAM");
    let joined = scene.template("join", ZOE).await;
    ok(scene.send("v2/send_join", &joined).await);
    let acl = json!({ "allow": ["*"], "deny": ["other.example"] });
    scene.room.set(&scene.alice, "m.room.server_acl", acl).await;
    let answer = invite.send(&scene.node, &scene.other).await;
    refused(answer, 403, "M_FORBIDDEN");
    refused(
        scene.send("v2/send_join", &joined).await,
        403,
        "M_FORBIDDEN",
    );
    let sync = ok(bob.get("/_matrix/client/v3/sync").await);
    assert_eq!(sync["rooms"]["invite"], Value::Null, "{sync}");
    sound(&[&scene.node]);
}

#[tokio::test]
async fn aliases_are_told_with_the_servers_of_their_rooms() {
    let scene = Scene::new("11").await;
    let body = json!({ "room_alias_name": "kitchen" });
    let room = Room::create(&scene.alice, body).await;
    let ask = async |alias: &str| {
        let path = format!(
            "{FEDERATION}/v1/query/directory?room_alias={}",
            encoded(alias)
        );
        scene.other.get(&scene.node, &path).await
    };
    let told = ok(ask("#kitchen:localhost").await);
    assert_eq!(told, json!({ "room_id": room.0, "servers": ["localhost"] }));
    refused(ask("#cellar:localhost").await, 404, "M_NOT_FOUND");
    refused(ask("#kitchen:other.example").await, 404, "M_NOT_FOUND");
    refused(ask("kitchen").await, 400, "M_INVALID_PARAM");
}
