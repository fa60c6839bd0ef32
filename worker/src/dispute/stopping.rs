//! A backend that can be told to stop: a run that nobody waits for any more ends after its current layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Params;

/// Another backend, until it is told to stop.
pub(crate) struct Stopping {
    pub inner: Arc<dyn Backend>,
    pub stop: Arc<AtomicBool>,
}

impl Backend for Stopping {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.inner.memory_bytes()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(StoppingExecutor { inner: self.inner.load(program, params)?, stop: Arc::clone(&self.stop) }))
    }
}

struct StoppingExecutor {
    inner: Box<dyn Executor>,
    stop: Arc<AtomicBool>,
}

impl Wrapper for StoppingExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BackendError::Unavailable("the worker ends".into()));
        }
        self.inner.run_layer(layer)
    }
}
