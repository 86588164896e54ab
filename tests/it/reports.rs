//! "Reporting Content".

use kontor::store::schema::{REPORTS, Reported};
use serde_json::json;

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused},
    several::sound,
};

/// What is stored: what it is about, and the reason.
fn reports(server: &TestServer) -> Vec<(Reported, String)> {
    let view = server.services.store().view();
    let rows = REPORTS.scan(&view, &());
    rows.map(|row| row.expect("it can be read").1)
        .map(|row| (row.about, row.reason))
        .collect()
}

async fn report(client: &Client, path: &str) -> crate::server::Answer {
    let path = format!("/_matrix/client/v3/{path}/report");
    client.post(&path, json!({ "reason": "spam" })).await
}

#[tokio::test]
async fn events_are_reported_by_those_in_the_room_who_see_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "joined").await;
    let other = Room::new(&bob, "shared").await;
    let early = room.say(&alice, "before bob").await;
    room.does(&bob, "join").await;
    let event = room.say(&alice, "rude").await;
    let elsewhere = other.say(&bob, "elsewhere").await;
    let path = |event: &str| format!("report/{event}");
    let reason = || json!({ "reason": "rude" });
    ok(room.post(&bob, &path(&event), reason()).await);
    // Old clients say how bad it is, and need not say why.
    ok(room
        .post(&bob, &path(&event), json!({ "score": -100 }))
        .await);
    assert_eq!(reports(&server).len(), 2);
    assert_eq!(reports(&server)[0].1, "rude");
    assert!(matches!(reports(&server)[0].0, Reported::Event(..)));

    for (room, id) in [
        (&room, &*early),
        (&room, &*elsewhere),
        (&room, "$nothing"),
        (&Room("!nowhere:localhost".to_owned()), &*event),
    ] {
        refused(
            room.post(&bob, &path(id), reason()).await,
            404,
            "M_NOT_FOUND",
        );
    }
    let long = json!({ "reason": "x".repeat(9_000) });
    refused(
        room.post(&bob, &path(&event), long).await,
        400,
        "M_INVALID_PARAM",
    );
    let wrong = json!({ "reason": 1 });
    refused(
        room.post(&bob, &path(&event), wrong).await,
        400,
        "M_BAD_JSON",
    );
    room.does(&bob, "leave").await;
    refused(
        room.post(&bob, &path(&event), reason()).await,
        404,
        "M_NOT_FOUND",
    );
    assert_eq!(reports(&server).len(), 2);
    sound(&[&server]);
}

#[tokio::test]
async fn rooms_are_reported_by_those_who_can_know_of_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let private = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    let public = Room::new(&alice, "shared").await;
    let path = |room: &Room| format!("rooms/{}", room.0);
    refused(report(&bob, &path(&private)).await, 404, "M_NOT_FOUND");
    refused(
        report(&bob, "rooms/!nowhere:localhost").await,
        404,
        "M_NOT_FOUND",
    );
    refused(report(&bob, "rooms/nowhere").await, 400, "M_INVALID_PARAM");
    assert!(reports(&server).is_empty());
    ok(report(&bob, &path(&public)).await);
    // Whoever is molested by an invite may say so, also after declining it.
    private.does_to(&alice, "invite", &bob).await;
    ok(report(&bob, &path(&private)).await);
    private.does(&bob, "leave").await;
    ok(report(&bob, &path(&private)).await);
    assert_eq!(reports(&server).len(), 3);
    assert!(matches!(reports(&server)[0].0, Reported::Room(_)));
}

#[tokio::test]
async fn users_are_reported_if_the_node_knows_them() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    server.register("bob").await;
    ok(report(&alice, "users/@bob:localhost").await);
    for user in ["@nobody:localhost", "@nobody:elsewhere.example"] {
        let path = format!("users/{user}");
        refused(report(&alice, &path).await, 404, "M_NOT_FOUND");
    }
    refused(report(&alice, "users/bob").await, 400, "M_INVALID_PARAM");
    let path = "/_matrix/client/v3/users/@bob:localhost/report";
    refused(alice.post(path, json!({})).await, 400, "M_BAD_JSON");
    assert_eq!(reports(&server).len(), 1);
    assert!(matches!(reports(&server)[0].0, Reported::User(_)));
    sound(&[&server]);
}

#[tokio::test]
async fn nobody_reports_without_end() {
    let server = TestServer::with(|config| config.limits.enabled = true);
    let alice = server.register("alice").await;
    for _ in 0..20 {
        ok(report(&alice, "users/@alice:localhost").await);
    }
    let once_more = report(&alice, "users/@alice:localhost").await;
    refused(once_more, 429, "M_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn there_are_no_other_networks() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let ask = async |path: &str| {
        let path = format!("/_matrix/client/v3/thirdparty/{path}");
        alice.get(&path).await
    };
    assert_eq!(ok(ask("protocols").await), json!({}));
    assert_eq!(ok(ask("location?alias=%23a:localhost").await), json!([]));
    assert_eq!(ok(ask("user?userid=@a:localhost").await), json!([]));
    for path in ["protocol/irc", "location/irc?channel=x", "user/irc"] {
        refused(ask(path).await, 404, "M_NOT_FOUND");
    }
    refused(ask("location").await, 400, "M_MISSING_PARAM");
    refused(ask("user?userid=a").await, 400, "M_INVALID_PARAM");
}
