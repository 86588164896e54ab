//! The certificate of the HTTPS listener: from files, or made by a private authority that lives in the data directory.
//!
//! The files are read again while the node runs, and what is soon over is renewed, or the log says who must do it.
//!
//! With the private authority, an office needs no public name and no outside service. Whoever shall trust the node
//! installs `tls/ca.pem`; it stays the same for 20 years, while server certificates come and go below it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use rustls::{ServerConfig, pki_types::CertificateDer};

pub(super) use crate::certificates::TlsError;
use crate::{
    certificates::{
        self, RENEW_BEFORE, certified_key, in_certificate, is_vouched_for, provider,
        read_certificates, renew_on_this_machine, system_authorities,
    },
    clock::Clock,
    config::{BaseUrl, Config},
};

/// How often the log says that somebody must renew a certificate.
const REMIND: Duration = Duration::from_hours(24);

/// How long before its end the log begins to say so of a certificate that others renew: those of public authorities are
/// renewed by a program, often a month before.
const REMIND_BEFORE: Duration = Duration::from_hours(24 * 14);

/// What the HTTPS listener shows to its clients.
#[derive(Debug)]
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    /// Makes these two files, when they are not the administrator's.
    authority: Option<Authority>,
    /// The server name, for saying what ends.
    name: String,
    clock: Clock,
    current: RwLock<Current>,
    reminded: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Current {
    chain: Vec<CertificateDer<'static>>,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// The configured files, or a certificate of the private authority for every name the node may be called by.
    pub(super) fn open(config: &Config, clock: Clock) -> Result<Self, TlsError> {
        let (certificate, key, authority) =
            match (&config.listen.tls_certificate, &config.listen.tls_key) {
                (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), None),
                _ => {
                    let authority = Authority::new(config, clock.clone());
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
            name: in_certificate(config.server.name.host()),
            clock,
            reminded: Mutex::default(),
        })
    }

    /// The configuration for the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().config)
    }

    /// Renews the certificate if it is soon over and that can be done here, and reads the files again. Says whether
    /// anything is different. `ca_files` are those of the configuration, by which it is known whose certificate ends soon.
    /// Blocks.
    ///
    /// # Errors
    /// When a file cannot be used; then what was read before stays in force.
    pub fn refresh(&self, ca_files: &[PathBuf]) -> Result<bool, TlsError> {
        if let Some(authority) = &self.authority {
            authority.renew()?;
        } else if let Some(made) = renew_on_this_machine(&self.certificate, &self.key, &self.clock)?
        {
            tracing::info!(names = ?made.names, "the authority on this machine made a new server certificate");
        }
        let new = load(&self.certificate, &self.key)?;
        let is_other = new.chain != self.current.read().chain;
        if is_other {
            *self.current.write() = new;
        }
        self.remind(ca_files);
        Ok(is_other)
    }

    /// Says now and then that somebody else must renew the certificate.
    fn remind(&self, ca_files: &[PathBuf]) {
        let now = self.clock.instant();
        let is_said = |at: Instant| now - at < REMIND;
        if self.authority.is_some() || self.reminded.lock().is_some_and(is_said) {
            return;
        }
        if let Some(advice) = self.ends_soon(ca_files) {
            *self.reminded.lock() = Some(now);
            tracing::warn!(certificate = %self.certificate.display(), "the certificate ends soon: {advice}");
        }
    }

    /// What to do about a certificate that is soon over.
    fn ends_soon(&self, ca_files: &[PathBuf]) -> Option<String> {
        let chain = self.current.read().chain.clone();
        let now = Duration::from_millis(self.clock.now_ms());
        let ends = |roots: &[CertificateDer<'static>], before: Duration| {
            let good = |then| is_vouched_for(roots, &chain, &self.name, then);
            good(now) && !good(now + before)
        };
        let ours: Vec<_> = ca_files
            .iter()
            .filter_map(|file| read_certificates(file).ok())
            .collect();
        if ends(&ours.concat(), RENEW_BEFORE) {
            return Some(format!(
                "run `kontor ca issue {}` with all its addresses where the authority is, and copy the two files here",
                self.name
            ));
        }
        // The authority's own certificate may be at the end of the file, or the certificate its own authority.
        let others = [
            system_authorities(),
            &chain[chain.len().saturating_sub(1)..],
        ]
        .concat();
        ends(&others, REMIND_BEFORE).then(|| "renew it with the program that made it".to_owned())
    }
}

/// A TLS configuration with the certificate in these two files.
fn load(certificate: &Path, key: &Path) -> Result<Current, TlsError> {
    let pair = certified_key(certificate, key)?;
    let chain = pair.cert.clone();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current {
        chain,
        config: Arc::new(config),
    })
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
        let authority = certificates::Authority::open_or_make(&self.directory, self.clock.clone())?;
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        if authority.is_good(&certificate, &key, &self.names)? {
            return Ok(());
        }
        authority.issue(&self.names, &certificate, &key)?;
        tracing::info!(names = ?self.names, "the private authority made a new server certificate");
        Ok(())
    }
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
        let name = in_certificate(&name);
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

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
        identity.refresh(&[]).unwrap();
        drop(Identity::open(&config, clock.clone()).unwrap());
        assert_eq!(file_in(directory.path(), "server.pem"), first);

        clock.advance(DAY * 80);
        identity.refresh(&[]).unwrap();
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
    fn files_that_change_are_taken_and_their_end_is_foretold() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, node) = (directory.path().join("ca"), directory.path().join("node"));
        let clock = Clock::manual(Clock::real().now_ms());
        let authority = certificates::Authority::open_or_make(&ca, clock.clone()).unwrap();
        fs::create_dir(&node).unwrap();
        let (pem, key) = (node.join("a.pem"), node.join("a.key"));
        let issue = || {
            authority
                .issue(&["office.example".to_owned()], &pem, &key)
                .unwrap();
        };
        issue();
        let mut config = config(directory.path());
        config.listen.tls_certificate = Some(pem.clone());
        config.listen.tls_key = Some(key.clone());
        let ours = [authority.certificate()];
        let identity = Identity::open(&config, clock.clone()).unwrap();
        assert!(!identity.refresh(&ours).unwrap());
        assert_eq!(identity.ends_soon(&ours), None);
        clock.advance(DAY * 370);
        let advice = identity.ends_soon(&ours).expect("a month is left");
        assert!(
            advice.contains("kontor ca issue office.example"),
            "{advice}"
        );
        assert!(!identity.refresh(&ours).unwrap());
        assert!(identity.reminded.lock().is_some());

        let before = identity.current();
        issue();
        assert!(identity.refresh(&ours).unwrap());
        assert!(!Arc::ptr_eq(&before, &identity.current()));
        assert_eq!(identity.ends_soon(&ours), None);
        // Half written: what was read before stays.
        fs::write(&pem, "-----BEGIN").unwrap();
        let before = identity.current();
        assert!(identity.refresh(&ours).is_err());
        assert!(Arc::ptr_eq(&before, &identity.current()));
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
