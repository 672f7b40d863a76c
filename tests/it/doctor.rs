//! What is wrong with an installation, and how to mend it: of a real relay, and of one that says what the test wants.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use ftm_relay::control::Answer;
use ftm_relay::control::Stats;
use ftm_relay::control::Status;
use ftm_relay::outbox::State;
use jiff::SignedDuration;
use jiff::Timestamp;
use serde_json::Value;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

fn config() -> String {
    format!(
        "{BASE}[[device]]\nid = \"FGT60FTK20000001\"\nname = \"branch-12\"\n\
         [channel.mail]\ntype = \"file\"\npath = \"mail\"\n[channel.desk]\ntype = \"file\"\npath = \"mail\"\nto = \"desk@example.com\"\n\
         [[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n"
    )
}

/// The findings of `doctor`, and its exit code.
fn doctor(relay: &Relay) -> (Vec<Value>, i32) {
    let output = relay.cli(&["doctor", "--json"]);
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (findings, output.status.code().unwrap())
}

/// Everything that isn't fine, in lines.
fn wrong(findings: &[Value]) -> String {
    let text = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    let bad = findings.iter().filter(|f| f["level"] != "ok");
    bad.map(|f| {
        assert!(!text(f, "advice").is_empty(), "{f} says not what to do");
        format!(
            "{}: {}: {} — {}\n",
            text(f, "level"),
            text(f, "check"),
            text(f, "text"),
            text(f, "advice")
        )
    })
    .collect()
}

fn status() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        since: Timestamp::now() - SignedDuration::from_hours(30),
        not_ready: Vec::new(),
        suspended: Vec::new(),
        strangers: Vec::new(),
        stats: Some(Stats {
            items: vec![(State::Accepted, 3)],
            oldest: None,
        }),
        metrics: format!(
            "ftm_relay_frames_total{{listener=\"udp\"}} 100\nftm_relay_frames_total{{listener=\"tcp\"}} 0\n\
             ftm_relay_config_reload_success 1\n\
             ftm_relay_device_last_seen_timestamp_seconds{{device=\"FGT60FTK20000001\"}} {}\n",
            Timestamp::now().as_second()
        ),
    }
}

/// A relay that has run and stopped.
fn stopped() -> Relay {
    let mut relay = Relay::start(&config());
    relay.stop();
    relay
}

/// What is wrong of a relay that says this of itself.
fn wrong_of(relay: &Relay, answer: Answer) -> String {
    let path = relay.state().join("control.sock");
    drop(std::fs::remove_file(&path));
    let door = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let answering = std::thread::spawn(move || {
        let (stream, _) = door.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let text = serde_json::to_string(&answer).unwrap() + "\n";
        (&stream).write_all(text.as_bytes()).unwrap();
        line
    });
    let (findings, code) = doctor(relay);
    assert_eq!(answering.join().unwrap(), "\"status\"\n");
    let wrong = wrong(&findings);
    // Warnings alone change nothing.
    assert_eq!(code, i32::from(wrong.contains("problem: ")), "{wrong}");
    wrong
}

fn with_status(relay: &Relay, status: Status) -> String {
    wrong_of(relay, Answer::Status(Box::new(status)))
}

#[test]
fn a_relay_that_works_is_said_to_and_shows_no_code() {
    let mut relay = Relay::start(&config());
    relay.send_udp(&Event::code(1, "alice").line());
    until("the mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let (findings, exit) = doctor(&relay);
    assert_eq!((wrong(&findings).as_str(), exit), ("", 0));
    let all = serde_json::to_string(&findings).unwrap();
    assert!(!all.contains(&code(1)) && !all.contains("alice"), "{all}");
    for check in [
        "service",
        "version",
        "listeners",
        "outbox",
        "permissions",
        "disk",
    ] {
        assert!(all.contains(&format!("\"check\":\"{check}\"")), "{all}");
    }

    let output = relay.cli(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|l| l.starts_with("ok: ")), "{text}");
    assert!(text.contains("ok: outbox: no damage"), "{text}");

    relay.stop();
    let (findings, exit) = doctor(&relay);
    let said = wrong(&findings);
    assert_eq!(exit, 1);
    assert!(
        said.starts_with("problem: service: ftm-relay does not run — systemctl"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_channel_that_waits_for_an_operator_is_named_with_its_reason() {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in door.incoming().flatten() {
            let answer =
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            stream.write_all(answer).unwrap();
        }
    });
    let relay = Relay::start(&config().replace(
        "type = \"file\"\npath = \"mail\"\n[channel.desk]",
        &format!("type = \"webhook\"\nurl = \"http://127.0.0.1:{port}/\"\n[channel.desk]"),
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    let said = until("the suspension", || {
        Some(wrong(&doctor(&relay).0)).filter(|said| said.contains("channels"))
    });
    assert!(
        said.starts_with("problem: channels: mail is suspended: "),
        "{said}"
    );
    assert!(said.contains("401") && !said.contains(&code(1)), "{said}");
}

#[test]
fn each_trouble_of_a_running_relay_is_named() {
    let relay = stopped();
    assert_eq!(with_status(&relay, status()), "");
    let day_old = Timestamp::now().as_second() - 86_400;
    let with = |more: &str| Status {
        metrics: status().metrics + more,
        ..status()
    };
    let silent = Status {
        metrics: status().metrics.replace(
            &Timestamp::now().as_second().to_string()[..6],
            &day_old.to_string()[..6],
        ),
        ..status()
    };
    let cases = [
        (
            Status {
                suspended: vec![("mail".to_owned(), "535 5.7.8 no such log-in".to_owned())],
                ..status()
            },
            "problem: channels: mail is suspended: 535 5.7.8 no such log-in — mend it",
        ),
        (
            Status {
                version: "0.0.1".to_owned(),
                ..status()
            },
            "warn: version: 0.0.1 runs, ",
        ),
        (
            Status {
                not_ready: vec!["outbox: database or disk is full".to_owned()],
                ..status()
            },
            "problem: readiness: not ready: outbox: database or disk is full",
        ),
        (
            with("ftm_relay_udp_dropped_total{listener=\"udp\"} 7\n"),
            "problem: UDP: the kernel dropped 7 datagrams",
        ),
        (
            with("ftm_relay_frames_rejected_total{listener=\"udp\",reason=\"peer\"} 4\n"),
            "warn: turned away: 4 were turned away at udp from peers that may not speak there",
        ),
        (
            with("ftm_relay_device_clock_skew_seconds{device=\"FGT1\"} -4000.5\n"),
            "warn: clocks: the clock of FGT1 was 4000 s behind ours",
        ),
        (
            Status {
                metrics: status().metrics.replace("success 1", "success 0"),
                ..status()
            },
            "warn: reload: the last reload was refused",
        ),
        (
            Status {
                metrics: status()
                    .metrics
                    .replace("{listener=\"tcp\"} 0", "{listener=\"tpc\"} 0"),
                ..status()
            },
            "problem: listeners: the relay that runs has no listener tcp",
        ),
        (
            Status {
                stats: Some(Stats {
                    items: Vec::new(),
                    oldest: None,
                }),
                ..status()
            },
            "warn: filter: 100 frames came, but never a token event",
        ),
        (
            Status {
                stats: Some(Stats {
                    items: vec![(State::NeedsAttention, 2)],
                    oldest: Some(Timestamp::now() - SignedDuration::from_hours(5)),
                }),
                ..status()
            },
            "warn: queue: 2 need attention",
        ),
        (
            Status {
                strangers: vec![(
                    "10.9.9.9 is not in `allow` of the listener udp".to_owned(),
                    12,
                )],
                ..status()
            },
            "warn: turned away: 12 records were not believed: 10.9.9.9 is not",
        ),
        (
            silent,
            "warn: devices: no line of FGT60FTK20000001 was read for 2",
        ),
        (
            Status {
                metrics: status().metrics.replace("device_last_seen", "device_other"),
                ..status()
            },
            "warn: devices: no line of FGT60FTK20000001 (branch-12) was read since the start",
        ),
    ];
    for (status, expected) in cases {
        let said = with_status(&relay, status);
        assert!(said.starts_with(expected), "{expected} is not in\n{said}");
    }
}

#[test]
fn an_older_relay_and_one_that_fails_are_told_apart() {
    let relay = stopped();
    let error = |why: &str| wrong_of(&relay, Answer::Error(why.to_owned()));
    let older = error("this is no request");
    assert!(
        older.starts_with("warn: service: the relay that runs is an older version"),
        "{older}"
    );
    let away = error("the outbox is away");
    assert!(
        away.starts_with(
            "problem: service: the relay that runs can't be asked: the outbox is away"
        ),
        "{away}"
    );
}

#[test]
fn what_lies_open_or_damaged_is_named() {
    let relay = stopped();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let credentials = relay.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("smtp"), "hunter22").unwrap();
    open(&credentials, 0o700);
    open(&credentials.join("smtp"), 0o640);
    open(&relay.state(), 0o755);
    open(&relay.state().join("outbox.key"), 0o644);
    open(&relay.config(), 0o666);
    let (findings, _) = doctor(&relay);
    let said = wrong(&findings);
    for (path, mode) in [
        ("state", "700"),
        ("state/outbox.key", "600"),
        ("credentials/smtp", "600"),
        ("ftm-relay.toml", "644"),
    ] {
        let path = relay.dir.path().canonicalize().unwrap().join(path);
        let mend = format!("chmod {mode} {}\n", path.display());
        assert!(said.contains(&mend), "{mend} is not in\n{said}");
    }
    assert!(!said.contains("hunter22"), "{said}");

    std::fs::write(relay.state().join("outbox.db"), "no database at all").unwrap();
    let (findings, _) = doctor(&relay);
    assert!(
        wrong(&findings).contains("problem: outbox: "),
        "{findings:?}"
    );
}

#[test]
fn a_port_that_somebody_else_holds_is_named() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let relay = Relay::prepare(&config().replacen(
        "transport = \"udp\"\naddress = \"127.0.0.1:0\"",
        &format!("transport = \"udp\"\naddress = \"127.0.0.1:{port}\""),
        1,
    ));
    let (findings, _) = doctor(&relay);
    let expected = format!("127.0.0.1:{port} of udp is taken by another program");
    assert!(wrong(&findings).contains(&expected), "{findings:?}");
}

#[test]
fn a_configuration_with_problems_and_a_certificate_near_its_end_are_named() {
    let (findings, _) = doctor(&Relay::prepare("nonsense = 1\n"));
    let said = wrong(&findings);
    assert!(said.contains("unknown key `nonsense`"), "{said}");

    let relay = Relay::prepare(&format!(
        "{}[[listen]]\ntransport = \"tls\"\naddress = \"127.0.0.1:0\"\ncert = \"server.pem\"\nkey = {{ file = \"server.key\" }}\nclient_ca = \"old.pem\"\n",
        config()
    ));
    let (dir, authority) = (relay.dir.path(), Authority::new());
    authority.sign_expired(&["localhost"]).write(dir, "server");
    authority.sign_expired(&["old"]).write(dir, "old");
    let (findings, _) = doctor(&relay);
    let said = wrong(&findings);
    for (file, then) in [
        ("server.pem", "a FortiGate that looks at it"),
        (
            "old.pem",
            "FortiGates with certificates that it signed are refused",
        ),
    ] {
        let line = said.lines().find(|l| l.contains(file)).unwrap_or_default();
        assert!(
            line.starts_with("warn: configuration: ") && line.contains("expired on 2021-01-01"),
            "{said}"
        );
        assert!(line.contains(then), "{said}");
    }
}
