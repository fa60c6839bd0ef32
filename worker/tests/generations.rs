//! Generations: words and roots as they come, many at once, hints, halts, cancels and refusals.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Coordinator, Peer, RunStream, decoder_package, event, package};
use lockstep_kernels::backend::{Backend, BackendError, Executor, Wrapper};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::{Batch, Params};
use lockstep_model::generation::Limits;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::ids::{LeaseEpoch, ModelId, Nonce, Place};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::messages::{FailureCode, JobMessage, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Event, Worker};

fn job(model: ModelId, number: u8, tokens: usize, max_tokens: u32) -> Job {
    // Some want log-probabilities.
    let generation = Generation { logprobs: number % 4, temperature: 9_000, ..Generation::greedy(max_tokens) };
    Job {
        kind: JobKind::Generation(Box::new(generation)),
        nonce: Nonce::from_bytes([number; 32]),
        ..common::job(model, number, tokens)
    }
}

fn cpu() -> Cpu {
    Cpu::new(None, 1).unwrap()
}

async fn failure(peer: &mut Peer) -> (FailureCode, String) {
    loop {
        match peer.hear().await {
            Some(ToCoordinator::Failed { code, reason, .. }) => return (code, reason),
            Some(ToCoordinator::HaveModel { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads until so many words came.
async fn read_words(stream: &mut RunStream, words: usize) {
    while stream.run.words.len() < words {
        stream.read_layers(stream.run.layers.len() + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_and_roots_are_streamed_and_the_receipt_binds_them() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(&dir.path().join("w"));
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    for (epoch, (tokens, words)) in (1..).zip([(1, 1), (17, 9), (300, 5)]) {
        let job = job(package.model_id(), epoch as u8, tokens, words);
        peer.assign(&job, epoch).await;
        peer.run().await.is_honest_generation(&package, &job, epoch, worker.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_with_hints_and_embeddings_between_them_give_what_each_gives_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (decoder, encoder) = (decoder_package(dir.path()), package(dir.path(), 32, 100));
    let coordinator = Coordinator::new();
    let config = coordinator.config(&dir.path().join("w"));
    let slow = Slow::new();
    let worker = Worker::start(config, Arc::new(slow.clone())).unwrap();
    let mut peer = coordinator.welcome().await;
    for (wanted, number) in [(&decoder, 100), (&encoder, 101)] {
        let served = peer.serve(wanted, |_, reply| Some(reply));
        let first = if number == 100 { job(wanted.model_id(), 1, 3, 2) } else { common::job(wanted.model_id(), 1, 3) };
        peer.assign(&first, number).await;
        assert!(peer.run().await.result.is_some());
        assert!(served.load(Ordering::SeqCst) > 0);
        peer.connection.close(9_u32.into(), b"the next package is served by another");
        peer = coordinator.welcome().await;
        let again = peer.run().await;
        assert!(again.result.is_some(), "what was not acknowledged is offered again");
        peer.say(ToWorker::Accepted { job: first.id(), epoch: LeaseEpoch(number) }).await;
    }
    let jobs: Vec<Job> = (2..8).map(|n| job(decoder.model_id(), n, 5 + 40 * usize::from(n % 3), 12)).collect();
    let embeddings: Vec<Job> = (20..23).map(|n| common::job(encoder.model_id(), n, 9)).collect();
    for (epoch, job) in (1..).zip(&jobs) {
        let again = rerun_job(&decoder, &cpu(), job, &[]).unwrap();
        let mut hint = words_of(&again.output[..again.roots.len() / 3]);
        match epoch % 3 {
            0 => hint.clear(),
            1 => hint[4] ^= 1,
            _ => {}
        }
        peer.assign_with(job, epoch, hint).await;
    }
    for (epoch, job) in (50..).zip(&embeddings) {
        peer.assign(job, epoch).await;
    }
    for _ in 0..jobs.len() + embeddings.len() {
        let run = peer.run().await;
        let (id, epoch) = run.begun[0];
        match jobs.iter().find(|job| job.id() == id) {
            Some(job) => run.is_honest_generation(&decoder, job, epoch.0, worker.id()),
            None => {
                let job = embeddings.iter().find(|job| job.id() == id).unwrap();
                run.is_honest(&encoder, job, epoch.0, worker.id());
            }
        }
    }
    assert!(slow.0.most.load(Ordering::SeqCst) > 1, "several shared a pass");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_a_generation_and_frees_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let slow = Slow::new();
    let worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(slow.clone())).unwrap();
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let long = job(package.model_id(), 1, 9, 600);
    peer.assign(&long, 1).await;
    let mut stream = peer.stream().await;
    read_words(&mut stream, 3).await;
    let before = slow.0.passes.load(Ordering::SeqCst);
    peer.say(ToWorker::Cancel { job: long.id(), epoch: LeaseEpoch(1) }).await;
    event(&mut events, |event| matches!(event, Event::Cancelled { .. }).then_some(())).await;
    let run = stream.read_to_end().await;
    assert!(run.broken && run.result.is_none());
    let next = job(package.model_id(), 2, 9, 4);
    peer.assign(&next, 2).await;
    peer.run().await.is_honest_generation(&package, &next, 2, worker.id());
    assert!(slow.0.passes.load(Ordering::SeqCst) - before < 300, "the cancelled generation went on to its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_is_answered_by_what_was_streamed_up_to_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(Slow::new())).unwrap();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 9, 600);
    peer.assign(&job, 1).await;
    let mut stream = peer.stream().await;
    read_words(&mut stream, 4).await;
    // The second layer of the third point.
    let place = Place { point: 10, layer: 2 };
    peer.say(ToWorker::Halt { job: job.id(), epoch: LeaseEpoch(1), place }).await;
    let JobMessage::Partial(signed) = peer.alone().await else { panic!("a partial run") };
    let partial = &signed.partial;
    let words: Vec<u32> = stream.run.words.iter().map(|(_, word)| *word).collect();
    let roots: Vec<_> = stream.run.layers.iter().map(|(_, root)| *root).collect();
    let geometry = job.header().geometry(2).unwrap();
    let trail = geometry.trail(&roots[..8]).unwrap();
    assert_eq!((&partial.points, &partial.roots), (&trail.points, &trail.roots));
    assert_eq!((&*partial.words, partial.worker), (&words[..2], worker.id()));
    assert_eq!(Some(partial.head), geometry.head(job.id(), LeaseEpoch(1), &roots[..8]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_acknowledged_is_offered_again_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(&dir.path().join("w"));
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 20, 7);
    peer.assign(&job, 1).await;
    let mut stream = peer.stream().await;
    stream.read_to_commitment().await;
    peer.connection.close(9_u32.into(), b"the test pulls the plug");
    let mut peer = coordinator.welcome().await;
    let again = peer.run().await;
    again.is_honest_generation(&package, &job, 1, worker.id());
    assert_eq!(again.commitment, stream.run.commitment);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_given_back_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let model = package.model_id();
    let fits = job(model, 4, 200, 50);
    let kind = (common::job(model, 1, 9), FailureCode::JobRefused, "kind of job");
    let long = (job(model, 2, 600, 102), FailureCode::JobRefused, "700 positions");
    let least = Limits::least_bytes(package.program());
    let said = format!("--generation-bytes must be at least {least}");
    let tight = (fits.clone(), FailureCode::ModelRefused, said.as_str());
    for (bytes, cases) in [(None, vec![kind, long]), (Some(least - 1), vec![tight]), (Some(least), vec![])] {
        let coordinator = Coordinator::new();
        let mut config = coordinator.config(&dir.path().join(format!("{bytes:?}")));
        config.generation_bytes = bytes;
        let worker = Worker::start(config, Arc::new(cpu())).unwrap();
        let mut peer = coordinator.welcome().await;
        peer.serve(&package, |_, reply| Some(reply));
        for (job, wanted, said) in cases {
            peer.assign(&job, 1).await;
            let (code, reason) = failure(&mut peer).await;
            assert!(code == wanted && reason.contains(said), "{code:?}: {reason}");
        }
        if bytes != Some(least - 1) {
            peer.assign(&fits, 2).await;
            peer.run().await.is_honest_generation(&package, &fits, 2, worker.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_the_memory_for_it_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let (package, home) = (decoder_package(dir.path()), dir.path().join("w"));
    common::hold(&home, &package, &dir.path().join("decoder-1.lsp"));
    let least = Limits::least_bytes(package.program());
    let params: u64 = package.program().params.iter().map(|param| param.bytes().unwrap()).sum();
    let coordinator = Coordinator::new();
    let for_generations = "--generation-bytes must be at least";
    let for_both = "its parameters take";
    for (bytes, memory, said) in [
        (least - 1, params + least, for_generations),
        (least, params + least - 1, for_both),
        (least, params + least, ""),
    ] {
        let mut config = coordinator.config(&home);
        (config.generation_bytes, config.memory_bytes) = (Some(bytes), Some(memory));
        let mut worker = Worker::start(config, Arc::new(cpu())).unwrap();
        let mut events = worker.subscribe();
        let peer = coordinator.welcome().await;
        assert_eq!(peer.hello.models.contains(&package.model_id()), said.is_empty());
        if !said.is_empty() {
            let reason = event(&mut events, |event| match event {
                Event::ModelFailed { reason, .. } => Some(reason),
                _ => None,
            });
            let reason = reason.await;
            assert!(reason.contains(said) && reason.contains("--generation-bytes"), "{reason}");
        }
        worker.drain();
        common::within(worker.wait()).await.unwrap();
    }
    // What leaves no memory for any model is a mistake.
    let mut config = coordinator.config(&home);
    (config.generation_bytes, config.memory_bytes) = (Some(least), Some(least));
    let mut worker = Worker::start(config, Arc::new(cpu())).unwrap();
    let error = common::within(worker.wait()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Configuration && error.to_string().contains("--generation-bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_generations_that_run() {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let mut worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(Slow::new())).unwrap();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 9, 40);
    peer.assign(&job, 1).await;
    let mut stream = peer.stream().await;
    read_words(&mut stream, 2).await;
    worker.drain();
    stream.read_to_commitment().await;
    peer.reveal(&stream.run).await;
    stream.read_to_end().await.is_honest_generation(&package, &job, 1, worker.id());
    peer.say(ToWorker::Accepted { job: job.id(), epoch: LeaseEpoch(1) }).await;
    common::within(worker.wait()).await.unwrap();
}

/// A backend whose passes over the tests' decoder take a few milliseconds, and are counted.
#[derive(Clone)]
struct Slow(Arc<Counts>);

#[derive(Default)]
struct Counts {
    passes: AtomicUsize,
    /// Most sequences of a pass.
    most: AtomicUsize,
}

impl Slow {
    fn new() -> Self {
        Self(Arc::default())
    }
}

impl Backend for Slow {
    fn name(&self) -> String {
        cpu().name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let is_slow = program.tensors.last().is_some_and(|tensor| tensor.name == "word");
        let counts = Arc::clone(&self.0);
        Ok(Box::new(Slowed { inner: cpu().load(program, params)?, counts, is_slow }))
    }
}

struct Slowed {
    inner: Box<dyn Executor>,
    counts: Arc<Counts>,
    is_slow: bool,
}

impl Wrapper for Slowed {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        if self.is_slow {
            self.counts.passes.fetch_add(1, Ordering::SeqCst);
            self.counts.most.fetch_max(batch.sequences.len(), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
        self.inner.begin(batch)
    }
}
