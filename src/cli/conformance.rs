//! `lockstep conformance`

use std::num::NonZeroUsize;

use clap::Args;
use lockstep_kernels::conformance::{Level, run as run_suite};
use serde_json::json;

use crate::exit::{Exit, OrExit, Outcome};
use crate::{backend, progress};

/// Arguments of `lockstep conformance`.
#[derive(Args)]
pub struct ConformanceArgs {
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Only what a worker runs at its start.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Puts the backend through the suite.
pub fn run(args: &ConformanceArgs) -> Outcome {
    let backend = backend::open(&args.backend, args.threads.unwrap_or_else(backend::all_threads))?;
    let level = if args.quick { Level::Quick } else { Level::Full };
    let spinner = progress::spinner("conformance");
    let result = run_suite(&*backend, level, &mut |p| spinner.set_message(format!("{} {} {}", p.done, p.op, p.case)));
    spinner.finish_and_clear();
    let summary = result.or_exit(Exit::Refuted)?;
    if args.json {
        println!(
            "{}",
            json!({
                "backend": backend.name(), "equal": true, "cases": summary.cases, "elements": summary.elements,
            })
        );
    } else {
        println!(
            "{}: {} cases, {} elements, every byte equal to the reference",
            backend.name(),
            summary.cases,
            summary.elements
        );
    }
    Ok(())
}
