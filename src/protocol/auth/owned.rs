//! State that belongs to a user, in the room versions that have it: whose id a state key begins with may write there, and
//! whoever has more power. See MSC3757.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::Event,
};
use serde_json::value::RawValue;

use super::{Denied, PowerLevels};

/// Whether state of this type under this key belongs to somebody. Memberships have rules of their own, and so do the keys
/// of what invites somebody by an address.
#[must_use]
pub fn is_owned(event_type: &TimelineEventType, state_key: &str) -> bool {
    state_key.starts_with('@')
        && !matches!(
            event_type,
            TimelineEventType::RoomCreate
                | TimelineEventType::RoomMember
                | TimelineEventType::RoomThirdPartyInvite
        )
}

/// Whose state it is under a key: of the user who is the key, or with whose id and an underscore it begins.
#[must_use]
pub fn owner(state_key: &str) -> Option<OwnedUserId> {
    let colon = state_key.find(':')?;
    let server = state_key.get(colon..)?;
    let end = server.find('_').unwrap_or(server.len());
    UserId::parse(state_key.get(..colon + end)?).ok()
}

/// Whether `sender` may write state under this key, as far as its owner is concerned.
pub(super) fn check<E: Event>(
    rules: &RoomVersionRules,
    sender: &UserId,
    state_key: &str,
    lookup_state: impl Fn(&StateEventType, &str) -> Option<E>,
) -> Result<(), Denied> {
    let owner = owner(state_key).ok_or_else(|| {
        Denied::new("the state key is no user id, nor one followed by an underscore")
    })?;
    if owner == sender {
        return Ok(());
    }
    let create = lookup_state(&StateEventType::RoomCreate, "")
        .ok_or_else(|| Denied::new("the room has no create event"))?;
    let levels = lookup_state(&StateEventType::RoomPowerLevels, "");
    let power = PowerLevels::new(rules, &create, levels.as_ref())?;
    if power.user(sender) > power.user(&owner) {
        return Ok(());
    }
    Err(Denied::new(format!(
        "the state belongs to {owner}, and the sender does not have more power"
    )))
}

/// An event as if its state key named nobody, for rules that know no owners but the sender.
#[derive(Clone, Copy)]
pub(super) struct Unowned<'e, E>(pub(super) &'e E);

impl<E: Event> Event for Unowned<'_, E> {
    type Id = E::Id;

    fn event_id(&self) -> &Self::Id {
        self.0.event_id()
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.0.room_id()
    }
    fn sender(&self) -> &UserId {
        self.0.sender()
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.0.origin_server_ts()
    }
    fn event_type(&self) -> &TimelineEventType {
        self.0.event_type()
    }
    fn content(&self) -> &RawValue {
        self.0.content()
    }
    fn state_key(&self) -> Option<&str> {
        Some("")
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        self.0.prev_events()
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        self.0.auth_events()
    }
    fn redacts(&self) -> Option<&Self::Id> {
        self.0.redacts()
    }
    fn rejected(&self) -> bool {
        self.0.rejected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_key_is() {
        for (key, expect) in [
            ("@a:x.example", Some("@a:x.example")),
            ("@a:x.example_", Some("@a:x.example")),
            ("@a:x.example_b_c:d", Some("@a:x.example")),
            ("@a_b:x.example:8448_c", Some("@a_b:x.example:8448")),
            ("@a:x.examplec_d", Some("@a:x.examplec")),
            ("@a", None),
            ("@a:", None),
            ("@a_b", None),
            ("@a:x.example@b_c", None),
            ("@a:x.example b", None),
            ("@", None),
        ] {
            assert_eq!(
                owner(key).as_ref().map(|user| user.as_str()),
                expect,
                "{key}"
            );
        }
        let topic = TimelineEventType::RoomTopic;
        assert!(is_owned(&topic, "@a") && !is_owned(&topic, "a@") && !is_owned(&topic, ""));
        assert!(!is_owned(&TimelineEventType::RoomMember, "@a:x.example"));
    }
}
