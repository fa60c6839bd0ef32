//! A backend that can be told to stop: a run that nobody waits for any more ends after its current layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Batch, CacheId, Params, Value};

/// Another backend, until it is told to stop.
pub(crate) struct Stopping {
    pub inner: Arc<dyn Backend>,
    pub stop: Arc<AtomicBool>,
}

impl Backend for Stopping {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(StoppingExecutor { inner: self.inner.load(program, params)?, stop: Arc::clone(&self.stop) }))
    }
}

struct StoppingExecutor {
    inner: Box<dyn Executor>,
    stop: Arc<AtomicBool>,
}

impl Executor for StoppingExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BackendError::Unavailable("the worker ends".into()));
        }
        self.inner.run_layer(layer)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.inner.read(tensor)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.inner.write(tensor, value)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.inner.fork_cache(from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.inner.truncate_cache(id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.inner.drop_cache(id);
    }

    fn cache_bytes(&self) -> u64 {
        self.inner.cache_bytes()
    }
}
