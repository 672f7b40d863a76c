//! What all listeners share: the gate, and the bounded queue of frames on their way to the pipeline.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use arc_swap::Cache;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::frame::Frame;
use crate::metrics::Rejected;

/// So many frames may wait for their commit.
pub const MAX_WAITING_FRAMES: usize = 10_000;

/// So many bytes of frames may wait for their commit.
pub const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;

/// One semaphore keeps both bounds: a frame pays for its bytes, and at least a ten-thousandth of them all.
const LEAST_COST_BYTES: usize = MAX_WAITING_BYTES / MAX_WAITING_FRAMES;
const ROOM_BYTES: usize = LEAST_COST_BYTES * MAX_WAITING_FRAMES;

/// Says of a message's bytes whether it could be a wanted event. It may be wrong in one direction only: what it turns away is never read.
pub type Gate = dyn Fn(&[u8]) -> bool + Send + Sync;

/// The gate as one listener sees it: a reload's new one is noticed at the price of comparing a pointer.
pub(super) type GateCache = Cache<Arc<ArcSwap<Arc<Gate>>>, Arc<Arc<Gate>>>;

/// The listeners' end of the queue. Clones share it.
#[derive(Clone)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    gate: Arc<ArcSwap<Arc<Gate>>>,
    outbox_away: Arc<AtomicBool>,
}

struct Waiting {
    frame: Frame,
    reply: Reply,
    room: Room,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed.
    Kept,
    /// It was committed before.
    Known,
    /// It is a log that nobody wants; the sentence says which.
    Ignored(String),
    /// It can't be read or is not allowed; the sentence says why.
    Rejected(String),
    /// The outbox can't commit it at present; it is tried again.
    Pending,
}

/// Tells a frame's sender what became of it, if one waits to hear. Dropped, it says that nothing is known.
#[derive(Debug, Default)]
pub struct Reply(Option<oneshot::Sender<Outcome>>);

/// What a [`Reply`] brings.
pub(super) type Answer = oneshot::Receiver<Outcome>;

impl Reply {
    /// Tells it.
    pub fn send(self, outcome: Outcome) {
        if let Some(sender) = self.0 {
            // One that waits no longer has given up.
            drop(sender.send(outcome));
        }
    }
}

/// Space in the queue for one frame.
pub(super) struct Room(OwnedSemaphorePermit);

/// The pipeline has gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

impl Intake {
    /// A queue and its two ends. Every frame passes until [`set_gate`](Self::set_gate) is called.
    pub fn new() -> (Self, FrameReceiver) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING_FRAMES);
        let room = Arc::new(Semaphore::new(ROOM_BYTES));
        let open: Arc<Gate> = Arc::new(|_: &[u8]| true);
        let outbox_away = Arc::new(AtomicBool::new(false));
        let intake = Self {
            queue,
            room: room.clone(),
            gate: Arc::new(ArcSwap::from_pointee(open)),
            outbox_away: outbox_away.clone(),
        };
        (
            intake,
            FrameReceiver {
                waiting,
                room,
                taken: Vec::new(),
                outbox_away,
            },
        )
    }

    /// Replaces the gate for all listeners.
    pub fn set_gate(&self, gate: Arc<Gate>) {
        self.gate.store(Arc::new(gate));
    }

    /// Why a frame is turned away when the queue is full.
    pub(super) fn full(&self) -> Rejected {
        if self.outbox_is_away() {
            Rejected::Outbox
        } else {
            Rejected::Backlog
        }
    }

    pub(super) fn gate(&self) -> GateCache {
        Cache::new(self.gate.clone())
    }

    /// Room for a frame of `bytes`, if there is any now.
    pub(super) fn room_now(&self, bytes: usize) -> Result<Option<Room>, Closed> {
        if self.room.is_closed() {
            return Err(Closed);
        }
        Ok(self
            .room
            .clone()
            .try_acquire_many_owned(cost(bytes))
            .ok()
            .map(Room))
    }

    /// Room for a frame of `bytes`, as soon as there is any. May be cancelled.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room, Closed> {
        let permit = self.room.clone().acquire_many_owned(cost(bytes)).await;
        permit.map(Room).map_err(|_| Closed)
    }

    /// Whether the queue is less than half full, so that frames nobody waits for may enter too.
    pub(super) fn is_calm(&self) -> bool {
        self.room.available_permits() > ROOM_BYTES / 2
    }

    pub(super) fn put(&self, frame: Frame, room: Room) -> Result<(), Closed> {
        self.enqueue(frame, Reply::default(), room)
    }

    /// Puts a frame and hears what becomes of it.
    pub(super) fn ask(&self, frame: Frame, room: Room) -> Result<Answer, Closed> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(frame, Reply(Some(reply)), room)?;
        Ok(answer)
    }

    fn enqueue(&self, frame: Frame, reply: Reply, room: Room) -> Result<(), Closed> {
        // It can't be full: each frame in it holds room, and there is no room for more frames than it takes.
        self.queue
            .try_send(Waiting { frame, reply, room })
            .map_err(|_| Closed)
    }

    /// Whether the outbox can't commit at present.
    pub(super) fn outbox_is_away(&self) -> bool {
        self.outbox_away.load(Ordering::Relaxed)
    }
}

fn cost(bytes: usize) -> u32 {
    let cost = bytes.clamp(LEAST_COST_BYTES, ROOM_BYTES);
    u32::try_from(cost).expect("the room is far below 4 GiB")
}

/// The pipeline's end of the queue.
pub struct FrameReceiver {
    waiting: mpsc::Receiver<Waiting>,
    room: Arc<Semaphore>,
    taken: Vec<Waiting>,
    outbox_away: Arc<AtomicBool>,
}

/// Frames in the order of their arrival. Their room in the queue is free again when this is dropped, so keep it until they are committed.
pub struct Batch {
    /// The frames.
    pub frames: Vec<Frame>,
    /// For each frame, in the same order, who waits to hear of it.
    pub replies: Vec<Reply>,
    _room: Option<OwnedSemaphorePermit>,
}

impl FrameReceiver {
    /// Waits for frames and takes up to `max` (at least one). `None`: every [`Intake`] is gone and all is taken. May be cancelled.
    pub async fn recv_batch(&mut self, max: usize) -> Option<Batch> {
        if self.waiting.recv_many(&mut self.taken, max.max(1)).await == 0 {
            return None;
        }
        let mut frames = Vec::with_capacity(self.taken.len());
        let mut replies = Vec::with_capacity(self.taken.len());
        let mut all: Option<OwnedSemaphorePermit> = None;
        for Waiting { frame, reply, room } in self.taken.drain(..) {
            frames.push(frame);
            replies.push(reply);
            match &mut all {
                Some(all) => all.merge(room.0),
                None => all = Some(room.0),
            }
        }
        Some(Batch {
            frames,
            replies,
            _room: all,
        })
    }

    /// Set while the outbox can't commit: it is then the reason why a full queue costs a datagram.
    pub fn outbox_away(&self) -> Arc<AtomicBool> {
        self.outbox_away.clone()
    }

    /// How many frames wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Drop for FrameReceiver {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::frame::Peer;

    fn put(intake: &Intake, bytes: usize) -> bool {
        let Some(room) = intake.room_now(bytes).unwrap() else {
            return false;
        };
        let frame = Frame {
            bytes: vec![b'x'; bytes],
            peer: Peer::unknown(),
            listener: None,
            received_at: Timestamp::UNIX_EPOCH,
        };
        intake.put(frame, room).unwrap();
        true
    }

    #[tokio::test]
    async fn ten_thousand_frames_wait_and_a_batch_counts_until_it_is_dropped() {
        let (intake, mut frames) = Intake::new();
        assert_eq!((0..20_000).filter(|_| put(&intake, 100)).count(), 10_000);
        let batch = frames.recv_batch(64).await.unwrap();
        assert_eq!(batch.frames.len(), 64);
        assert!(!put(&intake, 100));
        drop(batch);
        assert_eq!((0..100).filter(|_| put(&intake, 100)).count(), 64);
    }

    #[tokio::test]
    async fn waiting_bytes_are_bounded_and_the_largest_frame_fits() {
        let (intake, mut frames) = Intake::new();
        let mib = 1024 * 1024;
        assert_eq!((0..100).filter(|_| put(&intake, mib)).count(), 31);
        assert!(!put(&intake, mib));
        while frames.waiting() > 0 {
            drop(frames.recv_batch(5).await);
        }
        assert!(put(&intake, MAX_WAITING_BYTES));
    }

    #[tokio::test]
    async fn the_queue_ends_with_the_last_intake_and_the_intake_with_the_queue() {
        let (intake, mut frames) = Intake::new();
        put(&intake, 1);
        drop(intake.clone());
        drop(intake);
        assert_eq!(frames.recv_batch(9).await.unwrap().frames.len(), 1);
        assert!(frames.recv_batch(9).await.is_none());

        let (intake, frames) = Intake::new();
        drop(frames);
        assert!(intake.room_now(1).is_err());
        assert!(intake.room(1).await.is_err());
    }
}
