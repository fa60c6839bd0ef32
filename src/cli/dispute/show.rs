//! `lockstep dispute show`

use clap::Args;
use serde_json::Value;

use super::{Subject, fetch, outcome, told};
use crate::exit::Outcome;

/// Arguments of `lockstep dispute show`.
#[derive(Args)]
pub struct ShowArgs {
    #[command(flatten)]
    subject: Subject,
    /// Print the coordinator's answer as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Fetches a dispute, and prints it.
pub fn run(args: &ShowArgs) -> Outcome {
    let Subject { dispute, address, access_token } = &args.subject;
    let answer = fetch(address, &format!("disputes/{dispute}"), access_token.as_ref())?;
    if args.json {
        println!("{answer}");
        return Ok(());
    }
    for (name, field) in [
        ("dispute", "id"),
        ("status", "status"),
        ("job", "job"),
        ("model", "model_id"),
        ("claimant", "claimant"),
        ("challenger", "challenger"),
    ] {
        println!("{name:<12} {}", told(&answer[field]));
    }
    let place = &answer["place"];
    println!("{:<12} point {}, layer {}", "differs at", told(&place["point"]), told(&place["layer"]));
    println!("{:<12} {}", "outcome", outcome(&answer));
    narrowed(&answer["narrowed"]);
    answer["entries"].as_array().into_iter().flatten().for_each(entry);
    println!("this is the coordinator's account; `lockstep dispute export` and `lockstep judge` check it");
    Ok(())
}

/// What is still in dispute, while it is played.
fn narrowed(narrowed: &Value) {
    if narrowed.is_null() {
        return;
    }
    let tensor = match &narrowed["step"] {
        Value::Null => format!("layer {}", told(&narrowed["layer"])),
        step => told(step),
    };
    let (first, chunks) = (told(&narrowed["first_chunk"]), told(&narrowed["chunks"]));
    println!("{:<12} {tensor}, {chunks} chunks from {first} on", "in dispute");
}

fn entry(entry: &Value) {
    let of = |field: &str| told(&entry[field]);
    let what = match entry["what"].as_str().unwrap_or_default() {
        "moved" => format!("round {}: the {} moved ({}, {} bytes)", of("round"), of("side"), of("move"), of("bytes")),
        "credited" => format!("the coordinator was down for {} ms, which is charged to nobody", of("ms")),
        "notice" => format!("the clock of the {} ran out", of("side")),
        other => other.to_owned(),
    };
    println!("{:>4}  {}  {what}", of("index"), of("at_ms"));
}
