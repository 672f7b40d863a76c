//! The one thread that writes: it gathers commands into one transaction, commits once, then answers all of them.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tracing::error;

use crate::outbox::OutboxError;
use crate::outbox::sqlite::file::truncate_log;

/// So many commands share one commit, and so one fsync.
const MAX_BATCH: usize = 64;
/// So many commands wait; beyond that their callers do.
const MAX_WAITING: usize = 1024;

/// What a command works with: the database inside its own savepoint.
pub(super) struct Tx<'a> {
    db: &'a Connection,
    noted: Noted,
}

/// What others want to know once it is committed.
#[derive(Default)]
struct Noted {
    cases: Cell<bool>,
    deliveries: Cell<bool>,
    wiped: Cell<bool>,
    purge: Cell<bool>,
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl<'a> Tx<'a> {
    /// For work in a transaction of one's own, before anybody sleeps.
    pub(super) fn outside(db: &'a Connection) -> Self {
        Self {
            db,
            noted: Noted::default(),
        }
    }

    /// A case may have become due.
    pub(super) fn wake_cases(&self) {
        self.noted.cases.set(true);
    }

    /// A delivery may have become due.
    pub(super) fn wake_deliveries(&self) {
        self.noted.deliveries.set(true);
    }

    /// A sealed code is gone from the tables; the write-ahead log may still hold it.
    pub(super) fn wiped(&self) {
        self.noted.wiped.set(true);
    }

    /// If anything was wiped since the last time, the write-ahead log is emptied after the commit.
    pub(super) fn purge_log(&self) {
        self.noted.purge.set(true);
    }
}

/// Who sleeps until something may be due.
pub(super) struct Wakes {
    pub(super) cases: watch::Sender<u64>,
    pub(super) deliveries: watch::Sender<u64>,
}

trait Job: Send {
    /// Somebody waits for the answer.
    fn is_wanted(&self) -> bool;
    /// Does the work and keeps its result. `false`: what it did is to be undone.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Why it failed, if it did.
    fn error(&self) -> Option<OutboxError>;
    /// Tells the result, or why it was not committed.
    fn answer(self: Box<Self>, committed: Result<(), OutboxError>);
}

struct Command<F, T> {
    work: Option<F>,
    result: Option<Result<T, OutboxError>>,
    reply: oneshot::Sender<Result<T, OutboxError>>,
}

impl<F, T> Job for Command<F, T>
where
    F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send,
    T: Send,
{
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let work = self.work.take().expect("a command runs once");
        let result = work(tx);
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn error(&self) -> Option<OutboxError> {
        self.result.as_ref()?.as_ref().err().cloned()
    }

    fn answer(self: Box<Self>, committed: Result<(), OutboxError>) {
        let result = match (self.result, committed) {
            (Some(result), Ok(())) => result,
            (Some(Err(own)), Err(_)) => Err(own),
            (_, Err(e)) => Err(e),
            (None, Ok(())) => return,
        };
        // Nobody waits any more: what is committed stays, and a lease ends by its time.
        let _gone = self.reply.send(result);
    }
}

/// The thread and the way to it. Dropping it waits until everything taken is committed and the file is closed.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Connection, wakes: Arc<Wakes>) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new()
            .name("outbox".to_owned())
            .spawn(move || write(&db, &wakes, waiting))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Runs `work` inside the next transaction and returns once that is durable. An error undoes this work alone.
    pub(super) async fn run<T, F>(&self, work: F) -> Result<T, OutboxError>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            work: Some(work),
            result: None,
            reply,
        };
        let jobs = self.jobs.as_ref().expect("it is there until drop");
        // The thread ends early only by a panic of ours; then the caller's task ends as well, and with it the process.
        assert!(
            jobs.send(Box::new(command)).await.is_ok(),
            "the outbox's writer has ended"
        );
        answer.await.expect("the outbox's writer has ended")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("The outbox's writer ended by a fault of its own");
        }
    }
}

fn write(db: &Connection, wakes: &Wakes, mut waiting: mpsc::Receiver<Box<dyn Job>>) {
    let mut batch: Vec<Box<dyn Job>> = Vec::with_capacity(MAX_BATCH);
    let mut wiped = false;
    while waiting.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
        // What nobody waits for any more is not begun: a lease without a holder would only block its row.
        batch.retain(|job| job.is_wanted());
        if batch.is_empty() {
            continue;
        }
        let noted = Noted::default();
        let committed = commit(db, &mut batch, &noted);
        if committed.is_ok() {
            wiped |= noted.wiped.get();
        }
        let done = committed.is_ok();
        for job in batch.drain(..) {
            job.answer(committed.clone());
        }
        if done && noted.cases.get() {
            wakes.cases.send_modify(|n| *n = n.wrapping_add(1));
        }
        if done && noted.deliveries.get() {
            wakes.deliveries.send_modify(|n| *n = n.wrapping_add(1));
        }
        if done && wiped && noted.purge.get() {
            // A reader may be in the way; then it stays noted for the next time.
            wiped = !truncate_log(db).unwrap_or(false);
        }
    }
}

fn commit(db: &Connection, batch: &mut [Box<dyn Job>], noted: &Noted) -> Result<(), OutboxError> {
    let result = transact(db, batch, noted);
    if result.is_err() && !db.is_autocommit() {
        // If even that fails, the next BEGIN says so.
        let _rolled_back = db.execute_batch("ROLLBACK");
    }
    result
}

fn transact(db: &Connection, batch: &mut [Box<dyn Job>], noted: &Noted) -> Result<(), OutboxError> {
    let run =
        |sql: &str| -> rusqlite::Result<()> { db.prepare_cached(sql)?.execute([]).map(|_| ()) };
    run("BEGIN IMMEDIATE")?;
    for job in batch {
        run("SAVEPOINT command")?;
        let tx = Tx::outside(db);
        if job.run(&tx) {
            for (all, one) in [
                (&noted.cases, &tx.noted.cases),
                (&noted.deliveries, &tx.noted.deliveries),
                (&noted.wiped, &tx.noted.wiped),
                (&noted.purge, &tx.noted.purge),
            ] {
                all.set(all.get() | one.get());
            }
        } else if db.is_autocommit() {
            // Some errors (no space, input and output) undo the whole transaction.
            return Err(job
                .error()
                .unwrap_or_else(|| OutboxError::Unavailable("the transaction ended".to_owned())));
        } else {
            run("ROLLBACK TO command")?;
        }
        run("RELEASE command")?;
    }
    run("COMMIT")?;
    Ok(())
}
