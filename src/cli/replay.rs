//! `replay`: the lines of a file through the whole pipeline, for real.

use std::fs::File;
use std::io::BufReader;
use std::io::IsTerminal;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;

use super::ConfigArg;
use super::block_on;
use super::explain::read_line;
use super::say;
use crate::config::Config;
use crate::control;
use crate::control::Answer;
use crate::control::Replayed;
use crate::control::Request;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::outbox;
use crate::relay;

/// So many wanted lines are handed over at once.
const BATCH_LINES: usize = 500;

/// Put the lines of a log file through the relay for real
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The log lines, one message a line
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
    /// Don't ask first
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        let unreadable = || format!("{} can't be read", self.file.display());
        let file = File::open(&self.file).with_context(unreadable)?;
        if file.metadata().with_context(unreadable)?.is_dir() {
            bail!("{} is a directory", self.file.display());
        }
        if !self.yes && !confirmed(&self.file)? {
            bail!("nothing was sent");
        }
        let (done, running) = block_on(replay(&config, BufReader::new(file)))?;
        if self.json {
            say(serde_json::to_string(&done)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        say(format!(
            "{} lines: {} activations accepted ({} without a code, {} expired already), {} life-cycle events, {} known already, {} rejected, {} other logs",
            done.lines,
            done.accepted,
            done.no_code,
            done.expired,
            done.lifecycle,
            done.duplicates,
            done.rejected,
            done.ignored
        ))?;
        if !running && done.accepted > 0 {
            say("No relay runs: they go out when it starts.")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn confirmed(file: &std::path::Path) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this sends real messages; say --yes");
    }
    print!(
        "The activation codes in {} will be sent to their people. Go on? [y/N] ",
        file.display()
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Reads the file here, and hands over what passes the gate. The second value says whether a relay runs.
async fn replay(config: &Config, mut input: BufReader<File>) -> anyhow::Result<(Replayed, bool)> {
    let gate = config.pipeline.gate();
    let mut done = Replayed::default();
    let mut batch = Vec::new();
    let mut running = None;
    loop {
        let line = read_line(&mut input)?;
        let end = line.is_none();
        match line {
            Some(bytes) if gate.passes(&bytes) => batch.push(bytes),
            Some(_) => {
                done += Replayed {
                    lines: 1,
                    ignored: 1,
                    ..Replayed::default()
                }
            }
            None => {}
        }
        // A file without a wanted line touches nothing.
        if (end && !batch.is_empty()) || batch.len() >= BATCH_LINES {
            let (one, by_relay) = hand_over(config, std::mem::take(&mut batch)).await?;
            done += one;
            running = Some(by_relay);
        }
        if end {
            return Ok((done, running.unwrap_or_default()));
        }
    }
}

async fn hand_over(config: &Config, batch: Vec<Vec<u8>>) -> anyhow::Result<(Replayed, bool)> {
    let lines = batch
        .iter()
        .map(|line| BASE64_STANDARD.encode(line))
        .collect();
    match control::ask(&config.state_dir, &Request::Replay(lines))
        .await
        .context("the relay can't be asked")?
    {
        Some(Answer::Replayed(done)) => Ok((done, true)),
        Some(Answer::Error(why)) => bail!("{why}"),
        Some(_) => {
            bail!("the running relay gave another answer than expected; is it of another version?")
        }
        None => {
            let opened = outbox::open(&config.outbox, &config.state_dir).with_context(|| {
                format!(
                    "no relay runs, and the outbox in {} can't be opened",
                    config.state_dir.display()
                )
            })?;
            let mut done = Replayed::default();
            let mut wanted = Vec::new();
            for bytes in batch {
                let frame = Frame {
                    bytes,
                    peer: Peer::unknown(),
                    listener: None,
                    received_at: Timestamp::now(),
                };
                done += relay::replayed(&config.pipeline, &frame, &mut wanted);
            }
            let stored = opened.outbox.put(wanted.clone()).await?;
            relay::settle_replayed(&mut done, &wanted, &stored);
            Ok((done, false))
        }
    }
}
