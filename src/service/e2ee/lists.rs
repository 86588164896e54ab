//! "Tracking the device list for a user": whose devices have changed, and what is known here of those of users of other
//! servers.
//!
//! The keys of a user of another server are kept while that server tells us of every change: as long as the two share a
//! room. Each such message ends what was kept, so it does not matter whether one was missed before: the next one who
//! asks for the keys has all of them fetched anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use ruma::{OwnedUserId, ServerName, UserId, events::room::member::MembershipState};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Encryption,
    cross_signing::published,
    keys::{LONGEST_KEYS, is_same, raw},
};
use crate::{
    error::{Error, Result},
    protocol::{
        cross_signing::{CrossSigningKey, Usage},
        ids::{Position, UserNid},
    },
    service::device_lists::{DeviceListChange, SIGNING_KEY_UPDATES},
    store::{
        View,
        schema::{
            DEVICE_KEYS, DEVICE_LIST_CHANGES, DEVICE_LISTS, DEVICES, PRIVATE_KEY_CHANGES,
            REMOTE_KEYS, ROOM_MEMBERS, ROOM_SERVERS, RemoteKeysRow, USER_ROOMS,
        },
    },
};

/// The content of `m.device_list_update` and of `m.signing_key_update`, as far as it matters here.
#[derive(Deserialize)]
struct Update {
    user_id: OwnedUserId,
    master_key: Option<Box<RawValue>>,
    self_signing_key: Option<Box<RawValue>>,
    stream_id: Option<Box<RawValue>>,
}

/// The keys of a user of another server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The identity keys of the devices, as JSON.
    pub devices: BTreeMap<String, String>,
    /// The master key, as JSON.
    pub master: Option<String>,
    /// The self-signing key, as JSON.
    pub self_signing: Option<String>,
}

impl Kept {
    /// Whether these are the same keys, however they are written.
    fn is_same(&self, other: &Self) -> bool {
        let same_key = |one: &Option<String>, other: &Option<String>| match (one, other) {
            (Some(one), Some(other)) => is_same(one, other),
            (one, other) => one == other,
        };
        let is_known = |(device, keys): (&String, &String)| {
            let other = other.devices.get(device);
            other.is_some_and(|other| is_same(keys, other))
        };
        self.devices.len() == other.devices.len()
            && self.devices.iter().all(is_known)
            && same_key(&self.master, &other.master)
            && same_key(&self.self_signing, &other.self_signing)
    }

    /// Takes in cross-signing keys that the user's server tells, as far as they are in order.
    pub fn take_signing_keys(
        &mut self,
        user: &UserId,
        master: Option<&RawValue>,
        self_signing: Option<&RawValue>,
    ) {
        let key = |key: Option<&RawValue>, usage| {
            let key = key.filter(|key| key.get().len() <= LONGEST_KEYS);
            CrossSigningKey::parse(key?.get(), user, usage).ok()
        };
        let master = key(master, Usage::Master);
        let own = key(self_signing, Usage::SelfSigning);
        let own = own.filter(|own| {
            let signed = master.as_ref().map(|by| by.has_signed(own.object(), user));
            signed.is_some_and(|signed| signed.is_ok())
        });
        self.self_signing = own.map(|own| own.json());
        self.master = master.map(|master| master.json());
    }
}

/// The devices of a user as another server is told.
#[derive(Debug, Serialize)]
pub struct Told {
    user_id: OwnedUserId,
    stream_id: u64,
    devices: Vec<ToldDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_signing_key: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize)]
struct ToldDevice {
    device_id: String,
    keys: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_display_name: Option<String>,
}

impl Encryption {
    /// Who of those who share a room with a user, or is the user, has changed devices after `since`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn changed(
        &self,
        view: &View,
        user: UserNid,
        since: Position,
    ) -> Result<BTreeSet<UserNid>> {
        let bounds = (
            Bound::Excluded((since,)),
            Bound::Included((view.position(),)),
        );
        let mut changed = BTreeSet::new();
        for row in DEVICE_LIST_CHANGES.range(view, &(), bounds) {
            let (_, (other,)) = row?;
            if other == user || self.share(view, other, user)? {
                changed.insert(other);
            }
        }
        let bounds = (
            Bound::Excluded((user, since)),
            Bound::Included((user, view.position())),
        );
        for row in PRIVATE_KEY_CHANGES.range(view, &(user,), bounds) {
            changed.insert(row?.1.0);
        }
        Ok(changed)
    }

    /// The devices of a local user, for another server. See "GET /_matrix/federation/v1/user/devices/{userId}".
    ///
    /// # Errors
    /// 404 when there is no such user.
    pub fn told_devices(&self, user: &UserId) -> Result<Told> {
        let view = self.store.view();
        let (nid, _) = self
            .accounts
            .find(&view, user)?
            .ok_or_else(|| Error::not_found("The user"))?;
        let stream_id = DEVICE_LISTS.get(&view, &(nid,))?;
        let mut devices = Vec::new();
        for row in DEVICE_KEYS.scan(&view, &(nid,)) {
            let ((_, device_id), keys) = row?;
            let row = DEVICES.get(&view, &(nid, device_id.as_str()))?;
            devices.push(ToldDevice {
                device_id,
                keys: raw(keys)?,
                device_display_name: row.and_then(|row| row.display_name),
            });
        }
        let signing = published(&view, nid)?;
        Ok(Told {
            user_id: user.to_owned(),
            stream_id: stream_id.map_or(0, |(position,)| position.0),
            devices,
            master_key: signing.master.map(raw).transpose()?,
            self_signing_key: signing.self_signing.map(raw).transpose()?,
        })
    }

    /// Whether two users are in a room together.
    ///
    /// # Errors
    /// When the store fails.
    pub fn share(&self, view: &View, one: UserNid, other: UserNid) -> Result<bool> {
        for row in USER_ROOMS.scan(view, &(one,)) {
            let ((_, room), member) = row?;
            if member.membership != MembershipState::Join {
                continue;
            }
            let other = ROOM_MEMBERS.get(view, &(room, other))?;
            if other.is_some_and(|other| other.membership == MembershipState::Join) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes note that devices or cross-signing keys of a user of another server have changed; says from when on that is
    /// safe. `noted` holds of whom the same transaction has said so before: it was sent after all that it tells, and so is
    /// whatever was fetched since.
    ///
    /// # Errors
    /// When the store fails.
    pub fn receive_update(
        &self,
        origin: &ServerName,
        (edu_type, content): (&str, &str),
        noted: &mut BTreeSet<UserNid>,
    ) -> Result<Option<Position>> {
        let Ok(update) = serde_json::from_str::<Update>(content) else {
            return Ok(None);
        };
        if update.user_id.server_name() != origin {
            return Ok(None);
        }
        // Whoever shares no room with anybody here is nothing to anybody here.
        let Some(user) = self.store.find_user(&update.user_id)? else {
            return Ok(None);
        };
        if noted.contains(&user) {
            return Ok(None);
        }
        let _still = self.accounts.still();
        let view = self.store.latest();
        if self.shared_since(&view, user)?.is_none() {
            return Ok(None);
        }
        // A device of a user who has never had keys, as we tell it.
        let has_list = update.stream_id.is_none_or(|id| id.get() != "0");
        if !has_list && !REMOTE_KEYS.contains(&view, &(user,))? {
            return Ok(None);
        }
        // It comes under two names.
        if SIGNING_KEY_UPDATES.contains(&edu_type)
            && let Some(kept) = self.kept_keys(&view, &update.user_id)?
        {
            let mut told = Kept::default();
            let (master, own) = (&update.master_key, &update.self_signing_key);
            told.take_signing_keys(&update.user_id, master.as_deref(), own.as_deref());
            if (told.master, told.self_signing) == (kept.master, kept.self_signing) {
                return Ok(Some(view.position()));
            }
        }
        let change = DeviceListChange::elsewhere(&view, user)?;
        let committed = self.store.commit(|batch| {
            REMOTE_KEYS.delete(batch, &(user,));
            change.write(batch, &[], None);
            Ok(())
        })?;
        noted.insert(user);
        Ok(Some(committed.position))
    }

    /// Since when this node and a user of another server have been in a room together; none if they are not.
    fn shared_since(&self, view: &View, user: UserNid) -> Result<Option<Position>> {
        let own = self.store.server_nid(self.accounts.server_name())?;
        let mut longest = None;
        for row in USER_ROOMS.scan(view, &(user,)) {
            let ((_, room), member) = row?;
            if member.membership != MembershipState::Join {
                continue;
            }
            if let Some(ours) = ROOM_SERVERS.get(view, &(room, own))? {
                let since = member.since.max(ours.since);
                longest = Some(longest.map_or(since, |longest: Position| longest.min(since)));
            }
        }
        Ok(longest)
    }

    /// The keys of a user of another server and of all its devices, if they are known and still the present ones.
    ///
    /// # Errors
    /// When the store fails.
    pub fn kept_keys(&self, view: &View, user: &UserId) -> Result<Option<Kept>> {
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(None);
        };
        let Some(row) = REMOTE_KEYS.get(view, &(nid,))? else {
            return Ok(None);
        };
        // Between two stays nobody told us.
        if self
            .shared_since(view, nid)?
            .is_none_or(|since| since > row.as_of)
        {
            return Ok(None);
        }
        Ok(Some(Kept {
            devices: row.devices,
            master: row.master,
            self_signing: row.self_signing,
        }))
    }

    /// Keeps the keys of a user of another server and of all its devices, for which it was asked at `as_of`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keep_keys(&self, as_of: Position, user: &UserId, keys: &Kept) -> Result<()> {
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(());
        };
        let _still = self.accounts.still();
        let view = self.store.latest();
        let changed = DEVICE_LISTS.get(&view, &(nid,))?;
        let is_late = changed.is_some_and(|(position,)| position > as_of);
        let since = self.shared_since(&view, nid)?;
        if is_late || since.is_none_or(|since| since > as_of) {
            return Ok(());
        }
        let row = RemoteKeysRow {
            as_of,
            devices: keys.devices.clone(),
            master: keys.master.clone(),
            self_signing: keys.self_signing.clone(),
        };
        // What is lost is fetched again.
        let _not_awaited = self.store.commit(|batch| {
            REMOTE_KEYS.put(batch, &(nid,), &row);
            Ok(())
        })?;
        Ok(())
    }

    /// The users of another server whose keys are kept.
    ///
    /// # Errors
    /// When the store fails.
    pub fn kept_of(&self, view: &View, server: &ServerName) -> Result<Vec<OwnedUserId>> {
        let mut users = Vec::new();
        for row in REMOTE_KEYS.scan(view, &()) {
            let ((user,), _) = row?;
            let user = self.store.user_id(user)?;
            if user.server_name() == server && self.kept_keys(view, &user)?.is_some() {
                users.push((*user).clone());
            }
        }
        Ok(users)
    }

    /// Takes note of what a user of another server had for keys at `as_of`; says whether those that are kept are others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn compare_keys(&self, as_of: Position, user: &UserId, told: &Kept) -> Result<bool> {
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(false);
        };
        let _still = self.accounts.still();
        let view = self.store.latest();
        // What was fetched or ended meanwhile is newer.
        let row = REMOTE_KEYS.get(&view, &(nid,))?;
        if row.is_none_or(|row| row.as_of > as_of) {
            return Ok(false);
        }
        match self.kept_keys(&view, user)? {
            Some(kept) if !kept.is_same(told) => {}
            _ => return Ok(false),
        }
        let change = DeviceListChange::elsewhere(&view, nid)?;
        let _not_awaited = self.store.commit(|batch| {
            REMOTE_KEYS.delete(batch, &(nid,));
            change.write(batch, &[], None);
            Ok(())
        })?;
        Ok(true)
    }
}
