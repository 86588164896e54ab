//! Who may see an event of a room's past, by the visibility that was set when it was sent.
//!
//! See "Room history visibility" in the client-server API.

use ruma::events::room::{history_visibility::HistoryVisibility, member::MembershipState};

/// What the rule asks about the state of the room at one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The room's history visibility.
    pub visibility: HistoryVisibility,
    /// The asker's membership; for a server, the one of its users that opens most.
    pub membership: MembershipState,
}

impl Moment {
    /// A moment; a visibility that is not set or not understood is `shared`, and who was never a member has left.
    #[must_use]
    pub fn new(visibility: Option<HistoryVisibility>, membership: Option<MembershipState>) -> Self {
        Self {
            visibility: visibility.unwrap_or(HistoryVisibility::Shared),
            membership: membership.unwrap_or(MembershipState::Leave),
        }
    }

    /// The rule's five lines, for the state at one moment.
    fn shows(&self, joined_later: bool) -> bool {
        let joined = self.membership == MembershipState::Join;
        match self.visibility {
            HistoryVisibility::WorldReadable => true,
            HistoryVisibility::Joined => joined,
            HistoryVisibility::Invited => joined || self.membership == MembershipState::Invite,
            // `shared`, and all that is not understood.
            _ => joined || joined_later,
        }
    }
}

/// Whether the asker may see an event.
///
/// `before` and `after` are the states around it. They differ when it sets the visibility or the asker's own
/// membership; then the more open one counts. `joined_later` says whether the asker has been joined at any time since.
#[must_use]
pub fn may_see(before: &Moment, after: &Moment, joined_later: bool) -> bool {
    before.shows(joined_later) || after.shows(joined_later)
}

#[cfg(test)]
mod tests {
    //! The whole table: four visibilities, five memberships, joined later or not.

    use super::*;

    fn moment(visibility: &str, membership: &str) -> Moment {
        Moment {
            visibility: visibility.into(),
            membership: membership.into(),
        }
    }

    #[test]
    fn the_table() {
        // visibility, membership at the event, seen, seen by who has joined later
        for (visibility, membership, seen, seen_later) in [
            ("world_readable", "join", true, true),
            ("world_readable", "invite", true, true),
            ("world_readable", "knock", true, true),
            ("world_readable", "leave", true, true),
            ("world_readable", "ban", true, true),
            ("shared", "join", true, true),
            ("shared", "invite", false, true),
            ("shared", "knock", false, true),
            ("shared", "leave", false, true),
            ("shared", "ban", false, true),
            ("invited", "join", true, true),
            ("invited", "invite", true, true),
            ("invited", "knock", false, false),
            ("invited", "leave", false, false),
            ("invited", "ban", false, false),
            ("joined", "join", true, true),
            ("joined", "invite", false, false),
            ("joined", "knock", false, false),
            ("joined", "leave", false, false),
            ("joined", "ban", false, false),
            ("org.example.unknown", "leave", false, true),
        ] {
            let moment = moment(visibility, membership);
            assert_eq!(
                may_see(&moment, &moment, false),
                seen,
                "{visibility} {membership}"
            );
            assert_eq!(
                may_see(&moment, &moment, true),
                seen_later,
                "{visibility} {membership} and joined later"
            );
        }
        assert_eq!(Moment::new(None, None), moment("shared", "leave"));
    }

    #[test]
    fn the_more_open_side_of_a_change_counts() {
        for (before, after, seen) in [
            (("world_readable", "leave"), ("joined", "leave"), true),
            (("joined", "leave"), ("world_readable", "leave"), true),
            (("joined", "leave"), ("joined", "join"), true),
            (("joined", "join"), ("joined", "leave"), true),
            (("joined", "join"), ("joined", "ban"), true),
            (("invited", "leave"), ("invited", "invite"), true),
            (("invited", "invite"), ("invited", "leave"), true),
            (("joined", "leave"), ("joined", "invite"), false),
            (("joined", "invite"), ("joined", "leave"), false),
            (("joined", "leave"), ("shared", "leave"), false),
        ] {
            let seen_now = may_see(
                &moment(before.0, before.1),
                &moment(after.0, after.1),
                false,
            );
            assert_eq!(seen_now, seen, "{before:?} -> {after:?}");
        }
    }
}
