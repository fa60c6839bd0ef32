//! What travels between the workers of a pipeline: rows down, words up.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::hand_over::SignedHandOver;
use crate::ids::{JobId, LeaseEpoch, NodeId};
use crate::limits::{MAX_NAME_BYTES, MAX_POSITIONS, MAX_STAGE_FRAME_BYTES, MAX_STAGE_VALUES};
use crate::messages::Message;

/// A worker of a pipeline, as the others are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its key.
    pub node: NodeId,
    /// Where it takes connections of other workers: `HOST:PORT`.
    pub address: String,
    /// The first layer that it computes, from 1; who has that one embeds too.
    pub first: u16,
    /// The last layer that it computes; L + 1 is the output.
    pub last: u16,
}

impl Canonical for Stage {
    const MIN_BYTES: usize = 32 + 4 + 2 + 2;
    fn encode(&self, writer: &mut Writer) {
        self.node.encode(writer);
        writer.string(&self.address);
        writer.u16(self.first);
        writer.u16(self.last);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            node: reader.value()?,
            address: reader.string("address", MAX_NAME_BYTES)?.to_owned(),
            first: reader.u16()?,
            last: reader.u16()?,
        })
    }
}

/// On the one two-way stream of a lease between two neighbours, which the earlier one opens: `Open`, then for each pass
/// down `Pass` and its hand-overs ([`crate::hand_over::cuts`]), each `Rows` and what is signed of them, `HandedOver`; and
/// up a `Word` for each of its points, which every worker passes on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageMessage {
    /// Which lease the stream is about.
    Open {
        /// Of which job.
        job: JobId,
        /// Which lease.
        epoch: LeaseEpoch,
    },
    /// A pass over the next positions begins.
    Pass {
        /// How many.
        count: u32,
    },
    /// The values of some of their rows, in order.
    Rows {
        /// At most [`MAX_STAGE_VALUES`].
        values: Vec<i32>,
    },
    /// The sender signs for the rows before it.
    HandedOver(Box<SignedHandOver>),
    /// The word at the next point of the pass. Those after one that a hint did not foresee are of no account.
    Word {
        /// The word.
        word: u32,
        /// The last worker signs for it.
        signed: Box<SignedHandOver>,
    },
}

impl Canonical for StageMessage {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Open { job, epoch } => {
                writer.u16(1);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Pass { count } => {
                writer.u16(2);
                writer.u32(*count);
            }
            Self::Rows { values } => {
                writer.u16(3);
                writer.seq(values);
            }
            Self::HandedOver(signed) => {
                writer.u16(4);
                signed.encode(writer);
            }
            Self::Word { word, signed } => {
                writer.u16(5);
                writer.u32(*word);
                signed.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Open { job: reader.value()?, epoch: reader.value()? },
            2 => match reader.u32()? {
                count if (1..=MAX_POSITIONS as u32).contains(&count) => Self::Pass { count },
                _ => return Err(DecodeError::InvalidValue { what: "positions of a pass" }),
            },
            3 => Self::Rows { values: reader.seq("values of rows", MAX_STAGE_VALUES)? },
            4 => Self::HandedOver(Box::new(reader.value()?)),
            5 => Self::Word { word: reader.u32()?, signed: Box::new(reader.value()?) },
            tag => return Err(DecodeError::InvalidTag { what: "stage message", tag: tag.into() }),
        })
    }
}

impl Message for StageMessage {
    const FRAME_CAP: usize = MAX_STAGE_FRAME_BYTES;
}
