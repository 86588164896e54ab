//! The certificate of the HTTPS listener: from files, or made by a private authority that lives in the data directory.
//!
//! With the private authority, an office needs no public name and no outside service. Whoever shall trust the node
//! installs `tls/ca.pem`; it stays the same for 20 years, while server certificates come and go below it.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::{
    clock::Clock,
    config::{BaseUrl, Config},
};

const DAY: Duration = Duration::from_hours(24);

/// How long an authority is valid. Replacing it means a visit to every device.
const AUTHORITY_VALIDITY: Duration = Duration::from_hours(24 * 365 * 20);

/// How long a server certificate is valid; some systems accept no more than 398 days.
const SERVER_VALIDITY: Duration = Duration::from_hours(24 * 397);

/// How long before its end a server certificate is replaced.
const RENEW_BEFORE: Duration = Duration::from_hours(24 * 30);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file does not hold what its name promises.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// What the HTTPS listener shows to its clients.
#[derive(Debug)]
pub(super) struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    /// Makes these two files, when they are not the administrator's.
    authority: Option<Authority>,
    current: RwLock<Arc<ServerConfig>>,
}

impl Identity {
    /// The configured files, or a certificate of the private authority for every name the node may be called by.
    pub(super) fn open(config: &Config, clock: Clock) -> Result<Self, TlsError> {
        let (certificate, key, authority) =
            match (&config.listen.tls_certificate, &config.listen.tls_key) {
                (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), None),
                _ => {
                    let authority = Authority::new(config, clock);
                    (
                        authority.path("server.pem"),
                        authority.path("server.key"),
                        Some(authority),
                    )
                }
            };
        if let Some(authority) = &authority {
            authority.renew()?;
        }
        Ok(Self {
            current: RwLock::new(load(&certificate, &key)?),
            certificate,
            key,
            authority,
        })
    }

    /// The configuration for the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read())
    }

    /// Renews the certificate if it is ours and soon over, and reads the files again. Blocks.
    pub(super) fn refresh(&self) -> Result<(), TlsError> {
        if let Some(authority) = &self.authority {
            authority.renew()?;
        }
        *self.current.write() = load(&self.certificate, &self.key)?;
        Ok(())
    }
}

/// A TLS configuration with the certificate in these two files.
fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let pair = certified_key(certificate, key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The chain and the key in these two files, if they belong together.
fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| content(key, error))?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| content(key, error))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(content(path, "holds no certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(content(path, error)),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes certificates for this node alone.
#[derive(Debug)]
struct Authority {
    directory: PathBuf,
    /// Every DNS name and IP address the server certificate is for.
    names: Vec<String>,
    clock: Clock,
}

impl Authority {
    fn new(config: &Config, clock: Clock) -> Self {
        Self {
            directory: config.server.data_dir.join("tls"),
            names: names(config),
            clock,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes what is missing, and a new server certificate when the one there no longer fits or is soon over.
    fn renew(&self) -> Result<(), TlsError> {
        let created = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        created.map_err(|source| file(&self.directory, source))?;
        let key = self.authority_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = authority_name(&key);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        self.set_validity(&mut params, AUTHORITY_VALIDITY);

        let path = self.path("ca.pem");
        if !path.exists() {
            write(&path, &params.self_signed(&key)?.pem(), 0o644)?;
        }
        if self.server_certificate_is_good()? {
            return Ok(());
        }
        self.make_server_certificate(&Issuer::new(params, key))
    }

    fn authority_key(&self) -> Result<KeyPair, TlsError> {
        let path = self.path("ca.key");
        if path.exists() {
            let pem = String::from_utf8(read(&path)?).map_err(|error| content(&path, error))?;
            return KeyPair::from_pem(&pem).map_err(|error| content(&path, error));
        }
        let key = KeyPair::generate()?;
        write(&path, &key.serialize_pem(), 0o600)?;
        // A certificate left over from a lost key would vouch for nothing any more.
        match fs::remove_file(self.path("ca.pem")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file(&self.path("ca.pem"), error))
            }
            _ => Ok(key),
        }
    }

    /// Whether a client that trusts the authority will still accept the server under all its names when the next
    /// renewal is due.
    fn server_certificate_is_good(&self) -> Result<bool, TlsError> {
        let Ok(pair) = certified_key(&self.path("server.pem"), &self.path("server.key")) else {
            return Ok(false); // Not there, half written or damaged: a new one mends all of it.
        };
        let path = self.path("ca.pem");
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&path)? {
            roots
                .add(certificate)
                .map_err(|error| content(&path, error))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| content(&path, error))?;
        let then = UnixTime::since_unix_epoch(self.now() + RENEW_BEFORE);
        let (server, intermediates) = pair.cert.split_first().expect("a pair has a certificate");
        Ok(self.names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| {
                verifier
                    .verify_server_cert(server, intermediates, &name, &[], then)
                    .is_ok()
            })
        }))
    }

    fn make_server_certificate(&self, authority: &Issuer<'_, KeyPair>) -> Result<(), TlsError> {
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name = common_name(&self.names[0]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        self.set_validity(&mut params, SERVER_VALIDITY);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, authority)?;
        write(&self.path("server.key"), &key.serialize_pem(), 0o600)?;
        write(&self.path("server.pem"), &certificate.pem(), 0o644)?;
        tracing::info!(names = ?self.names, "the private authority made a new server certificate");
        Ok(())
    }

    /// Valid from yesterday, since clocks differ, for so long.
    fn set_validity(&self, params: &mut CertificateParams, validity: Duration) {
        let now = OffsetDateTime::UNIX_EPOCH + self.now();
        params.not_before = now - DAY;
        params.not_after = now + validity;
    }

    /// Since 1970.
    fn now(&self) -> Duration {
        Duration::from_millis(self.clock.now_ms())
    }
}

/// The name of the authority with this key. It holds the beginning of the key's hash, so that a device can trust the
/// authorities of several offices and tell them apart.
fn authority_name(key: &KeyPair) -> DistinguishedName {
    let hash = Sha256::digest(key.public_key_raw());
    let [first, second, third, fourth] = [hash[0], hash[1], hash[2], hash[3]];
    common_name(&format!(
        "Kontor private authority {first:02x}{second:02x}{third:02x}{fourth:02x}"
    ))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Every name by which a client may call this node, its server name first.
fn names(config: &Config) -> Vec<String> {
    let server = &config.server;
    let told = server.client_url.as_ref().and_then(host_of_url);
    let federation = server
        .federation_address
        .as_ref()
        .map(|address| address.host().to_owned());
    let listen = config
        .listen
        .https
        .map(|address| address.ip())
        .filter(|ip| !ip.is_unspecified());
    let mut names = vec![server.name.host().to_owned()];
    names.extend(told);
    names.extend(federation);
    names.extend(listen.map(|ip| ip.to_string()));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));

    let mut unique: Vec<String> = Vec::new();
    for name in names {
        // IPv6 stands in brackets in a server name, but not in a certificate.
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let name = bare
            .parse::<IpAddr>()
            .map_or_else(|_| bare.to_lowercase(), |ip| ip.to_string());
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn host_of_url(url: &BaseUrl) -> Option<String> {
    let uri: http::Uri = url.as_str().parse().ok()?;
    uri.host().map(str::to_owned)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| file(path, source))
}

/// Writes a file whole or not at all, and never readable by more than `mode` says.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let written = || -> io::Result<()> {
        let unfinished = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&unfinished)?;
        // A file left by a crash keeps the mode it had.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    written().map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        source,
    }
}

fn content(path: &Path, problem: impl ToString) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> Config {
        let mut config = Config::default();
        config.server.data_dir = directory.to_owned();
        config.server.name = ruma::owned_server_name!("office.example:8448");
        config.listen.https = Some(([10, 0, 0, 1], 8448).into());
        config
    }

    fn file_in(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join("tls").join(name)).unwrap()
    }

    #[test]
    fn the_certificate_is_for_every_name_once() {
        let mut config = config(Path::new("/"));
        config.server.client_url = Some("https://Chat.Office.Example/".parse().unwrap());
        config.server.federation_address = Some(ruma::owned_server_name!("[::1]:443"));
        let expected = [
            "office.example",
            "chat.office.example",
            "::1",
            "10.0.0.1",
            "localhost",
            "127.0.0.1",
        ];
        assert_eq!(names(&config), expected);
    }

    #[test]
    fn a_certificate_is_kept_until_it_is_soon_over() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let clock = Clock::manual(Clock::real().now_ms());
        let identity = Identity::open(&config, clock.clone()).unwrap();
        let [authority, first] =
            ["ca.pem", "server.pem"].map(|name| file_in(directory.path(), name));

        clock.advance(DAY * 300);
        identity.refresh().unwrap();
        drop(Identity::open(&config, clock.clone()).unwrap());
        assert_eq!(file_in(directory.path(), "server.pem"), first);

        clock.advance(DAY * 80);
        identity.refresh().unwrap();
        assert_ne!(file_in(directory.path(), "server.pem"), first);
        assert_eq!(file_in(directory.path(), "ca.pem"), authority);
    }

    #[test]
    fn a_certificate_that_no_longer_fits_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        let open = |config: &Config| drop(Identity::open(config, Clock::real()).unwrap());
        let server = || file_in(directory.path(), "server.pem");
        open(&config);
        let first = server();

        config.server.name = ruma::owned_server_name!("other.example");
        open(&config);
        let renamed = server();
        assert_ne!(renamed, first);

        fs::write(directory.path().join("tls/server.pem"), "-----BEGIN").unwrap();
        open(&config);
        let mended = server();
        assert_ne!(mended, renamed);

        fs::remove_file(directory.path().join("tls/ca.key")).unwrap();
        open(&config);
        assert_ne!(server(), mended);
    }

    #[test]
    fn keys_are_for_the_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        Identity::open(&config(directory.path()), Clock::real()).unwrap();
        for name in ["ca.key", "server.key"] {
            let file = directory.path().join("tls").join(name);
            assert_eq!(
                fs::metadata(file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{name}"
            );
        }
    }

    #[test]
    fn wrong_files_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        Identity::open(&config, Clock::real()).unwrap();
        let path = |name: &str| directory.path().join("tls").join(name);
        for (certificate, key, wrong) in [
            ("none.pem", "server.key", "none.pem"),
            ("server.key", "server.key", "server.key"),
            ("server.pem", "server.pem", "server.pem"),
            ("server.pem", "ca.key", "ca.key"),
        ] {
            config.listen.tls_certificate = Some(path(certificate));
            config.listen.tls_key = Some(path(key));
            let error = Identity::open(&config, Clock::real())
                .unwrap_err()
                .to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
