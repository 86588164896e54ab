//! What holds of keys whatever happens in which order: none is given twice, and whoever is to hear of a change does, and
//! nobody else.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use kontor::{clock::Entropy, store::schema::INTRODUCTIONS};
use serde_json::{Map, Value, json};

use crate::{
    device_lists::{Follower, enter, leave, room_of},
    elsewhere::until,
    identity::identity,
    room::Room,
    server::{Client, TestServer, ok},
    several::{network, node, sound},
};

/// The names of two offices.
const NAMES: [&str; 2] = ["a.example", "b.example"];

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";

/// A number below `most`.
pub(crate) fn below(entropy: &Entropy, most: usize) -> usize {
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

impl Expected {
    async fn new(user: &Client) -> Self {
        Self {
            follower: Follower::new(user).await,
            before: BTreeSet::new(),
            lately: BTreeSet::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Syncs, and compares what is told with what must be; `now` is with whom a room is shared.
    async fn look(&mut self, users: &[Client], who: usize, now: BTreeSet<usize>, context: &str) {
        let (changed, left) = self.follower.next().await;
        let context = format!("{context}: {changed:?} {left:?}");
        for (other, user) in users.iter().enumerate().filter(|(n, _)| *n != who) {
            let is_changed = changed.contains(&user.user_id);
            let is_left = left.contains(&user.user_id);
            let is_shared = now.contains(&other);
            let was_shared = self.before.contains(&other);
            if is_shared && (self.changed.contains(&other) || !was_shared) {
                assert!(is_changed, "{other} has changed: {context}");
            }
            if !is_shared && !self.lately.contains(&other) {
                assert!(!is_changed && !is_left, "{other} is a stranger: {context}");
            }
            assert!(!is_left || !is_shared, "{other} is still there: {context}");
            assert!(
                is_left || is_shared || !was_shared,
                "{other} is gone: {context}"
            );
        }
        let own = changed.contains(&users[who].user_id);
        assert!(own || !self.changed.contains(&who), "own keys: {context}");
        self.before.clone_from(&now);
        self.lately = now;
        self.changed.clear();
    }
}

/// With whom one shares a room.
fn shared(rooms: &[(String, BTreeSet<usize>)], one: usize) -> BTreeSet<usize> {
    let of_one = rooms.iter().filter(|(_, members)| members.contains(&one));
    let others = of_one.flat_map(|(_, members)| members.iter().copied());
    others.filter(|other| *other != one).collect()
}

/// Gives a device other keys than it had.
async fn rekey(user: &Client, step: usize) {
    let mut keys = identity(user, 1);
    keys["algorithms"] = json!([format!("a{step}")]);
    keys["signatures"] = json!({});
    ok(user.post(UPLOAD, json!({ "device_keys": keys })).await);
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
    let mut followers = Vec::new();
    for user in &users {
        followers.push(Expected::new(user).await);
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
                rekey(&users[who], step).await;
                for expected in &mut followers {
                    expected.changed.insert(who);
                }
            }
            _ => {
                let now = shared(&rooms, who);
                let context = format!("seed {seed}, step {step}, {who}");
                followers[who].look(&users, who, now, &context).await;
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

/// Two offices, and somebody in each by whom it is seen that everything has arrived.
struct Offices {
    nodes: [TestServer; 2],
    hosts: [Client; 2],
    /// Where both of them are.
    hall: Room,
    marks: usize,
}

impl Offices {
    async fn new() -> Self {
        let lan = network();
        let nodes = NAMES.map(|name| node(&lan, name));
        let hosts = [
            nodes[0].register("host").await,
            nodes[1].register("host").await,
        ];
        let hall = Room::new(&hosts[0], "shared").await;
        enter(&hosts[1], &hall.0, NAMES[0]).await;
        Self {
            nodes,
            hosts,
            hall,
            marks: 0,
        }
    }

    /// Waits until both know what has happened at the other, and what follows from it. What is said later arrives later.
    async fn rest(&mut self) {
        // Who comes is introduced there, which leads to news here.
        for _ in 0..3 {
            for node in &self.nodes {
                until(async || {
                    let view = node.services.store().view();
                    INTRODUCTIONS.scan(&view, &()).next().is_none()
                })
                .await;
            }
            self.marks += 1;
            for (from, to) in [(0, 1), (1, 0)] {
                let (from, to) = (&self.hosts[from], &self.hosts[to]);
                let mark = json!({ "n": self.marks });
                let said = self.hall.send(from, "m.mark", mark.clone()).await;
                let messages = json!({ &to.user_id: { &to.device_id: mark } });
                let path = format!("/_matrix/client/v3/sendToDevice/m.mark/{}", self.marks);
                ok(from.put(&path, json!({ "messages": messages })).await);
                until(async || {
                    let event = self.hall.get(to, &format!("event/{said}")).await;
                    let sync = ok(to.get("/_matrix/client/v3/sync?timeout=0").await);
                    let messages = sync["to_device"]["events"].as_array();
                    let n = messages.and_then(|all| all.last()?["content"]["n"].as_u64());
                    event.0.is_success() && n == u64::try_from(self.marks).ok()
                })
                .await;
            }
        }
    }
}

async fn changes_reach_the_other_office(seed: u64) {
    const USERS: usize = 4;
    let entropy = Entropy::seeded(seed);
    let mut offices = Offices::new().await;
    let (mut users, mut followers, mut rooms) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..USERS {
        let user = offices.nodes[n % 2].register(&format!("user{n}")).await;
        followers.push(Expected::new(&user).await);
        users.push(user);
    }
    for host in [0, 1, 0] {
        rooms.push((
            room_of(&offices.hosts[host]).await,
            BTreeSet::new(),
            NAMES[host],
        ));
    }
    for step in 0..50 {
        let who = below(&entropy, USERS);
        match below(&entropy, 5) {
            0..=2 => {
                let (room, members, via) = &mut rooms[below(&entropy, 3)];
                if members.insert(who) {
                    enter(&users[who], room, via).await;
                } else {
                    leave(&users[who], room).await;
                    members.remove(&who);
                }
            }
            3 => {
                rekey(&users[who], step).await;
                for expected in &mut followers {
                    expected.changed.insert(who);
                }
            }
            _ => {
                offices.rest().await;
                let rooms: Vec<_> = rooms
                    .iter()
                    .map(|(room, members, _)| (room.clone(), members.clone()))
                    .collect();
                let context = format!("seed {seed}, step {step}, {who}");
                let now = shared(&rooms, who);
                followers[who].look(&users, who, now, &context).await;
            }
        }
        let rooms: Vec<_> = rooms
            .iter()
            .map(|(room, members, _)| (room.clone(), members.clone()))
            .collect();
        for (n, expected) in followers.iter_mut().enumerate() {
            expected.lately.extend(shared(&rooms, n));
        }
    }
    sound(&[&offices.nodes[0], &offices.nodes[1]]);
}

#[tokio::test]
async fn changes_of_devices_reach_who_shares_a_room_in_another_office_and_nobody_else() {
    for seed in 0..6 {
        changes_reach_the_other_office(seed).await;
    }
}
