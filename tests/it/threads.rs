//! "Threading": the list of a room's threads.

use serde_json::json;

use crate::{
    elsewhere::check,
    room::{Room, ids},
    server::{Answer, Client, TestServer, ok, refused, text},
};

async fn get(room: &Room, who: &Client, rest: &str) -> Answer {
    let room = &room.0;
    who.get(&format!("/_matrix/client/v1/rooms/{room}/threads{rest}"))
        .await
}

async fn roots(room: &Room, who: &Client, rest: &str) -> Vec<String> {
    ids(&ok(get(room, who, rest).await)["chunk"])
}

async fn redact(room: &Room, who: &Client, event: &str) {
    let path = room.path(&format!("redact/{event}/of-{event}"));
    ok(who.put(&path, json!({})).await);
}

#[tokio::test]
async fn those_where_something_was_said_last_come_first() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    assert!(roots(&room, &alice, "").await.is_empty());
    let (first, second) = (room.say(&alice, "1").await, room.say(&bob, "2").await);
    let third = room.say(&bob, "3").await;
    room.relate(&alice, "m.replace", &third).await;
    let reply = room.relate(&bob, "m.thread", &first).await;
    room.relate(&bob, "m.thread", &second).await;
    assert_eq!(roots(&room, &alice, "").await, [&*second, &*first]);
    let newest = room.relate(&bob, "m.thread", &first).await;
    assert_eq!(roots(&room, &alice, "").await, [&*first, &*second]);

    let answer = ok(get(&room, &alice, "").await);
    let summary = &answer["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(text(&summary["latest_event"], "event_id"), newest);
    assert_eq!(summary["count"], 2);

    // Alice has begun the first, and says something in the second.
    let participated = "?include=participated";
    assert_eq!(roots(&room, &alice, participated).await, [&*first]);
    let own = room.relate(&alice, "m.thread", &second).await;
    assert_eq!(
        roots(&room, &alice, participated).await,
        [&*second, &*first]
    );
    assert_eq!(roots(&room, &bob, participated).await, [&*second, &*first]);
    redact(&room, &alice, &own).await;
    assert_eq!(roots(&room, &alice, participated).await, [&*first]);
    assert_eq!(roots(&room, &alice, "").await, [&*first, &*second]);

    // Without its newest reply it goes back to where it was, and without any it is none.
    redact(&room, &bob, &newest).await;
    assert_eq!(roots(&room, &alice, "").await, [&*second, &*first]);
    redact(&room, &bob, &reply).await;
    assert_eq!(roots(&room, &alice, "").await, [&*second]);
    check(&server);
}

#[tokio::test]
async fn pages_of_threads() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut all = Vec::new();
    for n in 0..5 {
        all.insert(0, room.say(&alice, &n.to_string()).await);
        for _ in 0..=n {
            room.relate(&alice, "m.thread", &all[0]).await;
        }
    }
    for limit in [1, 2, 5] {
        let (mut found, mut rest) = (Vec::new(), format!("?limit={limit}"));
        loop {
            let page = ok(get(&room, &alice, &rest).await);
            found.extend(ids(&page["chunk"]));
            let Some(next) = page["next_batch"].as_str() else {
                break;
            };
            rest = format!("?limit={limit}&from={next}");
        }
        assert_eq!(found, all, "{limit}");
    }
    for bad in ["?from=x", "?include=some", "?limit=x"] {
        let answer = get(&room, &alice, bad).await;
        assert_eq!(answer.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn nobody_is_shown_threads_that_they_may_not_see() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let root = room.say(&alice, "root").await;
    room.relate(&alice, "m.thread", &root).await;
    refused(get(&room, &bob, "").await, 403, "M_FORBIDDEN");
    let unknown = Room("!unknown:localhost".to_owned());
    refused(get(&unknown, &bob, "").await, 403, "M_FORBIDDEN");
    assert!(roots(&other, &alice, "").await.is_empty());

    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    let after = room.say(&alice, "after").await;
    room.relate(&alice, "m.thread", &after).await;
    assert_eq!(roots(&room, &bob, "").await, [&*root], "until they left");

    // Whoever is ignored begins no thread.
    room.does(&carol, "join").await;
    let carols = room.say(&carol, "buy this").await;
    room.relate(&carol, "m.thread", &carols).await;
    assert_eq!(roots(&room, &alice, "").await, [&*carols, &*after, &*root]);
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        alice.user_id
    );
    let list = json!({ "ignored_users": { &*carol.user_id: {} } });
    ok(alice.put(&path, list).await);
    assert_eq!(roots(&room, &alice, "").await, [&*after, &*root]);
}
