//! An SMTP server that keeps what it accepted and misbehaves as a test says.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Where in the dialogue an answer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Ehlo,
    StartTls,
    /// When all of the log-in has been said.
    Auth,
    Mail,
    Rcpt,
    Data,
    /// After the final dot.
    End,
    Other,
}

/// What the script is asked about.
pub struct Step<'a> {
    pub stage: Stage,
    /// From 1.
    pub connection: usize,
    /// Inside TLS.
    pub tls: bool,
    /// The command.
    pub line: &'a str,
    /// The recipients of the transaction, this one included.
    pub rcpts: &'a [String],
}

/// What the server does.
pub enum Answer {
    /// What a good server would.
    Usual,
    /// These lines, joined by CRLF; the end is added.
    Say(String),
    /// These bytes.
    Raw(Vec<u8>),
    /// The same, but later.
    Late(Duration, String),
    /// A byte now and then.
    Drip(Duration, String),
    /// The usual, then the end of the connection.
    ThenHangUp,
    /// Nothing, and the end of the connection.
    HangUp,
    /// Nothing, until the client has had enough.
    Silence,
}

/// A line to say.
pub fn say(line: &str) -> Answer {
    Answer::Say(line.to_owned())
}

/// What was accepted.
#[derive(Clone, Debug)]
pub struct Mail {
    pub from: String,
    pub rcpts: Vec<String>,
    /// As it was before its dots were doubled.
    pub data: Vec<u8>,
    /// From 1.
    pub connection: usize,
    pub at: Instant,
}

impl Mail {
    /// The head, unfolded, as (name in lower case, value).
    pub fn headers(&self) -> Vec<(String, String)> {
        headers(&self.data)
    }

    /// The value of the one header of this name.
    #[track_caller]
    pub fn header(&self, name: &str) -> String {
        let values: Vec<_> = self
            .headers()
            .into_iter()
            .filter_map(|(n, value)| (n == name).then_some(value))
            .collect();
        match &values[..] {
            [one] => one.clone(),
            _ => panic!("header {name}: {values:?}"),
        }
    }

    /// The parts of `multipart/alternative`, decoded: plain text and HTML.
    pub fn parts(&self) -> (String, String) {
        let kind = self.header("content-type");
        assert!(kind.starts_with("multipart/alternative"), "{kind}");
        let boundary = kind.split("boundary=\"").nth(1).unwrap();
        let boundary = boundary.split('"').next().unwrap();
        let text = std::str::from_utf8(&self.data).unwrap();
        let parts: Vec<_> = text
            .split(&format!("--{boundary}"))
            .skip(1)
            .take_while(|part| part.starts_with("\r\n"))
            .map(|part| part[2..].strip_suffix("\r\n").unwrap())
            .collect();
        let [plain, html] = parts[..] else {
            panic!("{} parts", parts.len())
        };
        (
            decoded(plain, "text/plain; charset=utf-8"),
            decoded(html, "text/html; charset=utf-8"),
        )
    }
}

fn headers(data: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(data);
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let head = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    head.split("\r\n")
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect()
}

fn decoded(part: &str, kind: &str) -> String {
    let headers = headers(part.as_bytes());
    let header = |name: &str| {
        let found = headers.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    };
    assert_eq!(header("content-type"), kind);
    let (_, body) = part.split_once("\r\n\r\n").unwrap();
    let bytes = match header("content-transfer-encoding") {
        "7bit" => body.as_bytes().to_vec(),
        "quoted-printable" => unquoted(body),
        other => panic!("encoding {other}"),
    };
    String::from_utf8(bytes).unwrap()
}

fn unquoted(body: &str) -> Vec<u8> {
    let joined = body.replace("=\r\n", "");
    let mut pieces = joined.split('=');
    let mut out = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        out.extend_from_slice(&piece.as_bytes()[2..]);
    }
    out
}

/// A certificate authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A server's certificate and key as PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// What a server with these names needs.
    pub fn acceptor(&self, names: &[&str]) -> TlsAcceptor {
        let (certificate, key) = self.issue(names);
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What kind of server it is.
#[derive(Clone, Default)]
pub struct Kind {
    /// What its answer to EHLO offers; STARTTLS comes by itself.
    pub offers: Vec<&'static str>,
    /// It can do TLS.
    pub tls: Option<TlsAcceptor>,
    /// TLS from the first byte.
    pub implicit: bool,
}

type Script = dyn Fn(&Step<'_>) -> Answer + Send + Sync;

#[derive(Default)]
struct Seen {
    mails: Vec<Mail>,
    commands: Vec<String>,
    connections: usize,
}

/// The server, in a thread of its own, so that any test can use it; it ends with the test.
pub struct SmtpSink {
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    _end: oneshot::Sender<()>,
}

impl SmtpSink {
    /// A plain server.
    pub fn start(script: impl Fn(&Step<'_>) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(Kind::default(), script)
    }

    /// A server that takes everything.
    pub fn good() -> Self {
        Self::start(|_| Answer::Usual)
    }

    pub fn with(
        kind: Kind,
        script: impl Fn(&Step<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (end, ended) = oneshot::channel::<()>();
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, Arc::new(kind), Arc::new(script), kept) => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            port,
            seen,
            _end: end,
        }
    }

    /// What it accepted, in order.
    pub fn mails(&self) -> Vec<Mail> {
        self.seen.lock().unwrap().mails.clone()
    }

    /// Every command it got, over all connections; an answer within AUTH counts as one.
    pub fn commands(&self) -> Vec<String> {
        self.seen.lock().unwrap().commands.clone()
    }

    /// The commands that start so.
    pub fn count(&self, start: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.commands.iter().filter(|c| c.starts_with(start)).count()
    }

    /// So many connections came.
    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

async fn accept(
    listener: std::net::TcpListener,
    kind: Arc<Kind>,
    script: Arc<Script>,
    seen: Arc<Mutex<Seen>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        let connection = {
            let mut seen = seen.lock().unwrap();
            seen.connections += 1;
            seen.connections
        };
        let peer = Peer {
            kind: Arc::clone(&kind),
            script: Arc::clone(&script),
            seen: Arc::clone(&seen),
            connection,
            tls: kind.implicit,
        };
        tokio::spawn(peer.welcome(socket));
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

struct Peer {
    kind: Arc<Kind>,
    script: Arc<Script>,
    seen: Arc<Mutex<Seen>>,
    connection: usize,
    tls: bool,
}

impl Peer {
    async fn welcome(mut self, socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        let mut stream: BufReader<Box<dyn Stream>> = BufReader::new(match &self.kind.tls {
            Some(tls) if self.tls => Box::new(tls.accept(socket).await.ok()?),
            _ => Box::new(socket),
        });
        self.answer(&mut stream, Stage::Connect, "", &[], "220 sink ready")
            .await?;
        let (mut from, mut rcpts) = (String::new(), Vec::new());
        loop {
            let line = self.line(&mut stream).await?;
            let verb = line.split(' ').next().unwrap_or_default().to_uppercase();
            match verb.as_str() {
                "EHLO" | "HELO" => {
                    let mut offers = self.kind.offers.clone();
                    if self.kind.tls.is_some() && !self.tls {
                        offers.push("STARTTLS");
                    }
                    let mut lines = vec!["sink greets you"];
                    lines.extend(offers);
                    let last = lines.len() - 1;
                    let usual: Vec<_> = lines
                        .iter()
                        .enumerate()
                        .map(|(i, l)| format!("250{}{l}", if i == last { ' ' } else { '-' }))
                        .collect();
                    self.answer(&mut stream, Stage::Ehlo, &line, &[], &usual.join("\r\n"))
                        .await?;
                }
                "STARTTLS" => {
                    self.answer(&mut stream, Stage::StartTls, &line, &[], "220 go ahead")
                        .await?;
                    let tls = self.kind.tls.clone()?;
                    let inner = tls.accept(stream.into_inner()).await.ok()?;
                    stream = BufReader::new(Box::new(inner));
                    self.tls = true;
                }
                "AUTH" => {
                    if line.eq_ignore_ascii_case("AUTH LOGIN") {
                        for prompt in ["Username:", "Password:"] {
                            let prompt = format!("334 {}\r\n", BASE64_STANDARD.encode(prompt));
                            stream.write_all(prompt.as_bytes()).await.ok()?;
                            self.line(&mut stream).await?;
                        }
                    }
                    self.answer(&mut stream, Stage::Auth, &line, &[], "235 2.7.0 welcome")
                        .await?;
                }
                "MAIL" => {
                    (from, rcpts) = (path(&line), Vec::new());
                    self.answer(&mut stream, Stage::Mail, &line, &rcpts, "250 2.1.0 ok")
                        .await?;
                }
                "RCPT" => {
                    rcpts.push(path(&line));
                    let said = self
                        .answer(&mut stream, Stage::Rcpt, &line, &rcpts, "250 2.1.5 ok")
                        .await?;
                    if !said.starts_with('2') {
                        rcpts.pop();
                    }
                }
                "DATA" => {
                    let said = self
                        .answer(&mut stream, Stage::Data, &line, &rcpts, "354 go ahead")
                        .await?;
                    if !said.starts_with("354") {
                        continue;
                    }
                    let data = body(&mut stream).await?;
                    let mail = Mail {
                        from: std::mem::take(&mut from),
                        rcpts: rcpts.clone(),
                        data,
                        connection: self.connection,
                        at: Instant::now(),
                    };
                    self.end(&mut stream, &line, mail).await?;
                    rcpts.clear();
                }
                "QUIT" => return stream.write_all(b"221 bye\r\n").await.ok(),
                _ => {
                    if verb == "RSET" {
                        rcpts.clear();
                    }
                    self.answer(&mut stream, Stage::Other, &line, &rcpts, "250 ok")
                        .await?;
                }
            }
        }
    }

    async fn line(&self, stream: &mut BufReader<Box<dyn Stream>>) -> Option<String> {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        assert!(line.ends_with("\r\n"), "{line:?} ends without CRLF");
        let line = line.trim_end().to_owned();
        self.seen.lock().unwrap().commands.push(line.clone());
        Some(line)
    }

    fn ask(&self, stage: Stage, line: &str, rcpts: &[String]) -> Answer {
        (self.script)(&Step {
            stage,
            connection: self.connection,
            tls: self.tls,
            line,
            rcpts,
        })
    }

    /// What was said; `None`: this connection is over.
    async fn answer(
        &self,
        stream: &mut BufReader<Box<dyn Stream>>,
        stage: Stage,
        line: &str,
        rcpts: &[String],
        usual: &str,
    ) -> Option<String> {
        let answer = self.ask(stage, line, rcpts);
        perform(stream, answer, usual).await
    }

    /// A mail that the script lets pass is kept before the client learns of it.
    async fn end(
        &self,
        stream: &mut BufReader<Box<dyn Stream>>,
        line: &str,
        mail: Mail,
    ) -> Option<String> {
        let answer = self.ask(Stage::End, line, &mail.rcpts);
        let accepts = match &answer {
            Answer::Usual | Answer::ThenHangUp => true,
            Answer::Say(text) | Answer::Late(_, text) | Answer::Drip(_, text) => {
                text.starts_with("250")
            }
            Answer::Raw(bytes) => bytes.starts_with(b"250"),
            Answer::HangUp | Answer::Silence => false,
        };
        if accepts {
            self.seen.lock().unwrap().mails.push(mail);
        }
        perform(stream, answer, "250 2.0.0 queued as 1").await
    }
}

async fn perform(
    stream: &mut BufReader<Box<dyn Stream>>,
    answer: Answer,
    usual: &str,
) -> Option<String> {
    let (text, goes_on) = match answer {
        Answer::Usual => (usual.to_owned(), true),
        Answer::Say(text) => (text, true),
        Answer::ThenHangUp => (usual.to_owned(), false),
        Answer::HangUp => return None,
        Answer::Late(wait, text) => {
            tokio::time::sleep(wait).await;
            (text, true)
        }
        Answer::Drip(pause, text) => {
            for byte in format!("{text}\r\n").bytes() {
                stream.write_all(&[byte]).await.ok()?;
                stream.flush().await.ok()?;
                tokio::time::sleep(pause).await;
            }
            return Some(text);
        }
        Answer::Raw(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()?;
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        Answer::Silence => {
            while !stream.fill_buf().await.ok()?.is_empty() {
                let n = stream.buffer().len();
                stream.consume(n);
            }
            return None;
        }
    };
    stream
        .write_all(format!("{text}\r\n").as_bytes())
        .await
        .ok()?;
    stream.flush().await.ok()?;
    goes_on.then_some(text)
}

fn path(line: &str) -> String {
    let (_, rest) = line.split_once('<').unwrap();
    rest.split_once('>').unwrap().0.to_owned()
}

/// A message up to its final dot, its dots halved.
async fn body(stream: &mut BufReader<Box<dyn Stream>>) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let start = data.len();
        if stream.read_until(b'\n', &mut data).await.ok()? == 0 {
            return None;
        }
        assert!(data.ends_with(b"\r\n"), "a line ends without CRLF");
        if data[start..] == *b".\r\n" {
            data.truncate(start);
            return Some(data);
        }
        if data[start] == b'.' {
            data.remove(start);
        }
    }
}
