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
            eprintln!("error: {:#}", failure.error);
            failure.exit.into()
        }
    }
}
