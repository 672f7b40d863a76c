//! The process is killed at random moments under load: what was accepted goes out, whatever happened.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use proptest::prelude::Rng;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestRng;

use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

/// So often is it killed.
const KILLS: u32 = 12;
/// So many activations are sent between two kills.
const BURST: u32 = 40;

/// The codes that the relay says it keeps: committed, so they must all come out.
fn accepted(relay: &Relay) -> u32 {
    relay.metric("ftm_relay_activations_total", &[("outcome", "relay")]) as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_kill_goes_out_after_it() {
    let sink = HttpSink::start(|_| reply(204, "")).await;
    let mut relay = Relay::start(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"{}\"\n[[route]]\nto = [\"hook\"]\n",
        sink.url("/")
    ));
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut promised: Vec<u32> = Vec::new();
    let mut next = 0;
    for _ in 0..KILLS {
        let mut connection = TcpStream::connect(relay.tcp()).unwrap();
        let burst = next..next + BURST;
        next += BURST;
        for n in burst.clone() {
            connection
                .write_all(&Event::code(n, &format!("user{n}")).counted())
                .unwrap();
        }
        // Anywhere between the first commit and the last delivery.
        let until_seen = random.next_u32() % BURST + 1;
        let seen = until("some to be accepted", || {
            Some(accepted(&relay)).filter(|n| *n >= until_seen)
        });
        std::thread::sleep(Duration::from_micros(u64::from(random.next_u32() % 20_000)));
        relay.kill();
        // One connection is read in order, so the first `seen` of the burst were committed.
        promised.extend(burst.take(seen as usize));
        relay.run();
    }
    until("every promised code", || {
        let sent = sent(&sink);
        promised
            .iter()
            .all(|n| sent.contains_key(&code(*n)))
            .then_some(())
    });
    until("the queue to be settled", || {
        relay
            .queue()
            .iter()
            .all(|r| r["state"] == "accepted")
            .then_some(())
    });
    let sent = sent(&sink);
    let twice = sent.values().filter(|ids| ids.len() > 1).count();
    assert!(
        twice <= (KILLS * 4) as usize,
        "{twice} of {} went out twice",
        sent.len()
    );
    for (code, ids) in &sent {
        assert!(
            ids.iter().all(|id| *id == ids[0]),
            "{}… went out again under another id",
            &code[..4]
        );
    }
}

/// The webhook-ids of each code that came out.
fn sent(sink: &HttpSink) -> BTreeMap<String, Vec<String>> {
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in sink.requests() {
        let code = request.json()["data"]["code"].as_str().unwrap().to_owned();
        sent.entry(code)
            .or_default()
            .push(request.header("webhook-id").to_owned());
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_under_way_and_loses_nothing() {
    let sink = HttpSink::start(|_| {
        std::thread::sleep(Duration::from_millis(200)); // a slow next hop
        reply(204, "")
    })
    .await;
    let mut relay = Relay::start(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"{}\"\n[[route]]\nto = [\"hook\"]\n",
        sink.url("/")
    ));
    for n in 0..5 {
        relay.send_udp(&Event::code(n, &format!("user{n}")).line());
    }
    until("all to be accepted", || {
        (accepted(&relay) == 5).then_some(())
    });
    assert_eq!(relay.stop(), 0);
    relay.run();
    until("every code", || (sent(&sink).len() == 5).then_some(()));
    until("the queue to be settled", || {
        relay
            .queue()
            .iter()
            .all(|r| r["state"] == "accepted")
            .then_some(())
    });
    assert_eq!(
        sink.requests().len(),
        5,
        "what was under way was finished, not broken off"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_it_lives_and_is_not_ready() {
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let sink = HttpSink::start(move |_| {
        // Until the test has seen enough and drops its end.
        assert!(wait.lock().unwrap().recv().is_err());
        reply(204, "")
    })
    .await;
    let mut relay = Relay::start(&format!(
        "{BASE}[channel.hook]\ntype = \"webhook\"\nurl = \"{}\"\n[[route]]\nto = [\"hook\"]\n",
        sink.url("/")
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    until("the try to be under way", || {
        (!sink.requests().is_empty()).then_some(())
    });
    relay.signal(rustix::process::Signal::TERM);
    until("the relay not to be ready", || {
        (relay.get("/readyz").0 == 503).then_some(())
    });
    assert_eq!(relay.get("/livez").0, 200);
    drop(let_go);
    assert_eq!(relay.wait(), 0);
}
