//! Why a worker ends.

use std::path::PathBuf;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::conformance::Divergence;
use lockstep_link::LinkError;
use lockstep_link::keyfile::KeyFileError;
use lockstep_protocol::messages::RefusalCode;

/// Kinds of errors that a script or a service manager treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Configuration, data directory or key file: a person has to change something.
    Configuration,
    /// The backend does not work on this machine, or is not exact.
    NoDevice,
    /// The coordinator is not who it should be, or turned this worker away.
    Authentication,
    /// The worker was told to stop before its work was done.
    Aborted,
    /// Something else.
    Failed,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The data directory can't be used.
    #[error("data directory {}: {reason}", path.display())]
    DataDir {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key file can't be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The backend is not exact; the message says which element of which op.
    #[error("this backend is not exact and is not used: {0}")]
    Diverges(Box<Divergence>),
    /// The backend failed where it was tested, or its device is lost.
    #[error("the backend does not work: {0}")]
    Backend(#[from] BackendError),
    /// Another key answered, or no socket could be opened.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The coordinator turned this worker away for good.
    #[error("the coordinator turned this worker away ({code:?}): {reason}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        reason: String,
    },
    /// [`crate::Handle::abort`] was called.
    #[error("stopped before the work was done; the coordinator gives it to others")]
    Aborted,
    /// A part of the worker panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

impl WorkerError {
    /// Which kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::DataDir { .. } | Self::Key(_) => ErrorKind::Configuration,
            Self::Diverges(_) | Self::Backend(_) => ErrorKind::NoDevice,
            Self::Link(LinkError::WrongKey { .. } | LinkError::NoKey) | Self::Refused { .. } => {
                ErrorKind::Authentication
            }
            Self::Aborted => ErrorKind::Aborted,
            Self::Link(_) | Self::Internal(_) => ErrorKind::Failed,
        }
    }
}
