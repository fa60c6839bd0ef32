//! The demo's cheat: a backend that alters one element of one layer.
//!
//! It decorates an honest backend, here and nowhere else: a worker has no option to cheat.

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Batch, Params, Value};

/// High enough that rounding in later layers does not swallow it. A lie that it swallows is found just as well: the
/// altered layer's root differs all the same.
const BIT: u32 = 20;

/// Flips one bit of one element of the output of one layer.
pub struct Tampering {
    /// Does the real work.
    pub honest: Arc<dyn Backend>,
    /// Which layer's output is altered; programs with fewer layers are left alone.
    pub layer: usize,
    /// Which element of it, counted over all rows.
    pub element: usize,
}

impl Backend for Tampering {
    fn name(&self) -> String {
        self.honest.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let target = program.layers.get(self.layer).map(|layer| layer.output);
        let honest = self.honest.load(program, params)?;
        Ok(Box::new(TamperingExecutor { honest, layer: self.layer, element: self.element, target }))
    }
}

struct TamperingExecutor {
    honest: Box<dyn Executor>,
    layer: usize,
    element: usize,
    target: Option<TensorId>,
}

impl Executor for TamperingExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.honest.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let report = self.honest.run_layer(layer)?;
        if let Some(target) = self.target.filter(|_| layer == self.layer) {
            let mut value = self.honest.read(target)?;
            if let Value::I32(rows) = &mut value
                && let Some(element) = rows.get_mut(self.element)
            {
                *element ^= 1 << BIT;
            }
            self.honest.write(target, value)?;
        }
        Ok(report)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.honest.read(tensor)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.honest.write(tensor, value)
    }
}
