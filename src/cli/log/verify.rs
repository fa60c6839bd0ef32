//! `lockstep log verify`

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::MAX_LOG_PROOF_JSON_BYTES;
use lockstep_protocol::log::{CheckedDraw, Coverage, LogError, LogProof, SignedHead};
use lockstep_protocol::receipt::Receipt;
use serde_json::json;

use crate::cli::files;
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
    let text = files::text(&args.proof, MAX_LOG_PROOF_JSON_BYTES)?;
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
    let shown = receipt.as_ref().map(|receipt| check_receipt(&proof, receipt)).transpose()?;
    report(args.json, &proof, old.as_ref(), shown.as_ref());
    Ok(())
}

/// What the proof shows about a receipt.
struct Shown {
    coverage: Coverage,
    /// The draws about its job; an error where the proof lacks what it takes to check them.
    draws: Result<Vec<CheckedDraw>, LogError>,
}

fn check_receipt(proof: &LogProof, receipt: &Receipt) -> Result<Shown, Failure> {
    let coverage = proof.check_receipt(receipt).or_exit(Exit::Refuted)?;
    if let Some(place) = coverage.refuted {
        return Err(refuted(anyhow!("the log says that the receipt's answer was found wrong at {place}")));
    }
    if coverage.withdrawn {
        return Err(refuted(anyhow!("the log says that the worker took the receipt's answer back")));
    }
    let draws = match proof.check_draws(receipt) {
        Err(missing @ LogError::Missing { .. }) => Err(missing),
        draws => Ok(draws.or_exit(Exit::Refuted)?),
    };
    Ok(Shown { coverage, draws })
}

fn refuted(error: anyhow::Error) -> Failure {
    Failure { exit: Exit::Refuted, error }
}

fn report(json: bool, proof: &LogProof, old: Option<&SignedHead>, shown: Option<&Shown>) {
    let head = &proof.head.head;
    let entries = proof.entries.len();
    if json {
        let draws = shown.and_then(|shown| shown.draws.as_ref().ok());
        let draw = |draw: &CheckedDraw| {
            json!({
                "number": draw.number, "before_start": draw.lockstep, "ticket": draw.ticket, "audits": draw.auditors,
            })
        };
        println!(
            "{}",
            json!({
                "valid": true, "coordinator": head.log.to_string(), "size": head.size, "root": head.root.to_string(),
                "time_ms": head.time.0, "job": proof.job.to_string(), "entries": entries,
                "cosigned": proof.cosignatures.iter().map(|c| c.worker).collect::<Vec<_>>(),
                "continues": old.map(|old| old.head.size), "receipt": shown.is_some(),
                "other_statements": shown.map(|shown| shown.coverage.other_statements),
                "draws": draws.map(|draws| draws.iter().map(draw).collect::<Vec<_>>()),
            })
        );
        return;
    }
    println!("{entries} entries about job {} are in the log of {}", proof.job, head.log);
    println!("its head of {} entries is signed: {}", head.size, head.root);
    match proof.cosignatures.len() {
        0 => println!("no worker cosigned that head"),
        workers => println!("{workers} workers who followed the log cosigned it"),
    }
    match old {
        Some(old) => println!("it continues the log of {} entries that was kept", old.head.size),
        None => println!("no older head was given: whether history was rewritten before this head is not checked"),
    }
    match shown {
        Some(shown) => report_receipt(shown),
        None => println!("no receipt was given: whether the entries are those of one is not checked"),
    }
}

fn report_receipt(shown: &Shown) {
    match shown.coverage.other_statements {
        0 => println!("they show everything that the receipt shows"),
        other => println!(
            "they show everything that the receipt shows, and {other} other statements: fetch the receipt again"
        ),
    }
    match &shown.draws {
        Ok(draws) => draws.iter().for_each(report_draw),
        Err(missing) => println!("whether the coordinator drew fairly was NOT checked: {missing}"),
    }
}

fn report_draw(draw: &CheckedDraw) {
    let ticket =
        draw.ticket.map_or("about a run that was taken back".into(), |ticket| format!("ticket {ticket} of 1000"));
    println!(
        "draw {} was made with the secret that was anchored before: {ticket}, {} audits",
        draw.number, draw.auditors
    );
}
