//! Account data: what clients keep on the node for each other, globally and for each room.

use http::StatusCode;
use ruma::RoomId;
use serde_json::{Map, Value};

use super::{Accounts, Requester};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, RoomNid, UserNid},
    store::{
        Batch, View,
        notify::Kinds,
        schema::{ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, AccountDataKey, AccountDataRow},
    },
};

/// The number that stands for no room.
pub const GLOBAL: RoomNid = RoomNid(0);

/// What stands for data that was deleted, so that clients can be told of it. Data without members is as good as none.
/// See MSC3391.
pub(super) const DELETED: &str = "{}";

/// The longest type, in bytes.
const LONGEST_TYPE: usize = 255;

/// What only the node itself changes, through endpoints of its own.
const SERVER_CONTROLLED: [&str; 2] = ["m.fully_read", "m.push_rules"];

impl Accounts {
    /// The content of one type, in a room or globally, as JSON.
    pub fn account_data(
        &self,
        requester: &Requester,
        room: Option<&RoomId>,
        data_type: &str,
    ) -> Result<Option<String>> {
        let room = match room {
            Some(id) => self.store.find_room(id)?,
            None => Some(GLOBAL),
        };
        let Some(room) = room else { return Ok(None) };
        let row = ACCOUNT_DATA.get(&self.store.view(), &(requester.nid, room, data_type))?;
        Ok(row
            .map(|row| row.content)
            .filter(|content| content != DELETED))
    }

    /// Replaces the content of one type, in a room or globally. Without members, it is deleted.
    ///
    /// # Errors
    /// 405 M_BAD_JSON for types that only the node changes; 400 for content that is no object.
    pub async fn set_account_data(
        &self,
        requester: &Requester,
        room: Option<&RoomId>,
        data_type: &str,
        content: &str,
    ) -> Result<()> {
        if SERVER_CONTROLLED.contains(&data_type) {
            return Err(Error::api(
                StatusCode::METHOD_NOT_ALLOWED,
                "M_BAD_JSON",
                format!("{data_type} is changed through endpoints of its own"),
            ));
        }
        if data_type.len() > LONGEST_TYPE {
            return Err(Error::invalid_param("The type is too long"));
        }
        let is_empty = parse_object(content.as_bytes())?.is_empty();
        let content = if is_empty { DELETED } else { content };
        if is_empty && self.account_data(requester, room, data_type)?.is_none() {
            return Ok(());
        }
        let room = match room {
            Some(id) => self.store.room_nid(id)?,
            None => GLOBAL,
        };
        let user = requester.nid;
        let position = self.change_data(user, room, data_type, |_| Ok(content.to_owned()))?;
        Ok(self.store.durable(position).await?)
    }

    /// Deletes the content of one type, in a room or globally; what is not there may be deleted, too. See MSC3391.
    ///
    /// # Errors
    /// 405 M_BAD_JSON for types that only the node changes.
    pub async fn delete_account_data(
        &self,
        requester: &Requester,
        room: Option<&RoomId>,
        data_type: &str,
    ) -> Result<()> {
        self.set_account_data(requester, room, data_type, DELETED)
            .await
    }

    /// Works out new content from the old, and tells the user's devices.
    pub(super) fn change_data(
        &self,
        user: UserNid,
        room: RoomNid,
        data_type: &str,
        change: impl FnOnce(Option<&str>) -> Result<String>,
    ) -> Result<Position> {
        let _changing = self.changing.lock();
        let view = self.store.latest();
        let writing = Writing::prepare(&view, user, room, data_type, change)?;
        let committed = self.store.commit(|batch| {
            writing.write(batch);
            Ok(())
        })?;
        Ok(committed.position)
    }
}

/// Account data that is about to be written, while nobody else can change it.
pub struct Writing {
    user: UserNid,
    room: RoomNid,
    data_type: String,
    content: String,
    /// When it changed before.
    before: Option<Position>,
}

impl Writing {
    /// Works out the new content from the old.
    pub fn prepare(
        view: &View,
        user: UserNid,
        room: RoomNid,
        data_type: &str,
        change: impl FnOnce(Option<&str>) -> Result<String>,
    ) -> Result<Self> {
        let before = ACCOUNT_DATA.get(view, &(user, room, data_type))?;
        Ok(Self {
            user,
            room,
            data_type: data_type.to_owned(),
            content: change(before.as_ref().map(|row| &*row.content))?,
            before: before.map(|row| row.position),
        })
    }

    /// Writes it and tells the user's devices.
    pub fn write(self, batch: &mut Batch<'_>) {
        let Self {
            user,
            room,
            data_type,
            content,
            before,
        } = self;
        // One change for each piece of data: who is behind needs only the newest.
        if let Some(before) = before {
            ACCOUNT_DATA_CHANGES.delete(batch, &(user, before));
        }
        let position = batch.position();
        let row = AccountDataRow { position, content };
        ACCOUNT_DATA.put(batch, &(user, room, data_type.as_str()), &row);
        let key = AccountDataKey { room, data_type };
        ACCOUNT_DATA_CHANGES.put(batch, &(user, position), &key);
        let room = (room != GLOBAL).then_some(room);
        batch.touch_user(position, user, room, Kinds::ACCOUNT_DATA);
    }
}

/// Reads an object, however deep our parsers can read.
pub(super) fn parse_object(json: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(json)
        .map_err(|e| Error::bad_json(format!("The content is no object: {e}")))
}
