//! A notification as an RFC 5322 message, the same for every channel that sends mail.

use lettre::Message;
use lettre::message::Body;
use lettre::message::Mailbox;
use lettre::message::MultiPart;
use lettre::message::SinglePart;
use lettre::message::header::ContentTransferEncoding;
use lettre::message::header::ContentType;
use lettre::message::header::HeaderName;
use lettre::message::header::HeaderValue;

use crate::message::Notification;

/// Longer lines of a body are encoded (RFC 5322 section 2.1.1).
const MAX_BODY_LINE_BYTES: usize = 78;
/// So much of a subject or a name is shown; a header line can't be longer than 998 bytes, whatever stands in a log.
const MAX_HEADER_CHARS: usize = 200;

/// Why a message can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No mail address.
    #[error("the recipient's address is no mail address")]
    Address,
    /// A part is missing.
    #[error("the mail can't be put together: {0}")]
    Message(String),
}

/// The bytes of the message, lines ended by CRLF.
pub fn build(
    from: &Mailbox,
    reply_to: Option<&Mailbox>,
    to: &str,
    name: Option<&str>,
    note: &Notification,
) -> Result<Vec<u8>, BuildError> {
    let to = Mailbox::new(
        name.map(one_line).filter(|name| !name.is_empty()),
        to.parse().map_err(|_| BuildError::Address)?,
    );
    let mut message = Message::builder()
        .from(from.clone())
        .to(to)
        .subject(one_line(&note.subject))
        .message_id(Some(format!("<{}@{}>", note.id, from.email.domain())))
        .raw_header(header("Auto-Submitted", "auto-generated"))
        // Exchange answers automatic mail unless told not to.
        .raw_header(header("X-Auto-Response-Suppress", "All"))
        .raw_header(header("Content-Language", &one_line(&note.language)))
        .date_now();
    if let Some(reply_to) = reply_to {
        message = message.reply_to(reply_to.clone());
    }
    let parts = MultiPart::alternative()
        .singlepart(part(ContentType::TEXT_PLAIN, &note.text)?)
        .singlepart(part(ContentType::TEXT_HTML, &note.html)?);
    let message = message
        .multipart(parts)
        .map_err(|e| BuildError::Message(e.to_string()))?;
    Ok(message.formatted())
}

fn header(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// Readable in the raw wherever that is possible, and never base64, which filters distrust.
fn part(kind: ContentType, text: &str) -> Result<SinglePart, BuildError> {
    let plain = text
        .lines()
        .all(|line| line.len() <= MAX_BODY_LINE_BYTES && line.bytes().all(is_plain));
    let encoding = if plain {
        ContentTransferEncoding::SevenBit
    } else {
        ContentTransferEncoding::QuotedPrintable
    };
    let body = Body::new_with_encoding(text.to_owned(), encoding)
        .map_err(|_| BuildError::Message("a part can't be encoded".to_owned()))?;
    Ok(SinglePart::builder().header(kind).body(body))
}

fn is_plain(byte: u8) -> bool {
    byte == b'\t' || matches!(byte, b' '..=b'~')
}

/// Text that came from elsewhere, fit for a header.
fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let text = text.trim();
    match text.char_indices().nth(MAX_HEADER_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
