//! `lockstep dispute`: the disputes of a coordinator.

use anyhow::Context;
use clap::{Args, Subcommand};
use lockstep_protocol::ids::DisputeId;
use serde_json::Value;

use crate::cli::client::Address;
use crate::exit::{Failure, Outcome};
use crate::secret::Secret;

mod export;
mod list;
mod show;

/// Arguments of `lockstep dispute`.
#[derive(Args)]
pub struct DisputeArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The newest disputes: who against whom, where, and how they ended.
    List(list::ListArgs),
    /// One dispute: what is still in dispute, and every entry of its transcript.
    Show(show::ShowArgs),
    /// Save a dispute as one file, for `lockstep judge`.
    Export(export::ExportArgs),
}

/// Runs the command.
pub fn run(args: &DisputeArgs) -> Outcome {
    match &args.command {
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Export(args) => export::run(args),
    }
}

/// Which dispute, and what opens it.
#[derive(Args)]
struct Subject {
    /// Id of the dispute, as `lockstep dispute list` prints it.
    dispute: DisputeId,
    #[command(flatten)]
    address: Address,
    /// The access token that the coordinator returned with the answer (`lockstep.access`). Without it, a dispute is shown
    /// once its job has ended, and its transcript only where it holds none of the job's tokens.
    #[arg(long, env = "LOCKSTEP_ACCESS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    access_token: Option<Secret>,
}

/// Longest list or description of disputes, in bytes.
const MAX_JSON_BYTES: usize = 16 << 20;

fn fetch(address: &Address, path: &str, access: Option<&Secret>) -> Result<Value, Failure> {
    let text = address.get(path, access, MAX_JSON_BYTES)?;
    Ok(serde_json::from_str(&text).context("the answer is no JSON")?)
}

/// A field as a person reads it: text without quotes, nothing as a dash.
fn told(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The first digits of an id.
fn short(value: &Value) -> String {
    told(value).chars().take(12).collect()
}

/// A verdict in words; a dispute without one in those of its stage.
fn outcome(dispute: &Value) -> String {
    let verdict = &dispute["verdict"];
    if verdict.is_null() {
        return match &dispute["stage"] {
            Value::Null => "open".into(),
            stage => format!("open, in stage {} (round {})", told(stage), told(&dispute["round"])),
        };
    }
    let losers: Vec<_> = verdict["losers"].as_array().into_iter().flatten().map(short).collect();
    let sides = [("claimant", &dispute["claimant"]), ("challenger", &dispute["challenger"])];
    let names: Vec<_> = sides.iter().filter(|(_, key)| losers.contains(&short(key))).map(|(name, _)| *name).collect();
    let who = if names.len() == 1 { "it" } else { "each" };
    format!("{} lost ({}): {who} {}", names.join(" and "), told(&verdict["kind"]), told(&verdict["reason"]))
}
