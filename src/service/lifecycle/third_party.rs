//! Invites by e-mail or phone number that have found their user. See "Third-party invites" in both APIs.
//!
//! What proves that the user is meant is a signature of the identity server, by a key that the room's
//! `m.room.third_party_invite` names; the authorization rules check it.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    events::StateEventType,
};
use serde_json::{json, value::RawValue};

use super::{Lifecycle, content, object};
use crate::{
    error::{Error, Result},
    service::{limits::Kind, rooms::NewEvent},
};

/// The most invites that are looked at when an address was bound.
const MOST_INVITES: usize = 50;

/// An invite that waited for its user.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The room.
    pub room: OwnedRoomId,
    /// Who has invited.
    pub sender: OwnedUserId,
    /// What the identity server has signed, as JSON.
    pub signed: Box<RawValue>,
}

impl Lifecycle {
    /// Makes an invite of a third-party invite that a user of ours has sent, for a user of any server.
    ///
    /// # Errors
    /// 403 when there is no such third-party invite, or the signature is not by one of its keys; 404 when this node
    /// does not take part in the room; why the user's server does not agree.
    pub async fn exchange_third_party_invite(
        &self,
        origin: &ServerName,
        room: &RoomId,
        (sender, target): (&UserId, &UserId),
        asked: &str,
    ) -> Result<()> {
        let asked = object(asked)?;
        let member = |name: &str| asked.get(name).and_then(CanonicalJsonValue::as_object);
        let signed = member("third_party_invite").and_then(|invite| invite.get("signed"));
        let signed = signed
            .and_then(CanonicalJsonValue::as_object)
            .ok_or_else(|| Error::bad_json("`third_party_invite` with `signed` is needed"))?;
        let text = |name: &str| signed.get(name).and_then(CanonicalJsonValue::as_str);
        let token = text("token").ok_or_else(|| Error::bad_json("`token` is missing"))?;
        if text("mxid") != Some(target.as_str()) {
            return Err(Error::forbidden("What is signed is about another user"));
        }
        let own = self.rooms.server_name();
        if sender.server_name() != own {
            return Err(Error::forbidden(format!("{sender} is no user of {own}")));
        }
        self.limits.check(Kind::Invite, sender.as_str())?;
        self.limits.check(Kind::Invited, target.as_str())?;
        let mut guard = self.rooms.lock_as_resident(room, origin).await?;
        let head = guard.head();
        let view = self.store.latest();
        let kind = StateEventType::RoomThirdPartyInvite.to_string();
        let waiting = self.rooms.entry(&view, &head.state, &kind, token)?;
        let waiting = waiting.filter(|waiting| waiting.event.header.sender == sender);
        let waiting = waiting.ok_or_else(|| {
            Error::forbidden("There is no such invite, or it was not sent by this user")
        })?;
        // What the user is called there was said by whoever has invited, not by whoever asks now.
        let said = waiting.event.content_as::<CanonicalJsonObject>();
        let said = said.unwrap_or_default();
        let name = said
            .get("display_name")
            .and_then(CanonicalJsonValue::as_str)
            .unwrap_or_default();
        let mut invite = content(&json!({
            "membership": "invite",
            "third_party_invite": { "display_name": name },
        }))?;
        if let Some(CanonicalJsonValue::Object(inner)) = invite.get_mut("third_party_invite") {
            inner.insert("signed".to_owned(), signed.clone().into());
        }
        if target.server_name() != own {
            drop(guard);
            let invited = self.federation.invite(room, (sender, target), invite);
            Box::pin(invited).await?;
            return Ok(());
        }
        self.rooms.check_invite(sender, target)?;
        let mut profile = self.profile(target)?;
        profile.extend(invite);
        let kind = StateEventType::RoomMember;
        let event = NewEvent::state(sender, kind, target.as_str(), profile);
        self.write(guard, event).await?;
        self.settle().await
    }

    /// An identity server has found that an address belongs to a user of ours: those who have invited the address are
    /// asked to invite the user. What fails is told to the log; the identity server can do nothing about it.
    ///
    /// # Errors
    /// 404 when there is no such user here.
    pub async fn on_bind(&self, user: &UserId, invites: Vec<Bound>) -> Result<()> {
        let missing = || Error::not_found("The user");
        if user.server_name() != self.rooms.server_name() {
            return Err(missing());
        }
        let account = self.accounts.find(&self.store.latest(), user)?;
        account
            .filter(|(_, row)| !row.deactivated)
            .ok_or_else(missing)?;
        for invite in invites.into_iter().take(MOST_INVITES) {
            self.limits.check(Kind::Invited, user.as_str())?;
            let Bound {
                room,
                sender,
                signed,
            } = invite;
            let content = format!(
                "{{\"membership\":\"invite\",\"third_party_invite\":{{\"display_name\":\"\",\"signed\":{signed}}}}}"
            );
            let done = if sender.server_name() == self.rooms.server_name() {
                let origin = self.rooms.server_name().to_owned();
                let pair = (&*sender, user);
                self.exchange_third_party_invite(&origin, &room, pair, &content)
                    .await
            } else {
                let raw = RawValue::from_string(content);
                let raw = raw.map_err(|e| Error::bad_json(e.to_string()))?;
                let pair = (sender.clone(), user.to_owned());
                self.federation
                    .ask_to_exchange(room.clone(), pair, raw)
                    .await
            };
            match done {
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => {
                    tracing::info!(%room, %sender, %user, %error, "an invite by address came to nothing");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
