//! The `lockstep` command.

mod backend;
mod cli;
mod config;
mod demo;
mod embedded;
mod exit;
mod paths;
mod progress;
mod secret;
mod signals;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli.start_log();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", told(&failure.error));
            failure.exit.into()
        }
    }
}

/// An error with its causes, without those that it has told already.
fn told(error: &anyhow::Error) -> String {
    let add = |told: String, cause: String| if told.ends_with(&cause) { told } else { format!("{told}: {cause}") };
    error.chain().map(ToString::to_string).reduce(add).unwrap_or_default()
}
