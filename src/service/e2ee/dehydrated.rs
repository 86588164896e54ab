//! A device that nobody is logged in with: MSC3814. It is there so that messages can be encrypted for a user who has no
//! device left; the next one that they log in with takes its place and reads them.

use std::ops::Bound;

use serde_json::value::RawValue;

use super::{Encryption, Upload, backup::must_be_open, keys::Uploading};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, UserNid},
    service::{
        Requester,
        accounts::{Removal, check_device_name},
        device_lists::DeviceNow,
    },
    store::{
        View,
        schema::{DEHYDRATED_DEVICES, DEVICES, DehydratedRow, DeviceRow, TO_DEVICE},
    },
};

/// The longest description of such a device, and the longest id, in bytes.
const LONGEST_DATA: usize = 64 << 10;
const LONGEST_ID: usize = 255;

/// How many messages, and about how many bytes of them, one answer gives.
const MOST_TOLD: usize = 100;
const MOST_TOLD_BYTES: usize = 1 << 20;

/// Such a device as its owner makes it.
#[derive(Debug)]
pub struct NewDehydrated {
    /// Its id.
    pub device: String,
    /// Its name.
    pub display_name: Option<String>,
    /// What its owner needs to bring it back.
    pub data: Box<RawValue>,
    /// Its keys.
    pub keys: Upload,
}

/// Some of the messages that wait for such a device.
#[derive(Debug)]
pub struct Waiting {
    /// What stands between the brackets of the list.
    pub events: String,
    /// Where the next ones begin.
    pub next: String,
    /// Whether there are more now.
    pub more: bool,
}

impl Encryption {
    /// Makes such a device in the place of the one that the user has.
    ///
    /// # Errors
    /// 400 when the keys are not its own or not signed by it, or when there is another device of that id; 413.
    pub async fn dehydrate(&self, requester: &Requester, new: NewDehydrated) -> Result<()> {
        check_device_name(new.display_name.as_deref())?;
        if new.data.get().len() > LONGEST_DATA || new.device.len() > LONGEST_ID {
            return Err(Error::too_large(format!(
                "A device's id has at most {LONGEST_ID} bytes, its data {LONGEST_DATA}"
            )));
        }
        if new.device.is_empty() || !new.data.get().starts_with('{') {
            return Err(Error::bad_json(
                "`device_data` must be an object, and `device_id` not empty",
            ));
        }
        let user = requester.nid;
        let position = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            must_be_open(&view, requester)?;
            let key = (user, new.device.as_str());
            let before = DEHYDRATED_DEVICES.get(&view, &(user,))?;
            let row = DehydratedRow {
                device: new.device.clone(),
                data: new.data.get().to_owned(),
            };
            let is_there = DEVICES.contains(&view, &key)?;
            if is_there && before.as_ref() != Some(&row) {
                return Err(Error::invalid_param(
                    "There is a device of this id already; a new one needs a new id",
                ));
            }
            let who = (user, &*requester.user_id);
            let mut keys = Uploading::of_new_device(&view, who, &new.device, new.keys)?;
            if is_there {
                // The same as before: the answer did not arrive.
                if keys.device_keys().is_some() {
                    return Err(Error::invalid_param("The device has other keys already"));
                }
                view.position()
            } else {
                let identity = DeviceNow {
                    device: new.device.clone(),
                    known: Some((new.display_name.clone(), keys.device_keys().cloned())),
                };
                let mut removal = Removal::prepare(&view, user, going(&view, user, before)?)?;
                removal.and(&view, identity)?;
                let device = DeviceRow {
                    display_name: new.display_name,
                    ..DeviceRow::default()
                };
                let committed = self.store.commit(|batch| {
                    removal.write(batch);
                    DEVICES.put(batch, &key, &device);
                    DEHYDRATED_DEVICES.put(batch, &(user,), &row);
                    keys.write(batch);
                    Ok(())
                })?;
                committed.position
            }
        };
        Ok(self.store.durable(position).await?)
    }

    /// The id of the user's dehydrated device, and its data as JSON.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn dehydrated(&self, requester: &Requester) -> Result<(String, Box<RawValue>)> {
        let row = DEHYDRATED_DEVICES.get(&self.store.view(), &(requester.nid,))?;
        let row = row.ok_or_else(no_device)?;
        Ok((row.device, super::keys::raw(row.data)?))
    }

    /// Removes it with all that belongs to it; says what its id was.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub async fn delete_dehydrated(&self, requester: &Requester) -> Result<String> {
        let user = requester.nid;
        let (device, position) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let row = DEHYDRATED_DEVICES.get(&view, &(user,))?;
            let row = row.ok_or_else(no_device)?;
            let device = row.device.clone();
            let rows = going(&view, user, Some(row))?;
            let mut removal = Removal::prepare(&view, user, rows)?;
            let committed = self.store.commit(|batch| {
                removal.write(batch);
                Ok(())
            })?;
            (device, committed.position)
        };
        self.store.durable(position).await?;
        Ok(device)
    }

    /// The messages for it behind the place that an earlier answer has named. They stay until the device goes.
    ///
    /// # Errors
    /// 400 M_INVALID_PARAM for a place that was never named, 403 for a device that is not the user's dehydrated one.
    pub fn dehydrated_events(
        &self,
        requester: &Requester,
        device: &str,
        from: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Waiting> {
        let view = self.store.view();
        let user = requester.nid;
        let row = DEHYDRATED_DEVICES.get(&view, &(user,))?;
        if row.is_none_or(|row| row.device != device) {
            return Err(Error::forbidden("This is not your dehydrated device"));
        }
        let place = |from: &str| from.strip_prefix('d')?.parse().ok().map(Position);
        let wrong = || Error::invalid_param("This is no place in the messages of a device");
        let from = from.filter(|from| !from.is_empty());
        let from = from.map(|from| place(from).ok_or_else(wrong)).transpose()?;
        let mut last = from.unwrap_or_default();
        let limit = limit.unwrap_or(MOST_TOLD).clamp(1, MOST_TOLD);
        let bounds = (Bound::Excluded((user, device, last)), Bound::Unbounded);
        let (mut events, mut count, mut more) = (String::new(), 0, false);
        for row in TO_DEVICE.range(&view, &(user, device), bounds) {
            let ((_, _, position), event) = row?;
            if count == limit || (count > 0 && events.len() + event.len() > MOST_TOLD_BYTES) {
                more = true;
                break;
            }
            if count > 0 {
                events.push(',');
            }
            events.push_str(&event);
            (count, last) = (count + 1, position);
        }
        Ok(Waiting {
            events,
            next: format!("d{last}"),
            more,
        })
    }
}

/// The device that is to go.
fn going(
    view: &View,
    user: UserNid,
    row: Option<DehydratedRow>,
) -> Result<Vec<(String, DeviceRow)>> {
    let Some(DehydratedRow { device, .. }) = row else {
        return Ok(Vec::new());
    };
    let row = DEVICES.get(view, &(user, device.as_str()))?;
    Ok(row.map(|row| (device, row)).into_iter().collect())
}

fn no_device() -> Error {
    Error::not_found("The dehydrated device")
}
