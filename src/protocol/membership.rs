//! What a change of membership means: who enters, who leaves, who was asked, and when it is only a new name.
//!
//! See "Room membership" in the client-server API.

use ruma::{UserId, events::room::member::MembershipState};

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Joined, by whatever way.
    Entered,
    /// Joined again while joined: at most the name, the picture or the reason is new.
    Profile,
    /// Invited.
    Invited,
    /// Asked to be let in.
    Knocked,
    /// Went by themselves.
    Left,
    /// Was made to go.
    Kicked,
    /// Was banned, from wherever they were.
    Banned,
    /// May come back, but is not in the room.
    Unbanned,
    /// Declined an invitation.
    DeclinedInvite,
    /// An invitation was taken back.
    RevokedInvite,
    /// Took a knock back.
    RevokedKnock,
    /// A knock was turned down.
    DeniedKnock,
    /// Still out, still invited, still knocking or still banned.
    Nothing,
}

impl Change {
    /// Whether the room has one more joined member now.
    #[must_use]
    pub fn enters(self) -> bool {
        self == Self::Entered
    }
}

/// What it means that `target`, who was `before` in the room, is `after` by an event of `sender`.
///
/// Whoever was never a member counts as having left. A membership that nobody knows changes nothing.
#[must_use]
pub fn change(
    sender: &UserId,
    target: &UserId,
    before: &MembershipState,
    after: &MembershipState,
) -> Change {
    use MembershipState::{Ban, Invite, Join, Knock, Leave};
    let by_self = sender == target;
    match (before, after) {
        (Join, Join) => Change::Profile,
        (_, Join) => Change::Entered,
        (Ban, Ban) | (Invite, Invite) | (Knock, Knock) => Change::Nothing,
        (_, Ban) => Change::Banned,
        (_, Invite) => Change::Invited,
        (_, Knock) => Change::Knocked,
        (Join, Leave) if by_self => Change::Left,
        (Join, Leave) => Change::Kicked,
        (Ban, Leave) => Change::Unbanned,
        (Invite, Leave) if by_self => Change::DeclinedInvite,
        (Invite, Leave) => Change::RevokedInvite,
        (Knock, Leave) if by_self => Change::RevokedKnock,
        (Knock, Leave) => Change::DeniedKnock,
        _ => Change::Nothing,
    }
}

/// Whether the change takes a joined member from the room.
#[must_use]
pub fn exits(before: &MembershipState, after: &MembershipState) -> bool {
    *before == MembershipState::Join && *after != MembershipState::Join
}

#[cfg(test)]
mod tests {
    //! Every pair of memberships, by the user and by another one.

    use ruma::user_id;

    use super::*;

    #[test]
    fn every_pair() {
        use Change::{
            Banned, DeclinedInvite, DeniedKnock, Entered, Invited, Kicked, Knocked, Left, Nothing,
            Profile, RevokedInvite, RevokedKnock, Unbanned,
        };
        // before, after, by the user, by another user
        for (before, after, own, other) in [
            ("leave", "join", Entered, Entered),
            ("leave", "invite", Invited, Invited),
            ("leave", "knock", Knocked, Knocked),
            ("leave", "leave", Nothing, Nothing),
            ("leave", "ban", Banned, Banned),
            ("invite", "join", Entered, Entered),
            ("invite", "invite", Nothing, Nothing),
            ("invite", "knock", Knocked, Knocked),
            ("invite", "leave", DeclinedInvite, RevokedInvite),
            ("invite", "ban", Banned, Banned),
            ("join", "join", Profile, Profile),
            ("join", "invite", Invited, Invited),
            ("join", "knock", Knocked, Knocked),
            ("join", "leave", Left, Kicked),
            ("join", "ban", Banned, Banned),
            ("knock", "join", Entered, Entered),
            ("knock", "invite", Invited, Invited),
            ("knock", "knock", Nothing, Nothing),
            ("knock", "leave", RevokedKnock, DeniedKnock),
            ("knock", "ban", Banned, Banned),
            ("ban", "join", Entered, Entered),
            ("ban", "invite", Invited, Invited),
            ("ban", "knock", Knocked, Knocked),
            ("ban", "leave", Unbanned, Unbanned),
            ("ban", "ban", Nothing, Nothing),
            ("join", "org.example.other", Nothing, Nothing),
        ] {
            let (a, b) = (user_id!("@a:example.org"), user_id!("@b:example.org"));
            let (before, after) = (before.into(), after.into());
            assert_eq!(change(a, a, &before, &after), own, "{before} -> {after}");
            assert_eq!(
                change(b, a, &before, &after),
                other,
                "{before} -> {after} by another"
            );
            assert_eq!(
                own.enters(),
                before != MembershipState::Join && after == MembershipState::Join
            );
            assert_eq!(
                exits(&before, &after),
                before == MembershipState::Join && after != MembershipState::Join
            );
        }
    }
}
