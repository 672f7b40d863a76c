//! One listener's settings, counters and log lines, shared by all its connections.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use arc_swap::Cache;
use jiff::Timestamp;
use tracing::warn;

use super::Config;
use super::framing::Protocol;
use super::intake::Answer;
use super::intake::Closed;
use super::intake::GateCache;
use super::intake::Intake;
use super::intake::Room;
use super::pace::PerPeer;
use super::pace::Throttle;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::metrics::ListenerMetrics;
use crate::metrics::Rejected;

/// So often one message of each peer passes without the gate, so that a device whose log holds nothing wanted is seen.
pub(super) const SAMPLE_PERIOD: Duration = Duration::from_secs(10);

/// So often a peer is told of that speaks one and the same other protocol.
const ADVICE_PERIOD: Duration = Duration::from_secs(3600);

/// So often a listener says why it turns frames away.
const REJECTED_PERIOD: Duration = Duration::from_secs(60);

/// The settings as one connection sees them.
pub(super) type SettingsCache = Cache<Arc<ArcSwap<Config>>, Arc<Config>>;

pub(super) struct Listener {
    pub(super) name: Arc<str>,
    pub(super) intake: Intake,
    pub(super) metrics: ListenerMetrics,
    pub(super) samples: PerPeer,
    pub(super) settings: Arc<ArcSwap<Config>>,
    /// By protocol: who has mended one mistake may make the next.
    advice: [PerPeer; 3],
    failures: PerPeer,
    rejected: [Throttle; 6],
}

impl Listener {
    pub(super) fn new(
        intake: Intake,
        metrics: ListenerMetrics,
        settings: Arc<ArcSwap<Config>>,
    ) -> Self {
        Self {
            name: settings.load().name().into(),
            intake,
            metrics,
            samples: PerPeer::new(SAMPLE_PERIOD),
            settings,
            advice: std::array::from_fn(|_| PerPeer::new(ADVICE_PERIOD)),
            failures: PerPeer::new(REJECTED_PERIOD),
            rejected: std::array::from_fn(|_| Throttle::new(REJECTED_PERIOD)),
        }
    }

    pub(super) fn settings_cache(&self) -> SettingsCache {
        Cache::new(self.settings.clone())
    }

    pub(super) fn gate(&self) -> GateCache {
        self.intake.gate()
    }

    /// Copies a message into the queue.
    pub(super) fn put(&self, bytes: &[u8], from: &Peer, room: Room) -> Result<(), Closed> {
        self.intake.put(self.frame(bytes.to_vec(), from), room)
    }

    /// The same, for a sender that waits to hear what becomes of it.
    pub(super) fn ask(&self, bytes: Vec<u8>, from: &Peer, room: Room) -> Result<Answer, Closed> {
        self.intake.ask(self.frame(bytes, from), room)
    }

    fn frame(&self, bytes: Vec<u8>, from: &Peer) -> Frame {
        Frame {
            bytes,
            peer: from.clone(),
            listener: Some(self.name.clone()),
            received_at: Timestamp::now(),
        }
    }

    /// Counts what was turned away, and says so once a minute.
    pub(super) fn reject(&self, why: Rejected, peer: IpAddr) {
        self.metrics.reject(why);
        let Some(count) = self.rejected[why as usize].hit(Instant::now()) else {
            return;
        };
        let listener = &*self.name;
        match why {
            Rejected::Peer => {
                warn!(listener, %peer, count, "Turned away messages or connections from outside `allow`, the last from {peer}");
            }
            Rejected::Size => {
                warn!(listener, %peer, count, "Discarded messages longer than `max_frame_bytes`, the last from {peer}");
            }
            Rejected::Framing => {
                warn!(listener, %peer, count, "A stream had a wrong length in front of a message or broke off within one, the last from {peer}");
            }
            Rejected::Tls => {
                warn!(listener, %peer, count, "TLS handshakes failed, the last with {peer}")
            }
            Rejected::Backlog => {
                warn!(listener, %peer, count, "Turned away messages or connections because there were too many at once, the last from {peer}");
            }
            Rejected::Outbox => {
                warn!(listener, %peer, count, "Lost messages because the outbox can't commit and the memory for waiting ones is full, the last from {peer}");
            }
        }
    }

    /// Counts a handshake that failed, and says why, once a minute for each peer.
    pub(super) fn handshake_failed(&self, peer: IpAddr, why: &str) {
        self.metrics.reject(Rejected::Tls);
        if self.failures.take(peer, Instant::now()) {
            warn!(listener = &*self.name, %peer, "No TLS with {peer}: {why}");
        }
    }

    /// Counts a peer that showed no right to speak, and says so once a minute.
    pub(super) fn unauthorised(&self, peer: IpAddr) {
        self.metrics.reject(Rejected::Peer);
        if self.failures.take(peer, Instant::now()) {
            warn!(listener = &*self.name, %peer, "{peer} sent a request without the bearer token of this listener; the header is `Authorization: Bearer TOKEN`");
        }
    }

    /// Counts a peer that speaks another protocol, and says what to do about it.
    pub(super) fn advise(&self, protocol: Protocol, peer: IpAddr) {
        let settings = self.settings.load();
        let over_tls = settings.tls_server().is_some();
        self.metrics.reject(if over_tls {
            Rejected::Tls
        } else {
            Rejected::Framing
        });
        if !self.advice[protocol as usize].take(peer, Instant::now()) {
            return;
        }
        let listener = &*self.name;
        match (protocol, &**settings) {
            (Protocol::Beep, _) => warn!(
                listener, %peer,
                "{peer} speaks RFC 3195 (on a FortiGate: `set mode legacy-reliable`), which is not understood here; write `set mode reliable` under `config log syslogd setting` on the FortiGate"
            ),
            (Protocol::Tls, Config::Stitch(_)) => warn!(
                listener, %peer,
                "{peer} speaks TLS, but this listener expects plain HTTP; give it `cert` and `key`, or write `set protocol http` in the stitch's action"
            ),
            (Protocol::Tls, _) => warn!(
                listener, %peer,
                "{peer} speaks TLS, but this listener expects plain TCP; send to a listener with `transport = \"tls\"`, or write `set enc-algorithm disable` under `config log syslogd setting` on the FortiGate"
            ),
            (Protocol::Plain, Config::Stitch(_)) => warn!(
                listener, %peer,
                "{peer} speaks without TLS, but this listener expects HTTPS; write `set protocol https` in the stitch's action"
            ),
            (Protocol::Plain, _) => warn!(
                listener, %peer,
                "{peer} speaks without TLS, but this listener expects it; write `set enc-algorithm high-medium` under `config log syslogd setting` on the FortiGate, or send to a listener with `transport = \"tcp\"`"
            ),
        }
    }
}
