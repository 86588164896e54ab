//! What happens at the same time, on a node with several threads.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::{
    room::{Room, ids},
    server::{Client, TestServer, ok, refused, text},
    stream::Stream,
};

/// Longer than anything here takes; a test that waits so long has failed.
const LONG: Duration = Duration::from_secs(30);

/// Does the same for each of the items at once.
async fn at_once<T, F, O>(items: impl IntoIterator<Item = T>, act: impl Fn(T) -> F) -> Vec<O>
where
    F: Future<Output = O> + Send + 'static,
    O: Send + 'static,
{
    let mut tasks: JoinSet<O> = items.into_iter().map(act).collect();
    let mut done = Vec::new();
    while let Some(one) = tasks.join_next().await {
        done.push(one.expect("nothing panics"));
    }
    done
}

/// A sync that is waiting for something to happen.
async fn waiting(who: &Client) -> JoinHandle<(http::StatusCode, Value)> {
    let first = ok(who.get("/_matrix/client/v3/sync").await);
    let since = text(&first, "next_batch");
    let who = who.clone();
    let (begins, began) = tokio::sync::oneshot::channel();
    let waits = TaskTracker::new().spawn(async move {
        let path = format!("/_matrix/client/v3/sync?timeout=60000&since={since}");
        let mut request = Box::pin(who.get(&path));
        // It has looked once and found nothing when it is first pending.
        let first = futures_util::poll!(&mut request);
        assert!(
            first.is_pending(),
            "it has something to wait for: {first:?}"
        );
        begins.send(()).expect("the test goes on");
        request.await
    });
    began.await.expect("it begins");
    waits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_alias_goes_to_one() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let answers = at_once(0..8, |_| {
        let alice = alice.clone();
        async move {
            let wish = json!({ "room_alias_name": "wanted" });
            alice.post("/_matrix/client/v3/createRoom", wish).await
        }
    })
    .await;
    let made = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(made, 1, "{answers:?}");
    for answer in answers.into_iter().filter(|(status, _)| *status != 200) {
        refused(answer, 400, "M_ROOM_IN_USE");
    }
    let joined = ok(alice.get("/_matrix/client/v3/joined_rooms").await);
    assert_eq!(joined["joined_rooms"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transaction_retried_at_once_is_one_event() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let path = room.path("send/m.room.message/same");
    let answers = at_once(0..16, |_| {
        let (alice, path) = (alice.clone(), path.clone());
        async move { alice.put(&path, json!({ "body": "once" })).await }
    })
    .await;
    let told: HashSet<_> = answers
        .into_iter()
        .map(|answer| text(&ok(answer), "event_id"))
        .collect();
    assert_eq!(told.len(), 1);
    let page = ok(room.get(&alice, "messages?dir=b&limit=2").await);
    let said = page["chunk"].as_array().expect("a chunk").iter();
    assert_eq!(
        said.filter(|event| event["type"] == "m.room.message")
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_who_come_and_speak_at_once_are_heard() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut users = Vec::new();
    for number in 0..8 {
        users.push(server.register(&format!("user{number}")).await);
    }
    let mut stream = Stream::begun(&alice).await;
    let id = &room.0;
    let said = at_once(users.clone(), |user| {
        let room = Room(id.clone());
        async move {
            // Twice at once is still once.
            let (one, two) = tokio::join!(room.does(&user, "join"), room.does(&user, "join"));
            assert_eq!((one, two), ((), ()));
            room.say(&user, "hello").await
        }
    })
    .await;
    let state = ok(room.get(&alice, "joined_members").await);
    assert_eq!(
        state["joined"].as_object().map(serde_json::Map::len),
        Some(9)
    );
    let filter = "filter=%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    stream.also(filter);
    let part = stream.joined(&room).await;
    let told = ids(&part["timeline"]["events"]);
    assert_eq!(told.len(), 16, "a join and a word of each");
    assert!(said.iter().all(|id| told.contains(id)));
    assert_eq!(part["summary"]["m.joined_member_count"], 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_waiting_sync_is_woken() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let waits = waiting(&bob).await;
    let said = room.say(&alice, "wake up").await;
    let answer = timeout(LONG, waits).await.expect("it is woken");
    let answer = ok(answer.expect("nothing panics"));
    let part = &answer["rooms"]["join"][&room.0];
    assert_eq!(ids(&part["timeline"]["events"]), [said]);

    let waits = waiting(&bob).await;
    let private = Room::create(&alice, json!({ "invite": [bob.user_id] })).await;
    let answer = timeout(LONG, waits).await.expect("it is woken");
    let answer = ok(answer.expect("nothing panics"));
    assert!(answer["rooms"]["invite"][&private.0].is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_sent_away_hears_of_it_while_waiting() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let waits = waiting(&bob).await;
    room.does_to(&alice, "ban", &bob).await;
    let answer = timeout(LONG, waits).await.expect("it is woken");
    let answer = ok(answer.expect("nothing panics"));
    assert!(answer["rooms"]["leave"][&room.0].is_object(), "{answer}");
    assert_eq!(answer["rooms"]["join"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn patience_ends_by_the_clock() {
    let server = TestServer::new();
    let bob = server.register("bob").await;
    let waits = waiting(&bob).await;
    server.clock.advance(Duration::from_secs(61));
    let answer = timeout(LONG, waits).await.expect("it ends");
    assert_eq!(ok(answer.expect("nothing panics"))["rooms"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sync_does_not_outlive_its_login() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let phone = server.log_in("bob").await;
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let (waits, other) = (waiting(&bob).await, waiting(&phone).await);
    ok(bob.post("/_matrix/client/v3/logout", json!({})).await);
    let answer = timeout(LONG, waits).await.expect("it ends");
    refused(answer.expect("nothing panics"), 401, "M_UNKNOWN_TOKEN");
    let said = room.say(&alice, "for the phone").await;
    let answer = timeout(LONG, other).await.expect("it is woken");
    let answer = ok(answer.expect("nothing panics"));
    let part = &answer["rooms"]["join"][&room.0];
    assert_eq!(ids(&part["timeline"]["events"]), [said]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_ends_all_waiting() {
    let server = TestServer::new();
    let bob = server.register("bob").await;
    let waits = waiting(&bob).await;
    server.services.stop.cancel();
    let answer = timeout(LONG, waits).await.expect("it ends");
    ok(answer.expect("nothing panics"));
}
