//! The SMTP channel against a real Postfix.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use ftm_relay::channel::Attempt;
use ftm_relay::channel::Carrier;
use ftm_relay::channel::Commit;
use ftm_relay::channel::Receipt;
use ftm_relay::channel::SendError;
use ftm_relay::channel::Transcript;
use ftm_relay::channel::smtp;
use ftm_relay::channel::smtp::Smtp;
use ftm_relay::message::Notification;
use ftm_relay::message::Recipient;
use ftm_relay::secret::Redactor;
use ftm_relay::settings::Check;

use crate::support::authority::Authority;
use crate::support::postfix::PASSWORD;
use crate::support::postfix::Postfix;
use crate::support::postfix::USERNAME;

const CODE: &str = "EEIOTCU3LENEDJMR";

fn channel(port: u16, tls: &str, ca: &Path, password: Option<&str>) -> Smtp {
    channel_with(port, tls, ca, password, "")
}

fn channel_with(port: u16, tls: &str, ca: &Path, password: Option<&str>, keys: &str) -> Smtp {
    let login = password.map_or_else(String::new, |password| {
        format!("auth = \"password\"\nusername = \"{USERNAME}\"\npassword = \"{password}\"")
    });
    let keys = format!(
        "host = \"127.0.0.1\"\nport = {port}\ntls = \"{tls}\"\nca_file = \"{}\"\nfrom = \"Jürgen's Desk <desk@example.net>\"\n{login}\n{keys}",
        ca.display()
    );
    let mut check = Check::new("/", None, true);
    let config: smtp::Config = toml::from_str(&keys).unwrap();
    let smtp = config.build(Duration::from_secs(20), &mut check);
    smtp.unwrap_or_else(|| panic!("{:?}", check.findings()))
}

struct Always;

#[async_trait]
impl Commit for Always {
    async fn commit(&self) -> Result<(), SendError> {
        Ok(())
    }
}

async fn send(smtp: &Smtp, email: &str) -> Result<Receipt, SendError> {
    let to = Recipient {
        email: email.to_owned(),
        name: Some("Zoë \"Z\" Example".to_owned()),
        phone: None,
        language: None,
        source: "table".to_owned(),
    };
    let note = Notification {
        id: "5f2c".to_owned(),
        subject: "Ihr Token für BORDER-FGT".to_owned(),
        text: format!("Grüße!\n\n.\n{CODE}\n"),
        html: format!("<p>Grüße!</p>\n<p>{CODE}</p>\n"),
        chat: Vec::new(),
        short: String::new(),
        event: serde_json::Value::Null,
        language: "de".to_owned(),
        expires_at: "2099-01-01T00:00:00Z".parse().unwrap(),
    };
    smtp.send(&Attempt {
        to: Some(&to),
        note: &note,
        commit: &Always,
        redactor: &Redactor::new(smtp.secrets()),
        transcript: &Transcript::off(),
    })
    .await
}

/// The headers of a part, unfolded, and its body.
fn part(text: &str) -> (HashMap<String, String>, &str) {
    let (head, body) = text.split_once("\n\n").unwrap();
    let head = head.replace("\n ", " ").replace("\n\t", " ");
    let headers = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    (headers.collect(), body)
}

/// A body as its encoding hides it.
fn decoded(headers: &HashMap<String, String>, body: &str) -> String {
    match headers["content-transfer-encoding"].as_str() {
        "7bit" => body.to_owned(),
        "quoted-printable" => {
            let joined = body.replace("=\n", "");
            let mut bytes = Vec::new();
            let mut rest = joined.as_bytes();
            while let Some((&byte, after)) = rest.split_first() {
                rest = after;
                if byte == b'=' {
                    let hex = std::str::from_utf8(&after[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &after[2..];
                } else {
                    bytes.push(byte);
                }
            }
            String::from_utf8(bytes).unwrap()
        }
        "base64" => {
            use base64::Engine;
            let text: String = body.split_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            String::from_utf8(bytes.unwrap()).unwrap()
        }
        other => panic!("{other} is no encoding for mail"),
    }
}

fn reason(outcome: &Result<Receipt, SendError>) -> String {
    outcome.as_ref().unwrap_err().to_string()
}

#[tokio::test]
async fn a_mail_arrives_by_both_kinds_of_tls() {
    let postfix = Postfix::start().await;
    for (port, tls) in [
        (postfix.submission, "starttls"),
        (postfix.submissions, "implicit"),
    ] {
        let smtp = channel(port, tls, &postfix.ca, Some(PASSWORD));
        let receipt = send(&smtp, "alice@example.com").await.unwrap();
        assert!(
            receipt.said.starts_with("250 2.0.0 Ok: queued as"),
            "{receipt:?}"
        );
        // The second goes through the same connection.
        send(&smtp, "alice@example.com").await.unwrap();
    }
    let mails = postfix.mails("alice", 4).await;
    for mail in &mails {
        let (headers, body) = part(mail);
        assert_eq!(headers["return-path"], "<desk@example.net>");
        assert_eq!(headers["x-original-to"], "alice@example.com");
        assert_eq!(headers["message-id"], "<5f2c@example.net>");
        assert_eq!(headers["auto-submitted"], "auto-generated");
        assert_eq!(headers["content-language"], "de");
        assert_eq!(headers["mime-version"], "1.0");
        assert!(headers["from"].ends_with(" <desk@example.net>"));
        assert!(headers["to"].ends_with(" <alice@example.com>"));
        assert!(!headers["subject"].contains(CODE));
        let kind = &headers["content-type"];
        let boundary = kind
            .split("boundary=\"")
            .nth(1)
            .unwrap()
            .trim_end_matches('"');
        let parts: Vec<_> = body.split(&format!("--{boundary}")).collect();
        assert_eq!(parts.len(), 4, "{mail}");
        assert_eq!(parts[3].trim(), "--");
        let (text, html) = (part(parts[1].trim_start()), part(parts[2].trim_start()));
        assert!(text.0["content-type"].starts_with("text/plain; charset=utf-8"));
        assert!(html.0["content-type"].starts_with("text/html; charset=utf-8"));
        assert_eq!(
            decoded(&text.0, text.1).replace('\r', "").trim_end(),
            format!("Grüße!\n\n.\n{CODE}")
        );
        assert!(decoded(&html.0, html.1).contains(&format!("<p>{CODE}</p>")));
    }
    let log = postfix.log();
    assert!(log.contains("sasl_method=PLAIN"), "{log}");
    assert_eq!(
        log.matches(": connect from").count() - 2,
        2,
        "one connection each, beside the tests' own:\n{log}"
    );
}

#[tokio::test]
async fn a_wrong_password_suspends() {
    let postfix = Postfix::start().await;
    let smtp = channel(postfix.submission, "starttls", &postfix.ca, Some("wrong"));
    let outcome = send(&smtp, "alice@example.com").await;
    assert!(
        matches!(outcome, Err(SendError::Broken { .. })),
        "{outcome:?}\n{}",
        postfix.log()
    );
    assert!(
        reason(&outcome).contains("535 5.7.8"),
        "{outcome:?} {}",
        postfix.log()
    );
}

#[tokio::test]
async fn a_certificate_of_another_authority_suspends() {
    let postfix = Postfix::start().await;
    let dir = tempfile::tempdir().unwrap();
    let stranger = Authority::named("Stranger").write(dir.path());
    for (port, tls) in [
        (postfix.submission, "starttls"),
        (postfix.submissions, "implicit"),
    ] {
        let outcome = send(&channel(port, tls, &stranger, None), "alice@example.com").await;
        assert!(
            matches!(outcome, Err(SendError::Broken { .. })),
            "{outcome:?}"
        );
        assert!(reason(&outcome).contains("not trusted"), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_greylisted_mail_is_taken_at_the_second_try() {
    let postfix = Postfix::start().await;
    let smtp = channel(postfix.submission, "starttls", &postfix.ca, None);
    let outcome = send(&smtp, "grey@example.com").await;
    assert!(
        matches!(outcome, Err(SendError::Transient { .. })),
        "{outcome:?}"
    );
    assert!(reason(&outcome).contains("451 4.7.1"), "{outcome:?}");
    send(&smtp, "grey@example.com").await.unwrap();
    assert_eq!(postfix.mails("grey", 1).await.len(), 1);
}

#[tokio::test]
async fn an_unknown_person_is_final_and_a_refused_relay_suspends() {
    let postfix = Postfix::start().await;
    let smtp = channel(postfix.submission, "starttls", &postfix.ca, None);
    let outcome = send(&smtp, "nobody@example.com").await;
    assert!(
        matches!(outcome, Err(SendError::Permanent { .. })),
        "{outcome:?}"
    );
    assert!(reason(&outcome).contains("550 5.1.1"), "{outcome:?}");
    let outcome = send(&smtp, "alice@example.org").await;
    assert!(
        matches!(outcome, Err(SendError::Broken { .. })),
        "{outcome:?}"
    );
    assert!(reason(&outcome).contains("554 5.7.1"), "{outcome:?}");
    send(&smtp, "alice@example.com").await.unwrap();
    postfix.mails("alice", 1).await;
}

#[tokio::test]
async fn a_bounce_brings_back_the_head_and_not_the_code() {
    let postfix = Postfix::start().await;
    let bounces = "return_path = \"alice@example.com\"";
    let smtp = channel_with(postfix.submission, "starttls", &postfix.ca, None, bounces);
    send(&smtp, "bounce@example.com").await.unwrap();
    let bounce = postfix.mails("alice", 1).await.remove(0);
    for part in [
        "Original-Envelope-Id: 5f2c",
        "Original-Recipient: rfc822;bounce@example.com",
        "Action: failed",
        "Content-Type: text/rfc822-headers",
        "Message-ID: <5f2c@example.net>",
    ] {
        assert!(bounce.contains(part), "{part} is not in\n{bounce}");
    }
    assert!(!bounce.contains(CODE), "{bounce}");

    // Without the request Postfix sends the whole mail back.
    let keys = format!("{bounces}\ndsn = false");
    let smtp = channel_with(postfix.submission, "starttls", &postfix.ca, None, &keys);
    send(&smtp, "bounce@example.com").await.unwrap();
    let mails = postfix.mails("alice", 2).await;
    assert_eq!(mails.iter().filter(|mail| mail.contains(CODE)).count(), 1);
}

#[tokio::test]
async fn a_mailbox_with_letters_outside_ascii_is_reached() {
    let postfix = Postfix::start().await;
    let smtp = channel(postfix.submission, "starttls", &postfix.ca, None);
    send(&smtp, "jürgen@example.com").await.unwrap();
    let mail = postfix.mails("juergen", 1).await.remove(0);
    assert!(mail.contains("<jürgen@example.com>"), "{mail}");
}

#[tokio::test]
async fn a_relay_that_is_gone_is_replaced_by_one_that_runs() {
    let postfix = Postfix::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let keys = format!(
        "hosts = [\"{gone}\", \"127.0.0.1:{}\"]\nca_file = \"{}\"\nfrom = \"desk@example.net\"",
        postfix.submission,
        postfix.ca.display()
    );
    let mut check = Check::new("/", None, true);
    let config: smtp::Config = toml::from_str(&keys).unwrap();
    let smtp = config.build(Duration::from_secs(20), &mut check).unwrap();
    send(&smtp, "alice@example.com").await.unwrap();
    postfix.mails("alice", 1).await;
}
