//! GET requests to one FortiGate: whom we trust, how much we wait and read, and what each answer means.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use reqwest::header::RETRY_AFTER;
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::secret::Redactor;
use crate::secret::Secret;
use crate::tls;

use super::answer::Envelope;
use super::error::ApiError;

/// Opening a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request with its whole answer. A small FortiGate with a large disk log takes seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait for the others' requests to this device.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// A FortiGate is small: so many requests at a time.
const REQUESTS_AT_ONCE: usize = 2;
/// So much of an answer is read: 500 log records, or 200 users with everything, are less.
const MAX_ANSWER_BYTES: usize = 2 << 20;
/// Shorter than any server keeps an idle connection.
const IDLE_CONNECTION: Duration = Duration::from_secs(3);
/// A device that can't be reached isn't asked again for so long; whoever asks meanwhile gets the same reason.
const PAUSE_AWAY: Duration = Duration::from_secs(2);
/// A key that is refused isn't tried again for so long: FortiOS locks an address out that fails too often.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// A device that says 429 without a time is left alone for so long; its lock-out takes 60 s by default.
const PAUSE_BLOCKED: Duration = Duration::from_secs(60);
/// The longest Retry-After that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// So many rows are asked for at a time.
const ROWS_PER_PAGE: usize = 200;
/// So many rows are read before a device is said to ignore `filter`.
const MAX_ROWS: usize = 20_000;

/// What is read, and which permission that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Tokens,
    Users,
    Administrators,
    /// The event log kept on this log device.
    Log(&'static str),
}

impl Resource {
    fn path(self) -> Vec<&'static str> {
        match self {
            Self::Tokens => vec!["cmdb", "user", "fortitoken"],
            Self::Users => vec!["cmdb", "user", "local"],
            Self::Administrators => vec!["cmdb", "system", "admin"],
            Self::Log(device) => vec!["log", device, "event", "system"],
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Tokens => "its tokens".to_owned(),
            Self::Users => "its users".to_owned(),
            Self::Administrators => "its administrators".to_owned(),
            Self::Log(device) => format!("its event log ({device})"),
        }
    }

    fn permission(self) -> &'static str {
        match self {
            Self::Tokens | Self::Users => "authgrp",
            Self::Administrators => "sysgrp",
            Self::Log(_) => "loggrp",
        }
    }

    /// Administrators are global; whatever VDOM the device names for them is right.
    fn is_of_vdom(self) -> bool {
        self != Self::Administrators
    }
}

/// The way to one device.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    host: String,
    authorization: HeaderValue,
    token: Secret,
    /// The serial numbers that its answers may carry; empty: none is known.
    serials: Vec<String>,
    turns: Semaphore,
    pause: Mutex<Option<(Instant, ApiError)>>,
}

/// Status and body of an answer.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
}

impl Client {
    /// `None`: the key can't stand in a header, or no connection can be prepared.
    pub(super) fn new(
        base: Url,
        host: String,
        token: Secret,
        tls: &ClientConfig,
        serials: Vec<String>,
    ) -> Option<Self> {
        let header = Zeroizing::new(format!("Bearer {}", token.expose()));
        let mut authorization = HeaderValue::from_str(&header).ok()?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("ftm-relay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(REQUESTS_AT_ONCE)
            .build()
            .ok()?;
        Some(Self {
            http,
            base,
            host,
            authorization,
            token,
            serials,
            turns: Semaphore::new(REQUESTS_AT_ONCE),
            pause: Mutex::default(),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn secrets(&self) -> Vec<Secret> {
        vec![self.token.clone()]
    }

    /// One object by its name. `None`: the device has none of that name.
    pub(super) async fn object<T: DeserializeOwned>(
        &self,
        resource: Resource,
        vdom: &str,
        name: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<T>, ApiError> {
        // Such a name would be another path.
        if name.is_empty() || name == "." || name == ".." {
            return Ok(None);
        }
        let answer = self.get(resource, vdom, Some(name), query).await?;
        if answer.status == StatusCode::NOT_FOUND {
            self.envelope::<serde::de::IgnoredAny>(resource, vdom, &answer)?;
            return Ok(None);
        }
        let mut rows: Vec<T> = self.envelope(resource, vdom, &answer)?.results.0;
        match rows.len() {
            0 | 1 => Ok(rows.pop()),
            _ => Err(ApiError::nonsense(format!(
                "{} was asked for one object of {} and answered with several",
                self.host,
                resource.shown()
            ))),
        }
    }

    /// All the rows that are `wanted`, page by page. `query` should leave the device little else to send; that it does so is
    /// not relied on.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        resource: Resource,
        vdom: &str,
        query: &[(&str, &str)],
        max: usize,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, ApiError> {
        let mut found = Vec::new();
        let count = ROWS_PER_PAGE.to_string();
        for start in (0..MAX_ROWS).step_by(ROWS_PER_PAGE) {
            let start = start.to_string();
            let page = [("start", start.as_str()), ("count", count.as_str())];
            let rows: Vec<T> = self
                .page(resource, vdom, &[query, &page].concat())
                .await?
                .results
                .0;
            let is_last = rows.len() < ROWS_PER_PAGE;
            found.extend(rows.into_iter().filter(&wanted));
            if found.len() > max {
                break;
            }
            if is_last {
                return Ok(found);
            }
        }
        Err(ApiError::nonsense(format!(
            "{} has more to say about {} than is read ({max} that matter, {MAX_ROWS} in all)",
            self.host,
            resource.shown()
        )))
    }

    /// One page of a list.
    pub(super) async fn page<T: DeserializeOwned>(
        &self,
        resource: Resource,
        vdom: &str,
        query: &[(&str, &str)],
    ) -> Result<Envelope<T>, ApiError> {
        let answer = self.get(resource, vdom, None, query).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(ApiError::refused(format!(
                "{} knows no {} in VDOM {vdom} (404); does the VDOM exist, and is `api` the address of the FortiGate's administration page?",
                self.host,
                resource.path().join("/")
            )));
        }
        self.envelope(resource, vdom, &answer)
    }

    /// A GET whose status is 200 or 404.
    async fn get(
        &self,
        resource: Resource,
        vdom: &str,
        name: Option<&str>,
        query: &[(&str, &str)],
    ) -> Result<Answer, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(["api", "v2"])
                .extend(resource.path())
                .extend(name);
        }
        url.query_pairs_mut()
            .append_pair("vdom", vdom)
            .extend_pairs(query);
        let turn = timeout(TURN_TIMEOUT, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(ApiError::away(format!(
                "{} is busy with other questions of ours",
                self.host
            )));
        };
        if let Some(error) = self.paused() {
            return Err(error);
        }
        let answered = match timeout(REQUEST_TIMEOUT, self.exchange(url)).await {
            Ok(answered) => answered,
            Err(_) => Err(ApiError::away(format!(
                "{} did not answer whole within {} s",
                self.host,
                REQUEST_TIMEOUT.as_secs()
            ))),
        };
        let status = answered.as_ref().ok().map(|answer| answer.status.as_u16());
        let judged = answered.and_then(|answer| match self.refusal(resource, vdom, &answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        });
        self.pause_after(status, judged.as_ref().err());
        judged
    }

    async fn exchange(&self, url: Url) -> Result<Answer, ApiError> {
        let sent = self
            .http
            .get(url)
            .header(AUTHORIZATION, self.authorization.clone())
            .send()
            .await;
        let mut response = sent.map_err(|e| self.no_answer(&e))?;
        let promised = response
            .content_length()
            .and_then(|length| usize::try_from(length).ok());
        let too_much = || {
            ApiError::nonsense(format!(
                "{} answered with more than {} MiB",
                self.host,
                MAX_ANSWER_BYTES >> 20
            ))
        };
        if promised.is_some_and(|length| length > MAX_ANSWER_BYTES) {
            return Err(too_much());
        }
        // Allocated at once: a buffer that grows leaves copies of codes behind.
        let capacity = promised.unwrap_or(MAX_ANSWER_BYTES);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER_BYTES => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => return Err(too_much()),
                Ok(None) => break,
                Err(_) => {
                    return Err(ApiError::away(format!(
                        "{} broke off in the middle of its answer",
                        self.host
                    )));
                }
            }
        }
        Ok(Answer {
            status: response.status(),
            retry_after: retry_after(response.headers()),
            body,
        })
    }

    /// What a status means, unless it is 200 or 404.
    fn refusal(&self, resource: Resource, vdom: &str, answer: &Answer) -> Option<ApiError> {
        let (host, status) = (&self.host, answer.status.as_u16());
        let what = resource.shown();
        Some(match status {
            200 | 404 => return None,
            401 => ApiError::refused(format!(
                "{host} does not take our key (401): `token` is not, or no longer, that of a REST API administrator, or this machine's address is not among its trusted hosts"
            )),
            403 => ApiError::Forbidden {
                reason: format!(
                    "{host} lets us not read {what} (403): the API administrator's profile needs `set {} read`, its `vdom` must hold {vdom}, and this machine's address must be among its trusted hosts",
                    resource.permission()
                ),
            },
            424 => ApiError::Missing {
                reason: format!(
                    "{host} can't answer about {what} (424): it misses something the question depends on; does VDOM {vdom} exist?"
                ),
            },
            429 => ApiError::Away {
                reason: format!(
                    "{host} takes no questions from here for a while (429): too many, or too many with a wrong key"
                ),
                after: Some(answer.retry_after.unwrap_or(PAUSE_BLOCKED)),
            },
            500..=599 => ApiError::Away {
                reason: format!("{host} failed to answer about {what} ({status})"),
                after: answer.retry_after,
            },
            300..=399 => ApiError::refused(format!(
                "{host} sends us elsewhere ({status}), and redirects are not followed; write the FortiGate's own https address as `api`"
            )),
            _ => ApiError::refused(format!(
                "{host} does not understand the question about {what} ({status})"
            )),
        })
    }

    /// Reads an answer and makes sure that it is this device's, for this VDOM.
    fn envelope<T: DeserializeOwned>(
        &self,
        resource: Resource,
        vdom: &str,
        answer: &Answer,
    ) -> Result<Envelope<T>, ApiError> {
        let host = &self.host;
        let first = answer.body.iter().find(|b| !b.is_ascii_whitespace());
        if first == Some(&b'<') {
            return Err(ApiError::nonsense(format!(
                "{host} answered with a web page in place of JSON; is `api` the address of the FortiGate's administration page, and no portal or proxy in between?"
            )));
        }
        let envelope: Envelope<T> = serde_json::from_slice(&answer.body).map_err(|e| {
            // The parser's own words may hold what it stumbled over.
            let what = match e.classify() {
                serde_json::error::Category::Eof => "half a JSON",
                serde_json::error::Category::Data => "JSON of another shape than FortiOS's",
                _ => "something that is no JSON",
            };
            ApiError::nonsense(format!(
                "{host} answered with {what} about {}",
                resource.shown()
            ))
        })?;
        let clean = |text: &str| Redactor::default().clean(text);
        if let Some(serial) = &envelope.serial
            && !self.serials.is_empty()
            && !self.serials.iter().any(|s| s.eq_ignore_ascii_case(serial))
        {
            return Err(ApiError::refused(format!(
                "the device at {host} is {}, which is not among the ids of this [[device]]; correct `api`, or add the serial number to `id`",
                clean(serial)
            )));
        }
        if let Some(other) = &envelope.vdom
            && resource.is_of_vdom()
            && other != vdom
        {
            return Err(ApiError::refused(format!(
                "{host} was asked about VDOM {vdom} and answered for {}; the API administrator's `vdom` must hold {vdom}",
                clean(other)
            )));
        }
        Ok(envelope)
    }

    fn no_answer(&self, error: &reqwest::Error) -> ApiError {
        let host = &self.host;
        if let Some(reason) = tls::certificate_error(error, host) {
            return ApiError::refused(reason);
        }
        if let Some(tls) = tls::rustls_error(error) {
            return ApiError::away(format!("no TLS connection to {host}: {tls}"));
        }
        if error.is_connect() {
            let why = match (error.is_timeout(), error.is_dns()) {
                (true, _) => format!("nothing answered within {} s", CONNECT_TIMEOUT.as_secs()),
                (_, true) => "its name can't be resolved".to_owned(),
                _ => tls::io_error(error).map_or_else(|| "it failed".to_owned(), |e| e.to_string()),
            };
            return ApiError::away(format!("no connection to {host}: {why}"));
        }
        ApiError::away(format!("{host} closed the connection without an answer"))
    }

    fn paused(&self) -> Option<ApiError> {
        let pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        pause
            .as_ref()
            .filter(|(until, _)| Instant::now() < *until)
            .map(|(_, error)| error.clone())
    }

    fn pause_after(&self, status: Option<u16>, error: Option<&ApiError>) {
        let wait = match (error, status) {
            (
                Some(ApiError::Away {
                    after: Some(after), ..
                }),
                _,
            ) => *after,
            (Some(ApiError::Away { .. }), None) => PAUSE_AWAY,
            // Its certificate, our key, its address: whatever we ask next fares no better.
            (Some(ApiError::Refused { .. }), None | Some(300..=399 | 401)) => PAUSE_REFUSED,
            _ => Duration::ZERO,
        };
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = error
            .filter(|_| !wait.is_zero())
            .map(|error| (Instant::now() + wait, error.clone()));
    }
}

/// `Retry-After` in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// One answer for all who ask the same at the same time. Nothing is kept once they have it.
pub(super) struct Shared<K, V>(Mutex<HashMap<K, Weak<Flight<V>>>>);

type Flight<V> = tokio::sync::Mutex<Option<Result<V, ApiError>>>;

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shared<K, V> {
    pub(super) async fn get(
        &self,
        key: K,
        ask: impl Future<Output = Result<V, ApiError>>,
    ) -> Result<V, ApiError> {
        let flight = self.flight(&key);
        let mut answer = flight.lock().await;
        if let Some(answer) = &*answer {
            return answer.clone();
        }
        let answered = ask.await;
        *answer = Some(answered.clone());
        // Who comes from now on asks anew.
        self.flights().remove(&key);
        answered
    }

    fn flight(&self, key: &K) -> Arc<Flight<V>> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        // Those whose askers all gave up before an answer came.
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(key.clone(), Arc::downgrade(&flight));
        flight
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<K, Weak<Flight<V>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
