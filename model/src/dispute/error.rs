//! What can go wrong between a place and its dispute view.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::steps::PlanError;
use lockstep_protocol::dispute::TermsError;
use lockstep_protocol::ids::Place;

/// Why a place of a job has no [`LayerCase`](super::LayerCase).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// The terms are no dispute.
    #[error("the terms: {0}")]
    Terms(#[from] TermsError),
    /// The terms are about a model of another depth.
    #[error("the terms are for {found} transformer layers, and the program has {expected}")]
    Layers {
        /// Of the program.
        expected: usize,
        /// Of the terms.
        found: u16,
    },
    /// The program or the job has no such place.
    #[error("a program of {layers} layers has no {place} over {tokens} tokens")]
    Place {
        /// The place asked for.
        place: Place,
        /// Layers of the program.
        layers: usize,
        /// Tokens of the job.
        tokens: u32,
    },
    /// The program can't be disputed.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Why a player has no [`Trace`](super::Trace).
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The program or the job has no such place.
    #[error("a program of {layers} layers has no {place} over {tokens} tokens")]
    Place {
        /// The place asked for.
        place: Place,
        /// Layers of the program.
        layers: usize,
        /// Tokens of the job.
        tokens: usize,
    },
    /// Words are missing.
    #[error("{words} words do not reach {place}")]
    Words {
        /// The place asked for.
        place: Place,
        /// How many words there are.
        words: usize,
    },
    /// The backend failed, or gave tensors of other shapes than the program declares.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
