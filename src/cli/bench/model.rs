//! `lockstep bench model`

use std::path::PathBuf;

use clap::Args;
use lockstep_benches::model::{Workload, measure};
use lockstep_benches::watch::Watch;

use super::output::{self, DeviceArgs, Named, OutputArgs};
use super::{limits, package};
use crate::exit::{Exit, OrExit, Outcome};
use crate::progress;

/// Arguments of `lockstep bench model`.
#[derive(Args)]
#[command(
    after_help = "A prefill reads a prompt and makes one word; a decode makes its words from a prompt of which one token is \
new. Both commit to every layer at every point, as a worker does. --depth sets how many tokens are there before, in \
multiples of 256; --batch how many sequences run side by side, and rates are those of all of them together. commit_share is \
the time of hashing alone on one thread over the time of prefill and decode: what commitments cost where nothing overlaps."
)]
pub struct ModelArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value = "512", value_parser = limits::count(limits::MAX_TOKENS))]
    prefill: usize,
    /// Words to make.
    #[arg(long, value_name = "N", default_value = "128", value_parser = limits::count(limits::MAX_TOKENS))]
    decode: usize,
    /// Tokens that are there before, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences side by side, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = limits::count(limits::MAX_BATCH))]
    batch: Vec<usize>,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3", value_parser = limits::count(limits::MAX_SAMPLES))]
    samples: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &ModelArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let package = package::decoder(args.package.as_deref(), threads)?;
    let local = args.device.open()?;
    let backend = local.honest();
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.samples);
    let mut live = output.begin(output::about("model", about, &Named::of(&package), &local, threads));
    let bar = progress::bar((args.depth.len() * args.batch.len()) as u64, "depths and batches");
    for &depth in &args.depth {
        for &batch in &args.batch {
            let workload =
                Workload { prefill: args.prefill, decode: args.decode as u32, depth, batch, samples: args.samples };
            let watch = Watch::start();
            let measured = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
            live.push(measured.row(workload, &watch))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(live.end()?)
}
