//! What the FortiGate itself says about an event: which code it sent, whose it is, and whether the log told the truth.
//!
//! The device is asked about four things: the code that a log doesn't show, the code that a log shows but that counts for
//! nothing before it is confirmed (`confirm`), whose token a code belongs to, and whose token was activated. Where several
//! answers are possible nothing is sent: ambiguity always stops.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;

use crate::activation::Activation;
use crate::activation::ActivationCode;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::directory::shown;
use crate::fortios::ApiError;
use crate::fortios::FortiGate;
use crate::fortios::Token;
use crate::outbox::Evidence;

/// `two-factor-ftm-expiry` is 168 h at most, so a device that claims more is not believed.
const MAX_LIFE: SignedDuration = SignedDuration::from_hours(168);
/// Longer than a device may take for all that it is asked about one event.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A code that the log shows waits so long for the device to say whose it is, unless it must be confirmed.
const COURTESY: Duration = Duration::from_secs(5);

impl Inquiry {
    /// The sentence for the trace.
    pub fn said(&self) -> &str {
        match self {
            Self::Stands(said) | Self::Proven { said, .. } => said,
            Self::Waits { reason, .. } | Self::Stops { reason, .. } => reason,
        }
    }
}

/// The event by which FortiOS logs that it sent an activation code.
pub const ACTIVATION_CODE_SENT: u32 = 38412;

/// What the device's word means for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquiry {
    /// The log's word stands; what the device said to it, for the trace.
    Stands(String),
    /// The device has said enough.
    Proven {
        /// What is kept of it.
        evidence: Evidence,
        /// Who holds the token, as the device spells it.
        holder: String,
        /// How, for the trace.
        said: String,
    },
    /// The device may say more later.
    Waits {
        /// Why, and what an administrator can do.
        reason: String,
        /// Not before this.
        after: Option<Duration>,
        /// Somebody must act, so they are told at once.
        is_urgent: bool,
    },
    /// Nothing may be sent before a person has decided.
    Stops {
        /// What it is told under.
        key: &'static str,
        /// Why, and what an administrator can do.
        reason: String,
    },
}

/// The conditions under which a device is asked.
pub struct Terms<'a> {
    /// `confirm = true`, now or when the event came.
    pub confirm: bool,
    /// An operator released the event.
    pub released: bool,
    /// The name of a user as look-ups know it.
    pub person: &'a (dyn Fn(&str) -> String + Sync),
}

/// Asks a device about an event, if there is anything to ask.
pub async fn inquire(
    gate: Option<&FortiGate>,
    activation: &Activation,
    terms: &Terms<'_>,
) -> Option<Inquiry> {
    if activation.origin.standing == Standing::Confirmed {
        return None;
    }
    // Another event's code, which a rule of the operator's wants, is no activation code and stands on no token.
    if activation.stage == Stage::CodeSent
        && activation.code.is_none()
        && activation.logid != ACTIVATION_CODE_SENT
    {
        return None;
    }
    let Some(gate) = gate else {
        let orphaned = activation.origin.standing == Standing::Provisional && !terms.released;
        return orphaned.then(|| {
            stops("unconfirmed", "the device had `confirm = true` when it came, and there is no API to ask (`api` is gone, or its key can't be read here); `queue retry` sends it unconfirmed")
        });
    };
    // Where the log's word is enough, the device is only asked whether it knows better.
    let is_needed =
        activation.stage == Stage::Activated || terms.confirm || activation.code.is_none();
    let patience = if is_needed { PATIENCE } else { COURTESY };
    let asked = match activation.stage {
        Stage::Activated | Stage::CodeSent => {
            tokio::time::timeout(patience, held(gate, activation)).await
        }
        Stage::Requested | Stage::Failed => return None,
    };
    let tokens = asked.unwrap_or_else(|_| {
        Err(ApiError::Away {
            reason: format!(
                "{} gave no answer within {} s",
                gate.host(),
                patience.as_secs()
            ),
            after: None,
        })
    });
    Some(match tokens {
        Ok(tokens) if activation.stage == Stage::Activated => tie(&tokens, terms),
        Ok(tokens) => judge(activation, &tokens, terms),
        Err(e) if is_needed => away(e),
        Err(e) => Inquiry::Stands(format!("{e}; the log's word stands")),
    })
}

/// The tokens that an event can be about: the one whose serial number it names, else those of its user; and the one whose
/// code it shows, if that is none of these.
async fn held(gate: &FortiGate, activation: &Activation) -> Result<Vec<Token>, ApiError> {
    let vdom = &activation.device.vdom;
    let mut tokens = match &activation.token {
        Some(serial) => gate.token(vdom, serial).await?.into_iter().collect(),
        None => held_by(gate, vdom, &activation.user, &activation.person).await?,
    };
    if let Some(code) = &activation.code
        && !tokens
            .iter()
            .any(|t| t.code.clear() == Some(code) || is_hidden(t))
    {
        let elsewhere = gate.pending(vdom).await?.into_iter();
        tokens.extend(elsewhere.filter(|t| t.code.clear() == Some(code)));
    }
    Ok(tokens)
}

/// The tokens of a user, under the name as it was given, else as look-ups know it.
pub async fn held_by(
    gate: &FortiGate,
    vdom: &str,
    user: &str,
    person: &str,
) -> Result<Vec<Token>, ApiError> {
    if user.is_empty() {
        return Ok(Vec::new());
    }
    // As the configuration of the device has it; some versions log every backslash twice.
    let user = user.replace("\\\\", "\\");
    let tokens = gate.tokens_of(vdom, &user).await?;
    if tokens.is_empty() && person != user && !person.is_empty() {
        return gate.tokens_of(vdom, person).await;
    }
    Ok(tokens)
}

/// Until when a token's code is good, as far as that can be believed.
pub fn expiry(token: &Token, now: Timestamp) -> Option<Timestamp> {
    let latest = now.saturating_add(MAX_LIFE).unwrap_or(Timestamp::MAX);
    token.expires_at.map(|at| at.min(latest))
}

/// The code of a token that waits for its phone.
pub fn waiting_code(token: &Token, now: Timestamp) -> Option<&ActivationCode> {
    let is_good = !token.is_activated && token.expires_at.is_none_or(|at| at > now);
    token.code.clear().filter(|_| is_good)
}

fn judge(activation: &Activation, tokens: &[Token], terms: &Terms<'_>) -> Inquiry {
    match &activation.code {
        Some(code) => confirm(activation, code, tokens, terms),
        None => find(activation, tokens, terms),
    }
}

/// The log shows a code.
fn confirm(
    activation: &Activation,
    code: &ActivationCode,
    tokens: &[Token],
    terms: &Terms<'_>,
) -> Inquiry {
    let unconfirmed = |reason: String| match terms.confirm {
        true => stops("unconfirmed", reason),
        false => Inquiry::Stands(format!("{reason}; the log's word stands")),
    };
    let user = shown(&activation.user);
    let mut same = tokens.iter().filter(|t| t.code.clear() == Some(code));
    let token = match (same.next(), same.next()) {
        (Some(token), None) => token,
        (Some(_), Some(_)) => {
            return stops("ambiguous", "several tokens on the device have this code");
        }
        (None, _) => {
            let hidden = tokens.iter().find(|t| is_hidden(t));
            return match (hidden, &activation.token, tokens) {
                // The code can't be compared; whose token it is can.
                (Some(token), Some(serial), _) if !terms.confirm && token.serial == *serial => {
                    owned(activation, token, None, terms)
                }
                (Some(token), ..) => unconfirmed(format!(
                    "the device shows {}, so it can't confirm any",
                    token.code.shown()
                )),
                (None, _, []) => unconfirmed(format!(
                    "the device knows no token of {user}, and this code on no other token"
                )),
                (None, ..) => unconfirmed(format!(
                    "the device knows another code for the token of {user}, and this one on no token"
                )),
            };
        }
    };
    if activation
        .token
        .as_ref()
        .is_some_and(|serial| *serial != token.serial)
    {
        return stops(
            "ambiguous",
            format!(
                "the log names another token than {}, to which the device ties this code",
                token.serial
            ),
        );
    }
    if token.owner.is_none() {
        return unconfirmed(format!(
            "the device knows the code, on token {}, but not who holds it",
            token.serial
        ));
    }
    owned(activation, token, None, terms)
}

/// The log shows no code.
fn find(activation: &Activation, tokens: &[Token], terms: &Terms<'_>) -> Inquiry {
    let now = Timestamp::now();
    let user = shown(&activation.user);
    let mut waiting = tokens
        .iter()
        .filter_map(|t| waiting_code(t, now).map(|code| (t, code)));
    match (waiting.next(), waiting.next()) {
        (Some((token, code)), None) => {
            if token.owner.is_none() {
                let reason = format!(
                    "the device has a code on token {}, but doesn't say who holds it; assign the token, or let the API administrator read users and administrators",
                    token.serial
                );
                return stops("ambiguous", reason);
            }
            return owned(activation, token, Some(code.clone()), terms);
        }
        (Some((one, _)), Some((other, _))) => {
            return stops(
                "ambiguous",
                format!(
                    "{user} holds two tokens with a code on the device, {} and {}, and which one is meant can't be known",
                    one.serial, other.serial
                ),
            );
        }
        (None, _) => {}
    }
    if let Some(token) = tokens.iter().find(|t| is_hidden(t)) {
        return stops(
            "no-code",
            format!(
                "the log shows no code, and the device shows {} (token {}); read it on the FortiGate (config user fortitoken), or have the FortiGate mail it itself",
                token.code.shown(),
                token.serial
            ),
        );
    }
    let reason = match tokens {
        [] => format!("the log shows no code, and the device knows no token of {user}"),
        [token, ..] if token.is_activated => format!(
            "the log shows no code, and token {} of {user} was activated by a phone already",
            token.serial
        ),
        [token, ..] => format!(
            "the log shows no code, and the device has none that is good on token {} of {user} yet",
            token.serial
        ),
    };
    Inquiry::Waits {
        reason: format!("{reason}; it is asked again"),
        after: None,
        is_urgent: false,
    }
}

/// The token of the code is known, and who holds it. Where the log names somebody else the device's word stands: `user` may
/// be the administrator at work. Under `confirm` that is a disagreement, and a person decides.
fn owned(
    activation: &Activation,
    token: &Token,
    code: Option<ActivationCode>,
    terms: &Terms<'_>,
) -> Inquiry {
    let Some(owner) = &token.owner else {
        return Inquiry::Stands("the device doesn't say who holds the token".to_owned());
    };
    let person = (terms.person)(&owner.name);
    let (name, serial) = (shown(&owner.name), &token.serial);
    let is_same = person == activation.person;
    if !is_same && terms.confirm && !terms.released {
        return stops(
            "unconfirmed",
            format!(
                "the log names {}, and the device ties the code (token {serial}) to {name}; `queue retry` sends it to {name}",
                shown(&activation.user)
            ),
        );
    }
    let what = match (&code, is_hidden(token)) {
        (Some(_), _) => "named the code".to_owned(),
        (None, false) => "knows the code".to_owned(),
        (None, true) => format!("shows {} and says whose it is", token.code.shown()),
    };
    let whose = match is_same {
        true => format!("{what}: token {serial} of {name}"),
        false => format!(
            "{what}: token {serial} of {name}, and not of {}, whom the log names; the device's word stands",
            shown(&activation.user)
        ),
    };
    let evidence = Evidence {
        code,
        expires_at: expiry(token, activation.received_at),
        token: serial.clone(),
        person,
        is_activated: token.is_activated,
    };
    Inquiry::Proven {
        evidence,
        holder: owner.name.clone(),
        said: whose,
    }
}

/// Whose token was activated. Only the device can say that it was: a forged line would call off codes that are needed.
fn tie(tokens: &[Token], terms: &Terms<'_>) -> Inquiry {
    match tokens {
        [token] if !token.is_activated => Inquiry::Waits {
            reason: format!(
                "the log says that token {} was activated, but the device shows no phone on it; it is asked again",
                token.serial
            ),
            after: None,
            is_urgent: false,
        },
        [token] => match &token.owner {
            Some(owner) => Inquiry::Proven {
                evidence: Evidence {
                    code: None,
                    expires_at: None,
                    token: token.serial.clone(),
                    person: (terms.person)(&owner.name),
                    is_activated: true,
                },
                holder: owner.name.clone(),
                said: format!("token {} is held by {}", token.serial, shown(&owner.name)),
            },
            None => Inquiry::Stands(format!("nobody is known to hold token {}", token.serial)),
        },
        _ => Inquiry::Stands("the device doesn't know the token".to_owned()),
    }
}

fn is_hidden(token: &Token) -> bool {
    matches!(token.code, crate::fortios::Code::Masked(_))
}

fn away(e: ApiError) -> Inquiry {
    Inquiry::Waits {
        after: match &e {
            ApiError::Away { after, .. } => *after,
            _ => None,
        },
        is_urgent: !matches!(e, ApiError::Away { .. }),
        reason: e.to_string(),
    }
}

fn stops(key: &'static str, reason: impl Into<String>) -> Inquiry {
    Inquiry::Stops {
        key,
        reason: reason.into(),
    }
}
