//! A backend of which every layer that it runs is watched, and may be changed.
#![allow(dead_code, reason = "each test file uses another part")]

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::{Batch, Params};

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

impl Wrapper for Watching {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

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
}
