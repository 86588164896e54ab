//! "Send-to-Device messaging": messages from device to device, which wait until the device says that it has them.
//!
//! A message for a device of this node is a row under its user, device and position; the next sync of the device, whose
//! token says what it has got, removes it. What is for other servers is put into EDUs once, and waits as such.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    time::Duration,
};

use ruma::{OwnedServerName, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Encryption;
use crate::{
    error::{Error, Result},
    protocol::{
        format::push_string,
        ids::{Position, ServerNid, UserNid},
        token::SyncToken,
    },
    service::Requester,
    store::{
        self, AsKey, Batch, Key, View,
        notify::Kinds,
        schema::{DEVICES, LASTING_EDUS, RECEIVED_TO_DEVICE, SENT_TO_DEVICE, TO_DEVICE, Table},
    },
};

/// How many devices one request may be for.
const MOST_DEVICES: usize = 10_000;

/// The longest content of a message, in bytes.
const LONGEST_CONTENT: usize = 64 << 10;

/// How many bytes one request may make of all its messages: a `*` makes many of one.
const MOST_BYTES: usize = 16 << 20;

/// So many bytes of messages are put into one EDU.
const EDU_BYTES: usize = 64 << 10;

/// The longest type and transaction id, in bytes.
const LONGEST_NAME: usize = 255;

/// The most messages that one sync tells.
pub const MOST_TOLD: usize = 100;

/// The most bytes of messages that one sync tells, unless the first is longer.
const MOST_TOLD_BYTES: usize = 1 << 20;

/// How long a device may take to send a request again whose answer it has not got.
const TRANSACTION_AGE: Duration = Duration::from_hours(24);

/// How long another server may take to send a message again.
const RECEIVED_AGE: Duration = Duration::from_hours(24 * 30);

/// How many rows are removed in one commit.
const CHUNK: usize = 1_000;

/// All devices of a user.
const ALL: &str = "*";

/// Messages of one type to many devices: by user, then device or `*`, their contents.
#[derive(Debug)]
pub struct ToDevice {
    /// The type.
    pub event_type: String,
    /// Who gets what.
    pub messages: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
}

/// What waits for a device, as far as one answer may tell it.
#[derive(Debug, Default)]
pub struct Pending {
    /// What stands between the brackets of the list.
    pub events: String,
    /// The position of the last of them, if there are more.
    pub until: Option<Position>,
}

/// The content of `m.direct_to_device`.
#[derive(Deserialize)]
struct Direct {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    message_id: String,
    messages: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
}

impl Encryption {
    /// Sends messages to devices here and elsewhere, once for each transaction of the sending device. Who is not there
    /// gets nothing, and nobody is told.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when there are too many devices or bytes, 400 M_BAD_JSON for content that is no object.
    pub async fn send_to_device(
        &self,
        requester: &Requester,
        transaction: &str,
        sent: &ToDevice,
    ) -> Result<()> {
        check(sent)?;
        if transaction.len() > LONGEST_NAME {
            return Err(Error::invalid_param("The transaction id is too long"));
        }
        let device = requester.device_id.as_deref().unwrap_or_default();
        let done = (requester.nid, device, sent.event_type.as_str(), transaction);
        let elsewhere = self.for_others(requester, sent)?;
        let position = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            if SENT_TO_DEVICE.contains(&view, &done)? {
                // What the first request wrote may still be on its way to the disk.
                view.position()
            } else {
                if !device.is_empty() && !DEVICES.contains(&view, &(requester.nid, device))? {
                    return Err(Error::unknown_token(false));
                }
                let here = self.for_us(&view, requester.user_id.as_str(), sent)?;
                let now = self.clock.now_ms();
                let committed = self.store.commit(|batch| {
                    if !device.is_empty() {
                        SENT_TO_DEVICE.put(batch, &done, &(now,));
                    }
                    write(batch, &here);
                    for (server, edus) in &elsewhere {
                        for edu in edus {
                            let position = batch.position();
                            LASTING_EDUS.put(batch, &(*server, position), edu);
                        }
                    }
                    Ok(())
                })?;
                committed.position
            }
        };
        Ok(self.store.durable(position).await?)
    }

    /// Takes in messages that another server has sent, unless they have come before; says from when on they are safe.
    /// What is not understood, or not the server's to say, is ignored.
    ///
    /// # Errors
    /// When the store fails.
    pub fn receive_to_device(
        &self,
        origin: &ServerName,
        content: &str,
    ) -> Result<Option<Position>> {
        let Ok(direct) = serde_json::from_str::<Direct>(content) else {
            return Ok(None);
        };
        let id = direct.message_id.as_str();
        if direct.sender.server_name() != origin || id.len() > LONGEST_NAME {
            return Ok(None);
        }
        let sent = ToDevice {
            event_type: direct.event_type,
            messages: direct.messages,
        };
        if let Err(error) = check(&sent) {
            tracing::debug!(%origin, %error, "messages to devices are ignored");
            return Ok(None);
        }
        let server = self.store.server_nid(origin)?;
        let _still = self.accounts.still();
        let view = self.store.latest();
        if RECEIVED_TO_DEVICE.contains(&view, &(server, id))? {
            return Ok(Some(view.position()));
        }
        let here = match self.for_us(&view, direct.sender.as_str(), &sent) {
            Err(error) if !error.is_internal() => return Ok(None),
            here => here?,
        };
        let now = self.clock.now_ms();
        let committed = self.store.commit(|batch| {
            RECEIVED_TO_DEVICE.put(batch, &(server, id), &(now,));
            write(batch, &here);
            Ok(())
        })?;
        Ok(Some(committed.position))
    }

    /// What waits for a device behind the place that its token names, at most so many messages.
    ///
    /// # Errors
    /// When the store fails.
    pub fn pending(
        &self,
        view: &View,
        (user, device): (UserNid, &str),
        since: Option<SyncToken>,
        most: usize,
    ) -> Result<Pending> {
        let after = since.map_or(Bound::Unbounded, |since| {
            Bound::Excluded((user, device, since.messages()))
        });
        let until = Bound::Included((user, device, view.position()));
        let mut pending = Pending::default();
        let (mut told, mut last) = (0, None);
        for row in TO_DEVICE.range(view, &(user, device), (after, until)) {
            let ((_, _, position), event) = row?;
            let is_full = told == most || pending.events.len() + event.len() > MOST_TOLD_BYTES;
            if told > 0 && is_full {
                pending.until = last;
                break;
            }
            if told > 0 {
                pending.events.push(',');
            }
            pending.events.push_str(&event);
            (told, last) = (told + 1, Some(position));
        }
        Ok(pending)
    }

    /// Removes what a device has got, as the token says with which it comes back.
    ///
    /// # Errors
    /// When the store fails.
    pub fn acknowledge(
        &self,
        view: &View,
        (user, device): (UserNid, &str),
        since: SyncToken,
    ) -> Result<()> {
        // Positions from the future were told before this store was restored from a copy.
        if since.position > view.position() {
            return Ok(());
        }
        let got = (
            Bound::Unbounded,
            Bound::Included((user, device, since.messages())),
        );
        let rows = TO_DEVICE.range(view, &(user, device), got);
        let keys: Vec<_> = rows
            .take(CHUNK)
            .map(|row| row.map(|(key, _)| key))
            .collect::<store::Result<_>>()?;
        if !keys.is_empty() {
            // If this is lost, the next sync does it again.
            let _not_awaited = self.store.commit(|batch| {
                for key in &keys {
                    TO_DEVICE.delete(batch, key);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Forgets transactions that nobody sends again; says how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_sent(&self) -> Result<usize> {
        let sent = self.forget(&SENT_TO_DEVICE, self.before(TRANSACTION_AGE))?;
        let received = self.forget(&RECEIVED_TO_DEVICE, self.before(RECEIVED_AGE))?;
        Ok(sent + received)
    }

    fn forget<K: Key + AsKey<K>>(&self, table: &Table<K, (u64,)>, before: u64) -> Result<usize> {
        let view = self.store.view();
        let mut old = table
            .scan(&view, &())
            .filter(|row| row.as_ref().map_or(true, |(_, (ts,))| *ts < before));
        let mut removed = 0;
        loop {
            let chunk: Vec<_> = old.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok(removed);
            }
            let _not_awaited = self.store.commit(|batch| {
                for (key, _) in &chunk {
                    table.delete(batch, key);
                }
                Ok(())
            })?;
            removed += chunk.len();
        }
    }

    /// So long ago, in milliseconds since the epoch.
    fn before(&self, age: Duration) -> u64 {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.clock.now_ms().saturating_sub(age)
    }

    /// The messages for devices of this node, as they will be told. To be called while devices stand still.
    fn for_us(
        &self,
        view: &View,
        sender: &str,
        sent: &ToDevice,
    ) -> Result<Vec<(UserNid, String, String)>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut add = |user: UserNid, device: String, content: &RawValue| {
            let event = event(sender, &sent.event_type, content.get());
            bytes += event.len();
            if found.len() == MOST_DEVICES || bytes > MOST_BYTES {
                return Err(Error::too_large("That is too much for one request"));
            }
            found.push((user, device, event));
            Ok(())
        };
        for (user, messages) in &sent.messages {
            if !self.is_local(user.server_name()) {
                continue;
            }
            let Some(user) = self.store.find_user(user)? else {
                continue;
            };
            for (device, content) in messages {
                if device != ALL {
                    if DEVICES.contains(view, &(user, device.as_str()))? {
                        add(user, device.clone(), content)?;
                    }
                    continue;
                }
                for row in DEVICES.scan(view, &(user,)) {
                    let ((_, device), _) = row?;
                    if !messages.contains_key(&device) {
                        add(user, device, content)?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// The messages for devices of other servers, in EDUs.
    fn for_others(
        &self,
        requester: &Requester,
        sent: &ToDevice,
    ) -> Result<HashMap<ServerNid, Vec<String>>> {
        let mut servers: BTreeMap<OwnedServerName, Letters> = BTreeMap::new();
        for (user, messages) in &sent.messages {
            let server = user.server_name();
            if self.is_local(server) || !self.remote.admits(server) {
                continue;
            }
            let letters = servers.entry(server.to_owned()).or_default();
            for (device, content) in messages {
                letters.add(user.as_str(), device, content.get());
            }
        }
        let mut all = HashMap::new();
        for (server, letters) in servers {
            let edus = letters.finished().into_iter().map(|messages| {
                let mut edu = String::with_capacity(messages.len() + 256);
                edu.push_str("{\"content\":{\"message_id\":");
                push_string(&mut edu, &self.entropy.token(24));
                edu.push_str(",\"messages\":{");
                edu.push_str(&messages);
                edu.push_str("},\"sender\":");
                push_string(&mut edu, requester.user_id.as_str());
                edu.push_str(",\"type\":");
                push_string(&mut edu, &sent.event_type);
                edu.push_str("},\"edu_type\":\"m.direct_to_device\"}");
                edu
            });
            all.insert(self.store.server_nid(&server)?, edus.collect());
        }
        Ok(all)
    }
}

/// Messages for one server, divided so that no EDU gets too large.
#[derive(Default)]
struct Letters {
    full: Vec<String>,
    open: String,
    user: String,
}

impl Letters {
    fn add(&mut self, user: &str, device: &str, content: &str) {
        if !self.open.is_empty() && self.open.len() + content.len() > EDU_BYTES {
            self.close();
        }
        if self.user == user {
            self.open.push(',');
        } else {
            self.open
                .push_str(if self.user.is_empty() { "" } else { "}," });
            push_string(&mut self.open, user);
            self.open.push_str(":{");
            user.clone_into(&mut self.user);
        }
        push_string(&mut self.open, device);
        self.open.push(':');
        self.open.push_str(content);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.open.push('}');
            self.full.push(std::mem::take(&mut self.open));
            self.user.clear();
        }
    }

    /// The members of `messages` of each EDU.
    fn finished(mut self) -> Vec<String> {
        self.close();
        self.full
    }
}

/// Whether the request is within its bounds.
fn check(sent: &ToDevice) -> Result<()> {
    if sent.event_type.len() > LONGEST_NAME {
        return Err(Error::invalid_param("The type is too long"));
    }
    let contents = sent.messages.values().flat_map(BTreeMap::values);
    let mut devices = 0;
    for content in contents {
        devices += 1;
        if devices > MOST_DEVICES {
            return Err(Error::too_large(format!(
                "One request is for at most {MOST_DEVICES} devices"
            )));
        }
        if content.get().len() > LONGEST_CONTENT {
            return Err(Error::too_large(format!(
                "The content of a message has at most {LONGEST_CONTENT} bytes"
            )));
        }
        if !content.get().starts_with('{') {
            return Err(Error::bad_json("The content of a message is no object"));
        }
    }
    Ok(())
}

fn event(sender: &str, event_type: &str, content: &str) -> String {
    let mut event = String::with_capacity(content.len() + 128);
    event.push_str("{\"content\":");
    event.push_str(content);
    event.push_str(",\"sender\":");
    push_string(&mut event, sender);
    event.push_str(",\"type\":");
    push_string(&mut event, event_type);
    event.push('}');
    event
}

fn write(batch: &mut Batch<'_>, messages: &[(UserNid, String, String)]) {
    for (user, device, event) in messages {
        let position = batch.position();
        TO_DEVICE.put(batch, &(*user, device.as_str(), position), event);
        batch.touch_user(position, *user, None, Kinds::DEVICES);
    }
}
