//! The thread that computes.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Batch;
use lockstep_model::embed::{EmbedError, Layer, embed};
use lockstep_model::generation::{Limits, Recorder};
use lockstep_model::output::{Output, Wanted};
use lockstep_protocol::commitment::Geometry;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::Root;
use lockstep_protocol::limits::{WORKER_LAYERS_AHEAD, WORKER_LOADED_MODELS};
use lockstep_protocol::messages::{FailureCode, JobResult};
use lockstep_protocol::receipt::{Run, WorkerReceipt};

use crate::batch::{Failure, Queue, Step, Task};
use crate::generation::Generations;
use crate::kept::{KeptRuns, Recording};
use crate::store::Model;

/// The computing thread. It ends after its current batch when it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Engine {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    pub fn start(
        backend: Arc<dyn Backend>,
        keys: Keypair,
        batch_tokens: usize,
        kept: Arc<KeptRuns>,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let waiting = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let mut generations = Generations::new(Arc::clone(&backend), keys.clone(), limits, Arc::clone(&kept));
            let mut runner = Runner { backend, keys, kept, loaded: Vec::new() };
            // Batches and passes take turns.
            while let Some(work) = waiting.next(batch_tokens, generations.is_idle()) {
                if !work.batch.is_empty() {
                    runner.run(&work.batch);
                }
                work.generations.into_iter().for_each(|task| generations.submit(task));
                generations.step();
            }
        })?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    pub fn submit(&self, task: Task) {
        self.queue.push(task);
    }

    /// Waits for the thread's end. Blocks for as long as a layer takes, or a pass of generations, when its tasks are
    /// cancelled.
    pub fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches the panics of backends; there is no other.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct Runner {
    backend: Arc<dyn Backend>,
    keys: Keypair,
    kept: Arc<KeptRuns>,
    /// The most recently used last.
    loaded: Vec<(Arc<Model>, Box<dyn Executor>)>,
}

/// What a batch gives, one of each for every task.
struct Computed {
    roots: Vec<Vec<Root>>,
    /// Of those that are to be kept.
    recordings: Vec<Option<Box<Recording>>>,
    outputs: Vec<Vec<i32>>,
    saturations: Vec<u64>,
}

impl Runner {
    fn run(&mut self, tasks: &[Task]) {
        let model = Arc::clone(&tasks[0].model);
        // An executor that failed or panicked is not used again.
        let computed = catch_unwind(AssertUnwindSafe(|| {
            let mut executor = self.executor(&tasks[0])?;
            let start = Instant::now();
            for task in tasks {
                task.say(Step::Started { batch: tasks.len() });
            }
            let computed = compute(&mut *executor, tasks, &self.kept);
            if !matches!(computed, Err(EmbedError::Backend(_))) {
                self.loaded.push((Arc::clone(&model), executor));
            }
            computed.map(|computed| (computed, start.elapsed()))
        }));
        let failure = match computed {
            Ok(Ok((computed, elapsed))) => return self.report(tasks, computed, elapsed),
            // All of them were cancelled.
            Ok(Err(EmbedError::Stopped { .. })) => return,
            Ok(Err(EmbedError::Backend(error))) => Failure::from(&error),
            Err(_) => Failure::panicked(),
        };
        for task in tasks {
            task.say(Step::Failed(failure.clone()));
        }
    }

    /// Takes the model's executor out, loaded if it was not.
    fn executor(&mut self, task: &Task) -> Result<Box<dyn Executor>, BackendError> {
        let id = task.header.model;
        // A package that was found damaged and pulled again has the same id, and its executor may read damaged bytes.
        self.loaded.retain(|(model, _)| model.package.model_id() != id || Arc::ptr_eq(model, &task.model));
        if let Some(at) = self.loaded.iter().position(|(model, _)| model.package.model_id() == id) {
            return Ok(self.loaded.remove(at).1);
        }
        if self.loaded.len() >= WORKER_LOADED_MODELS {
            self.loaded.remove(0);
        }
        let package = &task.model.package;
        self.backend.load(Arc::clone(package.program()), package.params())
    }

    fn report(&self, tasks: &[Task], computed: Computed, elapsed: Duration) {
        let Computed { roots, recordings, outputs, saturations } = computed;
        // Before the result is out: whoever gets it may dispute it.
        for (task, recording) in tasks.iter().zip(recordings) {
            if let Some(recording) = recording {
                recording.finish(&task.tokens);
            }
        }
        for (((task, roots), output), saturations) in tasks.iter().zip(roots).zip(outputs).zip(saturations) {
            if task.is_cancelled() {
                continue;
            }
            let finished = Finished { roots, words: Vec::new(), output, saturations };
            task.say(sign(task, finished, &self.keys, elapsed));
        }
    }
}

/// A run that came to its end.
pub(crate) struct Finished {
    pub roots: Vec<Root>,
    /// Of an embedding none.
    pub words: Vec<u32>,
    /// Of a generation the words, and the log-probabilities that the job asks for.
    pub output: Vec<i32>,
    pub saturations: u64,
}

/// The end of a task, with a receipt for it.
pub(crate) fn sign(task: &Task, finished: Finished, keys: &Keypair, elapsed: Duration) -> Step {
    match result_of(task, &finished, keys) {
        Some(result) => Step::Done { result: Box::new(result), roots: finished.roots, elapsed },
        None => Step::Failed(Failure::new(FailureCode::Internal, "the run has another shape than its job")),
    }
}

fn result_of(task: &Task, finished: &Finished, keys: &Keypair) -> Option<JobResult> {
    let header = &task.header;
    let points = finished.words.len() as u64;
    let count = if points == 0 { finished.output.len() } else { finished.words.len() };
    // The last word is no input.
    let positions = u64::from(header.token_count) + points.saturating_sub(1);
    let run = Run {
        epoch: task.key.1,
        layers: task.model.layers,
        roots: finished.roots.clone(),
        words: finished.words.clone(),
        output_count: u32::try_from(count).ok()?,
        work_units: task.model.package.program().macs(positions, points),
        saturations: finished.saturations,
    };
    let receipt = WorkerReceipt::of_run(header, run, keys.id()).ok()?.with_logprobs(&finished.output[count..]);
    Some(JobResult { receipt: receipt.sign(keys), output: finished.output.clone() })
}

/// A finished layer on its way to be hashed.
struct FinishedLayer {
    /// In the program; 0 is the embedding.
    layer: usize,
    output: Output,
    spans: Vec<std::ops::Range<usize>>,
}

impl FinishedLayer {
    fn of(layer: Layer<'_>) -> Self {
        Self { layer: layer.layer, output: layer.output, spans: layer.spans.to_vec() }
    }
}

/// Runs the tasks as one batch. Each layer is hashed, and its roots are sent, while the next one runs.
fn compute(executor: &mut dyn Executor, tasks: &[Task], kept: &Arc<KeptRuns>) -> Result<Computed, EmbedError> {
    let program = tasks[0].model.package.program();
    let batch = Batch::of(tasks.iter().map(|task| task.tokens.clone()).collect());
    let record = |task: &Task| {
        let package = &task.model.package;
        kept.record(task.key.0, package.model_id(), package.program(), task.tokens.len()).map(Box::new)
    };
    let recordings: Vec<_> = tasks.iter().map(record).collect();
    // Where none is kept, nobody needs the rows themselves.
    let wanted = if recordings.iter().any(Option::is_some) { Wanted::Rows } else { Wanted::Root };
    let (sender, receiver) = sync_channel(WORKER_LAYERS_AHEAD);
    let (ran, (roots, recordings)) = std::thread::scope(|scope| {
        let hasher = scope.spawn(|| hash_layers(receiver, tasks, recordings));
        let ran = run_layers(executor, program, &batch, wanted, tasks, sender);
        // A panic of the hasher is one of this thread.
        (ran, hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (outputs, clamped) = ran?;
    let saturations = saturations(executor, program, batch, clamped)?;
    Ok(Computed { roots, recordings, outputs, saturations })
}

/// Returns the outputs and the saturations of the whole batch.
fn run_layers(
    executor: &mut dyn Executor,
    program: &Program,
    batch: &Batch,
    wanted: Wanted,
    tasks: &[Task],
    finished: SyncSender<FinishedLayer>,
) -> Result<(Vec<Vec<i32>>, u64), EmbedError> {
    let embeddings = embed(executor, program, batch, wanted, |layer| {
        if tasks.iter().all(Task::is_cancelled) {
            return ControlFlow::Break(());
        }
        // Layer 0 follows from the tokens and is not committed.
        if layer.layer > 0 && finished.send(FinishedLayer::of(layer)).is_err() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok((embeddings.rows, embeddings.saturations))
}

/// Hashes each layer of each task, and sends the root at once. Returns the roots of every task, and the rows of those that
/// are to be kept.
fn hash_layers(
    layers: Receiver<FinishedLayer>,
    tasks: &[Task],
    mut recordings: Vec<Option<Box<Recording>>>,
) -> (Vec<Vec<Root>>, Vec<Option<Box<Recording>>>) {
    let geometries: Vec<Option<Geometry>> = tasks.iter().map(|task| task.model.geometry(&task.header).ok()).collect();
    let mut roots = vec![Vec::new(); tasks.len()];
    for layer in layers {
        let spans = layer.spans.iter().zip(tasks).zip(&geometries).zip(roots.iter_mut().zip(&mut recordings));
        for (((span, task), geometry), (roots, recording)) in spans.filter(|(((_, task), _), _)| !task.is_cancelled()) {
            let root = layer.output.root(span);
            let recording = recording.as_mut().filter(|_| layer.layer <= usize::from(task.model.layers));
            if let (Some(recording), Some(rows)) = (recording, layer.output.rows(span)) {
                recording.push(layer.layer, rows);
            }
            if let Some(place) = geometry.as_ref().and_then(|geometry| geometry.place(roots.len())) {
                task.say(Step::Layer { place, root });
            }
            roots.push(root);
        }
    }
    (roots, recordings)
}

/// The saturations of each sequence alone. A backend counts those of a batch; where there are any, each sequence runs
/// once more by itself, because a receipt must not depend on who shared the batch. Programs are made so that it is rare.
fn saturations(
    executor: &mut dyn Executor,
    program: &Program,
    batch: Batch,
    of_all: u64,
) -> Result<Vec<u64>, EmbedError> {
    if of_all == 0 || batch.sequences.len() == 1 {
        return Ok(vec![of_all; batch.sequences.len()]);
    }
    let go_on = |_: Layer<'_>| ControlFlow::Continue(());
    let alone = |sequence| embed(executor, program, &Batch { sequences: vec![sequence] }, Wanted::Root, go_on);
    batch.sequences.into_iter().map(alone).map(|run| run.map(|run| run.saturations)).collect()
}
