//! One connection to a mail relay. Every step has its own time limit; after anything unexpected the connection is dropped.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt;
use lettre::Address;
use lettre::transport::smtp::commands::Data;
use lettre::transport::smtp::commands::Ehlo;
use lettre::transport::smtp::commands::Mail;
use lettre::transport::smtp::commands::Quit;
use lettre::transport::smtp::commands::Rcpt;
use lettre::transport::smtp::commands::Rset;
use lettre::transport::smtp::commands::Starttls;
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::extension::MailParameter;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::reply::Reply;
use super::reply::Stage;
use super::reply::classify;
use crate::channel::Attempt;
use crate::channel::SendError;
use crate::secret::Secret;

/// RFC 5321 section 4.5.3.1.5 allows 512 bytes; some relays are more talkative.
const MAX_REPLY_LINE_BYTES: usize = 4096;
/// A reply of more lines than this is no reply.
const MAX_REPLY_LINES: usize = 128;
/// So many addresses of a host are tried.
const MAX_ADDRESSES: usize = 6;
/// The least time for the answer to the final dot (RFC 5321 section 4.5.3.2.6).
const LEAST_END_TIMEOUT: Duration = Duration::from_secs(600);

/// How the connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// STARTTLS, required: a relay that doesn't offer it gets nothing.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// None.
    None,
}

/// Where to connect, and how.
pub struct Server {
    /// The host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The protection.
    pub tls: Tls,
    /// The roots that its certificate is checked against.
    pub roots: Arc<ClientConfig>,
    /// The user name and password.
    pub login: Option<(String, Secret)>,
    /// The name in EHLO; `None`: the system's, or the local address.
    pub ehlo: Option<String>,
    /// For each step.
    pub timeout: Duration,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on which every command has had its reply, or which is lost.
pub struct Session {
    stream: BufReader<Box<dyn Stream>>,
    extensions: Vec<String>,
    timeout: Duration,
    /// MAIL has been sent, and nothing has ended its transaction.
    in_transaction: bool,
    /// A reply is outstanding, failed to come, or was the last one (421).
    lost: bool,
}

impl Server {
    /// Connects, protects the connection and logs in.
    pub async fn connect(&self, attempt: &Attempt<'_>) -> Result<Session, SendError> {
        let (tcp, local) = self.dial(attempt).await?;
        let stream: Box<dyn Stream> = match self.tls {
            Tls::Implicit => Box::new(self.handshake(Box::new(tcp), attempt).await?),
            Tls::Starttls | Tls::None => Box::new(tcp),
        };
        let mut session = Session::new(stream, self.timeout);
        let name = self.client_id(local);
        session.expect(Stage::Greeting, 220, attempt).await?;
        session.ehlo(&name, attempt).await?;
        if self.tls == Tls::Starttls {
            session = self.start_tls(session, attempt).await?;
            session.ehlo(&name, attempt).await?;
        }
        if let Some((user, password)) = &self.login {
            session.log_in(user, password, attempt).await?;
        }
        Ok(session)
    }

    async fn dial(&self, attempt: &Attempt<'_>) -> Result<(TcpStream, SocketAddr), SendError> {
        let away = |why: String| SendError::Away {
            reason: format!("no connection to {}: {why}", self.place()),
            after: None,
        };
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let addresses = within(self.timeout, lookup_host((host, self.port)))
            .await
            .map_err(|e| away(format!("its name can't be resolved: {e}")))?;
        let mut why = "its name has no address".to_owned();
        for address in addresses.take(MAX_ADDRESSES) {
            match within(self.timeout, TcpStream::connect(address)).await {
                Ok(tcp) => {
                    let local = tcp.local_addr().map_err(|e| away(e.to_string()))?;
                    attempt
                        .transcript
                        .line(|| format!("* connected to {address}"));
                    // Commands are short and each waits for its reply.
                    tcp.set_nodelay(true).map_err(|e| away(e.to_string()))?;
                    return Ok((tcp, local));
                }
                Err(e) => {
                    why = e.to_string();
                    attempt.transcript.line(|| format!("* {address}: {e}"));
                }
            }
        }
        Err(away(why))
    }

    /// The bytes after the reply to STARTTLS must come from inside TLS: whatever is there already was not protected.
    async fn start_tls(
        &self,
        mut session: Session,
        attempt: &Attempt<'_>,
    ) -> Result<Session, SendError> {
        if !session.offers("STARTTLS") {
            return Err(SendError::Broken {
                reason: format!(
                    "{} doesn't offer STARTTLS, and nothing is sent without; set tls = \"implicit\" if this port speaks TLS at once",
                    self.place()
                ),
            });
        }
        session
            .command(Stage::StartTls, Starttls, 220, attempt)
            .await?;
        if !session.is_quiet() && !session.stream.buffer().is_empty() {
            return Err(SendError::Broken {
                reason: format!(
                    "{} sent more than its reply to STARTTLS; somebody may be in between",
                    self.place()
                ),
            });
        }
        let stream = self.handshake(session.stream.into_inner(), attempt).await?;
        // What was offered in clear is forgotten with the old session.
        Ok(Session::new(Box::new(stream), self.timeout))
    }

    async fn handshake(
        &self,
        stream: Box<dyn Stream>,
        attempt: &Attempt<'_>,
    ) -> Result<impl Stream + use<>, SendError> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| SendError::Broken {
            reason: format!("\"{host}\" is no name that a certificate could have"),
        })?;
        let connector = TlsConnector::from(Arc::clone(&self.roots));
        let stream = within(self.timeout, connector.connect(name, stream))
            .await
            .map_err(|e| self.no_tls(&e))?;
        attempt.transcript.line(|| {
            let version = stream.get_ref().1.protocol_version();
            format!("* TLS: {version:?}, certificate accepted")
        });
        Ok(stream)
    }

    fn no_tls(&self, error: &io::Error) -> SendError {
        let place = self.place();
        match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(why)) => SendError::Broken {
                reason: format!("the certificate of {place} is not accepted: {}", fault(why)),
            },
            // What a server says that doesn't speak TLS.
            Some(rustls::Error::InvalidMessage(_)) => SendError::Away {
                reason: format!(
                    "{place} doesn't speak TLS here; is it a port for tls = \"starttls\"?"
                ),
                after: None,
            },
            _ => SendError::Away {
                reason: format!("no TLS connection to {place}: {error}"),
                after: None,
            },
        }
    }

    fn client_id(&self, local: SocketAddr) -> ClientId {
        if let Some(name) = &self.ehlo {
            return ClientId::Domain(name.clone());
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim();
        let is_domain = name.contains('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        match local {
            _ if is_domain => ClientId::Domain(name.to_owned()),
            SocketAddr::V4(v4) => ClientId::Ipv4(*v4.ip()),
            SocketAddr::V6(v6) => ClientId::Ipv6(*v6.ip()),
        }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl Session {
    fn new(stream: Box<dyn Stream>, timeout: Duration) -> Self {
        Self {
            stream: BufReader::new(stream),
            extensions: Vec::new(),
            timeout,
            in_transaction: false,
            lost: false,
        }
    }

    /// It can't be used again.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Nothing has come that wasn't asked for, neither bytes nor the end.
    pub fn is_quiet(&mut self) -> bool {
        self.stream.buffer().is_empty() && self.stream.fill_buf().now_or_never().is_none()
    }

    /// Names the sender and the one recipient of a message.
    pub async fn begin(
        &mut self,
        from: &Address,
        to: &Address,
        attempt: &Attempt<'_>,
    ) -> Result<(), SendError> {
        let mut parameters = Vec::new();
        for (address, is_ours) in [(from, true), (to, false)] {
            let address: &str = address.as_ref();
            if address.is_ascii() || self.offers("SMTPUTF8") {
                continue;
            }
            return Err(if is_ours {
                SendError::Broken {
                    reason:
                        "the sender's address is not ASCII, and the relay doesn't offer SMTPUTF8"
                            .to_owned(),
                }
            } else {
                SendError::Permanent {
                    reason: "the address is not ASCII, and the relay doesn't offer SMTPUTF8"
                        .to_owned(),
                }
            });
        }
        let (sender, recipient): (&str, &str) = (from.as_ref(), to.as_ref());
        if !sender.is_ascii() || !recipient.is_ascii() {
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if self.in_transaction {
            self.command(Stage::Mail, Rset, 250, attempt).await?;
            self.in_transaction = false;
        }
        self.in_transaction = true;
        let mail = Mail::new(Some(from.clone()), parameters);
        self.command(Stage::Mail, mail, 250, attempt).await?;
        let rcpt = Rcpt::new(to.clone(), Vec::new());
        self.command(Stage::Rcpt, rcpt, 250, attempt).await?;
        Ok(())
    }

    /// Sends the message. `Ok` means 250 after the final dot, and nothing else does.
    pub async fn finish(
        &mut self,
        message: &[u8],
        attempt: &Attempt<'_>,
    ) -> Result<String, SendError> {
        self.command(Stage::Data, Data, 354, attempt).await?;
        attempt
            .transcript
            .line(|| format!("> (the message, {} bytes)", message.len()));
        self.write(&stuffed(message), Stage::End).await?;
        let unknown = |why: String| SendError::Unknown {
            reason: format!("the connection was lost after the message was sent: {why}"),
        };
        // From its first byte on the relay may have the whole message.
        self.write(b".\r\n", Stage::End)
            .await
            .map_err(|e| unknown(e.to_string()))?;
        let limit = self.timeout.max(LEAST_END_TIMEOUT);
        let reply = self.reply(limit, attempt).await.map_err(unknown)?;
        self.in_transaction = false;
        if reply.code == 250 {
            Ok(attempt.redactor.clean(&format!("250 {}", reply.text)))
        } else {
            Err(refused(Stage::End, &reply, attempt))
        }
    }

    /// Says good-bye; what the server answers is of no interest.
    pub async fn quit(mut self) {
        let bye = async {
            self.stream.write_all(Quit.to_string().as_bytes()).await?;
            self.stream.shutdown().await
        };
        // The connection is over whether or not that worked.
        drop(within(Duration::from_secs(1), bye).await);
    }

    async fn ehlo(&mut self, name: &ClientId, attempt: &Attempt<'_>) -> Result<(), SendError> {
        let reply = self
            .command(Stage::Ehlo, Ehlo::new(name.clone()), 250, attempt)
            .await?;
        // The first line is the server's name.
        self.extensions = reply
            .text
            .lines()
            .skip(1)
            .map(str::to_ascii_uppercase)
            .collect();
        Ok(())
    }

    fn offers(&self, extension: &str) -> bool {
        self.extensions
            .iter()
            .any(|e| e.split([' ', '=']).next() == Some(extension))
    }

    async fn log_in(
        &mut self,
        user: &str,
        password: &Secret,
        attempt: &Attempt<'_>,
    ) -> Result<(), SendError> {
        let mut offered: Vec<String> = self
            .extensions
            .iter()
            .filter_map(|e| e.strip_prefix("AUTH").filter(|m| m.starts_with([' ', '='])))
            .flat_map(|m| m[1..].split_whitespace().map(str::to_owned))
            .collect();
        // Some relays say it twice, as "AUTH" and as "AUTH=".
        offered.sort();
        offered.dedup();
        let offers = |mechanism: &str| offered.iter().any(|m| m == mechanism);
        if offers("PLAIN") {
            let text = Zeroizing::new(format!("\0{user}\0{}", password.expose()));
            let command = Zeroizing::new(format!(
                "AUTH PLAIN {}\r\n",
                BASE64_STANDARD.encode(text.as_bytes())
            ));
            return self
                .secret_command(&command, "AUTH PLAIN …", 235, attempt)
                .await;
        }
        if offers("LOGIN") {
            self.secret_command("AUTH LOGIN\r\n", "AUTH LOGIN", 334, attempt)
                .await?;
            let line = Zeroizing::new(format!("{}\r\n", BASE64_STANDARD.encode(user)));
            self.secret_command(&line, "…", 334, attempt).await?;
            let line = Zeroizing::new(format!("{}\r\n", BASE64_STANDARD.encode(password.expose())));
            return self.secret_command(&line, "…", 235, attempt).await;
        }
        let offered = match offered.join(", ") {
            none if none.is_empty() => "no log-in at all".to_owned(),
            some => attempt.redactor.clean(&some),
        };
        Err(SendError::Broken {
            reason: format!("the relay offers {offered}, but PLAIN or LOGIN is needed"),
        })
    }

    async fn secret_command(
        &mut self,
        line: &str,
        shown: &str,
        wanted: u16,
        attempt: &Attempt<'_>,
    ) -> Result<(), SendError> {
        attempt.transcript.line(|| format!("> {shown}"));
        self.write(line.as_bytes(), Stage::Auth).await?;
        self.expect(Stage::Auth, wanted, attempt).await.map(drop)
    }

    async fn command(
        &mut self,
        stage: Stage,
        command: impl Display,
        wanted: u16,
        attempt: &Attempt<'_>,
    ) -> Result<Reply, SendError> {
        let line = command.to_string();
        attempt
            .transcript
            .line(|| format!("> {}", attempt.redactor.clean(&line)));
        self.write(line.as_bytes(), stage).await?;
        self.expect(stage, wanted, attempt).await
    }

    async fn write(&mut self, bytes: &[u8], stage: Stage) -> Result<(), SendError> {
        // What has come already can't be the reply to what follows.
        if self.lost || !self.is_quiet() {
            self.lost = true;
            return Err(lost(stage, "it hung up, or said what nobody asked for"));
        }
        self.lost = true;
        let stream = &mut self.stream;
        let written = within(self.timeout, async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        written.await.map_err(|e| lost(stage, &e.to_string()))?;
        self.lost = false;
        Ok(())
    }

    async fn expect(
        &mut self,
        stage: Stage,
        wanted: u16,
        attempt: &Attempt<'_>,
    ) -> Result<Reply, SendError> {
        let reply = self
            .reply(self.timeout, attempt)
            .await
            .map_err(|why| lost(stage, &why))?;
        // RCPT may be answered with 251 and 252 too; both mean that the relay takes it.
        if reply.code == wanted || (stage == Stage::Rcpt && matches!(reply.code, 251 | 252)) {
            Ok(reply)
        } else {
            Err(refused(stage, &reply, attempt))
        }
    }

    /// The next reply; `Err` says how the connection was lost.
    async fn reply(&mut self, limit: Duration, attempt: &Attempt<'_>) -> Result<Reply, String> {
        self.lost = true;
        let reply = within(limit, read_reply(&mut self.stream))
            .await
            .map_err(|e| e.to_string())?;
        self.lost = reply.code == 421;
        for line in reply.text.split('\n') {
            attempt
                .transcript
                .line(|| attempt.redactor.clean(&format!("< {} {line}", reply.code)));
        }
        Ok(reply)
    }
}

fn refused(stage: Stage, reply: &Reply, attempt: &Attempt<'_>) -> SendError {
    let said = attempt
        .redactor
        .clean(&format!("{} {}", reply.code, reply.text));
    classify(
        stage,
        reply,
        format!("{} was answered with {said}", stage.as_str()),
    )
}

fn lost(stage: Stage, why: &str) -> SendError {
    let reason = format!("the connection was lost at {}: {why}", stage.as_str());
    if stage.is_before_transaction() {
        SendError::Away {
            reason,
            after: None,
        }
    } else {
        SendError::Transient {
            reason,
            after: None,
        }
    }
}

fn no_smtp(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("nothing happened within {limit:?}"),
        )),
    }
}

async fn read_reply(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Reply> {
    let mut lines: Vec<String> = Vec::new();
    let mut code = None;
    loop {
        let line = read_line(stream).await?;
        let (this, goes_on, text) =
            reply_line(&line).ok_or_else(|| no_smtp("its answer is no SMTP reply"))?;
        if code.replace(this).is_some_and(|before| before != this) {
            return Err(no_smtp("the lines of its reply have different codes"));
        }
        lines.push(text.to_owned());
        if !goes_on {
            return Ok(Reply {
                code: this,
                text: lines.join("\n"),
            });
        }
        if lines.len() >= MAX_REPLY_LINES {
            return Err(no_smtp("its reply never ends"));
        }
    }
}

/// The code, whether another line follows, and the text.
fn reply_line(line: &str) -> Option<(u16, bool, &str)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let code = match digits.as_bytes() {
        [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'] => digits.parse().ok()?,
        _ => return None,
    };
    match rest.as_bytes().first() {
        None => Some((code, false, "")),
        Some(b' ') => Some((code, false, &rest[1..])),
        Some(b'-') => Some((code, true, &rest[1..])),
        Some(_) => None,
    }
}

/// One line without its end, never more than [`MAX_REPLY_LINE_BYTES`].
async fn read_line(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let buffer = stream.fill_buf().await?;
        if buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
        }
        let (part, ends) = match memchr::memchr(b'\n', buffer) {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        line.extend_from_slice(&buffer[..part]);
        stream.consume(part);
        if line.len() > MAX_REPLY_LINE_BYTES {
            return Err(no_smtp("a line of its reply is too long"));
        }
        if ends {
            let line = line.trim_ascii_end();
            return Ok(String::from_utf8_lossy(line).into_owned());
        }
    }
}

/// What is wrong with a certificate, and what to do about it.
fn fault(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "its issuer is not known here; ca_file names a private CA".to_owned()
        }
        CertificateError::NotValidForName => "it was issued for another name".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::NotValidYet => "it is not valid yet; is the clock right?".to_owned(),
        other => other.to_string(),
    }
}

/// The message with its dots doubled (RFC 5321 section 4.5.2), ready for the final one.
fn stuffed(message: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(message.len() + 64));
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_at_the_start_of_a_line_are_doubled_and_the_last_line_is_ended() {
        assert_eq!(&*stuffed(b"a\r\n.\r\n..b\r\n"), b"a\r\n..\r\n...b\r\n");
        assert_eq!(&*stuffed(b"a"), b"a\r\n");
        assert_eq!(&*stuffed(b".a\r\n"), b"..a\r\n");
    }

    #[test]
    fn a_reply_line_is_a_code_and_perhaps_a_text() {
        assert_eq!(reply_line("250 ok"), Some((250, false, "ok")));
        assert_eq!(
            reply_line("250-PIPELINING"),
            Some((250, true, "PIPELINING"))
        );
        assert_eq!(reply_line("250"), Some((250, false, "")));
        for line in [
            "", "25", "2500 ok", "abc", "650 ok", "150 ok", "2é0 ok", "250\tok",
        ] {
            assert_eq!(reply_line(line), None, "{line}");
        }
    }
}
