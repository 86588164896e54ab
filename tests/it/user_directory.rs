//! "User Directory": who is found by name, and by whom.

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, PASSWORD, TestServer, ok, refused},
    several::{network, node, sound},
};

const SEARCH: &str = "/_matrix/client/v3/user_directory/search";

async fn call(client: &Client, name: &str) {
    let path = format!("/_matrix/client/v3/profile/{}/displayname", client.user_id);
    ok(client.put(&path, json!({ "displayname": name })).await);
}

async fn search(client: &Client, body: Value) -> Value {
    ok(client.post(SEARCH, body).await)
}

/// The ids that are found, with a bar behind them if there may be more.
async fn found(client: &Client, term: &str) -> String {
    told(&search(client, json!({ "search_term": term })).await)
}

fn told(answer: &Value) -> String {
    let results = answer["results"].as_array().expect("there is a list");
    let ids = results.iter().map(|user| user["user_id"].as_str());
    let ids: Vec<_> = ids.map(|id| id.expect("everybody has an id")).collect();
    let bar = if answer["limited"] == true { "|" } else { "" };
    ids.join(" ") + bar
}

async fn ignore(client: &Client, whom: &str) {
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        client.user_id
    );
    ok(client
        .put(&path, json!({ "ignored_users": { whom: {} } }))
        .await);
}

#[tokio::test]
async fn colleagues_are_found_by_any_part_of_their_names() {
    let server = TestServer::new();
    let asker = server.register("asker").await;
    let (anna, peter) = (
        server.register("a.mueller").await,
        server.register("pk").await,
    );
    call(&anna, "Anna-Lena Müller").await;
    call(&peter, "Пётр Кузнецов").await;
    let (is_anna, is_peter) = ("@a.mueller:localhost", "@pk:localhost");
    for (term, expect) in [
        ("Anna", is_anna),
        ("lena mul", is_anna),
        ("MÜLLER", is_anna),
        ("mueller", is_anna),
        ("a.mue", is_anna),
        ("@a.mueller:localhost", is_anna),
        ("@a.mueller:local", is_anna),
        ("üller an", is_anna),
        ("петр", is_peter),
        ("Пётр КУЗ", is_peter),
        ("нецов", is_peter),
        ("@pk", is_peter),
        ("anna петр", ""),
        ("@a.mueller:elsewhere", ""),
        ("annabel", ""),
        ("asker", ""),
        ("", ""),
        ("  !? ", ""),
        ("@:localhost", ""),
        ("\0", ""),
    ] {
        assert_eq!(found(&asker, term).await, expect, "{term}");
    }
    let answer = search(&asker, json!({ "search_term": "anna" })).await;
    let expect = json!({
        "results": [{ "user_id": is_anna, "display_name": "Anna-Lena Müller" }],
        "limited": false,
    });
    assert_eq!(answer, expect);

    call(&anna, "Anna Schmidt").await;
    let path = format!("/_matrix/client/v3/profile/{is_anna}/avatar_url");
    ok(anna.put(&path, json!({ "avatar_url": "mxc://a/b" })).await);
    assert_eq!(found(&asker, "lena").await, "");
    let answer = search(&asker, json!({ "search_term": "schmidt" })).await;
    assert_eq!(answer["results"][0]["avatar_url"], "mxc://a/b");
    // A name in one room is nobody else's business.
    let room = Room::create(&anna, json!({ "preset": "private_chat" })).await;
    let member = json!({ "membership": "join", "displayname": "Freddy" });
    ok(room
        .put(&anna, &format!("state/m.room.member/{is_anna}"), member)
        .await);
    assert_eq!(found(&asker, "freddy").await, "");
    sound(&[&server]);
    let server = server.restart();
    assert_eq!(found(&asker, "schmidt").await, is_anna);
    sound(&[&server]);
}

#[tokio::test]
async fn an_answer_says_whether_there_are_more() {
    let server = TestServer::new();
    let asker = server.register("asker").await;
    for name in ["tom3", "tom1", "tom2", "xtom"] {
        server.register(name).await;
    }
    let ask = async |limit: u64| {
        told(&search(&asker, json!({ "search_term": "tom", "limit": limit })).await)
    };
    // Those whose word begins so come first.
    let all = "@tom1:localhost @tom2:localhost @tom3:localhost @xtom:localhost";
    assert_eq!(ask(4).await, all);
    assert_eq!(ask(5).await, all);
    assert_eq!(ask(2).await, "@tom1:localhost @tom2:localhost|");
    assert_eq!(ask(0).await, "|");
    assert_eq!(ask(9_007_199_254_740_991).await, all);
    let long = json!({ "search_term": "x".repeat(100_000) });
    refused(asker.post(SEARCH, long).await, 400, "M_INVALID_PARAM");
    refused(asker.post(SEARCH, json!({})).await, 400, "M_BAD_JSON");
    let bad = json!({ "search_term": "a", "limit": -1 });
    refused(asker.post(SEARCH, bad).await, 400, "M_BAD_JSON");
}

#[tokio::test]
async fn who_is_gone_or_ignored_is_not_found() {
    let server = TestServer::new();
    let (asker, alice) = (
        server.register("asker").await,
        server.register("alice").await,
    );
    let bob = server.register("bob").await;
    call(&bob, "Bob the Builder").await;
    assert_eq!(found(&asker, "bob").await, "@bob:localhost");
    ignore(&asker, &bob.user_id).await;
    assert_eq!(found(&asker, "bob").await, "");
    assert_eq!(found(&alice, "bob").await, "@bob:localhost");
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "bob" },
        "password": PASSWORD,
    });
    let path = "/_matrix/client/v3/account/deactivate";
    ok(bob.post(path, json!({ "auth": auth })).await);
    for term in ["bob", "builder"] {
        assert_eq!(found(&alice, term).await, "", "{term}");
    }
    sound(&[&server]);
}

#[tokio::test]
async fn where_strangers_are_hidden_only_those_in_ones_rooms_and_public_ones_are_found() {
    let server = TestServer::with(|config| config.user_directory.search_all_users = false);
    let (asker, alice) = (
        server.register("asker").await,
        server.register("alice").await,
    );
    assert_eq!(found(&asker, "alice").await, "");
    let room = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    room.does_to(&alice, "invite", &asker).await;
    assert_eq!(
        found(&asker, "alice").await,
        "",
        "an invite is no shared room"
    );
    room.does(&asker, "join").await;
    assert_eq!(found(&asker, "alice").await, "@alice:localhost");
    room.does(&asker, "leave").await;
    assert_eq!(found(&asker, "alice").await, "");
    let public = Room::new(&alice, "shared").await;
    assert_eq!(found(&asker, "alice").await, "@alice:localhost");
    public.does(&alice, "leave").await;
    assert_eq!(found(&asker, "alice").await, "");
    let readable = json!({ "preset": "private_chat", "initial_state": [{
        "type": "m.room.history_visibility",
        "content": { "history_visibility": "world_readable" },
    }] });
    Room::create(&alice, readable).await;
    assert_eq!(found(&asker, "alice").await, "@alice:localhost");
}

#[tokio::test]
async fn users_elsewhere_are_found_while_somebody_here_shares_a_room_with_them() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (asker, alice) = (a.register("asker").await, a.register("alice").await);
    let bob = b.register("bobby").await;
    call(&bob, "Bob Šimek").await;
    a.register("simeks-friend").await;
    assert_eq!(found(&asker, "simek").await, "@simeks-friend:a.example");
    let room = Room::new(&alice, "shared").await;
    let join = format!("/_matrix/client/v3/join/{}?via=a.example", room.0);
    ok(bob.post(&join, json!({})).await);
    // Those of this node come first.
    let both = "@simeks-friend:a.example @bobby:b.example";
    assert_eq!(found(&asker, "simek").await, both);
    assert_eq!(found(&asker, "@bob:b.ex").await, "@bobby:b.example");
    assert_eq!(found(&bob, "alice").await, "@alice:a.example");
    ignore(&asker, "@bobby:b.example").await;
    assert_eq!(found(&asker, "bobby").await, "");
    assert_eq!(found(&alice, "bobby").await, "@bobby:b.example");
    // What is known of a room that nobody here is in may be out of date.
    room.does(&alice, "leave").await;
    assert_eq!(found(&alice, "bobby").await, "");
    for node in [&a, &b] {
        node.stop().await;
    }
    sound(&[&a, &b]);
}
