//! Generations that the engine advances, pass by pass, model by model.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_model::generation::{Event, Generator, Limits, Recorder, Refused, Request, Run, TaskId};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::limits::WORKER_LOADED_MODELS;
use lockstep_protocol::messages::FailureCode;

use crate::batch::{Failure, Step, Task};
use crate::engine::{Finished, sign};
use crate::kept::KeptRuns;
use crate::store::Model;

/// A task that its model's generator has.
struct Active {
    task: Task,
    start: Instant,
}

/// A loaded model and what it generates.
struct Loaded {
    model: Arc<Model>,
    generator: Generator,
    active: BTreeMap<TaskId, Active>,
}

/// All generations of a worker.
pub(crate) struct Generations {
    backend: Arc<dyn Backend>,
    keys: Keypair,
    limits: Limits,
    kept: Arc<KeptRuns>,
    /// The most recently used last.
    loaded: Vec<Loaded>,
    /// Tasks whose model waits until another one has nothing to do.
    waiting: VecDeque<Task>,
}

impl Generations {
    /// Each loaded model may take what the limits say.
    pub fn new(backend: Arc<dyn Backend>, keys: Keypair, limits: Limits, kept: Arc<KeptRuns>) -> Self {
        Self { backend, keys, limits, kept, loaded: Vec::new(), waiting: VecDeque::new() }
    }

    /// Whether there is nothing to advance.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.loaded.iter().all(|loaded| loaded.active.is_empty())
    }

    /// Takes a task on; it is told at once where it can't run.
    pub fn submit(&mut self, task: Task) {
        self.waiting.push_back(task);
    }

    /// Drops what was cancelled, starts what can start, and runs one pass of each model.
    pub fn step(&mut self) {
        self.start_waiting();
        let keys = &self.keys;
        // A generator that failed or panicked is not used again.
        self.loaded.retain_mut(|loaded| {
            loaded.drop_cancelled();
            match catch_unwind(AssertUnwindSafe(|| loaded.pass(keys))) {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => loaded.fail(&Failure::from(&error)),
                Err(_) => loaded.fail(&Failure::panicked()),
            }
            false
        });
    }

    fn start_waiting(&mut self) {
        let kept = Arc::clone(&self.kept);
        for task in std::mem::take(&mut self.waiting) {
            if task.is_cancelled() {
                continue;
            }
            match self.generator(&task) {
                Ok(Some(loaded)) => loaded.start(task, &kept),
                Ok(None) => self.waiting.push_back(task),
                Err(failure) => task.say(Step::Failed(failure)),
            }
        }
    }

    /// The task's model, loaded if it was not; `None` where as many as may be loaded have something to do.
    fn generator(&mut self, task: &Task) -> Result<Option<&mut Loaded>, Failure> {
        let (id, model) = (task.header.model, &task.model);
        // A package that was found damaged and pulled again has the same id, and its generator may read damaged bytes.
        let is_stale = |loaded: &Loaded| loaded.model.package.model_id() == id && !Arc::ptr_eq(&loaded.model, model);
        self.loaded.retain(|loaded| !is_stale(loaded) || !loaded.active.is_empty());
        if let Some(at) = self.loaded.iter().position(|loaded| Arc::ptr_eq(&loaded.model, model)) {
            let loaded = self.loaded.remove(at);
            self.loaded.push(loaded);
            return Ok(self.loaded.last_mut());
        }
        if self.loaded.len() >= WORKER_LOADED_MODELS {
            let Some(idle) = self.loaded.iter().position(|loaded| loaded.active.is_empty()) else { return Ok(None) };
            self.loaded.remove(idle);
        }
        let package = &model.package;
        let load = || Generator::new(Arc::clone(package.program()), package.params(), &*self.backend, self.limits);
        let generator = match catch_unwind(AssertUnwindSafe(load)) {
            Ok(loaded) => loaded.map_err(failure_of)?,
            Err(_) => return Err(Failure::panicked()),
        };
        self.loaded.push(Loaded { model: Arc::clone(model), generator, active: BTreeMap::new() });
        Ok(self.loaded.last_mut())
    }
}

/// Whether a request is at fault, the device, or the memory that this worker was given.
fn failure_of(refused: Refused) -> Failure {
    match &refused {
        Refused::Backend(error) => Failure::from(error),
        Refused::CacheMemory { positions, needed, .. } => {
            let least = Limits::bytes_for_cache(*needed);
            let reason = format!(
                "{positions} positions may need {needed} bytes of cache here: --generation-bytes must be at least {least}"
            );
            Failure::new(FailureCode::JobRefused, reason)
        }
        _ => Failure::new(FailureCode::JobRefused, refused.to_string()),
    }
}

impl Loaded {
    fn start(&mut self, mut task: Task, kept: &Arc<KeptRuns>) {
        let package = &self.model.package;
        let recording = kept.record(task.key.0, package.model_id(), package.program(), task.tokens.len());
        let recorder = recording.map(|recording| Box::new(recording) as Box<dyn Recorder>);
        let request = match task.header.kind.generation() {
            Some(generation) => {
                let (tokens, hint) = (std::mem::take(&mut task.tokens), std::mem::take(&mut task.hint));
                Request::new(tokens, generation, task.header.seed, hint)
            }
            None => return task.say(Step::Failed(Failure::new(FailureCode::Internal, "the job generates nothing"))),
        };
        match self.generator.submit_recorded(request, recorder) {
            Ok(id) => {
                task.say(Step::Started { batch: self.generator.requests() });
                self.active.insert(id, Active { task, start: Instant::now() });
            }
            Err(refused) => task.say(Step::Failed(failure_of(refused))),
        }
    }

    fn drop_cancelled(&mut self) {
        let generator = &mut self.generator;
        self.active.retain(|id, active| {
            let stays = !active.task.is_cancelled();
            if !stays {
                generator.cancel(*id);
            }
            stays
        });
    }

    /// One pass. What it says goes out at once; runs that ended are signed.
    fn pass(&mut self, keys: &Keypair) -> Result<(), BackendError> {
        let (active, mut done) = (&self.active, Vec::new());
        self.generator.step(&mut |id, event| {
            let Some(Active { task, .. }) = active.get(&id) else { return };
            match event {
                Event::Root { place, root } => task.say(Step::Layer { place, root }),
                Event::Word { word, logprobs, .. } => task.say(Step::Word { word, logprobs }),
                Event::Done(run) => done.push((id, run)),
            }
        })?;
        for (id, run) in done {
            if let Some(active) = self.active.remove(&id) {
                active.finish(run, keys);
            }
        }
        Ok(())
    }

    fn fail(&mut self, failure: &Failure) {
        for Active { task, .. } in std::mem::take(&mut self.active).into_values() {
            task.say(Step::Failed(failure.clone()));
        }
    }
}

impl Active {
    fn finish(self, run: Run, keys: &Keypair) {
        let Self { task, start } = self;
        let output = run.output();
        let finished = Finished { roots: run.roots, words: run.words, output, saturations: run.saturations };
        task.say(sign(&task, finished, keys, start.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_does_not_fit_the_cache_is_refused_with_the_figure_to_set() {
        let failure = failure_of(Refused::CacheMemory { positions: 300, needed: 1_000, limit: 999 });
        assert_eq!(failure.code, FailureCode::JobRefused);
        assert!(failure.reason.ends_with("--generation-bytes must be at least 2000"), "{}", failure.reason);
    }
}
