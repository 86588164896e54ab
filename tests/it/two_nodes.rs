//! Two nodes on a network in memory: what one has missed it gets from the other.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use kontor::{
    clock::{Clock, Entropy},
    protocol::{event::Event, format, ingest, xmatrix::XMatrix},
    remote::Lan,
    service::rooms::Entered,
};
use ruma::{EventId, RoomId, ServerName};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    elsewhere::{Elsewhere, check, finds, id, timeline, until},
    room::Room,
    server::{Client, START, TestServer, ok, text},
};

/// A node that others on the network reach.
fn node(lan: &Lan, name: &str) -> TestServer {
    let name = ServerName::parse(name).expect("the test makes it so");
    let transport = lan.port(&name);
    let server = TestServer::on(
        |_, _| Some(transport),
        |config| config.server.name.clone_from(&name),
    );
    let router = kontor::http::router(server.services.clone());
    lan.attach(
        &name,
        Arc::new(move |request| {
            let router = router.clone();
            Box::pin(async move {
                let answer = router.oneshot(request.map(Body::from)).await;
                let (parts, body) = answer.expect("the test makes it so").into_parts();
                let body = kontor::http::body::read(body, 1 << 30)
                    .await
                    .expect("the test makes it so");
                Response::from_parts(parts, Bytes::from(body.to_vec()))
            })
        }),
    );
    server
}

fn pdu(event: &Event, elsewhere: &Elsewhere) -> ingest::Pdu {
    let text = format::federation(event);
    ingest::receive(&text, elsewhere.rules)
        .expect("the test makes it so")
        .signed()
}

/// Lets a user of one node into a room of another, as a handshake would.
async fn let_in(from: &TestServer, room: &Room, to: &TestServer, who: &Client) {
    let mut elsewhere = Elsewhere::of(from, room).await;
    let keyring = &to.services.keyring;
    let join = elsewhere.signed(
        (keyring.key(), keyring.name()),
        &who.user_id,
        "m.room.member",
        Some(&who.user_id),
        json!({ "membership": "join" }),
        |_| {},
    );
    ok(push(to, from, "join", &join).await);
    let version = {
        let view = from.services.store().view();
        from.services
            .rooms
            .version_of(&view, &elsewhere.room)
            .expect("the test makes it so")
    };
    let version = version.expect("the test makes it so");
    let rooms = &to.services.rooms;
    let guard = rooms.lock_or_make(&elsewhere.room, &version);
    let mut guard = guard.await.expect("the test makes it so");
    let state: Vec<_> = elsewhere.state.values().collect();
    let pdus = state.iter().map(|event| pdu(event, &elsewhere)).collect();
    rooms
        .store_unplaced_events(guard.head(), pdus)
        .expect("the test makes it so");
    let ids: Vec<_> = state.iter().map(|event| event.header.id.clone()).collect();
    let entered = rooms.enter(guard.head(), &pdu(&join, &elsewhere), &ids);
    assert!(matches!(entered, Ok(Entered::Done(_))), "{entered:?}");
}

/// Sends an event from one node to another.
async fn push(from: &TestServer, to: &TestServer, txn: &str, event: &Event) -> (StatusCode, Value) {
    let keyring = &from.services.keyring;
    let path = format!("/_matrix/federation/v1/send/{txn}");
    let body = format!("{{\"pdus\":[{}]}}", format::federation(event));
    let header = XMatrix::sign(
        "PUT",
        &path,
        keyring.name(),
        to.services.keyring.name(),
        Some(&body),
        keyring.key(),
    );
    let header = header.to_string();
    let headers = [("authorization", header.as_str())];
    let (status, _, body) = to.anonymous().raw(Method::PUT, &path, &headers, body).await;
    (
        status,
        serde_json::from_str(&body).expect("the test makes it so"),
    )
}

#[tokio::test]
async fn what_was_missed_is_filled_in_round_by_round() {
    let lan = Lan::new(Clock::manual(START), Entropy::seeded(7));
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let_in(&a, &room, &b, &bob).await;
    let mut said = Vec::new();
    for n in 0..70 {
        let body = json!({ "msgtype": "m.text", "body": n.to_string() });
        let sent = ok(room
            .put(&alice, &format!("send/m.room.message/{n}"), body)
            .await);
        said.push(text(&sent, "event_id"));
    }
    // Only the last one is told.
    let last =
        EventId::parse(said.last().expect("the test makes it so")).expect("the test makes it so");
    let view = a.services.store().view();
    let last = a
        .services
        .rooms
        .find_event(&view, &last)
        .expect("the test makes it so")
        .expect("the test makes it so");
    ok(push(&a, &b, "last", &last.event).await);
    until(async || finds(&bob, &room, &last.event).await).await;
    let (told, _) = timeline(&bob, &room).await;
    assert!(told.ends_with(&said), "{} of {}", told.len(), said.len());
    assert_eq!(told.last(), Some(&id(&last.event)));
    // Both agree on how the room ends.
    let nid = RoomId::parse(&*room.0).expect("the test makes it so");
    let of_a = Elsewhere::of(&a, &room).await;
    let of_b = Elsewhere::of(&b, &room).await;
    assert_eq!((&of_a.ends, &of_a.room), (&of_b.ends, &nid));
    assert!(of_a.state.values().map(id).eq(of_b.state.values().map(id)));
    for node in [&a, &b] {
        check(node);
    }
}
