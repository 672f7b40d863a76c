//! What a channel sees: a recipient and a notification. No channel knows that there is a FortiGate.

use serde::Deserialize;
use serde::Serialize;

use jiff::Timestamp;

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
