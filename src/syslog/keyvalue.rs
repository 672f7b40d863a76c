//! FortiOS's `default` format: `date=2024-07-12 devname="FGT" msg="…"`. The tokeniser also serves csv and rfc5424.
//!
//! A quoted value ends at a quote that is followed by a separator. `\"` is a quote in the text, and the only escape:
//! FortiOS doubles other backslashes only sometimes. So a value that ends in a backslash looks like an escaped quote, and
//! a quote that FortiOS did not escape like the end. Where two readings are possible, the one counts in which the rest of
//! the line is well-formed; an attacker can't bring that about, for it takes a bare quote in his text.
//!
//! Where a line feed in a value cuts a message in two (a stream whose messages end with LF), the second piece is an
//! attacker's text up to the quote that closed the value. That quote has no partner, which is how [`Fields::torn`] is told.

use std::borrow::Cow;

use memchr::memchr;

use super::Fields;
use super::Format;
use super::RecordError;
use super::Value;
use super::is_blank;
use super::is_name;
use super::unescape;

pub(super) const FORMAT: Format = Format {
    name: "kv",
    parse: |header| Some(fields(header.body, Separator::Blank)),
};

/// What stands between two fields.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Separator {
    Blank,
    Comma,
}

/// How many doubtful quotes per line are looked into; each may cost a look at the rest of the line.
const MAX_LOOKS: u32 = 16;
/// How many quotes one such look may try.
const MAX_TRIES: u32 = 256;

/// All fields of a body. Words that are no fields are skipped.
pub(super) fn fields(body: &[u8], separator: Separator) -> Result<Fields<'_>, RecordError> {
    let mut fields = Fields::new(decode);
    let mut scan = Scan {
        bytes: body,
        separator,
        looks: MAX_LOOKS,
        settled: false,
        doubtful: false,
        torn: false,
    };
    let mut at = 0;
    // Where the last value was opened and closed, while nothing but its separator has followed.
    let mut quoted: Option<(usize, usize)> = None;
    loop {
        at = scan.skip_separators(at);
        if at >= body.len() {
            fields.torn = scan.torn;
            return Ok(fields);
        }
        let Some(equals) = scan.name_end(at) else {
            if let Some((open, closed)) = quoted.take() {
                // A word that is no field right behind a quoted value: that quote was in the text, not its end.
                if let Some(end) = scan.close(open, closed + 1, Follow::Field) {
                    fields.doubtful |= scan.doubtful;
                    fields.amend(&body[open..end]);
                    at = end + 1;
                    continue;
                }
            }
            at = scan.bare(at);
            continue;
        };
        let name = &body[at..equals];
        let start = equals + 1;
        let value = if body.get(start) == Some(&b'"') {
            let open = start + 1;
            let end = scan.close(open, open, Follow::Separator);
            // Without a closing quote the value is the rest of the line: FortiOS cuts long messages.
            // A cut right behind the opening quote is rather a closing one.
            scan.torn |= end.is_none() && open == body.len();
            let end = end.unwrap_or(body.len());
            quoted = Some((open, end));
            at = end + 1;
            &body[open..end]
        } else {
            quoted = None;
            at = scan.bare(start);
            &body[start..at]
        };
        fields.push(name, Value::Raw(value))?;
        fields.doubtful |= scan.doubtful;
    }
}

fn decode(value: &[u8]) -> Cow<'_, str> {
    unescape(value, b"\"")
}

/// What must follow a quote for it to end the value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Separator,
    Field,
}

struct Scan<'a> {
    bytes: &'a [u8],
    separator: Separator,
    looks: u32,
    /// The rest of the line is well-formed if every backslash before a quote is read as its number suggests.
    settled: bool,
    doubtful: bool,
    /// A quote has no partner.
    torn: bool,
}

/// Whether the rest of a line is well-formed, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It isn't.
    Broken,
    /// Reading every doubtful quote as its backslashes suggest.
    AsWritten,
    /// Only with another reading.
    Otherwise,
}

impl Scan<'_> {
    #[inline]
    fn separates(&self, byte: u8) -> bool {
        match self.separator {
            Separator::Blank => is_blank(byte),
            Separator::Comma => byte == b',' || (is_blank(byte) && byte != b' '),
        }
    }

    #[inline]
    fn skip_separators(&self, at: usize) -> usize {
        self.run(at, |byte| is_blank(byte) || self.separates(byte))
    }

    #[inline]
    fn skip_word(&self, at: usize) -> usize {
        self.run(at, |byte| !self.separates(byte))
    }

    /// Behind a word without quotes around it; one inside tells of a torn message.
    #[inline]
    fn bare(&mut self, at: usize) -> usize {
        let end = self.skip_word(at);
        self.torn |= self.bytes[at..end].contains(&b'"');
        end
    }

    /// The place of the `=` if a field begins at `at`.
    #[inline]
    fn name_end(&self, at: usize) -> Option<usize> {
        let end = self.run(at, is_name);
        (end > at && self.bytes.get(end) == Some(&b'=')).then_some(end)
    }

    /// Behind the bytes from `at` on that are so.
    #[inline]
    fn run(&self, at: usize, is_so: impl Fn(u8) -> bool) -> usize {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let length = rest.iter().position(|byte| !is_so(*byte));
        at + length.unwrap_or(rest.len())
    }

    /// Whether what stands at `at` ends a value: the end of the line, or a separator.
    #[inline]
    fn ends(&self, at: usize) -> bool {
        self.bytes.get(at).is_none_or(|&byte| self.separates(byte))
    }

    /// Whether the line ends at `at`, or a separator and a field follow.
    fn ends_before_field(&self, at: usize) -> bool {
        if !self.ends(at) {
            return false;
        }
        let next = self.skip_separators(at);
        next == self.bytes.len() || self.name_end(next).is_some()
    }

    /// The closing quote of the value opened before `open`, looked for from `from` on.
    #[inline]
    fn close(&mut self, open: usize, from: usize, follow: Follow) -> Option<usize> {
        let mut from = from;
        while let Some(quote) = self.next_quote(from) {
            from = quote + 1;
            let follows = match follow {
                Follow::Separator => self.ends(from),
                Follow::Field => self.ends_before_field(from),
            };
            if !follows {
                // A field behind a separator that the value begins with: the end of another value has opened this one.
                let first = self.bytes[open];
                self.torn |= (is_blank(first) || first == b',') && self.bytes[quote - 1] == b'=';
                continue;
            }
            let run = self.backslashes(open, quote);
            if run == 0 || self.decide(open, quote, run) {
                return Some(quote);
            }
        }
        None
    }

    #[inline]
    fn next_quote(&self, from: usize) -> Option<usize> {
        memchr(b'"', self.bytes.get(from..)?).map(|at| from + at)
    }

    #[inline]
    fn backslashes(&self, open: usize, quote: usize) -> usize {
        self.bytes[open..quote]
            .iter()
            .rev()
            .take_while(|byte| **byte == b'\\')
            .count()
    }

    /// Whether a quote after backslashes ends its value. An odd number suggests an escaped quote, an even one the end.
    #[cold]
    fn decide(&mut self, open: usize, quote: usize, run: usize) -> bool {
        let suggested = run.is_multiple_of(2);
        if self.settled || !self.ends_before_field(quote + 1) {
            return suggested;
        }
        if self.looks == 0 {
            self.doubtful = true;
            return suggested;
        }
        self.looks -= 1;
        let mut tries = MAX_TRIES;
        match self.reading(open, quote, suggested, &mut tries) {
            Rest::AsWritten => {
                self.settled = true;
                suggested
            }
            Rest::Otherwise => suggested,
            Rest::Broken => {
                self.doubtful = true;
                match self.reading(open, quote, !suggested, &mut tries) {
                    Rest::Broken => suggested,
                    Rest::AsWritten | Rest::Otherwise => !suggested,
                }
            }
        }
    }

    /// How the rest of the line looks when the quote ends the value, or doesn't.
    fn reading(&self, open: usize, quote: usize, ends: bool, tries: &mut u32) -> Rest {
        if ends {
            self.outside(quote + 1, tries)
        } else {
            self.inside(open, quote + 1, tries)
        }
    }

    /// The rest of the line from within a quoted value, taken strictly.
    fn inside(&self, open: usize, mut from: usize, tries: &mut u32) -> Rest {
        loop {
            if *tries == 0 {
                return Rest::Broken;
            }
            *tries -= 1;
            let Some(quote) = self.next_quote(from) else {
                return Rest::Broken;
            };
            from = quote + 1;
            let run = self.backslashes(open, quote);
            let ends = self.ends_before_field(from);
            match (run, ends) {
                (0, false) => return Rest::Broken,
                (0, true) => return self.outside(from, tries),
                (_, false) => {}
                // At the end of the line only one reading is well-formed.
                (_, true) if self.skip_separators(from) == self.bytes.len() => {
                    return if run.is_multiple_of(2) {
                        Rest::AsWritten
                    } else {
                        Rest::Otherwise
                    };
                }
                (_, true) => {
                    let suggested = run.is_multiple_of(2);
                    let as_suggested = self.reading(open, quote, suggested, tries);
                    if as_suggested != Rest::Broken {
                        return as_suggested;
                    }
                    return match self.reading(open, quote, !suggested, tries) {
                        Rest::Broken => Rest::Broken,
                        Rest::AsWritten | Rest::Otherwise => Rest::Otherwise,
                    };
                }
            }
        }
    }

    /// The rest of the line from behind a value, taken strictly: nothing but fields, quotes only around values.
    fn outside(&self, mut at: usize, tries: &mut u32) -> Rest {
        loop {
            at = self.skip_separators(at);
            if at == self.bytes.len() {
                return Rest::AsWritten;
            }
            let Some(equals) = self.name_end(at) else {
                return Rest::Broken;
            };
            let start = equals + 1;
            if self.bytes.get(start) == Some(&b'"') {
                return self.inside(start + 1, start + 1, tries);
            }
            at = self.skip_word(start);
            if memchr(b'"', &self.bytes[start..at]).is_some() {
                return Rest::Broken;
            }
        }
    }
}
