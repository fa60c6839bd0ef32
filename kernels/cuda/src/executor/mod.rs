//! A program on a device: parameters and activations stay there, and each op is a launch or two.

use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, Executor, LayerReport};
use lockstep_kernels::host::Caches;
use lockstep_kernels::pass::{self, Pass};
use lockstep_kernels::program::{EmbedIndex, Op, Program, TensorId};
use lockstep_kernels::tables::{GAUSS, SIGMOID};
use lockstep_kernels::value::{Batch, CacheId, Params, Value};

use crate::backend::Products;
use crate::device::{Buffer, Device, DeviceError};
use crate::plan::Units;

mod attention;
pub mod digits;
mod fuse;
mod hash;
mod ops;
mod pages;
mod sample;
mod tensors;
mod weights;

use pages::DeviceStore;
use tensors::Tensors;
use weights::Weights;

/// A program that is loaded on a device.
pub struct DeviceExecutor {
    device: Arc<dyn Device>,
    units: Units,
    program: Arc<Program>,
    weights: Weights,
    values: Tensors,
    caches: Caches<DeviceStore>,
    pass: Pass,
    inputs: Inputs,
    /// Clamped elements of the layer that runs.
    saturations: Buffer,
    /// [`GAUSS`] and [`SIGMOID`].
    tables: [Buffer; 2],
}

/// Places of tables in [`DeviceExecutor::tables`].
const GAUSS_TABLE: usize = 0;
const SIGMOID_TABLE: usize = 1;

/// What a pass reads besides tensors, on the device.
struct Inputs {
    /// Token and position of each row.
    tokens: Buffer,
    positions: Buffer,
    /// First row of each sequence, and how many it has.
    first: Buffer,
    count: Buffer,
    /// Row of each point.
    points: Buffer,
    /// How attentions are cut.
    cuts: Vec<attention::Cut>,
}

impl Inputs {
    fn new(device: &Arc<dyn Device>, products: Products, program: &Program, pass: &Pass) -> Result<Self, DeviceError> {
        let of = |items: Vec<u32>| Buffer::of(device, &items);
        Ok(Self {
            tokens: of(pass.embed_index(EmbedIndex::Token))?,
            positions: of(pass.positions.clone())?,
            first: of(pass.spans.iter().map(|s| s.start as u32).collect())?,
            count: of(pass.spans.iter().map(|s| s.len() as u32).collect())?,
            points: of(pass.points.iter().map(|p| *p as u32).collect())?,
            cuts: attention::Cut::all(device, products, program, pass)?,
        })
    }
}

impl DeviceExecutor {
    /// Checks the program and takes its parameters to the device.
    ///
    /// # Errors
    /// The program is invalid, or the device has no room for it.
    pub fn new(
        device: Arc<dyn Device>,
        products: Products,
        program: Arc<Program>,
        params: &dyn Params,
    ) -> Result<Self, BackendError> {
        program.validate()?;
        let units = Units { products, processors: device.processors() };
        let weights = Weights::new(&device, &program, params)?;
        let values = Tensors::new(&device, &program);
        let caches = Caches::new(&program, DeviceStore::new(&device));
        let pass = Pass::default();
        let inputs = Inputs::new(&device, products, &program, &pass)?;
        let saturations = Buffer::of(&device, &[0_u64])?;
        let tables = [Buffer::of(&device, &GAUSS.entries)?, Buffer::of(&device, &SIGMOID.entries)?];
        Ok(Self { device, units, program, weights, values, caches, pass, inputs, saturations, tables })
    }
}

impl Executor for DeviceExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // A batch that is refused leaves nothing behind either.
        let checked = pass::check(&self.program, batch, |id, start| self.caches.check(id, start));
        self.pass = if checked.is_ok() { Pass::new(batch.clone()) } else { Pass::default() };
        self.values.begin(&self.pass);
        for (id, start) in self.pass.batch.sequences.iter().filter_map(|s| Some((s.cache?, s.start))) {
            self.caches.begin(id, start);
        }
        checked?;
        self.inputs = Inputs::new(&self.device, self.units.products, &self.program, &self.pass)?;
        Ok(())
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let program = Arc::clone(&self.program);
        let mut line = self.caches.line(layer);
        self.device.zero(self.saturations.address(), self.saturations.bytes())?;
        for group in fuse::groups(&program, &program.layers[layer].ops) {
            let ops = group.ops();
            let of_group: Vec<TensorId> = ops.iter().map(|op| op.out()).collect();
            for input in ops.iter().flat_map(|op| op.inputs()).filter(|input| !of_group.contains(input)) {
                self.values.check_written(input)?;
            }
            self.keep(ops[0], line)?;
            let mut elements = 0;
            for out in &of_group {
                elements += self.values.prepare(*out, &self.pass)?;
            }
            // Without points there is nothing to do in the last layer.
            if elements > 0 {
                self.run_group(&group, line)?;
            }
            of_group.into_iter().for_each(|out| self.values.set_written(out));
            line += usize::from(matches!(ops[0], Op::Attention { .. }));
        }
        let saturations = self.saturations.read(1)?[0];
        Ok(LayerReport { saturations })
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.values.read(tensor, &self.pass)
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        self.hash_chunks(tensor, counters).map(Some)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.values.write(tensor, &value, &self.pass)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.caches.fork(from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.caches.truncate(id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.caches.drop(id);
    }

    fn cache_bytes(&self) -> u64 {
        self.caches.bytes()
    }
}
