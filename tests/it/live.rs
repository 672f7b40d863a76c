//! What `check --live` and `send-test` say of everything around a relay, good and bad.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ftm_relay::template::TEST_CODE;
use serde_json::Value;

use crate::support::authority::Authority;
use crate::support::authority::Identity;
use crate::support::fortigate;
use crate::support::fortigate::FortiGate;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::microsoft;
use crate::support::microsoft::Microsoft;
use crate::support::postfix;
use crate::support::postfix::Postfix;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::slack;
use crate::support::slack::Slack;
use crate::support::slapd::Slapd;
use crate::support::smtp_sink;
use crate::support::smtp_sink::Act;
use crate::support::smtp_sink::Setup;
use crate::support::teams;
use crate::support::teams::Flow;
use crate::support::twilio;
use crate::support::twilio::Twilio;

/// What no output may hold.
const SECRETS: &[&str] = &[
    "correct horse",
    "Y29ycmVjdCBob3JzZ",
    slack::TOKEN,
    "/services/T000",
    microsoft::CLIENT_SECRET,
    "token-number",
    twilio::TOKEN,
    twilio::KEY_SECRET,
    teams::SIGNATURE,
    fortigate::KEY,
];

/// What a command printed, and its exit code.
struct Said {
    code: Option<i32>,
    out: String,
}

impl Said {
    #[track_caller]
    fn holds(&self, words: &[&str]) {
        for word in words {
            assert!(self.out.contains(word), "no {word:?} in\n{}", self.out);
        }
    }

    #[track_caller]
    fn ends(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}", self.out);
    }
}

fn run(relay: &Relay, args: &[&str]) -> Said {
    let output = relay.cli(args);
    let out = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    for secret in SECRETS {
        assert!(!out.contains(secret), "{secret} is in\n{out}");
    }
    Said {
        code: output.status.code(),
        out,
    }
}

/// `check --live` with these channels, each of them in the one route.
fn check(more: &str) -> Said {
    run(&prepared(more), &["check", "--live"])
}

fn prepared(more: &str) -> Relay {
    let trial = "[channel.trial]\ntype = \"file\"\npath = \"mail\"\n";
    let more = &match more.contains("[channel.") {
        true => more.to_owned(),
        false => format!("{more}{trial}"),
    };
    let names: Vec<String> = more
        .lines()
        .filter_map(|line| line.strip_prefix("[channel.")?.strip_suffix(']'))
        .map(|name| format!("{name:?}"))
        .collect();
    Relay::prepare(&format!(
        "{BASE}{more}\n[[route]]\nto = [{}]\n",
        names.join(", ")
    ))
}

fn smtp(port: u16, keys: &str) -> String {
    format!(
        "[channel.mail]\ntype = \"smtp\"\nport = {port}\nfrom = \"IT Desk <desk@example.com>\"\n{keys}\n"
    )
}

const HERE: &str = "host = \"127.0.0.1\"\ntls = \"none\"\n";

fn login(password: &str) -> String {
    format!(
        "auth = \"password\"\nusername = \"{}\"\npassword = \"{password}\"\n",
        smtp_sink::USERNAME
    )
}

/// A port at which nobody listens.
fn refused() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

// === check --live ===

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_works_is_said_to_work_and_nobody_gets_anything() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    let relay = Setup::new()
        .starttls(&authority.sign(&["127.0.0.1"]))
        .auth("PLAIN LOGIN")
        .extensions(&["SMTPUTF8", "8BITMIME"])
        .start()
        .await;
    let (slack, flow, twilio, microsoft) = (
        Slack::start().await,
        Flow::start().await,
        Twilio::start().await,
        Microsoft::start().await,
    );
    microsoft.give_roles(&["User.Read.All", "Mail.Send"]);
    let hook = HttpSink::start_tls(authority.sign(&["127.0.0.1"]).acceptor(), |_| {
        reply(204, "")
    })
    .await;
    let device = FortiGate::start().await;
    device.state().add_token(1, 4_000_000_000);
    let eml = dir.path().join("mail");
    std::fs::create_dir(&eml).unwrap();

    let channels = [
        smtp(
            relay.address.port(),
            &format!(
                "host = \"127.0.0.1\"\nca_file = {ca:?}\n{}",
                login("correct horse")
            ),
        ),
        format!("[channel.dm]\ntype = \"slack\"\n{}", slack.bot()),
        format!("[channel.desk]\ntype = \"slack\"\n{}", slack.place()),
        format!("[channel.team]\ntype = \"teams\"\n{}", flow.keys()),
        format!("[channel.sms]\ntype = \"sms\"\n{}", twilio.keys()),
        format!(
            "[channel.graph]\ntype = \"graph\"\nuser = \"{}\"\napi = \"{}\"\n{}",
            microsoft::MAILBOX,
            microsoft.sink.url("/v1.0"),
            microsoft.keys()
        ),
        format!(
            "[channel.hook]\ntype = \"webhook\"\nurl = \"https://127.0.0.1:{}/in\"\nca_file = {ca:?}\n",
            hook.port
        ),
        format!("[channel.trial]\ntype = \"file\"\npath = {eml:?}\n"),
        device.device(),
    ];
    let prepared = prepared(&channels.concat());
    let said = run(&prepared, &["check", "--live"]);
    said.ends(0);
    said.holds(&[
        "outbox\n  ok: ",
        "MiB left on its disk",
        "holds no outbox yet; the service makes it",
        "http\n  ok: 127.0.0.1:0: is free",
        "listener udp (udp)\n  ok: 127.0.0.1:0: is free",
        "listener tcp (tcp)\n  ok: 127.0.0.2:0: is free",
        "device FGT60FTK20000001 (vdom root)\n",
        "activation codes can be read",
        "channel mail (smtp)\n",
        "can be reached by TLS 1.3, with a trusted certificate that is good for another ",
        "; it takes the log-in",
        "offers AUTH, SMTPUTF8, 8BITMIME, ENHANCEDSTATUSCODES; no DSN, so that a bounce may hold the whole mail",
        "takes mail from desk@example.com",
        "      > AUTH PLAIN …\n      < 235 2.7.0 welcome\n",
        "      > MAIL FROM:<desk@example.com>\n      < 250 2.1.0 ok\n      > RSET\n      < 250 2.0.0 ok\n",
        "takes the token: it is that of ftm-relay in the workspace Example",
        "scopes: the token has chat:write and users:read.email",
        "/api/auth.test (0 bytes)\n      < 127.0.0.1:",
        "note: 127.0.0.1:",
        "takes messages and nothing else",
        "takes the log-in, and the account is active",
        "gives a token, with the role Mail.Send",
        "/mail: can be written to by this user",
        ": good\n",
    ]);
    assert!(!said.out.contains("problem"), "{}", said.out);

    let json = run(&prepared, &["check", "--live", "--json"]);
    json.ends(0);
    let all: Vec<Value> = serde_json::from_str(&json.out).unwrap();
    let mail = |found: &&Value| found["live"]["thing"] == "channel mail (smtp)";
    let first = all.iter().find(mail).unwrap();
    assert_eq!(first["weight"], "good");
    assert!(first["file"].is_string() && first["line"].is_null() && first["text"].is_string());
    let exchange = first["live"]["exchange"].as_array().unwrap();
    assert!(exchange.iter().any(|line| line == "> AUTH PLAIN …"));
    // What was found offline comes first, as it is without --live.
    assert!(all[0]["live"].is_null() && all[0]["weight"] == "warning");

    let seen = relay.seen();
    assert!(seen.taken.is_empty() && !seen.lines.iter().any(|(_, line)| line.starts_with("RCPT")));
    assert!(slack.posted().is_empty() && flow.cards().is_empty() && hook.requests().is_empty());
    assert!(twilio.messages().is_empty() && microsoft.mails().is_empty());
    assert!(!slack.calls().contains(&"hook".to_owned()));
    assert_eq!(std::fs::read_dir(&eml).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_relay_takes_the_log_in_and_no_mail() {
    let postfix = Postfix::start().await;
    let keys = |password: &str| {
        format!(
            "host = \"127.0.0.1\"\nca_file = {:?}\nauth = \"password\"\nusername = \"{}\"\npassword = \"{password}\"\n",
            postfix.ca,
            postfix::USERNAME
        )
    };
    let said = check(&smtp(postfix.submission, &keys(postfix::PASSWORD)));
    said.ends(0);
    said.holds(&[
        "it takes the log-in",
        "SMTPUTF8",
        "takes mail from desk@example.com",
    ]);

    let said = check(&smtp(postfix.submission, &keys("wrong horse")));
    said.ends(1);
    said.holds(&[
        "problem: 127.0.0.1:",
        "answered AUTH with 535",
        "see username and password",
        "what comes before the log-in works",
        "good, but 1 of ",
    ]);
    assert!(!said.out.contains("wrong horse"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_cannot_be_used_is_told_by_what_is_missing() {
    let unresolved = smtp(587, "host = \"relay.invalid\"\n");
    let nobody = smtp(refused(), HERE);
    for (config, words) in [
        (
            unresolved,
            &[
                "relay.invalid:587 can't be reached",
                "name can't be resolved here",
            ][..],
        ),
        (
            nobody,
            &["can't be reached", "nobody listens at that port there"],
        ),
    ] {
        let said = check(&config);
        said.ends(1);
        said.holds(words);
    }

    let with_login = format!("{HERE}{}", login("wrong horse"));
    let refuses = |verb: &'static str, text: &'static str| {
        Setup::new().script(move |step| match step.verb == verb {
            true => Act::Say(format!("{text}\r\n")),
            false => Act::Usual,
        })
    };
    for (setup, keys, words) in [
        (
            Setup::new().auth("PLAIN"),
            with_login.as_str(),
            &["535 5.7.8", "see username and password"][..],
        ),
        (
            Setup::new(),
            &with_login,
            &["offers no AUTH here; leave out auth"],
        ),
        (
            Setup::new(),
            "host = \"127.0.0.1\"\n",
            &["speaks SMTP\n", "does not offer STARTTLS"],
        ),
        (
            refuses("MAIL", "553 5.7.1 not your address"),
            HERE,
            &[
                "553 5.7.1",
                "it doesn't take desk@example.com as the sender",
            ],
        ),
        (
            refuses("MAIL", "530 5.7.0 log in first"),
            HERE,
            &["530 5.7.0", "it wants a log-in"],
        ),
        (
            refuses("CONNECT", "554 5.7.1 not you"),
            HERE,
            &["greeted with 554 5.7.1"],
        ),
    ] {
        let sink = setup.start().await;
        let said = check(&smtp(sink.address.port(), keys));
        said.ends(1);
        said.holds(words);
        assert!(!said.out.contains("wrong horse"), "{}", said.out);
        assert!(sink.seen().taken.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_log_in_is_not_tried_at_the_other_relays() {
    let (one, two) = (
        Setup::new().auth("PLAIN").start().await,
        Setup::new().auth("PLAIN").start().await,
    );
    let hosts = format!(
        "hosts = [\"{}\", \"{}\"]\ntls = \"none\"\n{}",
        one.address,
        two.address,
        login("wrong horse")
    );
    let said = check(&smtp(587, &hosts));
    said.ends(1);
    said.holds(&["was not tried: another refused log-in might lock the account"]);
    assert_eq!(two.seen().connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_named_with_its_flaw() {
    let (authority, stranger) = (Authority::new(), Authority::named("Stranger"));
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    for (identity, flaw) in [
        (
            stranger.sign(&["127.0.0.1"]),
            "put that authority's certificate into ca_file",
        ),
        (authority.sign_expired(&["127.0.0.1"]), "has expired"),
        (
            authority.sign(&["mx.example.com"]),
            "made out to mx.example.com, not to 127.0.0.1",
        ),
    ] {
        let said = mail_and_hook(&identity, &ca).await;
        said.ends(1);
        assert_eq!(said.out.matches(flaw).count() / 2, 2, "{}", said.out);
        said.holds(&["can be reached, and speaks SMTP", "2 of "]);
    }
    let said = mail_and_hook(&authority.sign(&["127.0.0.1"]), &ca).await;
    said.ends(0);
}

/// A relay and a webhook, both with this certificate.
async fn mail_and_hook(identity: &Identity, ca: &Path) -> Said {
    let relay = Setup::new().starttls(identity).start().await;
    let hook = HttpSink::start_tls(identity.acceptor(), |_| reply(204, "")).await;
    let hook = format!(
        "[channel.hook]\ntype = \"webhook\"\nurl = \"https://127.0.0.1:{}/in\"\nca_file = {ca:?}\n",
        hook.port
    );
    let keys = format!("host = \"127.0.0.1\"\nca_file = {ca:?}\n");
    check(&(smtp(relay.address.port(), &keys) + &hook))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_behind_a_secret_url_is_reached_and_no_more() {
    let nobody = refused();
    for kind in ["webhook", "slack", "teams"] {
        let channel = |url: &str| {
            format!(
                "[channel.x]\ntype = \"{kind}\"\nurl = \"{url}?sig={}\"\n",
                teams::SIGNATURE
            )
        };
        let said = check(&channel("https://hooks.invalid/a"));
        said.ends(1);
        said.holds(&["problem: hooks.invalid", "name can't be resolved here"]);
        let said = check(&channel(&format!("http://127.0.0.1:{nobody}/a")));
        said.ends(1);
        said.holds(&["nobody listens at that port there"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_is_told_which_scope_its_token_lacks() {
    let slack = Slack::start().await;
    let dm = format!("[channel.dm]\ntype = \"slack\"\n{}", slack.bot());
    slack.give_scopes(Some("users:read, chat:write"));
    let said = check(&dm);
    said.ends(1);
    said.holds(&[
        "takes the token",
        "problem: scopes: the token lacks users:read.email; give the app the scope users:read.email",
    ]);
    slack.give_scopes(None);
    let said = check(&dm);
    said.ends(0);
    said.holds(&["note: scopes: "]);

    slack.answer_next("auth.test", slack::no("account_inactive"));
    let said = check(&dm);
    said.ends(1);
    said.holds(&[
        "account_inactive",
        "copy the \"Bot User OAuth Token\" of the app again",
    ]);

    let said = check(&dm.replace(slack::TOKEN, "xoxb-other"));
    said.ends(1);
    said.holds(&["error invalid_auth"]);
    assert!(!said.out.contains("xoxb-other"), "{}", said.out);
    assert!(slack.posted().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_told() {
    let slack = Slack::start().await;
    slack.answer_next(
        "auth.test",
        Answer::Reply {
            status: 200,
            headers: vec![("Date", "Mon, 23 Nov 2020 10:22:31 GMT".to_owned())],
            body: "{\"ok\":true}".to_owned(),
        },
    );
    let said = check(&format!("[channel.dm]\ntype = \"slack\"\n{}", slack.bot()));
    said.ends(1);
    said.holds(&[
        "problem: clock: this machine is ",
        " min ahead of 127.0.0.1:",
        "set up NTP",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_for_text_messages_is_asked_how_it_stands() {
    let twilio = Twilio::start().await;
    let sms = format!("[channel.sms]\ntype = \"sms\"\n{}", twilio.keys());
    let by_key = format!(
        "[channel.sms]\ntype = \"sms\"\n{}key = \"{}\"\nsecret = \"{}\"\nfrom = \"{}\"\n",
        twilio.account(),
        twilio::KEY,
        twilio::KEY_SECRET,
        twilio::FROM
    );
    let said = check(&by_key);
    said.ends(0);
    said.holds(&["takes the log-in by API key"]);

    for (config, words) in [
        (
            sms.replace(twilio::TOKEN, "another"),
            "check `account` and `token`",
        ),
        (
            by_key.replace(twilio::KEY_SECRET, "another"),
            "or `key` and `secret`",
        ),
    ] {
        let said = check(&config);
        said.ends(1);
        said.holds(&["401 Unauthorized: status 401, code 20003", words]);
    }
    twilio.is_now("suspended", "Full");
    let said = check(&sms);
    said.ends(1);
    said.holds(&["status suspended", "the account is not active"]);
    twilio.is_now("active", "Trial");
    let said = check(&sms);
    said.ends(0);
    said.holds(&["note: ", "on trial"]);
    assert!(twilio.messages().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_which_role_its_token_lacks() {
    let microsoft = Microsoft::start().await;
    let graph = format!(
        "[channel.graph]\ntype = \"graph\"\nuser = \"{}\"\napi = \"{}\"\n{}",
        microsoft::MAILBOX,
        microsoft.sink.url("/v1.0"),
        microsoft.keys()
    );
    let mail = Setup::new().xoauth2(microsoft.knows()).start().await;
    let smtp = smtp(
        mail.address.port(),
        &format!(
            "{HERE}auth = \"xoauth2\"\nusername = \"{}\"\n{}",
            smtp_sink::USERNAME,
            microsoft.keys()
        ),
    );
    for (roles, has) in [
        (&["User.Read.All"][..], "it has User.Read.All"),
        (&[], "it has no role at all"),
    ] {
        microsoft.give_roles(roles);
        let said = check(&graph);
        said.ends(0);
        said.holds(&[
            "gives a token, but not with the role Mail.Send",
            has,
            "RBAC for Applications",
            "(a token is asked for at 127.0.0.1:",
        ]);
    }
    microsoft.give_roles(&["SMTP.SendAsApp"]);
    let said = check(&smtp);
    said.ends(0);
    said.holds(&[
        "gives a token, with the role SMTP.SendAsApp",
        "it takes the log-in",
        "> AUTH XOAUTH2 …",
    ]);

    let said = check(&smtp.replace("scope", "").replace(
        "auth = \"xoauth2\"",
        "auth = \"xoauth2\"\nscope = \"https://graph.example/.default\"",
    ));
    said.ends(1);
    said.holds(&["535 5.7.3", "SMTP.SendAsApp"]);

    for config in [&graph, &smtp] {
        let said = check(&config.replace(microsoft::CLIENT_SECRET, "other"));
        said.ends(1);
        said.holds(&["gives no token", "copy the secret's value, not its id"]);
    }
    assert!(microsoft.mails().is_empty() && mail.seen().taken.is_empty());
}

#[test]
fn a_directory_that_cannot_be_written_to_is_told() {
    // Nobody makes files there, not even root.
    let said = check("[channel.trial]\ntype = \"file\"\npath = \"/proc\"\n");
    said.ends(1);
    said.holds(&[
        "problem: /proc: can't be written to by this user",
        "belong to the user that runs ftm-relay",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_service_and_a_device_say_what_they_refuse() {
    let slapd = Slapd::start("");
    let directory = |password: &str| {
        format!(
            "[[directory]]\ntype = \"ldap\"\nurl = \"ldaps://127.0.0.1:{}\"\nbase = \"dc=example,dc=com\"\nbind_dn = \"{}\"\npassword = \"{password}\"\nca_file = {:?}\n",
            slapd.tls,
            crate::support::slapd::BIND_DN,
            slapd.path("ca.pem")
        )
    };
    let said = check(&directory(crate::support::slapd::PASSWORD));
    said.ends(0);
    said.holds(&[
        "directory\n  ok: ldaps://127.0.0.1:",
        "bound as cn=ftm-relay",
    ]);
    let said = check(&directory("wrong horse"));
    said.ends(1);
    said.holds(&[
        "directory\n  problem: ldaps://",
        "it refuses `bind_dn` or `password`",
    ]);

    let device = FortiGate::start().await;
    device.state().profile = BTreeSet::from(["sysgrp"]);
    let said = check(&device.device());
    said.ends(1);
    said.holds(&[
        "device FGT60FTK20000001 (vdom root)\n  problem: ",
        "set authgrp read",
    ]);
}

#[test]
fn a_port_that_is_taken_is_told_and_by_whom() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |port: u16| {
        BASE.replace("127.0.0.2:0", &format!("127.0.0.2:{port}"))
            .replace(
                "listen = \"127.0.0.1:0\"",
                &format!("listen = \"127.0.0.1:{port}\""),
            )
    };
    let port = taken.local_addr().unwrap().port();
    let route = "[channel.trial]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"trial\"]\n";
    let said = run(&Relay::prepare(&(at(port) + route)), &["check", "--live"]);
    said.ends(1);
    said.holds(&[
        "http\n  problem: 127.0.0.1:",
        "is in use, but no relay with this state_dir is running; `ss -lntup` says who has it",
        "listener tcp (tcp)\n  ok: 127.0.0.2:",
    ]);
    drop(taken);

    let relay = Relay::start(&(at(port) + route));
    let said = run(&relay, &["check", "--live"]);
    said.ends(0);
    said.holds(&[
        "is open in a running relay",
        "is in use, and a relay with this state_dir is running",
    ]);
}

#[test]
fn a_wrong_configuration_is_told_first_and_nothing_is_tried() {
    let said = check("[channel.mail]\ntype = \"smtp\"\nfrom = \"nobody\"\n");
    said.ends(78);
    said.holds(&["nothing was tried live", "\"nobody\""]);
    let said = check("[channel.hook]\ntype = \"webhook\"\nurl = { credential = \"hook\" }\n");
    said.ends(0);
    said.holds(&["channel hook\n  note: hook: was not tried: its secret can't be read here"]);
}

// === send-test ===

#[tokio::test(flavor = "multi_thread")]
async fn a_test_message_is_told_in_plain_words_and_marked() {
    let (sink, twilio) = (Setup::new().start().await, Twilio::start().await);
    let relay = prepared(
        &(smtp(sink.address.port(), HERE)
            + &smtp(refused(), HERE).replace("channel.mail", "channel.away")
            + &format!("[channel.sms]\ntype = \"sms\"\n{}", twilio.keys())),
    );
    let send = |channel: &str, more: &[&str]| {
        let args = [
            "send-test",
            "--to",
            "alice@example.com",
            "--channel",
            channel,
        ];
        run(&relay, &[&args, more].concat())
    };
    let said = send("mail", &["--language", "de"]);
    said.ends(0);
    said.holds(&[
        "> MAIL FROM:<desk@example.com>",
        "mail: accepted by the next hop: 250 2.0.0 queued",
        "Look whether it has arrived",
        &format!("marked as a test; the code in it, {TEST_CODE}, can't be redeemed"),
    ]);
    let taken = sink.until(|seen| seen.taken.len() == 1).await.taken;
    assert!(taken[0].content.contains("Content-Language: de"));

    let said = send("away", &[]);
    said.ends(1);
    said.holds(&[
        "not accepted for now",
        "`ftm-relay check --live` says how far",
    ]);

    let said = send("sms", &[]);
    said.ends(2);
    said.holds(&["needs a number: add --phone"]);
    let said = send("sms", &["--phone", "+49 170 1112223"]);
    said.ends(0);
    assert_eq!(twilio.messages()[0]["To"], "+491701112223");
    assert!(!said.out.contains("1701112223"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn graph_shows_the_image_of_a_code_inline_where_it_is_wanted() {
    let microsoft = Microsoft::start().await;
    for (key, wanted) in [("", false), ("qr = true\n", true)] {
        let relay = prepared(&format!(
            "[channel.graph]\ntype = \"graph\"\nuser = \"{}\"\napi = \"{}\"\n{}{key}",
            microsoft::MAILBOX,
            microsoft.sink.url("/v1.0"),
            microsoft.keys()
        ));
        run(
            &relay,
            &[
                "send-test",
                "--to",
                "alice@example.com",
                "--channel",
                "graph",
            ],
        )
        .ends(0);
        let mails = microsoft.mails();
        let message = &mails.last().unwrap()["message"];
        let html = message["body"]["content"].as_str().unwrap();
        assert_eq!(html.contains("src=\"cid:activation-code\""), wanted);
        let attachment = &message["attachments"][0];
        assert_eq!(attachment.is_null(), !wanted);
        if wanted {
            assert_eq!(attachment["@odata.type"], "#microsoft.graph.fileAttachment");
            assert_eq!(attachment["contentId"], "activation-code");
            assert_eq!(attachment["isInline"], true);
            assert_eq!(attachment["contentType"], "image/png");
            let png = STANDARD
                .decode(attachment["contentBytes"].as_str().unwrap())
                .unwrap();
            assert_eq!(crate::qr::scan(&png), TEST_CODE);
        }
    }
}
