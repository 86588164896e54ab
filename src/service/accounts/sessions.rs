//! Devices that are logged in, and the tokens that prove it. The store keeps only hashes of tokens.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use quick_cache::sync::Cache;
use ruma::OwnedUserId;
use sha2::{Digest, Sha256};

use super::{Accounts, Requester, removal::Removal};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, UserNid},
    store::{
        Batch, View,
        schema::{
            ACCESS_TOKENS, ACCOUNTS, AccessTokenRow, DEVICES, DeviceRow, REFRESH_TOKENS,
            RefreshTokenRow,
        },
    },
};

/// How many sessions are kept in memory.
const CACHED: usize = 10_000;

/// How long an access token lives that can be refreshed.
pub(super) const ACCESS_LIFETIME: Duration = Duration::from_hours(1);

/// How old what is stored about the last use of a device may be.
const SEEN_PRECISION: Duration = Duration::from_secs(5 * 60);

/// The longest id of a device, in bytes.
const LONGEST_DEVICE_ID: usize = 255;

/// The longest name of a device, in characters.
const LONGEST_DEVICE_NAME: usize = 100;

/// The device that a client wants to log in.
#[derive(Clone, Debug, Default)]
pub struct NewDevice {
    /// Its id; one that exists is logged in anew.
    pub id: Option<String>,
    /// Its name, if it is new.
    pub display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub refreshable: bool,
}

/// A device that was just logged in.
#[derive(Clone)]
pub struct Session {
    /// Whose.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: String,
    /// Its access token.
    pub access_token: String,
    /// Its refresh token, if the client wanted one.
    pub refresh_token: Option<String>,
    /// How long the access token lives, unless it lives forever.
    pub expires_in: Option<Duration>,
}

type Hash = [u8; 32];

pub(super) fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// Sessions in memory, so that a request needs nothing from the disk to be authenticated.
pub(super) struct Sessions {
    cache: Cache<Hash, Arc<Known>>,
    /// How often sessions have ended.
    ended: AtomicU64,
}

struct Known {
    requester: Requester,
    expires_ts: Option<u64>,
    /// When it was last stored that the device was seen.
    seen_ts: AtomicU64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            cache: Cache::new(CACHED),
            ended: AtomicU64::new(0),
        }
    }
}

impl Sessions {
    /// Keeps a session, unless one has ended since `ended` was read: it may be the same.
    fn keep(&self, hash: Hash, known: Arc<Known>, ended: u64) {
        self.cache.insert(hash, known);
        if self.ended.load(Ordering::SeqCst) != ended {
            self.cache.remove(&hash);
        }
    }

    /// Forgets sessions that have been removed from the store.
    pub(super) fn forget(&self, hashes: impl IntoIterator<Item = Hash>) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        for hash in hashes {
            self.cache.remove(&hash);
        }
    }
}

/// A session that is about to be written.
pub(super) struct Opening {
    nid: UserNid,
    session: Session,
    row: DeviceRow,
    expires_ts: Option<u64>,
    replaced: DeviceRow,
}

impl Opening {
    pub(super) fn write(&self, batch: &mut Batch<'_>) {
        delete_tokens(batch, &self.replaced);
        let access = AccessTokenRow {
            user: self.nid,
            device_id: self.session.device_id.clone(),
            expires_ts: self.expires_ts,
        };
        if let Some(hash) = self.row.access_token {
            ACCESS_TOKENS.put(batch, &(hash,), &access);
        }
        if let Some(hash) = self.row.refresh_token {
            let refresh = RefreshTokenRow {
                user: self.nid,
                device_id: self.session.device_id.clone(),
            };
            REFRESH_TOKENS.put(batch, &(hash,), &refresh);
        }
        let key = (self.nid, self.session.device_id.as_str());
        DEVICES.put(batch, &key, &self.row);
    }

    /// What to tell the client, once the session is written.
    pub(super) fn finish(self, sessions: &Sessions) -> Session {
        sessions.forget(self.replaced.access_token);
        self.session
    }
}

/// Removes all tokens of a device.
pub(super) fn delete_tokens(batch: &mut Batch<'_>, device: &DeviceRow) {
    if let Some(hash) = device.access_token {
        ACCESS_TOKENS.delete(batch, &(hash,));
    }
    for hash in [device.refresh_token, device.previous_refresh_token]
        .into_iter()
        .flatten()
    {
        REFRESH_TOKENS.delete(batch, &(hash,));
    }
}

impl Accounts {
    /// Who holds this access token.
    ///
    /// # Errors
    /// 401 M_UNKNOWN_TOKEN if nobody does, or the token has expired.
    pub fn authenticate(&self, token: &str, address: IpAddr) -> Result<Requester> {
        let hash = hash(token);
        let known = match self.sessions.cache.get(&hash) {
            Some(known) => known,
            None => self
                .load(hash)?
                .ok_or_else(|| Error::unknown_token(false))?,
        };
        let now = self.clock.now_ms();
        if known.expires_ts.is_some_and(|at| at <= now) {
            return Err(Error::unknown_token(true));
        }
        self.see(hash, &known, now, address);
        Ok(known.requester.clone())
    }

    fn load(&self, hash: Hash) -> Result<Option<Arc<Known>>> {
        let ended = self.sessions.ended.load(Ordering::SeqCst);
        // The newest moment: a session that has just ended must not come back.
        let view = self.store.latest();
        let Some(token) = ACCESS_TOKENS.get(&view, &(hash,))? else {
            return Ok(None);
        };
        let Some(account) = ACCOUNTS.get(&view, &(token.user,))? else {
            return Ok(None);
        };
        let device = DEVICES.get(&view, &(token.user, token.device_id.as_str()))?;
        let device = device.unwrap_or_default();
        if device.previous_refresh_token.is_some() {
            self.retire_refresh_token(token.user, &token.device_id)?;
        }
        let known = Arc::new(Known {
            requester: Requester {
                user_id: self.store.user_id(token.user)?.as_ref().clone(),
                nid: token.user,
                device_id: Some(token.device_id),
                guest: account.guest,
                admin: account.admin,
            },
            expires_ts: token.expires_ts,
            seen_ts: AtomicU64::new(device.last_seen_ts.unwrap_or_default()),
        });
        self.sessions.keep(hash, known.clone(), ended);
        Ok(Some(known))
    }

    /// The client has its new access token, so it needs the refresh token no more that it got it with.
    fn retire_refresh_token(&self, user: UserNid, device_id: &str) -> Result<()> {
        let _changing = self.changing.lock();
        let Some(mut device) = DEVICES.get(&self.store.latest(), &(user, device_id))? else {
            return Ok(());
        };
        let Some(previous) = device.previous_refresh_token.take() else {
            return Ok(());
        };
        let _soon_durable = self.store.commit(|batch| {
            REFRESH_TOKENS.delete(batch, &(previous,));
            DEVICES.put(batch, &(user, device_id), &device);
            Ok(())
        })?;
        Ok(())
    }

    /// Notes that a device was used, at most every few minutes. That this may fail is no reason to refuse a request.
    fn see(&self, hash: Hash, known: &Known, now: u64, address: IpAddr) {
        let seen = known.seen_ts.load(Ordering::Relaxed);
        let precision = u64::try_from(SEEN_PRECISION.as_millis()).unwrap_or(u64::MAX);
        if now.saturating_sub(seen) < precision
            || known
                .seen_ts
                .compare_exchange(seen, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        if let Err(error) = self.write_seen(hash, &known.requester, now, address) {
            tracing::error!(%error, "the last use of a device could not be stored");
        }
    }

    fn write_seen(
        &self,
        hash: Hash,
        requester: &Requester,
        now: u64,
        address: IpAddr,
    ) -> Result<()> {
        let Some(device_id) = &requester.device_id else {
            return Ok(());
        };
        let key = (requester.nid, device_id.as_str());
        let _changing = self.changing.lock();
        let device = DEVICES.get(&self.store.latest(), &key)?;
        let Some(mut device) = device.filter(|device| device.access_token == Some(hash)) else {
            return Ok(());
        };
        device.last_seen_ts = Some(now);
        device.last_seen_ip = Some(address.to_canonical().to_string());
        let _soon_durable = self.store.commit(|batch| {
            DEVICES.put(batch, &key, &device);
            Ok(())
        })?;
        Ok(())
    }

    /// Prepares a session. To be called, and the result written, while `changing` is held.
    pub(super) fn prepare_session(
        &self,
        view: &View,
        nid: UserNid,
        user_id: OwnedUserId,
        device: NewDevice,
    ) -> Result<Opening> {
        let device_id = device.id.filter(|id| !id.is_empty());
        let device_id = device_id.unwrap_or_else(|| self.entropy.token(10).to_uppercase());
        if device_id.len() > LONGEST_DEVICE_ID {
            return Err(Error::invalid_param("The device id is too long"));
        }
        check_device_name(device.display_name.as_deref())?;
        let stored = DEVICES.get(view, &(nid, device_id.as_str()))?;
        let replaced = stored.clone().unwrap_or_default();
        let access_token = self.entropy.token(43);
        let refresh_token = device.refreshable.then(|| self.entropy.token(43));
        let expires_in = device.refreshable.then_some(ACCESS_LIFETIME);
        let row = DeviceRow {
            display_name: match stored {
                Some(stored) => stored.display_name,
                None => device.display_name,
            },
            access_token: Some(hash(&access_token)),
            refresh_token: refresh_token.as_deref().map(hash),
            previous_refresh_token: None,
            last_seen_ip: replaced.last_seen_ip.clone(),
            last_seen_ts: replaced.last_seen_ts,
        };
        Ok(Opening {
            nid,
            row,
            expires_ts: expires_in.map(|lifetime| self.ts_after(lifetime)),
            replaced,
            session: Session {
                user_id,
                device_id,
                access_token,
                refresh_token,
                expires_in,
            },
        })
    }

    /// Logs a device of an account in.
    pub(super) fn open_session(
        &self,
        user_id: OwnedUserId,
        nid: UserNid,
        device: NewDevice,
    ) -> Result<(Position, Session)> {
        let _changing = self.changing.lock();
        let view = self.store.latest();
        let account = ACCOUNTS.get(&view, &(nid,))?;
        // It may have been closed since the password was checked.
        if account.is_none_or(|account| account.deactivated) {
            return Err(deactivated());
        }
        let opening = self.prepare_session(&view, nid, user_id, device)?;
        let committed = self.store.commit(|batch| {
            opening.write(batch);
            Ok(())
        })?;
        Ok((committed.position, opening.finish(&self.sessions)))
    }

    /// Ends the session that the request came from, and removes its device.
    pub async fn log_out(&self, requester: &Requester) -> Result<()> {
        let Some(device_id) = &requester.device_id else {
            return Ok(());
        };
        let is_it = |id: &str| id == device_id;
        self.remove_devices(requester.nid, is_it).await
    }

    /// Ends all sessions of the account, and removes its devices.
    pub async fn log_out_everywhere(&self, requester: &Requester) -> Result<()> {
        self.remove_devices(requester.nid, |_| true).await
    }

    /// Removes the devices that `which` is true for, with their sessions.
    pub(super) async fn remove_devices(
        &self,
        user: UserNid,
        which: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let position = {
            let _changing = self.changing.lock();
            let mut devices = devices_of(&self.store.latest(), user)?;
            devices.retain(|(id, _)| which(id));
            let mut removal = Removal::prepare(&self.store.latest(), user, devices)?;
            let committed = self.store.commit(|batch| {
                removal.write(batch);
                Ok(())
            })?;
            self.sessions.forget(removal.access_tokens());
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// Milliseconds since the epoch, `duration` from now.
    pub(super) fn ts_after(&self, duration: Duration) -> u64 {
        let duration = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.clock.now_ms().saturating_add(duration)
    }
}

/// The devices of an account.
pub(super) fn devices_of(view: &View, user: UserNid) -> Result<Vec<(String, DeviceRow)>> {
    let rows = DEVICES.scan(view, &(user,));
    let devices = rows.map(|row| row.map(|((_, id), device)| (id, device)));
    Ok(devices.collect::<Result<_, _>>()?)
}

pub(in crate::service) fn check_device_name(name: Option<&str>) -> Result<()> {
    if name.is_some_and(|name| name.chars().count() > LONGEST_DEVICE_NAME) {
        return Err(Error::api(
            StatusCode::BAD_REQUEST,
            "M_TOO_LARGE",
            format!("The name of a device has at most {LONGEST_DEVICE_NAME} characters"),
        ));
    }
    Ok(())
}

pub(super) fn deactivated() -> Error {
    Error::api(
        StatusCode::FORBIDDEN,
        "M_USER_DEACTIVATED",
        "This account has been deactivated",
    )
}
