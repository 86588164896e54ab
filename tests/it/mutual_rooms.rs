//! "Mutual Rooms".

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused},
};

const PATHS: [&str; 2] = [
    "/_matrix/client/v1/mutual_rooms",
    "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
];

async fn mutual(client: &Client, user: &str) -> Value {
    let mut answers = Vec::new();
    for path in PATHS {
        answers.push(ok(client.get(&format!("{path}?user_id={user}")).await));
    }
    assert_eq!(answers[0], answers[1]);
    answers.remove(0)
}

#[tokio::test]
async fn only_rooms_that_both_have_joined_are_mutual() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let none = json!({ "joined": [], "count": 0 });
    assert_eq!(mutual(&alice, &bob.user_id).await, none);
    assert_eq!(mutual(&alice, "@nobody:elsewhere.example").await, none);
    let (one, two) = (
        Room::new(&alice, "shared").await,
        Room::new(&bob, "shared").await,
    );
    Room::new(&alice, "shared").await;
    one.does_to(&alice, "invite", &bob).await;
    assert_eq!(mutual(&alice, &bob.user_id).await, none);
    one.does(&bob, "join").await;
    two.does(&alice, "join").await;
    let both = json!({ "joined": [one.0, two.0], "count": 2 });
    assert_eq!(mutual(&alice, &bob.user_id).await, both);
    assert_eq!(mutual(&bob, &alice.user_id).await, both);
    two.does(&bob, "leave").await;
    assert_eq!(
        mutual(&alice, &bob.user_id).await,
        json!({ "joined": [one.0], "count": 1 })
    );
    for (query, errcode) in [
        ("user_id=@alice:localhost", "M_INVALID_PARAM"),
        ("user_id=nobody", "M_INVALID_PARAM"),
        ("user_id=@bob:localhost&from=x", "M_INVALID_PARAM"),
        ("", "M_MISSING_PARAM"),
    ] {
        for path in PATHS {
            refused(alice.get(&format!("{path}?{query}")).await, 400, errcode);
        }
    }
}

#[tokio::test]
async fn many_mutual_rooms_come_in_pages() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..5 {
        let room = Room::new(&alice, "shared").await;
        room.does(&bob, "join").await;
        rooms.push(room.0);
    }
    let (asker, user) = (server.requester(&alice), server.requester(&bob).user_id);
    let page = |from: Option<&str>| {
        let page = server
            .services
            .rooms
            .mutual(&asker, &user, from, 2)
            .unwrap();
        assert_eq!(page.count, 5);
        page
    };
    let mut found = Vec::new();
    let mut next = None;
    for _ in 0..3 {
        let page = page(next.as_deref());
        found.extend(page.joined.iter().map(ToString::to_string));
        next = page.next_batch;
    }
    assert_eq!((found, next), (rooms, None));
}
