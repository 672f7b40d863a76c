//! From an accepted activation to accepted messages: cases are decided, channels work, codes are wiped in time.

pub mod case;
pub mod health;
pub mod inquiry;
pub mod survey;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::activation::Stage;
use crate::activation::Standing;
use crate::backoff;
use crate::channel::Channel;
use crate::directory::Directories;
use crate::dispatch::case::Facts;
use crate::dispatch::case::Situation;
use crate::dispatch::health::Health;
use crate::dispatch::health::HealthState;
use crate::dispatch::inquiry::Inquiry;
use crate::dispatch::survey::Survey;
use crate::dispatch::worker::Worker;
use crate::fortios::Fleet;
use crate::limits;
use crate::metrics;
use crate::metrics::Metrics;
use crate::outbox::Advanced;
use crate::outbox::Case;
use crate::outbox::CaseState;
use crate::outbox::Clock;
use crate::outbox::Leased;
use crate::outbox::Outbox;
use crate::outbox::OutboxError;
use crate::outbox::Step;
use crate::pulse::Pulse;
use crate::recipients::Mismatch;
use crate::routing::Routes;
use crate::template::Templates;

/// So many cases are looked up at the same time.
const CASES_AT_ONCE: usize = 32;
/// Longer than the device and the directories may take together.
const CASE_LEASE: Duration = Duration::from_secs(120);
// A case whose lease ends while it is asked about is asked about again and never decided.
const _: () = assert!(
    inquiry::PATIENCE.as_secs() + survey::LOOKUPS_LIMIT.as_secs() < CASE_LEASE.as_secs(),
    "the device and the directories together must answer within the lease of a case"
);
/// The longest sleep, so that a clock that was set back can't stop anything.
const POLL: Duration = Duration::from_secs(10);
/// The shortest sleep, so that what can't be leased yet costs no processor.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// The wait before the outbox is asked again after it failed.
const OUTBOX_PAUSE: Duration = Duration::from_secs(1);
/// How often codes past use are wiped and old history is dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What a configuration says about everything behind the outbox. Replaced as a whole on reload.
pub struct Settings {
    /// Who people are.
    pub directories: Directories,
    /// The devices whose REST API may be asked.
    pub fleet: Arc<Fleet>,
    /// Which channels an activation takes.
    pub routes: Routes,
    /// The ways out.
    pub channels: Vec<Arc<Channel>>,
    /// What is said.
    pub templates: Templates,
    /// What one person may get.
    pub limits: limits::Config,
    /// So long before its expiry a code that no phone has used is sent once more.
    pub reminder: Option<Duration>,
    /// Another address in the message than the one found.
    pub mismatch: Mismatch,
    /// How long history is kept.
    pub retention: Duration,
}

/// Runs the cases and the channels.
pub struct Dispatcher {
    outbox: Arc<dyn Outbox>,
    metrics: Metrics,
    pulse: Arc<Pulse>,
    board: Mutex<BTreeMap<String, Arc<Health>>>,
}

/// A number in 0..1 for a wait.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness waits still spread by the clock; nothing secret hangs on it.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return f64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() % 1000) / 1000.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

impl Dispatcher {
    /// A dispatcher that does nothing yet.
    pub fn new(outbox: Arc<dyn Outbox>, metrics: Metrics, pulse: Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            outbox,
            metrics,
            pulse,
            board: Mutex::default(),
        })
    }

    /// The health of every channel, by name.
    pub fn board(&self) -> Vec<(String, HealthState)> {
        self.healths()
            .iter()
            .map(|(name, health)| (name.clone(), health.look()))
            .collect()
    }

    /// An operator wants `channel` to try once in spite of a wait.
    pub fn lift(&self, channel: &str) {
        if let Some(health) = self.healths().get(channel) {
            health.lift();
        }
    }

    fn healths(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Health>>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until `shutdown`, then finishes the tries under way. New settings start new workers at once; the tries of
    /// the old ones end by the old settings.
    pub async fn run(
        self: Arc<Self>,
        mut settings: watch::Receiver<Arc<Settings>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&self).run_cases(settings.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&self).run_sweeps(settings.clone(), shutdown.clone()));
        while !shutdown.is_cancelled() {
            let stop = shutdown.child_token();
            let current = Arc::clone(&settings.borrow_and_update());
            self.start_workers(&current, &mut tasks, &stop).await;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    changed = settings.changed() => {
                        changed?;
                        break;
                    }
                    Some(ended) = tasks.join_next() => ended?, // a worker of older settings; a panic ends the process
                }
            }
            stop.cancel();
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(())
    }

    async fn start_workers(
        &self,
        settings: &Arc<Settings>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let names: Vec<String> = settings.channels.iter().map(|c| c.name.clone()).collect();
        self.fail_orphans(settings).await;
        let before = self.healths().clone();
        for name in before.keys().filter(|n| !names.contains(n)) {
            self.metrics.channel_suspended.remove(&metrics::Channel {
                channel: name.clone(),
            });
        }
        let mut board = BTreeMap::new();
        for channel in &settings.channels {
            let health = before
                .get(&channel.name)
                .map_or_else(Health::default, |old| Health::reloaded(old));
            self.metrics
                .channel_suspended
                .get_or_create(&metrics::Channel {
                    channel: channel.name.clone(),
                })
                .set(i64::from(health.look().suspended.is_some()));
            let health = Arc::new(health);
            board.insert(channel.name.clone(), Arc::clone(&health));
            let worker = Worker {
                channel: Arc::clone(channel),
                health,
                outbox: Arc::clone(&self.outbox),
                settings: Arc::clone(settings),
                metrics: self.metrics.clone(),
                clock: Arc::new(Timestamp::now),
            };
            tasks.spawn(Arc::new(worker).run(stop.clone()));
        }
        *self.healths() = board;
    }

    async fn fail_orphans(&self, settings: &Settings) {
        let names: Vec<String> = settings.channels.iter().map(|c| c.name.clone()).collect();
        match self.outbox.fail_orphans(&names, Timestamp::now()).await {
            Ok(0) => {}
            Ok(n) => warn!("{n} deliveries of channels that are no longer configured have failed"),
            Err(e) => warn!(
                "Deliveries of channels that are no longer configured can't be ended yet: {e}"
            ),
        }
    }

    // === Cases ===

    async fn run_cases(
        self: Arc<Self>,
        settings: watch::Receiver<Arc<Settings>>,
        shutdown: CancellationToken,
    ) {
        let clock: Clock = Arc::new(Timestamp::now);
        let mut steps = JoinSet::new();
        let mut next = Next::Now;
        while !shutdown.is_cancelled() {
            // Each turn has been through the outbox, so that a database which never answers is noticed, too.
            self.pulse.beat("dispatch");
            while steps.try_join_next().is_some() {}
            // A case takes as long as its directory; the others don't wait for it.
            let free = CASES_AT_ONCE - steps.len();
            if free == 0 {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    Some(_) = steps.join_next() => {}
                    () = sleep(POLL) => {}
                }
                continue;
            }
            let leased = match next {
                Next::Now => self.outbox.lease_cases(free, clock(), CASE_LEASE).await,
                Next::After(changes, pause) => {
                    next = Next::Now;
                    let rest = async {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = sleep(pause) => {}
                        }
                    };
                    let cases = self
                        .outbox
                        .next_cases(changes, free, &clock, CASE_LEASE, Box::pin(rest))
                        .await;
                    match cases {
                        Ok(Some(leased)) => Ok(leased),
                        // If a commit failed, it was for others as well: one for this alone tells more.
                        Ok(None) | Err(_) => continue,
                    }
                }
            };
            match leased {
                Ok(leased) => {
                    next = Next::of(&leased, free, clock());
                    for case in leased.items {
                        let this = Arc::clone(&self);
                        let current = Arc::clone(&settings.borrow());
                        steps.spawn(async move { this.step(&case, &current).await });
                    }
                }
                Err(e) => {
                    warn!("Cases can't be leased: {e}");
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = sleep(OUTBOX_PAUSE) => {}
                    }
                }
            }
        }
        while steps.join_next().await.is_some() {}
    }

    async fn step(&self, case: &Case, settings: &Settings) {
        let wants_people = case.state == CaseState::Received;
        let wants_device = !case.reached
            && (wants_people
                || (case.state == CaseState::Recorded
                    && case.activation.stage == Stage::Activated));
        let survey = match wants_people || wants_device {
            true => Some(settings.survey(&case.activation, case.released).await),
            false => None,
        };
        let evidence = survey.as_ref().and_then(Survey::evidence).cloned();
        let informed = evidence.as_ref().map(|evidence| Case {
            activation: evidence.applied_to(&case.activation),
            ..case.clone()
        });
        let known = informed.as_ref().unwrap_or(case);
        let (inquiry, lookup, trace) =
            survey.map_or_else(Default::default, |s| (s.inquiry, s.lookup, s.trace));
        let route = settings.routes.find(&known.activation);
        // Only now: a look-up takes time, and a channel may have been suspended meanwhile.
        let channels = self.facts(settings);
        let now = Timestamp::now();
        let due = backoff::due(
            now,
            case.attempt + 1,
            jitter(),
            None,
            known.activation.expires_at,
        );
        let mut decision = case::decide(Situation {
            case: known,
            inquiry: inquiry.as_ref(),
            route,
            channels: &channels,
            lookup,
            hold_mismatch: settings.mismatch == Mismatch::Hold,
            limit: (
                settings.limits.per_person.count,
                settings.limits.per_person.window,
            ),
            escalate_unrouted: &settings.routes.escalate_all(),
            lookup_wait: Duration::try_from(due.duration_since(now)).unwrap_or_default(),
            now,
        });
        let leaves = matches!(
            decision.step.state,
            Some(CaseState::Routed | CaseState::NeedsAttention)
        );
        decision.step.settles = leaves
            && case.activation.origin.standing == Standing::Unsettled
            && matches!(inquiry, None | Some(Inquiry::Stands(_)));
        decision.step.evidence = evidence;
        decision.step.trace = trace;
        if let Some(other) = &decision.mismatch {
            warn!(activation.id = %case.id, "Another address than the one found stands in the message: {other}");
        }
        let wanted = decision.step.state;
        let waits = decision.step.count_attempt;
        let why = decision.step.reason.clone();
        let ways: Vec<String> = decision
            .step
            .deliver
            .iter()
            .map(|d| d.channel.clone())
            .collect();
        let Advanced {
            state,
            superseded,
            cancelled,
        } = match self.advance(case, decision.step).await {
            Ok(advanced) => advanced,
            Err(OutboxError::LostLease) => return,
            Err(e) => {
                return warn!(activation.id = %case.id, "{} can't be advanced yet: {e}", case.id);
            }
        };
        for _ in 0..superseded {
            self.metrics.ended("superseded");
        }
        for _ in 0..cancelled {
            self.metrics.ended("cancelled");
        }
        let held = wanted == Some(CaseState::Routed) && state == CaseState::NeedsAttention;
        // Another code has taken its place, and its end was counted as that; or it still waits for the other.
        let is_overtaken = !held && wanted.is_some_and(|wanted| wanted != state);
        if let Some(outcome) = decision.ended.or(held.then_some("held"))
            && !is_overtaken
        {
            self.metrics.ended(outcome);
        }
        if waits && let Some(why) = &why {
            info!(activation.id = %case.id, "{} waits and is looked at again: {why}", case.id);
        }
        if wanted.is_some() && !(is_overtaken && state == case.state) {
            let activation = &case.activation;
            let why = match why {
                _ if held => ": over [limits] per_person".to_owned(),
                _ if is_overtaken => String::new(),
                why => why.map(|r| format!(": {r}")).unwrap_or_default(),
            };
            info!(activation.id = %case.id, user = %activation.user, device = %activation.device.name, "{} is {}{why}", case.id, word(state));
        }
        self.wake_if_just_suspended(&ways, &channels).await;
    }

    /// Writes a decision down, as long as the lease lasts: while the outbox is away, nothing else could be done either.
    async fn advance(&self, case: &Case, step: Step) -> Result<Advanced, OutboxError> {
        let end = Instant::now() + CASE_LEASE;
        loop {
            match self
                .outbox
                .advance(case, step.clone(), Timestamp::now())
                .await
            {
                Err(e @ (OutboxError::Unavailable(_) | OutboxError::Full(_)))
                    if Instant::now() < end =>
                {
                    warn!(activation.id = %case.id, "{} can't be advanced yet: {e}", case.id);
                    sleep(OUTBOX_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// A channel that was suspended between the decision and its deliveries woke nobody: there was nothing to wake yet.
    async fn wake_if_just_suspended(&self, ways: &[String], known: &[Facts]) {
        for name in ways {
            let knew = known.iter().any(|c| c.name == *name && c.suspended);
            let suspended = self
                .healths()
                .get(name)
                .is_some_and(|h| h.look().suspended.is_some());
            if suspended
                && !knew
                && let Err(e) = self.outbox.wake_cases(name, Timestamp::now()).await
            {
                warn!(channel = %name, "The fallbacks of {name} start later: {e}");
            }
        }
    }

    fn facts(&self, settings: &Settings) -> Vec<Facts> {
        let board = self.healths();
        settings
            .channels
            .iter()
            .map(|c| Facts {
                name: c.name.clone(),
                reveals: c.reveals,
                needs_person: c.needs_person,
                suspended: board
                    .get(&c.name)
                    .is_some_and(|h| h.look().suspended.is_some()),
                on_uncertain: c.on_uncertain,
            })
            .collect()
    }

    // === Sweeping ===

    async fn run_sweeps(
        self: Arc<Self>,
        settings: watch::Receiver<Arc<Settings>>,
        shutdown: CancellationToken,
    ) {
        while !shutdown.is_cancelled() {
            let current = Arc::clone(&settings.borrow());
            // A case that was being decided during a reload may have gone to a channel that is no more.
            self.fail_orphans(&current).await;
            let retention = current.retention;
            if let Err(e) = self.outbox.sweep(Timestamp::now(), retention).await {
                warn!("Codes past use can't be wiped yet: {e}");
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep(SWEEP_EVERY) => {}
            }
        }
    }
}

/// When something is to be leased next.
enum Next {
    /// At once: more may be due.
    Now,
    /// When something has changed since, or after a while.
    After(u64, Duration),
}

impl Next {
    /// After a lease of up to `free`: with some to spare, nothing else was due. (A damaged row took its place in vain; then `next` is
    /// past, and soon it is asked again.)
    fn of<T>(leased: &Leased<T>, free: usize, now: Timestamp) -> Self {
        if leased.items.len() == free {
            return Self::Now;
        }
        Self::After(leased.changes, pause_until(leased.next, now))
    }
}

fn pause_until(due: Option<Timestamp>, now: Timestamp) -> Duration {
    let pause = due.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default());
    pause.map_or(POLL, |pause| pause.clamp(SHORTEST_PAUSE, POLL))
}

fn word(state: CaseState) -> &'static str {
    match state {
        CaseState::Received => "received",
        CaseState::Routed => "on its way",
        CaseState::NeedsAttention => "waiting for a person",
        CaseState::Expired => "expired",
        CaseState::Superseded => "superseded",
        CaseState::Cancelled => "cancelled",
        CaseState::Recorded => "recorded",
    }
}
