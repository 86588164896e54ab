//! What a room is called when nobody has named it, and the little that is told of it to those outside.
//!
//! See "Calculating the display name for a room", the `summary` of /sync, and "Stripped state" in the client-server API.

use ruma::{
    UserId,
    events::{StateEventType, room::member::MembershipState},
};

/// The most members that stand for a room's name.
pub const MAX_HEROES: usize = 5;

/// The state that tells those outside what room this is, besides the create event and their own member event.
///
/// See "Stripped state".
pub const STRIPPED_STATE: [StateEventType; 7] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
];

/// The state events to tell someone who was invited or who knocks, in order: the room's own, then the members given.
///
/// `members` are the asker and whoever invited them.
pub fn stripped_state<'a>(
    members: &'a [&'a UserId],
) -> impl Iterator<Item = (StateEventType, &'a str)> {
    let room = STRIPPED_STATE
        .into_iter()
        .map(|event_type| (event_type, ""));
    room.chain(
        members
            .iter()
            .enumerate()
            .filter_map(move |(index, member)| {
                // Someone may have invited themselves to be sure.
                let first = members.iter().position(|other| other == member) == Some(index);
                first.then_some((StateEventType::RoomMember, member.as_str()))
            }),
    )
}

/// The members by which an unnamed room is called: the first five others who are joined or invited, or when there is
/// nobody, the first five who have left or are banned.
///
/// `members` come in stream order.
pub fn heroes<'a>(
    asker: &UserId,
    members: impl IntoIterator<Item = (&'a UserId, &'a MembershipState)>,
) -> Vec<&'a UserId> {
    let (mut present, mut gone) = (Vec::new(), Vec::new());
    for (member, membership) in members {
        let list = match membership {
            _ if member == asker => continue,
            MembershipState::Join | MembershipState::Invite => &mut present,
            MembershipState::Leave | MembershipState::Ban => &mut gone,
            _ => continue,
        };
        if list.len() < MAX_HEROES {
            list.push(member);
        }
        if present.len() == MAX_HEROES {
            break;
        }
    }
    if present.is_empty() { gone } else { present }
}

/// How many are in a room and how many are asked to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With membership `join`, the asker among them.
    pub joined: u64,
    /// With membership `invite`.
    pub invited: u64,
}

impl Counts {
    /// The counts after one member has changed.
    #[must_use]
    pub fn after(self, before: &MembershipState, after: &MembershipState) -> Self {
        let moved = |count: u64, kind: &MembershipState| match (before == kind, after == kind) {
            (false, true) => count.saturating_add(1),
            (true, false) => count.saturating_sub(1),
            _ => count,
        };
        Self {
            joined: moved(self.joined, &MembershipState::Join),
            invited: moved(self.invited, &MembershipState::Invite),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Heroes, counts and stripped state by small rooms.

    use ruma::{OwnedUserId, user_id};

    use super::*;

    fn names(asker: &str, members: &str) -> String {
        let user =
            |name: &str| OwnedUserId::try_from(format!("@{name}:example.org")).expect("a user id");
        let members: Vec<_> = members
            .split_whitespace()
            .map(|member| member.split_once('=').expect("name=membership"))
            .map(|(name, membership)| (user(name), MembershipState::from(membership)))
            .collect();
        let asker = user(asker);
        let heroes = heroes(
            &asker,
            members
                .iter()
                .map(|(user, membership)| (&**user, membership)),
        );
        heroes
            .iter()
            .map(|user| user.localpart())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn heroes_are_the_first_five_others() {
        for (members, expect) in [
            ("", ""),
            ("me=join", ""),
            ("me=join a=join", "a"),
            ("b=invite me=join a=join", "b a"),
            (
                "a=join b=join c=join d=invite e=join f=join me=join",
                "a b c d e",
            ),
            ("a=leave me=join b=ban", "a b"),
            ("a=leave me=join b=join", "b"),
            ("a=knock me=join", ""),
            (
                "a=leave b=leave c=leave d=leave e=leave f=leave",
                "a b c d e",
            ),
        ] {
            assert_eq!(names("me", members), expect, "{members}");
        }
    }

    #[test]
    fn counts_follow_memberships() {
        let mut counts = Counts::default();
        for (before, after, expect) in [
            ("leave", "join", (1, 0)),
            ("leave", "invite", (1, 1)),
            ("invite", "join", (2, 0)),
            ("join", "join", (2, 0)),
            ("join", "ban", (1, 0)),
            ("ban", "leave", (1, 0)),
            ("join", "leave", (0, 0)),
            ("join", "leave", (0, 0)),
        ] {
            counts = counts.after(&before.into(), &after.into());
            assert_eq!(
                (counts.joined, counts.invited),
                expect,
                "{before} -> {after}"
            );
        }
    }

    #[test]
    fn stripped_state_begins_with_the_room_and_names_nobody_twice() {
        let (me, other) = (user_id!("@me:example.org"), user_id!("@other:example.org"));
        let members = [me, other, me];
        let keys: Vec<_> = stripped_state(&members).collect();
        assert_eq!(keys.first(), Some(&(StateEventType::RoomCreate, "")));
        assert_eq!(keys.len(), STRIPPED_STATE.len() + 2);
        assert!(keys.contains(&(StateEventType::RoomMember, me.as_str())));
        assert!(keys.contains(&(StateEventType::RoomMember, other.as_str())));
    }
}
