//! Transcripts: the entries of a dispute, followed from the first to the last.

use thiserror::Error;

use crate::dispute::position::Position;
use crate::dispute::{EntryError, Lowering, Reason, Recompute, SignedEntry, Terms, Verdict, What};

/// What is wrong with a transcript.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TranscriptError {
    /// There is no entry.
    #[error("the transcript is empty")]
    Empty,
    /// An entry is wrong.
    #[error("entry {index}: {error}")]
    Entry {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong.
        error: EntryError,
    },
    /// The transcript has no verdict.
    #[error("the dispute is not over: there is no verdict after entry {last}")]
    NotOver {
        /// The last entry.
        last: usize,
    },
}

/// The terms that a transcript begins with. They are not checked yet: see [`Terms::check`].
///
/// # Errors
/// [`TranscriptError`]: there is no first entry, or it is another one.
pub fn terms(entries: &[SignedEntry]) -> Result<&Terms, TranscriptError> {
    match &entries.first().ok_or(TranscriptError::Empty)?.entry.what {
        What::Opened(terms) => Ok(terms),
        _ => Err(TranscriptError::Entry { index: 0, error: EntryError::Misplaced }),
    }
}

/// The position after all entries, of one's own transcript: the coordinator's signatures and what it computed are taken
/// as they are.
pub(super) fn follow_all(entries: &[SignedEntry], lowering: &dyn Lowering) -> Result<Position, TranscriptError> {
    let at = |index: usize| move |error| TranscriptError::Entry { index, error };
    let (first, rest) = entries.split_first().ok_or(TranscriptError::Empty)?;
    let mut position = Position::open(first.clone(), lowering).map_err(at(0))?;
    for (index, entry) in rest.iter().enumerate() {
        position.follow(entry, lowering).map_err(at(index + 1))?;
    }
    Ok(position)
}

/// Judges a transcript from nothing but itself and the program: every signature, every rule, the clocks as the
/// coordinator's times say, and the element. `evaluate` computes it with the reference kernels.
///
/// # Errors
/// [`TranscriptError`]: the first entry that is wrong, also if it is the verdict.
pub fn judge(
    entries: &[SignedEntry],
    lowering: &dyn Lowering,
    evaluate: &mut dyn FnMut(&Recompute) -> i64,
) -> Result<Verdict, TranscriptError> {
    let at = |index: usize| move |error| TranscriptError::Entry { index, error };
    let first = entries.first().ok_or(TranscriptError::Empty)?;
    let mut position = Position::open(first.clone(), lowering).map_err(at(0))?;
    let coordinator = position.terms().coordinator;
    let signed = |entry: &SignedEntry| entry.check(&coordinator).map_err(EntryError::Signature);
    signed(first).map_err(at(0))?;
    for (index, entry) in entries.iter().enumerate().skip(1) {
        let recompute = position.game().recompute();
        if let (What::Verdict(verdict), Some(recompute)) = (&entry.entry.what, recompute) {
            let value = evaluate(&recompute);
            if verdict.reason != (Reason::Recomputed { value }) {
                return Err(at(index)(EntryError::Verdict));
            }
        }
        position.follow(entry, lowering).and_then(|()| signed(entry)).map_err(at(index))?;
    }
    position.verdict().ok_or(TranscriptError::NotOver { last: entries.len() - 1 })
}
