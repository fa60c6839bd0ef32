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
use crate::plan::{DecodeProgram, Units};

mod attention;
mod decode;
pub mod digits;
mod fuse;
mod hash;
mod pages;
mod planner;
mod sample;
mod tensors;
mod weights;

use decode::Decode;
use fuse::Group;
use pages::DeviceStore;
use planner::{Planner, RowLists};
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
    /// What layers that run one by one read; made when the first of a pass runs.
    inputs: Option<Inputs>,
    /// Whether nothing has been run or written since the pass began.
    is_untouched: bool,
    /// Of a program whose passes may be launched whole.
    decode_program: Option<Arc<DecodeProgram>>,
    decode: Option<Decode>,
    /// Whether launches are recorded: not where the device once refused.
    records: bool,
    /// Clamped elements of the layer that runs by itself.
    saturations: Buffer,
    /// [`GAUSS`] and [`SIGMOID`].
    tables: [Buffer; 2],
}

/// Places of tables in [`DeviceExecutor::tables`].
const GAUSS_TABLE: usize = 0;
const SIGMOID_TABLE: usize = 1;

/// What the layers of a pass read besides tensors, on the device, where they run one by one.
struct Inputs {
    tokens: Buffer,
    positions: Buffer,
    first: Buffer,
    count: Buffer,
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

    fn lists(&self) -> RowLists {
        let Self { tokens, positions, first, count, points, .. } = self;
        let [tokens, positions, first, count, points] = [tokens, positions, first, count, points].map(Buffer::address);
        RowLists { tokens, positions, first, count, points }
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
        Ok(Self {
            units: Units { products, processors: device.processors() },
            weights: Weights::new(&device, &program, params)?,
            values: Tensors::new(&device, &program),
            caches: Caches::new(&program, DeviceStore::new(&device)),
            pass: Pass::default(),
            inputs: None,
            is_untouched: false,
            decode_program: DecodeProgram::of(&program).map(Arc::new),
            decode: None,
            records: true,
            saturations: Buffer::of(&device, &[0_u64])?,
            tables: [Buffer::of(&device, &GAUSS.entries)?, Buffer::of(&device, &SIGMOID.entries)?],
            program,
            device,
        })
    }

    /// The same, with every layer launched by itself and when it is asked for.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { decode_program: None, ..self }
    }

    fn planner(&self, inputs: &Inputs) -> Planner<'_> {
        self.planner_over(&self.values, inputs.lists(), self.saturations.address())
    }

    fn planner_over<'a>(&'a self, values: &'a Tensors, lists: RowLists, saturations: u64) -> Planner<'a> {
        let Self { program, units, weights, tables, pass, .. } = self;
        Planner { program, units: *units, weights, tables, values, pass, lists, saturations }
    }

    /// Launches a layer, and waits for its count of clamped elements.
    fn run_alone(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let inputs = match self.inputs.take() {
            Some(inputs) => inputs,
            None => Inputs::new(&self.device, self.units.products, &self.program, &self.pass)?,
        };
        let ran = self.run_with(&inputs, layer);
        self.inputs = Some(inputs);
        ran
    }

    fn run_with(&mut self, inputs: &Inputs, layer: usize) -> Result<LayerReport, BackendError> {
        let program = Arc::clone(&self.program);
        let mut line = self.caches.line(layer);
        self.device.zero(self.saturations.address(), self.saturations.bytes())?;
        for group in fuse::groups(&program, &program.layers[layer].ops) {
            let ops = group.ops();
            let of_group: Vec<TensorId> = ops.iter().map(|op| op.out()).collect();
            for input in ops.iter().flat_map(|op| op.inputs()).filter(|input| !of_group.contains(input)) {
                self.values.check_written(input)?;
            }
            self.keep(inputs, ops[0], line)?;
            let mut elements = 0;
            for out in &of_group {
                elements += self.values.prepare(*out, &self.pass)?;
            }
            // Without points there is nothing to do in the last layer.
            if elements > 0 {
                self.run_group(inputs, &group, line)?;
            }
            of_group.into_iter().for_each(|out| self.values.set_written(out));
            line += usize::from(matches!(ops[0], Op::Attention { .. }));
        }
        let saturations = self.saturations.read(1)?[0];
        Ok(LayerReport { saturations })
    }

    /// Launches ops whose outputs are prepared and not empty. `line` is that of attention in the caches.
    fn run_group(&self, inputs: &Inputs, group: &Group<'_>, line: usize) -> Result<(), BackendError> {
        match group {
            Group::One(op @ Op::Attention { .. }) => self.attention(inputs, op, line),
            Group::One(op @ Op::Sample { .. }) => self.sample(inputs, op),
            group => {
                let launches = self.planner(inputs).group(group);
                Ok(launches.iter().try_for_each(|launch| self.device.launch(launch))?)
            }
        }
    }
}

impl Executor for DeviceExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // A batch that is refused leaves nothing behind either.
        let checked = pass::check(&self.program, batch, |id, start| self.caches.check(id, start));
        self.pass = if checked.is_ok() { Pass::new(batch.clone()) } else { Pass::default() };
        self.values.begin(&self.pass);
        self.inputs = None;
        self.is_untouched = true;
        self.forget_ahead();
        for (id, start) in self.pass.batch.sequences.iter().filter_map(|s| Some((s.cache?, s.start))) {
            self.caches.begin(id, start);
        }
        checked
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if std::mem::take(&mut self.is_untouched) && layer == 0 {
            self.look_ahead()?;
        }
        if self.next_ahead() == Some(layer) {
            return self.reveal(layer);
        }
        self.depart()?;
        self.run_alone(layer)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        if let Some(value) = self.read_ahead(tensor)? {
            return Ok(value);
        }
        self.depart()?;
        self.values.read(tensor, &self.pass)
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        if let Some(values) = self.hashed_ahead(tensor, counters) {
            return Ok(Some(values));
        }
        self.depart()?;
        self.hash_chunks(tensor, counters).map(Some)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.depart()?;
        self.is_untouched = false;
        self.values.write(tensor, &value, &self.pass)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.settle()?;
        self.caches.fork(from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.settle()?;
        self.caches.truncate(id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.caches.drop(id);
    }

    fn cache_bytes(&self) -> u64 {
        self.caches.bytes()
    }
}
