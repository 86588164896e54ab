//! "Creation" of rooms.

use serde_json::{Value, json};

use crate::{
    room::{Room, encoded},
    server::{TestServer, ok, refused, text},
};

const CREATE: &str = "/_matrix/client/v3/createRoom";

/// All versions that the node serves.
const VERSIONS: [&str; 12] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12",
];

#[tokio::test]
async fn a_preset_decides_who_comes_in() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for (body, join_rule, guests, invite, bobs) in [
        (json!({}), "invite", Some("can_join"), 0, 0),
        (json!({ "visibility": "public" }), "public", None, 50, 0),
        (
            json!({ "preset": "private_chat" }),
            "invite",
            Some("can_join"),
            0,
            0,
        ),
        (
            json!({ "preset": "private_chat", "visibility": "public" }),
            "invite",
            Some("can_join"),
            0,
            0,
        ),
        (
            json!({ "preset": "trusted_private_chat", "room_version": "11" }),
            "invite",
            Some("can_join"),
            0,
            100,
        ),
        (json!({ "preset": "public_chat" }), "public", None, 50, 0),
    ] {
        let mut wish = body.clone();
        wish["invite"] = json!([bob.user_id]);
        let room = Room::create(&alice, wish).await;
        let state = async |kind: &str| ok(room.get(&alice, &format!("state/{kind}")).await);
        assert_eq!(
            state("m.room.join_rules").await["join_rule"],
            join_rule,
            "{body}"
        );
        // Where nothing is said they are forbidden to come.
        let (status, said) = room.get(&alice, "state/m.room.guest_access").await;
        let said = (status != 404).then(|| said["guest_access"].clone());
        assert_eq!(said, guests.map(Value::from), "{body}");
        assert_eq!(
            state("m.room.history_visibility").await["history_visibility"],
            "shared"
        );
        let levels = state("m.room.power_levels").await;
        assert_eq!(levels["invite"], invite, "{body}");
        let of_bob = levels["users"][&bob.user_id].as_i64().unwrap_or_default();
        assert_eq!(of_bob, bobs, "{body}");
    }
    let trusted = json!({ "preset": "trusted_private_chat", "invite": [bob.user_id] });
    let mut wish = trusted.clone();
    wish["room_version"] = json!("12");
    let room = Room::create(&alice, wish).await;
    let create = ok(room.get(&alice, "state/m.room.create").await);
    assert_eq!(create["additional_creators"], json!([bob.user_id]));
    for bad in [
        json!({ "preset": "org.example.chat" }),
        json!({ "preset": 5 }),
        json!({ "visibility": 5 }),
        json!({ "invite": "@bob:localhost" }),
        json!({ "invite": ["bob"] }),
        json!({ "initial_state": {} }),
        json!({ "initial_state": [{ "content": {} }] }),
        json!({ "initial_state": [{ "type": "a" }] }),
        json!({ "initial_state": [{ "type": "a", "state_key": 5, "content": {} }] }),
        json!({ "initial_state": [{ "type": "a", "content": [] }] }),
        json!({ "initial_state": [{ "type": "a", "content": { "a": 1.5 } }] }),
        json!({ "creation_content": [] }),
        json!({ "creation_content": { "a": 1e30 } }),
        json!({ "power_level_content_override": [] }),
        json!({ "power_level_content_override": { "a": 1.5 } }),
        json!({ "power_level_content_override": { "users": [] } }),
        json!({ "power_level_content_override": { "users": { "bob": 5 } } }),
        json!({ "name": 5 }),
        json!({ "topic": [] }),
        json!({ "room_alias_name": 5 }),
        json!({ "room_alias_name": "with:colon" }),
        json!({ "room_alias_name": "with space" }),
        json!({ "room_version": 5 }),
        json!({ "is_direct": "yes" }),
        json!({ "room_version": "12", "creation_content": { "additional_creators": "bob" } }),
        json!({ "room_version": "12", "creation_content": { "additional_creators": ["@a:b", 5] } }),
        json!({ "room_version": "12", "creation_content": { "additional_creators": ["bob"] } }),
        json!({ "room_version": "12", "creation_content": { "additional_creators": ["@a:b$c"] } }),
    ] {
        let (status, body) = alice.post(CREATE, bad.clone()).await;
        assert_eq!(status, 400, "{bad}: {body}");
        assert!(body["errcode"].is_string(), "{bad}: {body}");
    }
}

#[tokio::test]
async fn every_version_works_from_beginning_to_end() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in VERSIONS {
        let wish = json!({
            "room_version": version,
            "preset": "private_chat",
            "name": "A room",
            "invite": [bob.user_id],
        });
        let room = Room::create(&alice, wish).await;
        let create = ok(room.get(&alice, "state/m.room.create").await);
        assert_eq!(create["room_version"], version);
        let (_, by_name) = room.0.split_at(1);
        assert_eq!(by_name.contains(':'), version != "12", "{}", room.0);
        room.does(&bob, "join").await;
        let said = room.say(&bob, "regrettable").await;
        let said_in_path = encoded(&said);
        let path = format!("redact/{said_in_path}/txn{version}");
        ok(room.put(&alice, &path, json!({ "reason": "rude" })).await);
        let event = ok(room.get(&bob, &format!("event/{said_in_path}")).await);
        assert_eq!(event["content"], json!({}), "version {version}");
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["sender"], alice.user_id, "version {version}");
        assert_eq!(because["content"]["reason"], "rude", "version {version}");
        // Clients of all versions find it in one of two places, ours in both.
        assert_eq!(because["redacts"], said, "version {version}");
        room.set(&alice, "m.room.topic", json!({ "topic": version }))
            .await;
        room.does_to(&alice, "kick", &bob).await;
        room.does_to(&alice, "ban", &bob).await;
        room.does_to(&alice, "unban", &bob).await;
        refused(room.post(&bob, "join", json!({})).await, 403, "M_FORBIDDEN");
        let levels = ok(room.get(&alice, "state/m.room.power_levels").await);
        let listed = levels["users"][&alice.user_id].as_i64();
        assert_eq!(
            listed,
            (version != "12").then_some(100),
            "version {version}"
        );
    }
    for version in ["0", "13", "org.example.none"] {
        let wish = json!({ "room_version": version });
        refused(
            alice.post(CREATE, wish).await,
            400,
            "M_UNSUPPORTED_ROOM_VERSION",
        );
    }
}

#[tokio::test]
async fn the_wishes_of_the_creator_are_kept() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let wish = json!({
        "preset": "public_chat",
        "name": "Name",
        "topic": "Topic",
        "room_alias_name": "wished",
        "creation_content": {
            "m.federate": false, "type": "m.space", "room_version": "1", "creator": "@eve:localhost",
        },
        "initial_state": [
            { "type": "m.room.join_rules", "content": { "join_rule": "knock" } },
            { "type": "m.room.name", "content": { "name": "Overruled" } },
            { "type": "org.example.a", "state_key": "key", "content": { "a": 1 } },
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            },
        ],
        "power_level_content_override": { "events_default": 10, "users": { &*bob.user_id: 20 } },
        "invite": [bob.user_id],
        "is_direct": true,
        "room_version": "12",
    });
    let room = Room::create(&alice, wish).await;
    let state = async |kind: &str| ok(room.get(&alice, &format!("state/{kind}")).await);
    let create = state("m.room.create").await;
    assert_eq!(
        (
            &create["m.federate"],
            &create["type"],
            &create["room_version"]
        ),
        (&json!(false), &json!("m.space"), &json!("12"))
    );
    assert_eq!(state("m.room.name").await["name"], "Name");
    let topic = state("m.room.topic").await;
    assert_eq!(topic["topic"], "Topic");
    assert_eq!(topic["m.topic"]["m.text"][0]["body"], "Topic");
    assert_eq!(state("m.room.join_rules").await["join_rule"], "knock");
    assert_eq!(state("org.example.a/key").await, json!({ "a": 1 }));
    assert_eq!(
        state("m.room.canonical_alias").await["alias"],
        "#wished:localhost"
    );
    let levels = state("m.room.power_levels").await;
    assert_eq!(levels["events_default"], 10);
    assert_eq!(levels["users"], json!({ &*bob.user_id: 20 }));
    assert_eq!(levels["ban"], 50, "what is not overridden stays");
    let invite = state(&format!("m.room.member/{}", bob.user_id)).await;
    assert_eq!(
        (&invite["membership"], &invite["is_direct"]),
        (&json!("invite"), &json!(true))
    );
    let join = format!("/_matrix/client/v3/join/{}", encoded("#wished:localhost"));
    let joined = ok(bob.post(&join, json!({})).await);
    assert_eq!(joined["room_id"], room.0);
    let own = state(&format!("m.room.member/{}", bob.user_id)).await;
    assert_eq!(own["is_direct"], Value::Null, "joining is not direct");
}

#[tokio::test]
async fn what_can_not_be_makes_no_room() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    ok(alice
        .post(CREATE, json!({ "room_alias_name": "taken" }))
        .await);
    refused(
        alice
            .post(CREATE, json!({ "room_alias_name": "taken" }))
            .await,
        400,
        "M_ROOM_IN_USE",
    );
    let state = |kind: &str, key: &str, content: Value| {
        json!({ "initial_state": [{
        "type": kind, "state_key": key, "content": content,
    }] })
    };
    for contradiction in [
        json!({ "room_version": "11", "power_level_content_override": { "users": {} }, "name": "a" }),
        json!({ "room_version": "12", "power_level_content_override": { "users": { &*alice.user_id: 100 } } }),
        state("m.room.create", "", json!({})),
        state(
            "m.room.member",
            "@nobody:localhost",
            json!({ "membership": "join" }),
        ),
        state("org.example.a", "@nobody:localhost", json!({})),
    ] {
        let mut body = contradiction.clone();
        body["room_alias_name"] = json!("free");
        let (status, answer) = alice.post(CREATE, body).await;
        assert_eq!(
            (status.as_u16(), &answer["errcode"]),
            (400, &json!("M_INVALID_ROOM_STATE")),
            "{contradiction}: {answer}"
        );
    }
    // Their server must agree, which it can do only when the room is there.
    let far = state(
        "m.room.member",
        "@far:example.org",
        json!({ "membership": "invite" }),
    );
    refused(alice.post(CREATE, far).await, 403, "M_FORBIDDEN");
    // An invite that stands in the initial state is an invite too.
    refused(
        alice
            .post(
                CREATE,
                state(
                    "m.room.member",
                    "@far:example.org",
                    json!({ "membership": "invite" }),
                ),
            )
            .await,
        403,
        "M_FORBIDDEN",
    );
    let by_mail = json!({ "invite_3pid": [{
        "id_server": "a", "id_access_token": "b", "medium": "email", "address": "a@example.org",
    }] });
    refused(alice.post(CREATE, by_mail).await, 403, "M_THREEPID_DENIED");
    let long = json!({ "name": "n".repeat(70_000) });
    refused(alice.post(CREATE, long).await, 413, "M_TOO_LARGE");
    // None of it has left anything behind.
    let joined = ok(alice.get("/_matrix/client/v3/joined_rooms").await);
    assert_eq!(joined["joined_rooms"].as_array().map(Vec::len), Some(1));
    let sync = ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(
        sync["rooms"]["join"].as_object().map(serde_json::Map::len),
        Some(1)
    );
    ok(alice
        .post(CREATE, json!({ "room_alias_name": "free" }))
        .await);
    refused(
        server.anonymous().post(CREATE, json!({})).await,
        401,
        "M_MISSING_TOKEN",
    );
    let room = text(&ok(alice.post(CREATE, json!({})).await), "room_id");
    assert!(room.starts_with('!'));
}

#[tokio::test]
async fn new_rooms_are_encrypted_as_the_configuration_says() {
    use kontor::config::EncryptedRooms::{All, Off, Private};
    let asked = json!({ "algorithm": "m.other" });
    for (mode, private, public) in [
        (Off, false, false),
        (Private, true, false),
        (All, true, true),
    ] {
        let server = TestServer::with(|config| config.rooms.encrypted = mode);
        let alice = server.register("alice").await;
        let space = json!({ "creation_content": { "type": "m.space" } });
        let initial = json!({
            "initial_state": [{ "type": "m.room.encryption", "content": asked }],
        });
        let usual = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        for (body, expected) in [
            (json!({}), private.then_some(&usual)),
            (
                json!({ "preset": "trusted_private_chat" }),
                private.then_some(&usual),
            ),
            (json!({ "preset": "public_chat" }), public.then_some(&usual)),
            (json!({ "visibility": "public" }), public.then_some(&usual)),
            (space, None),
            // What the client says stands, and it stands once.
            (initial, Some(&asked)),
        ] {
            let created = ok(alice
                .post("/_matrix/client/v3/createRoom", body.clone())
                .await);
            let room = created["room_id"].as_str().expect("an id");
            let path = format!("/_matrix/client/v3/rooms/{room}/state");
            let state = ok(alice.get(&path).await);
            let mut found = state.as_array().expect("a list").iter();
            let found = found.find(|event| event["type"] == "m.room.encryption");
            let found = found.map(|event| &event["content"]);
            assert_eq!(found, expected, "{mode:?} {body}");
        }
    }
}
