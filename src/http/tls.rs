//! The certificate of the HTTPS listener: from files, or made by a private authority that lives in the data directory.
//!
//! With the private authority, an office needs no public name and no outside service. Whoever shall trust the node
//! installs `tls/ca.pem`; it stays the same for 20 years, while server certificates come and go below it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::ServerConfig;

pub(super) use crate::certificates::TlsError;
use crate::{
    certificates::{self, certified_key, in_certificate, provider},
    clock::Clock,
    config::{BaseUrl, Config},
};

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
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

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
