//! The operator's door into a running relay: a Unix socket, mode 0600, one JSON request and one JSON answer a line.

use std::io;
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

/// Where the socket of a running relay may be: in its runtime directory, else in `state_dir`. An operator's shell has no
/// `$RUNTIME_DIRECTORY`; under systemd that directory has the name of the state directory.
fn places(state_dir: &Path) -> Vec<PathBuf> {
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let guessed = state_dir
        .strip_prefix("/var/lib")
        .ok()
        .map(|name| Path::new("/run").join(name));
    runtime
        .or(guessed)
        .into_iter()
        .chain([state_dir.to_owned()])
        .map(|dir| dir.join(SOCKET))
        .collect()
}

/// The listening socket; its file goes with it.
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            warn!("{} can't be removed: {e}", self.path.display());
        }
    }
}

impl Door {
    /// Binds the socket. The caller holds the outbox's lock, so a file that is there is a dead relay's.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = match std::env::var_os("RUNTIME_DIRECTORY") {
            Some(runtime) => PathBuf::from(runtime).join(SOCKET),
            None => state_dir.join(SOCKET),
        };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // The directory is ours alone (0700), so nobody connects between bind and chmod.
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
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

/// Asks a running relay. `Ok(None)`: none runs.
pub async fn ask(state_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    for path in places(state_dir) {
        let mut stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                continue;
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        };
        let mut text = serde_json::to_vec(request).map_err(io::Error::other)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE_BYTES))
            .read_line(&mut line)
            .await?;
        return serde_json::from_str(&line)
            .map(Some)
            .map_err(io::Error::other);
    }
    Ok(None)
}
