//! `lockstep bench`

use clap::{Args, Subcommand};

use crate::exit::Outcome;

mod audit;
mod commit;
mod dispute;

/// Arguments of `lockstep bench`.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What an audit by prefill costs beside the generation that it checks.
    Audit(audit::AuditArgs),
    /// What commitments cost as a share of run time.
    Commit(commit::CommitArgs),
    /// What a dispute costs its referee and its players: one lie about each kind of op, played to the verdict.
    Dispute(dispute::DisputeArgs),
}

/// Measures.
pub fn run(args: &BenchArgs) -> Outcome {
    match &args.what {
        What::Audit(args) => audit::run(args),
        What::Commit(args) => commit::run(args),
        What::Dispute(args) => dispute::run(args),
    }
}
