//! What an organisation's authority has issued: a ledger beside its key, so that it can be said what must be renewed, and
//! done where the key lies.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Authority, SERVER_VALIDITY, TlsError, content, file, fingerprint};
use crate::clock::Clock;

/// What was issued, one JSON object a line.
const LEDGER: &str = "issued.jsonl";

/// A certificate that was issued.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Issued {
    /// The names and addresses that it is for.
    pub names: Vec<String>,
    /// Its end, in seconds since 1970.
    pub until: u64,
    /// Its SHA-256.
    pub fingerprint: String,
}

impl Authority {
    /// Makes a certificate as [`issue`](Self::issue) does, and notes it in the ledger.
    ///
    /// # Errors
    /// As `issue`, and when the ledger cannot be written.
    pub fn issue_noted(
        &self,
        names: &[String],
        certificate: &Path,
        key: &Path,
    ) -> Result<Issued, TlsError> {
        self.issue(names, certificate, key)?;
        let issued = Issued {
            names: names.to_vec(),
            until: (self.now() + SERVER_VALIDITY).as_secs(),
            fingerprint: fingerprint(certificate)?.to_string(),
        };
        let path = self.ledger();
        let line = serde_json::to_string(&issued).map_err(|e| content(&path, e))?;
        let ledger = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path);
        let written = ledger.and_then(|mut ledger| writeln!(ledger, "{line}"));
        written.map_err(|e| file(&path, e))?;
        Ok(issued)
    }

    /// Everything that was ever issued, the oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read or is damaged.
    pub fn issued(&self) -> Result<Vec<Issued>, TlsError> {
        let path = self.ledger();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(file(&path, error)),
        };
        let lines = text.lines().enumerate();
        lines
            .map(|(index, line)| {
                let wrong =
                    |e: serde_json::Error| content(&path, format!("line {}: {e}", index + 1));
                serde_json::from_str(line).map_err(wrong)
            })
            .collect()
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join(LEDGER)
    }
}

/// Renews a certificate that is soon over and was issued by an authority whose key lies on this machine: beside the
/// certificate, or one directory above, where `kontor ca issue` puts it. Says what was made.
///
/// # Errors
/// When a file cannot be read or written.
pub fn renew_on_this_machine(
    certificate: &Path,
    key: &Path,
    clock: &Clock,
) -> Result<Option<Issued>, TlsError> {
    let print = fingerprint(certificate)?.to_string();
    for directory in certificate.ancestors().skip(1).take(2) {
        let Some(authority) = Authority::open(directory, clock.clone())? else {
            continue;
        };
        let mut issued = authority.issued()?.into_iter().rev();
        let Some(present) = issued.find(|one| one.fingerprint == print) else {
            continue;
        };
        if authority.is_good(certificate, key, &present.names)? {
            return Ok(None);
        }
        let made = authority.issue_noted(&present.names, certificate, key)?;
        return Ok(Some(made));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificates::make_directory;

    #[test]
    fn a_certificate_is_renewed_where_the_key_of_its_authority_lies() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let clock = Clock::manual(1_700_000_000_000);
        let authority = Authority::open_or_make(&ca, clock.clone()).unwrap();
        make_directory(&ca.join("issued")).unwrap();
        let (pem, key) = (ca.join("issued/b.pem"), ca.join("issued/b.key"));
        let names = ["b.example".to_owned(), "10.8.0.2".to_owned()];
        let first = authority.issue_noted(&names, &pem, &key).unwrap();
        let renew = || renew_on_this_machine(&pem, &key, &clock).unwrap();
        assert!(renew().is_none());
        clock.advance(Duration::from_hours(24 * 370));
        let second = renew().expect("it is soon over");
        assert_eq!(second.names, names);
        assert!(second.fingerprint != first.fingerprint && second.until > first.until);
        assert_eq!(fingerprint(&pem).unwrap().to_string(), second.fingerprint);
        assert!(authority.is_good(&pem, &key, &names).unwrap());
        assert!(renew().is_none());
        assert_eq!(authority.issued().unwrap().len(), 2);

        // Elsewhere there is no authority that could.
        let node = directory.path().join("node/tls");
        fs::create_dir_all(&node).unwrap();
        let (copy, its_key) = (node.join("b.pem"), node.join("b.key"));
        fs::copy(&pem, &copy).unwrap();
        fs::copy(&key, &its_key).unwrap();
        clock.advance(Duration::from_hours(24 * 370));
        let elsewhere = renew_on_this_machine(&copy, &its_key, &clock).unwrap();
        assert!(elsewhere.is_none());
        // One of another authority beside it did not make this one.
        Authority::open_or_make(&node, clock.clone()).unwrap();
        assert!(
            renew_on_this_machine(&copy, &its_key, &clock)
                .unwrap()
                .is_none()
        );
    }
}
