//! "Server Side Search": messages, names and topics found by their words, by those who may see them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
    several::sound,
};

const SEARCH: &str = "/_matrix/client/v3/search";

/// A search with these criteria.
fn body(criteria: Value) -> Value {
    json!({ "search_categories": { "room_events": criteria } })
}

async fn ask(who: &Client, criteria: Value) -> Value {
    let answer = ok(who.post(SEARCH, body(criteria)).await);
    answer["search_categories"]["room_events"].clone()
}

/// The bodies, names or topics that are found, the newest first.
async fn found(who: &Client, term: &str) -> Vec<String> {
    found_by(who, json!({ "search_term": term, "order_by": "recent" })).await
}

async fn found_by(who: &Client, criteria: Value) -> Vec<String> {
    texts(&ask(who, criteria).await)
}

fn texts(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().expect("there is a list");
    let contents = results.iter().map(|result| &result["result"]["content"]);
    contents
        .map(|content| {
            ["body", "name", "topic"]
                .iter()
                .find_map(|key| content[key].as_str())
                .unwrap_or_else(|| panic!("no text in {content}"))
                .to_owned()
        })
        .collect()
}

async fn edit(room: &Room, who: &Client, of: &str, new: &str) -> String {
    let content = json!({
        "msgtype": "m.text", "body": format!("* {new}"),
        "m.new_content": { "msgtype": "m.text", "body": new },
        "m.relates_to": { "rel_type": "m.replace", "event_id": of },
    });
    room.send(who, "m.room.message", content).await
}

#[tokio::test]
async fn a_message_is_found_as_soon_as_it_was_sent() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    assert!(found(&alice, "hello").await.is_empty());
    let room = Room::new(&alice, "shared").await;
    let id = room.say(&alice, "hello, world").await;
    let answer = ask(&alice, json!({ "search_term": "hello" })).await;
    assert_eq!(answer["count"], 1);
    let result = &answer["results"][0];
    assert_eq!(result["result"]["event_id"], id);
    assert_eq!(result["result"]["room_id"], room.0);
    assert_eq!(result["result"]["sender"], alice.user_id);
    assert!(result["rank"].as_f64().is_some_and(|rank| rank > 0.0));
    assert_eq!(result["context"], json!({}));
    assert_eq!(answer["highlights"], json!(["hello"]));
    assert!(answer.get("next_batch").is_none());
    assert!(answer.get("state").is_none() && answer.get("groups").is_none());
}

#[tokio::test]
async fn words_are_found_in_their_forms_and_names_and_numbers_just_so() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    for body in [
        "Посмотрите договоры с поставщиками, Пётр",
        "Bitte schick mir die Rechnungen für den Umzug nach München",
        "Please send me the invoices for the running projects",
        "Herr Müller hat AB-1234/5 bestellt",
        "AB-1234/50 und 5 AB",
        "Die Straße nach Größe",
        "foo \u{4f60}\u{597d} bar",
    ] {
        room.say(&alice, body).await;
    }
    for (term, expect) in [
        ("договор", "Посмотрите"),
        ("ДОГОВОРА поставщик", "Посмотрите"),
        ("петр", "Посмотрите"),
        ("Петру", "Посмотрите"),
        ("rechnung", "Bitte"),
        ("RECHNUNGEN", "Bitte"),
        ("munchen", "Bitte"),
        ("muenchen", "Bitte"),
        ("invoice", "Please"),
        ("projects run", "Please"),
        ("Müller", "Herr"),
        ("muller", "Herr"),
        ("MUELLER", "Herr"),
        ("AB-1234/5", "Herr"),
        ("ab-1234/50", "AB-1234/50"),
        ("\"herr müller\"", "Herr"),
        ("\"Herr Mueller\"", "Herr"),
        ("strasse", "Die"),
        ("groesse", "Die"),
        ("\u{4f60}\u{597d}", "foo"),
    ] {
        let found = found(&alice, term).await;
        assert_eq!(found.len(), 1, "{term}: {found:?}");
        assert!(found[0].starts_with(expect), "{term}: {found:?}");
    }
    for term in [
        "договорённость",
        "Rechner",
        "inv",
        "AB-1234/6",
        "1234-AB",
        "\"müller herr\"",
        "\"rechnung für\"",
        "rechnung договор",
        "",
        "\"\"",
        "* OR body:herr^2",
        "[a TO z]",
    ] {
        assert_eq!(found(&alice, term).await, Vec::<String>::new(), "{term}");
    }
    let answer = ask(&alice, json!({ "search_term": "rechnung münchen" })).await;
    assert_eq!(answer["highlights"], json!(["Rechnungen", "München"]));
}

#[tokio::test]
async fn names_and_topics_are_found_by_their_keys() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    room.set(&alice, "m.room.name", json!({ "name": "Kitchen north" }))
        .await;
    room.set(
        &alice,
        "m.room.topic",
        json!({ "topic": "tea in the kitchen" }),
    )
    .await;
    room.say(&alice, "the kitchen is cold").await;
    // Anything else may say what it likes.
    room.set(&alice, "org.example.name", json!({ "name": "kitchen" }))
        .await;
    room.send(&alice, "org.example", json!({ "body": "kitchen" }))
        .await;
    let by = |keys: Value| json!({ "search_term": "kitchen", "order_by": "recent", "keys": keys });
    let all = ["the kitchen is cold", "tea in the kitchen", "Kitchen north"];
    assert_eq!(found(&alice, "kitchen").await, all);
    for (keys, expect) in [
        (json!(["content.name"]), vec![all[2]]),
        (json!(["content.topic"]), vec![all[1]]),
        (
            json!(["content.body", "content.name"]),
            vec![all[0], all[2]],
        ),
        (json!([]), vec![]),
    ] {
        assert_eq!(found_by(&alice, by(keys.clone())).await, expect, "{keys}");
    }
    refused(
        alice.post(SEARCH, body(by(json!(["content.x"])))).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn filters_say_which_events_are_found() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (one, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    one.does(&bob, "join").await;
    one.say(&alice, "tea by alice").await;
    one.say(&bob, "tea by bob").await;
    let image = json!({ "msgtype": "m.image", "body": "tea.jpg", "url": "mxc://localhost/tea" });
    one.send(&alice, "m.room.message", image).await;
    other
        .set(&alice, "m.room.name", json!({ "name": "tea elsewhere" }))
        .await;
    let all = ["tea elsewhere", "tea.jpg", "tea by bob", "tea by alice"];
    for (filter, expect) in [
        (json!({}), vec![0, 1, 2, 3]),
        (json!({ "rooms": [one.0] }), vec![1, 2, 3]),
        (json!({ "rooms": [] }), vec![]),
        (json!({ "not_rooms": [one.0] }), vec![0]),
        (
            json!({ "rooms": [one.0, other.0], "not_rooms": [one.0] }),
            vec![0],
        ),
        (json!({ "senders": [bob.user_id] }), vec![2]),
        (json!({ "not_senders": [alice.user_id] }), vec![2]),
        (json!({ "types": ["m.room.name"] }), vec![0]),
        (json!({ "not_types": ["m.room.m*"] }), vec![0]),
        (json!({ "types": ["m.room.encrypted"] }), vec![]),
        (json!({ "contains_url": true }), vec![1]),
        (json!({ "contains_url": false }), vec![0, 2, 3]),
        (json!({ "limit": 2 }), vec![0, 1]),
        (json!({ "limit": 0 }), vec![0]),
    ] {
        let expect: Vec<_> = expect.into_iter().map(|index: usize| all[index]).collect();
        let criteria = json!({ "search_term": "tea", "order_by": "recent", "filter": filter });
        assert_eq!(found_by(&alice, criteria).await, expect, "{filter}");
    }
    // Ten thousand rooms, of which the user is in one.
    let mut rooms: Vec<_> = (0..10_000).map(|n| format!("!room{n}:localhost")).collect();
    rooms.push(other.0.clone());
    let criteria = json!({ "search_term": "tea", "filter": { "rooms": rooms } });
    assert_eq!(found_by(&alice, criteria).await, ["tea elsewhere"]);
    for filter in [
        json!({ "rooms": ["no room"] }),
        json!([]),
        json!({ "senders": 7 }),
    ] {
        let criteria = json!({ "search_term": "tea", "filter": filter });
        let (status, answer) = alice.post(SEARCH, body(criteria)).await;
        assert_eq!(status, 400, "{answer}");
    }
}

#[tokio::test]
async fn nobody_finds_what_they_do_not_see() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    for (visibility, expect) in [
        ("invited", vec!["tea while in"]),
        ("joined", vec!["tea while in"]),
        ("shared", vec!["tea while in", "tea before"]),
        ("world_readable", vec!["tea while in", "tea before"]),
    ] {
        let room = Room::new(&alice, visibility).await;
        let by =
            |filter: Value| json!({ "search_term": "tea", "order_by": "recent", "filter": filter });
        let here = by(json!({ "rooms": [room.0] }));
        room.say(&alice, "tea before").await;
        assert!(
            found_by(&bob, here.clone()).await.is_empty(),
            "{visibility}"
        );
        room.does(&bob, "join").await;
        room.say(&alice, "tea while in").await;
        room.does(&bob, "leave").await;
        room.say(&alice, "tea after").await;
        let answer = ask(&bob, here.clone()).await;
        assert_eq!(texts(&answer), expect, "{visibility}");
        assert_eq!(answer["count"], expect.len(), "{visibility}");
        assert_eq!(found_by(&alice, here.clone()).await.len(), 3);
        // A room that one is not in is no other than one that does not exist.
        let elsewhere = ask(&eve, here).await;
        let nowhere = ask(&eve, by(json!({ "rooms": ["!nowhere:localhost"] }))).await;
        assert_eq!(elsewhere, nowhere);
        assert_eq!(
            (elsewhere["count"].clone(), texts(&elsewhere).len()),
            (json!(0), 0)
        );
        room.does(&bob, "forget").await;
        assert!(
            found_by(&bob, by(json!({ "rooms": [room.0] })))
                .await
                .is_empty()
        );
    }
    assert!(found(&eve, "tea").await.is_empty());
    // Invited is not in.
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "biscuits").await;
    room.does_to(&alice, "invite", &eve).await;
    assert!(found(&eve, "biscuits").await.is_empty());
    room.does(&eve, "join").await;
    assert_eq!(found(&eve, "biscuits").await, ["biscuits"]);
    room.does_to(&alice, "ban", &eve).await;
    room.say(&alice, "biscuits without eve").await;
    assert_eq!(found(&eve, "biscuits").await, ["biscuits"]);
}

#[tokio::test]
async fn what_is_hidden_holds_up_nobody() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let seen = Room::new(&alice, "shared").await;
    seen.does(&bob, "join").await;
    seen.say(&alice, "tea of long ago").await;
    server.clock.advance(Duration::from_secs(1));
    let hidden = Room::new(&alice, "joined").await;
    for number in 0..510 {
        hidden.say(&alice, &format!("tea {number}")).await;
    }
    hidden.does(&bob, "join").await;
    let criteria = json!({ "search_term": "tea", "order_by": "recent" });
    let first = ask(&bob, criteria.clone()).await;
    assert_eq!((texts(&first).len(), first["count"].clone()), (0, json!(0)));
    let path = format!("{SEARCH}?next_batch={}", text(&first, "next_batch"));
    let second = ok(bob.post(&path, body(criteria)).await);
    let second = &second["search_categories"]["room_events"];
    assert_eq!(texts(second), ["tea of long ago"]);
    assert!(second.get("next_batch").is_none());
}

#[tokio::test]
async fn ignored_users_are_not_found() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    room.say(&bob, "tea").await;
    assert_eq!(found(&alice, "tea").await, ["tea"]);
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        alice.user_id
    );
    ok(alice
        .put(
            &path,
            json!({ "ignored_users": { bob.user_id.clone(): {} } }),
        )
        .await);
    assert!(found(&alice, "tea").await.is_empty());
    assert_eq!(found(&bob, "tea").await, ["tea"]);
}

#[tokio::test]
async fn what_was_redacted_is_not_found_any_more() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let kept = room.say(&alice, "tea that stays").await;
    let gone = room.say(&alice, "tea that goes").await;
    assert_eq!(found(&alice, "tea").await.len(), 2);
    let path = room.path(&format!("redact/{gone}/1"));
    ok(alice.put(&path, json!({})).await);
    for order in ["rank", "recent"] {
        let answer = ask(&alice, json!({ "search_term": "tea", "order_by": order })).await;
        assert_eq!(answer["count"], 1, "{order}");
        assert_eq!(answer["results"][0]["result"]["event_id"], kept);
    }
    // Also if it was never found before.
    let gone = room.say(&alice, "unseen").await;
    let path = room.path(&format!("redact/{gone}/2"));
    ok(alice.put(&path, json!({})).await);
    assert!(found(&alice, "unseen").await.is_empty());
}

#[tokio::test]
async fn an_edited_message_is_found_by_what_it_says_now() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let id = room.say(&alice, "cofee").await;
    assert_eq!(found(&alice, "cofee").await, ["cofee"]);
    edit(&room, &alice, &id, "coffee").await;
    let answer = ask(&alice, json!({ "search_term": "coffee" })).await;
    assert_eq!(answer["count"], 1);
    let result = &answer["results"][0]["result"];
    assert_eq!(result["event_id"], id);
    assert_eq!(result["content"]["body"], "cofee");
    let bundled = &result["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(bundled["content"]["m.new_content"]["body"], "coffee");
    assert!(found(&alice, "cofee").await.is_empty());
    // An edit by somebody else is none.
    edit(&room, &bob, &id, "espresso").await;
    assert!(found(&alice, "espresso").await.is_empty());
    assert_eq!(found(&alice, "coffee").await.len(), 1);
    server.clock.advance(Duration::from_secs(1));
    // Who has left does not know what it says since.
    room.does(&bob, "leave").await;
    let second = edit(&room, &alice, &id, "cocoa").await;
    assert_eq!(found(&alice, "cocoa").await.len(), 1);
    assert!(found(&bob, "cocoa").await.is_empty());
    // Without its last edit it says again what it said before.
    let path = room.path(&format!("redact/{second}/1"));
    ok(alice.put(&path, json!({})).await);
    assert!(found(&alice, "cocoa").await.is_empty());
    assert_eq!(found(&alice, "coffee").await.len(), 1);
    // Sent and edited before anybody looks.
    let id = room.say(&alice, "watre").await;
    edit(&room, &alice, &id, "water").await;
    assert!(found(&alice, "watre").await.is_empty());
    assert_eq!(found(&alice, "water").await, ["watre"]);
    let path = room.path(&format!("redact/{id}/2"));
    ok(alice.put(&path, json!({})).await);
    assert!(found(&alice, "water").await.is_empty());
}

#[tokio::test]
async fn encrypted_messages_are_not_found() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let content =
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "tea", "body": "tea" });
    room.send(&alice, "m.room.encrypted", content).await;
    assert!(found(&alice, "tea").await.is_empty());
    // The index is not even made.
    assert!(!server.directory.path().join("search").exists());
}

#[tokio::test]
async fn results_come_in_pages() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "joined").await;
    for number in 0..25 {
        room.say(&alice, &format!("tea number {number}")).await;
    }
    for (order, limit) in [("recent", 10), ("rank", 10), ("rank", 7), ("recent", 25)] {
        let criteria = json!({
            "search_term": "tea", "order_by": order, "filter": { "limit": limit },
        });
        let (mut next, mut all, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let path = match &next {
                Some(next) => format!("{SEARCH}?next_batch={next}"),
                None => SEARCH.to_owned(),
            };
            let answer = ok(alice.post(&path, body(criteria.clone())).await);
            let answer = &answer["search_categories"]["room_events"];
            assert_eq!(answer["count"], 25, "{order} {limit}");
            pages += 1;
            assert!(pages < 10, "it never ends");
            all.extend(texts(answer));
            next = answer["next_batch"].as_str().map(ToOwned::to_owned);
            if next.is_none() {
                break;
            }
        }
        if order == "recent" {
            let expect: Vec<_> = (0..25).rev().map(|n| format!("tea number {n}")).collect();
            assert_eq!(all, expect);
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 25, "{order} {limit}");
    }

    let criteria = json!({ "search_term": "tea", "order_by": "recent" });
    let answer = ask(&alice, criteria.clone()).await;
    let token = text(&answer, "next_batch");
    // With the token of somebody else one sees no more than without.
    let path = format!("{SEARCH}?next_batch={token}");
    let stolen = ok(bob.post(&path, body(criteria.clone())).await);
    assert_eq!(
        texts(&stolen["search_categories"]["room_events"]),
        Vec::<String>::new()
    );
    for bad in [
        "x",
        "s1_2",
        "AAAA",
        &"A".repeat(5_000),
        "%00",
        &format!("{token}A"),
    ] {
        let path = format!("{SEARCH}?next_batch={bad}");
        let answer = alice.post(&path, body(criteria.clone())).await;
        refused(answer, 400, "M_INVALID_PARAM");
    }
    let criteria = json!({ "search_term": "tea", "order_by": "rank" });
    refused(
        alice.post(&path, body(criteria)).await,
        400,
        "M_INVALID_PARAM",
    );
    // An empty one is none.
    let path = format!("{SEARCH}?next_batch=");
    let answer = ok(alice
        .post(&path, body(json!({ "search_term": "tea" })))
        .await);
    assert_eq!(texts(&answer["search_categories"]["room_events"]).len(), 10);
}

#[tokio::test]
async fn what_fits_better_comes_first() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "tea tea tea").await;
    room.say(&alice, "there may be tea in one of all these many words")
        .await;
    let by = |order: &str| json!({ "search_term": "tea", "order_by": order });
    assert!(found_by(&alice, by("rank")).await[0].starts_with("tea"));
    assert!(found_by(&alice, by("recent")).await[0].starts_with("there"));
    assert!(found_by(&alice, json!({ "search_term": "tea" })).await[0].starts_with("tea"));
    refused(
        alice.post(SEARCH, body(by("size"))).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn results_are_grouped_and_each_group_goes_on() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (one, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    one.does(&bob, "join").await;
    let mut in_one = Vec::new();
    for number in 0..4 {
        in_one.push(one.say(&alice, &format!("tea {number}")).await);
    }
    let by_bob = one.say(&bob, "tea by bob").await;
    let in_other = other.say(&alice, "tea elsewhere").await;
    let criteria = json!({
        "search_term": "tea", "order_by": "recent", "filter": { "limit": 3 },
        "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
    });
    let answer = ask(&alice, criteria.clone()).await;
    assert_eq!(answer["count"], 6);
    let rooms = &answer["groups"]["room_id"];
    assert_eq!(rooms[&other.0]["results"], json!([in_other]));
    assert_eq!(rooms[&other.0]["order"], 0);
    assert_eq!(rooms[&one.0]["results"], json!([by_bob, in_one[3]]));
    assert_eq!(rooms[&one.0]["order"], 1);
    let senders = &answer["groups"]["sender"];
    assert_eq!(senders[&bob.user_id]["results"], json!([by_bob]));
    assert_eq!(
        senders[&alice.user_id]["results"],
        json!([in_other, in_one[3]])
    );

    let go_on = |next: &Value| format!("{SEARCH}?next_batch={}", next.as_str().expect("a token"));
    let rest = ok(alice
        .post(&go_on(&rooms[&one.0]["next_batch"]), body(criteria.clone()))
        .await);
    let rest = &rest["search_categories"]["room_events"];
    assert_eq!(texts(rest), ["tea 2", "tea 1", "tea 0"]);
    assert_eq!(rest["count"], 5);
    let rest = ok(alice
        .post(
            &go_on(&rooms[&other.0]["next_batch"]),
            body(criteria.clone()),
        )
        .await);
    assert!(texts(&rest["search_categories"]["room_events"]).is_empty());
    let rest = ok(alice
        .post(&go_on(&senders[&bob.user_id]["next_batch"]), body(criteria))
        .await);
    assert!(texts(&rest["search_categories"]["room_events"]).is_empty());
    for key in [json!("size"), json!(null)] {
        let criteria =
            json!({ "search_term": "tea", "groupings": { "group_by": [{ "key": key }] } });
        let (status, _) = alice.post(SEARCH, body(criteria)).await;
        assert_eq!(status, 400);
    }
}

#[tokio::test]
async fn what_surrounds_a_result_is_told() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "joined").await;
    room.say(&alice, "number 0").await;
    room.does(&bob, "join").await;
    for number in 1..=7 {
        room.say(&alice, &format!("number {number}")).await;
    }
    let around = |who: Value| json!({ "search_term": "number 4", "event_context": who });
    let answer = ask(&bob, around(json!({ "before_limit": 2, "after_limit": 1 }))).await;
    let context = &answer["results"][0]["context"];
    assert_eq!(context["events_before"][0]["content"]["body"], "number 3");
    assert_eq!(context["events_before"][1]["content"]["body"], "number 2");
    assert_eq!(context["events_before"].as_array().map(Vec::len), Some(2));
    assert_eq!(context["events_after"][0]["content"]["body"], "number 5");
    assert_eq!(context["events_after"].as_array().map(Vec::len), Some(1));
    assert!(context.get("profile_info").is_none());
    let path = format!("messages?dir=b&limit=1&from={}", text(context, "start"));
    let before = ok(room.get(&bob, &path).await);
    assert_eq!(before["chunk"][0]["content"]["body"], "number 1");

    let all = json!({ "before_limit": 1000, "after_limit": 1000, "include_profile": true });
    let answer = ask(&bob, around(all)).await;
    let context = &answer["results"][0]["context"];
    let told = context["events_before"].to_string();
    assert!(
        !told.contains("number 0"),
        "nothing from before one was there"
    );
    assert!(told.contains("number 1"));
    let profile = &context["profile_info"][&alice.user_id];
    assert_eq!(profile["displayname"], "alice", "{context}");
    // Usually five.
    let answer = ask(&alice, around(json!({}))).await;
    let context = &answer["results"][0]["context"];
    assert_eq!(context["events_before"].as_array().map(Vec::len), Some(5));
    assert_eq!(context["events_after"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn the_state_of_the_rooms_is_told_as_far_as_one_may_read_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    room.set(&alice, "m.room.topic", json!({ "topic": "now" }))
        .await;
    room.say(&alice, "tea").await;
    room.does(&bob, "leave").await;
    room.set(&alice, "m.room.topic", json!({ "topic": "later" }))
        .await;
    let criteria = json!({ "search_term": "tea", "include_state": true });
    for (who, expect) in [(&alice, "later"), (&bob, "now")] {
        let answer = ask(who, criteria.clone()).await;
        let state = answer["state"][&room.0]
            .as_array()
            .expect("the state is told");
        let topic = state.iter().find(|event| event["type"] == "m.room.topic");
        assert_eq!(topic.expect("there is one")["content"]["topic"], expect);
    }
    let nothing = ask(
        &alice,
        json!({ "search_term": "none", "include_state": true }),
    )
    .await;
    assert_eq!(nothing["state"], json!({}));
}

#[tokio::test]
async fn a_room_is_searched_with_those_that_it_has_replaced() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = Room::create(
        &alice,
        json!({ "preset": "public_chat", "room_version": "8" }),
    )
    .await;
    old.say(&alice, "tea before").await;
    let upgraded = ok(old
        .post(&alice, "upgrade", json!({ "new_version": "9" }))
        .await);
    let new = Room(text(&upgraded, "replacement_room"));
    new.say(&alice, "tea after").await;
    let here =
        |filter: Value| json!({ "search_term": "tea", "order_by": "recent", "filter": filter });
    let both = ["tea after", "tea before"];
    assert_eq!(
        found_by(&alice, here(json!({ "rooms": [new.0] }))).await,
        both
    );
    assert_eq!(
        found_by(&alice, here(json!({ "rooms": [old.0] }))).await,
        both[1..]
    );
    let only_new = here(json!({ "rooms": [new.0], "not_rooms": [old.0] }));
    assert_eq!(found_by(&alice, only_new).await, both[..1]);
    // Who was never in the old one finds nothing of it.
    new.does(&bob, "join").await;
    assert_eq!(
        found_by(&bob, here(json!({ "rooms": [new.0] }))).await,
        both[..1]
    );
}

#[tokio::test]
async fn nonsense_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    for (request, errcode) in [
        (json!({}), "M_BAD_JSON"),
        (
            json!({ "search_categories": { "room_events": {} } }),
            "M_BAD_JSON",
        ),
        (body(json!({ "search_term": 7 })), "M_BAD_JSON"),
        (
            body(json!({ "search_term": "x".repeat(100_000) })),
            "M_INVALID_PARAM",
        ),
        (
            body(json!({ "search_term": "\"a ".repeat(30_000) })),
            "M_INVALID_PARAM",
        ),
    ] {
        let (status, answer) = alice.post(SEARCH, request).await;
        assert_eq!(status, 400, "{answer}");
        assert!(
            answer["errcode"] == errcode || answer["errcode"] == "M_MISSING_PARAM",
            "{answer}"
        );
    }
    let huge = json!({ "search_term": "x", "pad": "x".repeat(2 << 20) });
    refused(alice.post(SEARCH, body(huge)).await, 413, "M_TOO_LARGE");
    let nothing = ok(alice.post(SEARCH, json!({ "search_categories": {} })).await);
    assert_eq!(nothing, json!({ "search_categories": {} }));
    // As many conditions as fit into a term.
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "a b c").await;
    let bomb = "a ".repeat(500);
    assert_eq!(found(&alice, &bomb).await, ["a b c"]);
    let bomb: Vec<_> = (0..200).map(|n| format!("a{n}")).collect();
    assert!(found(&alice, &bomb.join(" ")).await.is_empty());
}

#[tokio::test]
async fn searching_can_be_switched_off() {
    let server = TestServer::with(|config| config.search.enabled = false);
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "tea").await;
    let answer = alice
        .post(SEARCH, body(json!({ "search_term": "tea" })))
        .await;
    refused(answer, 400, "M_UNKNOWN");
    assert!(!server.directory.path().join("search").exists());
    // What was said meanwhile is found once it is on.
    server.stop().await;
    let server = server.restart_with(|config| config.search.enabled = true);
    whole(&server).await;
    assert_eq!(found(&alice, "tea").await, ["tea"]);
    drop(server);
}

/// A node with an index, and then more of everything that the index has not seen: it is killed before that.
async fn behind() -> (TestServer, Client, Room) {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let edited = room.say(&alice, "tea edited").await;
    let gone = room.say(&alice, "tea redacted").await;
    let again = room.say(&alice, "tea first").await;
    edit(&room, &alice, &again, "tea second").await;
    server.clock.advance(Duration::from_millis(1));
    let withdrawn = edit(&room, &alice, &again, "tea third").await;
    room.say(&alice, "tea kept").await;
    assert_eq!(found(&alice, "tea").await.len(), 4);
    edit(&room, &alice, &edited, "coffee").await;
    for (event, txn) in [(gone, 1), (withdrawn, 2)] {
        let path = room.path(&format!("redact/{event}/{txn}"));
        ok(alice.put(&path, json!({})).await);
    }
    room.say(&alice, "tea later").await;
    (server, alice, room)
}

/// What somebody must find in such a room.
async fn all_is_found(alice: &Client) {
    assert_eq!(
        found(alice, "tea").await,
        ["tea later", "tea kept", "tea first"]
    );
    assert_eq!(found(alice, "coffee").await, ["tea edited"]);
    for (term, expect) in [("second", 1), ("third", 0), ("edited", 0), ("redacted", 0)] {
        assert_eq!(found(alice, term).await.len(), expect, "{term}");
    }
}

/// Waits until the index is whole, however busy the machine is.
async fn whole(server: &TestServer) {
    let search = &server.services.search;
    for _ in 0..1_000 {
        if search.status().expect("it is on").complete {
            return;
        }
        search.caught_up().await.expect("it is on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the index is never whole");
}

fn index_of(server: &TestServer) -> PathBuf {
    server.directory.path().join("search")
}

#[tokio::test]
async fn after_a_crash_the_index_goes_on_where_it_was() {
    let (server, alice, room) = behind().await;
    let meta = index_of(&server).join("meta.json");
    let before = fs::read(&meta).expect("there is an index");
    server.stop().await;
    let left = fs::read(&meta).expect("there is an index");
    assert!(before == left, "nothing was written at the end");
    let server = server.restart();
    whole(&server).await;
    all_is_found(&alice).await;
    let status = server.services.search.status().expect("it is on");
    assert_eq!(status.entries, 4);
    sound(&[&server]);
    // And goes on.
    room.say(&alice, "tea at last").await;
    assert_eq!(found(&alice, "tea").await[0], "tea at last");
    server.stop().await;
    let server = server.restart();
    whole(&server).await;
    assert_eq!(found(&alice, "tea").await.len(), 4);
    drop(server);
}

#[tokio::test]
async fn an_index_that_is_missing_damaged_or_old_is_made_anew() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 7] = [
        ("missing", |index| {
            fs::remove_dir_all(index).expect("it is there");
        }),
        ("empty", |index| {
            fs::remove_dir_all(index).expect("it is there");
            fs::create_dir(index).expect("there is room");
        }),
        ("a missing file", |index| {
            fs::remove_file(file_of(index, "idx")).expect("it is there");
        }),
        ("a changed byte", |index| {
            let file = file_of(index, "fast");
            let mut bytes = fs::read(&file).expect("it is there");
            bytes[3] ^= 1;
            fs::write(&file, bytes).expect("there is room");
        }),
        ("a short file", |index| {
            fs::write(file_of(index, "term"), b"short").expect("there is room");
        }),
        ("another form", |index| {
            replace(index, r#"\"form\":1"#, r#"\"form\":0"#);
        }),
        ("another store", |index| {
            replace(index, r#"\"$"#, r#"\"$x"#);
        }),
    ];
    for (how, harm) in harms {
        let (server, alice, room) = behind().await;
        server.stop().await;
        harm(&index_of(&server));
        let server = server.restart();
        whole(&server).await;
        all_is_found(&alice).await;
        let status = server.services.search.status().expect("it is on");
        assert_eq!((status.entries, status.complete), (4, true), "{how}");
        room.say(&alice, "tea after all").await;
        assert_eq!(found(&alice, "tea").await.len(), 4, "{how}");
        sound(&[&server]);
        server.stop().await;
    }
}

/// A file of the index with this ending.
fn file_of(index: &Path, ending: &str) -> PathBuf {
    let mut files = fs::read_dir(index).expect("it is there");
    let found = files.find_map(|file| {
        let path = file.expect("it is there").path();
        (path.extension()? == ending).then_some(path)
    });
    found.unwrap_or_else(|| panic!("no .{ending} in the index"))
}

/// Changes what the index says of itself.
fn replace(index: &Path, from: &str, to: &str) {
    let path = index.join("meta.json");
    let meta = fs::read_to_string(&path).expect("it is there");
    assert!(meta.contains(from), "{from} in {meta}");
    fs::write(&path, meta.replace(from, to)).expect("there is room");
}

#[tokio::test]
async fn the_index_can_be_made_anew_while_the_node_runs() {
    let (server, alice, room) = behind().await;
    let search = &server.services.search;
    search.rebuild().expect("it is on");
    whole(&server).await;
    all_is_found(&alice).await;
    let status = search.status().expect("it is on");
    assert_eq!((status.entries, status.complete), (4, true));
    assert!(status.size > 0);
    room.say(&alice, "tea after all").await;
    assert_eq!(found(&alice, "tea").await.len(), 4);
    sound(&[&server]);
}

#[tokio::test]
async fn the_index_can_be_made_anew_while_the_node_is_stopped() {
    let (server, _alice, _room) = behind().await;
    server.stop().await;
    let server = server.restart_idle();
    let mut reports = 0;
    let search = &server.services.search;
    let outcome = search.rebuild_now(Duration::from_secs(1), &mut |_| reports += 1);
    outcome.expect("it is made");
    assert!(reports >= 1);
    let status = search.status().expect("it is on");
    assert_eq!((status.entries, status.complete), (4, true));
}

#[tokio::test]
async fn what_is_sent_can_be_found_though_nobody_looks_for_it() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "tea").await;
    let search = &server.services.search;
    for _ in 0..500 {
        server.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
        if search.status().expect("it is on").entries == 1 {
            return;
        }
    }
    panic!("it is never found");
}
