//! `check`: every problem of a configuration, with its place; its tests, tried; `--live` also what works around the relay and what
//! doesn't.

use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::explain::Explain;
use super::live;
use super::live::Tried;
use super::say;
use crate::channel::probe::Probe;
use crate::channel::probe::Standing;
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
///
/// Exit codes: 0 good; 1 with --live, something doesn't work; 78 the configuration itself is wrong (then nothing is tried).
/// Warnings and notes change nothing.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArg,
    /// Also try DNS, connections, certificates, log-ins and rights of everything configured; nobody is sent anything
    #[arg(long)]
    pub(super) live: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = config::load(&self.config.config, config::Use::Check);
        let mut report = loaded.report;
        let mut tried = Vec::new();
        if let Some(config) = loaded.config {
            if self.live {
                tried = block_on(async { Ok(live::try_all(&config).await) })?;
            }
            report.0.extend(block_on(tests(config))?);
        }
        let (findings, file) = (&report.0, self.config.config.display());
        let problems = findings.iter().filter(|p| p.weight == "problem").count();
        let failures = tried.iter().filter(|tried| tried.is_bad()).count();
        if self.json {
            say(serde_json::to_string_pretty(&in_json(
                findings,
                &tried,
                &file.to_string(),
            )?)?)?;
        } else {
            for placed in findings {
                say(placed)?;
            }
            tried.iter().try_for_each(show)?;
            say(match (problems, failures) {
                (0, 0) => format!("{file}: good"),
                (0, n) => format!(
                    "{file}: good, but {} of {} tried things don't work",
                    n,
                    tried.len()
                ),
                (1, _) => format!("{file}: 1 problem"),
                (n, _) => format!("{file}: {n} problems"),
            })?;
            if self.live && problems > 0 && tried.is_empty() {
                say("nothing was tried live: mend the configuration first")?;
            }
        }
        Ok(if report.has_problems() {
            ExitCode::from(EX_CONFIG)
        } else if failures > 0 {
            ExitCode::FAILURE
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
        reason: &seen.reason,
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

/// The findings as ever, then what was tried, in the same shape with more members.
fn in_json(findings: &[Placed], tried: &[Tried], file: &str) -> serde_json::Result<Vec<Value>> {
    let mut all: Vec<Value> = findings
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()?;
    for tried in tried {
        for (number, probe) in tried.probes.iter().enumerate() {
            let exchange = match number {
                0 => tried.exchange.as_slice(),
                _ => &[],
            };
            all.push(json!({
                "weight": word(probe.standing),
                "file": file,
                "line": null,
                "column": null,
                "text": format!("{}: {}", tried.thing, sentence(probe)),
                "live": { "thing": tried.thing, "what": probe.what, "exchange": exchange },
            }));
        }
    }
    Ok(all)
}

/// What a consumer of the findings knows already, and one more.
fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Good => "good",
        Standing::Unknown => "note",
        Standing::Bad => "problem",
    }
}

fn show(tried: &Tried) -> anyhow::Result<()> {
    say(&tried.thing)?;
    for probe in &tried.probes {
        let word = match probe.standing {
            Standing::Good => "ok",
            other => word(other),
        };
        say(format!("  {word}: {}", sentence(probe)))?;
    }
    for line in &tried.exchange {
        say(format!("      {line}"))?;
    }
    Ok(())
}

/// The sentence, and what it is about where it doesn't begin with that itself.
fn sentence(probe: &Probe) -> String {
    match probe.text.starts_with(&probe.what) {
        true => probe.text.clone(),
        false => format!("{}: {}", probe.what, probe.text),
    }
}
