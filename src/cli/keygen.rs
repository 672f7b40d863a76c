//! `keygen`: a fresh outbox key.

use std::process::ExitCode;

use super::say;
use crate::outbox;

/// Print a fresh outbox key
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let key = outbox::keygen()?;
        if self.json {
            say(serde_json::json!({ "key": key.expose() }))?;
        } else {
            say(key.expose())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
