//! `lockstep bench ceilings`

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use lockstep_benches::ceilings::{Workload, measure};

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
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// MiB of memory to read: several times the caches.
    #[arg(long, value_name = "N", default_value = "1024")]
    memory_mib: NonZeroUsize,
    /// Milliseconds for each ceiling.
    #[arg(long, value_name = "N", default_value = "1000")]
    budget_ms: u64,
}

/// Measures.
pub fn run(args: &CeilingsArgs, output: OutputArgs) -> Outcome {
    let workload = Workload {
        threads: args.threads.unwrap_or_else(backend::all_threads).get(),
        memory_bytes: args.memory_mib.get() << 20,
        budget: Duration::from_millis(args.budget_ms),
    };
    output.print(&measure(workload));
    Ok(())
}
