//! The metrics of the contract, one line each in one table; `/metrics` prints them.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Why a frame was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The peer is not in `allow`.
    Peer,
    /// Longer than `max_frame_bytes`.
    Size,
    /// No record could be told from the stream.
    Framing,
    /// The TLS handshake failed.
    Tls,
    /// The relay was too busy for a datagram.
    Backlog,
    /// The outbox couldn't commit, and the memory for waiting frames was full.
    Outbox,
}

impl Rejected {
    const ALL: [Self; 6] = [
        Self::Peer,
        Self::Size,
        Self::Framing,
        Self::Tls,
        Self::Backlog,
        Self::Outbox,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Size => "size",
            Self::Framing => "framing",
            Self::Tls => "tls",
            Self::Backlog => "backlog",
            Self::Outbox => "outbox",
        }
    }
}

macro_rules! labels {
    ($($name:ident { $($label:ident),+ })+) => {$(
        #[doc = concat!("The labels ", $(stringify!($label), " ",)+ "of a metric.")]
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        pub struct $name { $(#[allow(missing_docs)] pub $label: String),+ }
    )+};
}

labels! {
    Listener { listener }
    ListenerReason { listener, reason }
    Format { format }
    Outcome { outcome }
    ChannelOutcome { channel, outcome }
    Channel { channel }
    StateLabel { state }
    Device { device }
}

macro_rules! table {
    ($($field:ident: $type:ty = $new:expr, $name:literal, $help:literal;)+) => {
        /// Every metric of the relay. Cloning shares them.
        #[derive(Clone)]
        pub struct Metrics { $(#[doc = $help] pub $field: $type),+ }

        impl Metrics {
            /// All metrics at zero, and the registry that prints them.
            pub fn new() -> (Self, Registry) {
                let mut registry = Registry::with_prefix("ftm_relay");
                let metrics = Self { $($field: $new),+ };
                $(registry.register($name, $help, metrics.$field.clone());)+
                metrics.begin();
                registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
                (metrics, registry)
            }
        }
    };
}

/// From 5 ms to 3 days, since a code may wait as long as it lives.
fn delivery_seconds() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
        3600.0, 14400.0, 86400.0, 259_200.0,
    ])
}

// A counter's name has no `_total` here: the encoder adds it.
table! {
    frames: Family<Listener, Counter> = Family::default(), "frames", "Frames taken from the wire, whatever became of them";
    frames_rejected: Family<ListenerReason, Counter> = Family::default(), "frames_rejected", "Frames or connections turned away";
    udp_dropped: Family<Listener, Counter> = Family::default(), "udp_dropped", "Datagrams the kernel dropped because the receive queue was full";
    records: Family<Format, Counter> = Family::default(), "records", "Records read";
    activations: Family<Outcome, Counter> = Family::default(), "activations", "Token events by what became of them at intake";
    activations_ended: Family<Outcome, Counter> = Family::default(), "activations_ended", "Activations by how they ended";
    deliveries: Family<ChannelOutcome, Counter> = Family::default(), "deliveries", "Tries by channel and outcome";
    delivery_seconds: Family<Channel, Histogram> = Family::new_with_constructor(delivery_seconds), "delivery_seconds", "From receipt to acceptance by the next hop";
    outbox_items: Family<StateLabel, Gauge> = Family::default(), "outbox_items", "Rows of the outbox by state";
    outbox_oldest: Seconds = Seconds::default(), "outbox_oldest_seconds", "Age of the oldest row that is not final";
    device_last_seen: Family<Device, Seconds> = Family::default(), "device_last_seen_timestamp_seconds", "When a record of the device was last read";
    device_clock_skew: Family<Device, Seconds> = Family::default(), "device_clock_skew_seconds", "By how much the device's clock is ahead";
    device_caught_up: Family<Device, Seconds> = Family::default(), "device_caught_up_timestamp_seconds", "When the device's own log was last read whole";
    caught_up: Family<Device, Counter> = Family::default(), "caught_up", "Token events that the device's own log brought and syslog had not";
    channel_last_success: Family<Channel, Seconds> = Family::default(), "channel_last_success_timestamp_seconds", "When the channel's next hop last took something";
    channel_suspended: Family<Channel, Gauge> = Family::default(), "channel_suspended", "1 while the channel waits for an operator";
    config_reload_success: Gauge = Gauge::default(), "config_reload_success", "0 after a reload that was refused";
}

/// One listener's counters, looked up once.
#[derive(Clone)]
pub struct ListenerMetrics {
    /// Every frame.
    pub frames: Counter,
    /// Kernel drops.
    pub udp_dropped: Counter,
    rejected: [Counter; 6],
}

impl ListenerMetrics {
    /// Counts a frame or connection turned away.
    pub fn reject(&self, why: Rejected) {
        self.rejected[why as usize].inc();
    }

    /// How many were turned away in all.
    pub fn all_rejected(&self) -> u64 {
        self.rejected.iter().map(Counter::get).sum()
    }

    /// How many were turned away for this reason.
    pub fn rejected(&self, why: Rejected) -> u64 {
        self.rejected[why as usize].get()
    }
}

/// What becomes of a token event at intake.
const INTAKE: [&str; 4] = ["relay", "no_code", "duplicate", "rejected"];
/// How an activation ends.
const ENDS: [&str; 7] = [
    "accepted",
    "no_recipient",
    "superseded",
    "held",
    "expired",
    "cancelled",
    "failed",
];

impl Metrics {
    /// Counters that exist from the start, so that an alert on an increase sees the first one.
    fn begin(&self) {
        for outcome in INTAKE.map(str::to_owned) {
            drop(self.activations.get_or_create(&Outcome { outcome }));
        }
        for outcome in ENDS.map(str::to_owned) {
            drop(self.activations_ended.get_or_create(&Outcome { outcome }));
        }
    }

    /// The counters of one listener; they exist from then on, at zero.
    pub fn listener(&self, name: &str) -> ListenerMetrics {
        let listener = || name.to_owned();
        ListenerMetrics {
            frames: self.frames.get_or_create_owned(&Listener {
                listener: listener(),
            }),
            udp_dropped: self.udp_dropped.get_or_create_owned(&Listener {
                listener: listener(),
            }),
            rejected: Rejected::ALL.map(|why| {
                self.frames_rejected.get_or_create_owned(&ListenerReason {
                    listener: listener(),
                    reason: why.as_str().to_owned(),
                })
            }),
        }
    }

    /// Counts a token event at intake: `relay`, `no_code`, `duplicate` or `rejected`.
    pub fn activation(&self, outcome: &str) {
        self.activations
            .get_or_create(&Outcome {
                outcome: outcome.to_owned(),
            })
            .inc();
    }

    /// Counts how an activation ended.
    pub fn ended(&self, outcome: &str) {
        self.activations_ended
            .get_or_create(&Outcome {
                outcome: outcome.to_owned(),
            })
            .inc();
    }

    /// Counts a try: `accepted`, `retried`, `failed` or `expired`.
    pub fn delivery(&self, channel: &str, outcome: &str) {
        self.deliveries
            .get_or_create(&ChannelOutcome {
                channel: channel.to_owned(),
                outcome: outcome.to_owned(),
            })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_contracts_names() {
        let (metrics, registry) = Metrics::new();
        metrics.listener("udp").reject(Rejected::Outbox);
        metrics.activation("relay");
        metrics
            .delivery_seconds
            .get_or_create(&Channel {
                channel: "mail".to_owned(),
            })
            .observe(0.02);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a string");
        for line in [
            "ftm_relay_frames_total{listener=\"udp\"} 0",
            "ftm_relay_frames_rejected_total{listener=\"udp\",reason=\"outbox\"} 1",
            "ftm_relay_activations_total{outcome=\"relay\"} 1",
            "ftm_relay_delivery_seconds_count{channel=\"mail\"} 1",
            "ftm_relay_build_info{version=",
            "ftm_relay_config_reload_success 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
