//! The keys of a channel of type `smtp`, and what can be wrong with them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use toml::Spanned;

use super::Smtp;
use super::hop::Hop;
use super::login::Login;
use super::relay::Relay;
use super::relay::Security;
use crate::channel::http::Way;
use crate::channel::mail;
use crate::channel::oauth;
use crate::settings::Check;
use crate::settings::SecretSource;
use crate::settings::Span;
use crate::tls;

/// RFC 5321, 4.5.3.2.6: a relay may take so long to answer the final dot, and whoever leaves earlier sends twice.
const MIN_FINAL_DOT: Duration = Duration::from_secs(10 * 60);

/// The submission port.
const DEFAULT_PORT: u16 = 587;

/// More relays are not asked in one try.
const MAX_HOSTS: usize = 4;

/// What a token for Exchange Online is for.
const EXCHANGE_ONLINE: &str = "https://outlook.office365.com/.default";

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
    /// A token by OAuth 2.0, in place of a password.
    Xoauth2,
}

/// `[channel.x]` with `type = "smtp"`, without the keys that every channel has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    host: Option<Spanned<String>>,
    hosts: Option<Spanned<Vec<Spanned<String>>>>,
    port: Option<Spanned<u16>>,
    tls: Option<Spanned<Tls>>,
    auth: Option<Spanned<Auth>>,
    username: Option<Spanned<String>>,
    password: Option<SecretSource>,
    tenant: Option<Spanned<String>>,
    login: Option<Spanned<String>>,
    token_url: Option<Spanned<String>>,
    client_id: Option<Spanned<String>>,
    client_secret: Option<SecretSource>,
    scope: Option<Spanned<String>>,
    proxy: Option<SecretSource>,
    from: Spanned<String>,
    reply_to: Option<Spanned<String>>,
    return_path: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    to: Option<Spanned<String>>,
    ehlo: Option<Spanned<String>>,
    #[serde(default)]
    qr: bool,
    #[serde(default = "yes")]
    dsn: bool,
}

fn yes() -> bool {
    true
}

impl Config {
    /// It has a fixed recipient, whom others may be reading with.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// Checks everything that can be checked without the network. `timeout` is the bound of one step.
    pub fn build(self, timeout: Duration, check: &mut Check) -> Option<Smtp> {
        if let Some(port) = &self.port
            && *port.get_ref() == 0
        {
            check.problem(port.span(), "port 0 can't be connected to");
        }
        let places = self.places(check);
        let mode = self
            .tls
            .as_ref()
            .map_or_else(Tls::default, |t| *t.get_ref());
        for place in places.iter().flatten() {
            self.warn(mode, place, check);
        }
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
        let login = self.login(timeout, check);
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

        let from = from?;
        let security = security?;
        let relay = |place: Place| Relay {
            host: place.host,
            name: place.name,
            port: place.port,
            security: security.clone(),
            ehlo: ehlo.clone(),
            step: timeout,
        };
        Some(Smtp {
            return_path: match return_path {
                Some(path) => path?,
                None => from.email.clone(),
            },
            hops: places?.into_iter().map(relay).map(Hop::new).collect(),
            login: login?,
            dsn: self.dsn,
            step: timeout,
            final_dot: timeout.max(MIN_FINAL_DOT),
            sender: mail::Sender {
                from,
                reply_to: transposed(reply_to)?,
                qr: self.qr,
            },
            to: transposed(to)?,
        })
    }

    /// The relays in their order. `None`: there is none, or something is wrong with one.
    fn places(&self, check: &mut Check) -> Option<Vec<Place>> {
        let port = self.port.as_ref().map_or(DEFAULT_PORT, |p| *p.get_ref());
        let hosts = match (&self.host, &self.hosts) {
            (Some(host), None) => return host_alone(host, port, check).map(|place| vec![place]),
            (None, Some(hosts)) => hosts,
            (Some(_), Some(hosts)) => {
                check.problem(
                    hosts.span(),
                    "`host` is one relay and `hosts` are several in their order; write one of them",
                );
                return None;
            }
            (None, None) => {
                check.problem(
                    None,
                    "`host` is missing (or `hosts`, several relays in their order)",
                );
                return None;
            }
        };
        let list = hosts.get_ref();
        if !(1..=MAX_HOSTS).contains(&list.len()) {
            check.problem(
                hosts.span(),
                format!("hosts are 1 to {MAX_HOSTS} relays, such as [\"a.example.com\", \"b.example.com:2525\"]"),
            );
            return None;
        }
        let places: Vec<_> = list.iter().map(|h| host_and_port(h, port, check)).collect();
        let places: Vec<_> = places.into_iter().collect::<Option<_>>()?;
        for (n, place) in places.iter().enumerate() {
            if places[..n]
                .iter()
                .any(|p| (&p.host, p.port) == (&place.host, place.port))
            {
                check.problem(
                    place.span.clone(),
                    format!("{} stands in hosts twice", place.host),
                );
                return None;
            }
        }
        Some(places)
    }

    fn warn(&self, mode: Tls, place: &Place, check: &mut Check) {
        let keys = [
            self.tls.as_ref().map(Spanned::span),
            self.port.as_ref().map(Spanned::span),
        ];
        let span = keys
            .into_iter()
            .flatten()
            .next()
            .unwrap_or_else(|| place.span.clone());
        match (mode, place.port) {
            (Tls::Implicit, port @ (587 | 25)) => check.warning(
                span.clone(),
                format!("port {port} usually begins in the clear (tls = \"starttls\"); tls = \"implicit\" is usually port 465"),
            ),
            (Tls::Starttls, 465) => check.warning(
                span.clone(),
                "port 465 usually expects TLS from the first byte: tls = \"implicit\"",
            ),
            _ => {}
        }
        if mode == Tls::None && !is_loopback(&place.host) {
            check.warning(
                span.clone(),
                "with tls = \"none\" activation codes travel in the clear; write tls = \"starttls\" or \"implicit\"",
            );
            if let Some(auth) = &self.auth {
                let what = match auth.get_ref() {
                    Auth::Password => "password",
                    Auth::Xoauth2 => "token",
                };
                check.warning(
                    span,
                    format!("with tls = \"none\" the {what} travels in the clear"),
                );
            }
        }
    }

    /// `None`: can't be built. `Some(None)`: no AUTH.
    fn login(&self, timeout: Duration, check: &mut Check) -> Option<Option<Login>> {
        let Some(auth) = &self.auth else {
            let span = self.username.as_ref().map(Spanned::span);
            if let Some(span) = span.or_else(|| self.password.as_ref().map(|p| p.span.clone())) {
                check.warning(
                    span,
                    "username and password have no effect without auth = \"password\"",
                );
            }
            self.no_token(check);
            return Some(None);
        };
        match auth.get_ref() {
            Auth::Password => {
                self.no_token(check);
                let password = self.password.as_ref().map(|source| check.secret(source));
                if password.is_none() {
                    check.problem(
                        auth.span(),
                        "auth = \"password\" needs password, such as password = { credential = \"smtp\" }",
                    );
                }
                let username =
                    self.username(auth.span(), "auth = \"password\" needs username", check);
                Some(Some(Login::Password {
                    username: username?,
                    password: password??,
                }))
            }
            Auth::Xoauth2 => {
                if let Some(password) = &self.password {
                    check.warning(
                        password.span.clone(),
                        "password has no effect with auth = \"xoauth2\"",
                    );
                }
                let username = self.username(
                    auth.span(),
                    "auth = \"xoauth2\" needs username, the mailbox that sends",
                    check,
                );
                let keys = oauth::Keys {
                    needed_by: "auth = \"xoauth2\"",
                    here: auth.span(),
                    default_scope: EXCHANGE_ONLINE,
                    tenant: self.tenant.as_ref(),
                    login: self.login.as_ref(),
                    token_url: self.token_url.as_ref(),
                    client_id: self.client_id.as_ref(),
                    client_secret: self.client_secret.as_ref(),
                    scope: self.scope.as_ref(),
                    way: Way {
                        // The key of this name is for the relay.
                        ca_file: None,
                        proxy: self.proxy.as_ref(),
                        timeout,
                    },
                };
                let tokens = keys.build(check);
                Some(Some(Login::Token {
                    username: username?,
                    tokens: Box::new(tokens?),
                }))
            }
        }
    }

    fn username(&self, auth: Span, missing: &str, check: &mut Check) -> Option<String> {
        let Some(username) = &self.username else {
            check.problem(auth, missing);
            return None;
        };
        if username.get_ref().is_empty() || username.get_ref().contains(char::is_control) {
            check.problem(
                username.span(),
                "username is empty or holds a control character",
            );
            return None;
        }
        Some(username.get_ref().clone())
    }

    /// Whoever writes the keys of a token and doesn't ask for one has forgotten something.
    fn no_token(&self, check: &mut Check) {
        let keys = [
            ("tenant", &self.tenant),
            ("login", &self.login),
            ("token_url", &self.token_url),
            ("client_id", &self.client_id),
            ("scope", &self.scope),
        ];
        let text = keys
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?.span())));
        let secrets = [
            ("client_secret", &self.client_secret),
            ("proxy", &self.proxy),
        ];
        let secrets = secrets
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?.span.clone())));
        for (key, span) in text.chain(secrets) {
            check.warning(
                span,
                format!("{key} has no effect without auth = \"xoauth2\""),
            );
        }
    }
}

/// Where a relay is.
struct Place {
    host: String,
    name: ServerName<'static>,
    port: u16,
    span: Span,
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
fn host_alone(text: &Spanned<String>, port: u16, check: &mut Check) -> Option<Place> {
    let parsed = server_name(text.get_ref())
        .ok_or("is neither a host name nor an IP address; the port has its own key");
    told(parsed, text, check).map(|name| Place {
        host: bare(text.get_ref()).to_owned(),
        name,
        port,
        span: text.span(),
    })
}

/// The same with a port, if one is written.
fn host_and_port(text: &Spanned<String>, default: u16, check: &mut Check) -> Option<Place> {
    let whole = text.get_ref().as_str();
    let parsed = match (server_name(whole), whole.rsplit_once(':')) {
        (Some(name), _) => Some((name, whole, default)),
        (None, Some((host, port))) => server_name(host)
            .zip(port.parse().ok().filter(|port| *port > 0))
            .map(|(name, port)| (name, host, port)),
        (None, None) => None,
    };
    let parsed = parsed.ok_or("is no relay; write \"host\" or \"host:port\"");
    told(parsed, text, check).map(|(name, host, port)| Place {
        host: bare(host).to_owned(),
        name,
        port,
        span: text.span(),
    })
}

fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(bare(host).to_owned()).ok()
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
