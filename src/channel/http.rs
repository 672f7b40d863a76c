//! One POST, for every channel that speaks HTTP: who is asked, how long, and what an answer means.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::Client;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use reqwest::header::RETRY_AFTER;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::SendError;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::Span;
use crate::tls;

/// So much of an answer is read; no provider says more.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// The longest Retry-After that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Shorter than any server keeps an idle connection, so that none closes just as a request goes out and leaves its outcome unknown.
const IDLE_CONNECTION: Duration = Duration::from_secs(3);

/// A URL that is posted to. Only its host is ever shown.
pub struct Endpoint {
    client: Client,
    url: Url,
    host: String,
    shown: String,
    timeout: Duration,
}

/// What a server said.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// When to come again, if it said so.
    pub retry_after: Option<Duration>,
    /// The first part of the body, as it came; `None` if it broke off.
    pub body: Option<String>,
}

/// Whether a URL carries a user name, a password or a query, which is where credentials stand.
pub fn carries_credentials(url: &str) -> bool {
    match Url::parse(url) {
        Ok(url) => !url.username().is_empty() || url.password().is_some() || url.query().is_some(),
        Err(_) => true,
    }
}

impl Endpoint {
    /// Checks the URL and prepares TLS; nothing is opened. Proxies of the environment are not used.
    pub fn build(
        url: &Secret,
        span: Span,
        ca_file: Option<&Spanned<PathBuf>>,
        timeout: Duration,
        check: &mut Check,
    ) -> Option<Self> {
        let parsed = Url::parse(url.expose()).ok();
        let Some((url, host)) = parsed.and_then(|url| host(&url).map(|host| (url, host))) else {
            check.problem(
                span,
                "this is no URL to post to; write one such as \"https://host.example/path\"",
            );
            return None;
        };
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" => check.warning(
                span.clone(),
                format!("http:// to {host} shows codes to everybody on the way; use https://"),
            ),
            other => {
                check.problem(
                    span,
                    format!("{other}:// can't be posted to; write https://"),
                );
                return None;
            }
        }
        let tls = match url.scheme() {
            "https" => tls::client_config(ca_file, check)?,
            _ => tls::trusting_nobody(),
        };
        let client = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("ftm-relay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeout)
            .pool_idle_timeout(IDLE_CONNECTION)
            .build();
        match client {
            Ok(client) => Some(Self {
                client,
                shown: format!("{}://{host}", url.scheme()),
                url,
                host,
                timeout,
            }),
            Err(_) => {
                check.problem(span, format!("no connection to {host} can be prepared"));
                None
            }
        }
    }

    /// The host and, where it is unusual, the port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A method of the API at this URL, which is then no secret.
    pub fn method(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        Self {
            client: self.client.clone(),
            shown: format!("{}{}", self.shown, url.path()),
            url,
            host: self.host.clone(),
            timeout: self.timeout,
        }
    }

    /// What must never be shown of the URL.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = vec![Secret::new(self.url.as_str())];
        secrets.extend(self.url.password().map(Secret::new));
        secrets.extend(self.url.query().map(Secret::new));
        secrets.extend(
            self.url
                .query_pairs()
                .map(|(_, value)| Secret::new(value.into_owned())),
        );
        if self.url.path() != "/" {
            secrets.push(Secret::new(self.url.path()));
        }
        secrets
    }

    /// One POST of JSON, after the commit. An error here means that there was no answer; what an answer means says [`classify`].
    pub async fn post(
        &self,
        attempt: &Attempt<'_>,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        // The connection is made by the same call that sends the body, so this is the last moment at which we can ask.
        attempt.commit.commit().await?;
        self.exchange(attempt, headers, body).await
    }

    /// One POST that asks and changes nothing, so that it needs no commit and a lost answer is only a lost answer.
    pub async fn ask(
        &self,
        attempt: &Attempt<'_>,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        self.exchange(attempt, headers, body)
            .await
            .map_err(|e| match e {
                SendError::Unknown { reason } => SendError::Transient {
                    reason,
                    after: None,
                },
                other => other,
            })
    }

    async fn exchange(
        &self,
        attempt: &Attempt<'_>,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        let length = body.len();
        attempt
            .transcript
            .line(|| format!("> POST {} ({length} bytes)", self.shown));
        let sent = self
            .client
            .post(self.url.clone())
            .headers(headers)
            .body(body)
            // The connection has had its own time; what is left after it is for the answer.
            .timeout(self.timeout * 2)
            .send()
            .await;
        let mut response = match sent {
            Ok(response) => response,
            Err(e) => {
                let error = self.no_answer(&e);
                attempt.transcript.line(|| format!("! {error}"));
                return Err(error);
            }
        };
        let mut body = Vec::new();
        let whole = loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER_BYTES => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(chunk)) => {
                    body.extend_from_slice(&chunk[..MAX_ANSWER_BYTES - body.len()]);
                    break true;
                }
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let answer = Answer {
            status: response.status(),
            retry_after: retry_after(response.headers(), Timestamp::now()),
            body: whole.then(|| String::from_utf8_lossy(&body).into_owned()),
        };
        attempt
            .transcript
            .line(|| format!("< {}", self.reason(attempt.redactor, &answer)));
        Ok(answer)
    }

    /// Our sentence about an answer, with the server's text cleaned.
    pub fn reason(&self, redactor: &Redactor, answer: &Answer) -> String {
        let said = redactor.clean(answer.body.as_deref().unwrap_or_default());
        let colon = if said.is_empty() { "" } else { ": " };
        format!("{} answered {}{colon}{said}", self.host, answer.status)
    }

    fn no_answer(&self, error: &reqwest::Error) -> SendError {
        let host = &self.host;
        if let Some(reason) = tls::certificate_error(error, host) {
            return SendError::Broken { reason };
        }
        if let Some(tls) = tls::tls_error(error) {
            return SendError::Away {
                reason: format!("no TLS connection to {host}: {tls}"),
                after: None,
            };
        }
        if error.is_connect() {
            let why = match (error.is_timeout(), error.is_dns()) {
                (true, _) => format!("nothing answered within {:?}", self.timeout),
                (_, true) => "its name can't be resolved".to_owned(),
                _ => tls::io_error(error).map_or_else(|| "it failed".to_owned(), |e| e.to_string()),
            };
            return SendError::Away {
                reason: format!("no connection to {host}: {why}"),
                after: None,
            };
        }
        if error.is_builder() {
            return SendError::Permanent {
                reason: format!("the request to {host} can't be put together"),
            };
        }
        let why = match error.is_timeout() {
            true => "gave no answer in time",
            false => "closed the connection without an answer",
        };
        SendError::Unknown {
            reason: format!("{host} {why}; it may have taken the request"),
        }
    }
}

/// What an answer means for the delivery and its channel. The one place that decides it, for every channel that speaks HTTP.
pub fn classify(
    status: StatusCode,
    retry_after: Option<Duration>,
    reason: &str,
) -> Result<(), SendError> {
    let reason = reason.to_owned();
    Err(match status.as_u16() {
        200..=299 => return Ok(()),
        429 => SendError::Away {
            reason,
            after: retry_after,
        },
        503 if retry_after.is_some() => SendError::Away {
            reason,
            after: retry_after,
        },
        408 | 425 | 500..=599 => SendError::Transient {
            reason,
            after: retry_after,
        },
        300..=399 => SendError::Broken {
            reason: format!("{reason} (redirects are not followed; configure the final URL)"),
        },
        401 | 403 | 404 | 410 => SendError::Broken { reason },
        _ => SendError::Permanent { reason },
    })
}

/// `Retry-After` as seconds or as a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_) => {
            let at = DateTimeParser::new().parse_timestamp(text).ok()?;
            at.duration_since(now).try_into().unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn host(url: &Url) -> Option<String> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(result: Result<(), SendError>) -> &'static str {
        match result {
            Ok(()) => "accepted",
            Err(SendError::Transient { after: None, .. }) => "transient",
            Err(SendError::Transient { after: Some(_), .. }) => "transient, after",
            Err(SendError::Away { after: None, .. }) => "away",
            Err(SendError::Away { after: Some(_), .. }) => "away, after",
            Err(SendError::Permanent { .. }) => "permanent",
            Err(SendError::Broken { .. }) => "broken",
            Err(SendError::Unknown { .. }) => "unknown",
        }
    }

    #[test]
    fn every_status_has_its_class() {
        let table: [(&[u16], &str, &str); 8] = [
            (&[200, 201, 202, 204, 299], "accepted", "accepted"),
            (
                &[300, 301, 302, 303, 304, 307, 308, 399],
                "broken",
                "broken",
            ),
            (&[401, 403, 404, 410], "broken", "broken"),
            (
                &[400, 402, 405, 406, 409, 411, 413, 415, 418, 422, 451, 499],
                "permanent",
                "permanent",
            ),
            (&[408, 425], "transient", "transient, after"),
            (&[429], "away", "away, after"),
            (&[503], "transient", "away, after"),
            (
                &[500, 501, 502, 504, 505, 507, 599],
                "transient",
                "transient, after",
            ),
        ];
        for (statuses, alone, with_retry_after) in table {
            for status in statuses {
                let status = StatusCode::from_u16(*status).unwrap();
                assert_eq!(word(classify(status, None, "")), alone, "{status}");
                let after = Some(Duration::from_secs(3));
                assert_eq!(
                    word(classify(status, after, "")),
                    with_retry_after,
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_never_more_than_a_day() {
        let now = "2026-11-23T10:22:31Z".parse().unwrap();
        for (text, secs) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("Mon, 23 Nov 2026 10:23:01 GMT", Some(30)),
            ("Mon, 23 Nov 2026 10:00:00 GMT", Some(0)),
            ("99999999", Some(24 * 3600)),
            ("Wed, 23 Dec 2026 10:00:00 GMT", Some(24 * 3600)),
            ("soon", None),
            ("-3", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            assert_eq!(
                retry_after(&headers, now),
                secs.map(Duration::from_secs),
                "{text:?}"
            );
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_url_with_a_query_or_a_password_is_a_secret() {
        assert!(!carries_credentials("https://host.example/in"));
        assert!(carries_credentials("https://host.example/in?sig=x"));
        assert!(carries_credentials("https://user:pw@host.example/in"));
        assert!(carries_credentials("no url"));
    }
}
