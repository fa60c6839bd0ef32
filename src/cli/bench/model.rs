//! `lockstep bench model`

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::model::{Workload, measure};
use lockstep_benches::report::Report;
use lockstep_benches::watch::Watch;

use super::output::{DeviceArgs, OutputArgs, stamp};
use crate::cli::generate;
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
    #[arg(long, value_name = "N", default_value = "512")]
    prefill: NonZeroUsize,
    /// Words to make.
    #[arg(long, value_name = "N", default_value = "128")]
    decode: NonZeroU32,
    /// Tokens that are there before, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences side by side, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    batch: Vec<NonZeroUsize>,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3")]
    samples: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &ModelArgs, output: OutputArgs) -> Outcome {
    let backend = args.device.open()?;
    let threads = args.device.threads();
    let package = generate::open(args.package.as_deref(), threads)?;
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.samples);
    let mut report = Report::new("model", about);
    let bar = progress::bar((args.depth.len() * args.batch.len()) as u64, "depths and batches");
    for &depth in &args.depth {
        for batch in &args.batch {
            let workload = Workload {
                prefill: args.prefill.get(),
                decode: args.decode.get(),
                depth,
                batch: batch.get(),
                samples: args.samples.get(),
            };
            let watch = Watch::start();
            let measured = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
            report.rows.push(measured.row(workload, &watch));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    stamp(&mut report, &package, &backend.name(), threads);
    output.print(&report);
    Ok(())
}
