//! "Cross-signing": the keys by which a user says which devices are theirs and whom they have verified.
//!
//! What is signed by the user's own keys is written into the keys that were signed, and seen by all. What a user has
//! signed of somebody else's master key stands apart, as nobody else is to see it.

use std::collections::BTreeMap;

use ruma::{OwnedUserId, UserId, api::client::uiaa::AuthData};
use serde_json::value::RawValue;

use super::{
    Encryption,
    keys::{Keys, LONGEST_KEYS, raw, refused},
};
use crate::{
    error::{Error, Result},
    protocol::{
        cross_signing::{CrossSigningKey, Usage, with_signature},
        device_keys,
        ids::{Position, UserNid},
        integrity,
    },
    service::{
        Requester,
        device_lists::{DeviceListChange, SigningKeysNow},
    },
    store::{
        Batch, View,
        notify::Kinds,
        schema::{CROSS_SIGNING_KEYS, DEVICE_KEYS, DEVICES, PRIVATE_KEY_CHANGES, USER_SIGNATURES},
    },
};

/// The cross-signing keys that a user uploads.
#[derive(Debug, Default)]
pub struct SigningKeys {
    /// The key that stands for the user.
    pub master: Option<Box<RawValue>>,
    /// The key that signs the user's devices.
    pub self_signing: Option<Box<RawValue>>,
    /// The key that signs the master keys of others.
    pub user_signing: Option<Box<RawValue>>,
}

/// Keys that are in order and new, about to be written while devices stand still.
struct NewKeys {
    /// As they will be stored; none for those that go, as another master key has signed them.
    rows: Vec<(Usage, Option<String>)>,
    /// Whether there were some before.
    replaces: bool,
    /// How others see them from now on.
    now: SigningKeysNow,
}

impl Encryption {
    /// Publishes cross-signing keys of a user. Who has some already has to confirm that these are to be others.
    ///
    /// # Errors
    /// 400 M_INVALID_PARAM for keys that are none or of somebody else, M_INVALID_SIGNATURE for those that are not signed
    /// by the master key, M_MISSING_PARAM when there is no master key; 403 M_FORBIDDEN when a device has the name of a
    /// key; what the client must do first, see [`Error::Uiaa`].
    pub async fn upload_signing_keys(
        &self,
        requester: &Requester,
        keys: SigningKeys,
        auth: Option<&AuthData>,
    ) -> Result<()> {
        let sent = [
            (Usage::Master, keys.master),
            (Usage::SelfSigning, keys.self_signing),
            (Usage::UserSigning, keys.user_signing),
        ];
        let mut keys = BTreeMap::new();
        for (usage, key) in sent {
            if let Some(key) = key {
                if key.get().len() > LONGEST_KEYS {
                    return Err(Error::too_large("The key is too long"));
                }
                let key = CrossSigningKey::parse(key.get(), &requester.user_id, usage);
                keys.insert(usage, key.map_err(|bad| refused(&bad))?);
            }
        }
        let ids: Vec<_> = keys.values().map(CrossSigningKey::id).collect();
        let what = format!("upload cross-signing keys {ids:?}");
        let mut is_confirmed = false;
        let position = loop {
            {
                let _still = self.accounts.still();
                let view = self.store.latest();
                let Some(new) = NewKeys::of(&view, requester, &keys)? else {
                    // What the first request wrote may still be on its way to the disk.
                    break view.position();
                };
                if is_confirmed || !new.replaces {
                    break self.write_signing_keys(&view, requester, &new)?;
                }
            }
            self.accounts.confirm(requester, &what, auth).await?;
            is_confirmed = true;
        };
        Ok(self.store.durable(position).await?)
    }

    fn write_signing_keys(
        &self,
        view: &View,
        requester: &Requester,
        new: &NewKeys,
    ) -> Result<Position> {
        let user = requester.nid;
        let is_public = |(usage, _): &(Usage, _)| *usage != Usage::UserSigning;
        let change = if new.rows.iter().any(is_public) {
            Some(DeviceListChange::here(view, user)?)
        } else {
            None
        };
        let private = PrivateChange::prepare(view, user, user)?;
        let committed = self.store.commit(|batch| {
            for (usage, row) in &new.rows {
                let key = (user, usage.name());
                match row {
                    Some(row) => CROSS_SIGNING_KEYS.put(batch, &key, row),
                    None => CROSS_SIGNING_KEYS.delete(batch, &key),
                }
            }
            match change {
                Some(change) => change.write(batch, &[], Some(&new.now)),
                None => private.write(batch),
            }
            Ok(())
        })?;
        Ok(committed.position)
    }

    /// A cross-signing key of a local user, as all may see it.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn signing_key(
        view: &View,
        (nid, user): (UserNid, &UserId),
        usage: Usage,
    ) -> Result<Option<CrossSigningKey>> {
        let row = CROSS_SIGNING_KEYS.get(view, &(nid, usage.name()))?;
        let broken =
            |bad| Error::Internal(format!("a key of {user} that was stored is bad: {bad}"));
        let key = row.map(|row| CrossSigningKey::parse(&row, user, usage));
        key.transpose().map_err(broken)
    }

    /// Adds the cross-signing keys of these local users, as all may see them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn add_signing_keys<'u>(
        &self,
        view: &View,
        users: impl Iterator<Item = &'u OwnedUserId>,
        keys: &mut Keys,
    ) -> Result<()> {
        for user in users.filter(|user| self.is_local(user.server_name())) {
            let Some(nid) = self.store.find_user(user)? else {
                continue;
            };
            let SigningKeysNow {
                master,
                self_signing,
            } = published(view, nid)?;
            if let Some(master) = master {
                keys.master_keys.insert(user.clone(), raw(master)?);
            }
            if let Some(key) = self_signing {
                keys.self_signing_keys.insert(user.clone(), raw(key)?);
            }
        }
        Ok(())
    }

    /// Adds what only the one who asks may see: the own user-signing key, if it is asked for, and what was signed with it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn add_private_keys(
        &self,
        view: &View,
        requester: &Requester,
        wants_own: bool,
        keys: &mut Keys,
    ) -> Result<()> {
        let who = (requester.nid, &*requester.user_id);
        let Some(own) = Self::signing_key(view, who, Usage::UserSigning)? else {
            return Ok(());
        };
        if wants_own {
            let key = raw(own.json())?;
            keys.user_signing_keys
                .insert(requester.user_id.clone(), key);
        }
        for (user, master) in &mut keys.master_keys {
            let Some(nid) = self.store.find_user(user)? else {
                continue;
            };
            let Some(row) = USER_SIGNATURES.get(view, &(nid, requester.nid))? else {
                continue;
            };
            let key = CrossSigningKey::parse(master.get(), user, Usage::Master).ok();
            if row.by == own.id() && key.is_some_and(|key| key.id() == row.of) {
                let text = master.get().to_owned();
                let signature = (row.by.as_str(), row.signature.as_str());
                *master = raw(with_signature(text, &requester.user_id, signature))?;
            }
        }
        Ok(())
    }
}

/// The keys of a local user that all may see.
///
/// # Errors
/// When the store fails.
pub(super) fn published(view: &View, user: UserNid) -> Result<SigningKeysNow> {
    let key = |usage: Usage| CROSS_SIGNING_KEYS.get(view, &(user, usage.name()));
    Ok(SigningKeysNow {
        master: key(Usage::Master)?,
        self_signing: key(Usage::SelfSigning)?,
    })
}

impl NewKeys {
    /// Checks keys; none if they are there already.
    fn of(
        view: &View,
        requester: &Requester,
        keys: &BTreeMap<Usage, CrossSigningKey>,
    ) -> Result<Option<Self>> {
        let (nid, user) = (requester.nid, &*requester.user_id);
        let known = |usage| Encryption::signing_key(view, (nid, user), usage);
        let before = known(Usage::Master)?;
        let master = keys.get(&Usage::Master).or(before.as_ref());
        let master = master.ok_or_else(|| Error::missing_param("master_key"))?;
        let mut now = published(view, nid)?;
        let mut rows = Vec::new();
        for usage in [Usage::Master, Usage::SelfSigning, Usage::UserSigning] {
            let known = known(usage)?;
            let stays = |known: &CrossSigningKey| {
                usage == Usage::Master || master.has_signed(known.object(), user).is_ok()
            };
            let Some(key) = keys.get(&usage) else {
                if known.is_some_and(|known| !stays(&known)) {
                    rows.push((usage, None));
                }
                continue;
            };
            let signatures = match usage {
                Usage::Master => by_devices(view, (nid, user), key)?,
                Usage::SelfSigning | Usage::UserSigning => {
                    let signature = master.has_signed(key.object(), user);
                    let signature = signature.map_err(|bad| refused(&bad))?;
                    vec![(master.id(), signature)]
                }
            };
            // The same key may come with other signatures; it is not another key for that.
            let is_same = |known: &CrossSigningKey| known.signed_text() == key.signed_text();
            if known.is_none_or(|known| !is_same(&known) || !stays(&known)) {
                if DEVICES.contains(view, &(nid, key.public()))? {
                    return Err(Error::forbidden("A device has the name of this key"));
                }
                rows.push((usage, Some(key.signed(user, &signatures))));
            }
        }
        for (usage, row) in &rows {
            match usage {
                Usage::Master => now.master.clone_from(row),
                Usage::SelfSigning => now.self_signing.clone_from(row),
                Usage::UserSigning => {}
            }
        }
        Ok((!rows.is_empty()).then(|| Self {
            rows,
            replaces: before.is_some(),
            now,
        }))
    }
}

/// The signatures of a master key by the user's devices. What is said to be by devices that are not here is left out.
///
/// # Errors
/// 400 M_INVALID_SIGNATURE for one that is not what it is said to be.
pub(super) fn by_devices<'k>(
    view: &View,
    (nid, user): (UserNid, &UserId),
    key: &'k CrossSigningKey,
) -> Result<Vec<(&'k str, &'k str)>> {
    let signatures = device_keys::signatures_by(key.object(), user);
    let mut found = Vec::new();
    for (id, signature) in signatures {
        let Some(device) = id.strip_prefix("ed25519:") else {
            continue;
        };
        let Some(keys) = DEVICE_KEYS.get(view, &(nid, device))? else {
            continue;
        };
        let keys = integrity::parse_object(&keys).unwrap_or_default();
        let Some(by) = device_keys::signing_key(&keys, id) else {
            continue;
        };
        device_keys::verify(key.object(), signature, &by).map_err(|bad| refused(&bad))?;
        found.push((id, signature));
    }
    Ok(found)
}

/// That somebody's keys look new to one local user alone, about to be written while devices stand still.
pub(super) struct PrivateChange {
    user: UserNid,
    whose: UserNid,
    before: Vec<Position>,
}

impl PrivateChange {
    /// Of the keys of `whose`, for `user`.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn prepare(view: &View, user: UserNid, whose: UserNid) -> Result<Self> {
        let mut before = Vec::new();
        for row in PRIVATE_KEY_CHANGES.scan(view, &(user,)) {
            let ((_, position), (other,)) = row?;
            if other == whose {
                before.push(position);
            }
        }
        Ok(Self {
            user,
            whose,
            before,
        })
    }

    pub(super) fn write(&self, batch: &mut Batch<'_>) {
        let position = batch.position();
        for before in &self.before {
            PRIVATE_KEY_CHANGES.delete(batch, &(self.user, *before));
        }
        PRIVATE_KEY_CHANGES.put(batch, &(self.user, position), &(self.whose,));
        batch.touch_user(position, self.user, None, Kinds::DEVICES);
    }
}
