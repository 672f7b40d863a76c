//! One LDAP connection (RFC 4511): dialled, encrypted, bound, searched. Every step ends in time and memory.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::secret::Redactor;
use crate::secret::Secret;
use crate::tls::certificate_error;

use super::ber;
use super::ber::BOOLEAN;
use super::ber::ENUMERATED;
use super::ber::INTEGER;
use super::ber::OCTETS;
use super::ber::Reader;
use super::ber::SEQUENCE;
use super::ber::SET;
use super::ber::Size;

/// The longest message of a server. Only the wanted attributes are asked for, so an entry is far smaller.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// So many messages answer one search: two entries, the references of a forest, the result.
const MAX_MESSAGES: usize = 64;
/// So many addresses of one name are tried: a domain's name stands for all of its controllers.
const MAX_ADDRESSES: usize = 4;
/// Two entries are one too many, and tell as much as a thousand.
const SIZE_LIMIT: u32 = 2;

/// Where a server is.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// As sentences show it: `ldaps://dc1.example.com`.
    pub(super) shown: String,
    /// The name or address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// What its certificate must be made out to.
    pub(super) name: ServerName<'static>,
    pub(super) security: Security,
}

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// TLS from the first byte.
    Tls,
    /// TLS after the server agreed, or nothing is said.
    StartTls,
    /// In the clear.
    None,
}

/// Who we are to the server.
pub(super) enum Bind {
    Anonymous,
    Password {
        dn: String,
        password: Secret,
    },
    /// As whom our client certificate says (SASL EXTERNAL).
    External,
    /// The secret can't be read here, as the sentence says.
    Unreadable(&'static str),
}

/// What every session of a directory has in common.
pub(super) struct Terms {
    pub(super) tls: Arc<ClientConfig>,
    pub(super) bind: Bind,
    /// For each step.
    pub(super) step: Duration,
    /// Cleans what the server says.
    pub(super) redactor: Redactor,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Not from this server now.
    Away(String),
    /// It refused who we are. Asking it, or another one, again and again could lock our account.
    Refused(String),
}

/// A search under a base.
pub(super) struct Search<'s> {
    pub(super) base: &'s str,
    pub(super) scope: Scope,
    /// Encoded.
    pub(super) filter: Vec<u8>,
    pub(super) attributes: &'s [&'s str],
}

/// How far below the base it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Base = 0,
    Subtree = 2,
}

/// What a search found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// At most two.
    pub(super) entries: Vec<Entry>,
    /// There are more than were asked for.
    pub(super) more: bool,
}

/// The wanted attributes of one entry; values are bytes, as objectGUID and photographs are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(Vec<(String, Vec<Vec<u8>>)>);

impl Entry {
    /// The values of an attribute that are text.
    pub(super) fn texts(&self, attribute: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(attribute))
            .flat_map(|(_, values)| values)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .map(str::trim)
            .filter(|text| !text.is_empty())
    }
}

/// A connection that may be asked.
pub(super) struct Session {
    stream: Box<dyn Stream>,
    /// What came of the next message.
    buffer: Vec<u8>,
    last_id: u32,
    pub(super) opened: Instant,
    /// When it was last of use.
    pub(super) used: Instant,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// A message of the server: what it is, and its content.
struct Message {
    operation: u8,
    content: Vec<u8>,
}

/// How an operation ended.
struct Outcome {
    code: u32,
    text: String,
}

const BIND_REQUEST: u8 = 0x60;
const BIND_RESPONSE: u8 = 0x61;
const UNBIND_REQUEST: u8 = 0x42;
const SEARCH_REQUEST: u8 = 0x63;
const SEARCH_ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const SEARCH_REFERENCE: u8 = 0x73;
const EXTENDED_REQUEST: u8 = 0x77;
const EXTENDED_RESPONSE: u8 = 0x78;
const INTERMEDIATE: u8 = 0x79;
/// Context tag 0: the name of an extended request, and the password of a bind.
const CONTEXT_0: u8 = 0x80;
/// Context tag 3, with elements inside: the credentials of SASL.
const CONTEXT_3: u8 = 0xa3;
const START_TLS: &str = "1.3.6.1.4.1.1466.20037";

const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
const INVALID_CREDENTIALS: u32 = 49;
const NEVER_DEREFERENCE: u32 = 0;

impl Session {
    /// A session with this server, ready for searches.
    pub(super) async fn open(server: &Server, terms: &Terms) -> Result<Self, Trouble> {
        if let Bind::Unreadable(why) = terms.bind {
            return Err(Trouble::Away(why.to_owned()));
        }
        let stream = connect(server, terms.step).await.map_err(Trouble::Away)?;
        let mut session = Self {
            stream: Box::new(stream),
            buffer: Vec::new(),
            last_id: 0,
            opened: Instant::now(),
            used: Instant::now(),
        };
        if server.security == Security::StartTls {
            session.start_tls(terms).await.map_err(Trouble::Away)?;
        }
        if server.security != Security::None {
            session.stream = encrypt(session.stream, server, terms)
                .await
                .map_err(Trouble::Away)?;
        }
        session.bind(terms).await?;
        Ok(session)
    }

    async fn start_tls(&mut self, terms: &Terms) -> Result<(), String> {
        let name = ber::element(CONTEXT_0, START_TLS.as_bytes());
        self.send(&ber::element(EXTENDED_REQUEST, &name), terms.step)
            .await?;
        let outcome = self.outcome(EXTENDED_RESPONSE, terms).await?;
        if outcome.code != SUCCESS {
            return Err(format!(
                "it refuses StartTLS ({}); use ldaps:// or give the server a certificate",
                outcome.said()
            ));
        }
        // What came along in the clear must not count as said under TLS.
        if !self.buffer.is_empty() {
            return Err("it says something between StartTLS and TLS".to_owned());
        }
        Ok(())
    }

    async fn bind(&mut self, terms: &Terms) -> Result<(), Trouble> {
        let (dn, credentials) = match &terms.bind {
            Bind::Anonymous | Bind::Unreadable(_) => return Ok(()),
            Bind::Password { dn, password } => (
                dn.as_str(),
                ber::element(CONTEXT_0, password.expose().as_bytes()),
            ),
            Bind::External => (
                "",
                ber::nest(
                    CONTEXT_3,
                    &[ber::element(OCTETS, b"EXTERNAL"), ber::element(OCTETS, b"")],
                ),
            ),
        };
        let request = ber::nest(
            BIND_REQUEST,
            &[
                ber::number(INTEGER, 3),
                ber::element(OCTETS, dn.as_bytes()),
                credentials,
            ],
        );
        self.send(&zeroize::Zeroizing::new(request), terms.step)
            .await
            .map_err(Trouble::Away)?;
        let outcome = self
            .outcome(BIND_RESPONSE, terms)
            .await
            .map_err(Trouble::Away)?;
        match outcome.code {
            SUCCESS => Ok(()),
            INVALID_CREDENTIALS => Err(Trouble::Refused(match terms.bind {
                Bind::External => format!(
                    "it knows nobody by our client certificate ({}); check `cert` and the server's mapping of certificates",
                    outcome.said()
                ),
                _ => format!(
                    "it refuses `bind_dn` or `password`: {} ({})",
                    why_refused(&outcome.text),
                    outcome.said()
                ),
            })),
            _ => Err(Trouble::Away(format!(
                "the bind failed: {}",
                outcome.meaning()
            ))),
        }
    }

    /// Asks for at most two entries. References to other servers are not followed.
    pub(super) async fn search(
        &mut self,
        search: &Search<'_>,
        terms: &Terms,
    ) -> Result<Found, String> {
        let attributes: Vec<_> = search
            .attributes
            .iter()
            .map(|name| ber::element(OCTETS, name.as_bytes()))
            .collect();
        let seconds = u32::try_from(terms.step.as_secs()).unwrap_or(u32::MAX);
        let request = ber::nest(
            SEARCH_REQUEST,
            &[
                ber::element(OCTETS, search.base.as_bytes()),
                ber::number(ENUMERATED, search.scope as u32),
                ber::number(ENUMERATED, NEVER_DEREFERENCE),
                ber::number(INTEGER, SIZE_LIMIT),
                ber::number(INTEGER, seconds.max(1)),
                ber::element(BOOLEAN, &[0]),
                search.filter.clone(),
                ber::nest(SEQUENCE, &attributes),
            ],
        );
        self.send(&request, terms.step).await?;
        match timeout(terms.step, self.found(terms)).await {
            Ok(found) => found,
            Err(_) => Err(slow("the search", terms.step)),
        }
    }

    async fn found(&mut self, terms: &Terms) -> Result<Found, String> {
        let mut found = Found {
            entries: Vec::new(),
            more: false,
        };
        for _ in 0..MAX_MESSAGES {
            let message = self.message().await?;
            match message.operation {
                SEARCH_ENTRY if found.entries.len() >= SIZE_LIMIT as usize => found.more = true,
                SEARCH_ENTRY => found
                    .entries
                    .push(entry(&message.content).ok_or_else(nonsense)?),
                SEARCH_REFERENCE | INTERMEDIATE => {}
                SEARCH_DONE => {
                    let outcome = outcome(&message.content, terms).ok_or_else(nonsense)?;
                    found.more |= outcome.code == SIZE_LIMIT_EXCEEDED;
                    return match outcome.code {
                        SUCCESS | SIZE_LIMIT_EXCEEDED => {
                            self.used = Instant::now();
                            Ok(found)
                        }
                        _ => Err(format!("the search failed: {}", outcome.meaning())),
                    };
                }
                _ => return Err(nonsense()),
            }
        }
        Err(format!(
            "it answers one search with more than {MAX_MESSAGES} messages"
        ))
    }

    /// Says good-bye, as servers like it.
    pub(super) async fn close(mut self, step: Duration) {
        // The connection ends either way.
        if self.send(&[UNBIND_REQUEST, 0], step).await.is_ok() {
            timeout(step, self.stream.shutdown()).await.ok();
        }
    }

    async fn send(&mut self, operation: &[u8], step: Duration) -> Result<(), String> {
        self.last_id += 1;
        let content =
            zeroize::Zeroizing::new([&ber::number(INTEGER, self.last_id), operation].concat());
        let bytes = zeroize::Zeroizing::new(ber::element(SEQUENCE, &content));
        let written = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(step, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(lost(&e)),
            Err(_) => Err(slow("a request", step)),
        }
    }

    async fn outcome(&mut self, operation: u8, terms: &Terms) -> Result<Outcome, String> {
        let message = match timeout(terms.step, self.message()).await {
            Ok(message) => message?,
            Err(_) => return Err(slow("an answer", terms.step)),
        };
        if message.operation != operation {
            return Err(nonsense());
        }
        outcome(&message.content, terms).ok_or_else(nonsense)
    }

    /// The next message that answers the last request.
    async fn message(&mut self) -> Result<Message, String> {
        loop {
            let (head, length) = match ber::size(&self.buffer) {
                Size::Known(head, length) => (head, length),
                Size::Open => {
                    self.fill().await?;
                    continue;
                }
                Size::Wrong => return Err(nonsense()),
            };
            if self.buffer[0] != SEQUENCE {
                return Err(nonsense());
            }
            if length > MAX_MESSAGE_BYTES {
                return Err(format!(
                    "it sends a message of more than {} KiB",
                    MAX_MESSAGE_BYTES / 1024
                ));
            }
            if self.buffer.len() < head + length {
                self.fill().await?;
                continue;
            }
            let rest = self.buffer.split_off(head + length);
            let message = std::mem::replace(&mut self.buffer, rest);
            let mut reader = Reader(&message[head..]);
            let id = reader.number(INTEGER).ok_or_else(nonsense)?;
            let (operation, content) = reader.next().ok_or_else(nonsense)?;
            if id == 0 {
                return Err("it ends the connection".to_owned()); // a notice of disconnection
            }
            if id == self.last_id {
                return Ok(Message {
                    operation,
                    content: content.to_vec(),
                });
            }
            return Err(nonsense());
        }
    }

    async fn fill(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(e) => Err(lost(&e)),
        }
    }
}

/// How many people a search finds in these answers, which come in pieces of `piece` bytes in place of a server's; or why it
/// fails. For those who try it with anything a server could say.
pub async fn search_in(answers: &[u8], piece: usize) -> Result<usize, String> {
    let terms = Terms {
        tls: crate::tls::trusting_nobody(),
        bind: Bind::Anonymous,
        step: Duration::from_secs(5),
        redactor: Redactor::default(),
    };
    let (mut server, ours) = tokio::io::duplex(piece);
    let mut session = Session {
        stream: Box::new(tokio::io::join(ours, tokio::io::sink())),
        buffer: Vec::new(),
        last_id: 0,
        opened: Instant::now(),
        used: Instant::now(),
    };
    let search = Search {
        base: "",
        scope: Scope::Subtree,
        filter: super::Filter::anything(),
        attributes: &["mail"],
    };
    let says = async move {
        // A client that has heard enough goes away.
        server.write_all(answers).await.ok();
    };
    let asks = async move { session.search(&search, &terms).await };
    let ((), found) = tokio::join!(says, asks);
    let people = |entry: &Entry| entry.texts("mail").next().is_some();
    found.map(|found| found.entries.iter().filter(|entry| people(entry)).count())
}

async fn connect(server: &Server, step: Duration) -> Result<TcpStream, String> {
    let found = match timeout(step, lookup_host((server.host.as_str(), server.port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => return Err(format!("its name can't be resolved: {e}")),
        Err(_) => return Err(slow("the name server", step)),
    };
    connect_to_any(found.take(MAX_ADDRESSES).collect(), step).await
}

/// All the addresses of a name together have one step's time, and each leaves the next ones their share of it.
async fn connect_to_any(addresses: Vec<SocketAddr>, step: Duration) -> Result<TcpStream, String> {
    let end = Instant::now() + step;
    let mut last = "its name has no address".to_owned();
    for (n, address) in addresses.iter().enumerate() {
        let share = share(end, addresses.len() - n);
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Each request is one packet that waits for its answer.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Ok(Err(e)) => last = format!("{address} can't be reached: {e}"),
            Err(_) => last = format!("{address} doesn't answer within {share:.1?}"),
        }
    }
    Err(last)
}

/// The time that one of `left` has until `end`, so that each of the others has as much.
pub(super) fn share(end: Instant, left: usize) -> Duration {
    let left = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
    end.saturating_duration_since(Instant::now()) / left
}

async fn encrypt(
    stream: Box<dyn Stream>,
    server: &Server,
    terms: &Terms,
) -> Result<Box<dyn Stream>, String> {
    let connector = TlsConnector::from(Arc::clone(&terms.tls));
    match timeout(terms.step, connector.connect(server.name.clone(), stream)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(e)) => Err(certificate_error(&e, &server.host)
            .unwrap_or_else(|| format!("TLS failed: {}", terms.redactor.clean(&e.to_string())))),
        Err(_) => Err(slow("TLS", terms.step)),
    }
}

fn entry(content: &[u8]) -> Option<Entry> {
    let mut reader = Reader(content);
    reader.take(OCTETS)?; // its name, which nobody needs
    let mut attributes = Reader(reader.take(SEQUENCE)?);
    let mut entry = Entry::default();
    while !attributes.0.is_empty() {
        let mut attribute = Reader(attributes.take(SEQUENCE)?);
        let name = String::from_utf8_lossy(attribute.take(OCTETS)?).into_owned();
        let mut set = Reader(attribute.take(SET)?);
        let mut values = Vec::new();
        while !set.0.is_empty() {
            values.push(set.take(OCTETS)?.to_vec());
        }
        entry.0.push((name, values));
    }
    Some(entry)
}

fn outcome(content: &[u8], terms: &Terms) -> Option<Outcome> {
    let mut reader = Reader(content);
    let code = reader.number(ENUMERATED)?;
    reader.take(OCTETS)?;
    let text = String::from_utf8_lossy(reader.take(OCTETS)?).into_owned();
    Some(Outcome {
        code,
        text: terms.redactor.clean(text.trim_end_matches('\0')),
    })
}

impl Outcome {
    /// As the server said it.
    fn said(&self) -> String {
        match self.text.as_str() {
            "" => format!("LDAP result {}", self.code),
            text => format!("LDAP result {}, \"{text}\"", self.code),
        }
    }

    /// In an administrator's words.
    fn meaning(&self) -> String {
        let meaning = match self.code {
            1 => "it can't do this, or wants a bind first: set `bind_dn` and `password`",
            3 | 11 => {
                "it took longer, or would have to look through more, than it allows; is the filter's attribute indexed?"
            }
            7 | 48 => "it doesn't accept this way to bind",
            8 | 13 => "it wants TLS first: use ldaps:// or starttls = true",
            10 => {
                "it refers to another server, and referrals are not followed; write a server that holds `base` into `url`"
            }
            14 => "it wants more than EXTERNAL with a certificate",
            32 => "`base` does not exist there, or our account may not see it",
            34 => "`base` or `bind_dn` is no distinguished name",
            50 => "our account may not search there; give it the right to read",
            51 | 52 => "it is busy or unavailable",
            53 => "it is unwilling",
            _ => "it refuses",
        };
        format!("{meaning} ({})", self.said())
    }
}

/// Active Directory hides the reason in the text: `AcceptSecurityContext error, data 52e`.
fn why_refused(text: &str) -> &'static str {
    let code = text
        .split("data ")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_hexdigit()).next());
    match code {
        Some("525") => "there is no such account",
        Some("52e") => "the password is wrong",
        Some("530") => "the account may not log in at this time",
        Some("531") => "the account may not log in from here",
        Some("532") => "the password has expired",
        Some("533") => "the account is disabled",
        Some("701") => "the account has expired",
        Some("773") => "the password must be changed first",
        Some("775") => "the account is locked",
        _ => "the account does not exist or the password is wrong",
    }
}

fn nonsense() -> String {
    "it doesn't speak LDAP as it should".to_owned()
}

fn slow(what: &str, step: Duration) -> String {
    format!("{what} took longer than {step:?}")
}

fn lost(e: &io::Error) -> String {
    format!("the connection broke: {e}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use socket2::Domain;
    use socket2::Socket;
    use socket2::Type;

    use super::*;

    #[test]
    fn active_directorys_reason_for_a_refusal_is_read_out_of_its_text() {
        let text = |code: &str| {
            format!(
                "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data {code}, v2580"
            )
        };
        assert_eq!(why_refused(&text("52e")), "the password is wrong");
        assert_eq!(why_refused(&text("775")), "the account is locked");
        for unknown in [text("1"), String::new(), "data ".to_owned()] {
            assert_eq!(
                why_refused(&unknown),
                "the account does not exist or the password is wrong"
            );
        }
    }

    #[test]
    fn an_entrys_text_is_found_among_bytes() {
        let attribute = |name: &str, values: &[&[u8]]| {
            let values: Vec<_> = values.iter().map(|v| ber::element(OCTETS, v)).collect();
            ber::nest(
                SEQUENCE,
                &[
                    ber::element(OCTETS, name.as_bytes()),
                    ber::nest(SET, &values),
                ],
            )
        };
        let attributes = [
            attribute("objectGUID", &[b"\xff\xfe\x00"]),
            attribute("Mail", &[b"\xff@example.com", b" ", b" alice@example.com "]),
            attribute("empty", &[]),
        ];
        let content = [
            ber::element(OCTETS, b"cn=\xff"),
            ber::nest(SEQUENCE, &attributes),
        ]
        .concat();
        let entry = entry(&content).unwrap();
        assert_eq!(
            entry.texts("mail").collect::<Vec<_>>(),
            ["alice@example.com"]
        );
        assert_eq!(entry.texts("objectguid").count(), 0);
        assert_eq!(entry.texts("empty").count(), 0);
    }

    #[tokio::test]
    async fn an_address_that_is_dead_leaves_time_for_the_next_one() {
        // Its queue is full, so that the kernel leaves further connections unanswered.
        let dead = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        dead.bind(&any.into()).unwrap();
        dead.listen(0).unwrap();
        let dead_at = dead.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(dead_at).unwrap();
        let live = tokio::net::TcpListener::bind(any).await.unwrap();
        let live_at = live.local_addr().unwrap();
        let step = Duration::from_millis(800);
        let gave_up = connect_to_any(vec![dead_at], step).await.unwrap_err();
        assert!(gave_up.contains("doesn't answer"), "{gave_up}");
        // Whoever limits the whole look-up to these steps reaches the last one.
        let addresses = vec![dead_at, dead_at, dead_at, live_at];
        let reached = timeout(step, connect_to_any(addresses, step)).await;
        let stream = reached.expect("within one step").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live_at);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reading_of_entries_and_results(bytes in any::<Vec<u8>>()) {
            drop(entry(&bytes));
            let whole = [ber::element(OCTETS, b""), ber::element(SEQUENCE, &bytes)].concat();
            drop(entry(&whole));
            let mut reader = Reader(&bytes);
            while reader.next().is_some() {}
            prop_assert!(reader.number(INTEGER).is_none());
        }
    }
}
