//! Connections that wait a few seconds for the next mail.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::relay::Session;

/// More connections than this never wait at once.
const MAX_PARKED: usize = 8;

/// How long a connection waits: relays count idle clients, and people want their slots back.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// How long a good-bye may take.
const QUIT: Duration = Duration::from_secs(2);

/// The idle connections of one relay.
#[derive(Default)]
pub(super) struct Park(Mutex<Lot>);

#[derive(Default)]
struct Lot {
    parked: Vec<Parked>,
    last: u64,
}

struct Parked {
    number: u64,
    session: Session,
    closer: AbortOnDropHandle<()>,
}

impl Park {
    /// The connection that waited least: the likeliest to be alive.
    pub(super) fn take(&self) -> Option<Session> {
        self.lot().parked.pop().map(|parked| parked.session)
    }

    /// Lets a connection wait. The task that says good-bye to it ends with the park.
    pub(super) fn put(self: &Arc<Self>, session: Session) {
        let mut lot = self.lot();
        if lot.parked.len() >= MAX_PARKED {
            return;
        }
        lot.last += 1;
        let number = lot.last;
        let park = Arc::downgrade(self);
        let closer = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(MAX_IDLE).await;
            let parked = park.upgrade().and_then(|park| park.remove(number));
            if let Some(Parked {
                session, closer, ..
            }) = parked
            {
                // This task is the closer: to drop its handle would abort the good-bye.
                drop(closer.detach());
                session.dialogue.quit(QUIT).await;
            }
        }));
        lot.parked.push(Parked {
            number,
            session,
            closer,
        });
    }

    fn remove(&self, number: u64) -> Option<Parked> {
        let mut lot = self.lot();
        let at = lot.parked.iter().position(|p| p.number == number)?;
        Some(lot.parked.remove(at))
    }

    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
