//! A backend of which every layer that it runs is watched, and may be changed.
#![allow(dead_code, reason = "each test file uses another part")]

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Batch, CacheId, Params, Value};

/// A layer that has just run.
pub struct Ran<'a> {
    pub program: &'a Program,
    pub batch: &'a Batch,
    pub layer: usize,
    pub executor: &'a mut dyn Executor,
}

/// The fast backend; `after` is told of every layer of every program.
#[derive(Clone)]
pub struct Watched {
    after: Arc<dyn Fn(Ran<'_>) + Send + Sync>,
}

impl Watched {
    pub fn new(after: impl Fn(Ran<'_>) + Send + Sync + 'static) -> Self {
        Self { after: Arc::new(after) }
    }
}

impl Backend for Watched {
    fn name(&self) -> String {
        "watched".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let inner = Cpu::new(None, 1)?.load(Arc::clone(&program), params)?;
        Ok(Box::new(Watching { inner, program, batch: Batch::default(), after: Arc::clone(&self.after) }))
    }
}

struct Watching {
    inner: Box<dyn Executor>,
    program: Arc<Program>,
    batch: Batch,
    after: Arc<dyn Fn(Ran<'_>) + Send + Sync>,
}

impl Executor for Watching {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.batch = batch.clone();
        self.inner.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let report = self.inner.run_layer(layer)?;
        let Self { inner, program, batch, after } = self;
        after(Ran { program, batch, layer, executor: &mut **inner });
        Ok(report)
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
