//! The channel `file`: one `.eml` per notification in a directory, for trials and for programs that pick mail up there.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use jiff::Timestamp;
use lettre::message::Mailbox;
use serde::Deserialize;
use toml::Spanned;

use crate::channel::Attempt;
use crate::channel::Carrier;
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::mail;
use crate::channel::probe::Probe;
use crate::settings::Check;
use crate::settings::Span;

/// The sender, where the configuration names none.
const DEFAULT_FROM: &str = "ftm-relay@localhost";
/// The longest part of a file's name that comes from a message id.
const MAX_ID_CHARS: usize = 100;

/// `type = "file"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory; it is made when it isn't there.
    pub path: Spanned<PathBuf>,
    /// The sender.
    pub from: Option<Spanned<String>>,
    /// A fixed recipient: a place that several people read.
    pub to: Option<Spanned<String>>,
    /// Whether a code is also shown as an image.
    #[serde(default)]
    pub qr: bool,
}

/// A directory of mails.
pub struct File {
    dir: PathBuf,
    sender: mail::Sender,
    to: Option<Mailbox>,
}

impl Config {
    /// It has a fixed recipient, whom others may be reading with.
    pub fn shared(&self) -> bool {
        self.to.is_some()
    }

    /// Checks that the directory may hold codes: nothing in `state_dir` may.
    pub fn build(self, state_dir: &Path, check: &mut Check) -> Option<File> {
        let dir = check.path(self.path.get_ref());
        let mut good = true;
        if real(&dir).starts_with(real(state_dir)) {
            check.problem(
                self.path.span(),
                format!(
                    "{} is inside state_dir, and these files hold codes in clear; choose another directory",
                    dir.display()
                ),
            );
            good = false;
        } else if dir.exists() && !dir.is_dir() {
            check.problem(
                self.path.span(),
                format!("{} is no directory", dir.display()),
            );
            good = false;
        }
        let mut mailbox = |text: &str, span: Option<Span>| {
            mail::mailbox(text)
                .map_err(|what| check.problem(span, format!("\"{text}\" {what}")))
                .ok()
        };
        let from = match &self.from {
            Some(from) => mailbox(from.get_ref(), Some(from.span())),
            None => mailbox(DEFAULT_FROM, None),
        };
        let to = match &self.to {
            Some(to) => Some(mailbox(to.get_ref(), Some(to.span()))?),
            None => None,
        };
        let sender = mail::Sender {
            from: from?,
            reply_to: None,
            qr: self.qr,
        };
        good.then_some(File { dir, sender, to })
    }
}

/// The path without links and `..`, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest: Vec<OsString> = Vec::new();
    let mut there = path.as_path();
    loop {
        if let Ok(real) = there.canonicalize() {
            // What isn't there is no link either, so that its `..` may be taken by the letter.
            return rest.iter().rev().fold(real, |mut path, part| {
                match part == ".." {
                    true => _ = path.pop(),
                    false => path.push(part),
                }
                path
            });
        }
        match (there.parent(), there.components().next_back()) {
            (Some(parent), Some(last)) => {
                rest.push(last.as_os_str().to_owned());
                there = parent;
            }
            _ => return path,
        }
    }
}

#[async_trait]
impl Carrier for File {
    async fn send(&self, attempt: &Attempt<'_>) -> Result<Receipt, SendError> {
        let to = match (&self.to, attempt.to) {
            (Some(fixed), _) => Ok(fixed.clone()),
            (None, Some(person)) => mail::person(person),
            (None, None) => Err("a mail needs a person, and none was found".to_owned()),
        };
        let bytes = to
            .and_then(|to| mail::build(&self.sender, &to, attempt.note, SystemTime::now()))
            .map_err(|reason| SendError::Permanent { reason })?;
        let name = file_name(Timestamp::now(), &attempt.note.id);
        attempt.commit.commit().await?;
        let (dir, file) = (self.dir.clone(), name.clone());
        let written = tokio::task::spawn_blocking(move || write(&dir, &file, &bytes))
            .await
            .map_err(|_| io::Error::other("the writing thread died"))
            .flatten();
        match written {
            Ok(()) => {
                attempt.transcript.line(|| format!("wrote {name}"));
                Ok(Receipt {
                    said: format!("written as {name}"),
                })
            }
            Err(e) => {
                let reason = format!("{} can't be written to: {e}", self.dir.display());
                Err(match e.kind() {
                    io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::NotADirectory => SendError::Broken { reason },
                    _ => SendError::Away {
                        reason,
                        after: None,
                    },
                })
            }
        }
    }

    async fn probe(&self, _: &Attempt<'_>, found: &mut Vec<Probe>) {
        let dir = self.dir.clone();
        let what = self.dir.display().to_string();
        let tried = tokio::task::spawn_blocking(move || can_write(&dir)).await;
        found.push(match tried {
            Ok(Ok(true)) => Probe::good(what, "can be written to by this user"),
            Ok(Ok(false)) => Probe::unknown(
                what,
                "isn't there yet; it is made for the first mail, if the service may write beside it",
            ),
            Ok(Err(e)) => Probe::bad(
                what,
                format!("can't be written to by this user: {e}; it must belong to the user that runs ftm-relay"),
            ),
            Err(_) => Probe::bad(what, "could not be looked at"),
        });
    }
}

/// Writes a file and takes it away again; `false`: there is no directory yet.
fn can_write(dir: &Path) -> io::Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    let path = dir.join(format!(".ftm-relay-check-{}", std::process::id()));
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(true)
}

/// Sorts by time; the id finds the delivery.
fn file_name(now: Timestamp, id: &str) -> String {
    let id: String = id
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .take(MAX_ID_CHARS)
        .collect();
    format!("{}-{id}.eml", now.strftime("%Y%m%dT%H%M%S%3fZ"))
}

/// A reader of the directory sees the whole file or none, and a power cut leaves it that way.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let (hidden, shown) = (dir.join(format!(".{name}.part")), dir.join(name));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&hidden)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&hidden, &shown));
    if let Err(e) = written {
        // What is left of it is useless; that it can't be removed says nothing new.
        fs::remove_file(&hidden).ok();
        return Err(e);
    }
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_holds_nothing_that_leads_elsewhere() {
        let at = "2026-11-23T10:22:31Z".parse().unwrap();
        assert_eq!(
            file_name(at, "../../a b/c.1@x"),
            "20261123T102231000Z-abc1x.eml"
        );
    }
}
