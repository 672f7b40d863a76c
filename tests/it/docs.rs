//! What the pages in `docs/` and the README tell an administrator to type, typed.
//!
//! Blocks marked `sh` and `toml` are run and checked here or beside their subject. Those marked `console` begin with a
//! prompt and need a machine with systemd and a package manager: of these only the commands between `systemctl stop` and
//! `start` of docs/operations.md are run, with the relay stopped and started by the test. `text` is output, or what is
//! pasted elsewhere.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::support::authority::Authority;
use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

const ROUTE: &str =
    "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(docs().join(page)).unwrap();
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

/// Runs a script as an administrator types it: the program in the path, this relay's configuration.
fn typed(relay: &Relay, script: &str) -> String {
    let bin = Path::new(BINARY).parent().unwrap().display();
    let config = relay.config();
    let config = config.display();
    sh(
        relay.dir.path(),
        &format!(
            "PATH={bin}:$PATH FTM_RELAY_CONFIG={config}; export PATH FTM_RELAY_CONFIG\n{script}"
        ),
    )
}

#[test]
fn the_guide_leads_to_a_code_in_ten_minutes() {
    let [simulate, look, check, test, cli, watch] = &blocks("guide.md", "sh")[..] else {
        panic!("the guide has other commands")
    };
    let mut relay = Relay::prepare(&format!("{BASE}{ROUTE}"));
    relay.run();
    let here = |script: &str| {
        script
            .replace("127.0.0.1:5514", &relay.udp().to_string())
            .replace("/run/ftm-relay/mail", "mail")
    };
    typed(&relay, &here(simulate));
    until("the mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let said = typed(&relay, &here(look));
    assert!(
        said.contains("alice@example.com") && said.contains("accepted"),
        "{said}"
    );
    let said = typed(&relay, &here(test));
    assert!(said.contains("mail: accepted"), "{said}");
    typed(&relay, watch);

    // Its configuration is good as it stands, credentials apart, which a shell can't see.
    let config = blocks("guide.md", "toml").remove(0);
    relay.configure(&config);
    let said = typed(&relay, check);
    assert!(
        !said.contains(": problem: ") && !said.contains(": warning: "),
        "{said}"
    );
    let said = typed(&relay, cli);
    assert!(
        said.contains("set server \"10.20.0.5\"") && said.contains("0100038412"),
        "{said}"
    );
}

#[test]
fn the_page_on_syslog_quotes_what_fortigate_cli_prints() {
    let relay = Relay::prepare("");
    let authority = Authority::new();
    authority.write(relay.dir.path());
    authority
        .sign(&["127.0.0.3"])
        .write(relay.dir.path(), "server");
    let people = BASE.split_once("[recipients]").unwrap().1;
    let listener = blocks("fortigate-syslog.md", "toml").remove(0);
    relay.configure(&format!("{listener}[recipients]{people}{ROUTE}"));
    let (commands, quoted) = (
        blocks("fortigate-syslog.md", "sh"),
        blocks("fortigate-syslog.md", "text"),
    );
    assert_eq!((commands.len(), quoted.len()), (3, 3));
    for (command, quoted) in commands.iter().zip(&quoted) {
        assert_eq!(&typed(&relay, command), quoted, "{command}");
    }

    // The table of switches.
    let page = std::fs::read_to_string(docs().join("fortigate-syslog.md")).unwrap();
    let table = page.split("| switch |").nth(1).unwrap();
    let mut lines = table.lines();
    let versions: Vec<_> = lines.next().unwrap().split('|').map(str::trim).collect();
    let versions: Vec<_> = versions.into_iter().filter(|v| !v.is_empty()).collect();
    let rows: Vec<Vec<_>> = lines
        .skip(1)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.split('|').map(str::trim).skip(1).collect())
        .collect();
    assert!(
        versions.len() == 5 && rows.len() > 8,
        "{versions:?} {rows:?}"
    );
    for (column, version) in versions.iter().enumerate() {
        let printed = typed(
            &relay,
            &format!("ftm-relay fortigate-cli --fortios {version}"),
        );
        for row in &rows {
            let switch = row[0].trim_matches('`');
            let end = format!("set {switch} disable");
            let line = printed.lines().map(str::trim).find(|l| l.ends_with(&end));
            let since = match line.map(|l| l.strip_suffix(&end).unwrap()) {
                None => String::new(),
                Some("") => "yes".to_owned(),
                Some("# on models with GTP: ") => "by model".to_owned(),
                Some(note) => note.trim_matches(['#', ':', ' ']).replace(" on", ""),
            };
            assert_eq!(row[column + 1], since, "{switch} in {version}");
        }
        let count = printed.matches(" disable\n").count();
        let named = rows
            .iter()
            .filter(|row| !row[column + 1].is_empty())
            .count();
        assert_eq!(count, named, "{version} has a switch that the table lacks");
    }
}

/// Plays a `console` block: the relay is stopped and started where systemd would be asked to, the rest is typed.
fn played(relay: &mut Relay, block: &str) {
    for line in block.lines() {
        match line.strip_prefix("# ").unwrap() {
            "systemctl stop ftm-relay" => assert_eq!(relay.stop(), 0),
            "systemctl start ftm-relay" => relay.run(),
            command => {
                let command = command
                    .replace("/var/lib/private/ftm-relay", "state")
                    .replace("/root/", "");
                assert!(
                    !command.contains('/') || !command.contains(" /"),
                    "{command}"
                );
                sh(relay.dir.path(), &command);
            }
        }
    }
}

#[test]
fn the_page_on_operations_backs_up_restores_and_begins_a_new_outbox() {
    let [backup, restore, anew] = &blocks("operations.md", "console")[..] else {
        panic!("the page has other commands")
    };
    let waiting = blocks("operations.md", "sh").remove(0);
    // Nobody listens there, so that it waits.
    let channel = crate::support::relay::smtp_channel(1);
    let mut relay = Relay::start(&format!("{BASE}{channel}[[route]]\nto = [\"mail\"]\n"));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the delivery", || {
        (relay.states() == ["pending"]).then_some(())
    });
    played(&mut relay, backup);
    let key = std::fs::read(relay.state().join("outbox.key")).unwrap();
    assert!(typed(&relay, &waiting).contains("alice"));

    let id = relay.queue()[0]["id"].as_str().unwrap().to_owned();
    assert!(relay.cli(&["queue", "cancel", &id]).status.success());
    assert!(!typed(&relay, &waiting).contains("alice"));
    played(&mut relay, restore);
    assert_eq!(relay.states(), ["pending"]);

    played(&mut relay, anew);
    assert!(relay.queue().is_empty());
    assert_ne!(
        std::fs::read(relay.state().join("outbox.key")).unwrap(),
        key
    );
}

fn people(relay: &Relay) {
    std::fs::write(
        relay.dir.path().join("people.csv"),
        "user,email\na,a@example.com\n",
    )
    .unwrap();
}

/// Of the pages whose blocks nothing else reads.
#[test]
fn the_configurations_of_the_overview_and_of_the_readme_are_good() {
    let channels = blocks("channels.md", "toml").concat();
    let ways = "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[channel.text]\ntype = \"file\"\npath = \"mail\"\n[channel.desk]\ntype = \"file\"\npath = \"mail\"\nto = \"desk@example.com\"\n";
    let readme = blocks("../README.md", "toml");
    assert!(!readme.is_empty());
    for config in [format!("{BASE}{channels}{ways}"), readme[0].clone()] {
        let relay = Relay::prepare(&config);
        people(&relay);
        let said = typed(&relay, "ftm-relay check");
        assert!(
            !said.contains(": problem: ") && !said.contains(": warning: "),
            "{said}"
        );
    }
    // What the README shows of a FortiGate is what is printed for each of its listeners.
    let [by_syslog, by_stitch] = &readme[..] else {
        panic!("the README has other configurations")
    };
    let shell = blocks("../README.md", "sh");
    let command = shell.iter().find(|b| b.contains("fortigate-cli")).unwrap();
    let quoted = blocks("../README.md", "text");
    let quoted: Vec<_> = quoted.iter().filter(|b| b.starts_with("config ")).collect();
    assert_eq!(quoted.len(), 2);
    let stitch = format!("{BASE}{ROUTE}{by_stitch}");
    for (config, quoted) in [by_syslog, &stitch].into_iter().zip(quoted) {
        let relay = Relay::prepare(config);
        people(&relay);
        let tls = relay.dir.path().join("tls");
        std::fs::create_dir(&tls).unwrap();
        Authority::new().sign(&["127.0.0.3"]).write(&tls, "server");
        let printed = typed(&relay, command);
        let last = printed.split("# listener ").last().unwrap();
        let lines = last
            .lines()
            .skip(1)
            .filter(|l| !l.trim_start().starts_with('#'));
        let lines: Vec<_> = lines.collect();
        assert_eq!(&(lines.join("\n") + "\n"), quoted);
    }
}

/// Checks a configuration that a page shows, as it stands but for what only its reader can know.
fn is_good(config: &str) {
    let zeros = "0".repeat(64);
    let config = config
        .replace("<tenant id>", "example.onmicrosoft.com")
        .replace("<client id>", "11111111-2222-3333-4444-555555555555")
        .replace("sha256:…", &format!("sha256:{zeros}"));
    let relay = Relay::prepare(&config);
    people(&relay);
    let tls = relay.dir.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let authority = Authority::new();
    std::fs::rename(authority.write(&tls), tls.join("internal-ca.pem")).unwrap();
    authority.sign(&["127.0.0.3"]).write(&tls, "ldap-client");
    let said = typed(&relay, "ftm-relay check");
    assert!(
        !said.contains(": problem: ") && !said.contains(": warning: "),
        "{config}\n{said}"
    );
}

#[test]
fn the_configurations_of_the_pages_on_mail_people_and_devices_are_good() {
    let escalate = "[channel.desk]\ntype = \"file\"\npath = \"mail\"\nto = \"desk@example.com\"\n[[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n";
    for channel in blocks("mail.md", "toml") {
        is_good(&format!("{BASE}{channel}{escalate}"));
    }
    let mail = "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n";
    let [active, others, external] = &blocks("ldap.md", "toml")[..] else {
        panic!("the page has other configurations")
    };
    let without_password = others
        .lines()
        .filter(|l| !l.starts_with("bind_dn") && !l.starts_with("password"))
        .collect::<Vec<_>>()
        .join("\n");
    let external = format!("{without_password}\n{external}");
    let device = blocks("fortigate.md", "toml").remove(0);
    for part in [active, others, &external, &device] {
        is_good(&format!("{BASE}{part}{mail}{escalate}"));
    }
}

#[test]
fn the_page_on_mail_tries_a_channel_and_the_page_on_wording_changes_a_text() {
    let templates = blocks("messages.md", "toml").remove(0);
    let relay = Relay::prepare(&format!("{BASE}{ROUTE}{templates}"));
    std::fs::create_dir(relay.dir.path().join("templates")).unwrap();
    let text = blocks("messages.md", "jinja").remove(0);
    let file = text.split(' ').nth(1).unwrap();
    std::fs::write(relay.dir.path().join(file), &text).unwrap();
    let said = typed(&relay, &blocks("mail.md", "sh").remove(0));
    assert!(
        !said.contains(": problem: ") && said.contains("mail: accepted"),
        "{said}"
    );

    // The file is really looked at.
    std::fs::write(relay.dir.path().join(file), text.replace("code", "cod")).unwrap();
    let output = relay.cli(&["check"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
}

#[test]
fn the_page_on_checks_tries_what_a_configuration_names() {
    let commands = blocks("check.md", "sh");
    let relay = Relay::prepare(&format!("{BASE}{ROUTE}"));
    assert_eq!(commands.len(), 2);
    for command in commands {
        // The channel of the text messages would need a provider.
        let said = typed(&relay, &command.replace("--channel sms", "--channel mail"));
        assert!(!said.contains("problem"), "{command}{said}");
    }
}

#[test]
fn the_page_on_rest_shows_how_a_certificate_is_pinned() {
    let authority = Authority::new();
    let listener = "[[listen]]\nname = \"tls\"\ntransport = \"tls\"\naddress = \"127.0.0.3:0\"\ncert = \"server.pem\"\nkey = { file = \"server.key\" }\n";
    let mut relay = Relay::prepare(&format!("{BASE}{listener}{ROUTE}"));
    authority
        .sign(&["127.0.0.3"])
        .write(relay.dir.path(), "server");
    relay.run();
    let command = blocks("fortigate.md", "sh").remove(0);
    let to = relay.listening("tls").to_string();
    let said = sh(relay.dir.path(), &command.replace("10.20.0.1:443", &to));
    let printed = said.trim().split_once('=').unwrap().1;
    let device = blocks("fortigate.md", "toml").remove(0);
    let device = device.replace("sha256:…", &format!("sha256:{printed}"));
    relay.configure(&format!("{BASE}{device}{ROUTE}"));
    let said = typed(&relay, "ftm-relay check");
    assert!(!said.contains(": problem: "), "{said}");
    relay.configure(&format!(
        "{BASE}{}{ROUTE}",
        device.replace(printed, &printed[1..])
    ));
    assert_eq!(relay.cli(&["check"]).status.code(), Some(78));
}

/// A block of a page that nobody looks at would go unnoticed.
#[test]
fn every_block_of_the_pages_says_what_it_is_and_is_read_by_a_test() {
    // Here, and those about channels in `config`.
    const READ: [&str; 14] = [
        "channels.md",
        "check.md",
        "fortigate-syslog.md",
        "fortigate.md",
        "guide.md",
        "ldap.md",
        "mail.md",
        "messages.md",
        "operations.md",
        "slack.md",
        "sms.md",
        "stitch.md",
        "teams.md",
        "tls.md",
    ];
    for entry in std::fs::read_dir(docs()).unwrap() {
        let page = entry.unwrap().file_name().into_string().unwrap();
        let text = std::fs::read_to_string(docs().join(&page)).unwrap();
        let fences = text
            .lines()
            .filter_map(|l| l.trim_start().strip_prefix("```"));
        for language in fences.step_by(2) {
            match language {
                "sh" | "toml" | "json" | "jinja" => assert!(
                    READ.contains(&page.as_str()),
                    "no test reads the blocks of {page}"
                ),
                // What others run: a machine with systemd, a FortiGate, Microsoft, Prometheus, Slack.
                "console" | "text" | "powershell" | "yaml" => {}
                other => panic!("{page} has a block marked `{other}`"),
            }
        }
    }
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut pages: Vec<PathBuf> = std::fs::read_dir(docs())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    pages.push(docs().join("../README.md"));
    let link = regex::Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let anchors = |path: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let headings = text.lines().filter(|l| l.starts_with('#'));
        headings
            .map(|l| {
                let words = l.trim_start_matches('#').trim().to_lowercase();
                let kept = words
                    .chars()
                    .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect()
            })
            .collect()
    };
    let mut wrong = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => page.clone(),
                _ => page.parent().unwrap().join(file),
            };
            let is_there =
                path.exists() && (anchor.is_empty() || anchors(&path).iter().any(|a| a == anchor));
            if !is_there {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
