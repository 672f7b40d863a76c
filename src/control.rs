//! The operator's door into a running relay: a Unix socket, mode 0600, one JSON request and one JSON answer a line.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::activation::Device;
use crate::outbox::Command;
use crate::outbox::Depth;
use crate::outbox::Filter;
use crate::outbox::Row;
use crate::outbox::State;
use crate::outbox::Story;

/// The socket's name in its directory.
const SOCKET: &str = "control.sock";
/// The longest request or answer.
const MAX_LINE_BYTES: u64 = 256 << 20;
/// So many operators are served at once.
const MAX_CONNECTIONS: usize = 8;
/// A relay that doesn't answer for so long is left: a replay may wait for a full disk.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest path that a Unix socket's address holds, with its end mark.
const MAX_ADDRESS_BYTES: usize = 107;
/// An operator's program that says nothing for so long is left.
const IDLE: Duration = Duration::from_secs(60);

/// What an operator asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// `queue list`
    List(Filter),
    /// `queue show`
    Show(String),
    /// `queue retry` and `queue cancel`
    Command(String, Command),
    /// `queue stats`
    Stats,
    /// `replay`: log lines, base64.
    Replay(Vec<String>),
    /// `doctor`
    Status,
    /// `resend`
    Resend {
        /// Whose code.
        user: String,
        /// Only on this device.
        device: Option<String>,
        /// Only in this VDOM.
        vdom: Option<String>,
    },
}

/// What the relay answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The rows.
    Rows(Vec<Row>),
    /// One row with everything around it.
    Story(Box<Story>),
    /// The state after a command.
    State(State),
    /// How much is waiting.
    Stats(Stats),
    /// What became of the lines.
    Replayed(Replayed),
    /// How the relay fares.
    Status(Box<Status>),
    /// A code that goes out again.
    Resent(Resent),
    /// Why not.
    Error(String),
}

/// How much is waiting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Rows by state.
    pub items: Vec<(State, u64)>,
    /// When the oldest one that is not final was received.
    pub oldest: Option<jiff::Timestamp>,
}

impl From<Depth> for Stats {
    fn from(depth: Depth) -> Self {
        Self {
            items: depth.items,
            oldest: depth.oldest,
        }
    }
}

/// How the relay fares.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Which version runs.
    pub version: String,
    /// Since when.
    pub since: jiff::Timestamp,
    /// One sentence for each part that isn't ready.
    pub not_ready: Vec<String>,
    /// The channels that wait for an operator, and why.
    pub suspended: Vec<(String, String)>,
    /// Why records were not believed of late, with their number.
    pub strangers: Vec<(String, u64)>,
    /// How much is waiting, if the outbox can be counted.
    pub stats: Option<Stats>,
    /// All metrics, as `/metrics` shows them.
    pub metrics: String,
}

/// A code that goes out again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resent {
    /// Its id in the queue.
    pub id: String,
    /// Who holds the token, as the device spells it.
    pub user: String,
    /// Where.
    pub device: Device,
    /// The token's serial number.
    pub token: String,
    /// Until when the code is good.
    pub expires_at: jiff::Timestamp,
}

/// What became of replayed lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Lines read.
    pub lines: u64,
    /// Activations accepted.
    pub accepted: u64,
    /// Of these, without a code.
    pub no_code: u64,
    /// Of these, expired already.
    pub expired: u64,
    /// Life-cycle events recorded.
    pub lifecycle: u64,
    /// Known already.
    pub duplicates: u64,
    /// Rejected.
    pub rejected: u64,
    /// Other logs.
    pub ignored: u64,
}

impl std::ops::AddAssign for Replayed {
    fn add_assign(&mut self, more: Self) {
        self.lines += more.lines;
        self.accepted += more.accepted;
        self.no_code += more.no_code;
        self.expired += more.expired;
        self.lifecycle += more.lifecycle;
        self.duplicates += more.duplicates;
        self.rejected += more.rejected;
        self.ignored += more.ignored;
    }
}

/// Answers requests.
#[async_trait::async_trait]
pub trait Operator: Send + Sync {
    /// The answer; an error is an [`Answer::Error`].
    async fn answer(&self, request: Request) -> Answer;
}

/// `$RUNTIME_DIRECTORY`, which systemd sets; of several the first.
fn runtime_directory() -> Option<PathBuf> {
    let all = std::env::var_os("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&all).next()
}

/// What calls the socket's address. A path that is too long for one goes through the open directory.
fn with_address<T>(path: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= MAX_ADDRESS_BYTES {
        return call(path);
    }
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    call(Path::new(&format!(
        "/proc/self/fd/{}/{SOCKET}",
        dir.as_raw_fd()
    )))
}

/// The listening socket; its files go with it.
pub struct Door {
    listener: UnixListener,
    paths: Vec<PathBuf>,
}

impl Drop for Door {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(e) = std::fs::remove_file(path) {
                warn!("{} can't be removed: {e}", path.display());
            }
        }
    }
}

impl Door {
    /// Binds the socket. The caller holds the outbox's lock, so a file that is there is a dead relay's.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let known = state_dir.join(SOCKET);
        let path = runtime_directory().map_or_else(|| known.clone(), |dir| dir.join(SOCKET));
        let mut paths = vec![path.clone()];
        remove(&path)?;
        let listener = with_address(&path, |address| UnixListener::bind(address))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        // An operator's shell has no $RUNTIME_DIRECTORY, but knows the state directory.
        if known != path {
            remove(&known)?;
            std::os::unix::fs::symlink(&path, &known)?;
            paths.push(known);
        }
        Ok(Self { listener, paths })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, operator: Arc<dyn Operator>, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors: others may close some
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                continue;
            };
            let (operator, shutdown) = (Arc::clone(&operator), shutdown.clone());
            tokio::spawn(async move {
                let _permit = permit;
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    served = serve_one(stream, operator) => if let Err(e) = served {
                        warn!("An operator's connection ended: {e}");
                    }
                }
            });
        }
    }
}

async fn serve_one(stream: UnixStream, operator: Arc<dyn Operator>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(MAX_LINE_BYTES));
    let mut line = String::new();
    while timeout(IDLE, read.read_line(&mut line))
        .await
        .map_err(io::Error::other)??
        > 0
    {
        let answer = match serde_json::from_str(&line) {
            Ok(request) => operator.answer(request).await,
            // The text of the error could repeat the request, and that may hold a code.
            Err(_) => Answer::Error("this is no request".to_owned()),
        };
        let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        line.clear();
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(e.kind(), format!("{}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Asks a running relay. `Ok(None)`: none runs.
pub async fn ask(state_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let path = state_dir.join(SOCKET);
    let connected = with_address(&path, |address| {
        std::os::unix::net::UnixStream::connect(address)
    });
    let stream = match connected {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let who = "do this as root or as the user that runs ftm-relay";
            let text = format!("{}: {e}; {who}", path.display());
            return Err(io::Error::new(e.kind(), text));
        }
        Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    };
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let mut text = serde_json::to_vec(request).map_err(io::Error::other)?;
    text.push(b'\n');
    let mut line = String::new();
    let answered = timeout(PATIENCE, async {
        stream.write_all(&text).await?;
        BufReader::new(stream.take(MAX_LINE_BYTES))
            .read_line(&mut line)
            .await
    });
    match answered.await {
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it said nothing for {} s", PATIENCE.as_secs()),
        )),
        Ok(Err(e)) => Err(e),
        Ok(Ok(0)) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection; it is stopping, or too many operators ask at once",
        )),
        Ok(Ok(_)) => serde_json::from_str(&line)
            .map(Some)
            .map_err(io::Error::other),
    }
}
