//! The end of devices, with all that belongs to them.

use super::sessions::delete_tokens;
use crate::{
    error::Result,
    protocol::ids::{Position, UserNid},
    store::{
        self, Batch, View,
        notify::Kinds,
        schema::{DEVICES, DeviceRow, SENT_TO_DEVICE, TO_DEVICE},
    },
};

/// Devices that are about to be removed, while nobody else changes what belongs to them.
pub(super) struct Removal {
    user: UserNid,
    devices: Vec<(String, DeviceRow)>,
    messages: Vec<(UserNid, String, Position)>,
    transactions: Vec<(UserNid, String, String, String)>,
}

impl Removal {
    /// Finds what belongs to the devices.
    pub(super) fn prepare(
        view: &View,
        user: UserNid,
        devices: Vec<(String, DeviceRow)>,
    ) -> Result<Self> {
        let (mut messages, mut transactions) = (Vec::new(), Vec::new());
        for (id, _) in &devices {
            let key = (user, id.as_str());
            let rows = TO_DEVICE.scan(view, &key);
            messages.extend(keys(rows)?);
            transactions.extend(keys(SENT_TO_DEVICE.scan(view, &key))?);
        }
        Ok(Self {
            user,
            devices,
            messages,
            transactions,
        })
    }

    /// Deletes it all, and wakes those who wait in the devices' names.
    pub(super) fn write(&self, batch: &mut Batch<'_>) {
        for (id, device) in &self.devices {
            delete_tokens(batch, device);
            DEVICES.delete(batch, &(self.user, id.as_str()));
        }
        for key in &self.messages {
            TO_DEVICE.delete(batch, key);
        }
        for key in &self.transactions {
            SENT_TO_DEVICE.delete(batch, key);
        }
        if !self.devices.is_empty() {
            let position = batch.position();
            batch.touch_user(position, self.user, None, Kinds::DEVICES);
        }
    }

    /// The sessions that end.
    pub(super) fn access_tokens(&self) -> impl Iterator<Item = [u8; 32]> {
        let devices = self.devices.iter();
        devices.filter_map(|(_, device)| device.access_token)
    }
}

fn keys<K, V>(rows: impl Iterator<Item = store::Result<(K, V)>>) -> store::Result<Vec<K>> {
    rows.map(|row| row.map(|(key, _)| key)).collect()
}
