//! Policy servers that are away: what a user does in all rooms at once does not wait for each of them.

use std::time::Duration;

use http::StatusCode;
use kontor::clock::Clock;
use serde_json::json;
use tokio_util::task::TaskTracker;

use crate::{
    elsewhere::{Elsewhere, check, until},
    neighbour::Neighbour,
    room::Room,
    server::{Answer, Client, PASSWORD, TestServer, ok, refused},
};

const SIGN: &str = "/_matrix/policy/v1/sign";
const JUDGE: &str = "@judge:policy.example";

/// A user in rooms with a policy server that never answers, and in one without.
struct Scene {
    node: TestServer,
    alice: Client,
    judge: Neighbour,
    judged: Vec<Room>,
    free: Room,
}

impl Scene {
    async fn new(rooms: usize) -> Self {
        let node = TestServer::new();
        let alice = node.register("alice").await;
        let judge = Neighbour::new(&node.lan, "policy.example", 2);
        judge.answers(
            "/_matrix/federation/v1/send",
            StatusCode::OK,
            "{\"pdus\":{}}",
        );
        judge.answers(SIGN, StatusCode::IM_A_TEAPOT, "");
        let mut judged = Vec::new();
        for _ in 0..rooms {
            let room = Room::new(&alice, "shared").await;
            Elsewhere::joined(&node, &room, &judge, JUDGE).await;
            let keys = json!({ "ed25519": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
            let content = json!({ "via": "policy.example", "public_keys": keys });
            room.set(&alice, "m.room.policy", content).await;
            judged.push(room);
        }
        let free = Room::new(&alice, "shared").await;
        Self {
            node,
            alice,
            judge,
            judged,
            free,
        }
    }

    /// What comes of a request, and how long it took.
    async fn timed(
        &self,
        what: impl Future<Output = Answer> + Send + 'static,
    ) -> (Answer, Duration) {
        let (clock, tasks): (&Clock, _) = (&self.node.clock, TaskTracker::new());
        let before = clock.instant();
        let task = tasks.spawn(what);
        until(async || {
            clock.advance(Duration::from_millis(500));
            task.is_finished()
        })
        .await;
        (task.await.expect("it ends"), clock.instant() - before)
    }

    /// How often the policy server was asked.
    fn asked(&self) -> usize {
        self.judge.asked_for(SIGN)
    }

    async fn is_called(&self, room: &Room, name: &str) -> bool {
        let path = format!("state/m.room.member/{}", self.alice.user_id);
        ok(room.get(&self.alice, &path).await)["displayname"] == name
    }
}

#[tokio::test]
async fn a_new_name_does_not_wait_for_each_room() {
    let scene = Scene::new(40).await;
    let alice = scene.alice.clone();
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
    let renamed = async move { alice.put(&path, json!({ "displayname": "Al" })).await };
    let (answer, took) = scene.timed(renamed).await;
    ok(answer);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(scene.asked() < 20, "{}", scene.asked());
    assert!(scene.is_called(&scene.free, "Al").await);
    for room in &scene.judged {
        assert!(!scene.is_called(room, "Al").await, "it was not signed");
    }
    check(&scene.node);
}

#[tokio::test]
async fn who_closes_their_account_leaves_all_that_can_be_left() {
    let scene = Scene::new(20).await;
    let bob = scene.node.register("bob").await;
    scene.free.does(&bob, "join").await;
    let alice = scene.alice.clone();
    let closed = async move {
        let user = json!({ "type": "m.id.user", "user": "alice" });
        let auth = json!({ "type": "m.login.password", "identifier": user, "password": PASSWORD });
        let path = "/_matrix/client/v3/account/deactivate";
        alice.post(path, json!({ "auth": auth })).await
    };
    let (answer, took) = scene.timed(closed).await;
    ok(answer);
    assert!(took < Duration::from_secs(30), "{took:?}");
    let path = format!("state/m.room.member/{}", scene.alice.user_id);
    assert_eq!(ok(scene.free.get(&bob, &path).await)["membership"], "leave");
    check(&scene.node);
}

#[tokio::test]
async fn one_that_is_silent_is_asked_again_after_a_while_or_when_it_is_heard() {
    let scene = Scene::new(1).await;
    let leave = || {
        let (alice, room) = (scene.alice.clone(), Room(scene.judged[0].0.clone()));
        async move { room.post(&alice, "leave", json!({})).await }
    };
    for asked in 1..=2 {
        let (answer, took) = scene.timed(leave()).await;
        refused(answer, 504, "M_UNKNOWN");
        assert!(took >= Duration::from_secs(20));
        assert_eq!(scene.asked(), asked);
    }
    // No waiting any more, and nobody is asked.
    refused(leave().await, 504, "M_UNKNOWN");
    assert_eq!(scene.asked(), 2);
    scene.node.clock.advance(Duration::from_secs(31));
    refused(scene.timed(leave()).await.0, 504, "M_UNKNOWN");
    assert_eq!(scene.asked(), 3);
    refused(leave().await, 504, "M_UNKNOWN");
    assert_eq!(scene.asked(), 3);
    // What it says against it is an answer.
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "stay" });
    scene.judge.answers(SIGN, StatusCode::FORBIDDEN, refusal);
    ok(scene.judge.murmur(&scene.node, "hello", &[]).await);
    refused(leave().await, 403, "M_FORBIDDEN");
    assert_eq!(scene.asked(), 4);
    check(&scene.node);
}
