//! Page, health and metrics. A peer that isn't loopback gets health and metrics alone.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::Context;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::middleware;
use axum::middleware::Next;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use minijinja::Environment;
use minijinja::context;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::dispatch::Dispatcher;
use crate::ingest;
use crate::metrics;
use crate::metrics::Metrics;
use crate::outbox;
use crate::outbox::Filter;
use crate::outbox::Outbox;
use crate::outbox::OutboxError;
use crate::outbox::Row;
use crate::outbox::Story;
use crate::pending::Pending;
use crate::readiness::Readiness;
use crate::secret::mask_address;
use crate::seen::Seen;

/// So many rows of a kind are shown.
const MAX_ROWS: usize = 50;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
}

/// What the page looks at.
pub struct View {
    registry: Registry,
    metrics: Metrics,
    outbox: Arc<dyn Outbox>,
    dispatcher: Arc<Dispatcher>,
    readiness: Arc<Readiness>,
    seen: Arc<Seen>,
    pending: Arc<Pending>,
    listeners: Mutex<Vec<Arc<ingest::Config>>>,
    pages: Environment<'static>,
}

impl View {
    /// A view of these parts.
    pub fn new(
        registry: Registry,
        metrics: Metrics,
        outbox: Arc<dyn Outbox>,
        dispatcher: Arc<Dispatcher>,
        readiness: Arc<Readiness>,
        seen: Arc<Seen>,
        pending: Arc<Pending>,
    ) -> Self {
        let mut pages = Environment::new();
        pages.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        for (name, text) in [
            ("status.html", include_str!("status.html")),
            ("rows.html", include_str!("rows.html")),
            ("case.html", include_str!("case.html")),
        ] {
            pages
                .add_template(name, text)
                .expect("the built-in pages are valid templates");
        }
        Self {
            registry,
            metrics,
            outbox,
            dispatcher,
            readiness,
            seen,
            pending,
            listeners: Mutex::default(),
            pages,
        }
    }

    /// The listeners that are bound now.
    pub fn set_listeners(&self, mut listeners: Vec<Arc<ingest::Config>>) {
        listeners.sort_by_key(|l| l.name().into_owned());
        *self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = listeners;
    }

    /// All metrics as Prometheus reads them, in the newer format.
    pub async fn metrics(&self) -> Result<String, std::fmt::Error> {
        let now = Timestamp::now();
        match self.outbox.depth(now).await {
            Ok(depth) => {
                self.metrics.outbox_items.clear();
                for (state, count) in depth.items {
                    let label = metrics::StateLabel {
                        state: word(&state),
                    };
                    self.metrics
                        .outbox_items
                        .get_or_create(&label)
                        .set(i64::try_from(count).unwrap_or(i64::MAX));
                }
                let age = depth
                    .oldest
                    .map_or(0.0, |t| now.duration_since(t).as_secs_f64().max(0.0));
                self.metrics.outbox_oldest.set(age);
            }
            Err(e) => warn!("The outbox can't be counted: {e}"),
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn listeners(&self) -> Vec<Arc<ingest::Config>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The bound web server.
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Binds.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("[http] can't be bound to {}", config.listen))?;
        let address = listener.local_addr()?;
        info!("Page, health and metrics on http://{address}/");
        Ok(Self { listener })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, view: Arc<View>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let open = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(show_metrics));
        let guarded = Router::new()
            .route("/", get(status))
            .route("/case/{id}", get(case))
            .layer(middleware::from_fn(guard));
        let app = open
            .merge(guarded)
            .with_state(view)
            .into_make_service_with_connect_info::<SocketAddr>();
        // Open keep-alive connections must not hold up the end.
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            served = axum::serve(self.listener, app) => served.context("the web server failed"),
        }
    }
}

/// Keeps strangers out, and pages of other sites that point their name at us (DNS rebinding).
async fn guard(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (
            StatusCode::FORBIDDEN,
            "The page is for this machine only: ssh -L 8514:127.0.0.1:8514 brings it to yours.\n",
        )
            .into_response();
    }
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    if !is_local(host) {
        return (
            StatusCode::MISDIRECTED_REQUEST,
            "This page answers to localhost only.\n",
        )
            .into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        ("cache-control", "no-store"),
        (
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(view): State<Arc<View>>) -> Response {
    let reasons = view.readiness.reasons();
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

async fn show_metrics(State(view): State<Arc<View>>, request: Request) -> Response {
    let mut text = match view.metrics().await {
        Ok(text) => text,
        Err(e) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    };
    let accepts = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|a| a.to_str().ok())
        .unwrap_or_default();
    let format = if accepts.contains("application/openmetrics-text") {
        OPENMETRICS
    } else {
        text = older(&text);
        PROMETHEUS
    };
    ([(header::CONTENT_TYPE, format)], text).into_response()
}

/// The older text format from the newer: there a counter's description has the name of its samples, `info` is no type, and
/// nothing marks the end.
fn older(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            if let Some(help) = help.take() {
                let said = help["# HELP ".len()..]
                    .strip_prefix(name)
                    .unwrap_or_default();
                out.push_str(&format!("# HELP {name}{suffix}{said}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if line != "# EOF" && !line.starts_with("# UNIT ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

// === The page ===

async fn status(State(view): State<Arc<View>>) -> Response {
    match page(&view).await {
        Ok(page) => Html(page).into_response(),
        Err(e) => {
            warn!("The page can't be shown: {e:#}");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("The page can't be shown: {e}\n"),
            )
                .into_response()
        }
    }
}

/// One row with its proof, its token's life and its history.
async fn case(State(view): State<Arc<View>>, Path(id): Path<String>) -> Response {
    let shown = match view.outbox.show(&id).await {
        Ok(story) => story_page(&view, &story),
        Err(OutboxError::NotFound(_)) => {
            return (
                StatusCode::NOT_FOUND,
                "There is no such row in the queue.\n",
            )
                .into_response();
        }
        Err(e) => Err(e.into()),
    };
    match shown {
        Ok(page) => Html(page).into_response(),
        Err(e) => {
            warn!("A row can't be shown: {e:#}");
            let said = format!("It can't be shown: {e}\n");
            (StatusCode::SERVICE_UNAVAILABLE, said).into_response()
        }
    }
}

fn story_page(view: &View, story: &Story) -> anyhow::Result<String> {
    let row = &story.row;
    let device = story.device.as_ref();
    let facts: Vec<_> = [
        ("State", Some(word(&row.state))),
        ("Stage", Some(row.stage.clone())),
        ("Why", row.last_error.clone()),
        ("Channel", row.channel.clone()),
        ("To", row.recipient.as_deref().map(mask_address)),
        ("Found by", story.source.clone()),
        (
            "Device",
            device.map(|d| format!("{} ({}), VDOM {}", d.name, d.id, d.vdom)),
        ),
        ("Token", story.token.clone()),
        ("Rule", story.rule.clone()),
        ("Happened", story.event_time.map(second)),
        ("Received", Some(second(row.created_at))),
        ("Expires", row.expires_at.map(second)),
        ("Tries", Some(row.attempts.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| context! { name, value }))
    .collect();
    let trace = story.trace.iter();
    let trace: Vec<_> = trace
        .map(|f| context! { at => second(f.at), by => f.by.as_str(), said => &f.said })
        .collect();
    let life: Vec<_> = story
        .life
        .iter()
        .map(|e| {
            context! { at => second(e.at), id => &e.id, stage => e.stage.as_str(), state => word(&e.state),
                user => &e.user, token => &e.token, description => &e.description }
        })
        .collect();
    let history: Vec<_> = story
        .history
        .iter()
        .map(|h| context! { at => second(h.at), channel => &h.channel, what => &h.what })
        .collect();
    let page = view
        .pages
        .get_template("case.html")?
        .render(context! { id => &row.id, user => &row.user, facts, trace, life, history })?;
    Ok(page)
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

async fn page(view: &View) -> anyhow::Result<String> {
    let now = Timestamp::now();
    let depth = view.outbox.depth(now).await?;
    let attention = Filter {
        user: None,
        states: vec![
            outbox::State::NeedsAttention,
            outbox::State::Failed,
            outbox::State::Expired,
        ],
        limit: MAX_ROWS,
    };
    let newest = Filter {
        user: None,
        states: Vec::new(),
        limit: MAX_ROWS,
    };
    let rows = |rows: Vec<Row>| {
        rows.into_iter()
            .map(|row| shown(&row, now))
            .collect::<Vec<_>>()
    };
    let attention = rows(view.outbox.list(attention).await?);
    let newest = rows(view.outbox.list(newest).await?);
    let states: Vec<_> = depth
        .items
        .iter()
        .map(|(state, count)| context! { state => word(state), count })
        .collect();
    let listeners: Vec<_> = view
        .listeners()
        .iter()
        .map(|l| {
            let counters = view.metrics.listener(&l.name());
            context! { name => l.name(), transport => l.transport(), address => l.address().to_string(),
                frames => counters.frames.get(), rejected => counters.all_rejected(), dropped => counters.udp_dropped.get() }
        })
        .collect();
    let mut heard = view.seen.all();
    heard.sort_by_key(|(_, heard)| std::cmp::Reverse(heard.at));
    let more_devices = heard.len().saturating_sub(MAX_ROWS);
    let devices: Vec<_> = heard
        .into_iter()
        .take(MAX_ROWS)
        .map(|(id, heard)| context! { id, name => heard.name, ago => ago(heard.at, now), skew => heard.skew.map(|s| s.as_secs()) })
        .collect();
    let mut strangers = view.seen.strangers();
    strangers.sort_by_key(|(_, stranger)| std::cmp::Reverse(stranger.at));
    let strangers: Vec<_> = strangers
        .into_iter()
        .take(MAX_ROWS)
        .map(|(id, stranger)| context! { id, why => stranger.why, count => stranger.count, ago => ago(stranger.at, now) })
        .collect();
    let channels: Vec<_> = view
        .dispatcher
        .board()
        .into_iter()
        .map(|(name, health)| {
            let waits = health.wait_until.filter(|t| *t > now).map(|t| until(t, now));
            context! { name, suspended => health.suspended, waits, success => health.last_success.map(|t| ago(t, now)) }
        })
        .collect();
    let answers = view.pending.all();
    let asked = !answers.is_empty();
    let mut waiting: Vec<_> = answers.iter().flat_map(|(_, a)| &a.waiting).collect();
    waiting.sort_by_key(|w| w.expires_at.unwrap_or(Timestamp::MAX));
    let more_waiting =
        answers.iter().map(|(_, a)| a.more).sum::<usize>() + waiting.len().saturating_sub(MAX_ROWS);
    let expired: usize = answers.iter().map(|(_, a)| a.expired).sum();
    let tokens: Vec<_> = waiting
        .into_iter()
        .take(MAX_ROWS)
        .map(|w| {
            context! { holder => &w.holder, device => &w.device.name, vdom => &w.device.vdom, token => &w.token,
                expires => w.expires_at.map(|t| until(t, now)) }
        })
        .collect();
    let unasked: Vec<_> = answers
        .iter()
        .filter_map(|(id, a)| a.problem.as_ref().map(|problem| context! { id, problem }))
        .take(MAX_ROWS)
        .collect();
    let page = view.pages.get_template("status.html")?.render(context! {
        version => env!("CARGO_PKG_VERSION"), now => now.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        reasons => view.readiness.reasons(), oldest => depth.oldest.map(|t| ago(t, now)),
        attention, newest, states, listeners, devices, more_devices, strangers, channels, most => MAX_ROWS,
        asked, tokens, more_waiting, expired, unasked,
    })?;
    Ok(page)
}

fn shown(row: &Row, now: Timestamp) -> minijinja::Value {
    context! {
        id => &row.id, user => &row.user, stage => &row.stage, state => word(&row.state), channel => &row.channel,
        recipient => row.recipient.as_deref().map(mask_address), attempts => row.attempts,
        next => row.next_attempt.map(|t| until(t, now)), expires => row.expires_at.map(|t| until(t, now)),
        error => &row.last_error, created => ago(row.created_at, now),
    }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(then).as_secs()))
}

fn until(then: Timestamp, now: Timestamp) -> String {
    match then.duration_since(now).as_secs() {
        ..=0 => "now".to_owned(),
        seconds => format!("in {}", span(seconds)),
    }
}

fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for host in [
            "localhost",
            "localhost:8514",
            "127.0.0.1:8514",
            "[::1]:8514",
            "[::1]",
            "127.1.2.3",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.test",
            "evil.test:8514",
            "localhost.evil.test",
            "10.0.0.1:8514",
            "[2001:db8::1]:80",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn the_older_text_format_describes_each_sample_under_its_own_name() {
        let (metrics, registry) = Metrics::new();
        metrics.activation("relay");
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("writing to a string");
        let text = older(&text);
        for line in [
            "# TYPE ftm_relay_activations_total counter",
            "ftm_relay_activations_total{outcome=\"relay\"} 1",
            "# TYPE ftm_relay_build_info gauge",
            "# TYPE ftm_relay_config_reload_success gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("# HELP ftm_relay_activations_total Token"));
        assert!(!text.contains("EOF"));
    }

    #[test]
    fn spans_are_said_in_one_unit() {
        for (seconds, said) in [
            (-5, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(span(seconds), said);
        }
    }
}
