//! The channel `slack`: direct messages by a bot's `token`, or one place that others read by an incoming webhook's `url`.
//!
//! All text goes out as `plain_text` objects, so that nothing a log brought in becomes a link, a mention or formatting.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::header::AUTHORIZATION;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
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
use crate::channel::pace::Pace;
use crate::channel::probe::Probe;
use crate::limits::Rate;
use crate::message::Notification;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::secret::mask_address;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Where Slack's API is.
const API: &str = "https://slack.com/api";
/// Of an answer: for the rest of it repeats the message and tells about the person.
const SHOWN: &[&str] = &["error", "needed", "provided"];
/// Into one conversation.
const MESSAGES: Rate = pace::rate(1, Duration::from_secs(1));
/// Of one method that Slack puts into its tier 3.
const LOOKUPS: Rate = pace::rate(50, Duration::from_secs(60));
/// Slack's limit for a header's text.
const MAX_HEADER_CHARS: usize = 150;
/// Slack's limit for a section's text.
const MAX_SECTION_CHARS: usize = 3_000;
/// Slack's limit for the blocks of a message.
const MAX_BLOCKS: usize = 50;
/// All blocks together; Slack refuses somewhat more with `msg_blocks_too_long`.
const MAX_MESSAGE_CHARS: usize = 10_000;
/// What a bot must be allowed to do, and the header in which Slack says what it is.
const SCOPES: [&str; 2] = ["chat:write", "users:read.email"];
const SCOPES_HEADER: &str = "x-oauth-scopes";
/// How long a member's id is remembered, and that there is none.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
const UNKNOWN_FOR: Duration = Duration::from_secs(300);
/// So many people are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// `type = "slack"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// An incoming webhook's URL, which is a secret: a place that others read.
    pub url: Option<SecretSource>,
    /// A bot's token: direct messages to the person.
    pub token: Option<SecretSource>,
    /// Where Slack's API is, for `token`.
    pub api: Option<Spanned<String>>,
    /// In place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// An HTTP proxy.
    pub proxy: Option<SecretSource>,
}

/// A way into one workspace.
pub enum Slack {
    /// An incoming webhook.
    Place(Box<Endpoint>),
    /// A bot.
    Bot(Box<Bot>),
}

/// A bot, which finds people by their address and writes to them.
pub struct Bot {
    lookup: Endpoint,
    post: Endpoint,
    test: Endpoint,
    token: Secret,
    authorization: HeaderValue,
    lookups: Pace,
    messages: Pace,
    members: Mutex<HashMap<String, (Option<String>, Instant)>>,
}

impl Config {
    /// It writes to a person, so that it can do nothing without one.
    pub fn needs_person(&self) -> bool {
        self.url.is_none()
    }

    /// A webhook writes into one conversation; a bot's are as many as its people.
    pub(super) fn rates(&self) -> &'static [Rate] {
        match self.url {
            Some(_) => &[MESSAGES],
            None => &[],
        }
    }

    /// Reads the secrets and prepares the connections.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Slack> {
        let way = Way {
            ca_file: self.ca_file.as_ref(),
            proxy: self.proxy.as_ref(),
            timeout,
        };
        match (&self.url, &self.token) {
            (Some(url), Some(_)) => {
                check.problem(
                    url.span.clone(),
                    "a channel of type slack has either `url` (a place that others read) or `token` (direct messages), not both",
                );
                None
            }
            (None, None) => {
                check.problem(
                    None,
                    "a channel of type slack needs `token` (direct messages) or `url` (a place that others read)",
                );
                None
            }
            (Some(source), None) => {
                if let Some(api) = &self.api {
                    check.problem(api.span(), "`api` belongs to `token`, not to `url`");
                }
                let url = check.secret(source)?;
                let endpoint = Endpoint::build(&url, source.span.clone(), way, check)?;
                Some(Slack::Place(Box::new(endpoint.showing(SHOWN))))
            }
            (None, Some(source)) => {
                let (api, span) = match &self.api {
                    Some(api) => (api.get_ref().as_str(), api.span()),
                    None => (API, source.span.clone()),
                };
                let api = Endpoint::build(&Secret::new(api), span, way, check);
                let token = check.secret(source)?;
                let Ok(mut authorization) =
                    HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                else {
                    check.problem(
                        source.span.clone(),
                        "the token holds a character that no header may hold",
                    );
                    return None;
                };
                authorization.set_sensitive(true);
                let api = api?.showing(SHOWN);
                Some(Slack::Bot(Box::new(Bot {
                    lookup: api.method("users.lookupByEmail"),
                    post: api.method("chat.postMessage"),
                    test: api.method("auth.test"),
                    token,
                    authorization,
                    lookups: Pace::new(LOOKUPS),
                    messages: Pace::new(MESSAGES),
                    members: Mutex::default(),
                })))
            }
        }
    }
}

impl Slack {
    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::Place(endpoint) => endpoint.secrets(),
            Self::Bot(bot) => {
                let mut secrets = bot.post.secrets_of_the_way();
                secrets.push(bot.token.clone());
                secrets
            }
        }
    }
}

#[async_trait]
impl Carrier for Slack {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        match self {
            Self::Place(endpoint) => {
                let body = message(attempt.note).to_string().into_bytes();
                let answer = endpoint.post(attempt, HeaderMap::new(), body).await?;
                let said = endpoint.reason(attempt.redactor, &answer);
                judge(&answer, Whose::Place, &said)?;
                Ok(Receipt { said })
            }
            Self::Bot(bot) => bot.send(attempt).await,
        }
    }

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        match self {
            Self::Place(endpoint) => endpoint.reach_alone(attempt, found).await,
            Self::Bot(bot) => {
                if bot.test.reach(attempt, found).await {
                    bot.probe(attempt, found).await;
                }
            }
        }
    }
}

impl Bot {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let Some(person) = attempt.to else {
            return Err(SendError::Permanent {
                reason: "a direct message needs a person, and none was found".to_owned(),
            });
        };
        let unknown = || SendError::Permanent {
            reason: format!("Slack has no active member {}", mask_address(&person.email)),
        };
        let member = match self.remembered(person) {
            Some(member) => member,
            None => self.find(attempt, person).await?,
        };
        let member = member.ok_or_else(unknown)?;
        self.messages.turn(&member).await;
        let mut body = message(attempt.note);
        body["channel"] = member.into();
        let body = body.to_string().into_bytes();
        let answer = self.post.post(attempt, self.headers(), body).await?;
        let said = self.post.reason(attempt.redactor, &answer);
        if let Err(error) = judge(&answer, Whose::Person, &said) {
            if matches!(error, SendError::Permanent { .. }) {
                // The id may be an old one.
                self.members().remove(&person.email);
            }
            return Err(error);
        }
        Ok(Receipt { said })
    }

    /// Whose the token is, and whether it may do what we need.
    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        let host = self.test.host();
        let answer = match self.test.ask(attempt, self.headers(), Vec::new()).await {
            Ok(answer) => answer,
            Err(error) => return found.push(Probe::bad(host, error.to_string())),
        };
        found.extend(answer.skew(host, Timestamp::now()));
        let said = self.test.reason(attempt.redactor, &answer);
        if let Err(error) = judge(&answer, Whose::Person, &said) {
            return found.push(Probe::bad(host, error.to_string()));
        }
        let body = answer.body.as_deref().unwrap_or_default();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let name = |field: &str| attempt.redactor.clean(body[field].as_str().unwrap_or("?"));
        found.push(Probe::good(
            host,
            format!(
                "takes the token: it is that of {} in the workspace {}",
                name("user"),
                name("team")
            ),
        ));
        found.push(scopes(&answer.headers));
    }

    /// The member's id, or that Slack knows nobody by this address.
    async fn find(
        &self,
        attempt: &Attempt<'_>,
        person: &Recipient,
    ) -> Result<Option<String>, SendError> {
        self.lookups.turn("").await;
        let mut headers = self.headers();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        // In the body, not in the URL: what stands in URLs stands in logs.
        let answer = self
            .lookup
            .ask(attempt, headers, http::form(&[("email", &person.email)]))
            .await?;
        let said = self.lookup.reason(attempt.redactor, &answer);
        let body: Value = answer
            .body
            .as_deref()
            .and_then(|body| serde_json::from_str(body).ok())
            .unwrap_or_default();
        let member = if body["error"] == "users_not_found" || body["user"]["deleted"] == true {
            None
        } else {
            judge(&answer, Whose::Person, &said)?;
            let id = body["user"]["id"].as_str();
            let id = id.ok_or_else(|| SendError::Transient {
                reason: format!("{said} (without a member's id)"),
                after: None,
            })?;
            Some(id.to_owned())
        };
        let mut members = self.members();
        if members.len() >= MAX_REMEMBERED {
            members.retain(|_, (member, at)| is_fresh(member.as_deref(), *at));
        }
        if members.len() >= MAX_REMEMBERED {
            members.clear();
        }
        members.insert(person.email.clone(), (member.clone(), Instant::now()));
        Ok(member)
    }

    fn remembered(&self, person: &Recipient) -> Option<Option<String>> {
        let members = self.members();
        let (member, at) = members.get(&person.email)?;
        is_fresh(member.as_deref(), *at).then(|| member.clone())
    }

    fn members(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Option<String>, Instant)>> {
        self.members
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, self.authorization.clone())])
    }
}

/// Whether the token has the scopes that we need.
fn scopes(headers: &HeaderMap) -> Probe {
    let what = "scopes";
    let Some(has) = headers.get(SCOPES_HEADER).and_then(|v| v.to_str().ok()) else {
        return Probe::unknown(
            what,
            "the answer doesn't name those of the token, so that only a message shows whether they do: ftm-relay send-test",
        );
    };
    let has: Vec<&str> = has.split(',').map(str::trim).collect();
    let lacks: Vec<&str> = SCOPES.into_iter().filter(|s| !has.contains(s)).collect();
    if lacks.is_empty() {
        return Probe::good(what, format!("the token has {}", SCOPES.join(" and ")));
    }
    let lacks = lacks.join(" and ");
    let hint = advice("missing_scope", Some(&lacks)).unwrap_or_default();
    Probe::bad(what, format!("the token lacks {lacks}; {hint}"))
}

/// Whether what was found out at that time still counts.
fn is_fresh(member: Option<&str>, at: Instant) -> bool {
    let lasts = match member {
        Some(_) => KNOWN_FOR,
        None => UNKNOWN_FOR,
    };
    at.elapsed() < lasts
}

/// The notification in Block Kit; `text` is what a phone's lock screen shows, so it has no code.
fn message(note: &Notification) -> Value {
    let plain = |text: &str| json!({"type": "plain_text", "text": text, "emoji": false});
    let mut blocks =
        vec![json!({"type": "header", "text": plain(&cut(&note.subject, MAX_HEADER_CHARS))})];
    let mut left = MAX_MESSAGE_CHARS;
    for paragraph in note.chat.iter().take(MAX_BLOCKS - 1) {
        if left == 0 {
            break;
        }
        let text = cut(paragraph, MAX_SECTION_CHARS.min(left));
        left -= text.chars().count();
        blocks.push(json!({"type": "section", "text": plain(&text)}));
    }
    json!({
        "text": escape(&note.subject),
        "mrkdwn": false,
        "unfurl_links": false,
        "unfurl_media": false,
        "blocks": blocks,
    })
}

/// At most `max` characters, and at least one.
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

/// Whose fault it is when Slack does not find the addressee.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The webhook's: it has but one place.
    Place,
    /// The person's: others can still be written to.
    Person,
}

/// Slack's words, and what each means where a person is written to and where a webhook's place is.
const WORDS: [(Class, Class, &[&str]); 5] = [
    (
        Class::Away,
        Class::Away,
        &["message_limit_exceeded", "rate_limited", "ratelimited"],
    ),
    (
        Class::Transient,
        Class::Transient,
        &[
            "fatal_error",
            "internal_error",
            "request_timeout",
            "rollup_error",
            "service_unavailable",
            "team_added_to_org",
        ],
    ),
    (
        Class::Permanent,
        Class::Permanent,
        &[
            "invalid_blocks",
            "invalid_blocks_format",
            "invalid_payload",
            "msg_blocks_too_long",
            "msg_too_long",
            "no_text",
            "too_many_attachments",
        ],
    ),
    (
        Class::Permanent,
        Class::Broken,
        &[
            "cannot_dm_bot",
            "channel_not_found",
            "is_archived",
            "not_in_channel",
            "user_not_found",
            "users_not_found",
        ],
    ),
    // The webhook, its place or the bot's rights are gone, whatever the status beside it.
    (
        Class::Broken,
        Class::Broken,
        &[
            "access_denied",
            "accesslimited",
            "account_inactive",
            "action_prohibited",
            "channel_is_archived",
            "deprecated_endpoint",
            "ekm_access_denied",
            "enterprise_is_restricted",
            "invalid_auth",
            "invalid_token",
            "messages_tab_disabled",
            "method_deprecated",
            "missing_scope",
            "no_active_hooks",
            "no_permission",
            "no_service",
            "no_service_id",
            "no_team",
            "not_allowed_token_type",
            "not_authed",
            "org_login_required",
            "posting_to_general_channel_denied",
            "team_access_not_granted",
            "team_disabled",
            "token_expired",
            "token_revoked",
            "two_factor_setup_required",
        ],
    ),
];

/// What a word means, if we know it.
fn class(word: &str, whose: Whose) -> Option<Class> {
    let (person, place, _) = WORDS.iter().find(|(_, _, words)| words.contains(&word))?;
    Some(match whose {
        Whose::Person => *person,
        Whose::Place => *place,
    })
}

/// What an operator can do about a word.
fn advice(word: &str, needed: Option<&str>) -> Option<String> {
    Some(match word {
        "missing_scope" => format!(
            "give the app the scope {} under \"OAuth & Permissions\" and install it again",
            needed.unwrap_or("that is missing")
        ),
        "account_inactive" | "invalid_auth" | "not_authed" | "token_expired" | "token_revoked" => {
            "copy the \"Bot User OAuth Token\" of the app again".to_owned()
        }
        "not_allowed_token_type" => "the token must be a bot's, which begins with xoxb-".to_owned(),
        "messages_tab_disabled" => {
            "switch the app's \"Messages Tab\" on under \"App Home\"".to_owned()
        }
        "action_prohibited"
        | "channel_is_archived"
        | "invalid_token"
        | "no_active_hooks"
        | "no_service"
        | "no_service_id"
        | "no_team" => "make a new incoming webhook and write its URL".to_owned(),
        _ => return None,
    })
}

/// What Slack means: its word where it has one, else the status.
fn judge(answer: &Answer, whose: Whose, reason: &str) -> Result<(), SendError> {
    let status = answer.status;
    let Some(body) = answer.body.as_deref() else {
        http::classify(status, answer.retry_after, reason)?;
        return Err(Class::Unknown.error(reason, None));
    };
    let said: Option<Value> = serde_json::from_str(body).ok().filter(Value::is_object);
    let word = match &said {
        Some(said) if said["ok"] == true => "ok",
        Some(said) => said["error"].as_str().unwrap_or_default(),
        None => body.trim(),
    };
    if word == "ok" && status.is_success() {
        return Ok(());
    }
    let after = answer.retry_after.or_else(|| {
        let secs = said.as_ref()?["retry_after"].as_u64()?;
        Some(Duration::from_secs(secs).min(http::MAX_RETRY_AFTER))
    });
    let known = class(word, whose);
    let Some(class) = known else {
        http::classify(status, after, reason)?;
        let class = match said {
            // A refusal in a word we don't know is final, as an unknown 4xx is, so that the fallback starts at once.
            Some(_) => Class::Permanent,
            // No word of Slack's at all: a proxy or a log-in page in between, most likely.
            None => Class::Transient,
        };
        return Err(class.error(reason, after));
    };
    let needed = said.as_ref().and_then(|said| said["needed"].as_str());
    let needed = needed.filter(|scope| is_scope(scope));
    let hint = advice(word, needed).map(|hint| format!("; {hint}"));
    Err(class.error(format!("{reason}{}", hint.unwrap_or_default()), after))
}

/// A scope, or several with commas, as Slack writes them: nothing else of an answer is shown uncleaned.
fn is_scope(text: &str) -> bool {
    text.len() <= 100
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".:,_-".contains(&b))
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    fn answer(status: u16, body: Option<&str>) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            headers: HeaderMap::new(),
            body: body.map(str::to_owned),
        }
    }

    #[test]
    fn every_answer_has_its_class() {
        let limited = r#"{"retry_after":1,"ok":false,"error":"rate_limited"}"#;
        for (status, body, place, person) in [
            (200, "ok", "Ok", "Ok"),
            (200, "ok\n", "Ok", "Ok"),
            (200, r#"{"ok":true}"#, "Ok", "Ok"),
            (200, "", "Transient", "Transient"),
            (200, "<html>log in</html>", "Transient", "Transient"),
            (200, "invalid_blocks", "Permanent", "Permanent"),
            (401, "", "Broken", "Broken"),
            (418, "", "Permanent", "Permanent"),
            (
                200,
                r#"{"ok":false,"error":"channel_not_found"}"#,
                "Broken",
                "Permanent",
            ),
            (
                200,
                r#"{"ok":false,"error":"user_not_found"}"#,
                "Broken",
                "Permanent",
            ),
            (
                200,
                r#"{"ok":false,"error":"invalid_auth"}"#,
                "Broken",
                "Broken",
            ),
            (
                200,
                r#"{"ok":false,"error":"account_inactive"}"#,
                "Broken",
                "Broken",
            ),
            (
                200,
                r#"{"ok":false,"error":"missing_scope"}"#,
                "Broken",
                "Broken",
            ),
            (200, r#"{"ok":false,"error":"ratelimited"}"#, "Away", "Away"),
            (
                200,
                r#"{"ok":false,"error":"internal_error"}"#,
                "Transient",
                "Transient",
            ),
            (
                200,
                r#"{"ok":false,"error":"something_new"}"#,
                "Permanent",
                "Permanent",
            ),
            (400, "invalid_payload", "Permanent", "Permanent"),
            (400, "user_not_found", "Broken", "Permanent"),
            (400, "something new", "Permanent", "Permanent"),
            (403, "action_prohibited", "Broken", "Broken"),
            (403, "invalid_token", "Broken", "Broken"),
            (404, "no_service", "Broken", "Broken"),
            (404, "channel_not_found", "Broken", "Permanent"),
            (410, "channel_is_archived", "Broken", "Broken"),
            (429, limited, "Away", "Away"),
            (500, "rollup_error", "Transient", "Transient"),
            (503, "", "Transient", "Transient"),
            (302, "", "Broken", "Broken"),
        ] {
            for (whose, want) in [(Whose::Place, place), (Whose::Person, person)] {
                let got = format!("{:?}", judge(&answer(status, Some(body)), whose, ""));
                let class = got.trim_start_matches("Err(");
                assert!(class.starts_with(want), "{status} {body}: {got}");
            }
        }
        let Err(SendError::Away { after, .. }) =
            judge(&answer(429, Some(limited)), Whose::Place, "")
        else {
            panic!("not away");
        };
        assert_eq!(after, Some(Duration::from_secs(1)));
        assert!(matches!(
            judge(&answer(200, None), Whose::Place, ""),
            Err(SendError::Unknown { .. })
        ));
    }

    #[test]
    fn every_word_of_the_table_has_the_class_it_stands_under_whatever_the_status() {
        let mut seen = Vec::new();
        for (person, place, words) in WORDS {
            for word in words {
                let json = format!("{{\"ok\":false,\"error\":\"{word}\"}}");
                for (whose, want) in [(Whose::Person, person), (Whose::Place, place)] {
                    for (status, body) in [(200, json.as_str()), (400, word), (404, word)] {
                        let got = judge(&answer(status, Some(body)), whose, "");
                        let want = format!("Err({want:?} ");
                        assert!(format!("{got:?}").starts_with(&want), "{word}: {got:?}");
                    }
                }
                assert!(!seen.contains(word), "{word} stands twice");
                seen.push(*word);
            }
        }
    }

    #[test]
    fn a_missing_scope_is_named() {
        let body = r#"{"ok":false,"error":"missing_scope","needed":"users:read.email","provided":"chat:write"}"#;
        let Err(SendError::Broken { reason }) =
            judge(&answer(200, Some(body)), Whose::Person, "slack.com says no")
        else {
            panic!("not broken");
        };
        assert!(reason.contains("the scope users:read.email"), "{reason}");
        let forged = body.replace("users:read.email", "<!channel> x");
        let said = format!(
            "{:?}",
            judge(&answer(200, Some(&forged)), Whose::Person, "")
        );
        assert!(!said.contains("<!channel>"), "{said}");
    }

    #[test]
    fn a_message_is_cut_to_what_slack_takes() {
        let note = Notification {
            id: "id".to_owned(),
            subject: "s".repeat(200),
            text: String::new(),
            html: String::new(),
            chat: vec!["\u{1f512}".repeat(4_000); 60],
            short: String::new(),
            event: Value::Null,
            language: "en".to_owned(),
            expires_at: jiff::Timestamp::MAX,
        };
        let message = message(&note);
        let blocks = message["blocks"].as_array().unwrap();
        let chars = |block: &Value| block["text"]["text"].as_str().unwrap().chars().count();
        assert_eq!(chars(&blocks[0]), MAX_HEADER_CHARS);
        assert!(blocks[1..].iter().all(|b| chars(b) <= MAX_SECTION_CHARS));
        assert_eq!(blocks[1..].iter().map(chars).sum::<usize>(), 10_000);
        let last = blocks.last().unwrap()["text"]["text"].as_str().unwrap();
        assert!(last.ends_with('…'), "what is cut says so");
    }
}
