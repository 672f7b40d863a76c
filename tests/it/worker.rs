//! One channel over time: what its worker tries when, by a clock that the test moves.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use async_trait::async_trait;
use ftm_relay::channel::Attempt;
use ftm_relay::channel::Carrier;
use ftm_relay::channel::Channel;
use ftm_relay::channel::Class;
use ftm_relay::channel::OnUncertain;
use ftm_relay::channel::Receipt;
use ftm_relay::channel::SendError;
use ftm_relay::config;
use ftm_relay::dispatch::health::Health;
use ftm_relay::dispatch::worker::Worker;
use ftm_relay::metrics::Metrics;
use ftm_relay::outbox;
use ftm_relay::outbox::Escalate;
use ftm_relay::outbox::Filter;
use ftm_relay::outbox::Outbox;
use ftm_relay::outbox::Row;
use ftm_relay::outbox::State;
use ftm_relay::secret::Redactor;
use jiff::SignedDuration;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::relay::BASE;
use crate::support::until;

/// Answers as the test says, and remembers when it was asked.
struct Scripted {
    /// What the try of this number gets, from 0.
    answer: Box<dyn Fn(usize) -> Result<(), SendError> + Send + Sync>,
    /// A try ends when there is a permit for it.
    gate: Semaphore,
    tried_at: Mutex<Vec<i64>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    second: Arc<AtomicI64>,
}

#[async_trait]
impl Carrier for Scripted {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        attempt.commit.commit().await?;
        let number = {
            let mut tried_at = self.tried_at.lock().unwrap();
            tried_at.push(self.second.load(SeqCst));
            tried_at.len() - 1
        };
        let now = self.in_flight.fetch_add(1, SeqCst) + 1;
        self.most_in_flight.fetch_max(now, SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.in_flight.fetch_sub(1, SeqCst);
        (self.answer)(number).map(|()| Receipt {
            said: "taken".to_owned(),
        })
    }
}

/// A worker of the channel `first`, with an outbox of its own.
struct Bench {
    carrier: Arc<Scripted>,
    outbox: Arc<dyn Outbox>,
    health: Arc<Health>,
    start: Timestamp,
    second: Arc<AtomicI64>,
    /// How often the worker looked at the clock.
    looks: Arc<AtomicUsize>,
    _worker: AbortOnDropHandle<()>,
    _dir: TempDir,
}

impl Bench {
    fn start(
        concurrency: usize,
        answer: impl Fn(usize) -> Result<(), SendError> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ftm-relay.toml");
        let kinds = "[channel.first]\ntype = \"file\"\npath = \"a\"\n[channel.desk]\ntype = \"file\"\npath = \"b\"\nto = \"desk@example.com\"\n";
        let route = "[[route]]\nto = [\"first\"]\nescalate = [\"desk\"]\n";
        std::fs::write(&file, format!("{BASE}{kinds}{route}")).unwrap();
        let config = config::load(&file, config::Use::Service).config.unwrap();
        let opened = outbox::open(&config.outbox, &dir.path().join("state")).unwrap();
        let outbox = opened.outbox;
        let (second, looks) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
        let carrier = Arc::new(Scripted {
            answer: Box::new(answer),
            gate: Semaphore::new(0),
            tried_at: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            second: Arc::clone(&second),
        });
        let channel = Channel {
            name: "first".to_owned(),
            kind: "file",
            needs_person: false,
            reveals: false,
            concurrency,
            rates: Vec::new(),
            timeout: Duration::from_secs(20),
            on_uncertain: OnUncertain::Resend,
            time_zone: TimeZone::UTC,
            redactor: Redactor::default(),
            carrier: Arc::clone(&carrier) as Arc<dyn Carrier>,
        };
        let start = Timestamp::now();
        let (at, looked) = (Arc::clone(&second), Arc::clone(&looks));
        let health = Arc::new(Health::default());
        let worker = Worker {
            channel: Arc::new(channel),
            health: Arc::clone(&health),
            outbox: Arc::clone(&outbox),
            settings: Arc::new(config.dispatch),
            metrics: Metrics::new().0,
            clock: Arc::new(move || {
                looked.fetch_add(1, SeqCst);
                start + SignedDuration::from_secs(at.load(SeqCst))
            }),
        };
        let running = tokio::spawn(Arc::new(worker).run(CancellationToken::new()));
        Self {
            carrier,
            outbox,
            health,
            start,
            second,
            looks,
            _worker: AbortOnDropHandle::new(running),
            _dir: dir,
        }
    }

    /// Puts so many messages in.
    async fn put(&self, count: usize) {
        let message = |n| Escalate {
            channel: "first".to_owned(),
            reason: format!("reason-{n}"),
            text: "Something happened".to_owned(),
            subject: format!("subject {n}"),
        };
        let messages = (0..count).map(message).collect();
        self.outbox.escalate(messages, self.start).await.unwrap();
    }

    /// Lets so many tries end.
    fn let_end(&self, count: usize) {
        self.carrier.gate.add_permits(count);
    }

    /// Sets the clock, and waits until the worker has seen it and whatever it leased then is being tried.
    async fn at(&self, second: i64) {
        self.second.store(second, SeqCst);
        let before = self.looks.load(SeqCst);
        until("the worker to look at the clock", || {
            self.health.changed.notify_one();
            (self.looks.load(SeqCst) > before + 4).then_some(())
        });
        self.until_rows("what was leased to be tried", |rows| {
            let leased: u32 = rows.iter().map(|row| row.attempts).sum();
            leased as usize == self.tried_at().len()
        })
        .await;
    }

    /// Waits until the outbox is as the test wants it.
    async fn until_rows(&self, what: &str, condition: impl Fn(&[Row]) -> bool) {
        let looking = async {
            while !condition(&self.outbox.list(Filter::default()).await.unwrap()) {
                tokio::task::yield_now().await;
            }
        };
        let looked = tokio::time::timeout(Duration::from_secs(20), looking).await;
        looked.unwrap_or_else(|_| panic!("waited 20 s for {what}"));
    }

    fn tried_at(&self) -> Vec<i64> {
        self.carrier.tried_at.lock().unwrap().clone()
    }

    fn until_tried(&self, count: usize) {
        until("the next try", || {
            (self.tried_at().len() >= count).then_some(())
        });
    }
}

/// What waits for the desk.
fn told(rows: &[Row]) -> Vec<&str> {
    let mut told: Vec<_> = rows
        .iter()
        .filter(|row| row.channel.as_deref() == Some("desk"))
        .map(|row| row.user.as_str())
        .collect();
    told.sort_unstable();
    told
}

fn accepted(rows: &[Row]) -> usize {
    let accepted = rows.iter().filter(|row| row.state == State::Accepted);
    accepted.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_channel_is_probed_every_five_minutes_and_resumes_by_itself() {
    let bench = Bench::start(4, |number| match number {
        0 | 1 => Err(Class::Broken.error("it refuses us", None)),
        _ => Ok(()),
    });
    bench.put(3).await;
    bench.let_end(100);
    until("the suspension", || bench.health.look().suspended);
    bench.at(299).await;
    assert_eq!(bench.tried_at(), [0]);
    bench.at(301).await;
    bench.until_tried(2);
    until("the probe to end", || {
        (bench.carrier.in_flight.load(SeqCst) == 0).then_some(())
    });
    bench.at(590).await;
    assert_eq!(bench.tried_at(), [0, 301]);
    bench.at(602).await;
    bench.until_tried(5);
    assert_eq!(bench.tried_at(), [0, 301, 602, 602, 602]);
    until("the resumption", || {
        bench.health.look().suspended.is_none().then_some(())
    });
    bench
        .until_rows("both to be told", |rows| {
            told(rows) == ["it refuses us", "it took a message"]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_away_waits_as_long_as_its_peer_wishes_and_then_goes_on() {
    let bench = Bench::start(4, |number| match number {
        0 => Err(Class::Away.error("too fast", Some(Duration::from_secs(40)))),
        _ => Ok(()),
    });
    bench.put(3).await;
    bench.let_end(100);
    until("the wait", || bench.health.look().wait_until);
    bench.at(39).await;
    assert_eq!(bench.tried_at(), [0], "the others wait as well");
    bench.at(41).await;
    bench.until_tried(4);
    assert_eq!(bench.tried_at(), [0, 41, 41, 41]);
    bench
        .until_rows("all to be taken", |rows| accepted(rows) == 3)
        .await;
    let rows = bench.outbox.list(Filter::default()).await.unwrap();
    assert!(told(&rows).is_empty(), "nobody need hear of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_one_message_holds_up_no_other() {
    let bench = Bench::start(1, |number| match number {
        0 => Err(Class::Transient.error("not this one", Some(Duration::from_secs(60)))),
        1 => Err(Class::Permanent.error("never this one", None)),
        2 => Err(Class::Unknown.error("perhaps", None)),
        _ => Ok(()),
    });
    bench.put(4).await;
    bench.let_end(100);
    bench.until_tried(4);
    assert_eq!(bench.tried_at(), [0, 0, 0, 0]);
    bench.at(59).await;
    bench.until_tried(5);
    assert_eq!(
        bench.tried_at(),
        [0, 0, 0, 0, 59],
        "the unknown one, by the schedule"
    );
    bench.at(61).await;
    bench.until_tried(6);
    bench
        .until_rows("all but one to be taken", |rows| accepted(rows) == 3)
        .await;
    assert_eq!(
        bench.tried_at().len(),
        6,
        "what is final is not tried again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_try_proves_a_channel_before_it_uses_all_its_concurrency() {
    let bench = Bench::start(3, |_| Ok(()));
    bench.put(8).await;
    bench.until_tried(1);
    bench.at(1).await;
    assert_eq!(bench.tried_at().len(), 1, "not proven yet");
    bench.let_end(1);
    bench.until_tried(4);
    bench.at(2).await;
    assert_eq!(bench.tried_at().len(), 4);
    bench.let_end(100);
    bench.until_tried(8);
    assert_eq!(bench.carrier.most_in_flight.load(SeqCst), 3);
}
