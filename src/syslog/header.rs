//! What may stand in front of a FortiGate's body: a priority, a BSD, ISO or RFC 5424 header, its own or a relay's.
//!
//! FortiOS's default format has no header but `<PRI>`. `syslog_loose` takes the first field of such a body for a tag (or a
//! host), so it is asked only where a header really stands, and a "tag" that is a field or `CEF` is given back to the body.

use jiff::Timestamp;
use memchr::memchr;
use memchr::memmem;
use syslog_loose::Variant;

use super::is_blank;
use super::is_name;

/// A header is looked for in so many bytes; RFC 5424 allows some 560 before the structured data.
const MAX_HEADER_BYTES: usize = 2048;

/// `<191>` is the highest priority there is; some senders don't know.
const MAX_PRIORITY_BYTES: usize = 12;

/// A year for BSD timestamps, which have none; a leap year, so that 29 February is a day. The time is not used.
const SOME_LEAP_YEAR: i32 = 2024;

/// What stands in front of the body, and the body, without what trails it.
pub(super) struct Header<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) time: Option<Timestamp>,
    /// It had the seven fields of RFC 5424.
    pub(super) is_rfc5424: bool,
    pub(super) body: &'a [u8],
}

impl<'a> Header<'a> {
    fn none(body: &'a [u8]) -> Self {
        Self {
            host: None,
            time: None,
            is_rfc5424: false,
            body,
        }
    }
}

/// Splits a message. It always answers: what isn't a header is body.
pub(super) fn read(bytes: &[u8]) -> Header<'_> {
    let rest = behind_priority(trim(bytes));
    if begins_body(rest) {
        return Header::none(rest);
    }
    let rest = without_year(rest);
    let text = prefix_text(rest);
    let variant = if is_version_1(rest) {
        Variant::RFC5424
    } else {
        Variant::RFC3164
    };
    match syslog_loose::parse_message_with_year_exact(text, |_| SOME_LEAP_YEAR, variant) {
        Ok(message) => {
            let offset = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
            let is_field =
                |part: &str| part.contains('=') || part.starts_with('{') || part == "CEF";
            let is_rfc5424 = variant_is_5424(variant);
            let (host, start) = match (message.hostname, message.appname) {
                (Some(host), _) if !is_rfc5424 && is_field(host) => (None, offset(host)),
                (host, Some(tag)) if !is_rfc5424 && is_field(tag) => (host, offset(tag)),
                (host, _) => (host, offset(message.msg)),
            };
            Header {
                host,
                // A BSD timestamp has no year and no zone: what syslog_loose makes of it is a guess.
                time: text
                    .starts_with(|c: char| c.is_ascii_digit())
                    .then_some(message.timestamp)
                    .flatten()
                    .and_then(|time| Timestamp::from_second(time.timestamp()).ok()),
                is_rfc5424,
                body: after_mark(trim_start(&rest[start..])),
            }
        }
        Err(_) => Header::none(from_first_body(rest)),
    }
}

/// Whether a field or JSON stands right behind the priority, as FortiOS writes all formats but CEF: such a message has no header.
pub(super) fn begins_with_field(bytes: &[u8]) -> bool {
    is_field_or_json(behind_priority(trim_start(bytes)))
}

fn behind_priority(bytes: &[u8]) -> &[u8] {
    after_mark(trim_start(without_priority(bytes)))
}

fn variant_is_5424(variant: Variant) -> bool {
    matches!(variant, Variant::RFC5424)
}

/// RFC 5424 lets the message begin with a byte order mark.
fn after_mark(body: &[u8]) -> &[u8] {
    trim_start(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body))
}

/// Without blanks and control characters around it, and without the `|` that some collectors add after the last quote.
fn trim(bytes: &[u8]) -> &[u8] {
    let bytes = trim_end(trim_start(bytes));
    match bytes.strip_suffix(b"|") {
        Some(quoted) if quoted.ends_with(b"\"") => quoted,
        _ => bytes,
    }
}

fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_blank(*first)
    {
        bytes = rest;
    }
    bytes
}

fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., last] = bytes
        && is_blank(*last)
    {
        bytes = rest;
    }
    bytes
}

/// Takes `<PRI>` off. Its number means nothing here, so an absurd one is as good.
fn without_priority(bytes: &[u8]) -> &[u8] {
    let [b'<', rest @ ..] = bytes else {
        return bytes;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
    let digits = digits.take(MAX_PRIORITY_BYTES).count();
    match rest.get(digits) {
        Some(b'>') if digits < MAX_PRIORITY_BYTES => &rest[digits + 1..],
        _ => bytes,
    }
}

/// Whether the body begins right here: a field, JSON, or CEF (whose tag a relay may have eaten).
fn begins_body(rest: &[u8]) -> bool {
    is_field_or_json(rest)
        || rest.starts_with(b"CEF:")
        || rest.starts_with(b"0|")
        || rest.iter().all(|byte| is_name(*byte))
}

fn is_field_or_json(rest: &[u8]) -> bool {
    let name = rest.iter().take_while(|byte| is_name(**byte)).count();
    match rest.get(name) {
        Some(b'=') => name > 0,
        Some(b'{') => name == 0,
        _ => false,
    }
}

/// `1 2025-06-04T…` or `1 - …`
fn is_version_1(rest: &[u8]) -> bool {
    matches!(rest, [b'1', b' ', next, ..] if next.is_ascii_digit() || *next == b'-')
}

/// Wazuh's archive writes a year in front of a BSD header.
fn without_year(rest: &[u8]) -> &[u8] {
    match rest {
        [a, b, c, d, b' ', month, ..]
            if [a, b, c, d].iter().all(|digit| digit.is_ascii_digit())
                && month.is_ascii_uppercase() =>
        {
            &rest[5..]
        }
        _ => rest,
    }
}

/// The longest text a header can stand in. Bytes that aren't UTF-8 end it; the rest of the message doesn't matter here.
fn prefix_text(rest: &[u8]) -> &str {
    let prefix = &rest[..rest.len().min(MAX_HEADER_BYTES)];
    match std::str::from_utf8(prefix) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&prefix[..e.valid_up_to()]).unwrap_or(""),
    }
}

/// Behind a header that nobody understands: CEF or JSON where it begins, else everything, of which the tokeniser skips
/// the words that are no fields.
fn from_first_body(rest: &[u8]) -> &[u8] {
    let head = &rest[..rest.len().min(MAX_HEADER_BYTES)];
    let head = &head[..memchr(b'=', head).unwrap_or(head.len())];
    if let Some(at) = memmem::find(head, b" CEF:") {
        return &rest[at + 1..];
    }
    if let Some(at) = memmem::find(head, b" {") {
        return &rest[at + 1..];
    }
    rest
}
