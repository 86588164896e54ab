//! The end of devices, with all that belongs to them.

use super::{
    data::{DELETED, GLOBAL, Writing},
    sessions::delete_tokens,
};
use crate::{
    error::Result,
    protocol::ids::{Position, UserNid},
    service::device_lists::{DeviceListChange, DeviceNow},
    store::{
        self, Batch, View,
        notify::Kinds,
        schema::{
            ACCOUNT_DATA, DEHYDRATED_DEVICES, DEVICE_KEYS, DEVICES, DeviceRow, FALLBACK_KEYS,
            KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, SENT_TO_DEVICE, TO_DEVICE,
        },
    },
};

/// Account data in which a device says how it notifies; the device's id follows behind a dot. See MSC3890.
const NOTIFICATION_SETTINGS: [&str; 2] = [
    "m.local_notification_settings",
    "org.matrix.msc3890.local_notification_settings",
];

/// Devices that are about to be removed, while nobody else changes what belongs to them.
pub(in crate::service) struct Removal {
    user: UserNid,
    devices: Vec<(String, DeviceRow)>,
    messages: Vec<(UserNid, String, Position)>,
    transactions: Vec<(UserNid, String, String, String)>,
    one_time: Vec<(UserNid, String, String, Position)>,
    one_time_ids: Vec<(UserNid, String, String)>,
    fallback: Vec<(UserNid, String, String)>,
    /// What is kept for one device only.
    settings: Vec<Writing>,
    /// Those that others know, which are to be told.
    known: Vec<DeviceNow>,
    change: Option<DeviceListChange>,
    was_dehydrated: bool,
}

impl Removal {
    /// Finds what belongs to the devices.
    pub(in crate::service) fn prepare(
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
            settings: Vec::new(),
            known: Vec::new(),
            change: None,
            was_dehydrated: false,
        };
        let dehydrated = DEHYDRATED_DEVICES.get(view, &(user,))?;
        for (id, _) in &devices {
            removal.was_dehydrated |= dehydrated.as_ref().is_some_and(|row| row.device == *id);
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
            for prefix in NOTIFICATION_SETTINGS {
                let data_type = format!("{prefix}.{id}");
                let row = ACCOUNT_DATA.get(view, &(user, GLOBAL, data_type.as_str()))?;
                if row.is_some_and(|row| row.content != DELETED) {
                    let deleted = |_: Option<&str>| Ok(DELETED.to_owned());
                    let writing = Writing::prepare(view, user, GLOBAL, &data_type, deleted)?;
                    removal.settings.push(writing);
                }
            }
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

    /// Has others told in the same breath of a device that comes.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::service) fn and(&mut self, view: &View, now: DeviceNow) -> Result<()> {
        if self.change.is_none() {
            self.change = Some(DeviceListChange::here(view, self.user)?);
        }
        self.known.push(now);
        Ok(())
    }

    /// Deletes it all, and wakes those who wait in the devices' names.
    pub(in crate::service) fn write(&mut self, batch: &mut Batch<'_>) {
        for (id, device) in &self.devices {
            delete_tokens(batch, device);
            let key = (self.user, id.as_str());
            DEVICES.delete(batch, &key);
            DEVICE_KEYS.delete(batch, &key);
            KEY_COUNTS.delete(batch, &key);
        }
        if self.was_dehydrated {
            DEHYDRATED_DEVICES.delete(batch, &(self.user,));
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
        for settings in self.settings.drain(..) {
            settings.write(batch);
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
