//! "Server-side key backups".

use http::Method;
use serde_json::{Value, json};

use crate::{
    server::{Client, TestServer, ok, refused, text},
    several::sound,
};

const VERSION: &str = "/_matrix/client/v3/room_keys/version";
const ROOM: &str = "!a:localhost";

fn keys(version: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/room_keys/keys{rest}?version={version}")
}

fn described(key: &str) -> Value {
    json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": { "public_key": key } })
}

fn key(verified: bool, first: u64, forwarded: u64, data: &str) -> Value {
    json!({
        "is_verified": verified,
        "first_message_index": first,
        "forwarded_count": forwarded,
        "session_data": { "ciphertext": data },
    })
}

async fn begin(client: &Client) -> String {
    text(&ok(client.post(VERSION, described("abc")).await), "version")
}

#[tokio::test]
async fn the_newest_backup_is_the_one_that_is_written() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    refused(alice.get(VERSION).await, 404, "M_NOT_FOUND");
    refused(
        alice.put(&keys("1", ""), json!({ "rooms": {} })).await,
        404,
        "M_NOT_FOUND",
    );
    let first = begin(&alice).await;
    let body = json!({ "rooms": { ROOM: { "sessions": { "s": key(false, 0, 0, "x") } } } });
    let added = ok(alice.put(&keys(&first, ""), body.clone()).await);
    assert_eq!(added["count"], 1);
    let second = begin(&alice).await;
    assert_ne!(first, second);
    let newest = ok(alice.get(VERSION).await);
    assert_eq!(newest["version"], second);
    assert_eq!(newest["count"], 0);
    assert_eq!(newest["auth_data"], json!({ "public_key": "abc" }));
    let answer = alice.put(&keys(&first, ""), body).await;
    assert_eq!(answer.1["current_version"], second);
    refused(answer, 403, "M_WRONG_ROOM_KEYS_VERSION");
    // What is old can be read, and the newest can go.
    assert_eq!(
        ok(alice.get(&keys(&first, "")).await)["rooms"][ROOM]["sessions"]["s"],
        key(false, 0, 0, "x")
    );
    let path = format!("{VERSION}/{second}");
    ok(alice.delete(&path).await);
    refused(alice.delete(&path).await, 404, "M_NOT_FOUND");
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    refused(alice.get(&keys(&second, "")).await, 404, "M_NOT_FOUND");
    let server = server.restart();
    let newest = ok(alice.get(VERSION).await);
    assert_eq!(
        (&newest["version"], &newest["count"]),
        (&json!(first), &json!(1))
    );
    assert_eq!(newest["etag"], added["etag"]);
    // A version is never given twice.
    assert_ne!(begin(&alice).await, second);
    sound(&[&server]);
}

#[tokio::test]
async fn what_a_backup_is_encrypted_with_can_change_and_nothing_else() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let version = begin(&alice).await;
    let path = format!("{VERSION}/{version}");
    let mut changed = described("def");
    ok(alice.put(&path, changed.clone()).await);
    changed["version"] = json!(version);
    ok(alice.put(&path, changed.clone()).await);
    assert_eq!(
        ok(alice.get(&path).await)["auth_data"],
        json!({ "public_key": "def" })
    );
    changed["version"] = json!("other");
    refused(alice.put(&path, changed).await, 400, "M_INVALID_PARAM");
    let other = json!({ "algorithm": "other", "auth_data": {} });
    refused(alice.put(&path, other).await, 400, "M_INVALID_PARAM");
    refused(
        alice.put(&path, json!({ "algorithm": "x" })).await,
        400,
        "M_BAD_JSON",
    );
    for wrong in ["0", "x", "99999999999999999999999"] {
        let path = format!("{VERSION}/{wrong}");
        refused(alice.put(&path, described("x")).await, 404, "M_NOT_FOUND");
        refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    }
    let path = format!("{VERSION}/0{version}");
    refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    let odd = json!({ "algorithm": "x", "auth_data": 5 });
    refused(alice.post(VERSION, odd).await, 400, "M_BAD_JSON");
    let long = json!({ "algorithm": "x", "auth_data": { "a": "x".repeat(65 << 10) } });
    refused(alice.post(VERSION, long).await, 413, "M_TOO_LARGE");
    assert_eq!(
        ok(alice.get(VERSION).await)["auth_data"],
        json!({ "public_key": "def" })
    );
}

#[tokio::test]
async fn the_better_key_of_a_session_stays() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let version = begin(&alice).await;
    let path = keys(&version, &format!("/{ROOM}/s"));
    let mut etag = String::new();
    // In the order in which they come, and whether each is better than what is there.
    for (verified, first, forwarded, better) in [
        (false, 10, 5, true),
        (false, 11, 0, false),
        (false, 10, 6, false),
        (false, 10, 5, false),
        (false, 10, 4, true),
        (false, 9, 100, true),
        (true, 50, 100, true),
        // A forged one does not take the place of a verified one, however early it begins.
        (false, 0, 0, false),
        (true, 50, 99, true),
        (true, 49, 200, true),
    ] {
        let before = alice.get(&path).await.1;
        let new = key(verified, first, forwarded, "y");
        let added = ok(alice.put(&path, new.clone()).await);
        assert_eq!(added["count"], 1);
        let is_new = text(&added, "etag") != etag;
        assert_eq!(is_new, better, "{new}");
        etag = text(&added, "etag");
        let now = ok(alice.get(&path).await);
        assert_eq!(now, if better { new } else { before });
    }
    assert_eq!(ok(alice.get(VERSION).await)["etag"], etag);
    sound(&[&server]);
}

#[tokio::test]
async fn keys_are_read_and_deleted_by_room_and_session() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let version = begin(&alice).await;
    let two =
        json!({ "sessions": { "1": key(false, 1, 0, "1"), "2\"\u{0}": key(false, 2, 0, "2") } });
    let one = json!({ "sessions": { "3": key(true, 3, 0, "3") } });
    let body = json!({ "rooms": { "!b:localhost": two, "!empty:localhost": { "sessions": {} } } });
    ok(alice.put(&keys(&version, ""), body).await);
    let added = ok(alice
        .put(&keys(&version, "/!c:localhost"), one.clone())
        .await);
    assert_eq!(added["count"], 3);
    let all = ok(alice.get(&keys(&version, "")).await);
    assert_eq!(
        all,
        json!({ "rooms": { "!b:localhost": two, "!c:localhost": one } })
    );
    assert_eq!(ok(alice.get(&keys(&version, "/!b:localhost")).await), two);
    let nothing = json!({ "sessions": {} });
    assert_eq!(
        ok(alice.get(&keys(&version, "/!d:localhost")).await),
        nothing
    );
    let missing = keys(&version, "/!b:localhost/3");
    refused(alice.get(&missing).await, 404, "M_NOT_FOUND");
    let unchanged = ok(alice.delete(&missing).await);
    assert_eq!(unchanged, added);
    let less = ok(alice.delete(&keys(&version, "/!b:localhost/1")).await);
    assert_eq!(less["count"], 2);
    assert_ne!(less["etag"], added["etag"]);
    assert_eq!(
        ok(alice.delete(&keys(&version, "/!b:localhost")).await)["count"],
        1
    );
    assert_eq!(
        ok(alice.get(&keys(&version, "")).await),
        json!({ "rooms": { "!c:localhost": one } })
    );
    assert_eq!(ok(alice.delete(&keys(&version, "")).await)["count"], 0);
    assert_eq!(
        ok(alice.get(&keys(&version, "")).await),
        json!({ "rooms": {} })
    );
    refused(alice.delete(&keys("5000", "")).await, 404, "M_NOT_FOUND");
    ok(alice.put(&keys(&version, "/!c:localhost"), one).await);
    let server = server.restart();
    assert_eq!(ok(alice.get(VERSION).await)["count"], 1);
    sound(&[&server]);
}

#[tokio::test]
async fn a_large_backup_comes_in_pieces_and_whole() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let version = begin(&alice).await;
    let mut expected = json!({});
    for room in 0..4 {
        let sessions: serde_json::Map<_, _> = (0..500)
            .map(|n| (format!("{n:03}"), key(false, n, 0, &"z".repeat(200))))
            .collect();
        let room = format!("!{room}:localhost");
        let body = json!({ "sessions": sessions });
        ok(alice
            .put(&keys(&version, &format!("/{room}")), body.clone())
            .await);
        assert_eq!(
            ok(alice.get(&keys(&version, &format!("/{room}"))).await),
            body
        );
        expected[room] = body;
    }
    let all = ok(alice.get(&keys(&version, "")).await);
    assert_eq!(all, json!({ "rooms": expected }));
    assert_eq!(ok(alice.get(VERSION).await)["count"], 2_000);
}

#[tokio::test]
async fn a_backup_is_its_owners() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let version = begin(&alice).await;
    let path = keys(&version, &format!("/{ROOM}/s"));
    ok(alice.put(&path, key(true, 0, 0, "x")).await);
    // All devices of a user share it.
    let other = server.log_in("alice").await;
    assert_eq!(ok(other.get(&path).await), key(true, 0, 0, "x"));
    for path in [
        path.clone(),
        keys(&version, ""),
        keys(&version, &format!("/{ROOM}")),
        format!("{VERSION}/{version}"),
    ] {
        refused(bob.get(&path).await, 404, "M_NOT_FOUND");
        refused(bob.delete(&path).await, 404, "M_NOT_FOUND");
    }
    refused(
        bob.put(&path, key(true, 0, 0, "y")).await,
        404,
        "M_NOT_FOUND",
    );
    begin(&bob).await;
    refused(
        bob.put(&path, key(true, 0, 0, "y")).await,
        404,
        "M_NOT_FOUND",
    );
    assert_eq!(ok(alice.get(&path).await), key(true, 0, 0, "x"));
    // It goes with the account, and with it alone.
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": crate::server::PASSWORD,
    });
    let body = json!({ "auth": auth });
    ok(alice
        .post("/_matrix/client/v3/account/deactivate", body)
        .await);
    ok(bob.get(VERSION).await);
    sound(&[&server]);
    let left = kontor::store::schema::KEY_BACKUPS
        .scan(&server.services.store().view(), &())
        .count();
    assert_eq!(left, 1);
    let left = kontor::store::schema::BACKUP_KEYS
        .scan(&server.services.store().view(), &())
        .count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn bad_keys_leave_nothing() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let version = begin(&alice).await;
    let path = keys(&version, &format!("/{ROOM}"));
    let good = key(false, 0, 0, "x");
    for (field, value) in [
        ("is_verified", json!("yes")),
        ("first_message_index", json!(-1)),
        ("first_message_index", json!("1")),
        ("forwarded_count", json!(1.5)),
        ("session_data", json!("x")),
        ("session_data", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let body = json!({ "sessions": { "a": good, "b": bad } });
        refused(alice.put(&path, body).await, 400, "M_BAD_JSON");
        let session = keys(&version, &format!("/{ROOM}/b"));
        refused(alice.put(&session, bad).await, 400, "M_BAD_JSON");
    }
    refused(alice.put(&path, json!({})).await, 400, "M_BAD_JSON");
    let long = json!({ "sessions": { "s".repeat(256): good } });
    refused(alice.put(&path, long).await, 413, "M_TOO_LARGE");
    let long = json!({ "sessions": { "s": key(false, 0, 0, &"x".repeat(65 << 10)) } });
    refused(alice.put(&path, long).await, 413, "M_TOO_LARGE");
    let huge = vec![b' '; 100 << 20];
    let (status, _, _) = alice.raw(Method::PUT, &path, &[], huge).await;
    assert_eq!(status, 413);
    let unversioned = format!("/_matrix/client/v3/room_keys/keys/{ROOM}");
    refused(alice.get(&unversioned).await, 400, "M_MISSING_PARAM");
    assert_eq!(ok(alice.get(VERSION).await)["count"], 0);
    for _ in 1..100 {
        begin(&alice).await;
    }
    refused(
        alice.post(VERSION, described("x")).await,
        413,
        "M_TOO_LARGE",
    );
    sound(&[&server]);
}
