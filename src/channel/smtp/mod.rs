//! Mail by SMTP: one recipient per transaction, TLS never downgraded, a bound on every step, and every failure in its class.
//!
//! lettre builds the message and words the commands. The connection is ours, because a code is at stake: what a
//! timeout covers, which answer belongs to which command, and what lies in a buffer before TLS must be known exactly.

mod class;
mod dialogue;
mod park;
mod relay;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use lettre::Address;
use lettre::message::Mailbox;
use lettre::transport::smtp::commands::Data;
use lettre::transport::smtp::commands::Mail;
use lettre::transport::smtp::commands::Rcpt;
use lettre::transport::smtp::commands::Rset;
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::mail;
use crate::secret::Redactor;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;
use crate::settings::Span;
use crate::tls;
use class::Fault;
use class::Stage;
use class::class;
use dialogue::Dialogue;
use dialogue::Reply;
use park::Park;
use relay::Failure;
use relay::Login;
use relay::Relay;
use relay::Security;

/// RFC 5321, 4.5.3.2.6: a relay may take so long to answer the final dot, and whoever leaves earlier sends twice.
const MIN_FINAL_DOT: Duration = Duration::from_secs(10 * 60);

/// How long a parked connection may take to show that it is alive.
const MAX_RSET: Duration = Duration::from_secs(5);

/// The submission port.
const DEFAULT_PORT: u16 = 587;

/// How the connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// STARTTLS, or nothing is sent.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// In the clear.
    None,
}

/// How we log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// PLAIN, else LOGIN, as offered.
    Password,
}

/// `[channel.x]` with `type = "smtp"`, without the keys that every channel has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    host: Spanned<String>,
    port: Option<Spanned<u16>>,
    tls: Option<Spanned<Tls>>,
    auth: Option<Spanned<Auth>>,
    username: Option<Spanned<String>>,
    password: Option<SecretSource>,
    from: Spanned<String>,
    reply_to: Option<Spanned<String>>,
    return_path: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    to: Option<Spanned<String>>,
    ehlo: Option<Spanned<String>>,
}

/// A relay, and what every mail to it has in common.
pub struct Smtp {
    relay: Relay,
    final_dot: Duration,
    sender: mail::Sender,
    return_path: Address,
    to: Option<Mailbox>,
    park: Arc<Park>,
}

impl Config {
    /// It has a fixed recipient, whom others may be reading with.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// Checks everything that can be checked without the network. `timeout` is the bound of one step.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Smtp> {
        let port = self.port.as_ref().map_or(DEFAULT_PORT, |p| *p.get_ref());
        let mode = self
            .tls
            .as_ref()
            .map_or_else(Tls::default, |t| *t.get_ref());
        let mode_span = self.tls.as_ref().map(Spanned::span);
        let host = host(&self.host, check);
        if port == 0 {
            check.problem(
                self.port.as_ref().map(Spanned::span),
                "port 0 can't be connected to",
            );
        }
        self.warn(mode, port, mode_span.clone(), check);

        let security = match mode {
            Tls::None => {
                if let Some(file) = &self.ca_file {
                    check.warning(file.span(), "ca_file has no effect with tls = \"none\"");
                }
                Some(Security::None)
            }
            Tls::Starttls => {
                tls::client_config(self.ca_file.as_ref(), check).map(Security::StartTls)
            }
            Tls::Implicit => {
                tls::client_config(self.ca_file.as_ref(), check).map(Security::Implicit)
            }
        };
        let login = self.login(check);
        let from = mailbox(&self.from, check);
        let reply_to = self.reply_to.as_ref().map(|m| mailbox(m, check));
        let to = self.to.as_ref().map(|m| mailbox(m, check));
        let return_path = self.return_path.as_ref().map(|path| {
            let address = mail::address(path.get_ref());
            told(address, path, check)
        });
        let ehlo = match &self.ehlo {
            Some(name) => Some(client_id(name, check)?),
            None => system_name().map(ClientId::Domain),
        };

        let (host, name) = host?;
        let from = from?;
        Some(Smtp {
            return_path: match return_path {
                Some(path) => path?,
                None => from.email.clone(),
            },
            relay: Relay {
                host,
                name,
                port,
                security: security?,
                login: login?,
                ehlo,
                step: timeout,
            },
            final_dot: timeout.max(MIN_FINAL_DOT),
            sender: mail::Sender {
                from,
                reply_to: transposed(reply_to)?,
            },
            to: transposed(to)?,
            park: Arc::default(),
        })
    }

    fn warn(&self, mode: Tls, port: u16, span: Option<Span>, check: &mut Check) {
        let span = span
            .or_else(|| self.port.as_ref().map(Spanned::span))
            .unwrap_or_else(|| self.host.span());
        match (mode, port) {
            (Tls::Implicit, 587 | 25) => check.warning(
                span.clone(),
                format!("port {port} usually begins in the clear (tls = \"starttls\"); tls = \"implicit\" is usually port 465"),
            ),
            (Tls::Starttls, 465) => check.warning(
                span.clone(),
                "port 465 usually expects TLS from the first byte: tls = \"implicit\"",
            ),
            _ => {}
        }
        if mode == Tls::None && !is_loopback(self.host.get_ref()) {
            check.warning(
                span.clone(),
                "with tls = \"none\" activation codes travel in the clear; write tls = \"starttls\" or \"implicit\"",
            );
            if self.auth.is_some() {
                check.warning(
                    span,
                    "with tls = \"none\" the password travels in the clear",
                );
            }
        }
    }

    /// `None`: can't be built. `Some(None)`: no AUTH.
    fn login(&self, check: &mut Check) -> Option<Option<Login>> {
        let password = self.password.as_ref().map(|source| check.secret(source));
        let Some(auth) = &self.auth else {
            let span = self.username.as_ref().map(Spanned::span);
            if let Some(span) = span.or_else(|| self.password.as_ref().map(|p| p.span.clone())) {
                check.warning(
                    span,
                    "username and password have no effect without auth = \"password\"",
                );
            }
            return Some(None);
        };
        let mut missing = |key: &str| {
            check.problem(auth.span(), format!("auth = \"password\" needs {key}"));
        };
        if self.username.is_none() {
            missing("username");
        }
        if password.is_none() {
            missing("password, such as password = { credential = \"smtp\" }");
        }
        let username = self.username.as_ref()?;
        if username.get_ref().is_empty() || username.get_ref().contains('\0') {
            check.problem(username.span(), "username is empty or holds a NUL");
            return None;
        }
        Some(Some(Login {
            username: username.get_ref().clone(),
            password: password??,
        }))
    }
}

/// An option that was asked for must also be right.
fn transposed<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    value.map_or(Some(None), |value| value.map(Some))
}

fn told<T>(
    parsed: Result<T, &'static str>,
    text: &Spanned<String>,
    check: &mut Check,
) -> Option<T> {
    parsed
        .map_err(|what| check.problem(text.span(), format!("\"{}\" {what}", text.get_ref())))
        .ok()
}

fn mailbox(text: &Spanned<String>, check: &mut Check) -> Option<Mailbox> {
    told(mail::mailbox(text.get_ref()), text, check)
}

/// The host as the resolver and as TLS know it; an IPv6 address may stand in brackets.
fn host(text: &Spanned<String>, check: &mut Check) -> Option<(String, ServerName<'static>)> {
    let bare = bare(text.get_ref());
    let parsed = ServerName::try_from(bare.to_owned())
        .map_err(|_| "is neither a host name nor an IP address; the port has its own key");
    told(parsed, text, check).map(|name| (bare.to_owned(), name))
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || bare(host)
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn client_id(text: &Spanned<String>, check: &mut Check) -> Option<ClientId> {
    let name = text.get_ref();
    let parsed = match bare(name).trim_start_matches("IPv6:").parse() {
        Ok(IpAddr::V4(ip)) => Ok(ClientId::Ipv4(ip)),
        Ok(IpAddr::V6(ip)) => Ok(ClientId::Ipv6(ip)),
        Err(_) if is_domain(name) => Ok(ClientId::Domain(name.clone())),
        Err(_) => Err("is neither a host name nor an IP address"),
    };
    told(parsed, text, check)
}

fn is_domain(name: &str) -> bool {
    name.len() <= 255
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// The system's host name, if it is one that a relay could look up.
fn system_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let full = name.contains('.') && name.parse::<IpAddr>().is_err();
    (full && is_domain(name) && !name.starts_with("localhost.")).then(|| name.to_owned())
}

impl Smtp {
    /// Whether every mail goes to one fixed place that several people read.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// What must never be shown: the password, and the shapes in which AUTH sends it.
    pub fn secrets(&self) -> Vec<Secret> {
        self.relay.login.as_ref().map_or_else(Vec::new, |login| {
            vec![
                login.password.clone(),
                Secret::new(login.plain().as_str()),
                Secret::new(login.login().as_str()),
            ]
        })
    }

    /// A connection that waited, if it is still alive.
    async fn waiting(&self, attempt: &Attempt<'_>) -> Option<Dialogue> {
        let mut dialogue = self.park.take()?;
        let limit = self.relay.step.min(MAX_RSET);
        let alive = dialogue.say(attempt, Rset, limit).await;
        alive
            .is_ok_and(|reply| reply.code == 250)
            .then_some(dialogue)
    }

    /// Names the sender and the recipient, and makes the delivery durable as being sent.
    async fn begin(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
        to: &Address,
    ) -> Result<(), Stop> {
        let step = self.relay.step;
        let from = Mail::new(Some(self.return_path.clone()), Vec::new());
        let reply = dialogue.say(attempt, from, step).await;
        stop(Stage::Mail, reply, &[250])?;
        let rcpt = Rcpt::new(to.clone(), Vec::new());
        let reply = dialogue.say(attempt, rcpt, step).await;
        stop(Stage::Rcpt, reply, &[250, 251])?;
        attempt.commit.commit().await.map_err(Stop::Uncommitted)
    }

    /// From DATA to the answer to the final dot.
    async fn finish(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
        message: &[u8],
    ) -> Result<Reply, Stop> {
        let step = self.relay.step;
        let reply = dialogue.say(attempt, Data, step).await;
        stop(Stage::Data, reply, &[354])?;
        let sent = dialogue.content(attempt, message, step).await;
        sent.map_err(|fault| Stop::Step((Stage::Data, fault)))?;
        let reply = dialogue.final_dot(attempt, step, self.final_dot).await;
        stop(Stage::Content, reply, &[250])
    }

    /// The failure as the rest of the relay sees it: a class and a sentence.
    fn error(&self, (stage, fault): Failure, redactor: &Redactor) -> SendError {
        let class = class(stage, &fault);
        let reason = self.sentence(stage, fault, redactor);
        class.error(reason, None)
    }

    fn sentence(&self, stage: Stage, fault: Fault, redactor: &Redactor) -> String {
        let relay = &self.relay;
        let answered = match stage {
            Stage::Greeting => "greeted".to_owned(),
            _ => format!("answered {stage}"),
        };
        match fault {
            Fault::Answer(reply) => {
                let said = redactor.clean(&reply.text());
                format!("{relay} {answered} with {said}")
            }
            Fault::Garbled(what) => format!("{relay} {answered} with {what}"),
            Fault::Slow(limit) if stage == Stage::Connect => {
                format!("{relay} can't be reached: no answer within {limit:?}")
            }
            Fault::Slow(limit) => format!("{relay} gave no answer at {stage} within {limit:?}"),
            Fault::Lost(e) if stage == Stage::Connect => format!("{relay} can't be reached: {e}"),
            Fault::Lost(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                format!("{relay} closed the connection at {stage}")
            }
            Fault::Lost(e) => {
                let e = redactor.clean(&e.to_string());
                format!("the connection to {relay} broke at {stage}: {e}")
            }
            Fault::Unfit(what) => format!("{relay} {what}"),
            Fault::Certificate(sentence) => redactor.clean(&sentence),
        }
    }
}

/// Why a transaction ended without acceptance.
enum Stop {
    Step(Failure),
    Uncommitted(SendError),
}

impl Stop {
    /// Whether the connection is as good as before: the peer answered in order and goes on listening.
    fn in_step(&self) -> bool {
        match self {
            Self::Uncommitted(_) => true,
            Self::Step((_, Fault::Answer(reply))) => reply.code >= 400 && reply.code != 421,
            Self::Step(_) => false,
        }
    }

    /// Whether the peer ended the connection.
    fn is_over(&self) -> bool {
        match self {
            Self::Step((_, Fault::Lost(_))) => true,
            Self::Step((_, Fault::Answer(reply))) => reply.code == 421,
            Self::Step(_) | Self::Uncommitted(_) => false,
        }
    }
}

fn stop(stage: Stage, reply: Result<Reply, Fault>, wanted: &[u16]) -> Result<Reply, Stop> {
    match reply {
        Ok(reply) if wanted.contains(&reply.code) => Ok(reply),
        Ok(reply) => Err(Stop::Step((stage, Fault::Answer(reply)))),
        Err(fault) => Err(Stop::Step((stage, fault))),
    }
}

#[async_trait]
impl Carrier for Smtp {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let to = match (&self.to, attempt.to) {
            (Some(fixed), _) => Ok(fixed.clone()),
            (None, Some(person)) => mail::person(person),
            (None, None) => Err("the delivery has no recipient".to_owned()),
        };
        let built = to.and_then(|to| {
            let message = mail::build(&self.sender, &to, attempt.note, SystemTime::now())?;
            Ok((to.email, message))
        });
        let (to, message) = built.map_err(|reason| SendError::Permanent { reason })?;

        let mut begun = None;
        if let Some(mut dialogue) = self.waiting(attempt).await {
            let result = self.begin(&mut dialogue, attempt, &to).await;
            // That a connection had enough after some mails says nothing about the relay.
            if !matches!(&result, Err(stop) if stop.is_over()) {
                begun = Some((dialogue, result));
            }
        }
        let (mut dialogue, begun) = match begun {
            Some(begun) => begun,
            None => {
                let dialogue = self.relay.dial(attempt).await;
                let mut dialogue =
                    dialogue.map_err(|failure| self.error(failure, attempt.redactor))?;
                let result = self.begin(&mut dialogue, attempt, &to).await;
                (dialogue, result)
            }
        };
        let outcome = match begun {
            Ok(()) => self.finish(&mut dialogue, attempt, &message).await,
            Err(stop) => Err(stop),
        };
        if outcome.as_ref().map_or_else(Stop::in_step, |_| true) && dialogue.in_step() {
            self.park.put(dialogue);
        }
        match outcome {
            Ok(reply) => Ok(Receipt {
                said: attempt.redactor.clean(&reply.text()),
            }),
            Err(Stop::Uncommitted(error)) => Err(error),
            Err(Stop::Step(failure)) => Err(self.error(failure, attempt.redactor)),
        }
    }
}
