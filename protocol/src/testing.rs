//! Values for the tests of this crate.

use crate::generation::{Generation, word_root};
use crate::identity::Keypair;
use crate::ids::{JobId, LeaseEpoch, ModelId, Nonce, Root, Salt, Seed};
use crate::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use crate::messages::JobResult;
use crate::receipt::{Run, WorkerReceipt};
use crate::trace::root_of_rows;

pub const LAYERS: u16 = 3;
pub const WORK: u64 = 50_000_000;
pub const OUTPUT: [i32; 4] = [1 << 29, -7, 0, i32::MIN];

pub fn keys(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}

/// The salt of a test's run.
pub fn salt(number: u8) -> Salt {
    Salt::from_bytes([number; 32])
}

pub fn root(value: u8) -> Root {
    Root::from_bytes([value; 32])
}

pub fn job(number: u8) -> Job {
    let nonce = Nonce::from_bytes([number; 32]);
    Job {
        spec_version: SPEC_VERSION,
        model: ModelId::from_bytes([0x44; 32]),
        kind: JobKind::Embedding,
        tokens: vec![101, 7592, u32::from(number), 102],
        request: RequestInput::Text(format!("text {number}")).hash(&nonce),
        seed: Seed::from_bytes([5; 32]),
        nonce,
    }
}

/// The right roots of a job on a model of [`LAYERS`] layers whose output is [`OUTPUT`].
pub fn right_roots(job: JobId) -> Vec<Root> {
    let mut roots: Vec<_> = (1..=LAYERS).map(|layer| root(job.as_bytes()[0] ^ layer as u8)).collect();
    roots.push(root_of_rows(&OUTPUT, OUTPUT.len()));
    roots
}

/// The run of an honest worker.
pub fn run(keys: &Keypair, job: &Job, epoch: LeaseEpoch) -> JobResult {
    run_with(keys, job, epoch, right_roots(job.id()))
}

/// The run of a worker that signs other roots, consistently.
pub fn run_with(keys: &Keypair, job: &Job, epoch: LeaseEpoch, roots: Vec<Root>) -> JobResult {
    let (output_count, work_units) = (OUTPUT.len() as u32, WORK);
    let run = Run { epoch, layers: LAYERS, roots, words: Vec::new(), output_count, work_units, saturations: 3 };
    let receipt = WorkerReceipt::of_run(&job.header(), run, keys.id()).unwrap();
    JobResult { receipt: receipt.sign(keys), output: OUTPUT.to_vec() }
}

/// A word that ends a run.
pub const STOP: u32 = 1 << 24 | 2;

/// A job that generates at most so many tokens.
pub fn generation(number: u8, max_tokens: u32) -> Job {
    Job { kind: JobKind::Generation(Box::new(Generation::greedy(max_tokens))), ..job(number) }
}

/// The work of [`generation`], by the number of points.
pub fn work_of(points: usize) -> u64 {
    WORK * (points as u64 + 3) + 1_000 * (points * points) as u64
}

/// The roots of a run that draws these words, on a model of [`LAYERS`] layers.
pub fn roots_of_words(job: JobId, words: &[u32]) -> Vec<Root> {
    let of_layer = |index: usize, layer: u16| {
        let seen = words[..index].iter().fold(u64::from(job.as_bytes()[0]), |sum, word| 31 * sum + u64::from(*word));
        Root::from(blake3::hash(&(seen + u64::from(layer)).to_le_bytes()))
    };
    let of_point = |(index, word): (usize, &u32)| {
        let layers = (1..=LAYERS).map(move |layer| of_layer(index, layer));
        layers.chain([word_root(*word)]).collect::<Vec<_>>()
    };
    words.iter().enumerate().flat_map(of_point).collect()
}

/// The run of a worker that drew these words and streamed these roots.
pub fn generated(keys: &Keypair, job: &Job, epoch: LeaseEpoch, words: &[u32], roots: Vec<Root>) -> JobResult {
    generated_with(keys, job, epoch, (words, &[]), roots)
}

/// The same with log-probabilities.
pub fn generated_with(
    keys: &Keypair,
    job: &Job,
    epoch: LeaseEpoch,
    (words, logprobs): (&[u32], &[i32]),
    roots: Vec<Root>,
) -> JobResult {
    let (output_count, work_units) = (words.len() as u32, work_of(words.len()));
    let run = Run { epoch, layers: LAYERS, roots, words: words.to_vec(), output_count, work_units, saturations: 0 };
    let receipt = WorkerReceipt::of_run(&job.header(), run, keys.id()).unwrap().with_logprobs(logprobs);
    let output = words.iter().map(|word| word.cast_signed()).chain(logprobs.iter().copied());
    JobResult { receipt: receipt.sign(keys), output: output.collect() }
}
