//! A program that is loaded on a device.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, Executor, LayerReport};
use lockstep_kernels::host::Caches;
use lockstep_kernels::pass::{self, Pass};
use lockstep_kernels::program::{Op, ParamId, Program, ScaledRows, TensorId, TensorKind};
use lockstep_kernels::sampling::TokenBytes;
use lockstep_kernels::tables::{GAUSS, SIGMOID};
use lockstep_kernels::value::{Batch, CacheId, Params, Sequence, Value};
use wgpu::Buffer;

use crate::gpu::{Gpu, Kernel};
use crate::matrix::Matrix;
use crate::ops::{Context, Place};
use crate::pages::{self, Store};
use crate::recorder::{Recorder, Slice};
use crate::shader::Chunks;
use crate::tensors::{Tensors, row_bytes};
use crate::{attention, ops, plan, sampling};

/// Elements of a chunk of 1 KiB.
const CHUNK_WORDS: usize = 256;

/// What shaders read that no batch changes.
pub(crate) struct Constants {
    /// By the parameter of the codes.
    pub matrices: BTreeMap<ParamId, Matrix>,
    /// Mantissa, shift, sum and bias of each row of a product's weight, by the product's place.
    pub scales: BTreeMap<Place, Buffer>,
    /// Scales and biases of norms.
    pub vectors: BTreeMap<ParamId, Buffer>,
    /// What an op has for each head, by its place.
    pub shifts: BTreeMap<Place, Buffer>,
    /// Of GELU and SiLU.
    pub gauss: Buffer,
    pub sigmoid: Buffer,
}

impl Constants {
    fn new(gpu: &Arc<Gpu>, program: &Program, params: &dyn Params) -> Result<Self, BackendError> {
        let mut constants = Self {
            matrices: BTreeMap::new(),
            scales: BTreeMap::new(),
            vectors: BTreeMap::new(),
            shifts: BTreeMap::new(),
            gauss: gpu.upload(&GAUSS.entries),
            sigmoid: gpu.upload(&SIGMOID.entries),
        };
        for (layer, l) in program.layers.iter().enumerate() {
            for (index, op) in l.ops.iter().enumerate() {
                constants.prepare(gpu, program, params, op, (layer, index))?;
            }
        }
        gpu.check()?;
        Ok(constants)
    }

    fn prepare(
        &mut self,
        gpu: &Arc<Gpu>,
        program: &Program,
        params: &dyn Params,
        op: &Op,
        place: Place,
    ) -> Result<(), BackendError> {
        let mut keep = |id: ParamId| {
            self.vectors.entry(id).or_insert_with(|| {
                let words = vector(params, id).iter().map(|v| *v as u32);
                gpu.upload(&words.collect::<Vec<_>>())
            });
        };
        match op {
            Op::MatMul { weight, bias, .. } => {
                if let Entry::Vacant(place) = self.matrices.entry(weight.codes) {
                    let cols = program.param(weight.codes).cols as usize;
                    place.insert(Matrix::new(gpu, params.param(weight.codes), cols)?);
                    params.release(weight.codes);
                }
                let sums = &self.matrices[&weight.codes].sums;
                let bias = bias.map(|bias| vector(params, bias));
                self.scales.insert(place, gpu.upload(&scales(params, weight, sums, bias)));
            }
            Op::LayerNorm { norm, bias, .. } => {
                keep(norm.scale);
                keep(*bias);
            }
            Op::RmsNorm { norm, .. } => keep(norm.scale),
            Op::Rope { shift, .. } => {
                let words: Vec<u32> = shift.iter().map(|s| u32::from(*s)).collect();
                self.shifts.insert(place, gpu.upload(&words));
            }
            Op::Attention { heads, .. } => {
                let both = heads.score_shift.iter().zip(&heads.value_shift);
                let words: Vec<u32> = both.flat_map(|(score, value)| [*score, *value].map(u32::from)).collect();
                self.shifts.insert(place, gpu.upload(&words));
            }
            _ => {}
        }
        Ok(())
    }
}

fn vector(params: &dyn Params, id: ParamId) -> &[i32] {
    params.param(id).as_i32().expect("validation fixed the type of every parameter")
}

/// Mantissa, shift, sum and bias of each row of a weight.
fn scales(params: &dyn Params, weight: &ScaledRows, sums: &[i32], bias: Option<&[i32]>) -> Vec<u32> {
    let typed = "validation fixed the type of every parameter";
    let mantissas = params.param(weight.mantissa).as_u16().expect(typed);
    let shifts = params.param(weight.shift).as_i16().expect(typed);
    let rows = mantissas.iter().zip(shifts).zip(sums).enumerate();
    let row = |(n, ((m, s), sum)): (usize, ((&u16, &i16), &i32))| {
        [u32::from(*m), i32::from(*s) as u32, *sum as u32, bias.map_or(0, |b| b[n] as u32)]
    };
    rows.flat_map(row).collect()
}

/// What shaders read that goes with the batch.
#[derive(Default)]
pub(crate) struct Inputs {
    /// First and last row of each sequence.
    pub spans: Option<Buffer>,
    /// Row of each point.
    pub points: Option<Buffer>,
    /// Cosines and sines of each row, by the table.
    pub angles: BTreeMap<ParamId, Buffer>,
}

/// The executor.
pub(crate) struct WgpuExecutor {
    gpu: Arc<Gpu>,
    program: Arc<Program>,
    params: Arc<dyn Params>,
    constants: Constants,
    inputs: Inputs,
    tensors: Tensors,
    caches: Caches<Store>,
    recorder: Recorder,
    pass: Pass,
}

impl WgpuExecutor {
    /// Uploads the weights of a validated program.
    pub fn new(gpu: Arc<Gpu>, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Self, BackendError> {
        let constants = Constants::new(&gpu, &program, params.as_ref())?;
        let tensors = Tensors::new(Arc::clone(&gpu), Arc::clone(&program));
        let caches = Caches::new(&program, Store::new(Arc::clone(&gpu)));
        let recorder = Recorder::new(Arc::clone(&gpu));
        let (inputs, pass) = (Inputs::default(), Pass::default());
        Ok(Self { gpu, program, params, constants, inputs, tensors, caches, recorder, pass })
    }

    /// Refuses what can't be bound in one piece: a sequence that is pooled. All else is split.
    fn check_bindings(&self, batch: &Batch) -> Result<(), BackendError> {
        for op in self.program.layers.iter().flat_map(|l| &l.ops) {
            let Op::MeanPool { input, .. } = op else { continue };
            let row_bytes = row_bytes(self.program.tensor(*input)) as u64;
            for (sequence, rows) in batch.sequences.iter().map(Sequence::rows).enumerate() {
                let (bytes, most) = ((rows + plan::ALIGNED_ROWS) as u64 * row_bytes, self.gpu.binding);
                if bytes > most {
                    let reason =
                        format!("its {rows} rows are pooled and take {bytes} bytes; a binding has at most {most}");
                    return Err(BackendError::Batch { sequence, reason });
                }
            }
        }
        Ok(())
    }

    /// Draws the word of each point.
    fn sample(&mut self, op: &Op) -> Result<(), BackendError> {
        let Op::Sample { logits, frac, token_bytes, out } = op else { unreachable!("only called for sampling") };
        let cols = self.program.tensor(*logits).cols as usize;
        let table = self.params.param(*token_bytes).as_i8().expect("validation fixed the type of every parameter");
        let table = TokenBytes { rows: table, width: self.program.param(*token_bytes).cols as usize };
        let points = self.pass.samples(u32::from(*frac), table);
        let (gpu, recorder) = (&self.gpu, &mut self.recorder);
        let mut words = Vec::with_capacity(points.len());
        for piece in plan::rows(points.len(), 4 * cols, 1, gpu.binding) {
            let of_piece = self.tensors.slice(*logits, &piece);
            words.extend(sampling::words(gpu, recorder, of_piece, cols, &points[piece])?);
        }
        self.tensors.write(*out, &Value::I32(words))
    }

    fn run_op(&mut self, op: &Op, place: Place, line: usize) -> Result<(), BackendError> {
        let empty = self.tensors.rows(op.out()) == 0;
        self.tensors.make(op.out());
        if empty {
            return Ok(());
        }
        let context = &mut Context {
            gpu: &self.gpu,
            program: &self.program,
            params: self.params.as_ref(),
            pass: &self.pass,
            tensors: &self.tensors,
            constants: &self.constants,
            inputs: &mut self.inputs,
            recorder: &mut self.recorder,
            place,
        };
        match op {
            Op::Attention { .. } => attention::run(context, &self.caches, op, line),
            Op::Sample { .. } => return self.sample(op),
            _ => ops::run(context, op),
        }
        Ok(())
    }
}

impl Executor for WgpuExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // A batch that is refused leaves nothing behind either.
        let checked = pass::check(&self.program, batch, |id, start| self.caches.check(id, start))
            .and_then(|()| self.check_bindings(batch))
            .and_then(|()| self.tensors.begin(&Pass::new(batch.clone())));
        self.pass = if checked.is_ok() { Pass::new(batch.clone()) } else { Pass::default() };
        if checked.is_err() {
            self.tensors.begin(&self.pass)?;
        }
        self.inputs = Inputs::default();
        for sequence in &self.pass.batch.sequences {
            if let Some(id) = sequence.cache {
                self.caches.begin(id, sequence.start);
            }
        }
        checked
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let program = Arc::clone(&self.program);
        let mut line = self.caches.line(layer);
        self.recorder.begin_layer();
        for (index, op) in program.layers[layer].ops.iter().enumerate() {
            for input in op.inputs() {
                self.tensors.check(input)?;
            }
            pages::keep(&mut self.caches, &mut self.recorder, &self.pass, &self.tensors, op, line)?;
            self.run_op(op, (layer, index), line)?;
            line += usize::from(matches!(op, Op::Attention { .. }));
        }
        Ok(LayerReport { saturations: self.recorder.end_layer()? })
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.recorder.submit();
        self.tensors.read(tensor)
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        self.tensors.check(tensor)?;
        let (declared, rows) = (self.program.tensor(tensor), self.tensors.rows(tensor));
        if declared.kind != TensorKind::I32 || counters.len() != rows {
            let reason = format!("{} counters for {rows} rows of {:?}", counters.len(), declared.kind);
            return Err(BackendError::Value { tensor, reason });
        }
        let (cols, row_chunks) = (declared.cols as usize, (declared.cols as usize).div_ceil(CHUNK_WORDS));
        let mut all = Vec::with_capacity(rows * row_chunks);
        for piece in plan::rows(rows, row_bytes(declared), 1, self.gpu.binding) {
            let count = piece.len() * row_chunks;
            let words: Vec<u32> = counters[piece.clone()].iter().flat_map(|c| [*c as u32, (*c >> 32) as u32]).collect();
            let (counters, values) = (self.gpu.upload(&words), self.gpu.storage(32 * count as u64));
            let params = Chunks { chunks: count as u32, cols: cols as u32, row_chunks: row_chunks as u32 };
            let input = self.tensors.slice(tensor, &piece);
            let bindings = [(1, input), (2, Slice::all(&counters)), (4, Slice::all(&values))];
            let grid = plan::per_element(count as u64);
            self.recorder.dispatch(Kernel::of("chunks"), &params, &bindings, false, grid, 0);
            self.recorder.submit();
            let bytes = self.gpu.download(&values, 32 * count as u64)?;
            all.extend_from_slice(bytes.as_chunks::<32>().0);
        }
        Ok(Some(all))
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.recorder.submit();
        self.tensors.write(tensor, &value)
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
