//! `send-test`: one marked test message through one channel, and the dialogue it took.

use std::process::ExitCode;

use anyhow::bail;
use async_trait::async_trait;
use jiff::Timestamp;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::say;
use crate::channel::Attempt;
use crate::channel::Commit;
use crate::channel::SendError;
use crate::channel::Transcript;
use crate::config;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::template::Style;

/// Send a marked test message with a code that can't be redeemed through one channel
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The channel
    #[arg(long, value_name = "NAME")]
    channel: String,
    /// The address of the person who gets it
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    to: lettre::Address,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn address(text: &str) -> Result<lettre::Address, String> {
    text.parse()
        .map_err(|e: lettre::address::AddressError| format!("this is no mail address: {e}"))
}

struct NothingToCommit;

#[async_trait]
impl Commit for NothingToCommit {
    async fn commit(&self) -> Result<(), SendError> {
        Ok(())
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // The secrets of the channel are needed here, unlike in the other commands.
        let loaded = config::load(&self.config.config, config::Use::Check);
        let Some(config) = loaded.config else {
            eprint!("{}", loaded.report);
            return Ok(ExitCode::from(EX_CONFIG));
        };
        let Some(channel) = config
            .dispatch
            .channels
            .iter()
            .find(|c| c.name == self.channel)
        else {
            // A channel that is configured, but not built, lacks its secrets; the notes say which.
            if config.channels.iter().any(|c| c.name == self.channel) {
                eprint!("{}", loaded.report);
                bail!(
                    "the secrets of the channel \"{}\" can't be read here; run this as the service does, or set CREDENTIALS_DIRECTORY to where they are",
                    self.channel
                );
            }
            let names: Vec<_> = config.channels.iter().map(|c| c.name.as_str()).collect();
            bail!(
                "there is no [channel.{}]; there are {}",
                self.channel,
                names.join(", ")
            );
        };
        let to = Recipient {
            email: self.to.to_string(),
            name: None,
            phone: None,
            language: None,
            source: "the command line".to_owned(),
        };
        let now = Timestamp::now();
        let id = format!("test-{}", now.as_microsecond());
        let style = Style {
            reveal: channel.reveals,
            time_zone: &channel.time_zone,
            language: None,
            id: &id,
            now,
        };
        let note = config.dispatch.templates.test(Some(&to), &style)?;
        let redactor = channel.redactor.with([Secret::new(to.email.clone())]);
        let transcript = Transcript::on();
        let sent = block_on(async {
            let attempt = Attempt {
                to: Some(&to),
                note: &note,
                commit: &NothingToCommit,
                redactor: &redactor,
                transcript: &transcript,
            };
            Ok(channel.carrier.send(&attempt).await)
        })?;
        let accepted = sent.is_ok();
        let said = match &sent {
            Ok(receipt) => format!("accepted by the next hop: {}", receipt.said),
            Err(SendError::Broken { reason }) => {
                format!("not accepted, and not for anybody until this is mended: {reason}")
            }
            Err(SendError::Permanent { reason }) => format!("not accepted, for good: {reason}"),
            Err(SendError::Unknown { reason }) => format!("perhaps accepted: {reason}"),
            Err(SendError::Transient { reason, .. } | SendError::Away { reason, .. }) => {
                format!("not accepted for now: {reason}")
            }
        };
        if self.json {
            say(
                serde_json::json!({ "accepted": accepted, "result": said, "transcript": transcript.lines() }),
            )?;
        } else {
            for line in transcript.lines() {
                say(line)?;
            }
            say(format!("{}: {said}", self.channel))?;
        }
        Ok(if accepted {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
