//! What makes no event, and what must hold of it at rest: how far everybody has read, who types, who is there, and whose
//! devices are known.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::StatusCode;
use kontor::protocol::ids::RoomNid;
use ruma::{RoomId, UserId};

use crate::{deeds::Deed, follower::devices_of, rest::Held, room::Room, world::World};

/// How far a user has read, by threads.
type Read = BTreeMap<String, String>;

impl World {
    /// Lets so much time pass that nobody is thought to be there any more who does nothing.
    pub(crate) async fn fall_silent(&mut self) {
        for _ in 0..10 {
            self.step(Duration::from_mins(1)).await;
        }
        self.settle().await;
    }

    fn room_of(&self, at: usize, room: &Room) -> RoomNid {
        let store = self.offices[at].node().services.store();
        let id = RoomId::parse(&*room.0).expect("it is an id");
        let nid = store.find_room(&id).expect("it is readable");
        nid.expect("it is there")
    }

    /// How far a user has read, as an office knows it.
    fn read_by(&self, at: usize, room: &Room, user: &str) -> Read {
        let services = &self.offices[at].node().services;
        let (store, nid) = (services.store(), self.room_of(at, room));
        let user = UserId::parse(user).expect("it is an id");
        let Some(user) = store.find_user(&user).expect("it is readable") else {
            return Read::new();
        };
        let rows = services.receipts.of(&store.latest(), nid, user);
        let rows = rows.expect("it is readable").into_iter();
        rows.filter(|row| row.receipt_type == "m.read")
            .map(|row| (row.thread, row.event_id.to_string()))
            .collect()
    }

    /// Everybody who is in a room has read as far on every node as on their own, and there at least as far as was
    /// acknowledged.
    pub(crate) async fn same_receipts(&self, room: &Room, held: &[Held]) {
        for one in held {
            for person in self.people.iter().filter(|person| person.home == one.at) {
                let user = &person.client.user_id;
                if !self.is_in(one.at, room, user).await {
                    continue;
                }
                let read = self.read_by(one.at, room, user);
                self.has_read_all(one.at, room, (user, &read));
                for other in held.iter().filter(|other| other.at != one.at) {
                    assert_eq!(
                        read,
                        self.read_by(other.at, room, user),
                        "how far {user} has read in {}, as {} and {} know it",
                        room.0,
                        self.offices[one.at].name,
                        self.offices[other.at].name,
                    );
                }
            }
        }
    }

    fn has_read_all(&self, at: usize, room: &Room, (user, read): (&String, &Read)) {
        let order = |id: &String| self.stored(at, id).and_then(|stored| stored.facts.order);
        let last = read.get("").and_then(order);
        for done in &self.done {
            if let Deed::Read { room: of, event } = &done.deed
                && done.status == StatusCode::OK
                && of.0 == room.0
                && self.people[done.who].client.user_id == *user
            {
                assert!(
                    last >= order(event),
                    "{user} has read {event} of {}, but the own node knows {read:?}",
                    room.0
                );
            }
        }
    }

    /// Nobody types any more, as far as any node knows and any client was told.
    pub(crate) fn nobody_types(&self, room: &Room, held: &Held) {
        let services = &self.offices[held.at].node().services;
        let nid = self.room_of(held.at, room);
        let asker = self.offices[held.at]
            .node()
            .requester(&self.people[held.by].client);
        let typing = services
            .typing
            .since(&services.store().latest(), nid, None, &asker);
        assert_eq!(typing.expect("it is readable"), None, "in {}", room.0);
        for person in self.people.iter().filter(|person| person.home == held.at) {
            let Some(known) = person.follower.rooms.get(&room.0) else {
                continue;
            };
            let typists = known.typists.as_array().map_or(&[][..], Vec::as_slice);
            assert!(
                !known.is_in || typists.is_empty(),
                "{} believes that {typists:?} type in {}",
                person.client.user_id,
                room.0
            );
        }
    }

    /// Nobody is there any more, for anybody who shares a room with them.
    pub(crate) async fn nobody_is_there(&self) {
        for asker in &self.people {
            for person in &self.people {
                let user = &person.client.user_id;
                let path = format!("/_matrix/client/v3/presence/{user}/status");
                let (status, answer) = asker.client.get(&path).await;
                assert!(
                    status == StatusCode::FORBIDDEN || answer["presence"] == "offline",
                    "{} sees that {user} is {answer}",
                    asker.client.user_id
                );
            }
        }
    }

    /// Every client knows the devices of all with whom it shares a room that is not divided, as their own nodes know them.
    pub(crate) async fn same_devices(&self, whole: &[(Arc<Room>, Vec<Held>)]) {
        for asker in &self.people {
            let (asking, follower) = (&asker.client.user_id, &asker.follower);
            for person in &self.people {
                let user = &person.client.user_id;
                let mut shares = false;
                for (room, held) in whole {
                    let of_both = [(asker.home, asking), (person.home, user)];
                    let mut both = true;
                    for (at, user) in of_both {
                        both &= held.iter().any(|held| held.at == at)
                            && self.is_in(at, room, user).await;
                    }
                    shares |= both;
                }
                if !shares {
                    continue;
                }
                let own = self.until(devices_of(&person.client, std::slice::from_ref(user)));
                let own = own.await.remove(user).expect("it is the own node");
                assert!(
                    !follower.unknown().contains(&user),
                    "{asking} does not know the devices of {user}"
                );
                assert_eq!(
                    follower.devices.get(user),
                    Some(&own),
                    "the devices of {user}, as {asking} and the own node know them"
                );
            }
        }
    }
}
