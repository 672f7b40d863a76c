//! Planted codes and secrets are searched for in every output and every file.

use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::samples::holds;
use crate::support::until;

const CODES: u32 = 6;

/// Everybody has a phone.
fn people() -> String {
    let person = |n| {
        format!(
            "{{ user = \"user{n}\", email = \"user{n}@example.com\", phone = \"+1415555010{n}\" }}"
        )
    };
    let people: Vec<_> = (0..CODES).map(person).collect();
    format!("type = \"table\"\npeople = [{}]", people.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_code_and_no_secret_stands_in_any_output_or_file() {
    // A next hop that repeats everything it is told.
    let echo = HttpSink::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        // Only the beginning of an answer is kept: the code, the person, and what else there is room for.
        let code: String = body.chars().take(60).collect();
        let person = body.find("\"recipient\"").map_or("", |at| &body[at..]);
        let said = format!("can't take {code} {person} {body} {:?}", request.headers);
        reply(503, &said)
    })
    .await;
    let hook_secret = BASE64_STANDARD.encode([b'k'; 32]);
    let config = format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"{}?sig=TOPSECRETSIG\"\nsecret = {{ env = \"HOOK_SECRET\" }}\nheaders = {{ Authorization = {{ env = \"HOOK_TOKEN\" }} }}\n[channel.dm]\ntype = \"slack\"\ntoken = {{ env = \"SLACK_TOKEN\" }}\napi = \"{}\"\n[channel.text]\ntype = \"sms\"\naccount = \"AC1\"\ntoken = {{ env = \"TWILIO_TOKEN\" }}\nfrom = \"IT\"\napi = \"{}\"\n[[route]]\nto = [\"hook\", \"dm\", \"text\"]\n",
        echo.url("/in"),
        echo.url("/api"),
        echo.url("")
    )
    .replace("type = \"pattern\"\nemail = \"{user}@example.com\"", &people());
    let mut relay = Relay::prepare(&config);
    relay
        .env("HOOK_SECRET", &format!("whsec_{hook_secret}"))
        .env("HOOK_TOKEN", "Bearer CANARYTOKEN42")
        .env("SLACK_TOKEN", "xoxb-CANARYTOKEN43")
        .env("TWILIO_TOKEN", "CANARYTOKEN44");
    relay.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    relay.run();
    for n in 0..CODES {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    // What is rejected and what is no event must not be quoted either.
    relay.send_udp(format!("<189>msg=\"{}", code(1)).as_bytes());
    let mut twice = Event::code(2, "alice");
    twice.extra = " user=\"bob\"".to_owned();
    relay.send_udp(&twice.line());
    let two = format!("Send {} or {}", code(3), code(4));
    relay.send_udp(&Event::with_message("alice", &two).line());
    until("every first try", || {
        let retried = |channel| {
            let labels = [("outcome", "retried"), ("channel", channel)];
            relay.metric("ftm_relay_deliveries_total", &labels)
        };
        let all = ["hook", "dm", "text"].map(retried);
        (all[0] >= f64::from(CODES) && all[1] >= 1.0 && all[2] >= 1.0).then_some(())
    });

    let mut shown =
        relay.logged() + &relay.get("/metrics").1 + &relay.get("/").1 + &relay.get("/readyz").1;
    let ids: Vec<_> = relay
        .queue()
        .iter()
        .map(|r| r["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 3 * CODES as usize);
    let mut commands: Vec<Vec<&str>> = vec![
        vec!["queue", "list"],
        vec!["queue", "list", "--json"],
        vec!["queue", "stats"],
        vec!["check"],
    ];
    commands.extend(ids.iter().map(|id| vec!["queue", "show", id]));
    for command in &commands {
        let output = relay.cli(command);
        shown += &String::from_utf8_lossy(&output.stdout);
        shown += &String::from_utf8_lossy(&output.stderr);
    }
    shown += &relay
        .explain(&Event::code(1, "alice").line(), &[])
        .to_string();
    let files = Relay::files(&relay.state());
    assert!(
        files.iter().any(|(path, _)| path.ends_with("outbox.db")),
        "the outbox is where it is searched"
    );

    let mut secrets: Vec<String> = (0..CODES).map(code).collect();
    secrets.extend([
        "TOPSECRETSIG".to_owned(),
        hook_secret,
        "CANARYTOKEN42".to_owned(),
        "CANARYTOKEN43".to_owned(),
        "CANARYTOKEN44".to_owned(),
        BASE64_STANDARD.encode("AC1:CANARYTOKEN44"),
    ]);
    for n in 0..CODES {
        let phone = format!("1415555010{n}");
        assert!(!holds(shown.as_bytes(), &phone), "a phone number is shown");
    }
    for secret in &secrets {
        assert!(
            !holds(shown.as_bytes(), secret),
            "{}… is shown",
            &secret[..4]
        );
        for (path, bytes) in &files {
            assert!(
                !holds(bytes, secret),
                "{}… stands in {}",
                &secret[..4],
                path.display()
            );
        }
    }
    assert!(
        holds(echo.requests()[0].body.as_slice(), &code(0)) || echo.requests().len() > 1,
        "the search finds what is there"
    );

    for (path, _) in &files {
        let mode = std::fs::metadata(path)
            .map(|m| m.permissions().mode() & 0o077)
            .unwrap_or(0);
        assert_eq!(mode, 0, "{} can be read by others", path.display());
    }
    assert_eq!(
        std::fs::metadata(relay.state())
            .unwrap()
            .permissions()
            .mode()
            & 0o077,
        0
    );
}

#[test]
fn a_process_that_holds_codes_leaves_no_core_dump() {
    let relay = Relay::start(&format!(
        "{BASE}[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n"
    ));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let core = limits
        .lines()
        .find(|l| l.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
