//! `explain`: what would happen to a line, and why. Sends nothing, stores nothing.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::ConfigArg;
use super::block_on;
use super::say;
use crate::activation::Activation;
use crate::activation::Device;
use crate::activation::Stage;
use crate::config::Config;
use crate::directory::Lookup;
use crate::directory::LookupError;
use crate::dispatch::inquiry::Inquiry;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::outbox::By;
use crate::outbox::Finding;
use crate::pipeline::Verdict;
use crate::recipients::Mismatch;
use crate::secret::mask_address;

/// The longest line that is read; longer ones are cut.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Say what would happen to log lines, and why; nothing is sent or stored
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The log lines, one message a line; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
    /// Check `allow` and `peers` as if the lines came from here
    #[arg(long, value_name = "ADDRESS")]
    peer: Option<IpAddr>,
    /// Check `peers` as if the peer's certificate bore this name (repeatable)
    #[arg(long, value_name = "NAME")]
    certificate: Vec<String>,
    /// Check `allow` and `devices` of this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Show codes and addresses in full
    #[arg(long)]
    reveal: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What would happen to one line.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    line: u64,
    pub verdict: &'static str,
    pub reason: String,
    format: Option<&'static str>,
    logid: Option<u32>,
    pub stage: Option<Stage>,
    pub device: Option<Device>,
    pub user: Option<String>,
    pub code: Option<String>,
    code_found: Option<bool>,
    token: Option<String>,
    pub recipient: Option<Found>,
    pub channels: Option<Vec<String>>,
    /// What was noticed on the way: checks that were skipped, clocks, what each directory said.
    notes: Vec<String>,
    /// What was believed, and why.
    trace: Vec<Finding>,
    /// Why a directory could not be asked, so that nobody knows who the person is.
    #[serde(skip)]
    pub unasked: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub email: String,
    source: String,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        if let Some(name) = &self.listener
            && !config.listeners.iter().any(|l| l.name() == *name)
        {
            anyhow::bail!(
                "there is no listener \"{name}\"; there are {}",
                names(&config)
            );
        }
        let input: Box<dyn Read> = if self.file.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            Box::new(
                std::fs::File::open(&self.file)
                    .with_context(|| format!("{} can't be read", self.file.display()))?,
            )
        };
        if self.file.is_dir() {
            anyhow::bail!("{} is a directory", self.file.display());
        }
        let mut input = BufReader::new(input);
        let shown = Explain {
            reveal: self.reveal,
            offline: false,
        };
        block_on(async {
            for line in 1.. {
                let Some(bytes) = read_line(&mut input)? else {
                    break;
                };
                let explanation = shown.explain(&config, line, &self.frame(bytes)).await;
                if self.json {
                    say(serde_json::to_string(&explanation)?)?;
                } else {
                    say(explanation.in_words(|email| shown.shown(email)).trim_end())?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    fn frame(&self, bytes: Vec<u8>) -> Frame {
        Frame {
            bytes,
            peer: Peer {
                certificate_names: self.certificate.as_slice().into(),
                ..self.peer.map_or_else(Peer::unknown, Peer::at)
            },
            listener: self.listener.as_deref().map(Arc::from),
            received_at: Timestamp::now(),
        }
    }
}

/// How lines are explained.
pub(super) struct Explain {
    /// With codes and addresses in full.
    pub reveal: bool,
    /// Nobody else can be asked, so what a device must confirm counts as confirmed.
    pub offline: bool,
}

impl Explain {
    /// Says what would happen to a frame.
    pub async fn explain(&self, config: &Config, line: u64, frame: &Frame) -> Explanation {
        let reading = config.pipeline.process(frame);
        let mut explanation = Explanation {
            line,
            verdict: "ignore",
            reason: String::new(),
            format: reading.format,
            logid: reading.logid,
            stage: reading.stage,
            device: reading.device,
            user: reading.user,
            code: None,
            code_found: None,
            token: None,
            recipient: None,
            channels: None,
            notes: reading.notes,
            trace: Vec::new(),
            unasked: None,
        };
        match reading.verdict {
            Verdict::Ignored(reason) => explanation.reason = reason,
            Verdict::Rejected(reason) => {
                explanation.verdict = "rejected";
                explanation.reason = reason;
            }
            Verdict::Wanted(activation) => {
                self.explain_activation(config, &activation, &mut explanation)
                    .await
            }
        }
        explanation
    }

    async fn explain_activation(
        &self,
        config: &Config,
        activation: &Activation,
        explanation: &mut Explanation,
    ) {
        explanation.trace = Finding::first(activation);
        explanation.token.clone_from(&activation.token);
        if activation.stage != Stage::CodeSent {
            explanation.verdict = "lifecycle";
            explanation.reason = format!(
                "A token event ({}) that carries no code to send; it is recorded.",
                activation.stage
            );
            return;
        }
        explanation.code_found = Some(activation.code.is_some());
        let survey = config.dispatch.survey(activation, self.offline).await;
        explanation.trace.extend(survey.trace);
        let logged = activation;
        let activation = &survey.activation;
        explanation.token.clone_from(&activation.token);
        if let Some(Inquiry::Stops { reason, .. } | Inquiry::Waits { reason, .. }) = &survey.inquiry
        {
            (explanation.verdict, explanation.reason) = match logged.code {
                None => ("no-code", format!("Nothing is sent: {reason}.")),
                Some(_) => (
                    "rejected",
                    format!("Nothing is sent before the device confirms it: {reason}."),
                ),
            };
            return;
        }
        let Some(code) = &activation.code else {
            explanation.verdict = "no-code";
            explanation.reason =
                "A FortiGate sent an activation code, but no valid code stands in the message; those who are told by `escalate` hear of it.".to_owned();
            return;
        };
        explanation.code = Some(if self.reveal {
            code.expose().to_owned()
        } else {
            format!("{}…", code.expose().chars().take(4).collect::<String>())
        });
        let routes = &config.dispatch.routes;
        let Some(route) = routes.find(activation) else {
            explanation.verdict = "no-recipient";
            explanation.reason =
                "No [[route]] matches, so the activation would wait for a person.".to_owned();
            return;
        };
        let needs_person = |name: &String| {
            config
                .channels
                .iter()
                .any(|c| c.name == *name && c.needs_person)
        };
        let mut held = false;
        let (recipient, missing) = match survey.lookup {
            None => (None, "nobody was looked up".to_owned()),
            Some(found) => match found {
                Ok(Lookup::Found {
                    recipient,
                    trace,
                    mismatch,
                }) => {
                    explanation.notes.extend(trace);
                    let other_address = mismatch.is_some();
                    if let Some(other) = mismatch {
                        explanation.notes.push(format!(
                            "another address than the one found stands in the message: {}",
                            self.shown(&other)
                        ));
                    }
                    held = other_address && config.dispatch.mismatch == Mismatch::Hold;
                    (Some(recipient), String::new())
                }
                Ok(Lookup::Unknown { trace, reason } | Lookup::Outside { trace, reason }) => {
                    explanation.notes.extend(trace);
                    (None, reason)
                }
                Err(e) => {
                    if matches!(e, LookupError::Unavailable(_)) {
                        explanation.unasked = Some(e.to_string());
                    }
                    (None, e.to_string())
                }
            },
        };
        let usable: Vec<_> = route
            .to
            .iter()
            .filter(|n| recipient.is_some() || !needs_person(n))
            .cloned()
            .collect();
        explanation.channels = Some(usable.clone());
        if usable.is_empty() {
            explanation.verdict = "no-recipient";
            explanation.reason = format!("Nobody is found to send the code to: {missing}.");
            return;
        }
        explanation.verdict = "relay";
        let expired = activation.expires_at <= activation.received_at;
        let to = recipient
            .as_ref()
            .map_or_else(String::new, |r| format!(" to {}", self.shown(&r.email)));
        explanation.reason = if expired {
            format!(
                "The code expired at {}, so nothing would be sent; this is an old log, or the device's clock is wrong.",
                activation.expires_at
            )
        } else if held {
            format!(
                "The code would wait for a person before it goes{to}, since another address stands in the message."
            )
        } else {
            format!("The code goes{to} by {}.", usable.join(", "))
        };
        if recipient.is_none() && !missing.is_empty() {
            explanation.notes.push(missing);
        }
        explanation.recipient = recipient.map(|r| Found {
            email: r.email,
            source: r.source,
        });
    }

    fn shown(&self, email: &str) -> String {
        if self.reveal {
            email.to_owned()
        } else {
            mask_address(email)
        }
    }
}

impl Explanation {
    fn in_words(&self, shown: impl Fn(&str) -> String) -> String {
        let mut text = format!("line {}: {} — {}\n", self.line, self.verdict, self.reason);
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!("    {name:<10} {value}\n"));
            }
        };
        let event = self.logid.map(|id| match self.stage {
            Some(stage) => format!("{id} ({stage})"),
            None => id.to_string(),
        });
        add("format", self.format.map(str::to_owned));
        add("event", event);
        add(
            "device",
            self.device
                .as_ref()
                .map(|d| format!("{} ({}), VDOM {}", d.name, d.id, d.vdom)),
        );
        add("user", self.user.clone());
        add("code", self.code.clone());
        add("token", self.token.clone());
        add(
            "recipient",
            self.recipient
                .as_ref()
                .map(|r| format!("{} (from {})", shown(&r.email), r.source)),
        );
        add(
            "channels",
            self.channels
                .as_ref()
                .filter(|c| !c.is_empty())
                .map(|c| c.join(", ")),
        );
        // What the directories said stands among the notes.
        for finding in self.trace.iter().filter(|f| f.by != By::Directory) {
            add(finding.by.as_str(), Some(finding.said.clone()));
        }
        for note in &self.notes {
            add("note", Some(note.clone()));
        }
        text
    }
}

fn names(config: &Config) -> String {
    config
        .listeners
        .iter()
        .map(|l| l.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The next line's bytes without its end; `None` at the end.
pub fn read_line(input: &mut impl BufRead) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input
        .by_ref()
        .take(MAX_LINE_BYTES)
        .read_until(b'\n', &mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == MAX_LINE_BYTES {
        input.skip_until(b'\n')?;
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(line))
}
