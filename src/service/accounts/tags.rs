//! Tags of rooms, which are account data that several clients change.

use ruma::RoomId;
use serde_json::{Map, Value};

use super::{Accounts, Requester, data::parse_object};
use crate::error::{Error, Result};

/// Where tags are kept.
const TAGS: &str = "m.tag";

/// The longest tag, in bytes. See "Room tagging".
const LONGEST_TAG: usize = 255;

impl Accounts {
    /// The tags of a room by name.
    pub fn tags(&self, requester: &Requester, room: &RoomId) -> Result<Map<String, Value>> {
        let content = self.account_data(requester, Some(room), TAGS)?;
        Ok(tags_of(content.as_deref()))
    }

    /// Adds a tag to a room, or replaces what is known of it.
    ///
    /// # Errors
    /// 400 for a tag that is too long, or what is no object.
    pub async fn set_tag(
        &self,
        requester: &Requester,
        room: &RoomId,
        tag: &str,
        value: &[u8],
    ) -> Result<()> {
        if tag.len() > LONGEST_TAG {
            return Err(Error::invalid_param("The tag is too long"));
        }
        let value = parse_object(value)?;
        self.change_tags(requester, room, |tags| {
            tags.insert(tag.to_owned(), Value::Object(value));
        })
        .await
    }

    /// Takes a tag from a room.
    pub async fn delete_tag(&self, requester: &Requester, room: &RoomId, tag: &str) -> Result<()> {
        // Without a row there is nothing to take, and no reason to remember a room that may not exist.
        if !self.tags(requester, room)?.contains_key(tag) {
            return Ok(());
        }
        self.change_tags(requester, room, |tags| {
            tags.remove(tag);
        })
        .await
    }

    async fn change_tags(
        &self,
        requester: &Requester,
        room: &RoomId,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<()> {
        let room = self.store.room_nid(room)?;
        let position = self.change_data(requester.nid, room, TAGS, |content| {
            let mut tags = tags_of(content);
            change(&mut tags);
            Ok(serde_json::json!({ "tags": tags }).to_string())
        })?;
        Ok(self.store.durable(position).await?)
    }
}

/// Clients may also write all tags at once, and need not write sense.
fn tags_of(content: Option<&str>) -> Map<String, Value> {
    let content = content.and_then(|content| parse_object(content.as_bytes()).ok());
    match content.and_then(|mut content| content.remove("tags")) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    }
}
