//! When to try again: the waits of the schedule, a peer's own wish, and the code's expiry as the end of all tries.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;

/// The waits after the first, second, … failed try; the last one repeats.
const WAITS_SECONDS: [u64; 6] = [15, 60, 120, 300, 600, 900];
/// By how much a wait may be shorter or longer, so that relays and deliveries don't move in step.
const SPREAD: f64 = 0.2;
/// No try follows sooner than this, whatever the peer wishes.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// How long before the expiry the last try is made.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// A last try is put before the expiry only if it is at least this far away; a try that just failed tells enough.
const MIN_LAST_WAIT: Duration = Duration::from_secs(5);

/// How long to wait after try number `attempt` (from 1; 0 counts as 1) has failed. `jitter` is drawn from 0 to 1; what
/// lies outside counts as the nearer end.
pub fn next(attempt: u32, jitter: f64) -> Duration {
    let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let seconds = WAITS_SECONDS[index.min(WAITS_SECONDS.len() - 1)];
    let jitter = match jitter.is_nan() {
        true => 0.0,
        false => jitter.clamp(0.0, 1.0),
    };
    Duration::from_secs(seconds).mul_f64(1.0 - SPREAD + 2.0 * SPREAD * jitter)
}

/// When the next try is due, if try number `attempt` failed `now`. `wish` is the peer's own (Retry-After) and replaces
/// the wait. A wait that would pass `expires_at` ends shortly before it, so that one more try is made; where no time
/// is left for that, the result is not before `expires_at`.
pub fn due(
    now: Timestamp,
    attempt: u32,
    jitter: f64,
    wish: Option<Duration>,
    expires_at: Timestamp,
) -> Timestamp {
    let wait = wish.unwrap_or_else(|| next(attempt, jitter)).max(MIN_WAIT);
    let due = after(now, wait);
    if due < expires_at {
        return due;
    }
    let last = expires_at
        .checked_sub(EXPIRY_MARGIN)
        .unwrap_or(Timestamp::MIN);
    match last >= after(now, MIN_LAST_WAIT) {
        true => last,
        false => due,
    }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_to_a_quarter_of_an_hour_and_stay_there() {
        let waits: Vec<u64> = (1..=8).map(|n| next(n, 0.5).as_secs()).collect();
        assert_eq!(waits, [15, 60, 120, 300, 600, 900, 900, 900]);
    }

    #[test]
    fn jitter_is_a_fifth_either_way() {
        assert_eq!(next(2, 0.0), Duration::from_secs(48));
        assert_eq!(next(2, 1.0), Duration::from_secs(72));
        for odd in [f64::NAN, f64::NEG_INFINITY, -1.0] {
            assert_eq!(next(2, odd), Duration::from_secs(48), "{odd}");
        }
        assert_eq!(next(2, f64::INFINITY), Duration::from_secs(72));
    }

    #[test]
    fn a_peers_wish_replaces_the_wait_but_never_makes_us_spin() {
        let now = Timestamp::UNIX_EPOCH;
        let late = now + SignedDuration::from_hours(72);
        let wait = |wish| due(now, 1, 0.5, Some(Duration::from_secs(wish)), late) - now;
        assert_eq!(wait(7200).as_secs(), 7200);
        assert_eq!(wait(0).as_secs(), 1);
    }

    #[test]
    fn a_last_try_is_made_shortly_before_the_expiry() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds| now + SignedDuration::from_secs(seconds);
        assert_eq!(due(now, 6, 0.5, None, at(600)), at(540));
        assert_eq!(due(now, 6, 0.5, None, at(901)), at(900));
        assert_eq!(due(now, 6, 0.5, None, at(64)), at(900), "too late for one");
        let wish = Some(Duration::MAX);
        assert_eq!(due(now, 6, 0.5, wish, at(600)), at(540));
    }

    fn instant() -> impl Strategy<Value = Timestamp> {
        (Timestamp::MIN.as_second()..=Timestamp::MAX.as_second())
            .prop_map(|s| Timestamp::from_second(s).unwrap())
    }

    proptest! {
        #[test]
        fn every_wait_is_within_a_fifth_of_its_step(attempt: u32, jitter: f64) {
            let wait = next(attempt, jitter).as_secs_f64();
            let step = next(attempt, 0.5).as_secs_f64();
            prop_assert!(wait >= step * 0.799 && wait <= step * 1.201);
            prop_assert!((12.0..=1080.0).contains(&wait));
        }

        #[test]
        fn waits_never_shrink_from_try_to_try(attempt in 0..u32::MAX, jitter in 0.0..1.0) {
            prop_assert!(next(attempt, jitter) <= next(attempt + 1, jitter));
        }

        #[test]
        fn a_try_is_due_in_the_future_and_before_the_expiry_while_there_is_time(
            now in instant(),
            left in 0_i64..400_000,
            attempt: u32,
            jitter: f64,
            wish in proptest::option::of(any::<u32>()),
        ) {
            let Ok(expires_at) = now.checked_add(SignedDuration::from_secs(left)) else {
                return Ok(());
            };
            let wish = wish.map(|s| Duration::from_secs(s.into()));
            let due = due(now, attempt, jitter, wish, expires_at);
            prop_assert!(due > now || now == Timestamp::MAX);
            if left >= 65 {
                prop_assert!(due < expires_at);
            }
        }

        #[test]
        fn it_is_total(
            now in instant(),
            expires_at in instant(),
            attempt: u32,
            jitter: f64,
            wish in proptest::option::of(any::<Duration>()),
        ) {
            due(now, attempt, jitter, wish, expires_at);
        }
    }
}
