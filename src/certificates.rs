//! Certificates of private authorities: the one that each node makes for itself, and the one that an organisation makes
//! for all of its offices with `kontor ca`.
//!
//! An authority is a directory with `ca.key` and `ca.pem`. The certificate stays the same for 20 years, while those below
//! it come and go.

mod issued;

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

pub use self::issued::{Issued, renew_on_this_machine};
use crate::{clock::Clock, config::Fingerprint};

const DAY: Duration = Duration::from_hours(24);

/// How long an authority is valid. Replacing it means a visit to every device.
const AUTHORITY_VALIDITY: Duration = Duration::from_hours(24 * 365 * 20);

/// How long a server certificate is valid; some systems accept no more than 398 days.
pub const SERVER_VALIDITY: Duration = Duration::from_hours(24 * 397);

/// How long before its end a server certificate is replaced.
pub const RENEW_BEFORE: Duration = Duration::from_hours(24 * 30);

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

/// Makes certificates.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    key: KeyPair,
    clock: Clock,
}

impl Authority {
    /// The authority in a directory, which is made if there is none.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is damaged.
    pub fn open_or_make(directory: &Path, clock: Clock) -> Result<Self, TlsError> {
        make_directory(directory)?;
        let key = authority_key(directory)?;
        let authority = Self {
            directory: directory.to_owned(),
            key,
            clock,
        };
        let path = authority.certificate();
        if !path.exists() {
            let pem = authority.params().self_signed(&authority.key)?.pem();
            write(&path, &pem, 0o644)?;
        }
        Ok(authority)
    }

    /// The authority in a directory; none if there is none.
    ///
    /// # Errors
    /// As [`open_or_make`](Self::open_or_make).
    pub fn open(directory: &Path, clock: Clock) -> Result<Option<Self>, TlsError> {
        if directory.join("ca.key").exists() {
            Self::open_or_make(directory, clock).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The file with its certificate, which everybody who shall trust it needs.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The file with its key, which nobody else may have.
    pub fn key(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    /// Whether a client that trusts the authority will still accept a server with this certificate under all these names
    /// when the next renewal is due.
    ///
    /// # Errors
    /// When the authority's own certificate cannot be read.
    pub fn is_good(
        &self,
        certificate: &Path,
        key: &Path,
        names: &[String],
    ) -> Result<bool, TlsError> {
        let Ok(pair) = certified_key(certificate, key) else {
            return Ok(false); // Not there, half written or damaged: a new one mends all of it.
        };
        let roots = read_certificates(&self.certificate())?;
        let then = self.now() + RENEW_BEFORE;
        let is_vouched = |name: &String| is_vouched_for(&roots, &pair.cert, name, then);
        Ok(names.iter().all(is_vouched))
    }

    /// Makes a certificate for a server with these names and addresses, and writes it and its key.
    ///
    /// # Errors
    /// When a name can not stand in a certificate, or a file cannot be written.
    pub fn issue(&self, names: &[String], certificate: &Path, key: &Path) -> Result<(), TlsError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = common_name(names.first().map_or("", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        self.set_validity(&mut params, SERVER_VALIDITY);
        let pair = KeyPair::generate()?;
        let authority = self.params();
        let issuer = Issuer::from_params(&authority, &self.key);
        let made = params.signed_by(&pair, &issuer)?;
        write(key, &pair.serialize_pem(), 0o600)?;
        write(certificate, &made.pem(), 0o644)
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = authority_name(&self.key);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        self.set_validity(&mut params, AUTHORITY_VALIDITY);
        params
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

fn authority_key(directory: &Path) -> Result<KeyPair, TlsError> {
    let path = directory.join("ca.key");
    if path.exists() {
        let pem = String::from_utf8(read(&path)?).map_err(|error| content(&path, error))?;
        return KeyPair::from_pem(&pem).map_err(|error| content(&path, error));
    }
    let key = KeyPair::generate()?;
    write(&path, &key.serialize_pem(), 0o600)?;
    // A certificate left over from a lost key would vouch for nothing any more.
    let certificate = directory.join("ca.pem");
    match fs::remove_file(&certificate) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(&certificate, error)),
        _ => Ok(key),
    }
}

/// Makes a directory that nobody else can look into.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(directory: &Path) -> Result<(), TlsError> {
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    created.map_err(|source| file(directory, source))
}

/// A name as certificates hold it: lower case, and IPv6 without its brackets.
pub fn in_certificate(name: &str) -> String {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>()
        .map_or_else(|_| bare.to_lowercase(), |ip| ip.to_string())
}

/// The SHA-256 of the first certificate in a file, as `fingerprint` of a peer takes it.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn fingerprint(path: &Path) -> Result<Fingerprint, TlsError> {
    let chain = read_certificates(path)?;
    let first = chain.first().expect("it was checked that there is one");
    Ok(Fingerprint::of(Sha256::digest(first).into()))
}

/// The authorities that the system trusts. Reading them takes some milliseconds, so it is done once, and only by those
/// who need them.
pub fn system_authorities() -> &'static [CertificateDer<'static>] {
    static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            tracing::warn!(
                "the system trusts no authorities, so only those of federation.ca_files and of peers count"
            );
        }
        found.certs
    });
    &SYSTEM
}

/// Whether one of these authorities vouches for a chain, which begins with the server's certificate, under a name, at a
/// time since 1970.
pub fn is_vouched_for(
    authorities: &[CertificateDer<'static>],
    chain: &[CertificateDer<'static>],
    name: &str,
    then: Duration,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let (Ok(verifier), Some((server, intermediates)), Ok(name)) =
        (verifier, chain.split_first(), ServerName::try_from(name))
    else {
        return false;
    };
    let then = UnixTime::since_unix_epoch(then);
    let verified = verifier.verify_server_cert(server, intermediates, &name, &[], then);
    verified.is_ok()
}

/// The chain and the key in these two files, if they belong together.
pub(crate) fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| content(key, error))?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| content(key, error))
}

/// The certificates in a PEM file, at least one.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(content(path, "holds no certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(content(path, error)),
    }
}

/// The cryptography of all TLS.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
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

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| file(path, source))
}

/// Writes a file whole or not at all, and never readable by more than `mode` says.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
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

pub(crate) fn file(path: &Path, source: io::Error) -> TlsError {
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
