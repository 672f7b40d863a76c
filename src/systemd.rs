//! What the service manager gives and is told: sockets that outlive a restart, and readiness, reloads, the end, a watchdog.
//!
//! Without a service manager nothing of this does anything.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::warn;

/// Sockets that the service manager has bound (systemd.socket(5)): datagrams and connections wait in them over a restart.
#[derive(Debug, Default)]
pub struct Inherited {
    datagram: Vec<UdpSocket>,
    stream: Vec<TcpListener>,
}

impl Inherited {
    /// Takes them over, once for the whole process: call it before anything else opens a descriptor. What is no socket of UDP
    /// or TCP stays closed to us.
    pub fn from_env() -> Self {
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for at in 0..passed.len() {
            if let Ok(Some(socket)) = passed.take_udp_socket(at) {
                inherited.datagram.push(socket);
            } else if let Ok(Some(socket)) = passed.take_tcp_listener(at) {
                inherited.stream.push(socket);
            } else {
                warn!(
                    "Descriptor {} from the service manager is no socket of UDP or TCP and stays unused",
                    3 + at
                );
            }
        }
        inherited
    }

    /// The UDP socket with this address, if there is one; it is then the caller's.
    pub fn datagram(&mut self, address: SocketAddr) -> Option<UdpSocket> {
        take(&mut self.datagram, |socket| {
            socket.local_addr().is_ok_and(|a| a == address)
        })
    }

    /// The listening TCP socket with this address, if there is one; it is then the caller's.
    pub fn stream(&mut self, address: SocketAddr) -> Option<TcpListener> {
        take(&mut self.stream, |socket| {
            socket.local_addr().is_ok_and(|a| a == address)
        })
    }

    /// The addresses of those that nobody took, each with its transport.
    pub fn left(&self) -> Vec<String> {
        let datagram = self.datagram.iter().map(|s| ("UDP", s.local_addr()));
        let stream = self.stream.iter().map(|s| ("TCP", s.local_addr()));
        datagram
            .chain(stream)
            .filter_map(|(transport, address)| Some(format!("{transport} {}", address.ok()?)))
            .collect()
    }
}

fn take<T>(all: &mut Vec<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let at = all.iter().position(wanted)?;
    Some(all.swap_remove(at))
}

/// The service is up; `status` says in words what it does.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it. systemd 253 and later want to know when it began, to tell it from an older one.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The service ends, after what is under way.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// What the service does now, in words.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The service is alive. To be said well within [`watchdog_period`].
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// After so long without [`alive`] the service manager kills the service (`WatchdogSec=`).
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        let away = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        );
        if !away {
            warn!(%error, "The service manager can't be told");
        }
    }
}
