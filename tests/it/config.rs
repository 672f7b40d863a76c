//! Configurations, and what `check` says about each. `tests/data/config/NAME.txt` is what it says of `NAME.toml`.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use serde_json::Value;

use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn check(dir: &Path, file: &str, args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(["check", "--config", file])
        .args(args)
        .current_dir(dir)
        .env_remove("STATE_DIRECTORY")
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_owned()).unwrap()
}

#[test]
fn every_finding_has_its_place_and_its_words() {
    let dir = root().join("tests/data/config");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(files.len() > 8, "{files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let expected = std::fs::read_to_string(file.with_extension("txt")).unwrap_or_default();
        let name = file.file_name().unwrap().to_str().unwrap();
        let output = check(&dir, name, &[]);
        let said = text(&output.stdout).replace(dir.to_str().unwrap(), "DIR");
        let code = if said.contains(": problem: ") { 78 } else { 0 };
        if said != expected || output.status.code() != Some(code) || !output.stderr.is_empty() {
            wrong.push(format!("{name} ({:?}):\n{said}", output.status.code()));
        }
        for secret in ["hunter2", "33442255"] {
            assert!(
                !said.contains(secret),
                "{secret} of {name} is shown:\n{said}"
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reference_and_the_quickstart_are_good() {
    let quickstart = check(&root().join("config"), "quickstart.toml", &[]);
    assert_eq!(text(&quickstart.stdout), "quickstart.toml: good\n");

    let reference = check(&root().join("config"), "ftm-relay.toml", &["--json"]);
    assert_eq!(reference.status.code(), Some(0));
    let findings: Vec<Value> = serde_json::from_slice(&reference.stdout).unwrap();
    for finding in &findings {
        assert_eq!(finding["weight"], "note", "{finding}");
        let text = finding["text"].as_str().unwrap();
        assert!(text.contains("outside the service unit"), "{finding}");
    }
    assert!(!findings.is_empty());
}

/// Every configuration of a page about a channel is one that can be used.
#[test]
fn the_channels_of_the_pages_are_good() {
    for page in ["slack", "teams", "sms"] {
        let path = root().join("docs").join(format!("{page}.md"));
        let text_of_page = std::fs::read_to_string(path).unwrap();
        let blocks = text_of_page.split("```toml\n").skip(1);
        let shown: Vec<_> = blocks.map(|b| b.split("```").next().unwrap()).collect();
        assert!(!shown.is_empty(), "{page}");
        let mut config = format!("{BASE}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n");
        config += &shown.join("");
        config += "[[route]]\nto = [\"mail\"]\n";
        let relay = Relay::prepare(&config);
        let output = relay.cli(&["check"]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{page}:\n{said}");
        assert!(!said.contains(": warning: a secret"), "{page}:\n{said}");
    }
}

/// What the reference shows as off is accepted as well.
#[test]
fn every_key_that_the_reference_shows_as_off_is_known() {
    let reference = std::fs::read_to_string(root().join("config/ftm-relay.toml")).unwrap();
    let mut on = String::new();
    for line in reference.lines() {
        // The table is inline already, and both kinds of it can't stand at once.
        let inline = line.starts_with("#type = \"table\"") || line.starts_with("#file = ");
        match line.strip_prefix('#') {
            Some(off) if !off.starts_with([' ', '=']) && !off.is_empty() && !inline => {
                on.push_str(off)
            }
            _ => on.push_str(line),
        }
        on.push('\n');
    }
    assert!(
        on.contains("\n[templates]\n") && on.contains("\n[[rule]]\n"),
        "{on}"
    );
    let relay = Relay::prepare(&on);
    let said = text(&relay.cli(&["check"]).stdout);
    let unknown: Vec<_> = said.lines().filter(|l| l.contains("unknown")).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for expected in [": this must be", "is missing"] {
        assert!(!said.contains(expected), "{said}");
    }
}

/// systemd.exec(5): of a directory, `LoadCredential=ID:DIRECTORY` makes `ID_FILE`.
#[test]
fn a_credential_is_found_alone_and_as_one_of_a_directory_in_this_order() {
    let mut relay = Relay::prepare(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"https://hook.example.com/\"\nsecret = {{ credential = \"hook\" }}\n[[route]]\nto = [\"hook\"]\n"
    ));
    let credentials = relay.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    relay.env("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let (alone, of_a_directory) = (credentials.join("hook"), credentials.join("ftm-relay_hook"));
    let says = |what: &str| {
        let output = relay.cli(&["check"]);
        let said = text(&output.stdout);
        assert!(said.contains(what), "{what}: {said}");
        output.status.code()
    };

    assert_eq!(says("/hook can't be read: No such file"), Some(78));
    let good = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n";
    std::fs::write(&of_a_directory, good).unwrap();
    assert_eq!(says("good"), Some(0));
    std::fs::write(&alone, "").unwrap();
    assert_eq!(says("/hook is empty"), Some(78));
    std::fs::write(&of_a_directory, "").unwrap();
    std::fs::write(&alone, good).unwrap();
    assert_eq!(says("good"), Some(0));
}

#[test]
fn what_cannot_be_read_is_a_wrong_configuration() {
    let dir = tempfile::tempdir().unwrap();
    for (path, why) in [
        ("nowhere.toml", "No such file"),
        (".", "Is a directory"),
        ("/dev/zero", "larger than"),
    ] {
        for command in ["check", "run", "explain"] {
            let output = Command::new(BINARY)
                .args([command, "--config", path])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{command} {path}: {said}");
            assert!(said.contains(why), "{command} {path}: {said}");
        }
    }
}

#[test]
fn a_secret_that_the_service_needs_is_a_note_elsewhere_and_a_problem_to_it() {
    let relay = Relay::prepare(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = {{ credential = \"hook\" }}\n[[route]]\nto = [\"hook\"]\n"
    ));
    let checked = relay.cli(&["check"]);
    assert_eq!(checked.status.code(), Some(0));
    assert!(text(&checked.stdout).contains("note: the credential hook"));
    let run = relay.cli(&["run"]);
    assert_eq!(run.status.code(), Some(78));
    assert!(text(&run.stderr).contains("problem: the credential hook"));
}

#[test]
fn paths_are_relative_to_the_file_that_names_them() {
    let relay = Relay::prepare(&format!(
        "{BASE}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n"
    ));
    let output = Command::new(BINARY)
        .args(["send-test", "--channel", "mail", "--to", "a@example.com"])
        .args(["--config", relay.config().to_str().unwrap()])
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(Relay::files(&relay.dir.path().join("mail")).len(), 1);
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
        let output = Relay::prepare(&hook(keys)).cli(&["check"]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(
            !said.contains("CANARY") && !said.contains("4242"),
            "{keys}: {said}"
        );
    }
}

/// Where the unit's credentials lie beside the configuration, whoever may read them checks them too.
#[test]
fn credentials_beside_the_configuration_are_read_by_a_check_and_not_by_the_service() {
    let relay = Relay::prepare(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = {{ credential = \"hook\" }}\n[[route]]\nto = [\"hook\"]\n"
    ));
    let credentials = relay.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let missing = relay.cli(&["check"]);
    assert_eq!(missing.status.code(), Some(0));
    let path = credentials.canonicalize().unwrap().join("hook");
    // Another unit than the packaged one may take it from elsewhere.
    let expected = "note: the credential hook can't be seen outside the service unit";
    assert!(
        text(&missing.stdout).contains(expected),
        "{}",
        text(&missing.stdout)
    );
    std::fs::write(&path, "").unwrap();
    assert_eq!(relay.cli(&["check"]).status.code(), Some(78));
    std::fs::write(path, "https://hook.example.com/\n").unwrap();
    let found = relay.cli(&["check"]);
    assert_eq!(found.status.code(), Some(0));
    assert!(
        !text(&found.stdout).contains("credential"),
        "{}",
        text(&found.stdout)
    );
    let run = relay.cli(&["run"]);
    assert_eq!(run.status.code(), Some(78));
    assert!(text(&run.stderr).contains("$CREDENTIALS_DIRECTORY is not set"));
}
