//! The control stream.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::ids::{JobId, LeaseEpoch, ModelId};
use crate::job::Job;
use crate::limits::{MAX_CONTROL_DOWN_BYTES, MAX_CONTROL_UP_BYTES, MAX_HELD_MODELS, MAX_NAME_BYTES, MAX_REASON_BYTES};
use crate::messages::Message;

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
}

impl Canonical for Hello {
    const MIN_BYTES: usize = 4 + 4 + 4 + 4 + 8 + 8 + 4 + 4;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.protocol);
        writer.string(&self.software);
        writer.string(&self.backend);
        writer.u32(self.threads);
        writer.u64(self.memory_bytes);
        writer.u64(self.macs_per_second);
        writer.u32(self.max_in_flight);
        writer.seq(&self.models);
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
            Self::Assign { epoch, job } => {
                writer.u16(3);
                epoch.encode(writer);
                job.encode(writer);
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
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Welcome(reader.value()?),
            2 => Self::Refused {
                code: reader.value()?,
                reason: reader.string("refusal reason", MAX_REASON_BYTES)?.to_owned(),
            },
            3 => Self::Assign { epoch: reader.value()?, job: reader.value()? },
            4 => Self::Accepted { job: reader.value()?, epoch: reader.value()? },
            5 => Self::Cancel { job: reader.value()?, epoch: reader.value()? },
            6 => Self::Shutdown,
            tag => {
                return Err(DecodeError::InvalidTag { what: "coordinator message", tag: tag.into() });
            }
        })
    }
}

impl Message for ToWorker {
    const FRAME_CAP: usize = MAX_CONTROL_DOWN_BYTES;
}
