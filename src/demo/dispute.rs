//! The dispute's file: fetched as anybody would, judged again here, and once more with a byte changed.

use anyhow::{Context, Result, ensure};
use lockstep_model::dispute::judge;
use lockstep_protocol::limits::MAX_DISPUTE_FILE_BYTES;

use super::network::Network;
use super::verdict::{Asked, Dispute};
use crate::cli::verdict_line;

/// What became of the file.
pub struct Checked {
    /// Its length.
    pub bytes: usize,
    /// The verdict that it gives here, in words.
    pub told: String,
    /// The same for programs.
    pub verdict: &'static str,
    /// Whether that is the coordinator's verdict.
    pub holds: bool,
    /// Why the changed file is refused.
    pub refused: String,
}

/// Fetches the dispute's file with the access token of its job, and judges it offline.
pub async fn check(network: &Network, dispute: &Dispute, asked: &[Asked]) -> Result<Checked> {
    let of_job = |asked: &&Asked| asked.receipts.iter().any(|receipt| receipt.job.id() == dispute.job);
    let answer = asked.iter().find(of_job).context("nobody asked for the disputed job")?;
    let path = format!("disputes/{}/file", dispute.id);
    let bytes = network.get(&path, &answer.access, MAX_DISPUTE_FILE_BYTES).await?;
    let report = judge(&bytes)?;
    let lost: Vec<_> = report.players.iter().zip(report.verdict.losers).filter(|(_, l)| *l).map(|(k, _)| *k).collect();
    let holds = report.dispute == dispute.id && report.verdict.kind == dispute.kind && lost == dispute.losers;
    // Near the end lies what was opened last: the evidence itself.
    let mut changed = bytes.clone();
    let at = changed.len() - changed.len() / 8;
    changed[at] ^= 1;
    let refused = judge(&changed).err();
    ensure!(refused.is_some(), "the file was changed at byte {at}, and still judged");
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    let verdict = match report.verdict.losers {
        [true, false] => "claimant_loses",
        [false, true] => "challenger_loses",
        _ => "both_lose",
    };
    Ok(Checked { bytes: bytes.len(), told: verdict_line(&report), verdict, holds, refused })
}
