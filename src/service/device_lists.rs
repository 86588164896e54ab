//! Notes that devices of a user have changed, and has all told who share a room with the user, here and elsewhere. See
//! "Device Management" in the server-server API.
//!
//! It is part of whatever changes a device, so that no change is ever forgotten. What other servers are to be told waits
//! until they have got it.

use std::{collections::BTreeSet, fmt::Write as _};

use ruma::events::room::member::MembershipState;

use crate::{
    error::Result,
    protocol::{
        format::push_string,
        ids::{Position, ServerNid, UserNid},
    },
    store::{
        Batch, Members, View,
        notify::Kinds,
        schema::{
            DEVICE_KEYS, DEVICE_LIST_CHANGES, DEVICE_LISTS, DEVICES, LASTING_EDUS, ROOM_MEMBERS,
            ROOM_SERVERS, USER_ROOMS,
        },
    },
};

/// The name of the message about cross-signing keys, and the one by which older servers know it.
pub(super) const SIGNING_KEY_UPDATES: [&str; 2] =
    ["m.signing_key_update", "org.matrix.signing_key_update"];

/// What a device is like now.
#[derive(Clone, Debug)]
pub(super) struct DeviceNow {
    /// Its id.
    pub(super) device: String,
    /// Its name and its identity keys as JSON; none if it is gone.
    pub(super) known: Option<(Option<String>, Option<String>)>,
}

/// The cross-signing keys of a user, as others see them now, as JSON.
#[derive(Clone, Debug)]
pub(super) struct SigningKeysNow {
    /// The master key.
    pub(super) master: Option<String>,
    /// The self-signing key.
    pub(super) self_signing: Option<String>,
}

/// A change that is about to be written, while devices stand still.
pub(super) struct DeviceListChange {
    user: UserNid,
    before: Option<Position>,
    users: Members,
    /// The user's name and the servers to tell, if it is for this node to tell others.
    tell: Option<(String, BTreeSet<ServerNid>)>,
}

impl DeviceListChange {
    /// Of a local user.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn here(view: &View, user: UserNid) -> Result<Self> {
        let name = view.store().user_id(user)?;
        let own = view.store().server_nid(name.server_name())?;
        let mut servers = BTreeSet::new();
        let change = Self::elsewhere(view, user)?;
        for row in USER_ROOMS.scan(view, &(user,)) {
            let ((_, room), member) = row?;
            if member.membership == MembershipState::Join {
                for row in ROOM_SERVERS.scan(view, &(room,)) {
                    servers.insert(row?.0.1);
                }
            }
        }
        servers.remove(&own);
        Ok(Self {
            tell: Some((name.to_string(), servers)),
            ..change
        })
    }

    /// Of a user of another server, which tells others itself.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn elsewhere(view: &View, user: UserNid) -> Result<Self> {
        let before = DEVICE_LISTS.get(view, &(user,))?;
        let mut users = Members::default();
        users.insert(user);
        for row in USER_ROOMS.scan(view, &(user,)) {
            let ((_, room), member) = row?;
            if member.membership != MembershipState::Join {
                continue;
            }
            for row in ROOM_MEMBERS.scan(view, &(room,)) {
                let ((_, user), member) = row?;
                if member.membership == MembershipState::Join {
                    users.insert(user);
                }
            }
        }
        Ok(Self {
            user,
            before: before.map(|(position,)| position),
            users,
            tell: None,
        })
    }

    /// Writes it. Others are told of each device, and of the cross-signing keys if these have changed.
    pub(super) fn write(
        self,
        batch: &mut Batch<'_>,
        devices: &[DeviceNow],
        signing: Option<&SigningKeysNow>,
    ) {
        let mut last = None;
        if let Some((name, servers)) = &self.tell {
            for device in devices {
                let position = batch.position();
                let previous = last.or(self.before);
                let edu = edu(name, device, position, previous);
                for server in servers {
                    LASTING_EDUS.put(batch, &(*server, position), &edu);
                }
                last = Some(position);
            }
        }
        if let (Some((name, servers)), Some(signing)) = (&self.tell, signing) {
            for edu_type in SIGNING_KEY_UPDATES {
                let position = batch.position();
                let edu = signing_edu(name, signing, edu_type);
                for server in servers {
                    LASTING_EDUS.put(batch, &(*server, position), &edu);
                }
            }
        }
        let position = last.unwrap_or_else(|| batch.position());
        if let Some(before) = self.before {
            DEVICE_LIST_CHANGES.delete(batch, &(before,));
        }
        DEVICE_LIST_CHANGES.put(batch, &(position,), &(self.user,));
        DEVICE_LISTS.put(batch, &(self.user,), &(position,));
        batch.touch_many(position, self.users, Kinds::DEVICES);
    }
}

/// How many devices of a user a server is told at first. What it is told has nothing before it, so that it looks at the
/// whole list sooner or later.
const MOST_INTRODUCED: usize = 20;

/// The messages by which a server gets to know the devices of a local user, to be made and written while devices stand
/// still. They say how the list is now, and count as no change of it.
///
/// # Errors
/// When the store fails.
pub(super) fn introduction(view: &View, user: UserNid) -> Result<Vec<String>> {
    let name = view.store().user_id(user)?;
    let version = DEVICE_LISTS.get(view, &(user,))?;
    let version = version.map_or(Position(0), |(position,)| position);
    let mut edus = Vec::new();
    for row in DEVICES.scan(view, &(user,)).take(MOST_INTRODUCED) {
        let ((_, device), row) = row?;
        let keys = DEVICE_KEYS.get(view, &(user, device.as_str()))?;
        let now = DeviceNow {
            device,
            known: Some((row.display_name, keys)),
        };
        edus.push(edu(name.as_str(), &now, version, None));
    }
    Ok(edus)
}

/// `m.device_list_update`.
fn edu(user: &str, now: &DeviceNow, position: Position, previous: Option<Position>) -> String {
    let mut edu = String::from("{\"content\":{\"device_id\":");
    push_string(&mut edu, &now.device);
    match &now.known {
        None => edu.push_str(",\"deleted\":true"),
        Some((name, keys)) => {
            if let Some(name) = name {
                edu.push_str(",\"device_display_name\":");
                push_string(&mut edu, name);
            }
            if let Some(keys) = keys {
                edu.push_str(",\"keys\":");
                edu.push_str(keys);
            }
        }
    }
    let previous = previous.map_or(String::new(), |previous| previous.to_string());
    let _ = write!(
        edu,
        ",\"prev_id\":[{previous}],\"stream_id\":{position},\"user_id\":"
    );
    push_string(&mut edu, user);
    edu.push_str("},\"edu_type\":\"m.device_list_update\"}");
    edu
}

/// `m.signing_key_update`.
fn signing_edu(user: &str, now: &SigningKeysNow, edu_type: &str) -> String {
    let mut edu = String::from("{\"content\":{");
    for (name, key) in [
        ("master_key", &now.master),
        ("self_signing_key", &now.self_signing),
    ] {
        if let Some(key) = key {
            let _ = write!(edu, "\"{name}\":{key},");
        }
    }
    edu.push_str("\"user_id\":");
    push_string(&mut edu, user);
    edu.push_str("},\"edu_type\":");
    push_string(&mut edu, edu_type);
    edu.push('}');
    edu
}
