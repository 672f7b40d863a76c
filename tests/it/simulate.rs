//! `simulate` as an administrator uses it, against the relay and where it can't get through.

use std::net::TcpListener;
use std::process::Command;
use std::process::Output;

use ftm_relay::simulate;
use ftm_relay::syslog;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;
use crate::support::until;

const FILE: &str = "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

const TLS: &str = "[[listen]]\nname = \"tls\"\ntransport = \"tls\"\naddress = \"127.0.0.3:0\"\ncert = \"server.pem\"\nkey = { file = \"server.key\" }\n";

fn simulate(relay: &Relay, args: &[&str]) -> Output {
    Command::new(BINARY)
        .arg("simulate")
        .args(args)
        .current_dir(relay.dir.path())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_format_arrives_by_every_transport() {
    let authority = Authority::new();
    let mut relay = Relay::prepare(&format!("{BASE}{TLS}{FILE}"));
    authority.write(relay.dir.path());
    authority
        .sign(&["localhost", "127.0.0.3"])
        .write(relay.dir.path(), "server");
    relay.run();
    let mut sent = 0;
    for (format, _) in simulate::FORMATS {
        for to in [
            format!("udp://{}", relay.udp()),
            format!("tcp://{}", relay.tcp()),
            format!("tcp+lf://{}", relay.tcp()),
            format!("tls://{}", relay.listening("tls")),
        ] {
            let user = format!("u{sent}");
            let args = [
                "--to", &to, "--format", format, "--user", &user, "--noise", "40", "--ca", "ca.pem",
            ];
            let output = simulate(&relay, &args);
            assert!(output.status.success(), "{to}: {}", said(&output));
            sent += 1;
        }
    }
    until("all mails", || {
        (Relay::files(&relay.dir.path().join("mail")).len() == sent).then_some(())
    });
}

#[test]
fn a_client_certificate_is_shown_and_what_is_wrong_in_tls_is_said() {
    let (authority, fortigates) = (Authority::new(), Authority::named("FortiGates"));
    let mut relay = Relay::prepare(&format!(
        "{BASE}{TLS}client_ca = \"fortigates.pem\"\n{FILE}"
    ));
    let dir = relay.dir.path().to_owned();
    fortigates.write(&dir);
    std::fs::rename(dir.join("ca.pem"), dir.join("fortigates.pem")).unwrap();
    authority.write(&dir);
    authority.sign(&["127.0.0.3"]).write(&dir, "server");
    fortigates.sign(&["fgt.example.com"]).write(&dir, "fgt");
    relay.run();
    let to = format!("tls://{}", relay.listening("tls"));
    let own = ["--cert", "fgt.pem", "--key", "fgt.key"];

    let output = simulate(
        &relay,
        &[&["--to", &to, "--ca", "ca.pem"][..], &own].concat(),
    );
    assert!(output.status.success(), "{}", said(&output));
    until("the mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let plain = format!("tls://{}", relay.tcp());
    for (args, why) in [
        // More often than once, for the refusal races with the lines.
        (vec!["--to", &to, "--ca", "ca.pem"], "--cert"),
        (vec!["--to", &to, "--ca", "ca.pem"], "--cert"),
        (
            vec!["--to", &to, "--ca", "ca.pem", "--noise", "2000"],
            "--cert",
        ),
        (
            vec!["--to", &to, "--ca", "fortigates.pem"],
            "not trusted here; put that authority's certificate into --ca",
        ),
        (vec!["--to", &to, "--ca", "nowhere.pem"], "can't be read"),
        (
            vec!["--to", &plain, "--ca", "ca.pem"],
            "does that port speak TLS?",
        ),
    ] {
        let output = simulate(&relay, &args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(said(&output).contains(why), "{}", said(&output));
    }
}

#[test]
fn a_connection_that_is_closed_from_there_is_no_success() {
    let relay = Relay::prepare(&format!("{BASE}{FILE}"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || drop(listener.accept()));
    let output = simulate(&relay, &["--to", &to, "--count", "3", "--noise", "2000"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("the connection was closed from there"),
        "{}",
        said(&output)
    );
}

#[test]
fn noise_is_read_in_every_format_and_never_in_doubt() {
    for (name, format) in simulate::FORMATS {
        for line in simulate::noise(*format, 1).take(2_000) {
            let record = syslog::parse(line.as_bytes()).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_eq!(record.format(), *name, "{line}");
            assert!(!record.is_doubtful(), "{line}");
            // An odd quote in an attack's text is escaped nowhere in CEF.
            assert!(!record.is_torn() || *name == "cef", "{line}");
            for field in ["logid", "type", "subtype", "vd", "eventtime"] {
                assert!(
                    record.get(field).is_some_and(|v| !v.is_empty()),
                    "{field}: {line}"
                );
            }
        }
    }
}
