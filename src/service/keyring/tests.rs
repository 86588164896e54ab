//! Which keys are good for which events, and what a document of keys changes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, OwnedServerName, RoomVersionId, ServerName, owned_server_name, server_name,
};

use super::{Keyring, Need, OwnKeys, Verdict};
use crate::{
    clock::{Clock, Entropy},
    config::Federation,
    protocol::{
        integrity::{self, ServerKey, canonical},
        server_keys::{MAX_VALIDITY_MS, OldKey, publish},
        version,
    },
    remote::{Lan, Remote},
    store::{self, Store, schema::SERVER_KEYS},
};

const START: u64 = 1_700_000_000_000;

struct Setting {
    keyring: Arc<Keyring>,
    clock: Clock,
    /// What b.example publishes.
    published: Arc<Mutex<String>>,
    store: Store,
    _directory: tempfile::TempDir,
}

fn b() -> OwnedServerName {
    owned_server_name!("b.example")
}

fn key(seed: u8) -> ServerKey {
    ServerKey::from_seed(&[seed; 32], &format!("k{seed}")).unwrap()
}

fn open(directory: &tempfile::TempDir) -> Store {
    Store::open(&store::Options {
        directory: directory.path().to_owned(),
        sync: store::Sync::Never,
        memory: 32 << 20,
    })
    .unwrap()
}

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        let clock = Clock::manual(START);
        let entropy = Entropy::seeded(1);
        let lan = Lan::new(clock.clone(), entropy.clone());
        let own = OwnKeys::open(&store, &entropy).unwrap();
        let us = server_name!("a.example");
        let federation = Federation::default();
        let remote = Remote::new(us, own.key.clone(), &federation, lan.port(us));
        let published = Arc::<Mutex<String>>::default();
        let said = published.clone();
        let handler = move |_| -> crate::remote::memory::Answering {
            let response = Response::new(Bytes::from(said.lock().clone()));
            Box::pin(async move { response })
        };
        lan.attach(&b(), Arc::new(handler));
        let keyring = Keyring::new(us, own, store.clone(), clock.clone(), entropy, remote);
        Self {
            keyring: Arc::new(keyring),
            clock,
            published,
            store,
            _directory: directory,
        }
    }

    fn publish(&self, seed: u8, old: &[OldKey], valid_until: u64) {
        *self.published.lock() = canonical(&publish(&b(), &key(seed), old, valid_until));
    }

    async fn verdict(&self, version: &RoomVersionId, seed: u8, time: u64) -> Verdict {
        let rules = version::rules(version).unwrap();
        let event = event(version, seed, time);
        self.keyring.verify_event(&event, rules).await.unwrap()
    }

    /// Whether such an event is good in a room of version 4, and in one of version 10.
    async fn good(&self, seed: u8, time: u64) -> (bool, bool) {
        (
            self.verdict(&RoomVersionId::V4, seed, time).await == Verdict::Good,
            self.verdict(&RoomVersionId::V10, seed, time).await == Verdict::Good,
        )
    }
}

fn event(version: &RoomVersionId, seed: u8, time: u64) -> CanonicalJsonObject {
    let text = format!(
        r#"{{"type":"m.x","sender":"@u:b.example","room_id":"!r:b.example","content":{{"a":1}},
        "origin_server_ts":{time},"depth":1,"prev_events":[],"auth_events":[]}}"#
    );
    let mut object = integrity::parse_object(&text).unwrap();
    let rules = version::rules(version).unwrap();
    integrity::hash_and_sign(&mut object, &key(seed), &b(), rules).unwrap();
    object
}

fn old(seed: u8, expired_ts: u64) -> OldKey {
    OldKey {
        id: key(seed).id().to_owned(),
        key: key(seed).public_base64().to_owned(),
        expired_ts,
    }
}

const HOUR: u64 = 3_600_000;

#[tokio::test]
async fn the_time_of_a_key_counts_from_room_version_5() {
    let node = Setting::new();
    node.publish(1, &[old(2, START - HOUR)], START + HOUR);
    assert_eq!(node.good(1, START).await, (true, true));
    assert_eq!(node.good(1, START + HOUR).await, (true, true));
    assert_eq!(node.good(1, START + HOUR + 1).await, (true, false));
    assert_eq!(node.good(2, START - HOUR).await, (true, true));
    assert_eq!(node.good(2, START - HOUR + 1).await, (true, false));
    assert_eq!(node.good(3, START).await, (false, false));
    // Long after its time a key still proves what it signed then.
    node.published.lock().clear();
    node.clock.advance(Duration::from_hours(24 * 1_000));
    assert_eq!(node.good(1, START).await, (true, true));
    assert_eq!(node.good(1, START + 2 * HOUR).await, (true, false));
}

#[tokio::test]
async fn no_key_is_believed_for_more_than_a_week() {
    let node = Setting::new();
    node.publish(1, &[], START + 100 * MAX_VALIDITY_MS);
    assert_eq!(node.good(1, START + MAX_VALIDITY_MS).await, (true, true));
    assert_eq!(
        node.good(1, START + MAX_VALIDITY_MS + 1).await,
        (true, false)
    );
    // A week later it is asked for again.
    node.clock.advance(Duration::from_millis(MAX_VALIDITY_MS));
    assert_eq!(
        node.good(1, START + MAX_VALIDITY_MS + 1).await,
        (true, true)
    );
}

#[tokio::test]
async fn a_replaced_key_is_kept_with_its_end() {
    let node = Setting::new();
    node.publish(1, &[], START + HOUR);
    assert_eq!(node.good(1, START).await, (true, true));
    node.clock.advance(Duration::from_mins(1));
    node.publish(2, &[old(1, START + 10)], START + HOUR);
    assert_eq!(node.good(2, START).await, (true, true));
    assert_eq!(node.good(1, START + 10).await, (true, true));
    assert_eq!(node.good(1, START + 11).await, (true, false));
    // One that is not mentioned any more is not forgotten.
    node.clock.advance(Duration::from_mins(1));
    node.publish(3, &[], START + HOUR);
    assert_eq!(node.good(3, START).await, (true, true));
    assert_eq!(node.good(2, START).await, (true, true));
    let mut complaints = Vec::new();
    node.store.check(|line| complaints.push(line)).unwrap();
    assert_eq!(complaints, Vec::<String>::new());
}

#[tokio::test]
async fn nobody_fills_the_disk_with_keys() {
    let node = Setting::new();
    node.publish(1, &[], START + HOUR);
    assert_eq!(node.good(1, START).await, (true, true));
    for round in 0..12_u64 {
        let many: Vec<OldKey> = (0..150)
            .map(|number| OldKey {
                id: format!("ed25519:old{round}x{number}"),
                ..old(1, START)
            })
            .collect();
        node.clock.advance(Duration::from_mins(1));
        node.publish(2, &many, START + 2 * HOUR);
        let need = Need {
            server: b(),
            key_id: format!("ed25519:old{round}x0"),
            at: None,
        };
        node.keyring.obtain(&[need]).await.unwrap();
    }
    let view = node.store.latest();
    let kept = SERVER_KEYS.scan(&view, &("b.example",)).count();
    assert!((500..=1_000).contains(&kept), "{kept}");
    // What was known stays so, and the rest fits together.
    assert_eq!(node.good(1, START).await, (true, true));
    let mut complaints = Vec::new();
    node.store.check(|line| complaints.push(line)).unwrap();
    assert_eq!(complaints, Vec::<String>::new());
}

#[tokio::test]
async fn changed_content_and_missing_signatures_are_told_apart() {
    let node = Setting::new();
    node.publish(1, &[], START + HOUR);
    let version = RoomVersionId::V10;
    let rules = version::rules(&version).unwrap();
    let mut changed = event(&version, 1, START);
    let content = integrity::parse_object("{\"a\":2}").unwrap();
    changed.insert("content".to_owned(), content.into());
    let verdict = node.keyring.verify_event(&changed, rules).await.unwrap();
    assert_eq!(verdict, Verdict::Changed);
    let mut unsigned = event(&version, 1, START);
    unsigned.remove("signatures");
    assert!(Keyring::needs(&unsigned, rules).is_empty());
    let verdict = node.keyring.verify_event(&unsigned, rules).await.unwrap();
    assert!(matches!(verdict, Verdict::Bad(_)));
}

#[test]
fn our_own_keys_rotate_and_stay_good_for_their_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let (clock, entropy) = (Clock::manual(START), Entropy::seeded(1));
    let first = OwnKeys::open(&store, &entropy).unwrap();
    assert_eq!(
        OwnKeys::open(&store, &entropy).unwrap().key.id(),
        first.key.id()
    );
    clock.advance(Duration::from_mins(1));
    let second = OwnKeys::rotate(&store, &clock, &entropy).unwrap();
    assert_ne!(second.key.id(), first.key.id());
    let reopened = OwnKeys::open(&store, &entropy).unwrap();
    assert_eq!(reopened.key.id(), second.key.id());
    assert_eq!(reopened.old.len(), 1);
    assert_eq!(reopened.old[0].id, first.key.id());
    assert_eq!(reopened.old[0].expired_ts, START + 60_000);

    let lan = Lan::new(clock.clone(), entropy.clone());
    let us = server_name!("a.example");
    let remote = Remote::new(
        us,
        reopened.key.clone(),
        &Federation::default(),
        lan.port(us),
    );
    let keyring = Keyring::new(us, reopened, store, clock, entropy, remote);
    let held = |key: &ServerKey, at: u64| {
        let need = Need {
            server: ServerName::parse("a.example").unwrap(),
            key_id: key.id().to_owned(),
            at: Some(at),
        };
        keyring.held(&need).unwrap().is_some()
    };
    assert!(held(&first.key, START) && held(&second.key, START));
    assert!(!held(&first.key, START + 60_001) && held(&second.key, START + 60_001));
    let document = canonical(&keyring.document());
    let parsed = crate::protocol::server_keys::ServerKeys::parse(&document, us).unwrap();
    assert_eq!(parsed.keys[first.key.id()].expired, Some(START + 60_000));
    assert_eq!(parsed.keys[second.key.id()].expired, None);
}
