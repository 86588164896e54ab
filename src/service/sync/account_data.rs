//! Account data in a sync: global, and of each room.

use std::{collections::HashMap, ops::Bound};

use super::{
    Sync,
    json::{plain_event, push_item},
    v3::Asking,
};
use crate::{
    error::Result,
    protocol::ids::{Position, RoomNid},
    store::schema::{ACCOUNT_DATA, ACCOUNT_DATA_CHANGES},
};

/// Account data that the client does not know yet, as what stands between the brackets of lists of events.
#[derive(Default)]
pub(super) struct ChangedData {
    pub(super) global: String,
    rooms: HashMap<RoomNid, String>,
}

impl ChangedData {
    pub(super) fn room(&self, room: RoomNid) -> &str {
        self.rooms.get(&room).map_or("", String::as_str)
    }
}

/// The number that stands for no room.
pub(super) const GLOBAL: RoomNid = RoomNid(0);

impl Sync {
    /// What has changed since the client's token; without one, all of the global data.
    pub(super) fn changed_data(asking: &Asking<'_>) -> Result<ChangedData> {
        let user = asking.requester.nid;
        let mut changed = ChangedData::default();
        let Some(since) = asking.since else {
            changed.global = all_data(asking, GLOBAL)?;
            return Ok(changed);
        };
        let bounds = (
            Bound::Excluded((user, since)),
            Bound::Unbounded::<(_, Position)>,
        );
        for row in ACCOUNT_DATA_CHANGES.range(asking.view, &(user,), bounds) {
            let (_, key) = row?;
            if !wants(asking, key.room, &key.data_type) {
                continue;
            }
            let row_key = (user, key.room, key.data_type.as_str());
            if let Some(row) = ACCOUNT_DATA.get(asking.view, &row_key)? {
                let list = if key.room == GLOBAL {
                    &mut changed.global
                } else {
                    changed.rooms.entry(key.room).or_default()
                };
                push_item(list, &plain_event(&key.data_type, &row.content));
            }
        }
        Ok(changed)
    }
}

/// All account data of a room, or all of the global data.
pub(super) fn all_data(asking: &Asking<'_>, room: RoomNid) -> Result<String> {
    let mut list = String::new();
    for row in ACCOUNT_DATA.scan(asking.view, &(asking.requester.nid, room)) {
        let ((_, _, data_type), row) = row?;
        // What was deleted is told as empty to those who knew it, and not at all to others.
        if wants(asking, room, &data_type) && row.content != "{}" {
            push_item(&mut list, &plain_event(&data_type, &row.content));
        }
    }
    Ok(list)
}

fn wants(asking: &Asking<'_>, room: RoomNid, data_type: &str) -> bool {
    let filter = &asking.request.filter;
    if room == GLOBAL {
        filter.account_data.allows_type(data_type)
    } else {
        filter.room.account_data.event.allows_type(data_type)
    }
}
