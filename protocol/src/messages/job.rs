//! The job stream: one for each assignment, from worker to coordinator.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::commitment::RunCommitment;
use crate::dispute::{SignedMove, SignedPartial};
use crate::generation::words_of;
use crate::hand_over::{HandOverProof, SignedHandOver};
use crate::ids::{JobId, LeaseEpoch, Place, Root, Salt};
use crate::limits::{MAX_JOB_FRAME_BYTES, MAX_LOGPROB_VALUES, MAX_OUTPUT_VALUES};
use crate::messages::Message;
use crate::receipt::{SignedReceipt, SignedSegment, split_output};

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobResult {
    /// The worker's signed part of the receipt.
    pub receipt: SignedReceipt,
    /// The output: of an embedding the pooled vector in Q1.30, of a generation its words, and then, where the job asks for
    /// them, the log-probabilities of each point.
    pub output: Vec<i32>,
}

impl JobResult {
    /// Of a generation its words.
    pub fn words(&self) -> Vec<u32> {
        words_of(split_output(&self.output, &self.receipt.receipt).0)
    }

    /// Of a generation the log-probabilities of all points.
    pub fn logprobs(&self) -> &[i32] {
        split_output(&self.output, &self.receipt.receipt).1
    }
}

impl Canonical for JobResult {
    const MIN_BYTES: usize = SignedReceipt::MIN_BYTES + 4;
    fn encode(&self, writer: &mut Writer) {
        self.receipt.encode(writer);
        writer.seq(&self.output);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { receipt: reader.value()?, output: reader.seq("output values", MAX_OUTPUT_VALUES)? })
    }
}

/// From a worker on a job stream: `Begin`, then a `Layer` for each place in order (of a generation with a `Token` directly
/// before the last `Layer` of each point), then `Commit`; and, once the worker was
/// told to reveal ([`super::ToWorker::Reveal`]), `Result`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobMessage {
    /// Which assignment the stream is about.
    Begin {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// The root of one layer, sent as soon as it is known.
    Layer {
        /// Where.
        place: Place,
        /// The root.
        root: Root,
    },
    /// The end; the stream is finished after it.
    Result {
        /// What came out.
        result: Box<JobResult>,
        /// Opens the commitment.
        salt: Salt,
    },
    /// All layers are streamed: the worker binds itself to them, and waits until it is told to reveal.
    Commit {
        /// Over the streamed roots.
        commitment: RunCommitment,
    },
    /// A move of a dispute: the one message of a stream of its own.
    Move(SignedMove),
    /// What a worker signs that was told to halt ([`super::ToWorker::Halt`]): the one message of a stream of its own.
    Partial(SignedPartial),
    /// The word of a generation that was drawn at a point: directly before the root of the output layer there.
    Token {
        /// The word.
        word: u32,
        /// The log-probabilities that the job asks for there ([`crate::logprobs`]).
        logprobs: Vec<i32>,
    },
    /// Of a pipeline: what the worker before this one signed of what it handed over. At each point directly before the first root; the
    /// first worker of a generation shows at that time what the last one signed of the word before, and of the last word at the end.
    Received(Box<SignedHandOver>),
    /// Of a pipeline: all roots of this worker's layers are streamed.
    Ended {
        /// Values that saturated in its layers.
        saturations: u64,
    },
    /// Of a pipeline: the worker signs for its layers, once it was shown the roots of all
    /// ([`super::ToWorker::Countersign`]). All but the last one do, whose signature is that of the result.
    Segment(SignedSegment),
    /// Of a pipeline: what this worker signed of what it handed over. At each point directly before the last root of its layers. The
    /// last worker of an embedding hands nothing over.
    HandedOver(Box<SignedHandOver>),
    /// Of a pipeline: the worker before this one signed something wrong. The last message of the stream.
    Proof(Box<HandOverProof>),
}

impl Canonical for JobMessage {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Begin { job, epoch } => {
                writer.u16(1);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Layer { place, root } => {
                writer.u16(2);
                place.encode(writer);
                root.encode(writer);
            }
            Self::Result { result, salt } => {
                writer.u16(3);
                result.encode(writer);
                salt.encode(writer);
            }
            Self::Commit { commitment } => {
                writer.u16(4);
                commitment.encode(writer);
            }
            Self::Move(signed) => {
                writer.u16(5);
                signed.encode(writer);
            }
            Self::Partial(signed) => {
                writer.u16(6);
                signed.encode(writer);
            }
            Self::Token { word, logprobs } => {
                writer.u16(7);
                writer.u32(*word);
                writer.seq(logprobs);
            }
            Self::Received(signed) => {
                writer.u16(8);
                signed.encode(writer);
            }
            Self::Ended { saturations } => {
                writer.u16(9);
                writer.u64(*saturations);
            }
            Self::Segment(signed) => {
                writer.u16(10);
                signed.encode(writer);
            }
            Self::HandedOver(signed) => {
                writer.u16(11);
                signed.encode(writer);
            }
            Self::Proof(proof) => {
                writer.u16(12);
                proof.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Begin { job: reader.value()?, epoch: reader.value()? },
            2 => Self::Layer { place: reader.value()?, root: reader.value()? },
            3 => Self::Result { result: Box::new(reader.value()?), salt: reader.value()? },
            4 => Self::Commit { commitment: reader.value()? },
            5 => Self::Move(reader.value()?),
            6 => Self::Partial(reader.value()?),
            7 => Self::Token { word: reader.u32()?, logprobs: reader.seq("log-probabilities", MAX_LOGPROB_VALUES)? },
            8 => Self::Received(Box::new(reader.value()?)),
            9 => Self::Ended { saturations: reader.u64()? },
            10 => Self::Segment(reader.value()?),
            11 => Self::HandedOver(Box::new(reader.value()?)),
            12 => Self::Proof(Box::new(reader.value()?)),
            tag => return Err(DecodeError::InvalidTag { what: "job message", tag: tag.into() }),
        })
    }
}

impl Message for JobMessage {
    const FRAME_CAP: usize = MAX_JOB_FRAME_BYTES;
}
