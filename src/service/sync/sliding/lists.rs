//! The rooms of a user in the order of their last activity, and which of them are in which list.
//!
//! All of it is made when a connection begins, and afterwards only rooms that have changed are looked at again. It
//! follows the rooms as they are, whatever of them the client was told.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use ruma::{OwnedRoomId, events::room::member::MembershipState};

use super::{
    super::Sync,
    facts::{Eyes, Facts, Questions, Standing},
    request::{Filters, List},
};
use crate::{
    error::Result,
    protocol::ids::{Position, RoomNid},
    service::Requester,
    store::{
        View,
        notify::{Changes, Kinds, Live},
        schema::USER_ROOMS,
    },
};

/// The rooms of one user.
#[derive(Default)]
pub(super) struct Lists {
    /// Up to where all of this holds; nothing if it has to be made.
    position: Option<Position>,
    /// What the filters of all lists ask about.
    asked: Questions,
    rooms: HashMap<RoomNid, Facts>,
    /// The rooms that the user calls direct chats.
    direct: HashSet<RoomNid>,
    lists: BTreeMap<String, Index>,
}

/// One list.
struct Index {
    filters: Filters,
    /// The rooms of the spaces that the filters name.
    children: Option<HashSet<RoomNid>>,
    rooms: BTreeSet<Place>,
}

/// Where a room is in a list: the one with the newest activity comes first.
type Place = (Reverse<Position>, RoomNid);

impl Lists {
    /// How much is remembered.
    pub(super) fn size(&self) -> usize {
        let listed: usize = self.lists.values().map(|list| list.rooms.len()).sum();
        // A place in a list takes far less memory than what is known of a room.
        self.rooms.len() + listed / 4
    }

    pub(super) fn facts(&self, room: RoomNid) -> Option<&Facts> {
        self.rooms.get(&room)
    }

    /// Makes the lists what `wanted` says, as they are at the view.
    pub(super) fn advance(
        &mut self,
        sync: &Sync,
        (requester, live): (&Requester, &Live),
        wanted: &BTreeMap<String, List>,
        view: &View,
    ) -> Result<()> {
        let eyes = Eyes {
            sync,
            requester,
            view,
        };
        let asked = Questions::of(wanted).and(self.asked);
        // If something fails on the way, the next one begins anew.
        let known = self.position.take().filter(|_| asked == self.asked);
        self.asked = asked;
        let changes = known.map_or(Changes::Unknown, |known| {
            live.changes(known, view.position())
        });
        match changes {
            Changes::None => {}
            Changes::Some(changed) => self.update(&eyes, &changed)?,
            Changes::Unknown => {
                self.lists.clear();
                self.direct = eyes.direct_rooms()?;
                self.rooms = eyes.all_facts(&self.direct, asked)?;
            }
        }
        let filters = |list: &List| list.filters.clone().unwrap_or_default();
        self.lists.retain(|name, index| {
            wanted
                .get(name)
                .is_some_and(|list| filters(list) == index.filters)
        });
        for (name, list) in wanted {
            if !self.lists.contains_key(name) {
                let index = self.index(&eyes, filters(list))?;
                self.lists.insert(name.clone(), index);
            }
        }
        self.position = Some(view.position());
        Ok(())
    }

    fn update(&mut self, eyes: &Eyes<'_>, changed: &HashMap<Option<RoomNid>, Kinds>) -> Result<()> {
        const KINDS: Kinds = Kinds::TIMELINE
            .and(Kinds::MEMBERSHIP)
            .and(Kinds::ACCOUNT_DATA);
        let rooms = changed.iter().filter(|(_, kinds)| kinds.any(KINDS));
        let mut rooms: BTreeSet<_> = rooms.filter_map(|(room, _)| *room).collect();
        if of_account(changed) {
            let direct = eyes.direct_rooms()?;
            rooms.extend(direct.symmetric_difference(&self.direct));
            self.direct = direct;
            // Whom the user ignores decides which invites there are.
            for row in USER_ROOMS.scan(eyes.view, &(eyes.requester.nid,)) {
                let ((_, room), member) = row?;
                if member.membership == MembershipState::Invite {
                    rooms.insert(room);
                }
            }
        }
        let mut has_new = false;
        let mut changed = HashSet::new();
        for room in &rooms {
            has_new |= !self.rooms.contains_key(room);
            changed.insert((*eyes.sync.store.room_id(*room)?).clone());
            self.look_again(eyes, *room)?;
        }
        // A room that was not known may have been named by a space before; lists that are not there are made anew.
        self.lists.retain(|_, index| {
            let spaces = index.filters.spaces.as_ref();
            spaces.is_none_or(|spaces| !has_new && spaces.iter().all(|s| !changed.contains(s)))
        });
        Ok(())
    }

    fn look_again(&mut self, eyes: &Eyes<'_>, room: RoomNid) -> Result<()> {
        let new = eyes.facts(room, self.direct.contains(&room), self.asked)?;
        if let Some(old) = self.rooms.remove(&room) {
            for list in self.lists.values_mut() {
                list.rooms.remove(&old.place(room));
            }
        }
        if let Some(new) = new {
            for list in self.lists.values_mut().filter(|l| l.has(room, &new)) {
                list.rooms.insert(new.place(room));
            }
            self.rooms.insert(room, new);
        }
        Ok(())
    }

    fn index(&self, eyes: &Eyes<'_>, filters: Filters) -> Result<Index> {
        let children = match &filters.spaces {
            Some(spaces) => Some(self.children(eyes, spaces)?),
            None => None,
        };
        let mut index = Index {
            filters,
            children,
            rooms: BTreeSet::new(),
        };
        let listed = self
            .rooms
            .iter()
            .filter(|(room, facts)| index.has(**room, facts));
        index.rooms = listed.map(|(room, facts)| facts.place(*room)).collect();
        Ok(index)
    }

    /// The rooms that belong to any of the spaces, as far as the user is in these.
    fn children(&self, eyes: &Eyes<'_>, spaces: &[OwnedRoomId]) -> Result<HashSet<RoomNid>> {
        let mut children = HashSet::new();
        for space in spaces {
            let Some(space) = eyes.sync.store.find_room(space)? else {
                continue;
            };
            if self
                .rooms
                .get(&space)
                .is_none_or(|facts| facts.standing != Standing::In)
            {
                continue;
            }
            for child in eyes.sync.rooms.children(eyes.view, space)? {
                children.extend(eyes.sync.store.find_room(&child.room)?);
            }
        }
        Ok(children)
    }

    /// How many rooms are in a list.
    pub(super) fn count(&self, name: &str) -> usize {
        self.lists.get(name).map_or(0, |list| list.rooms.len())
    }

    pub(super) fn has(&self, name: &str, room: RoomNid) -> bool {
        let (list, facts) = (self.lists.get(name), self.rooms.get(&room));
        list.zip(facts)
            .is_some_and(|(list, facts)| list.rooms.contains(&facts.place(room)))
    }

    /// Whether the ranges leave out no room of the list.
    pub(super) fn covers(&self, name: &str, ranges: Option<&[(u64, u64)]>) -> bool {
        let count = u64::try_from(self.count(name)).unwrap_or(u64::MAX);
        let Some(ranges) = ranges else { return true };
        count == 0 || matches!(merged(ranges)[..], [(0, last), ..] if last >= count - 1)
    }

    /// The rooms of a list in its ranges.
    pub(super) fn window(&self, name: &str, ranges: Option<&[(u64, u64)]>) -> Vec<RoomNid> {
        let Some(list) = self.lists.get(name) else {
            return Vec::new();
        };
        let mut ranges = match ranges {
            Some(ranges) => merged(ranges).into_iter(),
            None => vec![(0, u64::MAX)].into_iter(),
        };
        let mut range = ranges.next();
        let mut rooms = Vec::new();
        for (index, (_, room)) in (0..).zip(&list.rooms) {
            while range.is_some_and(|(_, last)| last < index) {
                range = ranges.next();
            }
            let Some((first, _)) = range else { break };
            if first <= index {
                rooms.push(*room);
            }
        }
        rooms
    }
}

/// Whether something of the account outside rooms has changed.
pub(super) fn of_account(changed: &HashMap<Option<RoomNid>, Kinds>) -> bool {
    let kinds = changed.get(&None);
    kinds.is_some_and(|kinds| kinds.any(Kinds::ACCOUNT_DATA))
}

/// The same ranges in order, without overlaps or neighbours.
fn merged(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

impl Index {
    fn has(&self, room: RoomNid, facts: &Facts) -> bool {
        let filters = &self.filters;
        let is_invite = facts.standing == Standing::Invited;
        let is = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
        let is_of = |types: &Option<BTreeSet<Option<String>>>| {
            let room_type = facts.room_type.as_deref().map(ToOwned::to_owned);
            types.as_ref().map(|types| types.contains(&room_type))
        };
        let has_tag = |tags: &Option<BTreeSet<String>>| {
            tags.as_ref().map(|tags| !tags.is_disjoint(&facts.tags))
        };
        let children = self.children.as_ref();
        facts.standing != Standing::Gone
            && is(filters.is_dm, facts.direct)
            && is(filters.is_encrypted, facts.encrypted)
            && is(filters.is_invite, is_invite)
            && is_of(&filters.room_types).unwrap_or(true)
            && !is_of(&filters.not_room_types).unwrap_or(false)
            && has_tag(&filters.tags).unwrap_or(true)
            && !has_tag(&filters.not_tags).unwrap_or(false)
            && children.is_none_or(|children| children.contains(&room))
    }
}

impl Facts {
    fn place(&self, room: RoomNid) -> Place {
        (Reverse(self.active), room)
    }
}

#[cfg(test)]
mod tests {
    //! Ranges.

    use super::*;

    #[test]
    fn ranges_are_put_in_order() {
        assert_eq!(
            merged(&[(5, 9), (0, 3), (4, 4), (20, u64::MAX), (30, 40)]),
            [(0, 9), (20, u64::MAX)]
        );
        assert_eq!(merged(&[(0, u64::MAX), (1, 2)]), [(0, u64::MAX)]);
        assert_eq!(merged(&[]), []);
    }

    #[test]
    fn a_window_has_the_rooms_in_its_ranges() {
        let mut lists = Lists::default();
        let places = (0..10).map(|room| (Reverse(Position(100 - room)), RoomNid(room)));
        let index = Index {
            filters: Filters::default(),
            children: None,
            rooms: places.collect(),
        };
        lists.lists.insert("l".to_owned(), index);
        let window = |ranges: &[(u64, u64)]| -> Vec<u64> {
            let rooms = lists.window("l", Some(ranges));
            rooms.into_iter().map(|room| room.0).collect()
        };
        assert_eq!(window(&[(8, 99), (0, 1), (3, 3)]), [0, 1, 3, 8, 9]);
        assert_eq!(window(&[]), [0_u64; 0]);
        assert_eq!(window(&[(50, 60)]), [0_u64; 0]);
        assert_eq!(lists.window("l", None).len(), 10);
        for (ranges, covers) in [
            (&[(0, 9)][..], true),
            (&[(0, u64::MAX)], true),
            (&[(0, 4), (5, 9)], true),
            (&[(0, 8)], false),
            (&[(1, 9)], false),
            (&[], false),
        ] {
            assert_eq!(lists.covers("l", Some(ranges)), covers, "{ranges:?}");
        }
        assert!(lists.covers("l", None) && lists.covers("other", Some(&[])));
    }
}
