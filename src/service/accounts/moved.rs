//! What a user has set for a room goes with them to the room that replaces it. See "Room upgrades", server behaviour.

use ruma::{
    OwnedUserId, RoomId,
    push::{NewPushRule, NewSimplePushRule},
};
use serde_json::{Map, Value};

use super::{Accounts, Requester, data::parse_object};
use crate::{error::Result, protocol::ids::UserNid};

/// Account data of a room that goes with the user.
const TAGS: &str = "m.tag";

/// The rooms in which somebody talks to one other, by user.
const DIRECT: &str = "m.direct";

impl Accounts {
    /// Sets for a room what a user has set for the one that it replaces: whether it notifies, its tags, and whether it
    /// is a direct chat. What they have set for the new room already stays so.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn move_settings(
        &self,
        (user_id, nid): (&OwnedUserId, UserNid),
        old: &RoomId,
        new: &RoomId,
    ) -> Result<()> {
        // Nobody asks: the settings are looked up as the user's own.
        let owner = Requester {
            user_id: user_id.clone(),
            nid,
            device_id: None,
            guest: false,
            admin: false,
        };
        let rules = self.ruleset(&owner)?;
        if !rules.room.iter().any(|rule| rule.rule_id == new)
            && let Some(rule) = rules.room.iter().find(|rule| rule.rule_id == old)
        {
            let rule = NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
            self.set_push_rule(&owner, NewPushRule::Room(rule), None, None)
                .await?;
        }
        if self.account_data(&owner, Some(new), TAGS)?.is_none()
            && let Some(tags) = self.account_data(&owner, Some(old), TAGS)?
        {
            self.set_account_data(&owner, Some(new), TAGS, &tags)
                .await?;
        }
        if let Some(direct) = self.account_data(&owner, None, DIRECT)? {
            let mut direct = parse_object(direct.as_bytes()).unwrap_or_default();
            if add_direct(&mut direct, old, new) {
                let direct = Value::Object(direct).to_string();
                self.set_account_data(&owner, None, DIRECT, &direct).await?;
            }
        }
        Ok(())
    }
}

/// Adds a room to each list that has the other one; says whether that changed anything.
fn add_direct(direct: &mut Map<String, Value>, old: &RoomId, new: &RoomId) -> bool {
    let mut changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |room: &RoomId| {
            rooms
                .iter()
                .any(|known| known.as_str() == Some(room.as_str()))
        };
        if has(old) && !has(new) {
            rooms.push(new.as_str().into());
            changed = true;
        }
    }
    changed
}
