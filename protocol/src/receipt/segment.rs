//! A run whose layers several workers computed: who answers for which of them.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::identity::{Keypair, Signature};
use crate::ids::{Digest, NodeId};
use crate::limits::MAX_CREW;
use crate::receipt::{ReceiptError, SignedReceipt};

/// What a worker signs that computed some layers of a run: their roots at all points are those of the receipt, computed
/// from a layer before them with the roots of the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The digest of the worker's receipt of the whole run.
    pub receipt: Digest,
    /// The first layer, from 1.
    pub first: u16,
    /// The last layer.
    pub last: u16,
    /// Who computed them.
    pub worker: NodeId,
}

impl Segment {
    /// Signs it. `keys` must be those of [`Segment::worker`].
    pub fn sign(self, keys: &Keypair) -> SignedSegment {
        SignedSegment { segment: self, signature: keys.sign(Domain::Segment, &to_bytes(&self)) }
    }
}

impl Canonical for Segment {
    const MIN_BYTES: usize = 32 + 2 + 2 + 32;
    fn encode(&self, writer: &mut Writer) {
        self.receipt.encode(writer);
        writer.u16(self.first);
        writer.u16(self.last);
        self.worker.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { receipt: reader.value()?, first: reader.u16()?, last: reader.u16()?, worker: reader.value()? })
    }
}

/// A segment with its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSegment {
    /// What was signed.
    pub segment: Segment,
    /// By [`Segment::worker`], over the canonical segment.
    pub signature: Signature,
}

impl SignedSegment {
    /// Whether the worker signed it.
    pub fn is_signed(&self) -> bool {
        self.segment.worker.verify(Domain::Segment, &to_bytes(&self.segment), &self.signature).is_ok()
    }
}

impl Canonical for SignedSegment {
    const MIN_BYTES: usize = Segment::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.segment.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { segment: reader.value()?, signature: reader.value()? })
    }
}

impl SignedReceipt {
    /// Everybody who computed layers of the run, with the first and the last of them: in order, the receipt's worker last.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, u16, u16)> + '_ {
        let segments = self.segments.iter().map(|signed| signed.segment);
        let next = self.segments.last().map_or(1, |signed| signed.segment.last.saturating_add(1));
        let lead = (self.receipt.worker, next, self.receipt.layers.saturating_add(1));
        segments.map(|segment| (segment.worker, segment.first, segment.last)).chain([lead])
    }

    /// Whether a worker computed layers of the run.
    pub fn has_member(&self, node: &NodeId) -> bool {
        self.members().any(|(member, ..)| member == *node)
    }

    /// Who answers for a layer of the run.
    pub fn key_at(&self, layer: u16) -> NodeId {
        let at = self.members().find(|(_, first, last)| (*first..=*last).contains(&layer));
        at.map_or(self.receipt.worker, |(node, ..)| node)
    }

    /// Checks that the segments follow one another from layer 1 on and leave the rest to the receipt's worker, that all
    /// are of this receipt and signed, and that nobody is there twice.
    pub(super) fn check_segments(&self) -> Result<(), ReceiptError> {
        if self.segments.len() >= MAX_CREW {
            let (found, cap) = (self.segments.len(), MAX_CREW - 1);
            return Err(ReceiptError::TooMany { what: "segments", found, cap });
        }
        let digest = self.receipt.digest();
        let (mut next, mut seen) = (1, vec![self.receipt.worker]);
        for (index, signed) in self.segments.iter().enumerate() {
            let Segment { receipt, first, last, worker } = signed.segment;
            let follows = first == next && first <= last && last <= self.receipt.layers;
            if receipt != digest || !follows || seen.contains(&worker) || !signed.is_signed() {
                return Err(ReceiptError::Segment { index });
            }
            seen.push(worker);
            next = last + 1;
        }
        Ok(())
    }
}
