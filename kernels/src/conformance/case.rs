//! One conformance case: a small program, its parameters, a batch, and the value that its second layer starts from.

use std::sync::Arc;

use crate::backend::{Backend, BackendError, Executor};
use crate::program::{
    DType, EmbedIndex, Layer, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};
use crate::value::{Batch, ParamData, Params, Value};

/// One parameter's elements, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValue {
    /// 8-bit codes.
    I8(Vec<i8>),
    /// 16-bit codes or shifts.
    I16(Vec<i16>),
    /// Mantissas.
    U16(Vec<u16>),
    /// Vectors.
    I32(Vec<i32>),
}

impl ParamValue {
    fn data(&self) -> ParamData<'_> {
        match self {
            Self::I8(v) => ParamData::I8(v),
            Self::I16(v) => ParamData::I16(v),
            Self::U16(v) => ParamData::U16(v),
            Self::I32(v) => ParamData::I32(v),
        }
    }

    const fn dtype(&self) -> DType {
        match self {
            Self::I8(_) => DType::I8,
            Self::I16(_) => DType::I16,
            Self::U16(_) => DType::U16,
            Self::I32(_) => DType::I32,
        }
    }
}

/// Parameters in memory, in the program's order.
#[derive(Clone, Debug, Default)]
pub struct OwnedParams(pub Vec<ParamValue>);

impl Params for OwnedParams {
    fn param(&self, id: ParamId) -> ParamData<'_> {
        self.0[usize::from(id.0)].data()
    }
}

/// A program to run, with all that it needs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Basename of the op under test, or `model`.
    pub op: &'static str,
    /// What is special about the case.
    pub name: String,
    /// The program.
    pub program: Arc<Program>,
    /// Its parameters.
    pub params: Arc<OwnedParams>,
    /// Its batch.
    pub batch: Batch,
    /// Replaces the output of layer 0 before layer 1 runs.
    pub input: Option<Value>,
}

/// All that a backend computed in a case: every tensor in the order of writing, and each layer's saturations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Layer, tensor, value.
    pub tensors: Vec<(usize, TensorId, Value)>,
    /// Saturations of each layer.
    pub saturations: Vec<u64>,
}

impl Case {
    /// Runs the case.
    ///
    /// # Errors
    /// Whatever the backend refuses.
    pub fn run(&self, backend: &dyn Backend) -> Result<Outcome, BackendError> {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&self.params);
        self.run_on(backend.load(Arc::clone(&self.program), params)?.as_mut())
    }

    /// Runs the case on an executor that has the program loaded and may have run other batches.
    pub(super) fn run_on(&self, executor: &mut dyn Executor) -> Result<Outcome, BackendError> {
        executor.begin(&self.batch)?;
        let mut outcome = Outcome { tensors: vec![], saturations: vec![] };
        for (l, layer) in self.program.layers.iter().enumerate() {
            outcome.saturations.push(executor.run_layer(l)?.saturations);
            for op in &layer.ops {
                outcome.tensors.push((l, op.out(), executor.read(op.out())?));
            }
            if let (0, Some(input)) = (l, &self.input) {
                executor.write(layer.output, input.clone())?;
            }
        }
        Ok(outcome)
    }
}

/// Builds a program of two or more layers, the first of which embeds.
#[derive(Debug)]
pub struct Builder {
    program: Program,
    params: OwnedParams,
}

impl Builder {
    /// A program without layers, for sequences of up to `max_positions` tokens below `vocab_size`.
    pub fn new(vocab_size: u32, max_positions: usize) -> Self {
        let max_positions = max_positions as u32;
        let program = Program { vocab_size, max_positions, tensors: vec![], params: vec![], layers: vec![] };
        Self { program, params: OwnedParams::default() }
    }

    /// A program with a layer 0 that writes zeros of width `cols`; the case's input replaces them. Returns the tensor.
    pub fn with_input(max_positions: usize, cols: usize) -> (Self, TensorId) {
        let mut b = Self::new(1, max_positions);
        let table = b.scaled("table", ParamValue::I16(vec![0; cols]), 1, cols, vec![0], vec![0]);
        let x = b.tensor("x", Rows::Position, cols, TensorKind::I32);
        b.layer(vec![Op::Embed { tables: vec![(table, EmbedIndex::Token)], out: x }], x);
        (b, x)
    }

    /// The longest sequence.
    pub fn max_positions(&self) -> usize {
        self.program.max_positions as usize
    }

    /// Declares a tensor.
    pub fn tensor(&mut self, name: &str, rows: Rows, cols: usize, kind: TensorKind) -> TensorId {
        let id = TensorId(self.program.tensors.len() as u16);
        self.program.tensors.push(Tensor { name: name.into(), rows, cols: cols as u32, kind });
        id
    }

    /// Declares a tensor with a row per position.
    pub fn rows(&mut self, name: &str, cols: usize, kind: TensorKind) -> TensorId {
        self.tensor(name, Rows::Position, cols, kind)
    }

    /// Declares a parameter.
    pub fn param(&mut self, name: &str, value: ParamValue, rows: usize, cols: usize) -> ParamId {
        let id = ParamId(self.program.params.len() as u16);
        let (rows, cols) = (rows as u32, cols as u32);
        self.program.params.push(Param { name: name.into(), dtype: value.dtype(), rows, cols });
        self.params.0.push(value);
        id
    }

    /// Declares a vector of `i32`.
    pub fn vector(&mut self, name: &str, value: Vec<i32>) -> ParamId {
        let len = value.len();
        self.param(name, ParamValue::I32(value), 1, len)
    }

    /// Declares scaled rows.
    pub fn scaled(
        &mut self,
        name: &str,
        codes: ParamValue,
        rows: usize,
        cols: usize,
        mantissa: Vec<u16>,
        shift: Vec<i16>,
    ) -> ScaledRows {
        ScaledRows {
            codes: self.param(name, codes, rows, cols),
            mantissa: self.param(&format!("{name}.mantissa"), ParamValue::U16(mantissa), 1, rows),
            shift: self.param(&format!("{name}.shift"), ParamValue::I16(shift), 1, rows),
        }
    }

    /// Adds a layer.
    pub fn layer(&mut self, ops: Vec<Op>, output: TensorId) {
        let name = format!("layer {}", self.program.layers.len());
        self.program.layers.push(Layer { name, ops, output });
    }

    /// The finished case, over sequences of the given lengths that repeat the tokens of a short cycle.
    pub fn case(self, op: &'static str, name: String, lengths: &[usize], input: Option<Vec<i32>>) -> Case {
        let vocab = self.program.vocab_size as usize;
        let tokens = |len: &usize| (0..*len).map(|t| ((t * 7 + len) % vocab) as u32).collect();
        Case {
            op,
            name,
            program: Arc::new(self.program),
            params: Arc::new(self.params),
            batch: Batch::of(lengths.iter().map(tokens).collect()),
            input: input.map(Value::I32),
        }
    }
}
