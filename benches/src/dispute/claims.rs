//! Who disputes, and what they signed: everything that a coordinator would have before it opens a dispute.

use anyhow::Result;
use lockstep_model::package::Package;
use lockstep_model::rerun::Rerun;
use lockstep_protocol::dispute::{Held, Signed, Terms};
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
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

/// A job over these tokens: an embedding, or two words that follow them.
pub(super) fn job(package: &Package, tokens: Vec<u32>) -> Job {
    let generation = || {
        let generation = Generation { temperature: SAMPLING_ONE, top_p: 9_500, ..Generation::greedy(2) };
        JobKind::Generation(Box::new(generation))
    };
    let nonce = Nonce::from_bytes([7; 32]);
    Job {
        spec_version: SPEC_VERSION,
        model: package.model_id(),
        kind: if package.program().is_decoder() { generation() } else { JobKind::Embedding },
        request: RequestInput::Tokens(tokens.clone()).hash(&nonce),
        seed: Seed::from_bytes([8; 32]),
        nonce,
        tokens,
    }
}

/// The terms between the liar, who is challenged, and the honest one.
pub(super) fn terms(package: &Package, job: &Job, keys: &Keys, runs: [&Rerun; 2]) -> Result<Terms> {
    let layers = u16::try_from(package.program().layers.len() - 2)?;
    let words = runs.map(|run| match job.kind {
        JobKind::Embedding => Vec::new(),
        JobKind::Generation(_) => run.output.iter().map(|word| word.cast_unsigned()).collect::<Vec<_>>(),
    });
    let sign = |side: usize| -> Result<Signed> {
        let run = Run {
            epoch: LeaseEpoch(1 + side as u64),
            layers,
            roots: runs[side].roots.clone(),
            words: words[side].clone(),
            output_count: u32::try_from(runs[side].output.len())?,
            work_units: runs[side].work_units,
            saturations: runs[side].saturations,
        };
        let keys = &keys.sides[side];
        Ok(Signed::Receipt(WorkerReceipt::of_run(&job.header(), run, keys.id())?.sign(keys)))
    };
    let signed = [sign(0)?, sign(1)?];
    let held = [0, 1].map(|side| Held { signed: &signed[side], roots: &runs[side].roots, words: &words[side] });
    Ok(Terms::of_runs(keys.coordinator.id(), job.header(), layers, held, [BUDGET_MS; 2])?)
}
