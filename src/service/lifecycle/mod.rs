//! Use cases that begin, enter, leave and moderate rooms.

mod aliases;
mod create;
mod everywhere;
mod membership;
mod redact_related;
mod remote;
mod send;
mod spaces;
mod third_party;
mod upgrade;
mod write;

use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomAliasId, UserId,
    api::client::room::Visibility,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use self::spaces::Walks;
pub use self::{
    send::DelayedContent,
    spaces::{Branch, RoomSummary, Tree},
    third_party::Bound,
};
use super::{
    accounts::Accounts,
    federation::Federation,
    limits::Limits,
    rooms::{NewEvent, RoomHead, Rooms, Run},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    protocol::integrity,
    store::{Store, schema::ALIASES},
};

/// Begins, enters, leaves and moderates rooms.
pub struct Lifecycle {
    store: Store,
    clock: Clock,
    rooms: Arc<Rooms>,
    accounts: Arc<Accounts>,
    federation: Federation,
    limits: Limits,
    walks: Walks,
    /// Held from looking whether an alias is free until it is taken.
    aliases: Mutex<()>,
}

impl Lifecycle {
    /// Needs the rooms, the accounts, and the store for what is around them.
    pub fn new(
        store: Store,
        clock: Clock,
        rooms: Arc<Rooms>,
        accounts: Arc<Accounts>,
        federation: Federation,
        limits: Limits,
    ) -> Self {
        Self {
            store,
            clock,
            rooms,
            accounts,
            federation,
            limits,
            walks: Walks::default(),
            aliases: Mutex::new(()),
        }
    }

    /// The room that an alias of this node stands for.
    ///
    /// # Errors
    /// When the store fails.
    pub fn resolve_alias(&self, alias: &RoomAliasId) -> Result<Option<OwnedRoomId>> {
        let row = ALIASES.get(&self.store.view(), &(alias.as_str(),))?;
        let id = row.map(|row| self.store.room_id(row.room)).transpose()?;
        Ok(id.map(|id| (*id).clone()))
    }

    /// What a user is called and looks like, for their member events.
    fn profile(&self, user: &UserId) -> Result<CanonicalJsonObject> {
        let mut profile = CanonicalJsonObject::new();
        for field in ["displayname", "avatar_url"] {
            if let Some(Value::String(text)) = self.accounts.profile_field(user, field)? {
                profile.insert(field.to_owned(), text.into());
            }
        }
        Ok(profile)
    }

    /// Adds one event to the end of a room.
    fn append(&self, head: &mut RoomHead, event: NewEvent) -> Result<OwnedEventId> {
        let mut run = Run::new(&self.rooms, head);
        let id = run.add(event)?;
        run.commit(|_| {})?;
        Ok(id)
    }

    /// Waits until all that this request may have seen or written is safe.
    async fn settle(&self) -> Result<()> {
        Ok(self.store.durable(self.store.latest().position()).await?)
    }
}

/// An invite of somebody by their e-mail address or phone number.
pub fn no_identity_server() -> Error {
    Error::api(
        StatusCode::FORBIDDEN,
        "M_THREEPID_DENIED",
        "This server has no identity server to invite by e-mail or phone; invite by user id",
    )
}

/// Content as it is signed, from what the specification's types write.
fn content(value: &impl Serialize) -> Result<CanonicalJsonObject> {
    let json = serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))?;
    object(&json)
}

/// Content as it is signed, from what a client sent.
pub fn object(json: &str) -> Result<CanonicalJsonObject> {
    Ok(integrity::parse_object(json)?)
}

fn raw_object<T>(raw: Option<&ruma::serde::Raw<T>>) -> Result<CanonicalJsonObject> {
    raw.map_or_else(
        || Ok(CanonicalJsonObject::new()),
        |raw| object(raw.json().get()),
    )
}

fn read<T: DeserializeOwned>(raw: &RawValue, what: &str) -> Result<T> {
    serde_json::from_str(raw.get()).map_err(|e| Error::bad_json(format!("{what}: {e}")))
}

fn is_public(visibility: &Visibility) -> bool {
    *visibility == Visibility::Public
}
