//! `lockstep bench audit`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lockstep_benches::audit::{Workload, measure};
use lockstep_benches::lockstep;
use lockstep_benches::watch::Watch;

use super::output::{self, DeviceArgs, Named, OutputArgs};
use super::{limits, package};
use crate::backend::Local;
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench audit`.
#[derive(Args)]
pub struct AuditArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value = "64", value_parser = limits::count(limits::MAX_TOKENS))]
    prompt: usize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value = "512", value_parser = limits::count(limits::MAX_TOKENS))]
    tokens: usize,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3", value_parser = limits::count(limits::MAX_SAMPLES))]
    samples: usize,
    /// Measure what an auditor adds that runs beside the worker: through a real coordinator and two workers, which take
    /// half of the threads each.
    #[arg(long)]
    lockstep: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &AuditArgs, output: OutputArgs) -> Outcome {
    if args.lockstep {
        return beside(args, output);
    }
    let threads = args.device.threads();
    let package = package::decoder(args.package.as_deref(), threads)?;
    let local = args.device.open()?;
    let backend = local.honest();
    let workload = Workload { prompt: args.prompt, tokens: args.tokens as u32, samples: args.samples };
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.samples);
    let mut live = output.begin(output::about("audit", about, &Named::of(&package), &local, threads));
    let watch = Watch::start();
    let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
    live.push(samples.row(workload, &watch))?;
    live.report.summary = Some(format!("an audit costs {:.2}% of the generation", 100.0 * samples.ratio().median()));
    Ok(live.end()?)
}

/// Measures audits in lockstep.
fn beside(args: &AuditArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let each = NonZeroUsize::new(threads.get() / 2).unwrap_or(NonZeroUsize::MIN);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = generate::file(args.package.as_deref())?;
    let package = package::decoder(Some(&path), threads)?;
    let locals = [args.device.open_with(each)?, args.device.open_with(each)?];
    let backends = locals.each_ref().map(Local::honest);
    let name = backends[0].name();
    let workload = lockstep::Workload { prompt: args.prompt, tokens: args.tokens as u32, samples: args.samples };
    let about = format!(
        "{} on {name}, {each} threads for each of two workers on this machine, prompt of {} tokens, {} generated; medians of {}",
        package.manifest().name,
        args.prompt,
        args.tokens,
        args.samples
    );
    let mut live = output.begin(output::about("audit", about, &Named::of(&package), &locals[0], each));
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(lockstep::measure(&path, backends, workload, folder.path()));
    let measured = measured.or_exit(Exit::Configuration)?;
    measured.rows().into_iter().try_for_each(|row| live.push(row))?;
    let [[word, receipt], [shared, shared_receipt]] = measured.added().map(|added| added.map(|seconds| 1e3 * seconds));
    live.report.summary = Some(format!(
        "an auditor in lockstep adds {word:.1} ms to the last word and {receipt:.1} ms to the receipt, beside {shared:.1} and \
         {shared_receipt:.1} ms because two workers compute on one machine"
    ));
    Ok(live.end()?)
}
