//! The types of single options: each is read from the text that stands in a file or a variable, refuses what makes no
//! sense, and is written back as the same text.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Reads and writes a type as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

/// What a number is counted in.
struct Units {
    /// Names and factors from the largest, so that the first one that divides a number is the shortest way to write it.
    units: [(&'static str, u64); 4],
    /// How zero is written, which every unit divides.
    nothing: &'static str,
}

impl Units {
    /// The number that a text such as `64MiB` means.
    fn parse(&self, text: &str) -> Option<u64> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let mut units = self.units.iter();
        let (_, factor) = units.find(|(name, _)| *name == unit.trim())?;
        number.parse::<u64>().ok()?.checked_mul(*factor)
    }

    fn write(&self, number: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = self.units.iter();
        match units.find(|(_, factor)| number.is_multiple_of(*factor)) {
            Some((name, factor)) if number != 0 => write!(f, "{}{name}", number / factor),
            _ => f.write_str(self.nothing),
        }
    }
}

/// A number of bytes, written like `64MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

as_text!(ByteSize);

const SIZES: Units = Units {
    units: [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ],
    nothing: "0B",
};

impl ByteSize {
    /// So many times 1,048,576 bytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        SIZES
            .parse(text)
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is not a size; write a whole number and B, KiB, MiB or GiB, as in \"64MiB\""))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SIZES.write(self.0, f)
    }
}

/// An `http` or `https` address without a query, kept without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

as_text!(BaseUrl);

impl BaseUrl {
    /// The address as text, such as `https://chat.example.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = text.parse::<http::Uri>().ok();
        let complete = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.query().is_none()
        });
        if complete {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(format!(
                "\"{text}\" is not a web address such as \"https://chat.example.org\""
            ))
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A range of IP addresses, written like `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many leading bits an address shares with `address` to be inside.
    prefix: u8,
}

as_text!(Network);

impl Network {
    /// The two addresses of this machine to itself.
    pub fn loopback() -> [Self; 2] {
        [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()].map(Self::one)
    }

    /// Whether `address` is in this range. An IPv4 address written as IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= u32::from(self.prefix)
    }

    fn one(address: IpAddr) -> Self {
        Self {
            address,
            prefix: bits(address),
        }
    }
}

/// The length of an address: 32 or 128.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not an address or a range such as \"10.0.0.0/8\"");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address
            .parse::<IpAddr>()
            .map_err(|_| wrong())?
            .to_canonical();
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| wrong())?,
            None => bits(address),
        };
        if prefix > bits(address) {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// A length of time, written like `60s`, `5m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

as_text!(Span);

const TIMES: Units = Units {
    units: [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)],
    nothing: "0s",
};

impl Span {
    /// So many seconds.
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    /// The length itself.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        TIMES
            .parse(text)
            .map(|milliseconds| Self(Duration::from_millis(milliseconds)))
            .ok_or_else(|| format!("\"{text}\" is not a length of time; write a whole number and ms, s, m or h, as in \"60s\""))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        TIMES.write(milliseconds, f)
    }
}

/// The SHA-256 of a certificate, as 64 hexadecimal digits with or without colons between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

as_text!(Fingerprint);

impl Fingerprint {
    /// The hash itself.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What this hash is written as.
    pub const fn of(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not the SHA-256 of a certificate: 64 hexadecimal digits, as `openssl x509 -fingerprint -sha256` prints them"
            )
        };
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that must not be shown. Debug output and serialization say only whether it is set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` secret; empty means not set.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The secret itself, for comparing and computing; `None` when it is not set.
    pub fn reveal(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|text| !text.is_empty())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "(hidden)" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

as_text!(Secret);

/// How much is logged: a level, and after commas exceptions such as `kontor::http=debug`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter {
    text: String,
    targets: Targets,
}

as_text!(LogFilter);

/// The library that checks events against the rules of their rooms.
const STATE_RES: &str = "ruma_state_res";

impl LogFilter {
    /// The filter in the form the log takes.
    pub fn targets(&self) -> Targets {
        if self.text.contains(STATE_RES) {
            return self.targets.clone();
        }
        // It tells several lines about every event, which nobody wants who did not ask for them by name.
        self.targets
            .clone()
            .with_target(STATE_RES, LevelFilter::WARN)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        "info".parse().expect("a level is a filter")
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The library takes a misspelled level for the name of a module, and would then log nothing at all.
        let meant = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
        match text.parse::<Targets>() {
            Ok(targets) if text.split(',').all(meant) => Ok(Self {
                text: text.to_owned(),
                targets,
            }),
            _ => Err(format!(
                "\"{text}\" is not a log level; use off, error, warn, info, debug or trace, as in \"info,kontor::http=debug\""
            )),
        }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Options that may be absent, which is written as empty text.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
pub(super) mod optional {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};
    use serde::de::Error as _;

    pub(in crate::config) fn serialize<T: fmt::Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }

    pub(in crate::config) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |error| D::Error::custom(format!("\"{text}\": {error}"));
        text.parse().map(Some).map_err(wrong)
    }
}

/// The same for paths, which have no text form of their own.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
pub(super) mod optional_path {
    use std::path::PathBuf;

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.clone().unwrap_or_default().serialize(serializer)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }
}

/// Room versions whose rules are known.
pub(super) mod room_version {
    use ruma::RoomVersionId;

    use super::{Deserialize, Deserializer, Serializer};
    use serde::de::Error as _;

    pub(in crate::config) fn serialize<S: Serializer>(
        version: &RoomVersionId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(version.as_str())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<RoomVersionId, D::Error> {
        let text = String::deserialize(deserializer)?;
        match RoomVersionId::try_from(text.as_str()) {
            Ok(version) if text.parse::<u8>().is_ok() && version.rules().is_some() => Ok(version),
            _ => Err(D::Error::custom(format!(
                "\"{text}\" is not a room version from \"1\" to \"12\""
            ))),
        }
    }
}
