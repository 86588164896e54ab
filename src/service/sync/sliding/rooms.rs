//! Which rooms are in an answer: those that the client comes to, those that have changed, and those that the user has left.

use std::collections::{HashMap, HashSet};

use ruma::OwnedRoomId;

use super::{
    super::Sync,
    Turn,
    connection::{Sent, Stream, Told},
    extensions::{Besides, Place},
    facts::Standing,
    lists::{Lists, of_account},
    request::Config,
    room::{Shown, Wish},
};
use crate::{error::Result, protocol::ids::RoomNid, store::notify::Changes};

/// Why a room is in the answer.
#[derive(Default)]
struct Matched<'a> {
    lists: Vec<&'a str>,
    subscribed: Option<&'a OwnedRoomId>,
}

/// The rooms of an answer.
#[derive(Default)]
pub(super) struct Rooms {
    /// By id, as JSON.
    pub(super) shown: Vec<(String, String)>,
    /// What the client was told then.
    pub(super) told: HashMap<RoomNid, Told>,
}

impl Sync {
    /// What is told of rooms; what is told besides of each is added.
    pub(super) fn rooms_to_tell(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        covered: bool,
        besides: &mut Besides,
    ) -> Result<Rooms> {
        let mut rooms = Rooms::default();
        if turn.asked.has_rooms() {
            let matched = self.matched(turn, lists, covered)?;
            let mut configs = HashMap::new();
            for (room, matched) in &matched {
                let key = (&matched.lists, matched.subscribed);
                let config = configs.entry(key).or_insert_with(|| {
                    let of_lists: Vec<_> = matched
                        .lists
                        .iter()
                        .map(|name| &turn.asked.lists[*name])
                        .collect();
                    let of_room = matched
                        .subscribed
                        .map(|id| &turn.asked.room_subscriptions[id]);
                    Config::of(&of_lists, of_room, turn.requester.user_id.as_str())
                });
                self.show(turn, lists, (*room, matched, config), &mut rooms, besides)?;
            }
            self.note_others(turn, lists, &matched, &mut rooms, besides)?;
        } else {
            self.note_others(turn, lists, &HashMap::new(), &mut rooms, besides)?;
        }
        Ok(rooms)
    }

    /// The rooms that are asked for and may have to be told.
    fn matched<'a>(
        &self,
        turn: &Turn<'a>,
        lists: &Lists,
        covered: bool,
    ) -> Result<HashMap<RoomNid, Matched<'a>>> {
        let mut matched: HashMap<RoomNid, Matched<'a>> = HashMap::new();
        // Whoever asks for the same has been told all of the rooms that it showed. When these were all rooms, and are, or
        // when nothing has changed, none can have come to them but by a change.
        let changed: Option<HashSet<RoomNid>> = match &turn.range.changes {
            _ if !turn.asks_the_same => None,
            Changes::None => Some(HashSet::new()),
            Changes::Some(changed) if covered && turn.base.covered && !of_account(changed) => {
                Some(changed.keys().filter_map(|room| *room).collect())
            }
            _ => None,
        };
        for (name, list) in &turn.asked.lists {
            let window = match &changed {
                Some(changed) => {
                    let listed = changed.iter().filter(|room| lists.has(name, **room));
                    listed.copied().collect()
                }
                None => lists.window(name, list.ranges.as_deref()),
            };
            for room in window {
                matched.entry(room).or_default().lists.push(name);
            }
        }
        for id in turn.asked.room_subscriptions.keys() {
            let Some(room) = self.store.find_room(id)? else {
                continue;
            };
            let may_have = changed
                .as_ref()
                .is_none_or(|changed| changed.contains(&room));
            if may_have && lists.facts(room).is_some() {
                matched.entry(room).or_default().subscribed = Some(id);
            }
        }
        Ok(matched)
    }

    /// Tells a room that is asked for, if there is something to tell.
    fn show(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        (room, matched, config): (RoomNid, &Matched<'_>, &Config),
        rooms: &mut Rooms,
        besides: &mut Besides,
    ) -> Result<()> {
        let facts = lists.facts(room);
        let told = turn.base.told.get(&room);
        let kinds = turn.kinds(room);
        let place = Place {
            room,
            id: &*self.store.room_id(room)?,
            lists: &matched.lists,
            subscribed: matched.subscribed.is_some(),
            kinds,
            is_in: facts.is_some_and(|facts| facts.standing == Standing::In),
        };
        let known = told.filter(|told| {
            kinds
                .is_some_and(|kinds| !kinds.any(Stream::Events.kinds().and(Stream::Counts.kinds())))
                && !told.sent(Stream::Events).is_behind()
                && !told.sent(Stream::Counts).is_behind()
                && told.detail.wanted.covers(&config.wanted)
                && (told.detail.whole || told.detail.limit >= config.limit)
                && facts.is_none_or(|facts| facts.direct == told.detail.direct)
        });
        let shown = match known {
            Some(told) if !place.has_more(&turn.asked.extensions, told) => return Ok(()),
            Some(told) => Shown::nothing(told.detail.clone()),
            None => {
                let wish = Wish {
                    room,
                    config,
                    told,
                    kinds,
                };
                match self.sliding_room(turn, &wish, facts)? {
                    Some(shown) => shown,
                    None => return Ok(()),
                }
            }
        };
        let mut now = match told {
            Some(told) if !shown.anew => told.clone(),
            _ => Told::new(shown.detail.clone()),
        };
        now.detail = shown.detail.clone();
        now.set(Stream::Events, Sent::Live);
        now.set(Stream::Counts, Sent::Live);
        if place.is_in {
            self.besides_room(turn, &place, &shown, &mut now, besides)?;
        }
        if let Some(json) = shown.json {
            rooms.shown.push((place.id.to_string(), json));
        }
        rooms.told.insert(room, now);
        Ok(())
    }

    /// Of the rooms that are not asked for: notes that they are behind, and tells that the user has left them.
    fn note_others(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        matched: &HashMap<RoomNid, Matched<'_>>,
        rooms: &mut Rooms,
        besides: &mut Besides,
    ) -> Result<()> {
        let others: Vec<RoomNid> = match &turn.range.changes {
            Changes::None if turn.asks_the_same => return Ok(()),
            Changes::Some(changed) if turn.asks_the_same => {
                changed.keys().filter_map(|room| *room).collect()
            }
            _ => turn.base.told.keys().copied().collect(),
        };
        for room in others {
            if matched.contains_key(&room) {
                continue;
            }
            let Some(told) = turn.base.told.get(&room) else {
                continue;
            };
            let standing = lists.facts(room).map(|facts| facts.standing);
            let has_gone = matches!(standing, None | Some(Standing::Gone | Standing::Expelled));
            if turn.asked.has_rooms() && has_gone && !told.detail.left {
                // The client would show the room for ever.
                let config =
                    Config::as_before(told.detail.limit.max(1), told.detail.wanted.clone());
                self.show(
                    turn,
                    lists,
                    (room, &Matched::default(), &config),
                    rooms,
                    besides,
                )?;
                continue;
            }
            let mut now = told.clone();
            if now.missed(turn.kinds(room), turn.since()) {
                rooms.told.insert(room, now);
            }
        }
        Ok(())
    }
}
