//! Catching up: each device's own event log is read at start and every `catch_up`, so that what syslog lost arrives all the same.
//!
//! Nothing is kept of how far a log was read. A start reads back as far as a code lives, though not to before the device was
//! first known, and the outbox tells what it has already; that can lose nothing, whatever was lost before.

mod known;

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest;
use jiff::SignedDuration;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::activation::Device;
use crate::dispatch;
use crate::fortios::ApiError;
use crate::fortios::Fleet;
use crate::fortios::FortiGate;
use crate::fortios::Record;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::metrics;
use crate::metrics::Metrics;

use known::Known;
use known::Said;

/// So many devices are read at the same time.
const DEVICES_AT_ONCE: usize = 32;
/// The furthest that is read back, however long codes live.
const MAX_LOOK_BACK: SignedDuration = SignedDuration::from_hours(72);
/// Each reading begins so long before the one before it, for clocks that are behind and records that come late.
const OVERLAP: SignedDuration = SignedDuration::from_hours(1);
/// So many records are handed over together.
const BATCH_FRAMES: usize = 256;

/// Takes what was read; the relay itself.
#[async_trait]
pub trait Taker: Send + Sync {
    /// Commits what is wanted of these frames, and says how many events were new.
    async fn take(&self, frames: Vec<Frame>) -> anyhow::Result<u64>;
}

/// What a configuration says about it. Replaced as a whole on reload.
pub struct Plan {
    /// The devices that have an API.
    pub fleet: Arc<Fleet>,
    /// The message ids that a rule wants.
    pub ids: BTreeSet<u32>,
}

/// What is known of the devices whose logs are read.
pub struct CatchUp {
    known: Known,
    metrics: Metrics,
}

/// How far one device's log was read.
#[derive(Default)]
struct Progress {
    /// Before this, everything was.
    since: Timestamp,
    /// What was handed over, by its hash, so that the overlap isn't handed over again each time.
    taken: HashMap<[u8; 32], Timestamp>,
    /// The plan under which it was.
    plan: u64,
    is_failing: bool,
    has_run: bool,
}

/// One reading of one device's log.
struct Round {
    device: Arc<FortiGate>,
    progress: Progress,
    new: u64,
    said: Said,
    error: Option<ApiError>,
}

/// Which device is due when, which are being read, and how far the others are.
#[derive(Default)]
struct Schedule {
    due: BTreeSet<(Instant, String)>,
    running: HashSet<String>,
    progress: HashMap<String, Progress>,
    plan: u64,
}

impl CatchUp {
    /// Reads what the last run knew.
    pub fn open(state_dir: &Path, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            known: Known::open(state_dir),
            metrics,
        })
    }

    /// An event of this device was taken; its VDOM's log will be read, too, if the device knows it.
    pub fn heard(&self, device: &Device) {
        self.known.heard(&device.id, &device.vdom);
    }

    /// The VDOMs of a device: those that are configured, else `root` and those of which events were seen.
    pub fn vdoms(&self, device: &FortiGate) -> Vec<String> {
        match &device.catch_up().vdoms {
            Some(vdoms) => vdoms.clone(),
            None => self.known.vdoms(device.id()),
        }
    }

    /// Runs until `stop`.
    pub async fn run(
        self: Arc<Self>,
        mut plans: watch::Receiver<Arc<Plan>>,
        taker: Arc<dyn Taker>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut plan = Arc::clone(&plans.borrow_and_update());
        let mut schedule = Schedule::default();
        self.schedule(&mut schedule, &plan);
        let mut rounds: JoinSet<anyhow::Result<Round>> = JoinSet::new();
        loop {
            let next = schedule.due.first().map(|(at, _)| *at);
            let may_begin = next.is_some() && rounds.len() < DEVICES_AT_ONCE;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = plans.changed() => {
                    plan = Arc::clone(&plans.borrow_and_update());
                    self.schedule(&mut schedule, &plan);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if may_begin => {
                    if let Some((device, progress)) = self.next(&mut schedule, &plan) {
                        let (vdoms, unsure) = (self.vdoms(&device), self.known.unsure(device.id()));
                        rounds.spawn(read(device, vdoms, unsure, Arc::clone(&plan), progress, Arc::clone(&taker)));
                    }
                }
                Some(round) = rounds.join_next() => self.finish(round??, &plan, &mut schedule),
            }
        }
    }

    /// New devices are due at once; those that are no longer read are forgotten.
    fn schedule(&self, schedule: &mut Schedule, plan: &Plan) {
        let reads = |device: &FortiGate| device.catch_up().every.is_some();
        let read = plan.fleet.all().filter(|device| reads(device));
        self.known.meet(
            read.map(|device| (device.id(), device.catch_up().vdoms.is_some())),
            Timestamp::now(),
        );
        schedule.plan += 1;
        schedule.due.clear();
        schedule
            .progress
            .retain(|id, _| plan.fleet.by_id(id).is_some_and(|d| reads(d)));
        for device in plan.fleet.all().filter(|device| reads(device)) {
            schedule
                .due
                .insert((Instant::now(), device.id().to_owned()));
        }
    }

    /// Takes out the device that is due.
    fn next(&self, schedule: &mut Schedule, plan: &Plan) -> Option<(Arc<FortiGate>, Progress)> {
        let (_, id) = schedule.due.pop_first()?;
        let device = plan.fleet.by_id(&id)?;
        let kept = schedule.progress.remove(&id);
        // One that is being read will be due again after that.
        if !schedule.running.insert(id) {
            return None;
        }
        let mut progress = kept.unwrap_or_else(|| self.begin(device));
        progress.forget_before(oldest(device));
        if progress.plan != schedule.plan {
            // A record that no rule wanted may be wanted now.
            progress.taken.clear();
            progress.plan = schedule.plan;
        }
        Some((Arc::clone(device), progress))
    }

    /// A start knows only since when the device is known, and not even that if our clock was ahead then.
    fn begin(&self, device: &FortiGate) -> Progress {
        let now = Timestamp::now();
        Progress {
            since: self.known.since(device.id()).map_or(now, |at| at.min(now)),
            ..Progress::default()
        }
    }

    fn finish(&self, round: Round, plan: &Plan, schedule: &mut Schedule) {
        let Round {
            device,
            mut progress,
            new,
            said,
            error,
        } = round;
        self.known.asked(device.id(), said);
        let label = metrics::Device {
            device: device.id().to_owned(),
        };
        if new > 0 {
            self.metrics.caught_up.get_or_create(&label).inc_by(new);
            info!(device = %device.id(), "Caught up {new} events of {} that syslog had not brought", device.id());
        }
        match &error {
            None => {
                if progress.is_failing {
                    info!(device = %device.id(), "The log of {} can be read again", device.id());
                }
                self.metrics
                    .device_caught_up
                    .get_or_create(&label)
                    .set(Timestamp::now().as_second() as f64);
            }
            Some(e) if !progress.is_failing => {
                warn!(device = %device.id(), "The log of {} can't be read, so nothing is caught up: {e}", device.id());
            }
            Some(_) => {}
        }
        progress.is_failing = error.is_some();
        let id = device.id().to_owned();
        schedule.running.remove(&id);
        // The plan may have changed meanwhile.
        let device = plan.fleet.by_id(&id);
        let Some(every) = device.and_then(|device| device.catch_up().every) else {
            return;
        };
        let share = match progress.has_run {
            true => 0.9 + 0.2 * dispatch::jitter(),
            // What begins together at the start is spread over the whole interval from then on.
            false => dispatch::jitter(),
        };
        progress.has_run = true;
        if !schedule.due.iter().any(|(_, other)| *other == id) {
            schedule
                .due
                .insert((Instant::now() + every.mul_f64(share), id.clone()));
        }
        schedule.progress.insert(id, progress);
    }
}

/// Before this, what a device logged has nothing to send any more.
fn oldest(device: &FortiGate) -> Timestamp {
    let now = Timestamp::now();
    let validity = SignedDuration::try_from(device.catch_up().validity);
    let back = validity.map_or(MAX_LOOK_BACK, |validity| validity.min(MAX_LOOK_BACK));
    now.checked_sub(back).unwrap_or(now)
}

/// Reads one device's log, VDOM by VDOM. Of those that are `unsure` a refusal is no failure.
async fn read(
    device: Arc<FortiGate>,
    vdoms: Vec<String>,
    unsure: BTreeSet<String>,
    plan: Arc<Plan>,
    mut progress: Progress,
    taker: Arc<dyn Taker>,
) -> anyhow::Result<Round> {
    let began = Timestamp::now();
    let (mut new, mut error, mut said) = (0, None, Said::default());
    let mut refused = Vec::new();
    for vdom in vdoms {
        match device.events(&vdom, &plan.ids, progress.since).await {
            Ok(events) => {
                said.has.push(vdom);
                error = error.or(events.missing);
                let records = events.records.into_iter();
                let frames: Vec<Frame> = records
                    .filter(|record| progress.take(record))
                    .map(frame)
                    .collect();
                for some in frames.chunks(BATCH_FRAMES) {
                    new += taker.take(some.to_vec()).await?;
                }
            }
            Err(e) => refused.push((vdom, e)),
        }
    }
    // What is refused for every VDOM is no word on any of them.
    let is_answering = !said.has.is_empty();
    for (vdom, e) in refused {
        // A VDOM that we may not read (403) is there, and what its log holds is missed.
        let refuses = matches!(e, ApiError::Missing { .. });
        if is_answering && refuses && unsure.contains(&vdom) {
            said.refuses.push(vdom);
        } else {
            error = error.or(Some(e));
        }
    }
    if error.is_none() {
        progress.reached(began);
    }
    Ok(Round {
        device,
        progress,
        new,
        said,
        error,
    })
}

/// Nobody sent it, so `allow` and `peers` have nothing to say: we asked the device ourselves.
fn frame(record: Record) -> Frame {
    Frame {
        bytes: record.bytes.to_vec(),
        peer: Peer::unknown(),
        listener: None,
        received_at: Timestamp::now(),
    }
}

impl Progress {
    /// Whether this record is handed over for the first time.
    fn take(&mut self, record: &Record) -> bool {
        let digest = digest::digest(&digest::SHA256, &record.bytes);
        let hash = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let time = record.time.unwrap_or_else(Timestamp::now);
        self.taken.insert(hash, time).is_none()
    }

    /// Everything up to `time` was read; a bit of it will be read again.
    fn reached(&mut self, time: Timestamp) {
        self.forget_before(time.checked_sub(OVERLAP).unwrap_or(Timestamp::MIN));
    }

    /// Nothing from before `time` is read any more. Without this, a VDOM that never answers would make each reading longer.
    fn forget_before(&mut self, time: Timestamp) {
        self.since = self.since.max(time);
        self.taken.retain(|_, at| *at >= self.since);
    }
}
