//! Whom the node believes that they are the server they should be: authorities, or one pinned certificate.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::RwLock;
use ruma::ServerName as MatrixName;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    time_provider::TimeProvider,
};
use sha2::{Digest, Sha256};

use super::peers::{Known, Peer};
use crate::{
    certificates::{self, provider, system_authorities},
    clock::Clock,
    config::Federation,
    protocol::pairing::Voucher,
};

/// Why a file with authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

/// How connections to each server are secured.
#[derive(Debug)]
pub(super) struct Trust {
    clock: Clock,
    public: RwLock<Public>,
}

/// Whom anybody may be vouched for by.
#[derive(Debug)]
pub(super) struct Public {
    /// Those of `federation.ca_files`.
    authorities: Vec<CertificateDer<'static>>,
    /// For everybody without rules of their own, once it was needed.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Public {
    /// Those of the files that the configuration names.
    ///
    /// # Errors
    /// When one cannot be read or holds no certificate.
    pub(super) fn load(federation: &Federation) -> Result<Self, TrustError> {
        let mut authorities = Vec::new();
        for file in &federation.ca_files {
            authorities.extend(read(file)?);
        }
        Ok(Self {
            authorities,
            config: OnceLock::new(),
        })
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        system_authorities()
            .iter()
            .chain(&self.authorities)
            .cloned()
            .collect()
    }
}

impl Trust {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// When one cannot be read or holds no certificate.
    pub(super) fn load(federation: &Federation, clock: Clock) -> Result<Self, TrustError> {
        Ok(Self {
            clock,
            public: RwLock::new(Public::load(federation)?),
        })
    }

    /// Trusts these from now on; says whether anything is different.
    pub(super) fn replace(&self, fresh: Public) -> bool {
        let mut public = self.public.write();
        let is_other = fresh.authorities != public.authorities;
        if is_other {
            *public = fresh;
        }
        is_other
    }

    /// For any web server: authorities of the system and of the configuration.
    pub(super) fn public(&self) -> Arc<ClientConfig> {
        let public = self.public.read();
        let make = || self.config(Accepts::named(&public.roots(), Vec::new()));
        public.config.get_or_init(make).clone()
    }

    /// For this server, as the peer table knows it.
    pub(super) fn of(&self, server: &MatrixName, known: Option<&Known>) -> Arc<ClientConfig> {
        match known {
            None => self.public(),
            Some(known) => {
                let make = || self.of_peer(server, &known.peer);
                known.tls.get_or_init(make).clone()
            }
        }
    }

    /// For a server as a peer like this. Its certificate may be for its own name or for that of its address.
    pub(super) fn of_peer(&self, server: &MatrixName, peer: &Peer) -> Arc<ClientConfig> {
        let names = || {
            let names = [Some(server), peer.address.as_deref()];
            names
                .into_iter()
                .filter_map(|name| tls_name(name?))
                .collect()
        };
        self.config(match &peer.voucher {
            Voucher::Public => Accepts::named(&self.public.read().roots(), names()),
            Voucher::Authorities(roots) => {
                let roots: Vec<_> = roots.iter().map(|der| der.clone().into()).collect();
                Accepts::named(&roots, names())
            }
            Voucher::Certificate(hash) => Accepts::Pinned(*hash),
        })
    }

    fn config(&self, accepts: Accepts) -> Arc<ClientConfig> {
        let judge = Judge {
            accepts,
            provider: provider(),
        };
        let time = Arc::new(Time(self.clock.clone()));
        let mut config = ClientConfig::builder_with_details(provider(), time)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// The certificates in a file.
pub(super) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found = certificates::read_certificates(path);
    found.map_err(|error| TrustError(error.to_string()))
}

/// The host of a server name as certificates write it.
pub(super) fn tls_name(server: &MatrixName) -> Option<ServerName<'static>> {
    let host = server.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).ok()
}

/// What a failed handshake means for whoever has to mend it.
pub(super) fn explain(error: &TlsError) -> String {
    let TlsError::InvalidCertificate(problem) = error else {
        return error.to_string();
    };
    match problem {
        CertificateError::UnknownIssuer => {
            "its certificate is from an authority that this node does not trust; set `ca` or `fingerprint` of the peer, or federation.ca_files".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired, or the clock of this machine is wrong".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet, or the clock of this machine is wrong".to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let presented: Vec<_> = presented.iter().take(5).map(String::as_str).collect();
            format!(
                "its certificate is for {}, not for {}",
                presented.join(", "),
                expected.to_str()
            )
        }
        CertificateError::ApplicationVerificationFailure => {
            "its certificate is not the one whose fingerprint is configured".to_owned()
        }
        problem => format!("its certificate is not valid: {problem:?}"),
    }
}

/// Tells TLS the time of the node's clock.
#[derive(Debug)]
struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let now = Duration::from_millis(self.0.now_ms());
        Some(UnixTime::since_unix_epoch(now))
    }
}

/// Judges the certificates that a server shows.
#[derive(Debug)]
struct Judge {
    accepts: Accepts,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Accepts {
    /// Certificates that an authority has made for the name that was asked for, or for one of a peer's names.
    Named {
        /// None if there is no authority at all.
        verifier: Option<Arc<WebPkiServerVerifier>>,
        others: Vec<ServerName<'static>>,
    },
    /// One certificate, whatever it says, from whoever has its key.
    Pinned([u8; 32]),
}

impl Accepts {
    fn named(roots: &[CertificateDer<'static>], others: Vec<ServerName<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        // The system's list may hold what this library does not understand; the others count all the same.
        store.add_parsable_certificates(roots.iter().cloned());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider());
        Self::Named {
            verifier: verifier.build().ok(),
            others,
        }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let (verifier, others) = match &self.accepts {
            Accepts::Pinned(fingerprint) => {
                let hash: [u8; 32] = Sha256::digest(end_entity).into();
                return if hash == *fingerprint {
                    Ok(ServerCertVerified::assertion())
                } else {
                    Err(CertificateError::ApplicationVerificationFailure.into())
                };
            }
            Accepts::Named { verifier, others } => (verifier, others),
        };
        let Some(verifier) = verifier else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let verify = |name: &ServerName<'_>| {
            verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now)
        };
        verify(name).or_else(|error| {
            let mut others = others.iter().filter(|other| *other != name);
            others.find_map(|other| verify(other).ok()).ok_or(error)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
