//! What workers say about their assignments.

use super::{Action, Input, Machine, Output, Record, RejectReason};
use crate::commitment::RunCommitment;
use crate::generation::Generation;
use crate::ids::{JobId, LeaseEpoch, NodeId, Salt};
use crate::job::JobKind;
use crate::limits::{MEASURED_PROMPT_TOKENS, PAUSE_MIN_MS};
use crate::machine::entry::Lease;
use crate::messages::{FailureCode, JobResult};

/// Who speaks about which assignment.
pub(super) type Assignment = (NodeId, JobId, LeaseEpoch);

impl Machine {
    /// The live lease of an assignment. Where there is none the worker is told so: it was given up,
    /// or the worker made it up.
    pub(super) fn lease(&mut self, (node, job, epoch): Assignment, out: &mut Output) -> Option<&mut Lease> {
        self.touch(&node);
        let lease =
            self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch)).filter(|lease| lease.has(&node));
        if lease.is_none() {
            out.actions.push(Action::Cancel { node, job, epoch });
        }
        lease
    }

    pub(super) fn began(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        let now = self.now;
        if let Some(lease) = self.lease((node, job, epoch), out)
            && lease.begins(&node)
            && lease.began.is_none()
        {
            lease.began = Some(now);
            self.extend(job, epoch);
        }
    }

    /// A point of a generation is complete: its word goes to the client, and a long prompt says how fast the worker is.
    pub(super) fn point_ended(&mut self, (node, job, epoch): Assignment, word: u32, out: &mut Output) {
        let (now, entry) = (self.now, self.jobs.get_mut(&job).expect("its lease is live"));
        let Some(lease) = entry.leases.get(&epoch).filter(|_| !entry.is_halted(epoch)) else {
            return;
        };
        let index = lease.words.len() - 1;
        let is_measured = lease.crew.is_empty()
            && index == 0
            && !lease.is_hinted
            && entry.spec.job.tokens.len() >= MEASURED_PROMPT_TOKENS;
        if let Some(began) = lease.began.filter(|_| is_measured) {
            let work_units = entry.spec.work.first;
            self.workers.update(&node, |worker| worker.measure(work_units, now.since(began)));
        }
        let asked = entry.header.kind.generation().map_or(0, Generation::logprob_values);
        let logprobs = lease.logprobs[lease.logprobs.len() - asked..].to_vec();
        if entry.tell(index, word) {
            out.actions.push(Action::Token { job, index: index as u32, word, logprobs });
        }
    }

    /// Takes the next word into a run, or rejects its worker, which it says.
    pub(super) fn take_word(
        &mut self,
        assignment: Assignment,
        (word, logprobs): (u32, Vec<i32>),
        out: &mut Output,
    ) -> bool {
        let (_, job, epoch) = assignment;
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let is_due = entry.word_is_due(&entry.leases[&epoch], word, &logprobs);
        if is_due {
            let lease = entry.leases.get_mut(&epoch).expect("it is live");
            lease.words.push(word);
            lease.logprobs.extend(logprobs);
        } else {
            self.reject(assignment, RejectReason::WordOutOfOrder, out);
        }
        is_due
    }

    pub(super) fn committed(&mut self, assignment: Assignment, commitment: RunCommitment, out: &mut Output) {
        let (node, job, epoch) = assignment;
        let Some(lease) = self.lease(assignment, out) else {
            return;
        };
        let (before, began, is_revealing) = (lease.commitment, lease.began, lease.revealing);
        let entry = &self.jobs[&job];
        if entry.is_halted(epoch) {
            return;
        }
        let lease = &entry.leases[&epoch];
        let is_ready = lease.node == node && entry.has_all_roots(lease) && (lease.crew.is_empty() || lease.is_shown);
        if before.is_some_and(|before| before != commitment) || !is_ready {
            self.reject(assignment, RejectReason::CommitmentOutOfOrder, out);
            return;
        }
        if before.is_some() {
            // The worker did not hear that it may reveal.
            out.actions.extend(is_revealing.then_some(Action::Reveal { node, job, epoch }));
            return;
        }
        // A run that drew one token after the other says nothing of how fast its worker is.
        let is_alone = lease.crew.is_empty();
        let is_measured = is_alone && (lease.is_hinted || entry.header.kind == JobKind::Embedding);
        let nodes = lease.nodes();
        let points = self.jobs[&job].streamed(lease).0;
        let (work_units, now) = (entry.spec.work.units(points), self.now);
        self.record(Record::Committed { job, epoch, commitment }, out);
        self.suspend(job, epoch, commitment);
        nodes.iter().for_each(|node| {
            self.workers.update(node, |worker| {
                worker.leases.remove(&(job, epoch));
                worker.waiting.insert((job, epoch));
            })
        });
        self.workers.update(&node, |worker| {
            if let Some(began) = began.filter(|_| is_measured) {
                worker.measure(work_units, now.since(began));
            }
        });
        self.reveal(job, out);
    }

    /// Tells everybody who committed to a run of a job to show it, once it is time.
    pub(super) fn reveal(&mut self, job: JobId, out: &mut Output) {
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.is_time_to_reveal()) else {
            return;
        };
        let waiting = entry.leases.iter().filter(|(_, lease)| !lease.is_running() && !lease.revealing);
        for (epoch, node) in waiting.map(|(epoch, lease)| (*epoch, lease.node)).collect::<Vec<_>>() {
            self.resume_lease(job, epoch);
            out.actions.push(Action::Reveal { node, job, epoch });
        }
    }

    pub(super) fn completed(&mut self, assignment: Assignment, result: Box<JobResult>, salt: Salt, out: &mut Output) {
        let (node, job, epoch) = assignment;
        if self.has_run(&assignment) {
            // The worker did not hear that its result is kept.
            self.touch(&node);
            out.actions.push(Action::Accepted { node, job, epoch });
            return;
        }
        if self.lease(assignment, out).is_none() {
            return;
        }
        let entry = &self.jobs[&job];
        if let Err(reason) = entry.check_result(&node, epoch, &result, &salt) {
            self.reject(assignment, reason, out);
            return;
        }
        let saturations = result.receipt.receipt.saturations;
        let result = match self.jobs[&job].leases[&epoch].saturations() {
            None => result,
            Some(sum) if sum == saturations => match self.with_segments(job, epoch, result, salt, out) {
                Some(result) => result,
                None => return,
            },
            Some(_) => return self.reject(assignment, RejectReason::NotAsStreamed, out),
        };
        let last = result.receipt.receipt.roots.len();
        let lease = self.drop_lease(job, epoch).expect("it is live");
        let (operator, mut before) = (lease.operator, lease.roots);
        before.truncate(before.len() - last);
        let nodes: Vec<NodeId> = result.receipt.members().map(|(node, ..)| node).collect();
        self.record(Record::Ran { job, result, before, salt, operator }, out);
        for node in nodes {
            self.workers.update(&node, |worker| worker.conduct.failures = 0);
            self.redeem(node, job, out);
            out.actions.push(Action::Accepted { node, job, epoch });
        }
        self.advance(job, out);
    }

    pub(super) fn failed(&mut self, assignment: Assignment, code: FailureCode, reason: String, out: &mut Output) {
        let (node, job, epoch) = assignment;
        if code == FailureCode::Draining {
            self.dispatch(Input::Draining { node }, out);
        }
        // A halted worker still has to sign: to give the job back is no way out.
        let live = self.jobs.get(&job).filter(|entry| !entry.is_halted(epoch));
        let live = live.and_then(|entry| entry.leases.get(&epoch));
        let Some(is_alone) = live.filter(|lease| lease.has(&node)).map(|lease| lease.crew.is_empty()) else {
            return;
        };
        match code {
            FailureCode::Draining => {
                self.end_lease(job, epoch);
                self.queue(job);
            }
            FailureCode::Busy => {
                // No failure, but without a pause it would be asked again at once.
                self.end_lease(job, epoch);
                self.rest_until(&node, self.now.plus(PAUSE_MIN_MS));
                self.queue(job);
            }
            FailureCode::ModelUnavailable | FailureCode::ModelRefused => {
                let model = self.jobs[&job].header.model;
                let now = self.now;
                self.workers.update(&node, |worker| worker.lacks(model, now));
                if code == FailureCode::ModelRefused {
                    self.note_refused(job, reason);
                }
                self.fail_lease((node, job, epoch), false, out);
            }
            FailureCode::JobRefused if is_alone => {
                self.note_refusal(&node, job, reason);
                self.fail_lease((node, job, epoch), true, out);
            }
            FailureCode::Upstream => self.fell_out((node, job, epoch), true, out),
            FailureCode::Downstream => self.fell_out((node, job, epoch), false, out),
            _ => self.fail_lease((node, job, epoch), true, out),
        }
    }

    fn has_run(&self, (node, job, epoch): &Assignment) -> bool {
        self.jobs.get(job).is_some_and(|entry| {
            entry.runs.iter().any(|run| run.result.receipt.has_member(node) && run.epoch() == *epoch)
        })
    }

    /// Ends the session of a worker that broke the rules. Its job goes on without it.
    pub(super) fn reject(&mut self, (node, job, epoch): Assignment, reason: RejectReason, out: &mut Output) {
        self.jobs.get_mut(&job).expect("the job is open").bar(node);
        self.left(node);
        out.actions.push(Action::Rejected { node, job, epoch, reason });
    }
}
