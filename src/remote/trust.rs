//! Whom the node believes that they are the server they should be: authorities, or one pinned certificate.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use ruma::{OwnedServerName, ServerName as MatrixName};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};
use sha2::{Digest, Sha256};

use crate::{
    clock::Clock,
    config::{Federation, Fingerprint, Peer},
};

/// Why a file with authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TrustError {
    path: PathBuf,
    problem: String,
}

/// The authorities that the system trusts. Reading them takes some milliseconds, so it is done once, and only by those
/// who need them.
static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        tracing::warn!(
            "the system trusts no authorities, so only those of federation.ca_files and of peers count"
        );
    }
    found.certs
});

/// How connections to each server are secured.
#[derive(Debug)]
pub(super) struct Trust {
    clock: Clock,
    /// Those of `federation.ca_files`.
    authorities: Vec<CertificateDer<'static>>,
    /// For everybody without rules of their own.
    public: OnceLock<Arc<ClientConfig>>,
    /// For peers.
    peers: HashMap<OwnedServerName, PeerTrust>,
}

#[derive(Debug)]
struct PeerTrust {
    rule: Rule,
    /// The names that its certificate may be for: its own and that of its address.
    names: Vec<ServerName<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

#[derive(Debug)]
enum Rule {
    /// The authorities of everybody.
    Public,
    /// Only these.
    Authority(Vec<CertificateDer<'static>>),
    /// Only this certificate.
    Pinned(Fingerprint),
}

impl Trust {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// When one cannot be read or holds no certificate.
    pub(super) fn load(federation: &Federation, clock: Clock) -> Result<Self, TrustError> {
        let mut authorities = Vec::new();
        for file in &federation.ca_files {
            authorities.extend(read(file)?);
        }
        let peers = federation.peers.iter().map(|(name, peer)| {
            let trust = PeerTrust {
                rule: rule(peer)?,
                names: [Some(&**name), peer.address.as_deref()]
                    .into_iter()
                    .filter_map(|name| tls_name(name?))
                    .collect(),
                config: OnceLock::new(),
            };
            Ok((name.clone(), trust))
        });
        Ok(Self {
            peers: peers.collect::<Result<_, TrustError>>()?,
            clock,
            authorities,
            public: OnceLock::new(),
        })
    }

    /// For any web server: authorities of the system and of the configuration.
    pub(super) fn public(&self) -> Arc<ClientConfig> {
        let make = || self.config(Accepts::named(&self.public_roots(), Vec::new()));
        self.public.get_or_init(make).clone()
    }

    /// For this server.
    pub(super) fn of(&self, server: &MatrixName) -> Arc<ClientConfig> {
        let Some(peer) = self.peers.get(server) else {
            return self.public();
        };
        let make = || {
            self.config(match &peer.rule {
                Rule::Public => Accepts::named(&self.public_roots(), peer.names.clone()),
                Rule::Authority(roots) => Accepts::named(roots, peer.names.clone()),
                Rule::Pinned(fingerprint) => Accepts::Pinned(*fingerprint),
            })
        };
        peer.config.get_or_init(make).clone()
    }

    fn public_roots(&self) -> Vec<CertificateDer<'static>> {
        SYSTEM.iter().chain(&self.authorities).cloned().collect()
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

fn rule(peer: &Peer) -> Result<Rule, TrustError> {
    Ok(match (&peer.ca, peer.fingerprint) {
        (Some(file), _) => Rule::Authority(read(file)?),
        (None, Some(fingerprint)) => Rule::Pinned(fingerprint),
        (None, None) => Rule::Public,
    })
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let error = |problem: String| TrustError {
        path: path.to_owned(),
        problem,
    };
    let pem = fs::read(path).map_err(|e| error(e.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(error("holds no certificate".to_owned())),
        Ok(found) => Ok(found),
        Err(problem) => Err(error(problem.to_string())),
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
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
    Pinned(Fingerprint),
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
                return if &hash == fingerprint.bytes() {
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
