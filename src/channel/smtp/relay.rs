//! The relay we hand mail to: from its name to a connection that is encrypted, greeted and logged in.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use lettre::transport::smtp::commands::Ehlo;
use lettre::transport::smtp::commands::Starttls;
use lettre::transport::smtp::extension::ClientId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::class::Fault;
use super::class::Stage;
use super::dialogue::Dialogue;
use super::dialogue::Reply;
use super::dialogue::Stream;
use super::login::Proof;
use crate::channel::Attempt;
use crate::secret::Secret;
use crate::tls::certificate_error;
use crate::tls::handshake;

/// So many addresses of one name are tried.
const MAX_ADDRESSES: usize = 8;

/// So many extensions of a relay are shown.
const MAX_KEYWORDS: usize = 30;

/// How long an address may be silent before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// How the connection is protected.
#[derive(Clone)]
pub(super) enum Security {
    /// Plain at first, then TLS or nothing.
    StartTls(Arc<ClientConfig>),
    /// TLS from the first byte.
    Implicit(Arc<ClientConfig>),
    /// Never.
    None,
}

/// A step that failed.
pub(super) type Failure = (Stage, Fault);

/// The next hop.
pub(super) struct Relay {
    pub(super) host: String,
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
    pub(super) security: Security,
    /// What we call ourselves; `None`: the address we speak from.
    pub(super) ehlo: Option<ClientId>,
    pub(super) step: Duration,
}

/// A connection that is ready for MAIL, or between two mails.
pub(super) struct Session {
    pub(super) dialogue: Dialogue,
    /// What the relay offered after it was greeted, inside TLS if there is any.
    pub(super) offer: Offer,
    /// What is to be said of the handshake, if there was one and anybody reads along.
    pub(super) tls: Option<String>,
    /// What this connection logged in with.
    pub(super) secrets: Vec<Secret>,
}

/// What an EHLO answer offers.
pub(super) struct Offer(Reply);

impl Offer {
    /// Whether an extension is offered.
    pub(super) fn has(&self, keyword: &str) -> bool {
        self.words(keyword).is_some()
    }

    /// The keywords, as the relay writes them.
    pub(super) fn keywords(&self) -> Vec<&str> {
        let lines = self.0.lines.iter().skip(1);
        lines
            .filter_map(|line| line.split([' ', '=', '\t']).find(|w| !w.is_empty()))
            .take(MAX_KEYWORDS)
            .collect()
    }

    /// The words after a keyword; `None` if it isn't offered. Old servers write `AUTH=PLAIN`.
    pub(super) fn words(&self, keyword: &str) -> Option<Vec<String>> {
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
    /// A connection that is ready for MAIL. Only to connect takes no longer than `patience`.
    pub(super) async fn dial(
        &self,
        attempt: &Attempt<'_>,
        patience: Duration,
        proof: Option<Proof<'_>>,
    ) -> Result<Session, Failure> {
        let stream = self.connect(patience).await.map_err(at(Stage::Connect))?;
        let ehlo = match &self.ehlo {
            Some(name) => name.clone(),
            None => match stream.local_addr().map(|a| a.ip().to_canonical()) {
                Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
                Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
                Err(e) => return Err((Stage::Connect, Fault::Lost(e))),
            },
        };
        let (mut dialogue, offer, handshake) = match &self.security {
            Security::None => {
                let mut dialogue = Dialogue::new(stream);
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer, None)
            }
            Security::Implicit(tls) => {
                let (mut dialogue, handshake) = self.encrypt(tls, stream, attempt).await?;
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer, handshake)
            }
            Security::StartTls(tls) => {
                let mut dialogue = Dialogue::new(stream);
                self.greeting(&mut dialogue, attempt).await?;
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                let plain = self.start_tls(dialogue, attempt, &offer).await?;
                let (mut dialogue, handshake) = self.encrypt(tls, plain, attempt).await?;
                // What was offered in the clear may be anybody's word.
                let offer = self.hello(&mut dialogue, attempt, &ehlo).await?;
                (dialogue, offer, handshake)
            }
        };
        if let Some(proof) = &proof {
            let shown = proof.show(&mut dialogue, attempt, &offer, self.step).await;
            shown.map_err(at(Stage::Auth))?;
        }
        debug!(relay = %self, "Connected to {self}");
        Ok(Session {
            dialogue,
            offer,
            tls: handshake,
            secrets: proof.map_or_else(Vec::new, |proof| proof.secrets()),
        })
    }

    async fn connect(&self, patience: Duration) -> Result<TcpStream, Fault> {
        let connect = async {
            let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
            first_of(addresses.take(MAX_ADDRESSES).collect()).await
        };
        match timeout(patience, connect).await {
            Ok(stream) => stream.map_err(Fault::Lost),
            Err(_) => Err(Fault::Slow(patience)),
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
    ) -> Result<(Dialogue, Option<String>), Failure> {
        let connector = TlsConnector::from(Arc::clone(tls));
        let shaking = connector.connect(self.name.clone(), stream);
        let fault = match timeout(self.step, shaking).await {
            Ok(Ok(stream)) => {
                let read = attempt.transcript.is_on();
                let told = read.then(|| handshake(stream.get_ref().1, Timestamp::now()));
                if let Some(told) = &told {
                    attempt.transcript.line(|| format!("* {told}"));
                }
                return Ok((Dialogue::new(stream), told));
            }
            Ok(Err(e)) => match certificate_error(&e, &self.host) {
                Some(sentence) => Fault::Certificate(sentence),
                None => Fault::Lost(e),
            },
            Err(_) => Fault::Slow(self.step),
        };
        Err((Stage::Tls, fault))
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
