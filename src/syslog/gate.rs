//! The gate: a byte search that throws away, before any parsing, what can't be a wanted event.
//!
//! A FortiGate may send its whole traffic log. What passes is parsed in full and judged by its fields, never by the bytes.

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use aho_corasick::Input;

/// Finds the wanted message ids as log ids end: five digits, the sixth before them, no digit behind them.
///
/// [`super::Record::message_id`] takes an id only from a field of at least five digits, and no format can write digits in
/// another way, so a frame that does not pass has no wanted id.
#[derive(Clone, Debug)]
pub struct Gate {
    search: Option<AhoCorasick>,
    /// For each ending that is searched, the digits (as bits) that may stand before it.
    sixth: Vec<u16>,
}

impl Gate {
    /// The gate for these message ids.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut endings: BTreeMap<u32, u16> = BTreeMap::new();
        for id in ids {
            *endings.entry(id % 100_000).or_default() |= 1 << (id / 100_000 % 10);
        }
        Self {
            search: AhoCorasick::new(endings.keys().map(|ending| format!("{ending:05}"))).ok(),
            sixth: endings.into_values().collect(),
        }
    }

    /// Whether the frame may hold a wanted event.
    pub fn passes(&self, frame: &[u8]) -> bool {
        let Some(search) = &self.search else {
            return true;
        };
        let mut from = 0;
        while let Some(found) = search.find(Input::new(frame).range(from..)) {
            let before = found.start().checked_sub(1).map(|at| frame[at]);
            let after = frame.get(found.end());
            let begins = match before {
                Some(digit @ b'0'..=b'9') => {
                    self.sixth[found.pattern().as_usize()] & (1 << (digit - b'0')) != 0
                }
                _ => true,
            };
            if begins && !after.is_some_and(u8::is_ascii_digit) {
                return true;
            }
            from = found.start() + 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_looks_for_whole_ids() {
        let gate = Gate::new([38412, 138_412, 13]);
        for (frame, passes) in [
            ("logid=\"0100038412\"", true),
            ("logid=0100138412", true),
            ("logid=0100238412", false),
            ("logid=01000384120", false),
            ("|38412|", true),
            ("00013", true),
            ("100013 000013", true),
            ("3841238412", false),
            ("", false),
        ] {
            assert_eq!(gate.passes(frame.as_bytes()), passes, "{frame}");
        }
    }

    #[test]
    fn an_id_within_a_false_match_is_found() {
        let gate = Gate::new([12_121]);
        assert!(gate.passes(b"x12121212121 012121"));
        assert!(!gate.passes(b"1212121"));
    }
}
