//! Credits: grants, bonds, pay and forfeits, as postings of the ledger.
//!
//! Every lease holds a bond of its worker. It covers what a lie must cost ([`deterrent`]), what the audits of the job cost,
//! and what the other side of a dispute spends. The bond is free again when the lease ends without a run, and at the
//! end of the job; a run that is refuted or taken back forfeits it, and so does a wrong hand-over, whenever it is proven.

use super::{Action, Machine, Output};
use crate::ids::{JobId, LeaseEpoch, NodeId};
use crate::ledger::{Award, Ledger, Posting, Purpose, deterrent, price_of_work};
use crate::limits::MAX_GRANTED_ACCOUNTS;
use crate::machine::disputes::dispute_work;
use crate::machine::entry::Entry;
use crate::machine::standing::Run;
use crate::machine::types::JobSpec;

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// The bond of a lease of a job. It also pays for a retraction: the audits, and the deterrent for the probability with
/// which the job is audited, where none counts as the smallest.
pub(super) fn bond(spec: &JobSpec) -> u64 {
    let price = price_of_work(spec.work_bound());
    let audits = price.saturating_mul(u64::from(spec.policy.auditors));
    let defence = price_of_work(dispute_work(spec.work_bound(), spec.layers));
    deterrent(price, spec.policy.per_mille.max(1)).saturating_add(audits).saturating_add(defence)
}

/// What a run pays to whom: to each of several workers in proportion to its layers, and what division leaves to the last.
fn shares(run: &Run) -> Vec<(NodeId, LeaseEpoch, u64)> {
    let (price, streamed) = (price_of_work(run.receipt().work_units), u64::from(run.receipt().layers) + 1);
    let (members, mut left) = (run.result.receipt.members(), price);
    let mut shares: Vec<_> = (members.map(|(node, first, last)| {
        let layers = u64::from(last.saturating_sub(first)) + 1;
        let amount = (price / streamed).saturating_mul(layers).min(left);
        left -= amount;
        (node, run.epoch(), amount)
    }))
    .collect();
    if let Some((.., amount)) = shares.last_mut() {
        *amount += left;
    }
    shares
}

impl Machine {
    /// All accounts, after every posting that was returned.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Makes a posting, or reports that the ledger does not allow it.
    pub(super) fn post(&mut self, posting: Posting, out: &mut Output) {
        match self.ledger.post(&posting) {
            Ok(()) => out.postings.push(posting),
            Err(error) => out.actions.push(Action::Unposted { posting, error }),
        }
    }

    /// Gives a worker that has no account its first credits, where not too many got theirs lately or in all. Who gets none
    /// now asks again with its next heartbeat. The hours are counted from the machine's start.
    pub(super) fn grant(&mut self, node: NodeId, out: &mut Output) {
        let amount = self.config.grant;
        let is_new = self.ledger.account(&node).is_none() && self.workers.get(&node).is_some();
        if amount == 0 || !is_new || self.ledger.account_count() >= MAX_GRANTED_ACCOUNTS {
            return;
        }
        let hour = self.now.0 / HOUR_MS;
        if self.grants.0 != hour {
            self.grants = (hour, 0);
        }
        if self.grants.1 < self.config.grants_per_hour {
            self.grants.1 += 1;
            self.post(Posting::Issue { to: node, amount }, out);
        }
    }

    /// Whether a worker has the credits for a lease of a job.
    pub(super) fn can_bond(&self, entry: &Entry, node: &NodeId) -> bool {
        self.ledger.free(node) >= bond(&entry.spec)
    }

    /// Holds the bond of a new lease.
    pub(super) fn hold_bond(&mut self, job: JobId, epoch: LeaseEpoch, node: NodeId, out: &mut Output) {
        let amount = bond(&self.jobs[&job].spec);
        self.post(Posting::Hold { from: node, purpose: Purpose::Lease { job, epoch }, amount }, out);
    }

    /// Frees the bonds of the leases that ended since the last call without a run.
    pub(super) fn release_ended(&mut self, out: &mut Output) {
        for (node, job, epoch) in std::mem::take(&mut self.orphans) {
            out.actions.push(Action::Cancel { node, job, epoch });
        }
        for (node, job, epoch) in std::mem::take(&mut self.ended_leases) {
            self.release(node, job, epoch, out);
        }
    }

    fn release(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        let purpose = Purpose::Lease { job, epoch };
        if self.ledger.held(&node, &purpose).is_some() {
            self.post(Posting::Release { node, purpose }, out);
        }
    }

    /// After a restart no lease is live: frees all bonds but those of runs that stand in an unfinished job.
    pub(super) fn release_dead(&mut self, out: &mut Output) {
        let stands = |job: &JobId, epoch: LeaseEpoch| {
            let plays = |entry: &Entry| entry.is_playing(epoch) || entry.standing().any(|run| run.epoch() == epoch);
            self.jobs.get(job).is_some_and(plays)
        };
        let mut dead = Vec::new();
        for (node, account) in self.ledger.accounts() {
            for (purpose, _) in account.held() {
                if let Purpose::Lease { job, epoch } = purpose
                    && !stands(job, *epoch)
                {
                    dead.push((*node, *job, *epoch));
                }
            }
        }
        dead.into_iter().for_each(|(node, job, epoch)| self.release(node, job, epoch, out));
    }

    /// Frees the bonds of all runs that stand, at the end of their job, and pays for them if it ended well.
    pub(super) fn settle_accounts(&mut self, job: JobId, pays: bool, out: &mut Output) {
        let entry = &self.jobs[&job];
        let shares: Vec<_> = entry.standing().flat_map(shares).collect();
        for (node, epoch, amount) in shares {
            self.release(node, job, epoch, out);
            if pays {
                self.post(Posting::Pay { to: node, purpose: Purpose::Lease { job, epoch }, amount }, out);
            }
        }
    }

    /// Takes the bond of a lease from who did something in it that no run shows. Where the lease ended before, the bond is
    /// free again: as much of it as there is left is held once more, and burned.
    pub(super) fn burn_bond(&mut self, node: NodeId, (job, epoch): (JobId, LeaseEpoch), out: &mut Output) {
        let purpose = Purpose::Lease { job, epoch };
        if self.ledger.held(&node, &purpose).is_none() {
            let amount = bond(&self.jobs[&job].spec).min(self.ledger.free(&node));
            if amount == 0 {
                return;
            }
            self.post(Posting::Hold { from: node, purpose, amount }, out);
        }
        self.post(Posting::Forfeit { node, purpose, awards: Vec::new() }, out);
    }

    /// Takes the bond of a run that does not stand. Its opponent in a dispute, if there is one that did not lose too,
    /// gets what the dispute cost it; the rest is burned.
    pub(super) fn forfeit(
        &mut self,
        node: NodeId,
        (job, epoch): (JobId, LeaseEpoch),
        opponent: Option<NodeId>,
        out: &mut Output,
    ) {
        let purpose = Purpose::Lease { job, epoch };
        let run = self.jobs[&job].runs.iter().find(|run| run.epoch() == epoch);
        let others = run.into_iter().flat_map(|run| run.result.receipt.members()).map(|(other, ..)| other);
        // Whoever had other layers of the run risked nothing by these.
        self.ended_leases.extend(others.filter(|other| *other != node).map(|other| (other, job, epoch)));
        let Some(held) = self.ledger.held(&node, &purpose) else {
            return;
        };
        let spec = &self.jobs[&job].spec;
        let cost = price_of_work(dispute_work(spec.work_bound(), spec.layers)).min(held);
        let awards = opponent.map(|to| Award { to, amount: cost }).into_iter().collect();
        self.post(Posting::Forfeit { node, purpose, awards }, out);
    }
}
