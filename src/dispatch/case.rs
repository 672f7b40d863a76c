//! What to do about an activation: one pure function from what is known to the next step.
//!
//! Every rule of fallback, escalation and expiry is here. A case is looked at whenever something happened to it or a
//! time of it has come; looking twice changes nothing.

use std::time::Duration;

use jiff::Timestamp;

use crate::activation::Stage;
use crate::channel::OnUncertain;
use crate::directory::Lookup;
use crate::directory::LookupError;
use crate::dispatch::inquiry::Inquiry;
use crate::outbox::Case;
use crate::outbox::CaseDelivery;
use crate::outbox::CaseState;
use crate::outbox::Escalate;
use crate::outbox::Limit;
use crate::outbox::NewDelivery;
use crate::outbox::Role;
use crate::outbox::State;
use crate::outbox::Step;
use crate::recipients::normal_address;
use crate::routing::Route;

/// What a case needs to know of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// It carries the code.
    pub reveals: bool,
    /// It reaches a person, so that one must be found.
    pub needs_person: bool,
    /// An operator must act before it works again.
    pub suspended: bool,
    /// What to do when an outcome is unknown.
    pub on_uncertain: OnUncertain,
}

/// Everything that is known when a case is looked at.
pub struct Situation<'a> {
    /// The case, with what the device has said about it now.
    pub case: &'a Case,
    /// What the device said; `None`: it was not asked, or the log's word stands.
    pub inquiry: Option<&'a Inquiry>,
    /// The route that matches it.
    pub route: Option<&'a Route>,
    /// Every configured channel.
    pub channels: &'a [Facts],
    /// What the directories said; `None` unless the case is [`CaseState::Received`] and holds a code.
    pub lookup: Option<Result<Lookup, LookupError>>,
    /// `mismatch = "hold"`.
    pub hold_mismatch: bool,
    /// `[limits] per_person`: so many activations in such a time.
    pub limit: (u32, Duration),
    /// Who hears of an activation that matches no route.
    pub escalate_unrouted: &'a [String],
    /// The wait before the next look-up, should the directories or the device be away.
    pub lookup_wait: Duration,
    /// The time.
    pub now: Timestamp,
}

/// The next step, and how the case ended if it has just ended.
#[derive(Debug, Default)]
pub struct Decision {
    /// What the outbox carries out.
    pub step: Step,
    /// `activations_ended_total`.
    pub ended: Option<&'static str>,
    /// Another address stands in the message than the one found (masked).
    pub mismatch: Option<String>,
}

/// How long before expiry somebody is told that a code has not been accepted: a quarter of its life, at most 12 h.
fn warning_time(case: &Case) -> Timestamp {
    let early = (case.activation.validity / 4).min(Duration::from_secs(12 * 3600));
    case.activation
        .expires_at
        .saturating_sub(early)
        .unwrap_or(case.activation.expires_at)
}

const NO_CODE: &str = "A FortiGate sent an activation code, but its log shows none";
const UNCONFIRMED: &str = "The FortiGate doesn't confirm an activation code, so it is not sent";
const AMBIGUOUS: &str = "Whose activation code this is can't be known, so it is not sent";
const LATE: &str = "An activation code has not been accepted in time";
/// `fallback_after` of what matches no route.
const UNROUTED_PATIENCE: Duration = Duration::from_secs(600);
/// The bounds of a device's wish about the next question.
const SHORTEST_WISH: Duration = Duration::from_secs(1);
const LONGEST_WISH: Duration = Duration::from_secs(900);

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Decides. The step is right for the case as it was leased; the outbox refuses it if the case has changed since.
pub fn decide(situation: Situation<'_>) -> Decision {
    let mut decision = Deciding {
        on: situation,
        decision: Decision::default(),
        awaited: None,
    };
    decision.decide();
    decision.decision
}

struct Deciding<'a> {
    on: Situation<'a>,
    decision: Decision,
    /// Nothing can be sent before the device has answered; why it has not.
    awaited: Option<String>,
}

impl Deciding<'_> {
    fn decide(&mut self) {
        let case = self.on.case;
        match case.state {
            CaseState::Recorded => return self.record(),
            CaseState::Superseded | CaseState::Cancelled => return,
            CaseState::Expired => return self.expire(),
            _ if self.on.now >= case.activation.expires_at => return self.expire(),
            CaseState::Received => self.receive(),
            CaseState::Routed | CaseState::NeedsAttention => {}
        }
        if self.stopped_by_an_operator() {
            return;
        }
        if let Some(reason) = self.awaited.clone() {
            self.tell_what_is_awaited(&reason);
        } else if self.decision.step.state != Some(CaseState::NeedsAttention)
            || !self.decision.step.deliver.is_empty()
        {
            self.follow_up();
        }
        self.tell_of_deliveries();
        self.warn_before_expiry();
        self.next_look();
    }

    // === The first look: is there a code, a route, a person? ===

    fn receive(&mut self) {
        let case = self.on.case;
        if !case.released && self.arrived_by_fallback() {
            // The directories were away for so long that a fallback which needs nobody brought it.
            self.decision.step.state = Some(CaseState::Routed);
            return;
        }
        match self.on.inquiry {
            Some(Inquiry::Stops { key, reason }) => {
                let (text, ended) = match *key {
                    "no-code" => (NO_CODE, None),
                    "unconfirmed" => (UNCONFIRMED, Some("held")),
                    _ => (AMBIGUOUS, Some("held")),
                };
                return self.need_attention(key, text, reason, ended);
            }
            Some(Inquiry::Waits {
                reason,
                after: wish,
                is_urgent,
            }) => {
                let wait = wish.map_or(self.on.lookup_wait, |wish| {
                    wish.clamp(SHORTEST_WISH, LONGEST_WISH)
                });
                self.decision.step.reason = Some(reason.clone());
                self.decision.step.count_attempt = true;
                self.decision.step.due_at = Some(after(self.on.now, wait));
                self.awaited = Some(reason.clone());
                if *is_urgent {
                    let (key, text) = match case.activation.code {
                        None => ("no-code", NO_CODE),
                        Some(_) => ("unconfirmed", UNCONFIRMED),
                    };
                    self.tell(key, text, reason);
                }
                return;
            }
            Some(Inquiry::Proven { .. } | Inquiry::Stands(_)) | None => {}
        }
        if case.activation.code.is_none() {
            return self.need_attention(
                "no-code",
                NO_CODE,
                "the log shows no code; read it on the FortiGate (config user fortitoken) or send it again from there",
                None,
            );
        }
        let Some(route) = self.on.route else {
            return self.need_attention(
                "no-route",
                "An activation code matches no [[route]]",
                "no [[route]] matches",
                Some("failed"),
            );
        };
        let (recipient, missing) = match self.on.lookup.take() {
            Some(Ok(Lookup::Found {
                recipient,
                mismatch,
                ..
            })) => {
                if let Some(other) = mismatch {
                    if self.on.hold_mismatch && !case.released {
                        let reason = format!(
                            "another address than the one found stands in the message: {other}"
                        );
                        return self.need_attention(
                            "held",
                            "An activation is held",
                            &reason,
                            Some("held"),
                        );
                    }
                    self.decision.mismatch = Some(other);
                }
                (Some(recipient), None)
            }
            Some(Ok(Lookup::Unknown { reason, .. } | Lookup::Outside { reason, .. })) => {
                (None, Some(reason))
            }
            Some(Err(LookupError::Ambiguous(reason))) => (None, Some(reason)),
            Some(Err(LookupError::Unavailable(reason))) => {
                // What needs no person goes out at once; the rest waits for the directory.
                self.deliver(&route.to, Role::To, false);
                self.decision.step.reason = Some(reason);
                self.decision.step.count_attempt = true;
                self.decision.step.due_at = Some(after(self.on.now, self.on.lookup_wait));
                return;
            }
            None => (None, Some("nobody was looked up".to_owned())),
        };
        let needs_person = |names: &[String]| {
            names
                .iter()
                .filter_map(|n| self.facts(n))
                .any(|c| c.needs_person)
        };
        match missing {
            Some(reason) if needs_person(&route.to) => {
                self.need_attention(
                    "no-recipient",
                    "No recipient is found for an activation code",
                    &reason,
                    Some("no_recipient"),
                );
                self.deliver(&route.to, Role::To, false);
                self.deliver(&route.fallback, Role::Fallback, false);
            }
            _ => {
                self.deliver(&route.to, Role::To, recipient.is_some());
                self.decision.step.state = Some(CaseState::Routed);
                let key = recipient.as_ref().map_or_else(
                    || {
                        format!(
                            "{}\u{0}{}\u{0}{}",
                            case.activation.device.id,
                            case.activation.device.vdom,
                            case.activation.person
                        )
                    },
                    |r| normal_address(&r.email),
                );
                let (count, window) = self.on.limit;
                let held = self.escalations(
                    "held",
                    "An activation is held: more than the limit for one person",
                    "over [limits] per_person",
                );
                self.decision.step.limit = Some(Limit {
                    key,
                    count,
                    window,
                    held,
                });
                self.decision.step.recipient = recipient;
            }
        }
    }

    /// The device was asked for long enough that somebody should know.
    fn tell_what_is_awaited(&mut self, reason: &str) {
        let patience = self
            .on
            .route
            .map_or(UNROUTED_PATIENCE, |r| r.fallback_after);
        let late = after(self.on.case.activation.received_at, patience);
        if self.on.now < late {
            let due = self.decision.step.due_at.map_or(late, |due| due.min(late));
            self.decision.step.due_at = Some(due);
            return;
        }
        match self.on.case.activation.code {
            None => self.tell("no-code", NO_CODE, reason),
            Some(_) => self.tell("late", LATE, reason),
        }
    }

    /// A life-cycle event: nothing of it is sent, but somebody may have to hear of it, and the device may be asked whose it is.
    fn record(&mut self) {
        let activation = &self.on.case.activation;
        if activation.stage == Stage::Failed {
            let token = activation.token.as_deref().unwrap_or("an unknown token");
            self.tell(
                "activation-failed",
                "The activation of a FortiToken failed",
                &format!("{}, {token}", activation.description),
            );
        }
        if let Some(Inquiry::Waits { after: wish, .. }) = self.on.inquiry
            && self.on.now < activation.expires_at
        {
            let wait = wish.map_or(self.on.lookup_wait, |wish| {
                wish.clamp(SHORTEST_WISH, LONGEST_WISH)
            });
            self.decision.step.count_attempt = true;
            self.decision.step.due_at = Some(after(self.on.now, wait));
        }
    }

    /// Everything was called off while it was being sent, and nothing arrived: no fallback may send it after all.
    fn stopped_by_an_operator(&mut self) -> bool {
        let case = self.on.case;
        let stopped = case.state == CaseState::Routed
            && !case.reached
            && case.deliveries.iter().all(|d| d.state.is_final())
            && case.deliveries.iter().any(|d| d.state == State::Cancelled);
        if stopped {
            self.decision.step.state = Some(CaseState::Cancelled);
            self.decision.step.reason = Some("by an operator".to_owned());
            self.decision.step.wipe = true;
            self.end("cancelled");
        }
        stopped
    }

    fn deliver(&mut self, names: &[String], role: Role, with_person: bool) {
        for name in names {
            let exists = self.on.case.deliveries.iter().any(|d| d.channel == *name)
                || self
                    .decision
                    .step
                    .deliver
                    .iter()
                    .any(|d| d.channel == *name);
            let Some(channel) = self.facts(name) else {
                continue;
            };
            if !exists && (with_person || !channel.needs_person) {
                let new = NewDelivery {
                    channel: name.clone(),
                    role,
                    on_uncertain: channel.on_uncertain,
                };
                self.decision.step.deliver.push(new);
            }
        }
    }

    // === Later looks: has it arrived, does the fallback start? ===

    fn follow_up(&mut self) {
        let case = self.on.case;
        let Some(route) = self.on.route else { return };
        if case.reached {
            return self.arrived();
        }
        let carriers = |names: &[String]| -> Vec<String> {
            names
                .iter()
                .filter(|n| self.facts(n).is_some_and(|c| c.reveals))
                .cloned()
                .collect()
        };
        let (to, fallback) = (carriers(&route.to), carriers(&route.fallback));
        if to.is_empty() && fallback.is_empty() {
            return self.nothing_to_reach();
        }
        if self.decision.step.state.unwrap_or(case.state) == CaseState::NeedsAttention {
            return;
        }
        if case.state == CaseState::Routed {
            // A reload may have put another channel in the place of one that is gone.
            self.deliver(&route.to, Role::To, case.recipient.is_some());
        }
        let late = self.on.now >= after(case.activation.received_at, route.fallback_after);
        let started = !case.deliveries.is_empty() || !self.decision.step.deliver.is_empty();
        if late || (started && to.iter().all(|n| self.is_out(n))) {
            let found = case.recipient.is_some() || self.decision.step.recipient.is_some();
            self.deliver(&route.fallback, Role::Fallback, found);
        }
        let fallback_is_out = fallback.iter().all(|n| self.is_out(n));
        let very_late = self.on.now >= after(case.activation.received_at, route.fallback_after * 2);
        if (late && fallback_is_out) || very_late {
            self.tell("late", LATE, "not accepted yet");
        }
        let all_failed = self.decision.step.deliver.is_empty()
            && case.deliveries.iter().any(|d| d.state == State::Failed)
            && case.deliveries.iter().all(|d| d.state.is_final());
        if all_failed {
            self.end("failed");
        }
    }

    /// Only notices go out, so acceptance of all of them is the end.
    fn nothing_to_reach(&mut self) {
        let deliveries = &self.on.case.deliveries;
        if !deliveries.is_empty()
            && self.decision.step.deliver.is_empty()
            && deliveries.iter().all(|d| d.state.is_final())
        {
            let any = deliveries.iter().any(|d| d.state == State::Accepted);
            self.end(if any { "accepted" } else { "failed" });
        }
    }

    fn arrived(&mut self) {
        let ends = if self.arrived_by_fallback() {
            Role::To
        } else {
            Role::Fallback
        };
        let end = self
            .on
            .case
            .deliveries
            .iter()
            .filter(|d| d.role == ends && !d.state.is_final() && self.reveals(&d.channel))
            .map(|d| {
                (
                    d.id.clone(),
                    State::Cancelled,
                    "another channel reached the person".to_owned(),
                )
            });
        let end: Vec<_> = end.collect();
        self.decision.step.end.extend(end);
        self.end("accepted");
    }

    fn arrived_by_fallback(&self) -> bool {
        self.on.case.deliveries.iter().any(|d| {
            d.state == State::Accepted && d.role == Role::Fallback && self.reveals(&d.channel)
        })
    }

    /// This channel will not bring the code unless somebody acts.
    fn is_out(&self, name: &str) -> bool {
        let suspended = self.facts(name).is_none_or(|c| c.suspended);
        match self.on.case.deliveries.iter().find(|d| d.channel == name) {
            Some(d) => {
                (d.state.is_final() && d.state != State::Accepted)
                    || d.state == State::NeedsAttention
                    || suspended
            }
            None => {
                let starting = self.decision.step.deliver.iter().any(|d| d.channel == name);
                !starting || suspended
            }
        }
    }

    // === Expiry ===

    fn expire(&mut self) {
        let case = self.on.case;
        self.decision.step.wipe = true;
        let open: Vec<_> = case
            .deliveries
            .iter()
            .filter(|d| !d.state.is_final() && d.state != State::Sending)
            .collect();
        let was = "the code's life ended";
        self.decision.step.end = open
            .iter()
            .map(|d| (d.id.clone(), State::Expired, was.to_owned()))
            .collect();
        let expired = !open.is_empty() || case.deliveries.iter().any(|d| d.state == State::Expired);
        if !case.reached && case.deliveries.iter().all(|d| d.state != State::Accepted) {
            if case.state != CaseState::Expired {
                self.decision.step.state = Some(CaseState::Expired);
                self.decision.step.reason = Some(was.to_owned());
            }
            self.end("expired");
        }
        if !case.reached || expired {
            let detail = if case.activation.expires_at <= case.activation.received_at {
                "expired on arrival: device clock or old log"
            } else {
                "expired before it was accepted; send a new one from the FortiGate"
            };
            self.tell("expired", "An activation code has expired", detail);
        }
        self.tell_of_deliveries();
    }

    fn warn_before_expiry(&mut self) {
        let case = self.on.case;
        let at = warning_time(case);
        if !case.reached && self.on.now >= at && case.activation.received_at < at {
            self.tell(
                "expiring",
                "An activation code will expire soon and has not been accepted",
                "not accepted yet",
            );
        }
    }

    // === What is said, and when to look again ===

    fn tell_of_deliveries(&mut self) {
        for CaseDelivery {
            id,
            channel,
            state,
            last_error,
            ..
        } in &self.on.case.deliveries
        {
            let why = last_error.as_deref().unwrap_or("no reason given");
            match state {
                State::Failed => {
                    self.tell_once(
                        &format!("failed:{id}"),
                        "failed",
                        "A delivery failed",
                        &format!("{channel}: {why}"),
                    );
                }
                State::NeedsAttention => {
                    self.tell_once(
                        &format!("held:{id}"),
                        "held",
                        "A delivery waits for a decision",
                        &format!("{channel}: {why}"),
                    );
                }
                _ => {}
            }
        }
    }

    fn need_attention(
        &mut self,
        reason: &str,
        text: &str,
        detail: &str,
        ended: Option<&'static str>,
    ) {
        self.decision.step.state = Some(CaseState::NeedsAttention);
        self.decision.step.reason = Some(detail.to_owned());
        self.tell(reason, text, detail);
        if let Some(outcome) = ended {
            self.end(outcome);
        }
    }

    fn tell(&mut self, reason: &str, text: &str, detail: &str) {
        self.tell_once(reason, reason, text, detail);
    }

    fn tell_once(&mut self, key: &str, reason: &str, text: &str, detail: &str) {
        if self.on.case.told.iter().any(|t| t == key) {
            return;
        }
        let escalations = self.escalations(reason, text, detail);
        self.decision.step.escalate.extend(escalations);
        self.decision.step.told.push(key.to_owned());
    }

    fn escalations(&self, reason: &str, text: &str, detail: &str) -> Vec<Escalate> {
        let names = self
            .on
            .route
            .map_or(self.on.escalate_unrouted, |r| &r.escalate);
        let activation = &self.on.case.activation;
        let (device, user) = (&activation.device, &activation.user);
        let user = if user.is_empty() { "(no user)" } else { user };
        let subject = format!("{user} on {} ({}): {detail}", device.name, device.vdom);
        names
            .iter()
            .filter(|n| self.facts(n).is_some())
            .map(|n| Escalate {
                channel: n.clone(),
                reason: reason.to_owned(),
                text: text.to_owned(),
                subject: subject.clone(),
            })
            .collect()
    }

    /// Counts the end once. What waited for a person in vain, or failed, doesn't end a second time; it may only be accepted after all.
    fn end(&mut self, outcome: &'static str) {
        let key = format!("ended:{outcome}");
        let counted = self.on.case.told.iter().any(|t| match outcome {
            "accepted" => *t == key,
            _ => t.starts_with("ended:"),
        });
        if !counted {
            self.decision.step.told.push(key);
            self.decision.ended = Some(outcome);
        }
    }

    fn next_look(&mut self) {
        let case = self.on.case;
        // A code that has not arrived is not forgotten, even if nothing of it is under way any more.
        let awaited = !case.reached
            && self
                .on
                .route
                .is_some_and(|r| r.to.iter().chain(&r.fallback).any(|n| self.reveals(n)));
        let open = awaited
            || case.deliveries.iter().any(|d| !d.state.is_final())
            || !self.decision.step.deliver.is_empty()
            || self.decision.step.state.unwrap_or(case.state) != CaseState::Routed;
        if !open {
            return;
        }
        let mut times = vec![case.activation.expires_at];
        if !case.reached {
            times.push(warning_time(case));
            if let Some(route) = self.on.route {
                times.push(after(case.activation.received_at, route.fallback_after));
                times.push(after(case.activation.received_at, route.fallback_after * 2));
            }
        }
        times.extend(self.decision.step.due_at);
        self.decision.step.due_at = times.into_iter().filter(|t| *t > self.on.now).min();
    }

    fn facts(&self, name: &str) -> Option<&Facts> {
        self.on.channels.iter().find(|c| c.name == name)
    }

    fn reveals(&self, name: &str) -> bool {
        self.facts(name).is_some_and(|c| c.reveals)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::activation::Activation;
    use crate::activation::ActivationCode;
    use crate::activation::Device;
    use crate::activation::Stage;
    use crate::message::Recipient;

    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn case() -> Case {
        let activation = Activation {
            event_id: "e".to_owned(),
            device: Device {
                id: "FGT".to_owned(),
                name: "TEST-FGT".to_owned(),
                vdom: "root".to_owned(),
            },
            user: "alice".to_owned(),
            person: "alice".to_owned(),
            logid: 38412,
            description: String::new(),
            stage: Stage::CodeSent,
            rule: "built-in".to_owned(),
            event_time: at(0),
            received_at: at(0),
            expires_at: at(72 * HOUR),
            validity: Duration::from_secs(72 * 3600),
            skew: SignedDuration::ZERO,
            code: ActivationCode::parse("EEIOTCU3LENEDJMR"),
            token: None,
            addresses: Vec::new(),
            origin: Default::default(),
        };
        assert!(activation.code.is_some());
        Case {
            id: "A1".to_owned(),
            fence: 1,
            attempt: 0,
            activation,
            state: CaseState::Received,
            released: false,
            recipient: None,
            reached: false,
            told: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    fn recipient() -> Recipient {
        Recipient {
            email: "alice@example.com".to_owned(),
            name: None,
            phone: None,
            language: None,
            source: "table".to_owned(),
        }
    }

    fn found() -> Option<Result<Lookup, LookupError>> {
        Some(Ok(Lookup::Found {
            recipient: recipient(),
            trace: Vec::new(),
            mismatch: None,
        }))
    }

    fn unknown() -> Option<Result<Lookup, LookupError>> {
        Some(Ok(Lookup::Unknown {
            reason: "no directory knows alice".to_owned(),
            trace: Vec::new(),
        }))
    }

    fn delivery(id: &str, channel: &str, role: Role, state: State) -> CaseDelivery {
        CaseDelivery {
            id: id.to_owned(),
            channel: channel.to_owned(),
            role,
            state,
            last_error: None,
        }
    }

    fn routed(deliveries: Vec<CaseDelivery>) -> Case {
        Case {
            state: CaseState::Routed,
            recipient: Some(recipient()),
            deliveries,
            ..case()
        }
    }

    /// Channels: mail and dm write to persons, hook carries the code anywhere, desk gets notices.
    fn look(
        case: &Case,
        second: i64,
        lookup: Option<Result<Lookup, LookupError>>,
        suspended: &[&str],
    ) -> Decision {
        look_by(
            case,
            second,
            lookup,
            suspended,
            &route(&["mail"], &["hook"]),
        )
    }

    fn route(to: &[&str], fallback: &[&str]) -> Route {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Route::to(owned(to), owned(fallback), owned(&["desk"]))
    }

    fn look_by(
        case: &Case,
        second: i64,
        lookup: Option<Result<Lookup, LookupError>>,
        suspended: &[&str],
        route: &Route,
    ) -> Decision {
        let channels: Vec<_> = [
            ("mail", true, true),
            ("dm", true, true),
            ("hook", true, false),
            ("desk", false, false),
        ]
        .map(|(name, reveals, needs_person)| Facts {
            name: name.to_owned(),
            reveals,
            needs_person,
            suspended: suspended.contains(&name),
            on_uncertain: OnUncertain::Resend,
        })
        .into();
        decide(Situation {
            case,
            inquiry: None,
            route: Some(route),
            channels: &channels,
            lookup,
            hold_mismatch: false,
            limit: (10, Duration::from_secs(3600)),
            escalate_unrouted: &[],
            lookup_wait: Duration::from_secs(15),
            now: at(second),
        })
    }

    fn started(decision: &Decision) -> Vec<&str> {
        decision
            .step
            .deliver
            .iter()
            .map(|d| d.channel.as_str())
            .collect()
    }

    fn reasons(decision: &Decision) -> Vec<&str> {
        decision
            .step
            .escalate
            .iter()
            .map(|e| e.reason.as_str())
            .collect()
    }

    #[test]
    fn an_address_in_another_spelling_has_no_limit_of_its_own() {
        let mut lookup = found();
        if let Some(Ok(Lookup::Found { recipient, .. })) = &mut lookup {
            recipient.email = "Alice@BÜCHER.example".to_owned();
        }
        let decision = look(&case(), 0, lookup, &[]);
        assert_eq!(
            decision.step.limit.unwrap().key,
            "alice@xn--bcher-kva.example"
        );
    }

    #[test]
    fn a_person_who_is_found_gets_every_channel_of_to() {
        let decision = look(&case(), 0, found(), &[]);
        assert_eq!(started(&decision), ["mail"]);
        assert_eq!(decision.step.state, Some(CaseState::Routed));
        assert_eq!(
            decision.step.limit.as_ref().unwrap().key,
            "alice@example.com"
        );
        assert_eq!(reasons(&decision), [""; 0]);
        assert_eq!(
            decision.step.due_at,
            Some(at(600)),
            "looked at again when the fallback is due"
        );
    }

    #[test]
    fn an_event_without_a_code_is_told_once_and_waits() {
        let mut case = case();
        case.activation.code = None;
        let decision = look(&case, 0, None, &[]);
        assert_eq!(decision.step.state, Some(CaseState::NeedsAttention));
        assert_eq!(reasons(&decision), ["no-code"]);
        case.told = decision.step.told;
        assert_eq!(reasons(&look(&case, 1, None, &[])), [""; 0]);
    }

    fn look_informed(case: &Case, second: i64, inquiry: &Inquiry) -> Decision {
        decide(Situation {
            case,
            inquiry: Some(inquiry),
            route: Some(&route(&["mail"], &["hook"])),
            channels: &["mail", "hook", "desk"].map(|name| Facts {
                name: name.to_owned(),
                reveals: name != "desk",
                needs_person: name == "mail",
                suspended: false,
                on_uncertain: OnUncertain::Resend,
            }),
            lookup: None,
            hold_mismatch: false,
            limit: (10, Duration::from_secs(3600)),
            escalate_unrouted: &[],
            lookup_wait: Duration::from_secs(15),
            now: at(second),
        })
    }

    #[test]
    fn a_device_that_is_away_is_asked_again_and_starts_no_fallback() {
        let mut waiting = case();
        let away = Inquiry::Waits {
            reason: "the device is away".to_owned(),
            after: None,
            is_urgent: false,
        };
        let decision = look_informed(&waiting, 0, &away);
        assert_eq!(decision.step.state, None);
        assert_eq!(decision.step.due_at, Some(at(15)));
        assert_eq!(reasons(&decision), [""; 0]);
        let late = look_informed(&waiting, 600, &away);
        assert_eq!(
            started(&late),
            [""; 0],
            "a fallback would carry what is unconfirmed"
        );
        assert_eq!(reasons(&late), ["late"]);
        waiting.activation.code = None;
        let late = look_informed(&waiting, 600, &away);
        assert_eq!(reasons(&late), ["no-code"]);
        assert_eq!(
            late.step.due_at,
            Some(at(615)),
            "it is asked until the code expires"
        );
        let over = look_informed(&waiting, 72 * HOUR, &away);
        assert_eq!(over.step.state, Some(CaseState::Expired));
    }

    #[test]
    fn what_the_device_does_not_confirm_waits_for_a_person() {
        let stops = Inquiry::Stops {
            key: "unconfirmed",
            reason: "the device knows another code".to_owned(),
        };
        let decision = look_informed(&case(), 0, &stops);
        assert_eq!(decision.step.state, Some(CaseState::NeedsAttention));
        assert_eq!(reasons(&decision), ["unconfirmed"]);
        assert_eq!(started(&decision), [""; 0]);
        assert_eq!(decision.ended, Some("held"));
    }

    #[test]
    fn a_life_cycle_event_sends_nothing_and_a_failed_one_is_told_once() {
        let mut failed = case();
        failed.state = CaseState::Recorded;
        failed.activation.stage = Stage::Failed;
        failed.activation.code = None;
        let decision = look(&failed, 0, None, &[]);
        assert_eq!(reasons(&decision), ["activation-failed"]);
        assert_eq!((decision.step.state, decision.step.due_at), (None, None));
        failed.told = decision.step.told;
        assert_eq!(reasons(&look(&failed, 1, None, &[])), [""; 0]);
    }

    #[test]
    fn nobody_found_starts_what_needs_nobody_and_tells() {
        let decision = look(&case(), 0, unknown(), &[]);
        assert_eq!(decision.step.state, Some(CaseState::NeedsAttention));
        assert_eq!(started(&decision), ["hook"]);
        assert_eq!(reasons(&decision), ["no-recipient"]);
        assert_eq!(decision.ended, Some("no_recipient"));
    }

    #[test]
    fn a_directory_that_is_away_is_asked_again() {
        let away = Some(Err(LookupError::Unavailable("ldap is away".to_owned())));
        let decision = look(&case(), 0, away, &[]);
        assert_eq!(decision.step.state, None);
        assert!(decision.step.count_attempt);
        assert_eq!(decision.step.due_at, Some(at(15)));
        assert_eq!(started(&decision), [""; 0], "the fallback is not due yet");
    }

    #[test]
    fn the_fallback_starts_at_once_when_every_channel_of_to_is_out() {
        let failed = routed(vec![delivery("D1", "mail", Role::To, State::Failed)]);
        let decision = look(&failed, 5, None, &[]);
        assert_eq!(started(&decision), ["hook"]);
        assert_eq!(
            reasons(&decision),
            ["failed"],
            "a failed delivery is told even if another may work"
        );

        let pending = routed(vec![delivery("D1", "mail", Role::To, State::Pending)]);
        assert_eq!(started(&look(&pending, 5, None, &[])), [""; 0]);
        assert_eq!(
            started(&look(&pending, 5, None, &["mail"])),
            ["hook"],
            "a suspended channel is out"
        );
        assert_eq!(
            started(&look(&case(), 0, found(), &["mail"])),
            ["mail", "hook"],
            "also at the first look"
        );
    }

    #[test]
    fn the_fallback_starts_when_nothing_was_accepted_in_time() {
        let pending = routed(vec![delivery("D1", "mail", Role::To, State::Pending)]);
        assert_eq!(started(&look(&pending, 599, None, &[])), [""; 0]);
        let late = look(&pending, 600, None, &[]);
        assert_eq!(started(&late), ["hook"]);
        assert_eq!(reasons(&late), [""; 0], "a fallback is left");
    }

    #[test]
    fn somebody_is_told_when_nothing_was_accepted_and_no_fallback_is_left() {
        let alone = route(&["mail"], &[]);
        let pending = routed(vec![delivery("D1", "mail", Role::To, State::Pending)]);
        assert_eq!(
            reasons(&look_by(&pending, 600, None, &[], &alone)),
            ["late"]
        );
        let both = routed(vec![
            delivery("D1", "mail", Role::To, State::Pending),
            delivery("D2", "hook", Role::Fallback, State::Failed),
        ]);
        assert_eq!(reasons(&look(&both, 600, None, &[])), ["late", "failed"]);
    }

    #[test]
    fn a_fallback_that_reached_the_person_ends_what_is_pending_in_to() {
        let mut case = routed(vec![
            delivery("D1", "mail", Role::To, State::Pending),
            delivery("D2", "hook", Role::Fallback, State::Accepted),
        ]);
        case.reached = true;
        let decision = look(&case, 700, None, &[]);
        assert_eq!(decision.step.end[0].0, "D1");
        assert_eq!(decision.step.end[0].1, State::Cancelled);
        assert_eq!(decision.ended, Some("accepted"));
        assert_eq!(reasons(&decision), [""; 0]);
    }

    #[test]
    fn a_notice_does_not_count_as_reached() {
        let both = route(&["mail", "desk"], &["hook"]);
        let case = routed(vec![
            delivery("D1", "mail", Role::To, State::Failed),
            delivery("D2", "desk", Role::To, State::Accepted),
        ]);
        assert_eq!(started(&look_by(&case, 5, None, &[], &both)), ["hook"]);
    }

    #[test]
    fn somebody_is_warned_once_before_expiry() {
        let mut case = routed(vec![
            delivery("D1", "mail", Role::To, State::Pending),
            delivery("D2", "hook", Role::Fallback, State::Pending),
        ]);
        case.told = vec!["late".to_owned()];
        let before = look(&case, 60 * HOUR - 1, None, &[]);
        assert_eq!(reasons(&before), [""; 0]);
        assert_eq!(before.step.due_at, Some(at(60 * HOUR)));
        let decision = look(&case, 60 * HOUR, None, &[]);
        assert_eq!(reasons(&decision), ["expiring"]);
        case.told.extend(decision.step.told);
        assert_eq!(reasons(&look(&case, 61 * HOUR, None, &[])), [""; 0]);
    }

    #[test]
    fn an_expired_case_ends_its_deliveries_wipes_the_code_and_is_told() {
        let case = routed(vec![delivery("D1", "mail", Role::To, State::Pending)]);
        let decision = look(&case, 72 * HOUR, None, &[]);
        assert_eq!(decision.step.state, Some(CaseState::Expired));
        assert!(decision.step.wipe);
        assert_eq!(decision.step.end[0].1, State::Expired);
        assert_eq!(reasons(&decision), ["expired"]);
        assert_eq!(decision.ended, Some("expired"));
        assert_eq!(decision.step.due_at, None);
    }

    #[test]
    fn a_code_that_did_not_arrive_is_not_forgotten_and_ends_once() {
        let mut case = routed(vec![
            delivery("D1", "mail", Role::To, State::Failed),
            delivery("D2", "hook", Role::Fallback, State::Failed),
        ]);
        let failed = look(&case, 5, None, &[]);
        assert_eq!(failed.ended, Some("failed"));
        assert_eq!(failed.step.due_at, Some(at(600)));
        case.told = failed.step.told;
        let late = look(&case, 600, None, &[]);
        assert_eq!(reasons(&late), ["late"]);
        case.told.extend(late.step.told);
        let warned = look(&case, 60 * HOUR, None, &[]);
        assert_eq!(reasons(&warned), ["expiring"]);
        case.told.extend(warned.step.told);
        let expired = look(&case, 72 * HOUR, None, &[]);
        assert_eq!(expired.step.state, Some(CaseState::Expired));
        assert_eq!(expired.ended, None, "it was counted as failed");
    }

    #[test]
    fn what_was_called_off_while_it_was_sent_starts_no_fallback() {
        let case = routed(vec![delivery("D1", "mail", Role::To, State::Cancelled)]);
        let decision = look(&case, 5, None, &[]);
        assert_eq!(started(&decision), [""; 0]);
        assert_eq!(decision.step.state, Some(CaseState::Cancelled));
        assert!(decision.step.wipe);
        assert_eq!(decision.ended, Some("cancelled"));
        assert_eq!(decision.step.due_at, None);
    }

    #[test]
    fn a_person_found_after_a_fallback_arrived_gets_the_code_only_once() {
        let mut case = case();
        case.reached = true;
        case.deliveries = vec![delivery("D1", "hook", Role::Fallback, State::Accepted)];
        let decision = look(&case, 700, found(), &[]);
        assert_eq!(started(&decision), [""; 0]);
        assert_eq!(decision.step.state, Some(CaseState::Routed));
        assert_eq!(decision.ended, Some("accepted"));
        case.released = true;
        assert_eq!(
            started(&look(&case, 700, found(), &[])),
            ["mail"],
            "an operator wants it"
        );
    }

    #[test]
    fn a_case_whose_deliveries_are_all_over_is_not_looked_at_again() {
        let mut case = routed(vec![delivery("D1", "mail", Role::To, State::Accepted)]);
        case.reached = true;
        let decision = look(&case, 1, None, &[]);
        assert_eq!(decision.step.due_at, None);
        case.told = decision.step.told;
        assert_eq!(
            look(&case, 2, None, &[]).ended,
            None,
            "the end is counted once"
        );
    }
}
