//! What `doctor` looks at, gathered once.

use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;

use super::samples::Samples;
use crate::config;
use crate::config::Config;
use crate::config::Report;
use crate::control;
use crate::control::Answer;
use crate::control::Request;
use crate::control::Status;

/// What is known of the installation.
pub struct Facts {
    pub now: Timestamp,
    /// The configuration file.
    pub path: PathBuf,
    /// What `check` says of it.
    pub report: Report,
    /// Unless it has a problem.
    pub config: Option<Config>,
    /// Unless the file can't be read.
    pub state_dir: Option<PathBuf>,
    pub relay: Relay,
}

/// The relay that has the outbox open.
pub enum Relay {
    Answers(Box<Status>, Samples),
    /// It is there, but said this.
    Refuses(String),
    NotRunning,
}

impl Facts {
    pub async fn gather(path: &Path) -> anyhow::Result<Self> {
        let loaded = config::load(path, config::Use::Check);
        let state_dir = config::state_dir(path).ok();
        let relay = match &state_dir {
            Some(dir) => match control::ask(dir, &Request::Status).await {
                Ok(Some(Answer::Status(status))) => {
                    let samples = Samples::read(&status.metrics);
                    Relay::Answers(status, samples)
                }
                Ok(Some(Answer::Error(why))) => Relay::Refuses(why),
                Ok(Some(_)) => Relay::Refuses("it answered another question".to_owned()),
                Ok(None) => Relay::NotRunning,
                Err(e) => Relay::Refuses(e.to_string()),
            },
            None => Relay::NotRunning,
        };
        Ok(Self {
            now: Timestamp::now(),
            path: std::path::absolute(path)?,
            report: loaded.report,
            config: loaded.config,
            state_dir,
            relay,
        })
    }

    /// What the running relay says, if one does.
    pub fn status(&self) -> Option<(&Status, &Samples)> {
        match &self.relay {
            Relay::Answers(status, samples) => Some((status, samples)),
            Relay::Refuses(_) | Relay::NotRunning => None,
        }
    }
}
