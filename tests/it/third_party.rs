//! "Third-party invites" in the server-server API.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    joining::join,
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{Answer, Client, TestServer, ok, refused},
    several::{network, node, sound},
};

/// An identity server, as far as anybody sees it: a key.
struct Identity(SigningKey);

impl Identity {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    fn public(&self) -> String {
        STANDARD_NO_PAD.encode(self.0.verifying_key().as_bytes())
    }

    fn signed(&self, user: &str, token: &str) -> Value {
        let mut object = json!({ "mxid": user, "token": token });
        let signature = self.0.sign(object.to_string().as_bytes()).to_bytes();
        object["signatures"] =
            json!({ "id.example": { "ed25519:0": STANDARD_NO_PAD.encode(signature) } });
        object
    }
}

/// Invites an address that belongs to nobody yet.
async fn invite_address(who: &Client, room: &Room, identity: &Identity, token: &str) {
    let key = identity.public();
    let url = "https://id.example/valid";
    let content = json!({
        "display_name": "s...@x", "key_validity_url": url, "public_key": key,
        "public_keys": [{ "public_key": key, "key_validity_url": url }],
    });
    let path = format!("state/m.room.third_party_invite/{token}");
    ok(room.put(who, &path, content).await);
}

async fn bind(server: &TestServer, user: &str, room: &Room, sender: &str, signed: Value) -> Answer {
    let invite = json!({
        "medium": "email", "address": "s@x", "mxid": user, "room_id": room.0,
        "sender": sender, "signed": signed,
    });
    let body = json!({ "medium": "email", "address": "s@x", "mxid": user, "invites": [invite] });
    let path = "/_matrix/federation/v1/3pid/onbind";
    server.anonymous().put(path, body).await
}

async fn invited(who: &Client, room: &Room) -> bool {
    let sync = ok(who.get("/_matrix/client/v3/sync").await);
    sync["rooms"]["invite"][&*room.0].is_object()
}

#[tokio::test]
async fn whoever_an_address_turns_out_to_be_is_invited() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = a.register("carol").await;
    let identity = Identity::new(5);
    let private = json!({ "preset": "private_chat" });
    let room = Room::create(&alice, private.clone()).await;
    invite_address(&alice, &room, &identity, "t1").await;
    invite_address(&alice, &room, &identity, "t2").await;
    // Of the same server, and of another one, which asks ours.
    let signed = identity.signed(&carol.user_id, "t1");
    ok(bind(&a, &carol.user_id, &room, &alice.user_id, signed).await);
    assert!(invited(&carol, &room).await);
    let signed = identity.signed(&bob.user_id, "t2");
    ok(bind(&b, &bob.user_id, &room, &alice.user_id, signed).await);
    assert!(invited(&bob, &room).await);
    let path = format!("state/m.room.member/{}", encoded(&bob.user_id));
    let member = ok(room.get(&alice, &path).await);
    assert_eq!(member["third_party_invite"]["display_name"], "s...@x");
    ok(join(&bob, &room, &["a.example"]).await);
    sound(&[&a, &b]);

    // What is not signed by the key that the room knows, or for somebody else, comes to nothing.
    let other = Room::create(&alice, private).await;
    invite_address(&alice, &other, &identity, "t3").await;
    // Nor if the user does not want to be invited.
    let path = "account_data/m.invite_permission_config";
    let path = format!("/_matrix/client/v3/user/{}/{path}", carol.user_id);
    ok(carol.put(&path, json!({ "default_action": "block" })).await);
    let signed = identity.signed(&carol.user_id, "t3");
    ok(bind(&a, &carol.user_id, &other, &alice.user_id, signed).await);
    let blocked = format!("state/m.room.member/{}", encoded(&carol.user_id));
    refused(other.get(&alice, &blocked).await, 404, "M_NOT_FOUND");
    let eve = Identity::new(6);
    for signed in [
        eve.signed(&bob.user_id, "t3"),
        identity.signed(&carol.user_id, "t3"),
        identity.signed(&bob.user_id, "t4"),
        json!({ "mxid": bob.user_id, "token": "t3", "signatures": {} }),
    ] {
        ok(bind(&b, &bob.user_id, &other, &alice.user_id, signed).await);
        assert!(!invited(&bob, &other).await);
    }
    let signed = identity.signed(&bob.user_id, "t3");
    // It was not carol who has invited them; nobody is invited here who is elsewhere.
    ok(bind(&b, &bob.user_id, &other, &carol.user_id, signed.clone()).await);
    assert!(!invited(&bob, &other).await);
    for user in [&*bob.user_id, "@nobody:a.example"] {
        let answer = bind(&a, user, &other, &alice.user_id, signed.clone()).await;
        refused(answer, 404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn servers_may_ask_only_for_what_was_signed() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let identity = Identity::new(5);
    let room = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    invite_address(&alice, &room, &identity, "t1").await;
    let zoe = "@zoe:b.example";
    let body = |room: &str, signed: Value| {
        json!({
            "type": "m.room.member", "room_id": room, "sender": alice.user_id, "state_key": zoe,
            "content": { "membership": "invite", "third_party_invite": {
                "display_name": "x", "signed": signed,
            } },
        })
    };
    let ask = async |room: &str, body: &Value| {
        let path = format!(
            "/_matrix/federation/v1/exchange_third_party_invite/{}",
            encoded(room)
        );
        let body = body.to_string();
        let header = other.sign(&Method::PUT, &path, &body);
        other
            .send(&server, Method::PUT, &path, &header, &body)
            .await
    };
    let good = body(&room.0, identity.signed(zoe, "t1"));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    let forged = Identity::new(6).signed(zoe, "t1");
    for (body, status, errcode) in [
        (body(&room.0, forged), 403, "M_FORBIDDEN"),
        (
            body(&room.0, identity.signed(zoe, "t2")),
            403,
            "M_FORBIDDEN",
        ),
        (
            body(&room.0, identity.signed("@x:b.example", "t1")),
            403,
            "M_FORBIDDEN",
        ),
        (
            with(&|body| body["sender"] = "@eve:b.example".into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            with(&|body| body["sender"] = "@eve:localhost".into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            with(&|body| body["type"] = "m.room.topic".into()),
            400,
            "M_INVALID_PARAM",
        ),
        (
            with(&|body| body["room_id"] = "!other:localhost".into()),
            400,
            "M_INVALID_PARAM",
        ),
        (
            with(&|body| body["content"] = json!({ "membership": "invite" })),
            400,
            "M_BAD_JSON",
        ),
        (json!({}), 400, "M_BAD_JSON"),
    ] {
        refused(ask(&room.0, &body).await, status, errcode);
    }
    let elsewhere = body("!nowhere:localhost", identity.signed(zoe, "t1"));
    refused(
        ask("!nowhere:localhost", &elsewhere).await,
        404,
        "M_NOT_FOUND",
    );
    // The user's server must agree.
    refused(ask(&room.0, &good).await, 502, "M_UNKNOWN");
    other.answers("/", StatusCode::OK, "{}");
    refused(ask(&room.0, &good).await, 502, "M_UNKNOWN");
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    room.set(&alice, "m.room.server_acl", acl).await;
    refused(ask(&room.0, &good).await, 403, "M_FORBIDDEN");
}
