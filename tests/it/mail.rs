//! Mail beyond one relay and a password: several relays, delivery status notifications, addresses of all scripts, tokens, Graph.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use ftm_relay::channel;
use ftm_relay::channel::Attempt;
use ftm_relay::channel::Channel;
use ftm_relay::channel::Commit;
use ftm_relay::channel::Common;
use ftm_relay::channel::Receipt;
use ftm_relay::channel::SendError;
use ftm_relay::channel::Transcript;
use ftm_relay::channel::smtp::Smtp;
use ftm_relay::message::Recipient;
use ftm_relay::secret::Secret;
use ftm_relay::settings::Check;

use crate::smtp::CODE;
use crate::smtp::STEP;
use crate::smtp::alice;
use crate::smtp::built;
use crate::smtp::channel as to_sink;
use crate::smtp::class;
use crate::smtp::findings;
use crate::smtp::note;
use crate::smtp::reason;
use crate::smtp::say;
use crate::smtp::send;
use crate::smtp::send_with;
use crate::support::http_sink::Answer;
use crate::support::http_sink::reply;
use crate::support::microsoft::CLIENT_SECRET;
use crate::support::microsoft::FORBIDDEN;
use crate::support::microsoft::MAILBOX;
use crate::support::microsoft::Microsoft;
use crate::support::microsoft::ON_PREMISES;
use crate::support::microsoft::TENANT;
use crate::support::microsoft::error;
use crate::support::microsoft::refusal;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::smtp_sink::Act::Close;
use crate::support::smtp_sink::Act::Usual;
use crate::support::smtp_sink::SCOPE;
use crate::support::smtp_sink::Setup;
use crate::support::smtp_sink::Sink;
use crate::support::smtp_sink::USERNAME;
use crate::support::smtp_sink::base64;

/// A sink that answers so at this step, and is good otherwise.
async fn failing(verb: &'static str, answer: &'static str) -> Sink {
    Setup::new()
        .auth("PLAIN")
        .script(move |s| match s.verb == verb {
            true => say(answer),
            false => Usual,
        })
        .start()
        .await
}

fn relays(sinks: &[&Sink], keys: &str) -> Smtp {
    let hosts: Vec<_> = sinks
        .iter()
        .map(|sink| format!("\"{}\"", sink.address))
        .collect();
    built(
        &format!("hosts = [{}]\ntls = \"none\"\n{keys}", hosts.join(", ")),
        STEP,
    )
}

/// Moves the clock, which stands still for the relay in between.
async fn advance(secs: u64) {
    // Tasks that wait have to start before the clock moves, and to notice that it did.
    tokio::task::yield_now().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(secs)).await;
    tokio::task::yield_now().await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_relay_that_is_away_is_passed_over_for_a_while_and_the_next_one_used_at_once() {
    let (away, good) = (
        failing("CONNECT", "421 4.3.2 down").await,
        Setup::new().start().await,
    );
    let smtp = relays(&[&away, &good], "");
    for _ in 0..2 {
        let receipt = send(&smtp).await.unwrap();
        let expected = format!("{}: 250 2.0.0 queued as 4F2A", good.address);
        assert_eq!(receipt.said, expected);
    }
    assert_eq!(away.seen().connections, 1, "it is passed over");
    advance(61).await;
    send(&smtp).await.unwrap();
    assert_eq!(away.seen().connections, 2, "it is asked again");
    good.until(|seen| seen.taken.len() == 3).await;
}

#[tokio::test]
async fn a_relay_that_works_again_is_the_first_again() {
    let times = AtomicUsize::new(0);
    let first = Setup::new()
        .script(move |s| match s.verb {
            "CONNECT" if times.fetch_add(1, Ordering::SeqCst) == 0 => say("421 4.3.2 down"),
            _ => Usual,
        })
        .start()
        .await;
    let second = Setup::new().start().await;
    let smtp = relays(&[&first, &second], "");
    send(&smtp).await.unwrap();
    advance(61).await;
    send(&smtp).await.unwrap();
    first.until(|seen| seen.taken.len() == 1).await;
    assert_eq!(second.seen().taken.len(), 1);
}

#[tokio::test]
async fn a_relay_that_was_passed_over_is_asked_when_nobody_else_can_be_used() {
    let times = AtomicUsize::new(0);
    let first = Setup::new()
        .script(move |s| match s.verb {
            "CONNECT" if times.fetch_add(1, Ordering::SeqCst) == 0 => say("421 4.3.2 down"),
            _ => Usual,
        })
        .start()
        .await;
    let second = failing("MAIL", "421 4.3.2 down too").await;
    let smtp = relays(&[&first, &second], "");
    let outcome = send(&smtp).await;
    assert_eq!(class(&outcome), "away");
    for part in [first.address.to_string(), second.address.to_string()] {
        assert!(reason(&outcome).contains(&part), "{outcome:?}");
    }
    send(&smtp).await.unwrap();
    assert_eq!(first.seen().taken.len(), 1);
}

#[tokio::test]
async fn an_answer_about_the_person_is_not_asked_of_the_next_relay() {
    for (verb, answer) in [
        ("RCPT", "550 5.1.1 unknown"),
        ("DATA", "554 5.6.0 refused"),
        ("CONTENT", "554 5.7.1 content"),
    ] {
        let (first, second) = (failing(verb, answer).await, Setup::new().start().await);
        let smtp = relays(&[&first, &second], "");
        for _ in 0..2 {
            assert_eq!(class(&send(&smtp).await), "permanent", "{verb}");
        }
        assert_eq!(second.seen().connections, 0, "{verb}");
        assert_eq!(first.seen().connections, 1, "{verb}: it works well");
    }
}

#[tokio::test]
async fn a_mail_that_one_relay_may_have_is_given_to_another_only_in_a_later_try() {
    let first = Setup::new()
        .script(|s| if s.verb == "CONTENT" { Close } else { Usual })
        .start()
        .await;
    let second = Setup::new().start().await;
    let smtp = relays(&[&first, &second], "");
    assert_eq!(class(&send(&smtp).await), "unknown");
    assert_eq!(second.seen().connections, 0);
    send(&smtp).await.unwrap();
    let seen = second.until(|seen| seen.taken.len() == 1).await;
    assert!(
        seen.taken[0]
            .content
            .contains("Message-ID: <n1@example.com>")
    );
}

#[tokio::test]
async fn a_mail_that_one_relay_postpones_is_given_to_the_next() {
    for (verb, answer) in [
        ("MAIL", "452 4.3.1 disk full"),
        ("RCPT", "451 4.7.1 greylisted"),
        ("CONTENT", "451 4.3.0 queue"),
    ] {
        let (first, second) = (failing(verb, answer).await, Setup::new().start().await);
        let smtp = relays(&[&first, &second], "");
        send(&smtp).await.unwrap();
        send(&smtp).await.unwrap();
        assert_eq!(second.until(|s| s.taken.len() == 2).await.connections, 1);
        assert!(first.seen().taken.is_empty());
        assert_eq!(first.seen().connections, 1, "it is not passed over");

        let third = failing(verb, answer).await;
        let smtp = relays(&[&first, &third], "");
        let outcome = send(&smtp).await;
        assert_eq!(class(&outcome), "transient", "{outcome:?}");
    }
}

#[tokio::test]
async fn the_channel_is_suspended_only_when_every_relay_needs_an_operator() {
    let login = crate::smtp::login();
    let broken = failing("AUTH", "535 5.7.8 wrong").await;
    let refusing = failing("RCPT", "554 5.7.1 relay access denied").await;
    let away = failing("EHLO", "421 4.3.2 down").await;
    let postponing = failing("RCPT", "451 4.7.1 greylisted").await;
    let good = Setup::new().auth("PLAIN").start().await;
    for (sinks, expected) in [
        (vec![&broken, &good], "accepted"),
        (vec![&broken, &refusing], "broken"),
        (vec![&broken, &away], "away"),
        (vec![&away, &broken, &postponing], "transient"),
        (vec![&refusing, &broken, &away, &good], "accepted"),
    ] {
        let smtp = relays(&sinks, &login);
        for _ in 0..2 {
            assert_eq!(class(&send(&smtp).await), expected, "{}", sinks.len());
        }
    }
}

#[tokio::test]
async fn bounces_are_asked_for_without_the_body_where_the_relay_can_do_that() {
    let sink = Setup::new().extensions(&["DSN"]).start().await;
    let smtp = to_sink(&sink, STEP, "");
    let person = Recipient {
        email: "alice+a=b@example.com".to_owned(),
        ..alice()
    };
    let sent = send_with(&smtp, Some(&person), &note("n1"), false).await;
    sent.outcome.unwrap();
    let lines: Vec<_> = sink
        .seen()
        .lines
        .into_iter()
        .map(|(_, line)| line)
        .collect();
    assert_eq!(lines[1], "MAIL FROM:<desk@example.com> RET=HDRS ENVID=n1");
    assert_eq!(
        lines[2],
        "RCPT TO:<alice+a=b@example.com> NOTIFY=FAILURE,DELAY ORCPT=rfc822;alice+2Ba+3Db@example.com"
    );
    let shown = sent.transcript.join("\n");
    assert!(!shown.contains("alice"), "{shown}");

    // A relay that doesn't offer it refuses it, and so may a channel.
    for (setup, keys) in [
        (Setup::new(), ""),
        (Setup::new().extensions(&["DSN"]), "dsn = false"),
    ] {
        let sink = setup.start().await;
        send(&to_sink(&sink, STEP, keys)).await.unwrap();
        let lines: Vec<_> = sink
            .seen()
            .lines
            .into_iter()
            .map(|(_, line)| line)
            .collect();
        assert_eq!(lines[1], "MAIL FROM:<desk@example.com>");
        assert_eq!(lines[2], "RCPT TO:<alice@example.com>");
    }
}

fn juergen() -> Recipient {
    Recipient {
        email: "jürgen@bücher.example".to_owned(),
        ..alice()
    }
}

#[tokio::test]
async fn letters_outside_ascii_before_the_at_go_only_to_a_relay_that_takes_them() {
    const ALL: &[&str] = &["8BITMIME", "SMTPUTF8", "DSN"];
    let able = Setup::new().extensions(ALL).start().await;
    let smtp = to_sink(&able, STEP, "");
    let sent = send_with(&smtp, Some(&juergen()), &note("n1"), false).await;
    sent.outcome.unwrap();
    let seen = able.seen();
    assert_eq!(
        seen.lines[1].1,
        "MAIL FROM:<desk@example.com> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=n1"
    );
    assert_eq!(
        seen.lines[2].1,
        "RCPT TO:<jürgen@xn--bcher-kva.example> NOTIFY=FAILURE,DELAY"
    );
    assert!(
        seen.taken[0]
            .content
            .contains("<jürgen@xn--bcher-kva.example>")
    );
    let shown = sent.transcript.join("\n");
    assert!(!shown.contains("bcher"), "{shown}");

    let unable = Setup::new().start().await;
    let smtp = to_sink(&unable, STEP, "");
    let sent = send_with(&smtp, Some(&juergen()), &note("n1"), false).await;
    assert_eq!((class(&sent.outcome), sent.commits), ("permanent", 0));
    let said = reason(&sent.outcome);
    assert!(
        said.contains("SMTPUTF8") && !said.contains("bcher"),
        "{said}"
    );
    // Others are still written to, by the same connection.
    send(&smtp).await.unwrap();
    assert_eq!(unable.seen().connections, 1);

    let smtp = relays(&[&unable, &able], "");
    let sent = send_with(&smtp, Some(&juergen()), &note("n2"), false).await;
    sent.outcome.unwrap();
    able.until(|seen| seen.taken.len() == 2).await;
}

#[tokio::test]
async fn an_international_domain_needs_nothing_of_the_relay() {
    let sink = Setup::new().start().await;
    let smtp = to_sink(&sink, STEP, "from = \"Büro <desk@Bücher.example>\"");
    let person = Recipient {
        email: "alice@Bücher.example".to_owned(),
        ..alice()
    };
    let sent = send_with(&smtp, Some(&person), &note("n1"), false).await;
    sent.outcome.unwrap();
    let seen = sink.until(|seen| seen.taken.len() == 1).await;
    assert_eq!(seen.taken[0].to, ["alice@xn--bcher-kva.example"]);
    assert!(seen.taken[0].content.is_ascii());
}

// === Tokens ===

fn with_tokens(sink: &Sink, microsoft: &Microsoft) -> Smtp {
    let keys = format!(
        "auth = \"xoauth2\"\nusername = \"{USERNAME}\"\n{}",
        microsoft.keys()
    );
    to_sink(sink, STEP, &keys)
}

async fn exchange_online(microsoft: &Microsoft) -> Sink {
    Setup::new().xoauth2(microsoft.knows()).start().await
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_used_for_every_connection() {
    let microsoft = Microsoft::start().await;
    let sink = exchange_online(&microsoft).await;
    let smtp = with_tokens(&sink, &microsoft);
    let (one, two, three) = tokio::join!(send(&smtp), send(&smtp), send(&smtp));
    for outcome in [one, two, three] {
        outcome.unwrap();
    }
    assert_eq!(sink.seen().connections, 3);
    assert_eq!(microsoft.asked(), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends_and_the_old_one_does_while_it_can() {
    let microsoft = Microsoft::start().await;
    let sink = exchange_online(&microsoft).await;
    let smtp = with_tokens(&sink, &microsoft);
    send(&smtp).await.unwrap();
    // Connections that waited would need no token.
    advance(3_000).await;
    send(&smtp).await.unwrap();
    assert_eq!(microsoft.asked(), 1);
    advance(400).await;
    microsoft.next_token(reply(503, "<html>"));
    send(&smtp).await.unwrap();
    assert_eq!(microsoft.asked(), 2, "the renewal failed, the old one did");
    advance(10).await;
    send(&smtp).await.unwrap();
    assert_eq!(microsoft.asked(), 2, "the server is left alone for a while");
    advance(40).await;
    send(&smtp).await.unwrap();
    assert_eq!((microsoft.asked(), microsoft.issued()), (3, 2));
    advance(4_000).await;
    microsoft.next_token(reply(503, "<html>"));
    let outcome = send(&smtp).await;
    assert_eq!(class(&outcome), "away", "{outcome:?}");
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_within_the_try() {
    let microsoft = Microsoft::start().await;
    let sink = exchange_online(&microsoft).await;
    let smtp = with_tokens(&sink, &microsoft);
    send(&smtp).await.unwrap();
    microsoft.revoke();
    advance(6).await;
    send(&smtp).await.unwrap();
    assert_eq!(microsoft.issued(), 2);
    let seen = sink.until(|seen| seen.taken.len() == 2).await;
    // The empty line is the answer to the challenge.
    assert_eq!(seen.verbs(1), ["EHLO", "AUTH", ""]);
}

#[tokio::test]
async fn a_token_that_is_refused_suspends_with_an_explanation() {
    let microsoft = Microsoft::start().await;
    let sink = Setup::new().xoauth2(|_, _| false).start().await;
    let smtp = with_tokens(&sink, &microsoft);
    let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    assert_eq!((class(&sent.outcome), sent.commits), ("broken", 0));
    let said = reason(&sent.outcome);
    for part in [
        "535 5.7.3 Authentication unsuccessful",
        "status 401, schemes bearer, scope https://outlook.office365.com/.default",
        "SMTP.SendAsApp",
        "object id of the enterprise application",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(
        microsoft.issued(),
        1,
        "it was new; another would do no better"
    );
    // The next probe has a token in stock, and asks for another one, once.
    assert_eq!(class(&send(&smtp).await), "broken");
    assert_eq!(microsoft.issued(), 2);
    assert_eq!(sink.seen().connections, 3);
}

#[tokio::test]
async fn no_token_is_ever_shown() {
    let microsoft = Microsoft::start().await;
    let sink = Setup::new()
        .xoauth2(microsoft.knows())
        .script(|s| match (s.connection, s.verb) {
            (0, "XOAUTH2") => say("334 bm8gSlNPTg=="),
            (_, "CONTENT") => say("550 5.6.0 eyJ0eXAiOiJKV1QifQ.token-number-1.signature, yes"),
            _ => Usual,
        })
        .start()
        .await;
    let smtp = with_tokens(&sink, &microsoft);
    let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    assert!(
        reason(&sent.outcome).ends_with("550 5.6.0 …, yes"),
        "{:?}",
        sent.outcome
    );
    let shown = sent.transcript.join("\n");
    let response = format!(
        "user={USERNAME}\x01auth=Bearer eyJ0eXAiOiJKV1QifQ.token-number-1.signature\x01\x01"
    );
    for secret in [
        "token-number",
        CLIENT_SECRET,
        "Pq8Q",
        &base64(response.as_bytes()),
    ] {
        assert!(!shown.contains(secret), "{secret} is in\n{shown}");
    }
    for line in [
        "> AUTH XOAUTH2 …",
        "< (a token for 3599 s)",
        "< 550 5.6.0 …, yes",
    ] {
        assert!(
            shown.lines().any(|l| l == line),
            "{line} is not in\n{shown}"
        );
    }
    assert!(shown.contains(&format!("scope {SCOPE})")), "{shown}");
}

#[tokio::test]
async fn a_relay_that_repeats_the_token_in_its_refusal_is_quoted_without_it() {
    let microsoft = Microsoft::start().await;
    let token = "eyJ0eXAiOiJKV1QifQ.token-number-1.signature";
    let response = base64(format!("user={USERNAME}\x01auth=Bearer {token}\x01\x01").as_bytes());
    let sink = Setup::new()
        .xoauth2(|_, _| false)
        .script(move |s| match s.verb {
            "AUTH" => say(&format!("535 5.7.3 {token} or {response}")),
            _ => Usual,
        })
        .start()
        .await;
    let smtp = with_tokens(&sink, &microsoft);
    let sent = send_with(&smtp, Some(&alice()), &note("n1"), false).await;
    let said = format!("{:?}{}", sent.outcome, sent.transcript.join("\n"));
    assert!(said.contains("535 5.7.3 … or …"), "{said}");
    assert!(
        !said.contains("token-number") && !said.contains("eyJ0eX"),
        "{said}"
    );
}

#[tokio::test]
async fn what_the_server_says_that_gives_no_token_has_its_class_and_words() {
    let with_retry_after = |status: u16, body: &str| Answer::Reply {
        status,
        headers: vec![("retry-after", "17".to_owned())],
        body: body.to_owned(),
    };
    let good = "{\"access_token\":\"\"}";
    for (answer, expected, words) in [
        (
            refusal(401, "invalid_client", 7000215, "wrong."),
            "broken",
            "copy the secret's value, not its id",
        ),
        (
            refusal(401, "invalid_client", 7000222, "expired."),
            "broken",
            "client_secret has expired",
        ),
        (
            refusal(400, "unauthorized_client", 700016, "unknown."),
            "broken",
            "no application with this client_id",
        ),
        (
            refusal(400, "invalid_request", 90002, "unknown."),
            "broken",
            "there is no such tenant",
        ),
        (
            refusal(400, "invalid_scope", 70011, "no."),
            "broken",
            "/.default",
        ),
        (
            refusal(400, "interaction_required", 53003, "no."),
            "broken",
            "interaction_required AADSTS53003: no.",
        ),
        (
            refusal(503, "temporarily_unavailable", 90033, "later."),
            "away",
            "later.",
        ),
        (
            refusal(400, "temporarily_unavailable", 90033, "later."),
            "away",
            "later.",
        ),
        (with_retry_after(429, ""), "away", "429 Too Many"),
        (reply(500, "<html>oops</html>"), "away", "500"),
        (reply(302, ""), "broken", "302"),
        (reply(404, ""), "broken", "404"),
        (reply(200, "<html>log in here</html>"), "away", "no token"),
        (reply(200, good), "away", "no token"),
        (Answer::Close, "away", "without an answer"),
    ] {
        let microsoft = Microsoft::start().await;
        let sink = exchange_online(&microsoft).await;
        microsoft.next_token(answer);
        let outcome = send(&with_tokens(&sink, &microsoft)).await;
        let said = reason(&outcome);
        assert_eq!(class(&outcome), expected, "{said}");
        assert!(said.contains(words), "{words} is not in {said}");
        assert!(!said.contains("Trace ID"), "{said}");
        assert_eq!(sink.seen().connections, 0);
        if words == "429 Too Many" {
            let Err(SendError::Away { after, .. }) = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(after, Some(Duration::from_secs(17)));
        }
    }
}

#[tokio::test]
async fn a_server_of_tokens_that_is_away_is_not_the_relays_fault() {
    let microsoft = Microsoft::start().await;
    let (first, second) = (
        exchange_online(&microsoft).await,
        exchange_online(&microsoft).await,
    );
    let keys = format!(
        "auth = \"xoauth2\"\nusername = \"{USERNAME}\"\n{}",
        microsoft.keys()
    );
    let smtp = relays(&[&first, &second], &keys);
    microsoft.next_token(reply(503, ""));
    assert_eq!(class(&send(&smtp).await), "away");
    assert_eq!(microsoft.asked(), 1);
    send(&smtp).await.unwrap();
    assert_eq!(first.seen().taken.len(), 1);
}

#[tokio::test]
async fn mails_that_wait_for_one_token_share_the_answer_that_there_is_none() {
    let microsoft = Microsoft::start().await;
    let sink = exchange_online(&microsoft).await;
    let smtp = with_tokens(&sink, &microsoft);
    microsoft.next_token(reply(503, ""));
    let (one, two, three) = tokio::join!(send(&smtp), send(&smtp), send(&smtp));
    for outcome in [one, two, three] {
        assert_eq!(class(&outcome), "away");
    }
    assert_eq!(microsoft.asked(), 1);
    send(&smtp).await.unwrap();
    assert_eq!(microsoft.asked(), 2, "who comes later asks again");
}

#[tokio::test]
async fn a_relay_without_xoauth2_is_told_from_one_that_refuses() {
    let microsoft = Microsoft::start().await;
    for (offer, words) in [
        ("PLAIN LOGIN", "offers no AUTH XOAUTH2 but PLAIN, LOGIN"),
        ("", "offers no AUTH here"),
    ] {
        let sink = Setup::new().auth(offer).start().await;
        let outcome = send(&with_tokens(&sink, &microsoft)).await;
        assert_eq!(class(&outcome), "broken");
        assert!(reason(&outcome).contains(words), "{outcome:?}");
    }
}

#[tokio::test]
async fn tokens_of_any_other_server_do_as_well() {
    let other = crate::support::http_sink::HttpSink::start(|_| {
        reply(
            200,
            "{\"access_token\":\"opaque\",\"token_type\":\"bearer\"}",
        )
    })
    .await;
    let sink = Setup::new()
        .xoauth2(|token, _| token == "opaque")
        .start()
        .await;
    let keys = format!(
        "auth = \"xoauth2\"\nusername = \"{USERNAME}\"\ntoken_url = \"{}\"\nclient_id = \"me\"\nclient_secret = \"a b+c\"",
        other.url("/token")
    );
    send(&to_sink(&sink, STEP, &keys)).await.unwrap();
    let body = String::from_utf8(other.requests()[0].body.clone()).unwrap();
    assert_eq!(
        body,
        "grant_type=client_credentials&client_id=me&client_secret=a+b%2Bc"
    );
}

#[tokio::test]
async fn a_password_that_exchange_online_no_longer_takes_is_explained() {
    for answer in [
        "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.",
        "550 5.7.30 Basic authentication is not supported for Client Submission.",
    ] {
        let sink = failing("AUTH", answer).await;
        let outcome = send(&to_sink(&sink, STEP, &crate::smtp::login())).await;
        assert_eq!(class(&outcome), "broken");
        assert!(
            reason(&outcome).contains("auth = \"xoauth2\""),
            "{outcome:?}"
        );
    }
}

// === Keys ===

#[test]
fn keys_that_are_missing_or_contradict_each_other_are_named() {
    let from = "from = \"desk@example.com\"\n";
    let oauth = "auth = \"xoauth2\"\nusername = \"desk@example.com\"\n";
    let client = "client_id = \"c\"\nclient_secret = { env = \"PATH\" }\n";
    for (keys, at, what) in [
        (String::new(), "", "`host` is missing"),
        (
            "host = \"a\"\nhosts = [\"b\"]".to_owned(),
            "[\"b\"]",
            "write one of them",
        ),
        ("hosts = []".to_owned(), "[]", "hosts are 1 to 4"),
        (
            "hosts = [\"a\", \"b\", \"c\", \"d\", \"e\"]".to_owned(),
            "[",
            "hosts are 1 to 4",
        ),
        (
            "hosts = [\"a\", \"b:0\"]".to_owned(),
            "\"b:0\"",
            "is no relay",
        ),
        (
            "hosts = [\"a\", \"b:99999\"]".to_owned(),
            "\"b:99999\"",
            "is no relay",
        ),
        ("hosts = [\"a b\"]".to_owned(), "\"a b\"", "is no relay"),
        (
            "hosts = [\"a\", \"a:587\"]".to_owned(),
            "\"a:587\"",
            "twice",
        ),
        (
            "host = \"a:25\"".to_owned(),
            "\"a:25\"",
            "the port has its own key",
        ),
        (
            "host = \"a\"\nto = \"jürgen@example.com\"".to_owned(),
            "\"jürgen@example.com\"",
            "outside ASCII before the @",
        ),
        (
            format!("host = \"a\"\n{oauth}"),
            "\"xoauth2\"",
            "needs tenant",
        ),
        (
            format!("host = \"a\"\n{oauth}"),
            "\"xoauth2\"",
            "needs client_id",
        ),
        (
            format!("host = \"a\"\n{oauth}"),
            "\"xoauth2\"",
            "needs client_secret",
        ),
        (
            "host = \"a\"\nauth = \"xoauth2\"\n".to_owned(),
            "\"xoauth2\"",
            "needs username, the mailbox",
        ),
        (
            format!("host = \"a\"\n{oauth}{client}tenant = \"common\""),
            "\"common\"",
            "can't log in to common",
        ),
        (
            format!("host = \"a\"\n{oauth}{client}tenant = \"a/b\""),
            "\"a/b\"",
            "is no tenant",
        ),
        (
            format!(
                "host = \"a\"\n{oauth}{client}tenant = \"t\"\ntoken_url = \"https://x.example/\""
            ),
            "\"https://x.example/\"",
            "write one of them",
        ),
        (
            format!("host = \"a\"\n{oauth}{client}token_url = \"x\""),
            "\"x\"",
            "no URL",
        ),
        (
            format!(
                "host = \"a\"\n{oauth}{client}token_url = \"https://x.example/\"\nlogin = \"https://y.example\""
            ),
            "\"https://y.example\"",
            "belongs to `tenant`",
        ),
    ] {
        let (problems, _) = findings(&format!("{from}{keys}"));
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with(at) && p.contains(what)),
            "{keys}: {what} is not in {problems:#?}"
        );
    }
    for (keys, at, what) in [
        (
            format!("host = \"a\"\n{client}"),
            "\"c\"",
            "client_id has no effect",
        ),
        (
            format!("host = \"a\"\n{client}"),
            "{ env",
            "client_secret has no effect",
        ),
        (
            "host = \"a\"\ntenant = \"t\"".to_owned(),
            "\"t\"",
            "tenant has no effect",
        ),
        (
            format!("host = \"a\"\n{oauth}{client}tenant = \"t\"\npassword = {{ env = \"PATH\" }}"),
            "{ env",
            "password has no effect",
        ),
        (
            format!("host = \"a\"\ntls = \"none\"\n{oauth}{client}tenant = \"t\""),
            "\"none\"",
            "the token travels in the clear",
        ),
        (
            "hosts = [\"127.0.0.1\", \"a:2525\"]\ntls = \"none\"".to_owned(),
            "\"none\"",
            "codes travel in the clear",
        ),
        (
            "hosts = [\"a:465\"]".to_owned(),
            "\"a:465\"",
            "usually expects TLS",
        ),
    ] {
        let (problems, warnings) = findings(&format!("{from}{keys}"));
        assert!(problems.is_empty(), "{keys}: {problems:?}");
        assert!(
            warnings
                .iter()
                .any(|w| w.starts_with(at) && w.contains(what)),
            "{keys}: {what} is not in {warnings:#?}"
        );
    }
    let good = format!(
        "hosts = [\"a\", \"b:2525\", \"[::1]:25\", \"::1\"]\n{oauth}{client}tenant = \"contoso.onmicrosoft.com\""
    );
    let (problems, warnings) = findings(&format!("{from}{good}"));
    assert_eq!((problems, warnings), (vec![], vec![]));
}

// === Graph ===

fn graph_of(keys: &str, common: &str) -> (Option<Channel>, Vec<String>) {
    let mut check = Check::new("/", None, true);
    let table = toml::Deserializer::parse(keys).unwrap();
    let config = channel::Config::read("graph", table).unwrap().unwrap();
    let common: Common = toml::from_str(common).unwrap();
    let built = config.build("mail", common, Path::new("/state"), &mut check);
    let found = check.findings().into_iter();
    let found = found.map(|f| format!("{:?}: {}", f.weight, f.text));
    (built, found.collect())
}

fn graph(microsoft: &Microsoft, user: &str, keys: &str) -> Channel {
    let keys = format!(
        "{}user = \"{user}\"\napi = \"{}\"\n{keys}",
        microsoft.keys(),
        microsoft.sink.url("/v1.0")
    );
    let (built, found) = graph_of(&keys, "");
    built.unwrap_or_else(|| panic!("{found:?}"))
}

struct Commits(AtomicUsize);

#[async_trait]
impl Commit for Commits {
    async fn commit(&self) -> Result<(), SendError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

async fn post(
    channel: &Channel,
    to: Option<&Recipient>,
) -> (Result<Receipt, SendError>, String, usize) {
    let transcript = Transcript::on();
    let redactor = channel.redactor.with([Secret::new(CODE)]);
    let commit = Commits(AtomicUsize::new(0));
    let attempt = Attempt {
        to,
        note: &note("n1"),
        commit: &commit,
        redactor: &redactor,
        transcript: &transcript,
    };
    let outcome = channel.carrier.send(&attempt).await;
    (
        outcome,
        transcript.lines().join("\n"),
        commit.0.into_inner(),
    )
}

#[tokio::test]
async fn graph_takes_a_mail_and_keeps_no_copy() {
    let microsoft = Microsoft::start().await;
    let mail = graph(
        &microsoft,
        MAILBOX,
        "reply_to = \"Help <help@example.com>\"",
    );
    assert!(mail.needs_person && mail.reveals);
    let (outcome, shown, commits) = post(&mail, Some(&juergen())).await;
    assert!(outcome.unwrap().said.ends_with("answered 202 Accepted"));
    assert_eq!(commits, 1);
    let sent = microsoft.mails();
    assert_eq!(
        sent[0],
        serde_json::json!({
            "message": {
                "subject": "Activate your token",
                "body": { "contentType": "HTML", "content": format!("<p>{CODE}</p>\n") },
                "toRecipients": [{ "emailAddress": { "address": "jürgen@xn--bcher-kva.example", "name": "Alice Example" } }],
                "replyTo": [{ "emailAddress": { "address": "help@example.com", "name": "Help" } }],
                "internetMessageHeaders": [
                    { "name": "x-auto-response-suppress", "value": "All" },
                    { "name": "x-ftm-relay-id", "value": "n1" },
                ],
            },
            "saveToSentItems": false,
        })
    );
    for secret in [CODE, "token-number", CLIENT_SECRET, "rgen", "bcher"] {
        assert!(!shown.contains(secret), "{secret} is in\n{shown}");
    }
    post(&mail, Some(&alice())).await.0.unwrap();
    assert_eq!(microsoft.asked(), 1, "the token is kept");
}

#[tokio::test]
async fn graph_with_a_fixed_recipient_is_a_shared_place() {
    let microsoft = Microsoft::start().await;
    let desk = graph(&microsoft, MAILBOX, "to = \"help@example.com\"");
    assert!(!desk.needs_person && !desk.reveals);
    post(&desk, None).await.0.unwrap();
    let to = &microsoft.mails()[0]["message"]["toRecipients"];
    assert_eq!(to[0]["emailAddress"]["address"], "help@example.com");

    let mail = graph(&microsoft, MAILBOX, "");
    assert_eq!(class(&post(&mail, None).await.0), "permanent");
}

#[tokio::test]
async fn a_token_that_graph_no_longer_takes_is_replaced_once() {
    let microsoft = Microsoft::start().await;
    let mail = graph(&microsoft, MAILBOX, "");
    post(&mail, Some(&alice())).await.0.unwrap();
    microsoft.revoke();
    post(&mail, Some(&alice())).await.0.unwrap();
    assert_eq!((microsoft.mails().len(), microsoft.issued()), (2, 2));

    microsoft.next_mail(error(401, "InvalidAuthenticationToken", "no."));
    microsoft.next_mail(error(401, "InvalidAuthenticationToken", "no."));
    let (outcome, ..) = post(&mail, Some(&alice())).await;
    assert_eq!(class(&outcome), "broken");
    assert!(reason(&outcome).contains("the same cloud"), "{outcome:?}");
    assert_eq!((microsoft.mails().len(), microsoft.issued()), (2, 3));
}

#[tokio::test]
async fn graphs_errors_have_their_class_and_words() {
    let microsoft = Microsoft::start().await;
    for (user, keys, words) in [
        (FORBIDDEN, "", "Application Mail.Send"),
        (ON_PREMISES, "", "is not in Exchange Online"),
        ("nobody@example.com", "", "there is no mailbox as in user"),
        (MAILBOX, "from = \"ceo@example.com\"", "leave out from"),
    ] {
        let mail = graph(&microsoft, user, keys);
        let (outcome, ..) = post(&mail, Some(&alice())).await;
        assert_eq!(class(&outcome), "broken", "{user}");
        assert!(reason(&outcome).contains(words), "{outcome:?}");
        assert!(!reason(&outcome).contains("innerError"), "{outcome:?}");
    }
    let mail = graph(&microsoft, MAILBOX, "");
    let throttled = Answer::Reply {
        status: 429,
        headers: vec![("retry-after", "23".to_owned())],
        body: "{\"error\":{\"code\":\"ApplicationThrottled\",\"message\":\"over its MailboxConcurrency limit\"}}".to_owned(),
    };
    for (answer, expected) in [
        (
            error(400, "ErrorInvalidRecipients", "not alice@example.com"),
            "permanent",
        ),
        (error(403, "SomethingNew", "no."), "broken"),
        (throttled, "away"),
        (reply(500, "<html>"), "transient"),
        (error(503, "serviceNotAvailable", "later."), "transient"),
        (reply(307, ""), "broken"),
        (Answer::Close, "unknown"),
    ] {
        microsoft.next_mail(answer);
        let (outcome, shown, commits) = post(&mail, Some(&alice())).await;
        assert_eq!(class(&outcome), expected, "{outcome:?}");
        assert_eq!(commits, 1);
        assert!(!format!("{shown}{outcome:?}").contains("alice@"), "{shown}");
        if let Err(SendError::Away { after, .. }) = outcome {
            assert_eq!(after, Some(Duration::from_secs(23)));
        }
    }
    assert!(microsoft.mails().is_empty());
}

#[tokio::test]
async fn nothing_is_posted_to_graph_without_a_token() {
    let microsoft = Microsoft::start().await;
    let mail = graph(&microsoft, MAILBOX, "");
    microsoft.next_token(refusal(401, "invalid_client", 7000222, "expired."));
    let (outcome, shown, commits) = post(&mail, Some(&alice())).await;
    assert_eq!((class(&outcome), commits), ("broken", 0));
    assert!(reason(&outcome).contains("client_secret has expired"));
    assert!(!shown.contains("sendMail"), "{shown}");
}

#[test]
fn graphs_keys_are_checked() {
    let keys = |user: &str, more: &str| {
        format!(
            "tenant = \"{TENANT}\"\nclient_id = \"c\"\nclient_secret = {{ env = \"PATH\" }}\nuser = \"{user}\"\n{more}"
        )
    };
    for (keys, what) in [
        (keys("", ""), "is no mailbox"),
        (keys("a/../b", ""), "is no mailbox"),
        (keys("desk@example.com", "to = \"x\""), "is no mail address"),
        (
            keys("desk@example.com", "api = \"ftp://x\""),
            "can't be posted to",
        ),
        (
            keys("desk@example.com", "").replace(TENANT, "organizations"),
            "can't log in to organizations",
        ),
    ] {
        let (built, found) = graph_of(&keys, "");
        assert!(built.is_none());
        assert!(found.iter().any(|f| f.contains(what)), "{what}: {found:?}");
    }
    let (built, found) = graph_of(
        &keys(
            "desk@example.com",
            "api = \"https://graph.microsoft.us/v1.0\"\nlogin = \"https://login.microsoftonline.us/\"\nfrom = \"desk@example.com\"",
        ),
        "reveal = \"notice\"",
    );
    assert!(
        built.is_some_and(|b| !b.reveals) && found.is_empty(),
        "{found:?}"
    );
}

// === By the command ===

#[tokio::test(flavor = "multi_thread")]
async fn send_test_shows_how_a_mail_went_without_its_secrets() {
    let microsoft = Microsoft::start().await;
    let sink = exchange_online(&microsoft).await;
    let graph = format!(
        "[channel.graph]\ntype = \"graph\"\nuser = \"{MAILBOX}\"\napi = \"{}\"\n{}",
        microsoft.sink.url("/v1.0"),
        microsoft.keys()
    );
    let smtp = format!(
        "[channel.smtp]\ntype = \"smtp\"\nhosts = [\"{}\"]\ntls = \"none\"\nauth = \"xoauth2\"\nusername = \"{USERNAME}\"\nfrom = \"{MAILBOX}\"\n{}",
        sink.address,
        microsoft.keys()
    );
    let relay = Relay::prepare(&format!(
        "{BASE}{graph}{smtp}[[route]]\nto = [\"graph\", \"smtp\"]\n"
    ));
    for (channel, said) in [
        ("graph", "accepted by the next hop: "),
        ("smtp", "accepted by the next hop: 250 2.0.0 queued as 4F2A"),
    ] {
        let output = relay.cli(&[
            "send-test",
            "--channel",
            channel,
            "--to",
            "alice@example.com",
        ]);
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && shown.contains(said), "{shown}");
        for secret in ["token-number", CLIENT_SECRET, "alice@"] {
            assert!(!shown.contains(secret), "{secret} is in\n{shown}");
        }
    }
    assert_eq!(microsoft.mails().len(), 1);
    sink.until(|seen| seen.taken.len() == 1).await;

    microsoft.next_mail(error(403, "ErrorAccessDenied", "access is denied."));
    let output = relay.cli(&[
        "send-test",
        "--channel",
        "graph",
        "--to",
        "alice@example.com",
    ]);
    assert!(!output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains("until this is mended") && shown.contains("Application Mail.Send"),
        "{shown}"
    );
}
