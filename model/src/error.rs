//! What can go wrong between a folder and a running model.

use std::path::{Path, PathBuf};

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::ProgramError;

/// Why an import, a check or the opening of a package failed. The messages say what to look at.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of a checkpoint is missing, malformed or contradicts another.
    #[error("{}: {reason}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor of a checkpoint is missing, ill-shaped or not finite.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint is sound, but this version does not lower such models.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// No bound can be proven, or the proof fails.
    #[error("bounds: {place}: {reason}")]
    Bounds {
        /// Layer and op, or parameter.
        place: String,
        /// What fails.
        reason: String,
    },
    /// The file is not a package, or not this one.
    #[error("package: {0}")]
    Package(String),
    /// The package differs from the checkpoint.
    #[error("the package is not this checkpoint: {0}")]
    Differs(String),
    /// The tokenizer does not load.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The program is malformed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The backend failed during calibration.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ModelError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A checkpoint file is wrong.
    pub(crate) fn checkpoint(file: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { file: file.to_path_buf(), reason: reason.into() }
    }

    /// A tensor is wrong.
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }

    /// A bound can't be proven.
    pub(crate) fn bounds(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Bounds { place: place.into(), reason: reason.into() }
    }
}
