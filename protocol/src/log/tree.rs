//! The tree: leaves in order, split at the largest power of two below their number, as in RFC 9162.

use crate::domain::Domain;
use crate::ids::Digest;

/// The hash of a node over its two children.
pub(super) fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(left.as_bytes());
    bytes[32..].copy_from_slice(right.as_bytes());
    Domain::LogNode.hash(&bytes)
}

/// The root of a tree without leaves.
pub(super) fn empty_root() -> Digest {
    Domain::LogNode.hash(&[])
}

/// How many of `count` leaves (at least 2) go to the left: the largest power of two below.
pub(super) fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// A full subtree: the leaves `index * 2^level` to `(index + 1) * 2^level - 1`. Its hash never changes once all its
/// leaves are there, whatever follows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subtree {
    /// Its height: 0 for a leaf.
    pub level: u8,
    /// Its number among the subtrees of that height, from 0.
    pub index: u64,
}

/// What it takes to append to a log and to know its root: one hash for each full subtree, at most 64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// The roots of the full subtrees, from left to right, so from the largest to the smallest.
    peaks: Vec<Digest>,
}

impl Tree {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, and tells `made` every full subtree that it completes with its hash, the leaf itself first. Who
    /// keeps all of these can make every path later.
    ///
    /// # Errors
    /// What `made` says; the tree is as it was then.
    pub fn append<E>(&mut self, leaf: Digest, mut made: impl FnMut(Subtree, Digest) -> Result<(), E>) -> Result<(), E> {
        let mut at = Subtree { level: 0, index: self.size };
        let mut hash = leaf;
        let mut kept = self.peaks.len();
        made(at, hash)?;
        while at.index % 2 == 1 {
            kept -= 1;
            hash = node_hash(&self.peaks[kept], &hash);
            at = Subtree { level: at.level + 1, index: at.index / 2 };
            made(at, hash)?;
        }
        self.peaks.truncate(kept);
        self.peaks.push(hash);
        self.size += 1;
        Ok(())
    }

    /// The root over all leaves.
    pub fn root(&self) -> Digest {
        let join = |right: Digest, left: &Digest| node_hash(left, &right);
        match self.peaks.split_last() {
            None => empty_root(),
            Some((last, others)) => others.iter().rev().fold(*last, join),
        }
    }
}
