//! Lockstep audits: auditors run beside the first worker, and the job stops at the first root that differs.
//!
//! They are drawn before the job starts, so nobody knows who comes first. When two of them stream different roots for
//! one place, all others are called off, and both are told to halt and to sign what they streamed so far. Both claims
//! are disputed then. Who does not sign in time loses the bond and is set aside: it may have lied, or its machine went
//! down with the roots. A halt does not outlive a restart: the job is given out again, and nobody is blamed.

use super::{Action, Machine, Output, Record, RejectReason};
use crate::dispute::{Claim, Held, Partial, Side, Signed, SignedPartial, Terms, Verdict};
use crate::ids::{JobId, LeaseEpoch, Millis, NodeId, Place, Root};
use crate::limits::HALT_MS;
use crate::machine::entry::{Entry, Lease};
use crate::machine::schedule::Timer;
use crate::machine::table::Stage;

/// Two live leases whose roots differ, while their workers are to sign what they streamed.
#[derive(Clone, Debug)]
pub(super) struct Halt {
    /// The leases: the older one is the claimant's.
    pub epochs: [LeaseEpoch; 2],
    /// What their workers signed.
    pub partials: [Option<SignedPartial>; 2],
    /// The place in the stream at which they differ.
    pub index: usize,
    /// When it ends.
    pub deadline: Millis,
}

impl Entry {
    /// Whether a lease waits for its worker's signature.
    pub fn is_halted(&self, epoch: LeaseEpoch) -> bool {
        self.halt.as_ref().is_some_and(|halt| halt.epochs.contains(&epoch))
    }

    /// The roots of a halted lease that are to be signed: up to the place at which they differ from the other's.
    fn halted_roots<'a>(&self, lease: &'a Lease) -> &'a [Root] {
        let end = self.halt.as_ref().map_or(0, |halt| halt.index + 1);
        lease.roots.get(..end).unwrap_or_default()
    }

    /// Whether a partial run is what was streamed up to the place of the halt, and no more.
    fn is_halted_run(&self, lease: &Lease, partial: &Partial) -> bool {
        let roots = self.halted_roots(lease);
        let points = roots.len() / usize::from(self.geometry.streamed_layers());
        let words = lease.words.get(..points.min(lease.words.len()));
        let trail = self.geometry.trail(roots);
        let has_roots = trail.is_some_and(|trail| trail.points == partial.points && trail.roots == partial.roots);
        has_roots && words == Some(&partial.words)
    }

    /// A live lease beside this one that has another root at `index` of the stream, where the job is run in lockstep.
    pub(super) fn opponent_of(&self, epoch: LeaseEpoch, index: usize, root: &Root) -> Option<LeaseEpoch> {
        let is_on = self.stage == Stage::Auditing && self.draw.is_some_and(|draw| draw.lockstep) && self.halt.is_none();
        let differs = |roots: &[Root]| roots.get(index).is_some_and(|other| other != root);
        let mut others = self.leases.iter().filter(|(other, _)| is_on && **other != epoch);
        others.find(|(_, lease)| !lease.revealing && differs(&lease.roots)).map(|(other, _)| *other)
    }
}

impl Machine {
    /// Stops a job that is run in lockstep: two leases, the older one first, differ at `index` of the stream.
    pub(super) fn diverge(&mut self, job: JobId, epochs: [LeaseEpoch; 2], index: usize, out: &mut Output) {
        let entry = &self.jobs[&job];
        let place = entry.geometry.place(index).expect("the root was taken for a place of the job");
        let bystanders: Vec<_> = entry.leases.keys().filter(|lease| !epochs.contains(lease)).copied().collect();
        for bystander in bystanders {
            self.cancel_lease(job, bystander, out);
        }
        self.record(Record::Diverged { job, epochs, place }, out);
        let deadline = self.now.plus(HALT_MS);
        self.timers.insert((deadline, Timer::Halt(job)));
        let nodes = epochs.map(|epoch| self.jobs[&job].leases[&epoch].node);
        for (epoch, node) in epochs.into_iter().zip(nodes) {
            self.stop_clock(job, epoch);
            out.actions.push(Action::Halt { node, job, epoch, place });
        }
        self.jobs.get_mut(&job).expect("it was there").halt =
            Some(Halt { epochs, partials: [None, None], index, deadline });
        self.halted.insert(job);
        self.queue(job);
        out.actions.push(Action::Diverged { job, place, nodes });
    }

    /// Takes what a halted worker signed.
    pub(super) fn partial(&mut self, node: NodeId, partial: &SignedPartial, out: &mut Output) {
        let (job, epoch) = (partial.partial.job, partial.partial.epoch);
        if self.lease((node, job, epoch), out).is_none() {
            return;
        }
        let entry = &self.jobs[&job];
        let lease = &entry.leases[&epoch];
        let Some(halt) = entry.halt.as_ref().filter(|halt| halt.epochs.contains(&epoch)) else {
            self.reject((node, job, epoch), RejectReason::NotToldToHalt, out);
            return;
        };
        let side = usize::from(halt.epochs[1] == epoch);
        let claim = Claim::from(partial.clone());
        let is_as_streamed = entry.is_halted_run(lease, &partial.partial);
        if claim.worker() != node || !is_as_streamed || claim.check(&entry.header, entry.spec.layers).is_err() {
            self.reject((node, job, epoch), RejectReason::NotAsHalted, out);
            return;
        }
        let entry = self.jobs.get_mut(&job).expect("it was there");
        let partials = &mut entry.halt.as_mut().expect("it was there").partials;
        partials[side].get_or_insert_with(|| partial.clone());
        if let [Some(claimant), Some(challenger)] = partials {
            let partials = [claimant.clone(), challenger.clone()];
            self.dispute_partials(job, partials, out);
        }
    }

    /// Both have signed: their dispute begins. The bonds of both leases stay held until it ends.
    fn dispute_partials(&mut self, job: JobId, partials: [SignedPartial; 2], out: &mut Output) {
        let entry = &self.jobs[&job];
        let (work_bound, layers) = (entry.spec.work_bound(), entry.spec.layers);
        let budgets = [0, 1].map(|side: usize| self.budget_ms(work_bound, layers, &partials[side].partial.worker));
        let epochs = partials.each_ref().map(|signed| signed.partial.epoch);
        let signed = partials.map(Signed::Partial);
        let roots = epochs.map(|epoch| entry.halted_roots(&entry.leases[&epoch]));
        let runs = [0, 1].map(|side| Held { signed: &signed[side], roots: roots[side], words: &[], logprobs: &[] });
        let terms = Terms::of_runs(self.config.coordinator, entry.header.clone(), layers, runs, budgets);
        let terms = Box::new(terms.expect("both were checked, and differ where they were halted"));
        self.end_halt(job);
        for epoch in epochs {
            self.drop_lease(job, epoch);
        }
        self.record(Record::Disputed { job, terms }, out);
        self.advance(job, out);
    }

    /// The time to sign is over: who did not loses its bond, and the job goes on without either run.
    pub(super) fn halt_ended(&mut self, job: JobId, out: &mut Output) {
        let Some(halt) = self.end_halt(job) else {
            return;
        };
        let nodes = halt.epochs.map(|epoch| self.jobs[&job].leases.get(&epoch).map(|lease| lease.node));
        for side in 0..2 {
            let (Some(node), epoch) = (nodes[side], halt.epochs[side]) else {
                continue;
            };
            out.actions.push(Action::Cancel { node, job, epoch });
            if halt.partials[side].is_some() {
                self.end_lease(job, epoch);
                continue;
            }
            self.drop_lease(job, epoch);
            let opponent = nodes[1 - side].filter(|_| halt.partials[1 - side].is_some());
            self.forfeit(node, (job, epoch), opponent, out);
            self.set_aside(node, job, out);
        }
        self.queue(job);
    }

    /// Forgets a halt. Its leases are the caller's to end.
    pub(super) fn end_halt(&mut self, job: JobId) -> Option<Halt> {
        let halt = self.jobs.get_mut(&job)?.halt.take()?;
        self.timers.remove(&(halt.deadline, Timer::Halt(job)));
        self.halted.remove(&job);
        Some(halt)
    }

    /// Tells a worker that came back what it was told to halt and has not signed.
    pub(super) fn halt_again(&self, node: NodeId, out: &mut Output) {
        for job in &self.halted {
            let entry = &self.jobs[job];
            let halted = entry.leases.iter().filter(|(epoch, lease)| lease.node == node && entry.is_halted(**epoch));
            let place = entry.halt.as_ref().and_then(|halt| entry.geometry.place(halt.index));
            let again = |(epoch, place): (LeaseEpoch, Place)| Action::Halt { node, job: *job, epoch, place };
            out.actions.extend(halted.map(|(epoch, _)| *epoch).zip(place.into_iter().cycle()).map(again));
        }
    }

    /// After the verdict about runs that were halted: the bond of whoever did not lose is free again, and who lost is
    /// dismissed here, since there is no accepted run by which that would be done.
    pub(super) fn settle_partials(&mut self, job: JobId, terms: &Terms, verdict: &Verdict, out: &mut Output) {
        for side in Side::BOTH.into_iter().filter(|side| terms.claim(*side).receipt().is_none()) {
            if verdict.losers[side.index()] {
                self.dismiss(terms.key(side), job, verdict, out);
            } else {
                self.ended_leases.push((terms.key(side), job, terms.claim(side).epoch()));
            }
        }
    }
}
