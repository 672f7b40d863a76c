//! The one thread that writes: it gathers commands into one transaction, commits once, then answers all of them.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tracing::error;

use crate::outbox::OutboxError;
use crate::outbox::sqlite::file::truncate_log;

/// So many commands share one commit, and so one fsync; those that stood until then come on top.
const MAX_BATCH: usize = 64;
/// So many commands wait; beyond that their callers do.
const MAX_WAITING: usize = 1024;

/// What a command works with: the database inside its own savepoint.
pub(super) struct Tx<'a> {
    db: &'a Connection,
    before: &'a Changes,
    noted: Noted,
}

/// What a command did that concerns more than its own rows.
#[derive(Default)]
struct Noted {
    cases: Cell<bool>,
    deliveries: Cell<bool>,
    wiped: Cell<bool>,
    purge: Cell<bool>,
}

/// What may become due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Cases,
    Deliveries,
}

/// How often something in each queue may have become due.
#[derive(Default)]
pub(super) struct Changes {
    cases: Cell<u64>,
    deliveries: Cell<u64>,
}

impl Changes {
    fn of(&self, queue: Queue) -> u64 {
        match queue {
            Queue::Cases => self.cases.get(),
            Queue::Deliveries => self.deliveries.get(),
        }
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl<'a> Tx<'a> {
    /// `before`: what had changed before this command.
    pub(super) fn new(db: &'a Connection, before: &'a Changes) -> Self {
        Self {
            db,
            before,
            noted: Noted::default(),
        }
    }

    /// How often something in the queue may have become due before this command. One that stands for a queue must not change it, or it
    /// would be asked for without end.
    pub(super) fn changes(&self, queue: Queue) -> u64 {
        self.before.of(queue)
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

/// A command that stands until something in the queue may have become due since it had changed so often.
struct Standing {
    number: u64,
    queue: Queue,
    since: u64,
    job: Box<dyn Job>,
}

enum Order {
    Now(Box<dyn Job>),
    Then(Standing),
    /// The standing command of this number is dropped, unless it was taken up before.
    GiveUp(u64),
}

/// The thread and the way to it. Dropping it waits until everything taken is committed and the file is closed.
pub(super) struct Writer {
    orders: Option<mpsc::Sender<Order>>,
    numbers: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Connection) -> std::io::Result<Self> {
        let (orders, waiting) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new()
            .name("outbox".to_owned())
            .spawn(move || write(&db, waiting))?;
        Ok(Self {
            orders: Some(orders),
            numbers: AtomicU64::new(0),
            thread: Some(thread),
        })
    }

    /// Runs `work` inside the next transaction and returns once that is durable. An error undoes this work alone.
    pub(super) async fn run<T, F>(&self, work: F) -> Result<T, OutboxError>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send + 'static,
        T: Send + 'static,
    {
        let (job, answer) = command(work);
        self.order(Order::Now(job)).await;
        answer.await.expect("the outbox's writer has ended")
    }

    /// The same, inside the transaction by which something in the queue may have become due since its count was `since`. `None`:
    /// `rest` ended before, and nothing was done. Not to be dropped: what it does at that moment would be nobody's.
    pub(super) async fn run_after<T, F>(
        &self,
        (queue, since): (Queue, u64),
        work: F,
        rest: impl Future<Output = ()>,
    ) -> Result<Option<T>, OutboxError>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send + 'static,
        T: Send + 'static,
    {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (job, mut answer) = command(work);
        self.order(Order::Then(Standing {
            number,
            queue,
            since,
            job,
        }))
        .await;
        let answered = tokio::select! {
            answered = &mut answer => answered,
            () = rest => {
                self.order(Order::GiveUp(number)).await;
                answer.await
            }
        };
        // One that was given up has dropped its end of the answer.
        answered.ok().transpose()
    }

    async fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("it is there until drop");
        // The thread ends early only by a panic of ours; then the caller's task ends as well, and with it the process.
        assert!(
            orders.send(order).await.is_ok(),
            "the outbox's writer has ended"
        );
    }
}

/// A job, and where its answer comes.
fn command<T, F>(work: F) -> (Box<dyn Job>, oneshot::Receiver<Result<T, OutboxError>>)
where
    F: FnOnce(&Tx<'_>) -> Result<T, OutboxError> + Send + 'static,
    T: Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let job = Command {
        work: Some(work),
        result: None,
        reply,
    };
    (Box::new(job), answer)
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("The outbox's writer ended by a fault of its own");
        }
    }
}

fn write(db: &Connection, mut waiting: mpsc::Receiver<Order>) {
    let mut orders = Vec::with_capacity(MAX_BATCH);
    let mut batch: Vec<Box<dyn Job>> = Vec::with_capacity(MAX_BATCH);
    let mut standing: Vec<Standing> = Vec::new();
    let changes = Changes::default();
    let mut wiped = false;
    while waiting.blocking_recv_many(&mut orders, MAX_BATCH) > 0 {
        for order in orders.drain(..) {
            match order {
                Order::Now(job) => batch.push(job),
                Order::Then(order) => standing.push(order),
                Order::GiveUp(number) => standing.retain(|order| order.number != number),
            }
        }
        // What nobody waits for any more is not begun: a lease without a holder would only block its row.
        batch.retain(|job| job.is_wanted());
        batch.extend(take_ready(&mut standing, &changes));
        if batch.is_empty() {
            continue;
        }
        let noted = Noted::default();
        let committed = transact(db, &mut batch, &mut standing, &changes, &noted);
        if committed.is_err() && !db.is_autocommit() {
            // If even that fails, the next BEGIN says so.
            let _rolled_back = db.execute_batch("ROLLBACK");
        }
        let done = committed.is_ok();
        if done {
            wiped |= noted.wiped.get();
        }
        for job in batch.drain(..) {
            job.answer(committed.clone());
        }
        if done && wiped && noted.purge.get() {
            // A reader may be in the way; then it stays noted for the next time.
            wiped = !truncate_log(db).unwrap_or(false);
        }
    }
}

/// The standing commands for which the time has come.
fn take_ready(standing: &mut Vec<Standing>, changes: &Changes) -> Vec<Box<dyn Job>> {
    let is_ready = |order: &mut Standing| changes.of(order.queue) != order.since;
    standing
        .extract_if(.., is_ready)
        .map(|order| order.job)
        .filter(|job| job.is_wanted())
        .collect()
}

fn transact(
    db: &Connection,
    batch: &mut Vec<Box<dyn Job>>,
    standing: &mut Vec<Standing>,
    changes: &Changes,
    noted: &Noted,
) -> Result<(), OutboxError> {
    let run =
        |sql: &str| -> rusqlite::Result<()> { db.prepare_cached(sql)?.execute([]).map(|_| ()) };
    run("BEGIN IMMEDIATE")?;
    let mut at = 0;
    while let Some(job) = batch.get_mut(at) {
        run("SAVEPOINT command")?;
        let tx = Tx::new(db, changes);
        if job.run(&tx) {
            let Noted {
                cases,
                deliveries,
                wiped,
                purge,
            } = tx.noted;
            changes
                .cases
                .set(changes.cases.get() + u64::from(cases.get()));
            changes
                .deliveries
                .set(changes.deliveries.get() + u64::from(deliveries.get()));
            noted.wiped.set(noted.wiped.get() | wiped.get());
            noted.purge.set(noted.purge.get() | purge.get());
        } else if db.is_autocommit() {
            // Some errors (no space, input and output) undo the whole transaction.
            return Err(job
                .error()
                .unwrap_or_else(|| OutboxError::Unavailable("the transaction ended".to_owned())));
        } else {
            run("ROLLBACK TO command")?;
        }
        run("RELEASE command")?;
        at += 1;
        if at == batch.len() {
            // Whoever waits for what has just become due has it with the same fsync.
            batch.extend(take_ready(standing, changes));
        }
    }
    run("COMMIT")?;
    Ok(())
}
