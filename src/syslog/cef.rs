//! FortiOS's `cef` format: `CEF: 0|Fortinet|Fortigate|v7.2.5|38412|event:system|5|deviceExternalId=… FTNTFGTlogid=… msg=…`.
//!
//! Values are not quoted; one ends where ` name=` begins. The message id stands in the header, which no attacker writes.

use std::borrow::Cow;

use memchr::memchr_iter;

use super::Fields;
use super::Format;
use super::RecordError;
use super::Value;
use super::is_blank;
use super::is_name;
use super::unescape;

pub(super) const FORMAT: Format = Format {
    name: "cef",
    parse: |header| {
        let cells = after_vendor(header.body)?;
        Some(match split(cells) {
            Some((id, extension)) => fields(id, extension),
            None => Err(RecordError::CefHeader),
        })
    },
};

/// What FortiOS (two spellings) and `FortiAnalyzer` put before the names that CEF does not know.
const PREFIXES: [&[u8]; 3] = [b"FTNTFGT", b"FortinetFortiGate", b"ad."];

/// CEF's names and FortiOS's.
const NAMES: [(&[u8], &[u8]); 7] = [
    (b"deviceExternalId", b"devid"),
    (b"dvchost", b"devname"),
    (b"duser", b"user"),
    (b"suser", b"user"),
    (b"cat", b"type"),
    (b"act", b"action"),
    (b"sproc", b"ui"),
];

/// What follows the vendor. `None`: this is no CEF of Fortinet's.
fn after_vendor(body: &[u8]) -> Option<&[u8]> {
    let body = body.strip_prefix(b"CEF:").unwrap_or(body);
    body.trim_ascii_start().strip_prefix(b"0|Fortinet|")
}

/// The signature id and the extension, from behind the vendor on.
fn split(cells: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = cells;
    // Product, version, id, title, severity.
    for _ in 0..5 {
        (_, rest) = cell(rest)?;
    }
    Some((header_id(cells)?, rest))
}

/// The signature id, from behind the vendor on.
pub(super) fn header_id(rest: &[u8]) -> Option<&[u8]> {
    let (_product, rest) = cell(rest)?;
    let (_version, rest) = cell(rest)?;
    cell(rest).map(|(id, _)| id)
}

/// Up to the next `|` that has no backslash before it, and what follows.
fn cell(text: &[u8]) -> Option<(&[u8], &[u8])> {
    memchr_iter(b'|', text)
        .find(|&at| !is_escaped(text, at))
        .map(|at| (&text[..at], &text[at + 1..]))
}

fn is_escaped(text: &[u8], at: usize) -> bool {
    let run = text[..at].iter().rev().take_while(|b| **b == b'\\').count();
    run % 2 == 1
}

/// Whether a quote stands here as it does in the other formats. CEF has no quotes of its own, and doubles every backslash
/// and escapes every `=` of a value.
fn is_torn(extension: &[u8]) -> bool {
    let mut quotes = 0;
    for at in memchr_iter(b'"', extension) {
        quotes += 1;
        let (before, is_field) = (at.wrapping_sub(1), extension[..at].ends_with(b"="));
        if is_escaped(extension, at) || is_field && !is_escaped(extension, before) {
            return true;
        }
    }
    quotes % 2 == 1
}

fn fields<'a>(id: &'a [u8], extension: &'a [u8]) -> Result<Fields<'a>, RecordError> {
    let mut fields = Fields::new(decode);
    fields.torn = is_torn(extension);
    let mut open: Option<(&[u8], usize)> = None;
    for equals in memchr_iter(b'=', extension) {
        let Some(name) = name_before(extension, equals) else {
            continue;
        };
        if let Some((previous, start)) = open.replace((name, equals + 1)) {
            push(
                &mut fields,
                previous,
                &extension[start..equals - name.len()],
            )?;
        }
    }
    if let Some((last, start)) = open {
        push(&mut fields, last, &extension[start..])?;
    }
    match fields.get("logid") {
        Some(logid) if !agree(id, logid.trim().as_bytes()) => Err(RecordError::IdsDisagree),
        Some(_) => Ok(fields),
        None => {
            fields.push(b"logid", Value::Raw(id))?;
            Ok(fields)
        }
    }
}

/// The field's name if this `=` ends one: not escaped, at the start or behind a blank.
fn name_before(extension: &[u8], equals: usize) -> Option<&[u8]> {
    let before = &extension[..equals];
    let length = before.iter().rev().take_while(|b| is_name(**b)).count();
    let name = &before[equals - length..];
    let stands_free = match before[..equals - length].last() {
        Some(byte) => is_blank(*byte),
        None => true,
    };
    (length > 0 && stands_free).then_some(name)
}

fn push<'a>(fields: &mut Fields<'a>, name: &'a [u8], value: &'a [u8]) -> Result<(), RecordError> {
    let mut value = value.trim_ascii();
    let ours = match PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix))
    {
        Some(ours) => ours,
        None => NAMES
            .iter()
            .find(|(theirs, _)| *theirs == name)
            .map_or(name, |(_, ours)| ours),
    };
    if name == b"cat" {
        // `event:system` is type and subtype.
        value = value.split(|b| *b == b':').next().unwrap_or(value);
    }
    fields.push(ours, Value::Raw(value))
}

/// The header has the last five digits, or (from a `FortiAnalyzer`) all ten.
fn agree(id: &[u8], logid: &[u8]) -> bool {
    let digits = id.len().min(logid.len()).min(6);
    digits >= 5
        && id.iter().all(u8::is_ascii_digit)
        && id[id.len() - digits..] == logid[logid.len() - digits..]
}

fn decode(value: &[u8]) -> Cow<'_, str> {
    unescape(value, b"=\\|")
}
