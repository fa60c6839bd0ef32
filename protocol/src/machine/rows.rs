//! Rows and words between the workers of a pipeline: who is wrong about them, and what is lost by that.
//!
//! What a worker signed of what it hands over ([`crate::hand_over`]) is shown twice at each point: by itself, before its last root, and
//! by whoever received it, before the first root that was computed from it: of rows that is the next worker, and of a word, which is
//! handed over by the last worker, the first one at the next point, or where there is none when it ends. Where these are not the same
//! statement, and both are about one piece, their signer has said two things; and who received rows that do not have the signed root
//! shows them. Both are proofs, and cost the sender its bond for good. A proof that proves nothing costs its author the session.
//!
//! The two statements that a worker shows of one point have to be of one pass. Rows are compared before the word that follows from
//! them, so those of a word are always of one pass too.
//!
//! What is not signed, or does not come, nobody takes and nobody can show: whoever waits for it gives the lease back, and the
//! two are not put side by side again at this job. One that could not get along with two others has failed at the job. No bond
//! is lost by that, so neither side gains by saying it of the other.

use std::collections::BTreeSet;

use super::{Action, Machine, Output, Record, RejectReason};
use crate::hand_over::{HandOverProof, SignedHandOver};
use crate::ids::{JobId, LeaseEpoch, NodeId, Place, VerdictKind};
use crate::job::JobKind;
use crate::machine::entry::Entry;

impl Machine {
    /// What a worker of a pipeline signed of what it handed over, as it says itself, or its successor passes on.
    pub(super) fn handed_over(
        &mut self,
        assignment: (NodeId, JobId, LeaseEpoch),
        signed: SignedHandOver,
        out: &mut Output,
    ) {
        let (node, job, epoch) = assignment;
        if self.lease(assignment, out).is_none() {
            return;
        }
        let coordinator = self.config.coordinator;
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let (geometry, has_words) = (entry.geometry, entry.header.kind != JobKind::Embedding);
        let lease = entry.leases.get_mut(&epoch).expect("it is live");
        let said = &signed.hand_over;
        let [at, sender] = [node, said.worker].map(|node| lease.crew.iter().position(|member| member.node == node));
        let is_own = sender == at;
        let is_next = at.is_some_and(|at| {
            let (member, before) = (&lease.crew[at], lease.before(at));
            let (signer, is_due, index) = if is_own {
                (at, member.hands_over_next(at), member.handed_over)
            } else {
                (before, member.shows_next(at), member.passed_on)
            };
            let is_word = signer + 1 == lease.crew.len();
            let rows = geometry.point(index).and_then(|point| point.checked_add(1));
            let is_of_lease = said.lease() == (coordinator, job, epoch);
            let is_of_piece = said.layer == lease.crew[signer].last && rows == Some(said.rows);
            let is_of_pass = is_own == (at == 0) || said.pass == member.pass;
            is_due && (has_words || !is_word) && sender == Some(signer) && is_of_lease && is_of_piece && is_of_pass
        });
        let Some(at) = at.filter(|_| is_next) else {
            self.reject(assignment, RejectReason::FalseHandOver, out);
            return;
        };
        let member = &mut lease.crew[at];
        member.pass = said.pass;
        if is_own {
            member.handed.push_back(signed);
            member.handed_over += 1;
            return;
        }
        member.received.push_back(signed);
        member.passed_on += 1;
        if at == 0 {
            // No root may follow it.
            self.merge(job, epoch, out);
        }
    }

    /// Compares the next statement that the member at a seat shows with what the one before it shows of the same, which are both there.
    /// Says whether the run goes on.
    pub(super) fn compare(&mut self, (job, epoch): (JobId, LeaseEpoch), at: usize, out: &mut Output) -> bool {
        let lease = self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch)).expect("it is live");
        let (node, before) = (lease.crew[at].node, lease.before(at));
        let received = lease.crew[at].received.pop_front().expect("it came before the root");
        let own = lease.crew[before].handed.pop_front().expect("it came before the root below");
        let agree = own.hand_over == received.hand_over;
        if !agree {
            self.handed_over_otherwise((node, job, epoch), own, received, out);
        }
        agree
    }

    /// Two neighbours show different statements of one of them about the same rows, or the same word.
    fn handed_over_otherwise(
        &mut self,
        (node, job, epoch): (NodeId, JobId, LeaseEpoch),
        own: SignedHandOver,
        received: SignedHandOver,
        out: &mut Output,
    ) {
        let sender = own.hand_over.worker;
        let is_of_one = own.hand_over.is_about_that_of(&received.hand_over);
        match [&own, &received].map(SignedHandOver::is_signed) {
            [true, true] if is_of_one => self.convict(job, epoch, HandOverProof::Contradiction(own, received), out),
            // It signed both, in different passes: nobody else knows in which one the point was.
            [true, true] => self.keep_apart((job, epoch), [sender, node], out),
            [_, false] => self.reject((node, job, epoch), RejectReason::FalseHandOver, out),
            [false, true] => self.reject((sender, job, epoch), RejectReason::FalseHandOver, out),
        }
    }

    /// A worker shows that one of a pipeline signed something wrong. The proof needs nothing but its bytes, so it counts whoever
    /// brings it, and as long as the job is open: who has handed something wrong over does not get away by ending the lease.
    pub(super) fn proof(&mut self, assignment: (NodeId, JobId, LeaseEpoch), proof: HandOverProof, out: &mut Output) {
        let (node, job, epoch) = assignment;
        self.touch(&node);
        if !self.jobs.contains_key(&job) {
            out.actions.push(Action::Cancel { node, job, epoch });
            return;
        }
        let said = proof.hand_over();
        if self.quarantined.contains(&said.worker) {
            return;
        }
        let is_of_lease = said.lease() == (self.config.coordinator, job, epoch) && epoch <= self.last_epoch;
        let checked =
            if is_of_lease { proof.check().map_err(RejectReason::from) } else { Err(RejectReason::FalseHandOver) };
        match checked {
            Ok(()) => self.convict(job, epoch, proof, out),
            Err(reason) => self.reject(assignment, reason, out),
        }
    }

    /// A worker of a pipeline is proven to have signed something wrong: it loses its bond of the lease, which ends for all if it is
    /// live, and gets nothing any more.
    fn convict(&mut self, job: JobId, epoch: LeaseEpoch, proof: HandOverProof, out: &mut Output) {
        let said = *proof.hand_over();
        let place = Place { point: said.rows.saturating_sub(1), layer: said.layer };
        self.record(Record::HandedOverWrong { job, proof: Box::new(proof) }, out);
        self.burn_bond(said.worker, (job, epoch), out);
        if self.end_lease(job, epoch).is_some() {
            self.queue(job);
        }
        self.quarantine(said.worker, job, place, VerdictKind::Proven, out);
    }

    /// A worker of a pipeline can't go on with a neighbour: the lease ends, and they are kept apart.
    pub(super) fn fell_out(
        &mut self,
        (node, job, epoch): (NodeId, JobId, LeaseEpoch),
        upstream: bool,
        out: &mut Output,
    ) {
        let Some(lease) = self.jobs.get(&job).and_then(|entry| entry.leases.get(&epoch)) else { return };
        let [before, after] = lease.neighbours(&node);
        let Some(other) = (if upstream { before } else { after }) else {
            return self.fail_lease((node, job, epoch), true, out);
        };
        self.keep_apart((job, epoch), [node, other], out);
    }

    /// Ends a lease whose two neighbours can't go on, for a reason that nobody else can look into.
    fn keep_apart(&mut self, (job, epoch): (JobId, LeaseEpoch), [node, other]: [NodeId; 2], out: &mut Output) {
        let now = self.now;
        let entry = self.jobs.get_mut(&job).expect("it was there");
        entry.apart.insert((node, other));
        let failed: Vec<_> = [node, other].into_iter().filter(|node| entry.fell_out_with(node) > 1).collect();
        let gives_up =
            failed.iter().fold(entry.is_past_patience(now), |ends, node| entry.fail(*node, true, now) || ends);
        self.end_lease(job, epoch);
        if gives_up {
            let record = self.jobs[&job].give_up();
            self.give_up(record, out);
        } else {
            self.queue(job);
        }
    }
}

impl Entry {
    /// With how many others a worker could not get along.
    fn fell_out_with(&self, node: &NodeId) -> usize {
        let others = self.apart.iter().filter_map(|(a, b)| match (a == node, b == node) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            _ => None,
        });
        others.collect::<BTreeSet<_>>().len()
    }
}
