//! When each device was last heard and how its clock goes, and who spoke for one that may not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::SignedDuration;
use jiff::Timestamp;

use crate::activation::Device;
use crate::frame::Peer;
use crate::metrics;
use crate::metrics::Metrics;

/// More devices than this are not told apart: a forger of device ids must not fill memory or metrics.
const MAX_DEVICES: usize = 10_000;

/// So many strangers are remembered; the one that was silent longest makes room.
const MAX_STRANGERS: usize = 256;

/// So often the same stranger is news.
const NEWS_PERIOD: SignedDuration = SignedDuration::from_mins(10);

/// The devices that were heard.
#[derive(Debug, Default)]
pub struct Seen {
    devices: Mutex<BTreeMap<String, Heard>>,
    strangers: Mutex<BTreeMap<(String, Option<IpAddr>), Stranger>>,
}

/// A peer that spoke for a device and may not, or not where it did.
#[derive(Clone, Debug)]
pub struct Stranger {
    /// Why not.
    pub why: String,
    /// How many records it was not believed.
    pub count: u64,
    /// When it last spoke.
    pub at: Timestamp,
    told_at: Timestamp,
}

/// What is known of one device.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Its name.
    pub name: String,
    /// When a record of it was last read.
    pub at: Timestamp,
    /// By how much its clock was ahead in its last token event.
    pub skew: Option<SignedDuration>,
}

impl Seen {
    /// A record of this device was read.
    pub fn heard(
        &self,
        device: &Device,
        at: Timestamp,
        skew: Option<SignedDuration>,
        metrics: &Metrics,
    ) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= MAX_DEVICES && !devices.contains_key(&device.id) {
            return;
        }
        let heard = devices.entry(device.id.clone()).or_insert_with(|| Heard {
            name: device.name.clone(),
            at,
            skew,
        });
        heard.name.clone_from(&device.name);
        heard.at = at;
        let label = metrics::Device {
            device: device.id.clone(),
        };
        metrics
            .device_last_seen
            .get_or_create(&label)
            .set(at.as_second() as f64);
        if let Some(skew) = skew {
            heard.skew = Some(skew);
            metrics
                .device_clock_skew
                .get_or_create(&label)
                .set(skew.as_secs_f64());
        }
    }

    /// A peer spoke for this device and may not. Whether that is news: for the first time, or after a while.
    pub fn stranger(&self, device: &Device, peer: &Peer, why: &str, at: Timestamp) -> bool {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (device.id.clone(), peer.address);
        if let Some(known) = strangers.get_mut(&key) {
            why.clone_into(&mut known.why);
            known.count += 1;
            known.at = at;
            let is_news = at.duration_since(known.told_at) >= NEWS_PERIOD;
            if is_news {
                known.told_at = at;
            }
            return is_news;
        }
        if strangers.len() >= MAX_STRANGERS {
            let silent = strangers.iter().min_by_key(|(_, s)| s.at);
            if let Some(key) = silent.map(|(key, _)| key.clone()) {
                strangers.remove(&key);
            }
        }
        let stranger = Stranger {
            why: why.to_owned(),
            count: 1,
            at,
            told_at: at,
        };
        strangers.insert(key, stranger);
        true
    }

    /// All strangers, with the device that each spoke for.
    pub fn strangers(&self) -> Vec<(String, Stranger)> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|((device, _), stranger)| (device.clone(), stranger.clone()))
            .collect()
    }

    /// What a device calls itself.
    pub fn name(&self, id: &str) -> Option<String> {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.get(id).map(|heard| heard.name.clone())
    }

    /// All devices, by id.
    pub fn all(&self) -> Vec<(String, Heard)> {
        self.devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(id, heard)| (id.clone(), heard.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> Device {
        Device {
            id: id.to_owned(),
            name: id.to_owned(),
            vdom: "root".to_owned(),
        }
    }

    #[test]
    fn a_stranger_is_news_at_first_and_after_a_while() {
        let seen = Seen::default();
        let (here, there) = (
            Peer::at([192, 0, 2, 1].into()),
            Peer::at([192, 0, 2, 2].into()),
        );
        let speaks = |peer, after: SignedDuration| {
            seen.stranger(&device("FGT1"), peer, "why", Timestamp::UNIX_EPOCH + after)
        };
        assert!(speaks(&here, SignedDuration::ZERO));
        assert!(!speaks(&here, NEWS_PERIOD / 2));
        assert!(speaks(&there, NEWS_PERIOD / 2));
        assert!(speaks(&here, NEWS_PERIOD));
        let counts: Vec<_> = seen.strangers().iter().map(|(_, s)| s.count).collect();
        assert_eq!(counts, [3, 1]);
    }

    #[test]
    fn the_number_of_strangers_is_bounded_and_the_newest_stay() {
        let seen = Seen::default();
        for n in 0..2 * MAX_STRANGERS as i64 {
            let at = Timestamp::from_second(n).unwrap();
            seen.stranger(&device(&format!("FGT{n}")), &Peer::unknown(), "why", at);
        }
        let strangers = seen.strangers();
        assert_eq!(strangers.len(), MAX_STRANGERS);
        assert!(
            strangers
                .iter()
                .all(|(_, s)| s.at.as_second() >= MAX_STRANGERS as i64)
        );
    }
}
