//! The way to the target: datagrams, a TCP stream, or one inside TLS.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use toml::Spanned;

use super::lines::Lines;
use super::target::Target;
use super::target::Transport;
use crate::settings::Check;
use crate::tls;

/// Single lines are gathered into pieces of about this size.
const WRITE_BYTES: usize = 64 * 1024;

/// Nobody who is there takes longer to answer, to shake hands or to close.
const PATIENCE: Duration = Duration::from_secs(5);

/// An ICMP message that nobody listens is there by then, if it comes at all.
const REFUSAL_TIME: Duration = Duration::from_millis(100);

/// Whom a `tls://` target must be, and who the simulated FortiGate is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The authorities that may have signed the target's certificate, in PEM; absent: those of the system.
    pub ca: Option<PathBuf>,
    /// The client certificate and its key, in PEM (`set certificate`).
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Identity {
    fn client_config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let ca = self.ca.clone().map(|path| Spanned::new(0..0, path));
        let mut check = Check::new(".", None, false);
        let Some(config) = tls::client_config(ca.as_ref(), &mut check) else {
            let said: Vec<_> = check.findings().into_iter().map(|f| f.text).collect();
            bail!("{}", said.join("; "));
        };
        let Some((certificate, key)) = &self.certificate else {
            return Ok(config);
        };
        let unreadable = |path: &PathBuf| format!("{} can't be read", path.display());
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| unreadable(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| unreadable(key))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let own = CertifiedKey::from_der(chain, key, &provider)
            .with_context(|| format!("{} is no certificate to use", certificate.display()))?;
        let mut config = ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(own));
        Ok(Arc::new(config))
    }
}

/// A stream of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) enum Sender {
    Datagrams(UdpSocket),
    Stream {
        stream: Box<dyn Stream>,
        waiting: Vec<u8>,
    },
}

impl Sender {
    pub(super) async fn open(to: &Target, identity: &Identity) -> anyhow::Result<Self> {
        let addresses: Vec<SocketAddr> = lookup_host((to.host.as_str(), to.port))
            .await
            .with_context(|| format!("the name {} has no address", to.host))?
            .collect();
        if to.transport == Transport::Udp {
            return datagrams(to, &addresses).await;
        }
        // Before anything is connected: a wrong file is no matter of the network.
        let tls = match to.transport {
            Transport::Tls => Some(identity.client_config()?),
            _ => None,
        };
        let stream = timeout(PATIENCE, TcpStream::connect(&addresses[..]))
            .await
            .with_context(|| format!("{to} does not answer"))?
            .with_context(|| format!("connecting to {to} failed"))?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => Box::new(handshake(to, config, stream).await?),
        };
        Ok(Self::Stream {
            stream,
            waiting: Vec::with_capacity(2 * WRITE_BYTES),
        })
    }

    /// Sends these lines. On a stream a few of them wait for more, until [`flush`](Self::flush).
    pub(super) async fn send(&mut self, lines: &Lines, which: Range<usize>) -> io::Result<()> {
        match self {
            Self::Datagrams(socket) => {
                for text in lines.texts(which) {
                    match socket.try_send(text) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            socket.send(text).await?;
                        }
                        sent => {
                            sent?;
                        }
                    }
                }
            }
            Self::Stream { stream, waiting } => {
                let bytes = lines.stream(which);
                if waiting.len() + bytes.len() < WRITE_BYTES {
                    waiting.extend_from_slice(bytes);
                    return Ok(());
                }
                // A relay whose outbox is away reads on when it is back; who runs this can end it.
                stream.write_all(waiting).await?;
                waiting.clear();
                stream.write_all(bytes).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if let Self::Stream { stream, waiting } = self {
            stream.write_all(waiting).await?;
            waiting.clear();
            stream.flush().await?;
        }
        Ok(())
    }

    /// Ends the sending, which went so until now, and listens for a refusal: the sender of syslog hears of nothing else.
    pub(super) async fn close(self, sent: io::Result<()>) -> io::Result<()> {
        let (sent, heard) = match self {
            Self::Datagrams(socket) => (sent, timeout(REFUSAL_TIME, socket.recv(&mut [0])).await),
            Self::Stream { mut stream, .. } => {
                let sent = match sent {
                    Ok(()) => stream.shutdown().await,
                    broken => broken,
                };
                (sent, timeout(PATIENCE, stream.read(&mut [0])).await)
            }
        };
        match heard.unwrap_or(Ok(0)) {
            // Under TLS 1.3 the listener looks at the certificate while the first lines are on their way: they find the
            // connection broken, and the reason was said before.
            Err(why) if sent.is_ok() || tls_alert(&why).is_some() => Err(why),
            _ => sent,
        }
    }
}

async fn datagrams(to: &Target, addresses: &[SocketAddr]) -> anyhow::Result<Sender> {
    let Some(address) = addresses.first() else {
        bail!("the name {} has no address", to.host);
    };
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await.context("no UDP socket")?;
    socket
        .connect(address)
        .await
        .with_context(|| format!("no way to {to}"))?;
    Ok(Sender::Datagrams(socket))
}

async fn handshake(
    to: &Target,
    config: Arc<ClientConfig>,
    stream: TcpStream,
) -> anyhow::Result<impl Stream + use<>> {
    let name = ServerName::try_from(to.host.clone())
        .with_context(|| format!("{} can't be the name in a certificate", to.host))?;
    let shaken = timeout(PATIENCE, TlsConnector::from(config).connect(name, stream))
        .await
        .with_context(|| format!("{to} does not answer in TLS"))?;
    shaken.map_err(|error| {
        let why = match tls::certificate_error(&error, &to.host) {
            Some(why) => why.replace("ca_file", "--ca"),
            None => format!("no TLS connection to {to}; does that port speak TLS?"),
        };
        anyhow!(error).context(why)
    })
}

/// What a sender's error most likely means.
pub(super) fn explain(error: io::Error) -> anyhow::Error {
    // The relay ends TLS in order; who breaks off has refused.
    if tls_alert(&error).is_some() || error.kind() == io::ErrorKind::UnexpectedEof {
        return anyhow!(error).context(
            "refused in TLS; does that listener want a client certificate (--cert, --key)?",
        );
    }
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the connection was closed from there; is this sender within the listener's `allow`?"
        }
        _ => return error.into(),
    };
    anyhow!(error).context(why)
}

fn tls_alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
