//! `kontor search`, with a node that runs and one that is stopped.

use super::{Node, kontor, output};

#[test]
fn the_index_is_looked_at_and_made_anew_from_the_command_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |words: &[&str]| output(&mut kontor(directory.path(), words));
    let (code, _, stderr) = run(&["search", "status"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("kontor serve"), "{stderr}");
    let (code, _, stderr) = run(&["search", "rebuild"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(!directory.path().join("data").exists(), "it was made");

    let node = Node::start(directory.path());
    for word in ["status", "rebuild"] {
        let (code, stdout, stderr) = run(&["search", word]);
        assert_eq!(code, Some(0), "{word}: {stderr}");
        let last = stdout.lines().last();
        let expect = "0 events can be found: all there are; the index has 0 KiB";
        assert_eq!(last, Some(expect), "{word}");
    }
    node.stop("-TERM");
    let (code, stdout, stderr) = run(&["search", "rebuild"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("all there are"), "{stdout}");
    let (code, ..) = run(&["check"]);
    assert_eq!(code, Some(0));

    let mut off = kontor(directory.path(), &["search", "rebuild"]);
    let (code, _, stderr) = output(off.env("KONTOR_SEARCH__ENABLED", "false"));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("switched off"), "{stderr}");
}
