//! The relay we hand mail to: from its name to a connection that is encrypted, greeted and logged in.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lettre::transport::smtp::commands::Ehlo;
use lettre::transport::smtp::commands::Starttls;
use lettre::transport::smtp::extension::ClientId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;
use zeroize::Zeroizing;

use super::class::Fault;
use super::class::Stage;
use super::dialogue::Dialogue;
use super::dialogue::Reply;
use super::dialogue::Stream;
use crate::channel::Attempt;
use crate::secret::Secret;
use crate::tls::certificate_error;

/// So many addresses of one name are tried.
const MAX_ADDRESSES: usize = 8;

/// How long an address may be silent before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// How the connection is protected.
pub(super) enum Security {
    /// Plain at first, then TLS or nothing.
    StartTls(Arc<ClientConfig>),
    /// TLS from the first byte.
    Implicit(Arc<ClientConfig>),
    /// Never.
    None,
}

/// Who we are to the relay.
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}

impl Login {
    /// PLAIN's initial response (RFC 4616): no other identity than the one that logs in.
    pub(super) fn plain(&self) -> Zeroizing<String> {
        let response = Zeroizing::new(format!("\0{}\0{}", self.username, self.password.expose()));
        Zeroizing::new(STANDARD.encode(response.as_bytes()))
    }

    /// LOGIN's second answer.
    pub(super) fn login(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.password.expose()))
    }
}

/// A step that failed.
pub(super) type Failure = (Stage, Fault);

/// The next hop.
pub(super) struct Relay {
    pub(super) host: String,
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) login: Option<Login>,
    /// What we call ourselves; `None`: the address we speak from.
    pub(super) ehlo: Option<ClientId>,
    pub(super) step: Duration,
}

/// What an EHLO answer offers.
struct Offer(Reply);

impl Offer {
    /// The words after a keyword; `None` if it isn't offered. Old servers write `AUTH=PLAIN`.
    fn words(&self, keyword: &str) -> Option<Vec<String>> {
        let mut found = None;
        for line in self.0.lines.iter().skip(1) {
            let line = line.to_ascii_uppercase();
            let mut words = line.split([' ', '=', '\t']).filter(|w| !w.is_empty());
            if words.next() == Some(keyword) {
                found
                    .get_or_insert_with(Vec::new)
                    .extend(words.map(str::to_owned));
            }
        }
        found
    }
}

impl Relay {
    /// A connection that is ready for MAIL.
    pub(super) async fn dial(&self, attempt: &Attempt<'_>) -> Result<Dialogue, Failure> {
        let stream = self.connect().await.map_err(at(Stage::Connect))?;
        let ehlo = match &self.ehlo {
            Some(name) => name.clone(),
            None => match stream.local_addr().map(|a| a.ip().to_canonical()) {
                Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
                Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
                Err(e) => return Err((Stage::Connect, Fault::Lost(e))),
            },
        };
        let (mut dialogue, offer) = match &self.security {
            Security::None => {
                let mut dialogue = Dialogue::new(stream);
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer)
            }
            Security::Implicit(tls) => {
                let mut dialogue = self.encrypt(tls, stream, attempt).await?;
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer)
            }
            Security::StartTls(tls) => {
                let mut dialogue = Dialogue::new(stream);
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                let plain = self.start_tls(dialogue, attempt, &offer).await?;
                let mut dialogue = self.encrypt(tls, plain, attempt).await?;
                // What was offered in the clear may be anybody's word.
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer)
            }
        };
        if let Some(login) = &self.login {
            self.authenticate(&mut dialogue, attempt, &offer, login)
                .await
                .map_err(at(Stage::Auth))?;
        }
        debug!(relay = %self, "Connected to {self}");
        Ok(dialogue)
    }

    async fn connect(&self) -> Result<TcpStream, Fault> {
        let connect = async {
            let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
            first_of(addresses.take(MAX_ADDRESSES).collect()).await
        };
        match timeout(self.step, connect).await {
            Ok(stream) => stream.map_err(Fault::Lost),
            Err(_) => Err(Fault::Slow(self.step)),
        }
    }

    async fn greeting(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
    ) -> Result<Reply, Failure> {
        let greeting = dialogue.greeting(attempt, self.step).await;
        greeting
            .and_then(|reply| reply.expect(220))
            .map_err(at(Stage::Greeting))
    }

    async fn hello(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
        name: &ClientId,
    ) -> Result<Offer, Failure> {
        let hello = dialogue.say(attempt, Ehlo::new(name.clone()), self.step);
        let reply = hello.await.and_then(|reply| reply.expect(250));
        reply.map(Offer).map_err(at(Stage::Ehlo))
    }

    async fn start_tls(
        &self,
        mut dialogue: Dialogue,
        attempt: &Attempt<'_>,
        offer: &Offer,
    ) -> Result<Box<dyn Stream>, Failure> {
        if offer.words("STARTTLS").is_none() {
            let what = "does not offer STARTTLS, and nothing is sent in the clear; if it expects TLS from the start, write tls = \"implicit\"";
            return Err((Stage::StartTls, Fault::Unfit(what.to_owned())));
        }
        let answer = dialogue.say(attempt, Starttls, self.step).await;
        answer
            .and_then(|reply| reply.expect(220))
            .and_then(|_| dialogue.into_stream())
            .map_err(at(Stage::StartTls))
    }

    async fn encrypt(
        &self,
        tls: &Arc<ClientConfig>,
        stream: impl Stream + 'static,
        attempt: &Attempt<'_>,
    ) -> Result<Dialogue, Failure> {
        let connector = TlsConnector::from(Arc::clone(tls));
        let handshake = connector.connect(self.name.clone(), stream);
        let fault = match timeout(self.step, handshake).await {
            Ok(Ok(stream)) => {
                attempt.transcript.line(|| {
                    let (_, session) = stream.get_ref();
                    let version = session.protocol_version().and_then(|v| v.as_str());
                    format!("* TLS ({})", version.unwrap_or("unknown version"))
                });
                return Ok(Dialogue::new(stream));
            }
            Ok(Err(e)) => match certificate_error(&e, &self.host) {
                Some(sentence) => Fault::Certificate(sentence),
                None => Fault::Lost(e),
            },
            Err(_) => Fault::Slow(self.step),
        };
        Err((Stage::Tls, fault))
    }

    async fn authenticate(
        &self,
        dialogue: &mut Dialogue,
        attempt: &Attempt<'_>,
        offer: &Offer,
        login: &Login,
    ) -> Result<Reply, Fault> {
        let offered = offer.words("AUTH").unwrap_or_default();
        let offers = |mechanism: &str| offered.iter().any(|word| word == mechanism);
        if offers("PLAIN") {
            let line = Zeroizing::new(format!("AUTH PLAIN {}\r\n", *login.plain()));
            let reply = dialogue.say_secret(attempt, line.as_bytes(), "AUTH PLAIN …", self.step);
            return reply.await?.expect(235);
        }
        if offers("LOGIN") {
            let reply = dialogue.say(attempt, "AUTH LOGIN\r\n", self.step);
            reply.await?.expect(334)?;
            let name = format!("{}\r\n", STANDARD.encode(&login.username));
            let reply = dialogue.say_secret(attempt, name.as_bytes(), "(user name)", self.step);
            reply.await?.expect(334)?;
            let line = Zeroizing::new(format!("{}\r\n", *login.login()));
            let reply = dialogue.say_secret(attempt, line.as_bytes(), "(password)", self.step);
            return reply.await?.expect(235);
        }
        Err(Fault::Unfit(if offered.is_empty() {
            "offers no AUTH here; leave out auth, username and password, or write another port or tls".to_owned()
        } else {
            let list = attempt.redactor.clean(&offered.join(", "));
            format!("offers neither AUTH PLAIN nor LOGIN but {list}")
        }))
    }
}

impl std::fmt::Display for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn at(stage: Stage) -> impl FnOnce(Fault) -> Failure {
    move |fault| (stage, fault)
}

/// The first address to take the connection, each with a head start before the next.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter().peekable();
    let mut trying = FuturesUnordered::new();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        trying.extend(waiting.next().map(TcpStream::connect));
        let patience = match waiting.peek() {
            Some(_) => HEAD_START,
            None => Duration::MAX,
        };
        match timeout(patience, trying.next()).await {
            Ok(Some(Ok(stream))) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Some(Err(e))) => error = e,
            Ok(None) => return Err(error),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_read_whatever_its_case_and_age() {
        let offer = Offer(Reply {
            code: 250,
            lines: vec![
                "STARTTLS.example.com".to_owned(),
                "starttls".to_owned(),
                "AUTH=PLAIN".to_owned(),
                "Auth LOGIN XOAUTH2".to_owned(),
                "AUTHOR me".to_owned(),
            ],
        });
        assert_eq!(offer.words("STARTTLS"), Some(vec![]));
        assert_eq!(offer.words("AUTH").unwrap(), ["PLAIN", "LOGIN", "XOAUTH2"]);
        assert_eq!(offer.words("SIZE"), None);
    }
}
