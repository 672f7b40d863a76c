//! The gate: a byte search that throws away, before any parsing, what can't be a wanted event.
//!
//! A FortiGate may send its whole traffic log. What passes is parsed in full and judged by its fields, never by the bytes.
//! Every format names the field `logid` in plain bytes before its digits, or is CEF with the id in its header; searching
//! these two words takes half the time that searching the ids' digits takes.

use memchr::memmem::Finder;

use super::cef;
use super::header;
use super::id_of;
use super::id_of_digits;
use super::is_blank;

/// Finds the wanted message ids. Whatever [`super::Record::message_id`] reads as one of them, passes.
#[derive(Clone, Debug)]
pub struct Gate {
    ids: Vec<u32>,
    logid: Finder<'static>,
    vendor: Finder<'static>,
}

const LOGID: &[u8] = b"logid";
const VENDOR: &[u8] = b"|Fortinet|";

impl Gate {
    /// The gate for these message ids.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Self {
        Self {
            ids: ids.into_iter().collect(),
            logid: Finder::new(LOGID),
            vendor: Finder::new(VENDOR),
        }
    }

    /// Whether the frame may hold a wanted event.
    pub fn passes(&self, frame: &[u8]) -> bool {
        let mut rest = frame;
        while let Some(at) = self.logid.find(rest) {
            rest = &rest[at + LOGID.len()..];
            if self.wants(id_of_digits(digits_after(rest))) {
                return true;
            }
        }
        // Most lines begin with a field, which CEF never does, and are searched once.
        !header::begins_with_field(frame)
            && self.vendor.find_iter(frame).any(|at| {
                let id = cef::header_id(&frame[at + VENDOR.len()..]);
                id.is_some_and(|id| self.wants(id_of(id.trim_ascii())))
            })
    }

    fn wants(&self, id: Option<u32>) -> bool {
        id.is_some_and(|id| self.ids.contains(&id))
    }
}

/// The digits behind a field's name, whatever quotes, signs and blanks the format puts between them.
fn digits_after(rest: &[u8]) -> &[u8] {
    let start = rest
        .iter()
        .position(|byte| !(is_blank(*byte) || matches!(byte, b'"' | b'=' | b':')))
        .unwrap_or(rest.len());
    let rest = &rest[start..];
    let end = rest
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syslog::parse;

    #[test]
    fn the_gate_looks_for_whole_ids() {
        let gate = Gate::new([38412, 138_412, 13]);
        for (frame, passes) in [
            ("logid=\"0100038412\"", true),
            ("logid=0100138412", true),
            ("logid=\" 0100038412 \"", true),
            ("{\"logid\" : \"0100038412\"}", true),
            ("{\"logid\":100038412}", true),
            ("url=\"logid=1\" logid=0100038412", true),
            ("CEF:0|Fortinet|Fortigate|v7|38412|e|5|", true),
            ("CEF:0|Fortinet|Forti\\|gate|v7|00013|e|5|", true),
            ("CEF:0|Fortinet|Fortigate|v7|00014|e|5|", false),
            ("logid=0100238412", false),
            ("logid=01000384120", false),
            ("logid=00013", true),
            ("logid=0013", false),
            ("38412 msg=0100038412", false),
            ("logid", false),
            ("|Fortinet|", false),
            ("", false),
        ] {
            assert_eq!(gate.passes(frame.as_bytes()), passes, "{frame}");
            let id = parse(frame.as_bytes()).ok().and_then(|r| r.message_id());
            assert!(
                passes || id.is_none_or(|id| !gate.ids.contains(&id)),
                "{frame}"
            );
        }
    }
}
