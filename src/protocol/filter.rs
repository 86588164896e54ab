//! Client filters: read strictly once, prepared so that asking about one event is cheap, however long their lists are.
//!
//! See "Filtering" in the client-server API.

use std::{collections::HashSet, fmt, marker::PhantomData};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    event::Header,
    glob::Glob,
    path::{Path, Projection},
};

/// Why a text is no filter: M_BAD_JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad filter: {0}")]
pub struct BadFilter(pub String);

/// A filter for /sync. Absent members filter nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// The properties of events to send, all if empty.
    pub event_fields: Fields,
    /// The form in which to send events.
    pub event_format: EventFormat,
    /// For presence.
    #[serde(deserialize_with = "object")]
    pub presence: EventFilter,
    /// For account data outside rooms.
    #[serde(deserialize_with = "object")]
    pub account_data: EventFilter,
    /// For rooms.
    #[serde(deserialize_with = "object")]
    pub room: RoomFilter,
}

impl Filter {
    /// One that leaves out nothing but what is more than this many events of a timeline.
    #[must_use]
    pub fn with_limit(limit: u64) -> Self {
        let mut filter = Self::default();
        filter.room.timeline.event.limit = Some(limit);
        filter
    }
}

/// The form in which a client wants events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// For clients.
    #[default]
    Client,
    /// As other servers get them.
    Federation,
}

/// `event_fields`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Option<Projection>);

/// A filter of events outside rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// The most events to send.
    pub limit: Option<u64>,
    senders: Option<HashSet<OwnedUserId>>,
    not_senders: Set<OwnedUserId>,
    types: Option<Types>,
    not_types: Types,
}

/// What to send about rooms, by section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RoomFilter {
    rooms: Option<HashSet<OwnedRoomId>>,
    not_rooms: Set<OwnedRoomId>,
    /// Whether to send rooms that the user has left.
    #[serde(deserialize_with = "flag")]
    pub include_leave: bool,
    /// For account data in rooms.
    #[serde(deserialize_with = "object")]
    pub account_data: RoomEventFilter,
    /// For typing and receipts.
    #[serde(deserialize_with = "object")]
    pub ephemeral: RoomEventFilter,
    /// For the state before the timeline.
    #[serde(deserialize_with = "object")]
    pub state: RoomEventFilter,
    /// For the timeline.
    #[serde(deserialize_with = "object")]
    pub timeline: RoomEventFilter,
}

/// A filter of events in rooms; also for /messages, /context and searches.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RoomEventFilter {
    /// What is filtered outside rooms as well.
    #[serde(flatten)]
    pub event: EventFilter,
    rooms: Option<HashSet<OwnedRoomId>>,
    not_rooms: Set<OwnedRoomId>,
    contains_url: Option<bool>,
    /// Whether to send only the members that the sent events need.
    #[serde(deserialize_with = "flag")]
    pub lazy_load_members: bool,
    /// Whether to send them even if the client has them.
    #[serde(deserialize_with = "flag")]
    pub include_redundant_members: bool,
    /// Whether to count notifications by thread.
    #[serde(deserialize_with = "flag")]
    pub unread_thread_notifications: bool,
    /// Send only events to which one of these users has related something.
    pub related_by_senders: Option<HashSet<OwnedUserId>>,
    /// Send only events to which something was related in one of these ways.
    pub related_by_rel_types: Option<HashSet<String>>,
    // By MSC3874, with which clients ask for what is outside of threads.
    #[serde(rename = "org.matrix.msc3874.rel_types")]
    rel_types: Option<HashSet<String>>,
    #[serde(rename = "org.matrix.msc3874.not_rel_types")]
    not_rel_types: Set<String>,
}

/// A set that is empty when the filter says `null` or nothing.
type Set<T> = Nullable<HashSet<T>>;

#[derive(Clone, Debug, Default)]
struct Nullable<T>(T);

impl<'de, T: Default + Deserialize<'de>> Deserialize<'de> for Nullable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|value| Self(value.unwrap_or_default()))
    }
}

/// An object or `null`; left to itself, serde reads a struct from an array as well.
fn object<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);
    impl<'de, T: Default + Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<T, E> {
            Ok(T::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Object(PhantomData))
}

fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Event types, most of them usually without wildcards.
#[derive(Clone, Debug, Default)]
struct Types {
    exact: HashSet<String>,
    globs: Vec<Glob>,
}

impl Types {
    fn contain(&self, event_type: &str) -> bool {
        self.exact.contains(event_type) || self.globs.iter().any(|glob| glob.matches(event_type))
    }
}

impl<'de> Deserialize<'de> for Types {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let types = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
        let (globs, exact): (Vec<_>, Vec<_>) =
            types.into_iter().partition(|pattern| pattern.contains('*'));
        Ok(Self {
            exact: exact.into_iter().collect(),
            globs: globs
                .iter()
                .map(|pattern| Glob::with_stars_only(pattern))
                .collect(),
        })
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let paths = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
        if paths.iter().any(String::is_empty) {
            return Err(D::Error::custom("`event_fields` has an empty path"));
        }
        let paths: Vec<_> = paths.iter().map(|path| Path::new(path)).collect();
        // A client that wants no field of an event at all would not ask for events.
        Ok(Self((!paths.is_empty()).then(|| Projection::new(&paths))))
    }
}

impl Fields {
    /// Whether all of an event is wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// The wanted part of an event, given as JSON.
    ///
    /// # Errors
    /// When `event` is no JSON.
    pub fn apply(&self, event: String) -> serde_json::Result<String> {
        match &self.0 {
            None => Ok(event),
            Some(projection) => {
                let value = projection.apply(serde_json::from_str(&event)?);
                Ok(value.map_or_else(|| "{}".to_owned(), |value| value.to_string()))
            }
        }
    }
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// When it is no JSON object, or a member of it has the wrong type or names no valid id.
    pub fn from_json(json: &str) -> Result<Self, BadFilter> {
        parse(json)
    }
}

impl RoomEventFilter {
    /// Reads the filter of a single request.
    ///
    /// # Errors
    /// As [`Filter::from_json`].
    pub fn from_json(json: &str) -> Result<Self, BadFilter> {
        parse(json)
    }

    /// Whether anything of this room passes.
    #[must_use]
    pub fn allows_room(&self, room_id: &RoomId) -> bool {
        allows(self.rooms.as_ref(), &self.not_rooms.0, room_id)
    }

    /// The rooms that it names, if it names any.
    #[must_use]
    pub fn named_rooms(&self) -> Option<&HashSet<OwnedRoomId>> {
        self.rooms.as_ref()
    }

    /// Lets these rooms pass as well, unless they are excluded.
    pub fn also_rooms(&mut self, rooms: impl IntoIterator<Item = OwnedRoomId>) {
        if let Some(named) = &mut self.rooms {
            named.extend(rooms);
        }
    }

    /// Whether events without a `url`, or those with one, are all that is wanted.
    #[must_use]
    pub fn wants_url(&self) -> Option<bool> {
        self.contains_url
    }

    /// Whether an event passes, as far as it can be said without what relates to it.
    ///
    /// `contains_url` says whether its content has a `url`; it is asked only when that matters.
    pub fn allows_event(&self, header: &Header, contains_url: impl FnOnce() -> bool) -> bool {
        self.event
            .allows(&header.sender, &header.event_type.to_string())
            && self.allows_room(&header.room_id)
            && self.allows_relation(header)
            && self
                .contains_url
                .is_none_or(|wanted| wanted == contains_url())
    }

    fn allows_relation(&self, header: &Header) -> bool {
        match &header.relation {
            Some(relation) => {
                let kind = relation.rel_type.as_str();
                allows(self.rel_types.as_ref(), &self.not_rel_types.0, kind)
            }
            None => self.rel_types.is_none(),
        }
    }

    /// Whether what relates to an event decides as well.
    #[must_use]
    pub fn asks_for_relations(&self) -> bool {
        self.related_by_senders.is_some() || self.related_by_rel_types.is_some()
    }

    /// Whether an event passes, given the senders and kinds of what relates to it.
    pub fn allows_related_by<'a>(
        &self,
        mut relations: impl Iterator<Item = (&'a UserId, &'a str)>,
    ) -> bool {
        !self.asks_for_relations()
            || relations.any(|(sender, rel_type)| {
                self.related_by_senders
                    .as_ref()
                    .is_none_or(|senders| senders.contains(sender))
                    && self
                        .related_by_rel_types
                        .as_ref()
                        .is_none_or(|types| types.contains(rel_type))
            })
    }

    /// Whether every event of every room passes, so that nothing needs to be looked at.
    #[must_use]
    pub fn allows_all(&self) -> bool {
        self.event.allows_all()
            && self.rooms.is_none()
            && self.not_rooms.0.is_empty()
            && self.contains_url.is_none()
            && self.rel_types.is_none()
            && self.not_rel_types.0.is_empty()
            && !self.asks_for_relations()
    }
}

impl RoomFilter {
    /// Whether anything of this room is to be sent.
    #[must_use]
    pub fn allows_room(&self, room_id: &RoomId) -> bool {
        allows(self.rooms.as_ref(), &self.not_rooms.0, room_id)
    }
}

impl EventFilter {
    /// Whether an event by this sender and of this type passes.
    #[must_use]
    pub fn allows(&self, sender: &UserId, event_type: &str) -> bool {
        allows(self.senders.as_ref(), &self.not_senders.0, sender) && self.allows_type(event_type)
    }

    /// Whether something of this type passes that nobody has sent, such as account data.
    #[must_use]
    pub fn allows_type(&self, event_type: &str) -> bool {
        !self.not_types.contain(event_type)
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.contain(event_type))
    }

    /// Whether everything passes.
    #[must_use]
    pub fn allows_all(&self) -> bool {
        self.senders.is_none()
            && self.not_senders.0.is_empty()
            && self.types.is_none()
            && self.not_types.exact.is_empty()
            && self.not_types.globs.is_empty()
    }
}

fn allows<T, Q>(only: Option<&HashSet<T>>, not: &HashSet<T>, id: &Q) -> bool
where
    T: std::borrow::Borrow<Q> + Eq + std::hash::Hash,
    Q: Eq + std::hash::Hash + ?Sized,
{
    !not.contains(id) && only.is_none_or(|only| only.contains(id))
}

fn parse<T: Default + for<'de> Deserialize<'de>>(json: &str) -> Result<T, BadFilter> {
    let bad = |error: serde_json::Error| BadFilter(error.to_string());
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let filter = object(&mut deserializer).map_err(bad)?;
    deserializer.end().map_err(bad)?;
    Ok(filter)
}

#[cfg(test)]
mod tests;
