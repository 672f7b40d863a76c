//! Finding the person: directories are asked in order, the first that knows the user answers, two answers within one are an error.

use async_trait::async_trait;

use crate::activation::Activation;
use crate::message::Recipient;

/// A source that knows people.
#[async_trait]
pub trait Directory: Send + Sync {
    /// `Ok(None)`: this source does not know the person. Bounded in time by the implementation.
    async fn find(&self, who: &Activation) -> Result<Option<Recipient>, LookupError>;
}

/// Why a directory gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Two answers; an operator must act. Never a choice.
    #[error("{0}")]
    Ambiguous(String),
    /// It may answer later.
    #[error("{0}")]
    Unavailable(String),
}
