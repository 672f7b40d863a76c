//! Finding the person: directories are asked in order, the first that knows the user answers, two answers within one are an error.
//!
//! This is the only place where a [`Recipient`] is made. What a log says about addresses counts in `log` alone, and
//! there too only within `recipients.domains`.

mod fortigate;
mod ldap;
mod log;
mod pattern;
mod table;

use std::sync::Arc;

use async_trait::async_trait;
use lettre::Address;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use toml::Spanned;
use tracing::warn;

use crate::activation::Activation;
use crate::fortios::Fleet;
use crate::glob::Glob;
use crate::message::Recipient;
use crate::recipients::Recipients;
use crate::recipients::same_address;
use crate::recipients::within;
use crate::secret::mask_address;
use crate::settings::Check;
use crate::settings::Span;

/// A source that knows people.
#[async_trait]
pub trait Directory: Send + Sync {
    /// How a trace calls it, such as `table people.csv`.
    fn name(&self) -> &str;

    /// Bounded in time by the implementation.
    async fn find(&self, who: &Activation) -> Result<Answer, LookupError>;

    /// Tries whether it can be asked, server by server. Bounded in time as well; without servers there is nothing to try.
    async fn probe(&self) -> Vec<Probe> {
        Vec::new()
    }

    /// Whether it asks somebody else, so that it can't be asked offline.
    fn asks_outside(&self) -> bool {
        false
    }
}

/// Stands in for a directory that isn't to be asked.
struct NotAsked(String);

#[async_trait]
impl Directory for NotAsked {
    fn name(&self) -> &str {
        &self.0
    }

    async fn find(&self, _: &Activation) -> Result<Answer, LookupError> {
        Err(LookupError::Unavailable(format!(
            "{} is not asked offline",
            self.0
        )))
    }
}

/// What became of trying one server of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The server.
    pub what: String,
    /// What works, or what doesn't and what to do, as the rest of a sentence.
    pub outcome: Result<String, String>,
}

/// What a directory says about somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It knows the person.
    Person(Recipient),
    /// It can't be asked now, and knew the person when it was asked last.
    Remembered {
        /// The person.
        recipient: Recipient,
        /// How old that is and why it must do, as a part of a sentence.
        why: String,
    },
    /// It does not, and why, as the rest of a sentence.
    Unknown(String),
}

/// Why a directory gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Two answers; an operator must act. Never a choice.
    #[error("{0}")]
    Ambiguous(String),
    /// It may answer later.
    #[error("{0}")]
    Unavailable(String),
}

/// What the directories together say, with one masked sentence for each that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A code may go to this person.
    Found {
        /// The person.
        recipient: Recipient,
        /// What each directory said.
        trace: Vec<String>,
        /// Another in-domain address stands in the message than the one found; a masked sentence.
        mismatch: Option<String>,
    },
    /// No directory knows the person.
    Unknown {
        /// One sentence.
        reason: String,
        /// What each directory said.
        trace: Vec<String>,
    },
    /// The person is known, but no code may go to that address.
    Outside {
        /// One sentence.
        reason: String,
        /// What each directory said.
        trace: Vec<String>,
    },
}

impl Lookup {
    /// What each directory said.
    pub fn trace(&self) -> &[String] {
        match self {
            Self::Found { trace, .. }
            | Self::Unknown { trace, .. }
            | Self::Outside { trace, .. } => trace,
        }
    }
}

/// `match`: whose events a directory answers for, so that one customer's jsmith is never another's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// A glob on the device's id or name.
    pub device: Option<Glob>,
    /// A glob on the VDOM.
    pub vdom: Option<Glob>,
}

impl Match {
    /// Why an event is not this directory's; `None`: it is.
    fn excludes(&self, who: &Activation) -> Option<String> {
        if let Some(device) = &self.device
            && !device.matches(&who.device.id)
            && !device.matches(&who.device.name)
        {
            return Some(format!("skipped, is for device {device}"));
        }
        match &self.vdom {
            Some(vdom) if !vdom.matches(&who.device.vdom) => {
                Some(format!("skipped, is for VDOM {vdom}"))
            }
            _ => None,
        }
    }
}

/// The kinds of directory, as `type` names them.
pub const KINDS: &[&str] = &["table", "ldap", "fortigate", "pattern", "log"];

/// One `[[directory]]`.
#[derive(Clone, Debug)]
pub enum Config {
    /// `type = "table"`
    Table(table::Config),
    /// `type = "ldap"`
    Ldap(Box<ldap::Config>),
    /// `type = "fortigate"`
    Fortigate(fortigate::Config),
    /// `type = "pattern"`
    Pattern(pattern::Config),
    /// `type = "log"`
    Log(log::Config),
}

impl Config {
    /// Reads the table of a `[[directory]]` of this kind; its key `type` has been taken out.
    pub fn deserialize<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error> {
        match kind {
            "table" => table::Config::deserialize(from).map(Self::Table),
            "ldap" => ldap::Config::deserialize(from).map(|c| Self::Ldap(Box::new(c))),
            "fortigate" => fortigate::Config::deserialize(from).map(Self::Fortigate),
            "pattern" => pattern::Config::deserialize(from).map(Self::Pattern),
            "log" => log::Config::deserialize(from).map(Self::Log),
            other => Err(de::Error::unknown_variant(other, KINDS)),
        }
    }

    fn build(
        self,
        span: Span,
        recipients: &Recipients,
        fleet: Option<&Arc<Fleet>>,
        check: &mut Check,
    ) -> Option<Entry> {
        let (matches, directory): (Match, Box<dyn Directory>) = match self {
            Self::Table(c) => (
                c.matches.clone(),
                Box::new(c.build(span, recipients, check)?),
            ),
            Self::Ldap(c) => (c.matches.clone(), Box::new(c.build(recipients, check)?)),
            Self::Fortigate(c) => (c.matches.clone(), Box::new(c.build(span, fleet, check)?)),
            Self::Pattern(c) => (c.matches.clone(), Box::new(c.build(recipients, check)?)),
            Self::Log(c) => (c.matches.clone(), Box::new(c.build(recipients))),
        };
        Some(Entry { matches, directory })
    }
}

struct Entry {
    matches: Match,
    directory: Box<dyn Directory>,
}

/// All `[[directory]]`, in their order.
pub struct Directories {
    entries: Vec<Entry>,
    recipients: Recipients,
}

impl Directories {
    /// Reads tables and checks addresses; `fleet` holds the devices that may be asked. `None`: one of them can't be used, and `check` knows why.
    pub fn build(
        configs: Vec<Spanned<Config>>,
        recipients: Recipients,
        fleet: Option<&Arc<Fleet>>,
        check: &mut Check,
    ) -> Option<Self> {
        if configs.is_empty() {
            check.warning(
                None,
                "no [[directory]] says who a user is, so only webhooks and shared places get anything; add one, such as type = \"table\"",
            );
        }
        let wanted = configs.len();
        let entries: Vec<Entry> = configs
            .into_iter()
            .filter_map(|config| {
                let span = config.span();
                config.into_inner().build(span, &recipients, fleet, check)
            })
            .collect();
        (entries.len() == wanted).then_some(Self {
            entries,
            recipients,
        })
    }

    /// Tries every server of every directory.
    pub async fn probe(&self) -> Vec<Probe> {
        let mut probes = Vec::new();
        for entry in &self.entries {
            probes.extend(entry.directory.probe().await);
        }
        probes
    }

    /// From now on nobody else is asked: a look-up that would need to is [`LookupError::Unavailable`].
    pub fn go_offline(&mut self) {
        for entry in &mut self.entries {
            if entry.directory.asks_outside() {
                entry.directory = Box::new(NotAsked(entry.directory.name().to_owned()));
            }
        }
    }

    /// The name of a user as look-ups, identity and limits know it.
    pub fn person(&self, user: &str) -> String {
        // As the pipeline does: some FortiOS versions double backslashes.
        self.recipients.normalise(&user.replace("\\\\", "\\"))
    }

    /// Asks the directories in order. The first that knows the person answers; if no code may go to that address, no
    /// other one is asked. `route_domains` narrow `recipients.domains`.
    pub async fn find(
        &self,
        who: &Activation,
        route_domains: Option<&[String]>,
    ) -> Result<Lookup, LookupError> {
        let mut trace = Vec::new();
        for Entry { matches, directory } in &self.entries {
            let name = directory.name();
            if let Some(why) = matches.excludes(who) {
                trace.push(format!("{name}: {why}"));
                continue;
            }
            match directory.find(who).await? {
                Answer::Unknown(why) => trace.push(format!("{name}: {why}")),
                Answer::Person(recipient) => {
                    trace.push(format!(
                        "{name}: {} is {}",
                        shown(&who.person),
                        mask_address(&recipient.email)
                    ));
                    return Ok(self.judge(who, recipient, route_domains, trace));
                }
                Answer::Remembered { recipient, why } => {
                    warn!(directory = %name, "{name} can't be asked about {}: {why}", shown(&who.person));
                    trace.push(format!(
                        "{name}: {} is {} ({why})",
                        shown(&who.person),
                        mask_address(&recipient.email)
                    ));
                    return Ok(self.judge(who, recipient, route_domains, trace));
                }
            }
        }
        Ok(Lookup::Unknown {
            reason: format!("no directory knows {}", shown(&who.person)),
            trace,
        })
    }

    fn judge(
        &self,
        who: &Activation,
        recipient: Recipient,
        route_domains: Option<&[String]>,
        trace: Vec<String>,
    ) -> Lookup {
        let narrowing = if !self.recipients.allows(&recipient.email) {
            Some("`recipients.domains`")
        } else if route_domains.is_some_and(|domains| !within(&recipient.email, domains)) {
            Some("the `domains` of its route")
        } else {
            None
        };
        if let Some(domains) = narrowing {
            let address = mask_address(&recipient.email);
            return Lookup::Outside {
                reason: format!(
                    "the address of {}, {address}, is outside {domains}",
                    shown(&who.person)
                ),
                trace,
            };
        }
        let mismatch = who
            .addresses
            .iter()
            .find(|a| self.recipients.allows(a) && !same_address(a, &recipient.email))
            .map(|other| {
                format!(
                    "the message names {}, the directory {}",
                    mask_address(other),
                    mask_address(&recipient.email)
                )
            });
        Lookup::Found {
            recipient,
            trace,
            mismatch,
        }
    }
}

/// The most of a user name that a sentence shows.
const MAX_SHOWN_CHARS: usize = 64;

/// A user name as a sentence shows it. It comes from a log, so it may be anything, also an address.
fn shown(user: &str) -> String {
    if user.is_empty() {
        return "a nameless user".to_owned();
    }
    let user: String = user
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_SHOWN_CHARS)
        .collect();
    match user.contains('@') {
        true => mask_address(&user),
        false => user,
    }
}

/// An address that a mail relay takes as it stands, or the end of the sentence that says why it is none.
fn address(text: &str) -> Result<Address, &'static str> {
    let address: Address = text.parse().map_err(|_| "is no mail address")?;
    // Relays rewrite user%elsewhere@here and elsewhere!user@here to another domain (Postfix does by default), and
    // take / and | for files and commands; an address in an allowed domain would then leave it.
    if address
        .user()
        .contains(['%', '!', '/', '|', '"', '@', '\\'])
    {
        return Err("holds a character with which a mail relay could send it elsewhere");
    }
    Ok(address)
}

/// E.164 without the usual separators; `None`: it is no international number.
fn international(phone: &str) -> Option<String> {
    let number: String = phone
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '-' | '.' | '/' | '(' | ')'))
        .collect();
    let good = number.is_empty()
        || number.strip_prefix('+').is_some_and(|digits| {
            (7..=15).contains(&digits.len())
                && !digits.starts_with('0')
                && digits.bytes().all(|b| b.is_ascii_digit())
        });
    good.then_some(number)
}
