//! Who disputes, and what they signed: everything that a coordinator would have before it opens a dispute.

use anyhow::Result;
use lockstep_model::package::Package;
use lockstep_model::rerun::Rerun;
use lockstep_protocol::dispute::{Claim, Terms};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::receipt::{Run, WorkerReceipt};

/// Time enough for both sides: what is measured is not their hurry.
const BUDGET_MS: u64 = 3_600_000;

/// The keys of everybody.
pub(super) struct Keys {
    pub coordinator: Keypair,
    /// Claimant and challenger.
    pub sides: [Keypair; 2],
}

impl Keys {
    /// Any will do.
    pub fn new() -> Self {
        let keys = |seed: u8| Keypair::from_seed([seed; 32]);
        Self { coordinator: keys(1), sides: [keys(2), keys(3)] }
    }
}

/// A job over these tokens.
pub(super) fn job(package: &Package, tokens: Vec<u32>) -> Job {
    let nonce = Nonce::from_bytes([7; 32]);
    Job {
        spec_version: SPEC_VERSION,
        model: package.model_id(),
        kind: JobKind::Embedding,
        request: RequestInput::Tokens(tokens.clone()).hash(&nonce),
        seed: Seed::from_bytes([8; 32]),
        nonce,
        tokens,
    }
}

/// The terms between the liar, who is challenged, and the honest one.
pub(super) fn terms(package: &Package, job: &Job, keys: &Keys, runs: [&Rerun; 2]) -> Result<Terms> {
    let layers = u16::try_from(package.program().layers.len() - 2)?;
    let claim = |side: usize| -> Result<Claim> {
        let run = Run {
            epoch: LeaseEpoch(1 + side as u64),
            layers,
            roots: runs[side].roots.clone(),
            words: Vec::new(),
            output_count: u32::try_from(runs[side].output.len())?,
            work_units: package.program().macs(job.tokens.len() as u64, 0),
            saturations: runs[side].saturations,
        };
        let keys = &keys.sides[side];
        Ok(WorkerReceipt::of_run(&job.header(), run, keys.id())?.sign(keys).into())
    };
    let (coordinator, header) = (keys.coordinator.id(), job.header());
    Ok(Terms::between(coordinator, header, layers, [claim(0)?, claim(1)?], Vec::new(), [BUDGET_MS; 2])?)
}
