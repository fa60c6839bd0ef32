//! Honest faults: a worker that ran a job again and found its own run wrong may take it back, and one whose machine is off
//! when it has to speak loses what it staked, and no more.
//!
//! It loses the bond of the run, which is worth the audits and what keeps a lie from paying, and gets no pay. It is set aside
//! for [`FAULTY_MS`], to test its machine, and may then join again. A worker that takes back a run that was accepted after
//! that, before [`RETRACT_JOBS`] were, is treated as one that was refuted. Runs that were accepted before belong to the same
//! fault: each costs its own bond, so that lies which are taken back together bring nothing either.

use super::{Action, Machine, Output, Record};
use crate::ids::{JobId, LeaseEpoch, Millis, NodeId, VerdictKind};
use crate::limits::{FAULTY_MS, RETRACT_JOBS};
use crate::machine::entry::Entry;
use crate::machine::standing::Run;

/// What is remembered of a worker that took a run back, or was silent where it had to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// It is given nothing before.
    pub until: Millis,
    /// Its runs that were accepted since.
    pub accepted: u32,
}

impl Machine {
    /// Takes a run back at its worker's word. Nothing happens where there is no such run any more, or where it is in
    /// a dispute: there the worker concedes.
    pub(super) fn retracted(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        self.touch(&node);
        let is_it = |run: &Run| run.result.receipt.has_member(&node) && run.epoch() == epoch;
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.standing().any(is_it)) else {
            return;
        };
        if entry.is_playing(epoch) {
            return;
        }
        let stage = entry.stage;
        self.withdraw(node, (job, epoch), None, out);
        self.run_fell(job, stage, out);
    }

    /// Takes a run out of its job, for good: at its worker's word.
    pub(super) fn withdraw(
        &mut self,
        node: NodeId,
        (job, epoch): (JobId, LeaseEpoch),
        opponent: Option<NodeId>,
        out: &mut Output,
    ) {
        self.record(Record::Retracted { job, epoch }, out);
        self.end_challenges_of((job, epoch), out);
        self.forfeit(node, (job, epoch), opponent, out);
        if self.may_withdraw(&node) {
            self.set_aside(node, job, out);
        } else {
            let place = self.jobs[&job].geometry.place(0).expect("a job commits somewhere");
            self.quarantine(node, job, place, VerdictKind::Proven, out);
        }
    }

    /// Gives a worker nothing for a while. One that is quarantined gets nothing anyway.
    pub(super) fn set_aside(&mut self, node: NodeId, job: JobId, out: &mut Output) {
        if self.quarantined.contains(&node) {
            return;
        }
        let until = self.now.plus(FAULTY_MS);
        self.record(Record::SetAside { node, job, until }, out);
        self.left(node);
        out.actions.push(Action::SetAside { node, job, until });
    }

    /// Counts an accepted run of a worker that was set aside, in a record that outlives the job.
    pub(super) fn redeem(&mut self, node: NodeId, job: JobId, out: &mut Output) {
        let counted = self.faults.get(&node).map(|fault| fault.accepted).filter(|accepted| *accepted < RETRACT_JOBS);
        if let Some(accepted) = counted {
            self.record(Record::Redeemed { node, job, accepted: accepted + 1 }, out);
        }
    }

    /// Whether a worker may have another fault and be no worse off than a faulty machine is.
    pub(super) fn may_retract(&self, node: &NodeId) -> bool {
        self.faults.get(node).is_none_or(|fault| fault.accepted >= RETRACT_JOBS)
    }

    /// Whether a worker may take back a run of a job that has not ended. Where none was accepted since its last fault, the
    /// run is from before that, and belongs to it.
    pub(super) fn may_withdraw(&self, node: &NodeId) -> bool {
        self.may_retract(node) || self.faults.get(node).is_some_and(|fault| fault.accepted == 0)
    }

    /// Whether a worker is set aside now.
    pub(super) fn is_set_aside(&self, node: &NodeId) -> bool {
        self.faults.get(node).is_some_and(|fault| self.now < fault.until)
    }
}

impl Entry {
    /// Whether the run of a lease is in the dispute that is being played.
    pub fn is_playing(&self, epoch: LeaseEpoch) -> bool {
        let plays = |terms: &crate::dispute::Terms| [terms.claimant.epoch(), terms.challenger.epoch()].contains(&epoch);
        self.dispute.as_ref().is_some_and(plays)
    }
}
