//! The FortiGate's own word: the code that a log doesn't show, the confirmation of one that it does, and whose it is.

use serde_json::Value;

use crate::support::authority::Authority;
use crate::support::fortigate;
use crate::support::fortigate::Fault;
use crate::support::fortigate::FortiGate;
use crate::support::fortigate::Shown;
use crate::support::http_sink::HttpSink;
use crate::support::http_sink::reply;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

/// A time long after any test.
pub fn later(hours: i64) -> i64 {
    jiff::Timestamp::now().as_second() + hours * 3600
}

/// A FortiGate, where codes go, and the desk that is told; the relay is up to the test.
pub struct Scene {
    pub gate: FortiGate,
    hook: HttpSink,
    desk: HttpSink,
}

impl Scene {
    pub async fn new() -> Self {
        let gate = FortiGate::start().await;
        {
            let mut state = gate.state();
            state.add_token(1, later(48));
            state.add_user("alice", 1, "alice@example.com");
        }
        Self::around(gate).await
    }

    async fn around(gate: FortiGate) -> Self {
        Self {
            gate,
            hook: HttpSink::start(|_| reply(204, "")).await,
            desk: HttpSink::start(|_| reply(200, "ok")).await,
        }
    }

    pub fn config(&self, device: &str) -> String {
        format!(
            "{BASE}{}{device}[channel.hook]\ntype = \"webhook\"\nurl = \"{}\"\n[channel.desk]\ntype = \"slack\"\nurl = \"{}\"\n\
             [[route]]\nto = [\"hook\"]\nescalate = [\"desk\"]\n",
            self.gate.device(),
            self.hook.url("/"),
            self.desk.url("/"),
        )
    }

    pub fn start(&self, device: &str) -> Relay {
        Relay::start(&self.config(device))
    }

    /// The data of what went out.
    pub fn sent(&self) -> Vec<Value> {
        let requests = self.hook.requests();
        requests.iter().map(|r| r.json()["data"].clone()).collect()
    }

    pub fn first_sent(&self) -> Value {
        until("a code to go out", || self.sent().first().cloned())
    }

    /// What goes out once an operator is impatient. A device that gave no answer is left alone for a moment.
    fn sent_at_last(&self, relay: &Relay) -> Value {
        until("a code to go out", || {
            relay.cli(&["queue", "retry", "A1"]);
            self.sent().first().cloned()
        })
    }

    /// What the desk was told.
    fn told(&self) -> String {
        let requests = self.desk.requests();
        let bodies = requests
            .iter()
            .map(|r| String::from_utf8_lossy(&r.body).into_owned());
        bodies.collect::<Vec<_>>().join("\n")
    }

    fn until_told(&self, what: &str) {
        until(&format!("the desk to be told {what:?}"), || {
            self.told().contains(what).then_some(())
        });
    }
}

/// 38412 as a FortiOS may log it that hides codes.
pub fn masked(user: &str) -> Event {
    Event::with_message(user, "Send activation code **************** to the user")
}

pub fn story(relay: &Relay, id: &str) -> Value {
    let shown = relay.cli(&["queue", "show", id, "--json"]);
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    serde_json::from_slice(&shown.stdout).unwrap()
}

/// The sentences of the trace, each after who said it.
pub fn trace(story: &Value) -> String {
    let trace = story["trace"].as_array().unwrap();
    let line = |f: &Value| {
        format!(
            "{}: {}\n",
            f["by"].as_str().unwrap(),
            f["said"].as_str().unwrap()
        )
    };
    trace.iter().map(line).collect()
}

/// Why a case waits.
fn reason(relay: &Relay, id: &str) -> String {
    until("a reason", || {
        let shown = relay.cli(&["queue", "show", id, "--json"]);
        let story: Value = serde_json::from_slice(&shown.stdout).ok()?;
        Some(story["last_error"].as_str()?.to_owned())
    })
}

/// The states of the queue's rows, escalations left out.
pub fn cases(relay: &Relay) -> Vec<String> {
    let rows = relay.queue();
    let codes = rows.iter().filter(|r| r["stage"] != "escalation");
    codes
        .map(|r| r["state"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_the_log_hides_is_read_on_the_device_and_sent() {
    let scene = Scene::new().await;
    let relay = scene.start("");
    relay.send_udp(&masked("alice").line());
    let sent = scene.first_sent();
    assert_eq!(sent["code"], code(1));
    assert_eq!(sent["recipient"]["email"], "alice@example.com");
    assert_eq!(sent["token"], fortigate::token(1));
    let expires: jiff::Timestamp = sent["expires_at"].as_str().unwrap().parse().unwrap();
    assert!(
        (expires.as_second() - later(48)).abs() < 60,
        "the device's own expiry"
    );
    assert_eq!(
        relay.metric("ftm_relay_activations_total", &[("outcome", "no_code")]),
        1.0,
        "counted as it came"
    );
    assert_eq!(scene.told(), "");
    let story = story(&relay, "A1");
    let trace = trace(&story);
    for said in [
        "line: kv, ",
        "on the listener udp",
        "rule: \"token activation code sent\" takes 38412 as code-sent, without a readable code",
        "named the code: token FTKMOB0000000001 of alice",
        "alice is a…@example.com",
        "route: route 1 goes to hook",
    ] {
        assert!(trace.contains(said), "{said} is not in\n{trace}");
    }
    assert!(!story.to_string().contains(&code(1)));
    for (path, bytes) in Relay::files(&relay.state()) {
        assert!(
            memchr::memmem::find(&bytes, code(1).as_bytes()).is_none(),
            "{}",
            path.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hides_codes_too_is_told_with_what_to_do() {
    for shown in [Shown::Asterisks, Shown::Encrypted] {
        let scene = Scene::new().await;
        scene.gate.state().shown = shown;
        let relay = scene.start("");
        relay.send_udp(&masked("alice").line());
        scene.until_told("config user fortitoken");
        assert_eq!(cases(&relay), ["needs-attention"], "{shown:?}");
        assert!(scene.sent().is_empty());
        // Once it can be read an operator releases it.
        scene.gate.state().shown = Shown::Clear;
        assert!(relay.cli(&["queue", "retry", "A1"]).status.success());
        assert_eq!(scene.first_sent()["code"], code(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_the_device_has_only_later_is_waited_for() {
    let scene = Scene::new().await;
    scene.gate.state().shown = Shown::Nothing;
    let relay = scene.start("");
    relay.send_udp(&masked("alice").line());
    let why = reason(&relay, "A1");
    assert!(
        why.contains("none that is good on token FTKMOB0000000001"),
        "{why}"
    );
    assert_eq!(cases(&relay), ["received"], "it is still asked");
    scene.gate.state().shown = Shown::Clear;
    // Not waiting for the next question by itself.
    assert!(relay.cli(&["queue", "retry", "A1"]).status.success());
    assert_eq!(scene.first_sent()["code"], code(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_a_code_does_not_choose_where_the_devices_code_goes() {
    let scene = Scene::new().await;
    let pattern = "type = \"pattern\"\nemail = \"{user}@example.com\"\n";
    let config = |device: &str| {
        let config = scene.config(device) + "[channel.trial]\ntype = \"file\"\npath = \"mail\"\n";
        config
            .replace(pattern, "type = \"log\"\n")
            .replace("to = [\"hook\"]", "to = [\"trial\"]")
    };
    let relay = Relay::start(&config("confirm = true\n"));
    let forged = |msg: &str| Event::with_message("alice", msg).line();
    relay.send_udp(&forged("Send activation code to mallory@example.com"));
    scene.until_told("no directory knows alice");
    // A look at what was kept makes no difference.
    assert!(relay.cli(&["queue", "retry", "A1"]).status.success());
    until("the second look", || {
        (cases(&relay) == ["needs-attention"]).then_some(())
    });
    let mails = || Relay::files(&relay.dir.path().join("mail")).len();
    assert_eq!(mails(), 0);
    // A line that holds the code tells nobody anything new.
    let real = Event::with_message("alice", &format!("Send {} to alice@example.com", code(1)));
    relay.send_udp(&real.later(2).line());
    until("alice's mail", || (mails() == 1).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_was_used_already_is_not_sent_again() {
    let scene = Scene::new().await;
    scene.gate.state().activate(1);
    let relay = scene.start("");
    relay.send_udp(&masked("alice").line());
    let why = reason(&relay, "A1");
    assert!(why.contains("was activated by a phone already"), "{why}");
    assert!(scene.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_the_device_is_said_and_mends_itself() {
    for (fault, said) in [
        (Fault::Status(500), "500"),
        (Fault::Status(403), "403"),
        (Fault::Html, "web page"),
        (Fault::HalfJson, ""),
        (Fault::Redirect("https://elsewhere.test/".to_owned()), "302"),
        (Fault::Blocked(1), "429"),
        (Fault::BreaksOff, ""),
    ] {
        let scene = Scene::new().await;
        scene.gate.state().fault = Some(fault.clone());
        let relay = scene.start("");
        relay.send_udp(&masked("alice").line());
        let why = reason(&relay, "A1");
        assert!(why.contains(said), "{fault:?}: {why}");
        assert!(!relay.logged().contains(fortigate::KEY));
        let is_urgent = matches!(
            fault,
            Fault::Status(403) | Fault::Html | Fault::HalfJson | Fault::Redirect(_)
        );
        if is_urgent {
            scene.until_told("alice on TEST-FGT");
        } else {
            assert_eq!(scene.told(), "", "{fault:?} may pass by itself");
        }
        if matches!(fault, Fault::Redirect(_) | Fault::Status(403)) {
            continue; // it is left alone for longer than a test should last
        }
        scene.gate.state().fault = None;
        let sent = scene.sent_at_last(&relay);
        assert_eq!(sent["code"], code(1), "after {fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_another_certificate_is_not_believed() {
    let (real, other) = (Authority::new(), Authority::named("somebody else's"));
    let gate = FortiGate::start_tls(other.sign(&["127.0.0.1"]).acceptor()).await;
    {
        let mut state = gate.state();
        state.add_token(1, later(48));
        state.add_user("alice", 1, "alice@example.com");
    }
    let scene = Scene::around(gate).await;
    let mut relay = Relay::prepare("");
    let ca = real.write(relay.dir.path());
    relay.configure(&scene.config(&format!("ca_file = \"{}\"\n", ca.display())));
    relay.run();
    relay.send_udp(&masked("alice").line());
    scene.until_told("certificate");
    assert!(scene.sent().is_empty());
    assert!(scene.gate.requests().is_empty(), "no key went to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_another_event_is_not_looked_for_on_tokens() {
    let scene = Scene::new().await;
    let rule = "[[rule]]\nname = \"guest\"\nlogid = [38406]\nstage = \"code-sent\"\n";
    let relay = Relay::start(&(scene.config("") + rule));
    let guest = Event {
        logid: "0100038406".to_owned(),
        ..masked("alice")
    };
    relay.send_udp(&guest.line());
    scene.until_told("its log shows none");
    assert!(scene.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_with_a_code_stop_and_are_told() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        state.add_token(2, later(48));
        state.add_admin("alice", 2, "alice@example.com");
    }
    let relay = scene.start("");
    relay.send_udp(&masked("alice").line());
    scene.until_told("alice holds two tokens");
    assert_eq!(cases(&relay), ["needs-attention"]);
    assert!(scene.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_two_hold_stops_and_is_told() {
    let scene = Scene::new().await;
    scene
        .gate
        .state()
        .add_admin("root-admin", 1, "admin@example.com");
    let relay = scene.start("");
    let event = Event::with_message("alice", "Activation code of FTKMOB0000000001 was sent");
    relay.send_udp(&event.line());
    scene.until_told("whose it is can't be known");
    assert!(scene.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_device_ties_the_token_to_another_user_its_word_stands() {
    for msg in [
        "Activation code of FTKMOB0000000001 was sent".to_owned(),
        format!("Send activation code {}", code(1)),
    ] {
        let scene = Scene::new().await;
        let relay = scene.start("");
        relay.send_udp(&Event::with_message("admin", &msg).line());
        let sent = scene.first_sent();
        assert_eq!(sent["code"], code(1));
        assert_eq!(sent["recipient"]["email"], "alice@example.com", "{msg}");
        assert_eq!(sent["user"], "admin", "as logged");
        let trace = trace(&story(&relay, "A1"));
        assert!(
            trace.contains("token FTKMOB0000000001 of alice, and not of admin"),
            "{trace}"
        );
    }
}

/// Puts these events in one commit, so that each is kept before the device is asked about any.
fn replay(relay: &Relay, events: &[Event]) {
    let lines: Vec<u8> = events
        .iter()
        .flat_map(|event| [event.line(), b"\n".to_vec()].concat())
        .collect();
    let file = relay.dir.path().join("events.log");
    std::fs::write(&file, lines).unwrap();
    let done = relay.cli(&["replay", file.to_str().unwrap(), "--yes"]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_codes_that_one_administrator_sent_quickly_both_reach_their_persons() {
    for more in ["", "confirm = true\n"] {
        let scene = Scene::new().await;
        {
            let mut state = scene.gate.state();
            state.add_token(2, later(48));
            state.add_user("bob", 2, "bob@example.com");
            state.add_token(3, later(48));
            state.add_admin("admin", 3, "admin@example.com");
        }
        let relay = scene.start(more);
        let sent_by_admin = |n| Event {
            user: "admin".to_owned(),
            ..Event::code(n, "somebody")
        };
        // The last one is the administrator's own: it is not the newer one of the others.
        let events = [1, 2, 3].map(|n| sent_by_admin(n).later(i64::from(n)));
        replay(&relay, &events);
        if !more.is_empty() {
            // A disagreement between log and device is for a person to decide.
            until("the administrator's own", || {
                (cases(&relay) == ["accepted", "needs-attention", "needs-attention"]).then_some(())
            });
            for id in ["A1", "A2"] {
                assert!(relay.cli(&["queue", "retry", id]).status.success());
            }
        }
        until("all three", || {
            (cases(&relay) == ["accepted"; 3]).then_some(())
        });
        let mut sent: Vec<_> = scene
            .sent()
            .iter()
            .map(|data| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                (text(&data["recipient"]["email"]), text(&data["code"]))
            })
            .collect();
        sent.sort();
        let to = |user: &str, n| (format!("{user}@example.com"), code(n));
        assert_eq!(
            sent,
            [to("admin", 3), to("alice", 1), to("bob", 2)],
            "{more}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_codes_that_one_person_got_quickly_are_the_newer_one() {
    // The device knows the newer code alone, or says nothing at all.
    for fault in [None, Some(Fault::Status(503))] {
        let scene = Scene::new().await;
        {
            let mut state = scene.gate.state();
            state.set_token(1, "activation-code", code(2));
            state.fault = fault.clone();
        }
        let relay = scene.start("");
        let events = [1, 2].map(|n| Event::code(n, "alice").later(i64::from(n)));
        replay(&relay, &events);
        until("the newer one to be all", || {
            (relay.states() == ["accepted", "superseded"]).then_some(())
        });
        let codes: Vec<_> = scene.sent().iter().map(|d| d["code"].clone()).collect();
        assert_eq!(codes, [code(2)], "{fault:?}");
        assert_eq!(story(&relay, "A1")["state"], "superseded");
        let ended =
            |outcome| relay.metric("ftm_relay_activations_ended_total", &[("outcome", outcome)]);
        assert_eq!((ended("superseded"), ended("accepted")), (1.0, 1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_line_that_says_activated_keeps_no_new_code_from_its_person() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        state.activate(1);
        state.add_token(2, later(48));
        state.add_admin("alice", 2, "alice@example.com");
    }
    for more in ["", "confirm = true\n"] {
        let relay = scene.start(more);
        // Alice's phone has token 1 indeed; the time is as far ahead as is believed.
        relay.send_udp(&life("0100032156", 1, "").later(290).line());
        until("the device to tie it to her", || {
            let shown = relay.cli(&["queue", "show", "A1", "--json"]);
            let story: Value = serde_json::from_slice(&shown.stdout).ok()?;
            trace(&story).contains("is held by alice").then_some(())
        });
        let before = scene.sent().len();
        relay.send_udp(&Event::code(2, "alice").line());
        until("her new code", || {
            (scene.sent().len() > before).then_some(())
        });
        assert_eq!(scene.sent()[before]["code"], code(2), "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_the_log_shows_does_not_wait_for_a_device_that_is_away_or_slow() {
    for fault in [Fault::Status(503), Fault::Silence, Fault::Huge] {
        let scene = Scene::new().await;
        scene.gate.state().fault = Some(fault.clone());
        let relay = scene.start("");
        relay.send_udp(&Event::code(1, "alice").line());
        assert_eq!(scene.first_sent()["code"], code(1), "{fault:?}");
        let trace = trace(&story(&relay, "A1"));
        assert!(trace.contains("the log's word stands"), "{trace}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_for_confirmation_is_held_when_nobody_can_confirm_it_any_more() {
    let scene = Scene::new().await;
    scene.gate.state().fault = Some(Fault::Status(503));
    let mut relay = scene.start("confirm = true\n");
    relay.send_udp(&Event::code(1, "alice").line());
    reason(&relay, "A1");
    relay.stop();
    relay.configure(&scene.config("").replace(&scene.gate.device(), ""));
    relay.run();
    relay.cli(&["queue", "retry", "A1"]);
    scene.until_told("there is no API to ask");
    assert!(scene.sent().is_empty());
    assert!(relay.cli(&["queue", "retry", "A1"]).status.success());
    assert_eq!(scene.first_sent()["code"], code(1), "a person has decided");
}

// === confirm = true ===

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_the_device_confirms_goes_out() {
    let scene = Scene::new().await;
    let relay = scene.start("confirm = true\n");
    relay.send_udp(&Event::code(1, "alice").line());
    assert_eq!(scene.first_sent()["code"], code(1));
    let trace = trace(&story(&relay, "A1"));
    assert!(
        trace.contains("knows the code: token FTKMOB0000000001 of alice"),
        "{trace}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_lines_send_nothing_where_the_device_must_confirm() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        state.add_token(2, later(48));
        state.add_user("bob", 2, "bob@example.com");
    }
    let relay = scene.start("confirm = true\n");
    let real = Event::code(1, "alice");
    let forged = [
        (Event::code(9, "alice"), "another code"),
        (Event::code(9, "mallory"), "knows no token of mallory"),
        (
            Event::code(1, "bob"),
            "ties the code (token FTKMOB0000000001) to alice",
        ),
        (
            Event {
                extra: format!(" serialno=\"{}\"", fortigate::token(2)),
                ..real.clone()
            },
            "names another token",
        ),
    ];
    for (n, (event, said)) in (1..).zip(&forged) {
        relay.send_udp(&event.line());
        let why = reason(&relay, &format!("A{n}"));
        assert!(why.contains(said), "{why}");
    }
    assert_eq!(cases(&relay), ["needs-attention"; 4]);
    scene.until_told("doesn't confirm");
    assert!(scene.sent().is_empty());
    // None of them stands in the way of the real one, not even the last, which claims to be the same event.
    relay.send_udp(&real.line());
    let sent = scene.first_sent();
    assert_eq!(
        (&sent["code"], &sent["user"]),
        (&code(1).into(), &"alice".into())
    );
    assert_eq!(scene.sent().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_confirmed_waits_for_a_device_that_is_away() {
    let scene = Scene::new().await;
    scene.gate.state().fault = Some(Fault::Status(503));
    let config = scene
        .config("confirm = true\n")
        .replace("escalate =", "fallback_after = \"2s\"\nescalate =");
    let relay = Relay::start(&config);
    relay.send_udp(&Event::code(1, "alice").line());
    scene.until_told("has not been accepted in time");
    assert_eq!(cases(&relay), ["received"]);
    assert!(scene.sent().is_empty());
    scene.gate.state().fault = None;
    assert_eq!(scene.sent_at_last(&relay)["code"], code(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hides_codes_can_confirm_none() {
    let scene = Scene::new().await;
    scene.gate.state().shown = Shown::Asterisks;
    let relay = scene.start("confirm = true\n");
    relay.send_udp(&Event::code(1, "alice").line());
    scene.until_told("can't confirm any");
    assert_eq!(cases(&relay), ["needs-attention"]);
    assert!(scene.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_send_what_the_device_ties_to_another_user_to_that_user() {
    let scene = Scene::new().await;
    let relay = scene.start("confirm = true\n");
    relay.send_udp(&Event::code(1, "admin").line());
    scene.until_told("ties the code");
    assert!(relay.cli(&["queue", "retry", "A1"]).status.success());
    assert_eq!(
        scene.first_sent()["recipient"]["email"],
        "alice@example.com"
    );
}

// === A token's life ===

fn life(logid: &str, n: u32, user: &str) -> Event {
    Event {
        logid: logid.to_owned(),
        extra: format!(" serialno=\"{}\"", fortigate::token(n)),
        ..Event::with_message(user, "FortiToken life-cycle event")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activated_token_ends_the_code_that_was_on_its_way_to_its_owner() {
    let gate = FortiGate::start().await;
    {
        let mut state = gate.state();
        for (n, user) in [(1, "alice"), (2, "bob")] {
            state.add_token(n, later(48));
            state.add_user(user, n, "");
        }
    }
    let mut scene = Scene::around(gate).await;
    scene.hook = HttpSink::start(|_| reply(503, "")).await;
    let relay = scene.start("");
    relay.send_udp(&Event::code(1, "alice").line());
    relay.send_udp(&Event::code(2, "bob").line());
    until("both to be tried", || {
        (scene.hook.requests().len() >= 2).then_some(())
    });
    scene.gate.state().activate(1);
    relay.send_udp(&life("0100032156", 1, "").later(1).line());
    until("alice's code to be called off", || {
        let rows = relay.queue();
        let state = |user: &str| {
            let row = rows.iter().find(|r| r["user"] == user).unwrap();
            row["state"].as_str().unwrap().to_owned()
        };
        (state("alice") == "cancelled" && state("bob") == "pending").then_some(())
    });
    assert_eq!(
        relay.metric(
            "ftm_relay_activations_ended_total",
            &[("outcome", "cancelled")]
        ),
        1.0
    );
    let refused = relay.cli(&["queue", "retry", "A1"]);
    assert_eq!(refused.status.code(), Some(1));
    let life = story(&relay, "A3");
    assert_eq!(life["state"], "recorded");
    let stages: Vec<&str> = life["life"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["code-sent", "activated"]);
    let words = String::from_utf8(relay.cli(&["queue", "show", "A1"]).stdout).unwrap();
    assert!(
        words.contains("A3") && words.contains("activated"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_says_activated_ends_nothing_while_the_device_shows_no_phone() {
    let mut scene = Scene::new().await;
    scene.hook = HttpSink::start(|_| reply(503, "")).await;
    let relay = scene.start("confirm = true\n");
    relay.send_udp(&Event::code(1, "alice").line());
    until("a first try", || {
        (!scene.hook.requests().is_empty()).then_some(())
    });
    relay.send_udp(&life("0100032156", 1, "").later(1).line());
    until("the device to be asked", || {
        trace(&story(&relay, "A2"))
            .contains("the device shows no phone on it")
            .then_some(())
    });
    assert_eq!(cases(&relay), ["pending"]);
    scene.gate.state().activate(1);
    relay.send_udp(&life("0100032156", 1, "").later(2).line());
    until("the code to be called off", || {
        (cases(&relay) == ["cancelled"]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activated_token_of_a_device_without_api_is_recorded() {
    let scene = Scene::new().await;
    let config = scene.config("").replace(&scene.gate.device(), "");
    let relay = Relay::start(&config);
    relay.send_udp(&life("0100032156", 1, "").line());
    until("it to be kept", || {
        let shown = relay.cli(&["queue", "show", "A1", "--json"]);
        shown.status.success().then_some(())
    });
    assert_eq!(story(&relay, "A1")["state"], "recorded");
    assert_eq!(relay.queue(), [Value::Null; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_activation_is_told_once() {
    let scene = Scene::new().await;
    let relay = scene.start("");
    relay.send_udp(&life("0100032159", 1, "").line());
    scene.until_told("The activation of a FortiToken failed");
    assert!(scene.told().contains("FTKMOB0000000001"));
    assert_eq!(scene.desk.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_asks_the_device_and_shows_the_proof() {
    let scene = Scene::new().await;
    let relay = Relay::prepare(&scene.config(""));
    let told = relay.explain(&masked("alice").line(), &[]);
    assert_eq!(
        (&told["verdict"], &told["code_found"]),
        (&"relay".into(), &false.into())
    );
    assert_eq!(told["recipient"]["email"], "alice@example.com");
    assert!(trace(&told).contains("named the code: token FTKMOB0000000001 of alice"));
    assert!(!told.to_string().contains(&code(1)));
    let told = relay.explain(&Event::code(9, "alice").line(), &[]);
    assert_eq!(
        told["verdict"], "relay",
        "without confirm the log's word stands"
    );
    relay.configure(&scene.config("confirm = true\n"));
    let told = relay.explain(&Event::code(9, "alice").line(), &[]);
    assert_eq!(told["verdict"], "rejected");
    scene.gate.state().shown = Shown::Asterisks;
    let told = relay.explain(&masked("alice").line(), &[]);
    assert_eq!(told["verdict"], "no-code");
    assert!(
        told["reason"].as_str().unwrap().contains("asterisks"),
        "{told}"
    );
    assert!(!relay.state().exists(), "nothing is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_the_question_and_the_mail_loses_nothing_and_sends_one() {
    let mut scene = Scene::new().await;
    scene.hook = HttpSink::start(|_| reply(503, "")).await;
    let mut relay = scene.start("");
    relay.send_udp(&masked("alice").line());
    until("a first try", || {
        (!scene.hook.requests().is_empty()).then_some(())
    });
    relay.kill();
    let questions = |scene: &Scene| {
        let requests = scene.gate.requests();
        requests
            .iter()
            .filter(|r| r.path.contains("/alice"))
            .count()
    };
    let asked = questions(&scene);
    scene.hook = HttpSink::start(|_| reply(204, "")).await;
    relay.configure(&scene.config(""));
    relay.run();
    until("it to be due", || {
        relay
            .cli(&["queue", "retry", "A1"])
            .status
            .success()
            .then_some(())
    });
    assert_eq!(scene.first_sent()["code"], code(1));
    until("it to be settled", || {
        (cases(&relay) == ["accepted"]).then_some(())
    });
    assert_eq!(scene.sent().len(), 1);
    assert_eq!(
        questions(&scene),
        asked,
        "the code was kept, not asked for again"
    );
}
