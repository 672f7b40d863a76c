//! The FortiGates in a hurry: the same bytes again and again over some connections, an activation now and then.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::Result;
use crate::sample;

/// So many lines are written at once: some 256 KiB.
const LINES_PER_WRITE: usize = 331;

/// How messages are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A line feed behind each.
    Lf,
    /// Its length in front of each (RFC 6587).
    Counted,
}

impl Framing {
    pub fn frame(self, message: &str) -> String {
        match self {
            Self::Lf => format!("{message}\n"),
            Self::Counted => format!("{} {message}", message.len()),
        }
    }
}

/// What is to be sent.
#[derive(Clone, Copy)]
pub struct Flood {
    pub lines: usize,
    pub connections: usize,
    pub framing: Framing,
    pub tls: bool,
}

/// What was sent, and how long it took until the receiver had read the end of it.
pub struct Sent {
    pub lines: usize,
    pub bytes: usize,
    pub activations: usize,
    pub took: Duration,
}

pub fn flood(to: SocketAddr, flood: Flood) -> Result<Sent> {
    let noise: Vec<String> = (0..LINES_PER_WRITE)
        .map(|n| flood.framing.frame(&sample::traffic(n)))
        .collect();
    let noise: Arc<str> = noise.concat().into();
    let begin = Instant::now();
    let senders: Vec<_> = (0..flood.connections)
        .map(|connection| {
            let noise = Arc::clone(&noise);
            thread::spawn(move || send(to, flood, connection, &noise).map_err(|e| e.to_string()))
        })
        .collect();
    let mut sent = Sent {
        lines: 0,
        bytes: 0,
        activations: 0,
        took: Duration::ZERO,
    };
    for sender in senders {
        let one = sender.join().map_err(|_| "a sender panicked")??;
        sent.lines += one.lines;
        sent.bytes += one.bytes;
        sent.activations += one.activations;
    }
    sent.took = begin.elapsed();
    Ok(sent)
}

fn send(to: SocketAddr, flood: Flood, connection: usize, noise: &str) -> Result<Sent> {
    let tcp = TcpStream::connect(to)?;
    let mut stream = Way::open(tcp, flood.tls)?;
    let mut sent = Sent {
        lines: 0,
        bytes: 0,
        activations: 0,
        took: Duration::ZERO,
    };
    while sent.lines < flood.lines / flood.connections {
        stream.write_all(noise.as_bytes())?;
        sent.lines += LINES_PER_WRITE;
        sent.bytes += noise.len();
        if sent.lines / sample::ONE_IN >= sent.activations {
            let event = sample::activation(connection * 100_000 + sent.activations);
            let event = flood.framing.frame(&event);
            stream.write_all(event.as_bytes())?;
            sent.lines += 1;
            sent.bytes += event.len();
            sent.activations += 1;
        }
    }
    stream.finish()?;
    Ok(sent)
}

/// Sends a stream and waits until the receiver has read its end.
pub fn send_once(to: SocketAddr, stream: &[u8]) -> Result<()> {
    let mut way = Way::open(TcpStream::connect(to)?, false)?;
    way.write_all(stream)?;
    way.finish()
}

/// A connection, plain or not.
pub enum Way {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Way {
    pub fn open(tcp: TcpStream, tls: bool) -> Result<Self> {
        if !tls {
            return Ok(Self::Plain(tcp));
        }
        let session = ClientConnection::new(client_config()?, "localhost".try_into()?)?;
        let mut stream = StreamOwned::new(session, tcp);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// The receiver closes when it has read everything.
    fn finish(mut self) -> Result<()> {
        let tcp = match &mut self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => {
                tls.conn.send_close_notify();
                tls.flush()?;
                &mut tls.sock
            }
        };
        tcp.shutdown(Shutdown::Write)?;
        tcp.set_read_timeout(Some(crate::PATIENCE))?;
        let mut rest = [0; 4096];
        while let Ok(1..) = tcp.read(&mut rest) {}
        Ok(())
    }
}

// === A certificate for the run ===

/// Where the certificate and its key are; made once, and shared with the child that reads bare.
pub fn certificate() -> Result<(PathBuf, PathBuf)> {
    static MADE: OnceLock<std::result::Result<(PathBuf, PathBuf), String>> = OnceLock::new();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (cert, key) = (dir.join("peers-cert.pem"), dir.join("peers-key.pem"));
    MADE.get_or_init(|| {
        if std::env::args().any(|arg| arg == "--bare") {
            return Ok((cert, key));
        }
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .map_err(|e| e.to_string())?;
        fs::write(&cert, made.cert.pem()).map_err(|e| e.to_string())?;
        fs::write(&key, made.signing_key.serialize_pem()).map_err(|e| e.to_string())?;
        Ok((cert, key))
    })
    .clone()
    .map_err(Into::into)
}

pub fn server_config() -> Result<Arc<ServerConfig>> {
    let (cert, key) = certificate()?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    Ok(Arc::new(config))
}

fn client_config() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate()?.0)?)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
