//! What comes with an event, and what vanishes, is the same wherever events are told.

use serde_json::{Value, json};

use crate::{
    elsewhere::check,
    room::{Room, encoded},
    server::{Client, TestServer, ok, text},
    sliding::Sliding,
};

/// The answers of all that tells events, by what was asked. `root` is an event to which the others relate.
async fn everywhere(who: &Client, room: &Room, root: &str, event: &str) -> Vec<(String, Value)> {
    let filter = json!({ "room": { "timeline": { "limit": 50 } } }).to_string();
    let (id, root) = (encoded(event), encoded(root));
    let mut answers = Vec::new();
    for path in [
        format!("v3/sync?timeout=0&filter={}", encoded(&filter)),
        format!("v3/rooms/{}/messages?dir=b&limit=50", room.0),
        format!("v3/rooms/{}/messages?dir=f&limit=50", room.0),
        format!("v3/rooms/{}/context/{id}?limit=50", room.0),
        format!("v3/rooms/{}/event/{id}", room.0),
        format!("v1/rooms/{}/relations/{root}?limit=50", room.0),
        format!("v1/rooms/{}/relations/{root}?limit=50&recurse=true", room.0),
        format!("v1/rooms/{}/threads", room.0),
        format!("v3/rooms/{}/initialSync?limit=50", room.0),
        "v3/initialSync?limit=50".to_owned(),
        "v3/events?from=t0&timeout=0".to_owned(),
        format!("v3/events/{id}"),
        "v3/notifications?limit=50".to_owned(),
    ] {
        let answer = ok(who.get(&format!("/_matrix/client/{path}")).await);
        answers.push((path, answer));
    }
    let mut sliding = Sliding::of_all(who, 50, json!([]));
    answers.push(("sliding sync".to_owned(), sliding.next().await));
    answers
}

/// All places at which an event stands in an answer.
fn places<'a>(answer: &'a Value, id: &str, found: &mut Vec<&'a Value>) {
    if answer["event_id"] == id && answer["type"].is_string() {
        found.push(answer);
    }
    let lists = answer.as_array().into_iter().flatten();
    let members = answer.as_object().into_iter().flat_map(|all| all.values());
    for value in lists.chain(members) {
        places(value, id, found);
    }
}

/// Fails unless what comes with an event is this in all answers; at least in so many.
#[track_caller]
fn comes_with(answers: &[(String, Value)], id: &str, least: usize, expect: &Value) {
    let mut told = 0;
    for (path, answer) in answers {
        let mut found = Vec::new();
        places(answer, id, &mut found);
        told += usize::from(!found.is_empty());
        for event in found {
            assert_eq!(&brief(event), expect, "{path}");
        }
    }
    assert!(told >= least, "only {told} tell of it");
}

/// What comes with an event, with ids instead of events.
fn brief(event: &Value) -> Value {
    let all = &event["unsigned"]["m.relations"];
    let thread = &all["m.thread"];
    json!({
        "edit": all["m.replace"]["event_id"],
        "references": all["m.reference"]["chunk"],
        "replies": thread["count"],
        "latest": thread["latest_event"]["event_id"],
        "part": thread["current_user_participated"],
    })
}

#[track_caller]
fn is_nowhere(answers: &[(String, Value)], what: &str) {
    for (path, answer) in answers {
        assert!(!answer.to_string().contains(what), "{what}: {path}");
    }
}

async fn relate(room: &Room, who: &Client, kind: &str, to: &str, body: &str) -> String {
    let content = json!({
        "msgtype": "m.text", "body": body, "m.new_content": { "msgtype": "m.text", "body": body },
        "m.relates_to": { "rel_type": kind, "event_id": to },
    });
    room.send(who, "m.room.message", content).await
}

async fn ignore(who: &Client, whom: &[String]) {
    let users: serde_json::Map<String, Value> =
        whom.iter().map(|user| (user.clone(), json!({}))).collect();
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        who.user_id
    );
    ok(who.put(&path, json!({ "ignored_users": users })).await);
}

#[tokio::test]
async fn wherever_an_event_is_told() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    room.does(&carol, "join").await;
    let root = room.say(&alice, "the-first-words").await;
    let edit = relate(&room, &alice, "m.replace", &root, "edited").await;
    // No edit, as it is somebody else's.
    relate(&room, &carol, "m.replace", &root, "words-of-carol").await;
    let reference = relate(&room, &bob, "m.reference", &root, "see").await;
    relate(&room, &bob, "m.annotation", &root, "+1").await;
    let reply = relate(&room, &bob, "m.thread", &root, "bobs-reply").await;
    let reply_edit = relate(&room, &bob, "m.replace", &reply, "better").await;
    let carols = relate(&room, &carol, "m.thread", &root, "words-of-carol").await;
    let carols_reference = relate(&room, &carol, "m.reference", &root, "words-of-carol").await;
    let seen = async |who: &Client| everywhere(who, &room, &root, &root).await;
    let expect = |replies: u64, latest: &str, part: bool, references: &[&String]| {
        let references: Vec<_> = references
            .iter()
            .map(|id| json!({ "event_id": id }))
            .collect();
        json!({
            "edit": edit, "references": references, "replies": replies, "latest": latest, "part": part,
        })
    };
    // In all but what tells only of what relates to it, and what does not notify her.
    let both = [&reference, &carols_reference];
    comes_with(
        &seen(&alice).await,
        &root,
        11,
        &expect(2, &carols, true, &both),
    );
    comes_with(
        &seen(&carol).await,
        &root,
        11,
        &expect(2, &carols, true, &both),
    );
    let of_reply = json!({
        "edit": reply_edit, "references": null, "replies": null, "latest": null, "part": null,
    });
    let answers = everywhere(&alice, &room, &root, &reply).await;
    comes_with(&answers, &reply, 12, &of_reply);

    // Whoever is ignored is not there, not even as a number.
    ignore(&alice, std::slice::from_ref(&carol.user_id)).await;
    let answers = seen(&alice).await;
    comes_with(&answers, &root, 11, &expect(1, &reply, true, &[&reference]));
    is_nowhere(&answers, "words-of-carol");
    ignore(&carol, &[bob.user_id.clone(), alice.user_id.clone()]).await;
    let path = format!("/_matrix/client/v1/rooms/{}/threads", room.0);
    assert_eq!(
        ok(carol.get(&path).await)["chunk"],
        json!([]),
        "alice began it"
    );
    // More than are looked up one by one.
    let mut crowd: Vec<String> = (0..70).map(|n| format!("@{n}:far.example")).collect();
    crowd.push(carol.user_id.clone());
    ignore(&alice, &crowd).await;
    comes_with(
        &seen(&alice).await,
        &root,
        11,
        &expect(1, &reply, true, &[&reference]),
    );

    // What is redacted is gone, and so is what came with it by that.
    let redact = async |who: &Client, event: &str| {
        let path = room.path(&format!("redact/{}/{}", encoded(event), event.len()));
        text(&ok(who.put(&path, json!({})).await), "event_id")
    };
    redact(&bob, &reply).await;
    let answers = seen(&alice).await;
    is_nowhere(&answers, "bobs-reply");
    let mut left = expect(0, "", true, &[&reference]);
    for gone in ["replies", "latest", "part"] {
        left[gone] = Value::Null;
    }
    comes_with(&answers, &root, 10, &left);
    redact(&alice, &root).await;
    let answers = seen(&alice).await;
    is_nowhere(&answers, "the-first-words");
    left["edit"] = Value::Null;
    comes_with(&answers, &root, 10, &left);
    ignore(&alice, &[]).await;
    left["replies"] = 1.into();
    left["latest"] = carols.clone().into();
    left["part"] = true.into();
    left["references"] = json!([{ "event_id": reference }, { "event_id": carols_reference }]);
    comes_with(&seen(&alice).await, &root, 11, &left);
    check(&server);
}
