//! `check`: every problem of a configuration, with its place; and its tests, tried.

use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::explain::Explain;
use super::say;
use crate::config;
use crate::config::Config;
use crate::config::Placed;
use crate::config::Test;
use crate::example::Outcome;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::secret::Secret;
use crate::settings::Weight;

/// Check the configuration and print every problem
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = config::load(&self.config.config, config::Use::Check);
        let mut report = loaded.report;
        if let Some(config) = loaded.config {
            report.0.extend(block_on(tests(config))?);
        }
        if self.json {
            say(serde_json::to_string_pretty(&report.0)?)?;
        } else {
            for placed in &report.0 {
                say(placed)?;
            }
            let problems = report.0.iter().filter(|p| p.weight == "problem").count();
            match problems {
                0 => say(format!("{}: good", self.config.config.display()))?,
                n => say(format!(
                    "{}: {n} {}",
                    self.config.config.display(),
                    if n == 1 { "problem" } else { "problems" }
                ))?,
            }
        }
        Ok(if report.has_problems() {
            ExitCode::from(EX_CONFIG)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Tries every `[[test]]`; nobody outside is asked.
async fn tests(mut config: Config) -> anyhow::Result<Vec<Placed>> {
    config.dispatch.go_offline();
    let mut found = Vec::new();
    for test in &config.tests {
        found.extend(try_one(&config, test).await);
    }
    Ok(found)
}

async fn try_one(config: &Config, test: &Test) -> Vec<Placed> {
    let example = &test.example;
    let frame = Frame {
        bytes: example.line.clone().into_bytes(),
        peer: example.peer.map_or_else(Peer::unknown, Peer::at),
        listener: example
            .listener
            .as_ref()
            .map(|l| Arc::from(l.get_ref().as_str())),
        received_at: Timestamp::now(),
    };
    // In full, so that it can be compared, and what is shown can be cleaned of it.
    let seen = Explain {
        reveal: true,
        offline: true,
    }
    .explain(config, 1, &frame)
    .await;
    let outcome = Outcome {
        verdict: seen.verdict,
        user: seen.user.as_deref(),
        recipient: seen.recipient.as_ref().map(|r| r.email.as_str()),
        channels: seen.channels.as_deref().unwrap_or_default(),
        stage: seen.stage,
        device: seen.device.as_ref(),
        code: seen.code.as_deref().map(Secret::new),
        unasked: seen.unasked.as_deref(),
    };
    let failures = example.failures(&outcome).into_iter();
    let skipped = example.skipped(&outcome);
    failures
        .map(|text| test.finding(Weight::Problem, text))
        .chain(skipped.map(|text| test.finding(Weight::Note, text)))
        .collect()
}
