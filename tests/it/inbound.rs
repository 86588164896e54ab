//! Every endpoint for other servers, against what each must refuse. Whoever adds one says here of what it speaks.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use kontor::protocol::{integrity::ServerKey, xmatrix::XMatrix};
use serde_json::{Value, json};

use self::About::{Entrances, Events, Handshake, Invites, Nothing, Rooms, Transactions};
use crate::{
    elsewhere::{Elsewhere, check, id, pdu, timeline},
    neighbour::{Neighbour, us},
    room::{Room, encoded},
    server::{Answer, Client, TestServer, refused},
};

const BOB: &str = "@bob:b.example";
const NOWHERE: &str = "no such room";
const NOBODY: &str = "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Of what an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Of no room.
    Nothing,
    /// Of a room that the asker must be in, or may look into.
    Rooms,
    /// Of a room, as far as those may know of it who could enter it. Nobody is kept out of that, see "Server Access
    /// Control Lists (ACLs) for rooms".
    Entrances,
    /// Of an event of such a room.
    Events,
    /// Of a membership of a user of the asker, who need not be in the room yet.
    Handshake,
    /// Of an invite of a user of ours.
    Invites,
    /// Of whatever has happened: each event is refused alone.
    Transactions,
}

/// All that other servers may ask for with their signature.
const TABLE: &[(About, &str, &str)] = &[
    (Handshake, "PUT", "exchange_third_party_invite/{room_id}"),
    (Handshake, "GET", "make_join/{room_id}/{user_id}?ver=10"),
    (Handshake, "GET", "make_knock/{room_id}/{user_id}?ver=10"),
    (Handshake, "GET", "make_leave/{room_id}/{user_id}"),
    (Handshake, "PUT", "v1/send_join/{room_id}/{event_id}"),
    (Handshake, "PUT", "v2/send_join/{room_id}/{event_id}"),
    (Handshake, "PUT", "send_knock/{room_id}/{event_id}"),
    (Handshake, "PUT", "v1/send_leave/{room_id}/{event_id}"),
    (Handshake, "PUT", "v2/send_leave/{room_id}/{event_id}"),
    (Invites, "PUT", "v1/invite/{room_id}/{event_id}"),
    (Invites, "PUT", "v2/invite/{room_id}/{event_id}"),
    (Transactions, "PUT", "send/{transaction_id}"),
    (Events, "GET", "event/{event_id}"),
    (Events, "GET", "state/{room_id}?event_id={event_id}"),
    (Events, "GET", "state_ids/{room_id}?event_id={event_id}"),
    (Events, "GET", "event_auth/{room_id}/{event_id}"),
    (Events, "GET", "backfill/{room_id}?v={event_id}&limit=10"),
    (Events, "POST", "get_missing_events/{room_id}"),
    (Rooms, "GET", "timestamp_to_event/{room_id}?ts=1&dir=f"),
    (Entrances, "GET", "hierarchy/{room_id}"),
    (Nothing, "GET", "publicRooms"),
    (Nothing, "POST", "publicRooms"),
    (Nothing, "GET", "query/directory?room_alias=%23x:localhost"),
    (Nothing, "GET", "query/profile?user_id=@alice:localhost"),
    (Nothing, "POST", "user/keys/query"),
    (Nothing, "POST", "user/keys/claim"),
    (Nothing, "GET", "user/devices/{user_id}"),
];

/// Those that anybody may ask without a signature.
const OPEN: &[&str] = &["version", "openid/userinfo", "3pid/onbind"];

fn prefixed(path: &str) -> String {
    if path.starts_with("v1/") || path.starts_with("v2/") {
        format!("/_matrix/federation/{path}")
    } else {
        format!("/_matrix/federation/v1/{path}")
    }
}

struct Scene {
    node: TestServer,
    alice: Client,
    other: Neighbour,
    /// Nobody else is in it, and nobody may come.
    hidden: (Room, String),
    /// The other server is in it.
    theirs: (Room, String),
    /// It is in this as well, but is kept out.
    denied: (Room, String),
}

impl Scene {
    async fn new() -> Self {
        let node = TestServer::new();
        let alice = node.register("alice").await;
        let other = Neighbour::new(&node.lan, "b.example", 1);
        let said = async |alice: &Client, room: Room| {
            let event = room.say(alice, "secret").await;
            (room, event)
        };
        let closed = json!({ "preset": "private_chat", "name": "secret", "room_version": "10" });
        let hidden = said(&alice, Room::create(&alice, closed).await).await;
        let open = || json!({ "preset": "public_chat", "name": "secret", "room_version": "10" });
        let theirs = Room::create(&alice, open()).await;
        Elsewhere::joined(&node, &theirs, &other, BOB).await;
        let theirs = said(&alice, theirs).await;
        let denied = Room::create(&alice, open()).await;
        Elsewhere::joined(&node, &denied, &other, BOB).await;
        let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
        denied.set(&alice, "m.room.server_acl", acl).await;
        let denied = said(&alice, denied).await;
        Self {
            node,
            alice,
            other,
            hidden,
            theirs,
            denied,
        }
    }

    /// What is asked of an endpoint about a room and an event. What is put is what a server that may do so would put.
    async fn question(&self, path: &str, (room, event): (&str, &str)) -> (String, String) {
        let known = [&self.hidden, &self.theirs, &self.denied];
        let of = known.iter().find(|(known, _)| known.0 == room);
        let mut elsewhere =
            Elsewhere::of(&self.node, of.map_or(&self.hidden.0, |(of, _)| of)).await;
        if of.is_none() {
            elsewhere.room = room.try_into().expect("it is an id");
        }
        let mut member = |whom: &str, membership: &str| {
            let content = json!({ "membership": membership });
            let kind = "m.room.member";
            elsewhere.make(&self.other, BOB, kind, Some(whom), content, |_| {})
        };
        let name = path.split('/').find(|part| !matches!(*part, "v1" | "v2"));
        let (event, body) = match name.unwrap_or_default() {
            "send_join" => {
                let join = member(BOB, "join");
                (id(&join), pdu(&join))
            }
            "send_knock" => {
                let knock = member(BOB, "knock");
                (id(&knock), pdu(&knock))
            }
            "send_leave" => {
                let leave = member(BOB, "leave");
                (id(&leave), pdu(&leave))
            }
            "invite" => {
                let invite = member("@alice:localhost", "invite");
                let body = if path.starts_with("v1/") {
                    pdu(&invite)
                } else {
                    json!({ "room_version": "10", "event": pdu(&invite), "invite_room_state": [] })
                };
                (id(&invite), body)
            }
            "exchange_third_party_invite" => {
                let signed = json!({ "mxid": "@zoe:b.example", "token": "t", "signatures": {} });
                let invite = json!({ "display_name": "z", "signed": signed });
                let content = json!({ "membership": "invite", "third_party_invite": invite });
                let body = json!({
                    "type": "m.room.member", "room_id": room, "sender": "@alice:localhost",
                    "state_key": "@zoe:b.example", "content": content,
                });
                (event.to_owned(), body)
            }
            "get_missing_events" => {
                let body = json!({ "earliest_events": [], "latest_events": [event] });
                (event.to_owned(), body)
            }
            "send" => {
                let message = elsewhere.say(&self.other, BOB, "hello");
                let body = json!({ "origin": "b.example", "origin_server_ts": 1, "pdus": [pdu(&message)] });
                (id(&message), body)
            }
            "user" => (
                event.to_owned(),
                json!({ "device_keys": {}, "one_time_keys": {} }),
            ),
            "publicRooms" => (event.to_owned(), json!({})),
            _ => (event.to_owned(), Value::Null),
        };
        let path = prefixed(path)
            .replace("{room_id}", &encoded(room))
            .replace("{event_id}", &encoded(&event))
            .replace("{user_id}", &encoded(BOB))
            .replace("{transaction_id}", &event[1..]);
        (path, body.to_string())
    }

    async fn ask_as(
        &self,
        key: &ServerKey,
        method: &str,
        (path, body): (String, String),
    ) -> Answer {
        let method: Method = method.parse().expect("it is a method");
        let body = if method == Method::GET {
            String::new()
        } else {
            body
        };
        let content = Some(&*body).filter(|body| !body.is_empty());
        let name = &self.other.name;
        let header = XMatrix::sign(method.as_str(), &path, name, &us(), content, key);
        self.other
            .send(&self.node, method, &path, &header, &body)
            .await
    }

    async fn ask(&self, method: &str, path: &str, about: (&str, &str)) -> Answer {
        let question = self.question(path, about).await;
        self.ask_as(&self.other.key, method, question).await
    }

    /// Asks about this everywhere where it matters; nothing may come back but a refusal.
    async fn refuses(&self, what: &str, about: (&str, &str), which: &[About]) {
        let mut complaints = Vec::new();
        for (kind, method, path) in TABLE.iter().filter(|(kind, ..)| which.contains(kind)) {
            let (status, answer) = self.ask(method, path, about).await;
            let is_refused = match kind {
                Transactions => {
                    let room = Room(about.0.to_owned());
                    let said = if what == NOWHERE {
                        Vec::new()
                    } else {
                        timeline(&self.alice, &room).await.0
                    };
                    status == StatusCode::OK && !said.iter().any(|body| body == "hello")
                }
                _ => matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND),
            };
            if !is_refused || answer.to_string().contains("secret") {
                complaints.push(format!("{method} {path}: {status} {answer}"));
            }
        }
        assert_eq!(complaints, Vec::<String>::new(), "{what}");
        check(&self.node);
    }
}

#[test]
fn the_table_has_every_endpoint_for_other_servers() {
    let start = "/_matrix/federation/";
    let here = kontor::http::endpoints().into_iter();
    let here: BTreeSet<_> = here
        .filter(|(_, path)| path.starts_with(start))
        .map(|(method, path)| format!("{method} {path}"))
        .filter(|endpoint| !OPEN.iter().any(|open| endpoint.ends_with(open)))
        .collect();
    let listed = TABLE.iter().map(|(_, method, path)| {
        let path = prefixed(path);
        let path = path.split('?').next().unwrap_or_default();
        format!("{method} {path}")
    });
    assert_eq!(listed.collect::<BTreeSet<_>>(), here);
}

#[tokio::test]
async fn a_forged_signature_opens_nothing() {
    let scene = Scene::new().await;
    let forged = ServerKey::from_seed(&[99; 32], "k1").expect("a key");
    let (room, event) = &scene.theirs;
    for (_, method, path) in TABLE {
        let question = scene.question(path, (&room.0, event)).await;
        let answer = scene.ask_as(&forged, method, question).await;
        assert_eq!(answer.0, StatusCode::UNAUTHORIZED, "{path}: {}", answer.1);
        refused(answer, 401, "M_UNAUTHORIZED");
    }
    check(&scene.node);
}

#[tokio::test]
async fn who_is_in_a_room_gets_its_answers() {
    // Or else the refusals below would mean nothing.
    let scene = Scene::new().await;
    let (room, event) = &scene.theirs;
    for (kind, method, path) in TABLE {
        // Nobody is to leave yet, nor to be where they can not knock any more.
        let is_out = path.contains("send_leave") || path.contains("knock");
        let is_other = path.starts_with("exchange") || *kind == Invites;
        if is_out || is_other {
            continue;
        }
        let (status, answer) = scene.ask(method, path, (&room.0, event)).await;
        let is_unknown = path.starts_with("query/directory") || path.starts_with("user/devices");
        assert!(
            status == StatusCode::OK || is_unknown,
            "{path}: {status} {answer}"
        );
    }
}

const OF_ROOMS: &[About] = &[Rooms, Events, Handshake, Invites, Transactions];

#[tokio::test]
async fn who_is_not_in_a_room_learns_nothing_of_it() {
    let scene = Scene::new().await;
    let (room, event) = &scene.hidden;
    scene
        .refuses(
            "not in the room",
            (&room.0, event),
            &[OF_ROOMS, &[Entrances]].concat(),
        )
        .await;
}

#[tokio::test]
async fn who_is_kept_out_of_a_room_is_told_so_everywhere() {
    let scene = Scene::new().await;
    let (room, event) = &scene.denied;
    scene.refuses("denied", (&room.0, event), OF_ROOMS).await;
}

#[tokio::test]
async fn an_event_of_another_room_is_not_had_by_way_of_ones_own() {
    let scene = Scene::new().await;
    let (room, foreign) = (&scene.theirs.0, &scene.hidden.1);
    for (_, method, path) in TABLE.iter().filter(|(kind, ..)| *kind == Events) {
        let (status, answer) = scene.ask(method, path, (&room.0, foreign)).await;
        let is_empty = answer["events"] == json!([]) || answer["pdus"] == json!([]);
        assert!(
            matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) || is_empty,
            "{path}: {status} {answer}"
        );
        assert!(!answer.to_string().contains("secret"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_room_that_is_not_there_is_not_there_for_anybody() {
    let scene = Scene::new().await;
    let nowhere = ("!nowhere:localhost", NOBODY);
    scene
        .refuses(
            NOWHERE,
            nowhere,
            &[Rooms, Entrances, Events, Handshake, Transactions],
        )
        .await;
}
