//! `lockstep bench commit`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::commit::{Workload, measure, median};
use lockstep_model::package::Package;
use serde_json::json;

use crate::backend;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench commit`.
#[derive(Args)]
pub struct CommitArgs {
    /// Package to run.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// Sequences of one pass.
    #[arg(long, default_value = "1")]
    batch: NonZeroUsize,
    /// Tokens of each sequence.
    #[arg(long, default_value = "128")]
    tokens: NonZeroUsize,
    /// Passes that count.
    #[arg(long, default_value = "30")]
    passes: NonZeroUsize,
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Measures.
pub fn run(args: &CommitArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let backend = backend::open(&args.backend, threads)?;
    let package = Package::open_checked(&args.package, threads).or_exit(Exit::Configuration)?;
    let workload = Workload { batch: args.batch.get(), tokens: args.tokens.get(), passes: args.passes.get() };
    let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
    let (share, rate) = (samples.share(), samples.rate(workload));
    if args.json {
        println!(
            "{}",
            json!({
                "model_id": package.model_id().to_string(), "backend": backend.name(), "threads": threads,
                "batch": args.batch, "tokens": args.tokens, "commit_share": share, "sequences_per_second": rate,
                "total_seconds": samples.total, "hashing_seconds": samples.hashing,
            })
        );
    } else {
        println!("{} on {}, {threads} threads", package.manifest().name, backend.name());
        println!("{} x {} tokens: {rate:.1} sequences/s, median of {} passes", args.batch, args.tokens, args.passes);
        let milliseconds = 1e3 * median(samples.hashing.iter().copied());
        println!("commitments: {milliseconds:.3} ms a pass, {:.2}% of run time", 100.0 * share);
    }
    Ok(())
}
