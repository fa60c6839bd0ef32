//! `lockstep bench embed`

use std::path::PathBuf;

use clap::Args;
use lockstep_benches::commit::{Workload, measure};
use lockstep_benches::watch::Watch;

use super::output::{self, DeviceArgs, OutputArgs};
use super::{limits, package};
use crate::exit::{Exit, OrExit, Outcome};
use crate::progress;

/// Arguments of `lockstep bench embed`.
#[derive(Args)]
pub struct EmbedArgs {
    /// Package to run, an encoder [default: random weights in the shape of all-MiniLM-L6-v2].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Sequences of one pass, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,32", value_parser = limits::count(limits::MAX_BATCH))]
    batch: Vec<usize>,
    /// Tokens of each sequence, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "128", value_parser = limits::count(limits::MAX_TOKENS))]
    tokens: Vec<usize>,
    /// Passes that count.
    #[arg(long, value_name = "N", default_value = "10", value_parser = limits::count(limits::MAX_SAMPLES))]
    passes: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &EmbedArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let (encoder, named) = package::encoder(args.package.as_deref(), threads)?;
    let local = args.device.open()?;
    let backend = local.honest();
    let about = format!("{} on {}, {threads} threads; medians of {}", named.name, backend.name(), args.passes);
    let mut live = output.begin(output::about("embed", about, &named, &local, threads));
    let bar = progress::bar((args.tokens.len() * args.batch.len()) as u64, "lengths and batches");
    for &tokens in &args.tokens {
        for &batch in &args.batch {
            let workload = Workload { batch, tokens, passes: args.passes };
            let watch = Watch::start();
            let samples = measure(&encoder, &*backend, workload).or_exit(Exit::Configuration)?;
            live.push(samples.row(workload, &watch))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(live.end()?)
}
