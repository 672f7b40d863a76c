//! Connections are taken in, as many as may be, and each is handed to what its transport speaks.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::anyhow;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use super::Config;
use super::framing::Protocol;
use super::intake::Closed;
use super::listener::Listener;
use super::pace::Throttle;
use super::stitch;
use super::stream;
use super::stream::Wire;
use super::tls;
use crate::frame::Peer;
use crate::metrics::Rejected;

/// A dead peer is noticed after two minutes and a half: a silent FortiGate is no sign of one.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(90))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// The pause behind an error of accept (no descriptor, no memory), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// So often errors of accept are told of.
const SAY_PERIOD: Duration = Duration::from_secs(60);

/// For so long a connection goes on once the relay is to end.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(2);

pub(super) async fn serve(
    socket: std::net::TcpListener,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let socket = TcpListener::from_std(socket)?;
    let mut connections = Connections {
        listener: Arc::new(listener),
        shutdown,
        running: JoinSet::new(),
    };
    let said_error = Throttle::new(SAY_PERIOD);
    loop {
        tokio::select! {
            biased;
            () = connections.shutdown.cancelled() => break,
            Some(ended) = connections.running.join_next() => outcome(ended)?,
            accepted = socket.accept() => match accepted {
                Ok((stream, from)) => connections.admit(stream, from.ip().to_canonical()),
                Err(e) if is_the_connections_own(&e) => debug!(error = %e, "A connection ended before it was accepted"),
                Err(error) => {
                    if said_error.hit(Instant::now()).is_some() {
                        warn!(listener = &*connections.listener.name, %error, "Connections can't be accepted at present; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    connections.admit_waiting(socket.into_std()?);
    while let Some(ended) = connections.running.join_next().await {
        outcome(ended)?;
    }
    Ok(())
}

/// What accept(2) reports of the connection, not of the listener.
fn is_the_connections_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

fn outcome(ended: Result<Result<(), Closed>, JoinError>) -> anyhow::Result<()> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Closed)) => Err(anyhow!("nobody takes the frames of this listener")),
        Err(error) => Err(anyhow!(error).context("a connection's task failed")),
    }
}

struct Connections {
    listener: Arc<Listener>,
    shutdown: CancellationToken,
    running: JoinSet<Result<(), Closed>>,
}

impl Connections {
    /// Takes a connection in, or turns it away.
    fn admit(&mut self, socket: TcpStream, peer: IpAddr) {
        let settings = self.listener.settings.load();
        if !settings.allows(peer) {
            self.listener.reject(Rejected::Peer, peer);
            return;
        }
        if self.running.len() >= settings.max_connections() {
            // `backlog`, because it is load that is refused, as with a datagram, and nothing about the peer.
            self.listener.reject(Rejected::Backlog, peer);
            return;
        }
        if let Err(error) = SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE) {
            debug!(%peer, %error, "Keep-alive can't be switched on");
        }
        let (listener, shutdown) = (self.listener.clone(), self.shutdown.clone());
        match &**settings {
            Config::Udp(_) => {}
            Config::Tcp(_) => {
                let connection = stream::Connection::new(listener, Peer::at(peer), peer, shutdown);
                self.running.spawn(connection.run(Wire::plain(socket)));
            }
            Config::Tls(_) => {
                self.running
                    .spawn(over_tls(socket, listener, peer, shutdown));
            }
            Config::Stitch(_) => {
                self.running
                    .spawn(stitch::answer(socket, listener, peer, shutdown));
            }
        }
    }

    /// Takes in what the kernel has accepted already: its sender believes it delivered.
    fn admit_waiting(&mut self, socket: std::net::TcpListener) {
        for _ in 0..super::ACCEPT_BACKLOG {
            let Ok((stream, from)) = socket.accept() else {
                return;
            };
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.admit(stream, from.ip().to_canonical());
            }
        }
    }
}

/// A connection of syslog over TLS: the handshake, then what a plain one does.
async fn over_tls(
    socket: TcpStream,
    listener: Arc<Listener>,
    peer: IpAddr,
    shutdown: CancellationToken,
) -> Result<(), Closed> {
    let shaken = tokio::select! {
        shaken = Box::pin(shake_hands(socket, &listener, peer)) => shaken,
        () = late(&shutdown) => None,
    };
    let Some(stream) = shaken else {
        return Ok(());
    };
    let (socket, session) = stream.into_inner();
    let from = Peer {
        certificate_names: tls::names(&session),
        ..Peer::at(peer)
    };
    stream::Connection::new(listener, from, peer, shutdown)
        .run(Wire::tls(socket, session))
        .await
}

/// Ends when a connection that is not done yet is to be given up, since the relay is to end.
pub(super) async fn late(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(DRAIN_TIME).await;
}

/// The handshake with the certificates of this moment. `None`: it came to nothing, which is counted and told of.
pub(super) async fn shake_hands(
    socket: TcpStream,
    listener: &Listener,
    peer: IpAddr,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tls::first_words(&socket).await {
        Ok(Some(Protocol::Tls)) => {}
        Ok(Some(other)) => {
            listener.advise(other, peer);
            return None;
        }
        Ok(None) => return None,
        Err(_) => {
            listener.handshake_failed(peer, "it said nothing");
            return None;
        }
    }
    let server = listener.settings.load().tls_server().cloned();
    let shaken = match server {
        Some(server) => server.shake_hands(socket).await,
        None => Err("the listener has no certificate".to_owned()),
    };
    shaken
        .map_err(|why| listener.handshake_failed(peer, &why))
        .ok()
}
