//! Bytes become a [`Record`]: a header where one really stands, then a body in one of [`FORMATS`].
//!
//! This is a security boundary. Attackers write parts of a log line (URLs, user agents, user names), so text inside a
//! value never becomes a field, and a field that decides something may stand only once.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use memchr::memchr;

mod cef;
mod clock;
mod csv;
mod gate;
mod header;
mod json;
mod keyvalue;
mod rfc5424;

pub use clock::Claimed;
pub use clock::parse_event_time;
pub use gate::Gate;

use header::Header;

/// One body format: its name, and its reader, which answers `None` to a body of another format.
pub struct Format {
    /// The name in `explain`, metrics and the FortiGate's own configuration (`kv` stands for `default`).
    pub name: &'static str,
    parse: for<'a> fn(&Header<'a>) -> Option<Result<Fields<'a>, RecordError>>,
}

/// Every format that is understood, most specific first; the last one takes what is left.
pub const FORMATS: &[Format] = &[
    json::FORMAT,
    cef::FORMAT,
    csv::FORMAT,
    rfc5424::FORMAT,
    keyvalue::FORMAT,
];

/// The most fields a record may have; FortiOS writes about a hundred at most.
const MAX_FIELDS: usize = 1024;

/// The fields that decide something. One that stands twice makes the record worthless: nobody can say which is true.
const DECIDING: [&str; 8] = [
    "logid",
    "type",
    "subtype",
    "devid",
    "vd",
    "user",
    "msg",
    "eventtime",
];

/// How many of [`DECIDING`] say what an event is and where it comes from; these never count after a doubtful quote.
const IDENTIFYING: usize = 5;

/// Why bytes are no record. The sentences never repeat what the message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing but blanks.
    #[error("the message is empty")]
    Empty,
    /// No format found a field in it.
    #[error(
        "no field was found in the message; the FortiGate's syslog format must be default, csv, cef, rfc5424 or json"
    )]
    NoFields,
    /// More than any FortiGate writes.
    #[error("the message has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A field that decides something stands twice.
    #[error("the field {0} stands twice, so nobody can say which one is true")]
    Twice(&'static str),
    /// A backslash before a quote can be read in two ways, and this field stands behind it.
    #[error("the field {0} stands behind a quote that can be read in two ways")]
    Doubtful(&'static str),
    /// CEF: the header and the extension name different message ids.
    #[error("the message id in the CEF header is not the one in the field logid")]
    IdsDisagree,
    /// CEF: fewer than seven header fields.
    #[error("the CEF header is not complete")]
    CefHeader,
    /// JSON: it can't be read.
    #[error("the message begins like JSON but can't be read as a JSON object")]
    Json,
    /// JSON: the message id is written with escapes, which no FortiGate does.
    #[error("the message id is written with escapes")]
    EscapedId,
}

/// What a value's bytes say once its format's escapes are undone.
type Decode = for<'a> fn(&'a [u8]) -> Cow<'a, str>;

/// The fields of one record, in the order of the message.
pub(crate) struct Fields<'a> {
    list: Vec<(&'a [u8], Value<'a>)>,
    decode: Decode,
    seen: u8,
    doubtful: bool,
    torn: bool,
}

/// A value still in the message's bytes, or one that had to be rewritten to be read.
enum Value<'a> {
    Raw(&'a [u8]),
    Text(String),
}

impl<'a> Fields<'a> {
    /// FortiOS writes up to some sixty fields per line; one allocation takes them.
    const USUAL: usize = 64;

    fn new(decode: Decode) -> Self {
        Self {
            list: Vec::with_capacity(Self::USUAL),
            decode,
            seen: 0,
            doubtful: false,
            torn: false,
        }
    }

    /// Adds a field; a deciding one that is there already is an error.
    #[inline]
    fn push(&mut self, key: &'a [u8], value: Value<'a>) -> Result<(), RecordError> {
        if let Some(which) = deciding(key) {
            if self.seen & (1 << which) != 0 {
                return Err(RecordError::Twice(DECIDING[which]));
            }
            if self.doubtful && which < IDENTIFYING {
                return Err(RecordError::Doubtful(DECIDING[which]));
            }
            self.seen |= 1 << which;
        }
        if self.list.len() == MAX_FIELDS {
            return Err(RecordError::TooManyFields);
        }
        self.list.push((key, value));
        Ok(())
    }

    /// Replaces the value of the field added last.
    fn amend(&mut self, value: &'a [u8]) {
        if let Some(last) = self.list.last_mut() {
            last.1 = Value::Raw(value);
        }
    }

    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let (_, value) = self.list.iter().find(|(key, _)| *key == name.as_bytes())?;
        Some(match value {
            Value::Raw(bytes) => (self.decode)(bytes),
            Value::Text(text) => Cow::Borrowed(text),
        })
    }
}

#[inline]
fn deciding(key: &[u8]) -> Option<usize> {
    match key {
        b"logid" => Some(0),
        b"type" => Some(1),
        b"subtype" => Some(2),
        b"devid" => Some(3),
        b"vd" => Some(4),
        b"user" => Some(5),
        b"msg" => Some(6),
        b"eventtime" => Some(7),
        _ => None,
    }
}

/// One message, read: what its header says and its fields, each name once.
pub struct Record<'a> {
    format: &'static str,
    host: Option<&'a str>,
    time: Option<Timestamp>,
    fields: Fields<'a>,
}

impl Record<'_> {
    /// The name of the body's format.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The host name in the header. Behind a relay it may be the relay's.
    pub fn host(&self) -> Option<&str> {
        self.host
    }

    /// The header's time where it has year and zone; a BSD header has neither.
    pub fn time(&self) -> Option<Timestamp> {
        self.time
    }

    /// A field's text, its escapes undone, anything that isn't UTF-8 replaced. Of a name given twice, the first counts.
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.fields.get(name)
    }

    /// Every field's name, in the order of the message.
    pub fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.fields
            .list
            .iter()
            .map(|(key, _)| String::from_utf8_lossy(key))
    }

    /// Whether a backslash before a quote could be read in two ways and the more sensible one was taken.
    pub fn is_doubtful(&self) -> bool {
        self.fields.doubtful
    }

    /// Whether a quote has no partner, or in CEF stands as only other formats have it: this may be the second half of a message that a line feed in a value has cut in two,
    /// and then all of it is what somebody else wrote.
    pub fn is_torn(&self) -> bool {
        self.fields.torn
    }

    /// The message id: the last six digits of `logid` (CEF writes five). `None`: there is no such number.
    pub fn message_id(&self) -> Option<u32> {
        id_of(self.get("logid")?.as_bytes().trim_ascii())
    }
}

/// A shorter number is no log id.
const MIN_LOGID_DIGITS: usize = 5;
const MAX_LOGID_DIGITS: usize = 20;

/// The message id of a log id: its last six digits.
fn id_of(logid: &[u8]) -> Option<u32> {
    let is_number = logid.iter().all(u8::is_ascii_digit);
    is_number.then(|| id_of_digits(logid)).flatten()
}

/// The same of what is known to be nothing but digits.
#[inline]
fn id_of_digits(logid: &[u8]) -> Option<u32> {
    if !(MIN_LOGID_DIGITS..=MAX_LOGID_DIGITS).contains(&logid.len()) {
        return None;
    }
    let last_six = &logid[logid.len().saturating_sub(6)..];
    let number = |id, digit: &u8| id * 10 + u32::from(digit - b'0');
    Some(last_six.iter().fold(0, number))
}

impl fmt::Debug for Record<'_> {
    /// Values may hold a code, so only the names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("format", &self.format)
            .field("names", &self.names().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Reads one message, without its framing.
pub fn parse(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let header = header::read(bytes);
    if header.body.is_empty() {
        return Err(RecordError::Empty);
    }
    for format in FORMATS {
        if let Some(fields) = (format.parse)(&header) {
            let fields = fields?;
            if fields.list.is_empty() {
                return Err(RecordError::NoFields);
            }
            return Ok(Record {
                format: format.name,
                host: header.host,
                time: header.time,
                fields,
            });
        }
    }
    Err(RecordError::NoFields)
}

/// A byte that separates words: a blank, or one of the control characters that stray into messages.
#[inline]
fn is_blank(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

/// A byte of a field's name.
#[inline]
fn is_name(byte: u8) -> bool {
    NAME[byte as usize]
}

const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        byte += 1;
    }
    table
};

/// Undoes the escapes: a backslash before one of `escaped` goes, any other stays, for FortiOS doubles them only sometimes.
fn unescape<'a>(value: &'a [u8], escaped: &[u8]) -> Cow<'a, str> {
    let Some(first) = memchr(b'\\', value) else {
        return String::from_utf8_lossy(value);
    };
    let mut out = value[..first].to_vec();
    let mut rest = &value[first..];
    while let Some((&byte, after)) = rest.split_first() {
        match after.first() {
            Some(next) if byte == b'\\' && escaped.contains(next) => {
                out.push(*next);
                rest = &after[1..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_names_are_unique() {
        for (at, format) in FORMATS.iter().enumerate() {
            assert!(FORMATS[..at].iter().all(|other| other.name != format.name));
        }
    }

    #[test]
    fn the_deciding_fields_are_the_listed_ones() {
        for (at, name) in DECIDING.iter().enumerate() {
            assert_eq!(deciding(name.as_bytes()), Some(at));
        }
        assert_eq!(deciding(b"url"), None);
    }

    #[test]
    fn the_message_id_is_the_last_six_digits_of_logid() {
        for (logid, id) in [
            ("0100038412", Some(38412)),
            ("38412", Some(38412)),
            ("038412", Some(38412)),
            ("138412", Some(138_412)),
            ("3841", None),
            ("010003841x", None),
            ("-0100038412", None),
            ("", None),
            ("000000000000000000000", None),
        ] {
            let line = format!("logid=\"{logid}\"");
            assert_eq!(parse(line.as_bytes()).unwrap().message_id(), id, "{logid}");
        }
    }

    #[test]
    fn only_the_named_escapes_are_undone() {
        assert_eq!(unescape(br#"a\"b\\c\nd\"#, b"\""), r#"a"b\\c\nd\"#);
        assert_eq!(unescape(br"a\=b\\c\|d\n", b"=\\|"), r"a=b\c|d\n");
    }
}
