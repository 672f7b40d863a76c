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
use crate::channel::Receipt;
use crate::channel::SendError;
use crate::channel::Transcript;
use crate::config;
use crate::message::Recipient;
use crate::secret::Secret;
use crate::template::Style;
use crate::template::TEST_CODE;

/// As clap ends with for arguments that are wrong.
const WRONG_USAGE: u8 = 2;

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
    /// The phone number of that person, for a channel of type sms
    #[arg(long, value_name = "+NUMBER")]
    phone: Option<String>,
    /// The language of that person, such as de
    #[arg(long, value_name = "TAG")]
    language: Option<String>,
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

/// What became of it, and what that means.
fn told(sent: &Result<Receipt, SendError>) -> (String, &'static str) {
    match sent {
        Ok(receipt) => (
            format!("accepted by the next hop: {}", receipt.said),
            "Look whether it has arrived, also among the unwanted mail: what the next hop does with it, it tells nobody here.",
        ),
        Err(SendError::Broken { reason }) => (
            format!("not accepted, and not for anybody until this is mended: {reason}"),
            "The service suspends the channel then, tells the places in `escalate`, and tries it again every 5 minutes.",
        ),
        Err(SendError::Permanent { reason }) => (
            format!("not accepted, for good: {reason}"),
            "The service does not try it again for this person; a fallback starts at once.",
        ),
        Err(SendError::Unknown { reason }) => (
            format!("perhaps accepted: {reason}"),
            "Look whether it has arrived. The service sends it again, unless the channel has on_uncertain = \"hold\".",
        ),
        Err(SendError::Transient { reason, .. }) => (
            format!("not accepted for now: {reason}"),
            "The service tries again after 15 s, 1 min, 2 min and so on, until the code expires.",
        ),
        Err(SendError::Away { reason, .. }) => (
            format!("not accepted for now: {reason}"),
            "`ftm-relay check --live` says how far the way there works. The service tries again until the code expires.",
        ),
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
        if channel.kind == "sms" && self.phone.is_none() {
            eprintln!(
                "ftm-relay: the channel \"{}\" is of type sms and needs a number: add --phone +491701234567",
                self.channel
            );
            return Ok(ExitCode::from(WRONG_USAGE));
        }
        let to = Recipient {
            email: self.to.to_string(),
            name: None,
            phone: self.phone,
            language: self.language,
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
        let (said, then) = told(&sent);
        let code = channel.reveals.then_some(TEST_CODE);
        if self.json {
            say(serde_json::json!({
                "accepted": accepted,
                "result": said,
                "then": then,
                "test_code": code,
                "transcript": transcript.lines(),
            }))?;
        } else {
            for line in transcript.lines() {
                say(line)?;
            }
            say(format!("{}: {said}", self.channel))?;
            say(then)?;
            if let (Some(code), true) = (code, accepted) {
                say(format!(
                    "The message is marked as a test; the code in it, {code}, can't be redeemed."
                ))?;
            }
        }
        Ok(if accepted {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
