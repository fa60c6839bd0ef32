//! A backend that stands still at one layer of the tests' model until it is let go.
#![allow(dead_code, reason = "each test file uses another part")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::program::Program;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, Params};

use crate::common::{LAYERS, POSITIONS};

/// Stands still before `layer`, where a batch has so many rows.
#[derive(Clone)]
pub struct Stuck {
    layer: usize,
    rows: usize,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_free: Mutex<bool>,
    changed: Condvar,
    /// Layers of the tests' model that ran, of such batches.
    layers: AtomicUsize,
}

impl Stuck {
    pub fn at(layer: usize, rows: usize) -> Self {
        Self { layer, rows, state: Arc::default() }
    }

    pub fn let_go(&self) {
        *self.state.is_free.lock().unwrap() = true;
        self.state.changed.notify_all();
    }

    pub fn layers(&self) -> usize {
        self.state.layers.load(Ordering::SeqCst)
    }
}

impl Backend for Stuck {
    fn name(&self) -> String {
        "stuck".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let is_model = program.max_positions as usize == POSITIONS && program.layers.len() == usize::from(LAYERS) + 2;
        let inner = Reference.load(program, params)?;
        Ok(Box::new(Standing { inner, stuck: self.clone(), is_model, sticks: false }))
    }
}

struct Standing {
    inner: Box<dyn Executor>,
    stuck: Stuck,
    is_model: bool,
    /// Whether the batch is one of those.
    sticks: bool,
}

impl Wrapper for Standing {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.sticks = self.is_model && batch.rows() == self.stuck.rows;
        self.inner.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if self.sticks {
            if layer == self.stuck.layer {
                let free = self.stuck.state.is_free.lock().unwrap();
                drop(self.stuck.state.changed.wait_while(free, |free| !*free).unwrap());
            }
            self.stuck.state.layers.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.run_layer(layer)
    }
}
