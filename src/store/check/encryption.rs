//! The laws of what the node carries from device to device.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;

use super::{Check, Complaint};
use crate::{
    protocol::ids::{Position, ServerNid, UserNid},
    store::{
        Result,
        schema::{
            BACKUP_KEYS, CROSS_SIGNING_KEYS, DEHYDRATED_DEVICES, DEVICE_KEYS, DEVICE_LIST_CHANGES,
            DEVICE_LISTS, DEVICES, FALLBACK_KEYS, KEY_BACKUPS, KEY_COUNTS, LASTING_EDUS,
            MEMBER_CHANGES, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, PRIVATE_KEY_CHANGES,
            RECEIVED_TO_DEVICE, REMOTE_KEYS, ROOM_MEMBERS, SENT_TO_DEVICE, SERVER_NAMES, TO_DEVICE,
            USER_IDS, USER_SIGNATURES,
        },
    },
};

impl Check<'_> {
    pub(super) fn encryption(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&TO_DEVICE, say, |say, (user, device, position), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!(
                    "what waits for the device {device} of user {user} is not JSON"
                ));
            }
            if position > self.view.position() {
                say(format!(
                    "a message waits since {position}, which has not come yet"
                ));
            }
            self.device(say, (user, &device), "a message")
        })?;
        self.rows(&SENT_TO_DEVICE, say, |say, (user, device, _, _), _| {
            self.device(say, (user, &device), "a transaction")
        })?;
        self.rows(&LASTING_EDUS, say, |say, (server, position), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!("what server {server} is to be told is not JSON"));
            }
            if position > self.view.position() {
                say(format!(
                    "server {server} is to be told something of {position}, which has not come yet"
                ));
            }
            self.has_name(say, server)
        })?;
        self.device_keys(say)?;
        self.cross_signing(say)?;
        self.device_lists(say)?;
        self.backups(say)?;
        self.rows(&DEHYDRATED_DEVICES, say, |say, (user,), row| {
            if serde_json::from_str::<IgnoredAny>(&row.data).is_err() {
                say(format!("the dehydrated device of user {user} is not JSON"));
            }
            self.device(say, (user, &row.device), "a dehydrated device")
        })?;
        self.rows(&RECEIVED_TO_DEVICE, say, |say, (server, _), _| {
            self.has_name(say, server)
        })
    }

    /// Every key is found by its id and counted.
    fn device_keys(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&DEVICE_KEYS, say, |say, (user, device), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!(
                    "the keys of the device {device} of user {user} are not JSON"
                ));
            }
            self.device(say, (user, &device), "a set of keys")
        })?;
        let mut counted: BTreeMap<(UserNid, String), BTreeMap<String, u64>> = BTreeMap::new();
        self.rows(&ONE_TIME_KEYS, say, |say, key, row| {
            let (user, device, algorithm, position) = key;
            let id = (user, device.as_str(), row.id.as_str());
            if ONE_TIME_KEY_IDS.get(&self.view, &id)? != Some((position,)) {
                say(format!(
                    "a one-time key of user {user} is not found by its id"
                ));
            }
            let told = KEY_COUNTS.get(&self.view, &(user, device.as_str()))?;
            if told.is_some_and(|row| row.given.get(&algorithm).is_some_and(|at| *at >= position)) {
                say(format!("a one-time key of user {user} is never given"));
            }
            self.device(say, (user, &device), "a one-time key")?;
            let counts = counted.entry((user, device)).or_default();
            *counts.entry(algorithm).or_default() += 1;
            Ok(())
        })?;
        self.rows(
            &ONE_TIME_KEY_IDS,
            say,
            |say, (user, device, id), (position,)| {
                let algorithm = id.split(':').next().unwrap_or_default();
                let at = (user, device.as_str(), algorithm, position);
                let row = ONE_TIME_KEYS.get(&self.view, &at)?;
                if row.is_none_or(|row| row.id != id) {
                    say(format!("the one-time key {id} of user {user} is missing"));
                }
                Ok(())
            },
        )?;
        self.rows(
            &FALLBACK_KEYS,
            say,
            |say, (user, device, algorithm), row| {
                let counts = KEY_COUNTS.get(&self.view, &(user, device.as_str()))?;
                if counts.and_then(|row| row.fallback.get(&algorithm).copied()) != Some(row.used) {
                    say(format!("a fallback key of user {user} is told wrongly"));
                }
                self.device(say, (user, &device), "a fallback key")
            },
        )?;
        self.rows(&KEY_COUNTS, say, |say, (user, device), mut row| {
            row.counts.retain(|_, count| *count > 0);
            let counted = counted.remove(&(user, device.clone())).unwrap_or_default();
            if row.counts != counted {
                say(format!(
                    "the device {device} of user {user} is told of {:?} one-time keys, but has {counted:?}",
                    row.counts
                ));
            }
            self.device(say, (user, &device), "a count of keys")
        })?;
        for (user, device) in counted.into_keys() {
            say(format!(
                "the one-time keys of device {device} of user {user} are not counted"
            ));
        }
        Ok(())
    }

    /// Every key is in a backup of somebody's, which counts it.
    fn backups(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        let mut counted: BTreeMap<(UserNid, Position), u64> = BTreeMap::new();
        self.rows(&BACKUP_KEYS, say, |say, (user, version, _, session), json| {
            *counted.entry((user, version)).or_default() += 1;
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!(
                    "the key of session {session} in backup {version} of user {user} is not JSON"
                ));
            }
            Ok(())
        })?;
        self.rows(&KEY_BACKUPS, say, |say, (user, version), row| {
            let count = counted.remove(&(user, version)).unwrap_or_default();
            if row.count != count {
                say(format!(
                    "backup {version} of user {user} counts {} keys, but has {count}",
                    row.count
                ));
            }
            if serde_json::from_str::<IgnoredAny>(&row.auth_data).is_err() {
                say(format!(
                    "what backup {version} of user {user} is encrypted with is not JSON"
                ));
            }
            if row.changed > self.view.position() {
                say(format!(
                    "backup {version} of user {user} changed at {}, which has not come yet",
                    row.changed
                ));
            }
            self.account(say, user, &format!("backup {version}"))
        })?;
        for (user, version) in counted.into_keys() {
            say(format!(
                "user {user} has keys in backup {version}, which is not there"
            ));
        }
        Ok(())
    }

    /// Keys and signatures are of users whose names are known, and each change is told once.
    fn cross_signing(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&CROSS_SIGNING_KEYS, say, |say, (user, usage), json| {
            let is_known = ["master", "self_signing", "user_signing"].contains(&&*usage);
            if !is_known || serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!("the {usage} key of user {user} is none"));
            }
            if usage != "master" && !CROSS_SIGNING_KEYS.contains(&self.view, &(user, "master"))? {
                say(format!("user {user} has a {usage} key but no master key"));
            }
            self.account(say, user, "a cross-signing key")
        })?;
        self.rows(&USER_SIGNATURES, say, |say, (whose, user), _| {
            if !USER_IDS.contains(&self.view, &(whose,))? {
                say(format!("user {user} has signed a key of nobody"));
            }
            self.account(say, user, "a signature")
        })?;
        let mut told = BTreeSet::new();
        self.rows(
            &PRIVATE_KEY_CHANGES,
            say,
            |say, (user, position), (whose,)| {
                if !told.insert((user, whose)) {
                    say(format!(
                        "user {user} is told twice that the keys of user {whose} have changed"
                    ));
                }
                if position > self.view.position() {
                    say(format!(
                        "user {user} is told of keys of {position}, which has not come yet"
                    ));
                }
                self.account(say, user, "a change of keys")
            },
        )
    }

    fn device_lists(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&DEVICE_LISTS, say, |say, (user,), (position,)| {
            if DEVICE_LIST_CHANGES.get(&self.view, &(position,))? != Some((user,)) {
                say(format!(
                    "the devices of user {user} changed at {position}, but not in the order of changes"
                ));
            }
            Ok(())
        })?;
        self.rows(&DEVICE_LIST_CHANGES, say, |say, (position,), (user,)| {
            if DEVICE_LISTS.get(&self.view, &(user,))? != Some((position,)) {
                say(format!(
                    "the devices of user {user} changed at {position}, which was not the last time"
                ));
            }
            Ok(())
        })?;
        self.rows(&REMOTE_KEYS, say, |say, (user,), row| {
            if !USER_IDS.contains(&self.view, &(user,))? || row.as_of > self.view.position() {
                say(format!(
                    "the keys that are kept of user {user} are nobody's or not yet"
                ));
            }
            Ok(())
        })?;
        self.rows(&MEMBER_CHANGES, say, |say, (room, position, user), ()| {
            let row = ROOM_MEMBERS.get(&self.view, &(room, user))?;
            if row.is_none_or(|row| row.since < position) {
                say(format!(
                    "the membership of user {user} in room {room} changed at {position}, which it does not know"
                ));
            }
            Ok(())
        })?;
        self.rows(&ROOM_MEMBERS, say, |say, (room, user), row| {
            if !MEMBER_CHANGES.contains(&self.view, &(room, row.since, user))? {
                say(format!(
                    "the membership of user {user} in room {room} is not in the order of changes"
                ));
            }
            Ok(())
        })
    }

    fn has_name(&self, say: &mut dyn FnMut(Complaint), server: ServerNid) -> Result<()> {
        if !SERVER_NAMES.contains(&self.view, &(server,))? {
            say(format!(
                "server {server} writes to devices, but has no name"
            ));
        }
        Ok(())
    }

    /// Complains if `what` is of a device that is not there.
    fn device(
        &self,
        say: &mut dyn FnMut(Complaint),
        (user, device): (UserNid, &str),
        what: &str,
    ) -> Result<()> {
        if !DEVICES.contains(&self.view, &(user, device))? {
            say(format!(
                "{what} is for the device {device} of user {user}, which is not there"
            ));
        }
        Ok(())
    }
}
