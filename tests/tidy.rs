//! Facts about the tree itself: which module may know which, what each must not contain, and what every file has.
//!
//! When a test here fails, either the change went into the wrong layer, or the table is wrong; then change it together
//! with ARCHITECTURE.md, and say why.

#[path = "tidy/imports.rs"]
mod imports;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use imports::{imports, without_comments_and_texts};

/// One layer: what it may import from this crate, and words that must not occur in it.
struct Layer {
    name: &'static str,
    may_import: &'static [&'static str],
    must_not_contain: &'static [&'static str],
    /// Files below `src` in which one word is allowed all the same.
    exceptions: &'static [(&'static str, &'static str)],
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "protocol",
        may_import: &[],
        must_not_contain: &[
            "tokio",
            "rocksdb",
            "axum",
            "reqwest",
            "std::fs",
            "std::net",
            "std::thread",
            "Instant",
            "SystemTime",
            "getrandom",
            "async",
        ],
        exceptions: &[],
    },
    Layer {
        name: "store",
        may_import: &["protocol"],
        must_not_contain: &["axum", "reqwest", "async"],
        // Waiting for the disk and for a change is all that is asynchronous about a store.
        exceptions: &[
            ("store/commit.rs", "async"),
            ("store/notify.rs", "async"),
            ("store/tests.rs", "async"),
        ],
    },
    Layer {
        name: "remote",
        may_import: &["protocol", "config", "clock", "coding", "certificates"],
        must_not_contain: &["rocksdb", "axum"],
        exceptions: &[],
    },
    Layer {
        name: "service",
        may_import: &[
            "protocol",
            "store",
            "remote",
            "config",
            "clock",
            "certificates",
            "error",
        ],
        must_not_contain: &["axum", "rocksdb", "tantivy"],
        exceptions: &[("service/search/index.rs", "tantivy")],
    },
    Layer {
        name: "http",
        may_import: &[
            "service",
            "protocol",
            "config",
            "clock",
            "coding",
            "certificates",
            "error",
        ],
        must_not_contain: &["rocksdb", "reqwest"],
        // The tests of the listeners need a client.
        exceptions: &[("http/serve/tests.rs", "reqwest")],
    },
    Layer {
        name: "coding",
        may_import: &[],
        must_not_contain: &["rocksdb", "axum", "reqwest"],
        exceptions: &[],
    },
    Layer {
        name: "control",
        may_import: &["service", "error"],
        must_not_contain: &["axum", "rocksdb"],
        exceptions: &[],
    },
    Layer {
        name: "error",
        may_import: &["protocol", "store", "remote"],
        must_not_contain: &["tokio", "rocksdb", "async"],
        exceptions: &[],
    },
    Layer {
        name: "config",
        may_import: &[],
        must_not_contain: &["tokio", "rocksdb", "axum", "reqwest", "async"],
        exceptions: &[],
    },
    Layer {
        name: "certificates",
        may_import: &["config", "clock"],
        must_not_contain: &["tokio", "rocksdb", "axum", "reqwest", "async"],
        exceptions: &[],
    },
    Layer {
        name: "clock",
        may_import: &[],
        must_not_contain: &["rocksdb", "axum", "reqwest"],
        exceptions: &[],
    },
    Layer {
        name: "telemetry",
        may_import: &["config"],
        must_not_contain: &["rocksdb", "reqwest"],
        exceptions: &[],
    },
];

/// These put the layers together, and may know all of them.
const COMPOSITION: &[&str] = &["app", "cli", "lib", "main"];

/// The services from the lowest rank to the highest. A service may import those of lower ranks only, and no other of
/// its own rank.
const SERVICE_RANKS: &[&[&str]] = &[
    &[
        "appservices",
        "delayed_rows",
        "device_lists",
        "keyring",
        "limits",
        "requester",
    ],
    &["accounts", "media"],
    &["rooms"],
    &[
        "ephemeral",
        "e2ee",
        "reports",
        "search",
        "threads",
        "user_directory",
    ],
    &["federation", "delivery", "profiles"],
    &["lifecycle", "peers"],
    &["delayed", "sync"],
    &["admin", "upkeep"],
];

/// One file below `src`.
struct Source {
    /// Relative to `src`, such as `http/serve.rs`.
    path: String,
    text: String,
}

impl Source {
    /// The path of the module, such as `["http", "serve"]`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').collect()
    }
}

fn root() -> &'static Path {
    // Asked when the test runs: clones may share a target directory, and the one that compiled this may be gone.
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("CARGO_MANIFEST_DIR")
            .expect("cargo runs this test")
            .into()
    });
    &ROOT
}

/// Every file below `directory` that is ours: neither built nor downloaded nor written by a running node.
fn files(directory: &Path) -> Vec<PathBuf> {
    const FOREIGN: &[&str] = &[
        ".git",
        "target",
        "data",
        "node_modules",
        ".venv",
        "__pycache__",
    ];
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the project can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path
                .file_name()
                .expect("an entry has a name")
                .to_string_lossy();
            if FOREIGN.contains(&name.as_ref()) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    files(&src)
        .into_iter()
        .filter(|path| is_rust(path))
        .map(|path| Source {
            path: path
                .strip_prefix(&src)
                .expect("it is below src")
                .to_string_lossy()
                .into_owned(),
            text: fs::read_to_string(&path).expect("a source is text"),
        })
        .collect()
}

/// Fails with every complaint at once.
fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_module_belongs_to_a_layer() {
    let known: BTreeSet<_> = LAYERS
        .iter()
        .map(|layer| layer.name)
        .chain(COMPOSITION.iter().copied())
        .collect();
    let sources = sources();
    let unknown = sources
        .iter()
        .filter(|source| !known.contains(source.module()[0]));
    expect_none(
        &unknown
            .map(|source| format!("src/{}: in no layer", source.path))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn layers_import_only_what_lies_below_them() {
    let mut complaints = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == module[0]) else {
            continue;
        };
        for import in imports(&source.text, &module) {
            // Names of the crate's root, such as `crate::App`, belong to nobody but the composition.
            let Some(imported) = import.first() else {
                complaints.push(format!("src/{}: imports the whole crate", source.path));
                continue;
            };
            if imported != layer.name && !layer.may_import.contains(&imported.as_str()) {
                complaints.push(format!(
                    "src/{}: {} may not import crate::{}",
                    source.path,
                    layer.name,
                    import.join("::")
                ));
            }
        }
    }
    expect_none(&complaints);
}

#[test]
fn services_import_only_lower_services() {
    let rank = |service: &str| {
        SERVICE_RANKS
            .iter()
            .position(|rank| rank.contains(&service))
    };
    let mut complaints = Vec::new();
    for source in sources() {
        let module = source.module();
        let ["service", service, ..] = module[..] else {
            continue;
        };
        let Some(own) = rank(service) else {
            complaints.push(format!("src/{}: {service} has no rank", source.path));
            continue;
        };
        for import in imports(&source.text, &module) {
            let path: Vec<_> = import.iter().map(String::as_str).collect();
            match path[..] {
                ["service", other, ..] if other == service => {}
                // What `service/mod.rs` itself holds has no rank, and is shared by all services.
                ["service", other, ..] if rank(other).is_some_and(|other| other >= own) => {
                    complaints.push(format!(
                        "src/{}: {service} may not import {other}",
                        source.path
                    ));
                }
                // A room is written under its lock, and nothing awaits the network there.
                ["remote", ..] if service == "rooms" => {
                    complaints.push(format!("src/{}: rooms may not import remote", source.path));
                }
                _ => {}
            }
        }
    }
    expect_none(&complaints);
}

#[test]
fn layers_do_without_what_is_not_theirs() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == source.module()[0]) else {
            continue;
        };
        let code = without_comments_and_texts(&source.text);
        for word in layer.must_not_contain {
            let excepted = layer.exceptions.contains(&(source.path.as_str(), word));
            if !excepted && contains_word(&code, word) {
                complaints.push(format!(
                    "src/{}: {} must not contain {word}",
                    source.path, layer.name
                ));
            }
        }
    }
    expect_none(&complaints);
}

/// Whether `word` occurs in `code` and is not a part of a longer name.
fn contains_word(code: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(start, _)| {
        let before = code[..start].chars().next_back();
        let after = code[start + word.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

#[test]
fn every_file_says_why_it_exists() {
    let mute = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "));
    expect_none(
        &mute
            .map(|source| format!("src/{}: does not open with //!", source.path))
            .collect::<Vec<_>>(),
    );
}

/// The lines of the manifest that name a dependency, each with its section.
fn dependencies() -> Vec<(String, String)> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("there is a manifest");
    let mut found = Vec::new();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") && !line.is_empty() {
            found.push((section.to_owned(), line.to_owned()));
        }
    }
    found
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let mute = dependencies()
        .into_iter()
        .filter(|(_, line)| !line.contains(" # "));
    expect_none(
        &mute
            .map(|(_, line)| format!("Cargo.toml: no reason given: {line}"))
            .collect::<Vec<_>>(),
    );
}

/// What only tests use is a dependency of the tests.
#[test]
fn every_dependency_is_used() {
    let program: Vec<_> = sources().iter().filter_map(untested).collect();
    let mut everything = program.clone();
    // A crate of its own, with its own dependencies.
    let other = root().join("tests/clients/rust-sdk");
    for path in [root().join("src"), root().join("tests")] {
        let sources = files(&path).into_iter();
        let sources = sources.filter(|path| is_rust(path) && !path.starts_with(&other));
        everything.extend(sources.map(|path| code(&path)));
    }
    let mut complaints = Vec::new();
    for (section, line) in dependencies() {
        let name = line.split([' ', '=']).next().expect("a line has a start");
        let path = format!("{}::", name.replace('-', "_"));
        let users = match section.as_str() {
            "[dependencies]" => &program,
            _ => &everything,
        };
        if !users.iter().any(|code| contains_path(code, &path)) {
            complaints.push(format!("Cargo.toml: {name} of {section} is not used"));
        }
    }
    expect_none(&complaints);
}

/// Whether `path`, such as `time::`, is the beginning of a path in `code`.
fn contains_path(code: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.match_indices(path)
        .any(|(start, _)| !code[..start].ends_with(goes_on))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn code(path: &Path) -> String {
    without_comments_and_texts(&fs::read_to_string(path).expect("a source is text"))
}

/// What a file holds besides tests; nothing if it is for tests only.
fn untested(source: &Source) -> Option<String> {
    let module = source.module();
    if ["tests", "testing"].contains(module.last()?) {
        return None;
    }
    let text = source.text.split("#[cfg(test)]\nmod tests {").next()?;
    Some(without_comments_and_texts(text))
}

/// A table is worth its files only if something writes it, and `kontor check` says that it walks the whole store.
#[test]
fn every_table_is_written_and_checked() {
    let sources = sources();
    let schema = sources
        .iter()
        .find(|source| source.path == "store/schema.rs")
        .expect("the store has a schema");
    let (_, listed) = schema
        .text
        .split_once("\ntables! {\n")
        .expect("the schema lists its tables");
    let (listed, _) = listed.split_once("\n}\n").expect("the list ends");
    let listed = without_comments_and_texts(listed);
    let tables: Vec<_> = listed
        .lines()
        .filter_map(|line| Some(line.split_once(" = ")?.0.trim()))
        .collect();
    assert!(tables.len() > 30, "only {} tables are found", tables.len());

    let programs: Vec<_> = sources
        .iter()
        .filter_map(|source| {
            let code = untested(source)?;
            let code = code.split_whitespace().collect::<Vec<_>>().join("");
            Some((source.path.as_str(), code))
        })
        .collect();
    let mut complaints = Vec::new();
    for table in tables {
        let written = programs.iter().any(|(path, code)| match *path {
            // Writes pairs of tables, of which it is given the names.
            "store/intern.rs" => contains_word(code, table),
            path => {
                (path.starts_with("service/") || path.starts_with("store/"))
                    && code.contains(&format!("{table}.put("))
            }
        });
        if !written {
            complaints.push(format!("src/store/schema.rs: nothing writes {table}"));
        }
        // `rows` walks one table, `pair` two.
        let walks = [
            format!("{table}.scan("),
            format!("rows(&{table},"),
            format!("pair(say,&{table},"),
            format!(",&{table},|"),
        ];
        let checked = |(path, code): &(&str, String)| {
            path.starts_with("store/check") && walks.iter().any(|walk| code.contains(walk))
        };
        if !programs.iter().any(checked) {
            complaints.push(format!("src/store/check.rs: does not walk {table}"));
        }
    }
    expect_none(&complaints);
}

/// Which registries a build uses is the business of the machine it runs on.
#[test]
fn no_registry_is_named() {
    // Joined here, so that this file does not name them either.
    let hosts = [
        ["crates", "io"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["yarnpkg", "com"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        // Without these, it is the beginning of a Go module's name.
        ["proxy.golang", "org"],
        ["sum.golang", "org"],
        ["debian", "org"],
        // Without these, it is the name of Debian's package.
        ["docker", "io/"],
        ["index.docker", "io"],
        ["registry-1.docker", "io"],
        ["ghcr", "io"],
        ["quay", "io"],
    ]
    .map(|parts| parts.join("."));
    let mut complaints = Vec::new();
    for path in files(root()) {
        // Cargo itself writes the name of its default index into the lock file.
        if path.ends_with("Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for host in hosts.iter().filter(|host| text.contains(host.as_str())) {
            complaints.push(format!("{}: names {host}", path.display()));
        }
    }
    expect_none(&complaints);
}
