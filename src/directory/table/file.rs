//! A table's file, read again when it changes. Whatever becomes of the file, the last good content stays.

use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tracing::info;
use tracing::warn;

use crate::recipients::Recipients;

use super::csv;
use super::csv::Content;
use super::people::People;

/// The largest file.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a look-up waits for a changed file to be read; after that it answers from what was known.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
/// A file that changed less than this ago may still be being written.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a file that keeps changing is waited for.
const MAX_SETTLE_TRIES: usize = 10;

/// A file and what it last said.
pub(super) struct File {
    path: PathBuf,
    shown: String,
    recipients: Recipients,
    people: ArcSwap<People>,
    look: Mutex<Look>,
}

struct Look {
    /// The last one; `None` while one is under way.
    at: Option<Instant>,
    /// The file as it was read last, good or not.
    stamp: Option<Stamp>,
    /// What was said in the log about it, so that it is said once.
    complaint: Option<String>,
}

/// Tells whether a file changed. The change time sees what keeps size and modification time, such as `cp -p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl File {
    /// Reads it for the first time. Also what is odd about it, or else all that is wrong with it.
    pub(super) fn open(
        path: PathBuf,
        shown: String,
        recipients: Recipients,
    ) -> Result<(Self, Vec<String>), Vec<String>> {
        let stamp = Stamp::of(&path, &shown).map_err(|why| vec![why])?;
        let content = read(&path, &shown, &recipients)?;
        let file = Self {
            path,
            shown,
            recipients,
            people: ArcSwap::from_pointee(content.people),
            look: Mutex::new(Look {
                at: Some(Instant::now()),
                // What was still being written is read again at the next look.
                stamp: Some(stamp).filter(|s| s.unsettled().is_none()),
                complaint: None,
            }),
        };
        Ok((file, content.warnings))
    }

    /// How sentences call it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Who is in it now, as far as the last look goes.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<People> {
        if let Some(turn) = Turn::take(self) {
            let looked = tokio::task::spawn_blocking(move || turn.look());
            if !matches!(
                tokio::time::timeout(LOOK_PATIENCE, looked).await,
                Ok(Ok(()))
            ) {
                warn!(file = %self.shown, "{} can't be looked at in time; the people read before are used", self.shown);
            }
        }
        self.people.load_full()
    }

    fn refresh(&self) {
        let (stamp, content) = match Stamp::of(&self.path, &self.shown) {
            Ok(stamp) if self.lock().stamp == Some(stamp) => return,
            Ok(stamp) => self.read_settled(stamp),
            Err(why) => (None, Err(vec![why])),
        };
        match content {
            Ok(Content { people, warnings }) => {
                info!(file = %self.shown, people = people.len(), "Read {} again: {} people", self.shown, people.len());
                for warning in warnings {
                    warn!(file = %self.shown, "{warning}");
                }
                self.people.store(Arc::new(people));
                let mut look = self.lock();
                look.stamp = stamp;
                look.complaint = None;
            }
            Err(reasons) => {
                let reason = match reasons.as_slice() {
                    [] => String::new(),
                    [only] => only.clone(),
                    [first, more @ ..] => format!("{first} (and {} more)", more.len()),
                };
                let mut look = self.lock();
                look.stamp = stamp;
                if look.complaint.as_ref() != Some(&reason) {
                    warn!(file = %self.shown, "{reason}; the people read before are used until it is put right");
                    look.complaint = Some(reason);
                }
            }
        }
    }

    /// Reads it once nobody writes to it any more. Blocks for about a second at most, besides the reading.
    fn read_settled(&self, mut stamp: Stamp) -> (Option<Stamp>, Result<Content, Vec<String>>) {
        for _ in 0..MAX_SETTLE_TRIES {
            if let Some(rest) = stamp.unsettled() {
                std::thread::sleep(rest);
            }
            let before = match Stamp::of(&self.path, &self.shown) {
                Ok(before) => before,
                Err(why) => return (None, Err(vec![why])),
            };
            if before == stamp {
                let content = read(&self.path, &self.shown, &self.recipients);
                match Stamp::of(&self.path, &self.shown) {
                    Ok(after) if after == before => return (Some(after), content),
                    Ok(after) => stamp = after,
                    Err(why) => return (None, Err(vec![why])),
                }
            } else {
                stamp = before;
            }
        }
        let why = format!("{} keeps changing while it is read", self.shown);
        (None, Err(vec![why]))
    }

    fn lock(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to look at the file: one at a time, and one in [`LOOK_EVERY`].
struct Turn {
    file: Arc<File>,
}

impl Turn {
    fn take(file: &Arc<File>) -> Option<Self> {
        let mut look = file.lock();
        if look.at?.elapsed() < LOOK_EVERY {
            return None;
        }
        look.at = None;
        Some(Self { file: file.clone() })
    }

    fn look(self) {
        self.file.refresh();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.file.lock().at = Some(Instant::now());
    }
}

impl Stamp {
    fn of(path: &Path, shown: &str) -> Result<Self, String> {
        let meta = std::fs::metadata(path).map_err(|e| format!("{shown} can't be read: {e}"))?;
        // Opening a pipe would wait for its other end.
        if !meta.is_file() {
            return Err(format!("{shown} is no file"));
        }
        if meta.len() > MAX_FILE_BYTES {
            return Err(format!(
                "{shown} is larger than {} MiB",
                MAX_FILE_BYTES / (1024 * 1024)
            ));
        }
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// How long to wait until it would be seen as settled; a change in the future (a wrong clock) counts as long ago.
    fn unsettled(&self) -> Option<Duration> {
        let (seconds, nanos) = self.changed;
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
        let age = SystemTime::now().duration_since(changed).ok()?;
        SETTLE.checked_sub(age).filter(|rest| !rest.is_zero())
    }
}

fn read(path: &Path, shown: &str, recipients: &Recipients) -> Result<Content, Vec<String>> {
    let failed = |e: std::io::Error| vec![format!("{shown} can't be read: {e}")];
    let file = std::fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len().min(MAX_FILE_BYTES);
    csv::read(
        BufReader::with_capacity(READ_BYTES, std::io::Read::take(file, MAX_FILE_BYTES)),
        usize::try_from(bytes).unwrap_or(0),
        shown,
        recipients,
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::recipients;
    use crate::settings::Check;

    use super::*;

    /// What the service would log, line by line.
    #[derive(Clone, Default)]
    struct Journal(Arc<Mutex<Vec<u8>>>);

    impl Write for Journal {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Journal {
        fn during(&self, work: impl FnOnce()) -> String {
            let writer = self.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, work);
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn a_broken_file_is_complained_of_once_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("people.csv");
        std::fs::write(&path, "user,email\nalice,alice@example.com\n").unwrap();
        let config: recipients::Config = toml::from_str("domains = [\"example.com\"]").unwrap();
        let recipients = config.build(&mut Check::new(".", None, true)).unwrap();
        let (file, _) = File::open(path.clone(), "people.csv".to_owned(), recipients).unwrap();
        let journal = Journal::default();
        journal.during(|| file.refresh());

        assert_eq!(journal.during(|| file.refresh()), "", "nothing changed");

        std::fs::write(&path, "user,email\nalice,secret.example\nbob,\n").unwrap();
        let said = journal.during(|| file.refresh());
        assert_eq!(said.matches("WARN").count(), 1, "{said}");
        assert!(said.contains("people.csv, line 2: `email` is no mail address (and 1 more)"));
        assert!(!said.contains("secret.example"), "{said}");
        assert_eq!(journal.during(|| file.refresh()), "", "it is still broken");

        std::fs::remove_file(&path).unwrap();
        let said = journal.during(|| file.refresh());
        assert!(
            said.contains("people.csv can't be read: No such file"),
            "{said}"
        );
        assert_eq!(journal.during(|| file.refresh()), "", "it is still gone");
        assert_eq!(file.people.load().len(), 1);

        std::fs::write(&path, "user,email\n").unwrap();
        let said = journal.during(|| file.refresh());
        assert!(said.contains("Read people.csv again: 0 people"), "{said}");
        assert!(said.contains("people.csv holds nobody"), "{said}");
    }
}
