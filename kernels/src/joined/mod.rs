//! Several devices as one backend: each has some consecutive layers of a model, with their parameters, keys and values.
//!
//! Nothing computes at the same time as something else: a model that fits no device is run by several, one after the other,
//! and the rows go from one to the next by way of the host. What fits one device is loaded on one, whole.

mod deal;

use std::sync::Arc;

use crate::backend::{Backend, BackendError, Executor, LayerReport, Member};
use crate::program::{Program, TensorId};
use crate::slice::Slice;
use crate::value::{Batch, CacheId, Params, Value};
use deal::{Share, deal, sizes};

/// Backends that share the layers of a program.
#[derive(Clone)]
pub struct Joined {
    members: Vec<Member>,
    /// Whether layers go to whoever has the memory, rather than to all alike.
    is_by_memory: bool,
}

impl Joined {
    /// Of at least one backend, in the order in which they get layers. A program is dealt out by the memory that each has
    /// free when it is loaded: to as few as it takes, in proportion, with a quarter left for what a program needs besides
    /// parameters wherever that is possible. Those of whose memory nobody knows get what the others have no room for; where
    /// nobody knows of any, all get as much.
    pub const fn new(members: Vec<Member>) -> Self {
        Self { members, is_by_memory: true }
    }

    /// Where all get as many bytes of a program's parameters, whatever their memory: so that a small one is shared too.
    pub const fn evenly(members: Vec<Member>) -> Self {
        Self { members, is_by_memory: false }
    }

    /// Who gets which layers.
    fn shares(&self, program: &Program) -> Result<Vec<Share>, BackendError> {
        let free = |member: &Member| member.backend.free_bytes().filter(|_| self.is_by_memory);
        let free: Vec<Option<u64>> = self.members.iter().map(free).collect();
        let roomy: Vec<Option<u64>> = free.iter().map(|free| free.map(|bytes| bytes - bytes / 4)).collect();
        deal(program, &roomy).or_else(|| deal(program, &free)).ok_or_else(|| self.refusal(program, &free))
    }

    fn refusal(&self, program: &Program, free: &[Option<u64>]) -> BackendError {
        let (sizes, layers) = (sizes(program), program.layers.len());
        // The embedding and the layer after it go together.
        let largest = (2..=layers).map(|end| sizes[if end == 2 { 0 } else { end - 1 }][end]).max();
        let bytes = |bytes: &Option<u64>| bytes.map_or("unknown".into(), |bytes| bytes.to_string());
        let rooms: Vec<_> =
            self.members.iter().zip(free).map(|(member, free)| format!("{} {}", member.name, bytes(free))).collect();
        BackendError::Unavailable(format!(
            "the weights of the model would take {} bytes, in whole layers of up to {}, and do not fit the devices together; \
             bytes that are free: {}: use more or larger ones, or share the model's layers among workers (--pipeline-listen)",
            sizes[0][layers],
            largest.unwrap_or_default(),
            rooms.join(", ")
        ))
    }
}

impl Backend for Joined {
    fn name(&self) -> String {
        let names: Vec<String> = self.members.iter().map(|member| member.backend.name()).collect();
        names.join(" + ")
    }

    /// Of all together, where it is known of all.
    fn memory_bytes(&self) -> Option<u64> {
        self.members.iter().try_fold(0, |sum: u64, member| Some(sum.saturating_add(member.backend.memory_bytes()?)))
    }

    fn members(&self) -> &[Member] {
        &self.members
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        program.validate()?;
        let mut parts = Vec::new();
        for (member, layers) in self.shares(&program)? {
            let (Member { name, backend }, last) = (&self.members[member], *layers.end());
            let slice = Slice::of(&program, layers).expect("shares are layers of the program");
            let executor = slice.load(&**backend, Arc::clone(&params)).map_err(|error| of_member(name, error))?;
            parts.push(Part { name: name.clone(), executor, last });
        }
        let home = vec![None; program.tensors.len()];
        Ok(Box::new(JoinedExecutor { program, parts, home, has_begun: false }))
    }
}

/// An error with the name of the device whose error it is.
fn of_member(name: &str, error: BackendError) -> BackendError {
    match error {
        BackendError::Unavailable(why) => BackendError::Unavailable(format!("{name}: {why}")),
        BackendError::Device(why) => BackendError::Device(format!("{name}: {why}")),
        // These are about the program or the batch, and are the same on every device.
        other => other,
    }
}

/// Consecutive layers on one device.
struct Part {
    name: String,
    executor: Box<dyn Executor>,
    last: usize,
}

impl Part {
    fn with<T>(&mut self, ask: impl FnOnce(&mut dyn Executor) -> Result<T, BackendError>) -> Result<T, BackendError> {
        ask(&mut *self.executor).map_err(|error| of_member(&self.name, error))
    }
}

/// A program whose layers lie on several devices. Batches, and what is done to caches, go to all of them.
struct JoinedExecutor {
    program: Arc<Program>,
    /// In the order of their layers.
    parts: Vec<Part>,
    /// For each tensor the part that has the value of this batch, if it was written.
    home: Vec<Option<usize>>,
    /// Whether all parts have the batch.
    has_begun: bool,
}

impl JoinedExecutor {
    /// The part that has a tensor's value.
    fn home(&self, tensor: TensorId) -> Result<usize, BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor, reason: reason.into() });
        match self.home.get(usize::from(tensor.0)) {
            None => refuse("the program has no such tensor"),
            Some(None) => refuse("this batch has not written it yet"),
            Some(Some(part)) => Ok(*part),
        }
    }

    /// Brings a tensor to the part that is about to read it.
    fn bring(&mut self, tensor: TensorId, to: usize) -> Result<(), BackendError> {
        let from = self.home(tensor)?;
        if from != to {
            let value = self.parts[from].with(|executor| executor.read(tensor))?;
            self.parts[to].with(|executor| executor.write(tensor, value))?;
            self.home[usize::from(tensor.0)] = Some(to);
        }
        Ok(())
    }
}

impl Executor for JoinedExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.home.fill(None);
        self.has_begun = false;
        self.parts.iter_mut().try_for_each(|part| part.with(|executor| executor.begin(batch)))?;
        self.has_begun = true;
        Ok(())
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let refuse = |why: String| Err(BackendError::Unavailable(why));
        let Some(at) = self.parts.iter().position(|part| layer <= part.last) else {
            return refuse(format!("the program has no layer {layer}"));
        };
        // A part may have taken a batch that another one refused.
        if !self.has_begun {
            return refuse("no batch has begun".into());
        }
        // Of what earlier layers wrote, a layer reads the output of the one before it alone.
        if let Some(before) = layer.checked_sub(1) {
            self.bring(self.program.layers[before].output, at)?;
        }
        let report = self.parts[at].with(|executor| executor.run_layer(layer))?;
        for op in &self.program.layers[layer].ops {
            self.home[usize::from(op.out().0)] = Some(at);
        }
        Ok(report)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        let home = self.home(tensor)?;
        self.parts[home].with(|executor| executor.read(tensor))
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        let home = self.home(tensor)?;
        self.parts[home].with(|executor| executor.chunk_values(tensor, counters))
    }

    /// To the first part; whichever part reads it has it brought.
    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        if !self.has_begun {
            return Err(BackendError::Unavailable("no batch has begun".into()));
        }
        // Parts have tensors of their own besides the program's.
        if usize::from(tensor.0) >= self.home.len() {
            return Err(BackendError::Value { tensor, reason: "the program has no such tensor".into() });
        }
        self.parts[0].with(|executor| executor.write(tensor, value))?;
        self.home[usize::from(tensor.0)] = Some(0);
        Ok(())
    }

    /// From the last part on: layers run in ascending order, so where it holds as many positions all do, and where it refuses
    /// nothing has changed.
    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        let mut parts = self.parts.iter_mut().rev();
        parts.try_for_each(|part| part.with(|executor| executor.fork_cache(from, to, positions)))
    }

    /// From the last part on, as [`fork_cache`](Self::fork_cache).
    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        let mut parts = self.parts.iter_mut().rev();
        parts.try_for_each(|part| part.with(|executor| executor.truncate_cache(id, positions)))
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.parts.iter_mut().for_each(|part| part.executor.drop_cache(id));
    }

    fn cache_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.executor.cache_bytes()))
    }
}
