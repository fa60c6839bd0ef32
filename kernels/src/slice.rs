//! Some consecutive layers of a model as a program of their own, for a worker or a device that holds no others.
//!
//! A slice is an ordinary program, so every backend runs it: its first layer stands in for everything before it and never
//! runs, because its output is written from outside; where a decoder's last layer is missing, one stands in for it that
//! has no points. Tensors keep their numbers, and [`SliceExecutor`] those of the layers, so whoever knows the model's
//! program reads and writes as if all of it were there.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use crate::program::{
    DType, EmbedIndex, Layer, MAX_OUTPUT_COLS, Norm, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId,
    TensorKind,
};
use crate::value::{ParamData, Params};

/// Consecutive layers of a model.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The slice as a program.
    program: Arc<Program>,
    /// Of each of its parameters, which one of the model it is; those after them belong to what stands in.
    params: Arc<[ParamId]>,
    first: usize,
    last: usize,
    /// The tensor that is written from outside: the output of the layer before.
    input: Option<TensorId>,
}

impl Slice {
    /// Layers of a validated program, by their numbers in it: 0 is the embedding. `None` where it has no such layers, or
    /// only the embedding is asked for.
    pub fn of(program: &Program, layers: RangeInclusive<usize>) -> Option<Self> {
        let (first, last) = layers.into_inner();
        if first > last || last == 0 || last >= program.layers.len() {
            return None;
        }
        let mut slice =
            Program { params: Vec::new(), layers: program.layers[first..=last].to_vec(), ..program.clone() };
        let params = keep_params(program, &mut slice);
        let input = first.checked_sub(1).map(|before| program.layers[before].output);
        if let Some(input) = input {
            stand_in_before(&mut slice, input);
        }
        if program.is_decoder() && last + 1 < program.layers.len() {
            stand_in_after(&mut slice);
        }
        Some(Self { program: Arc::new(slice), params: params.into(), first, last, input })
    }

    /// The slice as a program, which numbers its layers by itself.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The model's layers that it has.
    pub fn layers(&self) -> RangeInclusive<usize> {
        self.first..=self.last
    }

    /// The tensor of the model's program that is written from outside before the slice runs: the output of the layer
    /// before it. `None` where it begins with the embedding.
    pub fn input(&self) -> Option<TensorId> {
        self.input
    }

    /// The parameters of the model that it reads, ascending.
    pub fn params(&self) -> &[ParamId] {
        &self.params
    }

    /// The slice's parameters out of the model's, of which no others are looked at.
    pub fn select(&self, model: Arc<dyn Params>) -> Arc<dyn Params> {
        Arc::new(Selected { model, ids: Arc::clone(&self.params), program: Arc::clone(&self.program) })
    }

    /// Loads the slice. The executor's layers have the model's numbers.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn load(&self, backend: &dyn Backend, model: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let inner = backend.load(Arc::clone(&self.program), self.select(model))?;
        Ok(Box::new(SliceExecutor { inner, first: self.first, last: self.last }))
    }
}

/// What each layer of a validated program reads: the numbers of its parameters, with their bytes. The first slice has at
/// least one layer beside the embedding, so both of these read what the two read together.
pub fn footprint(program: &Program) -> Vec<Vec<(u16, u64)>> {
    let bytes = |id: &ParamId| (id.0, program.param(*id).bytes().unwrap_or(u64::MAX));
    let slice = |layer: usize| Slice::of(program, if layer <= 1 { 0..=1 } else { layer..=layer });
    let params = |slice: Slice| slice.params().iter().map(bytes).collect();
    (0..program.layers.len()).map(|layer| slice(layer).map(params).unwrap_or_default()).collect()
}

/// Leaves only the parameters that the slice reads, and numbers them anew.
fn keep_params(program: &Program, slice: &mut Program) -> Vec<ParamId> {
    let mut numbers = BTreeMap::new();
    for op in slice.layers.iter_mut().flat_map(|layer| &mut layer.ops) {
        params_of(op).into_iter().for_each(|id| {
            numbers.insert(*id, ParamId(0));
        });
    }
    let kept: Vec<ParamId> = numbers.keys().copied().collect();
    for (number, new) in (0..).zip(numbers.values_mut()) {
        *new = ParamId(number);
    }
    for op in slice.layers.iter_mut().flat_map(|layer| &mut layer.ops) {
        params_of(op).into_iter().for_each(|id| *id = numbers[&*id]);
    }
    slice.params = kept.iter().map(|id| program.param(*id).clone()).collect();
    kept
}

/// The parameters that an op names.
fn params_of(op: &mut Op) -> Vec<&mut ParamId> {
    fn rows(ScaledRows { codes, mantissa, shift }: &mut ScaledRows) -> [&mut ParamId; 3] {
        [codes, mantissa, shift]
    }
    match op {
        Op::Embed { tables, .. } => tables.iter_mut().flat_map(|(table, _)| rows(table)).collect(),
        Op::MatMul { weight, bias, .. } => rows(weight).into_iter().chain(bias).collect(),
        Op::LayerNorm { norm: Norm { scale, .. }, bias, .. } => vec![scale, bias],
        Op::RmsNorm { norm: Norm { scale, .. }, .. } => vec![scale],
        Op::Rope { table, .. } => vec![table],
        Op::Sample { token_bytes, .. } => vec![token_bytes],
        Op::Quantize { .. }
        | Op::Add { .. }
        | Op::Attention { .. }
        | Op::Gelu { .. }
        | Op::Silu { .. }
        | Op::MeanPool { .. }
        | Op::FirstPool { .. }
        | Op::L2Normalize { .. }
        | Op::Multiply { .. }
        | Op::Shift { .. }
        | Op::Gather { .. } => vec![],
    }
}

/// An embedding of one row of zeros in front.
fn stand_in_before(slice: &mut Program, out: TensorId) {
    let (cols, next) = (slice.tensor(out).cols, slice.params.len() as u16);
    let param = |name: &str, dtype, cols| Param { name: format!("stand-in.{name}"), dtype, rows: 1, cols };
    slice.params.extend([
        param("codes", DType::I16, cols),
        param("mantissa", DType::U16, 1),
        param("shift", DType::I16, 1),
    ]);
    let rows = ScaledRows { codes: ParamId(next), mantissa: ParamId(next + 1), shift: ParamId(next + 2) };
    let ops = vec![Op::Embed { tables: vec![(rows, EmbedIndex::Constant(0))], out }];
    slice.layers.insert(0, Layer { name: "stand-in".into(), ops, output: out });
}

/// A last layer that gathers rows at points, of which there are none.
fn stand_in_after(slice: &mut Program) {
    let input = slice.layers.last().expect("a slice has layers").output;
    let out = TensorId(slice.tensors.len() as u16);
    let cols = slice.tensor(input).cols;
    slice.tensors.push(Tensor { name: "stand-in.points".into(), rows: Rows::Point, cols, kind: TensorKind::I32 });
    slice.layers.push(Layer { name: "stand-in".into(), ops: vec![Op::Gather { input, out }], output: out });
}

/// The parameters of a slice.
struct Selected {
    model: Arc<dyn Params>,
    ids: Arc<[ParamId]>,
    program: Arc<Program>,
}

/// What stands in reads zeros, scaled by one.
static ZEROS: [i16; MAX_STAND_IN_COLS] = [0; MAX_STAND_IN_COLS];
static ONE: [u16; 1] = [1 << 15];
/// A layer's output is no wider (SPEC 6).
const MAX_STAND_IN_COLS: usize = MAX_OUTPUT_COLS as usize;

impl Params for Selected {
    fn param(&self, id: ParamId) -> ParamData<'_> {
        match self.ids.get(usize::from(id.0)) {
            Some(of_model) => self.model.param(*of_model),
            None if self.program.param(id).dtype == DType::U16 => ParamData::U16(&ONE),
            None => ParamData::I16(&ZEROS[..self.program.param(id).len()]),
        }
    }

    fn release(&self, id: ParamId) {
        if let Some(of_model) = self.ids.get(usize::from(id.0)) {
            self.model.release(*of_model);
        }
    }
}

/// A slice on a device. Layers are called by the model's numbers; those that it does not have can't be run.
struct SliceExecutor {
    inner: Box<dyn Executor>,
    first: usize,
    last: usize,
}

impl Wrapper for SliceExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if !(self.first..=self.last).contains(&layer) {
            let held = format!("layers {} to {} are here, not {layer}", self.first, self.last);
            return Err(BackendError::Unavailable(held));
        }
        // What stands in for the layers before is one layer.
        self.inner.run_layer(layer - self.first + usize::from(self.first > 0))
    }
}
