//! A node without HTTP for the tests of what is read: users and rooms by hand.

pub(crate) mod chance;
pub(crate) mod world;

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomVersionId, UserId,
    events::room::member::MembershipState,
};
use serde_json::{Value, json};

use super::{NewEvent, Run, Stored, Transaction};
use crate::{
    clock::{Clock, Entropy},
    config::Config,
    error::Result,
    protocol::{event::Origin, ids::RoomNid},
    service::{Requester, Services, accounts::Cost},
    store::{Options, Store, Sync, View},
};

/// A node on a temporary directory.
pub(crate) struct Node {
    pub(crate) services: Services,
    pub(crate) clock: Clock,
    _directory: tempfile::TempDir,
}

/// A room on that node.
pub(crate) struct Room<'n> {
    pub(crate) node: &'n Node,
    pub(crate) id: OwnedRoomId,
    pub(crate) nid: RoomNid,
}

impl Node {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Options {
            directory: directory.path().to_owned(),
            sync: Sync::Never,
            memory: 32 << 20,
        })
        .unwrap();
        let clock = Clock::manual(1_000_000);
        let mut config = Config::default();
        config.limits.enabled = false;
        let services = Services::alone(
            Arc::new(config),
            clock.clone(),
            Entropy::seeded(1),
            store,
            &Cost::cheap(),
        )
        .unwrap();
        Self {
            services,
            clock,
            _directory: directory,
        }
    }

    /// A local user, asking from the device that bears their name in capitals.
    pub(crate) fn user(&self, name: &str) -> Requester {
        let user_id = UserId::parse(format!("@{name}:localhost")).unwrap();
        Requester {
            nid: self.services.store().user_nid(&user_id).unwrap(),
            user_id,
            device_id: Some(name.to_uppercase()),
            guest: false,
            admin: false,
        }
    }

    pub(crate) fn view(&self) -> View {
        self.services.store().view()
    }

    /// A public room of `creator` with this history visibility.
    pub(crate) async fn room(&self, creator: &Requester, visibility: &str) -> Room<'_> {
        let rooms = &self.services.rooms;
        let begun = rooms.begin(
            &creator.user_id,
            &RoomVersionId::V11,
            CanonicalJsonObject::new(),
        );
        let (mut guard, create) = begun.await.unwrap();
        let room = Room {
            node: self,
            id: guard.head().id.clone(),
            nid: guard.head().nid,
        };
        let mut run = Run::new(rooms, guard.head());
        run.add_create(create).unwrap();
        run.commit(|_| {}).unwrap();
        drop(guard);
        room.member(creator, creator, "join").await;
        room.state(
            creator,
            "m.room.join_rules",
            "",
            json!({ "join_rule": "public" }),
        )
        .await;
        room.state(
            creator,
            "m.room.history_visibility",
            "",
            json!({ "history_visibility": visibility }),
        )
        .await;
        room
    }
}

impl Room<'_> {
    pub(crate) async fn send(
        &self,
        sender: &Requester,
        event_type: &str,
        content: Value,
    ) -> OwnedEventId {
        self.add(sender, event_type, None, content, None)
            .await
            .unwrap()
    }

    pub(crate) async fn say(&self, sender: &Requester, body: &str) -> OwnedEventId {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.send(sender, "m.room.message", content).await
    }

    pub(crate) async fn relate(
        &self,
        sender: &Requester,
        kind: &str,
        parent: &OwnedEventId,
        body: &str,
    ) -> OwnedEventId {
        let content = json!({
            "msgtype": "m.text", "body": body, "m.new_content": { "msgtype": "m.text", "body": body },
            "m.relates_to": { "rel_type": kind, "event_id": parent },
        });
        self.send(sender, "m.room.message", content).await
    }

    pub(crate) async fn state(
        &self,
        sender: &Requester,
        event_type: &str,
        state_key: &str,
        content: Value,
    ) -> OwnedEventId {
        self.attempt(sender, event_type, state_key, content)
            .await
            .unwrap()
    }

    /// Sets a piece of state if the room allows it.
    pub(crate) async fn attempt(
        &self,
        sender: &Requester,
        event_type: &str,
        state_key: &str,
        content: Value,
    ) -> Option<OwnedEventId> {
        self.add(sender, event_type, Some(state_key), content, None)
            .await
            .ok()
    }

    pub(crate) async fn member(
        &self,
        sender: &Requester,
        target: &Requester,
        membership: impl Into<MembershipState>,
    ) -> OwnedEventId {
        let content = json!({ "membership": membership.into() });
        self.state(sender, "m.room.member", target.user_id.as_str(), content)
            .await
    }

    pub(crate) async fn redact(&self, sender: &Requester, target: &OwnedEventId) -> OwnedEventId {
        self.add(
            sender,
            "m.room.redaction",
            None,
            json!({}),
            Some(target.clone()),
        )
        .await
        .unwrap()
    }

    async fn add(
        &self,
        sender: &Requester,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        redacts: Option<OwnedEventId>,
    ) -> Result<OwnedEventId> {
        let rooms = &self.node.services.rooms;
        let mut guard = rooms.lock(&self.id).await.unwrap();
        let mut run = Run::new(rooms, guard.head());
        let content = serde_json::from_value(content).unwrap();
        let transaction = state_key.is_none().then(|| Transaction {
            origin: Origin {
                device_id: sender.device_id.clone().unwrap_or_default(),
                txn_id: self.node.services.entropy.token(4),
            },
            scope: String::new(),
        });
        let id = run.add(NewEvent {
            sender: sender.user_id.clone(),
            event_type: event_type.into(),
            state_key: state_key.map(ToOwned::to_owned),
            content,
            redacts,
            transaction,
        })?;
        run.commit(|_| {})?;
        Ok(id)
    }

    pub(crate) fn event(&self, id: &OwnedEventId) -> Arc<Stored> {
        let rooms = &self.node.services.rooms;
        rooms.find_event(&self.node.view(), id).unwrap().unwrap()
    }
}
