//! Things that happen only so often, whatever a peer does: log lines, advice, samples.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

/// So many peers are remembered; while so many are, a further one is not served.
const MAX_PEERS: usize = 4096;

/// Of something, so much for each peer in a period.
pub struct PerPeer {
    most: u32,
    period: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When each peer's period began, and how much it has had since.
    last: HashMap<IpAddr, (Instant, u32)>,
    swept: Option<Instant>,
}

impl PerPeer {
    /// One in a period.
    pub fn new(period: Duration) -> Self {
        Self::several(1, period)
    }

    /// Up to `most` in a period.
    pub fn several(most: u32, period: Duration) -> Self {
        Self {
            most,
            period,
            known: Mutex::default(),
        }
    }

    /// Whether the peer may have another. Asking changes nothing.
    pub fn is_due(&self, peer: IpAddr, now: Instant) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.last.get(&peer) {
            Some((since, had)) => {
                *had < self.most || now.saturating_duration_since(*since) >= self.period
            }
            None => true,
        }
    }

    /// Gives the peer one, if it may have another. A peer too many is refused.
    pub fn take(&self, peer: IpAddr, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { last, swept } = &mut *known;
        let is_over = |since: Instant| now.saturating_duration_since(since) >= self.period;
        if let Some((since, had)) = last.get_mut(&peer) {
            if is_over(*since) {
                (*since, *had) = (now, 0);
            }
            let due = *had < self.most;
            *had += u32::from(due);
            return due;
        }
        // Once in a period is enough, and more would be slow when somebody invents peers.
        if last.len() >= MAX_PEERS && swept.is_none_or(is_over) {
            last.retain(|_, (since, _)| !is_over(*since));
            *swept = Some(now);
        }
        let fits = last.len() < MAX_PEERS;
        if fits {
            last.insert(peer, (now, 1));
        }
        fits
    }
}

/// One log line in a period, with the number of times that something happened.
pub struct Throttle {
    period: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// One line in a period.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            state: Mutex::default(),
        }
    }

    /// It happened. `Some`: say so now, so many times since it was last said.
    pub fn hit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, count) = &mut *state;
        *count += 1;
        if said.is_some_and(|said| now.saturating_duration_since(said) < self.period) {
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn each_peer_has_its_own_period_and_their_number_is_bounded() {
        let paced = PerPeer::new(PERIOD);
        let (start, a) = (Instant::now(), IpAddr::from([192, 0, 2, 1]));
        assert!(paced.is_due(a, start) && paced.take(a, start));
        assert!(!paced.is_due(a, start) && !paced.take(a, start + PERIOD / 2));
        assert!(paced.is_due(a, start + PERIOD) && paced.take(a, start + PERIOD));
        for n in 0..2 * MAX_PEERS as u32 {
            paced.take(IpAddr::from(n.to_be_bytes()), start);
        }
        assert_eq!(paced.known.lock().unwrap().last.len(), MAX_PEERS);
        assert!(paced.take(IpAddr::from([198, 51, 100, 1]), start + 2 * PERIOD));
    }

    #[test]
    fn a_peer_may_have_several_in_a_period() {
        let paced = PerPeer::several(2, PERIOD);
        let (start, a, b) = (Instant::now(), [192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert!(paced.take(a, start) && paced.take(a, start + PERIOD / 2));
        assert!(!paced.is_due(a, start + PERIOD / 2) && !paced.take(a, start + PERIOD / 2));
        assert!(paced.take(b, start + PERIOD / 2));
        assert!(paced.is_due(a, start + PERIOD) && paced.take(a, start + PERIOD));
        assert!(paced.take(a, start + PERIOD) && !paced.take(a, start + PERIOD));
    }

    #[test]
    fn what_was_not_said_is_counted() {
        let throttle = Throttle::new(PERIOD);
        let start = Instant::now();
        assert_eq!(throttle.hit(start), Some(1));
        assert_eq!(throttle.hit(start), None);
        assert_eq!(throttle.hit(start), None);
        assert_eq!(throttle.hit(start + PERIOD), Some(3));
    }
}
