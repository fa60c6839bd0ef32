//! The two sides.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};

/// A party of a dispute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Whose run is challenged.
    Claimant,
    /// Who challenges it, with a run of its own.
    Challenger,
}

impl Side {
    /// Both, in the order of everything that comes in pairs.
    pub const BOTH: [Self; 2] = [Self::Claimant, Self::Challenger];

    /// Its place in everything that comes in pairs: 0 or 1.
    pub const fn index(self) -> usize {
        match self {
            Self::Claimant => 0,
            Self::Challenger => 1,
        }
    }

    /// The opponent.
    pub const fn other(self) -> Self {
        match self {
            Self::Claimant => Self::Challenger,
            Self::Challenger => Self::Claimant,
        }
    }

    /// The pair in which this side alone is marked.
    pub const fn alone(self) -> [bool; 2] {
        match self {
            Self::Claimant => [true, false],
            Self::Challenger => [false, true],
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Claimant => "claimant",
            Self::Challenger => "challenger",
        })
    }
}

impl Canonical for Side {
    const MIN_BYTES: usize = 1;
    fn encode(&self, writer: &mut Writer) {
        writer.u8(self.index() as u8);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            0 => Ok(Self::Claimant),
            1 => Ok(Self::Challenger),
            tag => Err(DecodeError::InvalidTag { what: "side", tag: tag.into() }),
        }
    }
}
