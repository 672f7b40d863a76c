//! Datagrams become frames, one each. Nothing waits here: what can't be queued is lost, and counted.

use std::io;
use std::io::PipeReader;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::task::spawn_blocking;
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
    socket: UdpSocket,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (stopped, stop) = io::pipe()?;
    let mut receiving = spawn_blocking(move || receive(&socket, listener, &stopped));
    tokio::select! {
        ended = &mut receiving => ended?,
        () = shutdown.cancelled() => {
            drop(stop);
            receiving.await?
        }
    }
}

/// Receives until the other end of `stopped` is closed, on a thread of its own: the runtime would wake up for each datagram, even
/// while the socket is to be left alone.
fn receive(socket: &UdpSocket, listener: Listener, stopped: &PipeReader) -> anyhow::Result<()> {
    let mut drops = Drops::of(socket, listener.metrics.udp_dropped.clone())
        .context("the socket's inode can't be read")?;
    let busy_pause = if granted_bytes(&SockRef::from(socket))? >= LARGE_BUFFER_BYTES {
        LONG_PAUSE
    } else {
        SHORT_PAUSE
    };
    let mut receiver = Receiver {
        gate: listener.gate(),
        settings: listener.settings_cache(),
        listener,
        buffer: vec![0; DATAGRAM_BYTES],
        asked: None,
    };
    let (said_drops, said_error) = (Throttle::new(SAY_PERIOD), Throttle::new(SAY_PERIOD));
    let (mut dropped, mut poll_drops) = (0, Instant::now());
    let mut pause = Duration::ZERO;
    loop {
        thread::sleep(pause);
        if wait(socket, stopped)? == Woken::Stopped {
            break;
        }
        let now = Instant::now();
        pause = match receiver.take(socket, now) {
            Ok(BUSY_DATAGRAMS..DATAGRAMS_PER_TURN) => busy_pause,
            // Woken up for nothing, as by a socket with an error that isn't ours to read: not too often.
            Ok(0) => SHORT_PAUSE,
            Ok(_) => Duration::ZERO,
            Err(Trouble::Closed) => bail!("nobody takes the frames of this listener"),
            Err(Trouble::Io(error)) => {
                if said_error.hit(now).is_some() {
                    warn!(listener = &*receiver.listener.name, %error, "Receiving failed; trying again");
                }
                ERROR_PAUSE
            }
        };
        if now >= poll_drops {
            poll_drops = now + DROPS_PERIOD;
            let new = drops.poll();
            dropped += u64::from(new);
            if new > 0 && said_drops.hit(now).is_some() {
                warn!(
                    listener = &*receiver.listener.name,
                    dropped,
                    "The kernel dropped datagrams because the socket's receive buffer was full: a burst came faster than it could be read"
                );
                dropped = 0;
            }
        }
    }
    let end = Instant::now() + DRAIN_TIME;
    while Instant::now() < end
        && matches!(
            receiver.take(socket, Instant::now()),
            Ok(DATAGRAMS_PER_TURN)
        )
    {}
    drops.poll();
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Woken {
    /// The socket is to be read, or its drops are to be looked at.
    Receive,
    Stopped,
}

/// Waits for a datagram, the end, or the time to ask for drops.
fn wait(socket: &UdpSocket, stopped: &PipeReader) -> io::Result<Woken> {
    let mut watched = [
        PollFd::new(socket, PollFlags::IN),
        PollFd::new(stopped, PollFlags::empty()),
    ];
    let most = Timespec::try_from(DROPS_PERIOD).expect("a second is a time");
    match poll(&mut watched, Some(&most)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(match watched[1].revents().is_empty() {
        true => Woken::Receive,
        false => Woken::Stopped,
    })
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
    /// For whom a sample was asked for last, and in which turn.
    asked: Option<(IpAddr, Instant)>,
}

impl Receiver {
    /// Takes what the socket holds, up to one turn's share, and says how much it was.
    fn take(&mut self, socket: &UdpSocket, now: Instant) -> Result<usize, Trouble> {
        for taken in 0..DATAGRAMS_PER_TURN {
            match socket.recv_from(&mut self.buffer) {
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
        if !wanted {
            // Peers tend to send several in a turn, of which the first is the sample, if one is due.
            let asked = self.asked.replace((peer, now)) == Some((peer, now));
            if asked || !listener.intake.is_calm() || !listener.samples.take(peer, now) {
                return Ok(());
            }
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
