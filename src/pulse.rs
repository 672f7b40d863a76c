//! Whether the loops of the relay still turn. A watchdog is fed only while all of them do.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

/// The loops that say that they turn: which, and when last.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Vec<(&'static str, Instant)>>);

impl Pulse {
    /// So often a loop that has nothing to do says so; well within any sensible watchdog.
    pub const BEAT: Duration = Duration::from_secs(5);

    /// This loop has just turned. Its first beat makes it one that is waited for.
    pub fn beat(&self, name: &'static str) {
        let mut beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match beats.iter_mut().find(|(known, _)| *known == name) {
            Some((_, last)) => *last = Instant::now(),
            None => beats.push((name, Instant::now())),
        }
    }

    /// The loops that have not turned for longer than `longest`.
    pub fn stalled(&self, longest: Duration) -> Vec<&'static str> {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats
            .iter()
            .filter(|(_, last)| last.elapsed() > longest)
            .map(|(name, _)| *name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stopped_turning_is_named() {
        let pulse = Pulse::default();
        pulse.beat("intake");
        pulse.beat("cases");
        assert!(pulse.stalled(Duration::from_secs(60)).is_empty());
        pulse.0.lock().unwrap()[0].1 = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
        assert_eq!(pulse.stalled(Duration::from_secs(60)), ["intake"]);
        pulse.beat("intake");
        assert!(pulse.stalled(Duration::from_secs(60)).is_empty());
    }
}
