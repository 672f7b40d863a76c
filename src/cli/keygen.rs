//! `keygen`: a fresh outbox key.

use std::process::ExitCode;

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
            println!("{}", serde_json::json!({ "key": key.expose() }));
        } else {
            println!("{}", key.expose());
        }
        Ok(ExitCode::SUCCESS)
    }
}
