//! Answers a search: what the index gives is looked at in the store, by the eyes of whoever asks.
//!
//! The work for one answer is bounded: a number of hits is looked at, whether or not the asker sees them, and `next_batch`
//! goes on behind the last one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    rc::Rc,
    sync::atomic::Ordering,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Search,
    index::{By, Candidate, Found, Hit, Place},
    query::Query,
};
use crate::{
    error::{Error, Result},
    protocol::{
        filter::RoomEventFilter,
        format::{self, Shape},
        ids::{RoomNid, UserNid},
        searchable::{self, Key},
    },
    service::{
        Requester,
        rooms::{Rooms, Seen, Sight, Surroundings},
    },
    store::{View, schema::USER_ROOMS},
};

/// How many results there are in an answer if nothing is said, and at most.
const USUAL_LIMIT: u64 = 10;
const MOST_RESULTS: usize = 100;

/// How many hits are looked at for one answer.
const MOST_EXAMINED: usize = 500;

/// How many events surround all results of an answer together, at most.
const MOST_SURROUNDING: usize = 2_000;

/// How many words are told to be highlighted.
const MOST_HIGHLIGHTS: usize = 100;

/// How much state is told, in bytes; the room with which it becomes more is the last.
const MOST_STATE: usize = 8 << 20;

/// How many rooms are followed back from one that has replaced others.
const MOST_PREDECESSORS: usize = 32;

/// The longest token, in bytes: ids have 255.
const LONGEST_TOKEN: usize = 512;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What somebody has typed.
    pub term: String,
    /// Where it shall stand.
    pub keys: Vec<Key>,
    /// Which events.
    pub filter: RoomEventFilter,
    /// In which order.
    pub order: Order,
    /// What to tell around each.
    pub around: Option<Around>,
    /// Whether to tell the state of their rooms.
    pub include_state: bool,
    /// How to put them together.
    pub groupings: Vec<Grouping>,
    /// Where to go on.
    pub next_batch: Option<String>,
}

/// The order of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// What fits best first.
    Rank,
    /// The newest first.
    Recent,
}

/// What to tell around each result.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// How many events before it.
    pub before: u64,
    /// How many after it.
    pub after: u64,
    /// Whether to tell what their senders were called.
    pub include_profile: bool,
}

/// By what results are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// By their rooms.
    Room,
    /// By who has sent them.
    Sender,
}

impl Grouping {
    fn name(self) -> &'static str {
        match self {
            Self::Room => "room_id",
            Self::Sender => "sender",
        }
    }
}

/// `next_batch`. It says where to go on and nothing about who may see what, so it is of no use to others.
#[derive(Serialize, Deserialize)]
struct Token {
    by: By,
    behind: Place,
    /// How many were told, and how many there are.
    told: u64,
    count: u64,
    /// The group in which to go on.
    room: Option<OwnedRoomId>,
    sender: Option<OwnedUserId>,
}

impl Token {
    fn read(text: &str) -> Result<Self> {
        let bad = || Error::invalid_param("next_batch: this is no token of a search");
        if text.len() > LONGEST_TOKEN * 2 {
            return Err(bad());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        match postcard::take_from_bytes(&bytes) {
            Ok((token, [])) => Ok(token),
            _ => Err(bad()),
        }
    }

    fn write(&self) -> Result<String> {
        let bytes = postcard::to_stdvec(self);
        let bytes = bytes.map_err(|e| Error::Internal(format!("a token: {e}")))?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Results of one group.
#[derive(Default)]
struct Group {
    events: Vec<String>,
    /// How many there are, as far as it was looked.
    count: u64,
}

/// A hit that the asker sees.
struct Match {
    hit: Hit,
    seen: Seen,
    /// The text by which it was found.
    text: String,
}

/// The results of an answer, and what lies behind them.
struct Page {
    results: Vec<Match>,
    /// The place of the last hit that is done with.
    last: Option<Place>,
    /// Whether there may be more.
    more: bool,
    /// How many there are, as far as it was looked.
    count: u64,
    groups: [BTreeMap<String, Group>; 2],
}

impl Search {
    /// The answer to a search.
    ///
    /// # Errors
    /// 400 for a term that is too long, and for a token that is none.
    pub fn search(&self, asker: &Requester, mut wanted: Wanted) -> Result<String> {
        self.must_be_enabled()?;
        let query = Query::new(&wanted.term)?;
        let by = match wanted.order {
            Order::Rank => By::Rank,
            Order::Recent => By::Time,
        };
        let token = wanted.next_batch.as_deref().filter(|text| !text.is_empty());
        let token = token.map(Token::read).transpose()?;
        if token.as_ref().is_some_and(|token| token.by != by) {
            return Err(Error::invalid_param(
                "next_batch: this is a token of a search in another order",
            ));
        }
        let view = self.parts.store.view();
        let rooms = self.rooms_of(&view, asker, &mut wanted.filter, token.as_ref())?;
        let found = self.find(&query, &rooms, &wanted, (by, token.as_ref()))?;
        let eyes = Eyes {
            search: self,
            view: &view,
            asker,
            sights: RefCell::default(),
        };
        let page = eyes.page(found, &wanted, token.as_ref())?;
        eyes.write(&page, &query, &wanted, (by, token.as_ref()))
    }

    /// The rooms in which the asker may see anything, as far as the filter allows, each with the place in its timeline up
    /// to which that is.
    fn rooms_of(
        &self,
        view: &View,
        asker: &Requester,
        filter: &mut RoomEventFilter,
        token: Option<&Token>,
    ) -> Result<HashMap<RoomNid, i64>> {
        let store = &self.parts.store;
        let mut own: HashMap<RoomNid, i64> = HashMap::new();
        for row in USER_ROOMS.scan(view, &(asker.nid,)) {
            let ((_, room), member) = row?;
            let until = match member.membership {
                _ if member.forgotten => continue,
                MembershipState::Join => i64::MAX,
                MembershipState::Leave | MembershipState::Ban => member.since.live_order(),
                _ => continue,
            };
            own.insert(room, until);
        }
        if let Some(named) = filter.named_rooms() {
            let mut before = Vec::new();
            for room in named {
                if let Some(nid) = store.find_room(room)?
                    && own.contains_key(&nid)
                {
                    self.add_predecessors(view, nid, &own, &mut before)?;
                }
            }
            filter.also_rooms(before);
        }
        let only = match token.and_then(|token| token.room.as_deref()) {
            Some(room) => Some(store.find_room(room)?.unwrap_or_default()),
            None => None,
        };
        let mut rooms = HashMap::with_capacity(own.len());
        for (room, until) in own {
            if only.is_none_or(|only| only == room) && filter.allows_room(&store.room_id(room)?) {
                rooms.insert(room, until);
            }
        }
        Ok(rooms)
    }

    /// The rooms that a room has replaced, as far as the asker knows them: to users they are one.
    fn add_predecessors(
        &self,
        view: &View,
        mut room: RoomNid,
        own: &HashMap<RoomNid, i64>,
        before: &mut Vec<OwnedRoomId>,
    ) -> Result<()> {
        #[derive(Deserialize)]
        struct Create {
            predecessor: Predecessor,
        }
        #[derive(Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        let (store, rooms) = (&self.parts.store, &self.parts.rooms);
        for _ in 0..MOST_PREDECESSORS {
            let create = rooms.current(view, room, &StateEventType::RoomCreate, "")?;
            let create = create.and_then(|stored| stored.event.content_as::<Create>().ok());
            let Some(create) = create else { break };
            let id = create.predecessor.room_id;
            match store.find_room(&id)? {
                Some(nid) if own.contains_key(&nid) => room = nid,
                _ => break,
            }
            before.push(id);
        }
        Ok(())
    }

    fn find(
        &self,
        query: &Query,
        rooms: &HashMap<RoomNid, i64>,
        wanted: &Wanted,
        (by, token): (By, Option<&Token>),
    ) -> Result<Found> {
        let Some(index) = self.index.read().clone() else {
            return Ok(Found::default());
        };
        let store = &self.parts.store;
        let only = match token.and_then(|token| token.sender.as_deref()) {
            Some(sender) => Some(store.find_user(sender)?.unwrap_or_default()),
            None => None,
        };
        let filter = &wanted.filter;
        let keys: Vec<_> = wanted
            .keys
            .iter()
            .map(|key| (key.number(), key.event_type().to_string()))
            .collect();
        let known: RefCell<HashMap<(UserNid, u64), bool>> = RefCell::default();
        let allows = |sender: UserNid, key: u64| {
            let Some((_, event_type)) = keys.iter().find(|(number, _)| *number == key) else {
                return false;
            };
            if filter.event.allows_all() {
                return true;
            }
            *known.borrow_mut().entry((sender, key)).or_insert_with(|| {
                let id = store.user_id(sender);
                id.is_ok_and(|id| filter.event.allows(&id, event_type))
            })
        };
        let admits = |candidate: Candidate| {
            rooms
                .get(&candidate.room)
                .is_some_and(|until| candidate.order <= *until)
                && only.is_none_or(|only| only == candidate.sender)
                && filter
                    .wants_url()
                    .is_none_or(|wanted| wanted == candidate.has_url)
                && allows(candidate.sender, candidate.key)
        };
        let list: Vec<_> = rooms.keys().copied().collect();
        let behind = token.map(|token| token.behind);
        // Whatever ends this early has to do with the index, which takes its files for granted.
        let doubt = Doubt(self);
        let found = index.find(query, &list, admits, (by, behind), MOST_EXAMINED);
        if found.is_ok() {
            std::mem::forget(doubt);
        }
        found.map_err(|e| Error::Internal(format!("the index of messages: {e}")))
    }
}

/// Has the index looked through, when it is dropped.
struct Doubt<'s>(&'s Search);

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.0.is_doubtful.store(true, Ordering::Release);
        self.0.asked.notify_one();
    }
}

/// One user's eyes on all rooms, at one moment.
struct Eyes<'s> {
    search: &'s Search,
    view: &'s View,
    asker: &'s Requester,
    sights: RefCell<HashMap<RoomNid, Rc<Sight<'s>>>>,
}

impl<'s> Eyes<'s> {
    fn rooms(&self) -> &'s Rooms {
        &self.search.parts.rooms
    }

    fn sight(&self, room: RoomNid) -> Result<Rc<Sight<'s>>> {
        if let Some(sight) = self.sights.borrow().get(&room) {
            return Ok(sight.clone());
        }
        let rooms = &self.search.parts.rooms;
        let sight = Rc::new(rooms.sight(self.view, room, self.asker)?);
        self.sights.borrow_mut().insert(room, sight.clone());
        Ok(sight)
    }

    /// What there is to tell of the hits.
    fn page(&self, found: Found, wanted: &Wanted, token: Option<&Token>) -> Result<Page> {
        let limit = wanted.filter.event.limit.unwrap_or(USUAL_LIMIT);
        let limit = usize::try_from(limit)
            .unwrap_or(MOST_RESULTS)
            .clamp(1, MOST_RESULTS);
        let mut page = Page {
            results: Vec::new(),
            last: None,
            more: found.more,
            count: 0,
            groups: Default::default(),
        };
        for hit in found.hits {
            let is_full = page.results.len() == limit;
            // The first page counts, the later ones know.
            if is_full && token.is_some() {
                break;
            }
            if !is_full {
                page.last = Some(hit.place);
            }
            let Some(result) = self.look(hit, wanted)? else {
                continue;
            };
            page.count += 1;
            let header = &result.seen.stored.event.header;
            for grouping in &wanted.groupings {
                let (index, id) = match grouping {
                    Grouping::Room => (0, header.room_id.as_str()),
                    Grouping::Sender => (1, header.sender.as_str()),
                };
                let [rooms, senders] = &mut page.groups;
                let groups = if index == 0 { rooms } else { senders };
                let group = groups.entry(id.to_owned()).or_default();
                group.count += 1;
                if !is_full {
                    group.events.push(header.id.to_string());
                }
            }
            if !is_full {
                page.results.push(result);
            }
        }
        // As other servers do, which clients know: a full page may be followed by an empty one.
        page.more |= page.results.len() == limit;
        Ok(page)
    }

    /// The hit as a result, if the asker sees what was found.
    fn look(&self, hit: Hit, wanted: &Wanted) -> Result<Option<Match>> {
        let rooms = self.rooms();
        // It may be gone since, or not be here yet in a store that lost its last moment.
        let Some(stored) = rooms.event_if_there(self.view, hit.event)? else {
            return Ok(None);
        };
        let sight = self.sight(hit.room)?;
        let Some(membership) = sight.sees(&stored)? else {
            return Ok(None);
        };
        let seen = Seen { stored, membership };
        if !sight.shows_content(&seen)? || !sight.passes(&seen.stored, &wanted.filter)? {
            return Ok(None);
        }
        let text = match hit.edit {
            None => {
                let key = Key::of_event(&seen.stored.event.header);
                key.and_then(|key| searchable::text(&seen.stored.event, key))
            }
            Some(edit) => {
                let edit = rooms.event_if_there(self.view, edit)?;
                let Some(edit) = edit.filter(|edit| edit.facts.redacted_by.is_none()) else {
                    return Ok(None);
                };
                // Who has left before does not know what it says now.
                if sight.sees(&edit)?.is_none() {
                    return Ok(None);
                }
                searchable::new_text(&edit.event)
            }
        };
        Ok(text.map(|text| Match { hit, seen, text }))
    }

    fn write(
        &self,
        page: &Page,
        query: &Query,
        wanted: &Wanted,
        (by, token): (By, Option<&Token>),
    ) -> Result<String> {
        let mut highlights = Vec::new();
        for result in &page.results {
            query.highlight(&result.text, &mut highlights, MOST_HIGHLIGHTS);
        }
        let told = token.map_or(0, |token| token.told) + number(page.results.len());
        let count = match token {
            Some(token) => token.count.max(told),
            None => page.count,
        };
        let next = |told, count, room: Option<&str>, sender: Option<&str>| match page.last {
            Some(behind) if page.more => {
                let parent = token.map(|token| (token.room.clone(), token.sender.clone()));
                let (of_room, of_sender) = parent.unwrap_or_default();
                let next = Token {
                    by,
                    behind,
                    told,
                    count,
                    room: room.and_then(|id| RoomId::parse(id).ok()).or(of_room),
                    sender: sender
                        .and_then(|id| ruma::UserId::parse(id).ok())
                        .or(of_sender),
                };
                next.write().map(Some)
            }
            _ => Ok(None),
        };

        let mut out = String::with_capacity(page.results.len() * 900 + 300);
        let _ = write!(
            out,
            "{{\"search_categories\":{{\"room_events\":{{\"count\":{count},\"results\":["
        );
        self.write_results(&mut out, page, wanted)?;
        out.push_str("],\"highlights\":[");
        for (index, word) in highlights.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            format::push_string(&mut out, word);
        }
        out.push(']');
        if wanted.include_state {
            self.write_state(&mut out, page)?;
        }
        if !wanted.groupings.is_empty() {
            out.push_str(",\"groups\":{");
            for (index, grouping) in wanted.groupings.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                let [rooms, senders] = &page.groups;
                let groups = match grouping {
                    Grouping::Room => rooms,
                    Grouping::Sender => senders,
                };
                let _ = write!(out, "\"{}\":{{", grouping.name());
                // In the order of their first results.
                let mut told: Vec<_> = groups
                    .iter()
                    .filter(|(_, group)| !group.events.is_empty())
                    .collect();
                told.sort_by_key(|(_, group)| {
                    let first = group.events.first();
                    page.results.iter().position(|result| {
                        Some(result.seen.stored.event.header.id.as_str())
                            == first.map(String::as_str)
                    })
                });
                for (order, (id, group)) in told.into_iter().enumerate() {
                    if order > 0 {
                        out.push(',');
                    }
                    format::push_string(&mut out, id);
                    let events = serde_json::to_string(&group.events);
                    let events = events.map_err(|e| Error::Internal(e.to_string()))?;
                    let _ = write!(out, ":{{\"order\":{order},\"results\":{events}");
                    let told = number(group.events.len());
                    let next = match grouping {
                        Grouping::Room => next(told, group.count, Some(id), None)?,
                        Grouping::Sender => next(told, group.count, None, Some(id))?,
                    };
                    push_next(&mut out, next.as_deref());
                    out.push('}');
                }
                out.push('}');
            }
            out.push('}');
        }
        push_next(&mut out, next(told, count, None, None)?.as_deref());
        out.push_str("}}}");
        Ok(out)
    }

    fn write_results(&self, out: &mut String, page: &Page, wanted: &Wanted) -> Result<()> {
        let share = MOST_SURROUNDING / page.results.len().max(1) / 2;
        for (index, result) in page.results.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let sight = self.sight(result.hit.room)?;
            let _ = write!(out, "{{\"rank\":{},\"result\":", result.hit.score);
            sight.show(out, &result.seen, Shape::Client)?;
            out.push_str(",\"context\":{");
            if let Some(around) = &wanted.around {
                let limit = |limit| usize::try_from(limit).unwrap_or(usize::MAX).min(share);
                let limits = (limit(around.before), limit(around.after));
                let everything = RoomEventFilter::default();
                let surroundings = sight.around(&result.seen, limits, &everything)?;
                sight.show_surroundings(out, &surroundings.before, &surroundings.after)?;
                if around.include_profile {
                    self.write_profiles(out, &sight, &result.seen, surroundings)?;
                }
            }
            out.push_str("}}");
        }
        Ok(())
    }

    /// What those were called who have sent an event and what surrounds it, then.
    fn write_profiles(
        &self,
        out: &mut String,
        sight: &Sight<'_>,
        seen: &Seen,
        surroundings: Surroundings,
    ) -> Result<()> {
        #[derive(Deserialize, Serialize)]
        struct Profile<'e> {
            #[serde(borrow, skip_serializing_if = "Option::is_none")]
            displayname: Option<&'e RawValue>,
            #[serde(borrow, skip_serializing_if = "Option::is_none")]
            avatar_url: Option<&'e RawValue>,
        }
        let last = surroundings.after.events.last().unwrap_or(seen);
        let state = self.search.parts.store.state(last.stored.after())?;
        let mut all = vec![seen.clone()];
        all.extend(surroundings.before.events);
        all.extend(surroundings.after.events);
        out.push_str(",\"profile_info\":{");
        for (index, member) in sight.senders_in(&state, &all)?.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let user = member.event.header.state_key.as_deref();
            format::push_string(out, user.unwrap_or_default());
            out.push(':');
            let profile = member.event.content_as::<Profile<'_>>().ok();
            let profile = profile.and_then(|profile| serde_json::to_string(&profile).ok());
            out.push_str(profile.as_deref().unwrap_or("{}"));
        }
        out.push('}');
        Ok(())
    }

    /// The state of the rooms of the results, as far as the asker may read it.
    fn write_state(&self, out: &mut String, page: &Page) -> Result<()> {
        let mut told: Vec<&RoomId> = Vec::new();
        let start = out.len();
        out.push_str(",\"state\":{");
        for result in &page.results {
            let room = &*result.seen.stored.event.header.room_id;
            if told.contains(&room) || out.len() - start > MOST_STATE {
                continue;
            }
            // Who may read an event may not always read the state of today.
            if self.sight(result.hit.room)?.reach().is_err() {
                continue;
            }
            let state = self.rooms().full_state(self.asker, room)?;
            if !told.is_empty() {
                out.push(',');
            }
            format::push_string(out, room.as_str());
            out.push(':');
            out.push_str(&state);
            told.push(room);
        }
        out.push('}');
        Ok(())
    }
}

fn push_next(out: &mut String, next: Option<&str>) {
    if let Some(next) = next {
        out.push_str(",\"next_batch\":");
        format::push_string(out, next);
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
