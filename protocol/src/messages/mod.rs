//! What travels between a worker and its coordinator, and how it is framed.
//!
//! | stream | opened by | frames |
//! |---|---|---|
//! | control, two-way | the worker, once | up [`ToCoordinator`], down [`ToWorker`] |
//! | job, one-way | the worker, one for each assignment | [`JobMessage`]: begin, roots, commitment, result |
//! | move, one-way | the worker, one for each move of a dispute | [`JobMessage::Move`] |
//! | stage, two-way | a worker of a pipeline, to the one that has the next layers | both ways [`StageMessage`] |
//! | package, two-way | the worker, at will | up one [`PackageRequest`], down one [`PackageReply`], repeated |
//!
//! The first control frames are `Hello` and `Welcome` or `Refused`. A frame is the canonical encoding
//! of one message behind its length ([`to_frame`], [`FrameDecoder`]); its cap depends on the stream and is checked before
//! anything is allocated. A receiver that finds a frame it can't decode closes the connection.

mod control;
mod dispute;
mod frame;
mod job;
mod package;
mod stage;

#[cfg(test)]
mod tests;

pub use self::control::{FailureCode, Hello, Offer, RefusalCode, ToCoordinator, ToWorker, Welcome};
pub use self::dispute::Ask;
pub use self::frame::{FrameDecoder, FrameError, Message, to_frame};
pub use self::job::{JobMessage, JobResult};
pub use self::package::{PackageReply, PackageRequest};
pub use self::stage::{Stage, StageMessage};

/// The version of the messages. Both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// The protocol's name in the TLS handshake (ALPN).
pub const ALPN: &[u8] = b"lockstep/1";
