//! "Tracking the device list for a user": whose devices have changed, and what is known here of those of users of other
//! servers.
//!
//! The keys of a user of another server are kept while that server tells us of every change: as long as the two share a
//! room. Each such message ends what was kept, so it does not matter whether one was missed before: the next one who
//! asks for the keys has all of them fetched anew.

use std::{collections::BTreeSet, ops::Bound};

use ruma::{OwnedUserId, ServerName, UserId, events::room::member::MembershipState};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Encryption,
    keys::{Named, raw},
};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, UserNid},
    service::device_lists::DeviceListChange,
    store::{
        View,
        schema::{
            DEVICE_KEYS, DEVICE_LIST_CHANGES, DEVICE_LISTS, DEVICES, REMOTE_KEYS, ROOM_MEMBERS,
            ROOM_SERVERS, RemoteKeysRow, USER_ROOMS,
        },
    },
};

/// The content of `m.device_list_update`, as far as it matters here.
#[derive(Deserialize)]
struct Update {
    user_id: OwnedUserId,
}

/// The devices of a user as another server is told.
#[derive(Debug, Serialize)]
pub struct Told {
    user_id: OwnedUserId,
    stream_id: u64,
    devices: Vec<ToldDevice>,
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
        Ok(Told {
            user_id: user.to_owned(),
            stream_id: stream_id.map_or(0, |(position,)| position.0),
            devices,
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

    /// Takes note that devices of a user of another server have changed; says from when on that is safe.
    ///
    /// # Errors
    /// When the store fails.
    pub fn receive_update(&self, origin: &ServerName, content: &str) -> Result<Option<Position>> {
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
        let _still = self.accounts.still();
        let view = self.store.latest();
        if self.shared_since(&view, user)?.is_none() {
            return Ok(None);
        }
        let change = DeviceListChange::elsewhere(&view, user)?;
        let committed = self.store.commit(|batch| {
            REMOTE_KEYS.delete(batch, &(user,));
            change.write(batch, &[]);
            Ok(())
        })?;
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

    /// The keys of all devices of a user of another server, if they are known and still the present ones.
    ///
    /// # Errors
    /// When the store fails.
    pub fn kept_keys(&self, view: &View, user: &UserId) -> Result<Option<Named>> {
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
        let devices = row.devices.into_iter();
        let devices = devices.map(|(device, keys)| Ok((device, raw(keys)?)));
        devices.collect::<Result<_>>().map(Some)
    }

    /// Keeps the keys of all devices of a user of another server, for which it was asked at `as_of`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keep_keys(&self, as_of: Position, user: &UserId, devices: &Named) -> Result<()> {
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
        let devices = devices.iter();
        let devices = devices.map(|(device, keys)| (device.clone(), keys.get().to_owned()));
        let row = RemoteKeysRow {
            as_of,
            devices: devices.collect(),
        };
        // What is lost is fetched again.
        let _not_awaited = self.store.commit(|batch| {
            REMOTE_KEYS.put(batch, &(nid,), &row);
            Ok(())
        })?;
        Ok(())
    }
}
