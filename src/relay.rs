//! The whole: a configuration becomes bound sockets, an open outbox and running tasks; reload and drain.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::activation::Activation;
use crate::activation::Device;
use crate::activation::Stage;
use crate::catch_up;
use crate::catch_up::CatchUp;
use crate::catch_up::Taker;
use crate::config;
use crate::config::Config;
use crate::control::Answer;
use crate::control::Door;
use crate::control::Operator;
use crate::control::Replayed;
use crate::control::Request;
use crate::control::Resent;
use crate::control::Status;
use crate::dispatch;
use crate::dispatch::Dispatcher;
use crate::fortios::FortiGate;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::ingest;
use crate::ingest::FrameReceiver;
use crate::ingest::Intake;
use crate::ingest::Outcome;
use crate::ingest::PerPeer;
use crate::ingest::Reply;
use crate::ingest::Throttle;
use crate::metrics;
use crate::metrics::Metrics;
use crate::metrics::Rejected;
use crate::outbox;
use crate::outbox::Escalate;
use crate::outbox::Outbox;
use crate::outbox::OutboxError;
use crate::outbox::Stored;
use crate::pending;
use crate::pending::Pending;
use crate::pipeline::Pipeline;
use crate::pipeline::Verdict;
use crate::pulse::Pulse;
use crate::readiness::Readiness;
use crate::seen::Seen;
use crate::systemd;
use crate::systemd::Inherited;
use crate::web;

/// What is under way at a stop may take so long; the rest goes out after the next start.
const DRAIN: Duration = Duration::from_secs(10);
/// So many frames are read and committed together.
const BATCH_FRAMES: usize = 256;
/// So many rejected records of one peer are told of one by one in a period; one peer may hand on the logs of many devices.
const REJECTIONS_TOLD: u32 = 20;
const REJECTIONS_PERIOD: Duration = Duration::from_secs(60);
/// The wait before a commit is tried again.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// A relay whose sockets are bound and whose outbox is open.
pub struct Relay {
    path: PathBuf,
    state_dir: PathBuf,
    outbox_settings: outbox::Settings,
    http: Option<web::Config>,
    reader: Arc<Reader>,
    frames: FrameReceiver,
    intake: Intake,
    listeners: HashMap<Key, Listening>,
    bound: Vec<(ingest::Bound, Listening)>,
    dispatcher: Arc<Dispatcher>,
    settings: watch::Sender<Arc<dispatch::Settings>>,
    plan: watch::Sender<Arc<catch_up::Plan>>,
    pending: Arc<Pending>,
    web: Option<web::Server>,
    view: Arc<web::View>,
    door: Door,
    inherited: Inherited,
    pulse: Arc<Pulse>,
}

#[derive(Clone)]
struct Listening {
    config: Arc<ArcSwap<ingest::Config>>,
    stop: CancellationToken,
}

/// From frames to committed activations.
struct Reader {
    pipeline: ArcSwap<Pipeline>,
    outbox: Arc<dyn Outbox>,
    metrics: Metrics,
    seen: Arc<Seen>,
    readiness: Arc<Readiness>,
    dispatcher: Arc<Dispatcher>,
    catch_up: Arc<CatchUp>,
    view: Arc<web::View>,
    since: Timestamp,
    settings: watch::Receiver<Arc<dispatch::Settings>>,
    rejections: PerPeer,
    untold: Throttle,
    pulse: Arc<Pulse>,
}

impl Relay {
    /// Opens the outbox and binds every socket that is not inherited; nothing runs yet.
    pub async fn bind(
        config: Config,
        path: PathBuf,
        mut inherited: Inherited,
    ) -> anyhow::Result<Self> {
        let (metrics, registry) = Metrics::new();
        let opened = outbox::open(&config.outbox, &config.state_dir).with_context(|| {
            format!(
                "the outbox in {} can't be opened",
                config.state_dir.display()
            )
        })?;
        let outbox = opened.outbox;
        let door = Door::bind(&config.state_dir)
            .context("the socket for `ftm-relay queue` can't be bound")?;
        let readiness = Arc::new(Readiness::default());
        let seen = Arc::new(Seen::default());
        let pending = Arc::new(Pending::default());
        let pulse = Arc::new(Pulse::default());
        let dispatcher = Dispatcher::new(Arc::clone(&outbox), metrics.clone(), Arc::clone(&pulse));
        let (intake, frames) = Intake::new();
        let gate = config.pipeline.gate();
        intake.set_gate(Arc::new(move |bytes: &[u8]| gate.passes(bytes)));
        if let Some(damaged) = opened.quarantined {
            let text = "The outbox was damaged and a new one was made; codes that were waiting in the old one were not sent";
            let subject = format!("the damaged file is kept as {}", damaged.display());
            let tell = |channel| Escalate {
                channel,
                reason: "outbox-damaged".to_owned(),
                text: text.to_owned(),
                subject: subject.clone(),
            };
            let told = config
                .dispatch
                .routes
                .escalate_all()
                .into_iter()
                .map(tell)
                .collect();
            outbox.escalate(told, Timestamp::now()).await?;
        }
        let view = Arc::new(web::View::new(
            registry,
            metrics.clone(),
            Arc::clone(&outbox),
            Arc::clone(&dispatcher),
            Arc::clone(&readiness),
            Arc::clone(&seen),
            Arc::clone(&pending),
        ));
        let web = match &config.http {
            Some(http) => Some(web::Server::bind(http).await?),
            None => None,
        };
        let mut listeners = HashMap::new();
        let mut bound = Vec::new();
        for listener in &config.listeners {
            let (key, one) = bind(listener, &mut inherited)?;
            listeners.insert(key, one.1.clone());
            bound.push(one);
        }
        for socket in inherited.left() {
            warn!(
                "The service manager passed a socket for {socket}, which no [[listen]] names; the units and the configuration differ"
            );
        }
        let pipeline = ArcSwap::from_pointee(config.pipeline);
        let catch_up = CatchUp::open(&config.state_dir, metrics.clone());
        let plan = watch::Sender::new(Arc::new(catch_up::Plan {
            fleet: config.fleet,
            ids: config.wanted_ids,
        }));
        let settings = watch::Sender::new(Arc::new(config.dispatch));
        let reader = Arc::new(Reader {
            settings: settings.subscribe(),
            pipeline,
            outbox,
            metrics,
            seen,
            readiness,
            dispatcher: Arc::clone(&dispatcher),
            catch_up,
            rejections: PerPeer::several(REJECTIONS_TOLD, REJECTIONS_PERIOD),
            untold: Throttle::new(REJECTIONS_PERIOD),
            view: Arc::clone(&view),
            since: Timestamp::now(),
            pulse: Arc::clone(&pulse),
        });
        let (state_dir, outbox_settings, http) = (config.state_dir, config.outbox, config.http);
        Ok(Self {
            path,
            state_dir,
            outbox_settings,
            http,
            reader,
            frames,
            intake,
            listeners,
            bound,
            dispatcher,
            settings,
            plan,
            pending,
            web,
            view,
            door,
            inherited,
            pulse,
        })
    }

    /// Runs until `shutdown` or until a task fails; each message of `reload` reads the configuration again.
    pub async fn run(
        mut self,
        shutdown: CancellationToken,
        mut reload: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let mut ways_in: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let after_intake = CancellationToken::new();
        let at_last = CancellationToken::new();

        // Before anybody can look.
        self.reader.metrics.config_reload_success.set(1);
        // The page outlives what it tells of: while the rest drains, /readyz says so.
        let mut watching: JoinSet<anyhow::Result<()>> = JoinSet::new();
        if let Some(web) = self.web.take() {
            watching.spawn(web.serve(Arc::clone(&self.view), at_last.clone()));
        }
        let reader: Arc<dyn Operator> = Arc::clone(&self.reader) as _;
        let door = self.door;
        let door_closed = after_intake.clone();
        tasks.spawn(async move {
            door.serve(reader, door_closed).await;
            Ok(())
        });
        tasks.spawn(
            Arc::clone(&self.dispatcher).run(self.settings.subscribe(), after_intake.clone()),
        );
        tasks.spawn(watch_over(Arc::clone(&self.pulse), after_intake.clone()));
        let mut reading = tokio::spawn(Arc::clone(&self.reader).run(self.frames));
        for (bound, listening) in std::mem::take(&mut self.bound) {
            serve(
                &mut ways_in,
                bound,
                &listening,
                &self.intake,
                &self.reader.metrics,
            );
        }
        let taker: Arc<dyn Taker> = Arc::clone(&self.reader) as _;
        let no_more = CancellationToken::new();
        let watch = Arc::clone(&self.pending).run(
            self.settings.subscribe(),
            Arc::clone(&self.reader) as _,
            no_more.clone(),
        );
        ways_in.spawn(async move {
            watch.await;
            Ok(())
        });
        ways_in.spawn(Arc::clone(&self.reader.catch_up).run(
            self.plan.subscribe(),
            taker,
            no_more.clone(),
        ));
        self.view.set_listeners(
            self.listeners
                .values()
                .map(|l| l.config.load_full())
                .collect(),
        );
        info!(
            "Ready: {} listeners, state in {}",
            self.listeners.len(),
            self.state_dir.display()
        );

        systemd::ready(&status(&self.listeners));

        let ended = loop {
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                Some(()) = reload.recv() => {
                    systemd::reloading();
                    let reloaded = reloading(
                        &self.path, (&self.state_dir, &self.outbox_settings, &self.http),
                        (&mut self.listeners, &mut self.inherited), &mut ways_in, &self.intake, &self.reader,
                        (&self.settings, &self.plan),
                    );
                    match reloaded {
                        Ok(()) => {
                            self.view.set_listeners(self.listeners.values().map(|l| l.config.load_full()).collect());
                            self.reader.metrics.config_reload_success.set(1);
                            info!("Reloaded {}", self.path.display());
                        }
                        Err(e) => {
                            self.reader.metrics.config_reload_success.set(0);
                            error!("The new configuration is refused, the old one keeps running: {e:#}");
                        }
                    }
                    systemd::ready(&status(&self.listeners));
                }
                Some(ended) = ways_in.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => break Err(e.context("a listener failed")),
                    Err(e) => break Err(e.into()),
                },
                Some(ended) = watching.join_next() => break match ended {
                    Ok(ended) => ended.and_then(|()| Err(anyhow::anyhow!("the page ended by itself"))),
                    Err(e) => Err(e.into()),
                },
                Some(ended) = tasks.join_next() => break match ended {
                    Ok(Ok(())) => Err(anyhow::anyhow!("a task ended by itself")),
                    Ok(Err(e)) => Err(e),
                    Err(e) => Err(e.into()),
                },
                ended = &mut reading => break match ended {
                    Ok(Ok(())) => Err(anyhow::anyhow!("reading ended by itself")),
                    Ok(Err(e)) => Err(e),
                    Err(e) => Err(e.into()),
                },
            }
        };

        self.reader.readiness.not("relay", "it is stopping");
        systemd::stopping("Finishing what is under way");
        info!("Stopping: what is under way has {} s", DRAIN.as_secs());
        let intake = self.intake;
        let drained = timeout(DRAIN, async {
            // In the order of the data flow: each stage ends because its input closed.
            no_more.cancel();
            for listening in self.listeners.values() {
                listening.stop.cancel();
            }
            while ways_in.join_next().await.is_some() {}
            drop(intake);
            if !reading.is_finished() {
                match (&mut reading).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => error!("The last frames could not be kept: {e:#}"),
                    Err(e) => error!("The last frames could not be kept: {e}"),
                }
            }
            after_intake.cancel();
            while tasks.join_next().await.is_some() {}
            at_last.cancel();
            while watching.join_next().await.is_some() {}
        })
        .await;
        match drained {
            Ok(()) => info!("Stopped"),
            Err(_) => warn!("Stopped with tries under way; they go on after the next start"),
        }
        ended
    }
}

/// What a socket is bound to: an address, for datagrams or for connections.
type Key = (bool, SocketAddr);

/// What `systemctl status` shows.
fn status(listeners: &HashMap<Key, Listening>) -> String {
    let mut names: Vec<String> = listeners
        .values()
        .map(|l| l.config.load().name().into_owned())
        .collect();
    names.sort();
    format!("Receiving on {}", names.join(", "))
}

fn key(config: &ingest::Config) -> Key {
    (config.is_datagram(), config.address())
}

/// What about a bound socket only a restart can change, if the new configuration changes it.
fn stuck(new: &ingest::Config, listeners: &HashMap<Key, Listening>) -> Option<String> {
    let old = listeners.get(&key(new))?.config.load();
    let what = if old.transport() != new.transport() {
        "transport"
    } else if old.name() != new.name() {
        "name"
    } else {
        return None;
    };
    Some(format!(
        "the {what} of the listener on {} changes only with a restart",
        new.address()
    ))
}

fn bind(
    config: &ingest::Config,
    inherited: &mut Inherited,
) -> anyhow::Result<(Key, (ingest::Bound, Listening))> {
    let bound = match ingest::adopt(config, inherited) {
        Ok(Some(adopted)) => Ok(adopted),
        Ok(None) => ingest::bind(config),
        Err(e) => Err(e),
    };
    let bound = bound.with_context(|| {
        format!(
            "the listener \"{}\" can't be bound to {}",
            config.name(),
            config.address()
        )
    })?;
    let listening = Listening {
        config: Arc::new(ArcSwap::from_pointee(config.clone())),
        stop: CancellationToken::new(),
    };
    Ok((key(config), (bound, listening)))
}

fn serve(
    ways_in: &mut JoinSet<anyhow::Result<()>>,
    bound: ingest::Bound,
    listening: &Listening,
    intake: &Intake,
    metrics: &Metrics,
) {
    let counters = metrics.listener(&listening.config.load().name());
    ways_in.spawn(bound.serve(
        intake.clone(),
        counters,
        Arc::clone(&listening.config),
        listening.stop.clone(),
    ));
}

/// Takes a new configuration, or says why not and changes nothing.
fn reloading(
    path: &std::path::Path,
    (state_dir, outbox_settings, http): (&std::path::Path, &outbox::Settings, &Option<web::Config>),
    (listeners, inherited): (&mut HashMap<Key, Listening>, &mut Inherited),
    ways_in: &mut JoinSet<anyhow::Result<()>>,
    intake: &Intake,
    reader: &Reader,
    (settings, plan): (
        &watch::Sender<Arc<dispatch::Settings>>,
        &watch::Sender<Arc<catch_up::Plan>>,
    ),
) -> anyhow::Result<()> {
    let loaded = config::load(path, config::Use::Service);
    for placed in &loaded.report.0 {
        warn!("{placed}");
    }
    let Some(config) = loaded.config else {
        bail!("it has problems, see above")
    };
    if config.state_dir != state_dir
        || !config.outbox.same_store(outbox_settings)
        || config.http != *http
    {
        bail!("state_dir, [http] and [outbox] change only with a restart");
    }
    // Whatever can fail comes first.
    if let Some(why) = config.listeners.iter().find_map(|l| stuck(l, listeners)) {
        bail!(why);
    }
    let mut new = Vec::new();
    for listener in &config.listeners {
        if !listeners.contains_key(&key(listener)) {
            new.push(bind(listener, inherited)?);
        }
    }
    // Before a new listener hands on its first frame.
    let gate = config.pipeline.gate();
    let mut pipeline = config.pipeline;
    pipeline.remember_listeners_of(&reader.pipeline.load());
    reader.pipeline.store(Arc::new(pipeline));
    intake.set_gate(Arc::new(move |bytes: &[u8]| gate.passes(bytes)));
    listeners.retain(|bound, listening| {
        let kept = config.listeners.iter().find(|l| key(l) == *bound);
        match kept {
            Some(listener) => listening.config.store(Arc::new(listener.clone())),
            None => listening.stop.cancel(),
        }
        kept.is_some()
    });
    for (key, (bound, listening)) in new {
        serve(ways_in, bound, &listening, intake, &reader.metrics);
        listeners.insert(key, listening);
    }
    settings.send_replace(Arc::new(config.dispatch));
    plan.send_replace(Arc::new(catch_up::Plan {
        fleet: config.fleet,
        ids: config.wanted_ids,
    }));
    Ok(())
}

/// Feeds the service manager's watchdog, if there is one, while every loop turns.
async fn watch_over(pulse: Arc<Pulse>, over: CancellationToken) -> anyhow::Result<()> {
    let Some(period) = systemd::watchdog_period() else {
        over.cancelled().await;
        return Ok(());
    };
    let mut feed = interval(period / 4);
    loop {
        tokio::select! {
            () = over.cancelled() => return Ok(()),
            _ = feed.tick() => {
                let stalled = pulse.stalled(period * 2 / 3);
                if stalled.is_empty() {
                    systemd::alive();
                } else {
                    error!("The watchdog is not fed: {} stands still", stalled.join(" and "));
                }
            }
        }
    }
}

// === Reading: frames become committed activations ===

/// How the loop of reading calls itself.
const INTAKE: &str = "intake";

impl Reader {
    /// Runs until every listener and every intake is gone.
    async fn run(self: Arc<Self>, mut frames: FrameReceiver) -> anyhow::Result<()> {
        let away = frames.outbox_away();
        let mut idle = interval(Pulse::BEAT);
        loop {
            let batch = tokio::select! {
                biased;
                batch = frames.recv_batch(BATCH_FRAMES) => batch,
                _ = idle.tick() => {
                    self.pulse.beat(INTAKE);
                    continue;
                }
            };
            let Some(batch) = batch else { return Ok(()) };
            self.pulse.beat(INTAKE);
            let pipeline = self.pipeline.load_full();
            let (mut wanted, mut waiting) = (Vec::new(), Vec::new());
            for (frame, reply) in batch.frames.iter().zip(batch.replies) {
                match self.read(&pipeline, frame) {
                    Ok(activation) => {
                        wanted.push(activation);
                        waiting.push(reply);
                    }
                    Err(outcome) => reply.send(outcome),
                }
            }
            if !wanted.is_empty() {
                self.commit(wanted, waiting, &away).await?;
            }
        }
    }

    /// A wanted frame's activation; else what became of the frame.
    fn read(&self, pipeline: &Pipeline, frame: &Frame) -> Result<Activation, Outcome> {
        let reading = pipeline.process(frame);
        if let Some(format) = reading.format {
            self.metrics
                .records
                .get_or_create(&metrics::Format {
                    format: format.to_owned(),
                })
                .inc();
        }
        let skew = match &reading.verdict {
            Verdict::Wanted(activation) => Some(activation.skew),
            Verdict::Ignored(_) | Verdict::Rejected(_) => None,
        };
        let listener = frame.listener.as_deref().unwrap_or("-");
        match (&reading.device, &reading.stranger, &reading.verdict) {
            (Some(device), Some(why), _) => {
                self.metrics.listener(listener).reject(Rejected::Peer);
                let is_news = self
                    .seen
                    .stranger(device, &frame.peer, why, frame.received_at);
                // One that is wanted is told of below.
                if is_news && matches!(reading.verdict, Verdict::Ignored(_)) {
                    warn!(listener, "Not believed: {why}");
                }
            }
            (Some(device), None, Verdict::Wanted(_) | Verdict::Ignored(_)) => {
                self.seen
                    .heard(device, frame.received_at, skew, &self.metrics);
            }
            _ => {}
        }
        match reading.verdict {
            Verdict::Wanted(activation) => {
                for note in &reading.notes {
                    warn!(listener, device = %activation.device.name, "{note}");
                }
                self.catch_up.heard(&activation.device);
                Ok(*activation)
            }
            Verdict::Rejected(reason) => {
                self.metrics.activation("rejected");
                let from = frame
                    .peer
                    .address
                    .map_or_else(|| "an unknown peer".to_owned(), |a| a.to_string());
                // Who forges events must not fill the journal with them.
                let (peer, now) = (frame.peer.address, Instant::now());
                if peer.is_none_or(|peer| self.rejections.take(peer, now)) {
                    warn!(
                        listener,
                        logid = reading.logid,
                        "Rejected a record from {from}: {reason}"
                    );
                } else if let Some(count) = self.untold.hit(now) {
                    warn!(
                        listener,
                        count,
                        "Rejected more records than are told of one by one, the last from {from}: {reason}"
                    );
                }
                Err(Outcome::Rejected(reason))
            }
            // Nobody knows what it is: whoever waits to hear has sent something else than a log.
            Verdict::Ignored(reason) if reading.logid.is_none() => Err(Outcome::Rejected(reason)),
            Verdict::Ignored(reason) => Err(Outcome::Ignored(reading.stranger.unwrap_or(reason))),
        }
    }

    /// Commits and counts. `waiting` hear of each activation, in order.
    async fn commit(
        &self,
        wanted: Vec<Activation>,
        mut waiting: Vec<Reply>,
        away: &std::sync::atomic::AtomicBool,
    ) -> anyhow::Result<Vec<Stored>> {
        let stored = self.keep(&wanted, &mut waiting, away).await?;
        for (activation, stored) in wanted.iter().zip(&stored) {
            self.count(activation, stored);
        }
        for (reply, stored) in waiting.into_iter().zip(&stored) {
            reply.send(match stored {
                Stored::New { .. } => Outcome::Kept,
                Stored::Duplicate => Outcome::Known,
            });
        }
        Ok(stored)
    }

    /// Commits however long it takes; meanwhile the listeners feel it.
    async fn keep(
        &self,
        wanted: &[Activation],
        waiting: &mut Vec<Reply>,
        away: &std::sync::atomic::AtomicBool,
    ) -> anyhow::Result<Vec<Stored>> {
        use std::sync::atomic::Ordering::Relaxed;
        loop {
            // It turns, even if the outbox is away: another start would lose what waits here.
            self.pulse.beat(INTAKE);
            match self.outbox.put(wanted.to_vec()).await {
                Ok(stored) => {
                    if away.swap(false, Relaxed) {
                        info!("The outbox commits again");
                    }
                    self.readiness.ready("outbox");
                    return Ok(stored);
                }
                Err(e @ OutboxError::Damaged(_)) => {
                    return Err(e).context(
                        "the relay stops; at its next start the damaged outbox is put aside",
                    );
                }
                Err(e) => {
                    if !away.swap(true, Relaxed) {
                        error!("{} activations wait for the outbox: {e}", wanted.len());
                    }
                    self.readiness.not("outbox", e.to_string());
                    for reply in waiting.drain(..) {
                        reply.send(Outcome::Pending);
                    }
                    sleep(COMMIT_PAUSE).await;
                }
            }
        }
    }

    fn count(&self, activation: &Activation, stored: &Stored) {
        let (user, device) = (&activation.user, &activation.device);
        match stored {
            Stored::Duplicate => {
                self.metrics.activation("duplicate");
                info!(%user, device = %device.name, "Known already: {} for {user} on {} ({})", activation.stage, device.name, device.vdom);
            }
            Stored::New {
                id,
                superseded,
                late,
            } => {
                if activation.stage == Stage::CodeSent {
                    self.metrics.activation(if activation.code.is_some() {
                        "relay"
                    } else {
                        "no_code"
                    });
                }
                for _ in 0..*superseded + usize::from(*late) {
                    self.metrics.ended("superseded");
                }
                let what = if activation.stage == Stage::CodeSent && activation.code.is_none() {
                    ", without a code"
                } else {
                    ""
                };
                info!(
                    activation.id = %id, %user, device = %device.name,
                    "Received {id}: {}{what} for {user} on {} ({})", activation.stage, device.name, device.vdom
                );
            }
        }
    }

    async fn status(&self, now: Timestamp) -> Answer {
        let stats = self.outbox.depth(now).await.ok().map(Into::into);
        let metrics = match self.view.metrics().await {
            Ok(text) => text,
            Err(e) => return Answer::Error(e.to_string()),
        };
        let board = self.dispatcher.board().into_iter();
        let strangers = self.seen.strangers().into_iter();
        Answer::Status(Box::new(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.since,
            not_ready: self.readiness.reasons(),
            suspended: board
                .filter_map(|(name, health)| Some((name, health.suspended?)))
                .collect(),
            strangers: strangers.map(|(_, s)| (s.why, s.count)).collect(),
            stats,
            metrics,
        }))
    }

    /// The lines of a file, as if they had come by the wire now.
    async fn replay(&self, lines: &[String]) -> anyhow::Result<Replayed> {
        let pipeline = self.pipeline.load_full();
        let mut done = Replayed::default();
        let mut wanted = Vec::new();
        for line in lines {
            let bytes = BASE64_STANDARD
                .decode(line)
                .context("a line is no base64")?;
            let frame = Frame {
                bytes,
                peer: Peer::unknown(),
                listener: None,
                received_at: Timestamp::now(),
            };
            done += replayed(&pipeline, &frame, &mut wanted);
        }
        if !wanted.is_empty() {
            let stored = self
                .commit(
                    wanted.clone(),
                    Vec::new(),
                    &std::sync::atomic::AtomicBool::new(false),
                )
                .await?;
            settle_replayed(&mut done, &wanted, &stored);
        }
        Ok(done)
    }
}

impl Reader {
    /// The current code of a user goes out again; or why not.
    async fn resend(
        &self,
        user: &str,
        device: Option<&str>,
        vdom: Option<&str>,
    ) -> Result<Answer, String> {
        let settings = Arc::clone(&self.settings.borrow());
        let wanted = pending::Wanted { user, device, vdom };
        let again = pending::resend(&wanted, &settings, self).await?;
        let stored = self
            .commit(
                vec![again.clone()],
                Vec::new(),
                &std::sync::atomic::AtomicBool::new(false),
            )
            .await
            .map_err(|e| format!("{e:#}"))?;
        match stored.first() {
            Some(Stored::New {
                id, late: false, ..
            }) => Ok(Answer::Resent(Resent {
                id: id.clone(),
                user: again.user,
                device: again.device,
                token: again.token.unwrap_or_default(),
                expires_at: again.expires_at,
            })),
            _ => Err(format!(
                "a newer code of {user} is on its way already; see `ftm-relay queue list --user {user}`"
            )),
        }
    }
}

#[async_trait]
impl pending::Relay for Reader {
    async fn take(&self, activations: Vec<Activation>) -> anyhow::Result<()> {
        let stored = self
            .keep(
                &activations,
                &mut Vec::new(),
                &std::sync::atomic::AtomicBool::new(false),
            )
            .await?;
        // What was taken in an earlier round is the rule here, and no news.
        for (activation, stored) in activations.iter().zip(&stored) {
            if let Stored::New { .. } = stored {
                self.count(activation, stored);
            }
        }
        Ok(())
    }

    fn device(&self, id: &str, vdom: &str) -> Device {
        let device = self.pipeline.load().device(id, vdom);
        // Without a `name` people know it as its log calls it.
        match self.seen.name(id) {
            Some(name) if device.name == id => Device { name, ..device },
            _ => device,
        }
    }

    fn vdoms(&self, gate: &FortiGate) -> Vec<String> {
        self.catch_up.vdoms(gate)
    }
}

#[async_trait]
impl Taker for Reader {
    async fn take(&self, frames: Vec<Frame>) -> anyhow::Result<u64> {
        let pipeline = self.pipeline.load_full();
        let mut wanted = Vec::new();
        for frame in &frames {
            match pipeline.process(frame).verdict {
                Verdict::Wanted(activation) => {
                    self.catch_up.heard(&activation.device);
                    wanted.push(*activation);
                }
                Verdict::Rejected(reason) => {
                    self.metrics.activation("rejected");
                    warn!("Rejected a record from a device's own log: {reason}");
                }
                Verdict::Ignored(_) => {}
            }
        }
        if wanted.is_empty() {
            return Ok(0);
        }
        let stored = self
            .keep(
                &wanted,
                &mut Vec::new(),
                &std::sync::atomic::AtomicBool::new(false),
            )
            .await?;
        // What syslog had brought is the rule here, and no news.
        let mut new = 0;
        for (activation, stored) in wanted.iter().zip(&stored) {
            if let Stored::New { .. } = stored {
                self.count(activation, stored);
                new += 1;
            }
        }
        Ok(new)
    }
}

/// Reads one replayed line; what is wanted is counted once the outbox has said whether it knew it.
pub fn replayed(pipeline: &Pipeline, frame: &Frame, wanted: &mut Vec<Activation>) -> Replayed {
    let mut one = Replayed {
        lines: 1,
        ..Replayed::default()
    };
    match pipeline.process(frame).verdict {
        Verdict::Wanted(activation) => wanted.push(*activation),
        Verdict::Rejected(_) => one.rejected = 1,
        Verdict::Ignored(_) => one.ignored = 1,
    }
    one
}

/// Counts what was wanted.
pub fn settle_replayed(done: &mut Replayed, wanted: &[Activation], stored: &[Stored]) {
    for (activation, stored) in wanted.iter().zip(stored) {
        match (stored, activation.stage) {
            (Stored::Duplicate, _) => done.duplicates += 1,
            (Stored::New { .. }, Stage::CodeSent) => {
                done.accepted += 1;
                done.no_code += u64::from(activation.code.is_none());
                done.expired += u64::from(activation.expires_at <= activation.received_at);
            }
            (Stored::New { .. }, _) => done.lifecycle += 1,
        }
    }
}

#[async_trait]
impl Operator for Reader {
    async fn answer(&self, request: Request) -> Answer {
        let now = Timestamp::now();
        let answered = match request {
            Request::List(filter) => self.outbox.list(filter).await.map(Answer::Rows),
            Request::Show(id) => self
                .outbox
                .show(&id)
                .await
                .map(|story| Answer::Story(Box::new(story))),
            Request::Command(id, command) => {
                self.outbox.command(&id, command, now).await.map(|done| {
                    for channel in &done.channels {
                        self.dispatcher.lift(channel);
                    }
                    if done.ended {
                        self.metrics.ended("cancelled");
                    }
                    info!(id, "An operator's {command:?} of {id}: {:?}", done.state);
                    Answer::State(done.state)
                })
            }
            Request::Stats => self
                .outbox
                .depth(now)
                .await
                .map(|depth| Answer::Stats(depth.into())),
            Request::Status => return self.status(now).await,
            Request::Resend { user, device, vdom } => {
                return self
                    .resend(&user, device.as_deref(), vdom.as_deref())
                    .await
                    .unwrap_or_else(Answer::Error);
            }
            Request::Replay(lines) => {
                return self
                    .replay(&lines)
                    .await
                    .map_or_else(|e| Answer::Error(format!("{e:#}")), Answer::Replayed);
            }
        };
        answered.unwrap_or_else(|e| Answer::Error(e.to_string()))
    }
}
