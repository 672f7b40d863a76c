//! Cards to a flow of Teams.

use ftm_relay::channel::SendError;
use ftm_relay::template::Templates;

use crate::support::channel::CODE;
use crate::support::channel::Commits;
use crate::support::channel::build;
use crate::support::channel::channel;
use crate::support::channel::note;
use crate::support::channel::send;
use crate::support::channel::send_to;
use crate::support::http_sink::Answer;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::teams::Flow;
use crate::support::teams::SIGNATURE;
use crate::support::teams::hidden;
use crate::support::until;
use crate::template::activation;
use crate::template::berlin;
use crate::template::style;

#[tokio::test]
async fn a_card_names_the_person_for_the_flow_and_holds_no_code_unless_it_may() {
    let flow = Flow::start().await;
    for (reveal, shown) in [("", false), ("reveal = \"code\"", true)] {
        let (channel, _) = build("teams", &flow.keys(), reveal);
        let channel = channel.unwrap();
        assert_eq!(channel.reveals, shown);
        assert!(!channel.needs_person);
        let (sent, transcript) = send(&channel, &note(shown)).await;
        assert!(sent.is_ok(), "{sent:?}");
        assert!(!transcript.contains(SIGNATURE), "{transcript}");
        let card = flow.cards().pop().unwrap();
        assert_eq!(card["recipient"], "alice@example.com");
        assert_eq!(card.to_string().contains(CODE), shown);
    }
    let (sent, _) = send_to(
        &channel("teams", &flow.keys()),
        None,
        &note(false),
        &Commits::good(),
    )
    .await;
    assert!(sent.is_ok(), "{sent:?}");
    assert!(flow.cards()[2]["recipient"].is_null());
}

#[tokio::test]
async fn nothing_of_a_log_becomes_markdown_and_the_longest_card_is_taken() {
    let flow = Flow::start().await;
    let mut forged = activation();
    forged.user = "[log in](https://evil.test) **b** \u{1f512}".repeat(200);
    let zone = berlin();
    let mut note = Templates::built_in()
        .activation(&forged, None, &style(&zone, false))
        .unwrap();
    note.chat = vec!["\u{1f512} é \" \\".repeat(400); 20];
    let (sent, _) = send(&channel("teams", &flow.keys()), &note).await;
    assert!(sent.is_ok(), "{sent:?}");
    let card = &flow.cards()[0]["attachments"][0]["content"];
    assert!(card.to_string().len() < 20_000);
    for block in card["body"].as_array().unwrap() {
        assert_eq!(block["type"], "RichTextBlock");
        assert_eq!(block["inlines"][0]["type"], "TextRun");
    }
}

#[tokio::test]
async fn a_failure_hidden_in_a_200_is_what_its_status_says() {
    let flow = Flow::start().await;
    let channel = channel("teams", &flow.keys());
    for (answer, want) in [
        (hidden(429), "Away"),
        (hidden(413), "Permanent"),
        (hidden(404), "Broken"),
        (hidden(503), "Transient"),
        (reply(401, ""), "Broken"),
        (reply(429, ""), "Away"),
        (Answer::Close, "Unknown"),
    ] {
        flow.answer_next(answer);
        let (sent, _) = send(&channel, &note(false)).await;
        let said = format!("{sent:?}");
        assert!(said.starts_with(&format!("Err({want} ")), "{want}: {said}");
    }
    let wrong = flow.keys().replace(SIGNATURE, "another");
    let (built, _) = build("teams", &wrong, "");
    let (sent, _) = send(&built.unwrap(), &note(false)).await;
    assert!(matches!(sent, Err(SendError::Broken { .. })), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_waits_its_turn_and_nothing_is_refused() {
    let flow = Flow::start().await;
    let relay = Relay::start(&format!(
        "{BASE}[channel.team]\ntype = \"teams\"\nreveal = \"code\"\n{}[[route]]\nto = [\"team\"]\n",
        flow.keys()
    ));
    for n in 0..9 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    until("all of them", || (flow.cards().len() == 9).then_some(()));
    for n in 0..9 {
        let card = flow.cards().into_iter().find(|card| {
            let recipient = card["recipient"].as_str().unwrap();
            recipient == format!("user{n}@example.com")
        });
        assert!(card.unwrap().to_string().contains(&code(n)));
    }
    let retried = &[("channel", "team"), ("outcome", "retried")];
    assert_eq!(relay.metric("ftm_relay_deliveries_total", retried), 0.0);
}
