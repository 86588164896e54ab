//! "Listing Notifications".

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

const PATH: &str = "/_matrix/client/v3/notifications";

/// The ids of the events of an answer, and where to go on.
fn told(answer: &Value) -> (Vec<String>, Option<String>) {
    let list = answer["notifications"].as_array().expect("there is a list");
    let ids = list.iter().map(|item| text(&item["event"], "event_id"));
    let next = answer["next_token"].as_str().map(ToOwned::to_owned);
    (ids.collect(), next)
}

async fn list(client: &Client, query: &str) -> (Vec<String>, Option<String>) {
    told(&ok(client.get(&format!("{PATH}?{query}")).await))
}

#[tokio::test]
async fn what_notifies_is_listed_across_rooms_the_newest_first() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (one, two) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let early = one.say(&alice, "before bob").await;
    for room in [&one, &two] {
        room.does(&bob, "join").await;
    }
    assert_eq!(list(&bob, "").await, (vec![], None));
    let mut said = Vec::new();
    for text in ["1", "2"] {
        said.push(one.say(&alice, text).await);
        said.push(two.say(&alice, text).await);
    }
    one.say(&bob, "own words do not notify").await;
    one.set(&alice, "m.room.topic", json!({ "topic": "nor does this" }))
        .await;
    let loud = one.say(&alice, "hello bob").await;
    let gone = two.say(&alice, "bob, forget it").await;
    ok(two
        .put(&alice, &format!("redact/{gone}/1"), json!({}))
        .await);
    ok(one
        .post(&bob, &format!("receipt/m.read/{}", said[2]), json!({}))
        .await);

    let answer = ok(bob.get(PATH).await);
    let mut expect = said.clone();
    expect.push(loud.clone());
    expect.reverse();
    assert_eq!(told(&answer), (expect.clone(), None));
    let items = answer["notifications"].as_array().expect("there is a list");
    let read: Vec<_> = items.iter().map(|item| item["read"] == true).collect();
    assert_eq!(read, [false, false, true, false, true]);
    assert_eq!(items[0]["room_id"], one.0);
    assert_eq!(items[0]["event"]["content"]["body"], "hello bob");
    assert!(items[0]["ts"].is_u64());
    let actions = items[0]["actions"].as_array().expect("there are actions");
    assert_eq!(actions[0], "notify");
    assert!(!answer.to_string().contains(&early));

    let highlights = list(&bob, "only=highlight").await;
    assert_eq!(highlights, (vec![loud], None));
    let mut paged = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let (page, next) = list(&bob, &query).await;
        assert!(page.len() <= 2);
        paged.extend(page);
        let Some(next) = next else { break };
        query = format!("limit=2&from={next}");
    }
    assert_eq!(paged, expect);
    for query in ["from=x", "limit=x", "limit=-1"] {
        let path = format!("{PATH}?{query}");
        refused(bob.get(&path).await, 400, "M_INVALID_PARAM");
    }
    // Nobody is told of a room that they have left, or of those whom they ignore.
    two.does(&bob, "leave").await;
    assert_eq!(list(&bob, "").await.0.len(), 3);
    let path = format!("/_matrix/client/v3/user/{}/account_data", bob.user_id);
    let ignored = json!({ "ignored_users": { (&*alice.user_id): {} } });
    ok(bob
        .put(&format!("{path}/m.ignored_user_list"), ignored)
        .await);
    assert_eq!(list(&bob, "").await, (vec![], None));
}
