//! FortiOS's `csv` format: the fields of the default format with commas between them, names and quotes kept.

use memchr::memchr;

use super::Format;
use super::is_blank;
use super::is_name;
use super::keyvalue;
use super::keyvalue::Separator;

pub(super) const FORMAT: Format = Format {
    name: "csv",
    parse: |header| is_csv(header.body).then(|| keyvalue::fields(header.body, Separator::Comma)),
};

/// Whether the first field ends at a comma with another field behind it.
fn is_csv(body: &[u8]) -> bool {
    let Some(value) = field(body) else {
        return false;
    };
    let end = match value {
        [b'"', text @ ..] => match memchr(b'"', text) {
            Some(quote) => quote + 2,
            None => return false,
        },
        _ => value
            .iter()
            .position(|&byte| byte == b',' || is_blank(byte))
            .unwrap_or(value.len()),
    };
    matches!(value.get(end..), Some([b',', next @ ..]) if field(next).is_some())
}

/// What follows `name=`, if that is what stands here.
fn field(text: &[u8]) -> Option<&[u8]> {
    let name = text.iter().take_while(|byte| is_name(**byte)).count();
    match &text[name..] {
        [b'=', value @ ..] if name > 0 => Some(value),
        _ => None,
    }
}
