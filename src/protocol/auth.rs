//! Whether an event is allowed: which events it must cite, the checks themselves, and who has what power.
//!
//! The checks are ruma's; this file asks for them in the order in which the specification does, closes their gaps, and
//! answers the one question of every sent message without them. See "Authorization rules" of each room version.

use std::collections::{HashMap, HashSet};

use ruma::{
    EventId, OwnedServerName, OwnedUserId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{AuthorizationRules, RoomVersionRules},
    state_res::{
        self, auth_types_for_event, check_state_dependent_auth_rules,
        check_state_independent_auth_rules,
        events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
    },
};
use serde_json::value::RawValue;

use super::{integrity::create_of_room_id, version};

pub mod owned;

/// Who may send `@room` when the power levels do not say. See `m.room.power_levels`, `notifications`.
const DEFAULT_NOTIFY_ROOM: i64 = 50;

/// Why an event is not allowed, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Denied {
    /// The rule that it breaks.
    pub rule: String,
}

impl Denied {
    fn new(rule: impl Into<String>) -> Self {
        Self { rule: rule.into() }
    }
}

impl From<String> for Denied {
    fn from(rule: String) -> Self {
        Self { rule }
    }
}

/// The state that an event must cite in `auth_events`, as far as the room has it.
///
/// See "Auth events selection" in the server-server API.
///
/// # Errors
/// When the event is malformed in a way that leaves open what it must cite.
pub fn auth_types(
    rules: &RoomVersionRules,
    event_type: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
) -> Result<Vec<(StateEventType, String)>, Denied> {
    Ok(auth_types_for_event(
        event_type,
        sender,
        state_key,
        content,
        &rules.authorization,
    )?)
}

/// All checks of one event: those of the event and its citations, then those against a state.
///
/// # Errors
/// When a rule is broken.
pub fn check<E: state_res::Event>(
    rules: &RoomVersionRules,
    event: &impl state_res::Event,
    lookup_state: impl Fn(&StateEventType, &str) -> Option<E>,
    lookup_event: impl Fn(&EventId) -> Option<E>,
) -> Result<(), Denied> {
    check_citations(rules, event, lookup_event)?;
    check_against(rules, event, lookup_state)
}

/// The checks that need no state: what the event cites, and for a create event what it says.
///
/// `lookup_event` finds the events that it cites, and in room version 12 the create event as well.
///
/// # Errors
/// When a rule is broken.
pub fn check_citations<E: state_res::Event>(
    rules: &RoomVersionRules,
    event: &impl state_res::Event,
    lookup_event: impl Fn(&EventId) -> Option<E>,
) -> Result<(), Denied> {
    if *event.event_type() == TimelineEventType::RoomCreate {
        check_version(event)?;
    } else if rules.authorization.room_create_event_id_as_room_id {
        // ruma looks the room's event up, but not at what kind of event it is.
        let create = event
            .room_id()
            .and_then(create_of_room_id)
            .and_then(|id| lookup_event(&id));
        if create.is_none_or(|create| *create.event_type() != TimelineEventType::RoomCreate) {
            return Err(Denied::new("the room id does not name a create event"));
        }
    }
    Ok(check_state_independent_auth_rules(
        &rules.authorization,
        event,
        lookup_event,
    )?)
}

/// The checks against a state: that of the auth events, that before the event, or the current one.
///
/// # Errors
/// When a rule is broken.
pub fn check_against<E: state_res::Event>(
    rules: &RoomVersionRules,
    event: &impl state_res::Event,
    lookup_state: impl Fn(&StateEventType, &str) -> Option<E>,
) -> Result<(), Denied> {
    let key = event.state_key().unwrap_or_default();
    if version::has_owned_state(rules)
        && owned::is_owned(event.event_type(), key)
        && key != event.sender().as_str()
    {
        owned::check(rules, event.sender(), key, &lookup_state)?;
        let event = owned::Unowned(event);
        let rules = &rules.authorization;
        return Ok(check_state_dependent_auth_rules(
            rules,
            event,
            lookup_state,
        )?);
    }
    Ok(check_state_dependent_auth_rules(
        &rules.authorization,
        event,
        lookup_state,
    )?)
}

/// A room of a version that nobody here knows must not be created. See rule 1 of the authorization rules.
fn check_version(create: &impl state_res::Event) -> Result<(), Denied> {
    let version = RoomCreateEvent::new(create).room_version()?;
    match version::rules(&version) {
        Some(_) => Ok(()),
        None => Err(Denied::new(format!(
            "room version `{version}` is not served"
        ))),
    }
}

/// The power of a user: a number, or more than any number for the creators of rooms of version 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Power {
    /// As the power levels say.
    Level(i64),
    /// That of a creator from room version 12.
    Infinite,
}

impl Power {
    /// Whether this is enough where `level` is needed.
    #[must_use]
    pub fn reaches(self, level: i64) -> bool {
        self >= Self::Level(level)
    }
}

/// A room's power levels, read once to be asked often. See `m.room.power_levels` in the client-server API.
#[derive(Clone, Debug)]
pub struct PowerLevels {
    creators: HashSet<OwnedUserId>,
    creators_are_privileged: bool,
    closed_to_others_than: Option<OwnedServerName>,
    /// `None` when the room has no power levels event, where the creator stands above the others.
    users: Option<HashMap<OwnedUserId, i64>>,
    users_default: i64,
    events: HashMap<TimelineEventType, i64>,
    events_default: i64,
    state_default: i64,
    /// Needed to ban and to unban.
    pub ban: i64,
    /// Needed to kick.
    pub kick: i64,
    /// Needed to invite.
    pub invite: i64,
    /// Needed to redact events of others.
    pub redact: i64,
    /// Needed to notify the whole room.
    pub notify_room: i64,
}

impl PowerLevels {
    /// Reads the power levels of a room from its create event and, if it has one, its power levels event.
    ///
    /// # Errors
    /// When one of them is malformed, in which case the authorization rules let nobody do anything.
    pub fn new<E: state_res::Event>(
        rules: &RoomVersionRules,
        create: &E,
        power_levels: Option<&E>,
    ) -> Result<Self, Denied> {
        let rules = &rules.authorization;
        let create = RoomCreateEvent::new(create);
        let event = power_levels.map(RoomPowerLevelsEvent::new);
        let event = event.as_ref();
        let level = |field: RoomPowerLevelsIntField| {
            let set = event
                .map(|event| event.get_as_int(field, rules))
                .transpose()?
                .flatten();
            Ok::<_, Denied>(i64::from(set.unwrap_or_else(|| field.default_value())))
        };
        let users = match event {
            Some(event) => Some(numbers(event.users(rules)?.into_iter().flatten())),
            None => None,
        };
        let events = match event {
            Some(event) => numbers(event.events(rules)?.iter().flatten()),
            None => HashMap::new(),
        };
        let notify_room = match event {
            Some(event) => event
                .notifications(rules)?
                .and_then(|levels| levels.get("room").copied())
                .map(i64::from),
            None => None,
        };
        Ok(Self {
            closed_to_others_than: (!create.federate()?)
                .then(|| create.sender().server_name().to_owned()),
            creators: create.creators(rules)?,
            creators_are_privileged: rules.explicitly_privilege_room_creators,
            users,
            users_default: level(RoomPowerLevelsIntField::UsersDefault)?,
            events,
            events_default: level(RoomPowerLevelsIntField::EventsDefault)?,
            state_default: level(RoomPowerLevelsIntField::StateDefault)?,
            ban: level(RoomPowerLevelsIntField::Ban)?,
            kick: level(RoomPowerLevelsIntField::Kick)?,
            invite: level(RoomPowerLevelsIntField::Invite)?,
            redact: level(RoomPowerLevelsIntField::Redact)?,
            notify_room: notify_room.unwrap_or(DEFAULT_NOTIFY_ROOM),
        })
    }

    /// The power that `user` has.
    #[must_use]
    pub fn user(&self, user: &UserId) -> Power {
        match &self.users {
            _ if self.creators_are_privileged && self.creators.contains(user) => Power::Infinite,
            Some(users) => Power::Level(users.get(user).copied().unwrap_or(self.users_default)),
            None if self.creators.contains(user) => Power::Level(100),
            None => Power::Level(self.users_default),
        }
    }

    /// The level needed to send events of this type.
    #[must_use]
    pub fn needed(&self, event_type: &TimelineEventType, is_state: bool) -> i64 {
        let default = if is_state {
            self.state_default
        } else {
            self.events_default
        };
        self.events.get(event_type).copied().unwrap_or(default)
    }

    /// Whether `user` has the power to send events of this type.
    #[must_use]
    pub fn may_send(&self, user: &UserId, event_type: &TimelineEventType, is_state: bool) -> bool {
        self.user(user).reaches(self.needed(event_type, is_state))
    }

    /// Whether a client of `user` may ask to redact the events of `author`. See "Redactions" in the client-server API.
    #[must_use]
    pub fn may_redact(&self, user: &UserId, author: &UserId) -> bool {
        self.may_send(user, &TimelineEventType::RoomRedaction, false)
            && (user == author || self.user(user).reaches(self.redact))
    }

    /// Whether an accepted redaction by `user` takes effect on an event of `author`: servers answer for their own
    /// users. See "Handling redactions" of room version 3.
    #[must_use]
    pub fn redaction_applies(&self, user: &UserId, author: &UserId) -> bool {
        user.server_name() == author.server_name() || self.user(user).reaches(self.redact)
    }

    /// Whether `user` has the power to invite.
    #[must_use]
    pub fn may_invite(&self, user: &UserId) -> bool {
        self.user(user).reaches(self.invite)
    }

    /// Whether `user` has the power to kick `target`.
    #[must_use]
    pub fn may_kick(&self, user: &UserId, target: &UserId) -> bool {
        self.user(user).reaches(self.kick) && self.user(target) < self.user(user)
    }

    /// Whether `user` has the power to ban `target`.
    #[must_use]
    pub fn may_ban(&self, user: &UserId, target: &UserId) -> bool {
        self.user(user).reaches(self.ban) && self.user(target) < self.user(user)
    }

    /// Whether `user` has the power to notify the whole room.
    #[must_use]
    pub fn may_notify_room(&self, user: &UserId) -> bool {
        self.user(user).reaches(self.notify_room)
    }

    /// The creators of the room, for versions before 12 just the one.
    pub fn creators(&self) -> impl Iterator<Item = &UserId> {
        self.creators.iter().map(|user| &**user)
    }

    /// What [`check_against`] says about a message event, without looking at the state.
    ///
    /// `None` when more than membership and power decide about events of this type.
    #[must_use]
    pub fn check_message(
        &self,
        rules: &AuthorizationRules,
        sender: &UserId,
        sender_is_joined: bool,
        event_type: &TimelineEventType,
    ) -> Option<Result<(), Denied>> {
        match event_type {
            TimelineEventType::RoomCreate
            | TimelineEventType::RoomMember
            | TimelineEventType::RoomPowerLevels
            | TimelineEventType::RoomThirdPartyInvite => return None,
            TimelineEventType::RoomRedaction if rules.special_case_room_redaction => return None,
            other if rules.special_case_room_aliases && other.to_string() == "m.room.aliases" => {
                return None;
            }
            _ => {}
        }
        Some(
            if self
                .closed_to_others_than
                .as_ref()
                .is_some_and(|server| server != sender.server_name())
            {
                Err(Denied::new(
                    "the room is not federated and the sender is on another server than its creator",
                ))
            } else if !sender_is_joined {
                Err(Denied::new("the sender is not joined"))
            } else if !self.may_send(sender, event_type, false) {
                Err(Denied::new(format!(
                    "the sender does not have the power to send `{event_type}`"
                )))
            } else {
                Ok(())
            },
        )
    }
}

fn numbers<'a, K, S>(entries: impl Iterator<Item = (&'a K, &'a js_int::Int)>) -> HashMap<K, i64, S>
where
    K: Clone + Eq + std::hash::Hash + 'a,
    S: std::hash::BuildHasher + Default,
{
    entries
        .map(|(key, level)| (key.clone(), i64::from(*level)))
        .collect()
}

#[cfg(test)]
mod tests;
