//! Every option of the node: its type, its default and its validation.
//!
//! The structs below are the single list of options. Defaults come from [`Config::default`], then a TOML file, then
//! the environment (`KONTOR_SECTION__KEY`) override them. What comes out is validated and ready to use, so that no
//! other code parses text. `config.example.toml` documents each key and is tested to agree with this file.

mod federation;
mod settings;
mod text;

use std::{
    fmt, fs,
    net::SocketAddr,
    num::NonZeroU8,
    path::{Path, PathBuf},
};

use figment::{Figment, providers::Serialized};
use ruma::{OwnedServerName, RoomVersionId, owned_server_name};
use serde::{Deserialize, Serialize};

use self::settings::{Origin, Setting};
pub use self::{
    federation::{Federation, FederationMode, Peer},
    text::{BaseUrl, ByteSize, Fingerprint, LogFilter, Network, Secret, Span},
};

/// The file that is read when none is named and it exists in the current directory.
pub const DEFAULT_FILE: &str = "config.toml";

/// The smallest `database.memory` that `RocksDB` and our caches can work with.
const LEAST_MEMORY: ByteSize = ByteSize::mebibytes(16);

/// The effective configuration of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Who this node is and where it keeps its data.
    pub server: Server,
    /// Where it listens.
    pub listen: Listen,
    /// Who may make an account.
    pub registration: Registration,
    /// Which other servers it talks to, and how.
    pub federation: Federation,
    /// How new rooms are.
    pub rooms: Rooms,
    /// What calls need.
    pub calls: Calls,
    /// How it stores.
    pub database: Database,
    /// Who finds whom.
    pub user_directory: UserDirectory,
    /// Finding messages by their words.
    pub search: Search,
    /// Protection against too many requests.
    pub limits: Limits,
    /// What it writes to its log.
    pub log: Log,
}

/// Section `server`: who this node is and where it keeps its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// The domain in every user id of this node. It can never change once there are accounts.
    pub name: OwnedServerName,
    /// The directory with everything that must survive: database, media, keys.
    pub data_dir: PathBuf,
    /// The version of rooms that are created without naming one.
    #[serde(with = "text::room_version")]
    pub default_room_version: RoomVersionId,
    /// The address apps shall use, told in `.well-known/matrix/client`; `None` means `https://` and the server name.
    #[serde(with = "text::optional")]
    pub client_url: Option<BaseUrl>,
    /// `host:port` where other servers reach this one, told in `.well-known/matrix/server`.
    #[serde(with = "text::optional")]
    pub federation_address: Option<OwnedServerName>,
    /// The mail address of the administrators, told in `.well-known/matrix/support`; may be empty.
    pub support_email: String,
    /// A page with help for users, told in `.well-known/matrix/support`.
    #[serde(with = "text::optional")]
    pub support_page: Option<BaseUrl>,
}

/// Section `listen`: where the node listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listen {
    /// Address for plain HTTP; `None` is off.
    #[serde(with = "text::optional")]
    pub http: Option<SocketAddr>,
    /// Address for HTTPS; `None` is off.
    #[serde(with = "text::optional")]
    pub https: Option<SocketAddr>,
    /// PEM file with the certificate chain; `None` means one from the private authority in the data directory.
    #[serde(with = "text::optional_path")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    #[serde(with = "text::optional_path")]
    pub tls_key: Option<PathBuf>,
    /// Reverse proxies whose `X-Forwarded-For` names the real client.
    pub trusted_proxies: Vec<Network>,
}

/// Section `registration`: who may make an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Who may register through an app.
    pub mode: RegistrationMode,
    /// Turns on `/_synapse/admin/v1/register`. Holds the content of `shared_secret_file` when that one is given.
    pub shared_secret: Secret,
    /// A file with that secret, so that it need not stand in the configuration.
    #[serde(with = "text::optional_path")]
    pub shared_secret_file: Option<PathBuf>,
    /// Whether people may look around as guests, without an account.
    pub guests: bool,
    /// The shortest password that people may choose, in characters.
    pub shortest_password: NonZeroU8,
}

/// Who may register through an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// Nobody; administrators make the accounts.
    Closed,
    /// Whoever holds a registration token.
    Token,
    /// Everybody.
    Open,
}

/// Section `rooms`: how new rooms are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rooms {
    /// Which new rooms are encrypted although their creators do not ask for it.
    pub encrypted: EncryptedRooms,
}

/// Which new rooms are encrypted although their creators do not ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptedRooms {
    /// None.
    Off,
    /// Those that one must be invited to.
    Private,
    /// All.
    All,
}

/// Section `calls`: what calls need beside this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Where apps get what they need to use a LiveKit server, the one to be preferred first.
    pub livekit: Vec<BaseUrl>,
}

/// Section `database`: how the node stores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Database {
    /// When a write is forced to the disk.
    pub sync: Sync,
    /// One budget for all caches and write buffers together.
    pub memory: ByteSize,
}

/// When a write is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// Before it is acknowledged or seen by anybody.
    Always,
    /// Several times a second: a power cut may lose the last moment.
    Interval,
    /// When the operating system likes: for benchmarks and throw-away nodes.
    Never,
}

/// Section `user_directory`: who finds whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserDirectory {
    /// Whether everybody here finds all users, or only those in their rooms and in public ones.
    pub search_all_users: bool,
}

/// Section `search`: finding messages by their words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Whether there is an index of what is said in rooms that are not encrypted.
    pub enabled: bool,
}

/// Section `limits`: protection against too many requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Whether logins, registrations, messages, joins and invites are limited per user, address and account.
    pub enabled: bool,
}

/// Section `log`: what the node writes to its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// How much is written, as a level with optional exceptions by module.
    pub level: LogFilter,
    /// The shape of a line.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            name: owned_server_name!("localhost"),
            data_dir: PathBuf::from("./data"),
            default_room_version: RoomVersionId::V12,
            client_url: None,
            federation_address: None,
            support_email: String::new(),
            support_page: None,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8008))),
            https: None,
            tls_certificate: None,
            tls_key: None,
            trusted_proxies: Network::loopback().to_vec(),
        }
    }
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            mode: RegistrationMode::Token,
            shared_secret: Secret::default(),
            shared_secret_file: None,
            guests: false,
            shortest_password: NonZeroU8::new(8).expect("eight is not zero"),
        }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            encrypted: EncryptedRooms::Off,
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            sync: Sync::Always,
            memory: ByteSize::mebibytes(64),
        }
    }
}

impl Default for UserDirectory {
    fn default() -> Self {
        Self {
            search_all_users: true,
        }
    }
}

impl Default for Search {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: LogFilter::default(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// The configuration of this process: defaults, then the file, then the environment.
    ///
    /// Without `path` the file is [`DEFAULT_FILE`] if there is one in the current directory, otherwise none.
    ///
    /// # Errors
    /// Every mistake of the file and the environment at once.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        let file = Self::file(path);
        let text = match file {
            Some(path) => fs::read_to_string(path).map_err(|error| {
                ConfigErrors(vec![Mistake::of_file(
                    path,
                    None,
                    format!("cannot be read: {error}"),
                )])
            })?,
            None => String::new(),
        };
        // A variable that is not Unicode cannot be one of ours: all our keys and most values are ASCII.
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::from_sources(file.unwrap_or(Path::new(DEFAULT_FILE)), &text, environment)
    }

    /// The file that [`load`](Self::load) reads.
    pub fn file(path: Option<&Path>) -> Option<&Path> {
        path.or_else(|| Some(Path::new(DEFAULT_FILE)).filter(|path| path.exists()))
    }

    /// The configuration that `text`, a TOML document, describes; the environment is not asked.
    ///
    /// # Errors
    /// Every mistake in the text.
    pub fn from_toml_str(text: &str) -> Result<Self, ConfigErrors> {
        Self::from_sources(Path::new(DEFAULT_FILE), text, [])
    }

    /// The same for the text of the file `path` and the given environment variables.
    fn from_sources(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let known = settings::known_keys();
        let (from_file, mut mistakes) = settings::from_toml(path, text, &known);
        let (from_environment, unknown) = settings::from_environment(environment, &known);
        mistakes.extend(unknown);

        let mut settings = from_file;
        for later in from_environment {
            settings.retain(|earlier| earlier.key != later.key);
            settings.push(later);
        }

        // Each setting is tried alone first, so that one mistake does not hide the next.
        settings.retain(|setting| match extract([setting]) {
            Ok(_) => true,
            Err(error) => {
                mistakes.extend(
                    error
                        .into_iter()
                        .map(|e| setting.mistake(e.kind.to_string())),
                );
                false
            }
        });
        let mut config =
            extract(&settings).expect("settings that are valid alone are valid together");
        config.complete(&mut |key, problem| {
            // What is missing has no place; the nearest is the first of its table.
            let exact = settings.iter().find(|setting| setting.key == key);
            let table = key.rfind('.').map_or(key, |end| &key[..end]);
            let origin = exact.or_else(|| {
                let within = |setting: &&Setting| setting.key.starts_with(table);
                settings.iter().find(within).filter(|_| table.contains('"'))
            });
            mistakes.push(Mistake {
                key: key.to_owned(),
                origin: origin.map_or(Origin::Default, |setting| setting.origin.clone()),
                problem,
            });
        });
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(mistakes))
        }
    }

    /// Checks what no single key can know, and reads the files that stand for secrets.
    fn complete(&mut self, mistake: &mut dyn FnMut(&str, String)) {
        if self.listen.http.is_none() && self.listen.https.is_none() {
            mistake(
                "listen.http",
                "nobody could reach the node: set listen.http or listen.https".into(),
            );
        }
        match (&self.listen.tls_certificate, &self.listen.tls_key) {
            (Some(_), None) => mistake("listen.tls_certificate", "needs listen.tls_key too".into()),
            (None, Some(_)) => mistake("listen.tls_key", "needs listen.tls_certificate too".into()),
            _ => {}
        }
        if self.database.memory < LEAST_MEMORY {
            mistake(
                "database.memory",
                format!("must be at least {LEAST_MEMORY}"),
            );
        }
        self.federation.complete(&self.server.name, mistake);
        if let Some(file) = &self.registration.shared_secret_file {
            if self.registration.shared_secret.reveal().is_some() {
                mistake(
                    "registration.shared_secret",
                    "is given twice: remove it or registration.shared_secret_file".into(),
                );
            } else {
                match fs::read_to_string(file) {
                    Ok(text) if text.trim().is_empty() => {
                        mistake(
                            "registration.shared_secret_file",
                            "the file is empty".into(),
                        );
                    }
                    Ok(text) => self.registration.shared_secret = Secret::new(text.trim()),
                    Err(error) => mistake(
                        "registration.shared_secret_file",
                        format!("{} cannot be read: {error}", file.display()),
                    ),
                }
            }
        }
    }

    /// The effective configuration as TOML, with secrets hidden.
    pub fn to_toml(&self) -> String {
        toml::to_string(self)
            .expect("a configuration is sections of plain values, which TOML can hold")
    }
}

/// Defaults overridden by `settings`.
fn extract<'a>(
    settings: impl IntoIterator<Item = &'a Setting>,
) -> Result<Config, Box<figment::Error>> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    for setting in settings {
        figment = figment.merge(Serialized::defaults(setting.nested()));
    }
    figment.extract().map_err(Box::new)
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key it concerns, such as `listen.http`; empty when it concerns the whole file.
    pub key: String,
    /// Where the wrong value stands.
    pub origin: Origin,
    /// What is wrong with it.
    pub problem: String,
}

impl Mistake {
    fn of_file(path: &Path, line: Option<usize>, problem: String) -> Self {
        Self {
            key: String::new(),
            origin: Origin::File {
                path: path.to_owned(),
                line,
            },
            problem,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

#[cfg(test)]
mod tests;
