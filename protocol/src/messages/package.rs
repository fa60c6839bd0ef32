//! The package stream: a worker fetches what it lacks of a model, part by part.
//!
//! The manifest comes whole and is checked against the model id. A blob comes in openings of at most
//! 1 MiB ([`crate::openings`]), each checked by itself against the blob's root and length from the
//! manifest before a byte of it is kept. So a transfer goes on where it stopped, by asking for the
//! first chunk that is not there yet.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::ids::ModelId;
use crate::limits::{
    MAX_BLOBS, MAX_MANIFEST_BYTES, MAX_OPENING_BYTES, MAX_PACKAGE_REPLY_BYTES, MAX_PACKAGE_REQUEST_BYTES,
};
use crate::messages::Message;
use crate::openings::ChunkRange;

/// From a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageRequest {
    /// The manifest of a model.
    GetManifest {
        /// Which model.
        model: ModelId,
    },
    /// A part of a blob.
    GetBlob {
        /// Of which model.
        model: ModelId,
        /// Which blob, by its index in the manifest.
        blob: u32,
        /// Which chunks.
        range: ChunkRange,
    },
}

impl Canonical for PackageRequest {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::GetManifest { model } => {
                writer.u16(1);
                model.encode(writer);
            }
            Self::GetBlob { model, blob, range } => {
                writer.u16(2);
                model.encode(writer);
                writer.u32(*blob);
                range.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::GetManifest { model: reader.value()? },
            2 => {
                let (model, blob, range) = (reader.value()?, reader.u32()?, reader.value()?);
                if blob as usize >= MAX_BLOBS {
                    return Err(DecodeError::InvalidValue { what: "blob index" });
                }
                Self::GetBlob { model, blob, range }
            }
            tag => return Err(DecodeError::InvalidTag { what: "package request", tag: tag.into() }),
        })
    }
}

impl Message for PackageRequest {
    const FRAME_CAP: usize = MAX_PACKAGE_REQUEST_BYTES;
}

/// From the coordinator, one for each request and in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackageReply {
    /// The manifest's bytes, whose BLAKE3 is the model id.
    Manifest {
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The opening of the chunks that were asked for.
    Opening {
        /// As [`crate::openings::open_range`] makes it.
        bytes: Vec<u8>,
    },
    /// The coordinator has no such model, blob or range.
    NotFound,
}

impl Canonical for PackageReply {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Manifest { bytes } => {
                writer.u16(1);
                writer.bytes(bytes);
            }
            Self::Opening { bytes } => {
                writer.u16(2);
                writer.bytes(bytes);
            }
            Self::NotFound => writer.u16(3),
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Manifest { bytes: reader.bytes("manifest", MAX_MANIFEST_BYTES)?.to_vec() },
            2 => Self::Opening { bytes: reader.bytes("opening", MAX_OPENING_BYTES)?.to_vec() },
            3 => Self::NotFound,
            tag => return Err(DecodeError::InvalidTag { what: "package reply", tag: tag.into() }),
        })
    }
}

impl Message for PackageReply {
    const FRAME_CAP: usize = MAX_PACKAGE_REPLY_BYTES;
}
