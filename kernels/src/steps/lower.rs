//! From a layer to its steps: which ops the disputed row depends on, for how many rows each, and in which order.

use std::sync::Arc;

use super::view::{Activation, View};
use super::{
    Lowered, MAX_TENSOR_BYTES, Part, Plan, PlanError, Source, Step, Width, add, attention, embed, first_pool, gelu,
    l2_normalize, layer_norm, matmul, mean_pool, multiply, quantize, rms_norm, shift, silu,
};
use crate::program::{Op, ParamId, Program, Rows, TensorId};

/// Rows of an op's output that the disputed row depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// The disputed row alone; of pooled tensors, their only one.
    Row,
    /// The positions below this, the disputed row among them.
    Below(u64),
}

/// The disputed row and what it may see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Length of the sequence.
    pub(super) positions: u64,
    /// The disputed row.
    pub(super) row: u64,
}

/// An op with the ops that write its inputs; none where that is the layer's own input.
struct Node<'a> {
    layer: usize,
    op: usize,
    kind: &'a Op,
    inputs: Vec<Option<usize>>,
}

/// See [`Plan::new`].
pub(super) fn plan(program: &Program, layer: usize, positions: u32, row: u32) -> Result<Plan, PlanError> {
    let layers = program.layers.len();
    let place = PlanError::Place { layers, layer, positions, row };
    if layer == 0 || layer >= layers || positions == 0 || positions > program.max_positions {
        return Err(place);
    }
    let rows = match program.tensor(program.layers[layer].output).rows {
        Rows::Position => positions,
        Rows::Sequence | Rows::Point => 1,
    };
    if row >= rows {
        return Err(place);
    }
    let place = Place { positions: positions.into(), row: row.into() };
    let nodes = nodes(program, layer);
    let needs = needs(&nodes, program.layers[layer].output, place)?;
    let mut lowering = Lowering { program, place, at: (layer, 0), need: Need::Row, steps: vec![], first: vec![] };
    let mut ops: Vec<Arc<dyn Lowered>> = Vec::new();
    let mut outs: Vec<Option<Activation>> = vec![None; nodes.len()];
    for (n, (node, need)) in nodes.iter().zip(&needs).enumerate() {
        let Some(need) = need else { continue };
        (lowering.at, lowering.need) = ((node.layer, node.op), *need);
        let inputs = node.inputs.iter().map(|input| match input {
            Some(n) => outs[*n].expect("what a needed op reads is needed"),
            None => Activation::Plain(lowering.input(layer)),
        });
        let inputs: Vec<Activation> = inputs.collect();
        let (out, op) = lowering.op(node.kind, &inputs)?;
        outs[n] = Some(out);
        ops.resize(lowering.steps.len(), op);
    }
    Ok(Plan { steps: lowering.steps, ops: ops.into_iter().zip(lowering.first).collect() })
}

/// The ops of a layer in order, and for layer 1 those of layer 0 before them.
fn nodes(program: &Program, layer: usize) -> Vec<Node<'_>> {
    let layers = if layer == 1 { 0..=1 } else { layer..=layer };
    let mut nodes = Vec::<Node<'_>>::new();
    for l in layers {
        for (op, kind) in program.layers[l].ops.iter().enumerate() {
            let writer = |id| nodes.iter().rposition(|n| n.kind.out() == id);
            let inputs = kind.inputs().into_iter().map(writer).collect();
            nodes.push(Node { layer: l, op, kind, inputs });
        }
    }
    nodes
}

/// Which rows of each op the disputed row depends on; none where it doesn't.
fn needs(nodes: &[Node<'_>], output: TensorId, place: Place) -> Result<Vec<Option<Need>>, PlanError> {
    let mut needs = vec![None; nodes.len()];
    let last = nodes.iter().rposition(|n| n.kind.out() == output).expect("validation: the layer writes its output");
    needs[last] = Some(Need::Row);
    for (n, node) in nodes.iter().enumerate().rev() {
        let Some(need) = needs[n] else { continue };
        let of_inputs = match node.kind {
            Op::Attention { .. } if need != Need::Row => {
                return Err(PlanError::Attention { layer: node.layer, op: node.op });
            }
            Op::Attention { heads, .. } => {
                let keys = Need::Below(if heads.causal { place.row + 1 } else { place.positions });
                [Need::Row, keys, keys]
            }
            Op::MeanPool { .. } => [Need::Below(place.positions); 3],
            _ => [need; 3],
        };
        for (input, need) in node.inputs.iter().zip(of_inputs) {
            if let Some(input) = input {
                needs[*input] = needs[*input].max(Some(need));
            }
        }
    }
    Ok(needs)
}

/// A plan in the making.
pub(super) struct Lowering<'a> {
    program: &'a Program,
    /// The disputed row and what it may see.
    pub(super) place: Place,
    /// Layer and index of the op that is being lowered.
    at: (usize, usize),
    /// Rows of it that are needed.
    need: Need,
    steps: Vec<Step>,
    /// Number of the first row of each step.
    first: Vec<u64>,
}

impl Lowering<'_> {
    fn op(&mut self, op: &Op, inputs: &[Activation]) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
        let plain = |n: usize| match inputs[n] {
            Activation::Plain(view) | Activation::Bfp { codes: view, .. } => view,
        };
        let cols = u64::from(self.program.tensor(op.out()).cols);
        match op {
            Op::Embed { tables, .. } => embed::lower(self, tables, cols),
            Op::Quantize { .. } => quantize::lower(self, plain(0), cols),
            Op::MatMul { input, weight, bias, out } => {
                let k = u64::from(self.program.tensor(*input).cols);
                matmul::lower(self, inputs[0], weight, *bias, [cols, k], self.program.tensor(*out).kind)
            }
            Op::Add { .. } => add::lower(self, [plain(0), plain(1)], cols),
            Op::LayerNorm { norm, bias, .. } => layer_norm::lower(self, plain(0), norm, *bias, cols),
            Op::RmsNorm { norm, groups: 1, .. } => rms_norm::lower(self, plain(0), norm, cols),
            Op::Attention { heads, .. } => attention::lower(self, [plain(0), plain(1), plain(2)], heads),
            Op::Gelu { frac, .. } => gelu::lower(self, plain(0), *frac, cols),
            Op::Silu { frac, .. } => silu::lower(self, plain(0), *frac, cols),
            Op::MeanPool { .. } => mean_pool::lower(self, plain(0), cols),
            Op::FirstPool { .. } => first_pool::lower(self, plain(0), cols),
            Op::L2Normalize { .. } => l2_normalize::lower(self, plain(0), cols),
            Op::Multiply { shift, .. } => multiply::lower(self, [plain(0), plain(1)], *shift, cols),
            Op::Shift { shift, .. } => shift::lower(self, plain(0), *shift, cols),
            Op::RmsNorm { .. } | Op::Rope { .. } | Op::Gather { .. } => {
                Err(PlanError::Op { layer: self.at.0, op: self.at.1 })
            }
        }
    }

    /// The output of the layer before `layer`.
    fn input(&self, layer: usize) -> View {
        let cols = u64::from(self.program.tensor(self.program.layers[layer - 1].output).cols);
        let row_bytes = (cols * Width::I32.bytes()).next_multiple_of(super::CHUNK_BYTES);
        View { source: Source::Input, first: 0, row_bytes, size: Width::I32.bytes() }
    }

    /// A parameter, `[rows, cols]`.
    pub(super) fn param(&self, id: ParamId) -> View {
        let param = self.program.param(id);
        let size = param.dtype.size() as u64;
        View { source: Source::Param(id), first: 0, row_bytes: u64::from(param.cols) * size, size }
    }

    /// Rows of a parameter.
    pub(super) fn param_rows(&self, id: ParamId) -> u64 {
        self.program.param(id).rows.into()
    }

    /// The token ids, one in each row.
    pub(super) fn tokens() -> View {
        View { source: Source::Tokens, first: 0, row_bytes: 4, size: 4 }
    }

    /// Adds a step with a row for each row that is needed of the op.
    pub(super) fn rows(&mut self, part: Part, cols: u64, width: Width) -> Result<View, PlanError> {
        let (all_rows, rows, first) = match self.need {
            Need::Row => (false, 1, self.place.row),
            Need::Below(rows) => (true, rows, 0),
        };
        self.push(part, all_rows, [rows, cols], width, first)
    }

    /// Adds a step whose rows are no positions.
    pub(super) fn block(&mut self, part: Part, shape: [u64; 2], width: Width) -> Result<View, PlanError> {
        self.push(part, false, shape, width, 0)
    }

    fn push(
        &mut self,
        part: Part,
        all_rows: bool,
        [rows, cols]: [u64; 2],
        width: Width,
        first: u64,
    ) -> Result<View, PlanError> {
        let (layer, op) = self.at;
        let step = Step { layer, op, part, all_rows, rows, cols, width };
        let bytes = u128::from(rows) * u128::from(step.row_bytes());
        if bytes > MAX_TENSOR_BYTES.into() {
            return Err(PlanError::Tensor { layer, op, step: step.name(self.program), bytes });
        }
        let source = Source::Step(self.steps.len() as u16);
        self.steps.push(step);
        self.first.push(first);
        Ok(View { source, first, row_bytes: step.row_bytes(), size: width.bytes() })
    }
}
