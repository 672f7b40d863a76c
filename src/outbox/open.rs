//! `[outbox]`, and the opening of what it names: directory, lock, key, database.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tracing::info;
use tracing::warn;

use crate::outbox::Outbox;
use crate::outbox::seal::Key;
use crate::outbox::seal::NoRandomness;
use crate::outbox::sqlite::Sqlite;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::SecretSource;

const LOCK: &str = "lock";
const KEY: &str = "outbox.key";
const KEY_TMP: &str = "outbox.key.new";
const DEFAULT_RETENTION: Period = Period::seconds(30 * 86_400);

/// `[outbox]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which database.
    #[serde(default)]
    pub backend: Backend,
    /// The key under which codes are sealed; default: made once in the state directory.
    pub key: Option<SecretSource>,
    /// How long history without codes is kept.
    #[serde(default = "default_retention")]
    pub retention: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backend: Backend::default(),
            key: None,
            retention: DEFAULT_RETENTION,
        }
    }
}

fn default_retention() -> Period {
    DEFAULT_RETENTION
}

/// `backend`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// One file in the state directory.
    #[default]
    Sqlite,
}

/// What `[outbox]` comes to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long history without codes is kept.
    pub retention: Duration,
    backend: Backend,
    key: KeySource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeySource {
    /// Made once, in the state directory.
    Made,
    /// From the configuration.
    Given(Key),
    /// The configuration names one that can't be read from here.
    Unread,
}

impl Config {
    /// The settings; `None` if the key is malformed. A key that can't be read was said to `check`, and [`open`] refuses it.
    pub fn build(self, check: &mut Check) -> Option<Settings> {
        let key = match &self.key {
            None => KeySource::Made,
            Some(source) => match check.secret(source) {
                None => KeySource::Unread,
                Some(text) => match Key::parse(text.expose()) {
                    Ok(key) => KeySource::Given(key),
                    Err(why) => {
                        check.problem(source.span.clone(), why);
                        return None;
                    }
                },
            },
        };
        Some(Settings {
            retention: self.retention.0,
            backend: self.backend,
            key,
        })
    }
}

impl Settings {
    /// Whether the key is at hand here; `false`: there is none yet, and the service makes one.
    pub fn has_key(&self, state_dir: &Path) -> Result<bool, OpenError> {
        match self.key.find(state_dir, true) {
            Ok(_) => Ok(true),
            Err(OpenError::KeyGone(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether both name the same outbox under the same key; the retention may differ.
    pub fn same_store(&self, other: &Self) -> bool {
        self.backend == other.backend && self.key == other.key
    }
}

/// Why an outbox can't be opened, and what an administrator can do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it.
    #[error("{} can't be used: {source}; it must belong to the user that runs ftm-relay", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process serves it.
    #[error("another ftm-relay is working with {}; stop it first (systemctl stop ftm-relay), or give this one its own state_dir", .0.display())]
    InUse(PathBuf),
    /// There is none.
    #[error("there is no outbox in {}; the service makes it when it first starts", .0.display())]
    Missing(PathBuf),
    /// The configured key is not at hand.
    #[error(
        "the key of [outbox] can't be read from here; run this inside the service unit, or correct `key`"
    )]
    KeyUnread,
    /// The key file's text.
    #[error("{} holds no outbox key ({why}); put back the one that was there", path.display())]
    KeyMalformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The key file is gone, but codes are sealed under it.
    #[error("{} is gone, and the codes in the outbox can't be read without it; put it back. If it is lost for good, move outbox.db away and have the FortiGates send those codes again", .0.display())]
    KeyGone(PathBuf),
    /// Another key than the rows were sealed with.
    #[error("the codes in {} were sealed under another key; set the old key again. If it is lost for good, move that file away and have the FortiGates send those codes again", .0.display())]
    WrongKey(PathBuf),
    /// A later version wrote it.
    #[error("{} has format {found}, and this ftm-relay knows {known} at most; install the newer version again. Nothing was changed", path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// An earlier version wrote it, and only the service brings it up to date.
    #[error("{} has format {found}, older than this ftm-relay's {known}; start the service once, which brings it up to date", path.display())]
    TooOld {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// Not a database any more.
    #[error("{} is damaged ({why}); the service puts it aside and makes a new one when it next starts", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Anything else that SQLite says.
    #[error("{} can't be opened: {why}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// No key can be made.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl OpenError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

/// An outbox that is open for the service.
pub struct Opened {
    /// The outbox.
    pub outbox: Arc<dyn Outbox>,
    /// A damaged one was found and is kept here; what waited in it was not sent.
    pub quarantined: Option<PathBuf>,
}

/// A fresh outbox key, as `[outbox] key` takes it.
pub fn keygen() -> Result<Secret, NoRandomness> {
    Ok(Key::fresh()?.text())
}

/// Opens the outbox for the service, alone; makes what is missing, and takes up what a dead process left.
pub fn open(settings: &Settings, state_dir: &Path) -> Result<Opened, OpenError> {
    make_dir(state_dir)?;
    let lock = lock(state_dir)?;
    let key = |needed| settings.key.find(state_dir, needed);
    match settings.backend {
        Backend::Sqlite => {
            let (outbox, quarantined) = Sqlite::open(state_dir, lock, &key)?;
            Ok(Opened {
                outbox: Arc::new(outbox),
                quarantined,
            })
        }
    }
}

/// Opens an outbox that no service has open, to look at it and for an operator's commands. It needs no key, makes
/// nothing, and can't take in, lease or send.
pub fn open_without_key(state_dir: &Path) -> Result<Arc<dyn Outbox>, OpenError> {
    Ok(Arc::new(Sqlite::open_without_key(state_dir)?))
}

/// What a look at the database's file found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examined {
    /// No damage.
    Sound,
    /// It has so many bytes that it was not read through.
    TooLarge(u64),
}

/// Looks for damage, beside a relay that runs or not, without changing anything. It blocks.
pub fn examine(state_dir: &Path) -> Result<Examined, OpenError> {
    Sqlite::examine(state_dir)
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    if dir.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(OpenError::file(dir))
}

/// The lock lasts as long as the file is open, and ends with the process however that ends.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = private(OpenOptions::new().create(true).truncate(false), &path)
        .map_err(OpenError::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(e)) => Err(OpenError::file(&path)(e)),
    }
}

/// Opens a file that only its owner may read, whatever the umask and whatever its mode was.
pub(super) fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.read(true).write(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o7777 != 0o600 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// A rename is durable only once its directory is.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl KeySource {
    /// The key. `needed`: codes are sealed under it already, so it must not be made anew.
    fn find(&self, dir: &Path, needed: bool) -> Result<Key, OpenError> {
        let path = dir.join(KEY);
        match self {
            Self::Given(key) => Ok(key.clone()),
            Self::Unread => Err(OpenError::KeyUnread),
            Self::Made => match read_key(&path)? {
                Some(key) => Ok(key),
                None if needed => Err(OpenError::KeyGone(path)),
                None => make_key(dir),
            },
        }
    }
}

fn read_key(path: &Path) -> Result<Option<Key>, OpenError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Secret::new(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(OpenError::file(path)(e)),
    };
    let mode = fs::metadata(path)
        .map_err(OpenError::file(path))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        warn!(
            "{} could be read by others (mode {:o}); it is 0600 now",
            path.display(),
            mode & 0o777
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(OpenError::file(path))?;
    }
    match Key::parse(text.expose()) {
        Ok(key) => Ok(Some(key)),
        Err(why) => Err(OpenError::KeyMalformed {
            path: path.to_owned(),
            why,
        }),
    }
}

fn make_key(dir: &Path) -> Result<Key, OpenError> {
    let (path, tmp) = (dir.join(KEY), dir.join(KEY_TMP));
    let key = Key::fresh()?;
    let text = key.text();
    let written =
        private(OpenOptions::new().create(true).truncate(true), &tmp).and_then(|mut file| {
            file.write_all(text.expose().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&tmp, &path)?;
            sync_dir(dir)
        });
    written.map_err(OpenError::file(&path))?;
    info!(
        "A key for the outbox was made: {}; keep a copy of it in a safe place",
        path.display()
    );
    Ok(key)
}
