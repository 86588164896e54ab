//! "Server Side Search": messages, names and topics found by their words, by those who may see them.

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
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
