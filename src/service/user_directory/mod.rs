//! Who is found by name. See "User Directory" in the client-server API.
//!
//! What is typed is looked up in an index by the beginnings of words, and of parts of words, so that a search reads a
//! bounded number of rows however many users there are.

mod index;
mod words;

use std::{
    collections::{HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use parking_lot::Mutex;
use ruma::{OwnedServerName, OwnedUserId, UserId, events::StateEventType};
use ruma::{
    events::room::history_visibility::HistoryVisibility, events::room::member::MembershipState,
};
use serde::Serialize;

use self::words::{Query, RANKS};
use super::{
    Requester,
    rooms::{Rooms, ignored, visibility_of},
};
use crate::{
    config,
    error::{Error, Result},
    protocol::ids::{Position, RoomNid, UserNid},
    store::{
        Store, View,
        schema::{USER_DIRECTORY, USER_DIRECTORY_TERMS, USER_ROOMS},
    },
};

/// How many users are told if nothing is said, and at most.
const USUAL_LIMIT: u64 = 10;
const MOST: u64 = 100;

/// The longest text to search for, in bytes.
const LONGEST_TERM: usize = 1024;

/// How many rows of the index are read for one word.
const MOST_CANDIDATES: usize = 1_000;

/// How many memberships are looked at to see whom somebody may find.
const MOST_MEMBERSHIPS: usize = 20_000;

/// How many changes a search waits for.
const MOST_CHANGES: usize = 2_000;

/// The directory of users.
pub struct UserDirectory {
    store: Store,
    rooms: Arc<Rooms>,
    server_name: OwnedServerName,
    search_all_users: bool,
    /// Changes up to here are in the index. Held while it is written.
    caught_up: Mutex<(Position, UserNid)>,
}

/// Users that were found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// They, the nearest first.
    pub results: Vec<FoundUser>,
    /// Whether there may be more.
    pub limited: bool,
}

/// A user that was found.
#[derive(Debug, Serialize)]
pub struct FoundUser {
    /// Who.
    pub user_id: OwnedUserId,
    /// Their name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Their picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
}

impl UserDirectory {
    pub(super) fn open(
        store: Store,
        rooms: Arc<Rooms>,
        config: &config::UserDirectory,
    ) -> Result<Self> {
        index::open(&store)?;
        Ok(Self {
            server_name: rooms.server_name().to_owned(),
            search_all_users: config.search_all_users,
            caught_up: Mutex::new((Position(0), UserNid(0))),
            store,
            rooms,
        })
    }

    /// The users whose name or id has all the words of `term` as beginnings of words or of parts of words, whatever
    /// their case and accents; those of this node first. Who asks is not among them, nor whom they ignore.
    ///
    /// # Errors
    /// 400 for a term that is too long.
    pub fn search(&self, asker: &Requester, term: &str, limit: Option<u64>) -> Result<Found> {
        if term.len() > LONGEST_TERM {
            return Err(Error::invalid_param(format!(
                "A search has at most {LONGEST_TERM} bytes"
            )));
        }
        let limit = usize::try_from(limit.unwrap_or(USUAL_LIMIT).min(MOST)).unwrap_or_default();
        let mut found = Found {
            results: Vec::new(),
            limited: !self.catch_up(MOST_CHANGES)?,
        };
        let query = Query::new(term);
        let (view, index) = (self.store.view(), self.store.latest());
        let Some((candidates, complete)) = candidates(&index, &query.words)? else {
            return Ok(found);
        };
        found.limited |= !complete;
        let ignored = ignored(&view, asker.nid)?;
        let mut horizon = Horizon::new(self, &view, asker.nid)?;
        for user in candidates {
            // Gone meanwhile.
            let Some(row) = USER_DIRECTORY.get(&index, &(user,))? else {
                continue;
            };
            let id = self.store.user_id(user)?;
            if user == asker.nid || ignored.contains(&*id) || !query.fits(&id, &row.terms) {
                continue;
            }
            match horizon.reaches(user, &id)? {
                Some(true) => {}
                Some(false) => continue,
                None => {
                    found.limited = true;
                    break;
                }
            }
            if found.results.len() == limit {
                found.limited = true;
                break;
            }
            found.results.push(FoundUser {
                user_id: (*id).clone(),
                display_name: row.display_name,
                avatar_url: row.avatar_url,
            });
        }
        Ok(found)
    }
}

/// The users who are found by the word that the fewest are found by, the nearest first, and whether these are all; none
/// if there is no word.
fn candidates(index: &View, words: &[String]) -> Result<Option<(Vec<UserNid>, bool)>> {
    let mut fewest: Option<(Vec<UserNid>, bool)> = None;
    let mut words: Vec<_> = words.iter().collect();
    // Long words are rare.
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    words.dedup();
    for word in words {
        let found = found_by(index, word)?;
        if fewest
            .as_ref()
            .is_none_or(|(users, _)| found.0.len() < users.len())
        {
            fewest = Some(found);
        }
        if fewest.as_ref().is_some_and(|(_, complete)| *complete) {
            break;
        }
    }
    Ok(fewest)
}

fn found_by(index: &View, word: &str) -> Result<(Vec<UserNid>, bool)> {
    // No word goes on with the last character of all.
    let end = format!("{word}{}", char::MAX);
    let (mut users, mut seen, mut rows) = (Vec::new(), HashSet::new(), 0);
    for rank in RANKS {
        let bounds = (
            Bound::Included((rank, word, UserNid(0))),
            Bound::Excluded((rank, &*end, UserNid(0))),
        );
        for row in USER_DIRECTORY_TERMS.range(index, &(rank,), bounds) {
            if rows == MOST_CANDIDATES {
                return Ok((users, false));
            }
            rows += 1;
            let ((_, _, user), ()) = row?;
            if seen.insert(user) {
                users.push(user);
            }
        }
    }
    Ok((users, true))
}

/// Whom one user may find.
struct Horizon<'d> {
    directory: &'d UserDirectory,
    view: &'d View,
    /// The rooms that the user is in, where that matters.
    own: HashSet<RoomNid>,
    /// Whether those who are in a room are found for that.
    open: HashMap<RoomNid, bool>,
    /// How many memberships may still be looked at.
    left: usize,
}

impl<'d> Horizon<'d> {
    fn new(directory: &'d UserDirectory, view: &'d View, asker: UserNid) -> Result<Self> {
        let mut own = HashSet::new();
        if !directory.search_all_users {
            for row in USER_ROOMS.scan(view, &(asker,)) {
                let ((_, room), member) = row?;
                if member.membership == MembershipState::Join {
                    own.insert(room);
                }
            }
        }
        Ok(Self {
            directory,
            view,
            own,
            open: HashMap::new(),
            left: MOST_MEMBERSHIPS,
        })
    }

    /// Whether a user may be found; none when too much was looked at already.
    fn reaches(&mut self, user: UserNid, id: &UserId) -> Result<Option<bool>> {
        let is_local = id.server_name() == self.directory.server_name;
        if is_local && self.directory.search_all_users {
            return Ok(Some(true));
        }
        for row in USER_ROOMS.scan(self.view, &(user,)) {
            let ((_, room), member) = row?;
            let Some(left) = self.left.checked_sub(1) else {
                return Ok(None);
            };
            self.left = left;
            if member.membership == MembershipState::Join
                && (self.own.contains(&room) || self.is_open(room)?)
            {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }

    fn is_open(&mut self, room: RoomNid) -> Result<bool> {
        if let Some(open) = self.open.get(&room) {
            return Ok(*open);
        }
        let rooms = &self.directory.rooms;
        // What is known of a room in which nobody of this node is may be long out of date.
        let open = rooms.has_server(self.view, room, &self.directory.server_name)?
            && (self.directory.search_all_users || self.is_public(room)?);
        self.open.insert(room, open);
        Ok(open)
    }

    /// Whether anybody can enter or read a room.
    fn is_public(&self, room: RoomNid) -> Result<bool> {
        let rooms = &self.directory.rooms;
        let rules = rooms.current(self.view, room, &StateEventType::RoomJoinRules, "")?;
        let rules = rules.and_then(|rules| rules.event.content_as::<serde_json::Value>().ok());
        if rules.is_some_and(|rules| rules["join_rule"] == "public") {
            return Ok(true);
        }
        let kind = StateEventType::RoomHistoryVisibility;
        let visibility = rooms.current(self.view, room, &kind, "")?;
        Ok(visibility
            .is_some_and(|it| visibility_of(&it.event) == HistoryVisibility::WorldReadable))
    }
}
