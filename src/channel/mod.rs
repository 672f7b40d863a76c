//! Ways out. A carrier takes a notification to its next hop and says what that hop said; it never retries by itself.

pub mod mail;
pub mod smtp;
pub mod tls;

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use crate::message::Notification;
use crate::message::Recipient;
use crate::secret::Redactor;

/// How one kind of channel sends.
#[async_trait]
pub trait Carrier: Send + Sync {
    /// One try. Dropping the future ends it; nothing of a broken-off try is used again.
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError>;
}

/// One try of one delivery.
pub struct Attempt<'a> {
    /// The person; `None` for a shared place and for a webhook without one.
    pub to: Option<&'a Recipient>,
    /// What is said.
    pub note: &'a Notification,
    /// To be called before the first byte after which the peer may act.
    pub commit: &'a dyn Commit,
    /// Cleans a peer's text of this delivery's code and address and of the channel's secrets.
    pub redactor: &'a Redactor,
    /// The dialogue, for `send-test`.
    pub transcript: &'a Transcript,
}

/// Marks the delivery durably as being sent (outbox: `begin_send`).
#[async_trait]
pub trait Commit: Send + Sync {
    /// An error means that this delivery must not be sent now.
    async fn commit(&self) -> Result<(), SendError>;
}

/// The next hop took it; nobody promises more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What the hop said, cleaned.
    pub said: String,
}

/// Why a try failed. Every reason is our sentence, with the peer's text cleaned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// This delivery, later: 4yz, 5xx.
    #[error("{reason}")]
    Transient {
        /// What happened.
        reason: String,
        /// The peer's own wish (Retry-After).
        after: Option<Duration>,
    },
    /// The whole channel, later: no connection, TLS or greeting, 421, 429.
    #[error("{reason}")]
    Away {
        /// What happened.
        reason: String,
        /// The peer's own wish (Retry-After).
        after: Option<Duration>,
    },
    /// Never, for this delivery: 5yz at RCPT, unknown user.
    #[error("{reason}")]
    Permanent {
        /// What happened.
        reason: String,
    },
    /// Never, for anyone, until an operator acts: 535, 401, bad certificate. Suspends the channel.
    #[error("{reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
    /// The peer may have taken it: the connection ended after the commit point.
    #[error("{reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// A dialogue as lines, `>` ours and `<` the peer's; secrets never enter it.
#[derive(Default)]
pub struct Transcript(Option<Mutex<Vec<String>>>);

impl Transcript {
    /// Keeps nothing: for the service.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Keeps what is said: for `send-test`.
    pub fn on() -> Self {
        Self(Some(Mutex::new(Vec::new())))
    }

    /// Adds a line, which the caller has cleaned.
    pub fn line(&self, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            lines
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(line());
        }
    }

    /// What was said so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |lines| {
            lines
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone()
        })
    }
}

/// What to do with a delivery whose outcome is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUncertain {
    /// At least once.
    #[default]
    Resend,
    /// At most once: a person decides.
    Hold,
}
