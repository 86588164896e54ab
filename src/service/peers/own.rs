//! What this node tells a new peer about itself: where it is, and how its certificate is judged.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ruma::{OwnedServerName, ServerName};
use sha2::{Digest as _, Sha256};

use super::Peers;
use crate::{
    certificates::{
        TlsError, in_certificate, is_vouched_for, read_certificates, system_authorities,
    },
    config::Config,
    error::{Error, Result},
    protocol::{pairing::Voucher, server_keys::decode_key},
};

impl Peers {
    /// Where others reach this node: what was given, or what the configuration says.
    pub(super) fn own_address(&self, given: Option<&str>) -> Result<OwnedServerName> {
        let Some(given) = given else {
            return Ok(address(&self.parts.config));
        };
        ServerName::parse(given).map_err(|_| {
            Error::invalid_param(format!(
                "\"{given}\" is no address; write a name or an IP address, and the port if it is not 8448, as in 10.8.0.2:8448"
            ))
        })
    }

    /// How the certificate is judged that this node shows at an address.
    pub(super) async fn own_voucher(&self, address: &ServerName) -> Result<Voucher> {
        let config = self.parts.config.clone();
        let ca_files = self.ca_files.read().clone();
        let now = Duration::from_millis(self.parts.clock.now_ms());
        let hosts = [config.server.name.host(), address.host()].map(in_certificate);
        // Reads files.
        let found =
            tokio::task::spawn_blocking(move || voucher(&config, &ca_files, &hosts, now)).await;
        let found = found.map_err(|e| Error::Internal(e.to_string()))?;
        found.map_err(|error| {
            Error::Internal(format!("the node's certificate cannot be read: {error}"))
        })
    }

    pub(super) fn own_key(&self) -> [u8; 32] {
        decode_key(self.parts.keyring.key().public_base64()).expect("our own key is one")
    }
}

fn address(config: &Config) -> OwnedServerName {
    if let Some(address) = &config.server.federation_address {
        return address.clone();
    }
    let listens = config.listen.https.filter(|address| {
        !address.ip().is_unspecified() && !address.ip().is_loopback() && address.port() > 0
    });
    let listens = listens.and_then(|address| ServerName::parse(address.to_string()).ok());
    listens.unwrap_or_else(|| config.server.name.clone())
}

/// How the certificate in the configured files is judged under one of these names.
fn voucher(
    config: &Config,
    ca_files: &[PathBuf],
    hosts: &[String],
    now: Duration,
) -> Result<Voucher, TlsError> {
    let listen = &config.listen;
    if listen.https.is_none() {
        // A reverse proxy shows a certificate that we do not know.
        return Ok(Voucher::Public);
    }
    let Some(file) = &listen.tls_certificate else {
        let own = config.server.data_dir.join("tls/ca.pem");
        let own = read_certificates(&own)?;
        return Ok(Voucher::Authorities(
            own.iter().map(|one| one.to_vec()).collect(),
        ));
    };
    let chain = read_certificates(file)?;
    let vouches = |roots: &[_]| {
        let mut hosts = hosts.iter();
        hosts.any(|host| is_vouched_for(roots, &chain, host, now))
    };
    let of_file = |file: &Path| -> Result<Option<Voucher>, TlsError> {
        let found = read_certificates(file)?;
        let mut found = found.chunks(1);
        let one = found.find(|one| vouches(one)).and_then(<[_]>::first);
        Ok(one.map(|one| Voucher::Authorities(vec![one.to_vec()])))
    };
    for file in ca_files {
        if let Some(voucher) = of_file(file)? {
            return Ok(voucher);
        }
    }
    if vouches(system_authorities()) {
        return Ok(Voucher::Public);
    }
    // The authority's own certificate may stand at the end of the file.
    let mut rest = chain.iter().skip(1).rev();
    if let Some(last) = rest.find(|one| vouches(std::slice::from_ref(*one))) {
        return Ok(Voucher::Authorities(vec![last.to_vec()]));
    }
    let first = chain.first().expect("there is at least one");
    Ok(Voucher::Certificate(Sha256::digest(first).into()))
}
