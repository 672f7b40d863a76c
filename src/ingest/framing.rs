//! Where one message ends and the next begins in a stream: octet counting, LF, CRLF, NUL or the end, told frame by frame (RFC 6587).
//!
//! Nothing here waits, reads or copies: bytes are appended to [`Decoder::space`], and [`Decoder::next`] lends out what they hold.

use memchr::memchr2;
use memchr::memchr3_iter;

/// How much is asked of the kernel at once.
const READ_BYTES: usize = 64 * 1024;

/// Less room than this in the buffer is not worth a read.
const MIN_READ_BYTES: usize = 8 * 1024;

/// The longest run of digits that is looked at as a count; a longer one is text.
const MAX_COUNT_DIGITS: usize = 20;

/// Holds the longest `NNN <PRI>`, so that one cut by a read is seen whole before a line is called too long.
const SLACK_BYTES: usize = 32;

/// What a stream says next.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// One message, without its framing and without trailing LF, CR, NUL and blanks. Never empty.
    Frame(&'a [u8]),
    /// A message longer than the limit; its bytes are skipped.
    TooLong,
    /// A count above the limit, which is therefore not believed; the text behind it is read up to a LF, a NUL or the next `NNN <PRI>`.
    BadCount,
    /// The stream ended inside a counted message.
    Cut,
    /// The stream's first bytes are those of another protocol.
    Foreign(Protocol),
}

/// Another protocol, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 3195, which FortiOS calls `legacy-reliable`.
    Beep,
    /// A TLS record with a handshake message.
    Tls,
    /// Neither: on a port where TLS is expected, somebody who speaks without it.
    Plain,
}

impl Protocol {
    /// What a stream with these first bytes speaks.
    pub fn of(first: &[u8]) -> Self {
        match foreign(first) {
            Prefix::Yes(protocol) => protocol,
            // One byte is enough to tell TLS, whose record may come in pieces.
            Prefix::Partly if first.first() == Some(&HANDSHAKE) => Self::Tls,
            Prefix::Partly | Prefix::No => Self::Plain,
        }
    }
}

/// The type of a TLS record that holds a handshake message.
const HANDSHAKE: u8 = 0x16;

/// Cuts one stream into messages. Memory is bounded by the limit, whatever a peer claims.
pub struct Decoder {
    max_bytes: usize,
    buffer: Vec<u8>,
    start: usize,
    state: State,
    fresh: bool,
    counts_seen: bool,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A message may begin at the next byte.
    Between,
    /// In a message that ends with a LF or NUL; the first `searched` bytes hold neither.
    Line { searched: usize, resync: bool },
    /// In a message of a known length.
    Counted { length: usize },
    /// In the rest of a message that was too long; what was looked at once is not looked at again with less before it.
    Discard { searched: usize, resync: bool },
}

enum Begin {
    Line,
    Count { header: usize, length: usize },
    BadCount { header: usize },
}

/// Whether bytes begin with something; `Partly`: so far they do.
enum Prefix<T> {
    Yes(T),
    No,
    Partly,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            buffer: Vec::new(),
            start: 0,
            state: State::Between,
            fresh: true,
            counts_seen: false,
            ended: false,
        }
    }

    /// Changes the limit from the next message on.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// Where the next bytes of the stream are to be appended, with room for a good many. Call it when [`next`](Self::next) has given `None`.
    pub fn space(&mut self) -> &mut Vec<u8> {
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.buffer.capacity() - self.buffer.len() < MIN_READ_BYTES {
            // By what has come, never by what a count promises.
            let len = self.buffer.len();
            self.buffer
                .reserve(len.max(READ_BYTES - len.min(READ_BYTES)));
        }
        &mut self.buffer
    }

    /// Gives the buffer's memory back if it holds nothing, since thousands of connections are silent for hours.
    pub fn rest(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    /// Whether the bytes so far end between two messages.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Between) && self.start == self.buffer.len()
    }

    /// The stream has ended: what stands without a trailer is a message too.
    pub fn finish(&mut self) {
        self.ended = true;
    }

    /// The next event, or `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Event<'_>> {
        loop {
            let data = &self.buffer[self.start..];
            match self.state {
                State::Between => {
                    let filler = data.iter().take_while(|b| is_filler(**b)).count();
                    self.start += filler;
                    let data = &data[filler..];
                    if self.fresh {
                        match foreign(data) {
                            Prefix::Partly if !self.ended => return None,
                            Prefix::Yes(protocol) => {
                                self.fresh = false;
                                return Some(Event::Foreign(protocol));
                            }
                            _ => self.fresh = data.is_empty(),
                        }
                    }
                    let begin = match begin(data, self.max_bytes) {
                        Some(begin) => begin,
                        None if self.ended && !data.is_empty() => Begin::Line,
                        None => return None,
                    };
                    match begin {
                        Begin::Line => {
                            // Where counts were in use, text that does not even begin with a PRI tells of a lost place in the stream.
                            self.state = State::Line {
                                searched: 0,
                                resync: self.counts_seen && data[0] != b'<',
                            };
                        }
                        Begin::Count { header, length } => {
                            self.counts_seen = true;
                            self.start += header;
                            self.state = State::Counted { length };
                        }
                        Begin::BadCount { header } => {
                            self.start += header;
                            self.state = State::Line {
                                searched: 0,
                                resync: true,
                            };
                            return Some(Event::BadCount);
                        }
                    }
                }
                State::Line { searched, resync } => {
                    // Never more than is looked at when it comes byte by byte: an end that shows itself only behind it is none.
                    let most = self.max_bytes + SLACK_BYTES;
                    let window = data.len().min(most + 1);
                    let end = line_end(&data[..window], searched, 1, resync);
                    if end.unwrap_or(window) > most {
                        // So many and no more, so that the sizes of reads change nothing.
                        self.start += self.max_bytes + 1;
                        self.state = State::Discard {
                            searched: 0,
                            resync: resync || self.counts_seen,
                        };
                        return Some(Event::TooLong);
                    }
                    let end = match end {
                        Ok(end) => end,
                        Err(_) if self.ended => data.len(),
                        Err(searched) => {
                            self.state = State::Line { searched, resync };
                            return None;
                        }
                    };
                    // The trailer is left to the next round, which skips it as filler.
                    let from = self.start;
                    self.start += end;
                    self.state = State::Between;
                    let line = &self.buffer[from..from + end];
                    if line.strip_suffix(b"\r").unwrap_or(line).len() > self.max_bytes {
                        return Some(Event::TooLong);
                    }
                    return Some(Event::Frame(trim_end(line)));
                }
                State::Counted { length } => {
                    if data.len() >= length {
                        let from = self.start;
                        self.start += length;
                        self.state = State::Between;
                        return Some(Event::Frame(trim_end(&self.buffer[from..from + length])));
                    }
                    if !self.ended {
                        return None;
                    }
                    self.start = self.buffer.len();
                    self.state = State::Between;
                    return Some(Event::Cut);
                }
                State::Discard { searched, resync } => {
                    let searched = match line_end(data, searched, 0, resync) {
                        Ok(end) => {
                            self.start += end;
                            self.state = State::Between;
                            continue;
                        }
                        Err(searched) => searched,
                    };
                    let kept = if resync && !self.ended {
                        data.len().min(SLACK_BYTES)
                    } else {
                        0
                    };
                    let dropped = data.len() - kept;
                    self.start += dropped;
                    self.state = State::Discard {
                        searched: searched.saturating_sub(dropped),
                        resync,
                    };
                    return None;
                }
            }
        }
    }
}

/// What may stand between two messages.
fn is_filler(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0 | b' ')
}

/// A message without the LF, CR, NUL and blanks that a sender may have put behind it.
pub fn trim_end(mut message: &[u8]) -> &[u8] {
    while let [head @ .., last] = message
        && is_filler(*last)
    {
        message = head;
    }
    message
}

/// How a message begins; `None`: more bytes will tell.
fn begin(data: &[u8], max_bytes: usize) -> Option<Begin> {
    if !matches!(data.first()?, b'1'..=b'9') {
        return Some(Begin::Line);
    }
    let digits = data
        .iter()
        .take(MAX_COUNT_DIGITS + 1)
        .take_while(|b| b.is_ascii_digit())
        .count();
    if digits > MAX_COUNT_DIGITS {
        return Some(Begin::Line);
    }
    if *data.get(digits)? != b' ' {
        return Some(Begin::Line);
    }
    let header = digits + 1;
    // "54 <1 minute elapsed" is text: a count is believed only in front of something that begins a message.
    let least = match message_start(&data[header..]) {
        Prefix::Yes(length) => length,
        Prefix::No => return Some(Begin::Line),
        Prefix::Partly => return None,
    };
    let length = data[..digits].iter().fold(0, |n: usize, d| {
        n.saturating_mul(10).saturating_add(usize::from(d - b'0'))
    });
    Some(if length > max_bytes {
        Begin::BadCount { header }
    } else if length < least {
        Begin::Line
    } else {
        Begin::Count { header, length }
    })
}

/// A PRI, or what the body of a message without one begins with. Yields its length.
fn message_start(data: &[u8]) -> Prefix<usize> {
    let mut partly = false;
    for word in [&b"{\""[..], b"CEF:", b"date="] {
        if data.starts_with(word) {
            return Prefix::Yes(word.len());
        }
        partly |= word.starts_with(data);
    }
    match pri(data) {
        Prefix::No if partly => Prefix::Partly,
        found => found,
    }
}

/// A complete `<1-3 digits>`. Yields its length.
fn pri(data: &[u8]) -> Prefix<usize> {
    match data.split_first() {
        None => return Prefix::Partly,
        Some((b'<', _)) => {}
        Some(_) => return Prefix::No,
    }
    let digits = data[1..].iter().take_while(|b| b.is_ascii_digit()).count();
    match data.get(1 + digits) {
        _ if digits > 3 => Prefix::No,
        None => Prefix::Partly,
        Some(b'>') if digits > 0 => Prefix::Yes(digits + 2),
        Some(_) => Prefix::No,
    }
}

fn foreign(data: &[u8]) -> Prefix<Protocol> {
    let mut partly = false;
    for (word, protocol) in [
        (&[HANDSHAKE, 3][..], Protocol::Tls),
        (b"RPY 0", Protocol::Beep),
        (b"MSG 0", Protocol::Beep),
    ] {
        if data.starts_with(word) {
            return Prefix::Yes(protocol);
        }
        partly |= word.starts_with(data);
    }
    if partly { Prefix::Partly } else { Prefix::No }
}

/// Where a line ends: at its LF or NUL, in a stream that has lost its place also in front of `NNN <PRI>`.
/// A count in front of `least` is none: it was looked at when the line began. `Err` says how far the search is done.
///
/// A stream in step is never cut at `NNN <PRI>`: a URL that a FortiGate logs may spell one.
fn line_end(data: &[u8], searched: usize, least: usize, resync: bool) -> Result<usize, usize> {
    let rest = &data[searched..];
    if !resync {
        return match memchr2(b'\n', 0, rest) {
            Some(at) => Ok(searched + at),
            None => Err(data.len()),
        };
    }
    for at in memchr3_iter(b'\n', 0, b'<', rest).map(|at| searched + at) {
        if data[at] != b'<' {
            return Ok(at);
        }
        let Some(count) = count_before(&data[..at]) else {
            continue;
        };
        match pri(&data[at..]) {
            Prefix::Yes(_) if count >= least => return Ok(count),
            Prefix::Partly => return Err(at),
            _ => {}
        }
    }
    Err(data.len())
}

/// Where the count begins that `head` ends with; leading zeros belong to what stands before.
fn count_before(head: &[u8]) -> Option<usize> {
    let head = head.strip_suffix(b" ")?;
    let digits = head
        .iter()
        .rev()
        .take(MAX_COUNT_DIGITS + 1)
        .take_while(|b| b.is_ascii_digit())
        .count();
    if digits > MAX_COUNT_DIGITS {
        return None;
    }
    let run = head.len() - digits;
    let zeros = head[run..].iter().take_while(|b| **b == b'0').count();
    (zeros < digits).then_some(run + zeros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a decoder said, owned.
    #[derive(Debug, PartialEq, Eq)]
    enum Said {
        Frame(String),
        TooLong,
        BadCount,
        Cut,
        Foreign(Protocol),
    }

    fn decode<'a>(max_bytes: usize, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Said> {
        let mut decoder = Decoder::new(max_bytes);
        let mut said = Vec::new();
        for piece in pieces {
            decoder.space().extend_from_slice(piece);
            take(&mut decoder, &mut said);
            decoder.rest();
        }
        decoder.finish();
        take(&mut decoder, &mut said);
        said
    }

    fn take(decoder: &mut Decoder, said: &mut Vec<Said>) {
        while let Some(event) = decoder.next() {
            said.push(match event {
                Event::Frame(bytes) => {
                    assert!(!bytes.is_empty());
                    Said::Frame(String::from_utf8_lossy(bytes).into_owned())
                }
                Event::TooLong => Said::TooLong,
                Event::BadCount => Said::BadCount,
                Event::Cut => Said::Cut,
                Event::Foreign(protocol) => Said::Foreign(protocol),
            });
        }
    }

    /// Whole and byte by byte; both must say the same.
    fn both_ways(max_bytes: usize, stream: &[u8]) -> Vec<Said> {
        let whole = decode(max_bytes, [stream]);
        assert_eq!(decode(max_bytes, stream.chunks(1)), whole);
        whole
    }

    fn frames(stream: &str) -> Vec<String> {
        both_ways(1000, stream.as_bytes())
            .into_iter()
            .map(|said| match said {
                Said::Frame(text) => text,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn every_framing_is_told_frame_by_frame() {
        assert_eq!(
            frames("6 <1>abc<2>de\n\r\n<3>fg\r\n<4>hi\x008 <5>jk\r\n \n\0 6 <6>lm\0<7>no"),
            [
                "<1>abc", "<2>de", "<3>fg", "<4>hi", "<5>jk", "<6>lm", "<7>no"
            ]
        );
    }

    #[test]
    fn a_counted_message_may_hold_line_ends_and_counts() {
        assert_eq!(
            frames("20 <1>a\nb\0c 9 <2>x\n<3>d<4>e\n"),
            ["<1>a\nb\0c 9 <2>x\n<3>d", "<4>e"]
        );
    }

    #[test]
    fn a_count_needs_the_beginning_of_a_message_behind_it() {
        assert_eq!(
            frames("54 <1 minute elapsed\n<134>a\n"),
            ["54 <1 minute elapsed", "<134>a"]
        );
        for text in [
            "54 <1234>x",
            "54 <>x",
            "54 <a>",
            "54  <1>x",
            "54<1>x",
            "0 <1>x",
            "054 <1>x",
            "-5 <1>x",
            "2 <1>x",
            "54 {x",
            "54 CEFx",
            "54 dates",
            "54",
            "54 ",
            "2026-04-03T00:31:09 10.0.0.1 date=x",
            "123456789012345678901 <1>x",
        ] {
            assert_eq!(
                frames(&format!("{text}\n<2>next\n")),
                [text.trim_end(), "<2>next"]
            );
            assert_eq!(frames(text), [text.trim_end()], "at the end of the stream");
        }
        for (counted, message) in [
            ("8 {\"a\":1}\n", "{\"a\":1}"),
            ("7 CEF:0|x", "CEF:0|x"),
            ("7 date=20", "date=20"),
            ("3 <1>", "<1>"),
        ] {
            assert_eq!(frames(counted), [message]);
        }
    }

    #[test]
    fn a_count_above_the_limit_is_no_count() {
        let frame = |text: &str| Said::Frame(text.to_owned());
        assert_eq!(
            both_ways(100, b"999999 <189>cut off\n<1>next\n"),
            [Said::BadCount, frame("<189>cut off"), frame("<1>next")]
        );
        assert_eq!(
            both_ways(100, b"101 <189>cut off=06 <1>abc6 <2>def"),
            [
                Said::BadCount,
                frame("<189>cut off=0"),
                frame("<1>abc"),
                frame("<2>def")
            ]
        );
        assert_eq!(
            both_ways(
                100,
                b"99999999999999999999 <1>x99999999999999999999 <2>y\n6 <3>abc"
            ),
            [
                Said::BadCount,
                frame("<1>x"),
                Said::BadCount,
                frame("<2>y"),
                frame("<3>abc")
            ]
        );
    }

    #[test]
    fn a_line_that_is_too_long_costs_itself_alone() {
        let next = || Said::Frame("<1>next".to_owned());
        for long in [101, 132, 133, 134, 1000, 300_000] {
            for trailer in ["\n", "\r\n", "\0"] {
                let stream = format!("{}{trailer}<1>next\n", "A".repeat(long));
                assert_eq!(both_ways(100, stream.as_bytes()), [Said::TooLong, next()]);
            }
            assert_eq!(both_ways(100, "A".repeat(long).as_bytes()), [Said::TooLong]);
        }
        for trailer in ["\n", "\r\n", "\0", ""] {
            let longest = "A".repeat(100);
            assert_eq!(
                both_ways(100, format!("{longest}{trailer}").as_bytes()),
                [Said::Frame(longest)]
            );
        }
        let resync = format!("999 <1>{}7 <1>next", "A".repeat(500));
        assert_eq!(
            both_ways(100, resync.as_bytes()),
            [Said::BadCount, Said::TooLong, next()]
        );
    }

    #[test]
    fn a_line_in_step_is_not_cut_where_it_spells_a_count() {
        let line = "<1>url=\"x 9 <2>forged\" y";
        assert_eq!(frames(&format!("{line}\n{line}\n")), [line, line]);
    }

    #[test]
    fn a_sender_that_counts_wrong_is_found_again() {
        // Counted in characters, sent in bytes: one byte too many stands before the next count.
        assert_eq!(
            frames("6 <1>abé6 <2>def6 <3>ghi")
                .last()
                .map(String::as_str),
            Some("<3>ghi")
        );
    }

    #[test]
    fn a_counted_message_without_its_end_is_no_message() {
        assert_eq!(both_ways(100, b"50 <1>user=ali"), [Said::Cut]);
    }

    #[test]
    fn other_protocols_are_told_by_their_first_bytes() {
        for (stream, protocol) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], Protocol::Tls),
            (b"RPY 0 0 . 0 52\r\n", Protocol::Beep),
            (b"MSG 0 1 . 52 120\r\n", Protocol::Beep),
        ] {
            assert_eq!(both_ways(100, stream)[0], Said::Foreign(protocol));
        }
        assert_eq!(frames("RPX\nRPY 0\nMSG"), ["RPX", "RPY 0", "MSG"]);
        for (first, protocol) in [
            (&b"\x16"[..], Protocol::Tls),
            (b"\x16\x03\x01", Protocol::Tls),
            (b"\x16\x02", Protocol::Plain),
            (b"RPY 0 0 ", Protocol::Beep),
            (b"RPY", Protocol::Plain),
            (b"713 <189", Protocol::Plain),
            (b"POST / H", Protocol::Plain),
        ] {
            assert_eq!(Protocol::of(first), protocol, "{first:?}");
        }
    }

    #[test]
    fn a_silent_stream_holds_no_memory_and_a_promise_costs_none() {
        let mut decoder = Decoder::new(16 * 1024 * 1024);
        decoder.space().extend_from_slice(b"<1>a\n16777216 <1>b");
        assert_eq!(decoder.next(), Some(Event::Frame(b"<1>a")));
        assert_eq!(decoder.next(), None);
        assert!(decoder.space().capacity() <= 2 * READ_BYTES);
        let mut decoder = Decoder::new(100);
        decoder.space().extend_from_slice(b"<1>a\n");
        assert_eq!(decoder.next(), Some(Event::Frame(b"<1>a")));
        assert_eq!(decoder.next(), None);
        decoder.rest();
        assert_eq!(decoder.buffer.capacity(), 0);
    }

    /// Pieces of streams in which the decoder has decisions to make.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => "<[0-9]{1,3}>[a-z =\"0-9]{0,40}".prop_map(String::into_bytes),
            3 => "<[0-9]{1,3}>[a-z\\n =\"0-9]{0,40}".prop_map(|m| format!("{} {m}", m.len()).into_bytes()),
            2 => "[0-9]{1,22} ?(<[0-9]{0,4}>?|\\{\"?|CEF:|date=)".prop_map(String::into_bytes),
            3 => prop::sample::select(vec!["\n", "\r\n", "\0", " ", "<", ">", "0", "RPY 0", "\u{16}\u{3}"]).prop_map(|s| s.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..120),
            1 => prop::collection::vec(prop::sample::select(b"<>0123456789 \n\0ab".to_vec()), 0..120),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn a_run_of_digits_too_long_for_a_count_stays_so_while_its_head_is_dropped() {
        let long = "1".repeat(MAX_COUNT_DIGITS + 2);
        let stream = format!("3 <0><0>{}{long} <00>{}", "x".repeat(60), "y".repeat(60));
        assert_eq!(
            both_ways(10, stream.as_bytes()),
            [Said::Frame("<0>".to_owned()), Said::TooLong]
        );
    }

    #[test]
    fn an_end_that_shows_itself_behind_what_is_looked_at_is_none_however_much_is_read() {
        let stream = format!("3 <0>abcde{} <189>pl999999999 <189>next", "9".repeat(22));
        let said = both_ways(16, stream.as_bytes());
        assert_eq!(said[0], Said::Frame("<0>".to_owned()));
        assert_eq!(said[1], Said::TooLong);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_of_any_size_say_the_same(stream in stream(), cuts in prop::collection::vec(1..50usize, 1..30), max_bytes in 10..60usize) {
            let whole = both_ways(max_bytes, &stream);
            let (mut rest, mut pieces, mut cuts) = (&stream[..], Vec::new(), cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            prop_assert_eq!(decode(max_bytes, pieces), whole);
        }

        #[test]
        fn a_record_behind_garbage_and_a_line_end_is_found(garbage in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"<>0123456789 ".to_vec())], 0..200)) {
            let mut stream = b"x".to_vec();
            stream.extend(garbage.into_iter().filter(|b| !matches!(b, b'\n' | 0)));
            stream.extend_from_slice(b"\n<189>the record\n");
            let said = both_ways(1000, &stream);
            prop_assert_eq!(said.last(), Some(&Said::Frame("<189>the record".to_owned())));
        }
    }
}
