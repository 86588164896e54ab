//! Invites across servers: the server of whoever is invited signs the event before the room hears of it. See "Inviting
//! to a room" in the server-server API.

use std::time::Duration;

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedUserId, RoomId,
    RoomVersionId, ServerName, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Expected, Federation,
    ask::{knows_only_v1, nonsense},
    malformed, read_member, rules_of, wanted,
};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        format,
        ingest::{self, Pdu},
        integrity, policy,
    },
    remote::{self, Limits},
    service::{
        limits::Kind,
        rooms::{Before, Outcome},
    },
};

/// Somebody looks at a screen meanwhile.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(20),
    body: 1 << 20,
};

/// The most signatures that a server gives to one event.
const MOST_SIGNATURES: usize = 5;

/// The longest name or signature of a key.
const LONGEST_SIGNATURE: usize = 255;

/// An invite as `/v2/invite` takes it.
#[derive(Deserialize)]
struct Invite {
    room_version: RoomVersionId,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

/// What an event of room version 1 or 2 carries in `/v1/invite`.
#[derive(Deserialize)]
struct Carrying {
    #[serde(default)]
    unsigned: Carried,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Carried {
    invite_room_state: Vec<Box<RawValue>>,
}

/// Whom a member event is about.
#[derive(Deserialize)]
struct About {
    state_key: OwnedUserId,
}

/// What a server answers to `/v1/invite`, in a list behind a number.
#[derive(Deserialize)]
struct Signed {
    event: Box<RawValue>,
}

impl Federation {
    /// Takes an invite for a user of ours. The answer is the event, signed by us as well.
    ///
    /// # Errors
    /// 400 M_INCOMPATIBLE_ROOM_VERSION for a room that could not be entered, M_INVALID_PARAM for what is no invite from
    /// that server; 403 for users who can not be invited.
    pub async fn take_invite(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        text: &str,
    ) -> Result<String> {
        let invite: Invite =
            serde_json::from_str(text).map_err(|e| Error::bad_json(e.to_string()))?;
        self.invited(origin, (room, id), invite).await
    }

    /// Takes an invite in the form for room versions 1 and 2.
    ///
    /// # Errors
    /// As [`take_invite`](Self::take_invite).
    pub async fn take_old_invite(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        text: &str,
    ) -> Result<String> {
        let carrying: Carrying =
            serde_json::from_str(text).map_err(|e| Error::bad_json(e.to_string()))?;
        let event = RawValue::from_string(text.to_owned());
        let known = self.0.rooms.version_of(&self.0.store.latest(), room)?;
        let invite = Invite {
            room_version: known.unwrap_or(RoomVersionId::V1),
            event: event.map_err(|e| Error::bad_json(e.to_string()))?,
            invite_room_state: carrying.unsigned.invite_room_state,
        };
        self.invited(origin, (room, id), invite).await
    }

    async fn invited(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        invite: Invite,
    ) -> Result<String> {
        let rules = rules_of(&invite.room_version)?;
        let expected = Expected::of(origin, (room, id), MembershipState::Invite);
        let received = read_member(invite.event.get(), rules, &expected)?;
        let target = received.event().header.state_key.clone();
        let target = target.and_then(|target| UserId::parse(target).ok());
        let name = self.0.keyring.name();
        let target = target.filter(|target| target.server_name() == name);
        let target = target.ok_or_else(|| {
            Error::invalid_param(format!("The invite is not for a user of {name}"))
        })?;
        let account = self.0.accounts.find(&self.0.store.latest(), &target)?;
        if account.is_none_or(|(_, row)| row.deactivated || row.guest) {
            return Err(Error::forbidden(format!("{target} can not be invited")));
        }
        let limits = &self.0.handshakes.limits;
        limits.check(Kind::Invited, target.as_str())?;
        limits.check(Kind::Invite, received.event().header.sender.as_str())?;
        let sender = received.event().header.sender.clone();
        let mut object = received.object().clone();
        let pdu = self.verify_one(received, rules).await?;
        let _signed_by_its_sender = pdu.map_err(|dropped| malformed(&dropped))?;
        // Asked only now: nobody learns what a user has set in the name of another.
        self.0.rooms.check_invite(&sender, &target)?;
        let stripped = self
            .stripped(room, rules, &invite.invite_room_state, true)
            .await?;
        integrity::sign_event(&mut object, self.0.keyring.key(), name, rules)?;
        let received = ingest::receive_object(object, rules);
        let pdu = received.map_err(|dropped| malformed(&dropped))?.signed();
        self.take_note(origin, &invite.room_version, &pdu, &stripped)
            .await?;
        let event = format::federation(&pdu.event);
        Ok(format!("{{\"event\":{event}}}"))
    }

    /// Shows the invite to its user, at once if this node is not in the room; otherwise with the event in the room.
    async fn take_note(
        &self,
        origin: &ServerName,
        version: &RoomVersionId,
        pdu: &Pdu,
        stripped: &str,
    ) -> Result<()> {
        let rooms = &self.0.rooms;
        let header = &pdu.event.header;
        // Whoever has just been let in is told of the room, and is in it afterwards.
        self.until_entered(&header.room_id).await;
        let mut guard = rooms.lock_or_make(&header.room_id, version).await?;
        let head = guard.head();
        if head.row.version != *version {
            return Err(Error::invalid_param("The room is of another version"));
        }
        if rooms.takes_part(head) {
            if !rooms.acl_allows(&self.0.store.latest(), head.nid, origin)? {
                return Err(Error::forbidden(format!(
                    "{origin} is kept out of this room"
                )));
            }
            rooms.check_now(head, &pdu.event)?;
            // What it follows may still be on its way; the event itself comes by that way, too.
            let _written_or_later = rooms.receive(head, pdu, Before::Previous, |_| {})?;
        } else {
            rooms.set_aside(head, pdu, Some(stripped), |_| {})?;
        }
        drop(guard);
        self.settle().await
    }

    /// Takes an event of a room that this node is not in, as it comes in a transaction: the end of an invite, or of a
    /// knock, of a user of ours. Nothing else from there concerns anybody here. Answers whether it did.
    ///
    /// Without the room's state nobody can say who may do this, so an invite is taken back only by whoever has sent it,
    /// and a knock is turned down only by a user of a server that is known to be in the room.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn take_from_outside(&self, room: &RoomId, text: &str) -> Result<bool> {
        let (rooms, store) = (&self.0.rooms, &self.0.store);
        let Ok(About { state_key: user }) = serde_json::from_str(text) else {
            return Ok(false);
        };
        let (Some(room_nid), Some(nid)) = (store.find_room(room)?, store.find_user(&user)?) else {
            return Ok(false);
        };
        let Some(version) = rooms.version_told(room, nid)? else {
            return Ok(false);
        };
        let Ok(received) = ingest::receive(text, rules_of(&version)?) else {
            return Ok(false);
        };
        let header = &received.event().header;
        let is_end = matches!(
            header.membership,
            Some(MembershipState::Leave | MembershipState::Ban)
        );
        let is_ours = header.room_id == room && user.server_name() == self.0.keyring.name();
        if !is_end || !is_ours || !received.intact {
            return Ok(false);
        }
        let may = match rooms.membership_now(room_nid, &user)? {
            MembershipState::Invite => {
                rooms.invited_by(room, nid)?.as_ref() == Some(&header.sender)
            }
            MembershipState::Knock => rooms
                .servers_that_may_know(room, nid)?
                .iter()
                .any(|server| server == header.sender.server_name()),
            _ => false,
        };
        if !may {
            return Ok(false);
        }
        let Ok(pdu) = self.verify_one(received, rules_of(&version)?).await? else {
            return Ok(false);
        };
        self.until_entered(room).await;
        let mut guard = rooms.lock_or_make(room, &version).await?;
        let head = guard.head();
        let now = rooms.membership_now(room_nid, &user)?;
        if rooms.takes_part(head)
            || !matches!(now, MembershipState::Invite | MembershipState::Knock)
        {
            return Ok(false);
        }
        // It may come after what followed it: who was turned down may have knocked again before their server heard of it.
        if rooms.has_passed(room_nid, nid, &pdu.event.header.id)? {
            return Ok(true);
        }
        rooms.set_aside(head, &pdu, None, |_| {})?;
        drop(guard);
        self.settle().await?;
        Ok(true)
    }

    /// Invites a user of another server to a room that the sender is in.
    ///
    /// # Errors
    /// 403 when the room does not allow it or this node does not talk with that server; why the server can not be asked
    /// or refuses.
    pub async fn invite(
        &self,
        room: &RoomId,
        (sender, target): (&UserId, &UserId),
        mut content: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let (rooms, server) = (&self.0.rooms, target.server_name());
        if !self.0.remote.admits(server) {
            return Err(remote::Kind::NotAllowed.of(server).into());
        }
        content.insert("membership".to_owned(), "invite".to_owned().into());
        let mut guard = rooms.lock(room).await?;
        let head = guard.head();
        let mut event = rooms.member_event(head, (sender, target), content)?;
        let told = rooms.introduction(head, sender)?;
        let (version, rules) = (head.row.version.clone(), head.rules);
        let kind = &event.header.event_type;
        let policy = rooms.policy_server(head, kind, Some(target.as_str()))?;
        drop(guard);
        if let Some(policy) = policy {
            event = self.recommended(&policy, &event, rules).await?.event;
        }

        let raw =
            |text: String| RawValue::from_string(text).map_err(|e| Error::Internal(e.to_string()));
        let signed = self.ask_to_sign(server, &version, &event, told).await?;
        let mut object = event
            .to_canonical()
            .map_err(|e| Error::Internal(e.to_string()))?;
        // Only the signature is taken, so nothing else can have changed.
        add_signatures(server, &mut object, &signed)?;
        let received = ingest::receive(raw(integrity::canonical(&object))?.get(), rules);
        let pdu = received.map_err(|bad| nonsense(server, bad))?.signed();
        if pdu.event.header.id != event.header.id {
            return Err(nonsense(server, "another event came back"));
        }

        let mut guard = rooms.lock(room).await?;
        let head = guard.head();
        rooms.check_now(head, &pdu.event)?;
        let outcome = rooms.accept(head, &pdu, Before::Previous)?;
        if outcome != Outcome::Known {
            wanted(outcome)?;
        }
        drop(guard);
        self.settle().await?;
        Ok(pdu.event.header.id)
    }

    /// The event as the server of the invited user gives it back.
    async fn ask_to_sign(
        &self,
        server: &ServerName,
        version: &RoomVersionId,
        event: &Event,
        told: Vec<String>,
    ) -> Result<CanonicalJsonObject> {
        let header = &event.header;
        let raw =
            |text: String| RawValue::from_string(text).map_err(|e| Error::Internal(e.to_string()));
        let told: Vec<_> = told.into_iter().map(raw).collect::<Result<_>>()?;
        let request = create_invite::v2::Request::new(
            header.room_id.clone(),
            header.id.clone(),
            version.clone(),
            raw(format::federation(event))?,
            told.iter().cloned().map(RawStrippedState::Pdu).collect(),
        );
        let answer = self
            .0
            .remote
            .send_within(server, request, QUESTION)
            .await
            .map(|answer| answer.event);
        let is_old = matches!(version, RoomVersionId::V1 | RoomVersionId::V2);
        let answer = match answer {
            Err(error)
                if is_old
                    && (knows_only_v1(&error)
                        || error.refusal().is_some_and(|(status, _)| {
                            matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND)
                        })) =>
            {
                self.ask_old_server(server, event, &told).await?
            }
            answer => answer?,
        };
        let rules = rules_of(version)?;
        integrity::parse_pdu(answer.get(), rules).map_err(|bad| nonsense(server, bad))
    }

    /// The same of a server that knows only the first form of the request.
    async fn ask_old_server(
        &self,
        server: &ServerName,
        event: &Event,
        told: &[Box<RawValue>],
    ) -> Result<Box<RawValue>> {
        let header = &event.header;
        let told: Vec<&str> = told.iter().map(|event| event.get()).collect();
        let mut body = format::federation(event);
        body.pop();
        body.push_str(",\"unsigned\":{\"invite_room_state\":[");
        body.push_str(&told.join(","));
        body.push_str("]}}");
        let of = (&*header.room_id, &*header.id);
        let asked = self.put_as_v1::<Signed>(server, "invite", of, body, QUESTION);
        Ok(asked.await?.event)
    }
}

/// Takes over what a server has signed an event with.
fn add_signatures(
    server: &ServerName,
    object: &mut CanonicalJsonObject,
    signed: &CanonicalJsonObject,
) -> Result<()> {
    let theirs = signed
        .get("signatures")
        .and_then(|all| all.as_object()?.get(server.as_str())?.as_object());
    let theirs = theirs.ok_or_else(|| nonsense(server, "it has not signed the invite"))?;
    let is_one = |text: &str| text.len() <= LONGEST_SIGNATURE;
    let kept: CanonicalJsonObject = theirs
        .iter()
        .filter(|(key, value)| is_one(key) && value.as_str().is_some_and(is_one))
        .take(MOST_SIGNATURES)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let ours = object
        .get_mut("signatures")
        .and_then(CanonicalJsonValue::as_object_mut);
    let ours = ours.ok_or_else(|| Error::Internal("an event of ours is not signed".to_owned()))?;
    let before = ours.entry(server.to_string());
    let before = before.or_insert_with(|| CanonicalJsonObject::new().into());
    // It may be the room's policy server, and have signed as that already.
    if let CanonicalJsonValue::Object(before) = before {
        before.extend(kept.into_iter().filter(|(key, _)| key != policy::KEY_ID));
    }
    Ok(())
}

/// Stripped state in whichever form it came.
pub(super) fn raws(told: Vec<RawStrippedState>) -> Result<Vec<Box<RawValue>>> {
    let raw =
        |event| serde_json::value::to_raw_value(&event).map_err(|e| Error::Internal(e.to_string()));
    told.into_iter().map(raw).collect()
}
