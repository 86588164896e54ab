//! Two real nodes become peers while they run, from the command line and by their files, with nobody else allowed in.

use std::{fs, process::Command, time::Duration};

use super::{Node, kontor, output};

/// A node that talks with peers only.
struct Office {
    directory: tempfile::TempDir,
    name: &'static str,
    node: Option<Node>,
    /// Where other servers reach it.
    address: String,
}

impl Office {
    fn start(name: &'static str) -> Self {
        let mut office = Self {
            directory: tempfile::tempdir().expect("a directory"),
            name,
            node: None,
            address: "127.0.0.1:0".to_owned(),
        };
        office.write("");
        office.run();
        office
    }

    fn run(&mut self) {
        let options = [
            ("KONTOR_SERVER__NAME", self.name),
            ("KONTOR_LISTEN__HTTPS", self.address.as_str()),
            ("KONTOR_FEDERATION__MODE", "closed"),
        ];
        let node = Node::start_with(self.directory.path(), &options);
        let (_, address) = node
            .address
            .split_once("https://")
            .expect("it listens for other servers");
        let address = address.to_owned();
        self.address = address;
        self.node = Some(node);
    }

    /// Writes this into its configuration.
    fn write(&self, text: &str) {
        let name = self.name;
        let text = format!("[server]\nname = \"{name}\"\n{text}");
        fs::write(self.directory.path().join("config.toml"), text).expect("written");
    }

    /// The same, and has it read.
    fn configure(&self, text: &str) {
        self.write(text);
        hang_up(self.node.as_ref().expect("it runs"));
    }

    /// The section of a configuration that makes this node a peer.
    fn section(&self) -> String {
        let (name, address) = (self.name, &self.address);
        let ca = self.directory.path().join("data/tls/ca.pem");
        let ca = ca.display();
        format!(
            "[federation.peers.\"{name}\"]\naddress = \"{address}\"\nca = \"{ca}\"\nmax_backoff = \"1s\"\n"
        )
    }

    /// Waits until its log says this so often.
    #[track_caller]
    fn logs(&self, expect: &str, times: usize) {
        let log = || fs::read_to_string(self.directory.path().join("log")).expect("a log");
        for _ in 0..200 {
            if log().matches(expect).count() == times {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{expect}: {}", log());
    }

    fn stop(&mut self) {
        let node = self.node.take().expect("it runs");
        assert_eq!(node.stop("-TERM").0, Some(0));
    }

    /// What `kontor peer` says to these words.
    fn peer(&self, words: &[&str]) -> (Option<i32>, String) {
        let words = [&["peer"], words].concat();
        let mut command = kontor(self.directory.path(), &words);
        let (code, stdout, stderr) = output(&mut command);
        (code, format!("{stdout}{stderr}"))
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let (code, told) = self.peer(words);
        assert_eq!(code, Some(0), "{words:?}: {told}");
        told
    }

    #[track_caller]
    fn bad(&self, words: &[&str], expect: &str) {
        let (code, told) = self.peer(words);
        assert_eq!(code, Some(1), "{words:?}: {told}");
        assert!(told.contains(expect), "{words:?}: {told}");
    }

    fn invite(&self) -> String {
        let told = self.good(&["invite", "--address", &self.address]);
        told.lines().next().expect("the code is first").to_owned()
    }

    /// Waits until the list says this.
    #[track_caller]
    fn listed(&self, expect: &str) {
        for _ in 0..200 {
            if self.good(&["list"]).contains(expect) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{expect}: {}", self.good(&["list"]));
    }
}

/// Tells a node to read its files again, as service managers do.
fn hang_up(node: &Node) {
    let pid = node.child.id().to_string();
    let told = Command::new("kill").args(["-HUP", &pid]).status();
    assert!(told.expect("kill runs").success());
}

#[test]
fn two_nodes_become_peers_while_they_run() {
    let (a, mut b) = (Office::start("a.example"), Office::start("b.example"));
    assert!(a.good(&["list"]).contains("no peers yet"));
    a.bad(&["test", "b.example"], "b.example is no peer");

    let code = a.invite();
    a.bad(&["accept", &code], "by this node itself");
    b.bad(&["accept", "hello"], "not a code");
    b.bad(&["accept", &code[..100]], "not whole");
    // A port that nobody listens on: the one is not reached, so neither knows the other.
    b.bad(
        &["accept", &code, "--address", "127.0.0.1:9"],
        "does not reach this one at 127.0.0.1:9: cannot connect to 127.0.0.1:9: the machine is there, but nobody listens",
    );
    for office in [&a, &b] {
        assert!(office.good(&["list"]).contains("no peers yet"));
    }
    let (start, end) = code.split_at(80);
    let own = b.address.clone();
    let told = b.good(&["accept", start, end, "--address", &own]);
    assert!(told.contains("are peers now"), "{told}");
    a.listed("b.example  reached");
    b.listed("a.example  reached");
    for (office, other) in [(&a, "b.example"), (&b, "a.example")] {
        let told = office.good(&["test", other]);
        assert!(told.contains("it reaches this node"), "{told}");
    }

    // It is kept.
    b.stop();
    b.bad(&["list"], "does not run");
    a.bad(&["test", "b.example"], "nobody listens");
    b.run();
    b.listed("a.example  reached");
    b.good(&["test", "a.example"]);
    b.good(&["remove", "a.example"]);
    assert!(b.good(&["list"]).contains("no peers yet"));
    a.bad(&["test", "b.example"], "the other node refuses");
    for mut office in [a, b] {
        office.stop();
        let (code, stdout, _) = output(&mut kontor(office.directory.path(), &["check"]));
        assert_eq!((code, stdout.as_str()), (Some(0), ""));
    }
}

#[test]
fn commands_are_for_the_user_of_the_node() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut office = Office::start("a.example");
    let socket = office.directory.path().join("data/control.sock");
    let mode = fs::metadata(&socket).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    office.stop();
    assert!(!socket.exists(), "it was left behind");
}

#[test]
fn a_hangup_makes_a_node_read_its_certificate_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let issue = || {
        let mut command = kontor(directory.path(), &["ca", "issue", "a.example"]);
        assert_eq!(output(&mut command).0, Some(0));
        // Where no authority lies, as on most nodes.
        for file in ["a.example.pem", "a.example.key"] {
            let issued = directory.path().join("ca/issued").join(file);
            fs::copy(issued, directory.path().join(file)).expect("it was made");
        }
    };
    output(&mut kontor(directory.path(), &["ca", "init"]));
    issue();
    let options = [
        ("KONTOR_LISTEN__HTTPS", "127.0.0.1:0"),
        ("KONTOR_LISTEN__TLS_CERTIFICATE", "a.example.pem"),
        ("KONTOR_LISTEN__TLS_KEY", "a.example.key"),
    ];
    let node = Node::start_with(directory.path(), &options);
    let log = || fs::read_to_string(directory.path().join("log")).expect("a log");
    let taken = "the certificate of this node: what the files say now is in force";
    assert!(!log().contains(taken));
    issue();
    hang_up(&node);
    for _ in 0..200 {
        if log().contains(taken) {
            assert_eq!(node.stop("-TERM").0, Some(0));
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{}", log());
}

#[test]
fn peers_of_the_configuration_come_and_go_while_the_node_runs() {
    let (a, b) = (Office::start("a.example"), Office::start("b.example"));
    a.configure(&b.section());
    a.listed("of the configuration");
    a.bad(&["test", "b.example"], "the other node refuses");
    b.configure(&a.section());
    a.listed(&format!("b.example  reached  ({}, of the", b.address));
    b.listed("a.example  reached");
    a.good(&["test", "b.example"]);

    // What is wrong changes nothing, whether it is the text or a file that it names.
    let wrong = "the configuration is wrong, so what was read before stays in force";
    a.configure("[federation.peers.\"b.example\"]\naddress = \"10.8.0.2:none\"\n");
    a.logs(wrong, 1);
    a.logs("config.toml:4: federation.peers.\"b.example\".address: ", 1);
    let section = b.section().replace("tls/ca.pem", "tls/none.pem");
    a.configure(&section);
    a.logs(wrong, 2);
    a.configure("[federation");
    a.logs(wrong, 3);
    fs::remove_file(a.directory.path().join("config.toml")).expect("it was there");
    hang_up(a.node.as_ref().expect("it runs"));
    a.logs(wrong, 4);
    a.good(&["test", "b.example"]);

    // What cannot change is said.
    let needs_a_start = "the rest needs a start of the node";
    a.configure(&format!("[rooms]\nencrypted = \"all\"\n{}", b.section()));
    a.logs(needs_a_start, 1);
    a.good(&["test", "b.example"]);

    // Who was paired with besides is a peer by that when the section is gone; else it is none any more.
    let (code, own) = (a.invite(), b.address.clone());
    let told = b.good(&["accept", &code, "--address", &own]);
    assert!(told.contains("and wins"), "{told}");
    b.bad(&["remove", "a.example"], "is in the configuration file");
    b.configure("");
    b.listed(&format!("a.example  reached  ({}, paired)", a.address));
    b.good(&["remove", "a.example"]);
    b.configure(&a.section());
    b.listed("of the configuration");
    b.configure("");
    b.listed("no peers yet");
    a.bad(&["test", "b.example"], "the other node refuses");
    a.logs(needs_a_start, 1);
    for mut office in [a, b] {
        office.stop();
        let (code, stdout, _) = output(&mut kontor(office.directory.path(), &["check"]));
        assert_eq!((code, stdout.as_str()), (Some(0), ""));
    }
}
