//! The ways in: sockets become frames. A way in is a struct of settings, a variant of [`Config`] and an arm of [`Bound::serve`].

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use socket2::Domain;
use socket2::Protocol;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;
use tokio_util::sync::CancellationToken;
use toml::Spanned;
use tracing::info;

use crate::glob::Glob;
use crate::metrics::ListenerMetrics;
use crate::settings::Check;
use crate::settings::Period;
use crate::systemd::Inherited;

pub mod framing;

mod accept;
mod drops;
mod intake;
mod listener;
mod network;
mod pace;
mod stitch;
mod stream;
mod tls;
mod udp;

pub use intake::Batch;
pub use intake::FrameReceiver;
pub use intake::Gate;
pub use intake::Intake;
pub use intake::MAX_WAITING_BYTES;
pub use intake::MAX_WAITING_FRAMES;
pub use intake::Outcome;
pub use intake::Reply;
pub use network::Network;
pub use pace::PerPeer;
pub use pace::Throttle;
pub use stitch::Stitch;
pub use stitch::record_of as record_of_stitch;
pub use tls::Tls;

/// The values of `transport`, one for each variant of [`Config`].
pub const KINDS: &[&str] = &["udp", "tcp", "tls", "stitch"];

/// Every receiver must take messages of this length (RFC 5424, section 6.1).
const LEAST_MAX_FRAME_BYTES: usize = 480;

/// Half of what may wait for its commit, so that one message can't fill the memory for all.
const MOST_MAX_FRAME_BYTES: usize = MAX_WAITING_BYTES / 2;

/// FortiOS's extended logs are up to 22 KB long over TCP.
const LONGEST_LOG_BYTES: usize = 22 * 1024;

/// What a socket is asked to hold while the relay looks elsewhere: 10,000 traffic logs and their overhead.
pub const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// So many connections may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const ACCEPT_BACKLOG: i32 = 1024;

/// One `[[listen]]`.
#[derive(Clone, Debug)]
pub enum Config {
    /// `transport = "udp"`
    Udp(Udp),
    /// `transport = "tcp"`
    Tcp(Tcp),
    /// `transport = "tls"`
    Tls(Tls),
    /// `transport = "stitch"`
    Stitch(Stitch),
}

/// `[[listen]]` with `transport = "udp"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// How logs and metrics call it.
    pub name: Option<Spanned<String>>,
    /// Where it listens.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Who may send.
    #[serde(default = "default_allow")]
    pub allow: Spanned<Vec<Network>>,
    /// Which devices are believed from here.
    #[serde(default = "default_devices")]
    pub devices: Spanned<Vec<Glob>>,
    /// The longest message that is taken.
    #[serde(default = "default_max_frame_bytes")]
    pub max_frame_bytes: Spanned<usize>,
}

/// `[[listen]]` with `transport = "tcp"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// How logs and metrics call it.
    pub name: Option<Spanned<String>>,
    /// Where it listens.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Who may connect.
    #[serde(default = "default_allow")]
    pub allow: Spanned<Vec<Network>>,
    /// Which devices are believed from here.
    #[serde(default = "default_devices")]
    pub devices: Spanned<Vec<Glob>>,
    /// The longest message that is taken.
    #[serde(default = "default_max_frame_bytes")]
    pub max_frame_bytes: Spanned<usize>,
    /// So many connections are open at a time.
    #[serde(default = "default_max_connections")]
    pub max_connections: Spanned<usize>,
    /// A connection that completes no message for so long is closed.
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout: Spanned<Period>,
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        de::Error::custom(format!(
            "\"{text}\" is no address to listen on; write an IP address and a port such as \"0.0.0.0:514\" or \"[::]:514\" (IPv4 and IPv6)"
        ))
    })
}

fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn default_allow() -> Spanned<Vec<Network>> {
    unplaced(Network::loopback())
}

fn default_devices() -> Spanned<Vec<Glob>> {
    unplaced(vec![Glob::new("*")])
}

fn default_max_frame_bytes() -> Spanned<usize> {
    unplaced(65_536)
}

fn default_max_connections() -> Spanned<usize> {
    unplaced(1024)
}

fn default_idle_timeout() -> Spanned<Period> {
    unplaced(Period::seconds(48 * 3600))
}

/// What every way in has.
macro_rules! of_each {
    ($config:expr, $of:ident => $value:expr) => {
        match $config {
            Config::Udp($of) => $value,
            Config::Tcp($of) => $value,
            Config::Tls($of) => $value,
            Config::Stitch($of) => $value,
        }
    };
}

impl Config {
    /// Reads one; `transport` is one of [`KINDS`], and taken out of the table.
    pub fn read<'de, D: Deserializer<'de>>(transport: &str, from: D) -> Result<Self, D::Error> {
        match transport {
            "udp" => Deserialize::deserialize(from).map(Self::Udp),
            "tcp" => Deserialize::deserialize(from).map(Self::Tcp),
            "tls" => Deserialize::deserialize(from).map(Self::Tls),
            "stitch" => Deserialize::deserialize(from).map(Self::Stitch),
            other => Err(de::Error::unknown_variant(other, KINDS)),
        }
    }

    /// The value of `transport`.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tcp(_) => "tcp",
            Self::Tls(_) => "tls",
            Self::Stitch(_) => "stitch",
        }
    }

    /// Whether its socket takes datagrams; two that differ in this may share an address.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// How logs and metrics call it: as configured, else `<transport>-<port>`.
    pub fn name(&self) -> Cow<'_, str> {
        match of_each!(self, of => &of.name) {
            Some(name) => name.get_ref().into(),
            None => format!("{}-{}", self.transport(), self.address().port()).into(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        of_each!(self, of => of.address)
    }

    /// Who may send.
    pub fn allow(&self) -> &[Network] {
        of_each!(self, of => of.allow.get_ref())
    }

    /// Whether this peer may send.
    pub fn allows(&self, peer: IpAddr) -> bool {
        self.allow().iter().any(|network| network.contains(peer))
    }

    /// Which devices are believed from here.
    pub fn devices(&self) -> &[Glob] {
        of_each!(self, of => of.devices.get_ref())
    }

    /// The longest message that is taken.
    pub fn max_frame_bytes(&self) -> usize {
        *of_each!(self, of => of.max_frame_bytes.get_ref())
    }

    /// So many connections are open at a time; none where there are no connections.
    pub fn max_connections(&self) -> usize {
        self.max_connections_spanned()
            .map_or(0, |most| *most.get_ref())
    }

    fn max_connections_spanned(&self) -> Option<&Spanned<usize>> {
        match self {
            Self::Udp(_) => None,
            Self::Tcp(tcp) => Some(&tcp.max_connections),
            Self::Tls(tls) => Some(&tls.max_connections),
            Self::Stitch(stitch) => Some(&stitch.max_connections),
        }
    }

    /// A connection that completes no message for so long is closed; zero where no connection outlives a message.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout_spanned()
            .map_or(Duration::ZERO, |idle| idle.get_ref().0)
    }

    fn idle_timeout_spanned(&self) -> Option<&Spanned<Period>> {
        match self {
            Self::Udp(_) | Self::Stitch(_) => None,
            Self::Tcp(tcp) => Some(&tcp.idle_timeout),
            Self::Tls(tls) => Some(&tls.idle_timeout),
        }
    }

    /// How it answers a TLS handshake; `None`: it speaks without TLS.
    fn tls_server(&self) -> Option<&tls::Server> {
        match self {
            Self::Udp(_) | Self::Tcp(_) => None,
            Self::Tls(tls) => tls.server(),
            Self::Stitch(stitch) => stitch.server(),
        }
    }

    /// Whether it asks for client certificates, so that their names can be believed.
    pub fn verifies_clients(&self) -> bool {
        match self {
            Self::Udp(_) | Self::Tcp(_) => false,
            Self::Tls(tls) => tls.client_ca.is_some(),
            Self::Stitch(stitch) => stitch.client_ca.is_some(),
        }
    }

    /// Reads certificates and secrets, and says what can't be right.
    pub fn build(&mut self, check: &mut Check) {
        self.check(check);
        match self {
            Self::Udp(_) | Self::Tcp(_) => {}
            Self::Tls(tls) => tls.build(check),
            Self::Stitch(stitch) => stitch.build(check),
        }
    }

    fn check(&self, check: &mut Check) {
        if let Some(name) = of_each!(self, of => &of.name)
            && (name.get_ref().trim().is_empty() || name.get_ref().contains(char::is_control))
        {
            check.problem(
                name.span(),
                "a listener's name is text on one line, not empty; leave `name` out for \"<transport>-<port>\"",
            );
        }
        let allow = of_each!(self, of => &of.allow);
        if allow.get_ref().is_empty() {
            check.problem(
                place(allow),
                "`allow` is empty, so nobody could send; write the addresses or networks of your FortiGates",
            );
        }
        if let Some(all) = allow.get_ref().iter().find(|n| n.is_everything()) {
            check.warning(
                place(allow),
                format!("`allow` holds {all}, so anybody who reaches the port may send; write the addresses or networks of your FortiGates"),
            );
        }
        let devices = of_each!(self, of => &of.devices);
        if devices.get_ref().is_empty() {
            check.problem(
                place(devices),
                "`devices` is empty, so no device would be believed; leave it out for all of them",
            );
        }
        let max_frame_bytes = of_each!(self, of => &of.max_frame_bytes);
        if !(LEAST_MAX_FRAME_BYTES..=MOST_MAX_FRAME_BYTES).contains(max_frame_bytes.get_ref()) {
            check.problem(
                place(max_frame_bytes),
                format!("`max_frame_bytes` is {max_frame_bytes}; write a number from {LEAST_MAX_FRAME_BYTES} to {MOST_MAX_FRAME_BYTES} (16 MiB)"),
            );
        }
        if let Some(max_connections) = self.max_connections_spanned() {
            if (LEAST_MAX_FRAME_BYTES..LONGEST_LOG_BYTES).contains(max_frame_bytes.get_ref()) {
                check.warning(
                    place(max_frame_bytes),
                    format!("over TCP a FortiGate sends messages of up to {LONGEST_LOG_BYTES} bytes; those above `max_frame_bytes` are discarded"),
                );
            }
            if *max_connections.get_ref() == 0 {
                check.problem(
                    place(max_connections),
                    "`max_connections` is 0, so nobody could connect; write at least 1",
                );
            }
        }
        if let Some(idle) = self.idle_timeout_spanned()
            && idle.get_ref().0 < Duration::from_secs(1)
        {
            check.problem(
                place(idle),
                "`idle_timeout` is below one second; a filtered FortiGate is silent for hours, so write \"48h\"",
            );
        }
    }
}

/// The place of a value; none if it is a default.
fn place<T>(value: &Spanned<T>) -> Option<std::ops::Range<usize>> {
    Some(value.span()).filter(|span| !span.is_empty())
}

/// A socket that is bound and not served yet: the kernel keeps what comes in.
#[derive(Debug)]
pub struct Bound {
    socket: BoundSocket,
}

#[derive(Debug)]
enum BoundSocket {
    Udp(std::net::UdpSocket),
    Tcp(std::net::TcpListener),
}

/// A listener's socket, if the service manager has bound it already.
pub fn adopt(config: &Config, inherited: &mut Inherited) -> io::Result<Option<Bound>> {
    let address = config.address();
    let socket = if config.is_datagram() {
        let Some(socket) = inherited.datagram(address) else {
            return Ok(None);
        };
        enlarge(&SockRef::from(&socket), config)?;
        socket.set_nonblocking(true)?;
        BoundSocket::Udp(socket)
    } else {
        let Some(socket) = inherited.stream(address) else {
            return Ok(None);
        };
        socket.set_nonblocking(true)?;
        BoundSocket::Tcp(socket)
    };
    info!(
        listener = &*config.name(),
        "The service manager has bound {address}"
    );
    Ok(Some(Bound { socket }))
}

/// Binds a listener's socket. `[::]` takes IPv4 and IPv6.
pub fn bind(config: &Config) -> io::Result<Bound> {
    let address = config.address();
    let (kind, protocol) = if config.is_datagram() {
        (Type::DGRAM, Protocol::UDP)
    } else {
        (Type::STREAM, Protocol::TCP)
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    let socket = if config.is_datagram() {
        // Not SO_REUSEADDR: with it another process of ours could bind the port too and take the datagrams.
        enlarge(&socket, config)?;
        socket.bind(&address.into())?;
        BoundSocket::Udp(socket.into())
    } else {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(ACCEPT_BACKLOG)?;
        BoundSocket::Tcp(socket.into())
    };
    Ok(Bound { socket })
}

/// The size of a socket's receive buffer. Linux reports twice as much, since it counts its own overhead against it.
fn granted_bytes(socket: &Socket) -> io::Result<usize> {
    Ok(socket.recv_buffer_size()? / 2)
}

/// Asks for a large receive buffer and says what was granted.
fn enlarge(socket: &Socket, config: &Config) -> io::Result<()> {
    // Above net.core.rmem_max if we may (CAP_NET_ADMIN), else up to it; never below what `ReceiveBuffer=` of a socket unit gave.
    if granted_bytes(socket)? >= RECEIVE_BUFFER_BYTES {
        return Ok(());
    }
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER_BYTES)
        .is_err()
    {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    }
    let granted = granted_bytes(socket)?;
    let name = config.name();
    let listener = &*name;
    if granted < RECEIVE_BUFFER_BYTES {
        info!(
            listener,
            granted,
            "Asked for a receive buffer of {RECEIVE_BUFFER_BYTES} bytes, granted {granted}; `sysctl net.core.rmem_max={RECEIVE_BUFFER_BYTES}` allows more"
        );
    } else {
        info!(
            listener,
            granted, "The receive buffer holds {granted} bytes"
        );
    }
    Ok(())
}

impl Bound {
    /// Where it is bound, with the port that the kernel chose if the configuration says 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            BoundSocket::Udp(socket) => socket.local_addr(),
            BoundSocket::Tcp(socket) => socket.local_addr(),
        }
    }

    /// Turns what comes in into frames, until `shutdown` fires and what the kernel already holds is taken too.
    ///
    /// `settings` is read again for each datagram, read and handshake, so that a reload needs neither a new socket nor new
    /// connections; it must stay of the transport that was bound. An error means that the listener can't go on.
    pub async fn serve(
        self,
        intake: Intake,
        metrics: ListenerMetrics,
        settings: Arc<ArcSwap<Config>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let listener = listener::Listener::new(intake, metrics, settings);
        let name = listener.name.clone();
        let address = self.local_addr()?;
        let transport = listener.settings.load().transport();
        info!(listener = &*name, "Listening on {address} ({transport})");
        match self.socket {
            BoundSocket::Udp(socket) => udp::serve(socket, listener, shutdown).await,
            BoundSocket::Tcp(socket) => accept::serve(socket, listener, shutdown).await,
        }
        .with_context(|| format!("the listener {name} on {address} has ended"))
    }
}
