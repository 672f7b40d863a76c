//! Questions on a terminal.

use std::io::BufRead;
use std::io::Write;

use anyhow::bail;
use rustix::termios;
use rustix::termios::LocalModes;
use rustix::termios::OptionalActions;
use zeroize::Zeroizing;

use super::answers::Answer;
use crate::secret::Secret;

/// So many questions at most; what is left then is said to be done later.
const MAX_QUESTIONS: usize = 8;
/// So often an answer may be wrong.
const MAX_TRIES: usize = 5;
/// The longest answer.
const MAX_ANSWER_BYTES: u64 = 4096;

/// Asks.
#[derive(Default)]
pub struct Asker {
    asked: usize,
}

impl Asker {
    /// Asks until the answer can be read; an empty one is the default.
    pub fn ask<T: Answer>(&mut self, question: &str, default: Option<&str>) -> anyhow::Result<T> {
        self.asked += 1;
        for _ in 0..MAX_TRIES {
            match default {
                Some(default) => eprint!("{question} [{default}] "),
                None => eprint!("{question} "),
            }
            let line = line()?;
            let answer = match (line.trim(), default) {
                ("", Some(default)) => default,
                (answer, _) => answer,
            };
            match T::read(answer) {
                Ok(answer) => return Ok(answer),
                Err(why) => eprintln!("  {why}"),
            }
        }
        bail!("there was no answer that can be used; nothing was written");
    }

    /// Asks without echo. `None`: no answer, or too many questions already.
    pub fn secret(&mut self, what: &str) -> anyhow::Result<Option<Secret>> {
        if self.asked >= MAX_QUESTIONS {
            return Ok(None);
        }
        self.asked += 1;
        eprint!("What is {what} (not shown; empty: later)? ");
        let unseen = Unseen::begin()?;
        let line = line();
        drop(unseen);
        eprintln!();
        let line = line?;
        let text = line.trim_end_matches(['\r', '\n']);
        Ok((!text.is_empty()).then(|| Secret::new(text)))
    }
}

fn line() -> anyhow::Result<Zeroizing<String>> {
    use std::io::Read;

    std::io::stderr().flush()?;
    let mut line = Zeroizing::new(String::new());
    let read = std::io::stdin()
        .lock()
        .take(MAX_ANSWER_BYTES)
        .read_line(&mut line)?;
    if read == 0 {
        bail!("the answers ended; nothing was written");
    }
    Ok(line)
}

/// The terminal shows nothing of what is typed until this is dropped.
struct Unseen(termios::Termios);

impl Unseen {
    fn begin() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).is_err() {
            eprintln!("The terminal shows nothing of what is typed; `stty echo` mends it.");
        }
    }
}
