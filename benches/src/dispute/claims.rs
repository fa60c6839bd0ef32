//! Who disputes, and what they signed: everything that a coordinator would have before it opens a dispute.

use anyhow::{Context, Result};
use lockstep_model::package::Package;
use lockstep_protocol::dispute::{Held, Partial, Signed, Terms};
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::receipt::{Run, WorkerReceipt};

use super::honest::Honest;
use super::lies::Lied;

/// Time enough for both sides: what is measured is not their hurry.
const BUDGET_MS: u64 = 3_600_000;

/// Those of the drawn tokens and of five likely ones.
const LOGPROBS: u8 = 6;

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
        let (temperature, top_p, logprobs) = (SAMPLING_ONE, 9_500, LOGPROBS);
        let generation = Generation { temperature, top_p, logprobs, ..Generation::greedy(2) };
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

/// The terms between the liar, who was halted where its run differs, and the honest one, whose run is whole. That of who lies
/// about log-probabilities is whole too.
pub(super) fn terms(honest: &Honest<'_>, keys: &Keys, lied: &Lied) -> Result<Terms> {
    let (job, words) = (honest.job, honest.words());
    let layers = u16::try_from(honest.package.program().layers.len() - 2)?;
    let geometry = job.header().geometry(layers)?;
    let [liar, other] = &keys.sides;
    let is_generation = job.kind.generation().is_some();
    let whole = |keys: &Keypair, epoch: u64, logprobs: &[i32]| {
        let run = Run {
            epoch: LeaseEpoch(epoch),
            layers,
            roots: honest.run.roots.clone(),
            words: words.clone(),
            output_count: u32::try_from(if is_generation { words.len() } else { honest.run.output.len() })?,
            work_units: honest.run.work_units,
            saturations: honest.run.saturations,
        };
        let receipt = WorkerReceipt::of_run(&job.header(), run, keys.id())?;
        Ok::<_, anyhow::Error>(Signed::Receipt(receipt.with_logprobs(logprobs).sign(keys)))
    };
    let lie = match &lied.logprobs {
        Some(logprobs) => whole(liar, 1, logprobs)?,
        None => {
            let partial = Partial::of_roots(job.id(), &geometry, LeaseEpoch(1), &lied.roots, &lied.words, liar.id());
            Signed::Partial(partial.context("the liar streamed no run of this job")?.sign(liar))
        }
    };
    let signed = [lie, whole(other, 2, honest.logprobs())?];
    let told = lied.logprobs.as_deref().unwrap_or_default();
    let held = [
        Held { signed: &signed[0], roots: &lied.roots, words: &lied.words, logprobs: told },
        Held { signed: &signed[1], roots: &honest.run.roots, words: &words, logprobs: honest.logprobs() },
    ];
    Ok(Terms::of_runs(keys.coordinator.id(), job.header(), layers, held, [BUDGET_MS; 2])?)
}
