//! However a client of sliding sync moves its windows, and whatever gets lost on the way, it ends up knowing what is so.
//!
//! Random things happen while clients with different lists and subscriptions ask, lose answers, get old ones late, and
//! move their windows. Each room must be told as new once for each stay of the user; every event must have been told or
//! lie in a gap that was told; and state, names and counts must end up as a client has them that begins at the end.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    OwnedRoomId, api::client::receipt::create_receipt::v3::ReceiptType,
    events::receipt::ReceiptThread,
};
use serde_json::{Value, json};

use super::{draw, members, real_state, something_happens};
use crate::{
    clock::Entropy,
    protocol::ids::Position,
    service::{
        Requester,
        ephemeral::Mark,
        rooms::testing::Node,
        sync::sliding::{Asked, SlidingRequest},
    },
    store::schema::{TIMELINE, USER_ROOMS},
};

/// What a client remembers of a room.
#[derive(Clone, Debug, Default)]
struct Known {
    state: BTreeMap<(String, String), String>,
    /// Without gaps, the newest last.
    timeline: Vec<String>,
    /// Name, counts and the like.
    members: BTreeMap<String, Value>,
    invited: bool,
    gone: bool,
    /// Since when the user was what they were when the room was told as new.
    since: Position,
}

#[derive(Clone, Debug, Default)]
struct Client {
    body: Value,
    pos: Option<String>,
    rooms: BTreeMap<String, Known>,
    data: BTreeMap<(String, String), Value>,
    /// Answers that have not come yet.
    late: Vec<Value>,
}

/// Members of a room that are told when they change.
const KEPT: [&str; 7] = [
    "name",
    "is_dm",
    "joined_count",
    "invited_count",
    "notification_count",
    "highlight_count",
    "heroes",
];

impl Client {
    fn new(body: Value) -> Self {
        Self {
            body,
            ..Self::default()
        }
    }

    async fn ask(&self, node: &Node, user: &Requester) -> Value {
        let request = SlidingRequest {
            pos: self.pos.as_ref().map(|pos| pos.parse().unwrap()),
            timeout: std::time::Duration::ZERO,
            asked: serde_json::from_value::<Asked>(self.body.clone()).unwrap(),
        };
        let answer = node.services.sync.sliding(user, request).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// Asks, and gets the answer.
    async fn sync(&mut self, node: &Node, user: &Requester) {
        let answer = self.ask(node, user).await;
        self.take(node, user, &answer);
    }

    fn take(&mut self, node: &Node, user: &Requester, answer: &Value) {
        self.late.clear();
        self.pos = Some(answer["pos"].as_str().unwrap().to_owned());
        let data = &answer["extensions"]["account_data"];
        let mut note = |room: &str, events: &Value| {
            for event in events.as_array().into_iter().flatten() {
                let key = (room.to_owned(), event["type"].as_str().unwrap().to_owned());
                self.data.insert(key, event["content"].clone());
            }
        };
        note("", &data["global"]);
        for (room, events) in members(&data["rooms"]) {
            note(room, events);
        }
        for (room, told) in members(&answer["rooms"]) {
            let id = OwnedRoomId::try_from(room.as_str()).unwrap();
            let nid = node.services.store().find_room(&id).unwrap().unwrap();
            let row = USER_ROOMS
                .get(&node.view(), &(user.nid, nid))
                .unwrap()
                .unwrap();
            let known = self.rooms.entry(room.clone()).or_default();
            if told["initial"] == true {
                let is_first = known.since == Position::default();
                assert!(
                    is_first || known.gone || known.since != row.since,
                    "{room} is told as new again"
                );
                *known = Known {
                    since: row.since,
                    ..Known::default()
                };
            } else {
                assert!(
                    known.since > Position::default(),
                    "{room} was never told as new"
                );
            }
            known.take(told, user);
        }
    }
}

impl Known {
    fn take(&mut self, told: &Value, user: &Requester) {
        self.invited = told["invite_state"].is_array();
        for event in told["required_state"].as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().unwrap().to_owned();
            let key = (text("type"), text("state_key"));
            if key == ("m.room.member".to_owned(), user.user_id.to_string()) {
                let membership = event["content"]["membership"].as_str().unwrap();
                self.gone = matches!(membership, "leave" | "ban");
            }
            self.state.insert(key, text("event_id"));
        }
        if told["limited"] == true || told["unstable_expanded_timeline"] == true {
            self.timeline.clear();
        }
        let events = told["timeline"].as_array().into_iter().flatten();
        let events: Vec<_> = events
            .map(|event| event["event_id"].as_str().unwrap().to_owned())
            .collect();
        let live = told["num_live"].as_u64().unwrap_or_default();
        assert!(usize::try_from(live).unwrap() <= events.len());
        self.timeline.extend(events);
        for name in KEPT {
            if let Some(value) = told.get(name) {
                self.members.insert(name.to_owned(), value.clone());
            }
        }
    }
}

fn list(ranges: Value, limit: u64, filters: Value) -> Value {
    json!({
        "ranges": ranges, "timeline_limit": limit, "required_state": [["*", "*"]], "filters": filters,
    })
}

/// The lists of all rooms that the clients end with.
fn everything(conn: &str) -> Value {
    let extensions = json!({ "account_data": { "enabled": true } });
    json!({ "conn_id": conn, "lists": { "all": list(json!([[0, 99]]), 3, json!({})) }, "extensions": extensions })
}

/// Changes what a client asks for.
fn moves(entropy: &Entropy, kind: usize, rooms: &[OwnedRoomId]) -> Value {
    let mut body = everything(&kind.to_string());
    let last = draw(entropy, 4);
    let limit = u64::try_from(draw(entropy, 6)).unwrap();
    match kind {
        // Always all.
        0 => {}
        // A window that moves.
        1 => body["lists"]["all"]["ranges"] = json!([[0, last]]),
        2 => {
            let first = draw(entropy, 2);
            body["lists"] =
                json!({ "all": list(json!([[first, first + last]]), limit, json!({})) });
        }
        // Invites and other rooms each for themselves; sometimes neither.
        3 => {
            body["lists"] = json!({ "others": list(json!([[0, last]]), 2, json!({ "is_invite": false, "not_tags": ["low"] })) });
            if draw(entropy, 2) == 0 {
                body["lists"]["invites"] = list(json!([[0, 0]]), 1, json!({ "is_invite": true }));
            }
            if draw(entropy, 4) == 0 {
                body["lists"] = json!({});
            }
        }
        // Single rooms, and now and then one list.
        _ => {
            body["lists"] =
                json!({ "direct": list(json!([[0, 9]]), limit, json!({ "is_dm": true })) });
            let wanted = json!({ "timeline_limit": limit, "required_state": [["*", "*"]] });
            for room in rooms {
                if draw(entropy, 2) == 0 {
                    body["room_subscriptions"][room.as_str()] = wanted.clone();
                }
            }
            if draw(entropy, 2) == 0 {
                body["extensions"] = json!({});
            }
        }
    }
    body
}

/// What happens besides events.
async fn something_else(
    node: &Node,
    entropy: &Entropy,
    users: &[Requester],
    rooms: &[OwnedRoomId],
    step: usize,
) {
    let (me, room) = (&users[0], &rooms[draw(entropy, rooms.len())]);
    let accounts = &node.services.accounts;
    let content = json!({ "step": step }).to_string();
    match draw(entropy, 8) {
        0 => accounts
            .set_account_data(me, None, "org.example.global", &content)
            .await
            .unwrap(),
        1 => accounts
            .set_account_data(me, Some(room), "org.example.room", &content)
            .await
            .unwrap(),
        2 => {
            let tags = if draw(entropy, 2) == 0 {
                json!({})
            } else {
                json!({ "low": {} })
            };
            let tags = json!({ "tags": tags }).to_string();
            accounts
                .set_account_data(me, Some(room), "m.tag", &tags)
                .await
                .unwrap();
        }
        3 => {
            let direct = json!({ "@ann:localhost": [room] }).to_string();
            accounts
                .set_account_data(me, None, "m.direct", &direct)
                .await
                .unwrap();
        }
        4 => {
            let nid = node.services.store().find_room(room).unwrap().unwrap();
            let view = node.view();
            let (_, (newest,)) = TIMELINE.last(&view, &(nid,)).unwrap().unwrap();
            let newest = node.services.rooms.event(&view, newest).unwrap();
            let mark = Mark {
                receipt_type: ReceiptType::Read,
                event_id: newest.event.header.id.clone(),
                thread: ReceiptThread::Unthreaded,
            };
            // Who is not in the room is refused.
            let _ = node.services.receipts.set(me, room, &[mark]).await;
        }
        // What has changed is not known then, so that all is looked at.
        5 => node.services.store().notify().forget_idle(),
        _ => {}
    }
}

async fn try_one(seed: u64) {
    let (node, entropy) = (Node::new(), Entropy::seeded(seed));
    let users: Vec<_> = ["me", "ann", "bob", "eve"]
        .map(|name| node.user(name))
        .into();
    let mut rooms = Vec::new();
    for creator in users.iter().cycle().take(5) {
        let mut asked = ruma::api::client::room::create_room::v3::Request::new();
        asked.preset = Some("public_chat".into());
        let levels = json!({ "users_default": 100, "events_default": 0 });
        asked.power_level_content_override = serde_json::from_value(levels).ok();
        rooms.push(
            node.services
                .lifecycle
                .create_room(creator, asked)
                .await
                .unwrap(),
        );
    }
    let me = &users[0];
    let mut clients: Vec<_> = (0..5)
        .map(|kind| Client::new(moves(&entropy, kind, &rooms)))
        .collect();
    for step in 0..100 {
        something_happens(&node, &entropy, &users, &rooms, step).await;
        something_else(&node, &entropy, &users, &rooms, step).await;
        for (kind, client) in clients.iter_mut().enumerate() {
            match draw(&entropy, 8) {
                0..3 => {
                    let mut answer = client.ask(&node, me).await;
                    if client.pos.is_some() {
                        // Whatever was lost on the way, one of the answers to this position arrives now.
                        client.late.push(answer);
                        let start = client.late.len().saturating_sub(4);
                        let index = start + draw(&entropy, client.late.len() - start);
                        answer = client.late.swap_remove(index);
                    }
                    client.take(&node, me, &answer);
                }
                // An answer gets lost, or late.
                3 | 4 if client.pos.is_some() => {
                    let answer = client.ask(&node, me).await;
                    client.late.push(answer);
                }
                5 => client.body = moves(&entropy, kind, &rooms),
                _ => {}
            }
        }
    }
    let mut fresh = Client::new(everything("fresh"));
    let first = fresh.ask(&node, me).await;
    let count = first["lists"].clone();
    fresh.take(&node, me, &first);
    for (kind, client) in clients.iter_mut().enumerate() {
        let context = format!("seed {seed}, client {kind}");
        client.body = everything(&kind.to_string());
        client.sync(&node, me).await;
        let last = client.ask(&node, me).await;
        assert_eq!(last["lists"], count, "{context}");
        assert_eq!(
            last["rooms"],
            Value::Null,
            "{context}: it was not all told at once"
        );
        check(&node, &rooms, client, &fresh, &context).await;
    }
}

async fn check(node: &Node, rooms: &[OwnedRoomId], client: &Client, fresh: &Client, context: &str) {
    let is_in = |known: &&Known| !known.gone && !known.invited;
    let joined = |client: &Client| -> BTreeSet<String> {
        let joined = client.rooms.iter().filter(|(_, known)| is_in(known));
        joined.map(|(room, _)| room.clone()).collect()
    };
    let invited = |client: &Client| -> BTreeSet<String> {
        let invited = client.rooms.iter().filter(|(_, known)| known.invited);
        invited.map(|(room, _)| room.clone()).collect()
    };
    assert_eq!(joined(client), joined(fresh), "{context}");
    assert_eq!(invited(client), invited(fresh), "{context}");
    for room in rooms {
        let Some(known) = client.rooms.get(room.as_str()).filter(is_in) else {
            continue;
        };
        let new = &fresh.rooms[room.as_str()];
        assert_eq!(
            known.state,
            real_state(node, room).await,
            "{context}, {room}"
        );
        let mut told = known.members.clone();
        // What is not set is not told at first.
        told.retain(|name, value| match name.as_str() {
            "is_dm" => *value == true,
            "heroes" => !new.members.contains_key("name"),
            _ => !value.is_null(),
        });
        assert_eq!(told, new.members, "{context}, {room}");
        let nid = node.services.store().find_room(room).unwrap().unwrap();
        let view = node.view();
        let real: Vec<String> = TIMELINE
            .scan(&view, &(nid,))
            .map(|row| {
                node.services
                    .rooms
                    .event(&view, row.unwrap().1.0)
                    .unwrap()
                    .event
                    .header
                    .id
                    .to_string()
            })
            .collect();
        let shown = known.timeline.len();
        assert!(shown >= real.len().min(3), "{context}, {room}: {shown}");
        assert!(
            real.ends_with(&known.timeline),
            "{context}, {room}: {:?} of {real:?}",
            known.timeline
        );
        for key in fresh
            .data
            .keys()
            .filter(|(of, _)| of.is_empty() || of == room.as_str())
        {
            assert_eq!(
                client.data.get(key),
                fresh.data.get(key),
                "{context}, {key:?}"
            );
        }
    }
}

#[tokio::test]
async fn windows_that_move_and_answers_that_are_lost_leave_nothing_out() {
    for seed in 0..30 {
        try_one(seed).await;
    }
}
