//! How fast a channel may go: so many messages in such a time, kept by us, so that no provider has to refuse one.
//!
//! A turn is one message. [`Turns`] counts those of a whole channel, whose worker leases no more than are free, so that
//! a long queue waits in the outbox. [`Pace`] counts them for each addressee or method; there a try that is under way
//! waits, which it can, for such waits are short.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::limits::Rate;

/// The most turns that a rate may have, since each is remembered for its time.
pub const MAX_TURNS: u32 = 10_000;
/// So many addressees are remembered; those who have no turn left to wait for are forgotten first.
const MAX_KEYS: usize = 10_000;

/// So many in such a time, a little longer than the provider's, as messages don't all take the same time to get there.
pub const fn rate(count: u32, window: Duration) -> Rate {
    let margin = match window.as_millis() / 10 {
        tenth if tenth < MAX_MARGIN_MILLIS => tenth,
        _ => MAX_MARGIN_MILLIS,
    };
    Rate {
        count,
        window: window.saturating_add(Duration::from_millis(margin as u64)),
    }
}

const MAX_MARGIN_MILLIS: u128 = 10_000;

/// The turns of one channel that were taken lately.
#[derive(Debug, Default)]
pub struct Turns(Mutex<VecDeque<Instant>>);

impl Turns {
    /// What is left of `old` after a reload: the provider has not forgotten either.
    pub fn reloaded(old: &Self) -> Self {
        Self(Mutex::new(old.lock().clone()))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many may be taken `now`.
    pub fn free(&self, rates: &[Rate], now: Instant) -> usize {
        let taken = self.lock();
        let free = |rate: &Rate| {
            let recent = taken.iter().rev().take_while(|at| **at + rate.window > now);
            (rate.count as usize).saturating_sub(recent.count())
        };
        rates.iter().map(free).min().unwrap_or(usize::MAX)
    }

    /// When the next one is free: `now` if one is.
    pub fn next(&self, rates: &[Rate], now: Instant) -> Instant {
        next(&self.lock(), rates, now)
    }

    /// Takes so many `now`.
    pub fn take(&self, count: usize, rates: &[Rate], now: Instant) {
        let mut taken = self.lock();
        for _ in 0..count {
            book(&mut taken, rates, now);
        }
    }
}

/// When the next turn is free, by the turns taken and booked so far, oldest first.
fn next(taken: &VecDeque<Instant>, rates: &[Rate], now: Instant) -> Instant {
    let free_again = |rate: &Rate| {
        let first = taken.len().checked_sub(rate.count as usize)?;
        Some(*taken.get(first)? + rate.window)
    };
    rates
        .iter()
        .filter_map(free_again)
        .fold(now, |latest, at| latest.max(at))
}

/// Remembers a turn, and no more of the old ones than the rates ask for.
fn book(taken: &mut VecDeque<Instant>, rates: &[Rate], at: Instant) {
    taken.push_back(at);
    let needed = rates.iter().map(|rate| rate.count as usize).max();
    while taken.len() > needed.unwrap_or(0) {
        taken.pop_front();
    }
}

/// One rate for each of many: addressees, methods.
#[derive(Debug)]
pub struct Pace {
    rate: [Rate; 1],
    taken: Mutex<HashMap<String, VecDeque<Instant>>>,
}

impl Pace {
    /// At this rate for each.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate: [rate],
            taken: Mutex::default(),
        }
    }

    /// Waits for a turn of `key`. Whoever comes first goes first; a wait that is given up has used its turn.
    pub async fn turn(&self, key: &str) {
        let at = self.book(key, Instant::now());
        sleep_until(at).await;
    }

    fn book(&self, key: &str, now: Instant) -> Instant {
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KEYS && !all.contains_key(key) {
            all.retain(|_, taken| {
                taken
                    .back()
                    .is_some_and(|at| *at + self.rate[0].window > now)
            });
        }
        if all.len() >= MAX_KEYS && !all.contains_key(key) {
            // So many at once are more than any provider takes; its refusals slow us down then.
            return now;
        }
        let taken = all.entry(key.to_owned()).or_default();
        let at = next(taken, &self.rate, now);
        book(taken, &self.rate, at);
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn per(count: u32, window: Duration) -> Rate {
        Rate { count, window }
    }

    #[test]
    fn a_channel_has_as_many_turns_as_its_tightest_rate_leaves() {
        let (turns, start) = (Turns::default(), Instant::now());
        let rates = [per(4, SECOND), per(6, HOUR)];
        assert_eq!(turns.free(&rates, start), 4);
        assert_eq!(turns.next(&rates, start), start);
        turns.take(4, &rates, start);
        assert_eq!(turns.free(&rates, start), 0);
        assert_eq!(turns.next(&rates, start), start + SECOND);
        assert_eq!(turns.free(&rates, start + SECOND), 2, "two of the hour");
        turns.take(2, &rates, start + SECOND);
        assert_eq!(turns.next(&rates, start + SECOND), start + HOUR);
        assert_eq!(turns.free(&rates, start + HOUR), 4);
    }

    #[test]
    fn a_reload_gives_no_turn_back_and_without_a_rate_there_is_no_end_of_them() {
        let (turns, start) = (Turns::default(), Instant::now());
        let rates = [per(1, HOUR)];
        turns.take(1, &rates, start);
        let after = Turns::reloaded(&turns);
        assert_eq!(after.free(&rates, start), 0);
        assert_eq!(after.free(&[], start), usize::MAX);
        after.take(3, &[], start);
        assert_eq!(after.next(&[], start), start);
    }

    #[tokio::test(start_paused = true)]
    async fn each_addressee_waits_for_its_own_turn_only() {
        let pace = Pace::new(per(1, SECOND));
        let start = Instant::now();
        pace.turn("alice").await;
        pace.turn("bob").await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        tokio::join!(pace.turn("alice"), pace.turn("alice"));
        assert_eq!(start.elapsed(), 2 * SECOND);
        pace.turn("bob").await;
        assert_eq!(start.elapsed(), 2 * SECOND);
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let (pace, start) = (Pace::new(per(1, SECOND)), Instant::now());
        for n in 0..=MAX_KEYS {
            pace.book(&n.to_string(), start);
        }
        assert_eq!(pace.taken.lock().unwrap().len(), MAX_KEYS);
        assert_eq!(pace.book("new", start + SECOND), start + SECOND);
        assert_eq!(pace.taken.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_providers_time_is_kept_with_a_margin() {
        assert_eq!(rate(1, SECOND).window, Duration::from_millis(1100));
        assert_eq!(rate(100, HOUR).window, HOUR + 10 * SECOND);
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_its_rate(
            steps in proptest::collection::vec((0_u64..2_000, 1_usize..5), 1..200),
        ) {
            let rates = [per(4, SECOND), per(20, 20 * SECOND)];
            let (turns, mut now) = (Turns::default(), Instant::now());
            let mut all = Vec::new();
            for (wait, wanted) in steps {
                now += Duration::from_millis(wait);
                let count = wanted.min(turns.free(&rates, now));
                prop_assert_eq!(count == 0, turns.next(&rates, now) > now);
                turns.take(count, &rates, now);
                all.extend(std::iter::repeat_n(now, count));
                for rate in &rates {
                    let recent = all.iter().filter(|at| **at + rate.window > now).count();
                    prop_assert!(recent <= rate.count as usize);
                }
            }
        }
    }
}
