//! People in LDAP or Active Directory.

mod ber;
mod cache;
mod filter;
mod session;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use reqwest::Url;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use tokio::sync::Mutex as AsyncMutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use toml::Spanned;
use tracing::warn;

use crate::activation::Activation;
use crate::message::Recipient;
use crate::message::international;
use crate::recipients::Recipients;
use crate::secret::Redactor;
use crate::secret::mask_address;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::SecretSource;
use crate::settings::Span;
use crate::tls;

use super::Answer;
use super::Directory;
use super::LookupError;
use super::Match;
use super::Probe;
use super::address;
use super::shown;

use cache::Cache;
use cache::Key;
use cache::Said;
use filter::Filter;
use session::Bind;
use session::Entry;
use session::Found;
use session::Scope;
use session::Search;
use session::Security;
use session::Server;
use session::Session;
use session::Terms;
use session::Trouble;
use session::share;

pub use session::search_in;

/// The most servers of one directory.
const MAX_SERVERS: usize = 8;
/// So many searches at the same time, each on a connection of its own.
const MAX_SESSIONS: usize = 4;
/// The longest `timeout`, which counts for each step.
const LONGEST_STEP: Duration = Duration::from_secs(15);
/// A look-up takes no longer, all servers and the wait for a connection included. Shorter than the lease of a case.
const LOOKUP_LIMIT: Duration = Duration::from_secs(45);
/// A connection that was silent for longer may have been forgotten by a firewall on the way.
const IDLE: Duration = Duration::from_secs(60);
/// After so long the servers are tried in their order again.
const LONGEST_SESSION: Duration = Duration::from_secs(600);
/// So long a server that failed stands behind the others.
const SERVER_PAUSE: Duration = Duration::from_secs(60);
/// When no server answers, so long nobody waits for them again.
const AWAY_PAUSE: Duration = Duration::from_secs(5);
/// After a refused bind: far fewer tries than an account stands before it is locked.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);
/// Longer names than any directory holds.
const MAX_USER_BYTES: usize = 256;
/// So much of a name, a phone number or a language is taken.
const MAX_FIELD_CHARS: usize = 128;
/// In answer to this name an entry comes without attributes (RFC 4511, 4.5.1.8).
const NO_ATTRIBUTES: &str = "1.1";

/// `type = "ldap"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The servers, in the order in which they are asked.
    pub url: Spanned<Urls>,
    /// TLS on an ldap:// connection, or nothing.
    pub starttls: Option<Spanned<bool>>,
    /// Below this entry people are looked for.
    pub base: Spanned<String>,
    /// The account that may read. Without it and `sasl` the bind is anonymous.
    pub bind_dn: Option<Spanned<String>>,
    /// Its password.
    pub password: Option<SecretSource>,
    /// In place of both: whom our client certificate names.
    pub sasl: Option<Spanned<Sasl>>,
    /// The client certificate, in PEM.
    pub cert: Option<Spanned<PathBuf>>,
    /// Its key, in PEM.
    pub key: Option<SecretSource>,
    /// A private CA in place of the system's roots.
    pub ca_file: Option<Spanned<PathBuf>>,
    /// Finds the entry of `{user}`.
    pub filter: Option<Spanned<String>>,
    /// Where an entry holds what.
    #[serde(default)]
    pub attributes: Attributes,
    /// How long an answer counts without asking again.
    pub cache: Option<Period>,
    /// For each step: name server, connection, TLS, bind, search.
    pub timeout: Option<Spanned<Period>>,
    /// Whose events it answers for.
    #[serde(rename = "match", default)]
    pub matches: Match,
}

/// `sasl`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sasl {
    /// By client certificate.
    External,
}

/// One URL, or a list of them.
#[derive(Clone, Debug)]
pub struct Urls(Vec<(Option<Span>, String)>);

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Urls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL such as \"ldaps://dc1.example.com\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, url: &str) -> Result<Urls, E> {
                Ok(Urls(vec![(None, url.to_owned())]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Urls, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element::<Spanned<String>>()? {
                    urls.push((Some(url.span()), url.into_inner()));
                }
                Ok(Urls(urls))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// `attributes`; an empty name asks for none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attributes {
    /// The mail address.
    pub email: Spanned<String>,
    /// The name to greet with.
    pub name: Spanned<String>,
    /// The phone number.
    pub phone: Spanned<String>,
    /// The language.
    pub language: Spanned<String>,
}

impl Default for Attributes {
    fn default() -> Self {
        let name = |text: &str| Spanned::new(0..0, text.to_owned());
        Self {
            email: name("mail"),
            name: name("displayName"),
            phone: name("mobile"),
            language: name("preferredLanguage"),
        }
    }
}

/// The name that a person logs in with in Active Directory.
const DEFAULT_FILTER: &str = "(sAMAccountName={user})";
const DEFAULT_CACHE: Period = Period::seconds(600);
const DEFAULT_STEP: Duration = Duration::from_secs(5);

// === Building ===

impl Config {
    pub(super) fn build(self, recipients: &Recipients, check: &mut Check) -> Option<Ldap> {
        let starttls = self.starttls.as_ref().is_some_and(|s| *s.get_ref());
        let servers = self.servers(starttls, check);
        let filter = filter(self.filter.as_ref(), check);
        let step = step(self.timeout.as_ref(), check);
        let attributes = self.attributes.build(check);
        if self.base.get_ref().contains(char::is_control) {
            check.problem(self.base.span(), "`base` holds a control character");
        }
        let encrypted = servers
            .iter()
            .flatten()
            .any(|s| s.security != Security::None);
        let bind = self.bind(encrypted, check);
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) if encrypted => tls::identity(cert, key, check),
            _ => None,
        };
        let bind = match bind {
            Some(Bind::External) if identity.is_none() => Some(Bind::Unreadable(
                "its client certificate or the key can't be read here",
            )),
            bind => bind,
        };
        let tls = match encrypted {
            true => tls::client_config_as(self.ca_file.as_ref(), identity, check),
            false => Some(tls::trusting_nobody()),
        };
        let servers = servers?;
        let bind = bind?;
        let secret = match &bind {
            Bind::Password { password, .. } => Some(password.clone()),
            _ => None,
        };
        Some(Ldap {
            name: format!("ldap {}", servers.first()?.host),
            state: Mutex::new(State {
                idle: Vec::new(),
                failed: servers.iter().map(|_| None).collect(),
                pause: None,
            }),
            servers,
            base: self.base.into_inner(),
            filter: filter?,
            attributes: attributes?,
            terms: Terms {
                tls: tls?,
                bind,
                step: step?,
                redactor: Redactor::new(secret),
            },
            recipients: recipients.clone(),
            cache: Mutex::new(Cache::new(self.cache.unwrap_or(DEFAULT_CACHE).0)),
            permits: Semaphore::new(MAX_SESSIONS),
            door: AsyncMutex::new(()),
        })
    }

    fn servers(&self, starttls: bool, check: &mut Check) -> Option<Vec<Server>> {
        let whole = self.url.span();
        let urls = &self.url.get_ref().0;
        if urls.is_empty() || urls.len() > MAX_SERVERS {
            check.problem(
                whole,
                format!(
                    "`url` names one to {MAX_SERVERS} servers, such as \"ldaps://dc1.example.com\""
                ),
            );
            return None;
        }
        let servers: Vec<_> = urls
            .iter()
            .filter_map(|(span, url)| {
                let span = span.clone().unwrap_or(whole.clone());
                match server(url, starttls) {
                    Ok(server) => {
                        if server.security == Security::None && !is_loopback(&server.host) {
                            check.warning(
                                span,
                                format!("ldap:// to {} shows people and the password to everybody on the way, and lets others answer; use ldaps:// or starttls = true", server.host),
                            );
                        }
                        Some(server)
                    }
                    Err(why) => {
                        check.problem(span, why);
                        None
                    }
                }
            })
            .collect();
        (servers.len() == urls.len()).then_some(servers)
    }

    fn bind(&self, encrypted: bool, check: &mut Check) -> Option<Bind> {
        if let Some(sasl) = &self.sasl {
            let span = sasl.span();
            if self.bind_dn.is_some() || self.password.is_some() {
                check.problem(
                    span,
                    "sasl = \"external\" is in place of `bind_dn` and `password`; take one of the two out",
                );
                return None;
            }
            if self.cert.is_none() || self.key.is_none() {
                check.problem(span, "sasl = \"external\" needs `cert` and `key`, the client certificate that says who we are");
                return None;
            }
            if !encrypted {
                check.problem(
                    span,
                    "sasl = \"external\" needs TLS: use ldaps:// or starttls = true",
                );
                return None;
            }
            return Some(Bind::External);
        }
        match (&self.bind_dn, &self.password) {
            (None, None) => Some(Bind::Anonymous),
            (Some(dn), Some(password)) => {
                // A bind without a name is anonymous, whatever the password.
                if dn.get_ref().trim().is_empty() {
                    check.problem(
                        dn.span(),
                        "`bind_dn` is empty; without it and `password` the bind is anonymous",
                    );
                    return None;
                }
                let secret = check.secret(password);
                // Servers take a name without a password for anonymous, and say yes (RFC 4513, 5.1.2).
                if secret.as_ref().is_some_and(|s| s.expose().is_empty()) {
                    check.problem(
                        password.span.clone(),
                        "`password` is empty; without it and `bind_dn` the bind is anonymous",
                    );
                    return None;
                }
                Some(match secret {
                    Some(password) => Bind::Password {
                        dn: dn.get_ref().clone(),
                        password,
                    },
                    None => Bind::Unreadable("its password can't be read here"),
                })
            }
            (Some(dn), None) => {
                check.problem(dn.span(), "`bind_dn` needs a `password`");
                None
            }
            (None, Some(password)) => {
                check.problem(
                    password.span.clone(),
                    "`password` needs a `bind_dn`, whose it is",
                );
                None
            }
        }
    }
}

fn server(url: &str, starttls: bool) -> Result<Server, String> {
    let no_url = || "this is no LDAP URL; write one such as \"ldaps://dc1.example.com\"".to_owned();
    let parsed = Url::parse(url).map_err(|_| no_url())?;
    let (security, port) = match (parsed.scheme(), starttls) {
        ("ldaps", false) => (Security::Tls, 636),
        ("ldaps", true) => {
            return Err(
                "ldaps:// is TLS from the first byte; take starttls out, or write ldap://"
                    .to_owned(),
            );
        }
        ("ldap", true) => (Security::StartTls, 389),
        ("ldap", false) => (Security::None, 389),
        _ => return Err(no_url()),
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(
            "a name or password has no place in `url`; write `bind_dn` and `password`".to_owned(),
        );
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() || parsed.fragment().is_some()
    {
        return Err(
            "`url` ends after host and port; base and filter have keys of their own".to_owned(),
        );
    }
    let shown_host = parsed
        .host_str()
        .filter(|h| !h.is_empty())
        .ok_or_else(no_url)?;
    let host = shown_host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_lowercase();
    let name = ServerName::try_from(host.clone()).map_err(|_| no_url())?;
    let shown = match parsed.port() {
        Some(port) => format!("{}://{shown_host}:{port}", parsed.scheme()),
        None => format!("{}://{shown_host}", parsed.scheme()),
    };
    Ok(Server {
        shown,
        host,
        port: parsed.port().unwrap_or(port),
        name,
        security,
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn filter(text: Option<&Spanned<String>>, check: &mut Check) -> Option<Filter> {
    let parsed = Filter::parse(text.map_or(DEFAULT_FILTER, |t| t.get_ref()));
    match (parsed, text) {
        (Ok(filter), _) => Some(filter),
        (Err(wrong), text) => {
            let place = text.map(|text| {
                let span = text.span();
                // In quotes without escapes a byte of the text is a byte of the file.
                match span.len() == text.get_ref().len() + 2 {
                    true => span.start + 1 + wrong.at..span.end,
                    false => span,
                }
            });
            check.problem(place, format!("the filter {}", wrong.text));
            None
        }
    }
}

fn step(wanted: Option<&Spanned<Period>>, check: &mut Check) -> Option<Duration> {
    let Some(wanted) = wanted else {
        return Some(DEFAULT_STEP);
    };
    let step = wanted.get_ref().0;
    if step.is_zero() || step > LONGEST_STEP {
        check.problem(
            wanted.span(),
            format!("`timeout` counts for each step and is more than nothing and at most {LONGEST_STEP:?}"),
        );
        return None;
    }
    Some(step)
}

impl Attributes {
    fn build(&self, check: &mut Check) -> Option<Names> {
        let mut good = true;
        let all = [&self.email, &self.name, &self.phone, &self.language];
        for name in all {
            let valid = |c: char| c.is_ascii_alphanumeric() || "-.;_".contains(c);
            if !name.get_ref().chars().all(valid) {
                check.problem(
                    name.span(),
                    format!(
                        "\"{}\" is no name of an attribute",
                        name.get_ref().escape_debug()
                    ),
                );
                good = false;
            }
        }
        if self.email.get_ref().is_empty() {
            check.problem(
                self.email.span(),
                "without an attribute for `email` nobody has an address",
            );
            good = false;
        }
        let [email, name, phone, language] = all.map(|name| name.get_ref().clone());
        good.then_some(Names {
            email,
            name,
            phone,
            language,
        })
    }
}

// === Asking ===

/// Where an entry holds what.
struct Names {
    email: String,
    name: String,
    phone: String,
    language: String,
}

impl Names {
    fn wanted(&self) -> Vec<&str> {
        [&self.email, &self.name, &self.phone, &self.language]
            .into_iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect()
    }
}

/// Asks servers, remembers what they said.
pub(super) struct Ldap {
    name: String,
    servers: Vec<Server>,
    base: String,
    filter: Filter,
    attributes: Names,
    terms: Terms,
    recipients: Recipients,
    cache: Mutex<Cache>,
    permits: Semaphore,
    /// New connections are made one at a time: each refused bind counts towards the lock of our account.
    door: AsyncMutex<()>,
    state: Mutex<State>,
}

struct State {
    /// Connections that nobody uses now.
    idle: Vec<Session>,
    /// When and why each server failed last.
    failed: Vec<Option<(Instant, Trouble)>>,
    /// Until then nobody is asked, and why.
    pause: Option<(Instant, String)>,
}

#[async_trait]
impl Directory for Ldap {
    fn name(&self) -> &str {
        &self.name
    }

    fn asks_outside(&self) -> bool {
        true
    }

    async fn find(&self, who: &Activation) -> Result<Answer, LookupError> {
        if who.person.is_empty() || who.person.len() > MAX_USER_BYTES {
            return Ok(Answer::Unknown(
                "is not asked for an empty or endless name".to_owned(),
            ));
        }
        let key = Key::of(who);
        if let Some(said) = self.cache().fresh(&key, Instant::now()) {
            return said;
        }
        let end = Instant::now() + LOOKUP_LIMIT;
        let why = match timeout(LOOKUP_LIMIT, self.ask_in_turn(&key, &who.person, end)).await {
            Ok(Ok(said)) => return said,
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {LOOKUP_LIMIT:?}"),
        };
        match self.cache().last_good(&key, Instant::now()) {
            Some((recipient, age)) => Ok(Answer::Remembered {
                recipient,
                why: format!("its answer of {} ago, for now {why}", rough(age)),
            }),
            None => Err(LookupError::Unavailable(format!("{}: {why}", self.name))),
        }
    }

    async fn probe(&self) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            let outcome = match timeout(LOOKUP_LIMIT, self.try_server(number)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Trouble::Away(format!("no answer within {LOOKUP_LIMIT:?}"))),
            };
            let refused = matches!(outcome, Err(Trouble::Refused(_)));
            probes.push(Probe {
                what: server.shown.clone(),
                outcome: outcome.map_err(|trouble| match trouble {
                    Trouble::Away(why) | Trouble::Refused(why) => why,
                }),
            });
            // The others would count as further wrong passwords.
            if refused {
                break;
            }
        }
        probes
    }
}

impl Ldap {
    /// Waits for a connection that is free, and asks until `end`. `Err`: nobody answers, and why.
    async fn ask_in_turn(&self, key: &Key, person: &str, end: Instant) -> Result<Said, String> {
        let _permit = self.permits.acquire().await;
        // Meanwhile another look-up of the same person, or of the same silence, may have ended.
        if let Some(said) = self.cache().fresh(key, Instant::now()) {
            return Ok(said);
        }
        if let Some((until, why)) = &self.state().pause
            && Instant::now() < *until
        {
            return Err(why.clone());
        }
        if share(end, 1) < self.terms.step {
            return Err("too many look-ups wait for it".to_owned());
        }
        let wanted = self.attributes.wanted();
        let search = Search {
            base: &self.base,
            scope: Scope::Subtree,
            filter: self.filter.encode(person),
            attributes: &wanted,
        };
        let asked = self.ask(&search, end).await;
        let (pause, why) = match asked {
            Ok(found) => {
                let said = self.judge(person, &found);
                self.state().pause = None;
                self.cache().keep(key.clone(), said.clone(), Instant::now());
                return Ok(said);
            }
            Err(Trouble::Away(why)) => (AWAY_PAUSE, why),
            Err(Trouble::Refused(why)) => (
                REFUSED_PAUSE,
                format!(
                    "{why}; it is not asked again for {}, so that the account isn't locked",
                    rough(REFUSED_PAUSE)
                ),
            ),
        };
        self.state().pause = Some((Instant::now() + pause, why.clone()));
        Err(why)
    }

    /// On a connection that is open, else on a new one, with the first server that answers. Each server leaves the next ones
    /// their share of the time until `end`.
    async fn ask(&self, search: &Search<'_>, end: Instant) -> Result<Found, Trouble> {
        let open = self.take_idle();
        if let Some(mut session) = open {
            match session.search(search, &self.terms).await {
                Ok(found) => {
                    self.park(session);
                    return Ok(found);
                }
                // The others are probably broken as well. A new one tells what is really wrong.
                Err(_) => self.state().idle.clear(),
            }
        }
        let mut said = Vec::new();
        let order = self.order();
        for (n, &number) in order.iter().enumerate() {
            let shown = &self.servers[number].shown;
            let share = share(end, order.len() - n);
            let asked = timeout(share, self.ask_anew(number, search)).await;
            let asked = asked.unwrap_or_else(|_| {
                let trouble = Trouble::Away(format!("no answer within {share:.1?}"));
                // In less time even a good one may not answer.
                if share >= self.terms.step / 2 {
                    self.state().failed[number] = Some((Instant::now(), trouble.clone()));
                }
                Err(trouble)
            });
            let why = match asked {
                Ok(found) => {
                    for why in said {
                        warn!(directory = %self.name, "{why}; {shown} answers in its place");
                    }
                    return Ok(found);
                }
                Err(Trouble::Refused(why)) => {
                    return Err(Trouble::Refused(format!("{shown}: {why}")));
                }
                Err(Trouble::Away(why)) => why,
            };
            said.push(format!("{shown}: {why}"));
        }
        Err(Trouble::Away(said.join("; ")))
    }

    async fn ask_anew(&self, number: usize, search: &Search<'_>) -> Result<Found, Trouble> {
        let mut session = self.open(number).await?;
        match session.search(search, &self.terms).await {
            Ok(found) => {
                self.park(session);
                Ok(found)
            }
            Err(why) => {
                let trouble = Trouble::Away(why);
                self.state().failed[number] = Some((Instant::now(), trouble.clone()));
                Err(trouble)
            }
        }
    }

    async fn open(&self, number: usize) -> Result<Session, Trouble> {
        let begin = Instant::now();
        let _door = self.door.lock().await;
        // What somebody else learned while we waited needs no second try.
        if let Some((at, trouble)) = &self.state().failed[number]
            && *at >= begin
        {
            return Err(trouble.clone());
        }
        let opened = Session::open(&self.servers[number], &self.terms).await;
        let failed = opened.as_ref().err();
        self.state().failed[number] = failed.map(|trouble| (Instant::now(), trouble.clone()));
        opened
    }

    /// The servers as configured; those that failed a moment ago come last.
    fn order(&self) -> Vec<usize> {
        let state = self.state();
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        order.sort_by_key(|n| {
            let failed = state.failed[*n].as_ref();
            failed.is_some_and(|(at, _)| at.elapsed() < SERVER_PAUSE)
        });
        order
    }

    fn take_idle(&self) -> Option<Session> {
        let mut state = self.state();
        state.idle.retain(|session| {
            session.used.elapsed() < IDLE && session.opened.elapsed() < LONGEST_SESSION
        });
        state.idle.pop()
    }

    fn park(&self, session: Session) {
        self.state().idle.push(session);
    }

    /// Who it is, if the entries say it beyond doubt.
    fn judge(&self, person: &str, found: &Found) -> Said {
        let entry = match found.entries.as_slice() {
            [] if !found.more => {
                return Ok(Answer::Unknown(format!(
                    "has no entry for {} below {}",
                    shown(person),
                    self.base
                )));
            }
            [entry] if !found.more => entry,
            _ => {
                return Err(LookupError::Ambiguous(format!(
                    "{}: more than one entry below {} matches {}; narrow `filter` or `base`",
                    self.name,
                    self.base,
                    shown(person)
                )));
            }
        };
        let email = match self.email(entry) {
            Ok(email) => email,
            Err(Doubt::None(why)) => return Ok(Answer::Unknown(why)),
            Err(Doubt::Several(why)) => {
                return Err(LookupError::Ambiguous(format!(
                    "{}: the entry of {} holds {why}",
                    self.name,
                    shown(person)
                )));
            }
        };
        let first = |attribute: &str| entry.texts(attribute).next().map(field);
        Ok(Answer::Person(Recipient {
            email,
            name: first(&self.attributes.name),
            phone: first(&self.attributes.phone).and_then(|phone| international(&phone)),
            language: first(&self.attributes.language),
            source: "ldap".to_owned(),
        }))
    }

    /// The one address of an entry. Of several, those outside `recipients.domains` don't count; two inside are a doubt.
    fn email(&self, entry: &Entry) -> Result<String, Doubt> {
        let attribute = &self.attributes.email;
        let mut all = entry.texts(attribute).peekable();
        if all.peek().is_none() {
            return Err(Doubt::None(format!(
                "has an entry for this user, but without `{attribute}` (or our account may not read it)"
            )));
        }
        let mut good = all.filter(|text| address(text).is_ok()).peekable();
        let Some(first) = good.peek().copied() else {
            return Err(Doubt::None(format!(
                "has an entry for this user, but its `{attribute}` is no address that a mail relay takes as it stands"
            )));
        };
        let mut inside = good.filter(|text| self.recipients.allows(text));
        // An address outside is not hidden: whoever judges it says why no code goes there.
        let Some(email) = inside.next() else {
            return Ok(first.to_owned());
        };
        match inside.find(|other| !other.eq_ignore_ascii_case(email)) {
            Some(other) => Err(Doubt::Several(format!(
                "two addresses in `{attribute}`, {} and {}",
                mask_address(email),
                mask_address(other)
            ))),
            None => Ok(email.to_owned()),
        }
    }

    /// Connects, binds, and reads the base.
    async fn try_server(&self, number: usize) -> Result<String, Trouble> {
        let mut session = Session::open(&self.servers[number], &self.terms).await?;
        let search = Search {
            base: &self.base,
            scope: Scope::Base,
            filter: Filter::anything(),
            attributes: &[NO_ATTRIBUTES],
        };
        let found = session
            .search(&search, &self.terms)
            .await
            .map_err(Trouble::Away)?;
        session.close(self.terms.step).await;
        let as_whom = match &self.terms.bind {
            Bind::Password { dn, .. } => format!("bound as {dn}"),
            Bind::External => "bound by client certificate".to_owned(),
            Bind::Anonymous | Bind::Unreadable(_) => "not bound (anonymous)".to_owned(),
        };
        if found.entries.is_empty() {
            return Err(Trouble::Away(format!(
                "{as_whom}, but {} can't be read; give the account the right to read below it",
                self.base
            )));
        }
        Ok(format!("{as_whom}; {} can be read", self.base))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an entry gives no address.
enum Doubt {
    None(String),
    Several(String),
}

/// A value on one line, and not without end.
fn field(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_FIELD_CHARS)
        .collect()
}

/// A time in the largest unit that fits.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}
