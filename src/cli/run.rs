//! `run`: the service.

use std::process::ExitCode;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::ConfigArg;
use super::EX_CONFIG;
use super::block_on;
use crate::config;
use crate::logging;
use crate::relay::Relay;
use crate::systemd::Inherited;

/// Run the service
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// How to log to stderr
    #[arg(long, value_enum, default_value_t)]
    log_format: logging::Format,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // Before anything else opens a descriptor.
        let inherited = Inherited::from_env();
        let loaded = config::load(&self.config.config, config::Use::Service);
        let Some(config) = loaded.config else {
            eprint!("{}", loaded.report);
            return Ok(ExitCode::from(EX_CONFIG));
        };
        logging::init(self.log_format);
        for placed in &loaded.report.0 {
            warn!("{placed}");
        }
        raise_descriptor_limit();
        block_on(async {
            let relay = Relay::bind(config, self.config.config, inherited).await?;
            let shutdown = CancellationToken::new();
            let (reload, reloads) = mpsc::channel(1);
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut hang_up = signal(SignalKind::hangup())?;
            let stop = shutdown.clone();
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => stop.cancel(),
                        // So that Ctrl-C ends a trial as systemd ends a service.
                        _ = interrupt.recv() => stop.cancel(),
                        // A reload that waits already will read the newest file.
                        _ = hang_up.recv() => drop(reload.try_send(())),
                    }
                }
            });
            relay.run(shutdown, reloads).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Each connection takes a descriptor, and one listener may have as many as the usual soft limit allows the whole process.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "The number of files and connections that may be open can't be raised");
    }
}
