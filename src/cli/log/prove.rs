//! `lockstep log prove`

use std::path::PathBuf;

use clap::Args;
use lockstep_protocol::limits::MAX_LOG_PROOF_JSON_BYTES;
use lockstep_protocol::log::LogProof;

use crate::cli::client::Address;
use crate::exit::{Exit, OrExit, Outcome};
use crate::secret::Secret;

/// Arguments of `lockstep log prove`.
#[derive(Args)]
#[command(after_help = "The proof is checked before it is saved. With --old-head it also has the path by which \
    `lockstep log verify --old-head` shows that the log still begins as it did then.")]
pub struct ProveArgs {
    /// Receipt in JSON, or - for standard input.
    receipt: PathBuf,
    #[command(flatten)]
    address: Address,
    /// The access token that the coordinator returned with the answer (`lockstep.access`).
    #[arg(long, env = "LOCKSTEP_ACCESS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    access_token: Secret,
    /// A head that was kept (or a proof with one), which the log must continue.
    #[arg(long, value_name = "FILE")]
    old_head: Option<PathBuf>,
    /// Save the proof here instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Fetches a proof, checks it, and saves it. One that shows that history was rewritten is saved too: it is evidence.
pub fn run(args: &ProveArgs) -> Outcome {
    let receipt = super::receipt(&args.receipt)?;
    let old = args.old_head.as_deref().map(super::kept_head).transpose()?;
    let mut path = format!("log/proof?job={}", receipt.job.id());
    if let Some(old) = &old {
        path.push_str(&format!("&from={}", old.head.size));
    }
    let text = args.address.get(&path, Some(&args.access_token), MAX_LOG_PROOF_JSON_BYTES)?;
    let proof = LogProof::from_json(&text).or_exit(Exit::Refuted)?;
    proof.check().or_exit(Exit::Refuted)?;
    super::write(args.out.as_deref(), &proof.to_json())?;
    if let Some(old) = &old {
        proof.check_follows(old).or_exit(Exit::Refuted)?;
    }
    proof.check_receipt(&receipt).or_exit(Exit::Refuted)?;
    Ok(())
}
