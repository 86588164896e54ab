//! "API versions", "Capabilities negotiation" and what lies under `/.well-known`.

use serde_json::json;

use crate::server::{TestServer, ok, refused};

const VERSIONS: &str = "/_matrix/client/versions";
const CAPABILITIES: &str = "/_matrix/client/v3/capabilities";

#[tokio::test]
async fn versions_have_no_gaps_and_need_no_valid_token() {
    let server = TestServer::new();
    let mut client = server.anonymous();
    client.token = Some("expired".to_owned());
    let body = ok(client.get(VERSIONS).await);
    let expect: Vec<_> = (1..=19).map(|minor| format!("v1.{minor}")).collect();
    assert_eq!(body["versions"], json!(expect));
    let features = &body["unstable_features"];
    assert_eq!(features["uk.tcpip.msc4133.stable"], true);
    // Element Web looks for these by name, also where the version of the specification has them.
    assert_eq!(features["org.matrix.e2e_cross_signing"], true);
    assert_eq!(features["org.matrix.msc3827.stable"], true);
}

#[tokio::test]
async fn servers_are_told_what_this_is() {
    let server = TestServer::new();
    let told = ok(server
        .anonymous()
        .get("/_matrix/federation/v1/version")
        .await);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        told,
        json!({ "server": { "name": "Kontor", "version": version } })
    );
}

#[tokio::test]
async fn capabilities_are_told_to_users() {
    let server = TestServer::new();
    refused(
        server.anonymous().get(CAPABILITIES).await,
        401,
        "M_MISSING_TOKEN",
    );
    let alice = server.register("alice").await;
    let body = ok(alice.get(CAPABILITIES).await);
    let told = &body["capabilities"];
    assert_eq!(told["m.room_versions"]["default"], "12");
    let versions = &told["m.room_versions"]["available"];
    assert_eq!(versions["1"], "stable");
    assert_eq!(versions["org.matrix.msc3757.10"], "unstable");
    for (name, enabled) in [
        ("m.change_password", true),
        ("m.set_displayname", true),
        ("m.set_avatar_url", true),
        ("m.3pid_changes", false),
        ("m.get_login_token", true),
        ("m.profile_fields", true),
    ] {
        assert_eq!(told[name]["enabled"], enabled, "{name}");
    }
}

#[tokio::test]
async fn well_known_files_say_what_is_configured() {
    let paths = ["client", "server", "support"];
    let [client, server, support] = paths.map(|name| format!("/.well-known/matrix/{name}"));
    let plain = TestServer::new();
    for path in [&client, &server, &support] {
        refused(plain.anonymous().get(path).await, 404, "M_NOT_FOUND");
    }

    let configured = TestServer::with(|config| {
        config.server.client_url = "https://chat.example.org".parse().ok();
        config.server.federation_address = "chat.example.org:443".try_into().ok();
        config.server.support_email = "help@example.org".to_owned();
        config.server.support_page = "https://example.org/help".parse().ok();
    });
    let anonymous = configured.anonymous();
    assert_eq!(
        ok(anonymous.get(&client).await),
        json!({ "m.homeserver": { "base_url": "https://chat.example.org" } })
    );
    assert_eq!(
        ok(anonymous.get(&server).await),
        json!({ "m.server": "chat.example.org:443" })
    );
    assert_eq!(
        ok(anonymous.get(&support).await),
        json!({
            "contacts": [{ "role": "m.role.admin", "email_address": "help@example.org" }],
            "support_page": "https://example.org/help",
        })
    );

    let only_page = TestServer::with(|config| {
        config.server.support_page = "https://example.org/help".parse().ok();
    });
    assert_eq!(
        ok(only_page.anonymous().get(&support).await),
        json!({ "support_page": "https://example.org/help" })
    );
}

#[tokio::test]
async fn apps_are_told_where_calls_go() {
    let well_known = "/.well-known/matrix/client";
    let transports = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let none = ok(alice.get(transports).await);
    assert_eq!(none, json!({ "rtc_transports": [] }));

    let configured = TestServer::with(|config| {
        config.server.client_url = "https://chat.example.org".parse().ok();
        for address in ["https://a.example.org/jwt", "https://b.example.org"] {
            config
                .calls
                .livekit
                .push(address.parse().expect("an address"));
        }
    });
    let expected = json!([
        { "type": "livekit", "livekit_service_url": "https://a.example.org/jwt" },
        { "type": "livekit", "livekit_service_url": "https://b.example.org" },
    ]);
    let alice = configured.register("alice").await;
    assert_eq!(
        ok(alice.get(transports).await),
        json!({ "rtc_transports": expected })
    );
    let told = ok(configured.anonymous().get(well_known).await);
    assert_eq!(told["org.matrix.msc4143.rtc_foci"], expected);
}
