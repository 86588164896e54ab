//! The one list of room versions that this node serves, and what is different between them.
//!
//! The differences themselves are ruma's [`RoomVersionRules`]; nothing else in the project compares version numbers.
//! See "Room versions" in the specification.

use std::{collections::BTreeMap, sync::LazyLock};

use ruma::{
    RoomVersionId,
    api::client::discovery::get_capabilities::v3::RoomVersionStability,
    room_version_rules::{RoomVersionDisposition, RoomVersionRules},
};

/// The version of new rooms, unless the configuration says otherwise. See "Room versions", default version.
pub const DEFAULT: RoomVersionId = RoomVersionId::V12;

/// The version of a room whose create event does not name one. See `m.room.create`.
pub const UNNAMED: RoomVersionId = RoomVersionId::V1;

/// All served versions of the specification, oldest first.
pub const SUPPORTED: [RoomVersionId; 12] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V3,
    RoomVersionId::V4,
    RoomVersionId::V5,
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// Versions that are tried out, by what they are made from. In their rooms state can belong to a user. See MSC3757.
const OWNED_STATE: [&str; 2] = ["org.matrix.msc3757.10", "org.matrix.msc3757.11"];

static OWNED_STATE_RULES: LazyLock<[RoomVersionRules; 2]> = LazyLock::new(|| {
    [RoomVersionRules::V10, RoomVersionRules::V11].map(|mut rules| {
        rules.disposition = RoomVersionDisposition::Unstable;
        rules
    })
});

/// Whether a state key that begins with a user's id lets others write to that user's state. No other version that is served
/// is unstable.
#[must_use]
pub fn has_owned_state(rules: &RoomVersionRules) -> bool {
    matches!(rules.disposition, RoomVersionDisposition::Unstable)
}

/// All served versions: those of the specification, and those that are tried out.
#[must_use]
pub fn served() -> Vec<RoomVersionId> {
    let tried_out = OWNED_STATE
        .iter()
        .filter_map(|name| RoomVersionId::try_from(*name).ok());
    SUPPORTED.into_iter().chain(tried_out).collect()
}

/// What holds in rooms of `version`, or `None` when this node does not serve it.
#[must_use]
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    Some(match version {
        RoomVersionId::V1 => &RoomVersionRules::V1,
        RoomVersionId::V2 => &RoomVersionRules::V2,
        RoomVersionId::V3 => &RoomVersionRules::V3,
        RoomVersionId::V4 => &RoomVersionRules::V4,
        RoomVersionId::V5 => &RoomVersionRules::V5,
        RoomVersionId::V6 => &RoomVersionRules::V6,
        RoomVersionId::V7 => &RoomVersionRules::V7,
        RoomVersionId::V8 => &RoomVersionRules::V8,
        RoomVersionId::V9 => &RoomVersionRules::V9,
        RoomVersionId::V10 => &RoomVersionRules::V10,
        RoomVersionId::V11 => &RoomVersionRules::V11,
        RoomVersionId::V12 => &RoomVersionRules::V12,
        other => {
            let all = OWNED_STATE.iter().zip(&*OWNED_STATE_RULES);
            let mut named = all.filter(|(name, _)| **name == other.as_str());
            return named.next().map(|(_, rules)| rules);
        }
    })
}

/// Whether the size of this member of an event is counted in characters. Servers have always done that with types and
/// state keys, so old rooms have such events; since room version 11 all count bytes.
#[must_use]
pub fn counts_characters(rules: &RoomVersionRules, member: &str) -> bool {
    // What came with that version as well.
    let is_before_11 = !rules.authorization.use_room_create_sender;
    is_before_11 && (member == "type" || member == "state_key")
}

/// The served versions as clients are told them. See "Capabilities negotiation", `m.room_versions`.
#[must_use]
pub fn available() -> BTreeMap<RoomVersionId, RoomVersionStability> {
    let stability = |version: &RoomVersionId| match rules(version) {
        Some(rules) if has_owned_state(rules) => RoomVersionStability::Unstable,
        _ => RoomVersionStability::Stable,
    };
    served()
        .into_iter()
        .map(|version| (version.clone(), stability(&version)))
        .collect()
}

#[cfg(test)]
mod tests {
    //! The table is complete, and ruma's rules are the ones of the version.

    use super::*;

    #[test]
    fn every_supported_version_has_the_rules_ruma_gives_it() {
        for version in SUPPORTED {
            let ours = rules(&version).expect("a supported version has rules");
            let theirs = version.rules().expect("ruma knows the version");
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{version}");
        }
        assert_eq!(available().len(), SUPPORTED.len() + 2);
        assert!(rules(&DEFAULT).is_some() && rules(&UNNAMED).is_some());
    }

    #[test]
    fn versions_with_owned_state_are_their_origins_but_for_that() {
        for (name, origin) in [
            ("org.matrix.msc3757.10", RoomVersionId::V10),
            ("org.matrix.msc3757.11", RoomVersionId::V11),
        ] {
            let version = RoomVersionId::try_from(name).expect("a version name");
            let mut ours = rules(&version).expect("it is served").clone();
            assert!(has_owned_state(&ours) && !has_owned_state(rules(&origin).expect("served")));
            assert_eq!(available()[&version], RoomVersionStability::Unstable);
            ours.disposition = RoomVersionDisposition::Stable;
            let origin = origin.rules().expect("ruma knows the version");
            assert_eq!(format!("{ours:?}"), format!("{origin:?}"));
        }
    }

    #[test]
    fn other_versions_are_not_served() {
        for name in ["0", "13", "org.matrix.msc2870", "v1"] {
            let version =
                RoomVersionId::try_from(name).expect("a version name may be any short text");
            assert!(rules(&version).is_none(), "{name}");
        }
    }
}
