//! `lockstep judge`

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use lockstep_model::dispute::{ElementReport, Report, judge};
use lockstep_protocol::dispute::{Reason, VerdictKind};
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::MAX_DISPUTE_FILE_BYTES;
use serde_json::{Value, json};

use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};

/// Arguments of `lockstep judge`.
#[derive(Args)]
#[command(
    after_help = "Needs no network, no weights and no trust: the file holds the model's manifest, which its id is the hash \
    of, and everything that the sides and the coordinator signed. Every signature, move, clock and opening is checked \
    again, and the element in dispute is computed again here.\n\
    A verdict is proven, or it is a timeout. Proven: the loser's own signatures and this computation show that its run is \
    wrong, whoever refereed. Timeout: the coordinator says that it heard nothing in time, which nobody else can check.\n\
    Exit code 7: the file does not hold; what is wrong with it is named."
)]
pub struct JudgeArgs {
    /// Dispute as `lockstep dispute export` saves it, or - for standard input.
    file: PathBuf,
    /// The coordinator that must have refereed.
    #[arg(long, value_name = "KEY")]
    coordinator: Option<NodeId>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Judges a file.
pub fn run(args: &JudgeArgs) -> Outcome {
    let bytes = files::read(&args.file, MAX_DISPUTE_FILE_BYTES)?;
    let report = judge(&bytes).or_exit(Exit::Refuted)?;
    if let Some(wanted) = args.coordinator.filter(|wanted| *wanted != report.coordinator) {
        let error = anyhow!("the dispute was before coordinator {}, not before {wanted}", report.coordinator);
        return Err(Failure { exit: Exit::Refuted, error });
    }
    if args.json {
        println!("{}", summary(&report));
    } else {
        print(&report);
    }
    Ok(())
}

/// The names of the sides, in the order of everything that comes in pairs.
const SIDES: [&str; 2] = ["claimant", "challenger"];

/// Who lost, in words.
fn losers(report: &Report) -> String {
    let lost: Vec<_> =
        SIDES.iter().zip(report.verdict.losers).filter(|(_, lost)| *lost).map(|(side, _)| *side).collect();
    lost.join(" and ")
}

/// The verdict in one line.
pub fn verdict_line(report: &Report) -> String {
    let (verb, who) = if report.verdict.losers == [true; 2] { ("lose", "each") } else { ("loses", "it") };
    format!("the {} {verb}: {who} {}", losers(report), report.verdict.reason)
}

fn print(report: &Report) {
    let verdict = &report.verdict;
    println!("dispute      {}", report.dispute);
    println!("model        {} ({})", report.model_name, report.model);
    println!("job          {}", report.job);
    println!("coordinator  {}", report.coordinator);
    for (side, key) in SIDES.iter().zip(report.players) {
        println!("{side:<12} {key}");
    }
    let point = verdict.place.point;
    if report.is_of_logprobs {
        println!(
            "claimed      both signed the same root of every layer, and other log-probabilities after position {point}"
        );
    } else {
        println!(
            "claimed      both signed a root of every layer; the first that differs is that of layer {} ({}) after position {point}",
            verdict.place.layer, report.layer_name
        );
    }
    if let (Some(chunk), Some(row)) = (verdict.chunk, report.row) {
        println!("row          {row}, by chunk {chunk} of the layer's rows");
    }
    report.element.iter().for_each(|element| print_element(element, &verdict.reason));
    println!("game         {} rounds, {} bytes of signed moves", report.rounds, report.referee_bytes);
    println!("verdict      {}", verdict_line(report));
    match verdict.kind {
        VerdictKind::Proven => {
            println!("             PROVEN: every signature, move and opening was checked again here")
        }
        VerdictKind::Timeout => println!(
            "             TIMEOUT: everything that was signed holds, but that a side was silent is the coordinator's word alone"
        ),
    }
    println!("             it refutes the loser's run; it does not say that the other run is right in full");
}

fn print_element(element: &ElementReport, reason: &Reason) {
    println!(
        "step         {} ({}), op {} of layer {} ({}): all steps before it are agreed",
        element.step, element.tensor, element.op_index, element.layer, element.layer_name
    );
    println!("element      row {}, column {}", element.row, element.column);
    for (side, claimed) in SIDES.iter().zip(element.claimed) {
        match claimed {
            Some(value) => println!("  {side:<10} says {value}"),
            None => println!("  {side:<10} revealed nothing"),
        }
    }
    if let Reason::Recomputed { value } = reason {
        println!("  computed again from what was opened: {value}");
    }
}

fn summary(report: &Report) -> Value {
    let verdict = &report.verdict;
    let value = match verdict.reason {
        Reason::Recomputed { value } => Some(value),
        _ => None,
    };
    let lost = report.players.iter().zip(verdict.losers).filter(|(_, lost)| *lost);
    let element = report.element.as_ref().map(|element| {
        json!({
            "step": element.step, "layer": element.layer, "op": element.op_index, "tensor": element.tensor,
            "row": element.row, "column": element.column, "claimed": element.claimed, "computed": value,
        })
    });
    json!({
        "valid": true, "dispute": report.dispute, "job": report.job, "model_id": report.model,
        "model": report.model_name, "coordinator": report.coordinator, "claimant": report.players[0],
        "challenger": report.players[1], "place": verdict.place, "row": report.row, "element": element,
        "kind": verdict.kind, "losers": lost.map(|(key, _)| key).collect::<Vec<_>>(),
        "reason": verdict.reason.to_string(), "verdict": verdict_line(report), "rounds": report.rounds,
        "referee_bytes": report.referee_bytes, "opened_ms": report.opened, "ended_ms": report.ended,
    })
}
