//! Section `federation`: which other servers the node talks to, where they are, and whom it believes that they are it.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ruma::{OwnedServerName, ServerName};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::text::{self, Fingerprint, Network, Span};

/// Section `federation`: which other servers the node talks to, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Federation {
    /// With whom at all.
    pub mode: FederationMode,
    /// PEM files of authorities that may vouch for any server, beside those that the system trusts.
    pub ca_files: Vec<PathBuf>,
    /// Servers that are asked for the keys of others who do not answer themselves.
    pub notaries: Vec<OwnedServerName>,
    /// Private addresses that servers outside the peer table may have.
    pub allowed_ranges: Vec<Network>,
    /// The servers that the administrator knows.
    pub peers: BTreeMap<OwnedServerName, Peer>,
}

/// With whom the node talks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FederationMode {
    /// With every server.
    #[default]
    Open,
    /// With the servers of the peer table only, in both directions.
    Closed,
    /// With nobody.
    Off,
}

/// One server of the peer table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Where it is, `host` or `host:port`; `None` means that it is looked up like any other server.
    #[serde(with = "text::optional")]
    pub address: Option<OwnedServerName>,
    /// PEM file of the only authority that may vouch for it.
    #[serde(with = "text::optional_path")]
    pub ca: Option<PathBuf>,
    /// The one certificate that it may show.
    #[serde(with = "text::optional")]
    pub fingerprint: Option<Fingerprint>,
    /// The longest wait before it is tried again.
    pub max_backoff: Span,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            address: None,
            ca: None,
            fingerprint: None,
            max_backoff: Span::seconds(60),
        }
    }
}

impl Federation {
    /// Whether a server outside the peer table may have this address although it is private.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.allowed_ranges
            .iter()
            .any(|range| range.contains(address))
    }

    /// Checks what no single key can know.
    pub(super) fn complete(&self, own_name: &ServerName, mistake: &mut dyn FnMut(&str, String)) {
        for file in &self.ca_files {
            if let Err(problem) = check_authority(file) {
                mistake("federation.ca_files", problem);
            }
        }
        for notary in &self.notaries {
            if self.mode == FederationMode::Closed && !self.peers.contains_key(notary) {
                mistake(
                    "federation.notaries",
                    format!(
                        "{notary} is no peer, and with federation.mode = \"closed\" nobody else is asked"
                    ),
                );
            }
        }
        for (name, peer) in &self.peers {
            let key = |key: &str| format!("federation.peers.\"{name}\".{key}");
            if name == own_name {
                mistake(&key("address"), "this is the node itself".to_owned());
            }
            match (&peer.ca, peer.fingerprint) {
                (Some(_), Some(_)) => mistake(
                    &key("fingerprint"),
                    "a certificate is judged by `ca` or by `fingerprint`: remove one".to_owned(),
                ),
                (Some(file), None) => {
                    if let Err(problem) = check_authority(file) {
                        mistake(&key("ca"), problem);
                    }
                }
                (None, _) => {}
            }
            if peer.max_backoff < Span::seconds(1) {
                mistake(&key("max_backoff"), "must be at least 1s".to_owned());
            }
        }
    }
}

/// Says what is wrong with a file that shall hold certificates of authorities.
fn check_authority(file: &Path) -> Result<(), String> {
    let pem = fs::read(file).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(()),
        _ => Err(format!(
            "{} holds no certificate in PEM form",
            file.display()
        )),
    }
}
