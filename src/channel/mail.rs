//! A notification as an RFC 5322 message, the same for every channel that sends mail.

use lettre::Message;
use lettre::message::Mailbox;
use lettre::message::MultiPart;
use lettre::message::header::HeaderName;
use lettre::message::header::HeaderValue;

use crate::message::Notification;

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
        name.map(str::to_owned),
        to.parse().map_err(|_| BuildError::Address)?,
    );
    let mut message = Message::builder()
        .from(from.clone())
        .to(to)
        .subject(&note.subject)
        .message_id(Some(format!("<{}@{}>", note.id, from.email.domain())))
        .raw_header(HeaderValue::new(
            HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ))
        .date_now();
    if let Some(reply_to) = reply_to {
        message = message.reply_to(reply_to.clone());
    }
    let parts = MultiPart::alternative_plain_html(note.text.clone(), note.html.clone());
    let message = message
        .multipart(parts)
        .map_err(|e| BuildError::Message(e.to_string()))?;
    Ok(message.formatted())
}
