//! What must outlast a restart: since when each device is known, and which VDOMs it has.
//!
//! A line of log may name any VDOM. So the device is asked about each name, and one that it doesn't know is forgotten.

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
use tracing::info;
use tracing::warn;

/// In the state directory.
const FILE: &str = "catch-up.json";
/// So many VDOMs of one device are remembered; with more, write `vdoms`.
const MAX_VDOMS: usize = 64;
/// So many names wait for the device to be asked about them: whoever forges lines makes neither file nor readings long.
const MAX_HEARD: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Device {
    /// Before this, its codes were nobody's business here.
    since: Timestamp,
    /// The VDOMs of which it has answered.
    vdoms: BTreeSet<String>,
    /// Those that only the log has named.
    #[serde(default)]
    heard: BTreeSet<String>,
    /// How many events named others while there was no room for them.
    #[serde(skip)]
    refused: u64,
    /// Its VDOMs are written in the configuration, so what its log names doesn't matter.
    #[serde(skip)]
    is_written: bool,
}

/// What a device said about the VDOMs that were read.
#[derive(Default)]
pub(super) struct Said {
    /// It answered for these.
    pub(super) has: Vec<String>,
    /// It answered for others, and refused these.
    pub(super) refuses: Vec<String>,
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

    /// These devices are known from now on, if they weren't; each with whether its VDOMs are written in the configuration.
    pub(super) fn meet<'i>(&self, met: impl Iterator<Item = (&'i str, bool)>, now: Timestamp) {
        let mut devices = self.devices();
        let before = devices.len();
        for (id, is_written) in met {
            let device = devices.entry(id.to_owned()).or_insert_with(|| Device {
                since: now,
                vdoms: BTreeSet::new(),
                heard: BTreeSet::new(),
                refused: 0,
                is_written,
            });
            device.is_written = is_written;
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
        if device.is_written
            || vdom == "root"
            || device.vdoms.contains(vdom)
            || device.heard.contains(vdom)
        {
            return;
        }
        if device.heard.len() == MAX_HEARD || device.vdoms.len() + device.heard.len() >= MAX_VDOMS {
            if device.refused == 0 {
                warn!(device = %id, "The log of {id} names more VDOMs than are kept before it has been asked about them; events that only the log of another one holds are not caught up (write `vdoms`, and see who sends such lines)");
            }
            device.refused += 1;
            return;
        }
        device.heard.insert(vdom.to_owned());
        self.save(&devices);
    }

    /// The device was asked about the VDOMs that its log names.
    pub(super) fn asked(&self, id: &str, said: Said) {
        let mut devices = self.devices();
        let Some(device) = devices.get_mut(id) else {
            return;
        };
        let before = device.heard.len();
        for vdom in said.has {
            if device.heard.remove(&vdom) {
                device.vdoms.insert(vdom);
            }
        }
        let known = device.heard.len();
        device.heard.retain(|vdom| !said.refuses.contains(vdom));
        let forgotten = known - device.heard.len();
        if forgotten > 0 {
            warn!(device = %id, "{id} refuses {forgotten} of the VDOMs that lines of its log name, so they are forgotten; the lines may be forged");
        }
        if device.heard.len() == before {
            return;
        }
        if device.refused > 0 {
            info!(device = %id, "There is room again for the VDOMs of {id}; {} events named others meanwhile", device.refused);
            device.refused = 0;
        }
        self.save(&devices);
    }

    /// Since when a device is known.
    pub(super) fn since(&self, id: &str) -> Option<Timestamp> {
        self.devices().get(id).map(|device| device.since)
    }

    /// `root`, the VDOMs of which it has answered, and those that its log has named since.
    pub(super) fn vdoms(&self, id: &str) -> Vec<String> {
        let devices = self.devices();
        let device = devices.get(id).into_iter();
        let named = device.flat_map(|device| device.vdoms.iter().chain(&device.heard));
        let others = named.filter(|vdom| *vdom != "root");
        std::iter::once("root".to_owned())
            .chain(others.cloned())
            .collect()
    }

    /// Those that only its log has named.
    pub(super) fn unsure(&self, id: &str) -> BTreeSet<String> {
        let devices = self.devices();
        let device = devices.get(id);
        let open = device.filter(|device| !device.is_written);
        open.map_or_else(BTreeSet::new, |device| device.heard.clone())
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
