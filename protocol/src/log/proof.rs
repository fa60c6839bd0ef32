//! The file by which the holder of a receipt shows that it is in the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::entry::{Blind, Entry, leaf_hash};
use super::paths::check_inclusion;
use super::{LogError, SignedHead};
use crate::ids::{Digest, JobId, LeaseEpoch, Place};
use crate::json;
use crate::limits::{MAX_LOG_ENTRIES, MAX_LOG_PATH, MAX_LOG_PROOF_JSON_BYTES};
use crate::receipt::{Receipt, StatementKind, WorkerReceipt};

/// The value of [`LogProof::format`].
pub const LOG_PROOF_FORMAT: &str = "lockstep log proof 1";

/// An entry with what opens its leaf, and the path from there to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafProof {
    /// Its place in the log, from 0.
    pub index: u64,
    /// Its blind.
    pub blind: Blind,
    /// The entry.
    pub entry: Entry,
    /// From the leaf's sibling up; see [`super::inclusion_path`].
    pub path: Vec<Digest>,
}

/// The path from an earlier size of the log to the size of the proof's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consistency {
    /// The earlier size.
    pub from: u64,
    /// See [`super::consistency_path`].
    pub path: Vec<Digest>,
}

/// The entries of one job, and that they are in the log of one head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogProof {
    /// [`LOG_PROOF_FORMAT`].
    pub format: String,
    /// The job.
    pub job: JobId,
    /// The head that all paths lead to.
    pub head: SignedHead,
    /// Its entries, in the order of the log.
    pub entries: Vec<LeafProof>,
    /// That the log continues an earlier one, where that was asked for.
    pub consistency: Option<Consistency>,
}

/// What the log shows about a receipt beyond that it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Statements that the receipt does not have: there is a later receipt of the job.
    pub other_statements: usize,
    /// Where the run of the receipt's worker was found wrong.
    pub refuted: Option<Place>,
}

impl LogProof {
    /// The proof as JSON on one line.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a proof from JSON, strictly. It is not checked yet: see [`LogProof::check`].
    ///
    /// # Errors
    /// [`LogError::TooLong`], [`LogError::Json`], [`LogError::Format`].
    pub fn from_json(text: &str) -> Result<Self, LogError> {
        let (found, cap) = (text.len(), MAX_LOG_PROOF_JSON_BYTES);
        if found > cap {
            return Err(LogError::TooLong { found, cap });
        }
        let proof: Self =
            json::read(text).map_err(|error| LogError::Json { what: "log proof", reason: error.to_string() })?;
        if proof.format != LOG_PROOF_FORMAT {
            return Err(LogError::Format { found: proof.format });
        }
        Ok(proof)
    }

    /// Checks the head's signature, and that every entry is about the job and in the log where it says.
    ///
    /// Whether the log's key is one that the reader trusts is the reader's to decide. A proof shows what is in the log;
    /// it can't show that nothing else about the job is.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), LogError> {
        self.check_counts()?;
        self.head.check()?;
        let head = &self.head.head;
        let mut last = None;
        for LeafProof { index, blind, entry, path } in &self.entries {
            let index = *index;
            if entry.job() != self.job {
                return Err(LogError::AnotherJob { index, job: self.job, found: entry.job() });
            }
            if last.is_some_and(|last| last >= index) {
                return Err(LogError::Order { index });
            }
            last = Some(index);
            if !check_inclusion(index, head.size, &leaf_hash(blind, entry), path, &head.root) {
                return Err(LogError::NotIncluded { index, size: head.size, root: head.root });
            }
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<(), LogError> {
        let paths = self.entries.iter().map(|leaf| &leaf.path).chain(self.consistency.iter().map(|c| &c.path));
        let longest = paths.map(Vec::len).max().unwrap_or_default();
        let counts = [("entries", self.entries.len(), MAX_LOG_ENTRIES), ("hashes in a path", longest, MAX_LOG_PATH)];
        match counts.into_iter().find(|(_, found, cap)| found > cap) {
            Some((what, found, cap)) => Err(LogError::TooMany { what, found, cap }),
            None => Ok(()),
        }
    }

    /// Checks that the log continues the one of an earlier head.
    ///
    /// # Errors
    /// As [`SignedHead::followed_by`].
    pub fn check_follows(&self, old: &SignedHead) -> Result<(), LogError> {
        let fits = |consistency: &&Consistency| consistency.from == old.head.size;
        let path = self.consistency.as_ref().filter(fits).map(|consistency| consistency.path.as_slice());
        old.followed_by(&self.head, path)
    }

    /// Checks that the log shows everything that a receipt shows, in an order in which it can have happened: the job,
    /// each run with its assignment before it, each statement after the run that it is about. The receipt and this
    /// proof must have been checked.
    ///
    /// # Errors
    /// What is missing, out of order or contradicted.
    pub fn check_receipt(&self, receipt: &Receipt) -> Result<Coverage, LogError> {
        let (job, log) = (receipt.job.id(), self.head.head.log);
        if receipt.coordinator != log {
            return Err(LogError::AnotherCoordinator { receipt: receipt.coordinator, log });
        }
        let submitted = self.find("the job", |entry| *entry == Entry::Submitted { job })?;
        let mut results = BTreeMap::new();
        for run in std::iter::once(&receipt.worker).chain(&receipt.audits) {
            let run = &run.receipt;
            results.insert(run.digest(), self.check_run(job, submitted, run)?);
        }
        self.check_statements(job, receipt, &results)?;
        let statements = self.entries.iter().filter(|leaf| matches!(leaf.entry, Entry::Statement { .. })).count();
        let refuted = self.entries.iter().find_map(|leaf| match leaf.entry {
            Entry::Refuted { worker, place, .. } if worker == receipt.worker.receipt.worker => Some(place),
            _ => None,
        });
        Ok(Coverage { other_statements: statements.saturating_sub(receipt.statements.len()), refuted })
    }

    /// Where the result of a run is; its assignment is between the job and it.
    fn check_run(&self, job: JobId, submitted: u64, run: &WorkerReceipt) -> Result<u64, LogError> {
        let (epoch, worker, receipt) = (run.epoch, run.worker, run.digest());
        self.check_epoch(epoch, &[Entry::Assigned { job, epoch, worker }, Entry::Result { job, epoch, receipt }])?;
        let assignment = format!("the assignment of epoch {epoch} to {worker}");
        let result = format!("the result of epoch {epoch} by {worker}");
        let assigned = self.find(&assignment, |entry| *entry == Entry::Assigned { job, epoch, worker })?;
        let ran = self.find(&result, |entry| *entry == Entry::Result { job, epoch, receipt })?;
        ordered(submitted, assigned, &assignment)?;
        ordered(assigned, ran, &result)?;
        Ok(ran)
    }

    /// Nothing else is said about a lease: one was given once, to one worker, and had one result.
    fn check_epoch(&self, epoch: LeaseEpoch, allowed: &[Entry]) -> Result<(), LogError> {
        let about = |entry: &Entry| match entry {
            Entry::Assigned { epoch: found, .. } | Entry::Result { epoch: found, .. } => *found == epoch,
            _ => false,
        };
        let mut entries = self.entries.iter().map(|leaf| &leaf.entry).filter(|entry| about(entry));
        if entries.any(|entry| !allowed.contains(entry)) {
            return Err(LogError::Contradiction { epoch });
        }
        Ok(())
    }

    fn check_statements(&self, job: JobId, receipt: &Receipt, results: &BTreeMap<Digest, u64>) -> Result<(), LogError> {
        let mut before = 0;
        for (number, signed) in receipt.statements.iter().enumerate() {
            let statement = &signed.statement;
            let what = format!("statement {number} of the receipt");
            let digest = statement.digest();
            let index = self.find(&what, |entry| *entry == Entry::Statement { job, statement: digest })?;
            let about = match &statement.kind {
                StatementKind::Accepted {} => &statement.subject,
                StatementKind::Audited { receipt, .. } | StatementKind::Refuted { receipt, .. } => receipt,
            };
            let ran = results.get(about).copied().unwrap_or_default();
            ordered(ran.max(before), index, &what)?;
            before = index;
        }
        Ok(())
    }

    /// The first entry that fits.
    fn find(&self, what: &str, fits: impl Fn(&Entry) -> bool) -> Result<u64, LogError> {
        let found = self.entries.iter().find(|leaf| fits(&leaf.entry));
        found.map(|leaf| leaf.index).ok_or_else(|| LogError::Missing { what: what.to_owned() })
    }
}

fn ordered(before: u64, after: u64, what: &str) -> Result<(), LogError> {
    if before < after { Ok(()) } else { Err(LogError::Causality { what: what.to_owned() }) }
}
