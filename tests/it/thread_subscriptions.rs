//! Which threads a user follows: MSC4306 and MSC4308.

use serde_json::{Value, json};

use crate::{
    server::{Client, TestServer, ok, refused, text},
    several::sound,
    sliding::Sliding,
};

const CHANGES: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b";
const NOT_IN_THREAD: &str = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";
const CONFLICT: &str = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";

fn path(room: &str, root: &str) -> String {
    format!("/_matrix/client/unstable/io.element.msc4306/rooms/{room}/thread/{root}/subscription")
}

async fn room(client: &Client, preset: &str) -> String {
    let body = json!({ "preset": preset });
    text(
        &ok(client.post("/_matrix/client/v3/createRoom", body).await),
        "room_id",
    )
}

/// A message, in a thread if one is given.
async fn say(client: &Client, room: &str, n: usize, relation: Option<(&str, &str)>) -> String {
    let mut body = json!({ "msgtype": "m.text", "body": "x" });
    if let Some((kind, root)) = relation {
        body["m.relates_to"] = json!({ "rel_type": kind, "event_id": root });
    }
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/t{n}");
    text(&ok(client.put(&path, body).await), "event_id")
}

fn stamp(changes: &Value, part: &str, room: &str, root: &str) -> u64 {
    let stamp = &changes[part][room][root]["bump_stamp"];
    stamp
        .as_u64()
        .unwrap_or_else(|| panic!("no stamp in {changes}"))
}

#[tokio::test]
async fn threads_are_followed_and_left() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = room(&alice, "private_chat").await;
    let root = say(&alice, &room, 0, None).await;
    let path = path(&room, &root);
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    // Nothing to leave is no error, and no news.
    ok(alice.delete(&path).await);
    assert_eq!(ok(alice.get(CHANGES).await), json!({}));
    ok(alice.put(&path, json!({})).await);
    assert_eq!(ok(alice.get(&path).await), json!({ "automatic": false }));
    let first = stamp(&ok(alice.get(CHANGES).await), "subscribed", &room, &root);
    // The same again changes nothing, and an app does not overrule its user.
    ok(alice.put(&path, json!({})).await);
    let reply = say(&alice, &room, 1, Some(("m.thread", &root))).await;
    ok(alice.put(&path, json!({ "automatic": reply })).await);
    let changes = ok(alice.get(CHANGES).await);
    assert_eq!(changes["subscribed"][&room][&root]["automatic"], false);
    assert_eq!(stamp(&changes, "subscribed", &room, &root), first);
    ok(alice.delete(&path).await);
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    let changes = ok(alice.get(CHANGES).await);
    assert_eq!(changes.get("subscribed"), None);
    assert!(stamp(&changes, "unsubscribed", &room, &root) > first);
    let server = server.restart();
    assert_eq!(ok(alice.get(CHANGES).await), changes);
    sound(&[&server]);
}

#[tokio::test]
async fn an_app_does_not_bring_back_what_its_user_has_left() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = room(&alice, "private_chat").await;
    let root = say(&alice, &room, 0, None).await;
    let other_root = say(&alice, &room, 1, None).await;
    let path = path(&room, &root);
    let one = say(&alice, &room, 2, Some(("m.thread", &root))).await;
    let elsewhere = say(&alice, &room, 3, Some(("m.thread", &other_root))).await;
    let reaction = say(&alice, &room, 4, Some(("m.reference", &root))).await;
    for cause in [&root, &elsewhere, &reaction] {
        let body = json!({ "automatic": cause });
        refused(alice.put(&path, body).await, 400, NOT_IN_THREAD);
    }
    let nothing = json!({ "automatic": "$nothing" });
    refused(alice.put(&path, nothing).await, 404, "M_NOT_FOUND");
    refused(
        alice.put(&path, json!({ "automatic": 5 })).await,
        400,
        "M_BAD_JSON",
    );
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    ok(alice.put(&path, json!({ "automatic": one })).await);
    assert_eq!(ok(alice.get(&path).await), json!({ "automatic": true }));
    let two = say(&alice, &room, 5, Some(("m.thread", &root))).await;
    ok(alice.delete(&path).await);
    let three = say(&alice, &room, 6, Some(("m.thread", &root))).await;
    for old in [&one, &two] {
        refused(
            alice.put(&path, json!({ "automatic": old })).await,
            409,
            CONFLICT,
        );
    }
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    ok(alice.put(&path, json!({ "automatic": three })).await);
    assert_eq!(ok(alice.get(&path).await), json!({ "automatic": true }));
    // The user overrules the app, also after having left.
    ok(alice.put(&path, json!({})).await);
    assert_eq!(ok(alice.get(&path).await), json!({ "automatic": false }));
    ok(alice.delete(&path).await);
    ok(alice.put(&path, json!({})).await);
    assert_eq!(ok(alice.get(&path).await), json!({ "automatic": false }));
    sound(&[&server]);
}

#[tokio::test]
async fn changes_are_listed_from_the_newest_page_by_page() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice, "private_chat").await;
    let mut roots = Vec::new();
    for n in 0..5 {
        let root = say(&alice, &room, n, None).await;
        ok(alice.put(&path(&room, &root), json!({})).await);
        roots.push(root);
    }
    // Its last change counts.
    ok(alice.delete(&path(&room, &roots[0])).await);
    let order = ["0", "4", "3", "2", "1"].map(|n| &roots[n.parse::<usize>().expect("a number")]);
    let mut seen = Vec::new();
    let mut from = String::new();
    loop {
        let page = ok(alice.get(&format!("{CHANGES}&limit=2{from}")).await);
        let mut ids: Vec<(u64, String)> = Vec::new();
        for part in ["subscribed", "unsubscribed"] {
            for (root, one) in page[part][&room].as_object().into_iter().flatten() {
                ids.push((one["bump_stamp"].as_u64().expect("a number"), root.clone()));
            }
        }
        assert!(ids.len() <= 2, "{page}");
        ids.sort_by_key(|(stamp, _)| std::cmp::Reverse(*stamp));
        seen.extend(ids.into_iter().map(|(_, root)| root));
        match page.get("end") {
            Some(end) => from = format!("&from={}", end.as_str().expect("a text")),
            None => break,
        }
    }
    assert_eq!(seen.iter().collect::<Vec<_>>(), order);
    // Only what came after a sync.
    let since = text(
        &ok(alice.get("/_matrix/client/v3/sync").await),
        "next_batch",
    );
    let after = format!("{CHANGES}&to={since}");
    assert_eq!(ok(alice.get(&after).await), json!({}));
    ok(alice.put(&path(&room, &roots[0]), json!({})).await);
    let news = ok(alice.get(&after).await);
    assert_eq!(
        news["subscribed"][&room]
            .as_object()
            .map(serde_json::Map::len),
        Some(1)
    );
    assert_eq!(ok(bob.get(CHANGES).await), json!({}));
    for wrong in ["&limit=0", "&from=x", "&to=5", "&dir=f"] {
        let path = format!("{CHANGES}{wrong}");
        refused(alice.get(&path).await, 400, "M_INVALID_PARAM");
    }
    let forward = CHANGES.replace("dir=b", "dir=f");
    refused(alice.get(&forward).await, 400, "M_INVALID_PARAM");
    let without = CHANGES.replace("?dir=b", "");
    refused(alice.get(&without).await, 400, "M_MISSING_PARAM");
    sound(&[&server]);
}

#[tokio::test]
async fn a_thread_that_is_not_seen_is_not_there() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room_id = room(&alice, "private_chat").await;
    let other = room(&alice, "private_chat").await;
    let root = say(&alice, &room_id, 0, None).await;
    let own = room(&bob, "private_chat").await;
    for path in [
        path(&room_id, &root),
        path(&room_id, "$nothing"),
        path("!nowhere:localhost", &root),
        path(&own, &root),
    ] {
        refused(bob.put(&path, json!({})).await, 404, "M_NOT_FOUND");
        refused(bob.get(&path).await, 404, "M_NOT_FOUND");
        refused(bob.delete(&path).await, 404, "M_NOT_FOUND");
    }
    // Another room's event.
    refused(
        alice.put(&path(&other, &root), json!({})).await,
        404,
        "M_NOT_FOUND",
    );
    let mine = say(&bob, &own, 1, None).await;
    let body = json!({ "automatic": root });
    refused(bob.put(&path(&own, &mine), body).await, 404, "M_NOT_FOUND");
    // What was said after one has left.
    let invite = json!({ "user_id": bob.user_id });
    ok(alice
        .post(
            &format!("/_matrix/client/v3/rooms/{room_id}/invite"),
            invite,
        )
        .await);
    ok(bob
        .post(
            &format!("/_matrix/client/v3/rooms/{room_id}/join"),
            json!({}),
        )
        .await);
    ok(bob.put(&path(&room_id, &root), json!({})).await);
    ok(bob
        .post(
            &format!("/_matrix/client/v3/rooms/{room_id}/leave"),
            json!({}),
        )
        .await);
    let later = say(&alice, &room_id, 2, None).await;
    refused(
        bob.put(&path(&room_id, &later), json!({})).await,
        404,
        "M_NOT_FOUND",
    );
    // With the account goes what it followed.
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "bob" },
        "password": crate::server::PASSWORD,
    });
    let body = json!({ "auth": auth });
    ok(bob
        .post("/_matrix/client/v3/account/deactivate", body)
        .await);
    let view = server.services.store().view();
    let left = kontor::store::schema::THREAD_SUBSCRIPTIONS
        .scan(&view, &())
        .count();
    assert_eq!(left, 0);
    sound(&[&server]);
}

/// The extension of sliding sync, for the most of so many changes.
fn following(client: &Client, limit: usize) -> Sliding {
    let extension = json!({ EXTENSION: { "enabled": true, "limit": limit } });
    Sliding::new(client, json!({ "extensions": extension }))
}

#[tokio::test]
async fn sliding_sync_tells_what_has_changed() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = room(&alice, "private_chat").await;
    let root = say(&alice, &room, 0, None).await;
    let path = path(&room, &root);
    let mut first = following(&alice, 10);
    let mut strangers = following(&bob, 10);
    let mut off = Sliding::new(&alice, json!({ "conn_id": "off" }));
    for one in [&mut first, &mut strangers, &mut off] {
        assert_eq!(one.next().await["extensions"], json!({}));
    }
    // A change ends the wait, and is told until the answer has come.
    let follows = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        ok(alice.put(&path, json!({})).await);
    };
    let (lost, ()) = tokio::join!(first.ask_waiting(60_000), follows);
    let lost = ok(lost)["extensions"].clone();
    let told = first.next().await["extensions"].clone();
    assert_eq!(told, lost);
    assert_eq!(
        told[EXTENSION]["subscribed"][&room][&root]["automatic"],
        false
    );
    let stamp_then = stamp(&told[EXTENSION], "subscribed", &room, &root);
    assert_eq!(first.next().await["extensions"], json!({}));
    assert_eq!(strangers.next().await["extensions"], json!({}));
    assert_eq!(off.next().await["extensions"], json!({}));
    ok(alice.delete(&path).await);
    let told = first.next().await["extensions"][EXTENSION].clone();
    assert_eq!(told.get("subscribed"), None);
    assert!(stamp(&told, "unsubscribed", &room, &root) > stamp_then);
    // Who asks for it later hears all, and who stops for a while what was missed.
    off.body["extensions"] = json!({ EXTENSION: { "enabled": true } });
    assert_eq!(off.next().await["extensions"][EXTENSION], told);
    off.body["extensions"] = json!({});
    ok(alice.put(&path, json!({})).await);
    for _ in 0..2 {
        assert_eq!(off.next().await["extensions"], json!({}));
    }
    off.body["extensions"] = json!({ EXTENSION: { "enabled": true } });
    let told = off.next().await["extensions"][EXTENSION].clone();
    assert_eq!(told["subscribed"][&room][&root]["automatic"], false);
    assert_eq!(off.next().await["extensions"], json!({}));
    // A connection without rooms goes on over a restart.
    let _server = server.restart();
    assert_eq!(first.next().await["extensions"][EXTENSION], told);
    assert_eq!(first.next().await["extensions"], json!({}));
}

#[tokio::test]
async fn what_does_not_fit_into_a_sync_is_listed() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = room(&alice, "private_chat").await;
    let mut roots = Vec::new();
    let follow = async |n: usize| {
        let root = say(&alice, &room, n, None).await;
        ok(alice.put(&path(&room, &root), json!({})).await);
        root
    };
    roots.push(follow(0).await);
    let mut sliding = following(&alice, 2);
    let first = sliding.next().await;
    assert_eq!(first["extensions"][EXTENSION].get("prev_batch"), None);
    for n in 1..6 {
        roots.push(follow(n).await);
    }
    let of = |part: &Value| -> Vec<String> {
        let threads = part["subscribed"][&room].as_object();
        let threads = threads.into_iter().flatten();
        let mut threads: Vec<_> = threads
            .map(|(root, one)| (one["bump_stamp"].as_u64(), root.clone()))
            .collect();
        threads.sort();
        threads.into_iter().map(|(_, root)| root).collect()
    };
    let told = sliding.next().await["extensions"][EXTENSION].clone();
    assert_eq!(of(&told), roots[4..]);
    // The rest is between there and the position before.
    let mut from = told["prev_batch"].clone();
    for expect in [&roots[2..4], &roots[1..2]] {
        let from_here = from.as_str().expect("there is more");
        let to = text(&first, "pos");
        let page = ok(alice
            .get(&format!("{CHANGES}&limit=2&from={from_here}&to={to}"))
            .await);
        assert_eq!(of(&page), *expect);
        from = page["end"].clone();
    }
    assert_eq!(from, Value::Null);
    // More than can be had at once is asked for, or nothing.
    for limit in [json!(u64::MAX), json!(0)] {
        let mut odd = following(&alice, 1);
        odd.body["conn_id"] = limit.to_string().into();
        odd.body["extensions"][EXTENSION]["limit"] = limit;
        assert!(!of(&odd.next().await["extensions"][EXTENSION]).is_empty());
    }
    let mut wrong = following(&alice, 1);
    wrong.body["extensions"][EXTENSION]["limit"] = json!("all");
    refused(wrong.ask().await, 400, "M_BAD_JSON");
}
