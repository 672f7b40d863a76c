//! What `check --live` tries of a channel: everything that can be tried without anybody getting anything.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::timeout;

use crate::channel::Attempt;
use crate::channel::Channel;
use crate::channel::Class;
use crate::channel::Commit;
use crate::channel::SendError;
use crate::channel::Transcript;
use crate::message::Notification;

/// How long all tries of one channel may take together.
const MAX_PROBE: Duration = Duration::from_secs(60);

/// One thing that was tried, or that can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The peer or the place, such as `relay.example.com:587`.
    pub what: String,
    /// How it stands.
    pub standing: Standing,
    /// What works, what doesn't and what to do, or why that isn't known: a sentence, or the rest of one that begins with `what`.
    pub text: String,
}

/// How something stands that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It works.
    Good,
    /// It can't be known from here.
    Unknown,
    /// It doesn't.
    Bad,
}

impl Probe {
    /// It works.
    pub fn good(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Standing::Good, text)
    }

    /// It can't be known from here.
    pub fn unknown(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Standing::Unknown, text)
    }

    /// It doesn't work.
    pub fn bad(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(what, Standing::Bad, text)
    }

    fn new(what: impl Into<String>, standing: Standing, text: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            standing,
            text: text.into(),
        }
    }
}

/// Nothing is sent by a probe, whatever a channel does.
struct Never;

#[async_trait]
impl Commit for Never {
    async fn commit(&self) -> Result<(), SendError> {
        Err(Class::Permanent.error("a probe sends nothing", None))
    }
}

impl Channel {
    /// Tries the channel without sending, within 60 s. `transcript` gets the dialogue.
    pub async fn probe(&self, transcript: &Transcript) -> Vec<Probe> {
        let nothing = Notification {
            id: String::new(),
            subject: String::new(),
            text: String::new(),
            html: String::new(),
            chat: Vec::new(),
            short: String::new(),
            event: Value::Null,
            language: "en".to_owned(),
            expires_at: Timestamp::MIN,
        };
        let attempt = Attempt {
            to: None,
            note: &nothing,
            commit: &Never,
            redactor: &self.redactor,
            transcript,
        };
        let mut found = Vec::new();
        let tried = self.carrier.probe(&attempt, &mut found);
        if timeout(MAX_PROBE, tried).await.is_err() {
            let text = format!(
                "did not come to an end within {MAX_PROBE:?}; somebody on the way is slow or silent"
            );
            found.push(Probe::bad(&self.name, text));
        }
        found
    }
}
