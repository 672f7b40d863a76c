//! What the pages in `docs/` tell an administrator to type, typed.

use std::path::Path;
use std::process::Command;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

const ROUTE: &str =
    "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-e", "-c", script])
        .current_dir(dir)
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// On loopback, with a port of its own.
fn here(toml: &str) -> String {
    let lines = toml.lines().map(|line| match line.split_once(" = ") {
        Some(("address", _)) => "address = \"127.0.0.3:0\"",
        Some(("allow", _)) => "allow = [\"127.0.0.0/8\"]",
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn the_page_on_tls_makes_certificates_that_let_one_device_speak_for_itself() {
    let (toml, scripts) = (blocks("tls.md", "toml"), blocks("tls.md", "sh"));
    let [listener, device] = &toml[..] else {
        panic!("{toml:?}")
    };
    let mut relay = Relay::prepare(&format!("{BASE}{}{device}{ROUTE}", here(listener)));
    for script in &scripts {
        sh(relay.dir.path(), script);
    }
    let checked = relay.cli(&["check"]);
    assert!(checked.status.success());
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(!said.contains(".pem") && !said.contains("tls"), "{said}");
    relay.run();

    // A FortiGate with `set certificate "branch-12"`, and one without.
    let to = relay.listening("tls");
    let line = relay.dir.path().join("line");
    std::fs::write(&line, Event::code(1, "alice").counted()).unwrap();
    let client = |identity: &str| {
        format!(
            "cat line | openssl s_client -quiet -no_ign_eof -verify_return_error -CAfile ca.pem -verify_hostname ftm-relay.example.com {identity} -connect {to}"
        )
    };
    drop(
        Command::new("sh")
            .args(["-c", &client("")])
            .current_dir(relay.dir.path())
            .output()
            .unwrap(),
    );
    until("the refusal", || {
        relay
            .logged()
            .contains("presented no certificate")
            .then_some(())
    });
    assert!(relay.queue().is_empty());
    sh(
        relay.dir.path(),
        &client("-cert branch-12.pem -key branch-12.key"),
    );
    until("the mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
}

#[test]
fn the_page_on_stitches_shows_a_listener_bodies_and_a_trial_that_work() {
    let (toml, scripts) = (blocks("stitch.md", "toml"), blocks("stitch.md", "sh"));
    let [token, trial] = &scripts[..] else {
        panic!("{scripts:?}")
    };
    let mut relay = Relay::prepare(&format!("{BASE}{}{ROUTE}", here(&toml[0])));
    let authority = Authority::new();
    authority.write(relay.dir.path());
    authority
        .sign(&["127.0.0.3"])
        .write(relay.dir.path(), "server");
    sh(relay.dir.path(), token);
    relay.run();
    let to = relay.listening("stitch");
    let said = sh(
        relay.dir.path(),
        &trial.replace("127.0.0.1:8443", &to.to_string()),
    );
    assert_eq!(
        said,
        "ignored: message id 32001 is no event that a rule wants\n"
    );

    // The two bodies, as FortiOS fills them in.
    let event = Event::code(1, "alice");
    let mut body = blocks("stitch.md", "json").remove(0);
    for (field, value) in [
        ("logid", event.logid.as_str()),
        ("type", "event"),
        ("subtype", "system"),
        ("devid", &event.devid),
        ("devname", &event.devname),
        ("vd", &event.vdom),
        ("eventtime", &event.eventtime.to_string()),
        ("tz", "+0100"),
        ("user", &event.user),
        ("msg", &event.msg),
    ] {
        body = body.replace(&format!("%%log.{field}%%"), value);
    }
    assert!(!body.contains("%%"), "{body}");
    std::fs::write(relay.dir.path().join("fields"), body).unwrap();
    std::fs::write(relay.dir.path().join("log"), &event.line()["<189>".len()..]).unwrap();
    let cli = blocks("stitch.md", "text").remove(0);
    assert!(cli.contains("set http-body \"%%log%%\""));
    for (file, said) in [("fields", "accepted\n"), ("log", "accepted before\n")] {
        let post = format!(
            "curl --silent --cacert ca.pem -H \"Authorization: Bearer $(cat stitch-token)\" --data-binary @{file} https://{to}/stitch"
        );
        assert_eq!(sh(relay.dir.path(), &post), said);
    }
}
