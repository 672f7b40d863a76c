//! Valid and invalid configurations, and what is said about them.

use std::path::Path;

use crate::support::relay::BASE;
use crate::support::relay::Relay;

const FILE: &str = "[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n";

/// What `check` says about a text: its exit code and lines.
fn check(text: &str) -> (i32, String) {
    let relay = Relay::prepare(text);
    let output = relay.cli(&["check"]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), said)
}

#[test]
fn the_shipped_configurations_are_good() {
    for name in ["config/ftm-relay.toml", "config/quickstart.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let relay = Relay::prepare(&std::fs::read_to_string(path).unwrap());
        let output = relay.cli(&["check"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        assert!(!said.contains("warning"), "{name}: {said}");
    }
}

#[test]
fn the_reference_shows_every_kind_of_listener_directory_and_channel() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/ftm-relay.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let kinds = [
        ("transport", ftm_relay::ingest::KINDS),
        ("type", ftm_relay::directory::KINDS),
        ("type", ftm_relay::channel::KINDS),
    ];
    for (key, kinds) in kinds {
        for kind in kinds {
            assert!(
                text.contains(&format!("{key} = \"{kind}\"")),
                "{key} = {kind}"
            );
        }
    }
    for key in ftm_relay::channel::COMMON_KEYS {
        assert!(text.contains(&format!("{key} ")), "{key}");
    }
}

#[test]
fn every_problem_is_named_at_once_with_its_place() {
    let text = format!("{BASE}{FILE}")
        .replace(
            "to = [\"file\"]",
            "to = [\"fiel\"]\nfallback_after = \"soon\"",
        )
        .replacen("transport = \"udp\"", "transprt = \"udp\"", 1)
        + "[limits]\nper_person = \"often\"\n[nonsense]\na = 1\n";
    let (status, said) = check(&text);
    assert_eq!(status, 78, "{said}");
    for (line, wanted) in [
        (7, "unknown key `transprt`; did you mean `transport`?"),
        (22, "did you mean \"file\"?"),
        (23, "\"soon\" is no duration"),
        (25, "\"often\" is no rate"),
        (26, "unknown key `nonsense`"),
    ] {
        let found = said
            .lines()
            .find(|l| l.contains(wanted))
            .unwrap_or_else(|| panic!("{wanted} is not in:\n{said}"));
        assert!(
            found.contains(&format!("ftm-relay.toml:{line}:")),
            "{found}"
        );
    }
    let relay = Relay::prepare(&text);
    assert_eq!(
        relay.cli(&["run"]).status.code(),
        Some(78),
        "the unit doesn't restart"
    );
}

#[test]
fn odd_files_are_refused_in_words() {
    for (text, wanted) in [
        ("", "[recipients] is missing"),
        ("listen = 1", "write [[listen]]"),
        (
            "[[listen]]\ntransport = 7",
            "`transport` is one of udp, tcp",
        ),
        ("[listen]\ntransport = \"udp\"", "write [[listen]]"),
        ("channel = \"mail\"", "write [channel.mail]"),
        ("channel.mail = 1", "must be a table"),
        ("[[[", "ftm-relay.toml:1:"),
        ("state_dir = 1", "ftm-relay.toml:1:13"),
        ("a = 1\na = 2", "ftm-relay.toml:2:"),
    ] {
        let (status, said) = check(text);
        assert_eq!(status, 78, "{text:?}: {said}");
        assert!(
            said.contains(wanted),
            "{wanted} is not in what is said of {text:?}:\n{said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
    let relay = Relay::prepare("");
    std::fs::write(relay.config(), b"a = \"\xff\"").unwrap();
    assert_eq!(relay.cli(&["check"]).status.code(), Some(78));
    std::fs::remove_file(relay.config()).unwrap();
    let output = relay.cli(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stdout).contains("can't be read"));
}

#[test]
fn no_error_repeats_a_secret() {
    let hook = |keys: &str| {
        format!(
            "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\n{keys}\n[[route]]\nto = [\"hook\"]\n"
        )
    };
    for keys in [
        "secret = \"whsec_CANARYCANARY\"",
        "secret = 4242424242",
        "secret = [\"CANARYCANARY\"]",
        "secret = { plain = \"CANARYCANARY\" }",
        "secret = { env = \"NOT_SET\", file = \"CANARYCANARY\" }",
        "headers = { Authorization = \"Bearer CANARYCANARY\" }",
        "secret = \"CANARYCANARY",
    ] {
        let (_, said) = check(&hook(keys));
        assert!(
            !said.contains("CANARY") && !said.contains("4242"),
            "{keys}: {said}"
        );
    }
}

#[test]
fn a_credential_outside_the_unit_is_a_note_and_a_missing_file_a_problem() {
    let hook = |secret: &str| {
        format!(
            "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\nsecret = {secret}\n[[route]]\nto = [\"hook\"]\n"
        )
    };
    let (status, said) = check(&hook("{ credential = \"hook\" }"));
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("note: the credential hook"), "{said}");
    let (status, said) = check(&hook("{ file = \"nowhere\" }"));
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("nowhere can't be read"), "{said}");
}
