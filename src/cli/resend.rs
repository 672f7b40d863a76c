//! `resend`: the running relay asks the FortiGate for a user's current code and sends it again.

use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use super::say;
use crate::config;
use crate::control;
use crate::control::Answer;
use crate::control::Request;

/// Send a user's current activation code again, as the FortiGate has it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user, as the FortiGate or a log names them
    user: String,
    #[command(flatten)]
    config: ConfigArg,
    /// Only on this device: the first `id` in the configuration, or its name
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Only in this VDOM
    #[arg(long, value_name = "VDOM")]
    vdom: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = match config::state_dir(&self.config.config) {
            Ok(dir) => dir,
            Err(why) => {
                eprintln!("{}: {why}", self.config.config.display());
                return Ok(ExitCode::from(EX_CONFIG));
            }
        };
        let request = Request::Resend {
            user: self.user,
            device: self.device,
            vdom: self.vdom,
        };
        let answer = block_on(async {
            control::ask(&state_dir, &request)
                .await
                .context("the relay can't be asked")
        })?;
        let resent = match answer {
            Some(Answer::Resent(resent)) => resent,
            Some(Answer::Error(why)) => bail!("{why}"),
            Some(_) => bail!("the relay answered something else; is it of another version?"),
            None => bail!("no relay runs; start it, for only it can send"),
        };
        if self.json {
            say(serde_json::to_string(&resent)?)?;
        } else {
            let device = &resent.device;
            say(format!(
                "{}: the code of {} on {} ({}), token {}, goes out again; it is good until {}. `ftm-relay queue show {}` tells how it fares.",
                resent.id,
                resent.user,
                device.name,
                device.vdom,
                resent.token,
                resent.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                resent.id
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
