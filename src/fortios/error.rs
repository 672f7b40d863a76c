//! Why a device gave no answer, in words an administrator understands, and whether asking again can help.

use std::time::Duration;

/// Why a FortiGate's API gave no answer. The sentences hold no code and no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// It can't be reached, is too slow, is busy (429) or fails (5xx): it may answer later.
    #[error("{reason}")]
    Away {
        /// One sentence.
        reason: String,
        /// Not before this.
        after: Option<Duration>,
    },
    /// The API key may not read this (403): profile, trusted host or VDOM.
    #[error("{reason}")]
    Forbidden {
        /// One sentence with what to do.
        reason: String,
    },
    /// What the question depends on isn't there (424): most often the VDOM.
    #[error("{reason}")]
    Missing {
        /// One sentence with what to do.
        reason: String,
    },
    /// It refuses us until an administrator acts: certificate, key (401), address (404, redirect), request.
    #[error("{reason}")]
    Refused {
        /// One sentence with what to do.
        reason: String,
    },
    /// An answer that can't be believed: HTML, half a JSON, too much, about something else, from another device.
    #[error("{reason}")]
    Nonsense {
        /// One sentence.
        reason: String,
    },
}

impl ApiError {
    /// Whether the same question may be answered later without anybody's doing.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Nonsense { .. })
    }

    pub(super) fn away(reason: impl Into<String>) -> Self {
        Self::Away {
            reason: reason.into(),
            after: None,
        }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
        }
    }

    pub(super) fn nonsense(reason: impl Into<String>) -> Self {
        Self::Nonsense {
            reason: reason.into(),
        }
    }
}
