//! The channel `teams`: an adaptive card to a Workflows URL, with the person's address so that a flow can write to them.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::http;
use crate::channel::http::Answer;
use crate::channel::http::Endpoint;
use crate::channel::http::Way;
use crate::message::Notification;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Teams expands a card on its side and refuses more than 28 KiB then. Escaping may double this, so that a request stays below 20 KB.
const MAX_TEXT_BYTES: usize = 8_000;
/// A longer title is cut.
const MAX_TITLE_BYTES: usize = 300;
/// Where the Office 365 connectors were, which are gone.
const RETIRED_HOSTS: [&str; 2] = ["webhook.office.com", "outlook.office.com"];
/// What Teams writes into a 200 that is none.
const HIDDEN_FAILURE: &str = "endpoint returned HTTP error";

/// `type = "teams"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The URL of the flow "When a Teams webhook request is received".
    pub url: SecretSource,
    /// In place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// An HTTP proxy.
    pub proxy: Option<SecretSource>,
}

/// A flow.
pub struct Teams {
    endpoint: Endpoint,
}

impl Config {
    /// Reads the URL and prepares the connection.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Teams> {
        let url = check.secret(&self.url)?;
        let span = self.url.span;
        let way = Way {
            ca_file: self.ca_file.as_ref(),
            proxy: self.proxy.as_ref(),
            timeout,
        };
        let endpoint = Endpoint::build(&url, span.clone(), way, check)?;
        let host = endpoint.host();
        let is_retired = |retired: &&str| {
            host.strip_suffix(*retired)
                .is_some_and(|h| h.is_empty() || h.ends_with('.'))
        };
        if RETIRED_HOSTS.iter().any(is_retired) {
            check.problem(
                span,
                format!(
                    "{host} is an Office 365 connector, and Microsoft has retired those; make a flow with the trigger \"When a Teams webhook request is received\" and write its URL"
                ),
            );
            return None;
        }
        Some(Teams { endpoint })
    }
}

impl Teams {
    /// The URL, which carries its signature.
    pub fn secrets(&self) -> Vec<Secret> {
        self.endpoint.secrets()
    }
}

#[async_trait]
impl Carrier for Teams {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let body = message(attempt.note, attempt.to).to_string().into_bytes();
        let answer = self.endpoint.post(attempt, HeaderMap::new(), body).await?;
        let reason = self.endpoint.reason(attempt.redactor, &answer);
        judge(&answer, &reason)?;
        // The flow runs after the answer, so this says no more than that it was taken.
        Ok(Receipt { said: reason })
    }
}

fn judge(answer: &Answer, reason: &str) -> Result<(), SendError> {
    http::classify(answer.status, answer.retry_after, reason)?;
    match &answer.body {
        Some(body) if body.contains(HIDDEN_FAILURE) => Err(SendError::Transient {
            reason: reason.to_owned(),
            after: answer.retry_after,
        }),
        _ => Ok(()),
    }
}

/// The card. Text runs, unlike text blocks, have no Markdown, so that nothing a user controls becomes a link.
fn message(note: &Notification, to: Option<&Recipient>) -> Value {
    let paragraph = |text: &str, bold: bool| {
        let run = json!({
            "type": "TextRun",
            "text": text,
            "weight": if bold { "Bolder" } else { "Default" },
        });
        json!({ "type": "RichTextBlock", "inlines": [run] })
    };
    let mut body = vec![paragraph(cut(&note.subject, MAX_TITLE_BYTES), true)];
    let mut left = MAX_TEXT_BYTES;
    for text in &note.chat {
        let text = cut(text, left);
        left -= text.len();
        if !text.is_empty() {
            body.push(paragraph(text, false));
        }
    }
    json!({
        "type": "message",
        "recipient": to.map(|person| person.email.as_str()),
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "msteams": { "width": "full" },
                "body": body,
            },
        }],
    })
}

/// The first bytes of a text, never half a character.
fn cut(text: &str, most: usize) -> &str {
    let whole = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=most.min(text.len())).rev().find(whole).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(paragraph: &str) -> Notification {
        Notification {
            id: "id".to_owned(),
            subject: "A subject".to_owned(),
            text: String::new(),
            html: String::new(),
            chat: vec![paragraph.to_owned(); 20],
            short: String::new(),
            event: Value::Null,
            language: "en".to_owned(),
            expires_at: jiff::Timestamp::MAX,
        }
    }

    #[test]
    fn a_card_is_small_and_its_texts_are_no_markdown() {
        let card = message(
            &note(&"\u{1f512}[a](https://evil.test) ".repeat(1000)),
            None,
        );
        assert!(
            card.to_string().len() < 20_000 * 4,
            "four bytes a character at most"
        );
        assert!(message(&note(&"x".repeat(100_000)), None).to_string().len() < 20_000);
        let body = card["attachments"][0]["content"]["body"]
            .as_array()
            .unwrap();
        assert!(body.iter().all(|b| b["type"] == "RichTextBlock"));
    }

    #[test]
    fn a_failure_hidden_in_a_200_is_a_failure() {
        let answer = |status: u16, body: &str| Answer {
            status: reqwest::StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            body: Some(body.to_owned()),
        };
        assert!(judge(&answer(202, ""), "").is_ok());
        assert!(judge(&answer(200, "1"), "").is_ok());
        let hidden = "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 413";
        assert!(matches!(
            judge(&answer(200, hidden), ""),
            Err(SendError::Transient { .. })
        ));
        assert!(matches!(
            judge(&answer(401, ""), ""),
            Err(SendError::Broken { .. })
        ));
    }
}
