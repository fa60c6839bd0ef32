//! The control stream.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::dispute::{SignedEntry, Verdict};
use crate::ids::{Digest, DisputeId, JobId, LeaseEpoch, ModelId, Place, Root};
use crate::job::Job;
use crate::limits::{
    COUNTERSIGN_ROOTS, MAX_CONTROL_DOWN_BYTES, MAX_CONTROL_UP_BYTES, MAX_CREW, MAX_HELD_MODELS, MAX_LOG_PATH,
    MAX_NAME_BYTES, MAX_POINTS, MAX_REASON_BYTES,
};
use crate::log::{Cosignature, SignedHead};
use crate::messages::{Ask, Message, Stage};

/// Declares a `u16` enum whose tags are part of the wire format.
macro_rules! wire_codes {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $tag:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $tag),*
        }

        impl Canonical for $name {
            const MIN_BYTES: usize = 2;
            fn encode(&self, writer: &mut Writer) {
                writer.u16(*self as u16);
            }
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                match reader.u16()? {
                    $($tag => Ok(Self::$variant),)*
                    tag => Err(DecodeError::InvalidTag { what: $what, tag: tag.into() }),
                }
            }
        }
    };
}

wire_codes! {
    /// Why a worker did not finish an assignment.
    FailureCode, "failure code" {
        /// It holds as many assignments as it can.
        Busy = 1,
        /// It is shutting down and takes nothing new.
        Draining = 2,
        /// It could not fetch the model.
        ModelUnavailable = 3,
        /// It has the model's bytes, but the package fails its checks.
        ModelRefused = 4,
        /// The job does not fit the model or the specification version.
        JobRefused = 5,
        /// The device or a kernel failed.
        Backend = 6,
        /// Something else; the reason says what.
        Internal = 7,
        /// The worker before this one in a pipeline is gone, or handed over rows that are not what it signed.
        Upstream = 8,
        /// The worker after this one in a pipeline is gone, or does not take part.
        Downstream = 9,
    }
}

wire_codes! {
    /// Why a coordinator turns a worker away.
    RefusalCode, "refusal code" {
        /// Another protocol version.
        Version = 1,
        /// The key is not on the list of those allowed to join.
        NotAllowed = 2,
        /// The key was caught with wrong results.
        Quarantined = 3,
        /// As many workers as the coordinator serves are there.
        Full = 4,
        /// The hello is not acceptable; the reason says why.
        BadHello = 5,
        /// The worker took a run back that it found wrong: it tests itself and comes again later.
        Faulty = 6,
    }
}

/// How a worker takes part in pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Bytes of parameters that it can hold, at least 1. It is given no model and no layers with more.
    pub model_bytes: u64,
    /// The port at which it takes connections of other workers, at the address that it connects from; not 0.
    pub port: u16,
}

impl Canonical for Offer {
    const MIN_BYTES: usize = 8 + 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.model_bytes);
        writer.u16(self.port);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match (reader.u64()?, reader.u16()?) {
            (0, _) | (_, 0) => Err(DecodeError::InvalidValue { what: "offer" }),
            (model_bytes, port) => Ok(Self { model_bytes, port }),
        }
    }
}

/// A worker introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Version of the worker's program, for people.
    pub software: String,
    /// Name of its backend, for people.
    pub backend: String,
    /// Threads that it computes with.
    pub threads: u32,
    /// Memory that it may use, in bytes.
    pub memory_bytes: u64,
    /// Multiply-accumulates a second that it measured on itself; 0 where it did not.
    pub macs_per_second: u64,
    /// Assignments that it takes at a time, at least 1.
    pub max_in_flight: u32,
    /// Models that it holds.
    pub models: Vec<ModelId>,
    /// Whether it takes part in pipelines, and how.
    pub offer: Option<Offer>,
}

impl Canonical for Hello {
    const MIN_BYTES: usize = 4 + 4 + 4 + 4 + 8 + 8 + 4 + 4 + 1;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.protocol);
        writer.string(&self.software);
        writer.string(&self.backend);
        writer.u32(self.threads);
        writer.u64(self.memory_bytes);
        writer.u64(self.macs_per_second);
        writer.u32(self.max_in_flight);
        writer.seq(&self.models);
        writer.option(self.offer.as_ref());
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            protocol: reader.u32()?,
            software: reader.string("software version", MAX_NAME_BYTES)?.to_owned(),
            backend: reader.string("backend name", MAX_NAME_BYTES)?.to_owned(),
            threads: reader.u32()?,
            memory_bytes: reader.u64()?,
            macs_per_second: reader.u64()?,
            max_in_flight: reader.u32()?,
            models: reader.seq("held models", MAX_HELD_MODELS)?,
            offer: reader.option()?,
        })
    }
}

/// From a worker on its control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// The first message.
    Hello(Hello),
    /// The worker lives.
    Heartbeat {
        /// Counts up by one from 0.
        sequence: u64,
        /// Assignments that it is working on.
        in_flight: u32,
    },
    /// The worker now holds a model, verified.
    HaveModel {
        /// Which.
        model: ModelId,
    },
    /// The worker will not finish an assignment.
    Failed {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Why.
        code: FailureCode,
        /// Why, for people.
        reason: String,
    },
    /// The worker finishes what it has and takes nothing new.
    Draining,
    /// The worker ran a job again and found its own run wrong: it takes the run back. While the run is disputed the
    /// worker concedes the dispute instead.
    Retract {
        /// Of which job.
        job: JobId,
        /// Under which assignment it ran.
        epoch: LeaseEpoch,
    },
    /// The worker followed the log to a head: the one that it was asked about, or the last one that it kept where it
    /// can't get from there to that.
    Cosigned(Cosignature),
}

impl Canonical for ToCoordinator {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Hello(hello) => {
                writer.u16(1);
                hello.encode(writer);
            }
            Self::Heartbeat { sequence, in_flight } => {
                writer.u16(2);
                writer.u64(*sequence);
                writer.u32(*in_flight);
            }
            Self::HaveModel { model } => {
                writer.u16(3);
                model.encode(writer);
            }
            Self::Failed { job, epoch, code, reason } => {
                writer.u16(4);
                job.encode(writer);
                epoch.encode(writer);
                code.encode(writer);
                writer.string(reason);
            }
            Self::Draining => writer.u16(5),
            Self::Retract { job, epoch } => {
                writer.u16(6);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Cosigned(cosignature) => {
                writer.u16(7);
                cosignature.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Hello(reader.value()?),
            2 => Self::Heartbeat { sequence: reader.u64()?, in_flight: reader.u32()? },
            3 => Self::HaveModel { model: reader.value()? },
            4 => Self::Failed {
                job: reader.value()?,
                epoch: reader.value()?,
                code: reader.value()?,
                reason: reader.string("failure reason", MAX_REASON_BYTES)?.to_owned(),
            },
            5 => Self::Draining,
            6 => Self::Retract { job: reader.value()?, epoch: reader.value()? },
            7 => Self::Cosigned(reader.value()?),
            tag => {
                return Err(DecodeError::InvalidTag { what: "worker message", tag: tag.into() });
            }
        })
    }
}

impl Message for ToCoordinator {
    const FRAME_CAP: usize = MAX_CONTROL_UP_BYTES;
}

/// A coordinator takes a worker in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// [`super::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Version of the coordinator's program, for people.
    pub software: String,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_ms: u64,
    /// Models that the coordinator serves, so that a worker may fetch them before it needs them.
    pub models: Vec<ModelId>,
}

impl Canonical for Welcome {
    const MIN_BYTES: usize = 4 + 4 + 8 + 4;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.protocol);
        writer.string(&self.software);
        writer.u64(self.heartbeat_ms);
        writer.seq(&self.models);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            protocol: reader.u32()?,
            software: reader.string("software version", MAX_NAME_BYTES)?.to_owned(),
            heartbeat_ms: reader.u64()?,
            models: reader.seq("served models", MAX_HELD_MODELS)?,
        })
    }
}

/// From the coordinator on a worker's control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// The answer to hello: come in.
    Welcome(Welcome),
    /// The answer to hello, or later: go away. The connection is closed after it.
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        reason: String,
    },
    /// Run a job. A worker is not told whether it is the first to run it.
    Assign {
        /// The assignment.
        epoch: LeaseEpoch,
        /// The job.
        job: Job,
        /// To an auditor of a generation the words that are claimed: it runs them with the prompt, and goes on by itself from
        /// where its own differ. Or else none.
        hint: Vec<u32>,
    },
    /// The result of an assignment is durable; the worker may forget it.
    Accepted {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// An assignment is over; a result of it will not be taken.
    Cancel {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// The coordinator goes down: finish or drop what is there, and connect again later.
    Shutdown,
    /// The result of an assignment to which the worker committed may be sent now.
    Reveal {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// Cosign a head of the coordinator's log, if it follows the last one that the worker cosigned.
    Cosign {
        /// The head.
        head: SignedHead,
        /// The size that `path` begins at: that of the last head that the worker cosigned, as far as the coordinator
        /// knows; 0 for none.
        from: u64,
        /// From there to the head's size ([`crate::log::consistency_path`]).
        path: Vec<Digest>,
    },
    /// It is the worker's turn in a dispute about one of its runs. The answer is a [`super::JobMessage::Move`].
    Asked(Box<Ask>),
    /// A move of the worker has come and is durable: the coordinator's entry says when.
    Acknowledged(Box<SignedEntry>),
    /// A dispute of the worker is over.
    Judged {
        /// Which.
        dispute: DisputeId,
        /// How it ended.
        verdict: Verdict,
    },
    /// Stop a run and sign the roots that were streamed up to a place: the answer is a [`super::JobMessage::Partial`].
    Halt {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// The last place whose root is signed.
        place: Place,
    },
    /// Run some layers of a job, in a pipeline with others.
    AssignStage {
        /// The assignment: the same for all of them.
        epoch: LeaseEpoch,
        /// The job.
        job: Job,
        /// As in [`ToWorker::Assign`], or the words that were made before a worker of the job was lost.
        hint: Vec<u32>,
        /// Who has which layers, in order: all of them, and this worker once.
        crew: Vec<Stage>,
    },
    /// All workers of a pipeline have streamed all roots: sign for the layers that are this worker's, if the roots at hand
    /// are those that it streamed and received. In parts.
    Countersign {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// The next roots of the whole run, in stream order.
        roots: Vec<Root>,
        /// With the last part: values that saturated in all layers together.
        saturations: Option<u64>,
        /// With the last part, where log-probabilities were asked for: their root.
        logprobs: Option<Root>,
    },
}

impl Canonical for ToWorker {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Welcome(welcome) => {
                writer.u16(1);
                welcome.encode(writer);
            }
            Self::Refused { code, reason } => {
                writer.u16(2);
                code.encode(writer);
                writer.string(reason);
            }
            Self::Assign { epoch, job, hint } => {
                writer.u16(3);
                epoch.encode(writer);
                job.encode(writer);
                writer.seq(hint);
            }
            Self::Accepted { job, epoch } => {
                writer.u16(4);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Cancel { job, epoch } => {
                writer.u16(5);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Shutdown => writer.u16(6),
            Self::Reveal { job, epoch } => {
                writer.u16(7);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Cosign { head, from, path } => {
                writer.u16(8);
                head.encode(writer);
                writer.u64(*from);
                writer.seq(path);
            }
            Self::Asked(ask) => {
                writer.u16(9);
                ask.encode(writer);
            }
            Self::Acknowledged(entry) => {
                writer.u16(10);
                entry.encode(writer);
            }
            Self::Judged { dispute, verdict } => {
                writer.u16(11);
                dispute.encode(writer);
                verdict.encode(writer);
            }
            Self::Halt { job, epoch, place } => {
                writer.u16(12);
                job.encode(writer);
                epoch.encode(writer);
                place.encode(writer);
            }
            Self::AssignStage { epoch, job, hint, crew } => {
                writer.u16(13);
                epoch.encode(writer);
                job.encode(writer);
                writer.seq(hint);
                writer.seq(crew);
            }
            Self::Countersign { job, epoch, roots, saturations, logprobs } => {
                writer.u16(14);
                job.encode(writer);
                epoch.encode(writer);
                writer.seq(roots);
                writer.bool(saturations.is_some());
                writer.u64(saturations.unwrap_or_default());
                writer.option(logprobs.as_ref());
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Welcome(reader.value()?),
            2 => Self::Refused {
                code: reader.value()?,
                reason: reader.string("refusal reason", MAX_REASON_BYTES)?.to_owned(),
            },
            3 => Self::Assign {
                epoch: reader.value()?,
                job: reader.value()?,
                hint: reader.seq("claimed words", MAX_POINTS)?,
            },
            4 => Self::Accepted { job: reader.value()?, epoch: reader.value()? },
            5 => Self::Cancel { job: reader.value()?, epoch: reader.value()? },
            6 => Self::Shutdown,
            7 => Self::Reveal { job: reader.value()?, epoch: reader.value()? },
            13 => Self::AssignStage {
                epoch: reader.value()?,
                job: reader.value()?,
                hint: reader.seq("claimed words", MAX_POINTS)?,
                crew: reader.seq("workers of a pipeline", MAX_CREW)?,
            },
            14 => Self::Countersign {
                job: reader.value()?,
                epoch: reader.value()?,
                roots: reader.seq("roots to sign for", COUNTERSIGN_ROOTS)?,
                saturations: match (reader.bool()?, reader.u64()?) {
                    (true, saturations) => Some(saturations),
                    (false, 0) => None,
                    (false, _) => return Err(DecodeError::InvalidValue { what: "saturations" }),
                },
                logprobs: reader.option()?,
            },
            12 => Self::Halt { job: reader.value()?, epoch: reader.value()?, place: reader.value()? },
            8 => {
                Self::Cosign { head: reader.value()?, from: reader.u64()?, path: reader.seq("log path", MAX_LOG_PATH)? }
            }
            9 => Self::Asked(Box::new(reader.value()?)),
            10 => Self::Acknowledged(Box::new(reader.value()?)),
            11 => Self::Judged { dispute: reader.value()?, verdict: reader.value()? },
            tag => {
                return Err(DecodeError::InvalidTag { what: "coordinator message", tag: tag.into() });
            }
        })
    }
}

impl Message for ToWorker {
    const FRAME_CAP: usize = MAX_CONTROL_DOWN_BYTES;
}
