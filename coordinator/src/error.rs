//! Why a coordinator does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_link::keyfile::KeyFileError;
use lockstep_model::ModelError;
use lockstep_protocol::ids::ModelId;
use lockstep_protocol::machine::ReplayError;
use thiserror::Error;

use crate::store::StoreError;

/// Why a coordinator that ended did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShutdownError {
    /// The disk did not take the last writes. Nothing in them was acknowledged to anybody.
    #[error("the store could not be written at the end; nothing that was acknowledged is lost")]
    NotWritten,
    /// A part of the coordinator failed.
    #[error("{0} ended badly; nothing that was acknowledged is lost")]
    Part(&'static str),
}

/// Why a coordinator does not start. The messages say what to do.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting that makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's records don't make a state.
    #[error("the store's records don't fit together: {0}")]
    Replay(ReplayError),
    /// A package is refused.
    #[error("the package {} is refused: {error}", path.display())]
    Package {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: ModelError,
    },
    /// A package whose program this coordinator can't serve.
    #[error("the package {} is refused: {reason}", path.display())]
    Program {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Two packages of one model.
    #[error("the package {} is given twice: as {} too; both are model {model}", path.display(), first.display())]
    Twice {
        /// The second file.
        path: PathBuf,
        /// The first one.
        first: PathBuf,
        /// Whose id both have.
        model: ModelId,
    },
    /// An address is taken or not ours.
    #[error("can't listen on {address} for {what}: {reason}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// HTTP or workers.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A thread can't be started.
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
}

impl From<ReplayError> for StartError {
    fn from(error: ReplayError) -> Self {
        Self::Replay(error)
    }
}
