//! Judging the demo: nothing is taken from anybody's word.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lockstep_coordinator::Event;
use lockstep_coordinator::events::DisputedElement;
use lockstep_kernels::backend::Backend;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::ids::{DisputeId, JobId, NodeId, Place, VerdictKind};
use lockstep_protocol::receipt::Receipt;

use serde_json::Value;

use super::network::Network;
use crate::backend;

/// What was found.
pub struct Verdict {
    /// Answers that clients got.
    pub jobs: usize,
    /// Roots that workers streamed.
    pub roots_committed: usize,
    /// Audits that ended.
    pub audits: usize,
    /// Audits that ended with a difference, at their end or before it.
    pub mismatches: usize,
    /// Receipts that hold and whose job gives the same here.
    pub receipts_verified: usize,
    /// Where the cheat was first found wrong.
    pub first_difference: Option<Place>,
    /// Workers that were put out.
    pub quarantined: Vec<NodeId>,
    /// Every answer verified here, and no honest worker was blamed.
    pub honest_verified: bool,
    /// The cheat was put out, and blamed for the layer that it alters.
    pub cheater_found: bool,
    /// The first dispute that came to a verdict.
    pub dispute: Option<Dispute>,
}

/// A dispute, as the coordinator reported it.
pub struct Dispute {
    /// Which.
    pub id: DisputeId,
    /// About which job.
    pub job: JobId,
    /// How it was lost.
    pub kind: VerdictKind,
    /// Who lost.
    pub losers: Vec<NodeId>,
    /// Rounds that were played.
    pub rounds: u16,
    /// Bytes that the referee took.
    pub referee_bytes: u64,
    /// What the referee computed, in microseconds.
    pub referee_micros: u64,
    /// The number on which it came down.
    pub element: Option<DisputedElement>,
}

/// What a client has of a request.
pub struct Asked {
    /// One receipt for each job.
    pub receipts: Vec<Receipt>,
    /// What opens its jobs.
    pub access: String,
}

impl Asked {
    /// From the `lockstep` object of an answer.
    pub fn read(ours: &Value) -> Result<Self> {
        let receipt = |v: &Value| Ok(Receipt::from_json(&v.to_string())?);
        let receipts = ours["receipts"].as_array().context("the receipts are missing")?;
        Ok(Self {
            receipts: receipts.iter().map(receipt).collect::<Result<_>>()?,
            access: ours["access"].as_str().context("the access token is missing")?.to_owned(),
        })
    }
}

/// Compares what the coordinator found with who really cheated. `receipts_verified` of the answers' `jobs` hold.
pub fn judge(network: &Network, jobs: usize, receipts_verified: usize, altered_layer: usize) -> Verdict {
    let events = network.events();
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count();
    let caught = events.iter().filter_map(|e| match e {
        Event::Quarantined { node, place, .. } => Some((*node, *place)),
        _ => None,
    });
    let caught: Vec<(NodeId, Place)> = caught.collect();
    let dispute = events.iter().find_map(judged);
    let cheats: BTreeSet<NodeId> = network.workers.iter().filter(|w| !w.honest).map(|w| w.node).collect();
    let blamed: BTreeSet<NodeId> = caught.iter().map(|(node, _)| *node).collect();
    Verdict {
        jobs,
        roots_committed: count(|e| matches!(e, Event::Committed { .. })),
        audits: count(|e| matches!(e, Event::Audited { .. })),
        mismatches: count(|e| matches!(e, Event::Mismatch { .. } | Event::Diverged { .. })),
        receipts_verified,
        first_difference: caught.first().map(|(_, place)| *place),
        honest_verified: jobs > 0 && receipts_verified == jobs && blamed.is_subset(&cheats),
        cheater_found: blamed == cheats
            && caught.iter().all(|(_, p)| usize::from(p.layer) == altered_layer)
            && dispute.as_ref().is_some_and(|d| d.losers.iter().all(|loser| cheats.contains(loser))),
        quarantined: blamed.into_iter().collect(),
        dispute,
    }
}

fn judged(event: &Event) -> Option<Dispute> {
    let Event::DisputeJudged { dispute, job, kind, losers, element, rounds, referee_bytes, referee_micros } = event
    else {
        return None;
    };
    Some(Dispute {
        id: *dispute,
        job: *job,
        kind: *kind,
        losers: losers.clone(),
        rounds: *rounds,
        referee_bytes: *referee_bytes,
        referee_micros: *referee_micros,
        element: element.clone(),
    })
}

/// How many answers hold, where `check` says it of each. It is given the package, verified and proven, and what runs the job
/// of a receipt again from that receipt alone.
pub async fn rerun_all(
    package: &Path,
    check: impl FnOnce(&Package, &dyn Fn(&Receipt) -> Result<bool>) -> Result<Vec<bool>> + Send + 'static,
) -> Result<usize> {
    let package = package.to_path_buf();
    let work = move || -> Result<usize> {
        let threads = backend::all_threads();
        let package = Package::open_checked(&package, threads)?;
        let backend = backend::open("cpu", threads).map_err(|f| f.error)?;
        let again = |receipt: &Receipt| is_right(&package, &*backend, receipt);
        Ok(check(&package, &again)?.into_iter().filter(|holds| *holds).count())
    };
    tokio::task::spawn_blocking(work).await?
}

/// Whether a receipt holds, and its job gives the same here: every root and every number.
fn is_right(package: &Package, backend: &dyn Backend, receipt: &Receipt) -> Result<bool> {
    ensure!(receipt.job.model == package.model_id(), "a receipt is about another model");
    let standing = receipt.check()?;
    // Of a generation, the words that are claimed are checked in one pass.
    let claimed = receipt.job.kind.generation().map(|_| receipt.words()).unwrap_or_default();
    let again = rerun_job(package, backend, &receipt.job, &claimed)?;
    let signed = &receipt.worker.receipt;
    let trail = receipt.job.header().geometry(signed.layers)?.trail(&again.roots);
    let same_roots = trail.is_some_and(|trail| trail.points == signed.points && trail.roots == signed.roots);
    Ok(standing.refuted.is_none() && !standing.withdrawn && same_roots && receipt.output == again.output)
}
