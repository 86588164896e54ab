//! Devices as their owner sees and removes them.

use std::collections::BTreeSet;

use ruma::api::client::uiaa::AuthData;

use super::{
    Accounts, Requester,
    sessions::{check_device_name, devices_of},
};
use crate::{
    error::{Error, Result},
    service::device_lists::{DeviceListChange, DeviceNow},
    store::schema::{DEVICE_KEYS, DEVICES, DeviceRow},
};

/// A device of an account.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// What its owner calls it.
    pub display_name: Option<String>,
    /// Where it was last seen.
    pub last_seen_ip: Option<String>,
    /// When it was last seen, in milliseconds since the epoch, give or take a few minutes.
    pub last_seen_ts: Option<u64>,
}

impl Device {
    fn new(id: String, row: DeviceRow) -> Self {
        Self {
            id,
            display_name: row.display_name,
            last_seen_ip: row.last_seen_ip,
            last_seen_ts: row.last_seen_ts,
        }
    }
}

impl Accounts {
    /// The devices of the user.
    pub fn devices(&self, requester: &Requester) -> Result<Vec<Device>> {
        let devices = devices_of(&self.store.view(), requester.nid)?;
        let devices = devices.into_iter().map(|(id, row)| Device::new(id, row));
        Ok(devices.collect())
    }

    /// One device of the user.
    pub fn device(&self, requester: &Requester, id: &str) -> Result<Option<Device>> {
        let row = DEVICES.get(&self.store.view(), &(requester.nid, id))?;
        Ok(row.map(|row| Device::new(id.to_owned(), row)))
    }

    /// Gives a device another name; none leaves it as it is.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub async fn rename_device(
        &self,
        requester: &Requester,
        id: &str,
        name: Option<String>,
    ) -> Result<()> {
        check_device_name(name.as_deref())?;
        let key = (requester.nid, id);
        let position = {
            let _changing = self.changing.lock();
            let row = DEVICES.get(&self.store.latest(), &key)?;
            let mut row = row.ok_or_else(|| Error::not_found("The device"))?;
            let Some(name) = name else { return Ok(()) };
            row.display_name = Some(name);
            let view = self.store.latest();
            // A device without keys is nothing to others.
            let change = match DEVICE_KEYS.get(&view, &key)? {
                Some(keys) => {
                    let now = DeviceNow {
                        device: id.to_owned(),
                        known: Some((row.display_name.clone(), Some(keys))),
                    };
                    Some((DeviceListChange::here(&view, requester.nid)?, now))
                }
                None => None,
            };
            let committed = self.store.commit(|batch| {
                DEVICES.put(batch, &key, &row);
                if let Some((change, now)) = change {
                    change.write(batch, &[now], None);
                }
                Ok(())
            })?;
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// Removes devices of the user and ends their sessions, once the user has given their password. Devices that are
    /// not there are gone already.
    ///
    /// # Errors
    /// What the client must do first, see [`Error::Uiaa`].
    pub async fn delete_devices(
        &self,
        requester: &Requester,
        ids: BTreeSet<String>,
        auth: Option<&AuthData>,
    ) -> Result<()> {
        let what = format!("delete devices {ids:?}");
        self.confirm(requester, &what, auth).await?;
        self.remove_devices(requester.nid, |id| ids.contains(id))
            .await
    }
}
