//! `lockstep bench`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::{Exit, OrExit, Outcome};

mod audit;
mod ceilings;
mod commit;
mod dispute;
mod embed;
mod gpu;
mod limits;
mod model;
mod net;
mod ops;
mod output;
mod package;

/// Arguments of `lockstep bench`.
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    after_help = "A row that something else disturbed (other programs, the host of a virtual \
machine, heat, a container's share of the processor, more threads than cores, samples far apart) is marked with ! and says so in \
JSON. Spreads are the distance between the quartiles; tables show half of it on either side of the median. Lines of JSON are \
printed as soon as a row is measured, tables at the end."
)]
pub struct BenchArgs {
    #[command(flatten)]
    output: output::OutputArgs,
    /// Compare two reports in JSON lines instead of measuring.
    #[arg(long, global = true, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Option<Vec<PathBuf>>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// What an audit by prefill costs beside the generation that it checks.
    Audit(audit::AuditArgs),
    /// What this machine can do at the most: reading memory, multiplying bytes, hashing.
    Ceilings(ceilings::CeilingsArgs),
    /// What commitments cost as a share of run time.
    Commit(commit::CommitArgs),
    /// What a dispute costs its referee and its players: one lie about each kind of op, played to the verdict.
    Dispute(dispute::DisputeArgs),
    /// How fast an encoder embeds, commitments included.
    Embed(embed::EmbedArgs),
    /// How fast a decoder reads prompts and makes words, commitments included.
    Model(model::ModelArgs),
    /// What a coordinator bears: commitment records, idle workers, handshakes.
    Net(net::NetArgs),
    /// The workers of a coordinator that is measured.
    #[command(hide = true)]
    NetWorkers(net::WorkersArgs),
    /// Every op by itself: time, bandwidth, rate, and the share of this machine's ceilings.
    Ops(ops::OpsArgs),
}

/// Measures, or compares what was measured.
pub fn run(args: &BenchArgs) -> Outcome {
    let output = args.output;
    if let Some(files) = &args.compare {
        return output::print_comparison(files, output);
    }
    match &args.what {
        Some(What::Audit(args)) => audit::run(args, output),
        Some(What::Ceilings(args)) => ceilings::run(args, output),
        Some(What::Commit(args)) => commit::run(args, output),
        Some(What::Dispute(args)) => dispute::run(args, output),
        Some(What::Embed(args)) => embed::run(args, output),
        Some(What::Model(args)) => model::run(args, output),
        Some(What::Net(args)) => net::run(args, output),
        Some(What::NetWorkers(args)) => net::run_workers(args),
        Some(What::Ops(args)) => ops::run(args, output),
        None => Err(anyhow::anyhow!("say what to measure: see lockstep bench --help")).or_exit(Exit::Configuration),
    }
}
