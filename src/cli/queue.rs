//! `queue`: the operator's view of the outbox, through the running relay or, when none runs, directly.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use clap::Subcommand;
use jiff::Timestamp;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::say;
use super::word;
use crate::config;
use crate::control;
use crate::control::Answer;
use crate::control::Request;
use crate::outbox;
use crate::outbox::Command;
use crate::outbox::Filter;
use crate::outbox::Row;
use crate::outbox::State;
use crate::outbox::Story;

/// Look at the queue, retry or cancel
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List deliveries, newest first
    List {
        #[command(flatten)]
        common: Common,
        /// Only users whose name holds this
        #[arg(long, value_name = "TEXT")]
        user: Option<String>,
        /// Only this state; repeatable
        #[arg(long = "state", value_name = "STATE", value_parser = state)]
        states: Vec<State>,
        /// At most so many; 0 is all
        #[arg(long, default_value_t = 0)]
        limit: usize,
    },
    /// Show one row with its history
    Show {
        /// The id, as `list` shows it
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Make a delivery due at once, or release what needs attention
    Retry {
        /// The id, as `list` shows it
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// End a delivery or an activation
    Cancel {
        /// The id, as `list` shows it
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Count rows by state
    Stats {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn state(text: &str) -> Result<State, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "one of received, pending, sending, accepted, failed, expired, superseded, cancelled, needs-attention".to_owned())
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (common, request) = match self.action {
            Action::List {
                common,
                user,
                states,
                limit,
            } => (
                common,
                Request::List(Filter {
                    user,
                    states,
                    limit,
                }),
            ),
            Action::Show { id, common } => (common, Request::Show(id)),
            Action::Retry { id, common } => (common, Request::Command(id, Command::Retry)),
            Action::Cancel { id, common } => (common, Request::Command(id, Command::Cancel)),
            Action::Stats { common } => (common, Request::Stats),
        };
        let state_dir = match config::state_dir(&common.config.config) {
            Ok(dir) => dir,
            Err(why) => {
                eprintln!("{}: {why}", common.config.config.display());
                return Ok(ExitCode::from(EX_CONFIG));
            }
        };
        let answer = block_on(async {
            match control::ask(&state_dir, &request)
                .await
                .context("the relay can't be asked")?
            {
                Some(answer) => Ok(answer),
                None => directly(&state_dir, request).await,
            }
        })?;
        print(answer, common.json)
    }
}

/// No relay runs: the outbox is opened as it is, without its key.
async fn directly(state_dir: &Path, request: Request) -> anyhow::Result<Answer> {
    let outbox = outbox::open_without_key(state_dir).with_context(|| {
        format!(
            "no relay runs, and the outbox in {} can't be opened",
            state_dir.display()
        )
    })?;
    Ok(match request {
        Request::List(filter) => Answer::Rows(outbox.list(filter).await?),
        Request::Show(id) => Answer::Story(Box::new(outbox.show(&id).await?)),
        Request::Command(id, command) => {
            Answer::State(outbox.command(&id, command, Timestamp::now()).await?.state)
        }
        Request::Stats => Answer::Stats(outbox.depth(Timestamp::now()).await?.into()),
        Request::Replay(_) | Request::Resend { .. } | Request::Status => {
            bail!("only a running relay can do this")
        }
    })
}

fn print(answer: Answer, json: bool) -> anyhow::Result<ExitCode> {
    match answer {
        Answer::Error(why) => bail!("{why}"),
        Answer::Rows(rows) if json => say(serde_json::to_string_pretty(&rows)?)?,
        Answer::Rows(rows) => list(&rows)?,
        Answer::Story(story) if json => say(serde_json::to_string_pretty(&story)?)?,
        Answer::Story(story) => show(&story)?,
        Answer::State(state) if json => say(serde_json::json!({ "state": state }))?,
        Answer::State(state) => say(word(&state))?,
        Answer::Stats(stats) if json => {
            let items: serde_json::Map<_, _> = stats
                .items
                .iter()
                .map(|(state, count)| (word(state), (*count).into()))
                .collect();
            say(serde_json::json!({ "items": items, "oldest": stats.oldest }))?;
        }
        Answer::Stats(stats) => {
            for (state, count) in &stats.items {
                say(format!("{:<16}{count:>8}", word(state)))?;
            }
            if let Some(oldest) = stats.oldest {
                say(format!("oldest not settled: {}", seconds(oldest)))?;
            }
        }
        Answer::Replayed(done) => say(serde_json::to_string(&done)?)?,
        Answer::Resent(resent) => say(serde_json::to_string(&resent)?)?,
        Answer::Status(status) => say(serde_json::to_string(&status)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn list(rows: &[Row]) -> anyhow::Result<()> {
    if rows.is_empty() {
        return say("The queue is empty.");
    }
    let table: Vec<[String; 8]> = rows
        .iter()
        .map(|row| {
            [
                row.id.clone(),
                row.user.clone(),
                word(&row.state),
                row.channel.clone().unwrap_or_else(|| "-".to_owned()),
                row.recipient.clone().unwrap_or_else(|| "-".to_owned()),
                row.attempts.to_string(),
                row.next_attempt.map_or_else(|| "-".to_owned(), seconds),
                row.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = [
        "ID",
        "USER",
        "STATE",
        "CHANNEL",
        "RECIPIENT",
        "TRIES",
        "NEXT TRY",
        "WHY",
    ]
    .map(str::to_owned);
    let width = |column: usize| {
        table
            .iter()
            .chain([&head])
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..7).map(width).collect();
    for row in [&head].into_iter().chain(&table) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        line.push_str(&row[7]);
        say(line.trim_end())?;
    }
    Ok(())
}

fn show(story: &Story) -> anyhow::Result<()> {
    let row = &story.row;
    let lines = [
        ("id", Some(row.id.clone())),
        ("user", Some(row.user.clone())),
        ("stage", Some(row.stage.clone())),
        ("state", Some(word(&row.state))),
        ("channel", row.channel.clone()),
        ("recipient", row.recipient.clone()),
        ("found by", story.source.clone()),
        (
            "device",
            story
                .device
                .as_ref()
                .map(|d| format!("{} ({}), VDOM {}", d.name, d.id, d.vdom)),
        ),
        ("rule", story.rule.clone()),
        ("token", story.token.clone()),
        ("event", story.event_id.clone()),
        ("happened", story.event_time.map(seconds)),
        ("received", Some(seconds(row.created_at))),
        ("expires", row.expires_at.map(seconds)),
        ("tries", Some(row.attempts.to_string())),
        ("next try", row.next_attempt.map(seconds)),
        ("why", row.last_error.clone()),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            say(format!("{name:<10} {value}"))?;
        }
    }
    if !story.trace.is_empty() {
        say("why it was believed")?;
    }
    for finding in &story.trace {
        let (at, by) = (seconds(finding.at), finding.by.as_str());
        say(format!("  {at} {by:<10} {}", finding.said))?;
    }
    if story.life.len() > 1 {
        say("the token's life")?;
        for event in &story.life {
            let mut whose = event.user.clone();
            if let Some(token) = &event.token {
                whose = format!("{whose} {token}");
            }
            let (at, stage) = (seconds(event.at), event.stage.as_str());
            let (id, state) = (&event.id, word(&event.state));
            say(format!(
                "  {at} {id:<6} {stage:<10} {state:<16} {}",
                whose.trim()
            ))?;
        }
    }
    if !story.history.is_empty() {
        say("what happened")?;
    }
    for entry in &story.history {
        let channel = entry
            .channel
            .as_ref()
            .map(|c| format!("{c}: "))
            .unwrap_or_default();
        say(format!("  {} {channel}{}", seconds(entry.at), entry.what))?;
    }
    Ok(())
}
