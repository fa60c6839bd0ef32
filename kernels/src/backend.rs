//! What every backend implements.

use std::sync::Arc;

use crate::program::{Program, ProgramError, TensorId};
use crate::value::{Batch, CacheId, Params, Value};

/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The program is malformed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A batch is outside the program's limits.
    #[error("sequence {sequence}: {reason}")]
    Batch {
        /// Index of the offending sequence.
        sequence: usize,
        /// What is wrong.
        reason: String,
    },
    /// A cache lacks what is asked of it.
    #[error("cache {}: {reason}", cache.0)]
    Cache {
        /// The cache.
        cache: CacheId,
        /// What is wrong.
        reason: String,
    },
    /// A value does not fit the tensor that it was written to, or a tensor was asked for that has no value yet.
    #[error("tensor {tensor:?}: {reason}")]
    Value {
        /// The tensor.
        tensor: TensorId,
        /// What is wrong.
        reason: String,
    },
    /// The path asked for does not exist on this machine.
    #[error("{0}")]
    Unavailable(String),
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
}

/// What happened in one layer, besides its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerReport {
    /// Elements that a saturating op clamped. The same on every backend.
    pub saturations: u64,
}

/// A family of kernels on one kind of device.
pub trait Backend: Send + Sync {
    /// Short name with the chosen path, as in `cpu/avx512-vnni`.
    fn name(&self) -> String;

    /// Bytes of the device's own memory; none where it computes in the host's, or nobody knows.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes of that memory that no program has taken yet.
    fn free_bytes(&self) -> Option<u64> {
        self.memory_bytes()
    }

    /// The backends that it is made of, where it is [several joined](crate::joined).
    fn members(&self) -> &[Member] {
        &[]
    }

    /// Prepares a program for execution. Checks the program; the caller has proven its bounds.
    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError>;
}

/// A backend that is part of another one.
#[derive(Clone)]
pub struct Member {
    /// What errors call it: the name that its operator knows it by.
    pub name: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
}

/// A loaded program on one device, holding the activations of one batch at a time, and the caches of decoders.
///
/// A pass of a decoder may start in the middle of a sequence whose earlier keys and values an earlier pass left in a
/// [cache](crate::value::Sequence::cache). Each layer that runs leaves its own there, in place of those that the cache
/// had from `start` on. A pass that stops between layers leaves the cache usable up to `start`.
///
/// Call order: [`begin`](Executor::begin), then [`run_layer`](Executor::run_layer) for layers in ascending order.
/// [`read`](Executor::read) and [`write`](Executor::write) may come between layers, so another backend can take over
/// at any layer boundary: read the output of layer `l` here, write it there, and go on with `l + 1`.
pub trait Executor: Send {
    /// Starts a batch; all activations of the last one are forgotten, also where the batch is refused. What it will
    /// hold is bounded by [`Program::pass_bytes`], which is for the caller to check first.
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError>;

    /// Runs the ops of one layer over the whole batch. An error where the batch has not written what the layer reads.
    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError>;

    /// Copies a tensor out: `[rows, cols]` of all sequences in order. Any tensor that the layers run so far have written
    /// can be read, not only outputs: that is how a divergence is located. A backend that fuses ops computes what
    /// fusing skipped when it is asked. A tensor that nothing has written since [`begin`](Executor::begin) is an error.
    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError>;

    /// The BLAKE3 chaining values of the chunks of an `I32` tensor's rows, each row padded with zeros to whole chunks of 1 KiB:
    /// `[rows][chunks of a row]`. `counters` has, for each row, the number of its first chunk in the tensor that is committed.
    /// None where this executor does not hash where its rows lie: whoever asks reads them and hashes by itself. (A tensor of
    /// one chunk alone is committed by the chunk: its root is no chaining value.)
    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError>;

    /// Replaces a tensor's value.
    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError>;

    /// Makes the cache `to`, in place of any that has this name, from the first `positions` positions of `from`. What
    /// they have in common is stored once. An error where `from` does not hold as many in every layer.
    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError>;

    /// Forgets the positions from `positions` on. An error where the cache does not hold as many in every layer.
    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError>;

    /// Forgets a cache; nothing happens where there is none.
    fn drop_cache(&mut self, id: CacheId);

    /// Bytes that all caches together hold now; what several share counts once. For one of a given length at most
    /// [`Program::cache_bytes`], which is for the caller to plan with: no other limit is set on caches.
    fn cache_bytes(&self) -> u64;
}

/// An executor that stands before another one. It has of its own what it does otherwise; everything else is the other one's.
///
/// Who changes what [`read`](Executor::read) gives changes [`chunk_values`](Executor::chunk_values) too: both are of the same
/// rows.
pub trait Wrapper: Send {
    /// The other one.
    fn inner(&self) -> &dyn Executor;

    /// The other one.
    fn inner_mut(&mut self) -> &mut dyn Executor;

    /// As [`Executor::begin`].
    ///
    /// # Errors
    /// As there.
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner_mut().begin(batch)
    }

    /// As [`Executor::run_layer`].
    ///
    /// # Errors
    /// As there.
    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        self.inner_mut().run_layer(layer)
    }

    /// As [`Executor::read`].
    ///
    /// # Errors
    /// As there.
    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.inner_mut().read(tensor)
    }

    /// As [`Executor::chunk_values`].
    ///
    /// # Errors
    /// As there.
    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        self.inner_mut().chunk_values(tensor, counters)
    }

    /// As [`Executor::write`].
    ///
    /// # Errors
    /// As there.
    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.inner_mut().write(tensor, value)
    }

    /// As [`Executor::fork_cache`].
    ///
    /// # Errors
    /// As there.
    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.inner_mut().fork_cache(from, to, positions)
    }

    /// As [`Executor::truncate_cache`].
    ///
    /// # Errors
    /// As there.
    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.inner_mut().truncate_cache(id, positions)
    }

    /// As [`Executor::drop_cache`].
    fn drop_cache(&mut self, id: CacheId) {
        self.inner_mut().drop_cache(id);
    }
}

impl<W: Wrapper> Executor for W {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        Wrapper::begin(self, batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        Wrapper::run_layer(self, layer)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        Wrapper::read(self, tensor)
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        Wrapper::chunk_values(self, tensor, counters)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        Wrapper::write(self, tensor, value)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        Wrapper::fork_cache(self, from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        Wrapper::truncate_cache(self, id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        Wrapper::drop_cache(self, id);
    }

    fn cache_bytes(&self) -> u64 {
        self.inner().cache_bytes()
    }
}
