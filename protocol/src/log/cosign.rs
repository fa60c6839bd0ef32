//! Cosignatures: a worker vouches that it saw one history only.

use serde::{Deserialize, Serialize};

use super::{LogError, SignedHead};
use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::domain::Domain;
use crate::identity::{Keypair, Signature};
use crate::ids::{Digest, NodeId};

/// A worker's word that a head continues the last one that it cosigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosignature {
    /// The digest of the head ([`super::LogHead::digest`]).
    pub head: Digest,
    /// Who signs.
    pub worker: NodeId,
    /// By the worker, over the digest.
    pub signature: Signature,
}

impl Cosignature {
    /// The cosignature of a head that [`cosign`] allowed, now or before: always the same bytes.
    pub fn of(head: &SignedHead, keys: &Keypair) -> Self {
        let digest = head.head.digest();
        Self { head: digest, worker: keys.id(), signature: keys.sign(Domain::LogCosignature, digest.as_bytes()) }
    }

    /// Checks that it is about this head, and the signature.
    ///
    /// # Errors
    /// [`LogError::AnotherHead`], [`LogError::Cosignature`].
    pub fn check(&self, head: &SignedHead) -> Result<(), LogError> {
        let worker = self.worker;
        if self.head != head.head.digest() {
            return Err(LogError::AnotherHead { worker });
        }
        worker
            .verify(Domain::LogCosignature, self.head.as_bytes(), &self.signature)
            .map_err(|error| LogError::Cosignature { worker, error })
    }
}

impl Canonical for Cosignature {
    const MIN_BYTES: usize = 32 + 32 + 64;
    fn encode(&self, writer: &mut Writer) {
        self.head.encode(writer);
        self.worker.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { head: reader.value()?, worker: reader.value()?, signature: reader.value()? })
    }
}

/// Signs a head of the log of `log` where it follows `kept`, the last head that this worker cosigned. `path` leads from
/// size `from` to the head's. The caller keeps the new head durably before it sends the cosignature, in the place of the
/// old one.
///
/// # Errors
/// Why the worker does not sign. [`LogError::NoConsistency`] and [`LogError::Older`] only say that the coordinator does
/// not know which head the worker kept: the worker answers with its cosignature of that. [`LogError::Equivocation`] and
/// [`LogError::Shrunk`] are proof of two histories; for [`LogError::NotConsistent`] the two heads are the evidence.
pub fn cosign(
    keys: &Keypair,
    log: NodeId,
    kept: Option<&SignedHead>,
    head: &SignedHead,
    from: u64,
    path: &[Digest],
) -> Result<Cosignature, LogError> {
    head.check()?;
    if head.head.log != log {
        return Err(LogError::AnotherLog { old: log, new: head.head.log });
    }
    if let Some(kept) = kept {
        kept.followed_by(head, (from == kept.head.size).then_some(path))?;
    }
    Ok(Cosignature::of(head, keys))
}
