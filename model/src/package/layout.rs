//! Where things lie in a package: derived from lengths, never read.

use std::ops::Range;

use lockstep_protocol::limits::MAX_MANIFEST_BYTES;

use super::Manifest;
use crate::error::ModelError;

/// Blobs start at multiples of this.
pub const PAGE: u64 = 4_096;
/// First bytes of every package.
const MAGIC: [u8; 8] = *b"LOCKSTEP";
/// Version of the file format.
const FORMAT: u32 = 1;
/// Magic, format and manifest length.
const HEADER_BYTES: usize = 16;

/// Byte ranges of a package's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The manifest.
    pub manifest: Range<usize>,
    /// Each blob: the parameters in program order, the tokenizer, the chat template where there is one.
    pub blobs: Vec<Range<usize>>,
}

impl Layout {
    /// The layout of a package with this manifest, `manifest_bytes` long.
    ///
    /// # Errors
    /// When the file would not fit the address space.
    pub fn of(manifest: &Manifest, manifest_bytes: usize) -> Result<Self, ModelError> {
        let too_large = || ModelError::Package("is too large for this machine".into());
        let mut end = HEADER_BYTES + manifest_bytes;
        let span = Self { manifest: HEADER_BYTES..end, blobs: Vec::new() };
        let mut blobs = Vec::new();
        for blob in manifest.blobs() {
            let start = end.checked_next_multiple_of(PAGE as usize).ok_or_else(too_large)?;
            end = usize::try_from(blob.bytes).ok().and_then(|n| start.checked_add(n)).ok_or_else(too_large)?;
            blobs.push(start..end);
        }
        if i64::try_from(end).is_err() {
            return Err(too_large());
        }
        Ok(Self { blobs, ..span })
    }

    /// Length of the file: it ends with its last blob.
    pub fn file_bytes(&self) -> usize {
        self.blobs.last().map_or(self.manifest.end, |b| b.end)
    }
}

/// The bytes in front of the manifest.
///
/// # Errors
/// When the manifest is longer than any may be.
pub fn header(manifest_bytes: usize) -> Result<[u8; HEADER_BYTES], ModelError> {
    if manifest_bytes > MAX_MANIFEST_BYTES {
        return Err(ModelError::Package(format!("the manifest takes {manifest_bytes} bytes: too many parameters")));
    }
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..].copy_from_slice(&(manifest_bytes as u32).to_le_bytes());
    Ok(bytes)
}

/// The range of the manifest, from a file's first bytes and its length.
pub fn manifest_range(file: &[u8]) -> Result<Range<usize>, ModelError> {
    let bad = |reason: &str| Err(ModelError::Package(reason.into()));
    let Some(head) = file.first_chunk::<HEADER_BYTES>() else { return bad("is shorter than a header") };
    if head[..8] != MAGIC {
        return bad("does not start with LOCKSTEP: this is not a package");
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(8) != FORMAT {
        return Err(ModelError::Package(format!("has format {}; this program reads format {FORMAT}", word(8))));
    }
    let length = word(12) as usize;
    if length > MAX_MANIFEST_BYTES || file.len() - HEADER_BYTES < length {
        return Err(ModelError::Package(format!("claims a manifest of {length} bytes")));
    }
    Ok(HEADER_BYTES..HEADER_BYTES + length)
}
