//! What a client asks of sliding sync, and how much of it it may ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::OwnedRoomId;
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    protocol::{
        filter::Filter,
        token::{SlidingToken, SyncToken},
    },
};

/// How many lists a request may have, as MSC4186 says.
const MOST_LISTS: usize = 100;

/// How many ranges a list may have.
const MOST_RANGES: usize = 100;

/// How many rooms a request may subscribe to. MSC4186 says 100, but apps that came before it keep on adding.
const MOST_SUBSCRIPTIONS: usize = 1000;

/// How many pieces of state a client may require of a room.
const MOST_REQUIRED: usize = 1000;

/// The longest name of a connection or list, in bytes.
const LONGEST_NAME: usize = 255;

/// The most events of one timeline.
const MOST_EVENTS: u64 = 200;

/// The type of memberships, and the key by which a client wants just those that it needs to show the timeline.
pub(super) const MEMBER: &str = "m.room.member";
const LAZY: &str = "$LAZY";

/// A request for what has happened.
#[derive(Clone, Debug)]
pub struct SlidingRequest {
    /// Where the connection stands; none begins anew.
    pub pos: Option<SlidingToken>,
    /// How long to wait for something to happen.
    pub timeout: Duration,
    /// What the client wants to see.
    pub asked: Asked,
}

/// The body of a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Asked {
    pub(super) conn_id: Option<String>,
    pub(super) txn_id: Option<String>,
    pub(super) lists: BTreeMap<String, List>,
    pub(super) room_subscriptions: BTreeMap<OwnedRoomId, Subscription>,
    pub(super) extensions: Extensions,
}

/// A list of rooms, newest first, of which the client wants to see some.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct List {
    /// By index, both ends included; all rooms if there is none.
    #[serde(default)]
    pub(super) ranges: Option<Vec<(u64, u64)>>,
    #[serde(default)]
    pub(super) filters: Option<Filters>,
    timeline_limit: u64,
    #[serde(default)]
    required_state: Vec<(String, String)>,
}

/// A room that the client wants to see wherever it is in the lists.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Subscription {
    timeline_limit: u64,
    #[serde(default)]
    required_state: Vec<(String, String)>,
}

/// Which rooms are in a list: those that fulfil all of this.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    pub(super) is_dm: Option<bool>,
    pub(super) spaces: Option<Vec<OwnedRoomId>>,
    pub(super) is_encrypted: Option<bool>,
    #[serde(alias = "is_invited")]
    pub(super) is_invite: Option<bool>,
    pub(super) room_types: Option<BTreeSet<Option<String>>>,
    pub(super) not_room_types: Option<BTreeSet<Option<String>>>,
    pub(super) tags: Option<BTreeSet<String>>,
    pub(super) not_tags: Option<BTreeSet<String>>,
}

/// What the client wants to hear besides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Extensions {
    pub(super) to_device: ToDevice,
    pub(super) e2ee: E2ee,
    pub(super) account_data: OfRooms,
    pub(super) receipts: OfRooms,
    pub(super) typing: OfRooms,
    #[serde(rename = "io.element.msc4308.thread_subscriptions")]
    pub(super) threads: ThreadSubscriptions,
}

/// Messages to the device. See MSC3885.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ToDevice {
    pub(super) enabled: Option<bool>,
    pub(super) limit: Option<u64>,
    /// Up to where the client has got them.
    since: Option<String>,
}

/// Device lists and counts of keys. See MSC3884.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct E2ee {
    pub(super) enabled: Option<bool>,
}

/// Which threads the user follows, and which no more. See MSC4308.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ThreadSubscriptions {
    pub(super) enabled: Option<bool>,
    /// How many changes at most.
    pub(super) limit: Option<u64>,
}

/// What belongs to rooms, and for which of the rooms that are shown the client wants it: `*` is all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct OfRooms {
    pub(super) enabled: Option<bool>,
    lists: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
}

impl Asked {
    /// Whether the client may ask this.
    ///
    /// # Errors
    /// 400 M_INVALID_PARAM that says what is too much.
    pub(super) fn check(&self) -> Result<()> {
        let too = |what: &str, most: usize| {
            let message = format!("{what}; the most is {most}");
            Err(Error::invalid_param(message))
        };
        if self.connection().len() > LONGEST_NAME {
            return too("`conn_id` is too long", LONGEST_NAME);
        }
        if self
            .txn_id
            .as_ref()
            .is_some_and(|id| id.len() > LONGEST_NAME)
        {
            return too("`txn_id` is too long", LONGEST_NAME);
        }
        if self.lists.len() > MOST_LISTS {
            return too("There are too many lists", MOST_LISTS);
        }
        if self.lists.keys().any(|name| name.len() > LONGEST_NAME) {
            return too("The name of a list is too long", LONGEST_NAME);
        }
        if self.room_subscriptions.len() > MOST_SUBSCRIPTIONS {
            return too("There are too many subscriptions", MOST_SUBSCRIPTIONS);
        }
        let of_lists = self.lists.values().map(|list| &list.required_state);
        let subscriptions = self.room_subscriptions.values();
        let of_rooms = subscriptions.map(|subscription| &subscription.required_state);
        if of_lists
            .chain(of_rooms)
            .any(|state| state.len() > MOST_REQUIRED)
        {
            return too("There is too much required state", MOST_REQUIRED);
        }
        for list in self.lists.values() {
            let ranges = list.ranges.as_deref().unwrap_or_default();
            if ranges.len() > MOST_RANGES {
                return too("A list has too many ranges", MOST_RANGES);
            }
            if ranges.iter().any(|(first, last)| first > last) {
                return Err(Error::invalid_param("A range ends before it begins"));
            }
        }
        self.messages_since()?;
        Ok(())
    }

    pub(super) fn connection(&self) -> &str {
        self.conn_id.as_deref().unwrap_or_default()
    }

    /// Whether any rooms are asked for.
    pub(super) fn has_rooms(&self) -> bool {
        !self.lists.is_empty() || !self.room_subscriptions.is_empty()
    }

    /// Up to where the client has got its messages.
    pub(super) fn messages_since(&self) -> Result<Option<SyncToken>> {
        let since = self.extensions.to_device.since.as_deref();
        let since = since.filter(|since| !since.is_empty());
        let since = since.map(str::parse::<SyncToken>).transpose();
        since.map_err(|e| Error::invalid_param(format!("extensions.to_device.since: {e}")))
    }

    /// Whether the same rooms with the same things are asked for.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let (extensions, others) = (&self.extensions, &other.extensions);
        self.lists == other.lists
            && self.room_subscriptions == other.room_subscriptions
            && extensions.account_data == others.account_data
            && extensions.receipts == others.receipts
            && extensions.typing == others.typing
    }
}

impl OfRooms {
    /// Whether it is wanted for a room that was asked for by these lists, or by name.
    pub(super) fn wants(&self, lists: &[&str], subscribed: Option<&str>) -> bool {
        let has = |names: &Option<Vec<String>>, name: &str| {
            let names = names.as_ref();
            names.is_none_or(|names| names.iter().any(|n| n == "*" || n == name))
        };
        self.enabled == Some(true)
            && (lists.iter().any(|list| has(&self.lists, list))
                || subscribed.is_some_and(|room| has(&self.rooms, room)))
    }
}

/// What is to be told of a room, by all the lists that it is in and the subscription to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    /// How many events of the timeline.
    pub(super) limit: u64,
    /// The same as a filter.
    pub(super) filter: Arc<Filter>,
    /// Which state.
    pub(super) wanted: Arc<Wanted>,
}

impl Config {
    /// What was told of a room before.
    pub(super) fn as_before(limit: u64, wanted: Arc<Wanted>) -> Self {
        Self {
            limit,
            filter: Arc::new(Filter::with_limit(limit)),
            wanted,
        }
    }

    pub(super) fn of(lists: &[&List], subscription: Option<&Subscription>, me: &str) -> Self {
        let mut config = Self::default();
        let mut wanted = Wanted::default();
        let mut add = |limit: u64, required: &[(String, String)]| {
            config.limit = config.limit.max(limit.min(MOST_EVENTS));
            for (kind, key) in required {
                wanted.add(kind, key, me);
            }
        };
        for list in lists {
            add(list.timeline_limit, &list.required_state);
        }
        if let Some(subscription) = subscription {
            add(subscription.timeline_limit, &subscription.required_state);
        }
        config.wanted = Arc::new(wanted);
        config.filter = Arc::new(Filter::with_limit(config.limit));
        config
    }
}

/// Which state a client wants of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) everything: bool,
    /// Of any type, with these keys.
    pub(super) keys: BTreeSet<String>,
    /// By type.
    pub(super) types: BTreeMap<String, Keys>,
    /// Those members besides that the timeline needs, and those that change.
    pub(super) lazy: bool,
}

/// Which state of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    All,
    These(BTreeSet<String>),
}

impl Wanted {
    fn add(&mut self, kind: &str, key: &str, me: &str) {
        let key = if key == "$ME" { me } else { key };
        match (kind, key) {
            ("*", "*") => self.everything = true,
            ("*", key) => drop(self.keys.insert(key.to_owned())),
            (MEMBER, LAZY) => self.lazy = true,
            (kind, "*") => drop(self.types.insert(kind.to_owned(), Keys::All)),
            (kind, key) => {
                let keys = self.types.entry(kind.to_owned());
                if let Keys::These(keys) = keys.or_insert(Keys::These(BTreeSet::new())) {
                    keys.insert(key.to_owned());
                }
            }
        }
    }

    /// Whether a piece of state is wanted always, not just now and then.
    pub(super) fn has(&self, kind: &str, key: &str) -> bool {
        let of_type = self.types.get(kind);
        self.everything
            || self.keys.contains(key)
            || of_type.is_some_and(|keys| match keys {
                Keys::All => true,
                Keys::These(keys) => keys.contains(key),
            })
    }

    /// Whether whoever wanted this was told all that `other` wants.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.everything || self == other {
            return true;
        }
        let has_all = |(kind, keys): (&String, &Keys)| match keys {
            Keys::All => self.types.get(kind) == Some(&Keys::All),
            Keys::These(keys) => keys.iter().all(|key| self.has(kind, key)),
        };
        !other.everything && other.keys.is_subset(&self.keys) && other.types.iter().all(has_all)
    }

    /// What either wants; just `other` when that is too much to remember.
    pub(super) fn with(&self, other: &Arc<Self>) -> Arc<Self> {
        let mut both = self.clone();
        both.everything |= other.everything;
        both.lazy |= other.lazy;
        both.keys.extend(other.keys.iter().cloned());
        for (kind, keys) in &other.types {
            match (both.types.get_mut(kind), keys) {
                (Some(Keys::These(known)), Keys::These(keys)) => known.extend(keys.iter().cloned()),
                (Some(Keys::All), _) => {}
                _ => drop(both.types.insert(kind.clone(), keys.clone())),
            }
        }
        let size = |keys: &Keys| match keys {
            Keys::All => 1,
            Keys::These(keys) => keys.len(),
        };
        let total = both.keys.len() + both.types.values().map(size).sum::<usize>();
        if total > MOST_REQUIRED {
            other.clone()
        } else {
            Arc::new(both)
        }
    }
}

#[cfg(test)]
mod tests {
    //! Which state is wanted, and what is too much.

    use serde_json::{Value, json};

    use super::*;

    fn wanted(required: Value) -> Wanted {
        let list = json!({ "timeline_limit": 1, "required_state": required });
        let list: List = serde_json::from_value(list).unwrap();
        Wanted::clone(&Config::of(&[&list], None, "@me:a").wanted)
    }

    #[test]
    fn wildcards_and_names_select_state() {
        let some = wanted(json!([
            ["m.room.name", ""],
            ["m.space.child", "*"],
            ["*", "k"]
        ]));
        assert!(some.has("m.room.name", "") && some.has("m.space.child", "!r"));
        assert!(some.has("m.room.name", "k") && !some.has("m.room.name", "other"));
        assert!(!some.has("m.room.topic", ""));
        let me = wanted(json!([
            ["m.room.member", "$ME"],
            ["m.room.member", "$LAZY"]
        ]));
        assert!(me.lazy && me.has(MEMBER, "@me:a") && !me.has(MEMBER, "@you:a"));
        assert!(wanted(json!([["*", "*"]])).has("any", "thing"));
    }

    #[test]
    fn who_wants_more_is_noticed() {
        let one = wanted(json!([["a", ""]]));
        let two = wanted(json!([["a", ""], ["b", "*"]]));
        assert!(two.covers(&one) && !one.covers(&two));
        assert!(wanted(json!([["*", "*"]])).covers(&two));
        assert!(!two.covers(&wanted(json!([["*", "*"]]))));
        assert!(!two.covers(&wanted(json!([["*", "k"]]))));
        assert!(!one.covers(&wanted(json!([["a", "*"]]))));
        let both = one.with(&Arc::new(two.clone()));
        assert!(both.covers(&one) && both.covers(&two));
    }

    #[test]
    fn extensions_know_for_which_rooms_they_are() {
        let of = |value: Value| serde_json::from_value::<OfRooms>(value).unwrap();
        assert!(!of(json!({})).wants(&["a"], None));
        let on = of(json!({ "enabled": true }));
        assert!(on.wants(&["a"], None) && on.wants(&[], Some("!r")) && !on.wants(&[], None));
        let some = of(json!({ "enabled": true, "lists": ["a"], "rooms": [] }));
        assert!(some.wants(&["b", "a"], None) && !some.wants(&["b"], Some("!r")));
        assert!(of(json!({ "enabled": true, "lists": [], "rooms": ["*"] })).wants(&[], Some("!r")));
    }
}
