//! Waiting for what somebody else does.

use std::time::Duration;
use std::time::Instant;

/// Waits for something that another process or thread is about to do; panics with `what` after 20 s.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited 20 s for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
