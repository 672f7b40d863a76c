//! The channel `webhook`: one POST per notification, signed as Standard Webhooks 1.0.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderName;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::http;
use crate::channel::http::Endpoint;
use crate::channel::http::Way;
use crate::channel::probe::Probe;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// How long a signing secret is, in bytes, by Standard Webhooks.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Headers that are ours or the connection's.
const OUR_HEADERS: [&str; 8] = [
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "host",
];

/// `type = "webhook"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to.
    pub url: SecretSource,
    /// `whsec_…`: signs every request.
    pub secret: Option<SecretSource>,
    /// More headers.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretSource>,
    /// In place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// An HTTP proxy.
    pub proxy: Option<SecretSource>,
}

/// A receiver of events.
pub struct Webhook {
    endpoint: Endpoint,
    key: Option<hmac::Key>,
    headers: HeaderMap,
    secrets: Vec<Secret>,
}

impl Config {
    /// Reads the secrets and prepares the connection.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Webhook> {
        let way = Way {
            ca_file: self.ca_file.as_ref(),
            proxy: self.proxy.as_ref(),
            timeout,
        };
        let endpoint = http::url(&self.url, check)
            .and_then(|url| Endpoint::build(&url, self.url.span.clone(), way, check));
        let mut secrets = endpoint.as_ref().map(Endpoint::secrets).unwrap_or_default();
        let mut good = true;
        let mut key = None;
        if let Some(source) = &self.secret {
            let secret = check.secret(source);
            good &= secret.is_some();
            if let Some(secret) = secret {
                key = signing_key(&secret);
                if key.is_none() {
                    check.problem(
                        source.span.clone(),
                        "a webhook's secret is whsec_ and the base64 form of 24 to 64 bytes",
                    );
                    good = false;
                }
                let bare = secret.expose().trim_start_matches("whsec_").to_owned();
                secrets.extend([secret, Secret::new(bare)]);
            }
        }
        let mut headers = HeaderMap::new();
        for (name, source) in &self.headers {
            match header(name, source, check) {
                Some((name, value, secret)) => {
                    headers.append(name, value);
                    secrets.push(secret);
                }
                None => good = false,
            }
        }
        let endpoint = endpoint?;
        good.then_some(Webhook {
            endpoint,
            key,
            headers,
            secrets,
        })
    }
}

/// The key of `whsec_…`.
fn signing_key(secret: &Secret) -> Option<hmac::Key> {
    let text = secret.expose().strip_prefix("whsec_")?;
    let bytes = zeroize::Zeroizing::new(STANDARD.decode(text).ok()?);
    SECRET_BYTES
        .contains(&bytes.len())
        .then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn header(
    name: &str,
    source: &SecretSource,
    check: &mut Check,
) -> Option<(HeaderName, HeaderValue, Secret)> {
    let span = source.span.clone();
    let lower = name.to_ascii_lowercase();
    let Ok(parsed) = HeaderName::from_bytes(lower.as_bytes()) else {
        check.problem(span, format!("{name:?} is no name of a header"));
        return None;
    };
    if OUR_HEADERS.contains(&lower.as_str()) {
        check.problem(
            span,
            format!("the header {name} is set by the relay itself"),
        );
        return None;
    }
    let is_secret = ["auth", "cookie", "key", "password", "secret", "token"]
        .iter()
        .any(|word| lower.contains(word));
    let value = match source.plain() {
        Some(value) if !is_secret => value.clone(),
        _ => check.secret(source)?,
    };
    match HeaderValue::from_str(value.expose()) {
        Ok(mut header) => {
            header.set_sensitive(true);
            Some((parsed, header, value))
        }
        Err(_) => {
            check.problem(
                span,
                format!("the value of the header {name} holds a line break or another character that no header may hold"),
            );
            None
        }
    }
}

impl Webhook {
    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        self.secrets.clone()
    }
}

/// `v1,…` over `{id}.{timestamp}.{body}`.
fn sign(key: &hmac::Key, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        context.update(part);
    }
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[async_trait]
impl Carrier for Webhook {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let body = serde_json::to_vec(&attempt.note.event).expect("a JSON value is JSON");
        let timestamp = Timestamp::now().as_second().to_string();
        let id = &attempt.note.id;
        let mut headers = self.headers.clone();
        let mut set = |name: &'static str, value: &str| match HeaderValue::from_str(value) {
            Ok(value) => {
                headers.insert(HeaderName::from_static(name), value);
                Ok(())
            }
            Err(_) => Err(SendError::Permanent {
                reason: format!("the value of {name} can't stand in a header"),
            }),
        };
        set("webhook-id", id)?;
        set("webhook-timestamp", &timestamp)?;
        if let Some(key) = &self.key {
            set("webhook-signature", &sign(key, id, &timestamp, &body))?;
        }
        let answer = self.endpoint.post(attempt, headers, body).await?;
        let reason = self.endpoint.reason(attempt.redactor, &answer);
        http::classify(answer.status, answer.retry_after, &reason)?;
        Ok(Receipt { said: reason })
    }

    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        self.endpoint.reach_alone(attempt, found).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        // The example of the specification's reference libraries.
        let key = signing_key(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        assert_eq!(
            sign(
                &key,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_signing_secret_has_its_prefix_and_24_to_64_bytes() {
        let of = |n: usize| format!("whsec_{}", STANDARD.encode(vec![7; n]));
        assert!(signing_key(&Secret::new(of(24))).is_some());
        assert!(signing_key(&Secret::new(of(64))).is_some());
        assert!(signing_key(&Secret::new(of(23))).is_none());
        assert!(signing_key(&Secret::new(of(65))).is_none());
        assert!(signing_key(&Secret::new(&of(32)[6..])).is_none());
    }
}
