//! `lockstep bench net`

use std::num::NonZeroUsize;

use anyhow::Context;
use clap::Args;
use lockstep_benches::net::{Shape, coordinator, coordinator_row, machine, machine_row};
use lockstep_benches::report::Report;

use super::output::OutputArgs;
use crate::backend;
use crate::exit::{Exit, OrExit, Outcome};

/// Most idle workers: each has a socket of its own here.
const MAX_IDLE: i64 = 16_000;

/// Arguments of `lockstep bench net`.
#[derive(Args)]
#[command(
    after_help = "Through the machine: the pure job machine on one core, from the first root of each run to its checked \
receipt, beside idle workers and beside jobs that wait. Through the coordinator: a real one with its store in a temporary \
folder, and workers over QUIC on the loopback, which share the cores with it; from the submission of the jobs to their durable \
receipts. Workers compute nothing. Each idle worker is a socket of this program: see ulimit -n."
)]
pub struct NetArgs {
    /// Idle workers of the coordinator.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=MAX_IDLE))]
    idle: u32,
    /// Jobs that the coordinator gives out, at a time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    jobs: u32,
    /// Workers that stream.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: u32,
    /// Transformer layers of a run.
    #[arg(long, value_name = "N", default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..=200))]
    layers: u16,
    /// Commitment points of a run.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    points: u32,
    /// Idle workers of the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 100, 1_000, 10_000])]
    machine_idle: Vec<usize>,
    /// Jobs that wait in the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    machine_waiting: Vec<usize>,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3")]
    samples: NonZeroUsize,
    /// Threads of the coordinator and its workers together [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

/// Measures.
pub fn run(args: &NetArgs, output: OutputArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads).get();
    let shape = Shape { layers: args.layers, points: args.points };
    let (streams, samples) = (args.streams as usize, args.samples.get());
    let about = format!("commitment records on the loopback, {threads} threads; medians of {samples}");
    let mut report = Report::new("net", about);
    let idle = args.machine_idle.iter().map(|idle| (*idle, 0));
    for (idle, waiting) in idle.chain(args.machine_waiting.iter().map(|waiting| (0, *waiting))) {
        let workload = machine::Workload { streams, idle, waiting, shape };
        report.rows.push(machine_row(workload, samples).or_exit(Exit::Configuration)?);
    }
    let data = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (idle, jobs) = (args.idle as usize, args.jobs as usize);
    let workload = coordinator::Workload { idle, streams, jobs, shape, samples };
    report.rows.push(coordinator_row(workload, threads, data.path())?);
    report.stamp(&[("threads", threads.into())], &[]);
    output.print(&report);
    Ok(())
}
