//! Mail through a real Postfix: what it takes, what it refuses, and what becomes of that.

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
use ftm_relay::secret::Secret;
use ftm_relay::settings::Check;
use ftm_relay::template::Templates;

use crate::support::postfix::PASSWORD;
use crate::support::postfix::Postfix;
use crate::support::postfix::USER;
use crate::support::until;
use crate::template::activation;
use crate::template::berlin;
use crate::template::style;

const CODE: &str = "EEIOTCU3LENEDJMR";

struct Always;

#[async_trait]
impl Commit for Always {
    async fn commit(&self) -> Result<(), SendError> {
        Ok(())
    }
}

/// A channel to this Postfix, which always demands STARTTLS.
fn channel(postfix: &Postfix, keys: &str) -> Smtp {
    let mut check = Check::new(postfix.dir.path(), None, true);
    let keys = format!(
        "host = \"127.0.0.1\"\nport = {}\nfrom = \"IT Service Desk <servicedesk@example.com>\"\n{keys}",
        postfix.port
    );
    let config: smtp::Config = toml::from_str(&keys).unwrap();
    let smtp = config.build(std::time::Duration::from_secs(20), &mut check);
    smtp.unwrap_or_else(|| panic!("{:?}", check.findings()))
}

fn login(password: &str) -> String {
    format!(
        "ca_file = \"ca.pem\"\nauth = \"password\"\nusername = \"{USER}\"\npassword = \"{password}\"\n"
    )
}

fn person(email: &str) -> Recipient {
    Recipient {
        email: email.to_owned(),
        name: Some("Ælice Example".to_owned()),
        phone: None,
        language: None,
        source: "table".to_owned(),
    }
}

fn note(to: &Recipient) -> Notification {
    Templates::built_in()
        .activation(&activation(), Some(to), &style(&berlin(), true))
        .unwrap()
}

async fn send(smtp: &Smtp, email: &str) -> Result<Receipt, SendError> {
    let to = person(email);
    let secrets = smtp.secrets().into_iter();
    let redactor = Redactor::new(secrets.chain([Secret::new(CODE), Secret::new(email)]));
    let attempt = Attempt {
        to: Some(&to),
        note: &note(&to),
        commit: &Always,
        redactor: &redactor,
        transcript: &Transcript::off(),
    };
    smtp.send(&attempt).await
}

/// The values of a header, unfolded.
fn header(mail: &str, name: &str) -> Vec<String> {
    let head = mail.split("\n\n").next().unwrap();
    let head = head.replace("\n ", " ").replace("\n\t", " ");
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// The parts of the mail, with the type of each.
fn parts(mail: &str) -> Vec<(String, String)> {
    let kind = header(mail, "content-type").remove(0);
    assert!(kind.starts_with("multipart/alternative"), "{kind}");
    let (_, boundary) = kind.split_once("boundary=\"").unwrap();
    let boundary = format!("--{}", boundary.split('"').next().unwrap());
    let parts = mail.split(&boundary).skip(1);
    parts
        .filter_map(|part| part.strip_prefix('\n'))
        .map(|part| {
            let (_, body) = part.split_once("\n\n").unwrap();
            let body = match header(part, "content-transfer-encoding").remove(0).as_str() {
                "7bit" => body.to_owned(),
                "quoted-printable" => unquoted(body),
                other => panic!("encoding {other}"),
            };
            (header(part, "content-type").remove(0), body)
        })
        .collect()
}

fn unquoted(body: &str) -> String {
    let joined = body.replace("=\n", "");
    let mut pieces = joined.split('=');
    let mut out = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        out.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn a_mail_reaches_its_mailbox() {
    let postfix = Postfix::start();
    let smtp = channel(&postfix, &login(PASSWORD));
    let receipt = send(&smtp, "alice@example.com").await.unwrap();
    assert!(receipt.said.starts_with("250 2.0.0"), "{receipt:?}");
    send(&smtp, "bob@example.com").await.unwrap();

    let mail = until("alice's mail", || postfix.mailbox("alice").pop());
    let note = note(&person("alice@example.com"));
    for (name, value) in [
        ("return-path", "<servicedesk@example.com>"),
        ("delivered-to", "alice@example.com"),
        ("from", "\"IT Service Desk\" <servicedesk@example.com>"),
        ("message-id", &format!("<{}@example.com>", note.id)),
        ("subject", &note.subject),
        ("auto-submitted", "auto-generated"),
        ("content-language", &note.language),
        ("mime-version", "1.0"),
    ] {
        assert_eq!(header(&mail, name), [value], "{name}");
    }
    assert_eq!(header(&mail, "date").len(), 1);
    let [received] = &header(&mail, "received")[..] else {
        panic!("{mail}")
    };
    assert!(
        received.contains("with ESMTPSA "),
        "TLS and a log-in: {received}"
    );
    let parts = parts(&mail);
    let kinds: Vec<_> = parts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["text/plain; charset=utf-8", "text/html; charset=utf-8"]
    );
    for (kind, part) in &parts {
        assert!(part.contains(CODE), "{kind}:\n{part}");
    }
    assert_eq!(parts[0].1.trim_end(), note.text.trim_end());
    assert!(!mail.split("\n\n").next().unwrap().contains(CODE));

    let bobs = until("bob's mail", || postfix.mailbox("bob").pop());
    assert_eq!(header(&bobs, "delivered-to"), ["bob@example.com"]);
    let log = postfix.log();
    assert_eq!(log.matches("sasl_method=PLAIN").count(), 2, "{log}");
    // The first connection only looked whether it greets.
    assert_eq!(log.matches(": connect from").count(), 2, "{log}");
}

#[tokio::test]
async fn a_wrong_password_breaks_the_channel() {
    let postfix = Postfix::start();
    let sent = send(
        &channel(&postfix, &login("wrong-horse")),
        "alice@example.com",
    )
    .await;
    let Err(SendError::Broken { reason }) = sent else {
        panic!("{sent:?}")
    };
    assert!(
        reason.contains("AUTH") && reason.contains("535 5.7.8"),
        "{reason}"
    );
    assert!(!postfix.log().contains("from=<servicedesk"));
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_breaks_the_channel() {
    let postfix = Postfix::start();
    for ca_file in ["ca_file = \"other/ca.pem\"", ""] {
        let sent = send(&channel(&postfix, ca_file), "alice@example.com").await;
        let Err(SendError::Broken { reason }) = sent else {
            panic!("{sent:?}")
        };
        assert!(
            reason.contains("certificate") && reason.contains("ca_file"),
            "{reason}"
        );
    }
    assert!(!postfix.log().contains("from=<servicedesk"));
}

#[tokio::test]
async fn greylisting_puts_one_delivery_off() {
    let postfix = Postfix::start();
    let smtp = channel(&postfix, &login(PASSWORD));
    let sent = send(&smtp, "slow@example.com").await;
    let Err(SendError::Transient { reason, .. }) = sent else {
        panic!("{sent:?}")
    };
    assert!(
        reason.contains("RCPT TO") && reason.contains("451 4.7.1"),
        "{reason}"
    );
    assert!(!reason.contains("slow@example.com"), "{reason}");
    send(&smtp, "alice@example.com").await.unwrap();
    send(&smtp, "slow@example.com").await.unwrap();
    for user in ["alice", "slow"] {
        until("the mail", || postfix.mailbox(user).pop());
    }
}

#[tokio::test]
async fn an_unknown_person_is_final_and_a_closed_relay_breaks_the_channel() {
    let postfix = Postfix::start();
    let anonymous = channel(&postfix, "ca_file = \"ca.pem\"");
    let sent = send(&anonymous, "nobody@example.com").await;
    let Err(SendError::Permanent { reason }) = sent else {
        panic!("{sent:?}")
    };
    assert!(reason.contains("550 5.1.1"), "{reason}");
    let sent = send(&anonymous, "alice@example.org").await;
    let Err(SendError::Broken { reason }) = sent else {
        panic!("{sent:?}")
    };
    assert!(
        reason.contains("554 5.7.1") && reason.contains("elay access denied"),
        "{reason}"
    );
    // Neither refusal harms the next mail on the same connection.
    send(&anonymous, "alice@example.com").await.unwrap();
    until("alice's mail", || postfix.mailbox("alice").pop());
}
