//! The file by which others follow the ledger.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Ledger, LedgerError, Posting, Purpose, Totals, batch_digest};
use crate::ids::NodeId;
use crate::json;
use crate::limits::{MAX_LEDGER_JSON_BYTES, MAX_LEDGER_LINES, MAX_LOG_PATH};
use crate::log::{Entry, LeafProof, LogError, SignedHead};

/// The value of [`Export::format`].
pub const LEDGER_FORMAT: &str = "lockstep ledger 1";

/// Why an export is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// More bytes than an export may have.
    #[error("the file has {found} bytes; at most {MAX_LEDGER_JSON_BYTES} are allowed")]
    TooLong {
        /// How many it has.
        found: usize,
    },
    /// Not an export in JSON.
    #[error("not a ledger: {0}")]
    Json(String),
    /// Another format.
    #[error("the file has format {found:?}, not {LEDGER_FORMAT:?}")]
    Format {
        /// What it says.
        found: String,
    },
    /// More accounts, lines or batches than an export may have.
    #[error("there are {found} {what}; at most {MAX_LEDGER_LINES} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// The lines are not the postings in their order.
    #[error("line {line} of the history has index {found}, not {expected}")]
    Order {
        /// Which line, from 0.
        line: usize,
        /// What it has to be.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// A posting that the ledger before it does not allow.
    #[error("posting {index} is not allowed: {error}")]
    Posting {
        /// Which.
        index: u64,
        /// Why.
        error: LedgerError,
    },
    /// The accounts or sums are not what the postings make.
    #[error("the {what} are not what the postings make")]
    NotTheFold {
        /// Accounts, totals, postings.
        what: &'static str,
    },
    /// The coordinator's log does not have the postings.
    #[error("{0}")]
    Log(LogError),
    /// A batch of the log is not that of the lines.
    #[error("entry {index} of the log is about other postings")]
    Batch {
        /// Its place in the log.
        index: u64,
    },
}

/// What is held of an account for one purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldLine {
    /// For what.
    pub purpose: Purpose,
    /// How many credits.
    pub amount: u64,
}

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountLine {
    /// Whose.
    pub node: NodeId,
    /// Free credits.
    pub free: u64,
    /// Held ones, in the order of purposes.
    pub held: Vec<HeldLine>,
}

/// One posting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryLine {
    /// Its place among all postings, from 0.
    pub index: u64,
    /// The posting.
    pub posting: Posting,
}

/// A ledger as it was after some number of postings, and the last of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// [`LEDGER_FORMAT`].
    pub format: String,
    /// Whose ledger.
    pub coordinator: NodeId,
    /// How many postings made it.
    pub postings: u64,
    /// The sums.
    pub totals: Totals,
    /// All accounts, by key.
    pub accounts: Vec<AccountLine>,
    /// The last postings, or all of them.
    pub history: Vec<HistoryLine>,
    /// The entries of the coordinator's log about postings in `history`, in the order of the log; may be empty.
    pub batches: Vec<LeafProof>,
    /// The head that the paths of `batches` lead to; there where `batches` is not empty.
    pub head: Option<SignedHead>,
}

impl Export {
    /// The export of a ledger with its last postings, without a proof that they are in the log.
    ///
    /// # Panics
    /// Where `history` has more postings than made the ledger.
    pub fn of(ledger: &Ledger, coordinator: NodeId, history: Vec<Posting>) -> Self {
        let first = ledger.postings().checked_sub(history.len() as u64).expect("the last postings of the ledger");
        Self {
            format: LEDGER_FORMAT.to_owned(),
            coordinator,
            postings: ledger.postings(),
            totals: ledger.totals(),
            accounts: account_lines(ledger),
            history: (first..).zip(history).map(|(index, posting)| HistoryLine { index, posting }).collect(),
            batches: Vec::new(),
            head: None,
        }
    }

    /// The export as JSON on one line.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads an export from JSON, strictly. It is not checked yet: see [`Export::check`].
    ///
    /// # Errors
    /// [`ExportError::TooLong`], [`ExportError::Json`], [`ExportError::Format`].
    pub fn from_json(text: &str) -> Result<Self, ExportError> {
        if text.len() > MAX_LEDGER_JSON_BYTES {
            return Err(ExportError::TooLong { found: text.len() });
        }
        let export: Self = json::read(text).map_err(|error| ExportError::Json(error.to_string()))?;
        if export.format != LEDGER_FORMAT {
            return Err(ExportError::Format { found: export.format });
        }
        Ok(export)
    }

    /// Folds the postings, from nothing or from the ledger before the first of them, and compares. Entries of the log
    /// are checked where they are there. The ledger after the last posting.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, before: Option<&Ledger>) -> Result<Ledger, ExportError> {
        let counts =
            [("accounts", self.accounts.len()), ("lines", self.history.len()), ("batches", self.batches.len())];
        if let Some((what, found)) = counts.into_iter().find(|(_, found)| *found > MAX_LEDGER_LINES) {
            return Err(ExportError::TooMany { what, found });
        }
        let mut ledger = before.cloned().unwrap_or_default();
        for (line, HistoryLine { index, posting }) in self.history.iter().enumerate() {
            let expected = ledger.postings();
            if *index != expected {
                return Err(ExportError::Order { line, expected, found: *index });
            }
            ledger.post(posting).map_err(|error| ExportError::Posting { index: *index, error })?;
        }
        let same = [
            ("numbers of postings", ledger.postings() == self.postings),
            ("totals", ledger.totals() == self.totals),
            ("accounts", account_lines(&ledger) == self.accounts),
        ];
        if let Some((what, _)) = same.into_iter().find(|(_, same)| !same) {
            return Err(ExportError::NotTheFold { what });
        }
        self.check_batches()?;
        Ok(ledger)
    }

    /// Checks that each batch is in the log, about lines of the history, and that they leave out no posting between
    /// the first and the last of them.
    fn check_batches(&self) -> Result<(), ExportError> {
        let Some(head) = self.head else {
            let missing = || ExportError::Log(LogError::Missing { what: "the head of the batches".to_owned() });
            return if self.batches.is_empty() { Ok(()) } else { Err(missing()) };
        };
        head.check().map_err(ExportError::Log)?;
        let log = head.head.log;
        if log != self.coordinator {
            return Err(ExportError::Log(LogError::AnotherLog { old: self.coordinator, new: log }));
        }
        let mut next = None;
        let mut last = None;
        for leaf in &self.batches {
            let wrong = ExportError::Batch { index: leaf.index };
            if leaf.path.len() > MAX_LOG_PATH || last.is_some_and(|last| last >= leaf.index) {
                return Err(wrong);
            }
            last = Some(leaf.index);
            leaf.check_in(&head.head).map_err(ExportError::Log)?;
            let Entry::Ledger { first, count, digest } = leaf.entry else {
                return Err(wrong);
            };
            let end = first.checked_add(count.into()).filter(|_| next.is_none_or(|next| next == first));
            let lines = end.and_then(|end| self.lines(first, end)).ok_or(wrong.clone())?;
            if batch_digest(first, &lines) != digest {
                return Err(wrong);
            }
            next = end;
        }
        Ok(())
    }

    /// The postings from `first` up to `end`, where the history has them all.
    fn lines(&self, first: u64, end: u64) -> Option<Vec<Posting>> {
        let from = usize::try_from(first.checked_sub(self.history.first()?.index)?).ok()?;
        let count = usize::try_from(end.checked_sub(first)?).ok()?;
        let lines = self.history.get(from..from.checked_add(count)?)?;
        Some(lines.iter().map(|line| line.posting.clone()).collect())
    }
}

fn account_lines(ledger: &Ledger) -> Vec<AccountLine> {
    let held = |(purpose, amount): (&Purpose, u64)| HeldLine { purpose: *purpose, amount };
    let line = |(node, account): (&NodeId, &super::Account)| AccountLine {
        node: *node,
        free: account.free(),
        held: account.held().map(held).collect(),
    };
    ledger.accounts().map(line).collect()
}
