//! `check`: every problem of a configuration, with its place.

use std::process::ExitCode;

use super::ConfigArg;
use super::EX_CONFIG;
use super::say;
use crate::config;

/// Check the configuration and print every problem
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = config::load(&self.config.config, config::Use::Check);
        if self.json {
            say(serde_json::to_string_pretty(&loaded.report.0)?)?;
        } else {
            for placed in &loaded.report.0 {
                say(placed)?;
            }
            let problems = loaded
                .report
                .0
                .iter()
                .filter(|p| p.weight == "problem")
                .count();
            match problems {
                0 => say(format!("{}: good", self.config.config.display()))?,
                n => say(format!(
                    "{}: {n} {}",
                    self.config.config.display(),
                    if n == 1 { "problem" } else { "problems" }
                ))?,
            }
        }
        Ok(if loaded.report.has_problems() {
            ExitCode::from(EX_CONFIG)
        } else {
            ExitCode::SUCCESS
        })
    }
}
