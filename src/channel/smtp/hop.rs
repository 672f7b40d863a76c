//! One of several relays: where it is, its idle connections, and whether it is left in peace for a while.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use lettre::transport::smtp::commands::Rset;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use super::class::Standing;
use super::park::Park;
use super::relay::Relay;
use super::relay::Session;
use crate::channel::Attempt;

/// How long a parked connection may take to show that it is alive.
const MAX_RSET: Duration = Duration::from_secs(5);

/// How long a relay that is away is passed over while there are others.
const AWAY: Duration = Duration::from_secs(60);

/// How long a relay that an operator must see to is passed over while there are others.
const BROKEN: Duration = Duration::from_secs(300);

/// A relay of a channel.
pub(super) struct Hop {
    pub(super) relay: Relay,
    park: Arc<Park>,
    rests_until: Mutex<Option<Instant>>,
}

impl Hop {
    pub(super) fn new(relay: Relay) -> Self {
        Self {
            relay,
            park: Arc::default(),
            rests_until: Mutex::default(),
        }
    }

    /// A connection that waited, if it is still alive.
    pub(super) async fn waiting(&self, attempt: &Attempt<'_>) -> Option<Session> {
        let mut session = self.park.take()?;
        let limit = self.relay.step.min(MAX_RSET);
        let alive = session.dialogue.say(attempt, Rset, limit).await;
        alive
            .is_ok_and(|reply| reply.code == 250)
            .then_some(session)
    }

    /// Lets a connection wait for the next mail.
    pub(super) fn park(&self, session: Session) {
        self.park.put(session);
    }

    /// Whether others are asked before this one.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until().is_some_and(|until| now < until)
    }

    /// Remembers how it fared. `reason` is told once, when it begins to be passed over.
    pub(super) fn note(&self, standing: Standing, reason: &str, now: Instant) {
        let pause = match standing {
            Standing::Well => None,
            Standing::Away => Some(AWAY),
            Standing::Broken => Some(BROKEN),
        };
        let before = std::mem::replace(&mut *self.rests_until(), pause.map(|p| now + p));
        let relay = &self.relay;
        match (before, pause) {
            (None, Some(pause)) => {
                warn!(%relay, "{relay} is passed over for {pause:?} while others can be used: {reason}");
            }
            (Some(_), None) => info!(%relay, "{relay} works again"),
            _ => {}
        }
    }

    fn rests_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
