//! How a dispute ends.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::ids::{Place, VerdictKind};

/// Why the losers lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The loser contradicted what it had committed to itself.
    Contradiction,
    /// The loser signed two different moves for one round.
    Equivocation,
    /// The loser took its run back.
    Conceded,
    /// The element is not what the loser says.
    Recomputed {
        /// What it is, sign-extended.
        value: i64,
    },
    /// The chunk lies in rows whose root the loser had signed at an earlier point, and is another one there.
    Perjury,
    /// The loser did not move in its time.
    Silence,
}

impl Reason {
    /// Whether the transcript proves it to anybody, or one has to take the coordinator's word.
    pub const fn kind(self) -> VerdictKind {
        match self {
            Self::Silence => VerdictKind::Timeout,
            _ => VerdictKind::Proven,
        }
    }
}

/// What the loser did, as the rest of a sentence about it.
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Contradiction => f.write_str("contradicted its own commitment"),
            Self::Equivocation => f.write_str("signed two different moves for one round"),
            Self::Conceded => f.write_str("took its run back"),
            Self::Recomputed { value } => write!(f, "signed another value of the element than the right one, {value}"),
            Self::Perjury => f.write_str("contradicted an earlier root that it had signed"),
            Self::Silence => f.write_str("did not move in its time"),
        }
    }
}

impl Canonical for Reason {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Contradiction => writer.u16(1),
            Self::Equivocation => writer.u16(2),
            Self::Conceded => writer.u16(3),
            Self::Recomputed { value } => {
                writer.u16(4);
                writer.i64(*value);
            }
            Self::Perjury => writer.u16(5),
            Self::Silence => writer.u16(6),
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Contradiction,
            2 => Self::Equivocation,
            3 => Self::Conceded,
            4 => Self::Recomputed { value: reader.i64()? },
            5 => Self::Perjury,
            6 => Self::Silence,
            tag => return Err(DecodeError::InvalidTag { what: "reason of a verdict", tag: tag.into() }),
        })
    }
}

/// How a dispute ended. It refutes the losers' runs and confirms nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether anybody can check it: [`Reason::kind`].
    pub kind: VerdictKind,
    /// Who lost: the claimant, the challenger, or both.
    pub losers: [bool; 2],
    /// The first place at which the runs differ.
    pub place: Place,
    /// The first chunk of the layer's output there that differs, as far as it was found.
    pub chunk: Option<u64>,
    /// The first step that differs, as far as it was found.
    pub step: Option<u16>,
    /// The first element of it that differs, as far as it was found.
    pub element: Option<u64>,
    /// Why.
    pub reason: Reason,
}

impl Canonical for Verdict {
    const MIN_BYTES: usize = 2 + 2 + Place::MIN_BYTES + 3 + Reason::MIN_BYTES;
    fn encode(&self, writer: &mut Writer) {
        self.kind.encode(writer);
        self.losers.iter().for_each(|lost| writer.bool(*lost));
        self.place.encode(writer);
        writer.option(self.chunk.as_ref());
        writer.option(self.step.as_ref());
        writer.option(self.element.as_ref());
        self.reason.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: reader.value()?,
            losers: [reader.bool()?, reader.bool()?],
            place: reader.value()?,
            chunk: reader.option()?,
            step: reader.option()?,
            element: reader.option()?,
            reason: reader.value()?,
        })
    }
}
