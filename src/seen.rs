//! When each device was last heard, and how its clock goes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::SignedDuration;
use jiff::Timestamp;

use crate::activation::Device;
use crate::metrics;
use crate::metrics::Metrics;

/// More devices than this are not told apart: a forger of device ids must not fill memory or metrics.
const MAX_DEVICES: usize = 10_000;

/// The devices that were heard.
#[derive(Debug, Default)]
pub struct Seen(Mutex<BTreeMap<String, Heard>>);

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
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// What a device calls itself.
    pub fn name(&self, id: &str) -> Option<String> {
        let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        devices.get(id).map(|heard| heard.name.clone())
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<(String, Heard)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(id, heard)| (id.clone(), heard.clone()))
            .collect()
    }
}
