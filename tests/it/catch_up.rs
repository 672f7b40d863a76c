//! What syslog lost is read from the device's own log.

use crate::support::fortigate;
use crate::support::fortigate::Fault;
use crate::support::fortigate::FortiGate;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

/// The base, a device whose log is read every second, and mails in files.
fn config(device: &FortiGate) -> String {
    let device = device.device().replace("\"0s\"", "\"1s\"");
    format!(
        "{BASE}{device}[channel.trial]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"trial\"]\n"
    )
}

/// Waits until the log was read from the beginning again.
fn reading(device: &FortiGate) {
    let before = device.requests().len();
    // Two of its requests may have been under way.
    until("the log to be read", || {
        (device.requests().len() > before + 4).then_some(())
    });
}

fn users(relay: &Relay) -> Vec<String> {
    let mut users: Vec<String> = relay
        .queue()
        .iter()
        .map(|row| row["user"].as_str().unwrap().to_owned())
        .collect();
    users.sort();
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_syslog_lost_arrives_and_one_that_it_brought_arrives_once() {
    let device = FortiGate::start().await;
    let relay = Relay::start(&config(&device));
    let (lost, brought) = (Event::code(1, "alice"), Event::code(2, "bob"));
    relay.send_udp(&brought.line());
    until("bob's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    device.state().log(&brought);
    device.state().log(&lost);
    until("alice's mail", || {
        (relay.states() == ["accepted", "accepted"]).then_some(())
    });
    reading(&device);
    // The other way round: syslog is late.
    relay.send_udp(&lost.line());
    until("the late line", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "duplicate")]) >= 1.0)
            .then_some(())
    });
    assert_eq!(users(&relay), ["alice", "bob"]);
    let labels = [("device", fortigate::SERIAL)];
    assert_eq!(relay.metric("ftm_relay_caught_up_total", &labels), 1.0);
    assert!(caught_up(&relay) > 0.0);
    let mails = Relay::files(&relay.dir.path().join("mail"));
    let holds = |n| {
        mails
            .iter()
            .filter(|(_, mail)| memchr::memmem::find(mail, code(n).as_bytes()).is_some())
            .count()
    };
    assert_eq!((holds(1), holds(2)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_silence_of_a_stopped_relay_is_caught_up_but_nothing_from_before_its_first_start() {
    let device = FortiGate::start().await;
    device.state().log(&Event::code(1, "before").later(-3600));
    let mut relay = Relay::start(&config(&device));
    reading(&device);
    assert_eq!(users(&relay), [""; 0]);
    assert_eq!(relay.stop(), 0);
    let meanwhile = [Event::code(2, "alice"), Event::code(3, "bob")];
    for event in &meanwhile {
        device.state().log(event);
    }
    relay.run();
    until("both mails", || {
        (relay.states() == ["accepted"; 2]).then_some(())
    });
    relay.kill();
    relay.run();
    reading(&device);
    assert_eq!(users(&relay), ["alice", "bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_only_its_own_address_may_speak_for_is_still_caught_up() {
    let device = FortiGate::start().await;
    let config = config(&device).replace("catch_up", "peers = [\"192.0.2.1\"]\ncatch_up");
    let relay = Relay::start(&config);
    // Until then the device isn't known, and nothing of its past is read.
    reading(&device);
    relay.send_udp(&Event::code(1, "mallory").line());
    device.state().log(&Event::code(2, "alice"));
    until("alice's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    assert_eq!(users(&relay), ["alice"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_of_the_vdoms_that_were_heard_of_are_read_after_a_restart_too() {
    let device = FortiGate::start().await;
    device.state().vdoms = vec!["root".to_owned(), "customer-a".to_owned()];
    let mut relay = Relay::start(&config(&device));
    let event = |n, user: &str| Event {
        vdom: "customer-a".to_owned(),
        ..Event::code(n, user)
    };
    relay.send_udp(&event(1, "alice").line());
    until("alice's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    relay.kill();
    device.state().log(&event(2, "bob"));
    relay.run();
    until("bob's mail", || {
        (relay.states() == ["accepted"; 2]).then_some(())
    });
}

/// When the log was last read whole; 0: never.
fn caught_up(relay: &Relay) -> f64 {
    let labels = [("device", fortigate::SERIAL)];
    relay.metric("ftm_relay_device_caught_up_timestamp_seconds", &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_log_that_is_too_long_to_be_read_the_newest_arrive() {
    let device = FortiGate::start().await;
    let relay = Relay::start(&config(&device));
    // Until then the device isn't known, and nothing of its past is read.
    reading(&device);
    let oldest = Event::code(1, "too-old");
    {
        let mut state = device.state();
        state.ignores_filters = true;
        state.log(&oldest);
        // A device that doesn't filter shows whatever its system has to say.
        for n in 1..20_200 {
            let eventtime = oldest.eventtime + n * 1_000_000;
            state.log_record(
                "root",
                serde_json::json!({"eventtime": eventtime, "logid": "0100032001", "vd": "root"}),
            );
        }
        state.log(&Event::code(2, "alice").later(30));
    }
    until("alice's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    until("it to be said", || {
        relay
            .logged()
            .contains("has more than 20000 records in its log (memory)")
            .then_some(())
    });
    // The next one arrives as well, and the first one not again.
    device.state().log(&Event::code(3, "bob").later(31));
    until("bob's mail", || {
        (relay.states() == ["accepted"; 2]).then_some(())
    });
    assert_eq!(users(&relay), ["alice", "bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vdom_that_is_dead_keeps_no_other_ones_events_from_arriving() {
    for configured in [
        "vdoms = [\"gone\", \"root\"]",
        "vdoms = [\"root\", \"gone\"]",
    ] {
        let device = FortiGate::start().await;
        let config = config(&device).replace("catch_up", &format!("{configured}\ncatch_up"));
        let relay = Relay::start(&config);
        reading(&device);
        for (n, user) in [(1, "alice"), (2, "bob")] {
            device.state().log(&Event::code(n, user));
            until("the mail", || {
                (relay.states() == vec!["accepted"; n as usize]).then_some(())
            });
            reading(&device);
        }
        assert_eq!(caught_up(&relay), 0.0);
        assert_eq!(relay.logged().matches("nothing is caught up").count(), 1);
        assert!(relay.logged().contains("gone"));
        device.state().vdoms.push("gone".to_owned());
        until("the log to be read whole", || {
            (caught_up(&relay) > 0.0).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_clock_is_ahead_is_caught_up_and_so_it_is_once_its_clock_is_right() {
    let device = FortiGate::start().await;
    let relay = Relay::start(&config(&device));
    reading(&device);
    // Two hours ahead, then right.
    for (n, (user, ahead)) in (1..).zip([("alice", 7200), ("bob", 7201), ("carol", 0)]) {
        device.state().log(&Event::code(n, user).later(ahead));
        until("the mail", || {
            (relay.states() == vec!["accepted"; n as usize]).then_some(())
        });
        reading(&device);
    }
    assert_eq!(users(&relay), ["alice", "bob", "carol"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_names_of_vdoms_are_forgotten_and_keep_no_real_one_from_being_read() {
    let device = FortiGate::start().await;
    device.state().vdoms = vec!["root".to_owned(), "customer-a".to_owned()];
    let mut relay = Relay::start(&config(&device));
    reading(&device);
    let kept = |relay: &Relay| {
        let file = std::fs::read_to_string(relay.state().join("catch-up.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&file).unwrap()[fortigate::SERIAL].clone()
    };
    let of = |vdom: &str, event: Event| Event {
        vdom: vdom.to_owned(),
        ..event
    };
    let names = |kept: &serde_json::Value, key: &str| kept[key].as_array().unwrap().len();
    // Without the device's word, while it says nothing, only so many are kept.
    device.state().fault = Some(Fault::Status(503));
    for n in 0..40 {
        let forged = of(&format!("forged-{n}"), Event::code(n, "mallory"));
        relay.send_udp(&forged.line());
    }
    until("the forged lines", || {
        (relay.metric("ftm_relay_activations_total", &[]) >= 40.0).then_some(())
    });
    assert_eq!(names(&kept(&relay), "heard"), 16);
    let said = |relay: &Relay, words: &str| relay.logged().matches(words).count();
    until("it to be said", || {
        (said(&relay, "names more VDOMs than are kept") == 1).then_some(())
    });
    device.state().fault = None;
    until("them to be forgotten", || {
        (names(&kept(&relay), "heard") == 0).then_some(())
    });
    until("it to be said", || {
        let once = |words| said(&relay, words) == 1;
        (once("refuses 16 of the VDOMs") && once("24 events named others")).then_some(())
    });
    // A real one is remembered, by the device's own word.
    relay.send_udp(&of("customer-a", Event::code(50, "alice")).line());
    until("the device to be asked about it", || {
        (names(&kept(&relay), "vdoms") == 1).then_some(())
    });
    relay.kill();
    device
        .state()
        .log(&of("customer-a", Event::code(51, "bob")));
    relay.run();
    until("bob's code", || {
        users(&relay).contains(&"bob".to_owned()).then_some(())
    });
    until(
        "the log to be read whole in spite of the forged names",
        || (caught_up(&relay) > 0.0).then_some(()),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_is_said_once_and_caught_up_when_it_can() {
    let device = FortiGate::start().await;
    device.state().fault = Some(Fault::HalfJson);
    let relay = Relay::start(&config(&device));
    device.state().log(&Event::code(1, "alice"));
    let said = |relay: &Relay, words: &str| relay.logged().matches(words).count();
    until("the warning", || {
        (said(&relay, "nothing is caught up") == 1).then_some(())
    });
    reading(&device);
    assert_eq!(said(&relay, "nothing is caught up"), 1, "once is enough");
    device.state().fault = None;
    until("alice's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
    until("the all-clear", || {
        (said(&relay, "can be read again") == 1).then_some(())
    });
    assert!(!relay.logged().contains(&code(1)), "a code in the log");
    assert!(
        !relay.logged().contains(fortigate::KEY),
        "the key in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up_follows_a_reload() {
    let device = FortiGate::start().await;
    let off = config(&device).replace("catch_up = \"1s\"", "catch_up = \"0s\"");
    let relay = Relay::start(&off);
    relay.configure(&config(&device));
    let log = |r: &crate::support::http_sink::Request| r.path.contains("/log/");
    assert!(!device.requests().iter().any(log));
    relay.signal(rustix::process::Signal::HUP);
    reading(&device);
    device.state().log(&Event::code(1, "alice"));
    until("alice's mail", || {
        (relay.states() == ["accepted"]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_that_logged_the_event_says_where_its_user_reads_mail() {
    let device = FortiGate::start().await;
    {
        let mut state = device.state();
        for (n, user, email) in [
            (1, "alice", "alice.a@example.com"),
            (2, "eve", "eve@elsewhere.test"),
            (3, "twice", "twice@example.com"),
            (5, "mute", ""),
        ] {
            state.add_token(n, 4_000_000_000);
            state.add_user(user, n, email);
        }
        state.add_token(4, 4_000_000_000);
        state.add_admin("twice", 4, "twice.admin@example.com");
    }
    let pattern = "type = \"pattern\"\nemail = \"{user}@example.com\"\n";
    let config = config(&device).replace(pattern, "type = \"fortigate\"\n");
    let relay = Relay::prepare(&config);
    let ask = |event: Event| relay.explain(&event.line(), &[]);
    let alice = ask(Event::code(1, "alice"));
    assert_eq!(
        alice["recipient"]["email"], "alice.a@example.com",
        "{alice}"
    );
    assert_eq!(alice["recipient"]["source"], "fortigate");
    for (n, user, reason) in [
        (2, "eve", "outside `recipients.domains`"),
        (5, "mute", "no directory knows mute"),
        (6, "nobody", "no directory knows nobody"),
        (7, "twice", "stands for several"),
    ] {
        let answer = ask(Event::code(n, user));
        assert_eq!(answer["verdict"], "no-recipient", "{answer}");
        assert!(
            answer["reason"].as_str().unwrap().contains(reason),
            "{answer}"
        );
    }
    // The token of the event tells which of the two it is, by its code or by its serial number.
    let answer = ask(Event::code(4, "twice"));
    assert_eq!(
        answer["recipient"]["email"], "twice.admin@example.com",
        "{answer}"
    );
    let mut event = Event::code(8, "twice");
    event.extra = format!(" serialno=\"{}\"", fortigate::token(3));
    assert_eq!(ask(event)["recipient"]["email"], "twice@example.com");
    // A device without an API is nobody to ask.
    let mut other = Event::code(1, "alice");
    other.devid = "FGT60FTK33333333".to_owned();
    assert_eq!(ask(other)["verdict"], "no-recipient");
}
