//! Every endpoint, and who may use it. Whoever adds an endpoint says here for whom it is.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use kontor::config::Secret;
use serde_json::{Value, json};

use self::Access::{Either, Everybody, Guests, OpenId, Servers, Users};
use crate::server::{Client, TestServer, ok};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// No token is needed, and one that is sent along does not matter.
    Everybody,
    /// Everybody, but a token that is sent along must be one.
    Either,
    /// Whoever has a token, also a guest. See "Guest access".
    Guests,
    /// Whoever has a token and is no guest.
    Users,
    /// Whoever shows an OpenID token in the query; no other token is looked at.
    OpenId,
    /// Other servers, by the signature of the request; no token opens it. See "Request Authentication".
    Servers,
}

/// Access, method, versions of the client-server API, path. Where no version stands the path is whole.
const TABLE: &str = "
everybody GET    -                                /.well-known/matrix/client
everybody GET    -                                /.well-known/matrix/server
everybody GET    -                                /.well-known/matrix/support
everybody GET    -                                /_matrix/client/versions
everybody GET    -                                /_synapse/admin/v1/register
everybody POST   -                                /_synapse/admin/v1/register

everybody GET    -                                /_matrix/federation/v1/version
everybody POST   -                                /_kontor/v1/peers/pair
servers   POST   -                                /_kontor/v1/peers/test
everybody GET    -                                /_matrix/key/v2/server
everybody GET    -                                /_matrix/key/v2/server/{key_id}
everybody GET    -                                /_matrix/key/v2/query/{server_name}
everybody GET    -                                /_matrix/key/v2/query/{server_name}/{key_id}
everybody POST   -                                /_matrix/key/v2/query
openid    GET    -                                /_matrix/federation/v1/openid/userinfo
everybody PUT    -                                /_matrix/federation/v1/3pid/onbind
servers   PUT    -                                /_matrix/federation/v1/exchange_third_party_invite/{room_id}
servers   GET    -                                /_matrix/federation/v1/make_join/{room_id}/{user_id}
servers   GET    -                                /_matrix/federation/v1/make_knock/{room_id}/{user_id}
servers   GET    -                                /_matrix/federation/v1/make_leave/{room_id}/{user_id}
servers   GET    -                                /_matrix/federation/v1/hierarchy/{room_id}
servers   GET    -                                /_matrix/federation/v1/publicRooms
servers   POST   -                                /_matrix/federation/v1/publicRooms
servers   GET    -                                /_matrix/federation/v1/query/directory
servers   GET    -                                /_matrix/federation/v1/query/profile
servers   PUT    -                                /_matrix/federation/v1/invite/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v1/send_join/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v1/send_knock/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v1/send_leave/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v2/invite/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v2/send_join/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v2/send_leave/{room_id}/{event_id}
servers   PUT    -                                /_matrix/federation/v1/send/{transaction_id}
servers   POST   -                                /_matrix/federation/v1/user/keys/query
servers   POST   -                                /_matrix/federation/v1/user/keys/claim
servers   GET    -                                /_matrix/federation/v1/user/devices/{user_id}
servers   GET    -                                /_matrix/federation/v1/event/{event_id}
servers   GET    -                                /_matrix/federation/v1/state/{room_id}
servers   GET    -                                /_matrix/federation/v1/state_ids/{room_id}
servers   GET    -                                /_matrix/federation/v1/event_auth/{room_id}/{event_id}
servers   GET    -                                /_matrix/federation/v1/backfill/{room_id}
servers   GET    -                                /_matrix/federation/v1/timestamp_to_event/{room_id}
servers   POST   -                                /_matrix/federation/v1/get_missing_events/{room_id}

guests    GET    r0,v3                            account/whoami
users     POST   r0,v3                            account/deactivate
users     POST   r0,v3                            account/password
guests    GET    r0,v3                            capabilities
users     POST   r0,v3                            delete_devices
guests    GET    r0,v3                            devices
guests    GET    r0,v3                            devices/{device_id}
guests    PUT    r0,v3                            devices/{device_id}
users     DELETE r0,v3                            devices/{device_id}
everybody GET    r0,v3                            login
everybody POST   r0,v3                            login
users     POST   unstable/org.matrix.msc3882,v1   login/get_token
guests    POST   r0,v3                            logout
guests    POST   r0,v3                            logout/all
everybody GET    r0,v3                            profile/{user_id}
everybody GET    unstable/uk.tcpip.msc4133,r0,v3  profile/{user_id}/{field}
guests    PUT    unstable/uk.tcpip.msc4133,r0,v3  profile/{user_id}/{field}
users     DELETE unstable/uk.tcpip.msc4133,v3     profile/{user_id}/{field}
everybody POST   unstable/org.matrix.msc2918,v3   refresh
everybody POST   r0,v3                            register
everybody GET    r0,v3                            register/available
everybody GET    v1                               register/m.login.registration_token/validity
everybody GET    unstable/org.matrix.msc3231      register/org.matrix.msc3231.login.registration_token/validity

guests    POST   r0,v3                            keys/upload
guests    POST   r0,v3                            keys/query
guests    POST   r0,v3                            keys/claim
users     GET    r0,v3                            keys/changes
users     POST   unstable,v3                      keys/device_signing/upload
users     POST   unstable,v3                      keys/signatures/upload
guests    PUT    r0,v3                            sendToDevice/{event_type}/{txn_id}

users     GET    unstable,r0,v3                   room_keys/version
users     POST   unstable,v3                      room_keys/version
users     GET    unstable,v3                      room_keys/version/{version}
users     PUT    unstable,v3                      room_keys/version/{version}
users     DELETE unstable,r0,v3                   room_keys/version/{version}
users     GET    unstable,r0,v3                   room_keys/keys
users     PUT    unstable,v3                      room_keys/keys
users     DELETE unstable,r0,v3                   room_keys/keys
users     GET    unstable,r0,v3                   room_keys/keys/{room_id}
users     PUT    unstable,r0,v3                   room_keys/keys/{room_id}
users     DELETE unstable,r0,v3                   room_keys/keys/{room_id}
users     GET    unstable,r0,v3                   room_keys/keys/{room_id}/{session_id}
users     PUT    unstable,r0,v3                   room_keys/keys/{room_id}/{session_id}
users     DELETE unstable,r0,v3                   room_keys/keys/{room_id}/{session_id}

users     GET    r0,v3                            presence/{user_id}/status
users     PUT    r0,v3                            presence/{user_id}/status
users     GET    r0,v3                            pushrules/
users     GET    r0,v3                            pushrules/global/
users     GET    r0,v3                            pushrules/global/{kind}/{rule_id}
users     PUT    r0,v3                            pushrules/global/{kind}/{rule_id}
users     DELETE r0,v3                            pushrules/global/{kind}/{rule_id}
users     GET    r0,v3                            pushrules/global/{kind}/{rule_id}/actions
users     PUT    r0,v3                            pushrules/global/{kind}/{rule_id}/actions
users     GET    r0,v3                            pushrules/global/{kind}/{rule_id}/enabled
users     PUT    r0,v3                            pushrules/global/{kind}/{rule_id}/enabled
users     GET    r0,v3                            user/{user_id}/account_data/{event_type}
users     PUT    r0,v3                            user/{user_id}/account_data/{event_type}
guests    POST   r0,v3                            user/{user_id}/filter
guests    GET    r0,v3                            user/{user_id}/filter/{filter_id}
users     GET    r0,v3                            user/{user_id}/rooms/{room_id}/account_data/{event_type}
users     PUT    r0,v3                            user/{user_id}/rooms/{room_id}/account_data/{event_type}
users     GET    r0,v3                            user/{user_id}/rooms/{room_id}/tags
users     POST   r0,v3                            user/{user_id}/openid/request_token
users     PUT    r0,v3                            user/{user_id}/rooms/{room_id}/tags/{tag}
users     DELETE r0,v3                            user/{user_id}/rooms/{room_id}/tags/{tag}

users     POST   r0,v3                            createRoom
everybody GET    r0,v3                            directory/list/room/{room_id}
users     PUT    r0,v3                            directory/list/room/{room_id}
everybody GET    r0,v3                            directory/room/{room_alias}
users     PUT    r0,v3                            directory/room/{room_alias}
users     DELETE r0,v3                            directory/room/{room_alias}
everybody GET    r0,v3                            publicRooms
either    GET    v1                               room_summary/{room_id_or_alias}
either    GET    unstable/im.nheko.summary        rooms/{room_id_or_alias}/summary
either    GET    unstable/im.nheko.summary        summary/{room_id_or_alias}
guests    GET    unstable/org.matrix.msc2946,v1   rooms/{room_id}/hierarchy
guests    POST   r0,v3                            publicRooms
guests    GET    unstable/org.matrix.msc2432,r0,v3 rooms/{room_id}/aliases
guests    POST   r0,v3                            join/{room_id_or_alias}
guests    GET    r0,v3                            joined_rooms
users     POST   unstable/xyz.amorgan.knock,v3    knock/{room_id_or_alias}
users     POST   r0,v3                            rooms/{room_id}/ban
guests    GET    r0,v3                            rooms/{room_id}/context/{event_id}
guests    GET    r0,v3                            rooms/{room_id}/event/{event_id}
guests    POST   r0,v3                            rooms/{room_id}/forget
users     POST   r0,v3                            rooms/{room_id}/invite
guests    POST   r0,v3                            rooms/{room_id}/join
users     GET    r0,v3                            rooms/{room_id}/joined_members
users     POST   r0,v3                            rooms/{room_id}/kick
guests    POST   r0,v3                            rooms/{room_id}/leave
guests    GET    r0,v3                            rooms/{room_id}/members
guests    GET    r0,v3                            rooms/{room_id}/messages
users     POST   r0,v3                            rooms/{room_id}/read_markers
users     POST   r0,v3                            rooms/{room_id}/receipt/{receipt_type}/{event_id}
guests    PUT    r0,v3                            rooms/{room_id}/redact/{event_id}/{txn_id}
guests    GET    unstable,v1                      rooms/{room_id}/relations/{event_id}
guests    GET    unstable,v1                      rooms/{room_id}/relations/{event_id}/{rel_type}
guests    GET    unstable,v1                      rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}
guests    GET    unstable/org.matrix.msc3856,v1   rooms/{room_id}/threads
users     GET    unstable/org.matrix.msc3814.v1   dehydrated_device
users     PUT    unstable/org.matrix.msc3814.v1   dehydrated_device
users     DELETE unstable/org.matrix.msc3814.v1   dehydrated_device
users     GET    unstable/org.matrix.msc3814.v1   dehydrated_device/{device_id}/events
users     POST   unstable/org.matrix.msc3814.v1   dehydrated_device/{device_id}/events
users     GET    unstable/io.element.msc4306      rooms/{room_id}/thread/{thread_root}/subscription
users     PUT    unstable/io.element.msc4306      rooms/{room_id}/thread/{thread_root}/subscription
users     DELETE unstable/io.element.msc4306      rooms/{room_id}/thread/{thread_root}/subscription
users     GET    unstable/io.element.msc4308      thread_subscriptions
guests    GET    unstable/org.matrix.msc4143      rtc/transports
guests    PUT    unstable/org.matrix.msc4140      rooms/{room_id}/delayed_event/{event_type}/{txn_id}
guests    GET    unstable/org.matrix.msc4140      delayed_events
guests    GET    unstable/org.matrix.msc4140      delayed_events/{delay_id}
everybody POST   unstable/org.matrix.msc4140      delayed_events/{delay_id}
everybody POST   unstable/org.matrix.msc4140      delayed_events/{delay_id}/{action}
guests    PUT    r0,v3                            rooms/{room_id}/send/{event_type}/{txn_id}
guests    GET    r0,v3                            rooms/{room_id}/state
guests    GET    v3                               rooms/{room_id}/state/{event_type}
guests    PUT    v3                               rooms/{room_id}/state/{event_type}
guests    GET    v3                               rooms/{room_id}/state/{event_type}/
guests    PUT    v3                               rooms/{room_id}/state/{event_type}/
guests    GET    r0,v3                            rooms/{room_id}/state/{event_type}/{state_key}
guests    PUT    r0,v3                            rooms/{room_id}/state/{event_type}/{state_key}
guests    GET    unstable/org.matrix.msc3030,v1   rooms/{room_id}/timestamp_to_event
users     PUT    r0,v3                            rooms/{room_id}/typing/{user_id}
users     POST   r0,v3                            rooms/{room_id}/unban
users     POST   r0,v3                            rooms/{room_id}/upgrade
guests    GET    r0,v3                            sync
users     POST   r0,v3                            search
users     POST   r0,v3                            user_directory/search
users     GET    -                                /_matrix/client/v1/mutual_rooms
users     GET    -                                /_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms
users     POST   v3                               rooms/{room_id}/report
users     POST   -                                /_matrix/client/unstable/org.matrix.msc4151/rooms/{room_id}/report
users     POST   r0,v3                            rooms/{room_id}/report/{event_id}
users     POST   v3                               users/{user_id}/report
users     POST   -                                /_matrix/client/unstable/org.matrix.msc4260/users/{user_id}/report
users     GET    r0,v3                            notifications
guests    GET    r0,v3                            events
users     GET    r0,v3                            events/{event_id}
users     GET    r0,v3                            initialSync
guests    GET    r0,v3                            rooms/{room_id}/initialSync
users     GET    r0,v3                            thirdparty/protocols
users     GET    r0,v3                            thirdparty/protocol/{protocol}
users     GET    r0,v3                            thirdparty/location
users     GET    r0,v3                            thirdparty/location/{protocol}
users     GET    r0,v3                            thirdparty/user
users     GET    r0,v3                            thirdparty/user/{protocol}
users     DELETE unstable/org.matrix.msc3391      user/{user_id}/account_data/{event_type}
users     DELETE unstable/org.matrix.msc3391      user/{user_id}/rooms/{room_id}/account_data/{event_type}
guests    POST   unstable/org.matrix.simplified_msc3575 sync
";

/// The table with one row per path.
fn table() -> Vec<(Method, String, Access)> {
    let mut rows = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[access, method, versions, path] = &words[..] else {
            panic!("not four words: {line}");
        };
        let access = match access {
            "everybody" => Everybody,
            "either" => Either,
            "guests" => Guests,
            "users" => Users,
            "openid" => OpenId,
            "servers" => Servers,
            other => panic!("no access: {other}"),
        };
        let method: Method = method.parse().expect("it is a method");
        if versions == "-" {
            rows.push((method, path.to_owned(), access));
            continue;
        }
        for version in versions.split(',') {
            let path = format!("/_matrix/client/{version}/{path}");
            rows.push((method.clone(), path, access));
        }
    }
    rows
}

fn server() -> TestServer {
    TestServer::with(|config| {
        config.registration.guests = true;
        config.registration.shared_secret = Secret::new("s3cret");
    })
}

/// A path as somebody would ask for it. Nothing that it names exists, except the user.
fn filled_in(path: &str, user_id: &str) -> String {
    let filled = path
        .replace("{user_id}", user_id)
        .replace("{room_id}", "!nowhere:localhost")
        .replace("{room_alias}", "%23nowhere:localhost")
        .replace("{room_id_or_alias}", "!nowhere:localhost")
        .replace("{event_id}", "$nothing")
        .replace("{event_type}", "m.room.topic")
        .replace("{state_key}", "key")
        .replace("{txn_id}", "1")
        .replace("{transaction_id}", "1")
        .replace("{rel_type}", "m.thread")
        .replace("{receipt_type}", "m.read")
        .replace("{protocol}", "irc")
        .replace("{kind}", "override")
        .replace("{rule_id}", "rule")
        .replace("{device_id}", "DEVICE")
        .replace("{filter_id}", "1")
        .replace("{field}", "displayname")
        .replace("{tag}", "u.work")
        .replace("{version}", "1")
        .replace("{delay_id}", "delay")
        .replace("{thread_root}", "$nothing")
        .replace("{action}", "restart")
        .replace("{session_id}", "session")
        .replace("{key_id}", "ed25519:1")
        .replace("{server_name}", "nowhere.example");
    assert!(!filled.contains('{'), "{filled}: a name is not filled in");
    filled
}

async fn ask(client: &Client, method: &Method, path: &str) -> (StatusCode, Value) {
    let path = filled_in(path, &client.user_id);
    // The one body that is read before the token is asked for, because ruma's type makes the token optional.
    let body = if path.ends_with("/account/password") {
        json!({ "new_password": "another" })
    } else {
        json!({})
    };
    let body = (*method != Method::GET && *method != Method::DELETE).then_some(body);
    client.send(method.clone(), &path, body).await
}

/// Fails with every complaint at once.
#[track_caller]
fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_table_has_every_endpoint_and_no_other() {
    let mut complaints = Vec::new();
    let mut listed = BTreeSet::new();
    for (method, path, _) in table() {
        let endpoint = format!("{method} {path}");
        if !listed.insert(endpoint.clone()) {
            complaints.push(format!("{endpoint}: twice in the table"));
        }
    }
    let endpoints = kontor::http::endpoints();
    let answered: BTreeSet<_> = endpoints
        .iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let missing = answered.difference(&listed);
    complaints.extend(missing.map(|endpoint| format!("{endpoint}: not in the table")));
    let gone = listed.difference(&answered);
    complaints.extend(gone.map(|endpoint| format!("{endpoint}: in the table only")));
    expect_none(&complaints);
}

/// Asks for everything, as `client` makes it for each request, and collects what is not as `expect` wants it.
async fn everywhere(
    client: impl AsyncFn() -> Client,
    expect: impl Fn(Access, StatusCode, &str) -> bool,
) {
    let mut complaints = Vec::new();
    for (method, path, access) in table() {
        let (status, body) = ask(&client().await, &method, &path).await;
        let errcode = body["errcode"].as_str().unwrap_or_default();
        if errcode == "M_UNRECOGNIZED" || !expect(access, status, errcode) {
            complaints.push(format!(
                "{method} {path} is for {access:?}: {status} {body}"
            ));
        }
    }
    expect_none(&complaints);
}

/// Whether an error is about the token that came, or did not come, with the request.
fn about_the_token(errcode: &str) -> bool {
    matches!(errcode, "M_MISSING_TOKEN" | "M_UNKNOWN_TOKEN")
}

/// Whether an error says that a server must sign its request.
fn unsigned(status: StatusCode, errcode: &str) -> bool {
    (status, errcode) == (StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED")
}

/// Whether an error says that the token in the query is missing.
fn untold(status: StatusCode, errcode: &str) -> bool {
    (status, errcode) == (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN")
}

#[tokio::test]
async fn without_a_token_only_what_is_for_everybody_answers() {
    let server = server();
    let mut nobody = server.anonymous();
    nobody.user_id = "@alice:localhost".to_owned();
    everywhere(
        async || nobody.clone(),
        |access, status, errcode| match access {
            Everybody | Either => !about_the_token(errcode),
            Guests | Users => (status, errcode) == (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN"),
            Servers => unsigned(status, errcode),
            OpenId => untold(status, errcode),
        },
    )
    .await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_wherever_one_is_needed() {
    let server = server();
    let mut stranger = server.register("alice").await;
    stranger.token = Some("made-up".to_owned());
    everywhere(
        async || stranger.clone(),
        |access, status, errcode| match access {
            Everybody => !about_the_token(errcode),
            Either | Guests | Users => {
                (status, errcode) == (StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN")
            }
            Servers => unsigned(status, errcode),
            OpenId => untold(status, errcode),
        },
    )
    .await;
}

#[tokio::test]
async fn guests_are_let_in_only_where_the_table_says_so() {
    let server = server();
    // A new one each time, because some requests are a guest's last.
    let guest = async || {
        let path = "/_matrix/client/v3/register?kind=guest";
        server.client(&ok(server.anonymous().post(path, json!({})).await))
    };
    everywhere(guest, |access, status, errcode| match access {
        Everybody | Either | Guests => {
            !about_the_token(errcode) && errcode != "M_GUEST_ACCESS_FORBIDDEN"
        }
        Users => (status, errcode) == (StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN"),
        Servers => unsigned(status, errcode),
        OpenId => untold(status, errcode),
    })
    .await;
}

#[tokio::test]
async fn users_are_let_in_everywhere() {
    let server = server();
    let number = std::cell::Cell::new(0);
    let user = async || {
        number.set(number.get() + 1);
        server.register(&format!("user{}", number.get())).await
    };
    everywhere(user, |access, status, errcode| match access {
        Servers => unsigned(status, errcode),
        OpenId => untold(status, errcode),
        _ => !about_the_token(errcode) && errcode != "M_GUEST_ACCESS_FORBIDDEN",
    })
    .await;
}
