//! Parses the arguments and runs the command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ftm_relay::cli::main()
}
