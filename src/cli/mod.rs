//! The command line: one file for each sub-command.

mod check;
mod doctor;
mod explain;
mod fortigate_cli;
mod init;
mod keygen;
mod live;
mod queue;
mod replay;
mod resend;
mod run;
mod send_test;
mod simulate;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;

use crate::config;
use crate::config::Config;

/// Wrong configuration (`EX_CONFIG`): the unit doesn't restart.
const EX_CONFIG: u8 = 78;

/// Wrong usage, as clap has it.
const EX_USAGE: u8 = 2;

/// Brings FortiToken Mobile activation codes from a FortiGate's syslog to their people.
#[derive(Debug, Parser)]
#[command(name = "ftm-relay", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Box<init::Args>),
    Run(run::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Explain(explain::Args),
    Replay(replay::Args),
    Resend(resend::Args),
    SendTest(send_test::Args),
    Queue(queue::Args),
    Simulate(simulate::Args),
    FortigateCli(fortigate_cli::Args),
    Keygen(keygen::Args),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write the pages of all commands into this directory instead
        #[arg(long, value_name = "DIRECTORY")]
        to: Option<PathBuf>,
    },
}

/// Which configuration to read.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration file
    #[arg(
        long,
        value_name = "PATH",
        env = "FTM_RELAY_CONFIG",
        default_value = "/etc/ftm-relay/ftm-relay.toml"
    )]
    config: PathBuf,
}

impl ConfigArg {
    /// The configuration for a command that isn't the service, or the exit code after its problems were printed.
    fn load(&self) -> Result<Config, ExitCode> {
        let loaded = config::load(&self.config, config::Use::Command);
        loaded.config.ok_or_else(|| {
            for placed in loaded.report.0.iter().filter(|p| p.weight == "problem") {
                eprintln!("{placed}");
            }
            ExitCode::from(EX_CONFIG)
        })
    }
}

/// Parses the arguments, runs the command, prints an error once.
pub fn main() -> ExitCode {
    // A core dump would hold codes.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(e) = rustix::process::setrlimit(rustix::process::Resource::Core, none) {
        eprintln!("ftm-relay: core dumps can't be switched off: {e}");
    }
    let done = match Cli::parse().command {
        Command::Init(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Explain(args) => args.run(),
        Command::Replay(args) => args.run(),
        Command::Resend(args) => args.run(),
        Command::SendTest(args) => args.run(),
        Command::Queue(args) => args.run(),
        Command::Simulate(args) => args.run(),
        Command::FortigateCli(args) => args.run(),
        Command::Keygen(args) => args.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ftm-relay", &mut script);
            std::io::stdout()
                .write_all(&script)
                .map(|()| ExitCode::SUCCESS)
                .map_err(|e| Unprinted(e).into())
        }
        Command::Man { to } => man(to.as_deref()),
    };
    done.unwrap_or_else(|e| {
        if e.downcast_ref().is_some_and(Unprinted::has_no_reader) {
            return ExitCode::SUCCESS;
        }
        eprintln!("ftm-relay: {e:#}");
        ExitCode::FAILURE
    })
}

/// The page of the whole program, which names those of the commands; with a directory all of them, as files.
fn man(to: Option<&Path>) -> anyhow::Result<ExitCode> {
    // Nobody needs a page about `help`.
    let program = Cli::command().disable_help_subcommand(true);
    match to {
        Some(dir) => clap_mangen::generate_to(program, dir)
            .with_context(|| format!("the pages can't be written to {}", dir.display()))?,
        None => clap_mangen::Man::new(program)
            .render(&mut std::io::stdout())
            .map_err(Unprinted)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Standard output takes no more. A type of its own, since a connection that breaks is an error of the same kind.
#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written")]
struct Unprinted(#[source] std::io::Error);

impl Unprinted {
    /// A reader such as `head` has what it wants.
    fn has_no_reader(&self) -> bool {
        self.0.kind() == std::io::ErrorKind::BrokenPipe
    }
}

/// A runtime for a command that talks to something.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}

/// Prints a line. `println!` would panic where a reader such as `head` has gone.
fn say(line: impl fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(|e| Unprinted(e).into())
}

/// A word in kebab case, as JSON has it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
