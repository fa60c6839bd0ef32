//! A dispute as one file: the manifest of the model and the transcript. Whoever has it can judge offline.

use thiserror::Error;

use crate::canonical::{DecodeError, Reader, Writer, to_bytes};
use crate::dispute::transcript::{self, TranscriptError};
use crate::dispute::{Lowering, Recompute, SignedEntry, Terms, Verdict};
use crate::ids::ModelId;
use crate::limits::{MAX_DISPUTE_ENTRIES, MAX_DISPUTE_FILE_BYTES, MAX_MANIFEST_BYTES};

/// The first bytes of every file of a dispute.
pub const DISPUTE_MAGIC: &[u8; 16] = b"LOCKSTEP DISPUTE";
/// The version of the file's format.
pub const DISPUTE_VERSION: u16 = 1;

/// Why bytes are not the file of a dispute, or it does not check.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FileError {
    /// The file does not begin with [`DISPUTE_MAGIC`].
    #[error("this is not the file of a dispute")]
    Magic,
    /// The format has another version.
    #[error("the file has version {found}; this program reads version {DISPUTE_VERSION}")]
    Version {
        /// The file's.
        found: u16,
    },
    /// The file is too large.
    #[error("the file has {found} bytes, more than the {MAX_DISPUTE_FILE_BYTES} of a dispute")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// A part can't be decoded.
    #[error("{part}: {error}")]
    Decode {
        /// Which part.
        part: String,
        /// What is wrong.
        error: DecodeError,
    },
    /// The manifest is not that of the job's model.
    #[error("the manifest: its hash is {found}, and the job is on model {expected}")]
    Manifest {
        /// The job's model.
        expected: ModelId,
        /// The hash of the manifest in the file.
        found: ModelId,
    },
    /// The transcript is wrong.
    #[error("{0}")]
    Transcript(#[from] TranscriptError),
}

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisputeFile {
    /// The manifest of the model, whose hash the job names.
    pub manifest: Vec<u8>,
    /// The transcript.
    pub entries: Vec<SignedEntry>,
}

impl DisputeFile {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(DISPUTE_MAGIC);
        writer.u16(DISPUTE_VERSION);
        writer.bytes(&self.manifest);
        writer.seq(&self.entries);
        writer.into_bytes()
    }

    /// Reads a file, strictly. The manifest is that of the job's model; nothing else is checked yet: see
    /// [`DisputeFile::judge`].
    ///
    /// # Errors
    /// Any [`FileError`], which names the part that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileError> {
        if bytes.len() > MAX_DISPUTE_FILE_BYTES {
            return Err(FileError::TooLong { found: bytes.len() });
        }
        let mut reader = Reader::new(bytes.strip_prefix(DISPUTE_MAGIC).ok_or(FileError::Magic)?);
        let at = |part: &str| {
            let part = part.to_owned();
            move |error| FileError::Decode { part, error }
        };
        let version = reader.u16().map_err(at("the version"))?;
        if version != DISPUTE_VERSION {
            return Err(FileError::Version { found: version });
        }
        let manifest = reader.bytes("manifest", MAX_MANIFEST_BYTES).map_err(at("the manifest"))?.to_vec();
        let count = reader.length("entries", MAX_DISPUTE_ENTRIES, 1).map_err(at("the number of entries"))?;
        let mut entries = Vec::new();
        for index in 0..count {
            entries.push(reader.value().map_err(at(&format!("entry {index}")))?);
        }
        if reader.left() != 0 {
            return Err(at("the end")(DecodeError::TrailingBytes { left: reader.left() }));
        }
        let file = Self { manifest, entries };
        if file.to_bytes() != bytes {
            return Err(at("the entries")(DecodeError::NotCanonical));
        }
        file.check_manifest()?;
        Ok(file)
    }

    /// The terms of the dispute, not checked yet.
    ///
    /// # Errors
    /// [`FileError::Transcript`].
    pub fn terms(&self) -> Result<&Terms, FileError> {
        Ok(transcript::terms(&self.entries)?)
    }

    /// Judges the dispute again: [`transcript::judge`].
    ///
    /// # Errors
    /// [`FileError::Manifest`], [`FileError::Transcript`].
    pub fn judge(
        &self,
        lowering: &dyn Lowering,
        evaluate: &mut dyn FnMut(&Recompute) -> i64,
    ) -> Result<Verdict, FileError> {
        self.check_manifest()?;
        Ok(transcript::judge(&self.entries, lowering, evaluate)?)
    }

    /// Bytes of all entries: what the dispute cost the referee to take and write.
    pub fn transcript_bytes(&self) -> usize {
        self.entries.iter().map(|entry| to_bytes(entry).len()).sum()
    }

    fn check_manifest(&self) -> Result<(), FileError> {
        let (expected, found) = (self.terms()?.job.model, ModelId::from(blake3::hash(&self.manifest)));
        if expected == found { Ok(()) } else { Err(FileError::Manifest { expected, found }) }
    }
}
