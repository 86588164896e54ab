//! Sending messages and state, and redacting.

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomAliasId, RoomId,
    events::{StateEventType, TimelineEventType},
};

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::{event::Origin, ids::EventNid},
    service::{
        Requester,
        limits::Kind,
        rooms::{NewEvent, RoomHead, Run, Transaction},
    },
    store::{
        View,
        schema::{RELATIONS, TRANSACTIONS},
    },
};

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
        let scope = format!("send/{event_type}");
        let event = NewEvent {
            sender: requester.user_id.clone(),
            event_type,
            state_key: None,
            content,
            redacts: None,
            transaction: transaction(requester, scope, txn_id),
        };
        self.send(requester, room, event).await
    }

    /// Redacts an event.
    ///
    /// # Errors
    /// 403 when the user may not, 404 when the event is not in the room.
    pub async fn redact(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &EventId,
        mut content: CanonicalJsonObject,
        txn_id: &str,
    ) -> Result<OwnedEventId> {
        content.remove("redacts");
        let event = NewEvent {
            sender: requester.user_id.clone(),
            event_type: TimelineEventType::RoomRedaction,
            state_key: None,
            content,
            redacts: Some(target.to_owned()),
            transaction: transaction(requester, format!("redact/{target}"), txn_id),
        };
        self.send(requester, room, event).await
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
        let event = NewEvent::state(&requester.user_id, event_type, state_key, content);
        self.send(requester, room, event).await
    }

    async fn send(
        &self,
        requester: &Requester,
        room: &RoomId,
        event: NewEvent,
    ) -> Result<OwnedEventId> {
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let head = guard.head();
        let id = match self.already_there(requester, head, &event)? {
            Some(id) => id,
            None => {
                self.check_content(head, &event)?;
                let mut run = Run::new(&self.rooms, head);
                let id = run.add(event)?;
                run.commit(|_| Ok(()))?;
                id
            }
        };
        drop(guard);
        self.settle().await?;
        Ok(id)
    }

    /// The event that an earlier, equal request has made.
    fn already_there(
        &self,
        requester: &Requester,
        head: &RoomHead,
        event: &NewEvent,
    ) -> Result<Option<OwnedEventId>> {
        let view = self.store.latest();
        if let Some(transaction) = &event.transaction {
            let device = transaction.origin.device_id.as_str();
            let key = (requester.nid, device, head.nid, transaction.key());
            let Some(row) = TRANSACTIONS.get(&view, &key)? else {
                return Ok(None);
            };
            let made = self.rooms.event(&view, row.event)?;
            return Ok(Some(made.event.header.id.clone()));
        }
        let Some(state_key) = &event.state_key else {
            return Ok(None);
        };
        let event_type = event.event_type.to_string();
        let Some(present) = self
            .rooms
            .entry(&view, &head.state, &event_type, state_key)?
        else {
            return Ok(None);
        };
        let same = present.event.header.sender == event.sender
            && present
                .event
                .content_as::<CanonicalJsonObject>()
                .ok()
                .as_ref()
                == Some(&event.content);
        Ok(same.then(|| present.event.header.id.clone()))
    }

    /// What the authorization rules leave to us.
    fn check_content(&self, head: &RoomHead, event: &NewEvent) -> Result<()> {
        if let Some(target) = &event.redacts {
            let view = self.store.latest();
            let found = self.rooms.find_event(&view, target)?;
            if found.is_none_or(|found| found.event.header.room_id != head.id) {
                return Err(Error::not_found("The event to redact"));
            }
        }
        if event.state_key.is_none() {
            self.check_relation(head, event)?;
        }
        if event.event_type == TimelineEventType::RoomCanonicalAlias && event.state_key.is_some() {
            self.check_aliases(head, &event.content)?;
        }
        Ok(())
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
                for row in RELATIONS.scan(&view, &(parent.nid, "m.annotation")) {
                    let (_, row) = row?;
                    if row.sender == sender
                        && self.is_reaction(&view, row.event, event, text("key"))?
                    {
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

    /// An alias that a room calls itself by must lead to the room. Others' aliases are for their servers to say.
    fn check_aliases(&self, head: &RoomHead, content: &CanonicalJsonObject) -> Result<()> {
        let main = content
            .get("alias")
            .filter(|alias| **alias != CanonicalJsonValue::Null);
        let others = content
            .get("alt_aliases")
            .and_then(CanonicalJsonValue::as_array);
        let view = self.store.latest();
        let before = self
            .rooms
            .entry(&view, &head.state, "m.room.canonical_alias", "")?;
        for alias in main.into_iter().chain(others.into_iter().flatten()) {
            let text = alias.as_str().unwrap_or_default();
            let alias = RoomAliasId::parse(text)
                .map_err(|e| Error::invalid_param(format!("{text:?} is not an alias: {e}")))?;
            let quoted = format!("\"{alias}\"");
            if before
                .as_ref()
                .is_some_and(|event| event.event.content_json().contains(&quoted))
            {
                continue;
            }
            if self.resolve_alias(&alias)?.as_ref() != Some(&head.id) {
                return Err(Error::api(
                    StatusCode::BAD_REQUEST,
                    "M_BAD_ALIAS",
                    format!("{alias} does not lead to this room"),
                ));
            }
        }
        Ok(())
    }
}

fn transaction(requester: &Requester, scope: String, txn_id: &str) -> Option<Transaction> {
    let origin = Origin {
        device_id: requester.device_id.clone()?,
        txn_id: txn_id.to_owned(),
    };
    Some(Transaction { origin, scope })
}
