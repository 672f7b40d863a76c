//! The channel `slack`: an incoming webhook, which posts to one place that others read.
//!
//! All text goes out as `plain_text` objects, so that nothing a log brought in becomes a link, a mention or formatting.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::http;
use crate::channel::http::Endpoint;
use crate::message::Notification;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Slack's limit for a header's text.
const MAX_HEADER_CHARS: usize = 150;
/// All blocks together; Slack refuses somewhat more with `msg_blocks_too_long`.
const MAX_MESSAGE_CHARS: usize = 10_000;

/// `type = "slack"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// An incoming webhook's URL, which is a secret.
    pub url: Option<SecretSource>,
    /// A bot's token.
    pub token: Option<SecretSource>,
    /// Where Slack's API is.
    pub api: Option<String>,
}

/// An incoming webhook.
pub struct Slack {
    endpoint: Endpoint,
}

impl Config {
    /// It writes to a person, so that it can do nothing without one.
    pub fn needs_person(&self) -> bool {
        self.url.is_none()
    }

    /// Reads the URL and prepares the connection.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Slack> {
        if let Some(token) = &self.token {
            check.problem(
                token.span.clone(),
                "direct messages by `token` are not supported by this version; write the `url` of an incoming webhook",
            );
            return None;
        }
        let Some(source) = &self.url else {
            check.problem(
                None,
                "a channel of type slack needs the `url` of an incoming webhook",
            );
            return None;
        };
        let url = check.secret(source)?;
        let endpoint = Endpoint::build(&url, source.span.clone(), None, timeout, check)?;
        Some(Slack { endpoint })
    }
}

impl Slack {
    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        self.endpoint.secrets()
    }
}

#[async_trait]
impl Carrier for Slack {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let body = serde_json::to_vec(&message(attempt.note)).expect("a JSON value is JSON");
        let answer = self.endpoint.post(attempt, HeaderMap::new(), body).await?;
        let reason = self.endpoint.reason(attempt.redactor, &answer);
        let body = answer.body.as_deref();
        classify(answer.status, answer.retry_after, body, &reason)?;
        Ok(Receipt { said: reason })
    }
}

/// The notification in Block Kit; `text` is what a phone's lock screen shows, so it has no code.
fn message(note: &Notification) -> Value {
    let plain = |text: &str| json!({"type": "plain_text", "text": text, "emoji": false});
    let mut blocks =
        vec![json!({"type": "header", "text": plain(&cut(&note.subject, MAX_HEADER_CHARS))})];
    let mut chars = 0;
    for paragraph in &note.chat {
        chars += paragraph.chars().count();
        if chars > MAX_MESSAGE_CHARS {
            break;
        }
        blocks.push(json!({"type": "section", "text": plain(paragraph)}));
    }
    json!({
        "text": escape(&note.subject),
        "mrkdwn": false,
        "unfurl_links": false,
        "unfurl_media": false,
        "blocks": blocks,
    })
}

fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max - 1) {
        Some((at, last)) if at + last.len_utf8() < text.len() => format!("{}…", &text[..at]),
        _ => text.to_owned(),
    }
}

/// The three characters that mean something to Slack in `text`.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// What Slack means: its word where it has one, else the status.
fn classify(
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Option<&str>,
    reason: &str,
) -> Result<(), SendError> {
    let reason = reason.to_owned();
    let Some(body) = body else {
        return match status.is_success() {
            true => Err(SendError::Unknown { reason }),
            false => http::classify(status, retry_after, &reason),
        };
    };
    let said: Option<Value> = serde_json::from_str(body).ok().filter(Value::is_object);
    let word = match &said {
        Some(said) if said["ok"] == true => "ok",
        Some(said) => said["error"].as_str().unwrap_or_default(),
        None => body.trim(),
    };
    let after = retry_after.or_else(|| {
        let secs = said.as_ref()?["retry_after"].as_u64()?;
        Some(Duration::from_secs(secs))
    });
    Err(match word {
        "ok" if status.is_success() => return Ok(()),
        "rate_limited" | "ratelimited" | "message_limit_exceeded" => {
            SendError::Away { reason, after }
        }
        "rollup_error" | "internal_error" | "fatal_error" | "service_unavailable" => {
            SendError::Transient { reason, after }
        }
        "invalid_payload"
        | "invalid_blocks"
        | "invalid_blocks_format"
        | "no_text"
        | "msg_too_long"
        | "msg_blocks_too_long"
        | "too_many_attachments" => SendError::Permanent { reason },
        // The webhook or its place is gone, whatever the status beside it.
        "action_prohibited"
        | "channel_is_archived"
        | "channel_not_found"
        | "invalid_token"
        | "no_active_hooks"
        | "no_service"
        | "no_service_id"
        | "no_team"
        | "posting_to_general_channel_denied"
        | "team_disabled"
        | "user_not_found" => SendError::Broken { reason },
        // Neither "ok" nor a word that is known: a proxy or a log-in page in between, most likely.
        _ if status.is_success() => SendError::Transient { reason, after },
        _ => return http::classify(status, after, &reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_class() {
        let limited = r#"{"retry_after":1,"ok":false,"error":"rate_limited"}"#;
        for (status, body, want) in [
            (200, "ok", "Ok"),
            (200, "ok\n", "Ok"),
            (200, r#"{"ok":true}"#, "Ok"),
            (200, "", "Transient"),
            (200, "<html>log in</html>", "Transient"),
            (200, "invalid_blocks", "Permanent"),
            (200, r#"{"ok":false,"error":"channel_not_found"}"#, "Broken"),
            (400, "invalid_payload", "Permanent"),
            (400, "user_not_found", "Broken"),
            (400, "something new", "Permanent"),
            (403, "action_prohibited", "Broken"),
            (403, "invalid_token", "Broken"),
            (404, "no_service", "Broken"),
            (404, "channel_not_found", "Broken"),
            (410, "channel_is_archived", "Broken"),
            (429, limited, "Away"),
            (500, "rollup_error", "Transient"),
            (503, "", "Transient"),
            (302, "", "Broken"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let got = format!("{:?}", classify(status, None, Some(body), ""));
            assert!(
                got.trim_start_matches("Err(").starts_with(want),
                "{status} {body}: {got}"
            );
        }
        let Err(SendError::Away { after, .. }) =
            classify(StatusCode::TOO_MANY_REQUESTS, None, Some(limited), "")
        else {
            panic!("not away");
        };
        assert_eq!(after, Some(Duration::from_secs(1)));
        assert!(matches!(
            classify(StatusCode::OK, None, None, ""),
            Err(SendError::Unknown { .. })
        ));
    }
}
