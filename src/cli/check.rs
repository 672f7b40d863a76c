//! `check`: every problem of a configuration, with its place; `--live` also what works around the relay and what doesn't.

use std::process::ExitCode;

use serde_json::Value;
use serde_json::json;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::live;
use super::live::Tried;
use super::say;
use crate::channel::probe::Probe;
use crate::channel::probe::Standing;
use crate::config;
use crate::config::Placed;

/// Check the configuration and print every problem
///
/// Exit codes: 0 good; 1 with --live, something doesn't work; 78 the configuration itself is wrong (then nothing is tried).
/// Warnings and notes change nothing.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Also try DNS, connections, certificates, log-ins and rights of everything configured; nobody is sent anything
    #[arg(long)]
    live: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = config::load(&self.config.config, config::Use::Check);
        let tried = match &loaded.config {
            Some(config) if self.live => block_on(async { Ok(live::try_all(config).await) })?,
            _ => Vec::new(),
        };
        let (findings, file) = (&loaded.report.0, self.config.config.display());
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
            if self.live && problems > 0 {
                say("nothing was tried live: mend the configuration first")?;
            }
        }
        Ok(if loaded.report.has_problems() {
            ExitCode::from(EX_CONFIG)
        } else if failures > 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
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
