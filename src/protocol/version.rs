//! The one list of room versions that this node serves, and what is different between them.
//!
//! The differences themselves are ruma's [`RoomVersionRules`]; nothing else in the project compares version numbers.
//! See "Room versions" in the specification.

use std::collections::BTreeMap;

use ruma::{
    RoomVersionId, api::client::discovery::get_capabilities::v3::RoomVersionStability,
    room_version_rules::RoomVersionRules,
};

/// The version of new rooms, unless the configuration says otherwise. See "Room versions", default version.
pub const DEFAULT: RoomVersionId = RoomVersionId::V12;

/// The version of a room whose create event does not name one. See `m.room.create`.
pub const UNNAMED: RoomVersionId = RoomVersionId::V1;

/// All served versions, oldest first.
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
        _ => return None,
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
    SUPPORTED
        .into_iter()
        .map(|version| (version, RoomVersionStability::Stable))
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
        assert_eq!(available().len(), SUPPORTED.len());
        assert!(rules(&DEFAULT).is_some() && rules(&UNNAMED).is_some());
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
