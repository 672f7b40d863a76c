//! Page, health and metrics through the socket.

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

fn config() -> String {
    format!(
        "{BASE}[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[channel.desk]\ntype = \"file\"\npath = \"desk\"\nto = \"desk@example.com\"\n\
         [[route]]\nto = [\"mail\"]\nescalate = [\"desk\"]\n"
    )
}

fn relayed(users: &[&str]) -> Relay {
    let relay = Relay::start(&config());
    for (user, n) in users.iter().zip(1..) {
        relay.send_udp(&Event::code(n, user).line());
    }
    until("all to settle", || {
        let queue = relay.queue();
        let open = queue
            .iter()
            .any(|r| ["received", "pending", "sending"].contains(&r["state"].as_str().unwrap()));
        (queue.len() >= users.len() && !open).then_some(())
    });
    relay
}

#[test]
fn the_contracts_metrics_are_all_there_after_one_activation() {
    let relay = relayed(&["alice"]);
    // The case is looked at once more after its delivery has settled.
    let text = until("the end to be counted", || {
        let text = relay.get("/metrics").1;
        text.contains("activations_ended_total{outcome=\"accepted\"} 1")
            .then_some(text)
    });
    for sample in [
        "frames_total{listener=\"udp\"} 1",
        "frames_rejected_total{listener=\"udp\",reason=\"peer\"} 0",
        "udp_dropped_total{listener=\"udp\"} 0",
        "records_total{format=\"kv\"} 1",
        "activations_total{outcome=\"relay\"} 1",
        "activations_ended_total{outcome=\"accepted\"} 1",
        "deliveries_total{channel=\"mail\",outcome=\"accepted\"} 1",
        "delivery_seconds_count{channel=\"mail\"} 1",
        "delivery_seconds_bucket{le=\"+Inf\",channel=\"mail\"} 1",
        "outbox_items{state=\"accepted\"} 1",
        "outbox_items{state=\"needs-attention\"} 0",
        "outbox_oldest_seconds 0",
        "device_last_seen_timestamp_seconds{device=\"FGT60FTK20000001\"} ",
        "device_clock_skew_seconds{device=\"FGT60FTK20000001\"} ",
        "channel_last_success_timestamp_seconds{channel=\"mail\"} ",
        "channel_suspended{channel=\"mail\"} 0",
        "config_reload_success 1",
        "build_info{version=\"",
    ] {
        let sample = format!("ftm_relay_{sample}");
        assert!(
            text.lines().any(|l| l.starts_with(&sample)),
            "{sample} is not in\n{text}"
        );
    }
    // The older format knows neither `info` nor an end mark.
    assert!(
        text.contains("# TYPE ftm_relay_frames_total counter\n"),
        "{text}"
    );
    assert!(
        !text.contains(" info\n") && !text.contains("# EOF"),
        "{text}"
    );
    assert!(!text.contains("alice"), "{text}");
}

#[test]
fn openmetrics_is_given_on_request() {
    let relay = Relay::start(&config());
    let mut stream = TcpStream::connect(relay.http()).unwrap();
    stream
        .write_all(
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[test]
fn the_page_answers_to_this_machine_alone() {
    let relay = Relay::start(&config());
    let port = relay.http().port();
    for host in [
        "localhost".to_owned(),
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
    ] {
        assert_eq!(relay.get_as("/", &host).0, 200, "{host}");
    }
    for host in ["evil.test", "localhost.evil.test", "10.0.0.1", ""] {
        let (status, body) = relay.get_as("/", host);
        assert!(
            status == 421 || (host.is_empty() && status == 400),
            "{host}: {status}"
        );
        assert!(!body.contains("<html"), "{host}");
    }
    // Health and metrics are for monitoring, which has its own name for this machine.
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(
            relay.get_as(path, "relay.example.com:8514").0,
            200,
            "{path}"
        );
    }
    assert_eq!(relay.get("/nothing").0, 404);
}

#[test]
fn the_page_shows_neither_code_nor_address_nor_anybodys_markup() {
    let hostile = "<script>alert(1)</script>";
    let relay = relayed(&["alice", hostile]);
    let (status, page) = relay.get("/");
    assert_eq!(status, 200);
    for shown in [
        "alice",
        "a…@example.com",
        "needs-attention",
        "TEST-FGT",
        "FGT60FTK20000001",
        "Ready",
        "udp 127.0.0.1",
    ] {
        assert!(page.contains(shown), "{shown} is not on\n{page}");
    }
    for hidden in [&code(1), &code(2), "alice@example.com", "<script"] {
        assert!(!page.contains(hidden), "{hidden} is on\n{page}");
    }
    assert!(page.contains("&lt;script&gt;"), "{page}");
}
