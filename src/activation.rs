//! What happened on a FortiGate: a token event, whose it is, and the activation code if the log shows it.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::secret::Secret;

/// Where in a token's life an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// 32155: an administrator asked for an activation.
    Requested,
    /// 38412: the FortiGate sent the activation code.
    CodeSent,
    /// 32156: the person's phone holds the token.
    Activated,
    /// 32159: the activation failed.
    Failed,
}

impl Stage {
    /// The word used in configuration, queue and payloads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::CodeSent => "code-sent",
            Self::Activated => "activated",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::Requested,
            Self::CodeSent,
            Self::Activated,
            Self::Failed,
        ]
        .into_iter()
        .find(|s| s.as_str() == text)
        .ok_or(())
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The firewall an event comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its canonical id: the first id of its `[[device]]`, else what the log calls it.
    pub id: String,
    /// How people know it.
    pub name: String,
    /// The virtual domain.
    pub vdom: String,
}

/// A FortiToken Mobile activation code. It exists only if its shape was right, and it can't be printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActivationCode(Secret);

impl ActivationCode {
    /// The code, if the text has the shape of one: 16 base32 characters that decode to a first byte of 0x21.
    pub fn parse(text: &str) -> Option<Self> {
        let base32 = |b: u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b);
        let shape = text.len() == 16 && text.starts_with("EE") && text.bytes().all(base32);
        shape.then(|| Self(Secret::new(text)))
    }

    /// The code itself: only for the seal, the mail and the wire.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The code as a secret, for a redactor.
    pub fn secret(&self) -> Secret {
        self.0.clone()
    }
}

/// One wanted event, read from one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Names the event, the same on every relay that saw it: an unkeyed hash of everything that identifies it but the code.
    pub event_id: String,
    /// The firewall.
    pub device: Device,
    /// The user as logged.
    pub user: String,
    /// The user normalised: what look-ups, identity and limits use.
    pub person: String,
    /// The message id (last six digits of `logid`).
    pub logid: u32,
    /// What FortiOS calls the event (`logdesc`).
    pub description: String,
    /// Where in the token's life it stands.
    pub stage: Stage,
    /// The name of the rule that took it.
    pub rule: String,
    /// When it happened; the time of receipt where the log claims a time more than 5 min in the future.
    pub event_time: Timestamp,
    /// When the relay took it.
    pub received_at: Timestamp,
    /// From when on the code is worthless.
    pub expires_at: Timestamp,
    /// How long the code lives from the event on.
    pub validity: Duration,
    /// By how much the device's clock is ahead of ours (negative: behind, or an old log).
    pub skew: SignedDuration,
    /// The code, where the message shows exactly one.
    pub code: Option<ActivationCode>,
    /// The token's serial number, where the event names it.
    pub token: Option<String>,
    /// Mail addresses that stand in the message. Hints for the `log` directory and for `mismatch`, never recipients.
    pub addresses: Vec<String>,
}
