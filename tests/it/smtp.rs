//! The SMTP channel against a server that misbehaves.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
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
use ftm_relay::secret::Secret;
use ftm_relay::settings::Check;
use ftm_relay::settings::Weight;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::support::authority::Authority;
use crate::support::smtp_sink::Act;
use crate::support::smtp_sink::Act::Close;
use crate::support::smtp_sink::Act::Hang;
use crate::support::smtp_sink::Act::SayAfter;
use crate::support::smtp_sink::Act::SayAndClose;
use crate::support::smtp_sink::Act::Usual;
use crate::support::smtp_sink::PASSWORD;
use crate::support::smtp_sink::Setup;
use crate::support::smtp_sink::Sink;
use crate::support::smtp_sink::Step;
use crate::support::smtp_sink::USERNAME;
use crate::support::smtp_sink::base64;

pub const CODE: &str = "EEIOTCU3LENEDJMR";

/// Generous, for a busy machine; tests of slowness use [`SHORT`].
pub const STEP: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(1);

pub fn say(text: &str) -> Act {
    Act::Say(format!("{text}\r\n"))
}

/// A channel to the sink, in the clear unless `keys` say otherwise.
pub fn channel(sink: &Sink, step: Duration, keys: &str) -> Smtp {
    let tls = if keys.contains("tls =") {
        ""
    } else {
        "tls = \"none\""
    };
    let host = if keys.contains("host =") {
        ""
    } else {
        "host = \"127.0.0.1\""
    };
    built(
        &format!("{host}\nport = {}\n{tls}\n{keys}", sink.address.port()),
        step,
    )
}

pub fn built(keys: &str, step: Duration) -> Smtp {
    let mut check = Check::new("/", None, true);
    let from = if keys.contains("from =") {
        ""
    } else {
        "from = \"IT Desk <desk@example.com>\""
    };
    let config: smtp::Config = toml::from_str(&format!("{keys}\n{from}")).unwrap();
    let smtp = config.build(step, &mut check);
    smtp.unwrap_or_else(|| panic!("{:?}", check.findings()))
}

pub fn login() -> String {
    format!("auth = \"password\"\nusername = \"{USERNAME}\"\npassword = \"{PASSWORD}\"")
}

pub fn alice() -> Recipient {
    Recipient {
        email: "alice@example.com".to_owned(),
        name: Some("Alice Example".to_owned()),
        phone: None,
        language: None,
        source: "table".to_owned(),
    }
}

pub fn note(id: &str) -> Notification {
    Notification {
        id: id.to_owned(),
        subject: "Activate your token".to_owned(),
        text: format!("Hello\n.\n.. your code:\n{CODE}\n"),
        html: format!("<p>{CODE}</p>\n"),
        chat: Vec::new(),
        short: String::new(),
        event: serde_json::Value::Null,
        language: "en".to_owned(),
        expires_at: "2099-01-01T00:00:00Z".parse().unwrap(),
    }
}

/// Counts, and says what it was told to.
struct Counter {
    calls: AtomicUsize,
    refuses: bool,
}

#[async_trait]
impl Commit for Counter {
    async fn commit(&self) -> Result<(), SendError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.refuses {
            return Err(SendError::Transient {
                reason: "the lease was lost".to_owned(),
                after: None,
            });
        }
        Ok(())
    }
}

pub struct Try {
    pub outcome: Result<Receipt, SendError>,
    pub commits: usize,
    pub transcript: Vec<String>,
}

pub async fn send_with(
    smtp: &Smtp,
    to: Option<&Recipient>,
    note: &Notification,
    refuses: bool,
) -> Try {
    let commit = Counter {
        calls: AtomicUsize::new(0),
        refuses,
    };
    let transcript = Transcript::on();
    let redactor =
        Redactor::new(smtp.secrets()).with([Secret::new(CODE), Secret::new("alice@example.com")]);
    let outcome = smtp
        .send(&Attempt {
            to,
            note,
            commit: &commit,
            redactor: &redactor,
            transcript: &transcript,
        })
        .await;
    Try {
        outcome,
        commits: commit.calls.into_inner(),
        transcript: transcript.lines(),
    }
}

pub async fn send(smtp: &Smtp) -> Result<Receipt, SendError> {
    send_with(smtp, Some(&alice()), &note("n1"), false)
        .await
        .outcome
}

pub fn class(outcome: &Result<Receipt, SendError>) -> &'static str {
    match outcome {
        Ok(_) => "accepted",
        Err(SendError::Transient { .. }) => "transient",
        Err(SendError::Away { .. }) => "away",
        Err(SendError::Permanent { .. }) => "permanent",
        Err(SendError::Broken { .. }) => "broken",
        Err(SendError::Unknown { .. }) => "unknown",
    }
}

pub fn reason(outcome: &Result<Receipt, SendError>) -> String {
    outcome.as_ref().unwrap_err().to_string()
}

#[tokio::test]
async fn a_mail_is_taken_as_it_was_written() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "return_path = \"bounces@example.com\"");
    let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    assert_eq!(sent.outcome.unwrap().said, "250 2.0.0 queued as 4F2A");
    assert_eq!(sent.commits, 1);
    let seen = sink.until(|seen| !seen.taken.is_empty()).await;
    let mail = &seen.taken[0];
    assert_eq!(mail.from, "bounces@example.com");
    assert_eq!(mail.to, ["alice@example.com"]);
    assert!(
        mail.content.contains("\r\n.\r\n.. your code:\r\n"),
        "{}",
        mail.content
    );
    assert!(
        mail.wire.contains("\r\n..\r\n... your code:\r\n"),
        "{}",
        mail.wire
    );
    assert!(
        mail.content
            .contains("From: \"IT Desk\" <desk@example.com>\r\n")
    );
    assert!(
        mail.content
            .contains("To: \"Alice Example\" <alice@example.com>\r\n")
    );
}

#[tokio::test]
async fn the_name_in_ehlo_is_the_configured_one() {
    let sink = Setup::new().start().await;
    send(&channel(&sink, STEP, "ehlo = \"relay.example.com\""))
        .await
        .unwrap();
    assert_eq!(sink.seen().lines[0].1, "EHLO relay.example.com");
}

#[tokio::test]
async fn a_fixed_recipient_gets_what_has_no_person() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "to = \"desk@example.com\"");
    assert!(smtp.shared());
    send_with(&smtp, None, &note("n1"), false)
        .await
        .outcome
        .unwrap();
    send_with(&smtp, Some(&alice()), &note("n2"), false)
        .await
        .outcome
        .unwrap();
    let seen = sink.until(|seen| seen.taken.len() == 2).await;
    assert!(
        seen.taken
            .iter()
            .all(|mail| mail.to == ["desk@example.com"])
    );
}

#[tokio::test]
async fn without_a_recipient_nothing_is_dialled() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "");
    assert!(!smtp.shared());
    let outcome = send_with(&smtp, None, &note("n1"), false).await.outcome;
    assert_eq!(class(&outcome), "permanent");
    let odd = Recipient {
        email: "alice@example.com>\r\nRCPT TO:<eve@example.net".to_owned(),
        ..alice()
    };
    let outcome = send_with(&smtp, Some(&odd), &note("n1"), false)
        .await
        .outcome;
    assert_eq!(class(&outcome), "permanent");
    assert!(!reason(&outcome).contains("eve"), "{outcome:?}");
    assert_eq!(sink.seen().connections, 0);
}

#[tokio::test]
async fn every_transaction_has_one_recipient_and_connections_are_used_again() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "");
    for n in 0..3 {
        let person = Recipient {
            email: format!("person{n}@example.com"),
            ..alice()
        };
        send_with(&smtp, Some(&person), &note(&n.to_string()), false)
            .await
            .outcome
            .unwrap();
    }
    let seen = sink.until(|seen| seen.taken.len() == 3).await;
    for (n, mail) in seen.taken.iter().enumerate() {
        assert_eq!(mail.to, [format!("person{n}@example.com")]);
        assert!(
            mail.content
                .contains(&format!("Message-ID: <{n}@example.com>\r\n"))
        );
    }
    assert_eq!(seen.connections, 1);
    assert_eq!(
        seen.verbs(0),
        [
            "EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT",
            "DATA"
        ]
    );
}

#[tokio::test]
async fn two_tries_of_one_delivery_have_one_message_id() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "");
    send(&smtp).await.unwrap();
    send(&smtp).await.unwrap();
    let seen = sink.until(|seen| seen.taken.len() == 2).await;
    for mail in &seen.taken {
        assert!(mail.content.contains("Message-ID: <n1@example.com>\r\n"));
    }
}

#[tokio::test]
async fn a_waiting_connection_says_good_bye_after_a_few_seconds() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "");
    send(&smtp).await.unwrap();
    // The task that waits has to start before the clock moves.
    tokio::task::yield_now().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    let seen = sink.until(|seen| seen.closed == 1).await;
    assert_eq!(seen.verbs(0).last().unwrap(), "QUIT");
}

#[tokio::test]
async fn a_waiting_connection_that_died_is_replaced_within_the_try() {
    for last_words in [
        Close,
        SayAndClose("421 4.4.2 timeout\r\n".to_owned()),
        say("503 what?"),
    ] {
        let sink = Setup::new()
            .script(move |s| match (s.connection, s.verb) {
                (0, "RSET") => last_words.clone(),
                _ => Usual,
            })
            .start()
            .await;
        let smtp = channel(&sink, STEP, "");
        send(&smtp).await.unwrap();
        send(&smtp).await.unwrap();
        let seen = sink.until(|seen| seen.taken.len() == 2).await;
        assert_eq!(seen.connections, 2);
    }
}

#[tokio::test]
async fn a_used_connection_that_has_had_enough_is_replaced_once() {
    for (verb, last_words) in [
        ("MAIL", Close),
        ("MAIL", say("421 4.7.0 one mail is enough")),
        (
            "RCPT",
            SayAndClose("421 4.7.0 one mail is enough\r\n".to_owned()),
        ),
    ] {
        let sink = Setup::new()
            .script({
                let times = AtomicUsize::new(0);
                move |s| match s.verb == verb && times.fetch_add(1, Ordering::SeqCst) > 0 {
                    true if s.connection == 0 => last_words.clone(),
                    _ => Usual,
                }
            })
            .start()
            .await;
        let smtp = channel(&sink, STEP, "");
        send(&smtp).await.unwrap();
        let second = send_with(&smtp, Some(&alice()), &note("n2"), false).await;
        second.outcome.unwrap();
        assert_eq!(second.commits, 1);
        let seen = sink.until(|seen| seen.taken.len() == 2).await;
        assert_eq!(seen.connections, 2);
    }
    // A relay that says so on a fresh connection too is away.
    let sink = Setup::new()
        .script({
            let times = AtomicUsize::new(0);
            move |s| match s.verb == "MAIL" && times.fetch_add(1, Ordering::SeqCst) > 0 {
                true => say("421 4.3.2 closing"),
                false => Usual,
            }
        })
        .start()
        .await;
    let smtp = channel(&sink, STEP, "");
    send(&smtp).await.unwrap();
    assert_eq!(class(&send(&smtp).await), "away");
    assert_eq!(sink.seen().connections, 2);
}

#[tokio::test]
async fn an_answer_in_its_turn_keeps_the_connection_whatever_it_says() {
    let sink = Setup::new()
        .script({
            let times = AtomicUsize::new(0);
            move |s| match s.verb {
                "RCPT" if times.fetch_add(1, Ordering::SeqCst) == 0 => say("451 4.7.1 greylisted"),
                _ => Usual,
            }
        })
        .start()
        .await;
    let smtp = channel(&sink, STEP, "");
    let first = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    assert_eq!(class(&first.outcome), "transient");
    assert_eq!(first.commits, 0);
    send(&smtp).await.unwrap();
    assert_eq!(sink.seen().connections, 1);
}

/// The whole table of stages and answers, through the socket.
#[tokio::test]
async fn each_stage_and_answer_has_its_class() {
    for (verb, answer, expected, committed) in [
        ("CONNECT", "421 4.3.2 down", "away", false),
        ("CONNECT", "451 busy", "away", false),
        ("CONNECT", "554 5.7.1 not you", "broken", false),
        ("EHLO", "421 down", "away", false),
        ("EHLO", "452 later", "away", false),
        ("EHLO", "502 what?", "broken", false),
        ("AUTH", "454 4.7.0 later", "away", false),
        ("AUTH", "535 5.7.8 wrong", "broken", false),
        ("MAIL", "421 down", "away", false),
        ("MAIL", "450 4.1.8 later", "transient", false),
        ("MAIL", "550 5.7.1 not from you", "broken", false),
        ("RCPT", "421 down", "away", false),
        ("RCPT", "451 4.7.1 greylisted", "transient", false),
        ("RCPT", "550 5.1.1 unknown", "permanent", false),
        ("RCPT", "552 5.2.2 full", "permanent", false),
        ("RCPT", "550 unknown", "permanent", false),
        ("RCPT", "554 5.7.1 relay access denied", "broken", false),
        ("RCPT", "251 2.1.5 will forward", "accepted", true),
        ("DATA", "421 down", "away", true),
        ("DATA", "451 4.3.0 later", "transient", true),
        ("DATA", "554 5.5.1 no", "permanent", true),
        ("DATA", "250 2.0.0 what?", "transient", true),
        ("CONTENT", "421 down", "away", true),
        ("CONTENT", "452 4.3.1 full", "transient", true),
        ("CONTENT", "554 5.6.0 content", "permanent", true),
        ("CONTENT", "251 2.0.0 hm", "unknown", true),
        ("CONTENT", "354 go", "unknown", true),
        ("CONTENT", "hello", "unknown", true),
    ] {
        let sink = Setup::new()
            .auth("PLAIN")
            .script(move |s| if s.verb == verb { say(answer) } else { Usual })
            .start()
            .await;
        let smtp = channel(&sink, STEP, &login());
        let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
        assert_eq!(class(&sent.outcome), expected, "{verb}: {answer}");
        assert_eq!(sent.commits, usize::from(committed), "{verb}: {answer}");
        if expected != "accepted" && answer != "hello" {
            let reason = reason(&sent.outcome);
            assert!(reason.contains(answer), "{reason}");
        }
    }
}

#[tokio::test]
async fn a_lost_connection_is_unknown_only_after_the_content() {
    for (verb, expected) in [
        ("CONNECT", "away"),
        ("EHLO", "away"),
        ("AUTH", "away"),
        ("MAIL", "transient"),
        ("RCPT", "transient"),
        ("DATA", "transient"),
        ("CONTENT", "unknown"),
    ] {
        let sink = Setup::new()
            .auth("PLAIN")
            .script(move |s| if s.verb == verb { Close } else { Usual })
            .start()
            .await;
        let smtp = channel(&sink, STEP, &login());
        let outcome = send(&smtp).await;
        assert_eq!(class(&outcome), expected, "{verb}: {outcome:?}");
        // What broke is not used again.
        drop(send(&smtp).await);
        assert_eq!(sink.seen().connections, 2, "{verb}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let smtp = built(
        &format!("host = \"127.0.0.1\"\nport = {port}\ntls = \"none\""),
        STEP,
    );
    let outcome = send(&smtp).await;
    assert_eq!(class(&outcome), "away");
    assert!(reason(&outcome).contains("can't be reached"), "{outcome:?}");
}

#[tokio::test]
async fn each_step_ends_in_its_time() {
    let case = async |verb: &'static str, expected: &str| {
        let sink = Setup::new()
            .auth("PLAIN")
            .script(move |s| if s.verb == verb { Hang } else { Usual })
            .start()
            .await;
        let outcome = send(&channel(&sink, SHORT, &login())).await;
        assert_eq!(class(&outcome), expected, "{verb}");
        assert!(reason(&outcome).contains("within 1s"), "{outcome:?}");
    };
    tokio::join!(
        case("CONNECT", "away"),
        case("EHLO", "away"),
        case("AUTH", "away"),
        case("MAIL", "transient"),
        case("RCPT", "transient"),
        case("DATA", "transient"),
    );
}

#[tokio::test]
async fn the_steps_to_tls_end_in_their_time() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    let keys = |tls: &str| format!("tls = \"{tls}\"\nca_file = \"{}\"", ca.display());
    let sink = Setup::new()
        .starttls(&authority.sign(&["127.0.0.1"]))
        .script(|s| if s.verb == "STARTTLS" { Hang } else { Usual })
        .start()
        .await;
    let outcome = send(&channel(&sink, SHORT, &keys("starttls"))).await;
    assert_eq!(class(&outcome), "away");
    assert!(reason(&outcome).contains("STARTTLS within"), "{outcome:?}");

    // A server that expects to be spoken to in the clear waits for us as we wait for it.
    let sink = Setup::new().script(|_| Hang).start().await;
    let outcome = send(&channel(&sink, SHORT, &keys("implicit"))).await;
    assert_eq!(class(&outcome), "away");
    assert!(
        reason(&outcome).contains("TLS handshake within"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn the_final_dot_has_ten_minutes_and_then_the_outcome_is_unknown() {
    let sink = Setup::new()
        .script(|s| if s.verb == "CONTENT" { Hang } else { Usual })
        .start()
        .await;
    let smtp = Arc::new(channel(&sink, STEP, ""));
    let sending = tokio::spawn({
        let smtp = Arc::clone(&smtp);
        async move { send(&smtp).await }
    });
    sink.until(|seen| seen.final_dots == 1).await;
    // A paused clock jumps to the next timer when nobody has anything to do.
    tokio::time::pause();
    let dot = tokio::time::Instant::now();
    let outcome = sending.await.unwrap();
    let waited = dot.elapsed().as_secs();
    assert!((590..=600).contains(&waited), "{waited} s");
    assert_eq!(class(&outcome), "unknown", "{outcome:?}");
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_never_taken_for_the_next_mails() {
    let case = async |verb: &'static str| {
        let late = Arc::new(Notify::new());
        let signal = Arc::clone(&late);
        let sink = Setup::new()
            .script(move |s| match (s.connection, s.verb) {
                (0, v) if v == verb => SayAfter(Arc::clone(&signal), "250 2.0.0 ok\r\n".to_owned()),
                (1, "CONTENT") => say("550 5.6.0 refused"),
                _ => Usual,
            })
            .start()
            .await;
        let smtp = channel(&sink, SHORT, "");
        assert_eq!(class(&send(&smtp).await), "transient");
        late.notify_one();
        assert_eq!(class(&send(&smtp).await), "permanent", "{verb}");
        assert!(sink.seen().taken.is_empty());
    };
    tokio::join!(case("MAIL"), case("RCPT"), case("DATA"));
}

#[tokio::test]
async fn a_try_that_was_broken_off_leaves_nothing_behind() {
    let late = Arc::new(Notify::new());
    let signal = Arc::clone(&late);
    let sink = Setup::new()
        .script(move |s| match (s.connection, s.verb) {
            (0, "CONTENT") => SayAfter(Arc::clone(&signal), "250 2.0.0 late\r\n".to_owned()),
            (1, "CONTENT") => say("550 5.6.0 refused"),
            _ => Usual,
        })
        .start()
        .await;
    let smtp = channel(&sink, STEP, "");
    {
        let (person, note) = (alice(), note("n1"));
        let sending = send_with(&smtp, Some(&person), &note, false);
        tokio::select! {
            _ = sending => panic!("the server has not answered yet"),
            _ = sink.until(|seen| seen.final_dots == 1) => {}
        }
    }
    late.notify_one();
    assert_eq!(class(&send(&smtp).await), "permanent");
    assert_eq!(sink.seen().connections, 2);
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_never_taken() {
    let sink = Setup::new()
        .script(|s| match s.verb {
            "RCPT" => say("250 2.1.5 ok\r\n354 go\r\n250 2.0.0 queued"),
            _ => Usual,
        })
        .start()
        .await;
    let outcome = send(&channel(&sink, STEP, "")).await;
    assert_eq!(class(&outcome), "transient", "{outcome:?}");
    assert!(reason(&outcome).contains("nobody had asked for"));
    assert!(sink.seen().taken.is_empty());
}

#[tokio::test]
async fn bytes_between_starttls_and_tls_are_refused() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    for extra in ["250-sink\r\n250 AUTH PLAIN\r\n", "250 ok\r\n", "2"] {
        let sink = Setup::new()
            .starttls(&authority.sign(&["127.0.0.1"]))
            .script(move |s| match s.verb {
                "STARTTLS" => Act::Say(format!("220 go\r\n{extra}")),
                _ => Usual,
            })
            .start()
            .await;
        let keys = format!("tls = \"starttls\"\nca_file = \"{}\"", ca.display());
        let outcome = send(&channel(&sink, STEP, &keys)).await;
        assert_eq!(class(&outcome), "away", "{outcome:?}");
        assert!(
            reason(&outcome).contains("nobody had asked for"),
            "{outcome:?}"
        );
        let seen = sink.until(|seen| seen.closed == 1).await;
        assert_eq!(
            seen.verbs(0),
            ["EHLO", "STARTTLS"],
            "nothing is said after it"
        );
    }
}

#[tokio::test]
async fn without_starttls_nothing_is_sent() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    let keys = format!(
        "tls = \"starttls\"\nca_file = \"{}\"\n{}",
        ca.display(),
        login()
    );
    let identity = authority.sign(&["127.0.0.1"]);

    let sink = Setup::new().auth("PLAIN").start().await;
    let outcome = send(&channel(&sink, STEP, &keys)).await;
    assert_eq!(class(&outcome), "broken");
    assert!(
        reason(&outcome).contains("does not offer STARTTLS"),
        "{outcome:?}"
    );
    assert_eq!(sink.until(|seen| seen.closed == 1).await.verbs(0), ["EHLO"]);

    for (answer, expected) in [("454 4.7.0 not now", "away"), ("502 5.5.1 no", "broken")] {
        let sink = Setup::new()
            .starttls(&identity)
            .script(move |s| {
                if s.verb == "STARTTLS" {
                    say(answer)
                } else {
                    Usual
                }
            })
            .start()
            .await;
        let outcome = send(&channel(&sink, STEP, &keys)).await;
        assert_eq!(class(&outcome), expected, "{outcome:?}");
        let seen = sink.until(|seen| seen.closed == 1).await;
        assert_eq!(seen.verbs(0), ["EHLO", "STARTTLS"]);
    }
}

#[tokio::test]
async fn mail_goes_through_both_kinds_of_tls_and_connections_are_used_again() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    let identity = authority.sign(&["127.0.0.1"]);
    for (setup, tls) in [
        (Setup::new().starttls(&identity), "starttls"),
        (Setup::new().implicit(&identity), "implicit"),
    ] {
        let sink = setup.auth("PLAIN").start().await;
        let keys = format!(
            "tls = \"{tls}\"\nca_file = \"{}\"\n{}",
            ca.display(),
            login()
        );
        let smtp = channel(&sink, STEP, &keys);
        send(&smtp).await.unwrap();
        send(&smtp).await.unwrap();
        let seen = sink.until(|seen| seen.taken.len() == 2).await;
        assert_eq!(seen.connections, 1, "{tls}");
    }
}

#[tokio::test]
async fn what_was_offered_in_the_clear_is_forgotten_inside_tls() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    let sink = Setup::new()
        .starttls(&authority.sign(&["127.0.0.1"]))
        .auth("PLAIN")
        .script(|s: &Step<'_>| match (s.verb, s.tls) {
            ("EHLO", false) => say("250-sink\r\n250-STARTTLS\r\n250 AUTH PLAIN"),
            ("EHLO", true) => say("250-sink\r\n250 AUTH CRAM-MD5 GSSAPI"),
            _ => Usual,
        })
        .start()
        .await;
    let keys = format!(
        "ca_file = \"{}\"\ntls = \"starttls\"\n{}",
        ca.display(),
        login()
    );
    let outcome = send(&channel(&sink, STEP, &keys)).await;
    assert_eq!(class(&outcome), "broken");
    assert!(reason(&outcome).contains("CRAM-MD5, GSSAPI"), "{outcome:?}");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_with_its_flaw() {
    let authority = Authority::new();
    let (namesake, stranger) = (Authority::new(), Authority::named("Stranger"));
    let dir = tempfile::tempdir().unwrap();
    let ca = authority.write(dir.path());
    for (identity, flaw) in [
        (
            stranger.sign(&["127.0.0.1"]),
            "signed by an authority that is not trusted",
        ),
        (
            namesake.sign(&["127.0.0.1"]),
            "signed by an authority that is not trusted",
        ),
        (
            authority.sign_authority(&["127.0.0.1"]),
            "is that of an authority and not of a server",
        ),
        (
            authority.sign(&["mail.example.com", "mx.example.com"]),
            "made out to mail.example.com, mx.example.com, not to 127.0.0.1",
        ),
        (authority.sign_expired(&["127.0.0.1"]), "has expired"),
    ] {
        for (setup, tls) in [
            (Setup::new().starttls(&identity), "starttls"),
            (Setup::new().implicit(&identity), "implicit"),
        ] {
            let sink = setup.start().await;
            let keys = format!("tls = \"{tls}\"\nca_file = \"{}\"", ca.display());
            let outcome = send(&channel(&sink, STEP, &keys)).await;
            assert_eq!(class(&outcome), "broken", "{outcome:?}");
            assert!(reason(&outcome).contains(flaw), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn plain_comes_before_login_and_a_wrong_password_needs_an_operator() {
    for (offer, verbs) in [
        ("LOGIN PLAIN", &["EHLO", "AUTH", "MAIL", "RCPT", "DATA"]),
        ("CRAM-MD5 LOGIN", &["EHLO", "AUTH", "MAIL", "RCPT", "DATA"]),
    ] {
        let sink = Setup::new().auth(offer).start().await;
        send(&channel(&sink, STEP, &login())).await.unwrap();
        let seen = sink.seen();
        assert_eq!(seen.verbs(0), verbs);
        let plain = seen.lines[1].1.starts_with("AUTH PLAIN ");
        assert_eq!(plain, offer.contains("PLAIN"));

        let wrong = login().replace(PASSWORD, "wrong horse");
        let outcome = send(&channel(&sink, STEP, &wrong)).await;
        assert_eq!(class(&outcome), "broken");
        assert!(reason(&outcome).contains("535 5.7.8"), "{outcome:?}");
    }
    let sink = Setup::new().start().await;
    let outcome = send(&channel(&sink, STEP, &login())).await;
    assert_eq!(class(&outcome), "broken");
    assert!(reason(&outcome).contains("offers no AUTH"), "{outcome:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    for giant in [
        "250-".to_owned() + &"x".repeat(200_000),
        "250-x\r\n".repeat(100_000),
    ] {
        let sink = Setup::new()
            .script(move |s| {
                if s.verb == "EHLO" {
                    Act::Say(giant.clone())
                } else {
                    Usual
                }
            })
            .start()
            .await;
        let outcome = send(&channel(&sink, STEP, "")).await;
        assert_eq!(class(&outcome), "away");
        assert!(reason(&outcome).contains("without end"), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_answer_may_have_many_lines_and_foreign_bytes() {
    let sink = Setup::new()
        .script(|s| match s.verb {
            "CONNECT" => say("220-Willkommen\r\n220-\r\n220 bei uns"),
            "MAIL" => Act::Say("250\r\n".to_owned()),
            "RCPT" => say("550-5.1.1 Empfänger\r\n550 5.1.1 unbekannt"),
            _ => Usual,
        })
        .start()
        .await;
    let outcome = send(&channel(&sink, STEP, "")).await;
    assert_eq!(class(&outcome), "permanent");
    assert!(
        reason(&outcome).contains("550 5.1.1 Empfänger 5.1.1 unbekannt"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn nothing_is_sent_that_could_not_be_committed() {
    let sink = Setup::new().start().await;
    let smtp = channel(&sink, STEP, "");
    let refused = send_with(&smtp, Some(&alice()), &note("n1"), true).await;
    assert_eq!(reason(&refused.outcome), "the lease was lost");
    send(&smtp).await.unwrap();
    let seen = sink.until(|seen| seen.taken.len() == 1).await;
    assert_eq!(
        seen.verbs(0),
        ["EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA"]
    );
}

#[tokio::test]
async fn what_the_server_repeats_is_shown_without_secrets() {
    let sink = Setup::new()
        .auth("PLAIN")
        .script(|s| match s.verb {
            "CONTENT" => say(&format!(
                "550 5.6.0 {CODE} for ALICE@example.com from {PASSWORD}"
            )),
            _ => Usual,
        })
        .start()
        .await;
    let smtp = channel(&sink, STEP, &login());
    let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    assert!(
        reason(&sent.outcome).ends_with("550 5.6.0 … for … from …"),
        "{:?}",
        sent.outcome
    );
    let shown = sent.transcript.join("\n");
    for line in [
        "< 220 sink ESMTP",
        "> AUTH PLAIN …",
        "< 235 2.7.0 welcome",
        "> MAIL FROM:<desk@example.com>",
        "> RCPT TO:<…>",
        "> DATA",
        "< 354 go",
        "< 550 5.6.0 … for … from …",
    ] {
        assert!(
            shown.lines().any(|l| l == line),
            "{line} is not in\n{shown}"
        );
    }
    assert!(shown.contains("> (the message, "), "{shown}");
}

/// Collects what tracing writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn logs_hold_no_code_and_no_password_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for mechanism in ["PLAIN", "LOGIN"] {
        let sink = Setup::new()
            .auth(mechanism)
            .script(|s| match (s.connection, s.verb) {
                (0, "CONTENT") => say(&format!("550 5.6.0 {CODE} for alice@example.com")),
                (1, "AUTH") => say(&format!("535 5.7.8 {}", base64(PASSWORD.as_bytes()))),
                _ => Usual,
            })
            .start()
            .await;
        for (password, expected) in [
            (PASSWORD, "permanent"),
            ("wrong horse", "broken"),
            (PASSWORD, "accepted"),
        ] {
            let smtp = channel(&sink, STEP, &login().replace(PASSWORD, password));
            assert_eq!(class(&send(&smtp).await), expected);
        }
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("Connected to 127.0.0.1"),
        "the log is empty:\n{log}"
    );
    assert!(log.contains("TRACE"), "{log}");
    for secret in [
        CODE.to_owned(),
        PASSWORD.to_owned(),
        "wrong horse".to_owned(),
        base64(PASSWORD.as_bytes()),
        base64(format!("\0{USERNAME}\0{PASSWORD}").as_bytes()),
        "alice@example.com".to_owned(),
        "your code".to_owned(),
    ] {
        assert!(!log.contains(&secret), "{secret} is in\n{log}");
    }
}

#[tokio::test]
async fn a_name_with_several_addresses_is_reached_at_the_one_that_answers() {
    // localhost is ::1 and 127.0.0.1 on most machines; only one of them listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink = Setup::new().serve(listener);
    send(&channel(&sink, STEP, "host = \"localhost\""))
        .await
        .unwrap();
    if let Ok(listener) = TcpListener::bind("[::1]:0").await {
        let sink = Setup::new().serve(listener);
        send(&channel(&sink, STEP, "host = \"[::1]\""))
            .await
            .unwrap();
    }
}

/// What `check` says of a channel: its problems and its warnings.
pub fn findings(keys: &str) -> (Vec<String>, Vec<String>) {
    let mut check = Check::new("/nowhere", None, true);
    let config: smtp::Config = toml::from_str(keys).unwrap();
    let built = config.build(STEP, &mut check);
    let of = |weight| {
        let found = check.findings().into_iter();
        found
            .filter(|f| f.weight == weight)
            .map(|f| {
                let at = f.span.map_or("", |span| &keys[span]).to_owned();
                format!("{at}: {}", f.text)
            })
            .collect::<Vec<_>>()
    };
    let (problems, warnings) = (of(Weight::Problem), of(Weight::Warning));
    assert_eq!(built.is_some(), problems.is_empty(), "{problems:?}");
    (problems, warnings)
}

#[test]
fn a_configuration_is_judged_with_all_its_problems() {
    let (problems, _) = findings(
        "host = \"smtp://relay\"\nfrom = \"nobody\"\nreply_to = \"a b\"\nreturn_path = \"x\"\nto = \"y\"\nca_file = \"none.pem\"\nauth = \"password\"\nport = 0",
    );
    for (at, what) in [
        ("\"smtp://relay\"", "neither a host name nor"),
        ("\"nobody\"", "is no mail address"),
        ("\"a b\"", "is no mail address"),
        ("\"x\"", "is no mail address"),
        ("\"y\"", "is no mail address"),
        ("\"none.pem\"", "/nowhere/none.pem can't be read"),
        ("\"password\"", "needs username"),
        ("\"password\"", "needs password"),
        ("0", "port 0"),
    ] {
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with(&format!("{at}: ")) && p.contains(what)),
            "{at}: {what} is not in {problems:#?}"
        );
    }
}

#[test]
fn a_configuration_that_is_probably_not_meant_is_warned_of() {
    let plain = "from = \"desk@example.com\"\nhost = \"relay.example.com\"\n";
    for (keys, what) in [
        ("tls = \"none\"", "codes travel in the clear"),
        (
            "tls = \"none\"\nauth = \"password\"\nusername = \"u\"\npassword = { env = \"PATH\" }",
            "password travels in the clear",
        ),
        ("tls = \"implicit\"", "usually port 465"),
        ("port = 465", "usually expects TLS from the first byte"),
        ("username = \"u\"", "no effect without auth"),
        ("tls = \"none\"\nca_file = \"x.pem\"", "no effect with tls"),
    ] {
        let (problems, warnings) = findings(&format!("{plain}{keys}"));
        assert!(problems.is_empty(), "{problems:?}");
        assert!(
            warnings.iter().any(|w| w.contains(what)),
            "{what} is not in {warnings:?}"
        );
    }
    let (_, warnings) =
        findings("from = \"desk@example.com\"\nhost = \"127.0.0.1\"\ntls = \"none\"");
    assert!(warnings.is_empty(), "loopback is no wire: {warnings:?}");
    let (_, warnings) = findings(plain);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_ca_file_holds_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.pem");
    std::fs::write(&file, "not a certificate\n").unwrap();
    let keys = format!(
        "from = \"d@example.com\"\nhost = \"relay.example.com\"\nca_file = \"{}\"",
        file.display()
    );
    let (problems, _) = findings(&keys);
    assert!(problems[0].contains("holds no certificate"), "{problems:?}");
}

#[test]
fn a_misspelt_key_is_an_error() {
    let error =
        toml::from_str::<smtp::Config>("host = \"h\"\nfrom = \"a@example.com\"\nhots = \"x\"")
            .unwrap_err();
    assert!(error.message().contains("unknown field `hots`"), "{error}");
    let error = toml::from_str::<smtp::Config>(
        "host = \"h\"\nfrom = \"a@example.com\"\nauth = \"pasword\"",
    )
    .unwrap_err();
    assert!(
        error.message().contains("unknown variant `pasword`"),
        "{error}"
    );
}
