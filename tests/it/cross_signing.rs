//! "Cross-signing": keys of users, and what is signed with them, in one office and between offices.

use http::StatusCode;
use kontor::protocol::integrity::{ServerKey, parse_object, signed_text};
use serde_json::{Map, Value, json};

use crate::{
    device_lists::{Follower, enter, one, room_of},
    identity::identity,
    neighbour::Neighbour,
    server::{Client, PASSWORD, TestServer, ok, refused},
    several::{named, network, node, sound},
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const SIGNING: &str = "/_matrix/client/v3/keys/device_signing/upload";
const SIGN: &str = "/_matrix/client/v3/keys/signatures/upload";

const MASTER: u8 = 101;
const SELF: u8 = 102;
const USER: u8 = 103;

fn pair(seed: u8) -> ServerKey {
    ServerKey::from_seed(&[seed; 32], "x").expect("a key")
}

fn public(seed: u8) -> String {
    pair(seed).public_base64().to_owned()
}

fn id(seed: u8) -> String {
    format!("ed25519:{}", public(seed))
}

fn key(user: &str, usage: &str, seed: u8) -> Value {
    json!({ "user_id": user, "usage": [usage], "keys": { id(seed): public(seed) } })
}

/// Adds a signature, by the key of this seed under this id.
fn signed(mut object: Value, user: &str, seed: u8, id: &str) -> Value {
    let parsed = parse_object(&object.to_string()).expect("it is an object");
    let signature = pair(seed).sign(signed_text(&parsed).as_bytes());
    object["signatures"][user][id] = json!(signature);
    object
}

/// The three keys of a user; the seeds begin with that of the master key.
fn three(user: &str, seed: u8) -> Value {
    let by_master = |key| signed(key, user, seed, &id(seed));
    json!({
        "master_key": key(user, "master", seed),
        "self_signing_key": by_master(key(user, "self_signing", seed + 1)),
        "user_signing_key": by_master(key(user, "user_signing", seed + 2)),
    })
}

fn with_password(mut body: Value, user: &Client, session: &Value) -> Value {
    body["auth"] = json!({
        "type": "m.login.password", "session": session, "password": PASSWORD,
        "identifier": { "type": "m.id.user", "user": user.user_id },
    });
    body
}

async fn query(client: &Client, user: &str) -> Value {
    let body = json!({ "device_keys": { user: [] } });
    let answer = ok(client.post(QUERY, body).await);
    assert_eq!(answer.get("failures"), None, "{answer}");
    answer
}

/// Signs what is known of somebody.
async fn sign(client: &Client, user: &str, name: &str, key: &Value) -> Value {
    ok(client.post(SIGN, json!({ user: { name: key } })).await)["failures"].clone()
}

async fn uploads(client: &Client, seed: u8) -> Value {
    let keys = identity(client, seed);
    ok(client.post(UPLOAD, json!({ "device_keys": keys })).await);
    keys
}

#[tokio::test]
async fn only_other_keys_than_before_have_to_be_confirmed() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let user = &alice.user_id;
    let none = json!({ "self_signing_key": three(user, MASTER)["self_signing_key"] });
    refused(alice.post(SIGNING, none).await, 400, "M_MISSING_PARAM");
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    let answer = query(&alice, user).await;
    let sent = three(user, MASTER);
    let mut master = sent["master_key"].clone();
    master["signatures"] = json!({});
    assert_eq!(answer["master_keys"], json!({ user: master }));
    assert_eq!(
        answer["self_signing_keys"],
        json!({ user: sent["self_signing_key"] })
    );
    assert_eq!(
        answer["user_signing_keys"],
        json!({ user: sent["user_signing_key"] })
    );
    let bob = server.register("bob").await;
    let answer = query(&bob, user).await;
    assert_eq!(answer["master_keys"], json!({ user: master }));
    assert_eq!(
        answer["self_signing_keys"],
        json!({ user: sent["self_signing_key"] })
    );
    assert_eq!(
        answer.get("user_signing_keys"),
        None,
        "it is for its owner only"
    );

    // Others: once the password was given, and for these keys only.
    let (status, asked) = alice.post(SIGNING, three(user, 50)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{asked}");
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.password"] }]));
    assert_eq!(query(&alice, user).await["master_keys"][user], master);
    let third = with_password(three(user, 60), &alice, &asked["session"]);
    refused(alice.post(SIGNING, third).await, 403, "M_FORBIDDEN");
    let second = with_password(three(user, 50), &alice, &asked["session"]);
    ok(alice.post(SIGNING, second.clone()).await);
    ok(alice.post(SIGNING, second).await);
    let answer = query(&alice, user).await;
    assert_eq!(
        answer["self_signing_keys"][user],
        three(user, 50)["self_signing_key"]
    );

    // Another master key alone takes those along that it has not signed.
    let alone = json!({ "master_key": key(user, "master", 70) });
    let (_, asked) = alice.post(SIGNING, alone.clone()).await;
    ok(alice
        .post(SIGNING, with_password(alone, &alice, &asked["session"]))
        .await);
    let answer = query(&alice, user).await;
    assert_eq!(
        answer["master_keys"][user]["keys"],
        json!({ id(70): public(70) })
    );
    assert_eq!(answer.get("self_signing_keys"), None);
    assert_eq!(answer.get("user_signing_keys"), None);
    sound(&[&server.restart()]);
}

#[tokio::test]
async fn bad_keys_are_refused_and_leave_nothing() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let user = &alice.user_id;
    let changed = |name: &str, key: Value| {
        let mut body = three(user, MASTER);
        body[name] = key;
        body
    };
    let forged = signed(key(user, "self_signing", SELF), user, USER, &id(MASTER));
    let unsigned = key(user, "user_signing", USER);
    for (name, key) in [("self_signing_key", forged), ("user_signing_key", unsigned)] {
        refused(
            alice.post(SIGNING, changed(name, key)).await,
            400,
            "M_INVALID_SIGNATURE",
        );
    }
    let mut two = key(user, "master", MASTER);
    two["keys"][id(SELF)] = json!(public(SELF));
    let mut misnamed = key(user, "master", MASTER);
    misnamed["keys"] = json!({ "ed25519:x": public(MASTER) });
    for master in [
        key("@bob:localhost", "master", MASTER),
        key(user, "self_signing", MASTER),
        two,
        misnamed,
        json!({}),
        json!("x"),
    ] {
        refused(
            alice.post(SIGNING, changed("master_key", master)).await,
            400,
            "M_INVALID_PARAM",
        );
    }
    let mut long = key(user, "master", MASTER);
    long["more"] = json!("x".repeat(70_000));
    refused(
        alice.post(SIGNING, changed("master_key", long)).await,
        413,
        "M_TOO_LARGE",
    );
    // A signature by a device that is here must be one; what is said to be by others is left out.
    uploads(&alice, 1).await;
    let device = format!("ed25519:{}", alice.device_id);
    let forged = signed(key(user, "master", MASTER), user, 2, &device);
    refused(
        alice.post(SIGNING, changed("master_key", forged)).await,
        400,
        "M_INVALID_SIGNATURE",
    );
    assert_eq!(query(&alice, user).await.get("master_keys"), None);
    let good = signed(key(user, "master", MASTER), user, 1, &device);
    let more = signed(good.clone(), user, 1, "ed25519:GONE");
    ok(alice.post(SIGNING, changed("master_key", more)).await);
    assert_eq!(query(&alice, user).await["master_keys"][user], good);
    // A device that has the name of a key would be mistaken for it.
    let name = public(90);
    let body = json!({
        "type": "m.login.password", "password": PASSWORD, "device_id": name,
        "identifier": { "type": "m.id.user", "user": "bob" },
    });
    let bob = server.register("bob").await;
    ok(server
        .anonymous()
        .post("/_matrix/client/v3/login", body)
        .await);
    refused(
        bob.post(SIGNING, three(&bob.user_id, 90)).await,
        403,
        "M_FORBIDDEN",
    );
    sound(&[&server]);
}

#[tokio::test]
async fn signatures_of_own_keys_are_seen_by_all() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let user = &alice.user_id;
    let room = room_of(&alice).await;
    enter(&bob, &room, "localhost").await;
    let device = uploads(&alice, 1).await;
    let mut b = Follower::new(&bob).await;
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    assert_eq!(b.next().await, one(&alice));
    let by_self = signed(device.clone(), user, SELF, &id(SELF));
    assert_eq!(
        sign(&alice, user, &alice.device_id, &by_self).await,
        json!({})
    );
    assert_eq!(b.next().await, one(&alice));
    assert_eq!(
        query(&bob, user).await["device_keys"][user][&alice.device_id],
        by_self
    );
    assert_eq!(
        sign(&alice, user, &alice.device_id, &by_self).await,
        json!({})
    );
    assert_eq!(b.next().await, (vec![], vec![]), "nothing is new");
    // The device may send its keys again without that signature.
    ok(alice.post(UPLOAD, json!({ "device_keys": device })).await);
    assert_eq!(b.next().await, (vec![], vec![]));
    assert_eq!(
        query(&bob, user).await["device_keys"][user][&alice.device_id],
        by_self
    );
    let by_device = format!("ed25519:{}", alice.device_id);
    let master = signed(key(user, "master", MASTER), user, 1, &by_device);
    assert_eq!(
        sign(&alice, user, &public(MASTER), &master).await,
        json!({})
    );
    assert_eq!(b.next().await, one(&alice));
    assert_eq!(query(&bob, user).await["master_keys"][user], master);
    sound(&[&server.restart()]);
}

#[tokio::test]
async fn what_was_signed_of_others_is_seen_by_the_signer_only() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = room_of(&alice).await;
    for client in [&bob, &carol] {
        enter(client, &room, "localhost").await;
    }
    ok(alice.post(SIGNING, three(&alice.user_id, MASTER)).await);
    ok(bob.post(SIGNING, three(&bob.user_id, 50)).await);
    let mut followers = [
        Follower::new(&alice).await,
        Follower::new(&bob).await,
        Follower::new(&carol).await,
    ];
    let plain = query(&carol, &bob.user_id).await["master_keys"][&bob.user_id].clone();
    let by_alice = signed(plain.clone(), &alice.user_id, USER, &id(USER));
    assert_eq!(
        sign(&alice, &bob.user_id, &public(50), &by_alice).await,
        json!({})
    );
    let nothing = (vec![], vec![]);
    for (follower, told) in followers
        .iter_mut()
        .zip([one(&bob), nothing.clone(), nothing.clone()])
    {
        assert_eq!(follower.next().await, told);
    }
    let seen = async |client: &Client| {
        query(client, &bob.user_id).await["master_keys"][&bob.user_id].clone()
    };
    assert_eq!(seen(&alice).await, by_alice);
    assert_eq!(
        (seen(&bob).await, seen(&carol).await),
        (plain.clone(), plain.clone())
    );
    let neighbour = Neighbour::new(&server.lan, "b.example", 2);
    let body = json!({ "device_keys": { &bob.user_id: [], &alice.user_id: [] } });
    let path = "/_matrix/federation/v1/user/keys/query";
    let told = ok(neighbour.post(&server, path, &body).await);
    assert_eq!(told["master_keys"][&bob.user_id], plain);
    assert_eq!(told.get("user_signing_keys"), None, "{told}");
    // The same again is no news; and after another key it is worth nothing.
    assert_eq!(
        sign(&alice, &bob.user_id, &public(50), &by_alice).await,
        json!({})
    );
    assert_eq!(followers[0].next().await, nothing);
    let other = json!({ "user_signing_key":
        signed(key(&alice.user_id, "user_signing", 30), &alice.user_id, MASTER, &id(MASTER)) });
    let (_, asked) = alice.post(SIGNING, other.clone()).await;
    ok(alice
        .post(SIGNING, with_password(other, &alice, &asked["session"]))
        .await);
    for (follower, told) in followers
        .iter_mut()
        .zip([one(&alice), nothing.clone(), nothing])
    {
        assert_eq!(follower.next().await, told);
    }
    assert_eq!(seen(&alice).await, plain);
    sound(&[&server.restart()]);
}

#[tokio::test]
async fn each_bad_signature_is_refused_for_itself() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (user, other) = (&alice.user_id, &bob.user_id);
    let device = uploads(&alice, 1).await;
    let of_bob = uploads(&bob, 2).await;
    let name = alice.device_id.as_str();
    let by_self = signed(device.clone(), user, SELF, &id(SELF));
    let errcode = async |user: &str, name: &str, key: &Value| {
        let failures = sign(&alice, user, name, key).await;
        failures[user][name]["errcode"]
            .as_str()
            .unwrap_or("none")
            .to_owned()
    };
    assert_eq!(
        errcode(user, name, &by_self).await,
        "M_NOT_FOUND",
        "there is no key yet"
    );
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    ok(bob.post(SIGNING, three(other, 50)).await);
    let master = key(other, "master", 50);
    let good = signed(master.clone(), user, USER, &id(USER));
    let mut changed = by_self.clone();
    changed["algorithms"] = json!(["another"]);
    let by_device = format!("ed25519:{name}");
    let own_master = key(user, "master", MASTER);
    let mut other_master = own_master.clone();
    other_master["more"] = json!(1);
    for (of, name, key, expected) in [
        (
            user,
            name,
            signed(device.clone(), user, USER, &id(SELF)),
            "M_INVALID_SIGNATURE",
        ),
        (
            user,
            name,
            signed(device.clone(), user, SELF, &id(USER)),
            "M_INVALID_SIGNATURE",
        ),
        (
            user,
            name,
            signed(device.clone(), other, SELF, &id(SELF)),
            "M_INVALID_SIGNATURE",
        ),
        (user, name, device.clone(), "M_INVALID_SIGNATURE"),
        (
            user,
            name,
            signed(changed, user, SELF, &id(SELF)),
            "M_INVALID_PARAM",
        ),
        (user, "NONE", by_self.clone(), "M_NOT_FOUND"),
        (user, name, json!(5), "M_INVALID_PARAM"),
        (
            user,
            name,
            json!({ "x": "y".repeat(70_000) }),
            "M_TOO_LARGE",
        ),
        (
            user,
            &public(MASTER),
            signed(own_master.clone(), user, 2, &by_device),
            "M_INVALID_SIGNATURE",
        ),
        (
            user,
            &public(MASTER),
            signed(own_master.clone(), user, 1, "ed25519:NONE"),
            "M_INVALID_SIGNATURE",
        ),
        (user, &public(MASTER), own_master, "M_INVALID_SIGNATURE"),
        (
            user,
            &public(MASTER),
            signed(other_master, user, 1, &by_device),
            "M_INVALID_PARAM",
        ),
        (
            other,
            &public(50),
            signed(master.clone(), user, SELF, &id(USER)),
            "M_INVALID_SIGNATURE",
        ),
        (
            other,
            &public(50),
            signed(master.clone(), user, SELF, &id(SELF)),
            "M_INVALID_SIGNATURE",
        ),
        (other, &public(50), master, "M_INVALID_SIGNATURE"),
        // Somebody else's devices are signed by nobody but them.
        (
            other,
            &bob.device_id,
            signed(of_bob, user, USER, &id(USER)),
            "M_NOT_FOUND",
        ),
        (
            &"@nobody:localhost".to_owned(),
            "x",
            good.clone(),
            "M_NOT_FOUND",
        ),
        (
            &"@nobody:away.example".to_owned(),
            "x",
            good.clone(),
            "M_UNKNOWN",
        ),
    ] {
        assert_eq!(errcode(of, name, &key).await, expected, "{of} {name} {key}");
    }
    let answer = query(&alice, other).await;
    assert_eq!(answer["master_keys"][other]["signatures"], json!({}));
    assert_eq!(query(&bob, user).await["device_keys"][user][name], device);
    // What is good among it is taken.
    let body = json!({
        user: { name: by_self, "NONE": device },
        other: { public(50): good, "x": good },
    });
    let failures = ok(alice.post(SIGN, body).await)["failures"].clone();
    assert_eq!(failures[user]["NONE"]["errcode"], "M_NOT_FOUND");
    assert_eq!(failures[other]["x"]["errcode"], "M_NOT_FOUND");
    assert!(failures[user].get(name).is_none() && failures[other].get(public(50)).is_none());
    assert_eq!(query(&bob, user).await["device_keys"][user][name], by_self);
    assert_eq!(query(&alice, other).await["master_keys"][other], good);
    let many: Map<_, _> = (0..1_001).map(|n| (n.to_string(), json!({}))).collect();
    refused(
        alice.post(SIGN, json!({ user: many })).await,
        413,
        "M_TOO_LARGE",
    );
    refused(
        alice.post(SIGN, json!({ "nobody": {} })).await,
        400,
        "M_BAD_JSON",
    );
    sound(&[&server]);
}

#[tokio::test]
async fn keys_and_signatures_come_from_other_offices() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let user = &alice.user_id;
    let device = uploads(&alice, 1).await;
    let room = room_of(&alice).await;
    let mut follower = Follower::new(&bob).await;
    enter(&bob, &room, "a.example").await;
    follower.until().await;
    assert_eq!(query(&bob, user).await.get("master_keys"), None);
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    assert_eq!(follower.until().await, one(&alice));
    let mut master = key(user, "master", MASTER);
    master["signatures"] = json!({});
    let answer = query(&bob, user).await;
    assert_eq!(answer["master_keys"], json!({ user: master }));
    assert_eq!(
        answer["self_signing_keys"],
        json!({ user: three(user, MASTER)["self_signing_key"] })
    );
    assert_eq!(answer.get("user_signing_keys"), None);
    // They are kept, and what bob signs stays here.
    let names = (named("a.example"), named("b.example"));
    lan.set_link(&names.0, &names.1, false);
    assert_eq!(query(&bob, user).await, answer);
    ok(bob.post(SIGNING, three(&bob.user_id, 50)).await);
    let by_bob = signed(master.clone(), &bob.user_id, 52, &id(52));
    assert_eq!(sign(&bob, user, &public(MASTER), &by_bob).await, json!({}));
    assert_eq!(query(&bob, user).await["master_keys"][user], by_bob);
    assert!(follower.next().await.0.contains(user), "it is news to bob");
    lan.set_link(&names.0, &names.1, true);
    a.clock.advance(std::time::Duration::from_hours(24));
    let by_self = signed(device, user, SELF, &id(SELF));
    assert_eq!(
        sign(&alice, user, &alice.device_id, &by_self).await,
        json!({})
    );
    let mut told = follower.until().await.0;
    while !told.contains(user) {
        told = follower.until().await.0;
    }
    let answer = query(&bob, user).await;
    assert_eq!(answer["device_keys"][user][&alice.device_id], by_self);
    assert_eq!(answer["master_keys"][user], by_bob);
    assert_eq!(query(&alice, user).await["master_keys"][user], master);
    sound(&[&a, &b]);
}

#[tokio::test]
async fn servers_tell_cross_signing_keys_of_their_own_users_only() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let alice = server.register("alice").await;
    let user = &alice.user_id;
    ok(alice.post(SIGNING, three(user, MASTER)).await);
    let path = format!("/_matrix/federation/v1/user/devices/{user}");
    let told = ok(b.get(&server, &path).await);
    assert_eq!(
        told["master_key"]["keys"],
        json!({ id(MASTER): public(MASTER) })
    );
    assert_eq!(
        told["self_signing_key"],
        three(user, MASTER)["self_signing_key"]
    );
    assert_eq!(told.get("user_signing_key"), None);
    let bob = "@bob:b.example";
    let theirs = three(bob, 50);
    let mut forged = theirs["self_signing_key"].clone();
    forged["more"] = json!(1);
    let path = "/_matrix/federation/v1/user/keys/query";
    let wanted = json!({ "device_keys": { bob: [], user: [] } });
    let eve = "@eve:b.example";
    for (own, expected) in [(&theirs["self_signing_key"], true), (&forged, false)] {
        b.answers(path, StatusCode::OK, json!({
            "device_keys": {},
            "master_keys": { bob: theirs["master_key"], user: key(user, "master", 60), eve: theirs["master_key"] },
            "self_signing_keys": { bob: own, user: key(user, "self_signing", 61) },
            "user_signing_keys": { bob: theirs["user_signing_key"] },
        }));
        let answer = ok(alice.post(QUERY, wanted.clone()).await);
        assert_eq!(answer["master_keys"][bob], theirs["master_key"]);
        assert_eq!(
            answer["self_signing_keys"].get(bob),
            expected.then_some(own)
        );
        assert_eq!(
            answer["master_keys"][user]["keys"],
            json!({ id(MASTER): public(MASTER) })
        );
        assert_eq!(answer["master_keys"].get(eve), None);
        assert_eq!(answer["user_signing_keys"].get(bob), None);
    }
    for bad in [
        key(user, "master", 50),
        key(bob, "self_signing", 50),
        json!(5),
    ] {
        b.answers(
            path,
            StatusCode::OK,
            json!({ "device_keys": { bob: {} }, "master_keys": { bob: bad } }),
        );
        let answer = ok(alice.post(QUERY, wanted.clone()).await);
        assert_eq!(answer["master_keys"].get(bob), None, "{answer}");
    }
    sound(&[&server]);
}
