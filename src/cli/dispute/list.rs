//! `lockstep dispute list`

use clap::Args;
use serde_json::Value;

use super::{fetch, outcome, short, told};
use crate::cli::client::Address;
use crate::exit::Outcome;

/// Arguments of `lockstep dispute list`.
#[derive(Args)]
#[command(after_help = "Everybody may see the list. Jobs are named once they have ended.")]
pub struct ListArgs {
    #[command(flatten)]
    address: Address,
    /// Only disputes that were opened before the one of this number.
    #[arg(long, value_name = "NUMBER")]
    before: Option<u64>,
    /// Print the coordinator's answer as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Fetches the list, and prints it.
pub fn run(args: &ListArgs) -> Outcome {
    let path = args.before.map_or("disputes".to_owned(), |before| format!("disputes?before={before}"));
    let answer = fetch(&args.address, &path, None)?;
    if args.json {
        println!("{answer}");
        return Ok(());
    }
    let disputes = answer["data"].as_array().map_or(&[][..], Vec::as_slice);
    disputes.iter().for_each(print);
    if disputes.is_empty() {
        println!("no disputes");
    }
    Ok(())
}

fn print(dispute: &Value) {
    let place = &dispute["place"];
    println!(
        "{:>5}  {}  {} against {}, point {} layer {}: {}",
        told(&dispute["number"]),
        told(&dispute["id"]),
        short(&dispute["claimant"]),
        short(&dispute["challenger"]),
        told(&place["point"]),
        told(&place["layer"]),
        outcome(dispute)
    );
}
