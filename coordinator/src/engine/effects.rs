//! From the machine's outputs to what is written, and what is done once it is durable.

use std::sync::Arc;

use lockstep_protocol::ids::{DisputeId, JobId, LeaseEpoch, NodeId, Nonce, Root};
use lockstep_protocol::ledger::Posting;
use lockstep_protocol::machine::{Action, CommittedRoot, DrawSubject, JobFailure, Output, Record, SubmitError};
use lockstep_protocol::messages::{JobResult, RefusalCode};
use lockstep_protocol::receipt::{Receipt, same_result};

use super::peer::{Down, Peer, Share};
use super::{ChallengeOutcome, ChallengeReply, Engine, Live, MoveOutcome, MoveReply, Submission, SubmitRequest, Word};
use crate::events::Event;
use crate::store::{Access, Write};

/// Something to do once all writes before it are durable.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send to a session: the one that was there when the machine decided.
    Send(Arc<Peer>, Down),
    /// Ask a side of a dispute once more, if its session has room for that.
    Ask(Arc<Peer>, Down),
    /// End a session.
    Close(Arc<Peer>),
    /// End a session because another of its key joined.
    Replace(Arc<Peer>),
    /// Tell a client how its submission went.
    Reply(JobId, Submission, Box<SubmitRequest>),
    /// The job has ended; the roots are those of the run that is its answer.
    Done(JobId, Arc<Receipt>, Vec<Root>),
    /// The job has ended without a result.
    Failed(JobId, String),
    /// Tell those who wait for a job that nobody is there who could run it.
    Deserted(JobId),
    /// Draw whether the job is audited.
    Draw(JobId, DrawSubject, Nonce),
    /// Tell whoever brought a move how it went.
    MoveMade(MoveReply, MoveOutcome),
    /// Tell whoever challenged a run how that went.
    Challenged(ChallengeReply, ChallengeOutcome),
    /// A dispute is in the store from now on.
    Opened(DisputeId),
    /// The receipt of an ended job is in the store as it was changed.
    Amended(JobId),
    /// Show what the ledger has, once it may be shown.
    Posted(Vec<Posting>),
    /// Tell whoever watches a job its next word.
    Word(JobId, u32, Word),
    /// Show whoever watches the roots that a worker streamed.
    Committed((NodeId, JobId, LeaseEpoch), Vec<CommittedRoot>),
    /// Tell whoever watches.
    Emit(Event),
}

/// What one input comes to.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub writes: Vec<Write>,
    pub effects: Vec<Effect>,
}

impl Engine {
    /// Takes an output apart. Receipts are made here, before they are durable, so that they are written in one
    /// transaction with the records that they follow from.
    pub(super) fn plan(&mut self, output: Output, mut request: Option<Box<SubmitRequest>>, step: &mut Step) {
        if !output.postings.is_empty() {
            // The machine has made them already.
            let first = self.machine.ledger().postings() - output.postings.len() as u64;
            step.effects.push(Effect::Posted(output.postings.clone()));
            step.writes.push(Write::Postings { first, postings: output.postings, at: self.clock.now() });
        }
        for record in output.records {
            self.note(&record, step);
            step.writes.push(Write::Record(record));
        }
        for action in output.actions {
            self.plan_action(action, &mut request, step);
        }
    }

    /// Follows the machine's records in what the engine itself knows of a job.
    fn note(&mut self, record: &Record, step: &mut Step) {
        let event = match record {
            Record::Submitted(spec) => {
                let (job, model, tokens) = (record.job(), spec.job.model, spec.job.tokens.len());
                self.jobs.insert(job, Live::new(spec.clone()));
                Event::JobSubmitted { job, model, tokens }
            }
            Record::Assigned { job, epoch, node } | Record::Staged { job, epoch, node } => {
                Event::Assigned { job: *job, epoch: *epoch, node: *node }
            }
            Record::Ran { job, result, .. } => self.note_run(*job, result),
            Record::Drawn { job, auditors, .. } => Event::AuditDrawn { job: *job, auditors: *auditors },
            Record::Quarantined { node, job, place, kind } => {
                Event::Quarantined { node: *node, job: *job, place: *place, kind: *kind }
            }
            Record::SetAside { node, job, .. } => Event::Retracted { node: *node, job: *job },
            Record::Abandoned { job } => {
                tracing::warn!(%job, "nobody could be found for all audits of a job: it ends with fewer");
                return;
            }
            Record::Failed { job, reason: JobFailure::NoAuditor } => {
                tracing::warn!(%job, "nobody could be found to audit a job whose client waits for that: it fails");
                return;
            }
            Record::Committed { .. }
            | Record::Disputed { .. }
            | Record::Diverged { .. }
            | Record::Challenged { .. }
            | Record::ChallengeEnded { .. }
            | Record::HandedOverWrong { .. }
            | Record::Redeemed { .. }
            | Record::Refuted { .. }
            | Record::Judged { .. }
            | Record::Retracted { .. }
            | Record::Tightened { .. }
            | Record::Finished { .. }
            | Record::Failed { .. } => return,
        };
        step.effects.push(Effect::Emit(event));
    }

    fn note_run(&mut self, job: JobId, result: &JobResult) -> Event {
        let receipt = &result.receipt.receipt;
        let (epoch, node) = (receipt.epoch, receipt.worker);
        let first = self.jobs.get_mut(&job).map(|live| live.first_run.get_or_insert_with(|| receipt.clone()));
        match first {
            Some(first) if first.epoch != epoch => {
                Event::Audited { job, epoch, node, matched: same_result(first, receipt) }
            }
            _ => Event::Accepted { job, epoch, node },
        }
    }

    fn plan_action(&mut self, action: Action, request: &mut Option<Box<SubmitRequest>>, step: &mut Step) {
        match action {
            Action::RefuseWorker { node, code } => self.refuse(&node, code, step),
            Action::Quarantine { node, .. } => self.refuse(&node, RefusalCode::Quarantined, step),
            Action::SetAside { node, .. } => self.refuse(&node, RefusalCode::Faulty, step),
            Action::Disconnect { node } => self.close(&node, step),
            Action::Unposted { posting, error } => tracing::error!(?posting, %error, "the ledger refused a posting"),
            Action::Submitted { job } => {
                if let Some(request) = request {
                    request.owner = true;
                }
                reply(job, Submission::Kept, request, step);
            }
            Action::AlreadyKnown { job, .. } => reply(job, Submission::Known, request, step),
            Action::RefuseJob { job, reason } => reply(job, refusal(reason), request, step),
            Action::Assign { node, epoch, job, hint } => self.send(&node, Down::Assign(epoch, job, hint), step),
            Action::AssignStage { node, epoch, job, hint, crew } => {
                self.send(&node, Down::AssignStage(Box::new(Share { epoch, job, hint, crew })), step);
            }
            Action::Countersign { node, job, epoch, roots, saturations, logprobs } => {
                self.send(&node, Down::Countersign(job, epoch, roots, saturations, logprobs), step);
            }
            Action::Cancel { node, job, epoch } => self.send(&node, Down::Cancel(job, epoch), step),
            Action::Accepted { node, job, epoch } => self.send(&node, Down::Accepted(job, epoch), step),
            Action::Rejected { node, job, epoch, reason } => {
                let reason = reason.to_string();
                step.effects.push(Effect::Emit(Event::Rejected { job, epoch, node, reason }));
                // No honest worker sends what is rejected.
                self.close(&node, step);
            }
            Action::Committed { node, job, epoch, roots } => {
                step.effects.push(Effect::Committed((node, job, epoch), roots));
            }
            Action::Reveal { node, job, epoch } => self.send(&node, Down::Reveal(job, epoch), step),
            Action::NeedLockstepDraw { job, nonce } => {
                step.effects.push(Effect::Draw(job, DrawSubject::Lockstep(job), nonce));
            }
            Action::Halt { node, job, epoch, place } => self.send(&node, Down::Halt(job, epoch, place), step),
            Action::Token { job, index, word, logprobs } => {
                step.effects.push(Effect::Word(job, index, Word { word, logprobs }))
            }
            Action::Diverged { job, place, nodes } => {
                step.effects.push(Effect::Emit(Event::Diverged { job, place, nodes }));
            }
            // Whoever asked is told where the challenge was taken in.
            Action::RefuseChallenge { .. } | Action::ChallengeWaits { .. } => {}
            Action::Overturned { job, refutation } => self.overturn(job, &refutation, step),
            Action::NeedDraw { job, head, nonce } => {
                step.effects.push(Effect::Draw(job, DrawSubject::FirstRun(head), nonce));
            }
            Action::Mismatch { job, difference, first, auditor } => {
                step.effects.push(Effect::Emit(Event::Mismatch {
                    job,
                    place: difference.place,
                    first,
                    first_root: difference.a,
                    auditor,
                    auditor_root: difference.b,
                }));
            }
            Action::OpenDispute { job, terms } => self.open_dispute(job, *terms, step),
            Action::JobDone { job, outcome } => {
                if let Some(live) = self.jobs.get_mut(&job) {
                    let now = self.clock.now();
                    let receipt = outcome.receipt(&live.spec.job, None, &self.keys, now);
                    log_statements(job, &receipt, step);
                    step.writes.push(Write::Done { job, receipt: receipt.to_json(), at: now });
                    step.effects.push(Effect::Done(job, Arc::new(receipt), outcome.roots));
                }
            }
            Action::Deserted { job } => step.effects.push(Effect::Deserted(job)),
            Action::JobFailed { job, reason, said } => {
                let reason = said.map_or_else(|| reason.to_string(), |said| format!("{reason}: {said}"));
                step.writes.push(Write::Failed { job, reason: reason.clone(), at: self.clock.now() });
                step.effects.push(Effect::Failed(job, reason));
            }
        }
    }

    pub(super) fn send(&self, node: &NodeId, message: Down, step: &mut Step) {
        if let Some(peer) = self.peers.get(node) {
            step.effects.push(Effect::Send(Arc::clone(peer), message));
        }
    }

    /// Turns a worker away; its session is over. One that plays in a dispute stays for that, and gets no job.
    pub(super) fn refuse(&mut self, node: &NodeId, code: RefusalCode, step: &mut Step) {
        if self.disputes.has(node) {
            self.disputes.turned_away.insert(*node, code);
            return;
        }
        let reason = super::refusal_reason(code).to_owned();
        step.effects.push(Effect::Emit(Event::WorkerRefused { node: *node, reason }));
        if let Some(peer) = self.peers.remove(node) {
            step.effects.push(Effect::Send(peer, Down::Refused(code)));
        }
    }

    /// Ends the connection of a worker whose session the machine has ended. It stays the key's connection until it says
    /// that it is gone, or another takes over.
    fn close(&mut self, node: &NodeId, step: &mut Step) {
        if let Some(peer) = self.peers.get(node) {
            step.effects.push(Effect::Close(Arc::clone(peer)));
        }
    }
}

/// Logs the statements of a receipt.
fn log_statements(job: JobId, receipt: &Receipt, step: &mut Step) {
    for signed in &receipt.statements {
        step.writes.push(Write::Stated { job, statement: signed.statement.digest() });
    }
}

fn refusal(reason: SubmitError) -> Submission {
    match reason {
        SubmitError::Busy => Submission::Busy,
        other => Submission::Refused(other.to_string()),
    }
}

fn reply(job: JobId, outcome: Submission, request: &mut Option<Box<SubmitRequest>>, step: &mut Step) {
    if let Some(request) = request.take() {
        if let (Some(digest), Submission::Kept | Submission::Known) = (request.token, &outcome) {
            let access = if request.owner { Access::Owner } else { Access::WhenEnded };
            step.writes.push(Write::Access { job, digest, access });
        }
        step.effects.push(Effect::Reply(job, outcome, request));
    }
}
