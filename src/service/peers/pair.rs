//! Becoming peers, and looking whether two peers reach each other.

use http::Method;
use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Peers, Report, no_peer};
use crate::{
    error::{Error, Result},
    protocol::{
        pairing::{Invitation, LookBack, PAIR_PATH, PairRequest, TEST_PATH, Voucher},
        server_keys::ServerKeys,
    },
    remote::{self, Kind, Limits, Peer},
    store::{
        self,
        schema::{PEER_INVITATIONS, PEERS, PeerInvitationRow, PeerRow},
    },
};

/// How long a code may be used.
const VALIDITY_MS: u64 = 60 * 60 * 1_000;

/// How far two clocks may differ before it is mentioned. Certificates and keys begin and end by the clock.
const MOST_SKEW_MS: u64 = 60 * 1_000;

/// The most authorities that may vouch for one peer.
const MOST_AUTHORITIES: usize = 5;

/// A code and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// For the administrator of the other node.
    pub code: String,
    /// Where the other node will look for this one.
    pub address: OwnedServerName,
    /// Until when it may be used, in milliseconds since 1970.
    pub expires: u64,
}

impl Peers {
    /// Makes a code with which one other node can become a peer. `address` is where it finds this node.
    ///
    /// # Errors
    /// When there is no federation, the address is none, the node's certificate cannot be read, or the store fails.
    pub async fn invite(&self, address: Option<&str>) -> Result<Offer> {
        let parts = &self.parts;
        self.must_be_on()?;
        let address = self.own_address(address)?;
        let now = parts.clock.now_ms();
        let expires = now.saturating_add(VALIDITY_MS);
        let invitation = Invitation {
            server: parts.keyring.name().to_owned(),
            voucher: self.own_voucher(&address).await?,
            address,
            key: self.own_key(),
            secret: parts.entropy.bytes(),
            expires: expires / 1_000,
        };
        let row = PeerInvitationRow {
            expires,
            used_by: None,
        };
        let view = parts.store.view();
        let rows = PEER_INVITATIONS.scan(&view, &());
        let rows = rows.collect::<store::Result<Vec<_>>>()?;
        let over = rows.into_iter().filter(|(_, row)| row.expires < now);
        let over: Vec<_> = over.map(|(key, _)| key).collect();
        let made = parts.store.commit(|batch| {
            for key in &over {
                PEER_INVITATIONS.delete(batch, key);
            }
            PEER_INVITATIONS.put(batch, &(hash(&invitation.secret),), &row);
            Ok(())
        })?;
        parts.store.durable(made.position).await?;
        Ok(Offer {
            code: invitation.encode(),
            address: invitation.address,
            expires,
        })
    }

    /// Takes a code of another node: looks whether it is that node, has it look back, and becomes its peer.
    ///
    /// # Errors
    /// When the address is none, the node's certificate cannot be read, or the store fails. What is wrong between the two
    /// nodes stands in the report.
    pub async fn accept(&self, code: &str, address: Option<&str>) -> Result<Report> {
        let parts = &self.parts;
        self.must_be_on()?;
        let invitation = match Invitation::decode(code) {
            Ok(invitation) => invitation,
            Err(bad) => {
                let again = "Ask for the code again (`kontor peer invite` on the other node).";
                return Ok(Report::default().failed(bad.to_string(), again));
            }
        };
        let server = invitation.server;
        let mut report = Report::about(server.clone());
        if server == parts.keyring.name() {
            let there = "Give the code to the administrator of the other node.";
            return Ok(report.failed("the code was made by this node itself", there));
        }
        if parts.clock.now_ms() / 1_000 > invitation.expires {
            return Ok(report.failed(
                "the code has expired, or the clock of this machine is wrong",
                "Look at the clocks of both machines (`date`), and make a new code with `kontor peer invite` on the other node.",
            ));
        }
        let address = self.own_address(address)?;
        let peer = Peer::paired(invitation.address, invitation.voucher);
        let there = peer.address.clone().expect("a peer of a code has one");
        let keys = match parts.remote.server_keys_as(&server, &peer).await {
            Ok(keys) => keys,
            Err(error) => return Ok(report.unreached(&error)),
        };
        report.good(format!(
            "{server} is reached at {there}, and its certificate is what the code says"
        ));
        if !signs_with(&keys, &invitation.key) {
            return Ok(report.failed(
                format!("{there} does not sign with the key of {server} that the code names"),
                "Somebody else may be there, or the key was replaced since: make a new code.",
            ));
        }
        if parts.keyring.contradicts(&server, &keys)? {
            let advice = "If it was set up anew under its old name, nobody can tell it from somebody else: its rooms and users are those of before.";
            return Ok(report.failed(another(&server), advice));
        }
        report.good("it signs with the key that the code names");
        let request = PairRequest {
            secret: invitation.secret,
            server: parts.keyring.name().to_owned(),
            voucher: self.own_voucher(&address).await?,
            address,
            key: self.own_key(),
        };
        let body = serde_json::to_vec(&request).map_err(|e| Error::Internal(e.to_string()))?;
        let (remote, method) = (&parts.remote, Method::POST);
        let answer = remote
            .ask_as(&server, &peer, method, PAIR_PATH, body)
            .await
            .and_then(|answer| look_back(&server, answer.body()));
        if let Err(report) = self.look_at(&mut report, answer, &request.address) {
            return Ok(report);
        }
        let row = PeerRow {
            address: there,
            voucher: peer.voucher,
            since: parts.clock.now_ms(),
        };
        self.keep(&server, row).await?;
        self.say_if_configured(&mut report, &server);
        report.good("each is in the peer table of the other");
        Ok(report)
    }

    /// Another node asks to become a peer with a code of ours: looks whether it is reached from here, and writes it down.
    ///
    /// # Errors
    /// 403 for a code that is not or no longer good; 400 for a request that makes no sense; when the store fails.
    pub async fn pair(&self, request: PairRequest) -> Result<LookBack> {
        let parts = &self.parts;
        parts.keyring.admit_strangers()?;
        // Before anything that takes long or waits: strangers may ask.
        self.invitation(&request)?;
        let server = &request.server;
        let is_too_much = match &request.voucher {
            Voucher::Authorities(all) => all.len() > MOST_AUTHORITIES,
            Voucher::Public | Voucher::Certificate(_) => false,
        };
        if server == parts.keyring.name() || is_too_much {
            return Err(Error::invalid_param("This cannot be a peer"));
        }
        let _one_after_the_other = self.pairing.lock().await;
        let (key, mut row) = self.invitation(&request)?;
        let peer = Peer::paired(request.address.clone(), request.voucher.clone());
        let problem = match parts.remote.server_keys_as(server, &peer).await {
            Err(error) => Some(told(&error)),
            Ok(keys) if !signs_with(&keys, &request.key) => Some(format!(
                "somebody else than {server} answers at {}",
                request.address
            )),
            // Whoever has a code is let in as himself, not in the place of another.
            Ok(keys) if parts.keyring.contradicts(server, &keys)? => Some(another(server)),
            Ok(_) => None,
        };
        if problem.is_none() {
            row.used_by = Some(server.clone());
            let peer = PeerRow {
                address: request.address.clone(),
                voucher: request.voucher.clone(),
                since: parts.clock.now_ms(),
            };
            let paired = parts.store.commit(|batch| {
                PEER_INVITATIONS.put(batch, &key, &row);
                PEERS.put(batch, &(server.as_str(),), &peer);
                Ok(())
            })?;
            parts.store.durable(paired.position).await?;
            self.welcome(server, peer)?;
        }
        Ok(LookBack {
            problem,
            now: parts.clock.now_ms(),
        })
    }

    /// Looks whether a peer is reached from here, and has it look back.
    ///
    /// # Errors
    /// When it is no peer.
    pub async fn test(&self, server: &ServerName) -> Result<Report> {
        let remote = &self.parts.remote;
        self.must_be_on()?;
        let peer = remote.peer(server);
        let peer = peer.ok_or_else(|| no_peer(server))?;
        let mut report = Report::about(server.to_owned());
        let keys = match remote.server_keys_as(server, &peer).await {
            Ok(keys) => keys,
            Err(error) => return Ok(report.unreached(&error)),
        };
        let place = match &peer.address {
            Some(address) => format!(" at {address}"),
            None => String::new(),
        };
        report.good(format!(
            "{server} is reached{place}, its certificate is trusted, and it signs with {}",
            keys.keys
                .iter()
                .filter(|(_, key)| key.expired.is_none())
                .map(|(id, _)| id.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ));
        let limits = Limits::USUAL;
        let asked = remote
            .send_signed(server, Method::POST, TEST_PATH, b"{}".to_vec(), limits)
            .await;
        if let Err(error) = &asked
            && let Some((status, "M_UNRECOGNIZED")) = error.refusal()
            && status.is_client_error()
        {
            report.doubt("it is no Kontor, so only this direction could be looked at");
            return Ok(report);
        }
        let answer = asked.and_then(|answer| look_back(server, answer.body()));
        match self.look_at(&mut report, answer, self.parts.keyring.name()) {
            Ok(()) => Ok(report),
            Err(report) => Ok(report),
        }
    }

    /// A server asks whether it is reached from here.
    ///
    /// # Errors
    /// 403 for whoever is no peer.
    pub async fn test_back(&self, origin: &ServerName) -> Result<LookBack> {
        let parts = &self.parts;
        let peer = parts.remote.peer(origin).ok_or_else(|| {
            Error::forbidden(format!(
                "{origin} is not in the peer table of {}",
                parts.keyring.name()
            ))
        })?;
        let looked = parts.remote.server_keys_as(origin, &peer).await;
        Ok(LookBack {
            problem: looked.err().map(|error| told(&error)),
            now: parts.clock.now_ms(),
        })
    }

    /// What the other node has found. An error is a report that ends there.
    fn look_at(
        &self,
        report: &mut Report,
        answer: remote::Result<LookBack>,
        address: &ServerName,
    ) -> Result<(), Report> {
        let found = match answer {
            Ok(found) => found,
            Err(error) => {
                let report = std::mem::take(report);
                return Err(match &error.kind {
                    Kind::Status { message, .. } if error.refusal_is("M_FORBIDDEN") => {
                        let advice = "Pair the two nodes: `kontor peer invite` there, `kontor peer accept` with the new code here.";
                        report.failed(format!("the other node refuses: {message}"), advice)
                    }
                    _ => report.unreached(&error),
                });
            }
        };
        let skew = self.parts.clock.now_ms().abs_diff(found.now);
        if skew > MOST_SKEW_MS {
            report.doubt(format!(
                "the clocks of the two machines differ by {} s: have both set by NTP",
                skew / 1_000
            ));
        }
        match found.problem {
            None => {
                report.good(format!("it reaches this node at {address}"));
                Ok(())
            }
            Some(problem) => Err(std::mem::take(report).failed(
                format!("the other node does not reach this one at {address}: {problem}"),
                "Nothing is to be mended there but here, or on the way: the address (--address), the port, the firewall of this office, the certificate of this node.",
            )),
        }
    }

    fn say_if_configured(&self, report: &mut Report, server: &ServerName) {
        let peer = self.parts.remote.peer(server);
        if peer.is_some_and(|peer| peer.is_configured) {
            report.doubt("the configuration file of this node has the peer too, and wins");
        }
    }

    fn must_be_on(&self) -> Result<()> {
        if self.parts.remote.is_on() {
            Ok(())
        } else {
            Err(Error::forbidden(
                "federation.mode is \"off\"; set it to \"open\" or \"closed\" and start the node again",
            ))
        }
    }

    /// The row of the code that a request brings, if it may use it.
    fn invitation(&self, request: &PairRequest) -> Result<(([u8; 32],), PeerInvitationRow)> {
        let key = (hash(&request.secret),);
        let row = PEER_INVITATIONS.get(&self.parts.store.latest(), &key)?;
        let now = self.parts.clock.now_ms();
        let row = row.filter(|row| {
            let is_free = row.used_by.as_ref().is_none_or(|by| *by == request.server);
            now <= row.expires && is_free
        });
        let row = row.ok_or_else(|| {
            Error::forbidden("The code is not known here, was used, or has expired")
        })?;
        Ok((key, row))
    }
}

fn hash(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Whether a server signs with this key now.
fn signs_with(keys: &ServerKeys, key: &[u8; 32]) -> bool {
    let mut keys = keys.keys.values();
    keys.any(|known| known.expired.is_none() && known.key == *key)
}

fn another(server: &ServerName) -> String {
    format!("{server} is known by other keys, none of which the node at this address has or had")
}

/// What failed, for the administrator of the node that is meant.
fn told(error: &remote::Error) -> String {
    error.kind.to_string()
}

fn look_back(server: &ServerName, body: &[u8]) -> remote::Result<LookBack> {
    serde_json::from_slice(body).map_err(|error| {
        let kind = Kind::BadAnswer(error.to_string());
        kind.of(server)
    })
}
