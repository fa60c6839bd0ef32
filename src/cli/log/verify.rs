//! `lockstep log verify`

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::MAX_LOG_PROOF_JSON_BYTES;
use lockstep_protocol::log::{Coverage, LogProof, SignedHead};
use lockstep_protocol::receipt::Receipt;
use serde_json::json;

use crate::exit::{Exit, Failure, OrExit, Outcome};

/// Arguments of `lockstep log verify`.
#[derive(Args)]
#[command(
    after_help = "Needs no network. A proof shows that its entries are in the log of its head; with --old-head, \
    that this log begins with everything that an older head signed; with --receipt, that the entries are those of the \
    receipt. Two signed heads that exclude each other are proof against the coordinator for everybody: keep both files."
)]
pub struct VerifyArgs {
    /// Proof in JSON as `lockstep log prove` saves it, or - for standard input.
    proof: PathBuf,
    /// A head that was kept, or a proof with one.
    #[arg(long, value_name = "FILE")]
    old_head: Option<PathBuf>,
    /// The receipt that the proof must be about.
    #[arg(long, value_name = "RECEIPT")]
    receipt: Option<PathBuf>,
    /// The coordinator whose log it must be.
    #[arg(long, value_name = "KEY")]
    coordinator: Option<NodeId>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Verifies a proof.
pub fn run(args: &VerifyArgs) -> Outcome {
    let text = super::read(&args.proof, MAX_LOG_PROOF_JSON_BYTES)?;
    let proof = LogProof::from_json(text.trim()).or_exit(Exit::Refuted)?;
    proof.check().or_exit(Exit::Refuted)?;
    let log = proof.head.head.log;
    if let Some(wanted) = args.coordinator.filter(|wanted| *wanted != log) {
        return Err(refuted(anyhow!("the log is of coordinator {log}, not of {wanted}")));
    }
    let old = args.old_head.as_deref().map(super::kept_head).transpose()?;
    if let Some(old) = &old {
        proof.check_follows(old).or_exit(Exit::Refuted)?;
    }
    let receipt = args.receipt.as_deref().map(super::receipt).transpose()?;
    let coverage = receipt.as_ref().map(|receipt| check_receipt(&proof, receipt)).transpose()?;
    report(args.json, &proof, old.as_ref(), coverage.as_ref());
    Ok(())
}

fn check_receipt(proof: &LogProof, receipt: &Receipt) -> Result<Coverage, Failure> {
    let coverage = proof.check_receipt(receipt).or_exit(Exit::Refuted)?;
    match coverage.refuted {
        Some(place) => Err(refuted(anyhow!("the log says that the receipt's answer was found wrong at {place}"))),
        None => Ok(coverage),
    }
}

fn refuted(error: anyhow::Error) -> Failure {
    Failure { exit: Exit::Refuted, error }
}

fn report(json: bool, proof: &LogProof, old: Option<&SignedHead>, coverage: Option<&Coverage>) {
    let head = &proof.head.head;
    let entries = proof.entries.len();
    if json {
        let other = coverage.map(|coverage| coverage.other_statements);
        println!(
            "{}",
            json!({
                "valid": true, "coordinator": head.log.to_string(), "size": head.size, "root": head.root.to_string(),
                "time_ms": head.time.0, "job": proof.job.to_string(), "entries": entries,
                "continues": old.map(|old| old.head.size), "receipt": coverage.is_some(), "other_statements": other,
            })
        );
        return;
    }
    println!("{entries} entries about job {} are in the log of {}", proof.job, head.log);
    println!("its head of {} entries is signed: {}", head.size, head.root);
    match old {
        Some(old) => println!("it continues the log of {} entries that was kept", old.head.size),
        None => println!("no older head was given: whether history was rewritten before this head is not checked"),
    }
    match coverage {
        Some(Coverage { other_statements: 0, .. }) => println!("they show everything that the receipt shows"),
        Some(Coverage { other_statements, .. }) => {
            println!(
                "they show everything that the receipt shows, and {other_statements} other statements: fetch the receipt again"
            );
        }
        None => println!("no receipt was given: whether the entries are those of one is not checked"),
    }
}
