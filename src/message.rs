//! What a channel sees: a recipient and a notification. No channel knows that there is a FortiGate.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

/// Where one person is reached. Made only by `directory`; never from log text alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The mail address, which also names the person to chat services.
    pub email: String,
    /// The name to greet with.
    pub name: Option<String>,
    /// The phone number, E.164.
    pub phone: Option<String>,
    /// A language tag such as `de` or `pt-BR`.
    pub language: Option<String>,
    /// Which directory said so.
    pub source: String,
}

/// How many digits an international number has, E.164.
const PHONE_DIGITS: RangeInclusive<usize> = 7..=15;

/// A phone number in international form, E.164, without the usual separators. `None`: it is none, or it holds a (0), which
/// some countries write and nobody dials.
pub fn international(phone: &str) -> Option<String> {
    let text: String = phone.chars().filter(|c| !c.is_whitespace()).collect();
    if text.contains("(0)") {
        return None;
    }
    let number = text.replace(['-', '.', '/', '(', ')'], "");
    let digits = number.strip_prefix('+')?;
    let good = PHONE_DIGITS.contains(&digits.len())
        && !digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit());
    good.then_some(number)
}

/// What is said. It knows no address; it may hold a code, so it has no `Debug`.
#[derive(Clone)]
pub struct Notification {
    /// The same over all tries of one delivery: local part of the Message-ID, and the webhook-id.
    pub id: String,
    /// One line without a code.
    pub subject: String,
    /// The whole message as plain text.
    pub text: String,
    /// The whole message as HTML.
    pub html: String,
    /// A few short plain-text paragraphs for a chat.
    pub chat: Vec<String>,
    /// One or two segments of an SMS: who, the code, until when.
    pub short: String,
    /// The JSON body of a webhook.
    pub event: serde_json::Value,
    /// The language the texts are in, for `Content-Language`.
    pub language: String,
    /// Nothing may be sent from here on.
    pub expires_at: Timestamp,
}

impl Notification {
    /// The code, where the notification shows it.
    pub fn code(&self) -> Option<&str> {
        self.event["data"]["code"].as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_number_is_international_or_none() {
        for (phone, number) in [
            ("+14155550100", Some("+14155550100")),
            ("+1 (415) 555-0100", Some("+14155550100")),
            (" +49 170/123 45.67 ", Some("+491701234567")),
            ("+49 (0)170 1234567", None),
            ("+49 ( 0 ) 170 1234567", None),
            ("0170 1234567", None),
            ("0049 170 1234567", None),
            ("+0170 1234567", None),
            ("+123456", None),
            ("+1234567890123456", None),
            ("+1415555CALL", None),
            ("+१४१५५५५०१००", None),
            ("tel:+14155550100", None),
            ("", None),
        ] {
            assert_eq!(international(phone).as_deref(), number, "{phone:?}");
        }
    }
}
