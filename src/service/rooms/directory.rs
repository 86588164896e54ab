//! The directory of rooms that this node lists: kept in memory in the order in which it is told, largest rooms first.
//!
//! It is made from the table of listed rooms when it is first asked for, and after that only what has changed is looked
//! at again. See "Listing rooms" in the client-server API.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    ops::Bound,
};

use parking_lot::Mutex;
use serde::Serialize;

use super::{Rooms, Summary};
use crate::{
    error::{Error, Result},
    protocol::ids::RoomNid,
    store::{View, schema::PUBLIC_ROOMS},
};

/// The most rooms of an answer.
const MAX_PAGE: usize = 500;

/// The longest text to search for, in bytes.
const LONGEST_TERM: usize = 1024;

/// The directory, once somebody has asked for it.
#[derive(Default)]
pub(super) struct Directory(Mutex<Option<Index>>);

#[derive(Default)]
struct Index {
    entries: HashMap<RoomNid, Entry>,
    order: BTreeSet<Place>,
}

/// Where a room stands: by how many have joined it, then the newest first.
type Place = (Reverse<u64>, Reverse<RoomNid>);

struct Entry {
    summary: Summary,
    /// All that can be searched, in lower case.
    haystack: String,
}

impl Entry {
    fn new(summary: Summary) -> Self {
        let mut haystack = String::new();
        for text in [&summary.name, &summary.topic, &summary.canonical_alias] {
            haystack.push_str(&text.as_deref().unwrap_or_default().to_lowercase());
            haystack.push('\n');
        }
        Self { summary, haystack }
    }
}

/// Which rooms of a directory are asked for.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The most rooms to tell.
    pub limit: Option<u64>,
    /// Where to go on: a token of an earlier answer.
    pub since: Option<String>,
    /// Only rooms whose name, topic or alias contains this, whatever its case.
    pub term: Option<String>,
    /// Only rooms of these types; `None` is that of rooms to talk in.
    pub types: Option<Vec<Option<String>>>,
    /// Whether rooms are asked for that only a bridge has.
    pub elsewhere: bool,
}

/// A part of a directory, as it is answered.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// The rooms.
    pub chunk: Vec<Summary>,
    /// Where to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
    /// Where to go back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
    /// How many rooms there are in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_room_count_estimate: Option<u64>,
}

/// A token: go on behind this place, or back before it.
fn token(direction: char, place: Place) -> String {
    format!("{direction}{}_{}", place.0.0, place.1.0.0)
}

fn parse(token: &str) -> Option<(bool, Place)> {
    let back = match token.chars().next()? {
        'n' => false,
        'p' => true,
        _ => return None,
    };
    let (joined, room) = token.get(1..)?.split_once('_')?;
    let room = RoomNid(room.parse().ok()?);
    Some((back, (Reverse(joined.parse().ok()?), Reverse(room))))
}

impl Index {
    fn put(&mut self, room: RoomNid, summary: Option<Summary>) {
        if let Some(entry) = self.entries.remove(&room) {
            let place = (Reverse(entry.summary.num_joined_members), Reverse(room));
            self.order.remove(&place);
        }
        if let Some(summary) = summary {
            self.order
                .insert((Reverse(summary.num_joined_members), Reverse(room)));
            self.entries.insert(room, Entry::new(summary));
        }
    }

    fn page(&self, listing: &Listing) -> Result<Listed> {
        let limit = listing.limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let term = listing.term.as_deref().unwrap_or_default().to_lowercase();
        let wanted = |place: &&Place| {
            let entry = &self.entries[&place.1.0];
            let types = listing.types.as_ref();
            entry.haystack.contains(&term)
                && types.is_none_or(|types| types.contains(&entry.summary.room_type))
        };
        let (back, from) = match listing.since.as_deref() {
            None => (false, None),
            Some(since) => {
                let (back, place) = parse(since)
                    .ok_or_else(|| Error::invalid_param("`since` is not a token of ours"))?;
                (back, Some(place))
            }
        };
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        // One more than wanted tells whether there are more.
        let mut places: Vec<Place> = if back {
            let before = self.order.range((Bound::Unbounded, from)).rev();
            before.filter(wanted).take(limit + 1).copied().collect()
        } else {
            let after = self.order.range((from, Bound::Unbounded));
            after.filter(wanted).take(limit + 1).copied().collect()
        };
        let more = places.len() > limit;
        places.truncate(limit);
        if back {
            places.reverse();
        }
        let (has_next, has_prev) = if back {
            (true, more)
        } else {
            (more, listing.since.is_some())
        };
        let end = |direction, place: Option<&Place>, has: bool| {
            place.filter(|_| has).map(|place| token(direction, *place))
        };
        Ok(Listed {
            next_batch: end('n', places.last(), has_next),
            prev_batch: end('p', places.first(), has_prev),
            chunk: places
                .iter()
                .map(|place| self.entries[&place.1.0].summary.clone())
                .collect(),
            total_room_count_estimate: u64::try_from(self.order.len()).ok(),
        })
    }
}

impl Rooms {
    /// A part of the directory.
    ///
    /// # Errors
    /// 400 for a token that is none, or a term that is too long.
    pub fn listed_rooms(&self, listing: &Listing) -> Result<Listed> {
        if listing
            .term
            .as_ref()
            .is_some_and(|term| term.len() > LONGEST_TERM)
        {
            return Err(Error::invalid_param(format!(
                "A search has at most {LONGEST_TERM} bytes"
            )));
        }
        if listing.elsewhere {
            return Index::default().page(&Listing::default());
        }
        let changed = self.store.changed_rooms();
        let mut index = self.directory.0.lock();
        if index.is_none() {
            changed.follow();
        }
        let (rooms, incomplete) = changed.take();
        // Taken after the changes, so that it shows them all.
        let view = self.store.view();
        if index.is_none() || incomplete {
            *index = None;
            let mut built = Index::default();
            for row in PUBLIC_ROOMS.scan(&view, &()) {
                let ((room,), ()) = row?;
                built.put(room, self.summary_if_listed(&view, room)?);
            }
            return index.insert(built).page(listing);
        }
        let kept = index.get_or_insert_default();
        if let Err(error) = self.refresh(kept, &view, rooms) {
            // What was taken is not noted any more.
            *index = None;
            return Err(error);
        }
        kept.page(listing)
    }

    fn refresh(&self, index: &mut Index, view: &View, rooms: HashSet<RoomNid>) -> Result<()> {
        for room in rooms {
            let is_listed = PUBLIC_ROOMS.contains(view, &(room,))?;
            if is_listed || index.entries.contains_key(&room) {
                index.put(room, self.summary_if_listed(view, room)?);
            }
        }
        Ok(())
    }

    /// What is told of a room if it is listed and somebody is in it.
    fn summary_if_listed(&self, view: &View, room: RoomNid) -> Result<Option<Summary>> {
        if !PUBLIC_ROOMS.contains(view, &(room,))?
            || !self.has_server(view, room, &self.server_name)?
        {
            return Ok(None);
        }
        Ok(self.summary(view, room)?.map(Summary::listed))
    }
}

#[cfg(test)]
mod tests {
    //! Paging back and forth, whatever the size of the pages.

    use proptest::prelude::*;

    use super::*;

    fn index(joined: &[u64]) -> Index {
        let mut index = Index::default();
        for (number, joined) in (1..).zip(joined) {
            let text = format!("{{\"room_id\":\"!{number}:x\",\"num_joined_members\":{joined}}}");
            index.put(RoomNid(number), serde_json::from_str(&text).ok());
        }
        index
    }

    fn ids(listed: &Listed) -> Vec<String> {
        let ids = listed.chunk.iter();
        ids.map(|summary| summary.room_id.to_string()).collect()
    }

    proptest! {
        #[test]
        fn pages_are_the_whole_in_both_directions(
            joined in proptest::collection::vec(0_u64..5, 0..30),
            limit in 1_u64..7,
        ) {
            let index = index(&joined);
            let whole = index.page(&Listing::default()).unwrap();
            prop_assert_eq!(whole.chunk.len(), joined.len());
            let counts: Vec<_> = whole.chunk.iter().map(|s| s.num_joined_members).collect();
            prop_assert!(counts.is_sorted_by(|a, b| a >= b));
            let (mut since, mut there, mut pages) = (None, Vec::new(), Vec::new());
            loop {
                let listing = Listing { limit: Some(limit), since, ..Listing::default() };
                let page = index.page(&listing).unwrap();
                there.extend(ids(&page));
                pages.push(ids(&page));
                since = page.next_batch.clone();
                if since.is_none() {
                    let mut before = page.prev_batch;
                    // And back again.
                    while let Some(token) = before {
                        let listing = Listing {
                            limit: Some(limit), since: Some(token), ..Listing::default()
                        };
                        let page = index.page(&listing).unwrap();
                        pages.pop();
                        prop_assert_eq!(pages.last(), Some(&ids(&page)));
                        before = page.prev_batch;
                    }
                    break;
                }
            }
            prop_assert_eq!(there, ids(&whole));
            prop_assert!(pages.len() <= 1);
        }
    }

    #[test]
    fn strange_tokens_are_refused() {
        for token in ["", "n", "x1_2", "n1", "n_", "n1_2_3", "n-1_2", "ñ1_2"] {
            let listing = Listing {
                since: Some(token.to_owned()),
                ..Listing::default()
            };
            assert!(index(&[1]).page(&listing).is_err(), "{token}");
        }
    }
}
