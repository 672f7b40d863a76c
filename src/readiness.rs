//! Why the relay isn't ready, if it isn't.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

/// The reasons against readiness, one for each part of the relay.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeMap<&'static str, String>>);

impl Readiness {
    /// This part is not ready, and why.
    pub fn not(&self, part: &'static str, why: impl Into<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, why.into());
    }

    /// This part is ready.
    pub fn ready(&self, part: &'static str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(part);
    }

    /// One sentence for each part that isn't ready.
    pub fn reasons(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(part, why)| format!("{part}: {why}"))
            .collect()
    }
}
