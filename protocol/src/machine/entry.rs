//! One job in the machine: what follows from its records, and its live leases.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::commitment::{Geometry, RunCommitment};
use crate::dispute::Terms;
use crate::generation::{ends_run, word_fits, word_root};
use crate::ids::{JobId, LeaseEpoch, Millis, NodeId, Place, Root, Salt};
use crate::job::{JobHeader, JobKind};
use crate::limits::{JOB_PATIENCE_MS, MAX_BARRED_WORKERS, MAX_FAILURES};
use crate::logprobs::Logprobs;
use crate::machine::attendance::Awaited;
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::crew::Member;
use crate::machine::lockstep::Halt;
use crate::machine::reasons::{RejectReason, SubmitError};
use crate::machine::record::{JobFailure, Record};
use crate::machine::standing::{Fate, Run};
use crate::machine::table::{Event, Stage, next};
use crate::machine::types::JobSpec;
use crate::machine::workers::pause_ms;
use crate::messages::{JobResult, Stage as CrewStage};

/// A record that can't follow the ones before it. The store was changed by something else, or records
/// were lost.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// A record about a job that was never submitted.
    #[error("a record about the unknown job {0}")]
    UnknownJob(JobId),
    /// A job was submitted twice, or is not allowed at all.
    #[error("job {job} can't be submitted: {reason}")]
    Submission {
        /// Which job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// A record that the job's stage does not allow.
    #[error("job {job} is {stage:?}, where {event:?} can't happen")]
    Step {
        /// Which job.
        job: JobId,
        /// Its stage.
        stage: Stage,
        /// What the record says.
        event: Event,
    },
    /// An epoch that is not above all before it, or a run of a lease that never was.
    #[error("job {job} has a record with the wrong lease epoch {epoch}")]
    Epoch {
        /// Which job.
        job: JobId,
        /// The epoch.
        epoch: LeaseEpoch,
    },
    /// A dispute that begins while another one goes on, or a verdict about another one.
    #[error("job {0} has a record about a dispute that is not its own")]
    Dispute(JobId),
    /// A worker does better that did nothing wrong.
    #[error("job {0} has a record about the fault of a worker that has none")]
    Fault(JobId),
    /// A run whose roots are not as many as its receipt has points.
    #[error("job {0} has a run with the wrong number of roots")]
    Roots(JobId),
    /// A draw that was made before the job started where it has to be made after the first run, or the other way
    /// round.
    #[error("job {0} has the wrong kind of draw")]
    Draw(JobId),
    /// The highest epoch is stored in the same transaction as its record.
    #[error("the highest lease epoch is stored as {stored}, but {found} was given")]
    LastEpoch {
        /// As stored.
        stored: LeaseEpoch,
        /// As the records have it.
        found: LeaseEpoch,
    },
}

/// A live assignment. Not durable: after a crash the job is given out again under a higher epoch.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub node: NodeId,
    /// Who runs its worker, where the coordinator knows.
    pub operator: Option<String>,
    /// When it ends unless there is progress before.
    pub deadline: Millis,
    /// When it ends at the latest.
    pub last_deadline: Millis,
    /// What may pass from the beginning until the first root.
    pub first_ms: u64,
    /// What may pass after each root.
    pub step_ms: u64,
    /// When the worker said that it began.
    pub began: Option<Millis>,
    /// What was streamed so far.
    pub roots: Vec<Root>,
    /// The words of a generation so far.
    pub words: Vec<u32>,
    /// The log-probabilities at these points, where the job asks for them.
    pub logprobs: Vec<i32>,
    /// Whether its worker was told the words that are claimed.
    pub is_hinted: bool,
    /// What its worker committed to, once all roots are there.
    pub commitment: Option<RunCommitment>,
    /// Whether its worker was told to reveal its result. From the commitment until then no deadline runs.
    pub revealing: bool,
    /// Of a pipeline all its workers, in the order of their layers: the last one is `node`.
    pub crew: Vec<Member>,
    /// Whether all of these were shown the whole run.
    pub is_shown: bool,
    /// The result, where a signature of one of them is still missing.
    pub result: Option<(Box<JobResult>, Salt)>,
}

impl Lease {
    /// Whether it takes one of its worker's places: until the run is over.
    pub fn is_running(&self) -> bool {
        self.commitment.is_none()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    // Durable: follows from the records.
    pub id: JobId,
    pub spec: JobSpec,
    pub header: JobHeader,
    pub geometry: Geometry,
    /// Position in the order of submission.
    pub order: u64,
    pub stage: Stage,
    pub epoch: LeaseEpoch,
    pub runs: Vec<Run>,
    pub draw: Option<AuditDraw>,
    pub auditors: u8,
    /// The dispute that is being played.
    pub dispute: Option<Terms>,
    // Live.
    pub leases: BTreeMap<LeaseEpoch, Lease>,
    /// Who failed at the job's stage, and how often.
    pub failures: BTreeMap<NodeId, u32>,
    /// When the first failure was at the job's stage.
    pub failing_since: Option<Millis>,
    /// Who failed is not asked again before.
    pub retry_at: Millis,
    /// Whether it waits for `retry_at` outside of the queues.
    pub parked: bool,
    /// Who broke the rules at this job. Not asked again.
    pub barred: BTreeSet<NodeId>,
    /// When the search for auditors ends, while it is on.
    pub patience: Option<Millis>,
    /// When it is looked next whether anybody is connected who could audit the job, and how often in a row there was
    /// nobody.
    pub absence: Option<(Millis, u32)>,
    /// A client that waits for it, while it is looked whether anybody is there to run it.
    pub awaited: Option<Awaited>,
    /// What the last worker said that refused the job at its stage.
    pub refusal: Option<String>,
    /// Whether the audits that nobody makes yet are given up.
    pub short: bool,
    /// Two leases whose roots differ, of a job that is run in lockstep.
    pub halt: Option<Halt>,
    /// The words that the client was told.
    pub told: Vec<u32>,
    /// Of a pipeline: who had which layers in the last lease.
    pub last_crew: Vec<CrewStage>,
    /// Neighbours in a pipeline that could not go on with each other.
    pub apart: BTreeSet<(NodeId, NodeId)>,
}

impl Entry {
    pub fn new(spec: JobSpec, order: u64) -> Result<Self, SubmitError> {
        spec.job.check()?;
        let header = spec.job.header();
        let geometry = header.geometry(spec.layers)?;
        if spec.output_count == 0 || spec.output_count as usize > crate::limits::MAX_OUTPUT_VALUES {
            return Err(SubmitError::OutputCount(spec.output_count));
        }
        if !spec.policy.is_valid() {
            return Err(SubmitError::Policy);
        }
        if let Some(planted) = spec.planted.as_ref().filter(|planted| !geometry.is_whole(planted.len())) {
            return Err(SubmitError::Planted { expected: geometry.max_roots(), found: planted.len() });
        }
        let stage = if spec.policy.lockstep { Stage::Choosing } else { Stage::Open };
        Ok(Self {
            id: header.id(),
            spec,
            header,
            geometry,
            order,
            stage,
            epoch: LeaseEpoch(0),
            runs: Vec::new(),
            draw: None,
            auditors: 0,
            dispute: None,
            leases: BTreeMap::new(),
            failures: BTreeMap::new(),
            failing_since: None,
            retry_at: Millis(0),
            parked: false,
            barred: BTreeSet::new(),
            patience: None,
            absence: None,
            awaited: None,
            refusal: None,
            short: false,
            halt: None,
            told: Vec::new(),
            last_crew: Vec::new(),
            apart: BTreeSet::new(),
        })
    }

    /// Takes one record into the durable state; the only way in which that changes.
    pub fn apply(&mut self, record: &Record) -> Result<(), ReplayError> {
        if let Record::Tightened { policy, .. } = record {
            self.tighten(*policy);
            return Ok(());
        }
        let Some(event) = self.event(record)? else {
            return Ok(());
        };
        let stage = next(self.stage, event).ok_or(ReplayError::Step { job: self.id, stage: self.stage, event })?;
        match record {
            Record::Assigned { epoch, .. } => self.epoch = *epoch,
            Record::Ran { result, before, operator, .. } => {
                let roots = [before, &result.receipt.receipt.roots[..]].concat();
                self.runs.push(Run {
                    result: (**result).clone(),
                    roots,
                    operator: operator.clone(),
                    fate: Fate::Stands,
                });
            }
            Record::Drawn { draw, auditors, .. } => {
                self.draw = Some(*draw);
                self.auditors = *auditors;
            }
            Record::Disputed { terms, .. } => self.dispute = Some((**terms).clone()),
            Record::Judged { dispute, kind, place, losers, .. } => {
                let fate = Fate::Refuted { place: *place, dispute: *dispute, kind: *kind };
                losers.iter().for_each(|epoch| self.doom(*epoch, fate));
                self.dispute = None;
            }
            Record::Retracted { epoch, .. } => self.doom(*epoch, Fate::Withdrawn),
            Record::Refuted { epoch, place, dispute, kind, .. } => {
                self.doom(*epoch, Fate::Refuted { place: *place, dispute: *dispute, kind: *kind });
            }
            _ => {}
        }
        if stage != self.stage {
            self.failures.clear();
            self.refusal = None;
            self.failing_since = None;
            self.retry_at = Millis(0);
            self.parked = false;
        }
        self.stage = stage;
        Ok(())
    }

    /// Takes a stricter policy. A draw that is made already is read again under it.
    fn tighten(&mut self, policy: AuditPolicy) {
        self.spec.policy = policy;
        if let Some(draw) = &self.draw {
            self.auditors = self.auditors.max(draw.auditors(&policy));
        }
    }

    fn doom(&mut self, epoch: LeaseEpoch, fate: Fate) {
        for run in self.runs.iter_mut().filter(|run| run.epoch() == epoch && run.stands()) {
            run.fate = fate;
        }
    }

    /// What a record means for this job at its stage; `None` where it does not concern its stage.
    fn event(&self, record: &Record) -> Result<Option<Event>, ReplayError> {
        let epoch_error = |epoch| Err(ReplayError::Epoch { job: self.id, epoch });
        Ok(Some(match record {
            Record::Submitted(_) => {
                let reason = "it is there already".to_owned();
                return Err(ReplayError::Submission { job: self.id, reason });
            }
            Record::Assigned { epoch, .. } if *epoch <= self.epoch => return epoch_error(*epoch),
            Record::Assigned { .. } => Event::Assigned,
            Record::Ran { result, before, .. } => {
                let receipt = &result.receipt.receipt;
                if before.len() != receipt.points.len() * receipt.roots.len() {
                    return Err(ReplayError::Roots(self.id));
                }
                let epoch = receipt.epoch;
                let seen = self.runs.iter().any(|run| run.epoch() == epoch);
                if epoch > self.epoch || seen {
                    return epoch_error(epoch);
                }
                match self.stage {
                    Stage::Open => self.first_run_event(),
                    _ => self.audit_event(&result.receipt.receipt),
                }
            }
            Record::Drawn { draw, .. } if draw.lockstep != (self.stage == Stage::Choosing) => {
                return Err(ReplayError::Draw(self.id));
            }
            Record::Drawn { auditors: 0, .. } => Event::DrawnNone,
            Record::Drawn { .. } => Event::DrawnSome,
            Record::Disputed { .. } if self.dispute.is_some() => return Err(ReplayError::Dispute(self.id)),
            Record::Disputed { .. } => Event::Disputed,
            Record::Judged { dispute, .. } if self.dispute.as_ref().map(Terms::id) != Some(*dispute) => {
                return Err(ReplayError::Dispute(self.id));
            }
            Record::Judged { losers, .. } => self.judged_event(losers),
            Record::Retracted { epoch, .. } | Record::Refuted { epoch, .. } => {
                if !self.standing().any(|run| run.epoch() == *epoch) {
                    return epoch_error(*epoch);
                }
                self.withdrawn_event(*epoch)
            }
            Record::Abandoned { .. } => self.abandoned_event(),
            Record::Finished { .. } => Event::Finished,
            Record::Failed { .. } => Event::GaveUp,
            Record::Diverged { epochs, .. } if epochs.iter().any(|epoch| *epoch > self.epoch) => {
                return epoch_error(epochs[1]);
            }
            Record::Committed { epoch, .. } | Record::Staged { epoch, .. } if *epoch > self.epoch => {
                return epoch_error(*epoch);
            }
            Record::Committed { .. }
            | Record::Staged { .. }
            | Record::Diverged { .. }
            | Record::Quarantined { .. }
            | Record::HandedOverWrong { .. }
            | Record::SetAside { .. }
            | Record::Redeemed { .. }
            | Record::Challenged { .. }
            | Record::ChallengeEnded { .. }
            | Record::Tightened { .. } => return Ok(None),
        }))
    }

    /// How many leases the job wants on top of those that it has.
    pub fn wanted_leases(&self) -> usize {
        let wanted = match self.stage {
            Stage::Open => 1,
            Stage::Auditing if !self.short && self.halt.is_none() => {
                self.wanted_runs().saturating_sub(self.standing().count())
            }
            _ => 0,
        };
        wanted.saturating_sub(self.leases.len())
    }

    /// Whether those who committed to a run may show it: the worker of a first run at once, auditors when everybody
    /// who is still wanted has committed. Nobody may whose run is halted.
    pub fn is_time_to_reveal(&self) -> bool {
        match self.stage {
            _ if self.halt.is_some() => false,
            Stage::Open => true,
            Stage::Auditing => self.wanted_leases() == 0 && self.leases.values().all(|lease| !lease.is_running()),
            _ => false,
        }
    }

    /// Whether a worker must not get the job: it has run it, is running it, or broke the rules at it.
    pub fn excludes(&self, node: &NodeId) -> bool {
        self.barred.contains(node)
            || self.runs.iter().any(|run| run.result.receipt.has_member(node))
            || self.leases.values().any(|lease| lease.has(node))
    }

    /// Counts a worker's failure; says whether the job is to be given up. Where the worker could only not
    /// get the model (`counts` is false), it is no failure of the job; the patience runs all the same.
    pub fn fail(&mut self, node: NodeId, counts: bool, now: Millis) -> bool {
        let since = *self.failing_since.get_or_insert(now);
        if counts {
            let times = self.failures.entry(node).or_default();
            *times = times.saturating_add(1);
            self.retry_at = now.plus(pause_ms(*times));
        }
        self.failures.len() >= MAX_FAILURES || now.since(since) >= JOB_PATIENCE_MS
    }

    /// Whether it was tried for long enough. The patience starts now where it had not.
    pub fn is_past_patience(&mut self, now: Millis) -> bool {
        now.since(*self.failing_since.get_or_insert(now)) >= JOB_PATIENCE_MS
    }

    /// Keeps a worker that broke the rules away from the job.
    pub fn bar(&mut self, node: NodeId) {
        if self.barred.len() < MAX_BARRED_WORKERS {
            self.barred.insert(node);
        }
    }

    /// Whether the first run that stands has another root at `index` of the stream.
    pub fn differs_at(&self, index: usize, root: &Root) -> bool {
        let first = self.standing().next();
        first.and_then(|run| run.roots.get(index)).is_some_and(|known| known != root)
    }

    /// Checks a result against job, program, lease, stream and commitment.
    pub fn check_result(
        &self,
        node: &NodeId,
        epoch: LeaseEpoch,
        result: &JobResult,
        salt: &Salt,
    ) -> Result<(), RejectReason> {
        let receipt = &result.receipt.receipt;
        let fields = [
            ("worker", receipt.worker == *node),
            ("lease epoch", receipt.epoch == epoch),
            ("layer count", receipt.layers == self.spec.layers),
            ("output length", self.is_output_count(receipt.output_count)),
            ("work units", receipt.work_units == self.spec.work.units(receipt.points.len() + 1)),
        ];
        let segments = ("segments", result.receipt.segments.is_empty());
        if let Some((field, _)) = fields.into_iter().chain([segments]).find(|(_, fits)| !fits) {
            return Err(RejectReason::NotThisAssignment(field));
        }
        let Some(lease) = self.leases.get(&epoch).filter(|lease| self.is_streamed(lease, result)) else {
            return Err(RejectReason::NotAsStreamed);
        };
        if !lease.revealing {
            return Err(RejectReason::NotToldToReveal);
        }
        if lease.commitment != Some(RunCommitment::of(self.id, epoch, *node, salt, &receipt.head)) {
            return Err(RejectReason::NotAsCommitted);
        }
        let (header, output) = (&self.header, Some(&*result.output));
        Ok(match lease.crew.last() {
            Some(lead) => result.receipt.check_share(header, output, lead.first),
            None => result.receipt.check(header, output),
        }?)
    }

    /// The output of an embedding has the model's length. That of a generation is checked with its receipt.
    fn is_output_count(&self, count: u32) -> bool {
        match self.header.kind {
            JobKind::Embedding => count == self.spec.output_count,
            JobKind::Generation(_) => count <= self.spec.output_count,
        }
    }

    /// Whether a result has the roots, the words and the log-probabilities that were streamed under a lease.
    fn is_streamed(&self, lease: &Lease, result: &JobResult) -> bool {
        let (receipt, trail) = (&result.receipt.receipt, self.geometry.trail(&lease.roots));
        let has_roots = trail.is_some_and(|trail| trail.points == receipt.points && trail.roots == receipt.roots);
        let has_output = || lease.words == result.words() && lease.logprobs == result.logprobs();
        has_roots && (self.header.kind == JobKind::Embedding || has_output())
    }

    /// Whether the run of a lease is complete: the roots of all its points, and of a generation the word that ends it.
    pub fn has_all_roots(&self, lease: &Lease) -> bool {
        self.geometry.is_whole(lease.roots.len()) && self.has_ended(lease)
    }

    /// Whether the last word that was streamed under a lease ends the run. An embedding has no words.
    pub fn has_ended(&self, lease: &Lease) -> bool {
        self.header.kind == JobKind::Embedding || lease.words.last().is_some_and(|word| ends_run(*word))
    }

    /// Checks that a root under a lease is for the place that is next, and of the output layer of a generation that it is
    /// that of the word before it.
    pub fn check_root(&self, lease: &Lease, place: Place, root: &Root) -> Result<(), RejectReason> {
        let (points, layers) = self.streamed(lease);
        let goes_on = self.header.kind == JobKind::Embedding || layers > 0 || !self.has_ended(lease);
        if !goes_on || self.geometry.place(lease.roots.len()) != Some(place) {
            return Err(RejectReason::OutOfOrder { found: place });
        }
        let is_word = self.header.kind != JobKind::Embedding && place.layer == self.geometry.streamed_layers();
        let word = lease.words.get(points).map(|word| word_root(*word));
        if is_word && word.as_ref() != Some(root) { Err(RejectReason::NotTheWord { found: place }) } else { Ok(()) }
    }

    /// Whether a word may come now, with as many log-probabilities as the job asks for: at a point of which only the output
    /// layer's root is missing, in a run that goes on.
    pub fn word_is_due(&self, lease: &Lease, word: u32, logprobs: &[i32]) -> bool {
        let Some(asked) = self.header.kind.generation() else {
            return false;
        };
        let (points, layers) = self.streamed(lease);
        let is_due = layers == usize::from(self.geometry.layers()) && lease.words.len() == points;
        let is_row = logprobs.len() == asked.logprob_values() && Logprobs::of(logprobs).is_possible();
        is_due && is_row && word_fits(word, points, asked.max_tokens) && !self.has_ended(lease)
    }

    /// How many points a lease has streamed, and how many roots of the next one.
    pub fn streamed(&self, lease: &Lease) -> (usize, usize) {
        let per_point = usize::from(self.geometry.streamed_layers());
        (lease.roots.len() / per_point, lease.roots.len() % per_point)
    }

    /// What a worker of a generation is told: an auditor the words of the first run that stands, where it runs after that;
    /// who takes over from one that was lost, the words that the client was told.
    pub fn hint(&self) -> Vec<u32> {
        if self.stage == Stage::Open {
            return self.told.clone();
        }
        let is_after = self.stage == Stage::Auditing && !self.draw.is_some_and(|draw| draw.lockstep);
        let is_generation = is_after && self.header.kind != JobKind::Embedding;
        self.standing().next().filter(|_| is_generation).map(Run::words).unwrap_or_default()
    }

    /// Whether words are told to the client as they come from a lease: from first runs, and from those that run beside
    /// them.
    fn tells(&self) -> bool {
        self.stage == Stage::Open || self.draw.is_some_and(|draw| draw.lockstep)
    }

    /// Notes a word that was streamed; says whether the client has to be told it.
    pub fn tell(&mut self, index: usize, word: u32) -> bool {
        if !self.tells() || index > self.told.len() || self.told.get(index) == Some(&word) {
            return false;
        }
        self.told.truncate(index);
        self.told.push(word);
        true
    }

    /// The record that gives the job up at its stage, once nobody can be found to go on with it.
    pub fn give_up(&self) -> Record {
        let job = self.id;
        let holds = self.spec.policy.hold && !self.runs.is_empty();
        match (self.stage, holds) {
            (Stage::Auditing, false) => Record::Abandoned { job },
            (Stage::Auditing, true) => Record::Failed { job, reason: JobFailure::NoAuditor },
            _ if self.refusal.is_some() => Record::Failed { job, reason: JobFailure::Refused },
            _ => Record::Failed { job, reason: JobFailure::Attempts },
        }
    }
}
