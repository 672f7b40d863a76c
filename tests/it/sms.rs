//! Text messages.

use std::time::Duration;

use ftm_relay::channel::SendError;
use ftm_relay::message::Recipient;
use jiff::SignedDuration;
use jiff::Timestamp;

use crate::support::channel::CODE;
use crate::support::channel::Commits;
use crate::support::channel::channel;
use crate::support::channel::note;
use crate::support::channel::send_to;
use crate::support::http_sink::Answer;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::twilio::ACCOUNT;
use crate::support::twilio::FROM;
use crate::support::twilio::INVALID;
use crate::support::twilio::KEY;
use crate::support::twilio::KEY_SECRET;
use crate::support::twilio::SERVICE;
use crate::support::twilio::TOKEN;
use crate::support::twilio::Twilio;
use crate::support::twilio::UNSUBSCRIBED;
use crate::support::twilio::error;
use crate::support::until;
use crate::template::alice;

fn reached_by(phone: &str) -> Recipient {
    Recipient {
        phone: Some(phone.to_owned()),
        ..alice(None)
    }
}

async fn text(twilio_keys: &str, phone: &str) -> (Result<String, SendError>, String) {
    let channel = channel("sms", twilio_keys);
    let to = reached_by(phone);
    let (sent, transcript) = send_to(&channel, Some(&to), &note(true), &Commits::good()).await;
    (sent.map(|receipt| receipt.said), transcript)
}

#[tokio::test]
async fn a_code_goes_to_the_phone_for_as_long_as_it_lives() {
    let twilio = Twilio::start().await;
    let channel = channel("sms", &twilio.keys());
    assert!(channel.reveals && channel.needs_person);
    let mut note = note(true);
    let to = reached_by("+1 (415) 555-0199");
    for (left, validity) in [(600, 540..=600), (72 * 3_600, 14_400..=14_400)] {
        note.expires_at = Timestamp::now() + SignedDuration::from_secs(left);
        let (sent, transcript) = send_to(&channel, Some(&to), &note, &Commits::good()).await;
        let said = sent.unwrap().said;
        assert!(said.contains("sid SM0123"), "{said}");
        for secret in [CODE, TOKEN, "4155550199", "alice"] {
            assert!(
                !format!("{said}{transcript}").contains(secret),
                "{transcript}"
            );
        }
        let message = twilio.messages().pop().unwrap();
        assert_eq!(message["To"], "+14155550199");
        assert_eq!(message["From"], FROM);
        assert_eq!(message["AddressRetention"], "obfuscate");
        assert!(message["Body"].contains(CODE));
        assert!(message["Body"].chars().count() <= 306, "two segments");
        assert!(validity.contains(&message["ValidityPeriod"].parse().unwrap()));
    }
}

#[tokio::test]
async fn an_api_key_and_a_messaging_service_do_as_well() {
    let twilio = Twilio::start().await;
    let keys = twilio.account()
        + &format!(
            "key = \"{KEY}\"\nsecret = \"{KEY_SECRET}\"\nmessaging_service = \"{SERVICE}\"\n"
        );
    let (sent, transcript) = text(&keys, "+14155550199").await;
    assert!(sent.is_ok(), "{sent:?}");
    assert!(!transcript.contains(KEY_SECRET));
    assert_eq!(twilio.messages()[0]["MessagingServiceSid"], SERVICE);
}

#[tokio::test]
async fn who_has_no_phone_or_no_good_one_is_final_without_asking() {
    let twilio = Twilio::start().await;
    let channel = channel("sms", &twilio.keys());
    for to in [
        None,
        Some(alice(None)),
        Some(reached_by(" ")),
        Some(reached_by("0170 1234567")),
        Some(reached_by("+49 (0)170 1234567")),
    ] {
        let commit = Commits::good();
        let (sent, _) = send_to(&channel, to.as_ref(), &note(true), &commit).await;
        assert!(matches!(sent, Err(SendError::Permanent { .. })), "{sent:?}");
    }
    assert_eq!(twilio.requests(), 0);
}

#[tokio::test]
async fn an_error_is_classed_by_its_number_and_repeats_no_phone() {
    let twilio = Twilio::start().await;
    for (phone, hint) in [(INVALID, "21211"), (UNSUBSCRIBED, "must answer START")] {
        let (sent, transcript) = text(&twilio.keys(), phone).await;
        let Err(SendError::Permanent { reason }) = sent else {
            panic!("{sent:?}");
        };
        assert!(reason.contains(hint), "{reason}");
        assert!(
            !format!("{reason}{transcript}").contains(&phone[1..]),
            "{reason}"
        );
    }
    for (keys, hint) in [
        (
            twilio.keys().replace(TOKEN, "another"),
            "check `account` and `token`",
        ),
        (
            twilio.keys().replace(FROM, "+14155550111"),
            "must be a sender",
        ),
        (twilio.keys().replace(ACCOUNT, "AC1"), "`account`"),
    ] {
        let (sent, _) = text(&keys, "+14155550199").await;
        let Err(SendError::Broken { reason }) = sent else {
            panic!("{sent:?}");
        };
        assert!(reason.contains(hint), "{reason}");
    }
    twilio.answer_next(Answer::Reply {
        status: 429,
        headers: vec![("Retry-After", "4".to_owned())],
        body: r#"{"code":20429,"message":"Too Many Requests","status":429}"#.to_owned(),
    });
    let (sent, _) = text(&twilio.keys(), "+14155550199").await;
    let Err(SendError::Away { after, .. }) = sent else {
        panic!("{sent:?}");
    };
    assert_eq!(after, Some(Duration::from_secs(4)));
    for (answer, want) in [
        (
            error(400, 21611, "exceeded the maximum number of queued messages"),
            "Away",
        ),
        (error(503, 20503, "Service Unavailable"), "Transient"),
        (error(400, 29999, "something new"), "Permanent"),
        (reply(200, "<html>please log in</html>"), "Transient"),
        (Answer::Close, "Unknown"),
    ] {
        twilio.answer_next(answer);
        let said = format!("{:?}", text(&twilio.keys(), "+14155550199").await.0);
        assert!(said.starts_with(&format!("Err({want} ")), "{want}: {said}");
    }
    assert_eq!(twilio.messages().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directorys_phone_gets_it_and_who_has_none_gets_the_fallback() {
    let twilio = Twilio::start().await;
    let people = "type = \"table\"\npeople = [{ user = \"alice\", email = \"alice@example.com\", phone = \"+1 415 555 0199\" }, { user = \"bob\", email = \"bob@example.com\" }]";
    let config = BASE.replace("type = \"pattern\"\nemail = \"{user}@example.com\"", people);
    let relay = Relay::start(&format!(
        "{config}[channel.text]\ntype = \"sms\"\n{}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"text\"]\nfallback = [\"mail\"]\n",
        twilio.keys()
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    relay.send_udp(&Event::code(2, "bob").line());
    until("both to end", || {
        (relay.states() == ["accepted", "accepted", "failed"]).then_some(())
    });
    let messages = twilio.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["To"], "+14155550199");
    assert!(messages[0]["Body"].contains(&code(1)));
    for secret in [TOKEN, "4155550199", &code(1)] {
        assert!(!relay.logged().contains(secret));
    }
}
