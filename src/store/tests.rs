//! The store as its users see it: durability, visibility, positions, names, states, wake-ups.

use std::collections::BTreeMap;

use super::{
    notify::{Changes, Kinds},
    schema::{META, NODE},
    *,
};
use crate::protocol::ids::{EventNid, Position, RoomNid, SnapshotId, StateKeyNid, UserNid};

fn options(directory: &std::path::Path) -> Options {
    Options {
        directory: directory.to_owned(),
        sync: Sync::Always,
        memory: 32 << 20,
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&options(directory.path())).unwrap();
    (directory, store)
}

#[tokio::test]
async fn a_commit_is_seen_when_it_is_durable_and_survives_reopening() {
    let (directory, store) = open();
    let committed = store
        .commit(|batch| {
            let position = batch.position();
            NODE.put(batch, &("a",), &b"1".to_vec());
            Ok(position)
        })
        .unwrap();
    assert_eq!(committed.position, committed.value);
    store.durable(committed.position).await.unwrap();
    let view = store.view();
    assert!(view.position() >= committed.position);
    assert_eq!(NODE.get(&view, &("a",)).unwrap(), Some(b"1".to_vec()));

    assert!(matches!(
        Store::open(&options(directory.path())),
        Err(Error::Locked(_))
    ));
    store.close();
    assert!(matches!(store.commit(|_| Ok(())), Err(Error::Closed)));
    drop((view, store));

    let store = Store::open(&options(directory.path())).unwrap();
    assert_eq!(
        NODE.get(&store.view(), &("a",)).unwrap(),
        Some(b"1".to_vec())
    );
    let again = store.commit(|batch| Ok(batch.position())).unwrap();
    assert!(
        again.position > committed.position,
        "positions are never used twice"
    );
    let mut complaints = Vec::new();
    store.check(|complaint| complaints.push(complaint)).unwrap();
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn a_failed_commit_writes_nothing_and_uses_no_position() {
    let (_directory, store) = open();
    let before = store.latest().position();
    let failed = store.commit(|batch| {
        batch.position();
        NODE.put(batch, &("a",), &Vec::new());
        Err::<(), _>(Error::Closed)
    });
    assert!(failed.is_err());
    assert_eq!(store.latest().position(), before);
    assert_eq!(NODE.get(&store.latest(), &("a",)).unwrap(), None);
}

#[test]
fn positions_have_no_gaps_under_concurrent_commits() {
    let (_directory, store) = open();
    let start = store.latest().position().0;
    let mut positions: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let one = || store.commit(|batch| Ok(batch.position().0)).unwrap().value;
                    (0..50).map(|_| one()).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    positions.sort_unstable();
    assert_eq!(positions, (start + 1..=start + 200).collect::<Vec<_>>());
}

#[test]
fn a_name_has_one_number_whoever_asks_first() {
    let (directory, store) = open();
    let user = ruma::user_id!("@a:example.org");
    let numbers: Vec<UserNid> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.user_nid(user).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(numbers.iter().all(|number| *number == numbers[0]));
    assert_eq!(**store.user_id(numbers[0]).unwrap(), *user);
    store.close();
    drop(store);
    let store = Store::open(&options(directory.path())).unwrap();
    assert_eq!(store.find_user(user).unwrap(), Some(numbers[0]));
    assert_ne!(
        store.user_nid(ruma::user_id!("@b:example.org")).unwrap(),
        numbers[0]
    );
}

#[test]
fn differences_of_states_add_up_to_what_was_set() {
    let (directory, store) = open();
    let mut chain = Chain::default();
    let mut map = StateMap::new();
    let mut naive = BTreeMap::new();
    let mut history = Vec::new();
    for step in 1..=700_u64 {
        // A small multiplicative generator: some keys are set again and again, new ones appear all the time.
        let key = StateKeyNid(step.wrapping_mul(2_654_435_761) % (20 + step / 2));
        let id = SnapshotId(step);
        map.insert(key, EventNid(step));
        naive.insert(key, EventNid(step));
        let mut base = chain.base(&store, 1).unwrap();
        let _not_awaited = store
            .commit(|batch| {
                batch.position();
                let set = vec![(key, EventNid(step))];
                chain.write(batch, id, &map, (set, Vec::new()), &mut base);
                Ok(())
            })
            .unwrap();
        history.push((id, naive.clone()));
    }
    store.close();
    drop(store);
    // A new store has nothing in memory, so this walks the rows.
    let store = Store::open(&options(directory.path())).unwrap();
    let view = store.view();
    let rows = schema::STATE.scan(&view, &()).map(|row| row.unwrap().1);
    let merged = rows.filter(|row| row.parent.is_some() && row.hops == 0);
    assert!(merged.count() > 0, "long chains are merged");
    for (id, naive) in history.iter().rev().step_by(7) {
        let stored: BTreeMap<_, _> = store.state(*id).unwrap().into_iter().collect();
        assert_eq!(stored, *naive, "state {id}");
    }
}

#[test]
fn a_long_run_of_states_fits_into_one_commit() {
    let (_directory, store) = open();
    let (mut chain, mut base, mut map) = (Chain::default(), Base::default(), StateMap::new());
    let _not_awaited = store
        .commit(|batch| {
            for step in 1..=300_u64 {
                let (id, set) = (SnapshotId(step), (StateKeyNid(step), EventNid(step)));
                map.insert(set.0, set.1);
                chain.write(batch, id, &map, (vec![set], Vec::new()), &mut base);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(store.state(SnapshotId(300)).unwrap(), map);
    assert_eq!(store.state(SnapshotId(150)).unwrap().len(), 150);
}

#[tokio::test]
async fn rows_alone_can_be_waited_for() {
    let (_directory, store) = open();
    let put = |batch: &mut Batch<'_>| {
        NODE.put(batch, &("a",), &b"1".to_vec());
        Ok(())
    };
    let committed = store.commit(put).unwrap();
    store.durable(committed.position).await.unwrap();
    assert!(NODE.contains(&store.view(), &("a",)).unwrap());
}

#[test]
fn every_change_is_found_between_two_views() {
    let (_directory, store) = open();
    let user = UserNid(7);
    let live = store.notify().follow(user, || store.view().position());
    let start = store.view().position();
    let mut since = start;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for room in 0..100 {
                let _not_awaited = store
                    .commit(|batch| {
                        let position = batch.position();
                        batch.touch_user(position, user, Some(RoomNid(room)), Kinds::TIMELINE);
                        Ok(())
                    })
                    .unwrap();
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 100 {
            let listening = live.listen();
            let until = store.view().position();
            match live.changes(since, until) {
                Changes::None => {
                    if !listening.has_changed().unwrap() {
                        std::thread::yield_now();
                    }
                }
                Changes::Some(changed) => seen.extend(changed.into_keys().flatten()),
                Changes::Unknown => panic!("fewer changes than are remembered"),
            }
            since = until;
        }
    });
    let many = |room: &dyn Fn(u64) -> Option<RoomNid>| {
        for number in 0..200 {
            let committed = store
                .commit(|batch| {
                    let position = batch.position();
                    batch.touch_user(position, user, room(number), Kinds::ACCOUNT_DATA);
                    Ok(())
                })
                .unwrap();
            while store.view().position() < committed.position {
                std::thread::yield_now();
            }
        }
    };
    // What comes again and again takes little memory.
    many(&|_| None);
    many(&|number| Some(RoomNid(number % 5)));
    match live.changes(start, Position(u64::MAX)) {
        Changes::Some(changed) => assert_eq!(changed.len(), 101),
        other => panic!("{other:?}"),
    }
    many(&|number| Some(RoomNid(number)));
    store.close();
    let now = store.view().position();
    assert!(matches!(live.changes(start, now), Changes::Unknown));
    assert!(matches!(live.changes(now, now), Changes::None));
}

#[test]
fn what_comes_again_is_found_at_each_of_its_places() {
    let (_directory, store) = open();
    let user = UserNid(7);
    let live = store.notify().follow(user, || store.view().position());
    let mut places = Vec::new();
    for kinds in [Kinds::TYPING, Kinds::RECEIPTS, Kinds::TYPING] {
        let committed = store.commit(|batch| {
            let position = batch.position();
            batch.touch_user(position, user, None, kinds);
            Ok(position)
        });
        places.push(committed.unwrap().value);
    }
    store.close();
    let start = Position(places[0].0 - 1);
    for (since, until, expect) in [
        (start, places[0], Kinds::TYPING),
        (start, places[1], Kinds::TYPING.and(Kinds::RECEIPTS)),
        (places[1], places[2], Kinds::TYPING),
    ] {
        match live.changes(since, until) {
            Changes::Some(changed) => assert_eq!(changed[&None], expect),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(live.changes(places[2], places[2]), Changes::None));
}

#[test]
fn a_damaged_row_is_a_complaint() {
    let (_directory, store) = open();
    let _not_awaited = store
        .commit(|batch| {
            schema::EVENT_NIDS.put(batch, &("$gone",), &(EventNid(5),));
            schema::TIMELINE.put(batch, &(RoomNid(1), 9), &(EventNid(5),));
            META.put(batch, &("other",), &(1,));
            schema::USER_NIDS.put(batch, &("@gone:localhost",), &(UserNid(7),));
            schema::FILTERS.put(batch, &(UserNid(7), 1), &"{".to_owned());
            schema::LOGIN_TOKENS.put(
                batch,
                &([0; 32],),
                &schema::LoginTokenRow {
                    user: UserNid(7),
                    expires_ts: 0,
                },
            );
            schema::ROOM_ALIASES.put(batch, &(RoomNid(1), "#a:localhost"), &());
            schema::PUBLIC_ROOMS.put(batch, &(RoomNid(1),), &());
            Ok(())
        })
        .unwrap();
    let mut complaints = Vec::new();
    store.check(|complaint| complaints.push(complaint)).unwrap();
    assert_eq!(complaints.len(), 8, "{complaints:#?}");
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let (directory, store) = open();
    let _not_awaited = store
        .commit(|batch| {
            META.put(batch, &("schema",), &(99,));
            Ok(())
        })
        .unwrap();
    store.close();
    drop(store);
    // It has a table that this one has never heard of, too.
    let path = directory.path().join("store");
    let there = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    let mut newer = rocksdb::DB::open_cf(&rocksdb::Options::default(), &path, &there).unwrap();
    newer
        .create_cf("future", &rocksdb::Options::default())
        .unwrap();
    drop(newer);
    assert!(matches!(
        Store::open(&options(directory.path())),
        Err(Error::Schema { found: 99, .. })
    ));
}

#[test]
fn a_table_of_another_version_is_left_alone() {
    let (directory, store) = open();
    store.close();
    drop(store);
    let path = directory.path().join("store");
    let there = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    let mut other = rocksdb::DB::open_cf(&rocksdb::Options::default(), &path, &there).unwrap();
    other
        .create_cf("former", &rocksdb::Options::default())
        .unwrap();
    drop(other);
    Store::open(&options(directory.path())).unwrap();
    let there = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    assert!(there.iter().any(|name| name == "former"));
}
