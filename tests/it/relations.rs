//! "Relationships API".

use serde_json::Value;

use crate::{
    room::{Room, ids},
    server::{Answer, Client, TestServer, ok, refused, text},
};

async fn get(room: &Room, who: &Client, rest: &str) -> Answer {
    who.get(&format!(
        "/_matrix/client/v1/rooms/{}/relations/{rest}",
        room.0
    ))
    .await
}

#[tokio::test]
async fn relations_by_type_and_by_way_of_others() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let root = room.say(&alice, "root").await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    let reference = room.relate(&alice, "m.reference", &root).await;
    let edit = room.relate(&alice, "m.replace", &reply).await;

    for (rest, expect) in [
        (root.clone(), vec![&reference, &reply]),
        (format!("{root}?dir=f"), vec![&reply, &reference]),
        (format!("{root}/m.thread"), vec![&reply]),
        (format!("{root}/m.thread/m.room.message"), vec![&reply]),
        (format!("{root}/m.thread/m.room.topic"), vec![]),
        (format!("{root}/m.annotation"), vec![]),
        (
            format!("{root}?recurse=true"),
            vec![&edit, &reference, &reply],
        ),
        (format!("{root}/m.replace?recurse=true"), vec![&edit]),
        (format!("{root}/m.replace"), vec![]),
        (edit.clone(), vec![]),
    ] {
        let answer = ok(get(&room, &alice, &rest).await);
        assert_eq!(
            ids(&answer["chunk"]).iter().collect::<Vec<_>>(),
            expect,
            "{rest}"
        );
        assert_eq!(answer["next_batch"], Value::Null);
        assert_eq!(
            answer["recursion_depth"].is_u64(),
            rest.contains("recurse"),
            "{rest}"
        );
    }
    let path = room.path(&format!("redact/{reference}/1"));
    ok(alice.put(&path, serde_json::json!({})).await);
    let answer = ok(get(&room, &alice, &root).await);
    assert_eq!(
        ids(&answer["chunk"]),
        [reply],
        "what is redacted relates to nothing"
    );
}

#[tokio::test]
async fn pages_of_relations() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let root = room.say(&alice, "root").await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(room.relate(&alice, "m.thread", &root).await);
    }
    for dir in ["f", "b"] {
        let (mut found, mut from) = (Vec::new(), String::new());
        for _ in 0..3 {
            let path = format!("{root}/m.thread?limit=2&dir={dir}{from}");
            let page = ok(get(&room, &alice, &path).await);
            found.extend(ids(&page["chunk"]));
            if let Some(next) = page["next_batch"].as_str() {
                from = format!("&from={next}");
            }
        }
        if dir == "b" {
            found.reverse();
        }
        assert_eq!(found, all, "{dir}");
    }
    let first = ok(get(&room, &alice, &format!("{root}?limit=2")).await);
    let next = text(&first, "next_batch");
    let newer = ok(get(&room, &alice, &format!("{root}?to={next}")).await);
    assert_eq!(ids(&newer["chunk"]), ids(&first["chunk"]));
    refused(
        get(&room, &alice, &format!("{root}?from=x")).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn pages_over_many_ways_to_relate() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let root = room.say(&alice, "root").await;
    let mut all: Vec<String> = Vec::new();
    // Up to 3 kinds are read one beside the other, and more than 100 together.
    for more in [0..3, 0..110] {
        for n in more {
            all.push(
                room.relate(&alice, &format!("org.example.{n}"), &root)
                    .await,
            );
        }
        for dir in ["f", "b"] {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let path = format!("{root}?limit=7&dir={dir}{from}");
                let page = ok(get(&room, &alice, &path).await);
                found.extend(ids(&page["chunk"]));
                match page["next_batch"].as_str() {
                    Some(next) => from = format!("&from={next}"),
                    None => break,
                }
            }
            if dir == "b" {
                found.reverse();
            }
            assert_eq!(found, all, "{dir}");
        }
    }
}

#[tokio::test]
async fn who_may_not_see_the_parent_sees_no_relations() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let unknown = Room("!unknown:localhost".to_owned());
    let root = room.say(&alice, "root").await;
    refused(get(&room, &bob, &root).await, 403, "M_FORBIDDEN");
    refused(get(&unknown, &alice, &root).await, 403, "M_FORBIDDEN");
    refused(get(&other, &alice, &root).await, 404, "M_NOT_FOUND");
    refused(get(&room, &alice, "$unknown").await, 404, "M_NOT_FOUND");

    room.does(&bob, "join").await;
    let before = room.relate(&alice, "m.thread", &root).await;
    room.does(&bob, "leave").await;
    room.relate(&alice, "m.thread", &root).await;
    let answer = ok(get(&room, &bob, &root).await);
    assert_eq!(ids(&answer["chunk"]), [before]);
}
