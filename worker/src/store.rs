//! The packages of a worker: on disk by model id, verified and proven before use.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::program::{Program, Rows};
use lockstep_kernels::slice::Slice;
use lockstep_model::ModelError;
use lockstep_model::bounds;
use lockstep_model::package::Package;
use lockstep_protocol::commitment::Geometry;
use lockstep_protocol::ids::ModelId;
use lockstep_protocol::job::{JobError, JobHeader};
use lockstep_protocol::limits::{MAX_HELD_MODELS, MAX_LAYERS, MAX_OUTPUT_VALUES};
use lockstep_protocol::messages::FailureCode;
use quinn::Connection;

use crate::batch::Failure;
use crate::config::Config;
use crate::event::{Event, Events};
use crate::memory::Memory;
use crate::pull::{Partial, pull};

/// A package that may be run.
#[derive(Debug)]
pub(crate) struct Model {
    pub package: Package,
    /// Transformer layers: all of the program's but the embedding and the output.
    pub layers: u16,
    /// Where only some layers are here: those.
    pub slice: Option<Slice>,
}

impl Model {
    /// Loads what is here of the model. Layers have the model's numbers.
    pub fn load(&self, backend: &dyn Backend) -> Result<Box<dyn Executor>, BackendError> {
        let (program, params) = (self.package.program(), self.package.params());
        match &self.slice {
            Some(slice) => slice.load(backend, params),
            None => backend.load(Arc::clone(program), params),
        }
    }

    /// Whether a blob of the package is here.
    fn has_blob(&self, blob: usize) -> bool {
        let of_slice = |slice: &Slice| slice.params().iter().any(|param| usize::from(param.0) == blob);
        self.slice.as_ref().is_none_or(of_slice)
    }

    /// Where a job of this model commits.
    pub fn geometry(&self, job: &JobHeader) -> Result<Geometry, JobError> {
        job.geometry(self.layers)
    }

    /// Takes a package whose digests were verified: checks that there is memory to generate with it, proves its bounds, and
    /// checks that it makes one vector for each sequence or one word for each point.
    fn admit(package: Package, memory: Memory) -> Result<Self, Failure> {
        let refused = |reason: String| Failure::new(FailureCode::ModelRefused, reason);
        memory.check(package.program()).map_err(refused)?;
        package.prove().map_err(|error| refused(error.to_string()))?;
        Self::shaped(package, None)
    }

    /// The same for some of its layers, which alone are proven.
    fn admit_slice(package: Package, layers: (u16, u16)) -> Result<Self, Failure> {
        let slice = slice_of(package.program(), layers)?;
        let proven = bounds::prove(slice.program(), &*slice.select(package.params()));
        proven.map_err(|error| Failure::new(FailureCode::ModelRefused, error.to_string()))?;
        Self::shaped(package, Some(slice))
    }

    fn shaped(package: Package, slice: Option<Slice>) -> Result<Self, Failure> {
        let refused = |reason: String| Failure::new(FailureCode::ModelRefused, reason);
        let program = package.program();
        let inner = program.layers.len().saturating_sub(2);
        let layers = u16::try_from(inner).ok().filter(|layers| (1..=MAX_LAYERS).contains(&usize::from(*layers)));
        let layers = layers.ok_or_else(|| refused(format!("{inner} layers between embedding and output")))?;
        let output = program.layers.last().map(|layer| program.tensor(layer.output));
        match output {
            Some(t) if t.rows == Rows::Sequence && t.cols as usize <= MAX_OUTPUT_VALUES => {
                Ok(Self { package, layers, slice })
            }
            Some(t) if t.rows == Rows::Point && t.cols == 1 => Ok(Self { package, layers, slice }),
            _ => Err(refused("its output is neither one vector for each sequence nor one word for each point".into())),
        }
    }
}

/// What is known about one model.
#[derive(Debug, Default)]
enum Slot {
    /// Nothing in this process yet, or no success.
    #[default]
    Unknown,
    /// A pull that was interrupted.
    Partial(Partial),
    /// Ready to run.
    Ready {
        model: Arc<Model>,
        /// When its digests were last verified.
        checked: Instant,
    },
    /// The bytes are the model's, and fail their checks. They will not change.
    Refused(Failure),
}

impl Slot {
    /// Whether it holds nothing that a later caller could go on with.
    fn is_spent(&self) -> bool {
        match self {
            Self::Unknown | Self::Refused(_) => true,
            Self::Partial(partial) => partial.is_empty(),
            Self::Ready { .. } => false,
        }
    }
}

/// A caller's interest in a slot, dropped after the slot's own handle. The last one to let go of a slot that came to nothing takes it off the list, which a
/// coordinator could otherwise grow without end.
struct Hold<'a> {
    slots: &'a Slots,
    model: ModelId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the list still has it, and whoever wants it waits for the list's lock.
        let spent = |slot: &Arc<tokio::sync::Mutex<Slot>>| {
            Arc::strong_count(slot) == 1 && slot.try_lock().is_ok_and(|slot| slot.is_spent())
        };
        if slots.get(&self.model).is_some_and(spent) {
            slots.remove(&self.model);
        }
    }
}

/// Whoever holds a slot's lock works on that model; the others wait for the outcome.
type Slots = Mutex<BTreeMap<ModelId, Arc<tokio::sync::Mutex<Slot>>>>;

/// Layers of a model, with when they were last verified.
type Slices = BTreeMap<(ModelId, (u16, u16)), (Arc<Model>, Instant)>;

/// The packages of a worker.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    threads: NonZeroUsize,
    max_bytes: u64,
    memory: Memory,
    recheck: Duration,
    events: Events,
    /// At most [`MAX_HELD_MODELS`].
    slots: Slots,
    /// Whoever holds the lock gets layers ready; the others wait.
    slices: tokio::sync::Mutex<Slices>,
}

impl Store {
    pub fn new(dir: PathBuf, config: &Config, memory: Memory, events: Events) -> Self {
        let &Config { threads, max_package_bytes: max_bytes, recheck, .. } = config;
        let (slots, slices) = (Mutex::default(), Default::default());
        Self { dir, threads, max_bytes, memory, recheck, events, slots, slices }
    }

    /// Models that lie in the folder, but for those that there is no memory to generate with: that is told. Each is verified
    /// before its first use.
    pub fn held(&self) -> Vec<ModelId> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut held: Vec<ModelId> = names.filter_map(|name| name.strip_suffix(".lsp")?.parse().ok()).collect();
        held.sort();
        held.truncate(MAX_HELD_MODELS);
        held.retain(|model| self.has_memory_for(*model));
        held
    }

    /// Whether a package that lies in the folder may be offered. What can't be read now is looked at where it is wanted.
    fn has_memory_for(&self, model: ModelId) -> bool {
        let Ok(package) = Package::open(&self.path(model)) else { return true };
        let checked = self.memory.check(package.program());
        if let Err(reason) = &checked {
            self.events.emit(Event::ModelFailed { model, reason: reason.clone() });
        }
        checked.is_ok()
    }

    fn path(&self, model: ModelId) -> PathBuf {
        self.dir.join(format!("{model}.lsp"))
    }

    /// The model, ready to run: from memory, from disk, or from the coordinator. Also says whether it was pulled now.
    ///
    /// Dropping the future leaves what was pulled so far for the next caller.
    pub async fn ensure(&self, model: ModelId, connection: &Connection) -> Result<(Arc<Model>, bool), Failure> {
        self.ensure_within(model, connection, self.recheck).await
    }

    /// The model, ready to run, with all its digests verified now.
    pub async fn ensure_verified(&self, model: ModelId, connection: &Connection) -> Result<Arc<Model>, Failure> {
        self.ensure_within(model, connection, Duration::ZERO).await.map(|(model, _)| model)
    }

    /// Some layers of a model, from 1 on, where the first one comes with the embedding: from memory, from disk, or from the
    /// coordinator, of whom only what these layers read is pulled.
    pub async fn ensure_slice(
        &self,
        model: ModelId,
        layers: (u16, u16),
        connection: &Connection,
    ) -> Result<Arc<Model>, Failure> {
        self.ensure_slice_within((model, layers), connection, self.recheck).await
    }

    /// The same, with all digests verified now.
    pub async fn ensure_slice_verified(
        &self,
        model: ModelId,
        layers: (u16, u16),
        connection: &Connection,
    ) -> Result<Arc<Model>, Failure> {
        self.ensure_slice_within((model, layers), connection, Duration::ZERO).await
    }

    async fn ensure_slice_within(
        &self,
        key: (ModelId, (u16, u16)),
        connection: &Connection,
        longest: Duration,
    ) -> Result<Arc<Model>, Failure> {
        let (model, layers) = key;
        let mut slices = self.slices.lock().await;
        if let Some((ready, checked)) = slices.get(&key) {
            let ready = Arc::clone(ready);
            if checked.elapsed() < longest || self.check_again(&ready).await?.is_ok() {
                slices.insert(key, (Arc::clone(&ready), Instant::now()));
                return Ok(ready);
            }
            slices.remove(&key);
        }
        let (whole, own) = (format!("{model}.lsp"), format!("{model}.{}-{}.lsp", layers.0, layers.1));
        let threads = self.threads;
        let mut found = None;
        for path in [self.dir.join(whole), self.dir.join(&own)].into_iter().filter(|path| path.exists()) {
            let held = path.clone();
            match blocking(move || open_slice(&held, model, layers, threads)).await? {
                Ok(opened) => found = Some(opened),
                Err(failure) if failure.code == FailureCode::ModelRefused => return Err(failure),
                Err(failure) => {
                    tracing::warn!(%model, reason = failure.reason, "layers on disk are damaged");
                    if path.ends_with(&own) {
                        std::fs::remove_file(&path).map_err(|io| unavailable(format!("it can't be removed: {io}")))?;
                    }
                }
            }
            if found.is_some() {
                break;
            }
        }
        let ready = match found {
            Some(ready) => ready,
            None => {
                let mut partial = Partial::default();
                let (path, what) = (self.dir.join(own), (model, Some(layers)));
                let package = pull(connection, what, &path, &mut partial, self.max_bytes, &self.events).await?;
                blocking(move || Model::admit_slice(package, layers)).await??
            }
        };
        let ready = Arc::new(ready);
        slices.insert(key, (Arc::clone(&ready), Instant::now()));
        self.events.emit(Event::ModelReady { model });
        Ok(ready)
    }

    async fn ensure_within(
        &self,
        model: ModelId,
        connection: &Connection,
        longest: Duration,
    ) -> Result<(Arc<Model>, bool), Failure> {
        let (_hold, slot) = self.hold(model)?;
        let mut slot = slot.lock_owned().await;
        match &*slot {
            Slot::Ready { model: ready, checked } if checked.elapsed() < longest => {
                return Ok((Arc::clone(ready), false));
            }
            Slot::Ready { model: ready, .. } => {
                let ready = Arc::clone(ready);
                match self.check_again(&ready).await? {
                    Ok(()) => {
                        *slot = Slot::Ready { model: Arc::clone(&ready), checked: Instant::now() };
                        return Ok((ready, false));
                    }
                    // What lies on disk is looked at anew, and pulled again if it is the damaged one.
                    Err(_) => *slot = Slot::Unknown,
                }
            }
            Slot::Refused(failure) => return Err(failure.clone()),
            Slot::Partial(_) | Slot::Unknown => {}
        }
        let found = self.find_or_pull(&mut slot, model, connection).await;
        match &found {
            Ok((ready, _)) => {
                *slot = Slot::Ready { model: Arc::clone(ready), checked: Instant::now() };
                self.events.emit(Event::ModelReady { model });
            }
            Err(failure) => {
                if failure.code == FailureCode::ModelRefused {
                    *slot = Slot::Refused(failure.clone());
                }
                self.events.emit(Event::ModelFailed { model, reason: failure.reason.clone() });
            }
        }
        found
    }

    /// Hashes the packages that are in use once more. Returns which of them are damaged on this machine; they are looked at
    /// anew, and pulled again, by whoever wants them next.
    pub async fn check_all(&self) -> Vec<ModelId> {
        let slots: Vec<_> = self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut damaged = Vec::new();
        for slot in slots {
            let mut slot = slot.lock().await;
            let Slot::Ready { model, .. } = &*slot else { continue };
            let model = Arc::clone(model);
            // A check that could not be made tells nothing.
            if let Ok(checked) = self.check_again(&model).await {
                *slot = match checked {
                    Ok(()) => Slot::Ready { model, checked: Instant::now() },
                    Err(_) => {
                        damaged.push(model.package.model_id());
                        Slot::Unknown
                    }
                };
            }
        }
        damaged
    }

    /// Hashes the bytes that runs read, as they are now: a disk or another program may have changed them under the
    /// mapping. The inner error is told as an event.
    async fn check_again(&self, model: &Arc<Model>) -> Result<Result<(), ModelError>, Failure> {
        let (held, threads) = (Arc::clone(model), self.threads);
        let checked = blocking(move || held.package.verify_some(threads, |blob| held.has_blob(blob))).await?;
        if let Err(error) = &checked {
            let (model, reason) = (model.package.model_id(), format!("damaged since it was verified: {error}"));
            tracing::error!(%model, %error, "a package was damaged while in use; results since its last check may be wrong");
            self.events.emit(Event::ModelFailed { model, reason });
        }
        Ok(checked)
    }

    async fn find_or_pull(
        &self,
        slot: &mut Slot,
        model: ModelId,
        connection: &Connection,
    ) -> Result<(Arc<Model>, bool), Failure> {
        let (path, memory) = (self.path(model), self.memory);
        if path.exists() {
            let (held, threads) = (path.clone(), self.threads);
            match blocking(move || open_held(&held, model, threads)).await? {
                Ok(package) => {
                    return Ok((Arc::new(blocking(move || Model::admit(package, memory)).await??), false));
                }
                Err(error @ ModelError::Io { .. }) => return Err(unavailable(error.to_string())),
                Err(error) => {
                    tracing::warn!(%model, %error, "a package on disk is damaged and is pulled again");
                    std::fs::remove_file(&path)
                        .map_err(|io| unavailable(format!("{error}; it can't be removed: {io}")))?;
                }
            }
        }
        if !matches!(slot, Slot::Partial(_)) {
            *slot = Slot::Partial(Partial::default());
        }
        let Slot::Partial(partial) = slot else { return Err(unavailable("no pull was begun")) };
        let package = pull(connection, (model, None), &path, partial, self.max_bytes, &self.events).await?;
        Ok((Arc::new(blocking(move || Model::admit(package, memory)).await??), true))
    }

    fn hold(&self, model: ModelId) -> Result<(Hold<'_>, Arc<tokio::sync::Mutex<Slot>>), Failure> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_HELD_MODELS && !slots.contains_key(&model) {
            return Err(unavailable(format!("{MAX_HELD_MODELS} models are here or on their way")));
        }
        let slot = Arc::clone(slots.entry(model).or_default());
        Ok((Hold { slots: &self.slots, model }, slot))
    }
}

pub(crate) fn unavailable(reason: impl Into<String>) -> Failure {
    Failure::new(FailureCode::ModelUnavailable, reason)
}

/// Runs what computes or touches the disk away from the reactor.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))
}

/// Layers of a program, from 1 on, where the first one comes with the embedding.
pub(crate) fn slice_of(program: &Program, (first, last): (u16, u16)) -> Result<Slice, Failure> {
    let from = if first <= 1 { 0 } else { usize::from(first) };
    let slice = Slice::of(program, from..=usize::from(last));
    slice.ok_or_else(|| Failure::new(FailureCode::JobRefused, format!("the model has no layers {first} to {last}")))
}

/// Layers out of a package on disk, whole or not.
fn open_slice(path: &Path, model: ModelId, layers: (u16, u16), threads: NonZeroUsize) -> Result<Model, Failure> {
    let damaged = |error: ModelError| unavailable(error.to_string());
    let package = Package::open(path).map_err(damaged)?;
    if package.model_id() != model {
        return Err(unavailable(format!("{} holds another model", path.display())));
    }
    let held = Model::admit_slice(package, layers)?;
    held.package.verify_some(threads, |blob| held.has_blob(blob)).map_err(damaged)?;
    Ok(held)
}

fn open_held(path: &Path, model: ModelId, threads: NonZeroUsize) -> Result<Package, ModelError> {
    let package = Package::open(path)?;
    if package.model_id() != model {
        return Err(ModelError::Package(format!("{} holds another model, {}", path.display(), package.model_id())));
    }
    package.verify(threads)?;
    Ok(package)
}
