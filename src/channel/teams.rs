//! The channel `teams`: an adaptive card to a Workflows URL, with the person's address so that a flow can write to them.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Class;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::http;
use crate::channel::http::Answer;
use crate::channel::http::Endpoint;
use crate::channel::http::Way;
use crate::channel::pace;
use crate::channel::probe::Probe;
use crate::limits::Rate;
use crate::message::Notification;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Teams expands a card on its side and refuses more than 28 KiB then.
const MAX_CARD_BYTES: usize = 20_000;
/// A longer title is cut.
const MAX_TITLE_BYTES: usize = 1_000;
/// What Microsoft publishes for one URL, of which the tightest are enough; it was written for connectors, and flows have no table of their own.
pub(super) const RATES: &[Rate] = &[
    pace::rate(4, Duration::from_secs(1)),
    pace::rate(100, Duration::from_secs(3600)),
];
/// Where the Office 365 connectors were, which are gone.
const RETIRED_HOSTS: [&str; 3] = [
    "webhook.office.com",
    "outlook.office.com",
    "outlook.office365.com",
];
/// What Teams writes into a 200 that is none; a status follows the first.
const HIDDEN_STATUS: &str = "HTTP error ";
const HIDDEN_FAILURES: [&str; 3] = [
    "endpoint returned HTTP error",
    "Webhook message delivery failed",
    TOO_LARGE,
];
const TOO_LARGE: &str = "MessageSizeExceeded";

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
        let host = endpoint.host().split(':').next().unwrap_or_default();
        let is_retired = |retired: &&str| {
            host.strip_suffix(*retired)
                .is_some_and(|h| h.is_empty() || h.ends_with('.'))
        };
        if RETIRED_HOSTS.iter().any(is_retired) {
            check.problem(
                span,
                format!(
                    "{host} is an Office 365 connector, and Microsoft has retired those; make a flow (Workflows) with the trigger \"When a Teams webhook request is received\" and write its URL"
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

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        self.endpoint.reach_alone(attempt, found).await;
    }
}

/// What an answer means: 200 and 202 say that it was taken, unless the body says otherwise.
fn judge(answer: &Answer, reason: &str) -> Result<(), SendError> {
    http::classify(answer.status, answer.retry_after, reason)?;
    let Some(body) = &answer.body else {
        // A 202 has none; of a 200 it might have said anything.
        return match answer.status == StatusCode::OK {
            true => Err(Class::Unknown.error(reason, None)),
            false => Ok(()),
        };
    };
    if body.contains(TOO_LARGE) {
        return Err(Class::Permanent.error(reason, None));
    }
    if HIDDEN_FAILURES.iter().any(|text| body.contains(text)) {
        if let Some(status) = hidden_status(body) {
            http::classify(status, answer.retry_after, reason)?;
        }
        return Err(Class::Transient.error(reason, answer.retry_after));
    }
    match serde_json::from_str::<Value>(body) {
        Ok(said) if said.get("error").is_some_and(|error| !error.is_null()) => {
            Err(Class::Transient.error(reason, answer.retry_after))
        }
        _ => Ok(()),
    }
}

/// The status that Teams had for the flow.
fn hidden_status(body: &str) -> Option<StatusCode> {
    let (_, rest) = body.split_once(HIDDEN_STATUS)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    StatusCode::from_bytes(digits.as_bytes()).ok()
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
    let mut card = json!({
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
                "body": [],
            },
        }],
    });
    let mut left = MAX_CARD_BYTES.saturating_sub(escaped_len(&card.to_string()));
    let mut body = Vec::new();
    let texts = note.chat.iter().map(|text| (text.as_str(), false));
    for (text, bold) in std::iter::once((note.subject.as_str(), true)).chain(texts) {
        let around = paragraph("", bold).to_string().len() + ",".len();
        let room = left.saturating_sub(around);
        let most = if bold {
            room.min(MAX_TITLE_BYTES)
        } else {
            room
        };
        let text = cut(text, most);
        if text.is_empty() {
            break;
        }
        left -= around + escaped_len(&text);
        body.push(paragraph(&text, bold));
    }
    card["attachments"][0]["content"]["body"] = body.into();
    card
}

/// How long a text is in JSON at most: the flow may write whatever isn't ASCII as `\\u1234`.
fn escaped_len(text: &str) -> usize {
    text.chars().map(escaped_char).sum()
}

fn escaped_char(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        ' '..='~' => 1,
        _ => 6 * c.len_utf16(),
    }
}

/// The beginning of a text that needs no more than so many bytes in JSON, never half a character; what is cut says so.
fn cut(text: &str, most: usize) -> String {
    if escaped_len(text) <= most {
        return text.to_owned();
    }
    let mut left = most.saturating_sub(escaped_char('…'));
    let fits = |c: &char| {
        let more = left.checked_sub(escaped_char(*c));
        left = more.unwrap_or(0);
        more.is_some()
    };
    let mut short: String = text.chars().take_while(fits).collect();
    if !short.is_empty() {
        short.push('…');
    }
    short
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

    fn texts(card: &Value) -> Vec<String> {
        let body = card["attachments"][0]["content"]["body"].as_array();
        body.unwrap()
            .iter()
            .inspect(|block| assert_eq!(block["type"], "RichTextBlock", "no Markdown"))
            .map(|block| block["inlines"][0]["text"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_card_stays_below_its_limit_even_where_everything_is_escaped() {
        for text in [
            "x",
            "\u{1f512}",
            "\"",
            "\\\n",
            "é",
            "[a](https://evil.test) ",
        ] {
            let card = message(&note(&text.repeat(3_000)), None);
            let json = card.to_string();
            let escaped = json.chars().map(|c| match c.is_ascii() {
                true => 1,
                false => escaped_char(c),
            });
            let bytes: usize = escaped.sum();
            assert!(bytes < MAX_CARD_BYTES, "{text}: {bytes}");
            assert!(bytes > MAX_CARD_BYTES / 2, "{text}: {bytes}");
            let texts = texts(&card);
            assert_eq!(texts[0], "A subject");
            assert!(texts.last().unwrap().ends_with('…'), "what is cut says so");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters_and_only_where_it_must_be() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdefgh", 7), "a…");
        assert_eq!(cut("\u{1f512}\u{1f512}", 17), "");
        assert_eq!(cut("\u{1f512}\u{1f512}", 23), "\u{1f512}…");
    }

    #[test]
    fn every_answer_has_its_class() {
        let hidden = |status: u16| {
            format!(
                "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error {status} with ContextId tcid=0"
            )
        };
        for (status, body, want) in [
            (202, String::new(), "Ok"),
            (200, String::new(), "Ok"),
            (200, "1".to_owned(), "Ok"),
            (200, r#"{"error":null}"#.to_owned(), "Ok"),
            (200, hidden(429), "Err(Away"),
            (200, hidden(413), "Err(Permanent"),
            (200, hidden(404), "Err(Broken"),
            (200, hidden(502), "Err(Transient"),
            (202, hidden(502), "Err(Transient"),
            (
                200,
                "Microsoft Teams endpoint returned HTTP error".to_owned(),
                "Err(Transient",
            ),
            (
                200,
                r#"{"error":{"code":"InternalServerError"}}"#.to_owned(),
                "Err(Transient",
            ),
            (
                200,
                r#"{"error":{"code":"MessageSizeExceeded"}}"#.to_owned(),
                "Err(Permanent",
            ),
            (
                413,
                r#"{"error":{"code":"MessageSizeExceeded"}}"#.to_owned(),
                "Err(Permanent",
            ),
            (400, String::new(), "Err(Permanent"),
            (401, String::new(), "Err(Broken"),
            (404, String::new(), "Err(Broken"),
            (429, String::new(), "Err(Away"),
            (502, String::new(), "Err(Transient"),
        ] {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                retry_after: None,
                headers: HeaderMap::new(),
                body: Some(body.clone()),
            };
            let got = format!("{:?}", judge(&answer, ""));
            assert!(got.starts_with(want), "{status} {body}: {got}");
        }
        for (status, want) in [(200, "Err(Unknown"), (202, "Ok"), (500, "Err(Transient")] {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                retry_after: None,
                headers: HeaderMap::new(),
                body: None,
            };
            assert!(
                format!("{:?}", judge(&answer, "")).starts_with(want),
                "{status}"
            );
        }
    }
}
