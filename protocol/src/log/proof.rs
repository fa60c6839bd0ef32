//! The file by which the holder of a receipt shows that it is in the log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::cosign::Cosignature;
use super::entry::{Blind, Entry, leaf_hash};
use super::paths::check_inclusion;
use super::{LogError, LogHead, SignedHead};
use crate::ids::{Digest, JobId, LeaseEpoch, Place};
use crate::json;
use crate::limits::{MAX_COSIGNATURES, MAX_LOG_ENTRIES, MAX_LOG_PATH, MAX_LOG_PROOF_JSON_BYTES};
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

impl LeafProof {
    /// Checks that the entry is in the log of a head where it says. Whoever calls this has checked the head's signature
    /// and capped the path.
    ///
    /// # Errors
    /// [`LogError::NotIncluded`].
    pub fn check_in(&self, head: &LogHead) -> Result<(), LogError> {
        let (index, size, root) = (self.index, head.size, head.root);
        if check_inclusion(index, size, &leaf_hash(&self.blind, &self.entry), &self.path, &root) {
            Ok(())
        } else {
            Err(LogError::NotIncluded { index, size, root })
        }
    }
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
    /// Workers who followed the log to this head, each once; may be empty.
    pub cosignatures: Vec<Cosignature>,
    /// Its entries, and those that are about all jobs, in the order of the log.
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
    /// Whether the receipt's worker took its run back.
    pub withdrawn: bool,
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

    /// Checks the signatures of the head, and that every entry is about the job or about all and in the log where it
    /// says.
    ///
    /// Whether the log's key is one that the reader trusts is the reader's to decide. A proof shows what is in the log;
    /// it can't show that nothing else about the job is.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), LogError> {
        self.check_counts()?;
        self.head.check()?;
        self.check_cosignatures()?;
        let mut last = None;
        for leaf in &self.entries {
            let LeafProof { index, entry, .. } = *leaf;
            if let Some(found) = entry.job().filter(|found| *found != self.job) {
                return Err(LogError::AnotherJob { index, job: self.job, found });
            }
            if last.is_some_and(|last| last >= index) {
                return Err(LogError::Order { index });
            }
            last = Some(index);
            leaf.check_in(&self.head.head)?;
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<(), LogError> {
        let paths = self.entries.iter().map(|leaf| &leaf.path).chain(self.consistency.iter().map(|c| &c.path));
        let longest = paths.map(Vec::len).max().unwrap_or_default();
        let counts = [
            ("entries", self.entries.len(), MAX_LOG_ENTRIES),
            ("cosignatures", self.cosignatures.len(), MAX_COSIGNATURES),
            ("hashes in a path", longest, MAX_LOG_PATH),
        ];
        match counts.into_iter().find(|(_, found, cap)| found > cap) {
            Some((what, found, cap)) => Err(LogError::TooMany { what, found, cap }),
            None => Ok(()),
        }
    }

    fn check_cosignatures(&self) -> Result<(), LogError> {
        let mut workers = BTreeSet::new();
        for cosignature in &self.cosignatures {
            cosignature.check(&self.head)?;
            if !workers.insert(cosignature.worker) {
                return Err(LogError::CosignedTwice { worker: cosignature.worker });
            }
        }
        Ok(())
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
        let epoch = receipt.worker.receipt.epoch;
        let withdrawn = self.entries.iter().any(|leaf| leaf.entry == Entry::Withdrawn { job, epoch });
        Ok(Coverage { other_statements: statements.saturating_sub(receipt.statements.len()), refuted, withdrawn })
    }

    /// Where the result of a run is; between the job and it are its assignment, then its commitment.
    fn check_run(&self, job: JobId, submitted: u64, run: &WorkerReceipt) -> Result<u64, LogError> {
        let (epoch, worker, receipt) = (run.epoch, run.worker, run.digest());
        let (given, taken) = (Entry::Assigned { job, epoch, worker }, Entry::Result { job, epoch, receipt });
        self.check_epoch(epoch, &[given, taken])?;
        let assignment = format!("the assignment of epoch {epoch} to {worker}");
        let commitment = format!("the commitment of epoch {epoch} by {worker}");
        let result = format!("the result of epoch {epoch} by {worker}");
        let assigned = self.find(&assignment, |entry| *entry == given)?;
        let is_commitment = |entry: &Entry| matches!(entry, Entry::Committed { epoch: found, .. } if *found == epoch);
        let committed = self.find(&commitment, is_commitment)?;
        let ran = self.find(&result, |entry| *entry == taken)?;
        ordered(submitted, assigned, &assignment)?;
        ordered(assigned, committed, &commitment)?;
        ordered(committed, ran, &result)?;
        Ok(ran)
    }

    /// Nothing else is said about a lease: one was given once, to one worker, who committed once and had one result.
    fn check_epoch(&self, epoch: LeaseEpoch, allowed: &[Entry]) -> Result<(), LogError> {
        let mut commitments = 0;
        let mut is_other = |entry: &Entry| match entry {
            Entry::Assigned { epoch: found, .. } | Entry::Result { epoch: found, .. } => {
                *found == epoch && !allowed.contains(entry)
            }
            Entry::Committed { epoch: found, .. } => {
                commitments += usize::from(*found == epoch);
                commitments > 1
            }
            _ => false,
        };
        if self.entries.iter().any(|leaf| is_other(&leaf.entry)) {
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
                StatementKind::Audited { receipt, .. }
                | StatementKind::Refuted { receipt, .. }
                | StatementKind::Withdrawn { receipt } => receipt,
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
