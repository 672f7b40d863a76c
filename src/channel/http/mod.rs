//! One POST, for every channel that speaks HTTP: who is asked, by which way, how long, and what an answer means.

pub mod class;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::Client;
use reqwest::Method;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::DATE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use reqwest::header::RETRY_AFTER;
use rustls::ClientConfig;
use serde_json::Value;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::SendError;
use crate::channel::http::class::Fault;
use crate::channel::http::class::of_fault;
use crate::channel::http::class::of_status;
use crate::channel::probe::Probe;
use crate::channel::reach;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;
use crate::settings::Span;
use crate::settings::is_loopback;
use crate::tls;

/// So much of an answer is read; no provider says more.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// The longest Retry-After that is believed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Shorter than any server keeps an idle connection, so that none closes just as a request goes out and leaves its outcome unknown.
const IDLE_CONNECTION: Duration = Duration::from_secs(3);

/// A clock that is further from a peer's than this is wrong: codes would seem expired, or certificates not valid.
const MAX_SKEW: Duration = Duration::from_secs(120);

/// By which way an endpoint is reached: the keys that every channel has that speaks HTTP, and its time.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// In place of the system's roots.
    pub ca_file: Option<&'a Spanned<PathBuf>>,
    /// An HTTP proxy.
    pub proxy: Option<&'a SecretSource>,
    /// For one step of a try.
    pub timeout: Duration,
}

/// A URL that is posted to. Only its host is ever shown.
#[derive(Clone)]
pub struct Endpoint {
    client: Client,
    tls: Arc<ClientConfig>,
    url: Url,
    host: String,
    /// What a transcript names.
    shown: String,
    /// The fields of a JSON answer that may be shown; `None`: all of it.
    fields: Option<&'static [&'static str]>,
    proxy: Option<Proxy>,
    timeout: Duration,
}

/// A proxy: only its host is ever shown.
#[derive(Clone)]
struct Proxy {
    host: String,
    port: u16,
    secrets: Vec<Secret>,
}

/// What a server said.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// When to come again, if it said so.
    pub retry_after: Option<Duration>,
    /// The headers, which are not cleaned.
    pub headers: HeaderMap,
    /// The first part of the body, as it came; `None` if it broke off.
    pub body: Option<String>,
}

impl Answer {
    /// How this machine's clock differs from the server's, if it does so much that codes would be judged wrongly.
    pub fn skew(&self, host: &str, now: Timestamp) -> Option<Probe> {
        let date = self.headers.get(DATE)?.to_str().ok()?;
        let theirs = DateTimeParser::new().parse_timestamp(date).ok()?;
        let ahead = now.duration_since(theirs);
        let minutes = ahead.unsigned_abs().as_secs() / 60;
        let which = match ahead.is_negative() {
            true => "behind",
            false => "ahead of",
        };
        (ahead.unsigned_abs() > MAX_SKEW).then(|| {
            Probe::bad(
                "clock",
                format!("this machine is {minutes} min {which} {host}; set up NTP (timedatectl says whether it runs), or codes are taken for expired and certificates for invalid"),
            )
        })
    }
}

/// A URL of the configuration. It is a secret only when it carries one, and only then must it not stand in the file.
pub fn url(source: &SecretSource, check: &mut Check) -> Option<Secret> {
    match source.plain() {
        Some(url) if !carries_credentials(url.expose()) => Some(url.clone()),
        _ => check.secret(source),
    }
}

/// Whether a URL carries a user name, a password or a query, which is where credentials stand.
fn carries_credentials(url: &str) -> bool {
    match Url::parse(url) {
        Ok(url) => !url.username().is_empty() || url.password().is_some() || url.query().is_some(),
        Err(_) => true,
    }
}

/// Reads the key `proxy`.
fn proxy(source: &SecretSource, check: &mut Check) -> Option<(reqwest::Proxy, Proxy)> {
    let text = url(source, check)?;
    let parsed = Url::parse(text.expose())
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let made = parsed.and_then(|url| {
        let host = host(&url)?;
        Some((reqwest::Proxy::all(url.clone()).ok()?, url, host))
    });
    let Some((way, url, host)) = made else {
        check.problem(
            source.span.clone(),
            "this is no proxy; write a URL such as \"http://proxy.example.com:3128\"",
        );
        return None;
    };
    let mut secrets = Vec::new();
    if let Some(password) = url.password() {
        let plain = percent_decoded(password);
        let login = format!("{}:{plain}", percent_decoded(url.username()));
        // The last one is how it goes over the wire.
        secrets.extend([
            text,
            Secret::new(password),
            Secret::new(plain),
            Secret::new(STANDARD.encode(login)),
        ]);
    }
    let port = url.port_or_known_default().unwrap_or_default();
    Some((
        way,
        Proxy {
            host,
            port,
            secrets,
        },
    ))
}

/// The text behind `%40` and the like, which is how a form is read too, but for its `+`.
fn percent_decoded(text: &str) -> String {
    let form = format!("x={}", text.replace('+', "%2B"));
    let mut url = Url::parse("form:").expect("a scheme alone is a URL");
    url.set_query(Some(&form));
    let pair = url.query_pairs().next();
    pair.map_or_else(String::new, |(_, value)| value.into_owned())
}

impl Endpoint {
    /// Checks the URL and prepares TLS and the proxy; nothing is opened. Proxies of the environment are not used.
    pub fn build(url: &Secret, span: Span, way: Way<'_>, check: &mut Check) -> Option<Self> {
        let proxy = match way.proxy {
            Some(source) => Some(proxy(source, check)?),
            None => None,
        };
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
            "http" if url.host_str().is_some_and(is_loopback) => {}
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
            "https" => tls::client_config(way.ca_file, check)?,
            _ => tls::trusting_nobody(),
        };
        let client = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("ftm-relay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(way.timeout)
            .pool_idle_timeout(IDLE_CONNECTION);
        let (client, proxy) = match proxy {
            Some((through, proxy)) => (client.proxy(through), Some(proxy)),
            None => (client, None),
        };
        match client.build() {
            Ok(client) => Some(Self {
                client,
                tls,
                shown: format!("{}://{host}", url.scheme()),
                url,
                host,
                fields: None,
                proxy,
                timeout: way.timeout,
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
            tls: Arc::clone(&self.tls),
            shown: format!("{}://{}{}", url.scheme(), self.host, url.path()),
            url,
            host: self.host.clone(),
            fields: self.fields,
            proxy: self.proxy.clone(),
            timeout: self.timeout,
        }
    }

    /// The same with a query, which is then no secret.
    #[must_use]
    pub fn asking(mut self, query: &[(&str, &str)]) -> Self {
        self.url.query_pairs_mut().extend_pairs(query);
        self
    }

    /// The same, but of a JSON answer only these fields are ever shown: for servers that repeat the message, or tell about
    /// the person. A `/` leads into a field: `error/code`.
    #[must_use]
    pub fn showing(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = Some(fields);
        self
    }

    /// What must never be shown of the way there: for an endpoint whose URL is no secret.
    pub fn secrets_of_the_way(&self) -> Vec<Secret> {
        let proxy = self.proxy.as_ref();
        proxy.map_or_else(Vec::new, |proxy| proxy.secrets.clone())
    }

    /// What must never be shown of the URL and of the way there.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = self.secrets_of_the_way();
        secrets.push(Secret::new(self.url.as_str()));
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

    /// One POST, of JSON unless the headers say otherwise, after the commit. An error here means that there was no answer; what an answer means says [`classify`].
    pub async fn post(
        &self,
        attempt: &Attempt<'_>,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/json; charset=utf-8"));
        // The connection is made by the same call that sends the body, so this is the last moment at which we can ask.
        attempt.commit.commit().await?;
        self.exchange(attempt, Method::POST, headers, body).await
    }

    /// One GET, which changes nothing.
    pub async fn get(
        &self,
        attempt: &Attempt<'_>,
        headers: HeaderMap,
    ) -> Result<Answer, SendError> {
        self.harmless(attempt, Method::GET, headers, Vec::new())
            .await
    }

    /// One POST that asks and changes nothing, so that it needs no commit and a lost answer is only a lost answer.
    pub async fn ask(
        &self,
        attempt: &Attempt<'_>,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        self.harmless(attempt, Method::POST, headers, body).await
    }

    async fn harmless(
        &self,
        attempt: &Attempt<'_>,
        method: Method,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        self.exchange(attempt, method, headers, body)
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
        method: Method,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, SendError> {
        let length = body.len();
        attempt
            .transcript
            .line(|| format!("> {method} {} ({length} bytes)", self.shown));
        let sent = self
            .client
            .request(method.clone(), self.url.clone())
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
            headers: std::mem::take(response.headers_mut()),
            body: whole.then(|| String::from_utf8_lossy(&body).into_owned()),
        };
        attempt
            .transcript
            .line(|| format!("< {}", self.reason(attempt.redactor, &answer)));
        Ok(answer)
    }

    /// Tries the way there without a request: the name, the connection, the certificate. Whether it can be used.
    pub async fn reach(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) -> bool {
        let (host, transcript) = (self.host.as_str(), attempt.transcript);
        if let Some(proxy) = &self.proxy {
            let name = bare(&proxy.host);
            let connected = reach::connect(name, proxy.port, self.timeout, transcript).await;
            let is_good = connected.is_ok();
            found.push(match connected {
                Ok(_) => Probe::unknown(
                    host,
                    format!("lies behind the proxy {}, which answers; whether it goes on from there shows only a request", proxy.host),
                ),
                Err(why) => Probe::bad(format!("the proxy {}", proxy.host), why),
            });
            return is_good;
        }
        let (name, port) = (
            self.url.host_str().unwrap_or_default(),
            self.url.port_or_known_default().unwrap_or_default(),
        );
        let stream = match reach::connect(name, port, self.timeout, transcript).await {
            Ok(stream) => stream,
            Err(why) => {
                found.push(Probe::bad(host, why));
                return false;
            }
        };
        if self.url.scheme() == "http" {
            found.push(Probe::good(host, "can be reached (without TLS)"));
            return true;
        }
        let shaken = reach::handshake(stream, &self.tls, name, self.timeout, transcript).await;
        let is_good = shaken.is_ok();
        found.push(match shaken {
            Ok(told) => Probe::good(host, format!("can be reached by {told}")),
            Err(why) => Probe::bad(host, attempt.redactor.clean(&why)),
        });
        is_good
    }

    /// The same for an address that does something whatever it is sent, so that no more can be tried.
    pub async fn reach_alone(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        if self.reach(attempt, found).await {
            found.push(Probe::unknown(
                self.host.as_str(),
                "takes messages and nothing else, so whether the rest of the URL is right shows only one: ftm-relay send-test",
            ));
        }
    }

    /// Our sentence about an answer, with the server's text cleaned.
    pub fn reason(&self, redactor: &Redactor, answer: &Answer) -> String {
        let body = answer.body.as_deref().unwrap_or_default();
        let chosen = self.fields.and_then(|fields| choose(body, fields));
        let said = redactor.clean(chosen.as_deref().unwrap_or(body));
        let colon = if said.is_empty() { "" } else { ": " };
        format!("{} answered {}{colon}{said}", self.host, answer.status)
    }

    fn no_answer(&self, error: &reqwest::Error) -> SendError {
        let (fault, reason) = self.fault(error);
        of_fault(fault).error(reason, None)
    }

    /// Why there was no answer, with a sentence about it.
    fn fault(&self, error: &reqwest::Error) -> (Fault, String) {
        let host = &self.host;
        let through = match &self.proxy {
            Some(proxy) => format!(" through the proxy {}", proxy.host),
            None => String::new(),
        };
        if let Some(reason) = tls::certificate_error(error, host) {
            return (Fault::Certificate, reason);
        }
        if let Some(tls) = tls::rustls_error(error) {
            let reason = format!("no TLS connection to {host}{through}: {tls}");
            return (Fault::Tls, reason);
        }
        if error.is_connect() {
            let proxy_said = tunnel_error(error);
            if proxy_said.as_deref() == Some(PROXY_LOGIN) {
                let reason = format!(
                    "no connection to {host}{through}: it wants a log-in, or refuses the one it got; write it as http://user:password@…"
                );
                return (Fault::ProxyLogin, reason);
            }
            let why = match (error.is_timeout(), error.is_dns()) {
                (true, _) => format!("nothing answered within {:?}", self.timeout),
                (_, true) => "its name can't be resolved".to_owned(),
                _ => tls::io_error(error)
                    .map(ToString::to_string)
                    .or_else(|| proxy_said.map(|_| "the proxy can't or won't get there".to_owned()))
                    .unwrap_or_else(|| "it failed".to_owned()),
            };
            let reason = format!("no connection to {host}{through}: {why}");
            return (Fault::Connect, reason);
        }
        if error.is_builder() {
            let reason = format!("the request to {host} can't be put together");
            return (Fault::Malformed, reason);
        }
        let why = match error.is_timeout() {
            true => "gave no answer in time",
            false => "closed the connection without an answer",
        };
        let reason = format!("{host} {why}; it may have taken the request");
        (Fault::Lost, reason)
    }
}

/// A host without its port.
fn bare(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => name,
        _ => host,
    }
}

/// Those fields of a JSON object that hold a text or a number, with their names; `None`: it is no JSON object.
fn choose(body: &str, fields: &[&str]) -> Option<String> {
    let object: Value = serde_json::from_str(body).ok()?;
    object.as_object()?;
    let words = fields.iter().filter_map(|field| {
        let name = field.rsplit('/').next().unwrap_or(field);
        match object.pointer(&format!("/{field}"))? {
            Value::String(text) => Some(format!("{name} {text}")),
            Value::Number(number) => Some(format!("{name} {number}")),
            _ => None,
        }
    });
    Some(words.collect::<Vec<_>>().join(", "))
}

/// What an answer means for the delivery and its channel, by its status alone.
pub fn classify(
    status: StatusCode,
    retry_after: Option<Duration>,
    reason: &str,
) -> Result<(), SendError> {
    let Some(class) = of_status(status, retry_after.is_some()) else {
        return Ok(());
    };
    let hint = match status.as_u16() {
        300..=399 => " (redirects are not followed; configure the final URL)",
        407 => " (the proxy wants a log-in, or refuses the one it got)",
        _ => "",
    };
    Err(class.error(format!("{reason}{hint}"), retry_after))
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

/// Pairs as a form sends them.
pub fn form(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut url = Url::parse("form:").expect("a scheme alone is a URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().as_bytes().to_vec()
}

fn host(url: &Url) -> Option<String> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// What the proxy says when it wants another log-in; the type behind it can't be named.
const PROXY_LOGIN: &str = "tunnel error: proxy authorization required";

/// What went wrong between the proxy and the server.
fn tunnel_error(error: &(dyn Error + 'static)) -> Option<String> {
    tls::causes(error)
        .into_iter()
        .map(ToString::to_string)
        .find(|said| said.starts_with("tunnel error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn of_an_answer_only_the_chosen_fields_are_shown() {
        let body = r#"{"error":{"code":"No","inner":{"x":1}},"sid":"S1","n":7,"body":"secret"}"#;
        let chosen = choose(body, &["error/code", "error/inner", "sid", "n", "none"]);
        assert_eq!(chosen.as_deref(), Some("code No, sid S1, n 7"));
        assert_eq!(choose("<html>", &["sid"]), None);
        assert_eq!(choose("[1]", &["sid"]), None);
    }

    #[test]
    fn a_form_is_escaped() {
        let body = form(&[("email", "a+b&c=d@example.com")]);
        assert_eq!(body, b"email=a%2Bb%26c%3Dd%40example.com");
    }
}
