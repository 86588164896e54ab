//! "Redactions".

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
    stream::{Stream, events},
};

async fn redact(room: &Room, who: &Client, event: &str) -> (http::StatusCode, Value) {
    let path = format!("redact/{event}/txn");
    room.put(who, &path, json!({ "reason": "because" })).await
}

#[tokio::test]
async fn an_event_is_emptied_everywhere() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["10", "12"] {
        let wish = json!({ "preset": "public_chat", "room_version": version });
        let room = Room::create(&alice, wish).await;
        room.does(&bob, "join").await;
        let mut stream = Stream::begun(&bob).await;
        let content = json!({ "msgtype": "m.text", "body": "secret", "org.example.a": 1 });
        let said = room.send(&alice, "m.room.message", content).await;
        let redaction = text(&ok(redact(&room, &alice, &said).await), "event_id");
        let part = stream.joined(&room).await;
        let told = events(&part, "timeline");
        assert_eq!(told.len(), 2);
        assert_eq!(told[0]["content"], json!({}));
        let because = &told[0]["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], redaction);
        assert_eq!(told[1]["redacts"], said);
        assert_eq!(told[1]["content"]["redacts"], said, "version {version}");
        assert_eq!(told[1]["content"]["reason"], "because");
        for path in [
            format!("event/{said}"),
            "messages?dir=b".to_owned(),
            format!("context/{said}"),
        ] {
            let answer = ok(room.get(&bob, &path).await).to_string();
            assert!(!answer.contains("secret"), "{path}: {answer}");
        }
        // To redact what is empty changes nothing.
        ok(room
            .put(&alice, &format!("redact/{said}/again"), json!({}))
            .await);
        let event = ok(room.get(&bob, &format!("event/{said}")).await);
        assert_eq!(event["content"], json!({}));
    }
}

#[tokio::test]
async fn what_keeps_a_room_together_stays() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let room = Room::create(&alice, wish).await;
    room.does(&bob, "join").await;
    let name = room
        .set(&alice, "m.room.name", json!({ "name": "Secret" }))
        .await;
    ok(redact(&room, &alice, &name).await);
    assert_eq!(ok(room.get(&bob, "state/m.room.name").await), json!({}));
    let levels = "state/m.room.power_levels";
    let before = ok(room.get(&bob, levels).await);
    let event = ok(room.get(&bob, &format!("{levels}?format=event")).await);
    ok(redact(&room, &alice, &text(&event, "event_id")).await);
    let after = ok(room.get(&bob, levels).await);
    assert_eq!(
        (&after["users"], &after["ban"]),
        (&before["users"], &before["ban"])
    );
    // Who is in the room stays in it, without a name.
    let member = format!("state/m.room.member/{}", bob.user_id);
    ok(room
        .put(
            &bob,
            &member,
            json!({ "membership": "join", "displayname": "Bob" }),
        )
        .await);
    let event = ok(room.get(&bob, &format!("{member}?format=event")).await);
    ok(redact(&room, &bob, &text(&event, "event_id")).await);
    assert_eq!(
        ok(room.get(&bob, &member).await),
        json!({ "membership": "join" })
    );
    let create = ok(room.get(&bob, "state/m.room.create?format=event").await);
    refused(
        redact(&room, &alice, &text(&create, "event_id")).await,
        403,
        "M_FORBIDDEN",
    );
    // Nor by a redaction that is state, which is none.
    let content = json!({ "redacts": create["event_id"] });
    let (status, body) = room.put(&alice, "state/m.room.redaction", content).await;
    assert_eq!(status, 400, "{body}");
    let acl = json!({ "allow": ["*"] });
    let acl = room.set(&alice, "m.room.server_acl", acl).await;
    refused(redact(&room, &alice, &acl).await, 403, "M_FORBIDDEN");
    room.say(&bob, "still here").await;
}

#[tokio::test]
async fn who_may_redact_what() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    room.does(&bob, "join").await;
    let hers = room.say(&alice, "hers").await;
    let his = room.say(&bob, "his").await;
    let elsewhere = other.say(&alice, "elsewhere").await;
    refused(redact(&room, &bob, &hers).await, 403, "M_FORBIDDEN");
    refused(redact(&room, &eve, &hers).await, 403, "M_FORBIDDEN");
    refused(redact(&room, &alice, &elsewhere).await, 404, "M_NOT_FOUND");
    refused(redact(&room, &alice, "$unknown").await, 404, "M_NOT_FOUND");
    let (status, body) = redact(&room, &alice, "no-id").await;
    assert!(matches!(status.as_u16(), 400 | 404), "{body}");
    // Nor by way of the endpoint for other events.
    for (target, who) in [(&hers, &bob), (&elsewhere, &alice)] {
        let content = json!({ "redacts": target });
        let path = format!("send/m.room.redaction/{}", target.len());
        let (status, body) = room.put(who, &path, content).await;
        assert!(matches!(status.as_u16(), 403 | 404), "{body}");
    }
    ok(redact(&room, &alice, &his).await);
    for (room, event, body) in [(&room, &hers, "hers"), (&other, &elsewhere, "elsewhere")] {
        let event = ok(room.get(&alice, &format!("event/{event}")).await);
        assert_eq!(event["content"]["body"], body);
    }
    // Those who may not send redactions do not redact even their own.
    let levels = json!({ "events": { "m.room.redaction": 50 } });
    let wish = json!({ "preset": "public_chat", "power_level_content_override": levels });
    let strict = Room::create(&alice, wish).await;
    strict.does(&bob, "join").await;
    let his = strict.say(&bob, "his").await;
    refused(redact(&strict, &bob, &his).await, 403, "M_FORBIDDEN");
    strict.does(&bob, "leave").await;
    refused(redact(&strict, &bob, &his).await, 403, "M_FORBIDDEN");
}

const WITH: &str = "org.matrix.msc3912.with_relations";

/// Whether an event has still something to say.
async fn is_there(room: &Room, who: &Client, event: &str) -> bool {
    let event = ok(room.get(who, &format!("event/{event}")).await);
    event["content"] != json!({})
}

#[tokio::test]
async fn what_relates_to_an_event_is_redacted_with_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["10", "12"] {
        let wish = json!({ "preset": "public_chat", "room_version": version });
        let room = Room::create(&alice, wish).await;
        room.does(&bob, "join").await;
        let root = room.say(&bob, "root").await;
        let own = room.relate(&bob, "m.thread", &root).await;
        let others = room.relate(&alice, "m.thread", &root).await;
        let reference = room.relate(&bob, "m.reference", &root).await;
        let redact = async |who: &Client, txn: &str, with: Value| {
            let path = format!("redact/{root}/{txn}");
            room.put(who, &path, json!({ "reason": "because", WITH: with }))
                .await
        };
        for wrong in [json!("m.thread"), json!([1])] {
            refused(redact(&bob, "wrong", wrong).await, 400, "M_BAD_JSON");
        }
        let many: Vec<_> = (0..21).map(|n| n.to_string()).collect();
        refused(
            redact(&bob, "many", json!(many)).await,
            400,
            "M_INVALID_PARAM",
        );
        assert!(is_there(&room, &bob, &root).await);

        // Bob may redact only what is his.
        let first = ok(redact(&bob, "1", json!(["m.thread"])).await);
        assert!(!is_there(&room, &bob, &root).await);
        assert!(!is_there(&room, &bob, &own).await);
        assert!(is_there(&room, &bob, &others).await);
        assert!(is_there(&room, &bob, &reference).await);
        let event = ok(room.get(&alice, &format!("event/{own}")).await);
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["content"]["reason"], "because");
        assert_eq!(because["redacts"], own);
        assert!(because["content"].get(WITH).is_none(), "{because}");
        assert_eq!(ok(redact(&bob, "1", json!(["m.thread"])).await), first);
        ok(redact(&alice, "2", json!(["*"])).await);
        for event in [&others, &reference] {
            assert!(!is_there(&room, &bob, event).await);
        }
    }
}

#[tokio::test]
async fn nothing_of_another_room_is_redacted_with_an_event() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let root = room.say(&alice, "root").await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    let path = format!("redact/{root}/1");
    refused(
        other.put(&alice, &path, json!({ WITH: ["*"] })).await,
        404,
        "M_NOT_FOUND",
    );
    assert!(is_there(&room, &alice, &reply).await);
}
