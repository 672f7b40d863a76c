//! The whole, through its sockets: a FortiGate's line in, a mail in the person's inbox out.

use std::path::Path;

use crate::support::postfix::PASSWORD;
use crate::support::postfix::Postfix;
use crate::support::postfix::USERNAME;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::relay::smtp_channel;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::smtp_sink::Setup;
use crate::support::until;

const FILE: &str = "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n";

const ROUTE: &str = "[[route]]\nto = [\"mail\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_line_by_udp_and_by_tcp_becomes_a_mail_to_its_person() {
    let sink = Setup::new().start().await;
    let relay = Relay::start(&format!(
        "{BASE}{}{ROUTE}",
        smtp_channel(sink.address.port())
    ));
    relay.send_udp(&Event::code(1, "alice").line());
    relay.send_tcp(&Event::code(2, "EXAMPLE\\Bob").counted());
    relay.send_tcp(&[&Event::code(3, "carol").line()[..], b"\r\n"].concat());
    let taken = sink.until(|seen| seen.taken.len() == 3).await.taken;
    for (n, person) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        let address = format!("{person}@example.com");
        let mail = taken
            .iter()
            .find(|m| m.to == [address.clone()])
            .unwrap_or_else(|| panic!("no mail to {address}"));
        assert!(
            mail.content.matches(&code(n)).count() >= 2,
            "the code stands in both parts"
        );
        let subject = mail
            .content
            .lines()
            .find(|l| l.starts_with("Subject:"))
            .unwrap();
        assert!(!subject.contains(&code(n)));
        assert!(mail.content.contains("Auto-Submitted: auto-generated"));
    }
    until("the end", || {
        (relay.states() == ["accepted"; 3]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_becomes_a_mail_in_a_real_inbox_through_a_real_relay() {
    let postfix = Postfix::start().await;
    let channel = format!(
        "[channel.mail]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\nauth = \"password\"\nusername = \"{USERNAME}\"\npassword = {{ env = \"SMTP_PASSWORD\" }}\nca_file = \"{}\"\nfrom = \"IT Service Desk <servicedesk@example.com>\"\n",
        postfix.submission,
        Path::new(&postfix.ca).display()
    );
    let mut relay = Relay::prepare(&format!("{BASE}{channel}{ROUTE}"));
    relay.env("SMTP_PASSWORD", PASSWORD);
    relay.run();
    relay.send_udp(&Event::code(1, "alice").line());
    let mails = postfix.mails("alice", 1).await;
    assert!(mails[0].contains(&code(1)), "the code stands in the mail");
    until("the end", || (relay.states() == ["accepted"]).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_the_new_configuration_and_keeps_the_old_one_when_it_is_wrong() {
    use std::io::Write;
    let (one, two) = (Setup::new().start().await, Setup::new().start().await);
    let config = |port| format!("{BASE}{}{ROUTE}", smtp_channel(port));
    let relay = Relay::start(&config(one.address.port()));
    let mut open = std::net::TcpStream::connect(relay.tcp()).unwrap();
    let reloaded = |value: f64| {
        until("the reload", || {
            (relay.metric("ftm_relay_config_reload_success", &[]) == value).then_some(())
        })
    };
    reloaded(1.0);

    relay.configure(&(config(two.address.port()) + "nonsense = true\n"));
    relay.signal(rustix::process::Signal::HUP);
    reloaded(0.0);
    relay.send_udp(&Event::code(1, "alice").line());
    one.until(|seen| seen.taken.len() == 1).await;

    relay.configure(&config(two.address.port()));
    relay.signal(rustix::process::Signal::HUP);
    reloaded(1.0);
    relay.send_udp(&Event::code(2, "alice").line());
    open.write_all(&Event::code(3, "bob").counted()).unwrap();
    two.until(|seen| seen.taken.len() == 2).await;
}

#[test]
fn a_second_relay_on_the_same_state_is_refused_and_the_first_is_unharmed() {
    let config = format!(
        "{BASE}[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n"
    );
    let first = Relay::start(&config);
    let output = first.cli(&["run"]);
    assert_eq!(output.status.code(), Some(1), "exit 1: the unit restarts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("state"), "{said}");
    first.send_udp(&Event::code(1, "alice").line());
    until("the end", || (first.states() == ["accepted"]).then_some(()));
}

#[test]
fn a_busy_port_ends_the_relay_with_1() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = BASE.replacen(
        "address = \"127.0.0.1:0\"",
        &format!("address = \"{}\"", taken.local_addr().unwrap()),
        1,
    );
    let relay = Relay::prepare(&format!(
        "{config}[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n"
    ));
    let output = relay.cli(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("\"udp\"") && said.contains(&taken.local_addr().unwrap().to_string()),
        "{said}"
    );
}

#[test]
fn what_a_listener_took_before_a_reload_removed_it_is_kept() {
    let config = format!("{BASE}{FILE}{ROUTE}");
    let relay = Relay::start(&config);
    // The outbox can't commit: the first event is under way, and the second one waits behind it.
    let db = rusqlite::Connection::open(relay.state().join("outbox.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    relay.send_udp(&Event::code(1, "alice").line());
    until("the outbox to be away", || {
        relay.logged().contains("wait for the outbox").then_some(())
    });
    relay.send_tcp(&Event::code(2, "bob").counted());
    until("the second event", || {
        (relay.metric("ftm_relay_frames_total", &[("listener", "tcp")]) == 1.0).then_some(())
    });
    relay.configure(
        &config
            .replace("name = \"tcp\"", "name = \"core\"")
            .replace("127.0.0.2:0", "127.0.0.5:0"),
    );
    relay.signal(rustix::process::Signal::HUP);
    until("the reload", || {
        relay.logged().contains("Reloaded").then_some(())
    });
    db.execute_batch("ROLLBACK").unwrap();
    until("both", || (relay.states() == ["accepted"; 2]).then_some(()));
}

#[test]
fn a_flood_of_rejected_events_does_not_fill_the_log() {
    let relay = Relay::start(&format!(
        "{BASE}[[device]]\nid = \"FGT60FTK20000001\"\npeers = [\"192.0.2.1\"]\n{FILE}{ROUTE}"
    ));
    for n in 1..=50 {
        relay.send_udp(&Event::code(n, "alice").line());
    }
    until("the rejections", || {
        (relay.metric("ftm_relay_activations_total", &[("outcome", "rejected")]) == 50.0)
            .then_some(())
    });
    let told = |what: &str, times| {
        until(what, || {
            (relay.logged().matches(what).count() == times).then_some(())
        });
    };
    told("Rejected a record from 127.0.0.1", 20);
    told("Rejected more records than are told of one by one", 1);
    // Another peer's are told of all the same.
    let other = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
    let line = Event::code(51, "alice").line();
    other.send_to(&line, relay.udp()).unwrap();
    told("Rejected a record from 127.0.0.9", 1);
    // Nothing came late.
    assert_eq!(relay.logged().matches("Rejected").count(), 22);
}
