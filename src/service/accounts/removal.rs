//! The end of devices, with all that belongs to them.

use super::sessions::delete_tokens;
use crate::{
    error::Result,
    protocol::ids::{Position, UserNid},
    service::device_lists::{DeviceListChange, DeviceNow},
    store::{
        self, Batch, View,
        notify::Kinds,
        schema::{
            DEVICE_KEYS, DEVICES, DeviceRow, FALLBACK_KEYS, KEY_COUNTS, ONE_TIME_KEY_IDS,
            ONE_TIME_KEYS, SENT_TO_DEVICE, TO_DEVICE,
        },
    },
};

/// Devices that are about to be removed, while nobody else changes what belongs to them.
pub(super) struct Removal {
    user: UserNid,
    devices: Vec<(String, DeviceRow)>,
    messages: Vec<(UserNid, String, Position)>,
    transactions: Vec<(UserNid, String, String, String)>,
    one_time: Vec<(UserNid, String, String, Position)>,
    one_time_ids: Vec<(UserNid, String, String)>,
    fallback: Vec<(UserNid, String, String)>,
    /// Those that others know, which are to be told.
    known: Vec<DeviceNow>,
    change: Option<DeviceListChange>,
}

impl Removal {
    /// Finds what belongs to the devices.
    pub(super) fn prepare(
        view: &View,
        user: UserNid,
        devices: Vec<(String, DeviceRow)>,
    ) -> Result<Self> {
        let mut removal = Self {
            user,
            devices: Vec::new(),
            messages: Vec::new(),
            transactions: Vec::new(),
            one_time: Vec::new(),
            one_time_ids: Vec::new(),
            fallback: Vec::new(),
            known: Vec::new(),
            change: None,
        };
        for (id, _) in &devices {
            let key = (user, id.as_str());
            let sent = keys(SENT_TO_DEVICE.scan(view, &key))?;
            if DEVICE_KEYS.contains(view, &key)? {
                removal.known.push(DeviceNow {
                    device: id.clone(),
                    known: None,
                });
            }
            removal.messages.extend(keys(TO_DEVICE.scan(view, &key))?);
            removal.transactions.extend(sent);
            removal
                .one_time
                .extend(keys(ONE_TIME_KEYS.scan(view, &key))?);
            let ids = keys(ONE_TIME_KEY_IDS.scan(view, &key))?;
            removal.one_time_ids.extend(ids);
            removal
                .fallback
                .extend(keys(FALLBACK_KEYS.scan(view, &key))?);
        }
        if !removal.known.is_empty() {
            removal.change = Some(DeviceListChange::here(view, user)?);
        }
        removal.devices = devices;
        Ok(removal)
    }

    /// Deletes it all, and wakes those who wait in the devices' names.
    pub(super) fn write(&mut self, batch: &mut Batch<'_>) {
        for (id, device) in &self.devices {
            delete_tokens(batch, device);
            let key = (self.user, id.as_str());
            DEVICES.delete(batch, &key);
            DEVICE_KEYS.delete(batch, &key);
            KEY_COUNTS.delete(batch, &key);
        }
        for key in &self.messages {
            TO_DEVICE.delete(batch, key);
        }
        for key in &self.transactions {
            SENT_TO_DEVICE.delete(batch, key);
        }
        for key in &self.one_time {
            ONE_TIME_KEYS.delete(batch, key);
        }
        for key in &self.one_time_ids {
            ONE_TIME_KEY_IDS.delete(batch, key);
        }
        for key in &self.fallback {
            FALLBACK_KEYS.delete(batch, key);
        }
        if let Some(change) = self.change.take() {
            change.write(batch, &self.known, None);
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
