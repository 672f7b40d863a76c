//! One channel's worker: leases what is due, sends it, settles it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::activation::Activation;
use crate::backoff;
use crate::channel::Attempt;
use crate::channel::Channel;
use crate::channel::Commit;
use crate::channel::OnUncertain;
use crate::channel::SendError;
use crate::channel::Transcript;
use crate::dispatch::Next;
use crate::dispatch::Settings;
use crate::dispatch::health::Health;
use crate::dispatch::health::News;
use crate::dispatch::jitter;
use crate::dispatch::pause_until;
use crate::message::Notification;
use crate::message::Recipient;
use crate::metrics;
use crate::metrics::Metrics;
use crate::outbox::Clock;
use crate::outbox::Escalate;
use crate::outbox::Lease;
use crate::outbox::Outbox;
use crate::outbox::OutboxError;
use crate::outbox::Settlement;
use crate::outbox::Work;
use crate::secret::Secret;
use crate::secret::mask_address;
use crate::template::Style;

/// A channel waits no longer for one peer's wish, as others of its deliveries may be short of time.
const LONGEST_CHANNEL_WAIT: Duration = Duration::from_secs(900);
/// The shortest time from lease to commit point.
const LEASE: Duration = Duration::from_secs(300);
/// So many of a channel's steps, each as long as its `timeout`, may come before the commit point.
const STEPS: u32 = 15;
/// How long a mail's final dot may take, whatever the `timeout`.
const FINAL_DOT: Duration = Duration::from_secs(600);
/// The wait before the outbox is asked again after it failed.
const OUTBOX_PAUSE: Duration = Duration::from_secs(1);

/// Works for one channel until it is told to stop.
pub struct Worker {
    /// The channel.
    pub channel: Arc<Channel>,
    /// How it fares.
    pub health: Arc<Health>,
    /// Where deliveries come from.
    pub outbox: Arc<dyn Outbox>,
    /// Templates and routes.
    pub settings: Arc<Settings>,
    /// What is counted.
    pub metrics: Metrics,
    /// The time of day.
    pub clock: Clock,
}

impl Worker {
    /// Runs until `stop`; then finishes the tries that are under way and leases no more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tries = JoinSet::new();
        let mut next = Next::Now;
        while !stop.is_cancelled() {
            while tries.try_join_next().is_some() {}
            let (now, moment) = ((self.clock)(), Instant::now());
            let rates = &self.channel.rates;
            let free = self
                .health
                .may_start(tries.len(), self.channel.concurrency, now)
                .min(self.health.free_turns(rates, moment));
            if free == 0 {
                let pause = pause_until(self.opens_at(now, moment), now);
                tokio::select! {
                    () = self.rest(pause, &stop) => {}
                    Some(_) = tries.join_next() => {}
                }
                next = Next::Now;
                continue;
            }
            let (name, time) = (&self.channel.name, lease(self.channel.timeout));
            let leased = match next {
                Next::Now => self.outbox.lease_deliveries(name, free, now, time).await,
                Next::After(changes, pause) => {
                    next = Next::Now;
                    let rest = Box::pin(self.rest(pause, &stop));
                    let deliveries = self
                        .outbox
                        .next_deliveries(changes, name, free, &self.clock, time, rest)
                        .await;
                    match deliveries {
                        Ok(Some(leased)) => Ok(leased),
                        // If a commit failed, it was for others as well: one for this alone tells more.
                        Ok(None) | Err(_) => continue,
                    }
                }
            };
            match leased {
                Ok(leased) => {
                    let (now, moment) = ((self.clock)(), Instant::now());
                    next = Next::of(&leased, free, now);
                    if !leased.items.is_empty() {
                        self.health.started(now);
                        self.health.turns.take(leased.items.len(), rates, moment);
                    }
                    for lease in leased.items {
                        tries.spawn(Arc::clone(&self).attempt(lease));
                    }
                }
                Err(e) => {
                    warn!(channel = %name, "Deliveries can't be leased: {e}");
                    self.rest(OUTBOX_PAUSE, &stop).await;
                }
            }
        }
        while tries.join_next().await.is_some() {}
    }

    /// Sleeps, unless the worker is to stop or something about the channel has changed.
    async fn rest(&self, pause: Duration, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.health.changed.notified() => {}
            () = sleep(pause) => {}
        }
    }

    /// When a try may start again, if more than the tries under way keeps it back `now`.
    fn opens_at(&self, now: Timestamp, moment: Instant) -> Option<Timestamp> {
        let wait = self.health.look().wait_until.filter(|until| *until > now);
        let turn = self.health.turns.next(&self.channel.rates, moment);
        let turn = now.checked_add(turn.duration_since(moment)).ok();
        wait.max(turn.filter(|until| *until > now))
    }

    async fn attempt(self: Arc<Self>, lease: Lease) {
        let channel = &self.channel;
        let lost = AtomicBool::new(false);
        let settlement = match self.render(&lease) {
            _ if (self.clock)() >= lease.expires_at => Settlement::Expired {
                reason: "the code's life ended".to_owned(),
            },
            Ok((note, recipient)) => {
                let sent = self.send(&lease, &note, recipient, &lost).await;
                if lost.load(Relaxed) {
                    return info!(delivery.id = %lease.id, "{} was ended or taken over before it was sent", lease.id);
                }
                self.judge(&lease, recipient, sent)
            }
            Err(reason) => Settlement::Failed { reason },
        };
        let outcome = match &settlement {
            Settlement::Accepted { .. } => "accepted",
            Settlement::Retry { .. } => "retried",
            Settlement::Failed { .. } | Settlement::Hold { .. } => "failed",
            Settlement::Expired { .. } => "expired",
        };
        self.metrics.delivery(&channel.name, outcome);
        // What the next hop said comes first: until it is written down, the message would go out again.
        self.settle(&lease, settlement).await;
        self.tell_news().await;
    }

    fn render<'l>(
        &self,
        lease: &'l Lease,
    ) -> Result<(Notification, Option<&'l Recipient>), String> {
        let style = |language| Style {
            reveal: self.channel.reveals,
            time_zone: &self.channel.time_zone,
            language,
            id: &lease.message_id,
            now: (self.clock)(),
        };
        let rendered = match &lease.work {
            Work::Activation {
                activation,
                recipient,
            } => {
                let language = self
                    .settings
                    .routes
                    .find(activation)
                    .and_then(|r| r.language.as_deref());
                // Where the device has named somebody else than the log, the person reads their own name.
                let is_meant =
                    self.settings.directories.person(&activation.user) == activation.person;
                let addressed = match is_meant {
                    true => Cow::Borrowed(&**activation),
                    false => Cow::Owned(Activation {
                        user: activation.person.clone(),
                        ..(**activation).clone()
                    }),
                };
                let mut note = self.settings.templates.activation(
                    &addressed,
                    recipient.as_ref(),
                    &style(language),
                );
                if let Ok(note) = &mut note
                    && let Some(user) = note.event.pointer_mut("/data/user")
                {
                    *user = activation.user.clone().into();
                }
                (note, recipient.as_ref())
            }
            Work::Escalation(escalation) => (
                self.settings
                    .templates
                    .escalation(escalation, lease.expires_at, &style(None)),
                None,
            ),
        };
        match rendered {
            (Ok(note), recipient) => Ok((note, recipient)),
            (Err(e), _) => Err(format!("the message can't be written: {e}")),
        }
    }

    async fn send(
        &self,
        lease: &Lease,
        note: &Notification,
        to: Option<&Recipient>,
        lost: &AtomicBool,
    ) -> Result<String, SendError> {
        let code = match &lease.work {
            Work::Activation { activation, .. } => activation.code.as_ref().map(|c| c.secret()),
            Work::Escalation(_) => None,
        };
        let address = to.map(|r| Secret::new(r.email.as_str()));
        // Without its `+`, which a form or a JSON text writes otherwise.
        let phone = to.and_then(|r| r.phone.as_deref());
        let phone = phone.map(|phone| Secret::new(phone.trim_start_matches('+')));
        let redactor = self
            .channel
            .redactor
            .with([code, address, phone].into_iter().flatten());
        let commit = BeginSend {
            outbox: &self.outbox,
            lease,
            lost,
            clock: &self.clock,
            timeout: self.channel.timeout,
        };
        let transcript = Transcript::off();
        let attempt = Attempt {
            to,
            note,
            commit: &commit,
            redactor: &redactor,
            transcript: &transcript,
        };
        self.channel
            .carrier
            .send(&attempt)
            .await
            .map(|receipt| receipt.said)
    }

    /// What a try's end means for the delivery and for the channel.
    fn judge(
        &self,
        lease: &Lease,
        to: Option<&Recipient>,
        sent: Result<String, SendError>,
    ) -> Settlement {
        let (name, now) = (&self.channel.name, (self.clock)());
        let retry = |reason: String, after: Option<Duration>| Settlement::Retry {
            due_at: backoff::due(now, lease.attempt, jitter(), after, lease.expires_at),
            reason,
        };
        match sent {
            Ok(receipt) => {
                self.health.succeeded(now);
                self.metrics.channel_success(name, now, lease.received_at);
                let person =
                    to.map_or_else(String::new, |r| format!(" to {}", mask_address(&r.email)));
                info!(delivery.id = %lease.id, channel = %name, attempt = lease.attempt, "Accepted: {}{person} by {name}: {receipt}", lease.id);
                let reached = self.channel.reveals && matches!(lease.work, Work::Activation { .. });
                Settlement::Accepted { receipt, reached }
            }
            Err(SendError::Transient { reason, after }) => {
                self.health.answered();
                self.failed(lease, "tried again later", &reason);
                retry(reason, after)
            }
            Err(SendError::Away { reason, after }) => {
                self.failed(lease, "the channel is away", &reason);
                let settlement = retry(reason, after);
                if let Settlement::Retry { due_at, .. } = &settlement {
                    // No longer than the shortest wait a delivery could have.
                    let wish = after.map(|wish| wish.min(LONGEST_CHANNEL_WAIT));
                    let shortest = backoff::due(now, 1, jitter(), wish, lease.expires_at);
                    self.health.away(shortest.min(*due_at));
                }
                settlement
            }
            Err(SendError::Permanent { reason }) if now >= lease.expires_at => {
                Settlement::Expired { reason }
            }
            Err(SendError::Permanent { reason }) => {
                self.health.answered();
                self.failed(lease, "final", &reason);
                Settlement::Failed { reason }
            }
            Err(SendError::Broken { reason }) => {
                self.failed(lease, "an operator must act", &reason);
                self.health.suspend(&reason, now);
                // The channel waits, not the delivery: it is due soon should a reload mend the channel.
                Settlement::Retry {
                    due_at: backoff::due(now, 1, jitter(), None, lease.expires_at),
                    reason,
                }
            }
            Err(SendError::Unknown { reason }) => {
                self.failed(lease, "outcome unknown", &reason);
                match self.channel.on_uncertain {
                    OnUncertain::Resend => retry(reason, None),
                    OnUncertain::Hold => Settlement::Hold {
                        reason: format!("it may have arrived: {reason}"),
                    },
                }
            }
        }
    }

    fn failed(&self, lease: &Lease, class: &str, reason: &str) {
        warn!(delivery.id = %lease.id, channel = %self.channel.name, attempt = lease.attempt, "Not accepted ({class}): {}: {reason}", lease.id);
    }

    /// Tells of a suspension or its end, once each.
    async fn tell_news(&self) {
        let Some(news) = self.health.take_news() else {
            return;
        };
        let name = &self.channel.name;
        let told = match &news {
            News::Suspended(reason) => {
                self.metrics.suspended(name, true);
                error!(channel = %name, "Channel {name} is suspended until an operator acts: {reason}");
                let text = format!("Channel {name} is suspended until an operator acts");
                let told = self.tell("suspended", text, reason).await;
                // Fallbacks start now.
                let woken = self.outbox.wake_cases(name, (self.clock)()).await;
                told.and(woken)
            }
            News::Resumed => {
                self.metrics.suspended(name, false);
                let text = format!("Channel {name} works again");
                info!(channel = %name, "{text}");
                self.tell("resumed", text, "it took a message").await
            }
        };
        if let Err(e) = told {
            self.health.untold(&news);
            warn!(channel = %name, "Nobody could be told yet how {name} fares: {e}");
        }
    }

    /// Tells those who hear of this channel's routes.
    async fn tell(&self, reason: &str, text: String, detail: &str) -> Result<(), OutboxError> {
        let name = &self.channel.name;
        let told = self.settings.routes.escalate_for(name);
        let escalations: Vec<_> = told
            .into_iter()
            .filter(|c| c != name)
            .map(|channel| Escalate {
                channel,
                reason: format!("{reason}:{name}"),
                text: text.clone(),
                subject: detail.to_owned(),
            })
            .collect();
        if escalations.is_empty() {
            return Ok(());
        }
        self.outbox.escalate(escalations, (self.clock)()).await
    }

    /// Writes the end of a try down. Until that is done the message would go out again, so it is tried as long as the lease lasts.
    async fn settle(&self, lease: &Lease, settlement: Settlement) {
        let end = (self.clock)()
            .saturating_add(LEASE)
            .unwrap_or(Timestamp::MAX);
        loop {
            match self
                .outbox
                .settle(lease, settlement.clone(), (self.clock)())
                .await
            {
                Ok(()) => return,
                Err(OutboxError::LostLease) => {
                    return warn!(delivery.id = %lease.id, "The result of {} came after its lease had ended", lease.id);
                }
                Err(e) if (self.clock)() < end => {
                    warn!(delivery.id = %lease.id, "The result of {} can't be written yet: {e}", lease.id);
                    sleep(OUTBOX_PAUSE).await;
                }
                Err(e) => {
                    return error!(delivery.id = %lease.id, "The result of {} is lost; it may go out again: {e}", lease.id);
                }
            }
        }
    }
}

struct BeginSend<'a> {
    outbox: &'a Arc<dyn Outbox>,
    lease: &'a Lease,
    clock: &'a Clock,
    /// The channel's, for one step.
    timeout: Duration,
    /// Somebody else has it now, or it was ended: nothing was sent, and there is nothing to judge.
    lost: &'a AtomicBool,
}

#[async_trait]
impl Commit for BeginSend<'_> {
    async fn commit(&self) -> Result<(), SendError> {
        let now = (self.clock)();
        if now >= self.lease.expires_at {
            return Err(SendError::Permanent {
                reason: "the code's life ended".to_owned(),
            });
        }
        let until = now
            .saturating_add(sending_lease(self.timeout))
            .unwrap_or(Timestamp::MAX);
        self.outbox
            .begin_send(self.lease, until)
            .await
            .map_err(|e| {
                self.lost.store(e == OutboxError::LostLease, Relaxed);
                SendError::Transient {
                    reason: e.to_string(),
                    after: None,
                }
            })
    }
}

/// From lease to commit point.
fn lease(timeout: Duration) -> Duration {
    LEASE.max(timeout * STEPS)
}

/// From the commit point to the end of the answer. Who is still waiting for it then would see the message go out a second time.
fn sending_lease(timeout: Duration) -> Duration {
    lease(timeout) + FINAL_DOT.max(timeout)
}

impl Metrics {
    fn suspended(&self, channel: &str, yes: bool) {
        self.channel_suspended
            .get_or_create(&metrics::Channel {
                channel: channel.to_owned(),
            })
            .set(i64::from(yes));
    }

    fn channel_success(&self, channel: &str, now: Timestamp, received_at: Timestamp) {
        let label = metrics::Channel {
            channel: channel.to_owned(),
        };
        self.channel_last_success
            .get_or_create(&label)
            .set(now.as_second() as f64);
        self.delivery_seconds
            .get_or_create(&label)
            .observe(now.duration_since(received_at).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lease_ends_while_a_channel_may_still_wait_for_an_answer() {
        for secs in [1, 20, 300, 3_600] {
            let step = Duration::from_secs(secs);
            // DATA, the content and the dot, then the answer to it; an HTTP exchange has two steps.
            let mail = step * 3 + step.max(Duration::from_secs(600));
            assert!(sending_lease(step) > mail.max(step * 2), "{step:?}");
            assert!(lease(step) >= step * 12, "{step:?}");
        }
        assert_eq!(lease(Duration::from_secs(20)), LEASE);
    }
}
