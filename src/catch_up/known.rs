//! What must outlast a restart: since when each device is known, and of which of its VDOMs an event was seen.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use tracing::warn;

/// In the state directory.
const FILE: &str = "catch-up.json";
/// So many VDOMs of one device are remembered; with more, write `vdoms`.
const MAX_VDOMS: usize = 64;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Device {
    /// Before this, its codes were nobody's business here.
    since: Timestamp,
    /// The VDOMs of its events.
    vdoms: BTreeSet<String>,
}

/// The devices whose logs are read, kept in a file. Should that be lost, they are as good as new: what happened before is not
/// caught up.
pub(super) struct Known {
    path: PathBuf,
    devices: Mutex<BTreeMap<String, Device>>,
}

impl Known {
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let devices = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                warn!(
                    "{} can't be read; events from before now are not caught up",
                    path.display()
                );
                BTreeMap::new()
            }),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    warn!("{} can't be read: {e}", path.display());
                }
                BTreeMap::new()
            }
        };
        Self {
            path,
            devices: Mutex::new(devices),
        }
    }

    /// These devices are known from now on, if they weren't.
    pub(super) fn meet<'i>(&self, ids: impl Iterator<Item = &'i str>, now: Timestamp) {
        let mut devices = self.devices();
        let before = devices.len();
        for id in ids {
            devices.entry(id.to_owned()).or_insert_with(|| Device {
                since: now,
                vdoms: BTreeSet::new(),
            });
        }
        if devices.len() > before {
            self.save(&devices);
        }
    }

    /// An event of this VDOM was seen.
    pub(super) fn heard(&self, id: &str, vdom: &str) {
        let mut devices = self.devices();
        let Some(device) = devices.get_mut(id) else {
            return;
        };
        if device.vdoms.len() < MAX_VDOMS && device.vdoms.insert(vdom.to_owned()) {
            self.save(&devices);
        }
    }

    /// Since when a device is known.
    pub(super) fn since(&self, id: &str) -> Option<Timestamp> {
        self.devices().get(id).map(|device| device.since)
    }

    /// `root`, and the VDOMs of which events were seen.
    pub(super) fn vdoms(&self, id: &str) -> Vec<String> {
        let devices = self.devices();
        let heard = devices.get(id).map(|device| &device.vdoms);
        let others = heard.into_iter().flatten().filter(|vdom| *vdom != "root");
        std::iter::once("root".to_owned())
            .chain(others.cloned())
            .collect()
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<String, Device>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seldom: when a device or a VDOM is new.
    fn save(&self, devices: &BTreeMap<String, Device>) {
        let new = self.path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(devices)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        if let Err(e) = write() {
            warn!(
                "{} can't be written, so the next start doesn't know what to catch up: {e}",
                self.path.display()
            );
        }
    }
}
