//! Tokens that wait for their phone: what the page shows of them, who is reminded before a code expires (`[reminder]`), and
//! whose code is sent again (`resend`).
//!
//! All of it is the device's own word, so what goes out by it needs no confirmation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use toml::Spanned;
use tracing::info;
use tracing::warn;

use crate::activation;
use crate::activation::Activation;
use crate::activation::ActivationCode;
use crate::activation::Device;
use crate::activation::Origin;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::dispatch;
use crate::dispatch::inquiry;
use crate::fortios::Code;
use crate::fortios::FortiGate;
use crate::fortios::Token;
use crate::settings::Check;
use crate::settings::Period;

/// How often every device is asked.
const ROUND: Duration = Duration::from_secs(15 * 60);
/// So many devices are asked at the same time.
const DEVICES_AT_ONCE: usize = 8;
/// So many tokens of one device are kept for the page, those that expire first.
const MAX_KEPT: usize = 50;

/// `[reminder]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// So long before a code expires its person gets it once more, if the device still waits for the phone. Absent: never.
    pub before: Option<Spanned<Period>>,
}

impl Config {
    /// How long before, if at all. `has_api`: there is a device to ask.
    pub fn build(self, has_api: bool, check: &mut Check) -> Option<Duration> {
        let before = self.before?;
        let (span, before) = (before.span(), before.into_inner().0);
        if before.is_zero() {
            check.problem(
                span,
                "a code that has expired reminds nobody; write a longer `before`, such as \"24h\", or leave it out",
            );
            return None;
        }
        if !has_api {
            check.warning(
                span,
                "nobody will be reminded, for no [[device]] has `api`, and only the device knows whose token waits",
            );
        }
        Some(before)
    }
}

/// What the relay does for this module.
#[async_trait]
pub trait Relay: Send + Sync {
    /// Commits these activations, and counts those that are new.
    async fn take(&self, activations: Vec<Activation>) -> anyhow::Result<()>;

    /// A device by its id, as people know it.
    fn device(&self, id: &str, vdom: &str) -> Device;

    /// The VDOMs that may hold tokens.
    fn vdoms(&self, gate: &FortiGate) -> Vec<String>;
}

/// A token that was provisioned and that no phone has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where.
    pub device: Device,
    /// Its serial number.
    pub token: String,
    /// Who holds it.
    pub holder: Option<String>,
    /// Until when its code is good.
    pub expires_at: Option<Timestamp>,
}

/// What one device said last.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The tokens that wait, those that expire first, first.
    pub waiting: Vec<Waiting>,
    /// How many more there are.
    pub more: usize,
    /// How many hold a code that has expired.
    pub expired: usize,
    /// Why it said less than everything.
    pub problem: Option<String>,
}

/// What every device said last.
#[derive(Default)]
pub struct Pending(Mutex<BTreeMap<String, Answer>>);

impl Pending {
    /// What every device said last, by its id.
    pub fn all(&self) -> Vec<(String, Answer)> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .iter()
            .map(|(id, answer)| (id.clone(), answer.clone()))
            .collect()
    }

    /// Asks every device at start, after a reload and every quarter of an hour, until `stop`.
    pub async fn run(
        self: Arc<Self>,
        mut settings: watch::Receiver<Arc<dispatch::Settings>>,
        relay: Arc<dyn Relay>,
        stop: CancellationToken,
    ) {
        loop {
            let current = Arc::clone(&settings.borrow_and_update());
            let round = self.round(&current, &*relay);
            tokio::select! {
                () = stop.cancelled() => return,
                () = round => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = settings.changed() => if changed.is_err() { return },
                () = sleep(ROUND) => {}
            }
        }
    }

    async fn round(&self, settings: &dispatch::Settings, relay: &dyn Relay) {
        {
            let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            answers.retain(|id, _| settings.fleet.all().any(|gate| gate.id() == id));
        }
        let gates: Vec<Arc<FortiGate>> = settings.fleet.all().cloned().collect();
        stream::iter(&gates)
            .for_each_concurrent(DEVICES_AT_ONCE, |gate| self.ask(gate, settings, relay))
            .await;
    }

    async fn ask(&self, gate: &FortiGate, settings: &dispatch::Settings, relay: &dyn Relay) {
        let mut answer = Answer::default();
        let mut reminders = Vec::new();
        for vdom in relay.vdoms(gate) {
            let tokens = match gate.pending(&vdom).await {
                Ok(tokens) => tokens,
                Err(e) => {
                    answer.problem.get_or_insert(e.to_string());
                    continue;
                }
            };
            let (device, now) = (relay.device(gate.id(), &vdom), Timestamp::now());
            for token in &tokens {
                if token.expires_at.is_some_and(|at| at <= now) {
                    answer.expired += 1;
                    continue;
                }
                answer.waiting.push(Waiting {
                    device: device.clone(),
                    token: token.serial.clone(),
                    holder: token.owner.as_ref().map(|owner| owner.name.clone()),
                    expires_at: token.expires_at,
                });
                let before = settings.reminder;
                reminders.extend(before.and_then(|before| {
                    let person = |user: &str| settings.directories.person(user);
                    reminder(gate, &device, token, before, &person, now)
                }));
            }
        }
        answer
            .waiting
            .sort_by_key(|w| (w.expires_at.unwrap_or(Timestamp::MAX), w.token.clone()));
        // An administrator's token is seen from every VDOM.
        answer.waiting.dedup_by(|a, b| a.token == b.token);
        reminders.sort_by(|a: &Activation, b| a.token.cmp(&b.token));
        reminders.dedup_by(|a, b| a.token == b.token);
        answer.more = answer.waiting.len().saturating_sub(MAX_KEPT);
        answer.waiting.truncate(MAX_KEPT);
        let problem = answer.problem.clone();
        let before = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(gate.id().to_owned(), answer);
        if let Some(problem) = &problem
            && before.is_none_or(|before| before.problem.as_ref() != Some(problem))
        {
            info!(
                device = gate.id(),
                "Not every token of {} that waits for its phone is known: {problem}",
                gate.id()
            );
        }
        if !reminders.is_empty()
            && let Err(e) = relay.take(reminders).await
        {
            warn!("Reminders can't be kept: {e:#}");
        }
    }
}

/// The code once more, if its time has come: once for each provisioning of a token, for the event's id knows no more of it.
fn reminder(
    gate: &FortiGate,
    device: &Device,
    token: &Token,
    before: Duration,
    person: &dyn Fn(&str) -> String,
    now: Timestamp,
) -> Option<Activation> {
    let code = inquiry::waiting_code(token, now)?;
    let expires_at = token.expires_at?;
    // Where codes live shorter than that, half of their life must do: a reminder that follows the code at once is none.
    let before = before.min(gate.catch_up().validity / 2);
    let due = expires_at.checked_sub(before).ok()?;
    let holder = &token.owner.as_ref()?.name;
    (now >= due).then(|| {
        let key = format!("reminder {} {}", token.serial, expires_at.as_second());
        Again {
            device,
            token,
            code,
            holder,
            person: person(holder),
            rule: "reminder",
            description: "Reminder: the activation code expires soon",
            key,
        }
        .activation(gate, now)
    })
}

/// A code that goes out again on the device's word.
struct Again<'a> {
    device: &'a Device,
    token: &'a Token,
    code: &'a ActivationCode,
    holder: &'a str,
    person: String,
    rule: &'static str,
    description: &'static str,
    /// By which the event is known when it comes again.
    key: String,
}

impl Again<'_> {
    fn activation(self, gate: &FortiGate, now: Timestamp) -> Activation {
        let validity = gate.catch_up().validity;
        let life = SignedDuration::try_from(validity).unwrap_or(SignedDuration::MAX);
        let expires_at = inquiry::expiry(self.token, now)
            .unwrap_or_else(|| now.saturating_add(life).unwrap_or(Timestamp::MAX));
        let line = format!(
            "{}: asked by `{}`, token {} waits for its phone",
            gate.host(),
            self.rule,
            self.token.serial
        );
        Activation {
            event_id: activation::event_id(
                self.device,
                inquiry::ACTIVATION_CODE_SENT,
                &self.person,
                &self.key,
            ),
            device: self.device.clone(),
            user: self.holder.to_owned(),
            person: self.person,
            logid: inquiry::ACTIVATION_CODE_SENT,
            description: self.description.to_owned(),
            stage: Stage::CodeSent,
            rule: self.rule.to_owned(),
            event_time: now,
            received_at: now,
            expires_at,
            validity,
            skew: SignedDuration::ZERO,
            code: Some(self.code.clone()),
            token: Some(self.token.serial.clone()),
            addresses: Vec::new(),
            origin: Origin {
                line,
                standing: Standing::Confirmed,
                device_named_code: true,
            },
        }
    }
}

/// Whose code an operator wants to be sent again.
pub struct Wanted<'a> {
    /// The user, as the device or the organisation calls them.
    pub user: &'a str,
    /// Only on this device.
    pub device: Option<&'a str>,
    /// Only in this VDOM.
    pub vdom: Option<&'a str>,
}

/// The current code of a user, as an event to be kept; or one sentence that says why not and what to do.
pub async fn resend(
    wanted: &Wanted<'_>,
    settings: &dispatch::Settings,
    relay: &dyn Relay,
) -> Result<Activation, String> {
    let Wanted { user, device, vdom } = wanted;
    if settings.fleet.all().next().is_none() {
        return Err(
            "no [[device]] has `api`, so no FortiGate can be asked for a code; send it again from the FortiGate"
                .to_owned(),
        );
    }
    let is_wanted = |gate: &FortiGate| {
        device.is_none_or(|id| {
            gate.id().eq_ignore_ascii_case(id) || relay.device(gate.id(), "root").name == id
        })
    };
    let gates: Vec<Arc<FortiGate>> = settings
        .fleet
        .all()
        .filter(|gate| is_wanted(gate))
        .cloned()
        .collect();
    if gates.is_empty() {
        return Err(format!(
            "no [[device]] with `api` is called {}",
            device.unwrap_or_default()
        ));
    }
    let person = settings.directories.person(user);
    let mut questions = Vec::new();
    for gate in gates {
        let vdoms = vdom.map_or_else(|| relay.vdoms(&gate), |vdom| vec![vdom.to_owned()]);
        questions.push(held(gate, vdoms, user, &person));
    }
    let asked: Vec<_> = stream::iter(questions)
        .buffer_unordered(DEVICES_AT_ONCE)
        .collect()
        .await;
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for answer in asked {
        match answer {
            Ok(tokens) => found.extend(tokens),
            Err(e) => silent.push(e),
        }
    }
    if let Some(why) = silent.first() {
        // It might hold another code of the same user.
        return Err(match silent.len() {
            1 => format!("{why}; name another device with --device, or try again later"),
            n => format!(
                "{n} devices give no answer, the first of them: {why}; name a device with --device"
            ),
        });
    }
    // An administrator's token is seen from every VDOM.
    found.sort_by(|a, b| (a.0.id(), &a.2.serial).cmp(&(b.0.id(), &b.2.serial)));
    found.dedup_by(|a, b| a.0.id() == b.0.id() && a.2.serial == b.2.serial);
    let now = Timestamp::now();
    let good: Vec<_> = found
        .iter()
        .filter_map(|(gate, vdom, token)| {
            inquiry::waiting_code(token, now).map(|code| (gate, vdom, token, code))
        })
        .collect();
    match good[..] {
        [(gate, vdom, token, code)] => {
            let holder = token.owner.as_ref().map_or(*user, |owner| &owner.name);
            let again = Again {
                device: &relay.device(gate.id(), vdom),
                token,
                code,
                holder,
                person: settings.directories.person(holder),
                rule: "resend",
                description: "Activation code sent again by an operator",
                key: format!("resend {}", now.as_nanosecond()),
            };
            Ok(again.activation(gate, now))
        }
        [] => Err(none(user, found.iter().map(|(_, _, token)| token), now)),
        _ => {
            let names: Vec<String> = good
                .iter()
                .map(|(gate, vdom, token, _)| {
                    let name = relay.device(gate.id(), vdom).name;
                    format!("{name} (VDOM {vdom}, {})", token.serial)
                })
                .collect();
            Err(format!(
                "{user} has a code on {}; say which one with --device and --vdom",
                names.join(", ")
            ))
        }
    }
}

/// The tokens of a user on one device, each with its VDOM.
async fn held(
    gate: Arc<FortiGate>,
    vdoms: Vec<String>,
    user: &str,
    person: &str,
) -> Result<Vec<(Arc<FortiGate>, String, Token)>, String> {
    let mut found = Vec::new();
    for vdom in vdoms {
        let tokens = inquiry::held_by(&gate, &vdom, user, person)
            .await
            .map_err(|e| e.to_string())?;
        found.extend(
            tokens
                .into_iter()
                .map(|token| (Arc::clone(&gate), vdom.clone(), token)),
        );
    }
    Ok(found)
}

/// Why there is no code to send.
fn none<'t>(user: &str, tokens: impl Iterator<Item = &'t Token>, now: Timestamp) -> String {
    let mut said = Vec::new();
    for token in tokens {
        let serial = &token.serial;
        said.push(match &token.code {
            _ if token.is_activated => {
                format!("token {serial} of {user} was activated by a phone already, so there is nothing to send")
            }
            Code::Masked(_) => format!(
                "the device shows {} (token {serial} of {user}); read it on the FortiGate (config user fortitoken), or have the FortiGate mail it itself",
                token.code.shown()
            ),
            Code::Clear(_) if token.expires_at.is_some_and(|at| at <= now) => format!(
                "the code of token {serial} of {user} has expired; have the FortiGate make a new one"
            ),
            Code::Absent | Code::Clear(_) => format!(
                "token {serial} of {user} has no code; have the FortiGate provision it"
            ),
        });
    }
    match said.is_empty() {
        true => format!("no device that was asked knows a token of {user}"),
        false => said.join("; "),
    }
}
