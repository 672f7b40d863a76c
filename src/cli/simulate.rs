//! `simulate`: a FortiGate on the wire.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use super::block_on;
use super::say;
use crate::simulate::Format;
use crate::simulate::Identity;
use crate::simulate::Simulation;
use crate::simulate::Target;

/// Send simulated FortiGate logs with activation codes that can't be redeemed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to: udp://HOST:PORT, tcp://HOST:PORT (octet counting), tcp+lf://HOST:PORT or tls://HOST:PORT
    #[arg(long, value_name = "URL")]
    to: Target,
    /// With TLS: the authorities that may have signed the listener's certificate, in PEM; by default the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With TLS, for a listener with `client_ca`: the certificate to show, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The log format
    #[arg(long, default_value = "kv")]
    format: Format,
    /// The FortiOS version to imitate
    #[arg(long, default_value = "7.4")]
    fortios: String,
    /// Whose activation it is; repeatable
    #[arg(long = "user", value_name = "NAME")]
    users: Vec<String>,
    /// So many activations
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Lines a second; 0 is as fast as possible
    #[arg(long, value_name = "PER_S", default_value_t = 0.0)]
    rate: f64,
    /// Other log lines between two activations
    #[arg(long, default_value_t = 0)]
    noise: u64,
    /// The same seed gives the same codes
    #[arg(long)]
    seed: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let now = Timestamp::now();
        let simulation = Simulation {
            to: self.to,
            identity: Identity {
                ca: self.ca,
                certificate: self.cert.zip(self.key),
            },
            format: self.format,
            fortios: self.fortios,
            users: self.users,
            count: self.count,
            rate: self.rate,
            noise: self.noise,
            // Without a seed each run has codes of its own, so that a second trial is no resend.
            seed: self
                .seed
                .unwrap_or_else(|| now.as_microsecond().unsigned_abs()),
        };
        let sent = block_on(simulation.run(now))?;
        let (activations, lines, seconds) = (sent.activations, sent.lines, sent.took.as_secs_f64());
        if self.json {
            let bytes = sent.bytes;
            say(
                serde_json::json!({ "activations": activations, "lines": lines, "bytes": bytes, "seconds": seconds }),
            )?;
        } else {
            say(format!(
                "sent {lines} lines, {activations} of them activations, in {seconds:.3} s"
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
