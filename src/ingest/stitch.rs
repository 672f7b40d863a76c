//! Automation stitches of FortiOS: one log record in the body of a POST, answered once it is committed.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::Request;
use axum::http::Response;
use axum::http::StatusCode;
use axum::http::header;
use http_body_util::BodyExt;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use toml::Spanned;
use tracing::debug;

use super::Config;
use super::Network;
use super::accept;
use super::framing::Protocol;
use super::framing::trim_end;
use super::intake::Closed;
use super::intake::Outcome;
use super::listener::Listener;
use super::tls;
use super::tls::Server;
use crate::frame::Peer;
use crate::glob::Glob;
use crate::metrics::Rejected;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// A peer has so long for the header of its request, and as long for the body.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// So long a request waits for its commit.
const COMMIT_TIME: Duration = Duration::from_secs(10);

/// A connection carries one request, and no more than this long.
const CONNECTION_TIME: Duration = Duration::from_secs(40);

/// The longest header of a request.
const HEADER_BYTES: usize = 16 * 1024;

/// When a sender may try again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("30");

/// A shorter token can be guessed.
const SAFE_TOKEN_CHARS: usize = 20;

/// `[[listen]]` with `transport = "stitch"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stitch {
    /// How logs and metrics call it.
    pub name: Option<Spanned<String>>,
    /// Where it listens.
    #[serde(deserialize_with = "super::address")]
    pub address: SocketAddr,
    /// Who may connect; behind a proxy, the proxy.
    #[serde(default = "super::default_allow")]
    pub allow: Spanned<Vec<Network>>,
    /// Which devices are believed from here.
    #[serde(default = "super::default_devices")]
    pub devices: Spanned<Vec<Glob>>,
    /// The longest body that is taken.
    #[serde(default = "super::default_max_frame_bytes")]
    pub max_frame_bytes: Spanned<usize>,
    /// So many connections are open at a time; those that shake hands count.
    #[serde(default = "super::default_max_connections")]
    pub max_connections: Spanned<usize>,
    /// The listener's certificate and those that lead to its authority, in PEM. Absent: plain HTTP.
    pub cert: Option<Spanned<PathBuf>>,
    /// The certificate's private key, in PEM.
    pub key: Option<SecretSource>,
    /// Set: a client certificate signed by one of these authorities is required.
    pub client_ca: Option<Spanned<PathBuf>>,
    /// What a request must bear.
    pub token: SecretSource,
    #[serde(skip)]
    server: Option<Server>,
    #[serde(skip)]
    secret: Option<Secret>,
}

impl Stitch {
    pub(super) fn build(&mut self, check: &mut Check) {
        self.secret = check.secret(&self.token);
        if let Some(token) = &self.secret {
            if !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
                check.problem(
                    self.token.span.clone(),
                    "the token must be letters, digits and signs without blanks, since it stands in a header",
                );
            } else if token.expose().len() < SAFE_TOKEN_CHARS {
                check.warning(
                    self.token.span.clone(),
                    format!("the token is shorter than {SAFE_TOKEN_CHARS} characters and can be guessed; `ftm-relay keygen` makes a good one"),
                );
            }
        }
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                self.server = tls::server(cert, key, self.client_ca.as_ref(), check);
            }
            (Some(cert), None) => check.problem(cert.span(), "`cert` is set and `key` is not"),
            (None, Some(key)) => check.problem(key.span.clone(), "`key` is set and `cert` is not"),
            (None, None) => {
                if let Some(ca) = &self.client_ca {
                    check.problem(ca.span(), "`client_ca` needs `cert` and `key`");
                }
                if !self.address.ip().to_canonical().is_loopback() {
                    check.warning(
                        self.token.span.clone(),
                        "without `cert` and `key` codes and this token come in clear over the network; give it a certificate, or let it listen on loopback behind a proxy that speaks HTTPS",
                    );
                }
            }
        }
    }

    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    fn is_https(&self) -> bool {
        self.cert.is_some()
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let (Some(secret), Some(sent)) = (&self.secret, bearer(headers)) else {
            return false;
        };
        verify_slices_are_equal(secret.expose().as_bytes(), sent).is_ok()
    }
}

/// The token of `Authorization: Bearer TOKEN`, of which there must be one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, token) = only.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// Serves one connection: one request, one answer.
pub(super) async fn answer(
    socket: TcpStream,
    listener: Arc<Listener>,
    peer: IpAddr,
    shutdown: CancellationToken,
) -> Result<(), Closed> {
    let conversation = timeout(CONNECTION_TIME, Box::pin(converse(socket, &listener, peer)));
    tokio::select! {
        spoken = conversation => if spoken.is_err() {
            debug!(%peer, "Closing a connection whose request took too long");
        },
        () = accept::late(&shutdown) => {}
    }
    Ok(())
}

async fn converse(socket: TcpStream, listener: &Listener, peer: IpAddr) {
    let is_https = matches!(&**listener.settings.load(), Config::Stitch(s) if s.is_https());
    if is_https {
        let Some(stream) = accept::shake_hands(socket, listener, peer).await else {
            return;
        };
        let from = Peer {
            certificate_names: tls::names(stream.get_ref().1),
            ..Peer::at(peer)
        };
        return serve(stream, listener, peer, &from).await;
    }
    match tls::first_words(&socket).await {
        Ok(Some(Protocol::Plain)) => serve(socket, listener, peer, &Peer::at(peer)).await,
        Ok(Some(other)) => listener.advise(other, peer),
        Ok(None) | Err(_) => {}
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    listener: &Listener,
    peer: IpAddr,
    from: &Peer,
) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, io::Error>(take(listener, peer, from, request).await.into_response())
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = pin!(served).await {
        debug!(%peer, %error, "A request came to nothing");
    }
}

/// A status and a sentence.
struct Said(StatusCode, String);

impl Said {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }

    fn into_response(self) -> Response<Body> {
        let Self(status, text) = self;
        let mut response = Response::new(Body::from(text + "\n"));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        let more = match status {
            StatusCode::UNAUTHORIZED => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                Some((header::ALLOW, HeaderValue::from_static("POST")))
            }
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, RETRY_AFTER)),
            _ => None,
        };
        headers.extend(more.map(|(name, value)| (Some(name), value)));
        response
    }
}

/// Takes one request's record, and says what became of it.
async fn take(listener: &Listener, peer: IpAddr, from: &Peer, request: Request<Incoming>) -> Said {
    let settings = listener.settings.load_full();
    let Config::Stitch(stitch) = &*settings else {
        return not_now("this listener is something else now");
    };
    if request.method() != Method::POST {
        return Said::new(StatusCode::METHOD_NOT_ALLOWED, "a log record comes by POST");
    }
    if !settings.allows(peer) {
        listener.reject(Rejected::Peer, peer);
        return Said::new(
            StatusCode::FORBIDDEN,
            "you are not in `allow` of this listener",
        );
    }
    if !stitch.admits(request.headers()) {
        listener.unauthorised(peer);
        return Said::new(
            StatusCode::UNAUTHORIZED,
            "the header must be: Authorization: Bearer TOKEN, with the token of this listener",
        );
    }
    listener.metrics.frames.inc();
    let most = settings.max_frame_bytes();
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(most);
    if length > most {
        listener.reject(Rejected::Size, peer);
        return too_large(most);
    }
    // Room comes first, so that however many bodies come at once, the memory for them has one bound.
    let Ok(Some(room)) = listener.intake.room_now(length) else {
        listener.reject(listener.intake.full(), peer);
        return not_now("too many records wait for their commit");
    };
    let body = Limited::new(request.into_body(), length).collect();
    let body = match timeout(REQUEST_TIME, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            listener.reject(Rejected::Size, peer);
            return too_large(most);
        }
        Ok(Err(_)) => {
            listener.reject(Rejected::Framing, peer);
            return Said::new(StatusCode::BAD_REQUEST, "the body broke off");
        }
        Err(_) => {
            listener.reject(Rejected::Framing, peer);
            return Said::new(StatusCode::REQUEST_TIMEOUT, "the body took too long");
        }
    };
    let record = match record_of(&body) {
        Ok(record) => record,
        Err(why) => {
            listener.reject(Rejected::Framing, peer);
            return Said::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        }
    };
    let was_away = listener.intake.outbox_is_away();
    let Ok(answer) = listener.ask(record.to_vec(), from, room) else {
        return not_now("the relay is stopping");
    };
    if was_away {
        return pending();
    }
    match timeout(COMMIT_TIME, answer).await {
        Ok(Ok(outcome)) => said(outcome),
        Ok(Err(_)) => not_now("the relay is stopping"),
        Err(_) => pending(),
    }
}

/// The record in a request's body, as far as can be told without reading it as one; otherwise why there is none.
pub fn record_of(body: &[u8]) -> Result<&[u8], String> {
    let record = trim_end(body.trim_ascii_start());
    if record.is_empty() {
        return Err("the body is empty; send the log with %%log%%".to_owned());
    }
    if record[0] != b'{' {
        return Ok(record);
    }
    let text = String::from_utf8_lossy(record);
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => Ok(record),
        Err(error) => Err(format!(
            "the body begins like JSON but is none ({error}); a quote or a backslash in a value breaks the JSON that a stitch puts together, so send the whole log with %%log%% and nothing else"
        )),
    }
}

fn said(outcome: Outcome) -> Said {
    match outcome {
        Outcome::Kept => Said::new(StatusCode::ACCEPTED, "accepted"),
        Outcome::Known => Said::new(StatusCode::ACCEPTED, "accepted before"),
        Outcome::Ignored(why) => Said::new(StatusCode::OK, format!("ignored: {why}")),
        Outcome::Rejected(why) => {
            Said::new(StatusCode::UNPROCESSABLE_ENTITY, format!("rejected: {why}"))
        }
        Outcome::Pending => pending(),
    }
}

fn too_large(most: usize) -> Said {
    Said::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is longer than the {most} bytes of `max_frame_bytes`"),
    )
}

fn pending() -> Said {
    not_now("the record is read but not committed yet; it is kept in memory and tried again")
}

fn not_now(why: &str) -> Said {
    Said::new(StatusCode::SERVICE_UNAVAILABLE, why)
}
