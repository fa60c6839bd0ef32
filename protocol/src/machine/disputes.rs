//! Disputes about runs that differ: who plays, in which time, and what a verdict does.
//!
//! Each key plays its own dispute and risks only its own run: a verdict refutes the losers and confirms nothing. Where
//! runs that stand still differ after it, the next dispute begins; where too few are left, more audits are asked for.

use super::{Action, JobFailure, Machine, Output, Record};
use crate::dispute::{Held, Reason, Side, Signed, Terms, Verdict};
use crate::ids::{DisputeId, JobId, LeaseEpoch, NodeId, Place, VerdictKind};
use crate::job::JobKind;
use crate::limits::{DEFAULT_MACS_PER_MS, DISPUTE_BASE_MS, DISPUTE_MAX_MS};
use crate::machine::entry::Entry;
use crate::machine::standing::Run;
use crate::machine::table::Stage;
use crate::machine::workers::run_ms;

impl Machine {
    /// Opens the dispute between the first run that stands and the first that differs from it, or asks for the one
    /// again that is on its way already.
    pub(super) fn dispute(&mut self, job: JobId, out: &mut Output) {
        let entry = &self.jobs[&job];
        if entry.dispute.is_none() {
            let (first, other) = entry.opponents().expect("a job is disputed where two of its runs differ");
            let difference = entry.difference(first, other).expect("they differ in roots or log-probabilities");
            let (first, auditor) = (first.receipt().worker, other.receipt().worker);
            let terms = Box::new(self.terms(entry));
            self.record(Record::Disputed { job, terms }, out);
            out.actions.push(Action::Mismatch { job, difference, first, auditor });
        }
        let terms = self.jobs[&job].dispute.clone().expect("it is recorded now");
        out.actions.push(Action::OpenDispute { job, terms: Box::new(terms) });
    }

    /// The terms of the next dispute about a job.
    fn terms(&self, entry: &Entry) -> Terms {
        let (claimant, challenger) = entry.opponents().expect("two runs differ");
        let layer = entry.difference(claimant, challenger).map_or(1, |difference| difference.place.layer);
        let player = |run: &Run| run.result.receipt.key_at(layer);
        let budget = |run: &Run| self.budget_ms(entry.spec.work_bound(), entry.spec.layers, &player(run));
        let held = |run: &'_ Run| match entry.header.kind {
            JobKind::Embedding => Vec::new(),
            JobKind::Generation(_) => run.words(),
        };
        let words = [held(claimant), held(challenger)];
        let signed = [claimant, challenger].map(|run| Signed::Receipt(run.result.receipt.clone()));
        let runs = [
            Held { signed: &signed[0], roots: &claimant.roots, words: &words[0], logprobs: claimant.result.logprobs() },
            Held {
                signed: &signed[1],
                roots: &challenger.roots,
                words: &words[1],
                logprobs: challenger.result.logprobs(),
            },
        ];
        let budgets = [budget(claimant), budget(challenger)];
        let terms = Terms::of_runs(self.config.coordinator, entry.header.clone(), entry.spec.layers, runs, budgets);
        terms.expect("both receipts were checked when they were accepted, and they differ")
    }

    /// How long a side may take for all its moves together: a player that starts anew runs the prompt up to the disputed
    /// layer, and that layer.
    pub(super) fn budget_ms(&self, work_units: u64, layers: u16, worker: &NodeId) -> u64 {
        let speed = self.workers.get(worker).map_or(DEFAULT_MACS_PER_MS, |worker| worker.speed);
        let work = dispute_work(work_units, layers);
        DISPUTE_BASE_MS.saturating_add(run_ms(work, speed.max(DEFAULT_MACS_PER_MS))).min(DISPUTE_MAX_MS)
    }

    /// Takes a verdict. One that finds nobody wrong ends the job: playing the same again would find the same.
    pub(super) fn judged(&mut self, job: JobId, dispute: DisputeId, verdict: &Verdict, out: &mut Output) {
        if self.challenge_judged(dispute, verdict, out) {
            return;
        }
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.stage == Stage::Disputing) else {
            return;
        };
        let Some(terms) = entry.dispute.as_ref().filter(|terms| terms.id() == dispute) else {
            return;
        };
        let terms = terms.clone();
        if verdict.losers == [false; 2] {
            self.settle_partials(job, &terms, verdict, out);
            self.give_up(Record::Failed { job, reason: JobFailure::Undecided }, out);
            return;
        }
        let mut losers = Vec::new();
        for side in Side::BOTH.into_iter().filter(|side| verdict.losers[side.index()]) {
            let (node, lease) = (terms.key(side), (job, terms.claim(side).epoch()));
            let opponent = Some(terms.key(side.other())).filter(|_| !verdict.losers[side.other().index()]);
            if verdict.reason == Reason::Conceded && self.may_withdraw(&node) && self.stands(lease) {
                self.withdraw(node, lease, opponent, out);
            } else {
                self.forfeit(node, lease, opponent, out);
                losers.push(lease.1);
            }
        }
        let (kind, place) = (verdict.kind, verdict.place);
        self.record(Record::Judged { job, dispute, kind, place, losers: losers.clone() }, out);
        losers.iter().for_each(|epoch| self.end_challenges_of((job, *epoch), out));
        self.settle_partials(job, &terms, verdict, out);
        self.settle_receipts(job, &terms, verdict, out);
        self.punish(job, out);
        self.advance(job, out);
    }

    /// Whether the run of a lease stands, in a job that has not ended.
    pub(super) fn stands(&self, (job, epoch): (JobId, LeaseEpoch)) -> bool {
        self.jobs.get(&job).is_some_and(|entry| entry.standing().any(|run| run.epoch() == epoch))
    }

    /// Sets those aside who lost an accepted run by silence. Who lost otherwise is punished, or has withdrawn the run.
    fn settle_receipts(&mut self, job: JobId, terms: &Terms, verdict: &Verdict, out: &mut Output) {
        let is_receipt = |side: &Side| terms.claim(*side).receipt().is_some();
        let lost = |side: &Side| verdict.kind == VerdictKind::Timeout && verdict.losers[side.index()];
        for side in Side::BOTH.into_iter().filter(|side| is_receipt(side) && lost(side)) {
            self.dismiss(terms.key(side), job, verdict, out);
        }
    }

    /// Quarantines everybody whose run of this job was proven wrong.
    pub(super) fn punish(&mut self, job: JobId, out: &mut Output) {
        let refutations = self.jobs.get(&job).map(Entry::refutations).unwrap_or_default();
        for refutation in refutations.into_iter().filter(|refutation| refutation.kind == VerdictKind::Proven) {
            let (node, place, kind) = (refutation.worker, refutation.place, refutation.kind);
            self.quarantine(node, job, place, kind, out);
        }
    }

    /// Gives a worker nothing any more.
    pub(super) fn quarantine(&mut self, node: NodeId, job: JobId, place: Place, kind: VerdictKind, out: &mut Output) {
        if !self.quarantined.contains(&node) {
            self.record(Record::Quarantined { node, job, place, kind }, out);
            self.left(node);
            out.actions.push(Action::Quarantine { node, job, place, kind });
        }
    }
}

/// What a player computes in a dispute at most: the whole prompt, and one layer more.
pub(super) fn dispute_work(work_units: u64, layers: u16) -> u64 {
    work_units.saturating_add(work_units.div_ceil(u64::from(layers.max(1))))
}
