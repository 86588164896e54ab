//! The real program on the command line: what it prints, and with which code it ends.

#[path = "cli/peers.rs"]
mod peers;
#[path = "cli/search.rs"]
mod search;

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use kontor::clock::Clock;

/// The program in a directory of its own, so that no `config.toml` of the developer is read, nor a variable.
fn kontor(directory: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kontor"));
    command
        .args(words)
        .current_dir(directory)
        .stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KONTOR_")) {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    (status.code(), text(stdout), text(stderr))
}

/// A running node and what it has printed first.
struct Node {
    child: Child,
    address: String,
    /// What it prints after the address.
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Node {
    /// Starts a node that listens wherever there is room, and waits until it says where.
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    /// The same with more options.
    fn start_with(directory: &Path, options: &[(&str, &str)]) -> Self {
        let mut command = kontor(directory, &["serve"]);
        command.env("KONTOR_LISTEN__HTTP", "127.0.0.1:0");
        command.envs(options.iter().copied());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("log")).expect("a log"))
            .spawn()
            .expect("the program runs");
        let stdout = child.stdout.take().expect("it was piped");
        let mut lines = BufReader::new(stdout).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()))
            .expect("the banner says where the node listens");
        Self {
            child,
            address,
            lines: Some(lines),
        }
    }

    /// Stops the node, and says whether it has shown a token for the first account.
    fn shows_a_token(mut self) -> bool {
        let lines = self.lines.take().expect("nobody has read on");
        self.stop("-TERM");
        lines
            .map_while(Result::ok)
            .any(|line| line.contains("registration token"))
    }

    /// Asks the node to stop, and tells its exit code and how long it took.
    fn stop(mut self, signal: &str) -> (Option<i32>, Duration) {
        let clock = Clock::real();
        let asked = clock.instant();
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
        let status = self.child.wait().expect("it ends");
        (status.code(), clock.instant() - asked)
    }
}

#[test]
fn the_version_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let (code, stdout, _) = output(&mut kontor(directory.path(), &["--version"]));
    assert_eq!(code, Some(0));
    assert_eq!(stdout, format!("kontor {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_configuration_of_the_current_directory_is_in_effect() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(
        directory.path().join("config.toml"),
        "[registration]\nshared_secret = 'hush'",
    )
    .expect("written");
    let mut command = kontor(directory.path(), &["config"]);
    let (code, stdout, stderr) = output(command.env("KONTOR_SERVER__NAME", "office.example"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.contains("name = \"office.example\"") && stdout.contains("(hidden)"),
        "{stdout}"
    );
    assert!(!stdout.contains("hush"), "{stdout}");
}

#[test]
fn mistakes_end_every_command() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("bad.toml"), "[listen]\nhtpp = ''").expect("written");
    let mistake = "bad.toml:2: listen.htpp: unknown key; the nearest known one is listen.http";
    for word in ["config", "check", "serve"] {
        let (code, stdout, stderr) = output(&mut kontor(
            directory.path(),
            &[word, "--config", "bad.toml"],
        ));
        assert_eq!(code, Some(1), "{word}");
        assert!(
            format!("{stdout}{stderr}").contains(mistake),
            "{word}: {stdout}{stderr}"
        );
    }
    let (code, stdout, _) = output(&mut kontor(
        directory.path(),
        &["config", "--config", "none.toml"],
    ));
    assert_eq!(code, Some(1));
    assert!(stdout.starts_with("none.toml: cannot be read"), "{stdout}");
}

#[test]
fn a_node_stops_when_asked() {
    for signal in ["-TERM", "-INT"] {
        let directory = tempfile::tempdir().expect("a directory");
        let node = Node::start(directory.path());
        let (code, took) = node.stop(signal);
        assert_eq!(code, Some(0), "{signal}");
        assert!(took < Duration::from_secs(5), "{signal}: {took:?}");
    }
}

#[test]
fn a_taken_address_is_told_with_its_key_and_a_way_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = tempfile::tempdir().expect("a directory");
    let node = Node::start(directory.path());
    let mut command = kontor(other.path(), &["serve"]);
    let (code, _, stderr) = output(command.env("KONTOR_LISTEN__HTTP", &node.address));
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("error: cannot listen on") && stderr.contains("listen.http"),
        "{stderr}"
    );
    node.stop("-TERM");

    // The start that failed did not use up the token for the first account.
    let node = Node::start(other.path());
    assert!(node.shows_a_token(), "no token after a start that failed");
}

#[test]
fn a_store_that_is_not_there_is_not_clean() {
    let directory = tempfile::tempdir().expect("a directory");
    let (code, stdout, stderr) = output(&mut kontor(directory.path(), &["check"]));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("./data/store cannot be used"), "{stderr}");
    assert!(!directory.path().join("data").exists(), "it was made");
    Node::start(directory.path()).stop("-TERM");
    let (code, stdout, stderr) = output(&mut kontor(directory.path(), &["check"]));
    assert_eq!(
        (code, stdout, stderr),
        (Some(0), String::new(), String::new())
    );
}

#[test]
fn an_authority_is_made_from_the_command_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |words: &[&str]| output(&mut kontor(directory.path(), words));
    let (code, _, stderr) = run(&["ca", "show"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("kontor ca init"), "{stderr}");
    let (code, stdout, stderr) = run(&["ca", "init"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("ca/ca.pem"), "{stdout}");
    let (code, stdout, _) = run(&["ca", "issue", "b.example", "10.8.0.2"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("tls_certificate"), "{stdout}");
    let (code, stdout, _) = run(&["ca", "show"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("b.example, 10.8.0.2  good"), "{stdout}");
    assert_eq!(run(&["ca", "issue"]).0, Some(2), "a name is needed");
}

#[test]
fn a_stopped_node_gets_a_new_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let (code, _, stderr) = output(&mut kontor(directory.path(), &["rotate-key"]));
    assert_eq!(code, Some(1), "{stderr}");
    let node = Node::start(directory.path());
    let (code, _, stderr) = output(&mut kontor(directory.path(), &["rotate-key"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("another node already runs"), "{stderr}");
    node.stop("-TERM");
    let (code, stdout, stderr) = output(&mut kontor(directory.path(), &["rotate-key"]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout.matches("ed25519:k").count(), 2, "{stdout}");
    let (code, ..) = output(&mut kontor(directory.path(), &["check"]));
    assert_eq!(code, Some(0));
}
