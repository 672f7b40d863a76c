//! The address that the log message itself names, for those who trust their logs that far.
//!
//! They trust a line that holds the code already. Where the device names the code, a line that anybody could forge must not
//! choose where it goes.

use async_trait::async_trait;
use serde::Deserialize;

use crate::activation::Activation;
use crate::message::Recipient;
use crate::recipients::Recipients;
use crate::secret::mask_address;

use super::Answer;
use super::Directory;
use super::LookupError;
use super::Match;
use super::address;

/// `type = "log"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose events it answers for.
    #[serde(rename = "match", default)]
    pub matches: Match,
}

impl Config {
    pub(super) fn build(self, recipients: &Recipients) -> Log {
        Log {
            recipients: recipients.clone(),
        }
    }
}

/// Believes the message, within `recipients.domains`.
pub(super) struct Log {
    recipients: Recipients,
}

#[async_trait]
impl Directory for Log {
    fn name(&self) -> &str {
        "log"
    }

    async fn find(&self, who: &Activation) -> Result<Answer, LookupError> {
        if who.origin.device_named_code {
            return Ok(Answer::Unknown(
                "the message shows no code itself, so its address counts for nothing".to_owned(),
            ));
        }
        let mut candidates = who
            .addresses
            .iter()
            .filter(|a| self.recipients.allows(a) && address(a).is_ok());
        let Some(email) = candidates.next() else {
            return Ok(Answer::Unknown(
                "no address within `recipients.domains` stands in the message".to_owned(),
            ));
        };
        if let Some(other) = candidates.find(|a| !a.eq_ignore_ascii_case(email)) {
            return Err(LookupError::Ambiguous(format!(
                "two addresses stand in the message, {} and {}",
                mask_address(email),
                mask_address(other)
            )));
        }
        Ok(Answer::Person(Recipient {
            email: email.clone(),
            name: None,
            phone: None,
            language: None,
            source: "log".to_owned(),
        }))
    }
}
