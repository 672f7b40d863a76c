//! Page, health and metrics.

use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

const FILE: &str = "[channel.file]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"file\"]\n";

fn delivered() -> Relay {
    let relay = Relay::start(&format!("{BASE}{FILE}"));
    relay.send_udp(&Event::code(1, "<b>alice</b>").line());
    relay.send_udp(&Event::code(2, "bob").line());
    until("bob's mail", || {
        relay
            .states()
            .contains(&"accepted".to_owned())
            .then_some(())
    });
    relay
}

#[test]
fn the_page_shows_what_is_going_on_without_code_or_full_address() {
    let relay = delivered();
    let (status, page) = relay.get("/");
    assert_eq!(status, 200);
    for wanted in [
        "bob",
        "b…@example.com",
        "accepted",
        "TEST-FGT",
        "needs-attention",
        "&lt;b&gt;alice&lt;&#x2f;b&gt;",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in\n{page}");
    }
    for secret in [&code(1), &code(2), "bob@example.com", "<b>alice"] {
        assert!(!page.contains(secret), "{secret} is in\n{page}");
    }
}

#[test]
fn a_page_of_another_site_gets_nothing_by_our_name() {
    let relay = Relay::start(&format!("{BASE}{FILE}"));
    assert_eq!(relay.get_as("/", "evil.test").0, 421);
    assert_eq!(relay.get_as("/", "localhost").0, 200);
    assert_eq!(
        relay.get_as("/metrics", "relay.example.com").0,
        200,
        "a monitoring system may use any name"
    );
    assert_eq!(relay.get("/livez").0, 200);
    assert_eq!(relay.get("/readyz").0, 200);
    assert_eq!(relay.get("/nothing").0, 404);
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let relay = delivered();
    let metrics = relay.get("/metrics").1;
    for name in [
        "ftm_relay_frames_total{listener=\"udp\"} 2",
        "ftm_relay_frames_rejected_total{listener=\"udp\",reason=\"peer\"} 0",
        "ftm_relay_frames_rejected_total{listener=\"tcp\",reason=\"outbox\"} 0",
        "ftm_relay_udp_dropped_total{listener=\"udp\"} 0",
        "ftm_relay_records_total{format=\"kv\"} 2",
        "ftm_relay_activations_total{outcome=\"relay\"} 2",
        "ftm_relay_activations_ended_total{outcome=\"accepted\"} 1",
        "ftm_relay_deliveries_total{channel=\"file\",outcome=\"accepted\"} 1",
        "ftm_relay_delivery_seconds_bucket{le=\"+Inf\",channel=\"file\"} 1",
        "ftm_relay_outbox_items{state=\"accepted\"} 1",
        "ftm_relay_outbox_oldest_seconds ",
        "ftm_relay_device_last_seen_timestamp_seconds{device=\"FGT60FTK20000001\"} ",
        "ftm_relay_device_clock_skew_seconds{device=\"FGT60FTK20000001\"} ",
        "ftm_relay_channel_last_success_timestamp_seconds{channel=\"file\"} ",
        "ftm_relay_channel_suspended{channel=\"file\"} 0",
        "ftm_relay_config_reload_success 1",
        "ftm_relay_build_info{version=",
    ] {
        assert!(
            metrics.lines().any(|l| l.starts_with(name)),
            "{name} is not in\n{metrics}"
        );
    }
    assert!(
        !metrics.contains("# EOF"),
        "that is OpenMetrics, on request"
    );
}
