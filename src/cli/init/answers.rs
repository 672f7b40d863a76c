//! What `init` must know, and how each answer is read, from a flag or from a terminal.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use lettre::Address;
use lettre::message::Mailbox;

use crate::cli::fortigate_cli::Version;
use crate::ingest::Network;

/// Everything.
pub struct Answers {
    pub fortios: Version,
    pub allow: Vec<Network>,
    pub to: Way,
    pub mail: MailRelay,
    pub from: Mailbox,
    pub people: People,
    pub escalate: Address,
    pub domains: Vec<String>,
    pub state_dir: PathBuf,
}

/// Something that can be answered in a line.
pub trait Answer: Sized {
    /// The answer, or what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
}

macro_rules! answer_by_parsing {
    ($($type:ty: $wrong:literal;)+) => {$(
        impl Answer for $type {
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("\"{text}\" is {}", $wrong))
            }
        }
    )+};
}

answer_by_parsing! {
    Address: "no mail address";
    Mailbox: "no sender; write servicedesk@example.com or IT Service Desk <servicedesk@example.com>";
    Network: "no address and no network; write 10.20.0.1 or 10.20.0.0/16";
}

impl Answer for Way {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Answer for MailRelay {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Answer for People {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Answer for Version {
    fn read(text: &str) -> Result<Self, String> {
        Self::from_str(text, true).map_err(|_| format!("\"{text}\" is no version that is known"))
    }
}

/// Several, with commas or blanks between them; at least one.
pub struct List<T>(pub Vec<T>);

impl<T: Answer> Answer for List<T> {
    fn read(text: &str) -> Result<Self, String> {
        let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
        let list: Vec<T> = parts.map(T::read).collect::<Result<_, _>>()?;
        match list.is_empty() {
            true => Err("there must be at least one".to_owned()),
            false => Ok(Self(list)),
        }
    }
}

/// `udp://10.20.0.5:514`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub transport: &'static str,
    pub host: String,
    pub port: u16,
}

impl Way {
    /// The address to listen on: every one of the machine, unless it is to be reached from itself alone.
    pub fn address(&self) -> String {
        let any = match self.host.parse() {
            Ok(IpAddr::V4(ip)) if ip.is_loopback() => ip.to_string(),
            Ok(IpAddr::V6(ip)) if ip.is_loopback() => format!("[{ip}]"),
            Ok(IpAddr::V6(_)) => "[::]".to_owned(),
            Ok(IpAddr::V4(_)) | Err(_) => "0.0.0.0".to_owned(),
        };
        format!("{any}:{}", self.port)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is none of udp://ADDRESS, tcp://ADDRESS, tls://ADDRESS");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (transport, port) = match scheme {
            "udp" => ("udp", 514),
            "tcp" => ("tcp", 514),
            "tls" => ("tls", 6514),
            _ => return Err(wrong()),
        };
        let (host, given) = host_and_port(rest).ok_or_else(wrong)?;
        Ok(Self {
            transport,
            host,
            port: given.unwrap_or(port),
        })
    }
}

/// `ftm-relay@relay.example.com:587`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailRelay {
    pub user: Option<String>,
    pub host: String,
    pub port: u16,
    pub tls: &'static str,
}

impl FromStr for MailRelay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is none of HOST, HOST:PORT, USER@HOST:PORT");
        // A user is often an address.
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) if !user.is_empty() => (Some(user.to_owned()), rest),
            Some(_) => return Err(wrong()),
            None => (None, text),
        };
        let (host, port) = host_and_port(rest).ok_or_else(wrong)?;
        let port = port.unwrap_or(if user.is_some() { 587 } else { 25 });
        let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let tls = match port {
            465 => "implicit",
            // Nobody listens in between, and its certificate is seldom one that can be believed.
            _ if is_here => "none",
            _ => "starttls",
        };
        Ok(Self {
            user,
            host,
            port,
            tls,
        })
    }
}

/// How the person behind a user name is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum People {
    Pattern(String),
    Table(PathBuf),
    Ldap {
        url: String,
        host: String,
        base: String,
        bind_dn: Option<String>,
    },
}

impl People {
    /// The domain of the addresses that it makes.
    pub fn domain(&self) -> Option<&str> {
        match self {
            Self::Pattern(pattern) => pattern.rsplit_once('@').map(|(_, domain)| domain),
            Self::Table(_) | Self::Ldap { .. } => None,
        }
    }
}

impl FromStr for People {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("{user}") && text.contains('@') {
            return Ok(Self::Pattern(text.to_owned()));
        }
        if text.starts_with("ldaps://") || text.starts_with("ldap://") {
            let wrong = || {
                format!(
                    "\"{text}\" is no directory; write ldaps://dc1.example.com/dc=example,dc=com as cn=ftm-relay,dc=example,dc=com"
                )
            };
            let (server, bind_dn) = match text.split_once(" as ") {
                Some((server, dn)) => (server, Some(dn.trim().to_owned())),
                None => (text, None),
            };
            let (scheme, rest) = server.split_once("://").ok_or_else(wrong)?;
            let (host, base) = rest.split_once('/').ok_or_else(wrong)?;
            if host.is_empty() || base.trim().is_empty() {
                return Err(wrong());
            }
            return Ok(Self::Ldap {
                url: format!("{scheme}://{host}"),
                host: host.to_owned(),
                base: base.trim().to_owned(),
                bind_dn,
            });
        }
        match text.ends_with(".csv") {
            true => Ok(Self::Table(text.into())),
            false => Err(format!(
                "\"{text}\" is none of {{user}}@DOMAIN, FILE.csv, ldaps://HOST/BASE as BIND_DN"
            )),
        }
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                },
            )
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let good =
        !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/\"\\@".contains(c));
    let port = port.map(|port| port.parse().ok().filter(|p| *p != 0));
    match port {
        Some(None) => None,
        _ if !good => None,
        port => Some((host.to_owned(), port.flatten())),
    }
}
