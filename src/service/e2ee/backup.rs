//! "Server-side key backups": keys of rooms, encrypted by the user's devices, so that a new device can read what was said
//! before it came.
//!
//! The version of a backup is the position at which it began, and its etag the one at which its keys last changed: neither
//! is ever given twice. How many keys there are is kept beside them, so that nobody has to count.

use std::{collections::BTreeMap, ops::Bound};

use http::StatusCode;
use ruma::{OwnedRoomId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Encryption;
use crate::{
    error::{Error, Result},
    protocol::{
        format::push_string,
        ids::{Position, UserNid},
    },
    service::Requester,
    store::{
        View,
        schema::{ACCOUNTS, BACKUP_KEYS, KEY_BACKUPS, KeyBackupRow},
    },
};

/// How many backups a user may have. Only the newest is written to; old ones are there until the user deletes them.
const MOST_BACKUPS: usize = 100;

/// How many keys a backup may have.
const MOST_KEYS: u64 = 1_000_000;

/// The longest algorithm and the longest id of a session, in bytes.
const LONGEST_NAME: usize = 255;

/// The longest description of how a backup is encrypted, and the longest key, in bytes.
const LONGEST_AUTH_DATA: usize = 64 << 10;
const LONGEST_KEY: usize = 64 << 10;

/// How much of a backup is read at once, in bytes.
const PIECE: usize = 64 << 10;

/// Keys by room and session.
pub type BackupKeys = BTreeMap<OwnedRoomId, BTreeMap<String, Box<RawValue>>>;

/// A backup as the client is told of it.
#[derive(Debug, Serialize)]
pub struct Backup {
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What that needs.
    pub auth_data: Box<RawValue>,
    /// How many keys it holds.
    pub count: u64,
    /// Another one whenever its keys change.
    pub etag: String,
    /// Which backup it is.
    pub version: String,
}

/// Which keys of a backup are meant.
#[derive(Clone, Debug)]
pub enum Part {
    /// All.
    Whole,
    /// Those of a room.
    Room(OwnedRoomId),
    /// That of a session.
    Session(OwnedRoomId, String),
}

/// The size of a backup after a change, and the change's name.
#[derive(Debug, Serialize)]
pub struct Changed {
    count: u64,
    etag: String,
}

/// What a client says of how a backup is encrypted.
#[derive(Deserialize)]
struct Description {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

impl Description {
    fn parse(json: &str) -> Result<Self> {
        let parsed: Self =
            serde_json::from_str(json).map_err(|e| Error::bad_json(e.to_string()))?;
        if !parsed.auth_data.get().starts_with('{') {
            return Err(Error::bad_json("`auth_data` must be an object"));
        }
        if parsed.algorithm.len() > LONGEST_NAME || parsed.auth_data.get().len() > LONGEST_AUTH_DATA
        {
            return Err(Error::too_large(format!(
                "An algorithm has at most {LONGEST_NAME} bytes, its `auth_data` {LONGEST_AUTH_DATA}"
            )));
        }
        Ok(parsed)
    }
}

/// What decides which of two keys of a session is kept.
#[derive(Deserialize)]
struct Worth {
    is_verified: bool,
    first_message_index: u64,
    forwarded_count: u64,
}

/// What else a key must have.
#[derive(Deserialize)]
struct Encrypted<'k> {
    #[serde(borrow)]
    session_data: &'k RawValue,
}

impl Worth {
    fn of(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map_err(|e| Error::Internal(format!("a key of a backup is damaged: {e}")))
    }

    fn is_better_than(&self, other: &Self) -> bool {
        let rank = |worth: &Self| {
            (
                !worth.is_verified,
                worth.first_message_index,
                worth.forwarded_count,
            )
        };
        rank(self) < rank(other)
    }
}

impl Encryption {
    /// Begins a backup, which is then the only one that keys can be added to; gives its version.
    ///
    /// # Errors
    /// 400 M_BAD_JSON, 413 M_TOO_LARGE when the user has too many.
    pub async fn create_backup(&self, requester: &Requester, json: &str) -> Result<String> {
        let description = Description::parse(json)?;
        let (version, position) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            must_be_open(&view, requester)?;
            let mut present = 0;
            for row in KEY_BACKUPS.scan(&view, &(requester.nid,)) {
                row?;
                present += 1;
            }
            if present >= MOST_BACKUPS {
                return Err(Error::too_large(format!(
                    "A user has at most {MOST_BACKUPS} backups; delete an old one first"
                )));
            }
            let mut version = Position(0);
            let committed = self.store.commit(|batch| {
                version = batch.position();
                let row = KeyBackupRow {
                    algorithm: description.algorithm,
                    auth_data: description.auth_data.get().to_owned(),
                    changed: version,
                    count: 0,
                };
                KEY_BACKUPS.put(batch, &(requester.nid, version), &row);
                Ok(())
            })?;
            (version, committed.position)
        };
        self.store.durable(position).await?;
        Ok(version.to_string())
    }

    /// A backup of the user, or the newest.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn backup(&self, requester: &Requester, version: Option<&str>) -> Result<Backup> {
        let view = self.store.view();
        let (version, row) = match version {
            Some(version) => found(&view, requester.nid, version)?,
            None => newest(&view, requester.nid)?.ok_or_else(no_backup)?,
        };
        let auth_data = RawValue::from_string(row.auth_data);
        let damaged = |e| Error::Internal(format!("backup {version} is damaged: {e}"));
        Ok(Backup {
            algorithm: row.algorithm,
            auth_data: auth_data.map_err(damaged)?,
            count: row.count,
            etag: row.changed.to_string(),
            version: version.to_string(),
        })
    }

    /// Changes what a backup is encrypted with; `json` has to name the algorithm that it has.
    ///
    /// # Errors
    /// 400 M_INVALID_PARAM for another algorithm or version, 404 M_NOT_FOUND.
    pub async fn update_backup(
        &self,
        requester: &Requester,
        version: &str,
        json: &str,
    ) -> Result<()> {
        let description = Description::parse(json)?;
        if description.version.is_some_and(|other| other != version) {
            return Err(Error::invalid_param(
                "The version in the body is not the one in the path",
            ));
        }
        let position = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let (version, mut row) = found(&view, requester.nid, version)?;
            if row.algorithm != description.algorithm {
                return Err(Error::invalid_param(
                    "The algorithm of a backup can not change; begin another one",
                ));
            }
            description.auth_data.get().clone_into(&mut row.auth_data);
            let committed = self.store.commit(|batch| {
                KEY_BACKUPS.put(batch, &(requester.nid, version), &row);
                Ok(())
            })?;
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// Deletes a backup with all its keys.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub async fn delete_backup(&self, requester: &Requester, version: &str) -> Result<()> {
        let position = {
            let _still = self.accounts.still();
            let (version, _) = found(&self.store.latest(), requester.nid, version)?;
            let committed = self.store.commit(|batch| {
                KEY_BACKUPS.delete(batch, &(requester.nid, version));
                BACKUP_KEYS.delete_all(batch, &(requester.nid, version));
                Ok(())
            })?;
            committed.position
        };
        Ok(self.store.durable(position).await?)
    }

    /// Adds keys to the newest backup, all or none, where they are better than what it has of the same session.
    ///
    /// # Errors
    /// 400 M_BAD_JSON; 403 M_WRONG_ROOM_KEYS_VERSION when there is a newer backup; 404 M_NOT_FOUND; 413 M_TOO_LARGE.
    pub async fn add_backup_keys(
        &self,
        requester: &Requester,
        version: &str,
        keys: BackupKeys,
    ) -> Result<Changed> {
        let keys = checked(keys)?;
        let user = requester.nid;
        let (row, position) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            must_be_open(&view, requester)?;
            let (version, mut row) = found(&view, user, version)?;
            if let Some((newest, _)) = newest(&view, user)?
                && newest != version
            {
                return Err(wrong_version(newest));
            }
            let places: Vec<_> = keys
                .iter()
                .map(|(room, session, _, _)| (user, version, room.as_str(), session.as_str()))
                .collect();
            let mut better = Vec::new();
            for (index, present) in BACKUP_KEYS
                .multi_get(&view, &places)?
                .into_iter()
                .enumerate()
            {
                let (_, _, worth, json) = &keys[index];
                match present {
                    Some(present) if !worth.is_better_than(&Worth::of(&present)?) => continue,
                    Some(_) => {}
                    None => row.count += 1,
                }
                better.push((places[index], json));
            }
            if row.count > MOST_KEYS {
                return Err(Error::too_large(format!(
                    "A backup has at most {MOST_KEYS} keys"
                )));
            }
            let position = if better.is_empty() {
                view.position()
            } else {
                let committed = self.store.commit(|batch| {
                    row.changed = batch.position();
                    for (place, json) in &better {
                        BACKUP_KEYS.put(batch, place, json);
                    }
                    KEY_BACKUPS.put(batch, &(user, version), &row);
                    Ok(())
                })?;
                committed.position
            };
            (row, position)
        };
        self.store.durable(position).await?;
        Ok(row.into())
    }

    /// Deletes keys of a backup; what is not there is no error.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND when there is no such backup.
    pub async fn delete_backup_keys(
        &self,
        requester: &Requester,
        version: &str,
        part: &Part,
    ) -> Result<Changed> {
        let user = requester.nid;
        let (row, position) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            let (version, mut row) = found(&view, user, version)?;
            let gone = match part {
                Part::Whole => row.count,
                Part::Room(room) => {
                    let mut count = 0;
                    for key in BACKUP_KEYS.scan(&view, &(user, version, room.as_str())) {
                        key?;
                        count += 1;
                    }
                    count
                }
                Part::Session(room, session) => {
                    let place = (user, version, room.as_str(), session.as_str());
                    u64::from(BACKUP_KEYS.contains(&view, &place)?)
                }
            };
            let position = if gone == 0 {
                view.position()
            } else {
                let committed = self.store.commit(|batch| {
                    row.changed = batch.position();
                    row.count -= gone;
                    match part {
                        Part::Whole => BACKUP_KEYS.delete_all(batch, &(user, version)),
                        Part::Room(room) => {
                            BACKUP_KEYS.delete_all(batch, &(user, version, room.as_str()));
                        }
                        Part::Session(room, session) => {
                            let place = (user, version, room.as_str(), session.as_str());
                            BACKUP_KEYS.delete(batch, &place);
                        }
                    }
                    KEY_BACKUPS.put(batch, &(user, version), &row);
                    Ok(())
                })?;
                committed.position
            };
            (row, position)
        };
        self.store.durable(position).await?;
        Ok(row.into())
    }

    /// The key of a session in a backup, as JSON.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn backup_key(
        &self,
        requester: &Requester,
        version: &str,
        room: &RoomId,
        session: &str,
    ) -> Result<String> {
        let view = self.store.view();
        let (version, _) = found(&view, requester.nid, version)?;
        let place = (requester.nid, version, room.as_str(), session);
        let key = BACKUP_KEYS.get(&view, &place)?;
        key.ok_or_else(|| Error::not_found("The key"))
    }

    /// The keys of a backup, or those of one of its rooms, as the JSON of the answer in pieces: as they were when it was
    /// asked for, and never more than a piece in memory.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND.
    pub fn backup_keys(
        &self,
        requester: &Requester,
        version: &str,
        room: Option<OwnedRoomId>,
    ) -> Result<impl Iterator<Item = Result<String>> + Send + use<>> {
        let view = self.store.view();
        let (version, _) = found(&view, requester.nid, version)?;
        let mut reading = Some(Reading {
            view,
            backup: (requester.nid, version),
            last: None,
            only: room,
        });
        Ok(std::iter::from_fn(move || {
            let piece = reading.as_mut()?.piece();
            match piece {
                Ok((json, true)) => Some(Ok(json)),
                Ok((json, false)) => {
                    reading = None;
                    Some(Ok(json))
                }
                Err(error) => {
                    reading = None;
                    Some(Err(error))
                }
            }
        }))
    }
}

/// How far the keys of a backup were read.
struct Reading {
    view: View,
    backup: (UserNid, Position),
    last: Option<(String, String)>,
    only: Option<OwnedRoomId>,
}

impl Reading {
    /// The next piece, and whether there are more.
    fn piece(&mut self) -> Result<(String, bool)> {
        let (user, version) = self.backup;
        let mut json = String::new();
        if self.last.is_none() {
            json.push_str(if self.only.is_some() {
                r#"{"sessions":{"#
            } else {
                r#"{"rooms":{"#
            });
        }
        let view = self.view.clone();
        let after = match &self.last {
            Some((room, session)) => {
                Bound::Excluded((user, version, room.as_str().to_owned(), session.clone()))
            }
            None => Bound::Unbounded,
        };
        let bounds = (after, Bound::Unbounded);
        let rows = match &self.only {
            Some(room) => BACKUP_KEYS.range(&view, &(user, version, room.as_str()), bounds),
            None => BACKUP_KEYS.range(&view, &(user, version), bounds),
        };
        for row in rows {
            let ((_, _, room, session), key) = row?;
            match &self.last {
                Some((last, _)) if *last == room => json.push(','),
                last => {
                    let is_first = last.is_none();
                    if self.only.is_none() {
                        json.push_str(if is_first { "" } else { "}}," });
                        push_string(&mut json, &room);
                        json.push_str(r#":{"sessions":{"#);
                    }
                }
            }
            push_string(&mut json, &session);
            json.push(':');
            json.push_str(&key);
            self.last = Some((room, session));
            if json.len() >= PIECE {
                return Ok((json, true));
            }
        }
        if self.only.is_none() && self.last.is_some() {
            json.push_str("}}");
        }
        json.push_str("}}");
        Ok((json, false))
    }
}

impl From<KeyBackupRow> for Changed {
    fn from(row: KeyBackupRow) -> Self {
        Self {
            count: row.count,
            etag: row.changed.to_string(),
        }
    }
}

/// Keys with their rooms and sessions, if all are in order.
fn checked(keys: BackupKeys) -> Result<Vec<(OwnedRoomId, String, Worth, String)>> {
    let mut all = Vec::new();
    for (room, sessions) in keys {
        for (session, json) in sessions {
            if session.len() > LONGEST_NAME || json.get().len() > LONGEST_KEY {
                return Err(Error::too_large(format!(
                    "The id of a session has at most {LONGEST_NAME} bytes, its key {LONGEST_KEY}"
                )));
            }
            let bad = |e| Error::bad_json(format!("the key of {session}: {e}"));
            let worth = serde_json::from_str::<Worth>(json.get()).map_err(bad)?;
            let encrypted: Encrypted<'_> = serde_json::from_str(json.get()).map_err(bad)?;
            if !encrypted.session_data.get().starts_with('{') {
                return Err(Error::bad_json("`session_data` must be an object"));
            }
            all.push((room.clone(), session, worth, Box::<str>::from(json).into()));
        }
    }
    Ok(all)
}

/// A backup of the user.
fn found(view: &View, user: UserNid, version: &str) -> Result<(Position, KeyBackupRow)> {
    let number = version.parse::<u64>().ok().map(Position);
    // Only as it was given: "+5" and "05" are other versions.
    let number = number.filter(|number| number.to_string() == version);
    let number = number.ok_or_else(no_backup)?;
    let row = KEY_BACKUPS.get(view, &(user, number))?;
    Ok((number, row.ok_or_else(no_backup)?))
}

fn newest(view: &View, user: UserNid) -> Result<Option<(Position, KeyBackupRow)>> {
    let last = KEY_BACKUPS.last(view, &(user,))?;
    Ok(last.map(|((_, version), row)| (version, row)))
}

/// Nothing is written for an account that was closed while its request was on its way.
pub(super) fn must_be_open(view: &View, requester: &Requester) -> Result<()> {
    match ACCOUNTS.get(view, &(requester.nid,))? {
        Some(account) if !account.deactivated => Ok(()),
        _ => Err(Error::unknown_token(false)),
    }
}

fn no_backup() -> Error {
    Error::not_found("The backup")
}

/// 403: there is a newer backup.
fn wrong_version(newest: Position) -> Error {
    let message = "Keys are added to the newest backup only";
    Error::api(StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION", message)
        .with("current_version", newest.to_string())
}
