//! Layers on the device, and the runs that they are computing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::value::CacheId;
use lockstep_model::generation::{Event, StageError, StagePass, StageRun};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{WORKER_LOADED_MODELS, WORKER_STAGE_PASS};
use lockstep_protocol::messages::FailureCode;

use crate::batch::Failure;
use crate::store::Model;

type Loaded = Arc<Mutex<Box<dyn Executor>>>;

/// The slices that are loaded. They stay so when a run is over: the next one often has the same layers.
pub(crate) struct Seats {
    backend: Arc<dyn Backend>,
    /// The most recently used last.
    loaded: Mutex<Vec<(Arc<Model>, Loaded)>>,
    /// Names runs on their executors.
    next: AtomicU64,
    /// Bytes of keys and values that are set aside, and how many there may be.
    reserved: Arc<AtomicU64>,
    most_bytes: u64,
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seats").finish_non_exhaustive()
    }
}

impl Seats {
    pub fn new(backend: Arc<dyn Backend>, most_bytes: u64) -> Self {
        Self { backend, loaded: Mutex::default(), next: AtomicU64::new(0), reserved: Arc::default(), most_bytes }
    }

    /// Starts a run. Blocks for as long as loading takes.
    pub fn take(&self, model: &Arc<Model>, job: &Job, hint: Vec<u32>) -> Result<Seat, Failure> {
        let slice = model.slice.clone().ok_or_else(|| Failure::new(FailureCode::Internal, "the model is whole"))?;
        let words = job.kind.generation().map_or(1, |asked| u64::from(asked.max_tokens));
        let bytes = slice.program().cache_bytes(job.tokens.len() as u64 + words - 1);
        let reserved = self.reserve(bytes)?;
        let cache = CacheId(self.next.fetch_add(1, Ordering::Relaxed));
        let program = Arc::clone(model.package.program());
        let run = StageRun::new(program, slice, job, hint, cache)
            .map_err(|error| Failure::new(FailureCode::JobRefused, error.to_string()))?;
        let executor = self.executor(model)?;
        Ok(Seat { run, executor, cache, _reserved: reserved })
    }

    fn reserve(&self, bytes: u64) -> Result<Reserved, Failure> {
        if bytes > self.most_bytes {
            let most = self.most_bytes;
            return Err(Failure::new(FailureCode::Backend, format!("{bytes} bytes of cache; there are {most}")));
        }
        let take = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.most_bytes);
        match self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(Reserved { bytes, of: Arc::clone(&self.reserved) }),
            Err(_) => Err(Failure::new(FailureCode::Busy, "the memory for keys and values is taken")),
        }
    }

    /// One model's layers, loaded if they were not.
    fn executor(&self, model: &Arc<Model>) -> Result<Loaded, Failure> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = loaded.iter().position(|(of, _)| Arc::ptr_eq(of, model)) {
            let found = loaded.remove(at);
            let executor = Arc::clone(&found.1);
            loaded.push(found);
            return Ok(executor);
        }
        if loaded.len() >= WORKER_LOADED_MODELS {
            loaded.remove(0);
        }
        let executor: Loaded =
            Arc::new(Mutex::new(caught(|| model.load(&*self.backend), |error| Failure::from(error))?));
        loaded.push((Arc::clone(model), Arc::clone(&executor)));
        Ok(executor)
    }

    /// Forgets an executor that failed.
    pub fn forget(&self, seat: &Seat) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(_, executor)| !Arc::ptr_eq(executor, &seat.executor));
    }
}

/// Memory that is set aside as long as this lives.
struct Reserved {
    bytes: u64,
    of: Arc<AtomicU64>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One run on its executor. Everything blocks for as long as it computes.
pub(crate) struct Seat {
    pub run: StageRun,
    executor: Loaded,
    cache: CacheId,
    _reserved: Reserved,
}

impl Seat {
    pub fn pass(&mut self, count: usize, rows: &[i32]) -> Result<StagePass, Failure> {
        self.with(|run, executor| run.pass(executor, count, rows))
    }

    /// Returns what is new, and whether the run has ended.
    pub fn accept(&mut self, words: &[u32], output: &[i32]) -> Result<(Vec<Event>, bool), Failure> {
        let mut said = Vec::new();
        let ended = self.with(|run, executor| run.accept(executor, words, output, &mut |event| said.push(event)))?;
        Ok((said, ended))
    }

    /// What clamped in all.
    pub fn finish(&mut self) -> Result<u64, Failure> {
        self.with(|run, executor| run.finish(executor, WORKER_STAGE_PASS))
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut StageRun, &mut dyn Executor) -> Result<T, StageError>,
    ) -> Result<T, Failure> {
        let mut executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
        caught(
            || work(&mut self.run, &mut **executor),
            |error| match error {
                StageError::Backend(error) => Failure::from(error),
                other => Failure::new(FailureCode::Backend, other.to_string()),
            },
        )
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner).drop_cache(self.cache);
    }
}

/// Backends may fail in any way.
fn caught<T, E>(work: impl FnOnce() -> Result<T, E>, failed: impl FnOnce(&E) -> Failure) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failed(&error)),
        Err(_) => Err(Failure::panicked()),
    }
}
