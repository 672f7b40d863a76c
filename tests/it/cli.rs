//! The commands, run as an administrator runs them.

use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

fn config() -> String {
    format!(
        "{BASE}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[channel.desk]\ntype = \"file\"\npath = \"desk\"\nto = \"desk@example.com\"\n\
         [[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n"
    )
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["queue", "list", "--state", "lost"],
        &["explain", "--peer", "nowhere"],
        &["send-test", "--channel", "mail", "--to", "nobody"],
        &["simulate", "--to", "carrier-pigeon://here"],
    ] {
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn explain_gives_every_field_of_each_line() {
    let relay = Relay::prepare(&config());
    let sent = relay.explain(&Event::code(1, "alice").line(), &[]);
    for key in [
        "line",
        "verdict",
        "reason",
        "format",
        "logid",
        "stage",
        "device",
        "user",
        "code",
        "code_found",
        "token",
        "recipient",
        "channels",
    ] {
        assert!(keys(&sent).contains(&key), "{key}");
    }
    assert_eq!(sent["verdict"], "relay");
    assert_eq!(sent["line"], 1);
    assert_eq!(sent["code"], format!("{}…", &code(1)[..4]));
    assert_eq!(sent["device"]["id"], "FGT60FTK20000001");
    assert_eq!(sent["recipient"]["email"], "alice@example.com");
    assert_eq!(sent["recipient"]["source"], "pattern");
    assert_eq!(sent["channels"], serde_json::json!(["mail"]));

    let shown = relay.explain(&Event::code(1, "alice").line(), &["--reveal"]);
    assert_eq!(shown["code"], code(1));

    let none = relay.explain(
        &Event::with_message("alice", "Send activation code").line(),
        &[],
    );
    assert_eq!(
        (&none["verdict"], &none["code_found"]),
        (&"no-code".into(), &false.into())
    );

    let other = relay.explain(b"something else", &[]);
    assert_eq!(other["verdict"], "rejected");
    for key in [
        "logid",
        "stage",
        "user",
        "code",
        "code_found",
        "recipient",
        "channels",
    ] {
        assert!(other[key].is_null(), "{key} of {other}");
    }
    let mut login = Event::code(1, "alice");
    login.logid = "0100038411".to_owned();
    assert_eq!(relay.explain(&login.line(), &[])["verdict"], "ignore");

    let outside = relay.explain(&Event::code(1, "a@b@c").line(), &[]);
    assert_eq!(outside["verdict"], "no-recipient");

    assert!(!relay.state().exists(), "explain stores nothing");
}

#[test]
fn explain_checks_the_peer_only_when_it_is_named() {
    let config = config() + "[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"10.20.0.1\"]\n";
    let relay = Relay::prepare(&config);
    let line = Event::code(1, "alice").line();
    let verdict = |args: &[&str]| {
        relay.explain(&line, args)["verdict"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(verdict(&[]), "relay");
    assert!(
        relay.explain(&line, &[])["notes"]
            .to_string()
            .contains("not checked")
    );
    assert_eq!(verdict(&["--peer", "10.20.0.1"]), "relay");
    assert_eq!(verdict(&["--peer", "10.20.0.2"]), "rejected");
    // The listener's `allow` is loopback.
    assert_eq!(
        verdict(&["--peer", "10.20.0.1", "--listener", "udp"]),
        "rejected"
    );
    let unknown = relay.cli(&["explain", "--listener", "upd"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("udp, tcp"), "{}", err(&unknown));
}

#[test]
fn explain_in_words_masks_code_and_address_unless_told() {
    let relay = Relay::prepare(&config());
    let line = [Event::code(1, "alice").line(), b"\n".to_vec()].concat();
    let masked = out(&relay.cli_with(&["explain"], &line));
    assert!(
        masked.contains("line 1: relay — The code goes to a…@example.com by mail."),
        "{masked}"
    );
    assert!(
        !masked.contains(&code(1)) && !masked.contains("alice@"),
        "{masked}"
    );
    let shown = out(&relay.cli_with(&["explain", "--reveal"], &line));
    assert!(
        shown.contains(&code(1)) && shown.contains("alice@example.com"),
        "{shown}"
    );
}

#[test]
fn a_replay_asks_first_and_is_deduplicated() {
    let relay = Relay::prepare(&config());
    let file = relay.dir.path().join("missed.log");
    let line = String::from_utf8(Event::code(1, "alice").line()).unwrap();
    std::fs::write(&file, format!("{line}\nother\n{line}\n")).unwrap();
    let file = file.to_str().unwrap();

    let asked = relay.cli(&["replay", file]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(err(&asked).contains("--yes"), "{}", err(&asked));
    assert!(!relay.state().exists());

    let done = json(&relay.cli(&["replay", file, "--yes", "--json"]));
    assert_eq!(done["lines"], 3);
    assert_eq!(done["accepted"], 1);
    assert_eq!(done["duplicates"], 1);
    assert_eq!(done["ignored"], 1);
    let again = json(&relay.cli(&["replay", file, "--yes", "--json"]));
    assert_eq!(again["accepted"], 0);
    assert_eq!(relay.states(), ["received"]);

    let missing = relay.cli(&["replay", "nowhere.log", "--yes"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn the_queue_is_the_same_with_and_without_a_relay() {
    let mut relay = Relay::start(&config());
    relay.send_udp(&Event::code(1, "alice").line());
    relay.send_udp(&Event::code(2, "a@b@c").line());
    let listed = until("both to settle", || {
        let queue = relay.queue();
        (queue.len() == 3 && queue.iter().filter(|r| r["state"] == "accepted").count() == 2)
            .then_some(queue)
    });
    for row in &listed {
        assert_eq!(
            keys(row),
            [
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
                "user"
            ]
        );
        assert!(row["created_at"].as_str().unwrap().ends_with('Z'), "{row}");
    }
    let accepted = listed.iter().find(|r| r["user"] == "alice").unwrap();
    let id = accepted["id"].as_str().unwrap();
    let waiting = listed
        .iter()
        .find(|r| r["state"] == "needs-attention")
        .unwrap();
    assert!(waiting["channel"].is_null());
    let final_one = relay.cli(&["queue", "retry", id]);
    assert_eq!(final_one.status.code(), Some(1));
    assert!(err(&final_one).contains("accepted"), "{}", err(&final_one));
    let story = out(&relay.cli(&["queue", "show", id]));
    assert!(
        story.contains("alice@example.com") && !story.contains(&code(1)),
        "{story}"
    );

    // A killed relay leaves its socket behind.
    relay.kill();
    assert!(relay.state().join("control.sock").exists());
    assert_eq!(relay.queue(), listed);
    // No command here needs the key or the rest of the configuration.
    std::fs::remove_file(relay.state().join("outbox.key")).unwrap();
    let stats = json(&relay.cli(&["queue", "stats", "--json"]));
    assert_eq!(stats["items"]["needs-attention"], 1);
    let waiting = waiting["id"].as_str().unwrap();
    let cancelled = json(&relay.cli(&["queue", "cancel", waiting, "--json"]));
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(relay.cli(&["queue", "show", "A999"]).status.code(), Some(1));
}

#[test]
fn a_long_state_dir_still_has_its_socket() {
    let long = "d".repeat(120);
    let relay = Relay::start(&config().replace("\"state\"", &format!("\"{long}/state\"")));
    assert_eq!(
        json(&relay.cli(&["queue", "list", "--json"])),
        serde_json::json!([])
    );
}

#[test]
fn the_socket_in_the_runtime_directory_is_found_from_a_shell() {
    let mut relay = Relay::prepare(&config());
    let runtime = relay.dir.path().join("runtime");
    std::fs::create_dir(&runtime).unwrap();
    let relay_env = runtime.to_str().unwrap().to_owned();
    // A dead relay's link is in the way.
    std::fs::create_dir(relay.state()).unwrap();
    symlink("/nowhere/control.sock", relay.state().join("control.sock")).unwrap();
    relay.env("RUNTIME_DIRECTORY", &relay_env);
    relay.run();
    assert!(runtime.join("control.sock").exists());
    let output = Command::new(BINARY)
        .args([
            "queue",
            "list",
            "--json",
            "--config",
            relay.config().to_str().unwrap(),
        ])
        .env_remove("RUNTIME_DIRECTORY")
        .output()
        .unwrap();
    assert_eq!(json(&output), serde_json::json!([]));
}

#[test]
fn a_second_relay_and_a_busy_port_fail_with_1() {
    let relay = Relay::start(&config());
    let second = relay.cli(&["run"]);
    assert_eq!(second.status.code(), Some(1), "{}", err(&second));
    assert!(
        err(&second).contains("another ftm-relay"),
        "{}",
        err(&second)
    );

    let mut busy = config().replace("\"state\"", "\"elsewhere\"");
    busy = busy.replace(
        "127.0.0.1:0\"\n[[listen]]",
        &format!("{}\"\n[[listen]]", relay.http()),
    );
    let other = Relay::prepare(&busy);
    let output = other.cli(&["run"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(
        err(&output).contains("[http] can't be bound"),
        "{}",
        err(&output)
    );
}

#[test]
fn the_service_may_open_as_many_connections_as_the_system_allows() {
    let relay = Relay::prepare(&config());
    // It ends by itself, whatever comes of the test.
    let mut child = Command::new("timeout")
        .args([
            "60",
            "prlimit",
            "--nofile=200:4096",
            BINARY,
            "run",
            "--config",
        ])
        .arg(relay.config())
        .current_dir(relay.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let is_ready = |line: std::io::Result<String>| line.unwrap().contains("Ready:");
    assert!(log.lines().any(is_ready));
    let of_timeout = format!("/proc/{0}/task/{0}/children", child.id());
    let pid = std::fs::read_to_string(of_timeout).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.trim())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let words: Vec<_> = line.unwrap().split_whitespace().skip(3).collect();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    assert_eq!(words, ["4096", "4096", "files"]);
}

#[test]
fn send_test_says_how_it_went() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = config()
        + &format!(
            "[channel.away]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {refused}\ntls = \"none\"\nfrom = \"a@example.com\"\n\
             [channel.unread]\ntype = \"webhook\"\nurl = {{ credential = \"hook\" }}\n"
        );
    let relay = Relay::prepare(&config);
    let send = |channel: &str| {
        relay.cli(&[
            "send-test",
            "--channel",
            channel,
            "--to",
            "alice@example.com",
            "--json",
        ])
    };
    let done = json(&send("mail"));
    assert_eq!(done["accepted"], true);
    assert!(done["transcript"].is_array() && done["result"].is_string());
    let (_, mail) = Relay::files(&relay.dir.path().join("mail")).remove(0);
    assert!(
        String::from_utf8_lossy(&mail)
            .to_lowercase()
            .contains("test")
    );

    let away = send("away");
    assert_eq!(away.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&away.stdout).unwrap();
    assert_eq!(said["accepted"], false);

    let unread = send("unread");
    assert_eq!(unread.status.code(), Some(1));
    assert!(
        err(&unread).contains("the secrets of the channel"),
        "{}",
        err(&unread)
    );
    let unknown = send("mial");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        err(&unknown).contains("there is no [channel.mial]"),
        "{}",
        err(&unknown)
    );
}

#[test]
fn a_simulated_activation_arrives() {
    let relay = Relay::start(&config());
    for (at, to) in [
        ("udp", relay.udp()),
        ("tcp", relay.tcp()),
        ("tcp+lf", relay.tcp()),
    ] {
        let output = Command::new(BINARY)
            .args([
                "simulate",
                "--to",
                &format!("{at}://{to}"),
                "--user",
                at,
                "--noise",
                "3",
                "--json",
            ])
            .output()
            .unwrap();
        let sent = json(&output);
        assert_eq!(
            (&sent["activations"], &sent["lines"]),
            (&1.into(), &4.into())
        );
    }
    until("three mails", || {
        (Relay::files(&relay.dir.path().join("mail")).len() == 3).then_some(())
    });
}

#[test]
fn keys_completions_and_manual_are_printed() {
    let run = |args: &[&str]| Command::new(BINARY).args(args).output().unwrap();
    let (one, two) = (run(&["keygen"]), json(&run(&["keygen", "--json"])));
    assert_ne!(out(&one).trim(), two["key"].as_str().unwrap());
    let relay = Relay::prepare(&config());
    let key = format!("{}[outbox]\nkey = \"{}\"\n", config(), out(&one).trim());
    relay.configure(&key);
    assert_eq!(relay.cli(&["check"]).status.code(), Some(0));
    assert!(out(&run(&["completions", "bash"])).contains("send-test"));
    assert!(out(&run(&["man"])).contains(".TH ftm-relay"));
    let pages = tempfile::tempdir().unwrap();
    out(&run(&["man", "--to", pages.path().to_str().unwrap()]));
    for page in ["ftm-relay.1", "ftm-relay-run.1", "ftm-relay-queue-list.1"] {
        let page = std::fs::read_to_string(pages.path().join(page)).unwrap();
        assert!(page.contains(".SH SYNOPSIS\n\\fBftm\\-relay"), "{page}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    for args in [&["completions", "bash"][..], &["keygen"], &["man"]] {
        let mut child = Command::new(BINARY)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), err(&output).as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

#[test]
fn the_fortigates_commands_name_the_listener_and_the_wanted_events() {
    let rule = "[[rule]]\nname = \"guest\"\nlogid = [38406]\ncode = 'password (?P<code>\\S+)'\nstage = \"code-sent\"\n";
    const FILE: &str =
        "[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n";
    let relay = Relay::prepare(&format!("{BASE}{FILE}{rule}").replacen(
        "127.0.0.1:0\"\n[[listen]]\nname = \"tcp\"",
        "127.0.0.1:5514\"\n[[listen]]\nname = \"tcp\"",
        1,
    ));
    let new = out(&relay.cli(&["fortigate-cli", "--fortios", "7.4", "--server", "192.0.2.7"]));
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
    let old = out(&relay.cli(&["fortigate-cli", "--fortios", "6.4", "--slot", "3"]));
    assert!(
        old.contains("config log syslogd3 filter")
            && old.contains("set filter \"logid(32155,32156,32159,38406,38412)\""),
        "{old}"
    );
}

#[test]
fn the_fortigates_commands_are_those_of_its_version() {
    let relay = Relay::prepare(&config());
    for (version, has, has_not) in [
        (
            "6.4",
            &[
                "set filter \"logid(32155,32156,32159,38412)\"",
                "set gtp disable",
            ][..],
            &[
                "free-style",
                "ztna-traffic",
                "forti-switch",
                "http-transaction",
                "set debug",
            ][..],
        ),
        (
            "7.0",
            &[
                "set filter \"(logid 0100032155 0100032156 0100032159 0100038412)\"",
                "# from 7.0.4 on: set ztna-traffic disable",
            ],
            &["logid(", "forti-switch", "http-transaction"],
        ),
        (
            "7.2",
            &["    set ztna-traffic disable"],
            &["7.0.4", "forti-switch"],
        ),
        (
            "7.4",
            &["# from 7.4.2 on: set forti-switch disable"],
            &["http-transaction", "set debug"],
        ),
        (
            "7.6",
            &[
                "    set forti-switch disable",
                "    set http-transaction disable",
                "# from 7.6.3 on: set debug disable",
            ],
            &["7.4.2"],
        ),
    ] {
        let printed = out(&relay.cli(&["fortigate-cli", "--fortios", version]));
        for text in has
            .iter()
            .chain(&["set severity information", "set format default"])
        {
            assert!(printed.contains(text), "{version}: no {text} in\n{printed}");
        }
        for text in has_not {
            assert!(!printed.contains(text), "{version}: {text} in\n{printed}");
        }
        assert_is_well_formed(&printed);
    }
    let vdom = out(&relay.cli(&["fortigate-cli", "--vdom", "guests", "--slot", "1"]));
    for text in [
        "edit \"guests\"",
        "set syslog-override enable",
        "config log syslogd override-setting",
        "config log syslogd override-filter",
    ] {
        assert!(vdom.contains(text), "no {text} in\n{vdom}");
    }
}

#[test]
fn the_fortigates_commands_fit_a_listener_for_tls_or_stitches() {
    let relay = Relay::prepare("");
    let authority = Authority::new();
    let ca = authority.write(relay.dir.path());
    let identity = authority.sign(&["relay.example.com"]);
    for (file, text) in [
        ("server.pem", &identity.certificate_pem),
        ("server.key", &identity.key_pem),
    ] {
        std::fs::write(relay.dir.path().join(file), text).unwrap();
    }
    let listeners = format!(
        "[[listen]]\ntransport = \"tls\"\naddress = \"0.0.0.0:6514\"\ncert = \"server.pem\"\nkey = {{ file = \"server.key\" }}\nclient_ca = \"{}\"\n\
         [[listen]]\ntransport = \"stitch\"\naddress = \"0.0.0.0:8515\"\ncert = \"server.pem\"\nkey = {{ file = \"server.key\" }}\ntoken = \"a-token-that-nobody-guesses\"\n",
        ca.display()
    );
    relay.configure(&config().replacen("[[listen]]", &format!("{listeners}[[listen]]"), 1));
    let blocks = |version: &str| {
        let output = relay.cli(&["fortigate-cli", "--json", "--fortios", version]);
        let blocks = json(&output);
        let of = |transport: &str| {
            let all = blocks.as_array().unwrap();
            let block = all.iter().find(|b| b["transport"] == transport).unwrap();
            block["cli"].as_str().unwrap().to_owned()
        };
        (of("tls"), of("stitch"))
    };
    for version in ["6.4", "7.0", "7.2", "7.4", "7.6"] {
        let (tls, stitch) = blocks(version);
        for text in [
            "set mode reliable",
            "set port 6514",
            "set enc-algorithm high-medium",
            "set ssl-min-proto-version TLSv1-2",
            "set certificate \"CLIENT_CERTIFICATE\"",
            "set server \"RELAY_ADDRESS\"",
        ] {
            assert!(tls.contains(text), "{version}: no {text} in\n{tls}");
        }
        for text in [
            "set action-type webhook",
            "set port 8515",
            "set http-body \"%%log%%\"",
            "Bearer TOKEN",
            "set event-type event-log",
            "not tried on a FortiGate",
        ] {
            assert!(stitch.contains(text), "{version}: no {text} in\n{stitch}");
        }
        assert!(!stitch.contains("a-token-that"), "{stitch}");
        let has = |text| stitch.contains(text);
        assert_eq!(has("config actions"), version != "6.4");
        assert_eq!(has("config http-headers"), version != "6.4");
        assert_eq!(has("set logid 38412\n"), version == "6.4");
        assert_eq!(has("set logid 32155 32156 32159 38412\n"), version != "6.4");
        assert_eq!(has("up to 7.0.5 instead"), version == "7.0");
        assert_is_well_formed(&tls);
        assert_is_well_formed(&stitch);
    }
}

/// Every `config` has its `end` and every `edit` its `next`.
#[track_caller]
fn assert_is_well_formed(cli: &str) {
    let mut open = Vec::new();
    for line in cli.lines().map(str::trim) {
        match line.split(' ').next().unwrap() {
            word @ ("config" | "edit") => open.push(word),
            "end" => assert_eq!(open.pop(), Some("config"), "{cli}"),
            "next" => assert_eq!(open.pop(), Some("edit"), "{cli}"),
            "set" => assert!(!open.is_empty(), "{cli}"),
            word => assert!(word.starts_with('#'), "{line} in\n{cli}"),
        }
    }
    assert_eq!(open, [""; 0], "{cli}");
}
