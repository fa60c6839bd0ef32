//! `lockstep bench ceilings`

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use lockstep_benches::ceilings::{Workload, measure};
use lockstep_benches::report::Report;

use super::limits;
use super::output::OutputArgs;
use crate::backend;
use crate::exit::Outcome;

/// Arguments of `lockstep bench ceilings`.
#[derive(Args)]
#[command(
    after_help = "Memory: sums over a buffer that no cache holds. int8: products and sums from registers only, for each \
unit that the machine has; tiles of AMX, byte dot products of AVX-512, AVX2, plain Rust. BLAKE3: messages of each length, \
every thread its own; the longest is shared by the threads."
)]
pub struct CeilingsArgs {
    /// Threads; one is measured beside [default: all].
    #[arg(long, value_parser = limits::threads())]
    threads: Option<NonZeroUsize>,
    /// MiB of memory to read: several times the caches.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = limits::memory_mib())]
    memory_mib: usize,
    /// Milliseconds for each ceiling.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = limits::milliseconds())]
    budget_ms: u64,
}

/// Measures.
pub fn run(args: &CeilingsArgs, output: OutputArgs) -> Outcome {
    let workload = Workload {
        threads: args.threads.unwrap_or_else(backend::all_threads).get(),
        memory_bytes: args.memory_mib << 20,
        budget: Duration::from_millis(args.budget_ms),
    };
    let about = "ceilings of this machine, medians; a multiplication is one operation, an addition is one";
    let mut live = output.begin(Report::new("ceilings", about.into()));
    measure(workload, &mut |row| live.push(row))?;
    Ok(live.end()?)
}
