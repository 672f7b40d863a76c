//! The way to a peer, without a word to it: its name, the connection, its certificate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::channel::Transcript;
use crate::tls;

/// Connects; the error is the rest of a sentence that begins with the peer's name.
pub(super) async fn connect(
    host: &str,
    port: u16,
    limit: Duration,
    transcript: &Transcript,
) -> Result<TcpStream, String> {
    transcript.line(|| format!("> (connection to {host}, port {port})"));
    // The resolver takes an IPv6 address without its brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let outcome = match timeout(limit, TcpStream::connect((name, port))).await {
        Ok(Ok(stream)) => {
            if let Ok(peer) = stream.peer_addr() {
                transcript.line(|| format!("* connected to {peer}"));
            }
            Ok(stream)
        }
        Ok(Err(e)) => Err(format!("can't be reached: {e}; {}", advice(&e))),
        Err(_) => Err(format!(
            "can't be reached: no answer within {limit:?}; {SILENT}"
        )),
    };
    if let Err(why) = &outcome {
        transcript.line(|| format!("! {why}"));
    }
    outcome
}

/// The handshake, and what is to be said about it; the error is a whole sentence.
pub(super) async fn handshake(
    stream: TcpStream,
    tls: &Arc<ClientConfig>,
    host: &str,
    limit: Duration,
    transcript: &Transcript,
) -> Result<String, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(name) = ServerName::try_from(bare.to_owned()) else {
        return Err(format!(
            "{host} is no name that a certificate can be made out to"
        ));
    };
    let connector = TlsConnector::from(Arc::clone(tls));
    let outcome = match timeout(limit, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(tls::handshake(stream.get_ref().1, Timestamp::now())),
        Ok(Err(e)) => Err(tls::certificate_error(&e, host).unwrap_or_else(|| {
            format!("{host} doesn't speak TLS as we do: {e}; see whether it is a TLS port")
        })),
        Err(_) => Err(format!(
            "{host} did not end the TLS handshake within {limit:?}; {SILENT}"
        )),
    };
    transcript.line(|| match &outcome {
        Ok(told) => format!("* {told}"),
        Err(why) => format!("! {why}"),
    });
    outcome
}

/// What silence means, most often.
pub(super) const SILENT: &str = "a firewall on the way swallows it, most likely";

/// What to do about a connection that can't be made.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens at that port there: see that the port is right and the service runs"
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "this machine has no route there"
        }
        io::ErrorKind::TimedOut => SILENT,
        // The resolver's errors have no number of the system's.
        _ if error.raw_os_error().is_none() => {
            "its name can't be resolved here: see how it is written, and that this machine's DNS (/etc/resolv.conf) knows it"
        }
        _ => "see the network between here and there",
    }
}
