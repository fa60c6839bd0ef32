//! Judging the demo: nothing is taken from anybody's word.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use lockstep_coordinator::Event;
use lockstep_coordinator::events::DisputedElement;
use lockstep_model::embed::to_real;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun;
use lockstep_protocol::ids::{DisputeId, JobId, NodeId, Place, VerdictKind};
use lockstep_protocol::receipt::Receipt;

use super::network::{Answer, Network};
use crate::backend;

/// What was found.
pub struct Verdict {
    /// Answers that clients got.
    pub jobs: usize,
    /// Roots that workers streamed.
    pub roots_committed: usize,
    /// Audits that ended.
    pub audits: usize,
    /// Audits that ended with a difference.
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

/// Checks every receipt by running its job again, and compares what the coordinator found with who really cheated.
pub async fn judge(network: &Network, package: &Path, answers: &[Answer], altered_layer: usize) -> Result<Verdict> {
    let receipts: Vec<(Receipt, Vec<f64>)> =
        answers.iter().flat_map(|a| a.receipts.iter().cloned().zip(a.embeddings.iter().cloned())).collect();
    let jobs = receipts.len();
    let package = package.to_path_buf();
    let receipts_verified = tokio::task::spawn_blocking(move || verify_all(&package, &receipts)).await??;
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
    Ok(Verdict {
        jobs,
        roots_committed: count(|e| matches!(e, Event::Committed { .. })),
        audits: count(|e| matches!(e, Event::Audited { .. })),
        mismatches: count(|e| matches!(e, Event::Mismatch { .. })),
        receipts_verified,
        first_difference: caught.first().map(|(_, place)| *place),
        honest_verified: jobs > 0 && receipts_verified == jobs && blamed.is_subset(&cheats),
        cheater_found: blamed == cheats
            && caught.iter().all(|(_, p)| usize::from(p.layer) == altered_layer)
            && dispute.as_ref().is_some_and(|d| d.losers.iter().all(|loser| cheats.contains(loser))),
        quarantined: blamed.into_iter().collect(),
        dispute,
    })
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

/// How many receipts hold. An answer counts only if the numbers that the client got are the receipt's.
fn verify_all(package: &Path, receipts: &[(Receipt, Vec<f64>)]) -> Result<usize> {
    let threads = backend::all_threads();
    let package = Package::open_checked(package, threads)?;
    let backend = backend::open("cpu", threads).map_err(|f| f.error)?;
    let frac = package.manifest().output_frac;
    let mut verified = 0;
    for (receipt, embedding) in receipts {
        ensure!(receipt.job.model == package.model_id(), "a receipt is about another model");
        let standing = receipt.check()?;
        let again = rerun(&package, &*backend, &receipt.job.tokens)?;
        let told = to_real(&again.output, frac);
        // The client got the nearest 32-bit floats.
        let same_numbers = told.iter().map(|x| *x as f32).eq(embedding.iter().map(|x| *x as f32));
        let same_roots = receipt.worker.receipt.roots == again.roots && receipt.output == again.output;
        verified += usize::from(standing.refuted.is_none() && !standing.withdrawn && same_roots && same_numbers);
    }
    Ok(verified)
}
