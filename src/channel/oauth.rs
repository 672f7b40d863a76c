//! Access tokens by OAuth 2.0 client credentials (RFC 6749, 4.4): one fetch at a time, kept until shortly before their end.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use toml::Spanned;
use zeroize::Zeroizing;

use crate::channel::Attempt;
use crate::channel::SendError;
use crate::channel::Transcript;
use crate::channel::http;
use crate::channel::http::Answer;
use crate::channel::http::Endpoint;
use crate::channel::http::Way;
use crate::channel::probe::Probe;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;
use crate::settings::Span;

/// Where Microsoft gives tokens, outside the national clouds.
const LOGIN: &str = "https://login.microsoftonline.com";

/// Names under which Microsoft takes users of any tenant; an application has one of its own.
const NO_TENANTS: [&str; 3] = ["common", "organizations", "consumers"];

/// A token is renewed so long before its end, or at half its life if that is later.
const MARGIN: Duration = Duration::from_secs(300);

/// How long a token without `expires_in` is believed.
const SHORT_LIFE: Duration = Duration::from_secs(300);

/// No token is kept longer, whatever its server says.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// When an early renewal failed, the old token goes on being used, and the server is left alone for so long.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// The longest token: one line of AUTH has at most 12,288 octets (RFC 4954, 4), and base64 makes a third more of it.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// So many roles of a token are shown, each so long at most.
const MAX_ROLES: usize = 20;
const MAX_ROLE_CHARS: usize = 60;

/// The keys of a channel that say where its tokens come from.
pub struct Keys<'a> {
    /// What needs a token: how a sentence about a missing key begins.
    pub needed_by: &'a str,
    /// Where that stands.
    pub here: Span,
    /// What a token of Microsoft's is for, unless `scope` says otherwise.
    pub default_scope: &'a str,
    /// The tenant of Microsoft Entra.
    pub tenant: Option<&'a Spanned<String>>,
    /// Where Microsoft gives tokens, in a national cloud.
    pub login: Option<&'a Spanned<String>>,
    /// Where anybody else gives tokens.
    pub token_url: Option<&'a Spanned<String>>,
    /// The application.
    pub client_id: Option<&'a Spanned<String>>,
    /// Its secret.
    pub client_secret: Option<&'a SecretSource>,
    /// What the token is for.
    pub scope: Option<&'a Spanned<String>>,
    /// By which way the server is reached that gives them.
    pub way: Way<'a>,
}

/// A server that gives tokens, and the one it gave last.
pub struct Tokens {
    endpoint: Endpoint,
    client_id: String,
    client_secret: Secret,
    scope: Option<String>,
    held: Mutex<Option<Held>>,
}

/// A token to show to a peer.
#[derive(Clone)]
pub struct Token {
    /// The token itself.
    pub secret: Secret,
    /// It was in stock, so that a peer who refuses it may like a new one.
    pub kept: bool,
}

struct Held {
    secret: Secret,
    renew_at: Instant,
    ends_at: Instant,
}

impl Keys<'_> {
    /// Checks the keys and reads the secret; nothing is opened.
    pub fn build(self, check: &mut Check) -> Option<Tokens> {
        let url = self.url(check);
        let (what, here) = (self.needed_by, &self.here);
        if self.client_id.is_none() {
            check.problem(
                here.clone(),
                format!("{what} needs client_id, the application's id"),
            );
        }
        if self.client_secret.is_none() {
            check.problem(
                here.clone(),
                format!("{what} needs client_secret, such as client_secret = {{ credential = \"oauth\" }}"),
            );
        }
        let secret = self.client_secret.and_then(|source| check.secret(source));
        let (url, span) = url?;
        let endpoint = Endpoint::build(&Secret::new(url), span, self.way, check);
        let default = self.tenant.map(|_| self.default_scope.to_owned());
        Some(Tokens {
            endpoint: endpoint?,
            client_id: self.client_id?.get_ref().clone(),
            client_secret: secret?,
            scope: self.scope.map(|s| s.get_ref().clone()).or(default),
            held: Mutex::default(),
        })
    }

    fn url(&self, check: &mut Check) -> Option<(String, Span)> {
        let tenant = match (self.tenant, self.token_url) {
            (Some(_), Some(url)) => {
                check.problem(
                    url.span(),
                    "`tenant` says where Microsoft's tokens come from and `token_url` where others do; write one of them",
                );
                return None;
            }
            (None, None) => {
                check.problem(
                    self.here.clone(),
                    format!("{} needs tenant (Microsoft Entra) or token_url (any other server of OAuth 2.0)", self.needed_by),
                );
                return None;
            }
            (None, Some(url)) => {
                if let Some(login) = self.login {
                    check.problem(
                        login.span(),
                        "`login` belongs to `tenant`, not to `token_url`",
                    );
                    return None;
                }
                return Some((url.get_ref().clone(), url.span()));
            }
            (Some(tenant), None) => tenant,
        };
        let name = tenant.get_ref();
        if NO_TENANTS.contains(&name.as_str()) {
            check.problem(
                tenant.span(),
                format!("an application can't log in to {name}; write your tenant's id, or a domain of it"),
            );
            return None;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        if name.is_empty() || !name.chars().all(is_name) {
            check.problem(
                tenant.span(),
                format!("\"{name}\" is no tenant; write its id (letters, digits and -), or a domain of it"),
            );
            return None;
        }
        let (login, span) = match self.login {
            Some(login) => (login.get_ref().as_str(), login.span()),
            None => (LOGIN, tenant.span()),
        };
        let login = login.trim_end_matches('/');
        Some((format!("{login}/{name}/oauth2/v2.0/token"), span))
    }
}

impl Tokens {
    /// What must never be shown, beside the tokens themselves.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = self.endpoint.secrets_of_the_way();
        secrets.push(self.client_secret.clone());
        secrets
    }

    /// What the tokens are for, if the configuration says so.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// A token that is good for now. An error concerns everybody who would need it.
    pub async fn token(&self, attempt: &Attempt<'_>) -> Result<Token, SendError> {
        let mut held = self.held.lock().await;
        let now = Instant::now();
        match &mut *held {
            Some(held) if now < held.renew_at => Ok(held.kept()),
            Some(old) if now < old.ends_at => match self.fetch(attempt).await {
                Ok(new) => Ok(renew(&mut held, new)),
                Err(SendError::Broken { reason }) => Err(SendError::Broken { reason }),
                Err(_) => {
                    old.renew_at = Instant::now() + RENEWAL_PAUSE;
                    Ok(old.kept())
                }
            },
            _ => Ok(renew(&mut held, self.fetch(attempt).await?)),
        }
    }

    /// A token in place of this one, which a peer refused.
    pub async fn instead_of(
        &self,
        refused: &Token,
        attempt: &Attempt<'_>,
    ) -> Result<Token, SendError> {
        let mut held = self.held.lock().await;
        match &*held {
            // Somebody else was faster.
            Some(held) if held.secret != refused.secret => Ok(held.kept()),
            _ => Ok(renew(&mut held, self.fetch(attempt).await?)),
        }
    }

    /// Asks for a token, and says what its claims tell about the application's rights. Whether there is one.
    ///
    /// `role` is what the application is usually given. The claims are read to explain, never to decide: a right may also be
    /// given where the token is shown.
    pub async fn probe(&self, attempt: &Attempt<'_>, role: &str, found: &mut Vec<Probe>) -> bool {
        if !self.endpoint.reach(attempt, found).await {
            return false;
        }
        let host = self.endpoint.host();
        let asked_at = Instant::now();
        let answer = self.ask(attempt).await;
        if let Ok(answer) = &answer {
            found.extend(answer.skew(host, Timestamp::now()));
        }
        let new = answer.and_then(|answer| self.read(answer, asked_at, attempt.redactor));
        told(attempt, asked_at, &new);
        match new {
            Ok(new) => {
                found.push(rights(host, &new.secret, role));
                *self.held.lock().await = Some(new);
                true
            }
            Err(error) => {
                found.push(Probe::bad(host, error.to_string()));
                false
            }
        }
    }

    async fn fetch(&self, attempt: &Attempt<'_>) -> Result<Held, SendError> {
        let asked_at = Instant::now();
        let answer = self.ask(attempt).await;
        let held = answer.and_then(|answer| self.read(answer, asked_at, attempt.redactor));
        told(attempt, asked_at, &held);
        held
    }

    async fn ask(&self, attempt: &Attempt<'_>) -> Result<Answer, SendError> {
        let host = self.endpoint.host();
        attempt.transcript.line(|| {
            let scope = self.scope.as_deref().unwrap_or("none");
            format!("> (a token is asked for at {host}, scope {scope})")
        });
        // The answer is a secret, so that the dialogue is told here in our own words.
        let quiet = Transcript::off();
        let asking = Attempt {
            transcript: &quiet,
            ..*attempt
        };
        let headers = HeaderMap::from_iter([(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )]);
        let answer = self.endpoint.ask(&asking, headers, self.form()).await;
        answer.map_err(for_all)
    }

    fn form(&self) -> Vec<u8> {
        let mut pairs = vec![
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", self.client_secret.expose()),
        ];
        pairs.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        http::form(&pairs)
    }

    fn read(
        &self,
        answer: Answer,
        asked_at: Instant,
        redactor: &Redactor,
    ) -> Result<Held, SendError> {
        let host = self.endpoint.host();
        let body = Zeroizing::new(answer.body.unwrap_or_default());
        if answer.status.is_success() {
            return held(&body, asked_at).ok_or_else(|| SendError::Away {
                reason: format!("{host} answered {}, but with no token", answer.status),
                after: None,
            });
        }
        let Ok(refusal) = serde_json::from_str::<Refusal>(&body) else {
            let reason = format!("{host} gives no token: it answered {}", answer.status);
            return http::classify(answer.status, answer.retry_after, &reason)
                .map_err(for_all)
                .and(Err(SendError::Away {
                    reason,
                    after: None,
                }));
        };
        let said = redactor.clean(&refusal.said());
        let advice = refusal
            .advice()
            .map_or_else(String::new, |a| format!(" ({a})"));
        let reason = format!("{host} gives no token: {said}{advice}");
        match refusal.error.as_str() {
            "temporarily_unavailable" | "server_error" => Err(SendError::Away {
                reason,
                after: answer.retry_after,
            }),
            _ => http::classify(answer.status, answer.retry_after, &reason)
                .map_err(for_all)
                .and(Err(SendError::Broken { reason })),
        }
    }
}

/// What came of asking, without the token.
fn told(attempt: &Attempt<'_>, asked_at: Instant, held: &Result<Held, SendError>) {
    attempt.transcript.line(|| match held {
        Ok(held) => {
            let secs = held.ends_at.duration_since(asked_at).as_secs();
            format!("< (a token for {secs} s)")
        }
        Err(error) => format!("! {error}"),
    });
}

/// What a token says about the application's rights.
fn rights(host: &str, token: &Secret, role: &str) -> Probe {
    match roles(token) {
        None => Probe::good(host, "gives a token"),
        Some(roles) if roles.iter().any(|r| r == role) => {
            Probe::good(host, format!("gives a token, with the role {role}"))
        }
        Some(roles) => {
            let has = match roles.is_empty() {
                true => "no role at all".to_owned(),
                false => roles.join(", "),
            };
            Probe::unknown(
                host,
                format!(
                    "gives a token, but not with the role {role} (it has {has}): unless Exchange itself gives the application that right (RBAC for Applications), add the application permission {role} and have an administrator consent"
                ),
            )
        }
    }
}

/// The roles in the claims of a JWT; `None`: it is none, or it names none.
fn roles(token: &Secret) -> Option<Vec<String>> {
    let claims = token.expose().split('.').nth(1)?;
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let Some(roles) = claims.get("roles") else {
        // Microsoft leaves the claim out where there are none.
        return claims.get("appid").map(|_| Vec::new());
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let plain = |role: &str| {
        role.chars()
            .filter(|c| is_name(*c))
            .take(MAX_ROLE_CHARS)
            .collect()
    };
    let roles = roles.as_array()?.iter().filter_map(Value::as_str);
    Some(roles.take(MAX_ROLES).map(plain).collect())
}

fn renew(held: &mut Option<Held>, new: Held) -> Token {
    let token = Token {
        secret: new.secret.clone(),
        kept: false,
    };
    *held = Some(new);
    token
}

impl Held {
    fn kept(&self) -> Token {
        Token {
            secret: self.secret.clone(),
            kept: true,
        }
    }
}

/// What a server says that gives a token (RFC 6749, 5.1).
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Seconds; some servers write them in quotes.
    expires_in: Option<Value>,
}

fn held(body: &str, asked_at: Instant) -> Option<Held> {
    let granted: Granted = serde_json::from_str(body).ok()?;
    let token = granted.access_token.as_str();
    let fits = (1..=MAX_TOKEN_BYTES).contains(&token.len());
    // It goes into headers and between control characters, so nothing of the kind may be in it.
    if !fits || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let secs = match &granted.expires_in {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_u64(),
        None => None,
    };
    let life = secs.map_or(SHORT_LIFE, Duration::from_secs).min(MAX_LIFE);
    Some(Held {
        secret: Secret::new(granted.access_token),
        renew_at: asked_at + life.saturating_sub(MARGIN).max(life / 2),
        ends_at: asked_at + life,
    })
}

/// What a server says that gives none (RFC 6749, 5.2).
#[derive(Deserialize)]
struct Refusal {
    error: String,
    error_description: Option<String>,
}

impl Refusal {
    fn said(&self) -> String {
        // Microsoft ends its sentences with numbers for its own support.
        let description = self.error_description.as_deref().unwrap_or_default();
        let description = description.split("Trace ID:").next().unwrap_or_default();
        format!("{} {description}", self.error)
    }

    /// What to do about it. Microsoft's numbers may change, so that they choose words only, never what happens.
    fn advice(&self) -> Option<&'static str> {
        let description = self.error_description.as_deref().unwrap_or_default();
        let numbers = [
            (
                "AADSTS7000215",
                "client_secret is wrong; copy the secret's value, not its id",
            ),
            (
                "AADSTS7000222",
                "client_secret has expired; make a new one for the application",
            ),
            (
                "AADSTS700016",
                "this tenant knows no application with this client_id",
            ),
            (
                "AADSTS90002",
                "there is no such tenant; see whether it is written right and whether login is that of your cloud",
            ),
            (
                "AADSTS70011",
                "scope is wrong; for an application it ends in /.default",
            ),
        ];
        let number = |(number, _): &&(&str, &str)| {
            description
                .strip_prefix(*number)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        if let Some((_, advice)) = numbers.iter().find(number) {
            return Some(advice);
        }
        match self.error.as_str() {
            "invalid_client" => Some("client_id or client_secret is wrong"),
            "unauthorized_client" | "unsupported_grant_type" => {
                Some("this application may not log in with client credentials there")
            }
            "invalid_scope" => Some("scope is wrong"),
            _ => None,
        }
    }
}

/// Without a token nobody's message goes out, whatever the server's answer would mean for a single one.
fn for_all(error: SendError) -> SendError {
    match error {
        SendError::Transient { reason, after } => SendError::Away { reason, after },
        SendError::Unknown { reason } => SendError::Away {
            reason,
            after: None,
        },
        SendError::Permanent { reason } => SendError::Broken { reason },
        SendError::Away { .. } | SendError::Broken { .. } => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let now = Instant::now();
        for (answer, lives, renewed) in [
            (
                r#"{"access_token":"t","token_type":"Bearer","expires_in":3599}"#,
                3599,
                3299,
            ),
            (r#"{"access_token":"t","expires_in":"3599"}"#, 3599, 3299),
            (r#"{"access_token":"t","expires_in":60}"#, 60, 30),
            (r#"{"access_token":"t"}"#, 300, 150),
            (r#"{"access_token":"t","expires_in":-1}"#, 300, 150),
            (
                r#"{"access_token":"t","expires_in":99999999}"#,
                86_400,
                86_100,
            ),
        ] {
            let held = held(answer, now).unwrap();
            assert_eq!(held.ends_at - now, Duration::from_secs(lives), "{answer}");
            assert_eq!(
                held.renew_at - now,
                Duration::from_secs(renewed),
                "{answer}"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_token_is_none() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(9000));
        for answer in [
            "",
            "<html>",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\u0001auth=x"}"#,
            r#"{"access_token":"a\r\nX: y"}"#,
            &long,
        ] {
            assert!(held(answer, Instant::now()).is_none(), "{answer}");
        }
    }

    #[test]
    fn microsofts_numbers_are_whole_numbers() {
        let advice = |error: &str, description: &str| {
            Refusal {
                error: error.to_owned(),
                error_description: Some(description.to_owned()),
            }
            .advice()
        };
        assert!(
            advice("invalid_client", "AADSTS7000215: no")
                .unwrap()
                .contains("value")
        );
        assert!(
            advice("invalid_client", "AADSTS70002150: no")
                .unwrap()
                .starts_with("client_id or")
        );
        assert!(
            advice("invalid_request", "AADSTS90002: no")
                .unwrap()
                .contains("tenant")
        );
        assert_eq!(advice("invalid_request", "something"), None);
    }
}
