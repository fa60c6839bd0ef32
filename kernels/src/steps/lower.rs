//! From a layer to its steps: which ops the disputed row depends on, for how many rows each, and in which order.

use std::sync::Arc;

use super::ids::Ids;
use super::view::{Activation, View};
use super::{
    Lowered, MAX_TENSOR_BYTES, Part, Plan, PlanError, Source, Step, Width, add, attention, embed, first_pool, gather,
    gelu, l2_normalize, layer_norm, logprobs, matmul, mean_pool, multiply, quantize, rms_norm, rope, sample, shift,
    silu,
};
use crate::program::{Op, ParamId, Program, Rows, TensorId};
use crate::sampling::Sampling;

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
    /// The disputed row; of rows that belong to points, the position of the point.
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
pub(super) fn plan(
    program: &Program,
    layer: usize,
    positions: u32,
    row: u32,
    sampling: Option<(&Sampling, u64)>,
) -> Result<Plan, PlanError> {
    let layers = program.layers.len();
    let place = PlanError::Place { layers, layer, positions, row };
    if layer == 0 || layer >= layers || positions == 0 || positions > program.max_positions {
        return Err(place);
    }
    let of = program.tensor(program.layers[layer].output).rows;
    let rows = if of == Rows::Position { positions } else { 1 };
    let prompt = sampling.map(|(settings, _)| settings.prompt_tokens);
    if row >= rows || prompt.is_some_and(|prompt| prompt > positions) {
        return Err(place);
    }
    check_sampling(program, layer, sampling.map(|(settings, _)| settings))?;
    let row = if of == Rows::Point { positions - 1 } else { row };
    let place = Place { positions: positions.into(), row: row.into() };
    let (lowering, _) = lower_ops(program, layer, program.layers[layer].output, place, sampling)?;
    Ok(lowering.finish())
}

/// See [`Plan::logprobs`].
pub(super) fn logprobs_plan(
    program: &Program,
    positions: u32,
    sampling: (&Sampling, u64),
    likeliest: u8,
) -> Result<Plan, PlanError> {
    let (layers, layer) = (program.layers.len(), program.layers.len().saturating_sub(1));
    let reaches = (1..=program.max_positions).contains(&positions) && sampling.0.prompt_tokens <= positions;
    if layer == 0 || !reaches {
        return Err(PlanError::Place { layers, layer: layers, positions, row: 0 });
    }
    check_sampling(program, layer, Some(sampling.0))?;
    let sample = program.layers[layer].ops.iter().enumerate().find_map(|(op, kind)| match kind {
        Op::Sample { logits, frac, .. } => Some((op, *logits, *frac)),
        _ => None,
    });
    let none = || PlanError::Sampling { layer, reason: "it samples nothing, and so has no log-probabilities".into() };
    let (op, logits, frac) = sample.ok_or_else(none)?;
    let place = Place { positions: positions.into(), row: u64::from(positions) - 1 };
    let (mut lowering, view) = lower_ops(program, layer, logits, place, Some(sampling))?;
    (lowering.at, lowering.of_logprobs) = ((layer, op), true);
    let logits = logprobs::Logits { view, vocabulary: program.tensor(logits).cols.into(), frac: frac.into() };
    let logprobs = logprobs::lower(&mut lowering, logits, likeliest.into())?;
    lowering.ops.resize(lowering.steps.len(), logprobs);
    Ok(lowering.finish())
}

/// Lowers the ops of a layer that a row of one of its tensors depends on. Returns where that row is, too.
fn lower_ops<'a>(
    program: &'a Program,
    layer: usize,
    output: TensorId,
    place: Place,
    sampling: Option<(&'a Sampling, u64)>,
) -> Result<(Lowering<'a>, View), PlanError> {
    let nodes = nodes(program, layer);
    let needs = needs(&nodes, output, place)?;
    let (at, steps, first, ops) = ((layer, 0), vec![], vec![], vec![]);
    let mut lowering =
        Lowering { program, place, sampling, at, of_logprobs: false, need: Need::Row, steps, first, ops };
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
        lowering.ops.resize(lowering.steps.len(), op);
    }
    let last = outs.into_iter().flatten().next_back().expect("the op that writes the row is needed");
    let (Activation::Plain(view) | Activation::Bfp { codes: view, .. }) = last;
    Ok((lowering, view))
}

/// What samples needs settings, and they must be well formed.
fn check_sampling(program: &Program, layer: usize, settings: Option<&Sampling>) -> Result<(), PlanError> {
    let refuse = |reason: String| PlanError::Sampling { layer, reason };
    let samples = program.layers[layer].ops.iter().any(|op| matches!(op, Op::Sample { .. }));
    match settings {
        None if samples => Err(refuse("the layer samples, and nothing says how".into())),
        None => Ok(()),
        Some(settings) => settings.check().map_err(refuse),
    }
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
    /// Settings and draw of the point, in a generation.
    sampling: Option<(&'a Sampling, u64)>,
    /// Layer and index of the op that is being lowered.
    at: (usize, usize),
    /// Whether what follows from its input is lowered instead of it.
    of_logprobs: bool,
    /// Rows of it that are needed.
    need: Need,
    steps: Vec<Step>,
    /// Number of the first row of each step.
    first: Vec<u64>,
    /// The op of each step.
    ops: Vec<Arc<dyn Lowered>>,
}

impl Lowering<'_> {
    fn finish(self) -> Plan {
        Plan { steps: self.steps, ops: self.ops.into_iter().zip(self.first).collect() }
    }

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
            Op::RmsNorm { norm, groups, .. } => rms_norm::lower(self, plain(0), norm, cols, *groups),
            Op::Attention { heads, .. } => attention::lower(self, [plain(0), plain(1), plain(2)], heads),
            Op::Gelu { frac, .. } => gelu::lower(self, plain(0), *frac, cols),
            Op::Silu { frac, .. } => silu::lower(self, plain(0), *frac, cols),
            Op::MeanPool { .. } => mean_pool::lower(self, plain(0), cols),
            Op::FirstPool { .. } => first_pool::lower(self, plain(0), cols),
            Op::L2Normalize { .. } => l2_normalize::lower(self, plain(0), cols),
            Op::Multiply { shift, .. } => multiply::lower(self, [plain(0), plain(1)], *shift, cols),
            Op::Shift { shift, .. } => shift::lower(self, plain(0), *shift, cols),
            Op::Rope { table, head_dim, shift, .. } => rope::lower(self, plain(0), *table, *head_dim, shift),
            Op::Gather { .. } => gather::lower(self, plain(0), cols),
            Op::Sample { logits, frac, token_bytes, .. } => {
                let vocabulary = u64::from(self.program.tensor(*logits).cols);
                let inputs = sample::Inputs { logits: plain(0), vocabulary, frac: *frac, token_bytes: *token_bytes };
                sample::lower(self, inputs, self.sampling.expect("checked before any op is lowered"))
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

    /// Columns of a parameter.
    pub(super) fn param_cols(&self, id: ParamId) -> u64 {
        self.program.param(id).cols.into()
    }

    /// The token ids of all positions.
    pub(super) fn ids(&self) -> Ids {
        Ids::new(self.sampling.map(|(settings, _)| settings.prompt_tokens))
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
        let ((layer, op), of_logprobs) = (self.at, self.of_logprobs);
        let step = Step { layer, op, of_logprobs, part, all_rows, rows, cols, width };
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
