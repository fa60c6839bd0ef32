//! The accepted runs of a job: which of them stand, whether those agree, and what follows at the end.
//!
//! Runs agree when their roots and their log-probabilities do: only these can be disputed. (That one of them counts
//! saturations wrongly, the receipt says: the audit does not match.)

use std::collections::BTreeSet;

use crate::commitment::Difference;
use crate::ids::{DisputeId, LeaseEpoch, Place, Root, VerdictKind};
use crate::limits::MAX_AUDITORS;
use crate::logprobs;
use crate::machine::entry::{Entry, Lease};
use crate::machine::table::{Event, Stage};
use crate::machine::types::Outcome;
use crate::messages::JobResult;
use crate::receipt::{Refutation, WorkerReceipt};

/// What became of an accepted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody has refuted it.
    Stands,
    /// Its worker lost a dispute about it.
    Refuted { place: Place, dispute: DisputeId, kind: VerdictKind },
    /// Its worker took it back.
    Withdrawn,
}

/// An accepted run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub result: JobResult,
    /// All its roots, in stream order.
    pub roots: Vec<Root>,
    /// Who runs its worker, where the coordinator knows.
    pub operator: Option<String>,
    pub fate: Fate,
}

impl Run {
    pub fn receipt(&self) -> &WorkerReceipt {
        &self.result.receipt.receipt
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.receipt().epoch
    }

    /// Of a generation, its words.
    pub fn words(&self) -> Vec<u32> {
        self.result.words()
    }

    pub fn stands(&self) -> bool {
        self.fate == Fate::Stands
    }
}

/// What the runs that stand say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    Nobody,
    /// All alike, and fewer than are wanted.
    Few,
    /// All alike, and as many as are wanted.
    Enough,
    /// Not all alike.
    Split,
}

impl Entry {
    /// The runs that stand, in the order in which they came.
    pub fn standing(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.stands())
    }

    /// How many runs are wanted: the first one and all audits.
    pub fn wanted_runs(&self) -> usize {
        usize::from(self.auditors) + 1
    }

    fn agreement(&self, receipts: &[&WorkerReceipt]) -> Agreement {
        match receipts.split_first() {
            None => Agreement::Nobody,
            Some((first, others)) if others.iter().any(|other| !first.agrees_with(other)) => Agreement::Split,
            _ if receipts.len() < self.wanted_runs() => Agreement::Few,
            _ => Agreement::Enough,
        }
    }

    /// The receipts that stand, without those of some leases.
    fn standing_without(&self, fallen: &[LeaseEpoch]) -> Vec<&WorkerReceipt> {
        self.standing().filter(|run| !fallen.contains(&run.epoch())).map(Run::receipt).collect()
    }

    /// What a new run means for an open job.
    pub fn first_run_event(&self) -> Event {
        match self.draw {
            None => Event::FirstRun,
            Some(_) if self.wanted_runs() > 1 => Event::AnotherRun,
            Some(_) => Event::AnotherRunAlone,
        }
    }

    /// What a new run means for a job that is being audited. Runs that differ are disputed once all have come.
    pub fn audit_event(&self, new: &WorkerReceipt) -> Event {
        let mut receipts = self.standing_without(&[]);
        receipts.push(new);
        match self.agreement(&receipts) {
            _ if receipts.len() < self.wanted_runs() => Event::Audited,
            Agreement::Split => Event::AuditedSplit,
            _ => Event::AuditedAgreed,
        }
    }

    pub fn abandoned_event(&self) -> Event {
        match self.agreement(&self.standing_without(&[])) {
            Agreement::Nobody => Event::AbandonedNone,
            Agreement::Split => Event::AbandonedSplit,
            _ => Event::AbandonedAgreed,
        }
    }

    /// What a verdict means that refutes the runs of these leases.
    pub fn judged_event(&self, losers: &[LeaseEpoch]) -> Event {
        match self.agreement(&self.standing_without(losers)) {
            Agreement::Nobody => Event::JudgedNone,
            Agreement::Split => Event::JudgedSplit,
            Agreement::Few => Event::JudgedFew,
            Agreement::Enough => Event::JudgedEnough,
        }
    }

    /// What it means that a worker takes its run back.
    pub fn withdrawn_event(&self, epoch: LeaseEpoch) -> Event {
        if self.standing_without(&[epoch]).is_empty() { Event::WithdrawnLast } else { Event::Withdrawn }
    }

    /// The first run that stands, and the first of the others that differs from it.
    pub fn opponents(&self) -> Option<(&Run, &Run)> {
        let mut standing = self.standing();
        let first = standing.next()?;
        let other = standing.find(|run| !first.receipt().agrees_with(run.receipt()))?;
        Some((first, other))
    }

    /// Whether two of those who run the job, or have run it, say different things already.
    pub fn is_contradicted(&self) -> bool {
        let first = self.standing().next();
        let differs = |lease: &Lease| first.is_some_and(|run| !run.roots.starts_with(&lease.roots));
        self.halt.is_some() || self.opponents().is_some() || self.leases.values().any(differs)
    }

    /// Where two runs differ first: in a root, or where all of these are the same, in the log-probabilities of a point.
    pub fn difference(&self, a: &Run, b: &Run) -> Option<Difference> {
        self.geometry.first_difference(&a.roots, &b.roots).or_else(|| self.logprobs_difference(a, b))
    }

    fn logprobs_difference(&self, a: &Run, b: &Run) -> Option<Difference> {
        let asked = self.header.kind.generation()?;
        let [of_a, of_b] = [a, b].map(|run| run.result.logprobs());
        let index = logprobs::first_difference(of_a, of_b, asked)?;
        let place = Place { point: self.geometry.point(index)?, layer: self.geometry.logprobs_layer() };
        let root = |values| logprobs::rows(values, asked).nth(index).map(|row| row.root());
        Some(Difference { place, a: root(of_a), b: root(of_b) })
    }

    /// The runs that were refuted, each with where and how.
    pub fn refutations(&self) -> Vec<Refutation> {
        self.runs.iter().filter_map(refutation).collect()
    }

    /// The outcome of a job that closes: the answer is the first run that stands. Where there are more others than a
    /// receipt takes, those that stand come before those that do not.
    pub fn outcome(&self) -> Option<Outcome> {
        let chosen = self.standing().next()?;
        let others = |stands| {
            let is_meant = move |run: &&Run| run.stands() == stands;
            self.runs.iter().filter(is_meant).filter(|run| run.epoch() != chosen.epoch())
        };
        let kept: BTreeSet<_> = others(true).chain(others(false)).take(MAX_AUDITORS).map(Run::epoch).collect();
        let others: Vec<_> = self.runs.iter().filter(|run| kept.contains(&run.epoch())).collect();
        let withdrawn = others.iter().filter(|run| run.fate == Fate::Withdrawn);
        Some(Outcome {
            result: chosen.result.clone(),
            refutations: others.iter().filter_map(|run| refutation(run)).collect(),
            withdrawals: withdrawn.map(|run| run.receipt().digest()).collect(),
            others: others.into_iter().map(|run| run.result.clone()).collect(),
            roots: chosen.roots.clone(),
            audits_wanted: self.auditors,
        })
    }

    /// Whether a worker of this operator may be an auditor. Where policy asks for it, that is one who is known to be
    /// another operator than those of all runs that stand or are under way, and of no run that fell either.
    pub fn allows_operator(&self, operator: Option<&str>) -> bool {
        if !self.spec.policy.distinct_operators || self.stage != Stage::Auditing {
            return true;
        }
        let Some(operator) = operator else {
            return false;
        };
        let is_new = self.runs.iter().all(|run| run.operator.as_deref() != Some(operator));
        let standing = self.standing().map(|run| &run.operator);
        let mut others = standing.chain(self.leases.values().map(|lease| &lease.operator));
        is_new && others.all(|other| other.as_deref().is_some_and(|other| other != operator))
    }
}

fn refutation(run: &Run) -> Option<Refutation> {
    let Fate::Refuted { place, dispute, kind } = run.fate else {
        return None;
    };
    let (receipt, worker) = (run.receipt(), run.result.receipt.key_at(place.layer));
    Some(Refutation { worker, receipt: receipt.digest(), place, dispute, kind })
}
