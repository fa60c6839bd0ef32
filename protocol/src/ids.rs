//! Names and small numbers of the protocol, each a type of its own.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::hex::byte_newtype;

byte_newtype! {
    /// A BLAKE3 digest of no particular kind.
    Digest, 32
}
byte_newtype! {
    /// The plain BLAKE3 hash of a package's manifest.
    ModelId, 32
}
byte_newtype! {
    /// The hash of a canonical job ([`crate::job::JobHeader::id`]).
    JobId, 32
}
byte_newtype! {
    /// The plain BLAKE3 hash of a tensor: of a layer's rows, of tokens, of a blob.
    Root, 32
}
byte_newtype! {
    /// The blinded hash of what the client sent ([`crate::job::RequestInput::hash`]).
    RequestHash, 32
}
byte_newtype! {
    /// An ed25519 public key: the name of a worker or coordinator.
    NodeId, 32
}
byte_newtype! {
    /// The client's seed of a job, from which sampling draws.
    Seed, 32
}
byte_newtype! {
    /// What hides a run in its commitment ([`crate::commitment::RunCommitment`]): drawn by the worker for each run.
    Salt, 32
}
byte_newtype! {
    /// The hash of a dispute's terms.
    DisputeId, 32
}
byte_newtype! {
    /// The client's secret nonce of a job: makes the job id unguessable.
    Nonce, 32
}

macro_rules! from_hash {
    ($($name:ident),*) => {$(
        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self::from_bytes(*hash.as_bytes())
            }
        }
    )*};
}

from_hash!(Digest, ModelId, Root);

macro_rules! number_newtype {
    ($(#[$doc:meta])* $name:ident, $inner:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Canonical for $name {
            const MIN_BYTES: usize = size_of::<$inner>();
            fn encode(&self, writer: &mut Writer) {
                writer.$inner(self.0);
            }
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.$inner().map(Self)
            }
        }
    };
}

number_newtype! {
    /// The fencing number of one assignment: at least 1, and higher than that of every assignment of
    /// the same job before it. The machine counts over all jobs, so that a worker can't tell from the
    /// number whether others had the job before.
    LeaseEpoch, u64
}
number_newtype! {
    /// Milliseconds: a time on the coordinator's clock, or since the Unix epoch in a statement.
    Millis, u64
}

impl LeaseEpoch {
    /// The epoch of no assignment: a run that is signed with it was made to challenge others, and its key agrees to play
    /// for it.
    pub const CHALLENGE: Self = Self(u64::MAX);
}

impl Millis {
    /// This time and so many milliseconds, saturating.
    pub const fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since `earlier`, 0 if that is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How a dispute was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Anybody can check from the transcript that the loser was wrong.
    Proven,
    /// The loser was silent, as far as the coordinator saw.
    Timeout,
}

impl Canonical for VerdictKind {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Proven => 1,
            Self::Timeout => 2,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Proven),
            2 => Ok(Self::Timeout),
            tag => Err(DecodeError::InvalidTag { what: "verdict kind", tag: tag.into() }),
        }
    }
}

/// Where a root stands: after which position, at which layer. Ordered by point, then layer, which is
/// the order of every stream and comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The last position (counted from 0) whose row the root covers.
    pub point: u32,
    /// 1..=L for the transformer layers, L + 1 for the output. Layer 0 is derived, never streamed.
    pub layer: u16,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "point {} layer {}", self.point, self.layer)
    }
}

impl Canonical for Place {
    const MIN_BYTES: usize = 6;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.point);
        writer.u16(self.layer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { point: reader.u32()?, layer: reader.u16()? })
    }
}
