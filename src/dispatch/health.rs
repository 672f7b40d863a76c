//! How a channel fares: whether it has proven itself, waits, or is suspended until an operator acts.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::channel::pace::Turns;
use crate::limits::Rate;

/// A suspended channel tries one delivery in this time.
pub const PROBE_EVERY: Duration = Duration::from_secs(300);

/// The health of one channel since start or reload.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<HealthState>,
    /// The messages of late, for the channel's pace.
    pub turns: Turns,
    /// Wakes the channel's worker when it may start less than before, or an operator wants it to start more.
    pub changed: Notify,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthState {
    /// It has succeeded once since start, reload or suspension: only then may it use all its connections.
    pub proven: bool,
    /// Nothing is tried before.
    pub wait_until: Option<Timestamp>,
    /// Why it waits for an operator.
    pub suspended: Option<String>,
    /// An operator asked for one try in spite of a wait.
    pub lifted: bool,
    /// When its next hop last took something.
    pub last_success: Option<Timestamp>,
    /// People were told that it is suspended.
    pub told: bool,
}

/// What people have yet to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is suspended, and why.
    Suspended(String),
    /// It works again after a suspension.
    Resumed,
}

impl Health {
    /// What is left of `before` after a reload: a suspension lasts until a try succeeds, but that try is made at once.
    pub fn reloaded(before: &Self) -> Self {
        let old = before.look();
        Self {
            state: Mutex::new(HealthState {
                suspended: old.suspended,
                told: old.told,
                last_success: old.last_success,
                ..HealthState::default()
            }),
            turns: Turns::reloaded(&before.turns),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the present state.
    pub fn look(&self) -> HealthState {
        self.lock().clone()
    }

    /// How many tries may start now beside `running` ones; 0 before [`HealthState::wait_until`].
    pub fn may_start(&self, running: usize, concurrency: usize, now: Timestamp) -> usize {
        let state = self.lock();
        let waits = state.wait_until.is_some_and(|until| until > now);
        let most = match () {
            () if waits && !state.lifted => 0,
            () if waits || !state.proven || state.suspended.is_some() => 1,
            () => concurrency,
        };
        most.saturating_sub(running)
    }

    /// How many turns the channel's pace has left; an operator's one try has one in spite of it.
    pub fn free_turns(&self, rates: &[Rate], moment: Instant) -> usize {
        let free = self.turns.free(rates, moment);
        match self.lock().lifted {
            true => free.max(1),
            false => free,
        }
    }

    /// A try begins: it uses up what an operator lifted, and a suspended channel's probe.
    pub fn started(&self, now: Timestamp) {
        let mut state = self.lock();
        state.lifted = false;
        if state.suspended.is_some() {
            state.wait_until = now.checked_add(PROBE_EVERY).ok();
        }
    }

    /// The next hop took something.
    pub fn succeeded(&self, now: Timestamp) {
        let mut state = self.lock();
        *state = HealthState {
            proven: true,
            last_success: Some(now),
            told: state.told,
            ..HealthState::default()
        };
    }

    /// The next hop is away for all deliveries; the channel waits.
    pub fn away(&self, until: Timestamp) {
        let mut state = self.lock();
        if state.suspended.is_none() {
            state.wait_until = Some(until);
            self.changed.notify_one();
        }
    }

    /// The next hop answered, though not with acceptance: the way there is open, and no wait is left.
    pub fn answered(&self) {
        let mut state = self.lock();
        if state.suspended.is_none() {
            state.wait_until = None;
        }
    }

    /// An operator must act.
    pub fn suspend(&self, reason: &str, now: Timestamp) {
        let mut state = self.lock();
        state.suspended = Some(reason.to_owned());
        state.proven = false;
        state.wait_until = now.checked_add(PROBE_EVERY).ok();
        self.changed.notify_one();
    }

    /// What is to be told now, once: whoever takes it tells it or calls [`Health::untold`].
    pub fn take_news(&self) -> Option<News> {
        let mut state = self.lock();
        let news = match (&state.suspended, state.told) {
            (Some(reason), false) => News::Suspended(reason.clone()),
            (None, true) => News::Resumed,
            _ => return None,
        };
        state.told = !state.told;
        Some(news)
    }

    /// It could not be told; the next try's end takes it up again.
    pub fn untold(&self, news: &News) {
        self.lock().told = *news == News::Resumed;
    }

    /// One try in spite of any wait.
    pub fn lift(&self) {
        self.lock().lifted = true;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_unproven_channel_uses_one_connection() {
        let health = Health::default();
        assert_eq!(health.may_start(0, 4, at(0)), 1);
        assert_eq!(health.may_start(1, 4, at(0)), 0);
        health.succeeded(at(0));
        assert_eq!(health.take_news(), None);
        assert_eq!(health.may_start(1, 4, at(0)), 3);
    }

    #[test]
    fn a_suspended_channel_probes_once_in_five_minutes_and_resumes_by_itself() {
        let health = Health::default();
        health.suspend("535", at(0));
        assert_eq!(health.take_news(), Some(News::Suspended("535".to_owned())));
        assert_eq!(health.may_start(0, 4, at(299)), 0);
        assert_eq!(health.may_start(0, 4, at(300)), 1);
        health.started(at(300));
        health.suspend("535", at(301));
        assert_eq!(health.take_news(), None, "told once");
        assert_eq!(health.may_start(0, 4, at(400)), 0);
        health.succeeded(at(601));
        assert_eq!(health.take_news(), Some(News::Resumed));
        assert_eq!(health.take_news(), None);
        assert_eq!(health.may_start(0, 4, at(601)), 4);
    }

    #[test]
    fn news_that_could_not_be_told_stays_news() {
        let health = Health::default();
        health.suspend("535", at(0));
        let news = health.take_news().unwrap();
        health.untold(&news);
        assert_eq!(health.take_news(), Some(news));
        health.succeeded(at(1));
        let news = health.take_news().unwrap();
        health.untold(&news);
        assert_eq!(health.take_news(), Some(News::Resumed));
    }

    #[test]
    fn a_suspension_outlives_a_reload_but_is_probed_at_once() {
        let old = Health::default();
        old.suspend("535", at(0));
        old.take_news().unwrap();
        let health = Health::reloaded(&old);
        assert_eq!(health.may_start(0, 4, at(1)), 1);
        assert_eq!(health.take_news(), None, "it was told before");
        health.succeeded(at(1));
        assert_eq!(health.take_news(), Some(News::Resumed));
    }

    #[test]
    fn a_lifted_wait_lets_one_try_pass_on_a_proven_channel_too() {
        let health = Health::default();
        health.succeeded(at(0));
        health.away(at(100));
        health.lift();
        assert_eq!(health.may_start(0, 4, at(1)), 1);
    }

    #[test]
    fn an_operator_lifts_a_wait_for_one_try() {
        let health = Health::default();
        health.away(at(100));
        assert_eq!(health.may_start(0, 4, at(0)), 0);
        health.lift();
        assert_eq!(health.may_start(0, 4, at(0)), 1);
        health.started(at(0));
        assert_eq!(health.may_start(0, 4, at(0)), 0);
    }
}
