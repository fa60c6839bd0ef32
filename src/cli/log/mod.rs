//! `lockstep log`: what a coordinator's transparency log shows, fetched and checked.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::{Args, Subcommand};
use lockstep_protocol::limits::MAX_RECEIPT_JSON_BYTES;
use lockstep_protocol::log::{LogProof, SignedHead};
use lockstep_protocol::receipt::Receipt;

use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};

mod head;
mod prove;
mod verify;

/// Arguments of `lockstep log`.
#[derive(Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the newest signed head. Whoever keeps it can tell later whether history was rewritten.
    Head(head::HeadArgs),
    /// Fetch and save the proof that a receipt's assignments, results and statements are in the log.
    Prove(prove::ProveArgs),
    /// Check a saved proof, offline: signatures, inclusion, and against an old head that nothing was rewritten.
    Verify(verify::VerifyArgs),
}

/// Runs the command.
pub fn run(args: &LogArgs) -> Outcome {
    match &args.command {
        Command::Head(args) => head::run(args),
        Command::Prove(args) => prove::run(args),
        Command::Verify(args) => verify::run(args),
    }
}

/// A receipt from a file, checked.
fn receipt(path: &Path) -> Result<Receipt, Failure> {
    let text = files::text(path, MAX_RECEIPT_JSON_BYTES)?;
    let receipt = Receipt::from_json(text.trim()).or_exit(Exit::Refuted)?;
    receipt.check().or_exit(Exit::Refuted)?;
    Ok(receipt)
}

/// A head that was kept: alone, or as part of a proof. Its signature is checked by whoever compares it.
fn kept_head(path: &Path) -> Result<SignedHead, Failure> {
    let text = files::text(path, lockstep_protocol::limits::MAX_LOG_PROOF_JSON_BYTES)?;
    let alone = SignedHead::from_json(text.trim());
    let head = alone.or_else(|alone| LogProof::from_json(text.trim()).map(|proof| proof.head).map_err(|_| alone));
    head.with_context(|| path.display().to_string()).or_exit(Exit::Refuted)
}

/// Writes a line to a file, or to standard output.
fn write(out: Option<&Path>, line: &str) -> anyhow::Result<()> {
    match out {
        Some(path) => {
            let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            let mut file = std::io::BufWriter::new(file);
            writeln!(file, "{line}").and_then(|()| file.flush()).with_context(|| path.display().to_string())
        }
        None => {
            println!("{line}");
            Ok(())
        }
    }
}
