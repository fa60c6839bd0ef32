//! The transparency log: what a coordinator did, in an order that it can't change any more.
//!
//! Every assignment, commitment, result, draw, statement, dispute and posting is an [`Entry`], and one leaf of an append-only Merkle tree of
//! the shape of RFC 9162 (section 2.1), hashed by BLAKE3 in domains of its own. The coordinator signs [`LogHead`]s:
//! size, root, time. Whoever holds two heads of one log can tell from a few hashes whether the later log continues the
//! earlier one ([`SignedHead::followed_by`]); where it does not, the two signatures prove it to everybody.
//!
//! Workers sign a head only where it continues the last one that they signed, so that a coordinator that shows two
//! histories needs the workers of both.
//!
//! Leaves are blinded ([`Blind`]): nodes and heads show nothing of jobs. Who holds a receipt is given the entries of
//! its job with their blinds in a [`LogProof`], and checks it offline.
//!
//! | file | what it owns |
//! |---|---|
//! | `entry.rs` | entries, which record makes which, blinds and leaf hashes |
//! | `tree.rs` | the tree's shape, its nodes, appending with one hash for each full subtree |
//! | `paths.rs` | inclusion and consistency paths: made from stored nodes, and checked |
//! | `head.rs` | signed heads, and what two of them say about the log |
//! | `cosign.rs` | what a worker signs that has followed the log to a head |
//! | `draws.rs` | the check of a job's draws against the secrets that were committed to |
//! | `proof.rs` | the file that a client keeps, checked against head and receipt |

mod cosign;
mod draws;
mod entry;
mod head;
mod paths;
mod proof;
#[cfg(test)]
mod tests;
mod tree;

use thiserror::Error;

pub use self::cosign::{Cosignature, cosign};
pub use self::draws::CheckedDraw;
pub use self::entry::{Blind, Entry, leaf_hash};
pub use self::head::{LogHead, SignedHead};
pub use self::paths::{check_consistency, check_inclusion, consistency_path, inclusion_path};
pub use self::proof::{Consistency, Coverage, LOG_PROOF_FORMAT, LeafProof, LogProof};
pub use self::tree::{Subtree, Tree};
use crate::identity::IdentityError;
use crate::ids::{JobId, LeaseEpoch, NodeId};

/// Why a head, a proof, or a pair of heads is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogError {
    /// More bytes than such a file may have.
    #[error("the file has {found} bytes; at most {cap} are allowed")]
    TooLong {
        /// How many it has.
        found: usize,
        /// How many it may have.
        cap: usize,
    },
    /// Not the JSON of a head or proof.
    #[error("not a {what}: {reason}")]
    Json {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// Another format.
    #[error("the proof has format {found:?}, not {LOG_PROOF_FORMAT:?}")]
    Format {
        /// What it says.
        found: String,
    },
    /// The head's signature does not fit.
    #[error("the signature of the head of {log} is wrong: {error}")]
    HeadSignature {
        /// Whose log.
        log: NodeId,
        /// Why.
        error: IdentityError,
    },
    /// The root of a log without entries is another one.
    #[error("the head is of an empty log but has another root")]
    EmptyRoot,
    /// A cosignature of another head.
    #[error("worker {worker} cosigned another head")]
    AnotherHead {
        /// Whose cosignature.
        worker: NodeId,
    },
    /// A cosignature does not fit.
    #[error("the cosignature of worker {worker} is wrong: {error}")]
    Cosignature {
        /// Whose.
        worker: NodeId,
        /// Why.
        error: IdentityError,
    },
    /// A worker counts once.
    #[error("worker {worker} cosigned twice")]
    CosignedTwice {
        /// Whose cosignatures.
        worker: NodeId,
    },
    /// A draw with a secret that the coordinator had not committed to, or that it used before.
    #[error("draw {number} was made with a secret that the coordinator was not bound to")]
    Draw {
        /// Which.
        number: u64,
    },
    /// Too many entries or hashes.
    #[error("there are {found} {what}; at most {cap} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        cap: usize,
    },
    /// An entry about another job.
    #[error("entry {index} is about job {found}, not about {job}")]
    AnotherJob {
        /// Its place in the log.
        index: u64,
        /// The proof's job.
        job: JobId,
        /// The entry's.
        found: JobId,
    },
    /// Entries out of order.
    #[error("entry {index} does not come after the one before it")]
    Order {
        /// Its place in the log.
        index: u64,
    },
    /// An entry that is not in the log.
    #[error("entry {index} is not in the log of {size} entries with root {root}")]
    NotIncluded {
        /// The place that it claims.
        index: u64,
        /// The head's size.
        size: u64,
        /// The head's root.
        root: crate::ids::Digest,
    },
    /// Heads by different keys.
    #[error("the heads are of different logs: {old} and {new}")]
    AnotherLog {
        /// Of the old head.
        old: NodeId,
        /// Of the new one.
        new: NodeId,
    },
    /// Two heads of one size and two roots. Together they prove that the coordinator keeps two histories.
    #[error(
        "equivocation: the coordinator signed two roots for a log of {size} entries ({old} and {new}); the two signed \
         heads prove it"
    )]
    Equivocation {
        /// The size.
        size: u64,
        /// The old head's root.
        old: crate::ids::Digest,
        /// The new one's.
        new: crate::ids::Digest,
    },
    /// A later head of a shorter log. Together they prove that entries were taken away.
    #[error(
        "the log shrank: the coordinator signed {old} entries and later {new}; the two signed heads prove that it \
         took entries away"
    )]
    Shrunk {
        /// The old head's size.
        old: u64,
        /// The new one's.
        new: u64,
    },
    /// The head in hand is older than the one that it is compared with.
    #[error("this head ({size} entries) is older than the one kept ({kept} entries): fetch a newer one")]
    Older {
        /// Its size.
        size: u64,
        /// The kept head's size.
        kept: u64,
    },
    /// There is no path between the two sizes.
    #[error(
        "nothing shows that the log of {new} entries continues that of {old}: fetch the proof with the old head at hand"
    )]
    NoConsistency {
        /// The old head's size.
        old: u64,
        /// The new one's.
        new: u64,
    },
    /// The path does not lead from one root to the other.
    #[error(
        "not consistent: the log of {new} entries does not continue the log of {old} entries that the coordinator \
         signed before; history was rewritten, or the proof was changed"
    )]
    NotConsistent {
        /// The old head's size.
        old: u64,
        /// The new one's.
        new: u64,
    },
    /// The receipt is by another coordinator.
    #[error("the receipt is by coordinator {receipt}, the log of {log}")]
    AnotherCoordinator {
        /// The receipt's.
        receipt: NodeId,
        /// The log's.
        log: NodeId,
    },
    /// Something that the receipt shows is not among the entries.
    #[error("the log does not show {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// The log has things in an order in which they can't have happened.
    #[error("the log has {what} before what it follows from")]
    Causality {
        /// What.
        what: String,
    },
    /// An entry that the receipt contradicts.
    #[error("the log says of epoch {epoch} what the receipt contradicts")]
    Contradiction {
        /// Of which lease.
        epoch: LeaseEpoch,
    },
}
