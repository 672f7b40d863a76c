//! The outbox in one SQLite file: a thread that writes, a few connections that read.

mod cases;
mod deliveries;
mod file;
mod queue;
mod row;
mod schema;
mod writer;

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::Transaction;
use rusqlite::TransactionBehavior;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::activation::Activation;
use crate::outbox::Advanced;
use crate::outbox::Case;
use crate::outbox::Clock;
use crate::outbox::Command;
use crate::outbox::Commanded;
use crate::outbox::Depth;
use crate::outbox::Escalate;
use crate::outbox::Filter;
use crate::outbox::Lease;
use crate::outbox::Leased;
use crate::outbox::Outbox;
use crate::outbox::OutboxError;
use crate::outbox::Row;
use crate::outbox::Settlement;
use crate::outbox::Step;
use crate::outbox::Stored;
use crate::outbox::Story;
use crate::outbox::Swept;
use crate::outbox::open::Examined;
use crate::outbox::open::OpenError;
use crate::outbox::seal::Key;
use crate::outbox::seal::Seal;
use crate::outbox::sqlite::cases::Incoming;
use crate::outbox::sqlite::file::DATABASE;
use crate::outbox::sqlite::file::Unfit;
use crate::outbox::sqlite::row::Id;
use crate::outbox::sqlite::writer::Changes;
use crate::outbox::sqlite::writer::Queue;
use crate::outbox::sqlite::writer::Tx;
use crate::outbox::sqlite::writer::Writer;

/// So many reads at the same time; as many connections are kept.
const READERS: usize = 4;
/// So many transactions one sweep takes at most; the rest waits for the next.
const MAX_SWEEPS: usize = 200;
/// By which the key of the sealed rows is known again.
const KEY_CHECK: &str = "key-check";

/// An open outbox. Dropping it waits for what was begun and closes the file.
pub struct Sqlite {
    writer: Writer,
    readers: Arc<Readers>,
    seal: Option<Arc<Seal>>,
    /// Declared last: it ends after the writer has closed the file.
    _lock: Option<File>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    free: Semaphore,
}

/// Finds the key; whether one must be there already.
type FindKey<'a> = &'a dyn Fn(bool) -> Result<Key, OpenError>;

impl Sqlite {
    /// Opens it for the service, which holds `lock`. The path is that of a damaged one that was put aside.
    pub(super) fn open(
        dir: &Path,
        lock: File,
        key: FindKey<'_>,
    ) -> Result<(Self, Option<PathBuf>), OpenError> {
        let (mut quarantined, mut tries) = (None, 0);
        loop {
            tries += 1;
            match Self::take_up(dir, key) {
                Ok((db, seal)) => {
                    return Ok((Self::start(db, dir, Some(seal), Some(lock))?, quarantined));
                }
                Err(Unfit::Refused(e)) => return Err(e),
                // What was made just now can't be damaged by age; the disk is at fault, and a third file helps nobody.
                Err(Unfit::Damaged(why)) if tries > 1 => {
                    let path = dir.join(DATABASE);
                    return Err(OpenError::Damaged { path, why });
                }
                Err(Unfit::Damaged(why)) => quarantined = Some(file::quarantine(dir, &why)?),
            }
        }
    }

    pub(super) fn open_without_key(dir: &Path) -> Result<Self, OpenError> {
        let db = file::open_as_it_is(dir)?;
        Self::start(db, dir, None, None)
    }

    pub(super) fn examine(dir: &Path) -> Result<Examined, OpenError> {
        file::examine(dir)
    }

    fn start(
        db: Connection,
        dir: &Path,
        seal: Option<Seal>,
        lock: Option<File>,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            writer: Writer::start(db).map_err(OpenError::file(dir))?,
            readers: Arc::new(Readers {
                path: dir.join(DATABASE),
                idle: Mutex::default(),
                free: Semaphore::new(READERS),
            }),
            seal: seal.map(Arc::new),
            _lock: lock,
        })
    }

    /// The file, checked, with the right key, and without leases of a dead process.
    fn take_up(dir: &Path, key: FindKey<'_>) -> Result<(Connection, Seal), Unfit> {
        let path = dir.join(DATABASE);
        let mut db = file::open(dir)?;
        let unfit = Unfit::from(&path);
        let tx = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&unfit)?;
        let known: Option<Vec<u8>> = tx
            .query_row(
                "SELECT value FROM meta WHERE name = ?",
                [KEY_CHECK],
                |row| row.get(0),
            )
            .optional()
            .map_err(&unfit)?;
        let needed = known.is_some() && holds_living_codes(&tx).map_err(&unfit)?;
        let seal = Seal::new(&key(needed).map_err(Unfit::Refused)?);
        match known {
            Some(known) if seal.is_of(&known) => {}
            Some(_) if needed => return Err(Unfit::Refused(OpenError::WrongKey(path.clone()))),
            other => {
                if other.is_some() {
                    warn!(
                        "The outbox has a new key; no code that is still good was sealed under the old one"
                    );
                }
                tx.execute(
                    "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
                    rusqlite::params![KEY_CHECK, seal.check_value()],
                )
                .map_err(&unfit)?;
            }
        }
        let now = Timestamp::now();
        match deliveries::recover(&Tx::new(&tx, &Changes::default()), now) {
            Ok(()) => {}
            Err(OutboxError::Damaged(why)) => return Err(Unfit::Damaged(why)),
            Err(e) => {
                return Err(Unfit::Refused(OpenError::Database {
                    path: path.clone(),
                    why: e.to_string(),
                }));
            }
        }
        tx.commit().map_err(&unfit)?;
        Ok((db, seal))
    }

    fn seal(&self) -> Result<Arc<Seal>, OutboxError> {
        self.seal
            .clone()
            .ok_or_else(|| OutboxError::Sealed("it was opened without its key".to_owned()))
    }

    async fn write<T, F>(&self, work: F) -> Result<T, OutboxError>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send + 'static,
        T: Send + 'static,
    {
        self.writer.run(work).await
    }

    async fn read<T, F>(&self, work: F) -> Result<T, OutboxError>
    where
        F: FnOnce(&Connection) -> Result<T, OutboxError> + Send + 'static,
        T: Send + 'static,
    {
        let ended =
            |e: &dyn std::fmt::Display| OutboxError::Unavailable(format!("the reading ended: {e}"));
        let readers = Arc::clone(&self.readers);
        let _free = readers.free.acquire().await.map_err(|e| ended(&e))?;
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || readers.read(work))
            .await
            .map_err(|e| ended(&e))?
    }
}

/// Codes that may still be sent, or whose events must still be known again: both need the key.
fn holds_living_codes(tx: &Transaction<'_>) -> rusqlite::Result<bool> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM activation WHERE (code_mac <> x'' OR found_mac IS NOT NULL) AND (sealed IS NOT NULL OR expires_at > ?))",
        [row::micros(Timestamp::now())],
        |row| row.get(0),
    )
}

impl Readers {
    /// Reads one state of the database, however many statements that takes.
    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, OutboxError>,
    ) -> Result<T, OutboxError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().pop();
        let mut db = match waiting {
            Some(db) => db,
            None => file::reader(&self.path)?,
        };
        let result = {
            let tx = db.transaction()?;
            work(&tx)
        };
        idle().push(db);
        result
    }
}

#[async_trait]
impl Outbox for Sqlite {
    async fn put(&self, batch: Vec<Activation>) -> Result<Vec<Stored>, OutboxError> {
        let seal = self.seal()?;
        let batch: Vec<Incoming> = batch
            .into_iter()
            .map(|activation| Incoming::new(activation, &seal))
            .collect::<Result<_, _>>()?;
        self.write(move |tx| cases::put(tx, &batch)).await
    }

    async fn lease_cases(
        &self,
        max: usize,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Leased<Case>, OutboxError> {
        let seal = self.seal()?;
        self.write(move |tx| cases::lease(tx, &seal, max, now, lease))
            .await
    }

    async fn next_cases(
        &self,
        since: u64,
        max: usize,
        clock: &Clock,
        lease: Duration,
        rest: BoxFuture<'_, ()>,
    ) -> Result<Option<Leased<Case>>, OutboxError> {
        let (seal, clock) = (self.seal()?, Arc::clone(clock));
        let work = move |tx: &Tx<'_>| cases::lease(tx, &seal, max, clock(), lease);
        self.writer
            .run_after((Queue::Cases, since), work, rest)
            .await
    }

    async fn advance(
        &self,
        case: &Case,
        step: Step,
        now: Timestamp,
    ) -> Result<Advanced, OutboxError> {
        let (seal, id, fence) = (self.seal()?, activation_number(&case.id)?, case.fence);
        self.write(move |tx| cases::advance(tx, &seal, id, fence, step, now))
            .await
    }

    async fn lease_deliveries(
        &self,
        channel: &str,
        max: usize,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Leased<Lease>, OutboxError> {
        let (seal, channel) = (self.seal()?, channel.to_owned());
        self.write(move |tx| deliveries::lease(tx, &seal, &channel, max, now, lease))
            .await
    }

    async fn next_deliveries(
        &self,
        since: u64,
        channel: &str,
        max: usize,
        clock: &Clock,
        lease: Duration,
        rest: BoxFuture<'_, ()>,
    ) -> Result<Option<Leased<Lease>>, OutboxError> {
        let (seal, clock, channel) = (self.seal()?, Arc::clone(clock), channel.to_owned());
        let work = move |tx: &Tx<'_>| deliveries::lease(tx, &seal, &channel, max, clock(), lease);
        self.writer
            .run_after((Queue::Deliveries, since), work, rest)
            .await
    }

    async fn begin_send(&self, lease: &Lease, until: Timestamp) -> Result<(), OutboxError> {
        let (id, fence) = (delivery_number(&lease.id)?, lease.fence);
        self.write(move |tx| deliveries::begin_send(tx, id, fence, until))
            .await
    }

    async fn settle(
        &self,
        lease: &Lease,
        settlement: Settlement,
        now: Timestamp,
    ) -> Result<(), OutboxError> {
        let (id, fence) = (delivery_number(&lease.id)?, lease.fence);
        self.write(move |tx| deliveries::settle(tx, id, fence, &settlement, now))
            .await
    }

    async fn release(&self, lease: &Lease, due_at: Timestamp) -> Result<(), OutboxError> {
        let (id, fence) = (delivery_number(&lease.id)?, lease.fence);
        self.write(move |tx| deliveries::release(tx, id, fence, due_at))
            .await
    }

    async fn wake_cases(&self, channel: &str, now: Timestamp) -> Result<(), OutboxError> {
        let channel = channel.to_owned();
        self.write(move |tx| deliveries::wake_cases(tx, &channel, now))
            .await
    }

    async fn fail_orphans(&self, channels: &[String], now: Timestamp) -> Result<u64, OutboxError> {
        let channels = channels.to_vec();
        self.write(move |tx| deliveries::fail_orphans(tx, &channels, now))
            .await
    }

    async fn escalate(
        &self,
        escalations: Vec<Escalate>,
        now: Timestamp,
    ) -> Result<(), OutboxError> {
        self.write(move |tx| {
            escalations
                .iter()
                .try_for_each(|e| deliveries::gather(tx, e, now))
        })
        .await
    }

    async fn command(
        &self,
        id: &str,
        command: Command,
        now: Timestamp,
    ) -> Result<Commanded, OutboxError> {
        let id = id.to_owned();
        self.write(move |tx| queue::command(tx, &id, command, now))
            .await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Row>, OutboxError> {
        self.read(move |db| queue::list(db, &filter)).await
    }

    async fn show(&self, id: &str) -> Result<Story, OutboxError> {
        let id = id.to_owned();
        self.read(move |db| queue::show(db, &id)).await
    }

    async fn depth(&self, _now: Timestamp) -> Result<Depth, OutboxError> {
        self.read(queue::depth).await
    }

    async fn sweep(&self, now: Timestamp, retention: Duration) -> Result<Swept, OutboxError> {
        let mut total = Swept::default();
        // In parts, so that what is taken in meanwhile waits for one part at most.
        for _ in 0..MAX_SWEEPS {
            let (swept, more) = self
                .write(move |tx| cases::sweep(tx, now, retention))
                .await?;
            total.wiped += swept.wiped;
            total.dropped += swept.dropped;
            if !more {
                break;
            }
        }
        Ok(total)
    }
}

fn activation_number(id: &str) -> Result<i64, OutboxError> {
    match Id::parse(id)? {
        Id::Activation(number) => Ok(number),
        Id::Delivery(_) => Err(OutboxError::NotFound(id.to_owned())),
    }
}

fn delivery_number(id: &str) -> Result<i64, OutboxError> {
    match Id::parse(id)? {
        Id::Delivery(number) => Ok(number),
        Id::Activation(_) => Err(OutboxError::NotFound(id.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use jiff::SignedDuration;
    use rusqlite::StatementStatus;

    use super::*;
    use crate::activation::ActivationCode;
    use crate::activation::Device;
    use crate::activation::Stage;

    fn opened(dir: &Path) -> Sqlite {
        let lock = File::create(dir.join("lock")).unwrap();
        let key = Key::fresh().unwrap();
        Sqlite::open(dir, lock, &|_| Ok(key.clone())).unwrap().0
    }

    fn event(user: &str) -> Activation {
        let now = Timestamp::now();
        Activation {
            event_id: user.to_owned(),
            device: Device {
                id: "FGT60FTK19009408".to_owned(),
                name: "BORDER-FGT".to_owned(),
                vdom: "root".to_owned(),
            },
            user: user.to_owned(),
            person: user.to_owned(),
            logid: 38412,
            description: "Token activation code sent".to_owned(),
            stage: Stage::CodeSent,
            rule: "activation code".to_owned(),
            event_time: now,
            received_at: now,
            expires_at: now + SignedDuration::from_hours(72),
            validity: Duration::from_secs(72 * 3600),
            skew: SignedDuration::ZERO,
            code: ActivationCode::captured("EEIOTCU3LENEDJMR"),
            token: None,
            addresses: Vec::new(),
            origin: Default::default(),
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_loses_nothing_and_is_over_when_there_is_space_again() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = opened(dir.path());
        let at_most = async |pages: i64| {
            let set = move |tx: &Tx<'_>| {
                Ok(tx.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)
            };
            outbox.write(set).await.unwrap();
        };
        at_most(40).await;
        let mut kept = 0;
        let refused = loop {
            match outbox.put(vec![event(&format!("user{kept}"))]).await {
                Ok(_) => kept += 1,
                Err(e) => break e,
            }
        };
        assert!(
            kept > 0 && matches!(refused, OutboxError::Full(_)),
            "{kept}: {refused}"
        );
        assert!(refused.to_string().contains("no space left"), "{refused}");
        assert_eq!(outbox.list(Filter::default()).await.unwrap().len(), kept);

        // What stands is answered by the commit that succeeds.
        let (clock, hour): (Clock, _) = (Arc::new(Timestamp::now), Duration::from_secs(3600));
        let none = outbox.lease_cases(0, clock(), hour).await.unwrap();
        let forever = Box::pin(pending());
        let mut cases = outbox.next_cases(none.changes, 1, &clock, hour, forever);
        assert!((&mut cases).now_or_never().is_none());
        let refused = outbox.put(vec![event(&format!("user{kept}"))]).await;
        assert!(matches!(refused, Err(OutboxError::Full(_))));
        assert!((&mut cases).now_or_never().is_none());
        at_most(1000).await;
        let again = outbox
            .put(vec![event(&format!("user{kept}"))])
            .await
            .unwrap();
        assert!(
            matches!(again[0], Stored::New { .. }),
            "what was refused was not kept by half"
        );
        assert_eq!(cases.await.unwrap().unwrap().items.len(), 1);
        assert_eq!(
            outbox.list(Filter::default()).await.unwrap().len(),
            kept + 1
        );
    }

    #[tokio::test]
    async fn a_command_that_fails_undoes_itself_and_not_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = opened(dir.path());
        let mark = |n: i64, fails: bool| {
            outbox.write(move |tx| {
                tx.execute("INSERT INTO history (at, what) VALUES (?, 'mark')", [n])?;
                if fails {
                    // An error of SQLite's own, as well as one of ours.
                    tx.execute("INSERT INTO history (at, what) VALUES (?, NULL)", [n])?;
                }
                Ok(n)
            })
        };
        let all = (0..64).map(|n| mark(n, n % 4 == 1));
        let answers = futures_util::future::join_all(all).await;
        assert_eq!(answers.iter().filter(|a| a.is_err()).count(), 16);
        let marks = |db: &Connection| {
            Ok(db.query_row("SELECT count(*) FROM history", [], |row| {
                row.get::<_, i64>(0)
            })?)
        };
        assert_eq!(outbox.read(marks).await.unwrap(), 48);
    }

    #[tokio::test]
    async fn a_statement_is_planned_once_whatever_values_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = opened(dir.path());
        let planned_again = outbox
            .write(|tx| {
                let mut due = tx.prepare_cached(
                    "SELECT id FROM activation WHERE due_at <= ? ORDER BY due_at, id LIMIT ?",
                )?;
                for n in 1..9 {
                    due.query([n, n])?.next()?;
                }
                Ok(due.get_status(StatementStatus::RePrepare))
            })
            .await
            .unwrap();
        assert_eq!(planned_again, 0);
    }

    #[tokio::test]
    async fn what_is_asked_most_is_found_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = opened(dir.path());
        for (sql, index) in [
            ("SELECT id FROM activation WHERE due_at <= 1 ORDER BY due_at, id LIMIT 9", "activation_due"),
            ("SELECT min(due_at) FROM activation WHERE due_at IS NOT NULL", "activation_due"),
            (
                "SELECT id FROM delivery WHERE channel = 'a' AND due_at <= 1 AND expires_at > 1 AND ends_as IS NULL
                     AND NOT (state = 'sending' AND on_uncertain = 'hold') ORDER BY due_at, id LIMIT 9",
                "delivery_due",
            ),
            (
                "SELECT id FROM delivery WHERE expires_at <= 1 AND state IN ('pending', 'leased', 'sending', 'needs-attention')
                     AND (state <> 'sending' OR due_at <= 1) AND (?1 IS NULL OR channel = ?1) LIMIT 9",
                "delivery_open",
            ),
            (
                "SELECT id FROM delivery WHERE due_at <= 1 AND expires_at > 1 AND state IN ('leased', 'sending')
                     AND (ends_as IS NOT NULL OR (state = 'sending' AND on_uncertain = 'hold')) LIMIT 9",
                "delivery_busy",
            ),
            (
                "SELECT id, reached FROM activation WHERE device_id = 'd' AND vdom = 'v' AND person = 'p'
                     AND event_time < 1 AND stage = 'code-sent' AND standing <> 'provisional' AND NOT unsettled
                     AND (code_mac <> x'' OR found_mac IS NOT NULL)
                     AND state IN ('received', 'routed', 'needs-attention')",
                "activation_open",
            ),
            ("SELECT id FROM activation WHERE device_id = 'd' AND token = 't'", "activation_token"),
            (
                "SELECT 1 FROM activation WHERE device_id = 'd' AND person = 'p' AND event_time >= 1
                     AND stage = 'activated' AND standing = 'confirmed' AND token = 't'",
                "activation_token",
            ),
            ("SELECT 1 FROM activation WHERE event_id = 'e' AND found_mac = x'00'", "sqlite_autoindex_activation"),
            ("SELECT 1 FROM activation WHERE sealed IS NOT NULL AND expires_at <= 1 LIMIT 9", "activation_sealed"),
        ] {
            let plan = outbox
                .read(move |db| {
                    let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let count = explain.parameter_count();
                    let none = vec![None::<i64>; count];
                    let lines = explain.query_map(rusqlite::params_from_iter(none), |row| row.get::<_, String>(3))?;
                    Ok(lines.collect::<Result<Vec<_>, _>>()?.join("; "))
                })
                .await
                .unwrap();
            assert!(plan.contains(index), "{sql}: {plan}");
        }
    }
}
