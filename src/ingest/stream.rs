//! TCP connections, plain or under TLS, become frames. A full queue makes them wait; a limit of time and memory stands before everything a peer may do.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::accept::DRAIN_TIME;
use super::framing::Decoder;
use super::framing::Event;
use super::intake::Closed;
use super::intake::GateCache;
use super::intake::Intake;
use super::intake::Room;
use super::listener::Listener;
use super::listener::SAMPLE_PERIOD;
use super::listener::SettingsCache;
use super::tls;
use crate::frame::Peer;
use crate::metrics::Rejected;

/// So many reads are taken from one connection before the others get a turn.
const READS_PER_TURN: usize = 16;

/// So much a connection is read once the relay is to end.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;

/// A connection's socket, and the TLS that is spoken over it.
pub(super) struct Wire {
    socket: TcpStream,
    // Boxed, so that ten thousand plain connections don't pay for it.
    session: Option<Box<ServerConnection>>,
}

impl Wire {
    pub(super) fn plain(socket: TcpStream) -> Self {
        Self {
            socket,
            session: None,
        }
    }

    pub(super) fn tls(socket: TcpStream, session: ServerConnection) -> Self {
        Self {
            socket,
            session: Some(Box::new(session)),
        }
    }

    /// Whether the peer has shown a certificate, which was verified then.
    fn is_certified(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.peer_certificates().is_some())
    }

    /// Appends what is there in clear; `WouldBlock`: nothing is. 0: the peer has ended the stream.
    fn read(&mut self, clear: &mut Vec<u8>) -> io::Result<usize> {
        match &mut self.session {
            None => self.socket.try_read_buf(clear),
            Some(session) => tls::read(session, &mut Heard(&self.socket), clear),
        }
    }

    /// The same of what the kernel holds: tokio answers from what it last heard of readiness.
    fn read_from_kernel(&mut self, clear: &mut Vec<u8>) -> io::Result<usize> {
        let socket = &mut Kernel(&self.socket);
        match &mut self.session {
            None => {
                let held = clear.len();
                clear.resize(clear.capacity(), 0);
                let read = socket.read(&mut clear[held..]);
                clear.truncate(held + *read.as_ref().unwrap_or(&0));
                read
            }
            Some(session) => tls::read(session, socket, clear),
        }
    }
}

impl Drop for Wire {
    /// Under TLS an end is said (RFC 5425, section 4.4), if the socket takes the few bytes at once.
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            drop(session.write_tls(&mut Heard(&self.socket)));
        }
    }
}

/// Reads and writes what is possible at once, as far as tokio knows.
struct Heard<'a>(&'a TcpStream);

impl Read for Heard<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for Heard<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads and writes what is possible at once, as the kernel knows.
struct Kernel<'a>(&'a TcpStream);

impl Read for Kernel<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, bytes)?)
    }
}

impl Write for Kernel<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct Connection {
    peer: IpAddr,
    from: Peer,
    decoder: Decoder,
    gate: GateCache,
    settings: SettingsCache,
    listener: Arc<Listener>,
    next_sample: Instant,
    /// When the last message was complete, or, between two, when the peer last sent anything.
    progress: Instant,
    patience: Patience,
    certified: bool,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Read,
    Close,
}

impl Connection {
    /// A connection from `peer`, of whom `from` says all that is known.
    pub(super) fn new(
        listener: Arc<Listener>,
        from: Peer,
        peer: IpAddr,
        shutdown: CancellationToken,
    ) -> Self {
        let settings = listener.settings.load();
        Self {
            peer,
            from,
            decoder: Decoder::new(settings.max_frame_bytes()),
            gate: listener.gate(),
            settings: listener.settings_cache(),
            listener,
            next_sample: Instant::now(),
            progress: Instant::now(),
            patience: Patience {
                shutdown,
                end: None,
            },
            certified: false,
        }
    }

    /// Turns what comes in into frames until the peer, or the relay, ends it.
    pub(super) async fn run(mut self, mut wire: Wire) -> Result<(), Closed> {
        let shutdown = self.patience.shutdown.clone();
        self.certified = wire.is_certified();
        loop {
            // At the beginning too: with the end of a handshake the first messages may have come.
            for _ in 0..READS_PER_TURN {
                match wire.read(self.decoder.space()) {
                    Ok(0) => return self.end().await,
                    Ok(_) => {
                        if self.take().await? == Next::Close {
                            return Ok(());
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.broken();
                        return Ok(());
                    }
                }
            }
            self.decoder.rest();
            let idle = self.progress + self.settings.load().idle_timeout();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.drain(wire).await,
                ready = wire.socket.readable() => if ready.is_err() {
                    self.broken();
                    return Ok(());
                },
                () = sleep_until(idle.into()) => {
                    debug!(listener = &*self.listener.name, peer = %self.peer, "Closing a connection that said nothing for `idle_timeout`");
                    return self.end().await;
                }
            }
        }
    }

    /// Takes every message that is complete.
    async fn take(&mut self) -> Result<Next, Closed> {
        let Self {
            peer,
            from,
            decoder,
            gate,
            settings,
            listener,
            next_sample,
            progress,
            patience,
            certified,
        } = self;
        let (peer, now) = (*peer, Instant::now());
        let settings = settings.load();
        if !settings.allows(peer) {
            listener.reject(Rejected::Peer, peer);
            return Ok(Next::Close);
        }
        if settings.verifies_clients() && !*certified {
            listener.handshake_failed(
                peer,
                "it connected before `client_ca` was set, and without a certificate; it may connect again with one",
            );
            return Ok(Next::Close);
        }
        decoder.set_max_bytes(settings.max_frame_bytes());
        let gate = gate.load();
        let mut sample =
            now >= *next_sample && listener.intake.is_calm() && listener.samples.is_due(peer, now);
        let mut frames = Frames {
            listener,
            uncounted: 0,
        };
        let mut next = Next::Read;
        while let Some(event) = decoder.next() {
            *progress = now;
            match event {
                Event::Frame(message) => {
                    frames.uncounted += 1;
                    let wanted = gate(message);
                    if !wanted && !sample {
                        continue;
                    }
                    let mut room = listener.intake.room_now(message.len())?;
                    if wanted && room.is_none() {
                        frames.count();
                        room = patience.room(&listener.intake, message.len()).await?;
                        *progress = Instant::now();
                    }
                    match room {
                        Some(room) => {
                            if !wanted {
                                sample = false;
                                *next_sample = now + SAMPLE_PERIOD;
                                if !listener.samples.take(peer, now) {
                                    continue;
                                }
                            }
                            listener.put(message, from, room)?;
                        }
                        None if wanted => listener.reject(listener.intake.full(), peer),
                        None => sample = false,
                    }
                }
                Event::TooLong => {
                    frames.uncounted += 1;
                    listener.reject(Rejected::Size, peer);
                }
                Event::BadCount => listener.reject(Rejected::Framing, peer),
                Event::Cut => {
                    frames.uncounted += 1;
                    listener.reject(Rejected::Framing, peer);
                }
                Event::Foreign(protocol) => {
                    listener.advise(protocol, peer);
                    next = Next::Close;
                    break;
                }
            }
        }
        if decoder.is_between() {
            *progress = Instant::now();
        }
        Ok(next)
    }

    /// The peer has ended the stream, or is silent for so long that it might as well have: what it sent last needs no trailer.
    async fn end(mut self) -> Result<(), Closed> {
        self.decoder.finish();
        self.take().await.map(|_| ())
    }

    /// The stream broke. What it broke off in is not handed on: a cut record may name another person than the whole one.
    fn broken(&self) {
        if !self.decoder.is_between() {
            self.listener.metrics.frames.inc();
            self.listener.reject(Rejected::Framing, self.peer);
        }
    }

    /// Reads what the peer has sent so far. It believes that this was delivered.
    async fn drain(mut self, mut wire: Wire) -> Result<(), Closed> {
        let end = self.patience.end();
        let mut drained = 0;
        while drained < DRAIN_BYTES && Instant::now() < end {
            match wire.read_from_kernel(self.decoder.space()) {
                Ok(0) => return self.end().await,
                Ok(n) => {
                    drained += n;
                    if self.take().await? == Next::Close {
                        return Ok(());
                    }
                    tokio::task::yield_now().await;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.broken();
        Ok(())
    }
}

/// Counts frames by the read, not one by one: connections share the counter's cache line.
struct Frames<'a> {
    listener: &'a Listener,
    uncounted: u64,
}

impl Frames<'_> {
    fn count(&mut self) {
        self.listener
            .metrics
            .frames
            .inc_by(std::mem::take(&mut self.uncounted));
    }
}

impl Drop for Frames<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// How long a connection waits for the pipeline: without end, until the relay is to end.
struct Patience {
    shutdown: CancellationToken,
    end: Option<Instant>,
}

impl Patience {
    fn end(&mut self) -> Instant {
        *self.end.get_or_insert_with(|| Instant::now() + DRAIN_TIME)
    }

    /// Room for a message; `None`: it came to nothing before the end.
    async fn room(&mut self, intake: &Intake, bytes: usize) -> Result<Option<Room>, Closed> {
        let shutdown = self.shutdown.clone();
        let over = async {
            shutdown.cancelled().await;
            sleep_until(self.end().into()).await;
        };
        tokio::select! {
            room = intake.room(bytes) => room.map(Some),
            () = over => Ok(None),
        }
    }
}
