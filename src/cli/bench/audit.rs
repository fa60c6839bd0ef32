//! `lockstep bench audit`

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::audit::{Workload, measure};
use lockstep_benches::commit::median;
use serde_json::json;

use crate::backend;
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench audit`.
#[derive(Args)]
pub struct AuditArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value = "64")]
    prompt: NonZeroUsize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value = "512")]
    tokens: NonZeroU32,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3")]
    samples: NonZeroUsize,
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
pub fn run(args: &AuditArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let backend = backend::open(&args.backend, threads)?;
    let package = generate::open(args.package.as_deref(), threads)?;
    let workload = Workload { prompt: args.prompt.get(), tokens: args.tokens.get(), samples: args.samples.get() };
    let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
    if args.json {
        println!(
            "{}",
            json!({
                "model_id": package.model_id().to_string(), "model": package.manifest().name,
                "backend": backend.name(), "threads": threads, "prompt_tokens": args.prompt, "tokens": samples.words,
                "audit_ratio": samples.ratio(), "commit_share": samples.commit_share(),
                "audit_commit_share": samples.audit_commit_share(),
                "generate_seconds": samples.generate, "audit_seconds": samples.audit,
                "generate_hashing_seconds": samples.generate_hashing, "audit_hashing_seconds": samples.audit_hashing,
            })
        );
        return Ok(());
    }
    let [generate, audit] = [&samples.generate, &samples.audit].map(|seconds| median(seconds.iter().copied()));
    println!("{} on {}, {threads} threads", package.manifest().name, backend.name());
    println!("{} tokens of prompt, {} generated; medians of {}", args.prompt, samples.words, args.samples);
    println!("generation  {generate:.3} s, {:.2}% of it commitments", 100.0 * samples.commit_share());
    println!("audit       {audit:.3} s, {:.2}% of it commitments", 100.0 * samples.audit_commit_share());
    println!("an audit costs {:.2}% of the generation", 100.0 * samples.ratio());
    Ok(())
}
