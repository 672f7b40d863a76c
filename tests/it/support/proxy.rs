//! An HTTP proxy: CONNECT for https, whole URLs for http, with a log-in if it wants one.

use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The proxy; it ends with the test.
pub struct Proxy {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// With the user and password it wants, if it wants any.
    pub async fn start(login: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let login =
            login.map(|(user, password)| BASE64_STANDARD.encode(format!("{user}:{password}")));
        let task = tokio::spawn(async move {
            let mut peers = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                peers.spawn(serve(socket, login.clone(), Arc::clone(&seen)));
            }
        });
        Self { port, asked, task }
    }

    /// The first lines of what it was asked.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut client: TcpStream,
    login: Option<String>,
    asked: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut buffer = Vec::new();
    let end = loop {
        match buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            Some(end) => break end + 4,
            None if buffer.len() > MAX_HEAD_BYTES => return None,
            None if client.read_buf(&mut buffer).await.ok()? == 0 => return None,
            None => {}
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
    let first = head.lines().next()?.to_owned();
    asked.lock().unwrap().push(first.clone());
    let wanted = |login: String| format!("proxy-authorization: basic {login}").to_lowercase();
    if login.is_some_and(|login| !head.to_lowercase().contains(&wanted(login))) {
        let no = "HTTP/1.1 407 Log in\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(no.as_bytes()).await.ok();
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let authority = match method {
        "CONNECT" => target,
        _ => target.strip_prefix("http://")?.split('/').next()?,
    };
    let Ok(mut server) = TcpStream::connect(authority).await else {
        let no = "HTTP/1.1 502 Not there\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(no.as_bytes()).await.ok();
    };
    match method {
        "CONNECT" => client.write_all(b"HTTP/1.1 200 Go\r\n\r\n").await.ok()?,
        _ => server.write_all(&buffer).await.ok()?,
    }
    tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .ok()?;
    Some(())
}
