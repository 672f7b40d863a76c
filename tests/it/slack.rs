//! People and places in a workspace of Slack.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ftm_relay::channel::SendError;
use ftm_relay::template::Templates;
use serde_json::Value;

use crate::support::channel::CODE;
use crate::support::channel::Commits;
use crate::support::channel::build;
use crate::support::channel::channel;
use crate::support::channel::note;
use crate::support::channel::person;
use crate::support::channel::send;
use crate::support::channel::send_to;
use crate::support::http_sink::Answer;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::slack::Slack;
use crate::support::slack::TOKEN;
use crate::support::slack::limited;
use crate::support::slack::no;
use crate::support::until;
use crate::template::activation;
use crate::template::berlin;
use crate::template::style;

const LOOKUP: &str = "users.lookupByEmail";
const POST: &str = "chat.postMessage";

#[tokio::test]
async fn a_person_is_found_once_and_written_to_with_the_code() {
    let slack = Slack::start().await;
    let channel = channel("slack", &slack.bot());
    assert!(channel.reveals && channel.needs_person);
    let note = note(true);
    for _ in 0..2 {
        let (sent, transcript) = send(&channel, &note).await;
        let all = format!("{}{transcript}", sent.unwrap().said);
        for secret in [CODE, TOKEN, "alice@", "+49301"] {
            assert!(!all.contains(secret), "{all}");
        }
        assert!(transcript.contains("/api/chat.postMessage"), "{transcript}");
    }
    assert_eq!(slack.calls(), [LOOKUP, POST, POST]);
    assert_eq!(slack.refused(), 0, "the pace of one conversation is kept");
    let message = &slack.posted()[0];
    assert_eq!(message["channel"], "U1");
    assert_eq!(message["unfurl_links"], false);
    assert!(message["blocks"].to_string().contains(CODE));
    assert!(!message["text"].as_str().unwrap().contains(CODE));
}

#[tokio::test]
async fn a_code_goes_to_a_member_and_to_no_place_that_is_given_out_as_one() {
    let slack = Slack::start().await;
    let channel = channel("slack", &slack.bot());
    for id in ["C1", "#general", ""] {
        let body = format!("{{\"ok\":true,\"user\":{{\"id\":\"{id}\"}}}}");
        slack.answer_next(LOOKUP, reply(200, &body));
        let (sent, _) = send(&channel, &note(true)).await;
        assert!(matches!(sent, Err(SendError::Transient { .. })), "{sent:?}");
    }
    assert_eq!(slack.calls(), [LOOKUP; 3]);
}

#[tokio::test]
async fn who_is_unknown_has_left_or_is_gone_since_is_final_and_remembered() {
    let slack = Slack::start().await;
    let channel = channel("slack", &slack.bot());
    for (name, calls) in [("bob", 1), ("carol", 1), ("dave", 2)] {
        for round in 0..2 {
            let commit = Commits::good();
            let before = slack.calls().len();
            let to = person(name);
            let (sent, _) = send_to(&channel, Some(&to), &note(true), &commit).await;
            let Err(SendError::Permanent { reason }) = sent else {
                panic!("{name} {sent:?}");
            };
            assert!(!reason.contains(&to.email), "{reason}");
            let committed = usize::from(name == "dave");
            assert_eq!(
                commit.0.load(Ordering::SeqCst),
                committed,
                "a look-up is no send"
            );
            // An id that is no good any more is looked up again; that there is none is remembered.
            let want = if round == 0 || name == "dave" {
                calls
            } else {
                0
            };
            assert_eq!(slack.calls().len() - before, want, "{name} {round}");
        }
    }
    let (sent, _) = send_to(&channel, None, &note(true), &Commits::good()).await;
    assert!(matches!(sent, Err(SendError::Permanent { .. })), "{sent:?}");
    assert_eq!(slack.posted().len(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_the_app_suspends_the_channel_and_says_what_to_do() {
    let slack = Slack::start().await;
    let refused = slack.bot().replace(TOKEN, "xoxb-other");
    let (sent, _) = send(&channel("slack", &refused), &note(true)).await;
    let Err(SendError::Broken { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("error invalid_auth"), "{reason}");
    assert!(reason.contains("Bot User OAuth Token"), "{reason}");

    let good = channel("slack", &slack.bot());
    let scope = r#"{"ok":false,"error":"missing_scope","needed":"users:read.email","provided":"chat:write"}"#;
    slack.answer_next(LOOKUP, reply(200, scope));
    let (sent, _) = send(&good, &note(true)).await;
    let Err(SendError::Broken { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("the scope users:read.email"), "{reason}");

    for word in [
        "account_inactive",
        "token_revoked",
        "not_allowed_token_type",
    ] {
        slack.answer_next(LOOKUP, no(word));
        let (sent, _) = send(&good, &note(true)).await;
        assert!(
            matches!(sent, Err(SendError::Broken { .. })),
            "{word} {sent:?}"
        );
    }
}

#[tokio::test]
async fn a_limit_is_for_the_channel_and_names_its_time_and_trouble_is_for_the_message() {
    let slack = Slack::start().await;
    let channel = channel("slack", &slack.bot());
    for method in [LOOKUP, POST] {
        slack.answer_next(method, limited(7));
        let (sent, _) = send(&channel, &note(true)).await;
        let Err(SendError::Away { after, .. }) = sent else {
            panic!("{method} {sent:?}");
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
    }
    for answer in [no("internal_error"), reply(502, "<html>")] {
        slack.answer_next(POST, answer);
        let (sent, _) = send(&channel, &note(true)).await;
        assert!(matches!(sent, Err(SendError::Transient { .. })), "{sent:?}");
    }
    slack.answer_next(POST, no("a_word_of_next_year"));
    let (sent, _) = send(&channel, &note(true)).await;
    assert!(matches!(sent, Err(SendError::Permanent { .. })), "{sent:?}");
    slack.answer_next(POST, Answer::Close);
    let (sent, _) = send(&channel, &note(true)).await;
    assert!(matches!(sent, Err(SendError::Unknown { .. })), "{sent:?}");
    slack.answer_next(POST, reply(200, "<html>please log in</html>"));
    let (sent, _) = send(&channel, &note(true)).await;
    assert!(matches!(sent, Err(SendError::Transient { .. })), "{sent:?}");
    assert_eq!(slack.posted().len(), 0);
}

#[tokio::test]
async fn a_place_gets_plain_text_and_no_code() {
    let slack = Slack::start().await;
    let (channel, said) = build("slack", &slack.place(), "");
    let channel = channel.unwrap();
    assert!(said[0].contains("a secret stands in the file"), "{said:?}");
    assert!(!channel.reveals && !channel.needs_person);
    let mut forged = activation();
    forged.user = "<!channel> *bold* <https://evil.example|log in> & :tada:".to_owned();
    let zone = berlin();
    let note = Templates::built_in()
        .activation(&forged, None, &style(&zone, channel.reveals))
        .unwrap();
    let (sent, transcript) = send_to(&channel, None, &note, &Commits::good()).await;
    assert!(sent.is_ok(), "{sent:?}");
    assert!(!transcript.contains("/services/"), "{transcript}");
    let body = &slack.posted()[0];
    assert!(!body.to_string().contains(CODE));
    assert_eq!(body["mrkdwn"], false);
    assert_eq!(
        (&body["unfurl_links"], &body["unfurl_media"]),
        (&false.into(), &false.into())
    );
    let text = body["text"].as_str().unwrap();
    assert!(
        text.contains("&lt;!channel&gt;") && !text.contains(['<', '>']),
        "{text}"
    );
    let blocks = body["blocks"].as_array().unwrap();
    assert_eq!(blocks[0]["type"], "header");
    assert!(blocks.len() > 2);
    for block in blocks {
        assert_eq!(block["text"]["type"], "plain_text");
        assert_eq!(block["text"]["emoji"], false);
    }
}

#[tokio::test]
async fn a_webhook_says_what_it_means_in_the_body() {
    let slack = Slack::start().await;
    let place = channel("slack", &slack.place());
    for (status, word, want) in [
        (400, "invalid_payload", "Permanent"),
        (400, "user_not_found", "Broken"),
        (403, "action_prohibited", "Broken"),
        (403, "invalid_token", "Broken"),
        (404, "channel_not_found", "Broken"),
        (410, "channel_is_archived", "Broken"),
        (500, "rollup_error", "Transient"),
        (200, "<html>please log in</html>", "Transient"),
        (
            429,
            r#"{"retry_after":1,"ok":false,"error":"rate_limited"}"#,
            "Away",
        ),
    ] {
        slack.answer_next("hook", reply(status, word));
        let (sent, _) = send(&place, &note(false)).await;
        let said = format!("{sent:?}");
        assert!(said.starts_with(&format!("Err({want} ")), "{word}: {said}");
    }
    let gone = slack.place().replace("B000", "B001");
    let (sent, _) = send(&channel("slack", &gone), &note(false)).await;
    let Err(SendError::Broken { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("make a new incoming webhook"), "{reason}");
}

fn texts(message: &Value) -> String {
    let blocks = message["blocks"].as_array().unwrap();
    let text = |block: &Value| block["text"]["text"].as_str().unwrap().to_owned();
    blocks.iter().map(text).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desk_reads_who_which_device_until_when_and_whom_to_ask_and_escalations_but_no_code() {
    let slack = Slack::start().await;
    let relay = Relay::start(&format!(
        "{BASE}[templates]\ncontact = \"the service desk, extension 4711\"\n[channel.desk]\ntype = \"slack\"\n{}[channel.dm]\ntype = \"slack\"\n{}[[route]]\nto = [\"dm\", \"desk\"]\nescalate = [\"desk\"]\n",
        slack.place(),
        slack.bot()
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the message and the notice", || {
        (slack.posted().len() == 2).then_some(())
    });
    let (dm, desk): (Vec<_>, Vec<_>) = slack
        .posted()
        .into_iter()
        .partition(|message| message["channel"] == "U1");
    assert!(texts(&dm[0]).contains(&code(1)));
    let notice = texts(&desk[0]);
    for part in ["alice", "TEST-FGT", "until", "extension 4711"] {
        assert!(notice.contains(part), "{part}: {notice}");
    }
    assert!(!desk[0].to_string().contains(&code(1)), "{notice}");

    // Bob is unknown to Slack: final at once, and told in the place.
    relay.send_udp(&Event::code(2, "bob").line());
    until("the notice and the escalation", || {
        (slack.posted().len() == 4).then_some(())
    });
    let told = slack.posted().iter().map(texts).collect::<String>();
    assert!(told.contains("bob on TEST-FGT (root): dm: "), "{told}");
    let all = format!("{:?}", slack.posted());
    assert!(!all.contains(&code(2)), "{all}");
    assert_eq!(slack.refused(), 0, "one message a second, by our own pace");
}
