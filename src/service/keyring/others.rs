//! The keys of other servers: got once, kept for ever, and asked for again only when they do not suffice.
//!
//! Only the server itself, the configured notaries, and about a peer the other peers are ever asked, each server by one
//! task at a time, and one that has failed not again for a while.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ruma::{CanonicalJsonValue, OwnedServerName, ServerName};
use tokio::{task::JoinSet, time::timeout};

use super::Keyring;
use crate::{
    error::Result,
    protocol::{
        backoff::Schedule,
        integrity,
        server_keys::{MAX_VALIDITY_MS, ServerKeys, decode_key},
        xmatrix::verify_text,
    },
    remote,
    store::{
        View,
        schema::{KEY_DOCUMENTS, KeyDocumentRow, SERVER_KEYS, ServerKeyRow},
    },
};

/// How many servers are asked at the same time.
pub(super) const FETCHES: usize = 32;

/// Of how many servers it is remembered when they were asked.
pub(super) const SERVERS: usize = 10_000;

/// How many keys of one server are kept. Nobody changes keys so often; without an end, one server could fill the disk.
const MOST_KEYS: usize = 1_000;

/// The longest time that a peer that did not answer is not asked: whoever needs its key has usually just heard from it.
const PEER_SILENCE: Duration = Duration::from_secs(2);

/// How long somebody waits until so few others are being asked.
const LONGEST_QUEUE: Duration = Duration::from_secs(10);

/// How soon a server that has answered is asked again, whatever keys somebody says it has.
const PAUSE: Duration = Duration::from_secs(10);

/// The longest time that a server that did not answer is not asked. Longer would be worse than useless: whoever needs its
/// key usually has just heard from it.
const LONGEST_SILENCE: Duration = Duration::from_mins(5);

/// A key that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Whose.
    pub server: OwnedServerName,
    /// Its id, `ed25519:VERSION`.
    pub key_id: String,
    /// The time at which it must have been valid, in milliseconds since 1970; none where any time will do, as in room
    /// versions 1 to 4.
    pub at: Option<u64>,
}

/// What is remembered of asking one server.
#[derive(Debug, Default)]
pub(super) struct Flight {
    failures: u32,
    not_before: Option<Instant>,
    /// Why it failed last.
    problem: Option<remote::Error>,
}

/// Who is asked about a peer besides itself and the configured notaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vouchers {
    /// All other peers.
    Peers,
    /// Nobody: one of them has asked us.
    None,
}

impl Keyring {
    /// A key that is known and was valid then.
    ///
    /// # Errors
    /// When the store fails.
    pub fn held(&self, need: &Need) -> Result<Option<[u8; 32]>> {
        self.held_in(&self.store.latest(), need)
    }

    pub(super) fn held_in(&self, view: &View, need: &Need) -> Result<Option<[u8; 32]>> {
        if need.server == self.name {
            return Ok(self.own_key(need));
        }
        let key = (need.server.as_str(), need.key_id.as_str());
        let row = SERVER_KEYS.get(view, &key)?;
        Ok(row.filter(|row| is_valid(row, need.at)).map(|row| row.key))
    }

    /// Our own keys need no looking up, and events of ours come back from others.
    fn own_key(&self, need: &Need) -> Option<[u8; 32]> {
        if need.key_id == self.own.key.id() {
            return decode_key(self.own.key.public_base64());
        }
        let mut old = self.own.old.iter();
        let old = old.find(|old| old.id == need.key_id)?;
        let valid = need.at.is_none_or(|at| at <= old.expired_ts);
        valid.then(|| decode_key(&old.key)).flatten()
    }

    /// Whether a document, which was got in a new way, has nothing to do with the keys by which this server is known: then
    /// it is somebody else's.
    ///
    /// # Errors
    /// When the store fails.
    pub fn contradicts(&self, server: &ServerName, keys: &ServerKeys) -> Result<bool> {
        let mut is_known = false;
        for row in SERVER_KEYS.scan(&self.store.latest(), &(server.as_str(),)) {
            let ((_, id), row) = row?;
            if keys.keys.get(&id).is_some_and(|key| key.key == row.key) {
                return Ok(false);
            }
            is_known = true;
        }
        Ok(is_known)
    }

    /// Gets those of the keys that are not held, as far as anybody gives them. Afterwards ask [`held`](Self::held).
    ///
    /// # Errors
    /// When the store fails. A server that does not answer is no error here.
    pub async fn obtain(self: &Arc<Self>, needs: &[Need]) -> Result<()> {
        let mut missing: Vec<Need> = Vec::new();
        {
            let view = self.store.latest();
            for need in needs {
                if self.held_in(&view, need)?.is_none() && !missing.contains(need) {
                    missing.push(need.clone());
                }
            }
        }
        if let [one] = &missing[..] {
            let _the_key_is_held_or_not = self.fetch(one).await?;
            return Ok(());
        }
        let mut tasks = JoinSet::new();
        for need in missing {
            let keyring = self.clone();
            tasks.spawn(async move { keyring.fetch(&need).await.map(drop) });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(outcome) => outcome?,
                Err(error) => tracing::error!(%error, "getting keys broke off"),
            }
        }
        Ok(())
    }

    /// Asks whoever may know the key, unless it is held by now or was asked for in vain just before. Says why it failed,
    /// if it did.
    pub(super) async fn fetch(&self, need: &Need) -> Result<Option<remote::Error>> {
        let is_held = || Ok(self.held(need)?.is_some());
        let at = need.at.unwrap_or(0);
        self.fly(&need.server, at, Vouchers::Peers, &is_held).await
    }

    /// Asks about a server until `suffices` says that what is known of it does. `at` is the time for which keys are
    /// wanted.
    pub(super) async fn fly(
        &self,
        server: &ServerName,
        at: u64,
        vouchers: Vouchers,
        suffices: &(dyn Fn() -> Result<bool> + Send + Sync),
    ) -> Result<Option<remote::Error>> {
        if server == self.name {
            return Ok(None);
        }
        let flight = self
            .flights
            .get_or_insert_with(server, || Ok::<_, ()>(Arc::default()))
            .unwrap_or_default();
        // Whoever comes second waits for the first and finds what it has got.
        let mut flight = flight.lock().await;
        if suffices()? {
            return Ok(None);
        }
        let now = self.clock.instant();
        if flight.not_before.is_some_and(|not_before| now < not_before) {
            return Ok(flight.problem.clone());
        }
        // Anybody can make up names of servers to be asked about; peers do not stand in line behind those.
        let seat = if self.remote.is_peer(server) {
            None
        } else {
            match timeout(LONGEST_QUEUE, self.seats.acquire()).await {
                Ok(seat) => Some(seat),
                Err(_) => return Ok(Some(remote::Kind::Timeout(LONGEST_QUEUE).of(server))),
            }
        };
        let outcome = self.ask_everybody(server, at, vouchers, suffices).await?;
        drop(seat);
        let now = self.clock.instant();
        match outcome {
            None => {
                *flight = Flight {
                    not_before: Some(now + PAUSE),
                    ..Flight::default()
                };
            }
            Some(problem) => {
                flight.failures = flight.failures.saturating_add(1);
                let longest = if self.remote.is_peer(server) {
                    PEER_SILENCE
                } else {
                    LONGEST_SILENCE
                };
                let wait = Schedule::peer(longest).wait(flight.failures, self.entropy.number());
                flight.not_before = Some(now + wait);
                flight.problem = Some(problem);
            }
        }
        Ok(flight.problem.clone())
    }

    /// Asks the server, and if that does not suffice, the notaries, all at once. Says why the server did not answer.
    async fn ask_everybody(
        &self,
        server: &ServerName,
        at: u64,
        vouchers: Vouchers,
        suffices: &(dyn Fn() -> Result<bool> + Send + Sync),
    ) -> Result<Option<remote::Error>> {
        let problem = self.ask(server).await?;
        if suffices()? {
            return Ok(None);
        }
        let notaries = self.remote.notaries().iter().cloned();
        // Peers vouch for each other: who comes into a room while one office is cut off could not believe what its users
        // have said there, and would have another room than all others for ever.
        let peers = self.remote.peers().into_iter().map(|(name, _)| name);
        let peers = peers.filter(|_| vouchers == Vouchers::Peers && self.remote.is_peer(server));
        let mut asked = HashSet::from([server.to_owned(), self.name.clone()]);
        let mut tasks = JoinSet::new();
        for notary in notaries.chain(peers) {
            if asked.insert(notary.clone()) {
                let (remote, server) = (self.remote.clone(), server.to_owned());
                tasks.spawn(async move {
                    let answer = remote.server_keys_from(&notary, &server, at).await;
                    (notary, answer)
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((notary, Ok(documents))) => self.take_from(&notary, server, documents).await?,
                Ok((_, Err(error))) => tracing::debug!(%error, "a notary did not answer"),
                Err(error) => tracing::error!(%error, "asking a notary broke off"),
            }
            if suffices()? {
                return Ok(None);
            }
        }
        Ok(problem)
    }

    /// Asks the server itself.
    async fn ask(&self, server: &ServerName) -> Result<Option<remote::Error>> {
        match self.remote.server_keys(server).await {
            Ok(keys) => self.keep(server, &keys, true).map(|()| None),
            Err(error) => Ok(Some(error)),
        }
    }

    /// Keeps what a notary has said of a server.
    async fn take_from(
        &self,
        notary: &ServerName,
        server: &ServerName,
        documents: Vec<ServerKeys>,
    ) -> Result<()> {
        let mut is_asked = false;
        for keys in documents {
            // The server's own signature proves nothing here: whoever makes up a server makes up its keys.
            if self.has_signed(notary, &keys, &mut is_asked).await? {
                self.keep(server, &keys, false)?;
            } else {
                tracing::warn!(%notary, %server, "a notary has not signed what it sent");
            }
        }
        Ok(())
    }

    /// Whether a notary has signed this. Its own keys are asked for if need be, unless that was done already.
    async fn has_signed(
        &self,
        notary: &ServerName,
        keys: &ServerKeys,
        is_asked: &mut bool,
    ) -> Result<bool> {
        let signatures = keys.document.get("signatures");
        let signatures = signatures
            .and_then(CanonicalJsonValue::as_object)
            .and_then(|all| all.get(notary.as_str()))
            .and_then(CanonicalJsonValue::as_object);
        let text = integrity::signed_text(&keys.document);
        for (key_id, signature) in signatures.into_iter().flatten().take(10) {
            let need = Need {
                server: notary.to_owned(),
                key_id: key_id.clone(),
                at: Some(self.clock.now_ms()),
            };
            // It may name any number of keys that it does not publish.
            if self.held(&need)?.is_none() && !std::mem::replace(is_asked, true) {
                let _held_or_not = self.ask(notary).await?;
            }
            if let Some(key) = self.held(&need)?
                && let Some(signature) = signature.as_str()
                && verify_text(&text, signature, &key).is_ok()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps what a document says. What a notary says never replaces what the server itself has said.
    fn keep(&self, server: &ServerName, keys: &ServerKeys, is_direct: bool) -> Result<()> {
        let now = self.clock.now_ms();
        let valid_until = keys.valid_until.min(now.saturating_add(MAX_VALIDITY_MS));
        let view = self.store.latest();
        let mut rows = Vec::new();
        let all = SERVER_KEYS.scan(&view, &(server.as_str(),));
        let held = all.take(MOST_KEYS).count();
        let mut new = 0;
        for (id, key) in &keys.keys {
            let known = SERVER_KEYS.get(&view, &(server.as_str(), id.as_str()))?;
            new += usize::from(known.is_none());
            let same = known.filter(|known| known.key == key.key);
            if known.is_some() && same.is_none() {
                if !is_direct {
                    continue;
                }
                tracing::warn!(%server, key = id, "a server has another key under an old name");
            }
            // What was valid once stays so: a server that falls silent does not unsay what it has signed.
            let before = same.map_or(0, |known| known.valid_until);
            let row = ServerKeyRow {
                key: key.key,
                valid_until: match key.expired {
                    Some(expired) => before.max(expired),
                    None => before.max(valid_until),
                },
                expired: key.expired,
            };
            rows.push((id, row));
        }
        if held + new > MOST_KEYS {
            tracing::warn!(%server, "a server has had too many keys; no more are kept");
            return Ok(());
        }
        let known = KEY_DOCUMENTS.get(&view, &(server.as_str(),))?;
        let is_newer = known.is_none_or(|known| is_direct || known.valid_until < keys.valid_until);
        let document = KeyDocumentRow {
            valid_until: keys.valid_until,
            fetched: now,
            json: integrity::canonical(&keys.document),
        };
        // Keys that are lost in a power cut are asked for again.
        let _not_awaited = self.store.commit(|batch| {
            for (id, row) in &rows {
                SERVER_KEYS.put(batch, &(server.as_str(), id.as_str()), row);
            }
            if is_newer {
                KEY_DOCUMENTS.put(batch, &(server.as_str(),), &document);
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Whether a key may have signed something at that time. See "Publishing Keys" and, for where time does not matter, room
/// version 5.
fn is_valid(row: &ServerKeyRow, at: Option<u64>) -> bool {
    at.is_none_or(|at| at <= row.expired.unwrap_or(row.valid_until))
}
