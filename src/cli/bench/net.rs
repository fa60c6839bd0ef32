//! `lockstep bench net`

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use lockstep_benches::net::workers::{self, Workers};
use lockstep_benches::net::{Shape, assignment_row, coordinator, coordinator_row, machine, machine_row};
use lockstep_benches::report::Report;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::MAX_STREAMED_TOGETHER;

use super::output::OutputArgs;
use crate::backend;
use crate::exit::{Exit, OrExit, Outcome};

/// Most idle workers: a coordinator takes few more, streaming ones included.
const MAX_IDLE: i64 = 16_000;

/// Arguments of `lockstep bench net`.
#[derive(Args)]
#[command(
    after_help = "Through the machine: the pure job machine on one core, from the first root of each run to its checked \
receipt, beside idle workers and beside jobs that wait. Through the coordinator: a real one with its store in a temporary \
folder, and workers over QUIC on the loopback, in a process of their own that shares the cores with it; from the submission of \
the jobs to their durable receipts. Workers compute nothing: what they stream is made before. Beside the rate stands the \
processor time that the coordinator takes for a record, and the rate that follows from it where the workers are elsewhere: of two \
cores, of which the engine's one thread fills one at the most."
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
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=8_192))]
    points: u32,
    /// Idle workers of the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 100, 1_000, 10_000])]
    machine_idle: Vec<usize>,
    /// Jobs that wait in the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    machine_waiting: Vec<usize>,
    /// Commitment points of a run through the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [16, 64, 256, 1_024, 4_096])]
    machine_points: Vec<u32>,
    /// Roots and words of a stream of which the machine is told at once, 1 to 256: a session tells of all that have come.
    #[arg(long, value_name = "N", default_value_t = MAX_STREAMED_TOGETHER)]
    together: usize,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3")]
    samples: NonZeroUsize,
    /// Threads of the coordinator, and of the process of its workers [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Seconds in which it is watched what idle workers cost.
    #[arg(long, value_name = "N", default_value_t = 10)]
    watch_seconds: u64,
}

/// Arguments of the process of the workers, which this program starts by itself.
#[derive(Args)]
pub struct WorkersArgs {
    #[arg(long)]
    coordinator: NodeId,
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    idle: usize,
    #[arg(long)]
    streams: usize,
    #[arg(long)]
    in_flight: u32,
    #[arg(long)]
    layers: u16,
    #[arg(long)]
    points: u32,
    #[arg(long)]
    threads: usize,
}

/// Serves as the workers of a coordinator under test.
pub fn run_workers(args: &WorkersArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    let workers = Workers {
        coordinator: args.coordinator,
        address: args.address,
        idle: args.idle,
        streams: args.streams,
        in_flight: args.in_flight,
        shape: Shape { layers: args.layers, points: args.points },
    };
    runtime.block_on(workers::serve(workers)).or_exit(Exit::Failed)
}

/// Measures.
pub fn run(args: &NetArgs, output: OutputArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads).get();
    let shape = Shape { layers: args.layers, points: args.points };
    let (streams, samples) = (args.streams as usize, args.samples.get());
    let about = format!("commitment records on the loopback, {threads} threads; medians of {samples}");
    let mut report = Report::new("net", about);
    let idle = args.machine_idle.iter().map(|idle| (*idle, 0, args.points));
    let waiting = args.machine_waiting.iter().map(|waiting| (0, *waiting, args.points));
    let points = args.machine_points.iter().map(|points| (0, 0, *points));
    for (idle, waiting, points) in idle.chain(waiting).chain(points) {
        let shape = Shape { points, ..shape };
        let workload = machine::Workload { streams, idle, waiting, shape, together: args.together };
        report.rows.push(machine_row(workload, samples).or_exit(Exit::Configuration)?);
    }
    for idle in &args.machine_idle {
        for have_model in [true, false] {
            report.rows.push(assignment_row(*idle, have_model, samples).or_exit(Exit::Configuration)?);
        }
    }
    let data = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (idle, jobs) = (args.idle as usize, args.jobs as usize);
    let watch = Duration::from_secs(args.watch_seconds);
    let workload = coordinator::Workload { idle, streams, jobs, shape, samples, watch, threads };
    let program = std::env::current_exe().context("this program does not know where it is")?;
    report.rows.push(coordinator_row(workload, data.path(), (&program, &["bench", "net-workers"]))?);
    report.stamp(&[("threads", threads.into())], &[]);
    output.print(&report);
    Ok(())
}
