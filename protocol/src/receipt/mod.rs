//! Receipts: everything by which anyone can check an answer later.
//!
//! A [`Receipt`] is a job, the worker's signed part, the output, the signed parts of those who ran
//! the job again, and what the coordinator states about it. [`Receipt::check`] derives again whatever
//! can be derived and compares; what remains, whether the roots are *right*, takes running the model.
//!
//! Its JSON form is strict: [`Receipt::from_json`] accepts a text only if writing the receipt again
//! gives the same JSON value, so unknown or doubled fields, other spellings of a number or of a digest,
//! and arrays for objects are all refused.

mod segment;
mod statement;
mod worker;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::segment::{Segment, SignedSegment};
pub use self::statement::{NO_STATEMENT, SignedStatement, Statement, StatementKind};
pub use self::worker::{FinishReason, Run, SignedReceipt, WorkerReceipt};
use crate::canonical::to_bytes;
use crate::domain::Domain;
use crate::generation::words_of;
use crate::identity::{IdentityError, Keypair};
use crate::ids::{Digest, DisputeId, Millis, NodeId, Place, VerdictKind};
use crate::job::{Job, JobError, JobHeader};
use crate::json::{self, JsonError};
use crate::limits::{MAX_AUDITORS, MAX_RECEIPT_JSON_BYTES, MAX_STATEMENTS};
use crate::logprobs::{Logprobs, rows};

/// The value of [`Receipt::format`].
pub const RECEIPT_FORMAT: &str = "lockstep receipt 1";

/// Why a receipt is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReceiptError {
    /// More bytes than a receipt may have.
    #[error("the receipt has {found} bytes; at most {MAX_RECEIPT_JSON_BYTES} are allowed")]
    TooLong {
        /// How many it has.
        found: usize,
    },
    /// Not a receipt in JSON.
    #[error("not a receipt: {0}")]
    Json(String),
    /// The JSON reads as a receipt, but a receipt is not written so.
    #[error("the receipt is not written in its one canonical form")]
    NotCanonicalJson,
    /// Another format.
    #[error("the receipt has format {found:?}, not {RECEIPT_FORMAT:?}")]
    Format {
        /// What it says.
        found: String,
    },
    /// The job itself is not allowed.
    #[error("{0}")]
    Job(JobError),
    /// The worker's part is about something else than the job.
    #[error("the worker's {field} is not that of the job")]
    NotThisJob {
        /// Which field.
        field: &'static str,
    },
    /// The number of roots does not follow from job and layers.
    #[error("there are {found} roots; job and layers ask for {expected}, or fewer whole points of a generation")]
    RootCount {
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// An epoch of zero, which no assignment has.
    #[error("the lease epoch is 0")]
    EpochZero,
    /// The chain over the roots ends elsewhere.
    #[error("the chain head is not that of the job, epoch and roots")]
    ChainHead,
    /// No output, or one that is too long: it is refused also where the output is not at hand.
    #[error("an output of {found} values is not allowed")]
    OutputRange {
        /// How many values the worker signed.
        found: u32,
    },
    /// The output has another length.
    #[error("the output has {found} values, not {expected}")]
    OutputCount {
        /// How many go with what the worker signed.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The output's root is another one, or is not the output layer's.
    #[error("the output root is not that of the output layer and of the output")]
    OutputRoot,
    /// A generation that went on after its end, or has no end, or whose last word is not what was committed.
    #[error("the words are not those of a whole run that ends as the receipt says")]
    Words,
    /// Log-probabilities that the job does not ask for, or that are missing, impossible or not those that were signed.
    #[error("the log-probabilities are not those that the worker signed and the job asks for")]
    Logprobs,
    /// The run ended otherwise than such a job does.
    #[error("the run did not end as runs of this job end")]
    Finish,
    /// A worker's signature does not fit.
    #[error("the signature of worker {worker} is wrong: {error}")]
    WorkerSignature {
        /// Whose.
        worker: NodeId,
        /// Why.
        error: IdentityError,
    },
    /// A segment is about another receipt or other layers than are next, or is not signed, or its worker is there twice.
    #[error("segment {index} is not the next one of this receipt, or is not signed by its worker")]
    Segment {
        /// Which segment, from 0.
        index: usize,
    },
    /// Too many audits, statements or segments.
    #[error("there are {found} {what}; at most {cap} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        cap: usize,
    },
    /// A worker appears twice, or a lease does.
    #[error("two runs share a worker or a lease epoch")]
    RunsNotDistinct,
    /// A statement's signature does not fit.
    #[error("the signature of statement {index} is wrong: {error}")]
    StatementSignature {
        /// Which statement, from 0.
        index: usize,
        /// Why.
        error: IdentityError,
    },
    /// A statement by another coordinator.
    #[error("statement {index} is not by the receipt's coordinator")]
    StatementCoordinator {
        /// Which statement, from 0.
        index: usize,
    },
    /// A statement about another receipt.
    #[error("statement {index} is about another receipt")]
    StatementSubject {
        /// Which statement, from 0.
        index: usize,
    },
    /// A statement out of the chain, or back in time.
    #[error("statement {index} does not follow the one before it")]
    StatementOrder {
        /// Which statement, from 0.
        index: usize,
    },
    /// A statement that the runs contradict.
    #[error("statement {index} says what the runs do not show: {what}")]
    StatementFalse {
        /// Which statement, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The first statement is missing, or runs are there that no statement mentions.
    #[error("the statements do not cover the runs: {what}")]
    StatementMissing {
        /// What is missing.
        what: &'static str,
    },
}

/// What a checked receipt says about its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many other workers arrived at the same roots and output.
    pub matched: usize,
    /// How many arrived at others.
    pub mismatched: usize,
    /// Where the answer itself was found wrong.
    pub refuted: Option<Place>,
    /// Whether its worker took the answer back.
    pub withdrawn: bool,
}

/// An answer with all that vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`RECEIPT_FORMAT`].
    pub format: String,
    /// The job with its tokens.
    pub job: Job,
    /// The signed part of the worker whose output this is.
    pub worker: SignedReceipt,
    /// The output: of an embedding the pooled vector in Q1.30; of a generation its words, and then, where the job asks for
    /// them, the log-probabilities of each point.
    pub output: Vec<i32>,
    /// The signed parts of others who ran the job, in the order of their statements.
    pub audits: Vec<SignedReceipt>,
    /// Whose statements follow.
    pub coordinator: NodeId,
    /// The coordinator's statements, each naming the one before.
    pub statements: Vec<SignedStatement>,
}

impl Receipt {
    /// A receipt of an accepted result, with the coordinator's first statement.
    pub fn accepted(job: Job, worker: SignedReceipt, output: Vec<i32>, keys: &Keypair, time: Millis) -> Self {
        let mut receipt = Self {
            format: RECEIPT_FORMAT.to_owned(),
            job,
            worker,
            output,
            audits: Vec::new(),
            coordinator: keys.id(),
            statements: Vec::new(),
        };
        receipt.state(StatementKind::Accepted {}, keys, time);
        receipt
    }

    /// Adds another worker's run and the coordinator's statement about it.
    pub fn add_audit(&mut self, audit: SignedReceipt, keys: &Keypair, time: Millis) {
        let kind = StatementKind::Audited {
            auditor: audit.receipt.worker,
            receipt: audit.receipt.digest(),
            matched: same_result(&self.worker.receipt, &audit.receipt),
        };
        self.audits.push(audit);
        self.state(kind, keys, time);
    }

    /// Adds the coordinator's statement that a run lost a dispute.
    pub fn add_refutation(&mut self, refutation: &Refutation, keys: &Keypair, time: Millis) {
        let Refutation { receipt, place, dispute, kind, .. } = *refutation;
        self.state(StatementKind::Refuted { receipt, place, dispute, kind }, keys, time);
    }

    /// Adds the coordinator's statement that a worker took a run back, by the digest of the run's receipt.
    pub fn add_withdrawal(&mut self, receipt: Digest, keys: &Keypair, time: Millis) {
        self.state(StatementKind::Withdrawn { receipt }, keys, time);
    }

    /// Of a generation its words.
    pub fn words(&self) -> Vec<u32> {
        words_of(split_output(&self.output, &self.worker.receipt).0)
    }

    /// Of a generation the log-probabilities of each point, where the job asks for them.
    pub fn logprobs(&self) -> impl Iterator<Item = Logprobs<'_>> {
        let asked = self.job.kind.generation();
        let (_, values) = split_output(&self.output, &self.worker.receipt);
        asked.into_iter().flat_map(move |asked| rows(values, asked))
    }

    fn state(&mut self, kind: StatementKind, keys: &Keypair, time: Millis) {
        let last = self.statements.last().map(|signed| &signed.statement);
        let statement = Statement {
            coordinator: keys.id(),
            subject: self.worker.receipt.digest(),
            previous: last.map_or(NO_STATEMENT, Statement::digest),
            // A clock that was set back does not make a statement precede its predecessor.
            time: last.map_or(time, |last| last.time.max(time)),
            kind,
        };
        self.statements.push(statement.sign(keys));
    }

    /// The receipt as JSON on one line.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a receipt from JSON, strictly. It is not checked yet: see [`Receipt::check`].
    ///
    /// # Errors
    /// [`ReceiptError::TooLong`], [`ReceiptError::Json`], [`ReceiptError::NotCanonicalJson`],
    /// [`ReceiptError::Format`].
    pub fn from_json(text: &str) -> Result<Self, ReceiptError> {
        if text.len() > MAX_RECEIPT_JSON_BYTES {
            return Err(ReceiptError::TooLong { found: text.len() });
        }
        let receipt: Self = json::read(text).map_err(|error| match error {
            JsonError::Read(error) => ReceiptError::Json(error.to_string()),
            JsonError::NotCanonical => ReceiptError::NotCanonicalJson,
        })?;
        if receipt.format != RECEIPT_FORMAT {
            return Err(ReceiptError::Format { found: receipt.format });
        }
        Ok(receipt)
    }

    /// Derives again all that can be derived without running the model, and compares.
    ///
    /// Whether the coordinator's key is one that the reader trusts is the reader's to decide, and so
    /// is what to do with an answer that nobody audited.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Standing, ReceiptError> {
        if self.format != RECEIPT_FORMAT {
            return Err(ReceiptError::Format { found: self.format.clone() });
        }
        self.check_counts()?;
        self.job.check().map_err(ReceiptError::Job)?;
        let header = self.job.header();
        self.worker.check(&header, Some(&self.output))?;
        self.check_audits(&header)?;
        self.check_statement_chain()?;
        self.check_statement_contents()
    }

    fn check_counts(&self) -> Result<(), ReceiptError> {
        let counts =
            [("audits", self.audits.len(), MAX_AUDITORS), ("statements", self.statements.len(), MAX_STATEMENTS)];
        match counts.into_iter().find(|(_, found, cap)| found > cap) {
            Some((what, found, cap)) => Err(ReceiptError::TooMany { what, found, cap }),
            None => Ok(()),
        }
    }

    fn check_audits(&self, header: &JobHeader) -> Result<(), ReceiptError> {
        let mut runs = vec![&self.worker];
        for audit in &self.audits {
            audit.check(header, None)?;
            let is_known = |run: &&SignedReceipt| {
                run.receipt.epoch == audit.receipt.epoch || audit.members().any(|(node, ..)| run.has_member(&node))
            };
            if runs.iter().any(is_known) {
                return Err(ReceiptError::RunsNotDistinct);
            }
            runs.push(audit);
        }
        Ok(())
    }

    fn check_statement_chain(&self) -> Result<(), ReceiptError> {
        let subject = self.worker.receipt.digest();
        let mut previous = (NO_STATEMENT, Millis(0));
        for (index, signed) in self.statements.iter().enumerate() {
            let statement = &signed.statement;
            if statement.coordinator != self.coordinator {
                return Err(ReceiptError::StatementCoordinator { index });
            }
            if statement.subject != subject {
                return Err(ReceiptError::StatementSubject { index });
            }
            if statement.previous != previous.0 || statement.time < previous.1 {
                return Err(ReceiptError::StatementOrder { index });
            }
            self.coordinator
                .verify(Domain::Statement, &to_bytes(statement), &signed.signature)
                .map_err(|error| ReceiptError::StatementSignature { index, error })?;
            previous = (statement.digest(), statement.time);
        }
        Ok(())
    }

    /// Compares what the statements say with the runs. The i-th `Audited` is about the i-th audit.
    fn check_statement_contents(&self) -> Result<Standing, ReceiptError> {
        let mut standing = Standing { matched: 0, mismatched: 0, refuted: None, withdrawn: false };
        let mut audits = self.audits.iter();
        let mut fallen: Vec<Digest> = Vec::new();
        let subject = self.worker.receipt.digest();
        for (index, signed) in self.statements.iter().enumerate() {
            let false_ = |what| ReceiptError::StatementFalse { index, what };
            let wrong = |what| Err(false_(what));
            match &signed.statement.kind {
                StatementKind::Accepted {} => {
                    if index != 0 {
                        return wrong("only the first statement accepts");
                    }
                }
                _ if index == 0 => return wrong("the first statement must accept"),
                StatementKind::Audited { auditor, receipt, matched } => {
                    let Some(audit) = audits.next().map(|audit| &audit.receipt) else {
                        return wrong("there is no such audit");
                    };
                    if audit.worker != *auditor || audit.digest() != *receipt {
                        return wrong("the audit is another one");
                    }
                    if same_result(&self.worker.receipt, audit) != *matched {
                        return wrong("whether the audit matched");
                    }
                    *(if *matched { &mut standing.matched } else { &mut standing.mismatched }) += 1;
                }
                StatementKind::Refuted { receipt, place, .. } => {
                    let run = self.falls(receipt, &mut fallen).map_err(false_)?;
                    if !self.has_place(run, *place) {
                        return wrong("the job has no such place");
                    }
                    if *receipt == subject {
                        standing.refuted = Some(*place);
                    }
                }
                StatementKind::Withdrawn { receipt } => {
                    self.falls(receipt, &mut fallen).map_err(false_)?;
                    standing.withdrawn |= *receipt == subject;
                }
            }
        }
        if self.statements.is_empty() {
            return Err(ReceiptError::StatementMissing { what: "nobody accepted the result" });
        }
        if audits.next().is_some() {
            return Err(ReceiptError::StatementMissing { what: "an audit is not mentioned" });
        }
        Ok(standing)
    }

    /// The run that a statement says is refuted or withdrawn, which happens to a run once.
    fn falls(&self, digest: &Digest, fallen: &mut Vec<Digest>) -> Result<&WorkerReceipt, &'static str> {
        let mut runs = std::iter::once(&self.worker).chain(&self.audits).map(|signed| &signed.receipt);
        let run = runs.find(|receipt| receipt.digest() == *digest).ok_or("there is no such run")?;
        if fallen.contains(digest) {
            return Err("the run is refuted or withdrawn twice");
        }
        fallen.push(*digest);
        Ok(run)
    }

    fn has_place(&self, run: &WorkerReceipt, place: Place) -> bool {
        let Ok(geometry) = self.job.header().geometry(run.layers) else { return false };
        let is_of_logprobs = run.logprobs.is_some() && place.layer == geometry.logprobs_layer();
        // Where a run has log-probabilities, it has the word.
        let root = if is_of_logprobs { Place { layer: geometry.streamed_layers(), ..place } } else { place };
        geometry.index_of(root).is_some_and(|index| index < run.root_count())
    }
}

/// An output as its words, or its one row, and the log-probabilities after them.
pub fn split_output<'a>(output: &'a [i32], receipt: &WorkerReceipt) -> (&'a [i32], &'a [i32]) {
    output.split_at((receipt.output_count as usize).min(output.len()))
}

/// Whether two runs of one job arrived at the same: roots, output and work.
pub fn same_result(a: &WorkerReceipt, b: &WorkerReceipt) -> bool {
    a.layers == b.layers
        && a.agrees_with(b)
        && a.output_root == b.output_root
        && a.output_count == b.output_count
        && a.finish == b.finish
        && a.work_units == b.work_units
        && a.saturations == b.saturations
}

/// A run that lost a dispute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refutation {
    /// Who lost it: who answers for the layer of `place`.
    pub worker: NodeId,
    /// The digest of its receipt.
    pub receipt: Digest,
    /// The first place at which it differs from the other side's run.
    pub place: Place,
    /// Which dispute.
    pub dispute: DisputeId,
    /// How it was lost.
    pub kind: VerdictKind,
}
