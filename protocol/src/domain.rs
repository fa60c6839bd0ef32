//! Every purpose for which this protocol hashes or signs, so that no value of one purpose can pass
//! for a value of another.

use crate::ids::Digest;

/// A purpose. Its context string goes into BLAKE3's key derivation mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Job header to job id.
    JobId,
    /// Nonce and request to request hash.
    Request,
    /// First value of a commitment chain.
    ChainStart,
    /// One step of a commitment chain.
    ChainStep,
    /// A worker's receipt: its digest, and what the worker signs.
    WorkerReceipt,
    /// A coordinator's statement: its digest, and what the coordinator signs.
    Statement,
    /// The draw that decides whether and by whom a job is audited.
    AuditDraw,
    /// The rank of a worker among the possible auditors of a job.
    AuditorRank,
    /// The blind of a leaf of the transparency log.
    LogBlind,
    /// A blinded entry of the transparency log to its leaf.
    LogLeaf,
    /// Two nodes of the transparency log to the one above them.
    LogNode,
    /// A head of the transparency log: what the coordinator signs.
    LogHead,
}

impl Domain {
    /// Every domain, for tests and for the table in SPEC.md.
    pub const ALL: [Self; 12] = [
        Self::JobId,
        Self::Request,
        Self::ChainStart,
        Self::ChainStep,
        Self::WorkerReceipt,
        Self::Statement,
        Self::AuditDraw,
        Self::AuditorRank,
        Self::LogBlind,
        Self::LogLeaf,
        Self::LogNode,
        Self::LogHead,
    ];

    /// The context string.
    pub const fn context(self) -> &'static str {
        match self {
            Self::JobId => "lockstep 2026-11 v1 job id",
            Self::Request => "lockstep 2026-11 v1 request",
            Self::ChainStart => "lockstep 2026-11 v1 chain start",
            Self::ChainStep => "lockstep 2026-11 v1 chain step",
            Self::WorkerReceipt => "lockstep 2026-11 v1 worker receipt",
            Self::Statement => "lockstep 2026-11 v1 coordinator statement",
            Self::AuditDraw => "lockstep 2026-11 v1 audit draw",
            Self::AuditorRank => "lockstep 2026-11 v1 auditor rank",
            Self::LogBlind => "lockstep 2026-11 v1 log blind",
            Self::LogLeaf => "lockstep 2026-11 v1 log leaf",
            Self::LogNode => "lockstep 2026-11 v1 log node",
            Self::LogHead => "lockstep 2026-11 v1 log head",
        }
    }

    /// BLAKE3 of `bytes` in key derivation mode with this domain's context.
    pub fn hash(self, bytes: &[u8]) -> Digest {
        Digest::from_bytes(blake3::derive_key(self.context(), bytes))
    }
}
