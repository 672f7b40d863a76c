//! The first configuration: by flags, and by answers on a terminal.

use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use crate::support::relay::BINARY;
use crate::support::until;

const FLAGS: [&str; 7] = [
    "--offline",
    "--allow",
    "10.20.0.1,10.30.0.0/16",
    "--mail",
    "relay.example.com",
    "--from",
    "IT Service Desk <servicedesk@example.com>",
];

fn ftm_relay(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .args(["--config", "etc/ftm-relay.toml"])
        .current_dir(dir)
        .env_remove("STATE_DIRECTORY")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    ftm_relay(dir, args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn config(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("etc/ftm-relay.toml")).unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// The program on a terminal of its own: each line is typed once it asks. What the terminal showed, and the exit code.
fn on_a_terminal(dir: &Path, lines: &[&str]) -> (String, Option<i32>) {
    let command = format!("{BINARY} init --offline --config etc/ftm-relay.toml");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--echo", "always"])
        .args(["--command", &command, "/dev/null"])
        .current_dir(dir)
        .env_remove("STATE_DIRECTORY")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let shown = Arc::new(Mutex::new(String::new()));
    let showing = Arc::clone(&shown);
    let reader = std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut some) {
            let text = String::from_utf8_lossy(&some[..n]).into_owned();
            showing.lock().unwrap().push_str(&text);
        }
    });
    let mut seen = 0;
    for line in lines {
        until("a question", || {
            let shown = shown.lock().unwrap();
            let is_asked = shown.ends_with("? ") || shown.ends_with("] ");
            (shown.len() > seen && is_asked).then(|| seen = shown.len())
        });
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    let status = child.wait().unwrap();
    reader.join().unwrap();
    let shown = shown.lock().unwrap().clone();
    (shown, status.code())
}

#[test]
fn flags_alone_make_a_configuration_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &[&["init"], &FLAGS[..]].concat());
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for expected in [
        "Wrote ",
        "set server \"",
        "set mode udp",
        "(logid 0100032155 0100032156 0100032159 0100038412)",
        "ftm-relay.toml: good\n",
        "systemctl restart ftm-relay",
        "send-test",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    for unexpected in ["warning", "note:", "problem", "credentials/smtp"] {
        assert!(!text.contains(unexpected), "{unexpected} is in\n{text}");
    }
    let config = config(dir.path());
    for expected in [
        "allow = [\"10.20.0.1\", \"10.30.0.0/16\"]",
        "domains = [\"example.com\"]",
        "email = \"{user}@example.com\"",
        "tls = \"starttls\"",
        "to = \"servicedesk@example.com\"",
        "address = \"0.0.0.0:514\"",
    ] {
        assert!(config.contains(expected), "{expected} is not in\n{config}");
    }
    // The service's user, whoever that is, reads the one and not the other.
    assert_eq!(mode(&dir.path().join("etc/ftm-relay.toml")), 0o644);
    assert_eq!(mode(&dir.path().join("etc/credentials")), 0o700);
}

#[test]
fn flags_for_everything_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("etc/credentials");
    std::fs::create_dir_all(&credentials).unwrap();
    std::fs::write(credentials.join("smtp"), "hunter22\n").unwrap();
    std::fs::write(credentials.join("ldap"), "hunter33\n").unwrap();
    let flags = [
        "init",
        "--yes",
        "--offline",
        "--fortios",
        "6.4",
        "--to",
        "tcp://relay.example.com:1514",
        "--mail",
        "svc@example.com@mail.example.com:465",
        "--people",
        "ldaps://dc1.example.com/dc=example,dc=com as cn=ftm-relay,dc=example,dc=com",
        "--escalate",
        "desk@example.net",
        "--domain",
        "example.com,example.org",
        "--state-dir",
        "state",
        "--allow",
        "10.20.0.1",
        "--from",
        "servicedesk@example.com",
    ];
    let output = run(dir.path(), &flags);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("set server \"relay.example.com\""), "{text}");
    assert!(text.contains("set filter \"logid(32155,"), "{text}");
    assert!(
        text.contains("Kept ") && text.contains(": good\n"),
        "{text}"
    );
    assert!(!text.contains("hunter"), "{text}");
    let config = config(dir.path());
    for expected in [
        "transport = \"tcp\"",
        "address = \"0.0.0.0:1514\"",
        "username = \"svc@example.com\"",
        "tls = \"implicit\"",
        "password = { credential = \"smtp\" }",
        "base = \"dc=example,dc=com\"",
        "bind_dn = \"cn=ftm-relay,dc=example,dc=com\"",
        "password = { credential = \"ldap\" }",
        "domains = [\"example.com\", \"example.org\"]",
        "to = \"desk@example.net\"",
        "state_dir = \"state\"",
    ] {
        assert!(config.contains(expected), "{expected} is not in\n{config}");
    }
    assert!(!config.contains("hunter"), "{config}");
}

#[test]
fn what_is_missing_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["init"][..],
        &["init", "--yes", "--mail", "relay.example.com"],
    ] {
        let output = run(dir.path(), args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("--allow") && text.contains("--from"),
            "{text}"
        );
        assert_eq!(text.contains("--mail"), args.len() == 1, "{text}");
    }
    for wrong in [
        ["--to", "smoke://here"],
        ["--allow", "everybody"],
        ["--people", "telephone"],
        ["--mail", "relay:none"],
        ["--from", "nobody"],
    ] {
        let output = run(dir.path(), &[&["init"], &wrong[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    }
    assert!(!dir.path().join("etc").exists());
}

#[test]
fn a_configuration_is_overwritten_only_by_force_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (etc, args) = (dir.path().join("etc"), [&["init"], &FLAGS[..]].concat());
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("ftm-relay.toml"), "mine").unwrap();
    let refused = run(dir.path(), &args);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("--force"), "{}", said(&refused));
    assert_eq!(config(dir.path()), "mine");
    let forced = run(dir.path(), &[&args[..], &["--force"]].concat());
    assert_eq!(forced.status.code(), Some(0), "{}", said(&forced));
    assert!(config(dir.path()).contains("[channel.mail]"));
    let old = std::fs::read_to_string(etc.join("ftm-relay.toml.old")).unwrap();
    assert_eq!(old, "mine");
}

#[test]
fn the_trial_that_the_packages_install_gives_way_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let (etc, args) = (dir.path().join("etc"), [&["init"], &FLAGS[..]].concat());
    std::fs::create_dir(&etc).unwrap();
    let trial = include_str!("../../deploy/ftm-relay.toml");
    let touched = format!("{trial}# Mine.\n");
    std::fs::write(etc.join("ftm-relay.toml"), &touched).unwrap();
    let refused = run(dir.path(), &args);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert_eq!(config(dir.path()), touched);

    std::fs::write(etc.join("ftm-relay.toml"), trial).unwrap();
    let output = run(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(config(dir.path()).contains("[channel.mail]"));
    assert!(!etc.join("ftm-relay.toml.old").exists());
}

#[test]
fn a_terminal_is_asked_eight_things_at_most_and_shows_no_password() {
    let dir = tempfile::tempdir().unwrap();
    let (shown, code) = on_a_terminal(
        dir.path(),
        &[
            "7.2",
            "10.20.0.1, 10.20.0.2",
            "",
            "ftm-relay@relay.example.com",
            "hunter22",
            "not a sender",
            "servicedesk@example.com",
            "people.csv",
            "desk@example.com",
        ],
    );
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("hunter22"), "{shown}");
    assert!(shown.contains("\"not a sender\" is no sender"), "{shown}");
    // One of them was asked twice.
    let questions = shown.lines().filter(|l| l.contains('?')).count();
    assert!((1..=9).contains(&questions), "{shown}");
    assert!(shown.contains(": good"), "{shown}");
    let secret = dir.path().join("etc/credentials/smtp");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "hunter22\n");
    assert_eq!(mode(&secret), 0o600);
    let table = dir.path().join("etc/people.csv");
    assert_eq!(mode(&table), 0o644);
    let config = config(dir.path());
    assert!(config.contains("file = \"people.csv\""), "{config}");
    assert!(config.contains("to = \"desk@example.com\""), "{config}");
    assert!(config.contains("port = 587"), "{config}");
    assert!(!config.contains("hunter22"), "{config}");
}

#[test]
fn what_eight_questions_do_not_reach_is_named_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let (shown, code) = on_a_terminal(
        dir.path(),
        &[
            "",
            "10.20.0.1",
            "",
            "ftm-relay@relay.example.com",
            "",
            "servicedesk@example.com",
            "ldaps://dc1.example.com/dc=example,dc=com as cn=ftm-relay,dc=example,dc=com",
            "",
        ],
    );
    for name in ["smtp", "ldap"] {
        let to_do = format!("cat > {}/etc/credentials/{name})", dir.path().display());
        assert!(shown.contains(&to_do), "{to_do} is not in\n{shown}");
    }
    for name in ["smtp", "ldap"] {
        let noted = format!("note: the credential {name} can't be seen");
        assert!(shown.contains(&noted), "{shown}");
    }
    assert_eq!(code, Some(0), "{shown}");
}

#[test]
fn answers_that_end_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (shown, code) = on_a_terminal(dir.path(), &["7.2", "10.20.0.1", "\u{4}"]);
    assert_eq!(code, Some(1), "{shown}");
    assert!(!dir.path().join("etc").exists(), "{shown}");
}

#[test]
fn what_was_written_is_tried_live() {
    let (dir, taken) = (
        tempfile::tempdir().unwrap(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let mail = format!("127.0.0.1:{port}");
    let output = run(
        dir.path(),
        &[
            "init",
            "--allow",
            "127.0.0.1",
            "--to",
            "udp://127.0.0.1:5514",
            "--mail",
            &mail,
            "--from",
            "servicedesk@example.com",
        ],
    );
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("good, but") && text.contains(&mail), "{text}");
    assert!(text.contains("Next:"), "{text}");
}
