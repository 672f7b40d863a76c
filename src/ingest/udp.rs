//! Datagrams become frames, one each. Nothing waits here: what can't be queued is lost, and counted.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::drops::Drops;
use super::framing::trim_end;
use super::granted_bytes;
use super::intake::Closed;
use super::intake::GateCache;
use super::listener::Listener;
use super::listener::SettingsCache;
use super::pace::Throttle;
use crate::frame::Peer;
use crate::metrics::Rejected;

/// No datagram is longer, so none is cut.
const DATAGRAM_BYTES: usize = 65_536;

/// So many datagrams are taken before anything else gets a turn.
const DATAGRAMS_PER_TURN: usize = 256;

/// A turn that took so many leaves the socket alone for a while, so that the next one finds as many again: waking up costs more
/// than a datagram. The receive buffer holds several times what comes in that while.
const BUSY_DATAGRAMS: usize = 16;
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// With a buffer of [`LARGE_BUFFER_BYTES`]: 300,000 datagrams a second fill less than half of it in that time.
const LONG_PAUSE: Duration = Duration::from_millis(4);
const LARGE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How often the kernel is asked what it dropped.
const DROPS_PERIOD: Duration = Duration::from_secs(1);

/// So often lost datagrams and errors are told of.
const SAY_PERIOD: Duration = Duration::from_secs(60);

/// The pause behind an error, so that one that stays does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// For so long the socket is emptied at the end.
const DRAIN_TIME: Duration = Duration::from_secs(1);

pub(super) async fn serve(
    socket: std::net::UdpSocket,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut drops = Drops::of(&socket, listener.metrics.udp_dropped.clone())
        .context("the socket's inode can't be read")?;
    let busy_pause = if granted_bytes(&SockRef::from(&socket))? >= LARGE_BUFFER_BYTES {
        LONG_PAUSE
    } else {
        SHORT_PAUSE
    };
    let socket = UdpSocket::from_std(socket)?;
    let mut receiver = Receiver {
        gate: listener.gate(),
        settings: listener.settings_cache(),
        listener,
        buffer: vec![0; DATAGRAM_BYTES],
    };
    let (said_drops, said_error) = (Throttle::new(SAY_PERIOD), Throttle::new(SAY_PERIOD));
    let mut dropped = 0;
    let mut poll = interval(DROPS_PERIOD);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = poll.tick() => {
                let new = drops.poll();
                dropped += u64::from(new);
                if new > 0 && said_drops.hit(Instant::now()).is_some() {
                    warn!(listener = &*receiver.listener.name, dropped, "The kernel dropped datagrams because the socket's receive buffer was full: a burst came faster than it could be read");
                    dropped = 0;
                }
            }
            ready = socket.readable() => {
                ready?;
                match receiver.take(|buffer| socket.try_recv_from(buffer)) {
                    Ok(BUSY_DATAGRAMS..DATAGRAMS_PER_TURN) => sleep(busy_pause).await,
                    Ok(_) => {}
                    Err(Trouble::Closed) => bail!("nobody takes the frames of this listener"),
                    Err(Trouble::Io(error)) => {
                        if said_error.hit(Instant::now()).is_some() {
                            warn!(listener = &*receiver.listener.name, %error, "Receiving failed; trying again");
                        }
                        sleep(ERROR_PAUSE).await;
                    }
                }
            }
        }
    }
    // As a plain socket, because tokio answers from what it last heard of readiness.
    let socket = socket.into_std()?;
    let end = Instant::now() + DRAIN_TIME;
    while Instant::now() < end {
        match receiver.take(|buffer| socket.recv_from(buffer)) {
            Ok(DATAGRAMS_PER_TURN) => tokio::task::yield_now().await,
            _ => break,
        }
    }
    drops.poll();
    Ok(())
}

enum Trouble {
    Io(io::Error),
    Closed,
}

impl From<Closed> for Trouble {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

struct Receiver {
    listener: Listener,
    gate: GateCache,
    settings: SettingsCache,
    buffer: Vec<u8>,
}

impl Receiver {
    /// Takes what the socket holds, up to one turn's share, and says how much it was.
    fn take(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<(usize, SocketAddr)>,
    ) -> Result<usize, Trouble> {
        let now = Instant::now();
        for taken in 0..DATAGRAMS_PER_TURN {
            match receive(&mut self.buffer) {
                Ok((length, from)) => {
                    self.listener.metrics.frames.inc();
                    self.datagram(length, from, now)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Trouble::Io(e)),
            }
        }
        Ok(DATAGRAMS_PER_TURN)
    }

    fn datagram(&mut self, length: usize, from: SocketAddr, now: Instant) -> Result<(), Closed> {
        let (listener, peer) = (&self.listener, from.ip().to_canonical());
        let settings = self.settings.load();
        if !settings.allows(peer) {
            listener.reject(Rejected::Peer, peer);
            return Ok(());
        }
        let message = trim_end(&self.buffer[..length]);
        if message.len() > settings.max_frame_bytes() {
            listener.reject(Rejected::Size, peer);
            return Ok(());
        }
        if message.is_empty() {
            return Ok(());
        }
        let wanted = self.gate.load()(message);
        let passes = wanted || (listener.intake.is_calm() && listener.samples.take(peer, now));
        if !passes {
            return Ok(());
        }
        match listener.intake.room_now(message.len())? {
            Some(room) => listener.put(message, &Peer::at(peer), room),
            None => {
                if wanted {
                    listener.reject(listener.intake.full(), peer);
                }
                Ok(())
            }
        }
    }
}
