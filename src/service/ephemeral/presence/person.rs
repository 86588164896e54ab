//! One person: what their apps say and what they have done, and what that makes of them.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use ruma::{UserId, presence::PresenceState};

use crate::{
    protocol::{
        format::push_string,
        ids::{Position, RoomNid},
    },
    store::schema::PresenceRow,
};

/// A device is gone this long after its last sync, in milliseconds.
const GONE: u64 = 30 * 1000;

/// Who has done nothing for this long is not at hand, in milliseconds.
const IDLE: u64 = 5 * 60 * 1000;

/// Who did something within this time is said to be active now, in milliseconds.
const ACTIVE: u64 = 60 * 1000;

/// A user of another server of whom it has said nothing for this long is gone, in milliseconds. Synapse repeats it every
/// 25 minutes.
const FORGOTTEN: u64 = 30 * 60 * 1000;

/// One user.
#[derive(Default)]
pub(super) struct Person {
    pub(super) state: State,
    pub(super) status_msg: Option<String>,
    pub(super) last_active: u64,
    pub(super) devices: HashMap<Option<String>, Device>,
    /// What their own server says, if that is another one.
    pub(super) elsewhere: Option<Elsewhere>,
    /// When others were told the last time.
    pub(super) told: Position,
    /// The rooms at that time, to see quickly who may know.
    pub(super) rooms: Arc<HashSet<RoomNid>>,
}

/// What another server says of its user.
pub(super) struct Elsewhere {
    pub(super) state: State,
    /// When.
    pub(super) said: u64,
}

/// What one app says.
#[derive(Default)]
pub(super) struct Device {
    pub(super) state: State,
    /// What its syncs say; a change of it counts, its repetition does not.
    pub(super) by_sync: Option<State>,
    /// How many of its syncs are going on.
    pub(super) syncs: usize,
    /// When it was heard of the last time.
    pub(super) seen: u64,
}

/// From the least to the most present.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    #[default]
    Offline,
    Unavailable,
    Online,
}

/// What others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether they are there.
    pub state: PresenceState,
    /// What they say about it.
    pub status_msg: Option<String>,
    /// How long they have done nothing, in milliseconds; none if that is not known.
    pub last_active_ago: Option<u64>,
    /// Whether they are doing something right now.
    pub currently_active: bool,
}

impl Device {
    pub(super) fn is_gone(&self, now: u64) -> bool {
        self.syncs == 0 && now.saturating_sub(self.seen) >= GONE
    }
}

impl Person {
    /// Somebody who has not been there since the node was started.
    pub(super) fn known(row: PresenceRow) -> Self {
        Self {
            status_msg: row.status_msg,
            last_active: row.last_active_ts,
            ..Self::default()
        }
    }

    /// Works out how they are now; true if that is something new.
    pub(super) fn judge(&mut self, now: u64) -> bool {
        self.devices.retain(|_, device| !device.is_gone(now));
        let most = self.devices.values().map(|device| device.state).max();
        let mut state = most.unwrap_or_default();
        if let Some(elsewhere) = &self.elsewhere {
            // Their own server knows best who is idle.
            let is_current = now.saturating_sub(elsewhere.said) < FORGOTTEN;
            state = if is_current {
                elsewhere.state
            } else {
                State::Offline
            };
        } else if now.saturating_sub(self.last_active) >= IDLE {
            state = state.min(State::Unavailable);
        }
        std::mem::replace(&mut self.state, state) != state
    }

    pub(super) fn status(&self, now: u64) -> Status {
        let ago = now.saturating_sub(self.last_active);
        Status {
            state: self.state.name().into(),
            status_msg: self.status_msg.clone(),
            last_active_ago: (self.last_active > 0).then_some(ago),
            currently_active: self.state == State::Online && ago < ACTIVE,
        }
    }
}

impl State {
    /// What is said in words; none if we do not know the word.
    pub(super) fn said(state: &PresenceState) -> Option<Self> {
        match state {
            PresenceState::Offline => Some(Self::Offline),
            PresenceState::Unavailable => Some(Self::Unavailable),
            PresenceState::Online => Some(Self::Online),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Unavailable => "unavailable",
            Self::Online => "online",
        }
    }
}

impl Status {
    /// The `m.presence` event.
    pub(super) fn event(&self, user: &UserId) -> String {
        let mut out = String::from("{\"type\":\"m.presence\",\"sender\":");
        push_string(&mut out, user.as_str());
        out.push_str(",\"content\":{");
        self.members(&mut out);
        out.push_str("}}");
        out
    }

    /// What other servers are told. See "Presence" in the server-server API.
    pub(super) fn update(&self, user: &UserId) -> String {
        let mut out = String::from("{\"user_id\":");
        push_string(&mut out, user.as_str());
        out.push(',');
        self.members(&mut out);
        // There it has to be said.
        if self.last_active_ago.is_none() {
            out.push_str(",\"last_active_ago\":0");
        }
        out.push('}');
        out
    }

    fn members(&self, out: &mut String) {
        let _ = write!(
            out,
            "\"presence\":\"{}\",\"currently_active\":{}",
            self.state, self.currently_active
        );
        if let Some(ago) = self.last_active_ago {
            let _ = write!(out, ",\"last_active_ago\":{ago}");
        }
        if let Some(text) = &self.status_msg {
            out.push_str(",\"status_msg\":");
            push_string(out, text);
        }
    }
}
