//! The side of the server in the room: templates, and what others make of them. See "Joining Rooms", "Knocking upon a
//! room" and "Leaving Rooms (Rejecting Invites)" in the server-server API.

use std::collections::HashSet;

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedUserId, RoomId, RoomVersionId,
    ServerName, UserId, events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};

use super::{
    super::serve::push_events, Expected, Federation, malformed, read_member, rules_of, wanted,
};
use crate::{
    error::{Error, Result},
    protocol::{
        format::{federation, push_string},
        ids::EventNid,
        ingest::{self, Need, Pdu, Received},
        integrity::{self, canonical},
    },
    service::{
        limits::Kind,
        rooms::{Before, Door, Outcome, RoomHead, Told},
    },
};

/// The member of a content that says who has let somebody in.
const AUTHORISED_BY: &str = "join_authorised_via_users_server";

impl Federation {
    /// A template of a member event by which a user of another server joins, knocks or leaves. `versions` are those
    /// that their server knows; none where it does not say.
    ///
    /// # Errors
    /// 400 M_INCOMPATIBLE_ROOM_VERSION, M_UNABLE_TO_AUTHORISE_JOIN or M_UNABLE_TO_GRANT_JOIN; 403 M_FORBIDDEN when the
    /// room does not allow it; 404 M_NOT_FOUND when nobody here is in the room.
    pub async fn template(
        &self,
        origin: &ServerName,
        (room, user): (&RoomId, &UserId),
        membership: &MembershipState,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<String> {
        if user.server_name() != origin {
            return Err(Error::forbidden(format!(
                "{user} is not a user of {origin}"
            )));
        }
        let rooms = &self.0.rooms;
        let mut guard = rooms.lock_as_resident(room, origin).await?;
        let head = guard.head();
        let version = head.row.version.clone();
        if versions.is_some_and(|versions| !versions.contains(&version)) {
            return Err(super::incompatible(&version));
        }
        let mut content = CanonicalJsonObject::new();
        content.insert("membership".to_owned(), membership.to_string().into());
        if *membership == MembershipState::Join
            && let Some(by) = self.let_in(head, user)?
        {
            content.insert(AUTHORISED_BY.to_owned(), by.to_string().into());
        }
        let event = rooms.member_event(head, (user, user), content)?;
        drop(guard);
        let object = event.to_canonical();
        let mut object = object.map_err(|e| Error::Internal(e.to_string()))?;
        for ours in ["hashes", "signatures", "event_id"] {
            object.remove(ours);
        }
        let mut out = "{\"event\":".to_owned();
        out.push_str(&canonical(&object));
        out.push_str(",\"room_version\":");
        push_string(&mut out, version.as_str());
        out.push('}');
        Ok(out)
    }

    /// Takes a join into the room. The answer is that of `/v2/send_join`.
    ///
    /// # Errors
    /// 400 when it is not the event that belongs there, 403 when the room does not allow it, 404 when nobody here is in
    /// the room.
    pub async fn take_join(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        text: &str,
        omit_members: bool,
    ) -> Result<String> {
        let expected = Expected::of(origin, (room, id), MembershipState::Join);
        let pdu = self.take(&expected, text).await?;
        let permit = self.0.handshakes.answers.acquire().await;
        let _permit = permit.map_err(|e| Error::Internal(e.to_string()))?;
        let federation = self.clone();
        let (room, origin) = (room.to_owned(), origin.to_owned());
        let answer = tokio::task::spawn_blocking(move || {
            federation.join_answer(&room, &origin, &pdu, omit_members)
        });
        answer
            .await
            .map_err(|error| Error::Internal(format!("an answer broke off: {error}")))?
    }

    /// Takes a leave into the room.
    ///
    /// # Errors
    /// As [`take_join`](Self::take_join).
    pub async fn take_leave(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        text: &str,
    ) -> Result<()> {
        let expected = Expected::of(origin, (room, id), MembershipState::Leave);
        self.take(&expected, text).await.map(drop)
    }

    /// Takes a knock into the room. The answer is that of `/send_knock`.
    ///
    /// # Errors
    /// As [`take_join`](Self::take_join).
    pub async fn take_knock(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        text: &str,
    ) -> Result<String> {
        let expected = Expected::of(origin, (room, id), MembershipState::Knock);
        let pdu = self.take(&expected, text).await?;
        let rooms = &self.0.rooms;
        let mut guard = rooms.lock_as_resident(room, origin).await?;
        let events = rooms.introduction(guard.head(), &pdu.event.header.sender)?;
        drop(guard);
        Ok(format!("{{\"knock_room_state\":[{}]}}", events.join(",")))
    }

    /// Checks a member event that another server has made of a template, writes it, and waits until it is safe.
    async fn take(&self, expected: &Expected<'_>, text: &str) -> Result<Pdu> {
        let (rooms, store) = (&self.0.rooms, &self.0.store);
        let &Expected { origin, room, .. } = expected;
        // Whoever may not ask must not make us fetch keys.
        let mut guard = rooms.lock_as_resident(room, origin).await?;
        let rules = guard.head().rules;
        let mut received = read_member(text, rules, expected)?;
        let limits = &self.0.handshakes.limits;
        limits.check(Kind::Join, received.event().header.sender.as_str())?;
        // One that has come already, as its answer was lost, is not held against the state that it has made.
        let is_known = |id: &EventId| -> Result<bool> {
            let stored = rooms.find_event(&store.latest(), id)?;
            Ok(stored.is_some_and(|stored| stored.has_state()))
        };
        let is_new = !is_known(expected.id)?;
        if is_new {
            rooms.check_now(guard.head(), received.event())?;
        }
        if expected.membership == MembershipState::Join {
            received = self.sign_for(guard.head(), received, rules, is_new)?;
        }
        drop(guard);
        let pdu = self.verify_one(received, rules).await?;
        let mut pdu = pdu.map_err(|dropped| malformed(&dropped))?;

        let mut guard = rooms.lock_as_resident(room, origin).await?;
        let mut outcome;
        loop {
            let head = guard.head();
            if !is_known(expected.id)? {
                // The room may have changed while the keys were fetched.
                rooms.check_now(head, &pdu.event)?;
            }
            outcome = rooms.accept(head, &pdu, Before::Previous)?;
            let Outcome::Needs(Need::Recommendation(server)) = &outcome else {
                break;
            };
            // Whoever is outside can not know whom to ask.
            drop(guard);
            pdu = self.recommended(server, &pdu.event, rules).await?;
            guard = rooms.lock_as_resident(room, origin).await?;
        }
        if outcome == Outcome::Known {
            // Sent twice, as the answer has not come through.
            let stored = rooms.find_event(&store.latest(), &pdu.event.header.id)?;
            if stored.is_none_or(|stored| !stored.has_state() || stored.event.header.flags.rejected)
            {
                return Err(Error::forbidden("The event was rejected"));
            }
        }
        wanted(outcome)?;
        drop(guard);
        store.durable(store.latest().position()).await?;
        Ok(pdu)
    }

    /// Who lets a user of another server in, if the room is restricted and they need somebody.
    fn let_in(&self, head: &RoomHead, user: &UserId) -> Result<Option<OwnedUserId>> {
        let rooms = &self.0.rooms;
        let before = rooms.membership_now(head.nid, user)?;
        let unable = |errcode, problem: &str| {
            let status = StatusCode::BAD_REQUEST;
            Err(Error::api(status, errcode, problem))
        };
        match rooms.door(head, user, &before)? {
            Door::Ordinary => Ok(None),
            Door::By(by) => Ok(Some(by)),
            Door::Closed => Err(Error::forbidden(format!(
                "{user} is in none of the rooms whose members may join this one"
            ))),
            Door::Unknown => unable(
                "M_UNABLE_TO_AUTHORISE_JOIN",
                "This server is not in the rooms whose members may join this one",
            ),
            Door::NobodyHere => unable(
                "M_UNABLE_TO_GRANT_JOIN",
                "Nobody on this server may let somebody into the room",
            ),
        }
    }

    /// Adds our signature to a join that a user of ours is said to have authorised, if it is so. See "Restricted
    /// rooms".
    fn sign_for(
        &self,
        head: &RoomHead,
        received: Received,
        rules: &'static RoomVersionRules,
        is_new: bool,
    ) -> Result<Received> {
        let content = received.object().get("content");
        let by = content
            .and_then(CanonicalJsonValue::as_object)
            .and_then(|content| content.get(AUTHORISED_BY));
        let Some(by) = by.filter(|_| rules.authorization.restricted_join_rule) else {
            return Ok(received);
        };
        let by = by.as_str().and_then(|by| <&UserId>::try_from(by).ok());
        let name = self.0.keyring.name();
        if by.is_none_or(|by| by.server_name() != name) {
            return Err(Error::invalid_param(format!(
                "The join must be authorised by a user of {name}"
            )));
        }
        // That this user is in the room and may invite is a rule of the room.
        if is_new {
            let _anybody = self.let_in(head, &received.event().header.sender)?;
        }
        let mut object = received.object().clone();
        integrity::sign_event(&mut object, self.0.keyring.key(), name, rules)?;
        ingest::receive_object(object, rules).map_err(|dropped| malformed(&dropped))
    }

    fn join_answer(
        &self,
        room: &RoomId,
        origin: &ServerName,
        join: &Pdu,
        omit_members: bool,
    ) -> Result<String> {
        let rooms = &self.0.rooms;
        let view = self.0.store.latest();
        let missing = || Error::not_found("The room");
        let nid = self.0.store.find_room(room)?.ok_or_else(missing)?;
        let version = rooms.version_of(&view, room)?.ok_or_else(missing)?;
        let _known = rules_of(&version)?;
        let Told {
            state,
            mut auth_chain,
            servers,
        } = rooms.told_on_join(&view, nid, &join.event.header.id)?;
        if omit_members {
            // All members are told all the same: only what is told twice may be left out then.
            let told: HashSet<EventNid> = state.iter().copied().collect();
            auth_chain.retain(|nid| !told.contains(nid));
        }
        let mut out = "{\"auth_chain\":".to_owned();
        push_events(&mut out, rooms, &view, &auth_chain)?;
        out.push_str(",\"event\":");
        out.push_str(&federation(&join.event));
        out.push_str(",\"members_omitted\":false,\"origin\":");
        push_string(&mut out, self.0.keyring.name().as_str());
        out.push_str(",\"servers_in_room\":[");
        for (at, server) in servers
            .iter()
            .filter(|server| *server != origin)
            .enumerate()
        {
            if at > 0 {
                out.push(',');
            }
            push_string(&mut out, server.as_str());
        }
        out.push_str("],\"state\":");
        push_events(&mut out, rooms, &view, &state)?;
        out.push('}');
        Ok(out)
    }
}
