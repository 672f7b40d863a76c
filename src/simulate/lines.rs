//! Lines ready to be sent, one behind the other with their framing, so that many go out in one write.

use std::io::Write;
use std::ops::Range;

use super::target::Transport;

/// Some lines and where each begins.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// One line's framing and text begin here; it ends where the next one begins.
struct Place {
    start: usize,
    text: Range<usize>,
}

impl Lines {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }

    pub(super) fn push(&mut self, line: &str, transport: Transport) {
        let start = self.bytes.len();
        if matches!(transport, Transport::TcpCounted | Transport::Tls) {
            write!(self.bytes, "{} ", line.len()).expect("writing to a Vec");
        }
        let from = self.bytes.len();
        self.bytes.extend_from_slice(line.as_bytes());
        let text = from..self.bytes.len();
        if transport == Transport::TcpLines {
            self.bytes.push(b'\n');
        }
        self.places.push(Place { start, text });
    }

    /// These lines with their framing, as one piece of a stream.
    pub(super) fn stream(&self, which: Range<usize>) -> &[u8] {
        let start = |at: usize| {
            let place = self.places.get(at);
            place.map_or(self.bytes.len(), |place| place.start)
        };
        &self.bytes[start(which.start)..start(which.end)]
    }

    /// The text of each of these lines.
    pub(super) fn texts(&self, which: Range<usize>) -> impl Iterator<Item = &[u8]> {
        self.places[which]
            .iter()
            .map(|place| &self.bytes[place.text.clone()])
    }
}
