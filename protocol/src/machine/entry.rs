//! One job in the machine: what follows from its records, and its live leases.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::commitment::{Difference, Geometry};
use crate::ids::{JobId, LeaseEpoch, Millis, NodeId, Root};
use crate::job::JobHeader;
use crate::limits::{JOB_PATIENCE_MS, MAX_AUDITORS, MAX_BARRED_WORKERS, MAX_FAILURES};
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::record::{JobFailure, Record};
use crate::machine::table::{Event, Stage, next};
use crate::machine::types::{JobSpec, Outcome, RejectReason, SubmitError};
use crate::machine::workers::pause_ms;
use crate::messages::JobResult;
use crate::receipt::{Refutation, same_result};

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
    /// When it ends unless there is progress before.
    pub deadline: Millis,
    /// When it ends at the latest.
    pub last_deadline: Millis,
    /// What each step may take: the beginning counts as one, and every root.
    pub step_ms: u64,
    /// When the worker said that it began.
    pub began: Option<Millis>,
    /// What was streamed so far.
    pub roots: Vec<Root>,
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
    pub runs: Vec<JobResult>,
    pub draw: Option<AuditDraw>,
    pub auditors: u8,
    pub truth: Option<Vec<Root>>,
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
        Ok(Self {
            id: header.id(),
            spec,
            header,
            geometry,
            order,
            stage: Stage::Open,
            epoch: LeaseEpoch(0),
            runs: Vec::new(),
            draw: None,
            auditors: 0,
            truth: None,
            leases: BTreeMap::new(),
            failures: BTreeMap::new(),
            failing_since: None,
            retry_at: Millis(0),
            parked: false,
            barred: BTreeSet::new(),
            patience: None,
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
            Record::Ran { result, .. } => self.runs.push((**result).clone()),
            Record::Drawn { draw, auditors, .. } => {
                self.draw = Some(*draw);
                self.auditors = *auditors;
            }
            Record::Settled { truth, .. } => self.truth.clone_from(truth),
            _ => {}
        }
        if stage != self.stage {
            self.failures.clear();
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
        if let (Some(draw), Stage::Auditing) = (&self.draw, self.stage) {
            self.auditors = self.auditors.max(draw.auditors(&policy));
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
            Record::Ran { result, .. } => {
                let epoch = result.receipt.receipt.epoch;
                let seen = self.runs.iter().any(|run| run.receipt.receipt.epoch == epoch);
                if epoch > self.epoch || seen {
                    return epoch_error(epoch);
                }
                self.run_event(result)
            }
            Record::Drawn { auditors: 0, .. } => Event::DrawnNone,
            Record::Drawn { .. } => Event::DrawnSome,
            Record::Settled { truth: None, .. } => Event::Unsettled,
            Record::Settled { truth: Some(truth), .. } => {
                if self.runs.iter().any(|run| self.difference_from(truth, run).is_none()) {
                    Event::SettledSomeRight
                } else {
                    Event::SettledNoneRight
                }
            }
            Record::Abandoned { .. } => Event::Abandoned,
            Record::Finished { .. } => Event::Finished,
            Record::Failed { .. } => Event::GaveUp,
            Record::Quarantined { .. } | Record::Tightened { .. } => return Ok(None),
        }))
    }

    fn run_event(&self, result: &JobResult) -> Event {
        if let Some(truth) = &self.truth {
            let right = self.difference_from(truth, result).is_none();
            return if right { Event::RightRun } else { Event::WrongRun };
        }
        let Some(first) = self.runs.first() else {
            return Event::FirstRun;
        };
        if !same_result(&first.receipt.receipt, &result.receipt.receipt) {
            Event::Disagreed
        } else if self.runs.len() >= usize::from(self.auditors) {
            // The first run and all audits but this one are there.
            Event::AgreedLast
        } else {
            Event::Agreed
        }
    }

    fn difference_from(&self, truth: &[Root], run: &JobResult) -> Option<Difference> {
        self.geometry.first_difference(&run.receipt.receipt.roots, truth)
    }

    /// How many leases the job wants on top of those that it has.
    pub fn wanted_leases(&self) -> usize {
        let wanted = match self.stage {
            Stage::Open => 1,
            Stage::Auditing => (usize::from(self.auditors) + 1).saturating_sub(self.runs.len()),
            _ => 0,
        };
        wanted.saturating_sub(self.leases.len())
    }

    /// Whether a worker must not get the job: it has run it, is running it, or broke the rules at it.
    pub fn excludes(&self, node: &NodeId) -> bool {
        self.barred.contains(node)
            || self.runs.iter().any(|run| run.receipt.receipt.worker == *node)
            || self.leases.values().any(|lease| lease.node == *node)
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

    /// Keeps a worker that broke the rules away from the job.
    pub fn bar(&mut self, node: NodeId) {
        if self.barred.len() < MAX_BARRED_WORKERS {
            self.barred.insert(node);
        }
    }

    /// The runs that differ from the settled truth, each with its first difference.
    pub fn refutations(&self) -> Vec<Refutation> {
        let Some(truth) = &self.truth else {
            return Vec::new();
        };
        let refute = |run: &JobResult| {
            let difference = self.difference_from(truth, run)?;
            let receipt = &run.receipt.receipt;
            Some(Refutation {
                worker: receipt.worker,
                receipt: receipt.digest(),
                place: difference.place,
                claimed: difference.a?,
                correct: difference.b?,
            })
        };
        self.runs.iter().filter_map(refute).collect()
    }

    /// The first difference between the first run and the one that came last.
    pub fn last_difference(&self) -> Option<(Difference, NodeId, NodeId)> {
        let first = &self.runs.first()?.receipt.receipt;
        let last = &self.runs.last()?.receipt.receipt;
        let difference = self.geometry.first_difference(&first.roots, &last.roots)?;
        Some((difference, first.worker, last.worker))
    }

    /// Whether an earlier run, or the settled truth, has another root at `index` of the stream.
    pub fn differs_at(&self, index: usize, root: &Root) -> bool {
        let known = self.truth.as_deref().or_else(|| self.runs.first().map(|run| run.receipt.receipt.roots.as_slice()));
        known.and_then(|roots| roots.get(index)).is_some_and(|known| known != root)
    }

    /// The outcome of a job that closes: the answer is the first run that is not refuted.
    pub fn outcome(&self) -> Option<Outcome> {
        let refutations = self.refutations();
        let is_right = |run: &JobResult| {
            let digest = run.receipt.receipt.digest();
            refutations.iter().all(|refutation| refutation.receipt != digest)
        };
        let chosen = self.runs.iter().position(is_right)?;
        let mut others = self.runs.clone();
        let result = others.remove(chosen);
        others.truncate(MAX_AUDITORS);
        let kept: BTreeSet<_> = others.iter().map(|run| run.receipt.receipt.digest()).collect();
        let refutations = refutations.into_iter().filter(|one| kept.contains(&one.receipt)).collect();
        Some(Outcome { result, others, refutations, audits_wanted: self.auditors })
    }

    /// Checks a result against job, program, lease and stream.
    pub fn check_result(&self, node: &NodeId, epoch: LeaseEpoch, result: &JobResult) -> Result<(), RejectReason> {
        let receipt = &result.receipt.receipt;
        let fields = [
            ("worker", receipt.worker == *node),
            ("lease epoch", receipt.epoch == epoch),
            ("layer count", receipt.layers == self.spec.layers),
            ("output length", receipt.output_count == self.spec.output_count),
            ("work units", receipt.work_units == self.spec.work_units),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, fits)| !fits) {
            return Err(RejectReason::NotThisAssignment(field));
        }
        if self.leases.get(&epoch).is_none_or(|lease| lease.roots != receipt.roots) {
            return Err(RejectReason::NotAsStreamed);
        }
        Ok(result.receipt.check(&self.header, Some(&result.output))?)
    }

    /// The record that gives the job up at its stage, once nobody can be found to go on with it.
    pub fn give_up(&self) -> Record {
        let job = self.id;
        match (self.stage, self.spec.policy.hold) {
            (Stage::Auditing, false) => Record::Abandoned { job },
            (Stage::Auditing, true) => Record::Failed { job, reason: JobFailure::NoAuditor },
            _ => Record::Failed { job, reason: JobFailure::Attempts },
        }
    }
}
