//! Runs that nobody computed: jobs, roots and receipts that a coordinator takes as it takes a worker's. What is measured
//! with them is the coordinator, and no model.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use lockstep_protocol::commitment::{Geometry, RunCommitment};
use lockstep_protocol::generation::{Generation, word_root};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, ModelId, Nonce, Root, Salt, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::machine::{AuditPolicy, JobSpec, Streamed, Work};
use lockstep_protocol::messages::{JobMessage, JobResult, to_frame};
use lockstep_protocol::receipt::{Run, WorkerReceipt};

/// Never audits: what is measured are first runs.
const NEVER: AuditPolicy =
    AuditPolicy { per_mille: 0, auditors: 1, hold: false, distinct_operators: false, lockstep: false };
/// Multiply-accumulates that a run claims.
const WORK: u64 = 1_000;
/// Hides nothing.
pub(super) const SALT: Salt = Salt::from_bytes([0x5a; 32]);
/// Credits that are enough for any bond here.
pub(super) const GRANT: u64 = 1 << 40;

/// The shape of a run: it commits to `layers` and the word at each of `points`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Transformer layers.
    pub layers: u16,
    /// Commitment points.
    pub points: u32,
}

impl Shape {
    /// Commitment records of a run: a root for each layer and for the word, at each point.
    pub fn records(self) -> usize {
        self.points as usize * (usize::from(self.layers) + 1)
    }
}

/// The model that all jobs name; nobody has it.
pub(super) fn model() -> ModelId {
    ModelId::from_bytes([0x4d; 32])
}

/// The keys of worker `number`.
pub(super) fn keys(number: usize) -> Keypair {
    let mut seed = [0x77; 32];
    seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Keypair::from_seed(seed)
}

/// Job `number`.
pub(super) fn spec(number: usize, shape: Shape) -> JobSpec {
    let mut nonce = [0x11; 32];
    nonce[..8].copy_from_slice(&(number as u64).to_le_bytes());
    let (nonce, tokens) = (Nonce::from_bytes(nonce), vec![1, 2, 3]);
    let job = Job {
        spec_version: SPEC_VERSION,
        model: model(),
        kind: JobKind::Generation(Box::new(Generation::greedy(shape.points))),
        request: RequestInput::Tokens(tokens.clone()).hash(&nonce),
        tokens,
        seed: Seed::from_bytes([5; 32]),
        nonce,
    };
    let (layers, output_count) = (shape.layers, shape.points);
    JobSpec { job: Arc::new(job), layers, output_count, work: Work::fixed(WORK), policy: NEVER, planted: None }
}

/// The words of a run: the last one ends it for its length.
pub(super) fn words(shape: Shape) -> Vec<u32> {
    (1..=shape.points).map(|point| if point == shape.points { 3 << 24 | 9 } else { 5 }).collect()
}

/// The roots of a run in stream order.
pub(super) fn roots(shape: Shape) -> Vec<Root> {
    let layers: Vec<Root> = (1..=shape.layers).map(|layer| Root::from_bytes([layer as u8; 32])).collect();
    words(shape).into_iter().flat_map(|word| layers.iter().copied().chain([word_root(word)])).collect()
}

/// All that is streamed of a run: its roots, and the word of each point before the last of that.
pub(super) fn streamed(geometry: &Geometry, shape: Shape, roots: &[Root]) -> Vec<Streamed> {
    let (words, last) = (words(shape), shape.layers + 1);
    let mut said = Vec::with_capacity(roots.len() + words.len());
    for (index, (place, root)) in geometry.places().zip(roots).enumerate() {
        if place.layer == last {
            said.push(Streamed::Word(words[index / usize::from(last)], Vec::new()));
        }
        said.push(Streamed::Root(place, *root));
    }
    said
}

/// What a worker signs at the end of a run.
pub(super) struct Signed {
    pub commitment: RunCommitment,
    pub result: JobResult,
}

/// Signs a run.
pub(super) fn sign(keys: &Keypair, job: &Job, epoch: LeaseEpoch, shape: Shape, roots: Vec<Root>) -> Result<Signed> {
    Premade::of_roots(job, shape, roots)?.sign(keys, job, epoch)
}

/// All of a run that does not depend on its job's id and lease: what a worker streams, and most of what it signs.
pub(super) struct Premade {
    /// All roots and words, as they go over a job stream.
    pub frames: Bytes,
    shape: Shape,
    /// A receipt of any job of this shape.
    receipt: WorkerReceipt,
    output: Vec<i32>,
}

impl Premade {
    /// The run of this and any other job of the shape.
    pub fn new(job: &Job, shape: Shape) -> Result<Self> {
        let (roots, mut frames) = (roots(shape), Vec::new());
        for said in streamed(&geometry(job, shape)?, shape, &roots) {
            let message = match said {
                Streamed::Root(place, root) => JobMessage::Layer { place, root },
                Streamed::Word(word, logprobs) => JobMessage::Token { word, logprobs },
            };
            frames.extend(to_frame(&message)?);
        }
        Ok(Self { frames: frames.into(), ..Self::of_roots(job, shape, roots)? })
    }

    fn of_roots(job: &Job, shape: Shape, roots: Vec<Root>) -> Result<Self> {
        let words = words(shape);
        let (layers, output) = (shape.layers, words.iter().map(|word| word.cast_signed()).collect());
        let (epoch, output_count) = (LeaseEpoch(0), shape.points);
        let run = Run { epoch, layers, roots, words, output_count, work_units: WORK, saturations: 0 };
        let receipt = WorkerReceipt::of_run(&job.header(), run, keys(0).id())?;
        Ok(Self { frames: Bytes::new(), shape, receipt, output })
    }

    /// Signs it for a job of the shape.
    pub fn sign(&self, keys: &Keypair, job: &Job, epoch: LeaseEpoch) -> Result<Signed> {
        let (id, worker) = (job.id(), keys.id());
        let mut receipt = self.receipt.clone();
        let head = geometry(job, self.shape)?.head_of(id, epoch, &receipt.points, &receipt.roots);
        receipt.head = head.context("a run has roots")?;
        (receipt.job, receipt.request, receipt.epoch, receipt.worker) = (id, job.request, epoch, worker);
        let commitment = RunCommitment::of(id, epoch, worker, &SALT, &receipt.head);
        Ok(Signed { commitment, result: JobResult { receipt: receipt.sign(keys), output: self.output.clone() } })
    }
}

/// Where a job commits.
pub(super) fn geometry(job: &Job, shape: Shape) -> Result<Geometry> {
    Ok(job.header().geometry(shape.layers)?)
}

/// A run with its job, signed.
#[derive(Clone, Debug)]
pub struct SignedRun {
    /// The job.
    pub job: Arc<Job>,
    /// All roots, in stream order.
    pub roots: Vec<Root>,
    /// What its worker signed.
    pub result: JobResult,
}

/// A run of this shape, signed.
///
/// # Errors
/// No job has that shape.
pub fn signed_run(shape: Shape) -> Result<SignedRun> {
    let (job, roots) = (spec(0, shape).job, roots(shape));
    let result = sign(&keys(1), &job, LeaseEpoch(1), shape, roots.clone())?.result;
    Ok(SignedRun { job, roots, result })
}
