//! Mail through the organisation's own relay: one recipient a transaction, STARTTLS never downgraded, connections reused.

mod reply;
mod session;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use lettre::Address;
use lettre::message::Mailbox;
use serde::Deserialize;
use tokio::time::Instant;
use toml::Spanned;
use zeroize::Zeroizing;

use super::mail;
use super::tls;
use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::smtp::session::Server;
use crate::channel::smtp::session::Session;
use crate::channel::smtp::session::Tls;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::SecretSource;

/// The submission port.
const DEFAULT_PORT: u16 = 587;
/// A connection that nobody needs is kept so long.
const KEEP_IDLE: Duration = Duration::from_secs(5);
/// So many idle connections are kept.
const MAX_IDLE: usize = 8;

/// `type = "smtp"`, without the keys that every channel has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The relay.
    pub host: Spanned<String>,
    /// Its port.
    pub port: Option<Spanned<u16>>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: Tls,
    /// How to log in; absent: not at all.
    pub auth: Option<Auth>,
    /// The user name.
    pub username: Option<Spanned<String>>,
    /// The password.
    pub password: Option<SecretSource>,
    /// The sender.
    pub from: Spanned<String>,
    /// Where answers go.
    pub reply_to: Option<Spanned<String>>,
    /// The envelope's sender; by default the address in `from`.
    pub return_path: Option<Spanned<String>>,
    /// Certificates in place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// A fixed recipient: a shared place.
    pub to: Option<Spanned<String>>,
    /// The name in EHLO.
    pub ehlo: Option<Spanned<String>>,
}

/// `auth`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// PLAIN, else LOGIN, as offered.
    Password,
}

/// A mail relay.
pub struct Smtp {
    server: Server,
    from: Mailbox,
    reply_to: Option<Mailbox>,
    return_path: Address,
    to: Option<Address>,
    idle: Arc<Idle>,
}

/// Open connections that nobody uses just now.
#[derive(Default)]
struct Idle(Mutex<Parked>);

#[derive(Default)]
struct Parked {
    /// Since when each one waits.
    sessions: Vec<(Session, Instant)>,
    /// A task is there that ends them.
    watched: bool,
}

impl Config {
    /// It has a fixed recipient, whom others may be reading with.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// Checks addresses, log-in and certificates; nothing is opened.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Smtp> {
        let host = self.host.get_ref().trim().to_owned();
        let local = is_loopback(&host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let with_port = host.contains(':') && bare.parse::<IpAddr>().is_err();
        if host.is_empty() || host.contains(['/', ' ', '@']) || with_port {
            let text = format!("\"{host}\" is no host; write its name or address, without a port");
            check.problem(self.host.span(), text);
        }
        let port = self.port.as_ref().map_or(DEFAULT_PORT, |p| *p.get_ref());
        if port == 0 {
            check.problem(self.port.as_ref().map(Spanned::span), "there is no port 0");
        }
        if self.tls == Tls::Implicit && port == DEFAULT_PORT {
            check.warning(
                self.port.as_ref().unwrap_or(&Spanned::new(self.host.span(), port)).span(),
                "port 587 usually wants tls = \"starttls\"; tls = \"implicit\" usually stands with port = 465",
            );
        }
        if self.tls == Tls::None && !local {
            check.warning(
                self.host.span(),
                "tls = \"none\" sends codes in clear over the network; use \"starttls\" or \"implicit\"",
            );
        }
        let login = self.login(check);
        if login.is_some() && self.tls == Tls::None && !local {
            check.warning(
                self.host.span(),
                "the password goes over the network in clear",
            );
        }
        let roots = tls::client(
            self.tls != Tls::None,
            self.ca_file.as_ref(),
            self.host.span(),
            check,
        );
        let from = mailbox(&self.from, check);
        let reply_to = self.reply_to.as_ref().map(|r| mailbox(r, check));
        let return_path = self.return_path.as_ref().map(|r| address(r, check));
        let to = self.to.as_ref().map(|t| address(t, check));
        if let Some(name) = &self.ehlo
            && (name.get_ref().is_empty() || !name.get_ref().bytes().all(|b| b.is_ascii_graphic()))
        {
            check.problem(
                name.span(),
                "the name in EHLO is one word of ASCII letters, such as \"relay.example.com\"",
            );
        }
        let from = from?;
        Some(Smtp {
            return_path: match return_path {
                Some(given) => given?,
                None => from.email.clone(),
            },
            from,
            reply_to: match reply_to {
                Some(given) => Some(given?),
                None => None,
            },
            to: match to {
                Some(given) => Some(given?),
                None => None,
            },
            server: Server {
                host,
                port,
                tls: self.tls,
                roots: Arc::new(roots?),
                login: login?,
                ehlo: self.ehlo.map(Spanned::into_inner),
                timeout,
            },
            idle: Arc::default(),
        })
    }

    /// `None`: it can't be read. `Some(None)`: none is wanted.
    #[expect(
        clippy::option_option,
        reason = "a log-in that is absent is no problem; one that can't be read is"
    )]
    fn login(&self, check: &mut Check) -> Option<Option<(String, Secret)>> {
        let Some(Auth::Password) = self.auth else {
            let unused = self
                .username
                .as_ref()
                .map(Spanned::span)
                .or(self.password.as_ref().map(|p| p.span.clone()));
            if let Some(span) = unused {
                check.problem(
                    span,
                    "there is a user name or password, but no `auth`; write auth = \"password\"",
                );
            }
            return Some(None);
        };
        let missing = |what: &str| format!("auth = \"password\" needs `{what}`");
        if self.username.is_none() {
            check.problem(self.host.span(), missing("username"));
        }
        match &self.password {
            None => {
                check.problem(self.host.span(), missing("password"));
                None
            }
            Some(source) => {
                let password = check.secret(source)?;
                Some(Some((self.username.clone()?.into_inner(), password)))
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn mailbox(text: &Spanned<String>, check: &mut Check) -> Option<Mailbox> {
    match text.get_ref().parse() {
        Ok(mailbox) => Some(mailbox),
        Err(e) => {
            let text = (text.span(), text.get_ref());
            check.problem(
                text.0,
                format!(
                    "\"{}\" is no mail address: {e}; write \"Name <name@example.com>\"",
                    text.1
                ),
            );
            None
        }
    }
}

fn address(text: &Spanned<String>, check: &mut Check) -> Option<Address> {
    mailbox(text, check).map(|m| m.email)
}

impl Smtp {
    /// What must never be shown: the password in every form in which it goes over the wire.
    pub fn secrets(&self) -> Vec<Secret> {
        let Some((user, password)) = &self.server.login else {
            return Vec::new();
        };
        let plain = format!("\0{user}\0{}", password.expose());
        vec![
            password.clone(),
            Secret::new(BASE64_STANDARD.encode(password.expose())),
            Secret::new(BASE64_STANDARD.encode(plain)),
        ]
    }

    /// A session in which the relay has taken sender and recipient.
    async fn begin(&self, to: &Address, attempt: &Attempt<'_>) -> Result<Session, SendError> {
        if let Some(mut session) = self.idle.take() {
            attempt
                .transcript
                .line(|| "* an open connection is used again".to_owned());
            match session.begin(&self.return_path, to, attempt).await {
                Ok(()) => return Ok(session),
                // It had ended while it waited, which says nothing about the relay.
                Err(_) if session.is_lost() => {}
                Err(refused) => {
                    self.idle.put(session);
                    return Err(refused);
                }
            }
        }
        let mut session = self.server.connect(attempt).await?;
        match session.begin(&self.return_path, to, attempt).await {
            Ok(()) => Ok(session),
            Err(e) => {
                self.idle.put(session);
                Err(e)
            }
        }
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Parked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Session> {
        let mut parked = self.lock();
        loop {
            let (mut session, since) = parked.sessions.pop()?;
            if since.elapsed() < KEEP_IDLE && session.is_quiet() {
                return Some(session);
            }
        }
    }

    /// Keeps a session for a while, unless it is lost; then says good-bye.
    fn put(self: &Arc<Self>, session: Session) {
        if session.is_lost() {
            return;
        }
        let mut parked = self.lock();
        if parked.sessions.len() >= MAX_IDLE {
            return;
        }
        parked.sessions.push((session, Instant::now()));
        if !std::mem::replace(&mut parked.watched, true) {
            tokio::spawn(watch(Arc::downgrade(self)));
        }
    }
}

/// Ends the sessions that waited for too long, until none is left.
async fn watch(idle: Weak<Idle>) {
    let mut watched = true;
    while watched {
        tokio::time::sleep(KEEP_IDLE).await;
        let Some(idle) = idle.upgrade() else { return };
        let over: Vec<_> = {
            let mut parked = idle.lock();
            let (over, kept) = std::mem::take(&mut parked.sessions)
                .into_iter()
                .partition(|(_, since)| since.elapsed() >= KEEP_IDLE);
            parked.sessions = kept;
            watched = !parked.sessions.is_empty();
            parked.watched = watched;
            over
        };
        for (session, _) in over {
            session.quit().await;
        }
    }
}

#[async_trait]
impl Carrier for Smtp {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let permanent = |reason: String| SendError::Permanent { reason };
        let (to, name) = match (&self.to, attempt.to) {
            (Some(fixed), _) => (fixed.clone(), None),
            (None, Some(person)) => {
                let address = person.email.parse().map_err(|_| {
                    permanent("the recipient's address is no mail address".to_owned())
                })?;
                (address, person.name.as_deref())
            }
            (None, None) => return Err(permanent("there is no recipient".to_owned())),
        };
        let message = mail::build(
            &self.from,
            self.reply_to.as_ref(),
            &to.to_string(),
            name,
            attempt.note,
        )
        .map_err(|e| permanent(e.to_string()))?;
        let message = Zeroizing::new(message);
        let mut session = self.begin(&to, attempt).await?;
        let sent = match attempt.commit.commit().await {
            Ok(()) => session.finish(&message, attempt).await,
            Err(e) => Err(e),
        };
        self.idle.put(session);
        sent.map(|said| Receipt { said })
    }
}
