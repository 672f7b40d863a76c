//! The other lines between two activations, made ahead: making one costs more than sending it.

use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;

use super::device::Device;
use super::lines::Lines;
use super::target::Transport;

/// So many lines are made, about a megabyte and a half, before they come round again.
const LINES: usize = 2048;

/// So many are made at a time, so that a short run makes only what it sends.
const STEP: usize = 64;

/// Older lines are made anew: a device's clock goes on.
const MAX_AGE: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    lines: Lines,
    next: usize,
    made: Instant,
    transport: Transport,
}

impl Pool {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            lines: Lines::default(),
            next: 0,
            made: Instant::now(),
            transport,
        }
    }

    /// Up to so many lines, and at least one.
    pub(super) fn take(
        &mut self,
        most: usize,
        device: &mut Device,
        now: Timestamp,
    ) -> (&Lines, Range<usize>) {
        if self.made.elapsed() > MAX_AGE {
            self.lines.clear();
            self.next = 0;
            self.made = Instant::now();
        }
        if self.next == LINES {
            self.next = 0;
        }
        if self.next == self.lines.len() {
            let mut line = String::with_capacity(1024);
            for _ in 0..most.min(STEP) {
                line.clear();
                device.noise(&mut line, now);
                self.lines.push(&line, self.transport);
            }
        }
        let from = self.next;
        self.next = self.lines.len().min(from + most);
        (&self.lines, from..self.next)
    }
}
