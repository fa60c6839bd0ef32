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
    /// The seed of a generation and a position to the draw there.
    Sample,
    /// The roots of one commitment point to their digest.
    Point,
    /// First value of a commitment chain.
    ChainStart,
    /// One step of a commitment chain.
    ChainStep,
    /// A worker's receipt: its digest, and what the worker signs.
    WorkerReceipt,
    /// What binds a worker to a run before it shows the run.
    RunCommitment,
    /// A coordinator's statement: its digest, and what the coordinator signs.
    Statement,
    /// The draw that decides whether and by whom a job is audited.
    AuditDraw,
    /// The draw that decides, before a job starts, whether and by whom it is audited side by side.
    LockstepDraw,
    /// A secret of a chain of draws to the one that is used before it.
    DrawChain,
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
    /// What a worker signs that has followed the transparency log to a head.
    LogCosignature,
    /// Postings of the ledger to what the transparency log says of them.
    LedgerBatch,
    /// A run that was stopped early: what its worker signs.
    PartialRun,
    /// The terms of a dispute to its id.
    Dispute,
    /// A move of a dispute: its digest, and what a side signs.
    DisputeMove,
    /// A round of a dispute to what the next moves are bound to.
    DisputeRound,
    /// An entry of a dispute's transcript: its digest, and what the coordinator signs.
    DisputeEntry,
    /// Some layers of a run: what the worker signs that computed them.
    Segment,
    /// Rows on their way to the worker that has the next layers: what their sender signs.
    HandOver,
    /// What proves that a sender signed something wrong: its digest.
    HandOverProof,
}

impl Domain {
    /// Every domain, for tests and for the table in SPEC.md.
    pub const ALL: [Self; 27] = [
        Self::JobId,
        Self::Request,
        Self::Sample,
        Self::Point,
        Self::ChainStart,
        Self::ChainStep,
        Self::WorkerReceipt,
        Self::RunCommitment,
        Self::Statement,
        Self::AuditDraw,
        Self::LockstepDraw,
        Self::DrawChain,
        Self::AuditorRank,
        Self::LogBlind,
        Self::LogLeaf,
        Self::LogNode,
        Self::LogHead,
        Self::LogCosignature,
        Self::LedgerBatch,
        Self::PartialRun,
        Self::Dispute,
        Self::DisputeMove,
        Self::DisputeRound,
        Self::DisputeEntry,
        Self::Segment,
        Self::HandOver,
        Self::HandOverProof,
    ];

    /// The context string.
    pub const fn context(self) -> &'static str {
        match self {
            Self::JobId => "lockstep 2026-11 v1 job id",
            Self::Request => "lockstep 2026-11 v1 request",
            Self::Sample => "lockstep 2026-11 v1 sample",
            Self::Point => "lockstep 2026-11 v1 point",
            Self::ChainStart => "lockstep 2026-11 v1 chain start",
            Self::ChainStep => "lockstep 2026-11 v1 chain step",
            Self::WorkerReceipt => "lockstep 2026-11 v1 worker receipt",
            Self::RunCommitment => "lockstep 2026-11 v1 run commitment",
            Self::Statement => "lockstep 2026-11 v1 coordinator statement",
            Self::AuditDraw => "lockstep 2026-11 v1 audit draw",
            Self::LockstepDraw => "lockstep 2026-11 v1 lockstep draw",
            Self::DrawChain => "lockstep 2026-11 v1 draw chain",
            Self::AuditorRank => "lockstep 2026-11 v1 auditor rank",
            Self::LogBlind => "lockstep 2026-11 v1 log blind",
            Self::LogLeaf => "lockstep 2026-11 v1 log leaf",
            Self::LogNode => "lockstep 2026-11 v1 log node",
            Self::LogHead => "lockstep 2026-11 v1 log head",
            Self::LogCosignature => "lockstep 2026-11 v1 log cosignature",
            Self::LedgerBatch => "lockstep 2026-11 v1 ledger batch",
            Self::PartialRun => "lockstep 2026-11 v1 partial run",
            Self::Dispute => "lockstep 2026-11 v1 dispute",
            Self::DisputeMove => "lockstep 2026-11 v1 dispute move",
            Self::DisputeRound => "lockstep 2026-11 v1 dispute round",
            Self::DisputeEntry => "lockstep 2026-11 v1 dispute entry",
            Self::Segment => "lockstep 2026-11 v1 segment",
            Self::HandOver => "lockstep 2026-11 v1 hand-over",
            Self::HandOverProof => "lockstep 2026-11 v1 hand-over proof",
        }
    }

    /// BLAKE3 of `bytes` in key derivation mode with this domain's context.
    pub fn hash(self, bytes: &[u8]) -> Digest {
        Digest::from_bytes(blake3::derive_key(self.context(), bytes))
    }
}
