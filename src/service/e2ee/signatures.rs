//! "Upload cross-signing signatures": what users have signed of their own keys and of those of others. Nothing is taken
//! that is not what it is said to be.

use std::collections::BTreeMap;

use ruma::{CanonicalJsonObject, OwnedUserId, UserId};
use serde_json::value::RawValue;

use super::{
    Encryption,
    cross_signing::{PrivateChange, by_devices, published},
    keys::{LONGEST_KEYS, Named, refused},
};
use crate::{
    error::{Error, Result},
    protocol::{
        cross_signing::{CrossSigningKey, Usage, signed},
        device_keys::{self, BadKeys},
        ids::{Position, UserNid},
        integrity,
    },
    service::{
        Requester,
        device_lists::{DeviceListChange, DeviceNow},
    },
    store::{
        View,
        schema::{CROSS_SIGNING_KEYS, DEVICE_KEYS, DEVICES, USER_SIGNATURES, UserSignatureRow},
    },
};

/// Why signatures were not taken, by the user and the name of the key that was signed.
pub type Failures = BTreeMap<OwnedUserId, BTreeMap<String, Error>>;

/// Signatures that were verified and are new, about to be written while devices stand still.
#[derive(Default)]
struct Signatures {
    /// Of the user's devices.
    devices: Vec<DeviceNow>,
    /// Of the user's master key, as JSON with all of them.
    master: Option<String>,
    /// Of the master keys of others.
    others: BTreeMap<UserNid, UserSignatureRow>,
}

/// The user's own keys, as far as there are any.
struct OwnKeys<'r> {
    requester: &'r Requester,
    master: Option<CrossSigningKey>,
    self_signing: Option<CrossSigningKey>,
    user_signing: Option<CrossSigningKey>,
}

impl Encryption {
    /// Takes in signatures by a user's keys, each for itself: by user and by the name of what was signed, all of that as
    /// JSON. `elsewhere` has the master keys of users of other servers.
    ///
    /// # Errors
    /// When the store fails. What is wrong with single ones is told with them: M_INVALID_SIGNATURE; M_INVALID_PARAM when
    /// something else was signed than what is known here; M_NOT_FOUND when nothing is known.
    pub async fn upload_signatures(
        &self,
        requester: &Requester,
        signed: &BTreeMap<OwnedUserId, Named>,
        elsewhere: &BTreeMap<OwnedUserId, Box<RawValue>>,
    ) -> Result<Failures> {
        let mut failures = Failures::new();
        let position = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let own = OwnKeys::of(&view, requester)?;
            let mut new = Signatures::default();
            for (user, name, key) in signed.iter().flat_map(each) {
                let taken = if *user == requester.user_id {
                    own.take_own(&view, (name, key), &mut new)
                } else {
                    let master = self.master_of(&view, user, elsewhere);
                    let row = master.and_then(|master| own.verified(&master, (name, key)));
                    row.and_then(|row| self.take_other(&view, (user, &own), row, &mut new))
                };
                match taken {
                    Err(error) if error.is_internal() => return Err(error),
                    Err(error) => {
                        let of_user = failures.entry(user.clone()).or_default();
                        of_user.insert(name.clone(), error);
                    }
                    Ok(()) => {}
                }
            }
            if new.is_empty() {
                view.position()
            } else {
                self.write_signatures(&view, requester, &new)?
            }
        };
        self.store.durable(position).await?;
        Ok(failures)
    }

    /// The master key of another user.
    fn master_of(
        &self,
        view: &View,
        user: &UserId,
        elsewhere: &BTreeMap<OwnedUserId, Box<RawValue>>,
    ) -> Result<CrossSigningKey> {
        let none = || Error::not_found("The master key of the user");
        if !self.is_local(user.server_name()) {
            let master = elsewhere.get(user).ok_or_else(none)?;
            let master = CrossSigningKey::parse(master.get(), user, Usage::Master);
            return master.map_err(|_| none());
        }
        let nid = self.store.find_user(user)?.ok_or_else(none)?;
        Self::signing_key(view, (nid, user), Usage::Master)?.ok_or_else(none)
    }

    /// Notes a signature of somebody else's master key, unless it is known.
    fn take_other(
        &self,
        view: &View,
        (user, own): (&UserId, &OwnKeys<'_>),
        row: UserSignatureRow,
        new: &mut Signatures,
    ) -> Result<()> {
        let nid = self.store.user_nid(user)?;
        if USER_SIGNATURES
            .get(view, &(nid, own.requester.nid))?
            .as_ref()
            != Some(&row)
        {
            new.others.insert(nid, row);
        }
        Ok(())
    }

    fn write_signatures(
        &self,
        view: &View,
        requester: &Requester,
        new: &Signatures,
    ) -> Result<Position> {
        let user = requester.nid;
        let change = if new.devices.is_empty() && new.master.is_none() {
            None
        } else {
            Some(DeviceListChange::here(view, user)?)
        };
        let private = new.others.keys();
        let private = private.map(|whose| PrivateChange::prepare(view, user, *whose));
        let private: Vec<_> = private.collect::<Result<_>>()?;
        let mut now = published(view, user)?;
        now.master = new.master.clone().or(now.master);
        let committed = self.store.commit(|batch| {
            for device in &new.devices {
                if let Some((_, Some(keys))) = &device.known {
                    DEVICE_KEYS.put(batch, &(user, device.device.as_str()), keys);
                }
            }
            if let Some(master) = &new.master {
                CROSS_SIGNING_KEYS.put(batch, &(user, Usage::Master.name()), master);
            }
            if let Some(change) = change {
                let signing = new.master.is_some().then_some(&now);
                change.write(batch, &new.devices, signing);
            }
            for (whose, row) in &new.others {
                USER_SIGNATURES.put(batch, &(*whose, user), row);
            }
            for private in &private {
                private.write(batch);
            }
            Ok(())
        })?;
        Ok(committed.position)
    }
}

impl Signatures {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.master.is_none() && self.others.is_empty()
    }
}

impl<'r> OwnKeys<'r> {
    fn of(view: &View, requester: &'r Requester) -> Result<Self> {
        let who = (requester.nid, &*requester.user_id);
        let key = |usage| Encryption::signing_key(view, who, usage);
        Ok(Self {
            requester,
            master: key(Usage::Master)?,
            self_signing: key(Usage::SelfSigning)?,
            user_signing: key(Usage::UserSigning)?,
        })
    }

    /// Looks at a signature of one of the user's own keys.
    fn take_own(
        &self,
        view: &View,
        (name, key): (&str, &RawValue),
        new: &mut Signatures,
    ) -> Result<()> {
        let (nid, user) = (self.requester.nid, &*self.requester.user_id);
        if let Some(master) = self.master.as_ref().filter(|key| key.public() == name) {
            let sent = same_key(master, user, key)?;
            let added = by_devices(view, (nid, user), &sent)?;
            if added.is_empty() {
                return Err(unsigned());
            }
            // What a device has signed that is gone is worth nothing any more.
            let mut all = BTreeMap::new();
            for (id, signature) in device_keys::signatures_by(master.object(), user) {
                let device = id.strip_prefix("ed25519:").unwrap_or(id);
                if DEVICE_KEYS.contains(view, &(nid, device))? {
                    all.insert(id, signature);
                }
            }
            all.extend(added);
            let all: Vec<_> = all.into_iter().collect();
            let json = master.signed(user, &all);
            new.master = Some(json).filter(|json| *json != master.json());
            return Ok(());
        }
        let object = object(key)?;
        let stored = DEVICE_KEYS.get(view, &(nid, name))?;
        let stored = stored.ok_or_else(|| Error::not_found("The device"))?;
        let by = self.self_signing.as_ref();
        let by = by.ok_or_else(|| Error::not_found("Your self-signing key"))?;
        let known = integrity::parse_object(&stored).unwrap_or_default();
        if integrity::signed_text(&known) != integrity::signed_text(&object) {
            return Err(another());
        }
        let signature = by.has_signed(&object, user).map_err(|bad| refused(&bad))?;
        let own = format!("ed25519:{name}");
        let by_device = device_keys::signature_by(&known, user, &own);
        let mut all: Vec<_> = by_device.map(|it| (own.as_str(), it)).into_iter().collect();
        all.push((by.id(), signature));
        let json = signed(known.clone(), user, &all);
        if json != stored {
            let row = DEVICES.get(view, &(nid, name))?;
            new.devices.push(DeviceNow {
                device: name.to_owned(),
                known: Some((row.and_then(|row| row.display_name), Some(json))),
            });
        }
        Ok(())
    }

    /// Looks at a signature of somebody else's master key.
    fn verified(
        &self,
        master: &CrossSigningKey,
        (name, key): (&str, &RawValue),
    ) -> Result<UserSignatureRow> {
        let by = self.user_signing.as_ref();
        let by = by.ok_or_else(|| Error::not_found("Your user-signing key"))?;
        if master.public() != name {
            return Err(Error::not_found(
                "The master key of the user with this name",
            ));
        }
        let object = object(key)?;
        if integrity::signed_text(&object) != master.signed_text() {
            return Err(another());
        }
        let signature = by.has_signed(&object, &self.requester.user_id);
        let signature = signature.map_err(|bad| refused(&bad))?;
        Ok(UserSignatureRow {
            of: master.id().to_owned(),
            by: by.id().to_owned(),
            signature: signature.to_owned(),
        })
    }
}

/// Each of a user's keys that were signed.
fn each<'s>(
    (user, keys): (&'s OwnedUserId, &'s Named),
) -> impl Iterator<Item = (&'s OwnedUserId, &'s String, &'s RawValue)> {
    keys.iter().map(move |(name, key)| (user, name, &**key))
}

/// The master key that was signed, which is to be the one that is known.
fn same_key(master: &CrossSigningKey, user: &UserId, key: &RawValue) -> Result<CrossSigningKey> {
    object(key)?;
    let sent = CrossSigningKey::parse(key.get(), user, Usage::Master);
    let sent = sent.map_err(|bad| refused(&bad))?;
    if sent.signed_text() != master.signed_text() {
        return Err(another());
    }
    Ok(sent)
}

fn object(key: &RawValue) -> Result<CanonicalJsonObject> {
    if key.get().len() > LONGEST_KEYS {
        return Err(Error::too_large("The key is too long"));
    }
    let bad = |_| Error::invalid_param("What was signed is no canonical JSON object");
    integrity::parse_object(key.get()).map_err(bad)
}

fn another() -> Error {
    Error::invalid_param("What was signed is not the key that is known here")
}

fn unsigned() -> Error {
    refused(&BadKeys::Forged(
        "no device that is here has signed it".to_owned(),
    ))
}
