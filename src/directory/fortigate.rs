//! The device that logged the event: `email-to` and `sms-phone` of the user or administrator it names.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use crate::activation::Activation;
use crate::fortios::Fleet;
use crate::fortios::FortiGate;
use crate::fortios::Owner;
use crate::message::Recipient;
use crate::secret::mask_address;
use crate::settings::Check;
use crate::settings::Span;

use super::Answer;
use super::Directory;
use super::LookupError;
use super::Match;
use super::address;
use super::international;
use super::shown;

/// `type = "fortigate"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose events it answers for.
    #[serde(rename = "match", default)]
    pub matches: Match,
}

impl Config {
    /// `fleet` is `None` where a `[[device]]` can't be used, which has been said.
    pub(super) fn build(
        self,
        span: Span,
        fleet: Option<&Arc<Fleet>>,
        check: &mut Check,
    ) -> Option<Devices> {
        let fleet = fleet?;
        if !fleet.has_any() {
            check.problem(
                span,
                "a directory of type \"fortigate\" asks the device that logged the event, but no [[device]] has `api`",
            );
            return None;
        }
        Some(Devices {
            fleet: Arc::clone(fleet),
        })
    }
}

/// Asks whichever device logged the event.
pub(super) struct Devices {
    fleet: Arc<Fleet>,
}

#[async_trait]
impl Directory for Devices {
    fn name(&self) -> &str {
        "fortigate"
    }

    fn asks_outside(&self) -> bool {
        true
    }

    async fn find(&self, who: &Activation) -> Result<Answer, LookupError> {
        let Some(device) = self.fleet.device(&who.device) else {
            return Ok(Answer::Unknown(format!(
                "skipped, the device {} has no `api`, or its key can't be read here",
                who.device.name
            )));
        };
        // As the configuration of the device has it; some versions log every backslash twice.
        let user = who.user.replace("\\\\", "\\");
        let owners = device
            .owners(&who.device.vdom, &user)
            .await
            .map_err(|e| LookupError::Unavailable(e.to_string()))?;
        let owner = match &owners[..] {
            [] => {
                return Ok(Answer::Unknown(format!(
                    "{} knows no {} in VDOM {}",
                    device.host(),
                    shown(&user),
                    who.device.vdom
                )));
            }
            [owner] => owner,
            several => one_of(several, device, who, &user).await?,
        };
        Ok(answer(owner, device))
    }
}

/// A user and an administrator of one name: the token of the event tells whose it is; without it, equal addresses will do.
async fn one_of<'o>(
    owners: &'o [Owner],
    device: &FortiGate,
    who: &Activation,
    user: &str,
) -> Result<&'o Owner, LookupError> {
    let serial = match (&who.token, &who.code) {
        (Some(serial), _) => Some(serial.clone()),
        (None, Some(code)) => device
            .tokens_of(&who.device.vdom, user)
            .await
            .map_err(|e| LookupError::Unavailable(e.to_string()))?
            .into_iter()
            .find(|token| token.code.clear() == Some(code))
            .map(|token| token.serial),
        (None, None) => None,
    };
    let mut holders = owners
        .iter()
        .filter(|owner| serial.is_some() && owner.token == serial);
    if let (Some(owner), None) = (holders.next(), holders.next()) {
        return Ok(owner);
    }
    let lower = |owner: &Owner| owner.email.as_deref().map(str::to_lowercase);
    let first = &owners[0];
    if owners.iter().all(|other| lower(other) == lower(first)) {
        return Ok(first);
    }
    let described: Vec<String> = owners
        .iter()
        .map(|owner| {
            let email = owner.email.as_deref().map(mask_address);
            format!(
                "{} with {}",
                owner.kind.as_str(),
                email.as_deref().unwrap_or("no address")
            )
        })
        .collect();
    Err(LookupError::Ambiguous(format!(
        "{} stands for several on {}: {}",
        shown(user),
        device.host(),
        described.join(", ")
    )))
}

fn answer(owner: &Owner, device: &FortiGate) -> Answer {
    let who = format!(
        "the {} {} on {}",
        owner.kind.as_str(),
        shown(&owner.name),
        device.host()
    );
    let Some(email) = &owner.email else {
        return Answer::Unknown(format!("{who} has no email-to"));
    };
    if let Err(why) = address(email) {
        return Answer::Unknown(format!("the email-to of {who} {why}"));
    }
    Answer::Person(Recipient {
        email: email.clone(),
        name: None,
        phone: owner
            .phone
            .as_deref()
            .and_then(international)
            .filter(|phone| !phone.is_empty()),
        language: None,
        source: "fortigate".to_owned(),
    })
}
