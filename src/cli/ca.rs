//! `kontor ca`: an authority for a whole organisation, so that its offices can trust each other without anybody outside.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use rustls::pki_types::ServerName;
use time::OffsetDateTime;

use super::say;
use crate::{
    certificates::{self, Authority, Issued, RENEW_BEFORE, TlsError, in_certificate},
    clock::Clock,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes the authority: a key to guard, and a certificate to give to every node
    Init(Place),
    /// Makes or renews the certificate of a server, for all of its names and addresses
    Issue(Issue),
    /// Says what the authority is, and which of its certificates must be renewed
    Show(Place),
}

#[derive(Args, Debug)]
pub(super) struct Place {
    /// The directory of the authority
    #[arg(long, value_name = "DIR", default_value = "./ca")]
    directory: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct Issue {
    #[command(flatten)]
    place: Place,
    /// The server name, and further names and IP addresses by which the server is reached
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Why nothing was made, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(
        "{0} holds an authority already; nothing was changed\nUse another --directory, or `kontor ca issue` to make certificates with this one."
    )]
    Exists(PathBuf),
    #[error(
        "there is no authority in {0}\nMake one with `kontor ca init`, or name its directory with --directory."
    )]
    Missing(PathBuf),
    #[error(
        "\"{0}\" is neither the name of a host nor an IP address\nWrite names without a port, such as branch-b.example or 10.8.0.2."
    )]
    Name(String),
    #[error("{0}\nLook whether the directory is there and may be written to.")]
    Tls(#[from] TlsError),
}

impl Command {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let clock = Clock::real();
        let text = match self {
            Self::Init(place) => init(&place.directory, clock),
            Self::Issue(issue) => make(&issue.place.directory, &issue.names, clock),
            Self::Show(place) => show(&place.directory, clock),
        }?;
        say(&mut io::stdout(), &text);
        Ok(ExitCode::SUCCESS)
    }
}

fn init(directory: &Path, clock: Clock) -> Result<String, Failure> {
    if directory.join("ca.key").exists() {
        return Err(Failure::Exists(directory.to_owned()));
    }
    let authority = Authority::open_or_make(directory, clock)?;
    Ok(format!(
        "The authority is made.\n  \
         {key}   its key: whoever has it can pretend to be any of your servers. Keep it offline.\n  \
         {certificate}   its certificate, for every node. SHA-256 {print}\n\
         Next:\n  \
         kontor ca issue --directory {directory} SERVER-NAME [ADDRESS...]    for each office\n  \
         and on every node:  [federation]  ca_files = [\"/etc/kontor/ca.pem\"]",
        key = authority.key().display(),
        certificate = authority.certificate().display(),
        print = certificates::fingerprint(&authority.certificate())?,
        directory = directory.display(),
    ))
}

fn make(directory: &Path, names: &[String], clock: Clock) -> Result<String, Failure> {
    let authority = open(directory, &clock)?;
    let mut bare: Vec<String> = Vec::new();
    for name in names {
        let in_certificate = in_certificate(name);
        if ServerName::try_from(in_certificate.as_str()).is_err() {
            return Err(Failure::Name(name.clone()));
        }
        if !bare.contains(&in_certificate) {
            bare.push(in_certificate);
        }
    }
    let made = directory.join("issued");
    certificates::make_directory(&made)?;
    let first = &bare[0];
    let certificate = made.join(format!("{first}.pem"));
    let key = made.join(format!("{first}.key"));
    let issued = authority.issue_noted(&bare, &certificate, &key)?;
    Ok(format!(
        "The certificate for {names} is made; it is good until {until}.\n  \
         {certificate}\n  {key}   (secret)\n  SHA-256 {print}\n\
         Next: copy both to the node, as its user's and readable by nobody else, and set there\n  \
         [listen]  https = \"0.0.0.0:8448\"  tls_certificate = \"{first}.pem\"  tls_key = \"{first}.key\"\n\
         A running node takes a renewed file within a minute. Renew with the same command before {renew}.",
        names = bare.join(", "),
        until = day(issued.until),
        certificate = certificate.display(),
        key = key.display(),
        print = issued.fingerprint,
        renew = day(issued.until.saturating_sub(RENEW_BEFORE.as_secs())),
    ))
}

fn show(directory: &Path, clock: Clock) -> Result<String, Failure> {
    let authority = open(directory, &clock)?;
    let mut lines = vec![
        format!("The authority in {}", directory.display()),
        format!(
            "  {}  SHA-256 {}",
            authority.certificate().display(),
            certificates::fingerprint(&authority.certificate())?
        ),
    ];
    let now = clock.now_ms() / 1_000;
    let mut newest: Vec<Issued> = Vec::new();
    for issued in authority.issued()? {
        newest.retain(|older| older.names.first() != issued.names.first());
        newest.push(issued);
    }
    newest.sort_by_key(|issued| issued.until);
    for issued in &newest {
        let state = if issued.until <= now {
            "EXPIRED: issue it again"
        } else if issued.until <= now + RENEW_BEFORE.as_secs() {
            "ends soon: issue it again"
        } else {
            "good"
        };
        lines.push(format!(
            "  until {}  {}  {state}\n      SHA-256 {}",
            day(issued.until),
            issued.names.join(", "),
            issued.fingerprint
        ));
    }
    if newest.is_empty() {
        lines.push("It has made no certificates yet. Next: kontor ca issue SERVER-NAME".to_owned());
    }
    Ok(lines.join("\n"))
}

fn open(directory: &Path, clock: &Clock) -> Result<Authority, Failure> {
    let authority = Authority::open(directory, clock.clone())?;
    authority.ok_or_else(|| Failure::Missing(directory.to_owned()))
}

/// The date of a time in seconds since 1970.
fn day(seconds: u64) -> String {
    let time = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
    time.date().to_string()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_makes_certificates() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let clock = Clock::manual(1_700_000_000_000);
        let names = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let missing = make(&ca, &names(&["b.example"]), clock.clone()).unwrap_err();
        assert!(missing.to_string().contains("kontor ca init"), "{missing}");
        assert!(!ca.exists());

        let told = init(&ca, clock.clone()).unwrap();
        assert!(
            told.contains("ca_files") && told.contains("kontor ca issue"),
            "{told}"
        );
        let before = fs::read(ca.join("ca.pem")).unwrap();
        let again = init(&ca, clock.clone()).unwrap_err();
        assert!(again.to_string().contains("nothing was changed"), "{again}");
        assert_eq!(fs::read(ca.join("ca.pem")).unwrap(), before);
        assert!(
            show(&ca, clock.clone())
                .unwrap()
                .contains("no certificates yet")
        );

        let asked = names(&["B.example", "10.8.0.2", "[fd00::1]", "b.example"]);
        let told = make(&ca, &asked, clock.clone()).unwrap();
        assert!(
            told.contains("b.example, 10.8.0.2, fd00::1 is made; it is good until 2024-12-"),
            "{told}"
        );
        let authority = open(&ca, &clock).unwrap();
        let (pem, key) = (
            ca.join("issued/b.example.pem"),
            ca.join("issued/b.example.key"),
        );
        let good = |asked: &[&str]| authority.is_good(&pem, &key, &names(asked)).unwrap();
        assert!(good(&["b.example", "10.8.0.2", "fd00::1"]));
        assert!(!good(&["c.example"]));
        for (file, mode) in [
            ("ca.key", 0o600),
            ("ca.pem", 0o644),
            ("issued/b.example.key", 0o600),
        ] {
            let found = fs::metadata(ca.join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{file}");
        }
        for wrong in ["b.example:8448", "../x", "a b", ""] {
            let told = make(&ca, &names(&[wrong]), clock.clone()).unwrap_err();
            assert!(matches!(told, Failure::Name(_)), "{wrong}: {told}");
        }

        // Renewal is the same command once more.
        let until = |clock: &Clock| show(&ca, clock.clone()).unwrap();
        assert!(
            until(&clock).contains("b.example, 10.8.0.2, fd00::1  good"),
            "{}",
            until(&clock)
        );
        clock.advance(Duration::from_hours(24 * 380));
        assert!(until(&clock).contains("ends soon"), "{}", until(&clock));
        clock.advance(Duration::from_hours(24 * 30));
        assert!(until(&clock).contains("EXPIRED"), "{}", until(&clock));
        make(&ca, &asked, clock.clone()).unwrap();
        let told = until(&clock);
        assert!(told.contains("good") && !told.contains("EXPIRED"), "{told}");
    }
}
