//! smtp

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ftm_relay::channel::Attempt;
use ftm_relay::channel::Channel;
use ftm_relay::channel::Commit;
use ftm_relay::channel::Common;
use ftm_relay::channel::Config;
use ftm_relay::channel::Receipt;
use ftm_relay::channel::SendError;
use ftm_relay::channel::Transcript;
use ftm_relay::message::Notification;
use ftm_relay::message::Recipient;
use ftm_relay::secret::Secret;
use ftm_relay::settings::Check;
use ftm_relay::template::Templates;

use crate::support::samples::holds;
use crate::support::smtp_sink::Answer;
use crate::support::smtp_sink::Authority;
use crate::support::smtp_sink::Kind;
use crate::support::smtp_sink::SmtpSink;
use crate::support::smtp_sink::Stage;
use crate::support::smtp_sink::say;
use crate::template::activation;
use crate::template::alice;
use crate::template::berlin;
use crate::template::style;

pub const CODE: &str = "EEIOTCU3LENEDJMR";
const PASSWORD: &str = "correct-horse-battery";
const FROM: &str = "from = \"IT Service Desk <servicedesk@example.com>\"\n";

/// Builds a channel from its keys; every problem and warning as text.
pub fn build(dir: &Path, keys: &str, timeout: &str) -> (Option<Channel>, Vec<String>) {
    let mut check = Check::new(dir, None, true);
    let keys = toml::Deserializer::parse(keys).unwrap();
    let config = Config::read("smtp", keys).unwrap().unwrap();
    let common: Common = toml::from_str(&format!("timeout = \"{timeout}\"")).unwrap();
    let built = config.build("mail", common, &dir.join("state"), &mut check);
    let findings = check.findings();
    let said = findings
        .iter()
        .map(|f| format!("{:?}: {}", f.weight, f.text));
    (built, said.collect())
}

/// A channel to this port without protection; more keys may follow.
fn plain(port: u16, more: &str) -> Channel {
    channel(Path::new("/"), port, &format!("tls = \"none\"\n{more}"))
}

fn channel(dir: &Path, port: u16, more: &str) -> Channel {
    slow_channel(dir, port, more, "5s")
}

pub fn slow_channel(dir: &Path, port: u16, more: &str, timeout: &str) -> Channel {
    let keys = format!("host = \"127.0.0.1\"\nport = {port}\n{FROM}{more}");
    let (built, said) = build(dir, &keys, timeout);
    built.unwrap_or_else(|| panic!("{said:?}"))
}

fn login() -> String {
    format!("auth = \"password\"\nusername = \"relay\"\npassword = \"{PASSWORD}\"\n")
}

/// A channel that gives up soon.
fn hasty(port: u16, more: &str) -> Channel {
    slow_channel(
        Path::new("/"),
        port,
        &format!("tls = \"none\"\n{more}"),
        "300ms",
    )
}

#[derive(Default)]
struct Commits(AtomicUsize, Option<SendError>);

#[async_trait]
impl Commit for Commits {
    async fn commit(&self) -> Result<(), SendError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.clone().map_or(Ok(()), Err)
    }
}

pub fn note() -> Notification {
    let zone = berlin();
    Templates::built_in()
        .activation(&activation(), Some(&alice(None)), &style(&zone, true))
        .unwrap()
}

pub fn person(email: &str) -> Recipient {
    Recipient {
        email: email.to_owned(),
        ..alice(None)
    }
}

/// One try for alice.
pub async fn send(channel: &Channel) -> Result<Receipt, SendError> {
    send_to(channel, &alice(None)).await
}

pub async fn send_to(channel: &Channel, to: &Recipient) -> Result<Receipt, SendError> {
    attempt(channel, Some(to), &note(), &Commits::default())
        .await
        .0
}

async fn attempt(
    channel: &Channel,
    to: Option<&Recipient>,
    note: &Notification,
    commit: &Commits,
) -> (Result<Receipt, SendError>, String) {
    let transcript = Transcript::on();
    let address = to.map(|to| Secret::new(to.email.clone()));
    let redactor = channel.redactor.with([Secret::new(CODE)]).with(address);
    let attempt = Attempt {
        to,
        note,
        commit,
        redactor: &redactor,
        transcript: &transcript,
    };
    let result = channel.carrier.send(&attempt).await;
    (result, transcript.lines().join("\n"))
}

pub fn class(result: &Result<Receipt, SendError>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(SendError::Transient { .. }) => "transient",
        Err(SendError::Away { .. }) => "away",
        Err(SendError::Permanent { .. }) => "permanent",
        Err(SendError::Broken { .. }) => "broken",
        Err(SendError::Unknown { .. }) => "unknown",
    }
}

/// The reason of a failure of this class.
#[track_caller]
pub fn reason(result: Result<Receipt, SendError>, expected: &str) -> String {
    assert_eq!(class(&result), expected, "{result:?}");
    result.unwrap_err().to_string()
}

/// The usual answer, except at one stage.
fn at(
    stage: Stage,
    answer: impl Fn() -> Answer + Send + Sync + 'static,
) -> impl Fn(&crate::support::smtp_sink::Step<'_>) -> Answer + Send + Sync + 'static {
    move |step| match step.stage == stage {
        true => answer(),
        false => Answer::Usual,
    }
}

#[tokio::test]
async fn a_mail_arrives_as_it_was_written() {
    let sink = SmtpSink::good();
    let channel = plain(
        sink.port,
        "reply_to = \"Help <help@example.com>\"\nreturn_path = \"bounces@example.com\"",
    );
    let commits = Commits::default();
    let (sent, said) = attempt(&channel, Some(&alice(None)), &note(), &commits).await;
    assert_eq!(sent.unwrap().said, "250 2.0.0 queued as 1");
    assert_eq!(commits.0.load(Ordering::SeqCst), 1);
    let [mail] = &sink.mails()[..] else { panic!() };
    assert_eq!(mail.from, "bounces@example.com");
    assert_eq!(mail.rcpts, ["alice@example.com"]);
    let note = note();
    for (name, value) in [
        ("from", "IT Service Desk <servicedesk@example.com>".replace("IT Service Desk", "\"IT Service Desk\"")),
        ("reply-to", "Help <help@example.com>".to_owned()),
        ("subject", note.subject.clone()),
        ("message-id", format!("<{}@example.com>", note.id)),
        ("auto-submitted", "auto-generated".to_owned()),
        ("x-auto-response-suppress", "All".to_owned()),
        ("content-language", note.language.clone()),
        ("mime-version", "1.0".to_owned()),
    ] {
        assert_eq!(mail.header(name), value);
    }
    assert!(mail.header("to").ends_with("<alice@example.com>"), "{}", mail.header("to"));
    let date = mail.header("date");
    let sent_at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(&date)
        .unwrap();
    assert!(sent_at.duration_until(jiff::Timestamp::now()).as_secs() < 10, "{date}");
    assert!(!mail.header("subject").contains(CODE));
    let (text, html) = mail.parts();
    assert_eq!(text, crlf(&note.text));
    assert_eq!(html, crlf(&note.html));
    assert!(text.contains(CODE) && html.contains(CODE));
    let longest = mail.data.split(|b| *b == b'\n').map(<[u8]>::len).max().unwrap();
    assert!(longest <= 79, "a line of {longest} bytes");
    assert!(mail.data.is_ascii());
    for secret in [CODE, "alice@example.com"] {
        assert!(!said.contains(secret), "{said}");
    }
    assert!(said.contains("> RCPT TO:<…>"), "{said}");
}

fn crlf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

#[tokio::test]
async fn a_line_that_starts_with_a_dot_and_one_that_is_very_long_arrive_whole() {
    let sink = SmtpSink::good();
    let mut note = note();
    note.text = format!(".\n..two\n.bcc\n{}\n.", "long ".repeat(1000));
    note.html = "<p>ä\n.\n.</p>".to_owned();
    let channel = plain(sink.port, "");
    let (sent, _) = attempt(&channel, Some(&alice(None)), &note, &Commits::default()).await;
    sent.unwrap();
    let mail = &sink.mails()[0];
    let (text, html) = mail.parts();
    assert_eq!(text, crlf(&note.text));
    assert_eq!(html, crlf(&note.html));
    assert!(mail.data.split(|b| *b == b'\n').all(|line| line.len() <= 79));
}

#[tokio::test]
async fn text_from_elsewhere_makes_no_header() {
    let sink = SmtpSink::good();
    let channel = plain(sink.port, "");
    for inserted in ["\r\nBcc: eve@example.com\r\n", "\nBcc: eve@example.com", "\rBcc: eve@example.com", "\u{0}\u{b}\u{85}\u{2028}Bcc: eve@example.com", "\r\n\r\nBcc: eve@example.com"] {
        let mut note = note();
        note.subject = format!("Your code{inserted}");
        note.language = format!("en{inserted}");
        let to = Recipient {
            name: Some(format!("Alice{inserted}\" <eve@example.com>, \"")),
            ..alice(None)
        };
        attempt(&channel, Some(&to), &note, &Commits::default()).await.0.unwrap();
        let mails = sink.mails();
        let mail = mails.last().unwrap();
        let names: Vec<_> = mail.headers().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["from", "to", "subject", "message-id", "auto-submitted", "x-auto-response-suppress", "content-language", "date", "mime-version", "content-type"],
            "{inserted:?}"
        );
        assert_eq!(mail.rcpts, ["alice@example.com"]);
        assert!(mail.parts().0.contains(CODE));
    }
    let mut note = note();
    note.subject = "x".repeat(5000);
    let to = Recipient {
        name: Some("y".repeat(5000)),
        ..alice(None)
    };
    attempt(&channel, Some(&to), &note, &Commits::default()).await.0.unwrap();
    let mails = sink.mails();
    let data = &mails.last().unwrap().data;
    assert!(data.split(|b| *b == b'\n').all(|line| line.len() <= 998));
}

#[tokio::test]
async fn a_late_reply_is_never_taken_for_the_answer_to_the_next_mail() {
    let sink = SmtpSink::start(|step| match (step.connection, step.stage) {
        (1, Stage::Rcpt) => Answer::Late(Duration::from_millis(600), "250 late".to_owned()),
        (2, Stage::End) => say("550 5.7.1 refused"),
        _ => Answer::Usual,
    });
    let channel = hasty(sink.port, "");
    let said = reason(send(&channel).await, "transient");
    assert!(said.contains("RCPT TO"), "{said}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let said = reason(send(&channel).await, "permanent");
    assert!(said.contains("550 5.7.1 refused"), "{said}");
    assert_eq!(sink.connections(), 2);
    assert_eq!(sink.mails().len(), 0);
}

#[tokio::test]
async fn a_try_that_is_broken_off_leaves_no_connection_behind() {
    for stage in [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::End] {
        let sink = SmtpSink::start(move |step| match (step.connection, step.stage) {
            (1, s) if s == stage => Answer::Silence,
            _ => Answer::Usual,
        });
        let channel = plain(sink.port, "");
        let broken_off = tokio::time::timeout(Duration::from_millis(200), send(&channel)).await;
        assert!(broken_off.is_err());
        send(&channel).await.unwrap();
        assert_eq!(sink.connections(), 2, "{stage:?}");
        assert_eq!(sink.mails()[0].connection, 2);
    }
}

#[tokio::test]
async fn every_step_has_its_own_time() {
    for (stage, expected, named) in [
        (Stage::Connect, "away", "the greeting"),
        (Stage::Ehlo, "away", "EHLO"),
        (Stage::Auth, "away", "AUTH"),
        (Stage::Mail, "transient", "MAIL FROM"),
        (Stage::Rcpt, "transient", "RCPT TO"),
        (Stage::Data, "transient", "DATA"),
    ] {
        let kind = Kind {
            offers: vec!["AUTH PLAIN"],
            ..Kind::default()
        };
        let sink = SmtpSink::with(kind, at(stage, || Answer::Silence));
        let channel = hasty(sink.port, &login());
        let before = Instant::now();
        let said = reason(send(&channel).await, expected);
        assert!(said.contains(named) && said.contains("300ms"), "{said}");
        assert!(before.elapsed() < Duration::from_secs(3), "{stage:?}");
    }
    // STARTTLS itself, and the handshake after it.
    let authority = Authority::new("Test CA");
    for answer in [|| Answer::Silence, || Answer::Raw(b"220 go ahead\r\n".to_vec())] {
        let kind = Kind {
            tls: Some(authority.acceptor(&["127.0.0.1"])),
            ..Kind::default()
        };
        let silent = matches!(answer(), Answer::Silence);
        let sink = SmtpSink::with(kind, move |step| match step.stage {
            Stage::StartTls if silent => answer(),
            _ => Answer::Usual,
        });
        let channel = slow_channel(Path::new("/"), sink.port, "", "300ms");
        let result = send(&channel).await;
        if silent {
            let said = reason(result, "away");
            assert!(said.contains("STARTTLS"), "{said}");
        } else {
            reason(result, "broken"); // nobody here knows the authority
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let channel = slow_channel(Path::new("/"), port, "tls = \"implicit\"", "300ms");
    let said = reason(send(&channel).await, "away");
    assert!(said.contains("TLS") && said.contains("300ms"), "{said}");
    drop(listener);
    let said = reason(send(&channel).await, "away");
    assert!(said.contains("no connection"), "{said}");
}

#[tokio::test]
async fn a_reply_that_never_comes_to_its_end_is_no_reply() {
    let answers: [fn() -> Answer; 6] = [
        || Answer::Drip(Duration::from_millis(50), "250-slowly ".repeat(20)),
        || Answer::Raw(format!("250 {}\r\n", "x".repeat(1 << 16)).into_bytes()),
        || Answer::Raw("250-more\r\n".repeat(10_000).into_bytes()),
        || Answer::Raw(b"250-one\r\n550 two\r\n".to_vec()),
        || Answer::Raw(b"2500 ok\r\n".to_vec()),
        || Answer::Raw(b"HTTP/1.1 200 OK\r\n".to_vec()),
    ];
    for answer in answers {
        let sink = SmtpSink::start(at(Stage::Rcpt, answer));
        let channel = hasty(sink.port, "");
        let before = Instant::now();
        let said = reason(send(&channel).await, "transient");
        assert!(before.elapsed() < Duration::from_secs(3));
        assert!(said.chars().count() < 400, "{said}");
        assert_eq!(sink.count("DATA"), 0);
        // Nothing of it is left for the next mail.
        reason(send(&channel).await, "transient");
        assert_eq!(sink.connections(), 2);
    }
}

#[tokio::test]
async fn more_than_the_reply_to_starttls_is_refused() {
    let authority = Authority::new("Test CA");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    for extra in ["250 accepted\r\n", "250-sink\r\n250 AUTH PLAIN\r\n", "\r\n", "2"] {
        let kind = Kind {
            tls: Some(authority.acceptor(&["127.0.0.1"])),
            ..Kind::default()
        };
        let sink = SmtpSink::with(
            kind,
            at(Stage::StartTls, move || {
                Answer::Raw(format!("220 go ahead\r\n{extra}").into_bytes())
            }),
        );
        let keys = format!("ca_file = \"ca.pem\"\n{}", login());
        let channel = channel(dir.path(), sink.port, &keys);
        let said = reason(send(&channel).await, "broken");
        assert!(said.contains("more than its reply to STARTTLS"), "{said}");
        assert_eq!(sink.count("AUTH") + sink.count("MAIL"), 0, "{extra:?}");
        assert_eq!(sink.count("EHLO"), 1);
    }
}

#[tokio::test]
async fn without_starttls_nothing_is_sent() {
    for refuses in [false, true] {
        let kind = Kind {
            offers: if refuses { vec!["STARTTLS", "AUTH PLAIN"] } else { vec!["AUTH PLAIN"] },
            ..Kind::default()
        };
        let sink = SmtpSink::with(kind, at(Stage::StartTls, || say("502 5.5.1 not here")));
        let channel = channel(Path::new("/"), sink.port, &login());
        let said = reason(send(&channel).await, "broken");
        assert!(said.contains("STARTTLS"), "{said}");
        assert_eq!(sink.count("AUTH") + sink.count("MAIL"), 0);
    }
}

#[tokio::test]
async fn a_private_authority_is_believed_where_the_configuration_names_it() {
    let ours = Authority::new("Our CA");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &ours.pem).unwrap();
    std::fs::write(dir.path().join("other.pem"), Authority::new("Another CA").pem).unwrap();
    for implicit in [false, true] {
        let tls = if implicit { "implicit" } else { "starttls" };
        let server = |names: &[&str]| {
            let kind = Kind {
                tls: Some(ours.acceptor(names)),
                implicit,
                offers: vec!["AUTH PLAIN"],
            };
            SmtpSink::with(kind, |_| Answer::Usual)
        };
        let sink = server(&["127.0.0.1"]);
        let keys = |ca: &str| format!("tls = \"{tls}\"\nca_file = \"{ca}\"\n{}", login());
        send(&channel(dir.path(), sink.port, &keys("ca.pem"))).await.unwrap();
        assert_eq!(sink.mails().len(), 1);
        let said = reason(send(&channel(dir.path(), sink.port, &keys("other.pem"))).await, "broken");
        assert!(said.contains("certificate") && said.contains("issuer") && said.contains("ca_file"), "{said}");
        let elsewhere = server(&["elsewhere.example"]);
        let said = reason(send(&channel(dir.path(), elsewhere.port, &keys("ca.pem"))).await, "broken");
        assert!(said.contains("certificate") && said.contains("elsewhere.example"), "{said}");
        assert_eq!(elsewhere.count("AUTH") + elsewhere.count("MAIL"), 0);
    }
    // TLS at once is not what this port speaks.
    let plain = SmtpSink::good();
    let said = reason(send(&channel(dir.path(), plain.port, "tls = \"implicit\"\nca_file = \"ca.pem\"")).await, "away");
    assert!(said.contains("starttls"), "{said}");
}

#[tokio::test]
async fn a_refusal_has_the_class_of_its_stage() {
    for (stage, said, expected) in [
        (Stage::Connect, "421 4.3.2 too busy", "away"),
        (Stage::Connect, "554 5.7.1 not you", "broken"),
        (Stage::Ehlo, "451 4.3.0 later", "away"),
        (Stage::Ehlo, "550 5.7.1 not you", "broken"),
        (Stage::Auth, "454 4.7.0 later", "away"),
        (Stage::Auth, "535 5.7.8 bad credentials", "broken"),
        (Stage::Mail, "421 4.7.0 too many", "away"),
        (Stage::Mail, "451 4.3.0 later", "transient"),
        (Stage::Mail, "550 5.1.8 bad sender", "broken"),
        (Stage::Rcpt, "421 4.3.2 closing", "away"),
        (Stage::Rcpt, "450 4.7.1 greylisted", "transient"),
        (Stage::Rcpt, "550 5.1.1 no such user", "permanent"),
        (Stage::Rcpt, "550 no such user", "permanent"),
        (Stage::Rcpt, "552 5.2.2 full", "permanent"),
        (Stage::Rcpt, "554 5.7.1 relay access denied", "broken"),
        (Stage::Data, "451 4.3.0 later", "transient"),
        (Stage::Data, "554 5.5.1 no", "permanent"),
        (Stage::End, "421 4.3.2 closing", "away"),
        (Stage::End, "452 4.3.1 no room", "transient"),
        (Stage::End, "554 5.7.1 spam", "permanent"),
        // Only 250 is acceptance.
        (Stage::End, "251 elsewhere", "transient"),
        (Stage::End, "354 go on", "transient"),
        (Stage::End, "220 hello", "transient"),
        (Stage::Data, "250 ok", "transient"),
        (Stage::Rcpt, "354 go on", "transient"),
        (Stage::Rcpt, "251 elsewhere", "accepted"),
    ] {
        let kind = Kind {
            offers: vec!["AUTH PLAIN"],
            ..Kind::default()
        };
        let sink = SmtpSink::with(kind, at(stage, move || say(said)));
        let result = send(&plain(sink.port, &login())).await;
        assert_eq!(class(&result), expected, "{said} at {stage:?}");
        if let Err(e) = result {
            assert!(e.to_string().contains(said), "{e}");
            assert_eq!(sink.mails().len(), 0);
        }
    }
}

#[tokio::test]
async fn only_after_the_final_dot_is_the_outcome_unknown() {
    for (stage, expected) in [
        (Stage::Connect, "away"),
        (Stage::Ehlo, "away"),
        (Stage::Mail, "transient"),
        (Stage::Rcpt, "transient"),
        (Stage::Data, "transient"),
        (Stage::End, "unknown"),
    ] {
        let sink = SmtpSink::start(at(stage, || Answer::HangUp));
        let result = send(&plain(sink.port, "")).await;
        assert_eq!(class(&result), expected, "{stage:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_connection_is_used_for_the_next_mail() {
    let sink = SmtpSink::start(|step| match step.rcpts {
        [bob] if bob.starts_with("bob@") && step.stage == Stage::Rcpt => say("550 5.1.1 no such user"),
        [carol] if carol.starts_with("carol@") && step.stage == Stage::Rcpt => say("451 4.7.1 greylisted"),
        _ => Answer::Usual,
    });
    let channel = plain(sink.port, "");
    send(&channel).await.unwrap();
    reason(send_to(&channel, &person("bob@example.com")).await, "permanent");
    reason(send_to(&channel, &person("carol@example.com")).await, "transient");
    let (sent, said) = attempt(&channel, Some(&alice(None)), &note(), &Commits::default()).await;
    sent.unwrap();
    assert!(said.contains("used again") && said.contains("> RSET"), "{said}");
    assert_eq!(sink.connections(), 1);
    assert_eq!(sink.count("RCPT TO:<carol"), 1, "a refusal is not asked for again");
    let mails = sink.mails();
    assert_eq!(mails.len(), 2);
    assert!(mails.iter().all(|m| m.rcpts == ["alice@example.com"]));
}

#[tokio::test]
async fn a_connection_that_ended_while_it_waited_is_replaced_once() {
    // Closed at once; closed when it is used again; closed with a farewell.
    let answers: [fn(&crate::support::smtp_sink::Step<'_>) -> Answer; 3] = [
        |step| match (step.connection, step.stage) {
            (1, Stage::End) => Answer::ThenHangUp,
            _ => Answer::Usual,
        },
        |step| match (step.connection, step.stage, step.line.contains("bounces2")) {
            (1, Stage::Mail, true) => Answer::HangUp,
            _ => Answer::Usual,
        },
        |step| match (step.connection, step.stage) {
            (1, Stage::End) => Answer::Raw(b"250 ok\r\n421 4.4.2 timeout\r\n".to_vec()),
            _ => Answer::Usual,
        },
    ];
    for script in answers {
        let sink = SmtpSink::start(script);
        let channel = plain(sink.port, "");
        send(&channel).await.unwrap();
        send(&channel).await.unwrap();
        assert_eq!(sink.mails().len(), 2);
    }
    let mails = AtomicUsize::new(0);
    let sink = SmtpSink::start(move |step| match step.stage {
        Stage::Mail if mails.fetch_add(1, Ordering::SeqCst) > 0 => say("421 4.7.0 one mail is enough"),
        _ => Answer::Usual,
    });
    let channel = plain(sink.port, "");
    send(&channel).await.unwrap();
    reason(send(&channel).await, "away");
    assert_eq!(sink.connections(), 2);
    assert_eq!(sink.count("MAIL"), 3);
}

#[tokio::test]
async fn a_reply_that_nobody_asked_for_is_not_the_answer_to_the_next_mail() {
    let sink = SmtpSink::start(|step| match (step.connection, step.stage) {
        (1, Stage::End) => Answer::Raw(b"250 ok\r\n250 ok\r\n250 ok\r\n354 ok\r\n250 ok\r\n".to_vec()),
        (2, Stage::End) => say("554 5.7.1 spam"),
        _ => Answer::Usual,
    });
    let channel = plain(sink.port, "");
    send(&channel).await.unwrap();
    reason(send(&channel).await, "permanent");
    assert_eq!(sink.mails().len(), 1);
    assert_eq!(sink.connections(), 2);
    // Nor the answer to the message before it is there.
    let sink = SmtpSink::start(at(Stage::Data, || Answer::Raw(b"354 go\r\n250 ok\r\n".to_vec())));
    reason(send(&plain(sink.port, "")).await, "transient");
}

#[tokio::test]
async fn what_may_not_be_sent_now_is_not_sent_and_harms_no_other() {
    let sink = SmtpSink::good();
    let channel = plain(sink.port, "");
    let refusal = SendError::Permanent {
        reason: "the code's life ended".to_owned(),
    };
    let commits = Commits(AtomicUsize::new(0), Some(refusal.clone()));
    let (sent, _) = attempt(&channel, Some(&alice(None)), &note(), &commits).await;
    assert_eq!(sent, Err(refusal));
    assert_eq!(sink.count("DATA"), 0);
    send_to(&channel, &person("bob@example.com")).await.unwrap();
    assert_eq!(sink.connections(), 1);
    let [mail] = &sink.mails()[..] else { panic!() };
    assert_eq!(mail.rcpts, ["bob@example.com"]);
}

#[tokio::test]
async fn every_try_has_the_same_message_id_and_every_person_a_transaction() {
    let tries = AtomicUsize::new(0);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&kept);
    let sink = SmtpSink::start(move |step| {
        if step.stage == Stage::End {
            seen.lock().unwrap().push(step.rcpts.to_vec());
        }
        match step.stage {
            Stage::End if tries.fetch_add(1, Ordering::SeqCst) == 0 => Answer::Raw(b"250".to_vec()),
            _ => Answer::Usual,
        }
    });
    let channel = plain(sink.port, "");
    // The answer breaks off: the mail is there, and nobody knows.
    let first = tokio::time::timeout(Duration::from_millis(300), send(&channel)).await;
    assert!(first.is_err());
    send(&channel).await.unwrap();
    send_to(&channel, &person("bob@example.com")).await.unwrap();
    let mails = sink.mails();
    assert_eq!(mails[0].header("message-id"), mails[1].header("message-id"));
    let rcpts = kept.lock().unwrap().clone();
    assert_eq!(rcpts, [["alice@example.com"], ["alice@example.com"], ["bob@example.com"]]);
}

#[tokio::test]
async fn a_fixed_recipient_gets_everything() {
    let sink = SmtpSink::good();
    let channel = plain(sink.port, "to = \"Service Desk <desk@example.com>\"");
    assert!(!channel.needs_person && !channel.reveals);
    for to in [None, Some(&alice(None))] {
        attempt(&channel, to, &note(), &Commits::default()).await.0.unwrap();
    }
    assert!(sink.mails().iter().all(|m| m.rcpts == ["desk@example.com"] && m.header("to") == "desk@example.com"));
    assert_eq!(sink.mails().len(), 2);
    let person = plain(sink.port, "");
    assert!(person.needs_person && person.reveals);
    let (sent, _) = attempt(&person, None, &note(), &Commits::default()).await;
    reason(sent, "permanent");
}

#[tokio::test]
async fn the_log_in_is_plain_else_login_as_offered() {
    let offering = |offers: Vec<&'static str>| {
        let kind = Kind { offers, ..Kind::default() };
        SmtpSink::with(kind, |_| Answer::Usual)
    };
    for offers in [vec!["AUTH LOGIN PLAIN"], vec!["AUTH=LOGIN PLAIN"], vec!["auth plain cram-md5"]] {
        let sink = offering(offers);
        send(&plain(sink.port, &login())).await.unwrap();
        let expected = BASE64_STANDARD.encode(format!("\0relay\0{PASSWORD}"));
        assert_eq!(sink.count(&format!("AUTH PLAIN {expected}")), 1);
    }
    let sink = offering(vec!["SIZE 1000000", "AUTH CRAM-MD5 LOGIN"]);
    send(&plain(sink.port, &login())).await.unwrap();
    let commands = sink.commands();
    let at = commands.iter().position(|c| c == "AUTH LOGIN").unwrap();
    assert_eq!(commands[at + 1..at + 3], ["relay", PASSWORD].map(|t| BASE64_STANDARD.encode(t)));
    for (offers, named) in [
        (vec!["AUTH GSSAPI XOAUTH2", "AUTH=GSSAPI XOAUTH2"], "GSSAPI, XOAUTH2"),
        (vec!["PIPELINING"], "no log-in"),
    ] {
        let sink = offering(offers);
        let said = reason(send(&plain(sink.port, &login())).await, "broken");
        assert!(said.contains(named), "{said}");
        assert_eq!(sink.count("AUTH") + sink.count("MAIL"), 0);
    }
}

#[tokio::test]
async fn an_address_beyond_ascii_needs_a_relay_that_can_take_it() {
    let to = person("élise@example.com");
    let sink = SmtpSink::good();
    let channel = plain(sink.port, "");
    let said = reason(send_to(&channel, &to).await, "permanent");
    assert!(said.contains("SMTPUTF8"), "{said}");
    assert_eq!(sink.count("MAIL"), 0);
    send(&channel).await.unwrap(); // and harms no other
    assert_eq!(sink.connections(), 1);
    let kind = Kind {
        offers: vec!["8BITMIME", "SMTPUTF8"],
        ..Kind::default()
    };
    let able = SmtpSink::with(kind, |_| Answer::Usual);
    send_to(&plain(able.port, ""), &to).await.unwrap();
    assert_eq!(able.mails()[0].rcpts, ["élise@example.com"]);
    assert_eq!(able.count("MAIL FROM:<servicedesk@example.com> SMTPUTF8"), 1);
    // If it is the sender's, no mail can go.
    let keys = "return_path = \"büro@example.com\"";
    let said = reason(send(&plain(sink.port, keys)).await, "broken");
    assert!(said.contains("sender"), "{said}");
    for wrong in ["no address", "a@b@c", "x@example.com>\r\nRCPT TO:<eve@example.com", "x\r\n@example.com"] {
        reason(send_to(&channel, &person(wrong)).await, "permanent");
    }
    assert_eq!(sink.count("RCPT TO:<eve"), 0);
}

#[tokio::test]
async fn what_a_server_says_is_cleaned() {
    let token = BASE64_STANDARD.encode(format!("\0relay\0{PASSWORD}"));
    let text = format!("550 5.1.1 {CODE} for alice@example.com by {PASSWORD} or {token}");
    let kind = Kind {
        offers: vec!["AUTH PLAIN"],
        ..Kind::default()
    };
    let text = Arc::new(text);
    let answer = Arc::clone(&text);
    let sink = SmtpSink::with(kind, at(Stage::Rcpt, move || Answer::Say(answer.to_string())));
    let channel = plain(sink.port, &login());
    let (sent, said) = attempt(&channel, Some(&alice(None)), &note(), &Commits::default()).await;
    let reason = reason(sent, "permanent");
    for shown in [&reason, &said] {
        assert!(shown.contains("550 5.1.1 … for … by … or …"), "{shown}");
        for secret in [CODE, PASSWORD, &token, "alice@example.com"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_of_the_dialogue_is_in_the_log() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("the log is captured");
    let authority = Authority::new("Test CA");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    let kind = Kind {
        offers: vec!["AUTH PLAIN"],
        tls: Some(authority.acceptor(&["127.0.0.1"])),
        implicit: false,
    };
    let sink = SmtpSink::with(kind, |_| Answer::Usual);
    let keys = format!("ca_file = \"ca.pem\"\n{}", login());
    let channel = channel(dir.path(), sink.port, &keys);
    send(&channel).await.unwrap();
    send(&channel).await.unwrap();
    drop(guard);
    let log = captured.0.lock().unwrap().clone();
    assert!(holds(&log, "the log is captured"));
    let plain = format!("\0relay\0{PASSWORD}");
    for secret in [CODE, PASSWORD, &plain, "alice@example.com", "RCPT TO"] {
        assert!(!holds(&log, secret), "{}", String::from_utf8_lossy(&log));
    }
    assert_eq!(sink.mails().len(), 2);
}

#[test]
fn a_wrong_configuration_is_told_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    let good = format!("host = \"127.0.0.1\"\ntls = \"none\"\n{FROM}");
    for (keys, says) in [
        (format!("host = \"mail.example.com:587\"\n{FROM}"), "without a port"),
        (format!("host = \"\"\n{FROM}"), "is no host"),
        (format!("{good}port = 0"), "no port 0"),
        ("host = \"127.0.0.1\"\ntls = \"none\"\nfrom = \"nobody\"".to_owned(), "is no mail address"),
        (format!("{good}to = \"nobody\""), "is no mail address"),
        (format!("{good}return_path = \"nobody\""), "is no mail address"),
        (format!("{good}reply_to = \"nobody\""), "is no mail address"),
        (format!("{good}ehlo = \"\""), "EHLO"),
        (format!("{good}ehlo = \"a b\""), "EHLO"),
        (format!("{good}auth = \"password\"\nusername = \"u\""), "needs `password`"),
        (format!("{good}auth = \"password\"\npassword = \"p\""), "needs `username`"),
        (format!("{good}username = \"u\""), "write auth = \"password\""),
        (format!("{good}ca_file = \"empty.pem\""), "holds no certificate"),
        (format!("{good}ca_file = \"missing.pem\""), "can't be read"),
    ] {
        let (_, said) = build(dir.path(), &keys, "5s");
        assert!(said.iter().any(|s| s.starts_with("Problem: ") && s.contains(says)), "{keys}: {said:?}");
    }
    let far = format!("host = \"mail.example.com\"\ntls = \"none\"\n{FROM}");
    let (built, said) = build(dir.path(), &far, "5s");
    assert!(built.is_some() && said.iter().any(|s| s.starts_with("Warning: ") && s.contains("in clear")), "{said:?}");
    let (built, said) = build(dir.path(), &good, "5s");
    assert!(built.is_some() && said.is_empty(), "{said:?}");
    let (built, said) = build(dir.path(), &good.replace("127.0.0.1", "::1"), "5s");
    assert!(built.is_some() && said.is_empty(), "{said:?}");
}
