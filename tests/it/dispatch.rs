//! Cases, fallbacks, escalations: what becomes of accepted activations, seen from outside.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::Value;

use crate::support::http_sink::HttpSink;
use crate::support::http_sink::Request;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

/// A webhook that answers as the status says, at any time.
async fn hook(status: &Arc<AtomicU16>) -> HttpSink {
    let status = Arc::clone(status);
    HttpSink::start(move |_| reply(status.load(SeqCst), "")).await
}

fn always(status: u16) -> Arc<AtomicU16> {
    Arc::new(AtomicU16::new(status))
}

fn channel(name: &str, sink: &HttpSink) -> String {
    format!(
        "[channel.{name}]\ntype = \"webhook\"\nurl = \"{}\"\n",
        sink.url("/")
    )
}

fn events(sink: &HttpSink, kind: &str) -> Vec<Value> {
    let bodies = sink
        .requests()
        .iter()
        .map(Request::json)
        .collect::<Vec<_>>();
    bodies.into_iter().filter(|b| b["type"] == kind).collect()
}

fn codes(sink: &HttpSink) -> Vec<String> {
    let sent = events(sink, "fortitoken.code-sent");
    sent.iter()
        .filter_map(|b| b["data"]["code"].as_str().map(str::to_owned))
        .collect()
}

fn reasons(sink: &HttpSink) -> Vec<String> {
    let told = events(sink, "fortitoken.escalation");
    told.iter()
        .map(|b| b["data"]["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_reaches_its_webhook_as_the_contract_says() {
    let sink = hook(&always(204)).await;
    let relay = Relay::start(&format!(
        "{BASE}{}[[route]]\nto = [\"hook\"]\n",
        channel("hook", &sink)
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the webhook", || {
        (!sink.requests().is_empty()).then_some(())
    });
    let body = &events(&sink, "fortitoken.code-sent")[0]["data"];
    assert_eq!(body["code"], code(1));
    assert_eq!(body["user"], "alice");
    assert_eq!(body["recipient"]["email"], "alice@example.com");
    assert_eq!(body["device"]["id"], "FGT60FTK20000001");
    assert_eq!(body["event"]["logid"], 38412);
    until("acceptance", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    let accepted = &[("outcome", "accepted")];
    until("its end to be counted", || {
        (relay.metric("ftm_relay_activations_ended_total", accepted) == 1.0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_by_two_ways_goes_out_once_and_a_resend_again() {
    let sink = hook(&always(204)).await;
    let relay = Relay::start(&format!(
        "{BASE}{}[[route]]\nto = [\"hook\"]\n",
        channel("hook", &sink)
    ));
    let event = Event::code(1, "alice");
    relay.send_udp(&event.line());
    relay.send_udp(&event.line());
    relay.send_tcp(&event.counted());
    until("both duplicates", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "duplicate")]) == 2.0)
            .then_some(())
    });
    until("the first to be sent", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    relay.send_udp(&event.later(30).line());
    until("the resend", || (codes(&sink).len() == 2).then_some(()));
    let ids: Vec<_> = sink
        .requests()
        .iter()
        .map(|r| r.header("webhook-id").to_owned())
        .collect();
    assert_ne!(ids[0], ids[1], "a resend is another event");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_failure_starts_the_fallback_at_once_and_is_told() {
    let (to, fallback, desk) = (
        hook(&always(422)).await,
        hook(&always(204)).await,
        hook(&always(204)).await,
    );
    let route = "[[route]]\nto = [\"first\"]\nfallback = [\"second\"]\nescalate = [\"desk\"]\n";
    let channels = channel("first", &to) + &channel("second", &fallback) + &channel("desk", &desk);
    let relay = Relay::start(&format!("{BASE}{channels}{route}"));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the fallback", || {
        (codes(&fallback) == [code(1)]).then_some(())
    });
    until("the escalation", || {
        (reasons(&desk) == ["failed"]).then_some(())
    });
    let told = &events(&desk, "fortitoken.escalation")[0]["data"];
    assert!(
        told["subjects"][0]
            .as_str()
            .unwrap()
            .starts_with("alice on TEST-FGT (root): first: ")
    );
    until("the end", || {
        (relay.states() == ["accepted", "accepted", "failed"]).then_some(())
    });
    assert_eq!(to.requests().len(), 1, "a final failure is not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_us_suspends_the_channel_once_for_all_and_starts_the_fallback() {
    let (to, fallback, desk) = (
        hook(&always(401)).await,
        hook(&always(204)).await,
        hook(&always(204)).await,
    );
    let route = "[[route]]\nto = [\"first\"]\nfallback = [\"second\"]\nescalate = [\"desk\"]\n";
    let channels = channel("first", &to) + &channel("second", &fallback) + &channel("desk", &desk);
    let relay = Relay::start(&format!("{BASE}{channels}{route}"));
    for n in 0..5 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    until("every fallback", || {
        (codes(&fallback).len() == 5).then_some(())
    });
    assert_eq!(
        to.requests().len(),
        1,
        "nobody is asked twice with a refused secret"
    );
    until("the escalation", || {
        (reasons(&desk) == ["suspended:first"]).then_some(())
    });
    assert_eq!(
        relay.metric("ftm_relay_channel_suspended", &[("channel", "first")]),
        1.0
    );
    until("what was pending to be cancelled", || {
        (relay.states().iter().filter(|s| *s == "cancelled").count() == 5).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_channel_resumes_at_an_operators_retry_and_that_is_told() {
    let status = always(401);
    let (to, desk) = (hook(&status).await, hook(&always(204)).await);
    let channels = channel("first", &to) + &channel("desk", &desk);
    let relay = Relay::start(&format!(
        "{BASE}{channels}[[route]]\nto = [\"first\"]\nescalate = [\"desk\"]\n"
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the suspension", || {
        (reasons(&desk) == ["suspended:first"]).then_some(())
    });
    status.store(204, SeqCst);
    let id = until("the delivery to wait", || {
        let row = relay
            .queue()
            .into_iter()
            .find(|r| r["channel"] == "first")?;
        (row["state"] == "pending").then(|| row["id"].as_str().unwrap().to_owned())
    });
    assert!(relay.cli(&["queue", "retry", &id]).status.success());
    until("the code", || (codes(&to).len() == 2).then_some(()));
    until("the resumption", || {
        (reasons(&desk).last().unwrap() == "resumed:first").then_some(())
    });
    assert_eq!(
        relay.metric("ftm_relay_channel_suspended", &[("channel", "first")]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_that_starts_late_ends_what_is_pending() {
    let (to, fallback) = (hook(&always(503)).await, hook(&always(204)).await);
    let route = "[[route]]\nto = [\"first\"]\nfallback = [\"second\"]\nfallback_after = \"1s\"\n";
    let relay = Relay::start(&format!(
        "{BASE}{}{}{route}",
        channel("first", &to),
        channel("second", &fallback)
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the fallback", || {
        (codes(&fallback) == [code(1)]).then_some(())
    });
    until("the first channel's delivery to be cancelled", || {
        (relay.states() == ["accepted", "cancelled"]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_code_and_a_person_nobody_knows_are_loud() {
    let (to, desk) = (hook(&always(204)).await, hook(&always(204)).await);
    let config = BASE.replace(
        "type = \"pattern\"\nemail = \"{user}@example.com\"",
        "type = \"table\"\npeople = [{ user = \"bob\", email = \"bob@example.com\" }]",
    );
    let file = "[channel.person]\ntype = \"file\"\npath = \"mail\"\n";
    let relay = Relay::start(&format!(
        "{config}{file}{}{}[[route]]\nto = [\"person\"]\nescalate = [\"desk\"]\n",
        channel("hook", &to),
        channel("desk", &desk)
    ));
    relay.send_udp(
        &Event::with_message("bob", "Send activation code **************** to bob").line(),
    );
    relay.send_udp(&Event::code(1, "nobody").line());
    until("both escalations", || {
        let mut told = reasons(&desk);
        told.sort();
        (told == ["no-code", "no-recipient"]).then_some(())
    });
    assert_eq!(
        relay
            .states()
            .iter()
            .filter(|s| *s == "needs-attention")
            .count(),
        2
    );
    assert_eq!(
        relay.metric("ftm_relay_activations_total", &[("outcome", "no_code")]),
        1.0
    );
    let nobody = &[("outcome", "no_recipient")];
    until("its end to be counted", || {
        (relay.metric("ftm_relay_activations_ended_total", nobody) == 1.0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_is_added_to_the_table_gets_the_code_at_a_retry() {
    let config = BASE.replace(
        "type = \"pattern\"\nemail = \"{user}@example.com\"",
        "type = \"table\"\nfile = \"people.csv\"",
    );
    let mut relay = Relay::prepare(&format!(
        "{config}[channel.person]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"person\"]\n"
    ));
    let table = relay.dir.path().join("people.csv");
    std::fs::write(&table, "user,email\n").unwrap();
    relay.run();
    relay.send_udp(&Event::code(1, "carol").line());
    until("attention to be needed", || {
        (relay.states() == ["needs-attention"]).then_some(())
    });
    std::fs::write(&table, "user,email\ncarol,carol@example.com\n").unwrap();
    let id = relay.queue()[0]["id"].as_str().unwrap().to_owned();
    until("the mail", || {
        relay.cli(&["queue", "retry", &id]); // the table is looked at again once a second
        let mail = std::fs::read_dir(relay.dir.path().join("mail"))
            .ok()?
            .flatten()
            .find(|e| e.path().extension().is_some_and(|x| x == "eml"))?;
        std::fs::read_to_string(mail.path())
            .unwrap()
            .contains(&code(1))
            .then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn escalations_of_one_reason_are_gathered() {
    let desk = hook(&always(204)).await;
    let channels =
        "[channel.person]\ntype = \"file\"\npath = \"mail\"\n".to_owned() + &channel("desk", &desk);
    let relay = Relay::start(&format!(
        "{BASE}{channels}[[route]]\nto = [\"person\"]\nescalate = [\"desk\"]\n"
    ));
    for n in 0..20 {
        relay.send_udp(&Event::with_message(&format!("user{n}"), "no code here").line());
    }
    until("all to be received", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "no_code")]) == 20.0)
            .then_some(())
    });
    until("everything to be told or gathered", || {
        let queue = relay.queue();
        let messages: Vec<_> = queue
            .iter()
            .filter(|r| r["stage"] == "escalation")
            .map(|r| r["state"].as_str().unwrap())
            .collect();
        // All in one, if they were decided about before the first was sent.
        let sent = matches!(messages[..], ["accepted"] | ["pending", "accepted"]);
        (sent && !queue.iter().any(|r| r["state"] == "received")).then_some(())
    });
    assert_eq!(desk.requests().len(), 1, "one message in five minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_for_one_person_is_held() {
    let (to, desk) = (hook(&always(204)).await, hook(&always(204)).await);
    let channels = channel("first", &to) + &channel("desk", &desk);
    let relay = Relay::start(&format!(
        "{BASE}{channels}[limits]\nper_person = \"3/h\"\n[[route]]\nto = [\"first\"]\nescalate = [\"desk\"]\n"
    ));
    for n in 0..6 {
        relay.send_udp(&Event::code(n, "alice").later(i64::from(n)).line());
        until("it to be looked at", || {
            let rows = relay.queue();
            let mut codes = rows.iter().filter(|r| r["stage"] != "escalation");
            let settled = |r: &Value| {
                ["accepted", "needs-attention", "superseded"]
                    .contains(&r["state"].as_str().unwrap())
            };
            (codes.clone().count() == n as usize + 1 && codes.all(settled)).then_some(())
        });
    }
    assert_eq!(codes(&to).len(), 3);
    until("it to be told", || {
        (reasons(&desk) == ["held"]).then_some(())
    });
    let held = &[("outcome", "held")];
    until("it to be counted", || {
        (relay.metric("ftm_relay_activations_ended_total", held) == 3.0).then_some(())
    });
    assert_eq!(
        relay.metric(
            "ftm_relay_activations_ended_total",
            &[("outcome", "superseded")]
        ),
        0.0,
        "each ends once, though a newer one replaces a held one"
    );
    let held = relay
        .queue()
        .into_iter()
        .find(|r| r["state"] == "needs-attention")
        .unwrap();
    assert!(
        relay
            .cli(&["queue", "retry", held["id"].as_str().unwrap()])
            .status
            .success()
    );
    until("the released one", || (codes(&to).len() == 4).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_out_after_expiry_and_a_newer_code_replaces_a_pending_one() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let sink =
        HttpSink::start(move |_| reply(if is_down.load(SeqCst) { 503 } else { 204 }, "")).await;
    let device = "[[device]]\nid = \"FGT60FTK20000001\"\nvalidity = \"1h\"\n";
    let relay = Relay::start(&format!(
        "{BASE}{device}{}[[route]]\nto = [\"first\"]\n",
        channel("first", &sink)
    ));
    relay.send_udp(&Event::code(1, "alice").later(-7200).line());
    until("the old one to be expired", || {
        (relay.states() == ["expired"]).then_some(())
    });
    relay.send_udp(&Event::code(2, "bob").later(-60).line());
    until("the first code to wait", || {
        relay.states().contains(&"pending".to_owned()).then_some(())
    });
    relay.send_udp(&Event::code(3, "bob").line());
    until("it to be superseded", || {
        relay
            .states()
            .contains(&"superseded".to_owned())
            .then_some(())
    });
    relay.send_udp(&Event::code(4, "bob").later(-30).line());
    until(
        "an older one that comes late to be superseded at once",
        || (relay.states().iter().filter(|s| *s == "superseded").count() == 2).then_some(()),
    );
    down.store(false, SeqCst);
    for row in relay.queue().iter().filter(|r| r["state"] == "pending") {
        relay.cli(&["queue", "retry", row["id"].as_str().unwrap()]);
    }
    until("the newest code", || {
        codes(&sink).contains(&code(3)).then_some(())
    });
    until("its acceptance", || {
        relay
            .states()
            .contains(&"accepted".to_owned())
            .then_some(())
    });
    assert!(!codes(&sink).contains(&code(1)) && !codes(&sink).contains(&code(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_held_where_the_operator_wants_that() {
    let sink = HttpSink::start(|_| crate::support::http_sink::Answer::Close).await;
    let channels = channel("first", &sink) + "on_uncertain = \"hold\"\n";
    let relay = Relay::start(&format!("{BASE}{channels}[[route]]\nto = [\"first\"]\n"));
    relay.send_udp(&Event::code(1, "alice").line());
    until("a person to be needed", || {
        (relay.states() == ["needs-attention"]).then_some(())
    });
    assert_eq!(sink.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_channel_fails_what_waited_for_it_and_the_new_route_takes_over() {
    let (old, new) = (hook(&always(503)).await, hook(&always(204)).await);
    let relay = Relay::start(&format!(
        "{BASE}{}[[route]]\nto = [\"old\"]\n",
        channel("old", &old)
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the first try", || {
        (old.requests().len() == 1).then_some(())
    });
    relay.configure(&format!(
        "{BASE}{}[[route]]\nto = [\"new\"]\n",
        channel("new", &new)
    ));
    relay.signal(rustix::process::Signal::HUP);
    until("the code by the new channel", || {
        (codes(&new) == [code(1)]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_channel_that_a_reload_mends_is_tried_at_once_and_that_is_told() {
    let (refusing, taking) = (hook(&always(401)).await, hook(&always(204)).await);
    let desk = hook(&always(204)).await;
    let config = |to: &HttpSink| {
        let channels = channel("first", to) + &channel("desk", &desk);
        format!("{BASE}{channels}[[route]]\nto = [\"first\"]\nescalate = [\"desk\"]\n")
    };
    let relay = Relay::start(&config(&refusing));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the suspension to be told", || {
        (reasons(&desk) == ["suspended:first"]).then_some(())
    });
    relay.send_udp(&Event::code(2, "bob").line());
    until("the next one to wait", || {
        relay
            .queue()
            .iter()
            .any(|r| r["user"] == "bob" && r["state"] == "pending")
            .then_some(())
    });
    relay.configure(&config(&taking));
    relay.signal(rustix::process::Signal::HUP);
    until("the one that waits to go out", || {
        codes(&taking).contains(&code(2)).then_some(())
    });
    until("the resumption to be told", || {
        (reasons(&desk) == ["suspended:first", "resumed:first"]).then_some(())
    });
    assert_eq!(
        relay.metric("ftm_relay_channel_suspended", &[("channel", "first")]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_before_what_else_waits_for_a_suspended_channel() {
    let status = always(401);
    let to = hook(&status).await;
    let relay = Relay::start(&format!(
        "{BASE}{}[[route]]\nto = [\"first\"]\n",
        channel("first", &to)
    ));
    let suspended = &[("channel", "first")];
    relay.send_udp(&Event::code(0, "user0").line());
    until("the suspension", || {
        (relay.metric("ftm_relay_channel_suspended", suspended) == 1.0).then_some(())
    });
    for n in 1..4 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    let id = until("the others to wait", || {
        let waiting = relay.queue();
        let pending = waiting.iter().filter(|r| r["state"] == "pending").count();
        let last = waiting.iter().find(|r| r["user"] == "user3")?;
        (pending == 4).then(|| last["id"].as_str().unwrap().to_owned())
    });
    assert!(relay.cli(&["queue", "retry", &id]).status.success());
    until("one more try", || (to.requests().len() == 2).then_some(()));
    assert_eq!(codes(&to)[1], code(3), "the one that was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_one_of_two_ways_is_no_end_but_cancelling_both_is_one() {
    let sink = hook(&always(503)).await;
    let channels = channel("first", &sink) + &channel("second", &sink);
    let relay = Relay::start(&format!(
        "{BASE}{channels}[[route]]\nto = [\"first\", \"second\"]\n"
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("both to wait", || {
        let queue = relay.queue();
        (queue.len() == 2
            && queue
                .iter()
                .all(|r| r["attempts"] == 1 && r["state"] == "pending"))
        .then_some(())
    });
    let cancelled = &[("outcome", "cancelled")];
    for (row, ends) in relay.queue().iter().zip([0.0, 1.0]) {
        assert!(
            relay
                .cli(&["queue", "cancel", row["id"].as_str().unwrap()])
                .status
                .success()
        );
        assert_eq!(
            relay.metric("ftm_relay_activations_ended_total", cancelled),
            ends
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_pace_wait_in_the_outbox_untried_and_a_reload_gives_no_turn_back() {
    let sink = hook(&always(204)).await;
    let config = |pace: &str| {
        let channel = channel("hook", &sink);
        format!("{BASE}{channel}{pace}concurrency = 2\n[[route]]\nto = [\"hook\"]\n")
    };
    let relay = Relay::start(&config("pace = \"3/h\"\n"));
    for n in 0..6 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    until("three to go out and three to wait", || {
        let states = relay.states();
        let count = |state: &str| states.iter().filter(|s| *s == state).count();
        (count("accepted") == 3 && count("pending") == 3).then_some(())
    });
    relay.configure(&config("pace = \"4/h\"\n"));
    relay.signal(rustix::process::Signal::HUP);
    until("one more to go out", || {
        (relay.states().iter().filter(|s| *s == "accepted").count() == 4).then_some(())
    });
    let waiting: Vec<_> = relay
        .queue()
        .into_iter()
        .filter(|row| row["state"] == "pending")
        .collect();
    assert_eq!(waiting.len(), 2);
    assert!(
        waiting.iter().all(|row| row["attempts"] == 0),
        "{waiting:?}"
    );
    assert_eq!(sink.requests().len(), 4);
    let id = waiting[0]["id"].as_str().unwrap();
    assert!(relay.cli(&["queue", "retry", id]).status.success());
    until("the one that an operator wants", || {
        (codes(&sink).len() == 5).then_some(())
    });
    relay.configure(&config(""));
    relay.signal(rustix::process::Signal::HUP);
    until("the rest", || (codes(&sink).len() == 6).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_hangs_delays_no_other() {
    let hanging = HttpSink::start(|_| crate::support::http_sink::Answer::Silence).await;
    let quick = hook(&always(204)).await;
    let channels = channel("slow", &hanging) + &channel("quick", &quick);
    let relay = Relay::start(&format!(
        "{BASE}{channels}[[route]]\nto = [\"slow\", \"quick\"]\n"
    ));
    for n in 0..20 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    until("all by the quick one", || {
        (codes(&quick).len() == 20).then_some(())
    });
    assert_eq!(hanging.requests().len(), 1, "its one try has not ended yet");
}
