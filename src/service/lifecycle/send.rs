//! Sending messages and state, and redacting.

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomId,
    events::{StateEventType, TimelineEventType},
};

use super::{Lifecycle, redact_related::check_types};
use crate::{
    error::{Error, Result},
    protocol::{auth::owned, event::Origin, ids::EventNid, version},
    service::{
        Requester,
        limits::Kind,
        rooms::{NewEvent, RoomHead, Transaction},
    },
    store::{View, schema::RELATIONS_BY},
};

/// An event that has waited for its time.
#[derive(Debug)]
pub struct DelayedContent<'e> {
    /// Its type.
    pub event_type: &'e str,
    /// Its state key, if it is state.
    pub state_key: Option<&'e str>,
    /// Its content.
    pub content: CanonicalJsonObject,
}

impl Lifecycle {
    /// Sends an event that is no state. The same transaction of the same device gives the same event again.
    ///
    /// # Errors
    /// 403 when the user is not in the room or not allowed to, 413 when the event is too large.
    pub async fn send_message(
        &self,
        requester: &Requester,
        room: &RoomId,
        event_type: TimelineEventType,
        content: CanonicalJsonObject,
        txn_id: &str,
    ) -> Result<OwnedEventId> {
        let transaction = transaction(requester, format!("send/{event_type}"), txn_id);
        self.message(requester, room, event_type, content, transaction)
            .await
    }

    async fn message(
        &self,
        requester: &Requester,
        room: &RoomId,
        event_type: TimelineEventType,
        mut content: CanonicalJsonObject,
        transaction: Option<Transaction>,
    ) -> Result<OwnedEventId> {
        let redacts = if event_type == TimelineEventType::RoomRedaction {
            Some(redacted(&mut content)?)
        } else {
            None
        };
        let event = NewEvent {
            sender: requester.user_id.clone(),
            event_type,
            state_key: None,
            content,
            redacts,
            transaction,
        };
        self.send(requester, room, event).await
    }

    /// Sends an event that has waited, once for each id by which it did. See MSC4140.
    ///
    /// # Errors
    /// As for an event that is sent at once.
    pub async fn send_delayed(
        &self,
        requester: &Requester,
        room: &RoomId,
        event: DelayedContent<'_>,
        delay_id: &str,
    ) -> Result<OwnedEventId> {
        let transaction = Some(Transaction {
            origin: Origin::delayed(delay_id),
            scope: format!("send/{}", event.event_type),
        });
        let (kind, content) = (event.event_type, event.content);
        match event.state_key {
            Some(key) => {
                self.state(requester, room, kind.into(), key, content, transaction)
                    .await
            }
            None => {
                self.message(requester, room, kind.into(), content, transaction)
                    .await
            }
        }
    }

    /// Redacts an event, and what relates to it by these types of relations as far as the user may.
    ///
    /// # Errors
    /// 403 when the user may not, 404 when the event is not in the room, as far as this node can know.
    pub async fn redact(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &EventId,
        with_relations: &[String],
        mut content: CanonicalJsonObject,
        txn_id: &str,
    ) -> Result<OwnedEventId> {
        check_types(with_relations)?;
        content.remove("redacts");
        let reason = content.clone();
        let event = NewEvent {
            sender: requester.user_id.clone(),
            event_type: TimelineEventType::RoomRedaction,
            state_key: None,
            content,
            redacts: Some(target.to_owned()),
            transaction: transaction(requester, format!("redact/{target}"), txn_id),
        };
        let id = self.send(requester, room, event).await?;
        if !with_relations.is_empty() {
            // Also when the request is repeated: the node may have stopped in between.
            let related = self.redact_related(requester, room, target, with_relations, &reason);
            Box::pin(related).await?;
        }
        Ok(id)
    }

    /// Sets a piece of state. Setting what is already so gives the event that made it so.
    ///
    /// # Errors
    /// 403 when the user may not, 400 when the content can not be.
    pub async fn send_state(
        &self,
        requester: &Requester,
        room: &RoomId,
        event_type: StateEventType,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        self.state(requester, room, event_type, state_key, content, None)
            .await
    }

    async fn state(
        &self,
        requester: &Requester,
        room: &RoomId,
        event_type: StateEventType,
        state_key: &str,
        content: CanonicalJsonObject,
        transaction: Option<Transaction>,
    ) -> Result<OwnedEventId> {
        if event_type == StateEventType::RoomMember {
            return self
                .set_membership(requester, room, state_key, content)
                .await;
        }
        if event_type == StateEventType::RoomCreate {
            return Err(Error::invalid_param("A room is created only once"));
        }
        // No type of state is called so, and the authorization rules know it by its name alone.
        if event_type.to_string() == "m.room.redaction" {
            return Err(Error::bad_json("A redaction can not be state"));
        }
        if event_type == StateEventType::RoomCanonicalAlias && state_key.is_empty() {
            self.check_remote_aliases(requester, room, &content).await?;
        }
        let is_end = event_type == StateEventType::RoomTombstone && state_key.is_empty();
        let mut event = NewEvent::state(&requester.user_id, event_type, state_key, content);
        event.transaction = transaction;
        let id = self.send(requester, room, event).await?;
        if is_end {
            self.move_all_settings(room).await?;
        }
        Ok(id)
    }

    async fn send(
        &self,
        requester: &Requester,
        room: &RoomId,
        event: NewEvent,
    ) -> Result<OwnedEventId> {
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        // Whoever repeats a request is answered as before, also when they could not make it any more.
        if let Some(id) = self.repeated(room, &event)? {
            self.settle().await?;
            return Ok(id);
        }
        let guard = self.rooms.lock_for(requester, room).await?;
        let id = self.write(guard, event).await?;
        self.settle().await?;
        Ok(id)
    }

    /// What the authorization rules leave to us.
    pub(super) fn check_content(&self, head: &RoomHead, event: &NewEvent) -> Result<()> {
        if let Some(target) = &event.redacts {
            let view = self.store.latest();
            let found = self.rooms.find_event(&view, target)?;
            let is_shared = head.servers.len() > 1;
            let kind = match &found {
                Some(found) if found.event.header.room_id == head.id => {
                    let kind = &found.event.header.event_type;
                    found.event.is_state().then_some(kind)
                }
                // Other servers in the room may have it, and it may still come here.
                None if is_shared => None,
                _ => return Err(Error::not_found("The event to redact")),
            };
            if let Some(kind @ (TimelineEventType::RoomCreate | TimelineEventType::RoomServerAcl)) =
                kind
            {
                return Err(Error::forbidden(format!(
                    "A room can not do without its {kind}"
                )));
            }
        }
        if event.state_key.is_none() {
            self.check_relation(head, event)?;
        }
        if event.event_type == TimelineEventType::RoomPowerLevels && event.state_key.is_some() {
            self.check_levels(head, &event.content)?;
        }
        if event.event_type == TimelineEventType::RoomCanonicalAlias
            && event.state_key.as_deref() == Some("")
        {
            self.check_aliases(head, &event.content)?;
        }
        let key = event.state_key.as_deref().unwrap_or_default();
        if version::has_owned_state(head.rules)
            && owned::is_owned(&event.event_type, key)
            && owned::owner(key).is_none()
        {
            return Err(Error::bad_json(
                "A state key that begins with `@` must be a user's id, which an underscore and more may follow",
            ));
        }
        Ok(())
    }

    /// Creators who stand above all levels have none. The authorization rules would refuse it too, but as if somebody
    /// else could do it.
    fn check_levels(&self, head: &RoomHead, content: &CanonicalJsonObject) -> Result<()> {
        if !head.rules.authorization.explicitly_privilege_room_creators {
            return Ok(());
        }
        let users = content.get("users").and_then(CanonicalJsonValue::as_object);
        let view = self.store.latest();
        let levels = self.rooms.power_levels(&view, &head.state, head.rules)?;
        match levels
            .creators()
            .find(|user| users.is_some_and(|users| users.contains_key(user.as_str())))
        {
            None => Ok(()),
            Some(creator) => Err(Error::bad_json(format!(
                "{creator} created the room and can have no level"
            ))),
        }
    }

    /// Nobody reacts twice in the same way, and a thread begins at an event that belongs to no other.
    fn check_relation(&self, head: &RoomHead, event: &NewEvent) -> Result<()> {
        let Some(relates) = event
            .content
            .get("m.relates_to")
            .and_then(CanonicalJsonValue::as_object)
        else {
            return Ok(());
        };
        let text = |name: &str| relates.get(name).and_then(CanonicalJsonValue::as_str);
        let Some(parent) = text("event_id").and_then(|id| <&EventId>::try_from(id).ok()) else {
            return Ok(());
        };
        let view = self.store.latest();
        let parent = self.rooms.find_event(&view, parent)?;
        let Some(parent) = parent.filter(|parent| parent.event.header.room_id == head.id) else {
            return Ok(());
        };
        match text("rel_type") {
            Some("m.thread") if parent.event.header.relation.is_some() => Err(Error::api(
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "A thread can not begin at an event that relates to another",
            )),
            Some("m.annotation") => {
                let sender = self.store.user_nid(&event.sender)?;
                let own = RELATIONS_BY.scan(&view, &(parent.nid, sender, "m.annotation"));
                for row in own {
                    let (_, (earlier,)) = row?;
                    if self.is_reaction(&view, earlier, event, text("key"))? {
                        return Err(Error::api(
                            StatusCode::BAD_REQUEST,
                            "M_DUPLICATE_ANNOTATION",
                            "You have reacted so already",
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn is_reaction(
        &self,
        view: &View,
        nid: EventNid,
        like: &NewEvent,
        key: Option<&str>,
    ) -> Result<bool> {
        let earlier = self.rooms.event(view, nid)?;
        let content = earlier
            .event
            .content_as::<serde_json::Value>()
            .unwrap_or_default();
        let earlier_key = content["m.relates_to"]["key"].as_str();
        Ok(earlier.event.header.event_type == like.event_type && earlier_key == key)
    }
}

/// Takes the event that a redaction is for out of its content; each room version has its own place for it.
fn redacted(content: &mut CanonicalJsonObject) -> Result<OwnedEventId> {
    let target = content.remove("redacts");
    target
        .as_ref()
        .and_then(CanonicalJsonValue::as_str)
        .and_then(|id| EventId::parse(id).ok())
        .ok_or_else(|| Error::bad_json("`redacts` must name the event to redact"))
}

fn transaction(requester: &Requester, scope: String, txn_id: &str) -> Option<Transaction> {
    let origin = Origin {
        device_id: requester.device_id.clone()?,
        txn_id: txn_id.to_owned(),
    };
    Some(Transaction { origin, scope })
}
