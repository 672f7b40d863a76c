//! TCP connections become frames. A full queue makes them wait; a limit of time and memory stands before everything a peer may do.

use std::io;
use std::io::Read;
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
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use super::framing::Decoder;
use super::framing::Event;
use super::intake::Closed;
use super::intake::GateCache;
use super::intake::Intake;
use super::intake::Room;
use super::listener::Listener;
use super::listener::SAMPLE_PERIOD;
use super::listener::SettingsCache;
use super::pace::Throttle;
use crate::metrics::Rejected;

/// A dead peer is noticed after two minutes and a half: a silent FortiGate is no sign of one.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(90))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// So many reads are taken from one connection before the others get a turn.
const READS_PER_TURN: usize = 16;

/// The pause behind an error of accept (no descriptor, no memory), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// So often errors of accept are told of.
const SAY_PERIOD: Duration = Duration::from_secs(60);

/// For so long, and so much, a connection is read once the relay is to end.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 16 * 1024 * 1024;

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
    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
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
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE) {
            debug!(%peer, %error, "Keep-alive can't be switched on");
        }
        let connection = Connection {
            peer,
            decoder: Decoder::new(settings.max_frame_bytes()),
            gate: self.listener.gate(),
            settings: self.listener.settings_cache(),
            listener: self.listener.clone(),
            next_sample: Instant::now(),
            progress: Instant::now(),
            patience: Patience {
                shutdown: self.shutdown.clone(),
                end: None,
            },
        };
        self.running.spawn(connection.run(stream));
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

struct Connection {
    peer: IpAddr,
    decoder: Decoder,
    gate: GateCache,
    settings: SettingsCache,
    listener: Arc<Listener>,
    next_sample: Instant,
    /// When the last message was complete, or, between two, when the peer last sent anything.
    progress: Instant,
    patience: Patience,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Read,
    Close,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) -> Result<(), Closed> {
        let shutdown = self.patience.shutdown.clone();
        loop {
            let idle = self.progress + self.settings.load().idle_timeout();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.drain(stream).await,
                ready = stream.readable() => if ready.is_err() {
                    self.broken();
                    return Ok(());
                },
                () = sleep_until(idle.into()) => {
                    debug!(listener = &*self.listener.name, peer = %self.peer, "Closing a connection that said nothing for `idle_timeout`");
                    return self.end().await;
                }
            }
            for _ in 0..READS_PER_TURN {
                match stream.try_read_buf(self.decoder.space()) {
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
        }
    }

    /// Takes every message that is complete.
    async fn take(&mut self) -> Result<Next, Closed> {
        let Self {
            peer,
            decoder,
            gate,
            settings,
            listener,
            next_sample,
            progress,
            patience,
        } = self;
        let (peer, now) = (*peer, Instant::now());
        let settings = settings.load();
        if !settings.allows(peer) {
            listener.reject(Rejected::Peer, peer);
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
                            listener.put(message, peer, room)?;
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
    async fn drain(mut self, stream: TcpStream) -> Result<(), Closed> {
        // As a plain socket, because tokio answers from what it last heard of readiness.
        let Ok(mut stream) = stream.into_std() else {
            return Ok(());
        };
        let end = self.patience.end();
        let mut drained = 0;
        while drained < DRAIN_BYTES && Instant::now() < end {
            let space = self.decoder.space();
            let held = space.len();
            space.resize(space.capacity(), 0);
            let read = stream.read(&mut space[held..]);
            space.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
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
