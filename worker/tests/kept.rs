//! What a dispute about a generation costs its worker: the disputed layer, where the run's rows are kept.

mod common;
#[path = "common/table.rs"]
mod table;
#[path = "common/watched.rs"]
mod watched;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Coordinator, Peer, decoder_package};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{Op, Program, Rows};
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::value::Value;
use lockstep_link::keyfile::load_or_create;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::dispute::{Held, Side, Signed, Terms};
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, ModelId, Nonce, Place, Root};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::receipt::{Run, WorkerReceipt};
use lockstep_worker::{Handle, Worker};
use table::{BUDGET_MS, Table, other_keys};
use watched::Watched;

/// Transformer layers of the tests' decoder.
const LAYERS: u16 = 2;

fn is_decoder(program: &Program) -> bool {
    program.tensors.last().is_some_and(|tensor| tensor.name == "word")
}

/// A backend that counts the layers of the tests' decoder that it runs, and the rows of layer 1.
fn counting(layers: &Arc<AtomicUsize>, rows: &Arc<AtomicUsize>) -> Watched {
    let (layers, rows) = (Arc::clone(layers), Arc::clone(rows));
    Watched::new(move |ran| {
        if is_decoder(ran.program) {
            layers.fetch_add(1, Ordering::SeqCst);
            rows.fetch_add(if ran.layer == 1 { ran.batch.rows() } else { 0 }, Ordering::SeqCst);
        }
    })
}

/// A backend that changes the output of a layer at a position, when it runs a sequence alone, and computes on from it. Of
/// log-probabilities, which come after the last layer, it changes the logits once the word is drawn.
fn liar(place: Place) -> Watched {
    Watched::new(move |ran| {
        let (layer, last) = (&ran.program.layers[ran.layer], ran.program.layers.len() - 1);
        if !is_decoder(ran.program) || ran.layer != usize::from(place.layer).min(last) {
            return;
        }
        let is_of_logprobs = usize::from(place.layer) > last;
        let logits = layer.ops.iter().find_map(|op| match op {
            Op::Sample { logits, .. } => Some(*logits),
            _ => None,
        });
        let output = logits.filter(|_| is_of_logprobs).unwrap_or(layer.output);
        let (sequence, tensor) = (&ran.batch.sequences[0], ran.program.tensor(output));
        let first = if tensor.rows == Rows::Point { sequence.points().start } else { sequence.start };
        let Value::I32(mut rows) = ran.executor.read(output).unwrap() else { panic!("outputs are i32") };
        let row = (place.point as usize).checked_sub(first).map(|row| row * tensor.cols as usize);
        if let Some(element) = row.and_then(|row| rows.get_mut(row)) {
            // Of a word another token, and the same finish.
            let other = if split_word(element.cast_unsigned()).0 > 0 { *element - 1 } else { *element + 1 };
            *element = if is_of_logprobs { i32::MAX } else { other };
            ran.executor.write(output, Value::I32(rows)).unwrap();
        }
    })
}

/// A worker's folder with a key and the model, and a coordinator.
struct Scene {
    _dir: tempfile::TempDir,
    data: PathBuf,
    package: Package,
    coordinator: Coordinator,
    keys: Keypair,
    /// Layers that the worker ran, and rows of layer 1.
    layers: Arc<AtomicUsize>,
    rows: Arc<AtomicUsize>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (package, data) = (decoder_package(dir.path()), dir.path().join("w"));
        common::hold(&data, &package, &dir.path().join("decoder-1.lsp"));
        let keys = load_or_create(&data.join("worker.key")).unwrap();
        let (layers, rows) = (Arc::default(), Arc::default());
        Self { _dir: dir, data, package, coordinator: Coordinator::new(), keys, layers, rows }
    }

    async fn start(&self, kept_bytes: u64) -> (Handle, Peer) {
        let mut config = self.coordinator.config(&self.data);
        config.kept_runs_bytes = kept_bytes;
        let worker = Worker::start(config, Arc::new(counting(&self.layers, &self.rows))).unwrap();
        (worker, self.coordinator.welcome().await)
    }

    fn job(&self, number: u8, tokens: usize) -> Job {
        job(self.package.model_id(), number, tokens)
    }

    /// Lets the worker run a job to its end. Returns how many rows it computed.
    async fn run(&self, peer: &mut Peer, job: &Job, epoch: u64, hint: Vec<u32>) -> usize {
        let before = self.rows.load(Ordering::SeqCst);
        peer.assign_with(job, epoch, hint).await;
        peer.run().await.is_honest_generation(&self.package, job, epoch, self.keys.id());
        self.rows.load(Ordering::SeqCst) - before
    }

    /// A dispute with a liar about a place of the job's run, to its end. Returns how many layers the worker ran for it.
    async fn dispute(&self, peer: &mut Peer, job: &Job, place: Place) -> usize {
        let (honest, lying) = (Cpu::new(None, 1).unwrap(), liar(place));
        let runs = [run(&self.package, &honest, job, 1, &self.keys), run(&self.package, &lying, job, 2, &other_keys())];
        let held = runs.each_ref().map(|(signed, roots, words, logprobs)| Held { signed, roots, words, logprobs });
        let terms = Terms::of_runs(common::keys().id(), job.header(), LAYERS, held, [BUDGET_MS; 2]).unwrap();
        assert_eq!(terms.check().unwrap().place, place);
        let mut table = Table::new(&self.package, job, terms, Side::Claimant, &lying);
        let before = self.layers.load(Ordering::SeqCst);
        let (verdict, _) = table.play(peer).await;
        assert_eq!(verdict.losers, [false, true], "{verdict:?}");
        self.layers.load(Ordering::SeqCst) - before
    }
}

fn asked() -> Generation {
    Generation { temperature: 9_000, repetition_penalty: 11_000, logprobs: 3, ..Generation::greedy(9) }
}

/// Words and log-probabilities.
fn split(output: &[i32]) -> (Vec<u32>, Vec<i32>) {
    let (words, logprobs) = output.split_at(output.len() / asked().values_per_point());
    (words_of(words), logprobs.to_vec())
}

fn job(model: ModelId, number: u8, tokens: usize) -> Job {
    Job {
        kind: JobKind::Generation(Box::new(asked())),
        nonce: Nonce::from_bytes([number; 32]),
        ..common::job(model, number, tokens)
    }
}

/// What a key signs that ran a job on this backend, with all its roots, words and log-probabilities.
fn run(
    package: &Package,
    backend: &dyn Backend,
    job: &Job,
    epoch: u64,
    keys: &Keypair,
) -> (Signed, Vec<Root>, Vec<u32>, Vec<i32>) {
    let ran = rerun_job(package, backend, job, &[]).unwrap();
    let (words, logprobs) = split(&ran.output);
    let of = Run {
        epoch: LeaseEpoch(epoch),
        layers: LAYERS,
        roots: ran.roots.clone(),
        words: words.clone(),
        output_count: words.len() as u32,
        work_units: ran.work_units,
        saturations: ran.saturations,
    };
    let receipt = WorkerReceipt::of_run(&job.header(), of, keys.id()).unwrap().with_logprobs(&logprobs).sign(keys);
    (Signed::Receipt(receipt), ran.roots, words, logprobs)
}

/// The last layer starts from the output of the one before it, and samples one word; so do log-probabilities, which come after
/// it. The first one starts from the tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_about_a_generation_that_is_kept_takes_its_layer_alone() {
    for (kept_bytes, layers) in [(u64::MAX, [2, 1, 1, 1]), (0, [2, 3, 4, 4])] {
        let scene = Scene::new();
        let (_worker, mut peer) = scene.start(kept_bytes).await;
        let job = scene.job(1, 70);
        scene.run(&mut peer, &job, 1, Vec::new()).await;
        for point in [69, 72] {
            for (layer, expected) in (1..).zip(layers) {
                let ran = scene.dispute(&mut peer, &job, Place { point, layer }).await;
                assert_eq!(ran, expected, "layer {layer} at {point}, {kept_bytes} bytes");
            }
        }
    }
}

/// An auditor's run is kept as well, whatever was wrong with the words that it was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_of_a_generation_is_kept_whatever_its_hint() {
    let scene = Scene::new();
    let (_worker, mut peer) = scene.start(u64::MAX).await;
    for (number, wrong) in [(1, None), (2, Some(3))] {
        let job = scene.job(number, 62);
        let (mut hint, _) = split(&rerun_job(&scene.package, &Cpu::new(None, 1).unwrap(), &job, &[]).unwrap().output);
        if let Some(wrong) = wrong {
            hint[wrong] = (hint[wrong] + 1) % 61;
        }
        scene.run(&mut peer, &job, number.into(), hint).await;
        for point in [61, 66, 68] {
            assert_eq!(scene.dispute(&mut peer, &job, Place { point, layer: 2 }).await, 1, "{wrong:?} at {point}");
        }
    }
}

/// A run that starts from another one's prefix shares its rows while they are kept, and is not kept where they are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_starts_from_a_kept_prefix_is_kept_where_the_prefix_is() {
    let (first, second, third) = (300, 290, 400);
    // Room for one run of these and no more: 24 columns of 4 bytes in two layers, in blocks of 64 positions.
    let bytes = |positions: usize| (positions + 8).next_multiple_of(64) as u64 * 2 * 24 * 4;
    for (kept_bytes, expected) in [(u64::MAX, 1), (bytes(third), 3)] {
        let scene = Scene::new();
        let (_worker, mut peer) = scene.start(kept_bytes).await;
        let mut jobs = [scene.job(1, first), scene.job(2, second), scene.job(3, third)];
        let shared = jobs[0].tokens[..second - 1].to_vec();
        jobs[1].tokens[..second - 1].copy_from_slice(&shared);
        let positions = |tokens: usize| tokens + 8;
        assert_eq!(scene.run(&mut peer, &jobs[0], 1, Vec::new()).await, positions(first));
        assert_eq!(scene.run(&mut peer, &jobs[2], 3, Vec::new()).await, positions(third));
        assert_eq!(scene.run(&mut peer, &jobs[1], 2, Vec::new()).await, positions(second) - 256, "it starts at a page");
        for point in [289, 293] {
            let ran = scene.dispute(&mut peer, &jobs[1], Place { point, layer: 2 }).await;
            assert_eq!(ran, expected, "{point} {kept_bytes}");
        }
    }
}

/// Of runs that share passes each has its own rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_that_run_together_are_kept_each_by_itself() {
    let scene = Scene::new();
    let (_worker, mut peer) = scene.start(u64::MAX).await;
    let jobs: Vec<Job> = (1..=4).map(|number| scene.job(number, 5 + 61 * usize::from(number % 2))).collect();
    for (epoch, job) in (1..).zip(&jobs) {
        peer.assign(job, epoch).await;
    }
    for _ in &jobs {
        assert!(peer.run().await.result.is_some());
    }
    for job in &jobs {
        let point = job.tokens.len() as u32 + 2;
        assert_eq!(scene.dispute(&mut peer, job, Place { point, layer: 2 }).await, 1);
    }
}
