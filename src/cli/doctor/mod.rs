//! `doctor`: looks at an installation, running or not, and says what is wrong and how to mend it.

mod checks;
mod facts;
mod samples;

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::ConfigArg;
use super::block_on;
use super::say;
use crate::secret::Redactor;

use checks::CHECKS;
use facts::Facts;

/// Look at the installation and say what is wrong and how to mend it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Problem,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// What is so, as a sentence without its full stop.
    text: String,
    /// What to do about it; empty where there is nothing to do.
    advice: String,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Self {
        Self::of(Level::Ok, text, "")
    }

    fn warn(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::of(Level::Warn, text, advice)
    }

    fn problem(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::of(Level::Problem, text, advice)
    }

    fn of(level: Level, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level,
            text: text.into(),
            advice: advice.into(),
        }
    }
}

/// A finding as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    check: &'static str,
    level: Level,
    text: String,
    advice: String,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Problem => "problem",
        };
        write!(f, "{level}: {}: {}", self.check, self.text)?;
        if !self.advice.is_empty() {
            write!(f, " — {}", self.advice)?;
        }
        Ok(())
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let facts = block_on(Facts::gather(&self.config.config))?;
        // What devices and peers call themselves stands in some sentences.
        let cleaner = Redactor::default();
        let mut shown = Vec::new();
        for (check, look) in CHECKS {
            shown.extend(look(&facts).into_iter().map(|finding| Shown {
                check,
                level: finding.level,
                text: finding.text.chars().map(plain).collect(),
                advice: cleaner.clean(&finding.advice),
            }));
        }
        if self.json {
            say(serde_json::to_string_pretty(&shown)?)?;
        } else {
            for one in &shown {
                say(one)?;
            }
        }
        // As in `check`, warnings change nothing: a FortiGate that is silent may just have no token to announce.
        Ok(if shown.iter().any(|s| s.level == Level::Problem) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn plain(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}
