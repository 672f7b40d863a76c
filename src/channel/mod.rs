//! Ways out. A carrier takes a notification to its next hop and says what that hop said; it never retries by itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::Deserializer;
use toml::Spanned;

use crate::channel::pace::MAX_TURNS;
use crate::channel::probe::Probe;
use crate::limits::Rate;
use crate::message::Notification;
use crate::message::Recipient;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::Period;

pub mod file;
pub mod graph;
pub mod http;
pub mod mail;
pub mod oauth;
pub mod pace;
pub mod probe;
pub mod qr;
pub mod slack;
pub mod sms;
pub mod smtp;
pub mod teams;
pub mod webhook;

mod reach;

/// The values of the key `type`. To add a kind: its file, its `mod` line, its word here, and what the compiler then asks for.
pub const KINDS: &[&str] = &["smtp", "file", "webhook", "slack", "teams", "graph", "sms"];

/// The keys of [`Common`], which every kind has.
pub const COMMON_KEYS: &[&str] = &[
    "timeout",
    "concurrency",
    "pace",
    "on_uncertain",
    "reveal",
    "time_zone",
];

/// The most deliveries that one channel may have in flight.
const MAX_CONCURRENCY: usize = 64;

/// The keys of `[channel.…]` that every kind has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// For one step of a try.
    #[serde(default = "default_timeout")]
    pub timeout: Spanned<Period>,
    /// Deliveries in flight at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: Spanned<usize>,
    /// At most so many messages in such a time, beside what the provider is known to allow.
    pub pace: Option<Spanned<Rate>>,
    /// What to do when nobody knows whether the peer took it.
    #[serde(default)]
    pub on_uncertain: OnUncertain,
    /// Whether the code is shown; the default depends on the kind.
    pub reveal: Option<Reveal>,
    /// In which zone times are given; default the system's.
    pub time_zone: Option<Spanned<String>>,
}

fn default_timeout() -> Spanned<Period> {
    Spanned::new(0..0, Period::seconds(20))
}

fn default_concurrency() -> Spanned<usize> {
    Spanned::new(0..0, 4)
}

impl Default for Common {
    fn default() -> Self {
        Self {
            timeout: default_timeout(),
            concurrency: default_concurrency(),
            pace: None,
            on_uncertain: OnUncertain::default(),
            reveal: None,
            time_zone: None,
        }
    }
}

/// `reveal`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reveal {
    /// Says that there is a code.
    Notice,
    /// Shows it.
    Code,
}

/// The keys of `[channel.…]` that belong to its kind.
#[derive(Clone, Debug)]
pub enum Config {
    /// `type = "smtp"`
    Smtp(Box<smtp::Config>),
    /// `type = "file"`
    File(file::Config),
    /// `type = "webhook"`
    Webhook(webhook::Config),
    /// `type = "slack"`
    Slack(slack::Config),
    /// `type = "teams"`
    Teams(teams::Config),
    /// `type = "graph"`
    Graph(Box<graph::Config>),
    /// `type = "sms"`
    Sms(Box<sms::Config>),
}

/// A way out, ready to be used.
pub struct Channel {
    /// Its name in the configuration.
    pub name: String,
    /// Its `type`.
    pub kind: &'static str,
    /// It writes to a person, so that it can do nothing without one.
    pub needs_person: bool,
    /// It shows the code.
    pub reveals: bool,
    /// Deliveries in flight at once.
    pub concurrency: usize,
    /// At most so many messages in such a time: all of these.
    pub rates: Vec<Rate>,
    /// For one step of a try.
    pub timeout: Duration,
    /// What to do when nobody knows whether the peer took it.
    pub on_uncertain: OnUncertain,
    /// In which zone times are given.
    pub time_zone: TimeZone,
    /// Knows the channel's secrets.
    pub redactor: Redactor,
    /// What sends.
    pub carrier: Arc<dyn Carrier>,
}

/// What a kind builds: what sends, and the secrets it knows.
struct Built {
    carrier: Arc<dyn Carrier>,
    secrets: Vec<Secret>,
}

impl Config {
    /// Reads the keys that belong to this kind; `None`: there is no such kind.
    pub fn read<'de, D: Deserializer<'de>>(kind: &str, keys: D) -> Option<Result<Self, D::Error>> {
        Some(match kind {
            "smtp" => smtp::Config::deserialize(keys).map(|smtp| Self::Smtp(Box::new(smtp))),
            "file" => file::Config::deserialize(keys).map(Self::File),
            "webhook" => webhook::Config::deserialize(keys).map(Self::Webhook),
            "slack" => slack::Config::deserialize(keys).map(Self::Slack),
            "teams" => teams::Config::deserialize(keys).map(Self::Teams),
            "graph" => graph::Config::deserialize(keys).map(|graph| Self::Graph(Box::new(graph))),
            "sms" => sms::Config::deserialize(keys).map(|sms| Self::Sms(Box::new(sms))),
            _ => return None,
        })
    }

    /// The value of the key `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Smtp(_) => "smtp",
            Self::File(_) => "file",
            Self::Webhook(_) => "webhook",
            Self::Slack(_) => "slack",
            Self::Teams(_) => "teams",
            Self::Graph(_) => "graph",
            Self::Sms(_) => "sms",
        }
    }

    /// It writes to a person, so that it can do nothing without one.
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Smtp(smtp) => !smtp.shared(),
            Self::Graph(graph) => !graph.shared(),
            Self::File(file) => !file.shared(),
            Self::Webhook(_) | Self::Teams(_) => false,
            Self::Sms(_) => true,
            Self::Slack(slack) => slack.needs_person(),
        }
    }

    /// What the provider is known to allow the channel as a whole.
    fn rates(&self) -> &'static [Rate] {
        match self {
            // The provider has a queue of its own.
            Self::Sms(_) => &[],
            Self::Smtp(_) | Self::File(_) | Self::Webhook(_) => &[],
            Self::Slack(slack) => slack.rates(),
            Self::Teams(_) => teams::RATES,
            Self::Graph(_) => graph::RATES,
        }
    }

    /// Whether it shows the code. A place that others read doesn't, unless the configuration says so.
    pub fn reveals(&self, common: &Common) -> bool {
        let default = match self {
            Self::File(_) | Self::Webhook(_) | Self::Sms(_) => Reveal::Code,
            Self::Slack(slack) if slack.needs_person() => Reveal::Code,
            Self::Smtp(smtp) if !smtp.shared() => Reveal::Code,
            Self::Graph(graph) if !graph.shared() => Reveal::Code,
            Self::Smtp(_) | Self::Graph(_) | Self::Slack(_) | Self::Teams(_) => Reveal::Notice,
        };
        common.reveal.unwrap_or(default) == Reveal::Code
    }

    /// Makes the channel; nothing is opened or sent.
    pub fn build(
        self,
        name: &str,
        common: Common,
        state_dir: &Path,
        check: &mut Check,
    ) -> Option<Channel> {
        let (kind, needs_person, reveals) =
            (self.kind(), self.needs_person(), self.reveals(&common));
        let timeout = common.timeout.get_ref().0;
        if timeout.is_zero() {
            check.problem(
                common.timeout.span(),
                "a timeout of nothing lets nothing through; write one such as \"20s\"",
            );
        }
        let concurrency = *common.concurrency.get_ref();
        if !(1..=MAX_CONCURRENCY).contains(&concurrency) {
            check.problem(
                common.concurrency.span(),
                format!("concurrency is a number from 1 to {MAX_CONCURRENCY}"),
            );
        }
        let mut rates = self.rates().to_vec();
        if let Some(pace) = &common.pace {
            if pace.get_ref().count > MAX_TURNS {
                check.problem(
                    pace.span(),
                    format!("a pace counts at most {MAX_TURNS} messages; write it for a shorter time, such as \"10/s\""),
                );
            }
            rates.push(*pace.get_ref());
        }
        let time_zone = time_zone(common.time_zone.as_ref(), check);
        let built = match self {
            Self::Smtp(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
            Self::File(config) => config.build(state_dir, check).map(|c| Built {
                carrier: Arc::new(c),
                secrets: Vec::new(),
            }),
            Self::Webhook(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
            Self::Teams(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
            Self::Graph(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
            Self::Sms(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
            Self::Slack(config) => config.build(timeout, check).map(|c| Built {
                secrets: c.secrets(),
                carrier: Arc::new(c),
            }),
        }?;
        Some(Channel {
            name: name.to_owned(),
            kind,
            needs_person,
            reveals,
            concurrency,
            rates,
            timeout,
            on_uncertain: common.on_uncertain,
            time_zone: time_zone?,
            redactor: Redactor::new(built.secrets),
            carrier: built.carrier,
        })
    }
}

fn time_zone(name: Option<&Spanned<String>>, check: &mut Check) -> Option<TimeZone> {
    let Some(name) = name else {
        return Some(TimeZone::try_system().unwrap_or(TimeZone::UTC));
    };
    match TimeZone::get(name.get_ref()) {
        Ok(zone) => Some(zone),
        Err(_) => {
            check.problem(
                name.span(),
                format!(
                    "this system knows no time zone {:?}; write one such as \"Europe/Berlin\"",
                    name.get_ref()
                ),
            );
            None
        }
    }
}

/// How one kind of channel sends.
#[async_trait]
pub trait Carrier: Send + Sync {
    /// One try. Dropping the future ends it; nothing of a broken-off try is used again.
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError>;

    /// Tries what can be tried without anybody getting anything, and says after each step what was found: what isn't said
    /// when this is dropped is lost. `attempt` is nobody's; its commit refuses.
    async fn probe(&self, attempt: &Attempt<'_>, found: &mut Vec<Probe>) {
        let _ = (attempt, found);
    }
}

/// One try of one delivery.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// The person; `None` for a shared place and for a webhook without one.
    pub to: Option<&'a Recipient>,
    /// What is said.
    pub note: &'a Notification,
    /// To be called before the first byte after which the peer may act.
    pub commit: &'a dyn Commit,
    /// Cleans a peer's text of this delivery's code and address and of the channel's secrets.
    pub redactor: &'a Redactor,
    /// The dialogue, for `send-test`.
    pub transcript: &'a Transcript,
}

/// Marks the delivery durably as being sent (outbox: `begin_send`).
#[async_trait]
pub trait Commit: Send + Sync {
    /// An error means that this delivery must not be sent now.
    async fn commit(&self) -> Result<(), SendError>;
}

/// The next hop took it; nobody promises more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What the hop said, cleaned.
    pub said: String,
}

/// Why a try failed. Every reason is our sentence, with the peer's text cleaned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// This delivery, later: 4yz, 5xx.
    #[error("{reason}")]
    Transient {
        /// What happened.
        reason: String,
        /// The peer's own wish (Retry-After).
        after: Option<Duration>,
    },
    /// The whole channel, later: no connection, TLS or greeting, 421, 429.
    #[error("{reason}")]
    Away {
        /// What happened.
        reason: String,
        /// The peer's own wish (Retry-After).
        after: Option<Duration>,
    },
    /// Never, for this delivery: 5yz at RCPT, unknown user.
    #[error("{reason}")]
    Permanent {
        /// What happened.
        reason: String,
    },
    /// Never, for anyone, until an operator acts: 535, 401, bad certificate. Suspends the channel.
    #[error("{reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
    /// The peer may have taken it: the connection ended after the commit point.
    #[error("{reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// What a failure means; each word stands for the kind of [`SendError`] with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// This delivery, later.
    Transient,
    /// The whole channel, later.
    Away,
    /// Never, for this delivery.
    Permanent,
    /// Never, for anyone, until an operator acts.
    Broken,
    /// The peer may have taken it.
    Unknown,
}

impl Class {
    /// The failure, with our sentence and the peer's own wish, which counts only for what is tried again.
    pub fn error(self, reason: impl Into<String>, after: Option<Duration>) -> SendError {
        let reason = reason.into();
        match self {
            Self::Transient => SendError::Transient { reason, after },
            Self::Away => SendError::Away { reason, after },
            Self::Permanent => SendError::Permanent { reason },
            Self::Broken => SendError::Broken { reason },
            Self::Unknown => SendError::Unknown { reason },
        }
    }
}

/// A dialogue as lines, `>` ours and `<` the peer's; secrets never enter it.
#[derive(Default)]
pub struct Transcript(Option<Mutex<Vec<String>>>);

impl Transcript {
    /// Keeps nothing: for the service.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Keeps what is said: for `send-test`.
    pub fn on() -> Self {
        Self(Some(Mutex::new(Vec::new())))
    }

    /// Whether anything is kept.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a line, which the caller has cleaned.
    pub fn line(&self, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            lines
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(line());
        }
    }

    /// What was said so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |lines| {
            lines
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone()
        })
    }
}

/// What to do with a delivery whose outcome is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUncertain {
    /// At least once.
    #[default]
    Resend,
    /// At most once: a person decides.
    Hold,
}
