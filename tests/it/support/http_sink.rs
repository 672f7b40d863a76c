//! An HTTP server that keeps what it was sent and answers as a test says.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The longest request a test sends.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// What came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of the one header of this name.
    pub fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().unwrap_or_else(|| panic!("no header {name}"));
        assert!(found.next().is_none(), "{name} stands twice");
        &value.1
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What goes out.
pub enum Answer {
    Reply {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Takes the request and says nothing.
    Silence,
    /// Takes the request and ends the connection.
    Close,
    /// Just these bytes, then the end of the connection.
    Raw(Vec<u8>),
}

/// A status and a body.
pub fn reply(status: u16, body: &str) -> Answer {
    Answer::Reply {
        status,
        headers: Vec::new(),
        body: body.to_owned(),
    }
}

/// The server; it ends with the test.
pub struct HttpSink {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpSink {
    pub async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(None, answer).await
    }

    pub async fn start_tls(
        tls: TlsAcceptor,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(tls), answer).await
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut peers = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, seen, answer) = (tls.clone(), Arc::clone(&seen), Arc::clone(&answer));
                peers.spawn(async move {
                    match tls {
                        None => exchange(socket, &seen, &*answer).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => exchange(socket, &seen, &*answer).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self {
            port,
            requests,
            task,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Requests on one connection, until it ends; `None` says that it did.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    seen: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request) -> Answer + ?Sized),
) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let request = read(&mut socket, &mut buffer).await?;
        seen.lock().unwrap().push(request.clone());
        match answer(&request) {
            Answer::Close => return None,
            Answer::Raw(bytes) => {
                socket.write_all(&bytes).await.ok()?;
                return None;
            }
            Answer::Silence => {
                // Until the other side has had enough.
                socket.read_u8().await.ok()?;
            }
            Answer::Reply {
                status,
                headers,
                body,
            } => {
                let mut head = format!(
                    "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n",
                    body.len()
                );
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                socket
                    .write_all(format!("{head}\r\n{body}").as_bytes())
                    .await
                    .ok()?;
            }
        }
    }
}

async fn read<S: AsyncRead + Unpin>(socket: &mut S, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        match buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            Some(end) => break end,
            None => more(socket, buffer).await?,
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, value)| value.parse().unwrap());
    while buffer.len() < end + 4 + length {
        more(socket, buffer).await?;
    }
    let body = buffer[end + 4..end + 4 + length].to_vec();
    buffer.drain(..end + 4 + length);
    Some(Request {
        method,
        path,
        headers,
        body,
    })
}

async fn more<S: AsyncRead + Unpin>(socket: &mut S, buffer: &mut Vec<u8>) -> Option<()> {
    assert!(buffer.len() < MAX_REQUEST_BYTES);
    match socket.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
