//! `lockstep bench net`

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use lockstep_benches::net::workers::{self, Workers};
use lockstep_benches::net::{Shape, assignment_row, coordinator, coordinator_row, machine, machine_row};
use lockstep_benches::report::Report;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::MAX_STREAMED_TOGETHER;

use super::limits;
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
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,100,1000,10000", value_parser = up_to(MAX_MACHINE))]
    machine_idle: Vec<usize>,
    /// Jobs that wait in the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "100,1000,10000", value_parser = up_to(MAX_MACHINE))]
    machine_waiting: Vec<usize>,
    /// Commitment points of a run through the machine, one row for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [16, 64, 256, 1_024, 4_096], value_parser = clap::value_parser!(u32).range(1..=8_192))]
    machine_points: Vec<u32>,
    /// Roots and words of a stream of which the machine is told at once: a session tells of all that have come.
    #[arg(long, value_name = "N", default_value_t = MAX_STREAMED_TOGETHER, value_parser = limits::count(MAX_STREAMED_TOGETHER as u64))]
    together: usize,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3", value_parser = limits::count(limits::MAX_SAMPLES))]
    samples: usize,
    /// Threads of the coordinator, and of the process of its workers [default: all].
    #[arg(long, value_parser = limits::threads())]
    threads: Option<NonZeroUsize>,
    /// Seconds in which it is watched what idle workers cost.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=3_600))]
    watch_seconds: u64,
}

/// Idle workers of the machine, or jobs that wait in it, at the most.
const MAX_MACHINE: u64 = 100_000;

fn up_to(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=most)
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
    let (streams, samples) = (args.streams as usize, args.samples);
    let about = format!("commitment records on the loopback, {threads} threads; medians of {samples}");
    let mut live = output.begin(Report::new("net", about).label("threads", threads));
    for [idle, waiting, points] in machines(args) {
        let shape = Shape { layers: args.layers, points: points as u32 };
        let workload = machine::Workload { streams, idle, waiting, shape, together: args.together };
        live.push(machine_row(workload, samples).or_exit(Exit::Configuration)?)?;
    }
    for idle in BTreeSet::from_iter(&args.machine_idle) {
        for have_model in [true, false] {
            live.push(assignment_row(*idle, have_model, samples).or_exit(Exit::Configuration)?)?;
        }
    }
    let data = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (idle, jobs) = (args.idle as usize, args.jobs as usize);
    let watch = Duration::from_secs(args.watch_seconds);
    let shape = Shape { layers: args.layers, points: args.points };
    let workload = coordinator::Workload { idle, streams, jobs, shape, samples, watch, threads };
    let program = std::env::current_exe().context("this program does not know where it is")?;
    live.push(coordinator_row(workload, data.path(), (&program, &["bench", "net-workers"]))?)?;
    Ok(live.end()?)
}

/// Idle workers, waiting jobs and points of each row about the machine, none of them twice.
fn machines(args: &NetArgs) -> Vec<[usize; 3]> {
    let points = args.points as usize;
    let idle = args.machine_idle.iter().map(|idle| [*idle, 0, points]);
    let waiting = args.machine_waiting.iter().map(|waiting| [0, *waiting, points]);
    let lengths = args.machine_points.iter().map(|points| [0, 0, *points as usize]);
    let mut seen = BTreeSet::new();
    idle.chain(waiting).chain(lengths).filter(|row| seen.insert(*row)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        net: NetArgs,
    }

    fn parse(arguments: &[&str]) -> Result<NetArgs, clap::Error> {
        Only::try_parse_from(["net"].iter().chain(arguments)).map(|only| only.net)
    }

    #[test]
    fn no_machine_is_measured_twice() {
        let all = machines(&parse(&[]).expect("defaults"));
        assert_eq!(all.len(), 4 + 3 + 4, "{all:?}");
        assert_eq!(BTreeSet::from_iter(&all).len(), all.len());
        let args = parse(&["--machine-idle", "0,0,5", "--machine-waiting", "0", "--machine-points", "8,1024"]);
        assert_eq!(machines(&args.expect("numbers")), [[0, 0, 1_024], [5, 0, 1_024], [0, 0, 8]]);
    }

    #[test]
    fn what_would_take_forever_is_refused() {
        for wrong in [
            ["--machine-idle", "999999999"],
            ["--machine-waiting", "100001"],
            ["--machine-points", "0"],
            ["--together", "0"],
            ["--watch-seconds", "3601"],
            ["--samples", "0"],
        ] {
            let said = parse(&wrong).map(drop).map_err(|error| error.to_string());
            assert!(said.as_ref().is_err_and(|said| said.contains("..=")), "{wrong:?}: {said:?}");
        }
    }
}
