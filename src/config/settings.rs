//! Reads single settings out of TOML text and environment variables, and remembers where each came from, so that a
//! mistake can be reported with its line and an unknown key with the name that was probably meant.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use figment::value::{Dict, Value};
use toml::de::{DeTable, DeValue};

use super::{Config, Mistake, Peer};

/// Every environment variable of ours starts like this.
const PREFIX: &str = "KONTOR_";

/// The one key whose members have names that the administrator chooses.
const PEERS: &str = "federation.peers";

/// One value that somebody set.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// Section and name, such as `listen.http`.
    pub(super) key: String,
    /// The same in its parts: the name of a peer has dots itself.
    path: Vec<String>,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Setting {
    fn new(path: Vec<String>, value: Value, origin: Origin) -> Self {
        Self {
            key: shown(&path),
            path,
            value,
            origin,
        }
    }

    /// The value within the sections that it stands in.
    pub(super) fn nested(&self) -> Value {
        let parts = self.path.iter().rev();
        parts.fold(self.value.clone(), |value, part| {
            Value::from(Dict::from([(part.clone(), value)]))
        })
    }

    pub(super) fn mistake(&self, problem: String) -> Mistake {
        Mistake {
            key: self.key.clone(),
            origin: self.origin.clone(),
            problem,
        }
    }
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// In a TOML file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1; `None` when the whole file is meant.
        line: Option<usize>,
    },
    /// In the environment variable of this name.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::File { path, line: None } => write!(f, "{}: ", path.display()),
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}: ", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}: "),
        }
    }
}

/// Every key that exists, with its default value, whose kind says how the text of an environment variable is read.
pub(super) fn known_keys() -> BTreeMap<String, Value> {
    let defaults = Value::serialize(Config::default()).expect("plain values can be serialized");
    let mut known = BTreeMap::new();
    for (section, keys) in defaults.into_dict().expect("a configuration is a map") {
        for (name, default) in keys.into_dict().expect("a section is a map") {
            known.insert(format!("{section}.{name}"), default);
        }
    }
    known
}

/// The keys of one peer, each below the peer's name.
fn known_keys_of_a_peer() -> Vec<String> {
    let defaults = Value::serialize(Peer::default()).expect("plain values can be serialized");
    let keys = defaults.into_dict().expect("a peer is a map");
    keys.into_keys().collect()
}

/// A key as it is written in TOML.
fn shown(path: &[String]) -> String {
    let bare = |part: &String| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    let parts = path.iter().enumerate().map(|(depth, part)| {
        // The name of a peer always looks like one.
        if bare(part) && !(depth == 2 && path.len() > 2 && shown(&path[..2]) == PEERS) {
            part.clone()
        } else {
            format!("\"{part}\"")
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The settings in the text of a TOML file, and what is wrong with its syntax and its keys.
pub(super) fn from_toml(
    path: &Path,
    text: &str,
    known: &BTreeMap<String, Value>,
) -> (Vec<Setting>, Vec<Mistake>) {
    let line_at = |offset: usize| 1 + text[..offset].matches('\n').count();
    let (document, values) = match (DeTable::parse(text), toml::from_str::<Dict>(text)) {
        (Ok(document), Ok(values)) => (document.into_inner(), values),
        (Err(error), _) | (_, Err(error)) => {
            let line = error.span().map(|span| line_at(span.start));
            let mistake = Mistake::of_file(path, line, error.message().to_owned());
            return (Vec::new(), vec![mistake]);
        }
    };

    let mut settings = Vec::new();
    let mut mistakes = Vec::new();
    let of_a_peer = known_keys_of_a_peer();
    for (key, offset) in leaves(&document, known) {
        let origin = Origin::File {
            path: path.to_owned(),
            line: Some(line_at(offset)),
        };
        let value = find(&values, &key).expect("both parsers saw the key");
        if is_below_peers(&key) {
            let name = key.get(3);
            match name.filter(|name| !of_a_peer.contains(name)) {
                Some(name) => {
                    let nearest = nearest(name, of_a_peer.iter());
                    let problem = format!("unknown key; the nearest known one is {nearest}");
                    mistakes.push(Setting::new(key, value, origin).mistake(problem));
                }
                None => settings.push(Setting::new(key, value, origin)),
            }
        } else if known.contains_key(&key.join(".")) {
            settings.push(Setting::new(key, value, origin));
        } else {
            mistakes.push(unknown(shown(&key), origin, known));
        }
    }
    (settings, mistakes)
}

/// The value at a path of names.
fn find(values: &Dict, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let value = values.get(first)?;
    match rest {
        [] => Some(value.clone()),
        rest => find(value.as_dict()?, rest),
    }
}

/// Whether a key is a peer, or something of a peer.
fn is_below_peers(path: &[String]) -> bool {
    path.len() > 2 && path[..2].join(".") == PEERS
}

/// The path of every key of the document and where it starts. A known key is not looked into, except for the peers,
/// whose keys are settings of their own, so that each mistake has its line.
fn leaves(table: &DeTable<'_>, known: &BTreeMap<String, Value>) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), table)];
    while let Some((prefix, table)) = open.pop() {
        for (name, value) in table {
            let mut path: Vec<String> = prefix.clone();
            path.push(name.get_ref().to_string());
            let joined = path.join(".");
            let goes_on = if is_below_peers(&path) {
                path.len() == 3
            } else {
                !known.contains_key(&joined) || joined == PEERS
            };
            match value.get_ref() {
                // A peer of which nothing is said is a peer all the same.
                DeValue::Table(inner) if goes_on && !(path.len() == 3 && inner.is_empty()) => {
                    open.push((path, inner));
                }
                _ => found.push((path, name.span().start)),
            }
        }
    }
    found.sort_by_key(|(_, offset)| *offset);
    found
}

/// The settings among `variables`, and those that look like ours but are not.
///
/// Names without `__` are not settings: service managers and our own tests put their variables under the same prefix.
/// They are reported only when they spell a known key with a single underscore.
pub(super) fn from_environment(
    variables: impl IntoIterator<Item = (String, String)>,
    known: &BTreeMap<String, Value>,
) -> (Vec<Setting>, Vec<Mistake>) {
    let mut settings = Vec::new();
    let mut mistakes = Vec::new();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        let key = name.to_lowercase().replacen("__", ".", 1);
        let origin = Origin::Environment(variable.clone());
        if key == PEERS {
            mistakes.push(Mistake {
                key,
                origin,
                problem: "peers can be named only in the configuration file".to_owned(),
            });
        } else if let Some(default) = known.get(&key) {
            let value = read_like(default, text);
            let path = key.split('.').map(str::to_owned).collect();
            settings.push(Setting::new(path, value, origin));
        } else if name.contains("__") {
            mistakes.push(unknown(key, origin, known));
        } else if let Some(meant) = known.keys().find(|known| known.replace('.', "_") == key) {
            let meant = meant.to_uppercase().replace('.', "__");
            mistakes.push(Mistake {
                key,
                origin,
                problem: format!("unknown; did you mean {PREFIX}{meant}?"),
            });
        }
    }
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    mistakes.sort_by(|a, b| a.key.cmp(&b.key));
    (settings, mistakes)
}

/// The text of a variable as a value of the same kind as `default`; text that does not fit stays text, and the type
/// of the option will refuse it with a message of its own.
fn read_like(default: &Value, text: String) -> Value {
    match default {
        Value::Bool(..) => text.parse::<bool>().map_or(Value::from(text), Value::from),
        Value::Num(..) => text.parse::<i64>().map_or(Value::from(text), Value::from),
        Value::Array(..) => {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            Value::from(parts.map(Value::from).collect::<Vec<_>>())
        }
        _ => Value::from(text),
    }
}

fn unknown(key: String, origin: Origin, known: &BTreeMap<String, Value>) -> Mistake {
    Mistake {
        problem: format!(
            "unknown key; the nearest known one is {}",
            nearest(&key, known.keys())
        ),
        key,
        origin,
    }
}

/// The known key that is most like `key`.
fn nearest<'k>(key: &str, known: impl Iterator<Item = &'k String>) -> &'k str {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    // A key in the wrong section is the commonest mistake, so an equal last part beats a similar whole.
    let nearest = known.max_by(|a, b| {
        let likeness = |candidate: &str| {
            let same_name = last(candidate) == last(key);
            strsim::jaro_winkler(candidate, key) + if same_name { 1.0 } else { 0.0 }
        };
        likeness(a).total_cmp(&likeness(b))
    });
    nearest.map_or("none", String::as_str)
}
