//! What can go wrong on a link.

use std::net::SocketAddr;

use lockstep_protocol::ids::NodeId;
use lockstep_protocol::messages::FrameError;

/// Why a link could not be made, or broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No socket at the address.
    #[error("can't open UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Keys or TLS can't be set up.
    #[error("TLS set-up: {0}")]
    Tls(String),
    /// The address can't be connected to.
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    /// The server proved another key than the one it is pinned to.
    #[error(
        "the server's key is {found}, but {expected} was expected: wrong address, wrong key, or somebody in between"
    )]
    WrongKey {
        /// The pinned key.
        expected: NodeId,
        /// The key that the server showed.
        found: NodeId,
    },
    /// The peer showed no usable ed25519 key.
    #[error("the other side showed no ed25519 key")]
    NoKey,
    /// The connection broke or was closed.
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    /// A frame that breaks the rules. The connection is to be closed with [`crate::Close::Protocol`].
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream broke while it was read.
    #[error("reading a stream: {0}")]
    Read(#[from] quinn::ReadError),
    /// The stream broke while it was written.
    #[error("writing a stream: {0}")]
    Write(#[from] quinn::WriteError),
}
