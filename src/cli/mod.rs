//! Commands: arguments in, text or one JSON object out.

use std::io::{IsTerminal, stderr};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::exit::Outcome;

mod bench;
mod challenge;
mod client;
mod conformance;
mod coordinator;
mod devices;
mod dispute;
mod embed;
mod files;
mod generate;
mod import;
mod inspect;
mod judge;
mod ledger;
mod log;
mod perplexity;
mod sim;
mod synth;
mod verify;
mod worker;

pub use import::Stages;
pub use judge::verdict_line;

/// Exact neural networks, committed layer by layer, verified by anyone.
#[derive(Parser)]
#[command(name = "lockstep", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// Log more: -v for debugging, -vv for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 configuration or input, 3 no such device, \
5 authentication, 6 drain cut short, 7 checked and found wrong.";

#[derive(Subcommand)]
enum Command {
    /// Show everything on this machine: a coordinator, three workers, a cheat, and how one number convicts it.
    Demo(crate::demo::DemoArgs),
    /// Turn a Hugging Face folder into a package, or check a package against one.
    Import(import::ImportArgs),
    /// Make up a package with random weights at a known shape, to measure with.
    Synth(synth::SynthArgs),
    /// Print what a package holds.
    Inspect(inspect::InspectArgs),
    /// Compute embeddings here, with the root of every layer.
    Embed(embed::EmbedArgs),
    /// Generate text here, token by token, with the root of every layer.
    Generate(generate::GenerateArgs),
    /// Measure how well a model foresees a text, from its exact logits.
    Perplexity(perplexity::PerplexityArgs),
    /// Check a receipt: everything that can be derived, and the run itself where the package is at hand.
    Verify(verify::VerifyArgs),
    /// Run a receipt's job again, and dispute the receipt before its coordinator if it is wrong.
    Challenge(challenge::ChallengeArgs),
    /// Judge a saved dispute again, offline: needs neither the model's weights nor trust in anybody.
    Judge(judge::JudgeArgs),
    /// List the disputes of a coordinator, look into one, or save it.
    Dispute(dispute::DisputeArgs),
    /// Print a coordinator's ledger of credits, after checking that it adds up.
    Ledger(ledger::LedgerArgs),
    /// Check by a coordinator's append-only log that it did what it says, and rewrote nothing.
    Log(log::LogArgs),
    /// Serve models to clients, assign jobs to workers, and have them audited.
    Coordinator(coordinator::CoordinatorArgs),
    /// Run jobs for a coordinator.
    Worker(worker::WorkerArgs),
    /// List what this machine can compute on (CPU paths, GPUs for `cuda`, adapters for `wgpu`), and why one can't be used.
    Devices(devices::DevicesArgs),
    /// Put a backend of this machine through the conformance suite, byte for byte.
    Conformance(conformance::ConformanceArgs),
    /// Measure.
    Bench(bench::BenchArgs),
    /// Play the whole system against cheats and faults, one world for each seed.
    Sim(sim::SimArgs),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        match self.command {
            Command::Demo(args) => crate::demo::run(&args),
            Command::Import(args) => import::run(&args),
            Command::Synth(args) => synth::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Embed(args) => embed::run(&args),
            Command::Generate(args) => generate::run(&args),
            Command::Perplexity(args) => perplexity::run(&args),
            Command::Verify(args) => verify::run(&args),
            Command::Challenge(args) => challenge::run(&args),
            Command::Judge(args) => judge::run(&args),
            Command::Dispute(args) => dispute::run(&args),
            Command::Ledger(args) => ledger::run(&args),
            Command::Log(args) => log::run(&args),
            Command::Coordinator(args) => coordinator::run(args),
            Command::Worker(args) => worker::run(args),
            Command::Devices(args) => devices::run(&args),
            Command::Conformance(args) => conformance::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Sim(args) => sim::run(&args),
        }
    }

    /// Sends the log to standard error; `RUST_LOG` overrides the level.
    pub fn start_log(&self) {
        // The demo tells its own story; warnings about the cheat would come between its lines.
        let quiet = usize::from(matches!(self.command, Command::Demo(_)));
        let level = ["error", "warn", "info", "debug", "trace"][(2 - 2 * quiet + usize::from(self.verbose)).min(4)];
        let crates = ["lockstep", "lockstep_worker", "lockstep_coordinator", "lockstep_link"];
        let ours: String = crates.iter().map(|name| format!(",{name}={level}")).collect();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| format!("error{ours}").into());
        let colours = stderr().is_terminal();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(colours)
            .with_writer(stderr)
            .init();
    }
}
