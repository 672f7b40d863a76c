//! An SMTP server that takes mail like any other, and misbehaves at the steps a test names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::authority::Identity;

/// A place in the dialogue at which the server speaks.
pub struct Step<'a> {
    /// The number of the connection, from 0.
    pub connection: usize,
    /// `CONNECT`, a command in capitals, `LOGIN` (a line of AUTH LOGIN) or `CONTENT` (after the final dot).
    pub verb: &'a str,
    /// Whether this is inside TLS.
    pub tls: bool,
}

/// What the server does there.
#[derive(Clone)]
pub enum Act {
    /// What a good server does.
    Usual,
    /// Says these bytes, and goes on as if they were right.
    Say(String),
    /// Waits for the signal, then says these bytes.
    SayAfter(Arc<Notify>, String),
    /// Says these bytes and closes the connection.
    SayAndClose(String),
    /// Closes the connection.
    Close,
    /// Says nothing more, but stays.
    Hang,
}

/// A message that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub from: String,
    pub to: Vec<String>,
    /// The content without the dots of the transport.
    pub content: String,
    /// The content as it came.
    pub wire: String,
}

/// What the server has seen.
#[derive(Clone, Default)]
pub struct Seen {
    /// Connections made.
    pub connections: usize,
    /// Connections that ended.
    pub closed: usize,
    /// Every command line, with the number of its connection.
    pub lines: Vec<(usize, String)>,
    /// Messages whose final dot was answered with 250.
    pub taken: Vec<Taken>,
    /// Final dots that came.
    pub final_dots: usize,
}

type Script = dyn Fn(&Step<'_>) -> Act + Send + Sync;
/// Whether a token is good for a scope.
type Tokens = dyn Fn(&str, &str) -> bool + Send + Sync;

struct Server {
    script: Box<Script>,
    acceptor: Option<TlsAcceptor>,
    implicit: bool,
    auth: &'static str,
    extensions: &'static [&'static str],
    tokens: Box<Tokens>,
    login: (String, String),
    seen: watch::Sender<Seen>,
}

/// How the server is set up.
pub struct Setup {
    script: Box<Script>,
    acceptor: Option<TlsAcceptor>,
    implicit: bool,
    auth: &'static str,
    extensions: &'static [&'static str],
    tokens: Box<Tokens>,
}

/// A running server; it ends when this is dropped.
pub struct Sink {
    pub address: SocketAddr,
    seen: watch::Receiver<Seen>,
    _listener: AbortOnDropHandle<()>,
}

/// The only account.
pub const USERNAME: &str = "ftm-relay";
/// What its tokens must be for.
pub const SCOPE: &str = "https://outlook.office365.com/.default";
/// Its password.
pub const PASSWORD: &str = "correct horse";

impl Setup {
    pub fn new() -> Self {
        Self {
            script: Box::new(|_| Act::Usual),
            acceptor: None,
            implicit: false,
            auth: "",
            extensions: &[],
            tokens: Box::new(|_, _| false),
        }
    }

    /// Offers STARTTLS with this certificate.
    pub fn starttls(mut self, identity: &Identity) -> Self {
        self.acceptor = Some(identity.acceptor());
        self
    }

    /// Speaks TLS from the first byte.
    pub fn implicit(mut self, identity: &Identity) -> Self {
        self.implicit = true;
        self.starttls(identity)
    }

    /// Offers these mechanisms.
    pub fn auth(mut self, mechanisms: &'static str) -> Self {
        self.auth = mechanisms;
        self
    }

    /// Offers these extensions; a parameter of one that isn't offered is refused.
    pub fn extensions(mut self, extensions: &'static [&'static str]) -> Self {
        self.extensions = extensions;
        self
    }

    /// Offers XOAUTH2 and believes these tokens, given for [`SCOPE`].
    pub fn xoauth2(mut self, tokens: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        self.tokens = Box::new(tokens);
        self.auth("LOGIN XOAUTH2")
    }

    /// Misbehaves.
    pub fn script(mut self, script: impl Fn(&Step<'_>) -> Act + Send + Sync + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    pub async fn start(self) -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.serve(listener)
    }

    /// Serves a listener that the test has bound.
    pub fn serve(self, listener: TcpListener) -> Sink {
        let (sender, seen) = watch::channel(Seen::default());
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Server {
            script: self.script,
            acceptor: self.acceptor,
            implicit: self.implicit,
            auth: self.auth,
            extensions: self.extensions,
            tokens: self.tokens,
            login: (base64(USERNAME.as_bytes()), base64(PASSWORD.as_bytes())),
            seen: sender,
        });
        let listener = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = server.seen.borrow().connections;
                server.seen.send_modify(|seen| seen.connections += 1);
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    // A connection that breaks is what many tests want.
                    drop(server.connection(number, stream).await);
                    server.seen.send_modify(|seen| seen.closed += 1);
                });
            }
        }));
        Sink {
            address,
            seen,
            _listener: listener,
        }
    }
}

impl Sink {
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until the server has seen enough.
    pub async fn until(&self, enough: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let waiting = seen.wait_for(enough);
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .expect("the server sees it in time")
            .unwrap()
            .clone()
    }
}

impl Seen {
    /// The commands of one connection, without their arguments.
    pub fn verbs(&self, connection: usize) -> Vec<String> {
        self.lines
            .iter()
            .filter(|(number, _)| *number == connection)
            .map(|(_, line)| line.split(' ').next().unwrap().to_owned())
            .collect()
    }
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn decoded(text: &str) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    String::from_utf8(bytes).ok()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

struct Connection {
    number: usize,
    tls: bool,
    stream: BufReader<Box<dyn Stream>>,
}

/// The connection is over.
struct End;

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Server {
    async fn connection(&self, number: usize, stream: TcpStream) -> Result<(), End> {
        let mut connection = Connection {
            number,
            tls: self.implicit,
            stream: BufReader::new(match (&self.acceptor, self.implicit) {
                (Some(acceptor), true) => Box::new(acceptor.accept(stream).await?),
                _ => Box::new(stream),
            }),
        };
        self.answer(&mut connection, "CONNECT", "220 sink ESMTP\r\n")
            .await?;
        let mut from = String::new();
        let mut to = Vec::new();
        loop {
            let line = connection.line().await?;
            self.seen
                .send_modify(|seen| seen.lines.push((number, line.clone())));
            let verb = line.split(' ').next().unwrap().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => {
                    let mut offer = "250-sink\r\n".to_owned();
                    if self.acceptor.is_some() && !connection.tls {
                        offer += "250-STARTTLS\r\n";
                    }
                    if !self.auth.is_empty() {
                        offer += &format!("250-AUTH {}\r\n", self.auth);
                    }
                    for extension in self.extensions {
                        offer += &format!("250-{extension}\r\n");
                    }
                    offer += "250 ENHANCEDSTATUSCODES\r\n";
                    self.answer(&mut connection, &verb, &offer).await?;
                }
                "STARTTLS" => {
                    self.answer(&mut connection, &verb, "220 2.0.0 go ahead\r\n")
                        .await?;
                    let plain = connection.stream.into_inner();
                    let acceptor = self.acceptor.as_ref().ok_or(End)?;
                    connection = Connection {
                        number,
                        tls: true,
                        stream: BufReader::new(Box::new(acceptor.accept(plain).await?)),
                    };
                }
                "AUTH" => {
                    let right = match line.split(' ').nth(1) {
                        Some("PLAIN") => {
                            let expected = format!("\0{USERNAME}\0{PASSWORD}");
                            line.ends_with(&format!(" {}", base64(expected.as_bytes())))
                        }
                        Some("XOAUTH2") => {
                            let right = self.believes(&line);
                            if !right {
                                self.challenge(&mut connection).await?;
                            }
                            right
                        }
                        _ => {
                            self.answer(&mut connection, "LOGIN", "334 VXNlcm5hbWU6\r\n")
                                .await?;
                            let name = connection.line().await?;
                            self.answer(&mut connection, "LOGIN", "334 UGFzc3dvcmQ6\r\n")
                                .await?;
                            (name, connection.line().await?) == self.login
                        }
                    };
                    let usual = match right {
                        true => "235 2.7.0 welcome\r\n",
                        false if line.contains("XOAUTH2") => {
                            "535 5.7.3 Authentication unsuccessful\r\n"
                        }
                        false => "535 5.7.8 authentication failed\r\n",
                    };
                    self.answer(&mut connection, &verb, usual).await?;
                }
                "MAIL" => {
                    from = path(&line);
                    to.clear();
                    let usual = self.parameters(&line).unwrap_or("250 2.1.0 ok\r\n");
                    self.answer(&mut connection, &verb, usual).await?;
                }
                "RCPT" => {
                    to.push(path(&line));
                    let usual = self.parameters(&line).unwrap_or("250 2.1.5 ok\r\n");
                    self.answer(&mut connection, &verb, usual).await?;
                }
                "DATA" => {
                    let said = self.answer(&mut connection, &verb, "354 go\r\n").await?;
                    if !said.starts_with("354") {
                        continue;
                    }
                    let wire = connection.content().await?;
                    self.seen.send_modify(|seen| seen.final_dots += 1);
                    let usual = "250 2.0.0 queued as 4F2A\r\n";
                    let said = self.answer(&mut connection, "CONTENT", usual).await?;
                    if said.starts_with("250") {
                        let taken = Taken {
                            from: std::mem::take(&mut from),
                            to: std::mem::take(&mut to),
                            content: wire.replace("\r\n..", "\r\n."),
                            wire,
                        };
                        self.seen.send_modify(|seen| seen.taken.push(taken));
                    }
                }
                "RSET" => {
                    to.clear();
                    self.answer(&mut connection, &verb, "250 2.0.0 ok\r\n")
                        .await?;
                }
                "QUIT" => {
                    self.answer(&mut connection, &verb, "221 2.0.0 bye\r\n")
                        .await?;
                    return Ok(());
                }
                _ => {
                    self.answer(&mut connection, &verb, "502 5.5.1 what?\r\n")
                        .await?;
                }
            }
        }
    }

    /// What a server says to a parameter of an extension that it did not offer.
    fn parameters(&self, line: &str) -> Option<&'static str> {
        let (_, parameters) = line.split_once('>').unwrap();
        parameters.split_whitespace().find_map(|parameter| {
            let keyword = parameter.split('=').next().unwrap();
            let needed = match keyword {
                "RET" | "ENVID" | "NOTIFY" | "ORCPT" => "DSN",
                "BODY" => "8BITMIME",
                other => other,
            };
            (!self.extensions.contains(&needed)).then_some("555 5.5.4 unsupported option\r\n")
        })
    }

    /// Whether an initial response of XOAUTH2 names the account and a good token.
    fn believes(&self, line: &str) -> bool {
        let response = line.split(' ').nth(2).and_then(decoded).unwrap_or_default();
        let prefix = format!("user={USERNAME}\x01auth=Bearer ");
        let token = response
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix("\x01\x01"));
        token.is_some_and(|token| (self.tokens)(token, SCOPE))
    }

    /// Says why a token is refused, and waits for the empty line.
    async fn challenge(&self, connection: &mut Connection) -> Result<(), End> {
        let json = format!(r#"{{"status":"401","schemes":"bearer","scope":"{SCOPE}"}}"#);
        let challenge = format!("334 {}\r\n", base64(json.as_bytes()));
        self.answer(connection, "XOAUTH2", &challenge).await?;
        let line = connection.line().await?;
        self.seen
            .send_modify(|seen| seen.lines.push((connection.number, line.clone())));
        match line.as_str() {
            "" => Ok(()),
            _ => Err(End),
        }
    }

    /// Says what the script wants, and returns it.
    async fn answer(
        &self,
        connection: &mut Connection,
        verb: &str,
        usual: &str,
    ) -> Result<String, End> {
        let act = (self.script)(&Step {
            connection: connection.number,
            verb,
            tls: connection.tls,
        });
        let text = match act {
            Act::Usual => usual.to_owned(),
            Act::Say(text) => text,
            Act::SayAfter(signal, text) => {
                signal.notified().await;
                text
            }
            Act::SayAndClose(text) => {
                connection.stream.write_all(text.as_bytes()).await?;
                connection.stream.flush().await?;
                return Err(End);
            }
            Act::Close => return Err(End),
            Act::Hang => {
                // The peer's end of the connection ends the silence.
                while !connection.stream.fill_buf().await?.is_empty() {
                    let n = connection.stream.buffer().len();
                    connection.stream.consume(n);
                }
                return Err(End);
            }
        };
        connection.stream.write_all(text.as_bytes()).await?;
        connection.stream.flush().await?;
        Ok(text)
    }
}

impl Connection {
    async fn line(&mut self) -> Result<String, End> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(End);
        }
        let line = String::from_utf8(line).map_err(|_| End)?;
        Ok(line.strip_suffix("\r\n").ok_or(End)?.to_owned())
    }

    /// The content up to the final dot, as it came.
    async fn content(&mut self) -> Result<String, End> {
        let mut content = String::new();
        loop {
            let line = self.line().await?;
            if line == "." {
                return Ok(content);
            }
            content += &line;
            content += "\r\n";
        }
    }
}

fn path(line: &str) -> String {
    let path = line
        .split_once('<')
        .and_then(|(_, rest)| rest.split_once('>'));
    path.map_or_else(String::new, |(path, _)| path.to_owned())
}
