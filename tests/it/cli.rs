//! The commands, run as commands.

use std::process::Command;

use serde_json::Value;

use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

const FILE: &str = "[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n";

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["run", "--nonsense"],
        &["simulate", "--to", "nowhere"],
    ] {
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn completions_manual_and_keys_are_printed() {
    for (args, wanted) in [
        (&["completions", "bash"][..], "ftm-relay"),
        (&["man"], ".TH"),
        (&["keygen"], "ftmkey1_"),
        (&["keygen", "--json"], "\"key\""),
    ] {
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert!(
            output.status.success() && said(&output).contains(wanted),
            "{args:?}: {}",
            said(&output)
        );
    }
    let key = || Command::new(BINARY).arg("keygen").output().unwrap().stdout;
    assert_ne!(key(), key());
}

#[test]
fn explain_says_what_would_happen_and_why() {
    let relay = Relay::prepare(&format!("{BASE}{FILE}"));
    let explained = relay.explain(&Event::code(1, "EXAMPLE\\Alice").line(), &[]);
    assert_eq!(explained["verdict"], "relay");
    assert_eq!(explained["format"], "kv");
    assert_eq!(explained["logid"], 38412);
    assert_eq!(explained["stage"], "code-sent");
    assert_eq!(explained["user"], "EXAMPLE\\Alice");
    assert_eq!(explained["code"], format!("{}…", &code(1)[..4]));
    assert_eq!(explained["code_found"], true);
    assert_eq!(explained["recipient"]["email"], "alice@example.com");
    assert_eq!(explained["channels"][0], "file");
    assert_eq!(
        relay.explain(&Event::code(1, "alice").line(), &["--reveal"])["code"],
        code(1)
    );
    let mut other = Event::code(1, "alice");
    other.logid = "0100032001".to_owned();
    let ignored = relay.explain(&other.line(), &[]);
    assert_eq!(ignored["verdict"], "ignore");
    assert_eq!(
        [
            &ignored["code"],
            &ignored["recipient"],
            &ignored["channels"]
        ],
        [&Value::Null; 3]
    );
    assert_eq!(relay.explain(b"garbage", &[])["verdict"], "rejected");
    assert_eq!(
        relay.explain(&Event::with_message("alice", "none").line(), &[])["verdict"],
        "no-code"
    );
    other.logid = "0100032156".to_owned();
    assert_eq!(relay.explain(&other.line(), &[])["verdict"], "lifecycle");
    let from = |peer| {
        relay.explain(
            &Event::code(1, "alice").line(),
            &["--listener", "udp", "--peer", peer],
        )["verdict"]
            .clone()
    };
    assert_eq!(
        [from("127.0.0.1"), from("192.0.2.1")],
        ["relay", "rejected"]
    );
    assert!(!relay.state().exists(), "nothing is stored");
    let words = relay.cli_with(&["explain"], &Event::code(1, "alice").line());
    assert!(
        said(&words).starts_with("line 1: relay — The code goes to a…@example.com by file."),
        "{}",
        said(&words)
    );
}

#[test]
fn the_queue_is_asked_with_and_without_a_running_relay() {
    let mut relay = Relay::start(&format!("{BASE}{FILE}"));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the end", || (relay.states() == ["accepted"]).then_some(()));
    let row = relay.queue().remove(0);
    let mut keys: Vec<_> = row.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    let expected = [
        "attempts",
        "channel",
        "created_at",
        "expires_at",
        "id",
        "last_error",
        "next_attempt",
        "recipient",
        "stage",
        "state",
        "user",
    ];
    assert_eq!(keys, expected);
    let id = row["id"].as_str().unwrap().to_owned();
    for running in [true, false] {
        assert_eq!(relay.queue()[0]["id"], row["id"], "running: {running}");
        assert!(said(&relay.cli(&["queue", "show", &id])).contains("accepted"));
        assert_eq!(
            relay.cli(&["queue", "retry", &id]).status.code(),
            Some(1),
            "it is final"
        );
        assert_eq!(relay.cli(&["queue", "show", "D999"]).status.code(), Some(1));
        assert!(said(&relay.cli(&["queue", "stats"])).contains("accepted"));
        if running {
            assert_eq!(relay.stop(), 0);
        }
    }
}

#[test]
fn a_replayed_file_goes_out_once_and_only_after_a_yes() {
    let relay = Relay::start(&format!("{BASE}{FILE}"));
    let lines = [
        Event::code(1, "alice").line(),
        b"other".to_vec(),
        Event::code(2, "bob").line(),
        Event::code(3, "carol").later(-90 * 3600).line(),
    ];
    let file = relay.dir.path().join("log");
    std::fs::write(&file, lines.join(&b'\n')).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        relay.cli(&["replay", file]).status.code(),
        Some(1),
        "nobody said yes"
    );
    let done: Value =
        serde_json::from_slice(&relay.cli(&["replay", file, "--yes", "--json"]).stdout).unwrap();
    assert_eq!(
        (
            &done["lines"],
            &done["accepted"],
            &done["expired"],
            &done["ignored"]
        ),
        (&4.into(), &3.into(), &1.into(), &1.into())
    );
    until("the end", || {
        (relay.states() == ["accepted", "accepted", "expired"]).then_some(())
    });
    let again: Value =
        serde_json::from_slice(&relay.cli(&["replay", file, "--yes", "--json"]).stdout).unwrap();
    assert_eq!(
        (&again["accepted"], &again["duplicates"]),
        (&0.into(), &3.into())
    );
}

#[test]
fn a_test_message_is_sent_and_marked() {
    let relay = Relay::prepare(&format!("{BASE}{FILE}"));
    let output = relay.cli(&[
        "send-test",
        "--channel",
        "file",
        "--to",
        "alice@example.com",
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let mail = std::fs::read_dir(relay.dir.path().join("mail"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let mail = std::fs::read_to_string(mail.path()).unwrap();
    assert!(
        mail.contains("Subject: ") && mail.to_lowercase().contains("test"),
        "{mail}"
    );
    assert_eq!(
        relay
            .cli(&[
                "send-test",
                "--channel",
                "none",
                "--to",
                "alice@example.com"
            ])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(
        relay
            .cli(&["send-test", "--channel", "file", "--to", "nobody"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn the_fortigates_commands_name_the_listener_and_the_wanted_events() {
    let rule = "[[rule]]\nname = \"guest\"\nlogid = [38406]\ncode = 'password (?P<code>\\S+)'\nstage = \"code-sent\"\n";
    let relay = Relay::prepare(&format!("{BASE}{FILE}{rule}").replacen(
        "127.0.0.1:0\"\n[[listen]]\nname = \"tcp\"",
        "127.0.0.1:5514\"\n[[listen]]\nname = \"tcp\"",
        1,
    ));
    let new = said(&relay.cli(&["fortigate-cli", "--fortios", "7.4", "--server", "192.0.2.7"]));
    for wanted in [
        "config log syslogd2 setting",
        "set server \"192.0.2.7\"",
        "set mode udp",
        "set port 5514",
        "set mode reliable",
        "config free-style",
        "0100038412",
        "0100038406",
    ] {
        assert!(new.contains(wanted), "{wanted} is not in\n{new}");
    }
    assert!(
        !new.contains("38411"),
        "log-in codes have no business on the wire"
    );
    let old = said(&relay.cli(&["fortigate-cli", "--fortios", "6.4", "--slot", "3"]));
    assert!(
        old.contains("config log syslogd3 filter")
            && old.contains("set filter \"logid(32155,32156,32159,38406,38412)\""),
        "{old}"
    );
}
