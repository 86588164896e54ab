//! What holds of keys whatever happens in which order: none is given twice, and whoever is to hear of a change does, and
//! nobody else.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use kontor::clock::Entropy;
use serde_json::{Map, Value, json};

use crate::{
    device_lists::{Follower, enter, leave, room_of},
    identity::identity,
    server::{Client, TestServer, ok},
    several::sound,
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";

/// A number below `most`.
fn below(entropy: &Entropy, most: usize) -> usize {
    let most = u64::try_from(most).expect("it is small");
    usize::try_from(entropy.number() % most).expect("it is small")
}

/// The ids of the keys in an answer to a claim.
fn given(answer: &Value, client: &Client) -> Vec<String> {
    let keys = answer["one_time_keys"][&client.user_id][&client.device_id].as_object();
    keys.map(|keys| keys.keys().cloned().collect())
        .unwrap_or_default()
}

async fn no_key_is_given_twice(seed: u64) {
    let entropy = Entropy::seeded(seed);
    let mut server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    ok(alice
        .post(UPLOAD, json!({ "device_keys": identity(&alice, 1) }))
        .await);
    let wanted = json!({ "one_time_keys": { &alice.user_id: { &alice.device_id: "a" } } });
    let (mut made, mut seen) = (0, BTreeSet::new());
    for _ in 0..4 {
        let new = 1 + below(&entropy, 12);
        let keys: Map<_, _> = (made..made + new)
            .map(|n| (format!("a:{n}"), json!({ "key": n })))
            .collect();
        made += new;
        ok(alice.post(UPLOAD, json!({ "one_time_keys": keys })).await);
        let claims: Vec<_> = (0..below(&entropy, 16))
            .map(|_| {
                let (bob, wanted) = (bob.clone(), wanted.clone());
                server
                    .services
                    .tasks
                    .spawn(async move { ok(bob.post(CLAIM, wanted).await) })
            })
            .collect();
        for _ in 0..below(&entropy, 20) {
            tokio::task::yield_now().await;
        }
        // Some never get their answers; and sometimes the node ends before all have been given.
        for claim in &claims {
            if below(&entropy, 3) == 0 {
                claim.abort();
            }
        }
        for answer in join_all(claims).await.into_iter().flatten() {
            for id in given(&answer, &alice) {
                assert!(seen.insert(id.clone()), "{id} is given twice (seed {seed})");
            }
        }
        if below(&entropy, 2) == 0 {
            server.stop().await;
            server = server.restart();
        }
        sound(&[&server]);
    }
    loop {
        let ids = given(&ok(bob.post(CLAIM, wanted.clone()).await), &alice);
        if ids.is_empty() {
            break;
        }
        for id in ids {
            assert!(seen.insert(id.clone()), "{id} is given twice (seed {seed})");
        }
    }
    assert!(seen.len() <= made);
}

#[tokio::test]
async fn one_time_keys_are_given_once_however_claims_end() {
    for seed in 0..8 {
        no_key_is_given_twice(seed).await;
    }
}

/// What a follower may and must be told of the others at its next sync.
struct Expected {
    follower: Follower,
    /// With whom a room was shared when it synced last.
    before: BTreeSet<usize>,
    /// With whom one was shared at any time since.
    lately: BTreeSet<usize>,
    /// Who has changed since.
    changed: BTreeSet<usize>,
}

async fn changes_reach_who_shares_a_room(seed: u64) {
    const USERS: usize = 4;
    const ROOMS: usize = 3;
    let entropy = Entropy::seeded(seed);
    let server = TestServer::new();
    let mut users = Vec::new();
    for n in 0..USERS {
        users.push(server.register(&format!("user{n}")).await);
    }
    let host = server.register("host").await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push((room_of(&host).await, BTreeSet::new()));
    }
    let shared = |rooms: &[(String, BTreeSet<usize>)], one: usize| -> BTreeSet<usize> {
        let of_one = rooms.iter().filter(|(_, members)| members.contains(&one));
        let others = of_one.flat_map(|(_, members)| members.iter().copied());
        others.filter(|other| *other != one).collect()
    };
    let mut followers = Vec::new();
    for user in &users {
        followers.push(Expected {
            follower: Follower::new(user).await,
            before: BTreeSet::new(),
            lately: BTreeSet::new(),
            changed: BTreeSet::new(),
        });
    }
    for step in 0..60 {
        let who = below(&entropy, USERS);
        match below(&entropy, 5) {
            0 | 1 => {
                let (room, members) = &mut rooms[below(&entropy, ROOMS)];
                if members.insert(who) {
                    enter(&users[who], room, "localhost").await;
                } else {
                    leave(&users[who], room).await;
                    members.remove(&who);
                }
            }
            2 => {
                let mut keys = identity(&users[who], 1);
                keys["algorithms"] = json!([format!("a{step}")]);
                keys["signatures"] = json!({});
                ok(users[who]
                    .post(UPLOAD, json!({ "device_keys": keys }))
                    .await);
                for expected in &mut followers {
                    expected.changed.insert(who);
                }
            }
            _ => {
                let expected = &mut followers[who];
                let now = shared(&rooms, who);
                let (changed, left) = expected.follower.next().await;
                let context = format!("seed {seed}, step {step}, {who}: {changed:?} {left:?}");
                for (other, user) in users.iter().enumerate().filter(|(n, _)| *n != who) {
                    let is_changed = changed.contains(&user.user_id);
                    let is_left = left.contains(&user.user_id);
                    let is_shared = now.contains(&other);
                    let was_shared = expected.before.contains(&other);
                    if is_shared && (expected.changed.contains(&other) || !was_shared) {
                        assert!(is_changed, "{other} has changed: {context}");
                    }
                    if !is_shared && !expected.lately.contains(&other) {
                        assert!(!is_changed && !is_left, "{other} is a stranger: {context}");
                    }
                    assert!(!is_left || !is_shared, "{other} is still there: {context}");
                    assert!(
                        is_left || is_shared || !was_shared,
                        "{other} is gone: {context}"
                    );
                }
                let own = changed.contains(&users[who].user_id);
                assert!(
                    own || !expected.changed.contains(&who),
                    "own keys: {context}"
                );
                expected.before.clone_from(&now);
                expected.lately = now;
                expected.changed.clear();
            }
        }
        for (n, expected) in followers.iter_mut().enumerate() {
            expected.lately.extend(shared(&rooms, n));
        }
    }
    sound(&[&server]);
}

#[tokio::test]
async fn changes_of_devices_reach_who_shares_a_room_and_nobody_else() {
    for seed in 0..8 {
        changes_reach_who_shares_a_room(seed).await;
    }
}
