//! Why the machine refuses a job, a root or a result.

use thiserror::Error;

use crate::hand_over::ProofError;
use crate::ids::Place;
use crate::job::JobError;
use crate::receipt::ReceiptError;

/// Why a submission is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The job or its layers are not allowed.
    #[error("{0}")]
    Job(#[from] JobError),
    /// The output is empty or too large.
    #[error("an output of {0} values is not allowed")]
    OutputCount(u32),
    /// The audit policy is out of range.
    #[error("the audit policy is out of range")]
    Policy,
    /// The known roots are not as many as the job has.
    #[error("{found} known roots; the job has {expected}")]
    Planted {
        /// How many the job has.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// Too many jobs wait already.
    #[error("too many jobs are waiting: try again later")]
    Busy,
}

/// Why a result is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RejectReason {
    /// The receipt is not of this worker and assignment, or its numbers are not the program's.
    #[error("the receipt's {0} is not that of the assignment")]
    NotThisAssignment(&'static str),
    /// The signed roots are not those that were streamed.
    #[error("the signed roots are not those that were streamed")]
    NotAsStreamed,
    /// A root was streamed out of order.
    #[error("a root for {found} came where another place was next")]
    OutOfOrder {
        /// The place that came.
        found: Place,
    },
    /// A word came where none was due, or can't be one: the run had ended before, or does not end with it as it has to.
    #[error("a word came that can't be the next one of the run")]
    WordOutOfOrder,
    /// The root of the output layer is not that of the word that came before it.
    #[error("the root for {found} is not that of the word before it")]
    NotTheWord {
        /// Where.
        found: Place,
    },
    /// A commitment came before all roots, or another one than before.
    #[error("the commitment does not come after the last root, or is not the only one")]
    CommitmentOutOfOrder,
    /// A result came from a worker that was not told to reveal it.
    #[error("a result came before its worker was told to reveal it")]
    NotToldToReveal,
    /// The result does not open the worker's commitment.
    #[error("the roots and the salt are not those of the commitment")]
    NotAsCommitted,
    /// A partial run came from a worker that was not told to halt.
    #[error("a partial run came from a worker that was not told to halt")]
    NotToldToHalt,
    /// A partial run is not signed, or is not what was streamed.
    #[error("the partial run is not what was streamed, or is not signed")]
    NotAsHalted,
    /// A worker of a pipeline shows a hand-over that is not signed, or not the one that is next.
    #[error("it shows a hand-over that is not signed, or is not the one that is next")]
    FalseHandOver,
    /// A worker of a pipeline accuses the one before it, and proves nothing.
    #[error("it accuses the worker before it, and proves nothing: {0}")]
    FalseProof(#[from] ProofError),
    /// The receipt does not check.
    #[error("{0}")]
    Receipt(#[from] ReceiptError),
}
