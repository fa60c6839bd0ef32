//! `lockstep conformance`

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use clap::Args;
use lockstep_kernels::conformance::{Level, Summary, run as run_suite};
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
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Every variant of the backend that this machine has, one after the other.
    #[arg(long)]
    variants: bool,
    /// Only what a worker runs at its start.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Puts the backend through the suite.
pub fn run(args: &ConformanceArgs) -> Outcome {
    let names = if args.variants { backend::variants(&args.backend) } else { vec![args.backend.clone()] };
    let level = if args.quick { Level::Quick } else { Level::Full };
    let (mut ran, mut ops, mut total) = (Vec::new(), BTreeSet::new(), Summary::default());
    for name in names {
        let backend = backend::open(&name, args.threads.unwrap_or_else(backend::all_threads))?;
        let spinner = progress::spinner("conformance");
        let result = run_suite(&*backend, level, &mut |p| {
            ops.insert(p.op);
            spinner.set_message(format!("{} {} {} {}", backend.name(), p.done, p.op, p.case));
        });
        spinner.finish_and_clear();
        let Summary { cases, elements } = result.or_exit(Exit::Refuted)?;
        (total.cases, total.elements) = (total.cases + cases, total.elements + elements);
        if !args.json {
            println!("{}: {cases} cases, {elements} elements, every byte equal to the reference", backend.name());
        }
        ran.push(backend.name());
    }
    if args.json {
        println!(
            "{}",
            json!({
                "backend": ran[0], "variants": ran, "equal": true, "ops": ops, "cases": total.cases, "failures": 0,
                "elements": total.elements,
            })
        );
    }
    Ok(())
}
