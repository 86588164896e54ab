//! Where values come from, what is refused and how it is said, and that the example file tells the truth.

use std::{collections::BTreeSet, path::Path};

use ruma::server_name;

use super::{
    ByteSize, Config, FederationMode, Network, RegistrationMode, Secret, Span, Sync,
    settings::known_keys,
};

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// What `kontor config` would say about `toml` and `environment`, one line per mistake.
fn mistakes(toml: &str, environment: &[(&str, &str)]) -> Vec<String> {
    match read(toml, environment) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn read(toml: &str, environment: &[(&str, &str)]) -> Result<Config, super::ConfigErrors> {
    let variables = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_sources(Path::new("config.toml"), toml, variables)
}

/// The example as a user gets it who removes the comment sign of every option.
fn uncommented_example() -> String {
    let option = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '))
            .map(str::to_owned)
    };
    EXAMPLE
        .lines()
        .map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect()
}

#[test]
fn without_any_source_everything_is_the_default() {
    assert_eq!(read("", &[]), Ok(Config::default()));
}

#[test]
fn the_example_as_it_is_changes_nothing() {
    assert_eq!(Config::from_toml_str(EXAMPLE), Ok(Config::default()));
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let text = uncommented_example();
    assert_eq!(Config::from_toml_str(&text), Ok(Config::default()));

    let table: toml::Table = toml::from_str(&text).unwrap();
    let shown: BTreeSet<String> = table
        .iter()
        .flat_map(|(section, keys)| {
            keys.as_table()
                .unwrap()
                .keys()
                .map(move |key| format!("{section}.{key}"))
        })
        .collect();
    assert_eq!(shown, known_keys().into_keys().collect());
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    assert_eq!(
        Config::from_toml_str(&Config::default().to_toml()),
        Ok(Config::default())
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let toml = "[server]\nname = 'file.example'\n[database]\nsync = 'never'\n[registration]\nmode = 'open'";
    let config = read(
        toml,
        &[
            ("KONTOR_SERVER__NAME", "office.example:8448"),
            ("KONTOR_SERVER__DEFAULT_ROOM_VERSION", "11"),
            ("KONTOR_LISTEN__HTTP", ""),
            ("KONTOR_LISTEN__HTTPS", "[::]:8448"),
            ("KONTOR_LISTEN__TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.1"),
            ("KONTOR_REGISTRATION__SHORTEST_PASSWORD", "12"),
            ("KONTOR_REGISTRATION__GUESTS", "true"),
            ("KONTOR_REGISTRATION__SHARED_SECRET", "0123"),
            ("KONTOR_DATABASE__MEMORY", "1GiB"),
            ("KONTOR_BIN", "not a setting"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.name, "office.example:8448");
    assert_eq!(config.server.default_room_version.as_str(), "11");
    assert_eq!(config.listen.http, None);
    assert_eq!(config.listen.https, Some("[::]:8448".parse().unwrap()));
    assert_eq!(config.listen.trusted_proxies.len(), 2);
    assert_eq!(config.registration.shortest_password.get(), 12);
    assert_eq!(config.registration.mode, RegistrationMode::Open);
    assert_eq!(config.registration.shared_secret.reveal(), Some("0123"));
    assert!(config.registration.guests);
    assert_eq!(config.database.sync, Sync::Never);
    assert_eq!(config.database.memory, ByteSize::mebibytes(1024));
}

#[test]
fn a_wrong_value_in_the_file_is_no_mistake_when_the_environment_overrides_it() {
    let config = read(
        "[server]\nname = ''",
        &[("KONTOR_SERVER__NAME", "office.example")],
    );
    assert_eq!(config.unwrap().server.name, "office.example");
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let toml = "\
[server]
name = 'not a name'
default_room_version = 12
data-dir = '/x'
[listen]
htpp = ''
https = 'localhost'
[databse]
sync = 'always'
[limits]
enabled = 'yes'
[log]
level = 'inof'
guests = true
";
    let environment = [
        ("KONTOR_DATABASE__MEMORY", "lots"),
        ("KONTOR_LOG__FORMAT", "xml"),
        ("KONTOR_LOG__FROMAT", "text"),
        ("KONTOR_SERVER_NAME", "office.example"),
    ];
    let told = mistakes(toml, &environment);
    let expected = [
        "config.toml:4: server.data-dir: unknown key; the nearest known one is server.data_dir",
        "config.toml:6: listen.htpp: unknown key; the nearest known one is listen.http",
        "config.toml:9: databse.sync: unknown key; the nearest known one is database.sync",
        "config.toml:14: log.guests: unknown key; the nearest known one is registration.guests",
        "environment KONTOR_LOG__FROMAT: log.fromat: unknown key; the nearest known one is log.format",
        "environment KONTOR_SERVER_NAME: server_name: unknown; did you mean KONTOR_SERVER__NAME?",
        "config.toml:2: server.name: ",
        "config.toml:3: server.default_room_version: invalid type: found signed int `12`, expected a string",
        "config.toml:7: listen.https: \"localhost\": invalid socket address syntax",
        "config.toml:11: limits.enabled: invalid type: found string \"yes\", expected a boolean",
        "config.toml:13: log.level: \"inof\" is not a log level",
        "environment KONTOR_DATABASE__MEMORY: database.memory: \"lots\" is not a size",
        "environment KONTOR_LOG__FORMAT: log.format: unknown variant: found `xml`, expected ``text` or `json``",
    ];
    for (told, expected) in told.iter().zip(expected) {
        assert!(
            told.starts_with(expected),
            "told: {told}\nexpected: {expected}"
        );
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn wrong_syntax_is_told_with_its_line() {
    let cases = [
        ("[server]\nname = ", "config.toml:2: "),
        ("[server]\nname = 'a'\nname = 'b'", "config.toml:3: "),
        ("server = 5", "config.toml:1: server: "),
        ("[server.name]\nx = 1", "config.toml:1: server.name: "),
        ("a.b.c.d = 1", "config.toml:1: a.b.c.d: "),
        ("[[server]]\nname = 'a'", "config.toml:1: server: "),
    ];
    for (toml, expected) in cases {
        let told = mistakes(toml, &[]);
        assert_eq!(told.len(), 1, "{toml}: {told:#?}");
        assert!(told[0].starts_with(expected), "{toml}: {told:?}");
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let cases = [
        ("[listen]\nhttp = ''", "config.toml:2: listen.http: "),
        ("[listen]\ntls_key = 'k'", "config.toml:2: listen.tls_key: "),
        (
            "[listen]\ntls_certificate = 'c'",
            "config.toml:2: listen.tls_certificate: ",
        ),
        (
            "[database]\nmemory = '1MiB'",
            "config.toml:2: database.memory: must be at least 16MiB",
        ),
        (
            "[registration]\nshared_secret = 's'\nshared_secret_file = 'f'",
            "config.toml:2: registration.shared_secret: ",
        ),
        (
            "[registration]\nshared_secret_file = '/nowhere'",
            "config.toml:2: registration.shared_secret_file: /nowhere cannot be read",
        ),
    ];
    for (toml, expected) in cases {
        let told = mistakes(toml, &[]);
        assert_eq!(told.len(), 1, "{toml}: {told:#?}");
        assert!(told[0].starts_with(expected), "{toml}: {told:?}");
    }
}

#[test]
fn a_secret_is_read_from_its_file_and_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hush\n").unwrap();
    let toml = format!(
        "[registration]\nshared_secret_file = '{}'",
        file.path().display()
    );
    let config = Config::from_toml_str(&toml).unwrap();
    assert_eq!(config.registration.shared_secret, Secret::new("hush"));
    assert!(config.to_toml().contains("(hidden)"));
    assert!(!config.to_toml().contains("hush"));
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn sizes_are_read_and_written_in_the_shortest_form() {
    let cases = [
        ("64MiB", "64MiB"),
        ("1024KiB", "1MiB"),
        ("2048 MiB", "2GiB"),
        ("1000B", "1000B"),
        ("0B", "0B"),
    ];
    for (text, shortest) in cases {
        assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), shortest);
    }
    for wrong in ["", "64", "64MB", "-1MiB", "1.5GiB", "MiB", "99999999999GiB"] {
        assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
    }
}

#[test]
fn a_network_contains_its_addresses() {
    let contains = |network: &str, address: &str| {
        let network: Network = network.parse().unwrap();
        network.contains(address.parse().unwrap())
    };
    assert!(contains("10.0.0.0/8", "10.200.1.1"));
    assert!(!contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("127.0.0.1", "::ffff:127.0.0.1"));
    assert!(!contains("127.0.0.1", "127.0.0.2"));
    assert!(contains("fd00::/8", "fd12::1"));
    assert!(contains("0.0.0.0/0", "8.8.8.8"));
    assert!(!contains("0.0.0.0/0", "::1"));
    for wrong in ["", "10.0.0.0/33", "host", "10.0.0.0/", "::/129"] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}

#[test]
fn peers_are_settings_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::default().self_signed(&key);
    std::fs::write(&ca, made.unwrap().pem()).unwrap();
    let toml = format!(
        "\
[federation]
mode = 'closed'
notaries = ['b.example']
[federation.peers.'b.example']
address = '10.8.0.2:8448'
ca = '{ca}'
[federation.peers.\"c.example:8448\"]
[federation.peers.intern]
address = 'matrix.c.example'
max_backoff = '5m'
fingerprint = '{print}'
",
        ca = ca.display(),
        print = "ab:".repeat(31) + "AB",
    );
    let config = read(
        &toml,
        &[("KONTOR_FEDERATION__ALLOWED_RANGES", "127.0.0.0/8, ::1")],
    )
    .unwrap();
    let federation = &config.federation;
    assert_eq!(federation.mode, FederationMode::Closed);
    let names: Vec<_> = federation.peers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["b.example", "c.example:8448", "intern"]);
    let peer = &federation.peers[server_name!("b.example")];
    assert_eq!(peer.address.as_deref(), Some(server_name!("10.8.0.2:8448")));
    assert_eq!(peer.ca.as_ref(), Some(&ca));
    assert_eq!(peer.max_backoff, Span::seconds(60));
    let peer = &federation.peers[server_name!("intern")];
    assert_eq!(peer.fingerprint.unwrap().bytes(), &[0xab; 32]);
    assert_eq!(peer.max_backoff, Span::seconds(300));
    assert!(federation.allows([127, 0, 0, 5].into()));
    assert!(!federation.allows([10, 0, 0, 5].into()));
    // What is in effect can be read again.
    assert_eq!(Config::from_toml_str(&config.to_toml()), Ok(config));
}

#[test]
fn mistakes_in_peers_have_their_place() {
    let toml = "\
[federation]
notaries = ['n.example']
mode = 'closed'
ca_files = ['/nowhere']
[federation.peers.'b.example']
adress = '10.8.0.2'
address = 'not an address'
fingerprint = 'abc'
[federation.peers.'c.example']
ca = '/nowhere'
max_backoff = '0s'
[federation.peers.localhost]
[federation.peers.'d.example']
max_backoff = 60
[federation.peers.'not a name']
";
    let told = mistakes(toml, &[("KONTOR_FEDERATION__PEERS", "b.example")]);
    let expected = [
        "config.toml:6: federation.peers.\"b.example\".adress: unknown key; the nearest known one is address",
        "environment KONTOR_FEDERATION__PEERS: federation.peers: peers can be named only in the configuration file",
        "config.toml:7: federation.peers.\"b.example\".address: \"not an address\": ",
        "config.toml:8: federation.peers.\"b.example\".fingerprint: \"abc\": \"abc\" is not the SHA-256",
        "config.toml:14: federation.peers.\"d.example\".max_backoff: ",
        "config.toml:15: federation.peers.\"not a name\": ",
        "config.toml:4: federation.ca_files: /nowhere cannot be read",
        "config.toml:2: federation.notaries: n.example is no peer",
        "config.toml:10: federation.peers.\"c.example\".ca: /nowhere cannot be read",
        "config.toml:11: federation.peers.\"c.example\".max_backoff: must be at least 1s",
        "config.toml:12: federation.peers.\"localhost\".address: this is the node itself",
    ];
    for (told, expected) in told.iter().zip(expected) {
        assert!(
            told.starts_with(expected),
            "told: {told}\nexpected: {expected}"
        );
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    let told = mistakes("[federation]\npeers = 5", &[]);
    assert!(
        told[0].starts_with("config.toml:2: federation.peers: "),
        "{told:?}"
    );
    let told = mistakes("[federation.peers]\nb = 5", &[]);
    assert!(
        told[0].starts_with("config.toml:2: federation.peers.\"b\": "),
        "{told:?}"
    );
}

#[test]
fn lengths_of_time_are_read_and_written_in_the_shortest_form() {
    for (text, shortest) in [
        ("60s", "1m"),
        ("90 s", "90s"),
        ("1500ms", "1500ms"),
        ("2h", "2h"),
        ("0s", "0s"),
    ] {
        assert_eq!(text.parse::<Span>().unwrap().to_string(), shortest);
    }
    for wrong in ["", "60", "1d", "-1s", "1.5h", "s"] {
        assert!(wrong.parse::<Span>().is_err(), "{wrong}");
    }
}
