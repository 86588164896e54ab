//! "Key management": the identity keys of devices, and the keys that each are given once.
//!
//! All of it is read, changed and written while devices stand still, so that no key is given twice; and nobody is given a
//! key before it is safe that nobody else will be.

use std::{collections::BTreeMap, ops::Bound};

use http::StatusCode;
use ruma::{OwnedUserId, UserId};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Encryption;
use crate::{
    error::{Error, Result},
    protocol::{
        device_keys::{self, BadKeys},
        format::push_string,
        ids::{Position, UserNid},
        integrity,
    },
    service::{
        Requester,
        device_lists::{DeviceListChange, DeviceNow},
    },
    store::{
        Batch, View,
        notify::Kinds,
        schema::{
            DEVICE_KEYS, DEVICES, DeviceKeyRow, FALLBACK_KEYS, FallbackKeyRow, KEY_COUNTS,
            KeyCountsRow, ONE_TIME_KEY_IDS, ONE_TIME_KEYS,
        },
    },
};

/// How many one-time keys a device may have here.
const MOST_ONE_TIME_KEYS: usize = 1_000;

/// How many fallback keys a device may have here, each of another algorithm.
const MOST_FALLBACK_KEYS: usize = 10;

/// The longest key with its signatures, and the longest set of identity keys, in bytes.
const LONGEST_KEY: usize = 8 << 10;
pub(super) const LONGEST_KEYS: usize = 64 << 10;

/// The longest id of a key, in bytes.
const LONGEST_ID: usize = 255;

/// How many devices or users one request may ask for.
pub const MOST_ASKED: usize = 10_000;

/// Some JSON under some names.
pub type Named = BTreeMap<String, Box<RawValue>>;

/// Keys by user, then device.
pub type OfDevices<T> = BTreeMap<OwnedUserId, BTreeMap<String, T>>;

/// What a device uploads.
#[derive(Debug, Default)]
pub struct Upload {
    /// Its identity keys.
    pub device_keys: Option<Box<RawValue>>,
    /// Keys that are given once, by id with algorithm.
    pub one_time: Named,
    /// Keys that are given when there is no other, by id with algorithm.
    pub fallback: Named,
}

/// Keys of users, and why others are missing.
#[derive(Debug, Default, Serialize)]
pub struct Keys {
    /// Of devices.
    pub device_keys: OfDevices<Box<RawValue>>,
    /// The keys that stand for the users.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub master_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    /// Those that sign the users' devices.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub self_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    /// The one that signs the master keys of others, of the one who asks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub user_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    /// By server, why it did not answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, serde_json::Value>,
}

/// Keys that were claimed, and why others are missing.
#[derive(Debug, Default, Serialize)]
pub struct Claimed {
    /// By user, device and id.
    pub one_time_keys: OfDevices<Named>,
    /// By server, why it did not answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, serde_json::Value>,
}

/// Keys that are about to be written.
pub(super) struct Uploading {
    user: UserNid,
    device: String,
    device_keys: Option<String>,
    one_time: Vec<(String, DeviceKeyRow)>,
    fallback: Vec<(String, FallbackKeyRow)>,
    counts: KeyCountsRow,
}

impl Encryption {
    /// Takes in keys of the device that sends them, all or nothing; gives how many one-time keys it has of each
    /// algorithm.
    ///
    /// # Errors
    /// 400 when keys are of another device, not signed by it, or when another key has the same id; 413 M_TOO_LARGE.
    pub async fn upload_keys(
        &self,
        requester: &Requester,
        upload: Upload,
    ) -> Result<BTreeMap<String, u64>> {
        let device = requester.device_id.as_deref();
        let device = device.ok_or_else(|| Error::invalid_param("Only devices have keys"))?;
        let device_keys = upload.device_keys.as_deref();
        let device_keys = device_keys.map(|keys| checked(keys, &requester.user_id, device));
        let device_keys = device_keys.transpose()?;
        let most = [
            (upload.one_time.len(), MOST_ONE_TIME_KEYS),
            (upload.fallback.len(), MOST_FALLBACK_KEYS),
        ];
        if most.iter().any(|(count, most)| count > most) {
            return Err(too_many());
        }
        let one_time = rows(upload.one_time)?;
        let fallback = rows(upload.fallback)?;
        let (position, counts) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let key = (requester.nid, device);
            if !DEVICES.contains(&view, &key)? {
                return Err(Error::unknown_token(false));
            }
            let counts = KEY_COUNTS.get(&view, &key)?.unwrap_or_default();
            let mut uploading = Uploading {
                user: requester.nid,
                device: device.to_owned(),
                device_keys: None,
                one_time: Vec::new(),
                fallback: Vec::new(),
                counts,
            };
            uploading.add(&view, device_keys, one_time, fallback)?;
            let change = match &uploading.device_keys {
                Some(keys) => {
                    let row = DEVICES.get(&view, &key)?;
                    let name = row.and_then(|row| row.display_name);
                    let now = DeviceNow {
                        device: device.to_owned(),
                        known: Some((name, Some(keys.clone()))),
                    };
                    Some((DeviceListChange::here(&view, requester.nid)?, now))
                }
                None => None,
            };
            let committed = self.store.commit(|batch| {
                uploading.write(batch);
                if let Some((change, now)) = change {
                    change.write(batch, &[now], None);
                }
                Ok(())
            })?;
            (committed.position, uploading.counts.counts)
        };
        self.store.durable(position).await?;
        Ok(counts)
    }

    /// The identity keys of local users: of all devices of a user for whom none are named. A user of whom nothing is
    /// known has none.
    ///
    /// # Errors
    /// When the store fails.
    pub fn device_keys(
        &self,
        view: &View,
        wanted: &BTreeMap<OwnedUserId, Vec<String>>,
    ) -> Result<OfDevices<Box<RawValue>>> {
        let mut found = OfDevices::new();
        for (user, devices) in wanted {
            if !self.is_local(user.server_name()) {
                continue;
            }
            let keys = match self.store.find_user(user)? {
                Some(nid) => Self::keys_of(view, nid, devices)?,
                None => BTreeMap::new(),
            };
            found.insert(user.clone(), keys);
        }
        Ok(found)
    }

    fn keys_of(view: &View, user: UserNid, devices: &[String]) -> Result<Named> {
        let mut found = Named::new();
        let mut add = |device: String, keys: String| -> Result<()> {
            let row = DEVICES.get(view, &(user, device.as_str()))?;
            let name = row.and_then(|row| row.display_name);
            found.insert(device, named(keys, name.as_deref())?);
            Ok(())
        };
        if devices.is_empty() {
            for row in DEVICE_KEYS.scan(view, &(user,)) {
                let ((_, device), keys) = row?;
                add(device, keys)?;
            }
        }
        for device in devices {
            if let Some(keys) = DEVICE_KEYS.get(view, &(user, device.as_str()))? {
                add(device.clone(), keys)?;
            }
        }
        Ok(found)
    }

    /// Gives a key of each of these devices that are local, by algorithm: the oldest that is given once, or else the
    /// one that is kept for that.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn claim_keys(&self, wanted: &OfDevices<String>) -> Result<OfDevices<Named>> {
        let mut given = OfDevices::<Named>::new();
        let position = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let mut taken = Vec::new();
            for (user, devices) in wanted {
                if !self.is_local(user.server_name()) {
                    continue;
                }
                let Some(nid) = self.store.find_user(user)? else {
                    continue;
                };
                for (device, algorithm) in devices {
                    let Some(claim) = Claim::prepare(&view, (nid, device), algorithm)? else {
                        continue;
                    };
                    let key = [(claim.key.id.clone(), raw(claim.key.json.clone())?)];
                    let devices = given.entry(user.clone()).or_default();
                    devices.insert(device.clone(), key.into());
                    taken.push(claim);
                }
            }
            if taken.is_empty() {
                return Ok(given);
            }
            let committed = self.store.commit(|batch| {
                for claim in &mut taken {
                    claim.write(batch);
                }
                Ok(())
            })?;
            committed.position
        };
        self.store.durable(position).await?;
        Ok(given)
    }

    /// What a device is told of its keys, if it has ever had any here.
    ///
    /// # Errors
    /// When the store fails.
    pub fn key_counts(&self, view: &View, device: (UserNid, &str)) -> Result<Option<KeyCountsRow>> {
        Ok(KEY_COUNTS.get(view, &device)?)
    }
}

impl Uploading {
    /// The first keys of a device that is about to be made.
    pub(super) fn of_new_device(
        view: &View,
        (user, name): (UserNid, &UserId),
        device: &str,
        upload: Upload,
    ) -> Result<Self> {
        let missing = || Error::bad_json("`device_keys` are missing");
        let device_keys = upload.device_keys.as_deref().ok_or_else(missing)?;
        let device_keys = checked(device_keys, name, device)?;
        let mut uploading = Self {
            user,
            device: device.to_owned(),
            device_keys: None,
            one_time: Vec::new(),
            fallback: Vec::new(),
            counts: KeyCountsRow::default(),
        };
        let (one_time, fallback) = (rows(upload.one_time)?, rows(upload.fallback)?);
        uploading.add(view, Some(device_keys), one_time, fallback)?;
        Ok(uploading)
    }

    /// The identity keys, if they are new.
    pub(super) fn device_keys(&self) -> Option<&String> {
        self.device_keys.as_ref()
    }

    /// Sees what of it is new.
    fn add(
        &mut self,
        view: &View,
        device_keys: Option<String>,
        one_time: Vec<(String, DeviceKeyRow)>,
        fallback: Vec<(String, DeviceKeyRow)>,
    ) -> Result<()> {
        let key = (self.user, self.device.as_str());
        if let Some(new) = device_keys {
            let before = DEVICE_KEYS.get(view, &key)?;
            // What the user has signed of them with the self-signing key stays.
            let new = match &before {
                Some(before) => device_keys::with_signatures_of(new, before),
                None => new,
            };
            self.device_keys = Some(new).filter(|new| before.as_ref() != Some(new));
        }
        for (algorithm, row) in one_time {
            let id = (self.user, self.device.as_str(), row.id.as_str());
            if let Some((position,)) = ONE_TIME_KEY_IDS.get(view, &id)? {
                let at = (
                    self.user,
                    self.device.as_str(),
                    algorithm.as_str(),
                    position,
                );
                let known = ONE_TIME_KEYS.get(view, &at)?;
                // The client has not got the answer the first time.
                if known.is_some_and(|known| is_same(&known.json, &row.json)) {
                    continue;
                }
                let id = &row.id;
                return Err(Error::invalid_param(format!(
                    "There is another one-time key `{id}` already"
                )));
            }
            *self.counts.counts.entry(algorithm.clone()).or_default() += 1;
            self.one_time.push((algorithm, row));
        }
        let count: u64 = self.counts.counts.values().sum();
        if usize::try_from(count).unwrap_or(usize::MAX) > MOST_ONE_TIME_KEYS {
            return Err(too_many());
        }
        for (algorithm, key) in fallback {
            let at = (self.user, self.device.as_str(), algorithm.as_str());
            let before = FALLBACK_KEYS.get(view, &at)?;
            // Sent again, it is as used as it was.
            let used = before.is_some_and(|before| before.used && before.key == key);
            self.counts.fallback.insert(algorithm.clone(), used);
            self.fallback
                .push((algorithm, FallbackKeyRow { key, used }));
        }
        if self.counts.fallback.len() > MOST_FALLBACK_KEYS {
            return Err(too_many());
        }
        Ok(())
    }

    pub(super) fn write(&mut self, batch: &mut Batch<'_>) {
        let (user, device) = (self.user, self.device.as_str());
        if let Some(keys) = &self.device_keys {
            DEVICE_KEYS.put(batch, &(user, device), keys);
        }
        for (algorithm, row) in &self.one_time {
            let position = batch.position();
            ONE_TIME_KEYS.put(batch, &(user, device, algorithm.as_str(), position), row);
            ONE_TIME_KEY_IDS.put(batch, &(user, device, row.id.as_str()), &(position,));
        }
        for (algorithm, row) in &self.fallback {
            FALLBACK_KEYS.put(batch, &(user, device, algorithm.as_str()), row);
        }
        if !self.one_time.is_empty() || !self.fallback.is_empty() {
            write_counts(batch, (user, device), &mut self.counts);
        }
    }
}

/// A key that is about to be given.
struct Claim {
    user: UserNid,
    device: String,
    algorithm: String,
    key: DeviceKeyRow,
    /// Where the key is, if it is given once.
    at: Option<Position>,
    counts: KeyCountsRow,
    is_news: bool,
}

impl Claim {
    fn prepare(
        view: &View,
        (user, device): (UserNid, &str),
        algorithm: &str,
    ) -> Result<Option<Self>> {
        let Some(mut counts) = KEY_COUNTS.get(view, &(user, device))? else {
            return Ok(None);
        };
        let behind = counts.given.get(algorithm).copied().unwrap_or_default();
        let bounds = (
            Bound::Excluded((user, device, algorithm, behind)),
            Bound::Unbounded,
        );
        let mut keys = ONE_TIME_KEYS.range(view, &(user, device, algorithm), bounds);
        let oldest = keys.next();
        let (key, at, is_news) = match oldest.transpose()? {
            Some(((_, _, _, position), key)) => {
                if let Some(count) = counts.counts.get_mut(algorithm) {
                    *count = count.saturating_sub(1);
                }
                counts.given.insert(algorithm.to_owned(), position);
                (key, Some(position), true)
            }
            None => match FALLBACK_KEYS.get(view, &(user, device, algorithm))? {
                Some(row) => {
                    counts.fallback.insert(algorithm.to_owned(), true);
                    (row.key, None, !row.used)
                }
                None => return Ok(None),
            },
        };
        Ok(Some(Self {
            user,
            device: device.to_owned(),
            algorithm: algorithm.to_owned(),
            key,
            at,
            counts,
            is_news,
        }))
    }

    fn write(&mut self, batch: &mut Batch<'_>) {
        let (user, device) = (self.user, self.device.as_str());
        let algorithm = self.algorithm.as_str();
        match self.at {
            Some(position) => {
                ONE_TIME_KEYS.delete(batch, &(user, device, algorithm, position));
                ONE_TIME_KEY_IDS.delete(batch, &(user, device, self.key.id.as_str()));
            }
            None => {
                let row = FallbackKeyRow {
                    key: self.key.clone(),
                    used: true,
                };
                FALLBACK_KEYS.put(batch, &(user, device, algorithm), &row);
            }
        }
        if self.is_news {
            write_counts(batch, (user, device), &mut self.counts);
        }
    }
}

fn write_counts(batch: &mut Batch<'_>, device: (UserNid, &str), counts: &mut KeyCountsRow) {
    counts.position = batch.position();
    KEY_COUNTS.put(batch, &device, counts);
    batch.touch_user(counts.position, device.0, None, Kinds::DEVICES);
}

fn checked(keys: &RawValue, user: &UserId, device: &str) -> Result<String> {
    if keys.get().len() > LONGEST_KEYS {
        return Err(Error::too_large("The keys are too long"));
    }
    device_keys::own_keys(keys.get(), user, device).map_err(|bad| match bad {
        BadKeys::Malformed(_) => Error::bad_json(bad.to_string()),
        BadKeys::OfAnother | BadKeys::Forged(_) => refused(&bad),
    })
}

/// What is wrong with keys, as clients are told.
pub(super) fn refused(bad: &BadKeys) -> Error {
    let errcode = match bad {
        BadKeys::Malformed(_) | BadKeys::OfAnother => "M_INVALID_PARAM",
        BadKeys::Forged(_) => "M_INVALID_SIGNATURE",
    };
    Error::api(StatusCode::BAD_REQUEST, errcode, bad.to_string())
}

/// The algorithm and the row of each.
fn rows(keys: Named) -> Result<Vec<(String, DeviceKeyRow)>> {
    let rows = keys.into_iter().map(|(id, key)| {
        let json = key.get().to_owned();
        let parts = id.split_once(':');
        let parts = parts.filter(|(algorithm, id)| !algorithm.is_empty() && !id.is_empty());
        let Some((algorithm, _)) = parts.filter(|_| id.len() <= LONGEST_ID) else {
            return Err(Error::invalid_param(
                "The id of a key is `algorithm:id`, and not long",
            ));
        };
        if json.len() > LONGEST_KEY {
            return Err(Error::too_large(format!("The key `{id}` is too long")));
        }
        if !json.starts_with(['{', '"']) {
            let message = format!("The key `{id}` is neither a text nor an object");
            return Err(Error::bad_json(message));
        }
        Ok((algorithm.to_owned(), DeviceKeyRow { id, json }))
    });
    rows.collect()
}

/// Whether two texts are the same JSON.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    one == other
        || matches!(
            (integrity::parse_value(one), integrity::parse_value(other)),
            (Ok(one), Ok(other)) if one == other
        )
}

/// Identity keys with the name that the device's owner gave it.
fn named(mut keys: String, name: Option<&str>) -> Result<Box<RawValue>> {
    if let Some(name) = name
        && keys.ends_with('}')
    {
        keys.pop();
        keys.push_str(",\"unsigned\":{\"device_display_name\":");
        push_string(&mut keys, name);
        keys.push_str("}}");
    }
    raw(keys)
}

pub(super) fn raw(json: String) -> Result<Box<RawValue>> {
    let broken = |e| Error::Internal(format!("a key is not JSON: {e}"));
    RawValue::from_string(json).map_err(broken)
}

fn too_many() -> Error {
    Error::too_large(format!(
        "A device has at most {MOST_ONE_TIME_KEYS} one-time keys and {MOST_FALLBACK_KEYS} fallback keys"
    ))
}
