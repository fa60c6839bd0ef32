//! `lockstep log head`

use std::path::PathBuf;

use clap::Args;
use lockstep_protocol::limits::MAX_LOG_HEAD_JSON_BYTES;
use lockstep_protocol::log::SignedHead;

use crate::cli::client::Address;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep log head`.
#[derive(Args)]
#[command(after_help = "Prints the signed head as one JSON object: save it, and give it to `lockstep log verify \
    --old-head` at any later time. Heads of one log from different people can be compared the same way.")]
pub struct HeadArgs {
    #[command(flatten)]
    address: Address,
    /// Save it here instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Fetches a head, and checks its signature.
pub fn run(args: &HeadArgs) -> Outcome {
    let text = args.address.get("log/head", None, MAX_LOG_HEAD_JSON_BYTES)?;
    let head = SignedHead::from_json(&text).or_exit(Exit::Refuted)?;
    head.check().or_exit(Exit::Refuted)?;
    Ok(super::write(args.out.as_deref(), &head.to_json())?)
}
