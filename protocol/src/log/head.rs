//! Signed heads.

use serde::{Deserialize, Serialize};

use super::LogError;
use super::paths::check_consistency;
use super::tree::{Tree, empty_root};
use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::identity::{Keypair, Signature};
use crate::ids::{Digest, Millis, NodeId};
use crate::json;
use crate::limits::MAX_LOG_HEAD_JSON_BYTES;

/// What a coordinator says its log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// The coordinator, whose key names the log.
    pub log: NodeId,
    /// How many entries it has.
    pub size: u64,
    /// The root over their leaves.
    pub root: Digest,
    /// When, in milliseconds since the Unix epoch; never below that of a head before it.
    pub time: Millis,
}

impl LogHead {
    /// The head of a tree.
    pub fn of(tree: &Tree, log: NodeId, time: Millis) -> Self {
        Self { log, size: tree.size(), root: tree.root(), time }
    }

    /// What a cosignature calls it.
    pub fn digest(&self) -> Digest {
        Domain::LogHead.hash(&to_bytes(self))
    }

    /// Signs it. `keys` must be those of [`LogHead::log`].
    pub fn sign(self, keys: &Keypair) -> SignedHead {
        SignedHead { signature: keys.sign(Domain::LogHead, &to_bytes(&self)), head: self }
    }
}

impl Canonical for LogHead {
    const MIN_BYTES: usize = 32 + 8 + 32 + 8;
    fn encode(&self, writer: &mut Writer) {
        self.log.encode(writer);
        writer.u64(self.size);
        self.root.encode(writer);
        self.time.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { log: reader.value()?, size: reader.u64()?, root: reader.value()?, time: reader.value()? })
    }
}

/// A head with its signature: what a client keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// What was signed.
    pub head: LogHead,
    /// By [`LogHead::log`], over the canonical head.
    pub signature: Signature,
}

impl Canonical for SignedHead {
    const MIN_BYTES: usize = LogHead::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.head.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { head: reader.value()?, signature: reader.value()? })
    }
}

impl SignedHead {
    /// Checks the signature, and the one root that is known beforehand: that of no entries.
    ///
    /// # Errors
    /// [`LogError::HeadSignature`], [`LogError::EmptyRoot`].
    pub fn check(&self) -> Result<(), LogError> {
        let head = &self.head;
        head.log
            .verify(Domain::LogHead, &to_bytes(head), &self.signature)
            .map_err(|error| LogError::HeadSignature { log: head.log, error })?;
        if head.size == 0 && head.root != empty_root() {
            return Err(LogError::EmptyRoot);
        }
        Ok(())
    }

    /// Checks that `newer` is a later head of the same log whose entries begin with all of this one's. `path` leads
    /// from this size to that; it is not needed where the sizes are equal.
    ///
    /// # Errors
    /// [`LogError`]. Of these [`LogError::Equivocation`] and [`LogError::Shrunk`] are proven by the two heads alone.
    pub fn followed_by(&self, newer: &Self, path: Option<&[Digest]>) -> Result<(), LogError> {
        self.check()?;
        newer.check()?;
        let (old, new) = (&self.head, &newer.head);
        if old.log != new.log {
            return Err(LogError::AnotherLog { old: old.log, new: new.log });
        }
        if old.size == new.size {
            let (size, old, new) = (old.size, old.root, new.root);
            return if old == new { Ok(()) } else { Err(LogError::Equivocation { size, old, new }) };
        }
        let (older, newer) = (old.size, new.size);
        if newer < older {
            // Heads of one millisecond are in no order.
            let later = new.time > old.time;
            return Err(if later {
                LogError::Shrunk { old: older, new: newer }
            } else {
                LogError::Older { size: newer, kept: older }
            });
        }
        let path = match path {
            Some(path) => path,
            None if older == 0 => &[],
            None => return Err(LogError::NoConsistency { old: older, new: newer }),
        };
        if check_consistency(older, &old.root, newer, &new.root, path) {
            Ok(())
        } else {
            Err(LogError::NotConsistent { old: older, new: newer })
        }
    }

    /// The head as JSON on one line.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a head from JSON, strictly. It is not checked yet: see [`SignedHead::check`].
    ///
    /// # Errors
    /// [`LogError::TooLong`], [`LogError::Json`].
    pub fn from_json(text: &str) -> Result<Self, LogError> {
        let (found, cap) = (text.len(), MAX_LOG_HEAD_JSON_BYTES);
        if found > cap {
            return Err(LogError::TooLong { found, cap });
        }
        json::read(text).map_err(|error| LogError::Json { what: "signed head", reason: error.to_string() })
    }
}
