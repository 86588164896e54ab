//! Older events fetched from other servers when a client scrolls up to where they are missing: "Backfilling and retrieving
//! missing events" in the server-server API.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use kontor::{
    protocol::{format, ids::EventNid},
    service::{
        Services,
        rooms::{Before, Entered, Outcome},
    },
};
use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    elsewhere::{Elsewhere, check},
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

/// What the resident answers to questions about the room: the endpoints as a server in the room has them.
fn answer(resident: &Services, uri: &str) -> Option<String> {
    let asker = ServerName::parse("localhost").ok()?;
    let path = uri.strip_prefix("/_matrix/federation/v1/")?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let query: Vec<(String, String)> = pairs(query);
    let view = resident.store().view();
    let (kind, of) = path.split_once('/')?;
    let of = decoded(of);
    let events = |nids: &[EventNid]| resident.rooms.events(&view, nids).ok();
    let text = |nids: &[EventNid]| {
        let all = events(nids)?;
        let all: Vec<_> = all
            .iter()
            .map(|stored| format::federation(&stored.event))
            .collect();
        Some(all.join(","))
    };
    let value = |name: &str| {
        query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    if kind == "event" {
        let id = EventId::parse(&of).ok()?;
        let found = resident.rooms.find_event(&view, &id).ok()??;
        let pdu = format::federation(&found.event);
        return Some(format!(
            "{{\"origin\":\"a.example\",\"origin_server_ts\":1,\"pdus\":[{pdu}]}}"
        ));
    }
    let room = RoomId::parse(&of).ok()?;
    let guest = resident.rooms.guest(&view, &room, &asker).ok()?;
    match kind {
        "backfill" => {
            let from = query.iter().filter(|(key, _)| key == "v");
            let from: Vec<_> = from.filter_map(|(_, id)| EventId::parse(id).ok()).collect();
            // Small pieces, so that there are several.
            let found = guest.backfill(&from, 10).ok()?;
            let nids: Vec<_> = found.iter().map(|stored| stored.nid).collect();
            let pdus = text(&nids)?;
            Some(format!(
                "{{\"origin\":\"a.example\",\"origin_server_ts\":1,\"pdus\":[{pdus}]}}"
            ))
        }
        "state_ids" => {
            let state = guest
                .state_before(&EventId::parse(value("event_id")?).ok()?)
                .ok()?;
            let ids = |nids: &[EventNid]| -> Option<Vec<OwnedEventId>> {
                let all = events(nids)?;
                Some(
                    all.iter()
                        .map(|stored| stored.event.header.id.clone())
                        .collect(),
                )
            };
            let (pdus, chain) = (ids(&state.state)?, ids(&state.auth_chain)?);
            Some(json!({ "pdu_ids": pdus, "auth_chain_ids": chain }).to_string())
        }
        _ => None,
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' && tail.len() >= 2 {
            let hex = str::from_utf8(&tail[..2]).expect("it is ASCII");
            bytes.push(u8::from_str_radix(hex, 16).expect("it is a number"));
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).expect("it is UTF-8")
}

/// Puts a node into the network of another one; says how often it was asked for older events.
fn connect(resident: &TestServer, to: &TestServer, name: &str) -> Arc<AtomicUsize> {
    let services = resident.services.clone();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    to.lan.attach(
        &ServerName::parse(name).expect("it is a name"),
        Arc::new(move |request: Request<Bytes>| {
            let (services, uri) = (services.clone(), request.uri().to_string());
            counter.fetch_add(usize::from(uri.contains("/backfill/")), Ordering::Relaxed);
            Box::pin(async move {
                if let Some(body) = answer(&services, &uri) {
                    return Response::new(Bytes::from(body));
                }
                let router = kontor::http::router(services);
                let answered = router.oneshot(request.map(Body::from)).await;
                let (parts, body) = answered.expect("it answers").into_parts();
                let body = kontor::http::body::read(body, 1 << 30).await;
                Response::from_parts(parts, body.expect("the answer is whole"))
            })
        }),
    );
    asked
}

/// A user of `joining` joins a room of `resident`, by hand on both sides.
async fn join(joining: &TestServer, resident: &TestServer, room: &Room, user: &Client) {
    let id = RoomId::parse(&room.0).expect("it is an id");
    let user = &*user.user_id;
    let mut elsewhere = Elsewhere::of(resident, room).await;
    let rules = elsewhere.rules;
    let state: Vec<_> = elsewhere.state.values().cloned().collect();
    let known: Vec<_> = state.iter().map(format::federation).collect();
    let state: Vec<_> = state.into_iter().map(|event| event.header.id).collect();
    let keyring = &joining.services.keyring;
    let signer = (keyring.key(), keyring.name());
    let (kind, content) = ("m.room.member", json!({ "membership": "join" }));
    let event = elsewhere.signed(signer, user, kind, Some(user), content, |_| {});
    let text = format::federation(&event);
    let verified = |server: &TestServer, texts: Vec<String>| {
        let federation = server.services.federation.clone();
        async move {
            let all = federation
                .verify(rules, texts)
                .await
                .expect("the store works");
            all.into_iter()
                .map(|pdu| pdu.expect("it is genuine"))
                .collect::<Vec<_>>()
        }
    };
    let pdu = verified(resident, vec![text.clone()]).await.remove(0);
    let rooms = &resident.services.rooms;
    let mut guard = rooms.lock(&id).await.expect("the room is there");
    let outcome = rooms.receive(guard.head(), &pdu, Before::Previous, |_| ());
    assert!(
        matches!(outcome, Ok(Outcome::Written { .. })),
        "{outcome:?}"
    );
    drop(guard);

    let (pdu, known) = (
        verified(joining, vec![text]).await.remove(0),
        verified(joining, known).await,
    );
    let rooms = &joining.services.rooms;
    let mut guard = rooms
        .lock_or_make(&id, rooms.default_version())
        .await
        .expect("it is made");
    rooms
        .store_unplaced_events(guard.head(), known)
        .expect("they are stored");
    let entered = rooms
        .enter(guard.head(), &pdu, &state)
        .expect("it is allowed");
    assert!(matches!(entered, Entered::Done(_)), "{entered:?}");
}

/// The bodies of all pages, newest first, and how many pages there were.
async fn scroll(room: &Room, who: &Client) -> (Vec<String>, usize) {
    let (mut bodies, mut pages, mut from) = (Vec::new(), 0, String::new());
    while pages < 100 {
        let page = ok(room
            .get(who, &format!("messages?dir=b&limit=100&from={from}"))
            .await);
        pages += 1;
        for event in page["chunk"].as_array().expect("there is a chunk") {
            let body = event["content"]["body"].as_str();
            bodies.extend(body.map(ToOwned::to_owned));
        }
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => return (bodies, pages),
        }
    }
    panic!("the pages never end");
}

/// Two nodes; the first one has a room in which 35 things were said before a user of the second one came.
async fn two() -> (TestServer, TestServer, Room, Client, Arc<AtomicUsize>) {
    let us = TestServer::new();
    let them = TestServer::with(|config| {
        config.server.name = ServerName::parse("a.example").expect("it is a name");
    });
    connect(&us, &them, "localhost");
    let asked = connect(&them, &us, "a.example");
    let (alice, bob) = (them.register("alice").await, us.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    for number in 0..35 {
        room.say(&alice, &number.to_string()).await;
        if number % 10 == 5 {
            room.set(&alice, "m.room.topic", json!({ "topic": number }))
                .await;
        }
    }
    join(&us, &them, &room, &bob).await;
    (us, them, room, bob, asked)
}

#[tokio::test]
async fn who_scrolls_up_gets_what_was_before() {
    let (us, them, room, bob, asked) = two().await;
    let (bodies, pages) = scroll(&room, &bob).await;
    let wanted: Vec<_> = (0..35).rev().map(|number| number.to_string()).collect();
    assert_eq!(bodies, wanted);
    assert!(pages > 3 && asked.load(Ordering::Relaxed) >= 4);
    // Now it is all here.
    let before = asked.load(Ordering::Relaxed);
    let (again, pages) = scroll(&room, &bob).await;
    assert_eq!((again, pages), (wanted, 1));
    assert_eq!(asked.load(Ordering::Relaxed), before);
    for server in [&us, &them] {
        check(server);
    }
}

#[tokio::test]
async fn what_was_fetched_is_found_by_its_words() {
    let (us, _them, room, bob, _) = two().await;
    let count = async |term: &str| {
        let body = json!({ "search_categories": { "room_events": { "search_term": term } } });
        let answer = ok(bob.post("/_matrix/client/v3/search", body).await);
        answer["search_categories"]["room_events"]["count"].clone()
    };
    assert_eq!(count("17").await, 0);
    scroll(&room, &bob).await;
    for number in 0..35 {
        assert_eq!(count(&number.to_string()).await, 1, "{number}");
    }
    check(&us);
}

#[tokio::test]
async fn when_nobody_answers_what_is_here_is_shown() {
    let (us, _them, room, bob, asked) = two().await;
    let (a, own) = (
        ServerName::parse("a.example").unwrap(),
        ServerName::parse("localhost").unwrap(),
    );
    us.lan.set_link(&a, &own, false);
    let first = ok(room.get(&bob, "messages?dir=b&limit=100").await);
    let end = text(&first, "end");
    let path = format!("messages?dir=b&limit=100&from={end}");
    let second: Value = ok(room.get(&bob, &path).await);
    assert_eq!(second["chunk"], json!([]));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    us.lan.set_link(&a, &own, true);
    // Nothing is fetched for those who may not see it.
    let eve = us.register("eve").await;
    refused(room.get(&eve, &path).await, 403, "M_FORBIDDEN");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let many: Vec<_> = (0..5).map(|_| room.get(&bob, &path)).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for answer in join_all(many).await {
        for event in ok(answer)["chunk"].as_array().unwrap() {
            *seen.entry(text(event, "event_id")).or_default() += 1;
        }
    }
    assert!(!seen.is_empty() && asked.load(Ordering::Relaxed) == 1);
}
