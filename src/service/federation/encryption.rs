//! Keys of devices of other servers, asked for there. See "End-to-End Encryption" in the server-server API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Federation, Parts, handshake::ask::nonsense};
use crate::{
    error::{Error, Result},
    remote::Limits,
    service::{
        Requester,
        e2ee::{Claimed, Kept, Keys, MOST_ASKED, Named, OfDevices},
    },
};

/// How long other servers may take, unless the client says otherwise; and at most.
const USUAL_PATIENCE: Duration = Duration::from_secs(10);
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer, in bytes.
const ANSWER: u64 = 16 << 20;

/// How many servers one request may ask.
const MOST_SERVERS: usize = 1_000;

/// Where servers are asked for the keys of their users.
const QUERY: &str = "/_matrix/federation/v1/user/keys/query";

/// How often, and at first how long apart, keys are looked at again that may have changed unsaid, until it works; and for
/// how many users one request asks.
const LOOKS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LOOKED_AT: usize = 100;

/// How many signed keys one request may bring.
const MOST_SIGNED: usize = 1_000;

/// How many servers are asked for keys at the same time.
static QUESTIONS: Semaphore = Semaphore::const_new(64);

#[derive(Deserialize)]
struct ToldKeys {
    #[serde(default)]
    device_keys: OfDevices<Box<RawValue>>,
    #[serde(default)]
    master_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    #[serde(default)]
    self_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
}

#[derive(Deserialize)]
struct ToldClaimed {
    #[serde(default)]
    one_time_keys: OfDevices<Named>,
}

/// A server, what it was asked for, and what it has said.
type Answered<W, A> = (OwnedServerName, BTreeMap<OwnedUserId, W>, Result<A>);

/// Of whom identity keys are.
#[derive(Deserialize)]
struct Owner {
    user_id: OwnedUserId,
    device_id: String,
}

impl Federation {
    /// The keys of users here and elsewhere, as `requester` may see them: of all devices of a user for whom none are named.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when too much is asked at once.
    pub async fn query_keys(
        &self,
        requester: &Requester,
        wanted: BTreeMap<OwnedUserId, Vec<String>>,
        patience: Option<Duration>,
    ) -> Result<Keys> {
        let wants_own = wanted.contains_key(&requester.user_id);
        let mut keys = self.published_keys(wanted, patience).await?;
        let (view, encryption) = (self.0.store.view(), &self.0.encryption);
        encryption.add_private_keys(&view, requester, wants_own, &mut keys)?;
        Ok(keys)
    }

    /// The same as all may see them.
    async fn published_keys(
        &self,
        wanted: BTreeMap<OwnedUserId, Vec<String>>,
        patience: Option<Duration>,
    ) -> Result<Keys> {
        let mut keys = self.told_keys(&wanted)?;
        let view = self.0.store.view();
        let encryption = &self.0.encryption;
        let as_of = view.position();
        let mut others = BTreeMap::new();
        let mut picked = BTreeMap::new();
        for (user, devices) in wanted {
            match encryption.kept_keys(&view, &user)? {
                Some(kept) => show(kept, (user, &devices), &mut keys)?,
                None => {
                    // All are asked for, so that they can be kept.
                    others.insert(user.clone(), Vec::<String>::new());
                    picked.insert(user, devices);
                }
            }
        }
        drop(view);
        let asked = self.servers(others, (QUERY, "device_keys"), patience);
        for (server, wanted, answer) in asked.await? {
            let told: ToldKeys = match answer {
                Ok(told) => told,
                Err(error) => {
                    keys.failures.insert(server.to_string(), failure(&error));
                    continue;
                }
            };
            let asked = picked.iter().filter(|(user, _)| wanted.contains_key(*user));
            for (user, asked) in asked {
                let devices = told.device_keys.get(user);
                if devices.is_none() && !told.master_keys.contains_key(user) {
                    continue;
                }
                let kept = told.keys_of(user, devices);
                encryption.keep_keys(as_of, user, &kept)?;
                show(kept, (user.clone(), asked), &mut keys)?;
            }
        }
        Ok(keys)
    }

    /// Takes in what `requester` has signed of own keys and of those of others, each for itself; gives those that are not
    /// taken.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when it is too much at once.
    pub async fn upload_signatures(
        &self,
        requester: &Requester,
        signed: BTreeMap<OwnedUserId, Named>,
    ) -> Result<BTreeMap<OwnedUserId, BTreeMap<String, serde_json::Value>>> {
        if signed.values().map(BTreeMap::len).sum::<usize>() > MOST_SIGNED {
            return Err(Error::too_large(format!(
                "At most {MOST_SIGNED} keys can be signed at once"
            )));
        }
        let own = self.0.keyring.name();
        let elsewhere = signed.keys().filter(|user| user.server_name() != own);
        let elsewhere = elsewhere.map(|user| (user.clone(), Vec::new())).collect();
        let known = self.published_keys(elsewhere, None).await?;
        let encryption = &self.0.encryption;
        let refused = encryption.upload_signatures(requester, &signed, &known.master_keys);
        let mut failures = BTreeMap::new();
        for (user, refused) in refused.await? {
            let unreachable = known.failures.get(user.server_name().as_str());
            let told = refused.into_iter().map(|(name, error)| {
                let why = unreachable.cloned().unwrap_or_else(|| failure(&error));
                (name, why)
            });
            failures.insert(user, told.collect());
        }
        Ok(failures)
    }

    /// Gives a key of each of these devices, here and elsewhere, that nobody else is given.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when too much is asked at once.
    pub async fn claim_keys(
        &self,
        wanted: OfDevices<String>,
        patience: Option<Duration>,
    ) -> Result<Claimed> {
        bounded(wanted.values().map(BTreeMap::len).sum())?;
        let mut claimed = Claimed {
            one_time_keys: self.0.encryption.claim_keys(&wanted).await?,
            failures: BTreeMap::new(),
        };
        let uri = "/_matrix/federation/v1/user/keys/claim";
        let asked = self.servers(wanted, (uri, "one_time_keys"), patience);
        for (server, wanted, answer) in asked.await? {
            let told: ToldClaimed = match answer {
                Ok(told) => told,
                Err(error) => {
                    claimed.failures.insert(server.to_string(), failure(&error));
                    continue;
                }
            };
            for (user, devices) in told.one_time_keys {
                let Some(asked) = wanted.get(&user) else {
                    continue;
                };
                let devices = devices.into_iter();
                let devices = devices.filter(|(device, _)| asked.contains_key(device));
                claimed.one_time_keys.insert(user, devices.collect());
            }
        }
        Ok(claimed)
    }

    /// The keys of local users, as all may see them.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when too much is asked at once.
    pub fn told_keys(&self, wanted: &BTreeMap<OwnedUserId, Vec<String>>) -> Result<Keys> {
        bounded(wanted.values().map(|devices| devices.len().max(1)).sum())?;
        let (view, encryption) = (self.0.store.view(), &self.0.encryption);
        let mut keys = Keys {
            device_keys: encryption.device_keys(&view, wanted)?,
            ..Keys::default()
        };
        encryption.add_signing_keys(&view, wanted.keys(), &mut keys)?;
        Ok(keys)
    }

    /// Gives keys of local users to another server.
    ///
    /// # Errors
    /// 413 M_TOO_LARGE when too much is asked at once.
    pub async fn told_claimed(&self, wanted: &OfDevices<String>) -> Result<Claimed> {
        bounded(wanted.values().map(BTreeMap::len).sum())?;
        Ok(Claimed {
            one_time_keys: self.0.encryption.claim_keys(wanted).await?,
            failures: BTreeMap::new(),
        })
    }

    /// Asks all other servers at once for what is wanted of their users; gives what each was asked and has said.
    async fn servers<W, A>(
        &self,
        wanted: BTreeMap<OwnedUserId, W>,
        (uri, name): (&'static str, &'static str),
        patience: Option<Duration>,
    ) -> Result<Vec<Answered<W, A>>>
    where
        W: Serialize + Send + 'static,
        A: DeserializeOwned + Send + 'static,
    {
        let mut servers: BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, W>> = BTreeMap::new();
        let own = self.0.keyring.name();
        for (user, wanted) in wanted {
            let server = user.server_name().to_owned();
            if server != own {
                servers.entry(server).or_default().insert(user, wanted);
            }
        }
        if servers.len() > MOST_SERVERS {
            return Err(Error::too_large("Users of too many servers are asked for"));
        }
        let time = patience.unwrap_or(USUAL_PATIENCE).min(MOST_PATIENCE);
        // They end with this.
        let mut asking = JoinSet::new();
        for (server, wanted) in servers {
            let federation = self.clone();
            asking.spawn(async move {
                let body = json!({ name: wanted }).to_string();
                let answer = federation.0.keys_from(&server, uri, body, time).await;
                (server, wanted, answer)
            });
        }
        Ok(asking.join_all().await)
    }
}

impl Parts {
    async fn keys_from<A: DeserializeOwned>(
        &self,
        server: &ServerName,
        uri: &str,
        body: String,
        time: Duration,
    ) -> Result<A> {
        // Who waits for others waits as long as for an answer.
        let asking = async {
            let _question = QUESTIONS.acquire().await;
            let limits = Limits { time, body: ANSWER };
            let (remote, body) = (&self.remote, body.into_bytes());
            let sent = remote.send_signed(server, Method::POST, uri, body, limits);
            let answer = sent.await?;
            serde_json::from_slice(answer.body()).map_err(|e| nonsense(server, e))
        };
        tokio::select! {
            answer = asking => answer,
            () = self.clock.sleep(time) => {
                Err(Error::api(http::StatusCode::GATEWAY_TIMEOUT, "M_UNKNOWN", "The server took too long"))
            }
        }
    }
}

impl Parts {
    /// Looks again at the keys that are kept of users of a server which was away for so long that it may have given up
    /// telling what changed; and tells whose are others now.
    pub(super) async fn look_at_keys(self: Arc<Self>, server: OwnedServerName) {
        let mut pause = FIRST_PAUSE;
        for _ in 0..LOOKS {
            match self.try_look_at_keys(&server).await {
                Ok(changed) => {
                    tracing::debug!(%server, changed, "users whose keys have changed unsaid");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%server, %error, "keys could not be looked at again");
                }
            }
            tokio::select! {
                () = self.clock.sleep(pause) => pause *= 2,
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn try_look_at_keys(&self, server: &ServerName) -> Result<usize> {
        let mut changed = 0;
        for users in self
            .encryption
            .kept_of(&self.store.view(), server)?
            .chunks(LOOKED_AT)
        {
            let as_of = self.store.view().position();
            let wanted = users.iter().map(|user| (user, Vec::<String>::new()));
            let wanted: BTreeMap<_, _> = wanted.collect();
            let body = json!({ "device_keys": wanted }).to_string();
            let asked = self.keys_from(server, QUERY, body, MOST_PATIENCE);
            let told: ToldKeys = asked.await?;
            for user in users {
                let told = told.keys_of(user, told.device_keys.get(user));
                changed += usize::from(self.encryption.compare_keys(as_of, user, &told)?);
            }
        }
        Ok(changed)
    }
}

impl ToldKeys {
    /// What of it are keys of the user; a server may have put anything there.
    fn keys_of(&self, user: &UserId, devices: Option<&Named>) -> Kept {
        let devices = devices.into_iter().flatten().filter(|(device, keys)| {
            let owner = serde_json::from_str::<Owner>(keys.get()).ok();
            owner.is_some_and(|it| it.user_id == user && it.device_id == **device)
        });
        let devices = devices.map(|(device, keys)| (device.clone(), keys.get().to_owned()));
        let mut kept = Kept {
            devices: devices.collect(),
            ..Kept::default()
        };
        let (master, own) = (&self.master_keys, &self.self_signing_keys);
        let (master, own) = (master.get(user), own.get(user));
        kept.take_signing_keys(user, master.map(|key| &**key), own.map(|key| &**key));
        kept
    }
}

/// Adds the keys of a user of another server, with those of these devices, or of all if none are named.
fn show(kept: Kept, (user, devices): (OwnedUserId, &[String]), keys: &mut Keys) -> Result<()> {
    let json = |json| RawValue::from_string(json).map_err(|e| Error::Internal(e.to_string()));
    let mut shown = Named::new();
    for (device, keys) in kept.devices {
        if devices.is_empty() || devices.contains(&device) {
            shown.insert(device, json(keys)?);
        }
    }
    if let Some(master) = kept.master {
        keys.master_keys.insert(user.clone(), json(master)?);
    }
    if let Some(own) = kept.self_signing {
        keys.self_signing_keys.insert(user.clone(), json(own)?);
    }
    keys.device_keys.insert(user, shown);
    Ok(())
}

fn bounded(count: usize) -> Result<()> {
    if count > MOST_ASKED {
        return Err(Error::too_large(format!(
            "At most {MOST_ASKED} devices can be asked for at once"
        )));
    }
    Ok(())
}

/// Why a server did not answer, as clients are told.
fn failure(error: &Error) -> serde_json::Value {
    let (status, errcode, message) = error.answer();
    json!({ "status": status.as_u16(), "errcode": errcode, "error": message })
}
