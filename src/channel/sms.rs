//! The channel `sms`: a text message by Twilio's API, or by one of the same shape.
//!
//! The queue is the provider's: it sends a long number's messages one a second by itself, and drops what is older than
//! the `ValidityPeriod` we give it, so that no code arrives after its end.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::header::AUTHORIZATION;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
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
use crate::channel::probe::Probe;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// Where Twilio's API is.
const API: &str = "https://api.twilio.com";
/// Of an answer: for the rest of it repeats the message and the number.
const SHOWN: &[&str] = &["sid", "status", "code", "error_code", "message"];
/// Asks for messages and finds none: Twilio began later.
const NO_MESSAGES: [(&str, &str); 2] = [("PageSize", "1"), ("DateSent", "2000-01-01")];
/// A restricted API key lacks a permission.
const NOT_PERMITTED: u64 = 70051;
/// The longest text that is taken; templates stay far below it.
const MAX_BODY_CHARS: usize = 1_600;
/// The bounds of `ValidityPeriod`. Twilio's pages name 14,400 and, of late, 36,000 as the most; what both allow is long enough for a queue.
const VALIDITY_SECONDS: std::ops::RangeInclusive<i64> = 1..=14_400;
/// How many digits an international number has, E.164.
const NUMBER_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// The longest name that can stand for a sender.
const MAX_SENDER_CHARS: usize = 11;

/// `type = "sms"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The account's id, `AC…`.
    pub account: Spanned<String>,
    /// The account's auth token.
    pub token: Option<SecretSource>,
    /// In place of `token`: the id of an API key, `SK…`.
    pub key: Option<Spanned<String>>,
    /// The secret of that key.
    pub secret: Option<SecretSource>,
    /// The sender: a number, a short code or a name.
    pub from: Option<Spanned<String>>,
    /// In place of `from`: the id of a messaging service, `MG…`.
    pub messaging_service: Option<Spanned<String>>,
    /// Where the API is.
    pub api: Option<Spanned<String>>,
    /// In place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// An HTTP proxy.
    pub proxy: Option<SecretSource>,
}

/// What is asked to see whether the log-in is good.
enum Test {
    /// The account itself, which its own auth token may read.
    Account(Endpoint),
    /// The messages of a day on which there were none: a standard API key may not read the account.
    Messages(Endpoint),
}

/// An account that sends text messages.
pub struct Sms {
    messages: Endpoint,
    test: Test,
    authorization: HeaderValue,
    /// The name of the parameter, and its value.
    sender: (&'static str, String),
    secrets: Vec<Secret>,
}

impl Config {
    /// Reads the secrets and prepares the connection.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Sms> {
        let login = self.login(check);
        let sender = self.sender(check);
        let account = self.account.get_ref();
        let is_id = !account.is_empty()
            && account
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !is_id {
            check.problem(
                self.account.span(),
                "`account` is the id of the account, such as \"AC…\" with 32 letters and digits",
            );
        }
        let (api, span) = match &self.api {
            Some(api) => (api.get_ref().as_str(), api.span()),
            None => (API, self.account.span()),
        };
        let way = Way {
            ca_file: self.ca_file.as_ref(),
            proxy: self.proxy.as_ref(),
            timeout,
        };
        let api = Endpoint::build(&Secret::new(api), span, way, check);
        let (user, password) = login?;
        let (api, sender) = (api?.showing(SHOWN), sender?);
        let login = STANDARD.encode(format!("{user}:{}", password.expose()));
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {login}")).expect("base64 can stand in a header");
        authorization.set_sensitive(true);
        let mut secrets = api.secrets_of_the_way();
        secrets.extend([password, Secret::new(login)]);
        let accounts = api.method("2010-04-01").method("Accounts");
        let messages = accounts.method(account).method("Messages.json");
        is_id.then(|| Sms {
            test: match self.key {
                None => Test::Account(accounts.method(&format!("{account}.json"))),
                Some(_) => Test::Messages(messages.clone().asking(&NO_MESSAGES)),
            },
            messages,
            authorization,
            sender,
            secrets,
        })
    }

    /// User and password.
    fn login(&self, check: &mut Check) -> Option<(String, Secret)> {
        match (&self.token, &self.key, &self.secret) {
            (Some(token), None, None) => {
                Some((self.account.get_ref().clone(), check.secret(token)?))
            }
            (None, Some(key), Some(secret)) => Some((key.get_ref().clone(), check.secret(secret)?)),
            _ => {
                check.problem(
                    self.account.span(),
                    "a channel of type sms logs in with either `token` (the account's auth token) or `key` and `secret` (an API key)",
                );
                None
            }
        }
    }

    fn sender(&self, check: &mut Check) -> Option<(&'static str, String)> {
        match (&self.from, &self.messaging_service) {
            (Some(from), None) if is_sender(from.get_ref()) => {
                Some(("From", from.get_ref().clone()))
            }
            (Some(from), None) => {
                check.problem(
                    from.span(),
                    "`from` is a number such as \"+14155550100\", a short code, or a name of at most 11 letters, digits and spaces",
                );
                None
            }
            (None, Some(service)) => Some(("MessagingServiceSid", service.get_ref().clone())),
            _ => {
                check.problem(
                    self.account.span(),
                    "a channel of type sms has either `from` (a number or a name) or `messaging_service`",
                );
                None
            }
        }
    }
}

impl Sms {
    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        self.secrets.clone()
    }

    fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([
            (AUTHORIZATION, self.authorization.clone()),
            (
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            ),
        ])
    }
}

#[async_trait]
impl Carrier for Sms {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let number = number(attempt.to).map_err(|why| Class::Permanent.error(why, None))?;
        // The provider repeats the number, at times as a form has it.
        let digits = number.trim_start_matches('+');
        let redactor = attempt.redactor.with([Secret::new(digits)]);
        let attempt = Attempt {
            redactor: &redactor,
            ..*attempt
        };
        let (name, sender) = &self.sender;
        let body = http::form(&[
            ("To", &number),
            (name, sender),
            ("Body", &text(&attempt.note.short)),
            (
                "ValidityPeriod",
                &validity_seconds(attempt.note.expires_at, Timestamp::now()).to_string(),
            ),
            ("AddressRetention", "obfuscate"),
        ]);
        let answer = self.messages.post(&attempt, self.headers(), body).await?;
        let said = self.messages.reason(&redactor, &answer);
        judge(&answer, &said)?;
        Ok(Receipt { said })
    }

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        let (Test::Account(endpoint) | Test::Messages(endpoint)) = &self.test;
        if !endpoint.reach(attempt, found).await {
            return;
        }
        let host = endpoint.host();
        let login = HeaderMap::from_iter([(AUTHORIZATION, self.authorization.clone())]);
        let answer = match endpoint.get(attempt, login).await {
            Ok(answer) => answer,
            Err(error) => return found.push(Probe::bad(host, error.to_string())),
        };
        found.extend(answer.skew(host, Timestamp::now()));
        let said = endpoint.reason(attempt.redactor, &answer);
        found.push(self.test.told(host, &answer, &said));
    }
}

impl Test {
    /// What the answer says about the log-in.
    fn told(&self, host: &str, answer: &Answer, said: &str) -> Probe {
        let fields = fields(answer).unwrap_or_default();
        if !answer.status.is_success() {
            return match (judge(answer, said), fields["code"].as_u64()) {
                (_, Some(NOT_PERMITTED)) => Probe::unknown(
                    host,
                    format!(
                        "{said}; this key may not read messages, so whether it may send shows only one: ftm-relay send-test"
                    ),
                ),
                (Err(error), _) => Probe::bad(host, error.to_string()),
                (Ok(()), _) => Probe::bad(host, said),
            };
        }
        match (self, fields["status"].as_str()) {
            (Self::Account(_), Some("active")) if fields["type"] == "Trial" => Probe::unknown(
                host,
                "takes the log-in, but the account is on trial, and writes only to numbers that were verified",
            ),
            (Self::Account(_), Some("active")) => {
                Probe::good(host, "takes the log-in, and the account is active")
            }
            (Self::Account(_), Some(_)) => Probe::bad(
                host,
                format!("{said}; the account is not active; look at its balance and its state"),
            ),
            (Self::Messages(_), _) if fields["messages"].is_array() => {
                Probe::good(host, "takes the log-in by API key")
            }
            _ => Probe::bad(
                host,
                format!("{said}, which is no answer of such an API; see `api`"),
            ),
        }
    }
}

/// The person's number without separators, or why there is none to write to.
fn number(to: Option<&Recipient>) -> Result<String, &'static str> {
    let person = to.ok_or("a text message needs a person, and none was found")?;
    let phone = person
        .phone
        .as_deref()
        .filter(|phone| !phone.trim().is_empty())
        .ok_or("the directory has no phone number for this person")?;
    international(phone)
        .ok_or("the person's phone number is not in international form, such as +14155550100")
}

/// E.164 without the usual separators. `None`: it is no such number, or it holds a (0), which some countries write and nobody dials.
fn international(phone: &str) -> Option<String> {
    let number: String = phone
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '-' | '.' | '/' | '(' | ')'))
        .collect();
    let digits = number.strip_prefix('+')?;
    let good = NUMBER_DIGITS.contains(&digits.len())
        && !digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit())
        && !phone.contains("(0)");
    good.then_some(number)
}

fn is_sender(from: &str) -> bool {
    let is_name = from.chars().count() <= MAX_SENDER_CHARS
        && from.bytes().any(|b| b.is_ascii_alphabetic())
        && from
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b" _-+&".contains(&b));
    let is_short_code = (3..=8).contains(&from.len()) && from.bytes().all(|b| b.is_ascii_digit());
    is_name || is_short_code || international(from).is_some_and(|number| number == from)
}

/// How long the provider may keep the message in its queue.
fn validity_seconds(expires_at: Timestamp, now: Timestamp) -> i64 {
    let left = expires_at.duration_since(now).as_secs();
    left.clamp(*VALIDITY_SECONDS.start(), *VALIDITY_SECONDS.end())
}

/// The text without the typographic characters that would make every character of it count twice: one that GSM's
/// alphabet lacks, and a segment holds 70 characters in place of 160.
fn text(short: &str) -> String {
    let mut plain = String::with_capacity(short.len());
    for c in short.chars() {
        match c {
            '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}' => plain.push('\''),
            '\u{201c}'..='\u{201f}' | '«' | '»' => plain.push('"'),
            '\u{2010}'..='\u{2015}' | '\u{2212}' => plain.push('-'),
            '…' => plain.push_str("..."),
            '\u{a0}' | '\u{2009}' | '\u{202f}' => plain.push(' '),
            other => plain.push(other),
        }
    }
    match plain.char_indices().nth(MAX_BODY_CHARS) {
        Some((at, _)) => plain[..at].to_owned(),
        None => plain,
    }
}

fn fields(answer: &Answer) -> Option<Value> {
    let body = answer.body.as_deref()?;
    serde_json::from_str(body).ok().filter(Value::is_object)
}

/// Twilio's numbers that say something else than the status beside them. It changes them from time to time, so that
/// what is not here is judged by its status: a 400 concerns this message alone.
const CODES: [(Class, &[u64]); 4] = [
    // Too many requests, and the sender's queue is full.
    (Class::Away, &[20429, 21611]),
    (Class::Transient, &[20500, 20503]),
    // The number can't be written to: invalid, not verified, its country not enabled, unsubscribed, out of this sender's reach, no mobile, a landline.
    (
        Class::Permanent,
        &[
            21211, 21217, 21265, 21266, 21408, 21606, 21608, 21610, 21612, 21614, 21635, 21659,
        ],
    ),
    // The account, its credentials, the sender or the messaging service.
    (
        Class::Broken,
        &[
            10001, 20003, 20005, 20006, 20008, 21212, 21603, 21660, 21661, 21701, 21703, 63038,
            90010,
        ],
    ),
];

/// What an operator can do about a number.
fn advice(code: u64) -> Option<&'static str> {
    Some(match code {
        20003 | 20006 => "check `account` and `token`, or `key` and `secret`",
        20008 => "these are test credentials; write those of the account",
        10001 | 20005 | 90010 => "the account is not active; look at its balance and its state",
        21212 | 21603 | 21606 | 21659 | 21660 | 21661 => "`from` must be a sender of this account",
        21701 | 21703 => "check `messaging_service` and its senders",
        21408 => "enable that country in the account's geographic permissions",
        21608 => "a trial account writes only to numbers that were verified",
        21610 => "the person has answered STOP and must answer START",
        _ => return None,
    })
}

/// What an answer means: Twilio's number where it has one, else the status.
fn judge(answer: &Answer, reason: &str) -> Result<(), SendError> {
    let fields = fields(answer);
    let field = |name: &str| fields.as_ref().map(|fields| &fields[name]);
    let number = |name| field(name).and_then(Value::as_u64);
    let known = |code| CODES.iter().find(|(_, codes)| codes.contains(&code));
    let class = |code: u64| known(code).map(|(class, _)| *class);
    let hinted = |code: Option<u64>| match code.and_then(advice) {
        Some(hint) => format!("{reason}; {hint}"),
        None => reason.to_owned(),
    };
    if answer.status.is_success() {
        let failed = matches!(
            field("status").and_then(Value::as_str),
            Some("failed" | "undelivered" | "canceled")
        );
        return match (&answer.body, &fields) {
            (None, _) => Err(Class::Unknown.error(reason, None)),
            (_, Some(_)) if failed => {
                let code = number("error_code");
                let class = code.and_then(class).unwrap_or(Class::Permanent);
                Err(class.error(hinted(code), answer.retry_after))
            }
            (_, Some(fields)) if fields["sid"].is_string() => Ok(()),
            // No answer of such an API: a log-in page in between, most likely, or another `api`.
            _ => Err(Class::Transient.error(reason, answer.retry_after)),
        };
    }
    let code = number("code");
    match code.and_then(class) {
        Some(class) => Err(class.error(hinted(code), answer.retry_after)),
        None => http::classify(answer.status, answer.retry_after, &hinted(code)),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    fn class_of(status: u16, body: Option<&str>) -> String {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            headers: HeaderMap::new(),
            body: body.map(str::to_owned),
        };
        let judged = format!("{:?}", judge(&answer, ""));
        let word = judged.trim_start_matches("Err(");
        word.split([' ', '(']).next().unwrap().to_owned()
    }

    #[test]
    fn every_answer_has_its_class() {
        let error = |code: u64| format!("{{\"code\":{code},\"message\":\"m\",\"status\":400}}");
        let mut seen = Vec::new();
        for (class, codes) in CODES {
            for code in codes {
                let want = format!("{class:?}");
                // Whatever the status beside it.
                for status in [400, 401, 403, 429] {
                    assert_eq!(class_of(status, Some(&error(*code))), want, "{code}");
                }
                let failed =
                    format!("{{\"sid\":\"SM1\",\"status\":\"failed\",\"error_code\":{code}}}");
                assert_eq!(class_of(201, Some(&failed)), want, "{code}");
                assert!(!seen.contains(code), "{code} stands twice");
                seen.push(*code);
            }
        }
        for (status, body, want) in [
            (201, Some(r#"{"sid":"SM1","status":"queued"}"#), "Ok"),
            (
                201,
                Some(r#"{"sid":"SM1","status":"accepted","error_code":null}"#),
                "Ok",
            ),
            (201, Some(r#"{"sid":"SM1","status":"failed"}"#), "Permanent"),
            (200, Some("<html>log in</html>"), "Transient"),
            (201, None, "Unknown"),
            (400, Some(&*error(29999)), "Permanent"),
            (401, Some("<html>"), "Broken"),
            (404, Some(&*error(20404)), "Broken"),
            (429, Some(""), "Away"),
            (500, None, "Transient"),
            (503, Some(""), "Transient"),
        ] {
            assert_eq!(class_of(status, body), want, "{status} {body:?}");
        }
    }

    #[test]
    fn a_number_is_international_or_none_is_written_to() {
        for (phone, number) in [
            ("+14155550100", Some("+14155550100")),
            ("+1 (415) 555-0100", Some("+14155550100")),
            (" +49 170/123 45.67 ", Some("+491701234567")),
            ("+49 (0)170 1234567", None),
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

    #[test]
    fn a_sender_is_a_number_a_short_code_or_a_name() {
        for good in ["+14155550100", "12345", "Service 1", "IT", "ACME-IT"] {
            assert!(is_sender(good), "{good}");
        }
        for wrong in [
            "",
            "4155550100",
            "A name too long",
            "Übung",
            "12",
            "+1 415 5550100",
        ] {
            assert!(!is_sender(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_providers_queue_drops_what_the_code_outlives() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(validity_seconds(at(600), now), 600);
        assert_eq!(validity_seconds(at(0), now), 1);
        assert_eq!(validity_seconds(at(72 * 3_600), now), 14_400);
    }

    #[test]
    fn a_text_costs_no_more_than_it_must() {
        assert_eq!(text("“a”\u{a0}– b’s…"), "\"a\" - b's...");
        assert_eq!(text("für Zoë"), "für Zoë");
        assert_eq!(text(&"é".repeat(2_000)).chars().count(), MAX_BODY_CHARS);
    }
}
