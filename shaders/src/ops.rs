//! The dispatches of each op but attention.

use std::ops::Range;

use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{EmbedIndex, Norm, Op, ParamId, Program, ScaledRows, TensorId, TensorKind};
use lockstep_kernels::value::Params as Parameters;

use crate::executor::{Constants, Inputs};
use crate::gpu::{Gpu, Kernel};
use crate::matrix::{Matrix, Part};
use crate::plan::{self, grid, per_element};
use crate::recorder::{Recorder, Slice};
use crate::shader::{
    Add, Embed, FirstPool, Gather, Gelu, L2Normalize, LayerNorm, MatMul, MeanPool, Multiply, Params, Quantize, RmsNorm,
    Rope, Shift, Silu,
};
use crate::tensors::{SCALE_BYTES, Tensors, padded, part, row_bytes};

/// An op of a program: its layer, and its number there.
pub(crate) type Place = (usize, usize);

/// Rows up to which a product reads the weights once for all of them rather than by tiles.
const FEW_ROWS: usize = 8;
/// Rows and columns of a tile.
const TILE: usize = 64;

/// What the dispatches of an op are made from.
pub(crate) struct Context<'a> {
    pub gpu: &'a Gpu,
    pub program: &'a Program,
    pub params: &'a dyn Parameters,
    pub pass: &'a Pass,
    pub tensors: &'a Tensors,
    pub constants: &'a Constants,
    pub inputs: &'a mut Inputs,
    pub recorder: &'a mut Recorder,
    pub place: Place,
}

/// An op whose every row depends on the same rows of its operands alone.
struct ByRows<'a> {
    op: &'static str,
    /// Where operands and output are bound.
    tensors: &'a [(u32, TensorId)],
    /// What else is bound, whole.
    others: &'a [(u32, Slice<'a>)],
    counts: bool,
}

impl Context<'_> {
    /// Dispatches an op piece by piece. `make` gives parameters and grid for a number of rows.
    fn by_rows<P: Params>(&mut self, op: &ByRows<'_>, make: impl Fn(usize) -> (P, [u32; 3])) {
        let widest = op.tensors.iter().map(|(_, id)| row_bytes(self.program.tensor(*id))).max().unwrap_or(1);
        let rows = self.tensors.rows(op.tensors[0].1);
        for piece in plan::rows(rows, widest, 1, self.gpu.binding) {
            let (params, grid) = make(piece.len());
            let mut bindings: Vec<_> =
                op.tensors.iter().map(|(at, id)| (*at, self.tensors.slice(*id, &piece))).collect();
            bindings.extend_from_slice(op.others);
            // Codes go with exponents and sums.
            if let Some((_, id)) = op.tensors.iter().find(|(_, id)| self.program.tensor(*id).kind == TensorKind::Bfp) {
                bindings.push((5, self.tensors.scales(*id, &piece)));
            }
            self.recorder.dispatch(Kernel::of(op.op), &params, &bindings, op.counts, grid, 0);
        }
    }

    fn cols(&self, id: TensorId) -> usize {
        self.program.tensor(id).cols as usize
    }
}

/// Dispatches an op that is neither attention nor sampling, and has rows.
pub(crate) fn run(context: &mut Context<'_>, op: &Op) {
    let cols = context.cols(op.out());
    let name = op.name();
    let elements = |rows: usize| (rows * cols) as u32;
    let each = |rows: usize| per_element((rows * cols) as u64);
    match op {
        Op::Embed { tables, out } => embed(context, tables, *out),
        Op::Quantize { input, out } => {
            let stride = (padded(TensorKind::Bfp, cols) / 2) as u32;
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &[], counts: false };
            let make = |rows| (Quantize { rows: rows as u32, cols: cols as u32, stride }, grid(rows as u64));
            context.by_rows(&op, make);
        }
        Op::MatMul { .. } => matmul(context, op),
        Op::Add { a, b, out } => {
            let op = ByRows { op: name, tensors: &[(1, *a), (2, *b), (4, *out)], others: &[], counts: true };
            context.by_rows(&op, |rows| (Add { elements: elements(rows) }, each(rows)));
        }
        Op::Multiply { a, b, shift, out } => {
            let op = ByRows { op: name, tensors: &[(1, *a), (2, *b), (4, *out)], others: &[], counts: true };
            let shift = (*shift).into();
            context.by_rows(&op, |rows| (Multiply { elements: elements(rows), shift }, each(rows)));
        }
        Op::Shift { input, shift, out } => {
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &[], counts: false };
            let shift = (*shift).into();
            context.by_rows(&op, |rows| (Shift { elements: elements(rows), shift }, each(rows)));
        }
        Op::Gelu { input, frac, out } => {
            let others = [(3, Slice::all(&context.constants.gauss))];
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &others, counts: false };
            let frac = (*frac).into();
            context.by_rows(&op, |rows| (Gelu { elements: elements(rows), frac }, each(rows)));
        }
        Op::Silu { input, frac, out } => {
            let others = [(3, Slice::all(&context.constants.sigmoid))];
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &others, counts: false };
            let frac = (*frac).into();
            context.by_rows(&op, |rows| (Silu { elements: elements(rows), frac }, each(rows)));
        }
        Op::LayerNorm { input, norm, bias, out } => {
            let vectors = &context.constants.vectors;
            let others = [(2, Slice::all(&vectors[&norm.scale])), (3, Slice::all(&vectors[bias]))];
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &others, counts: true };
            let Norm { shift, epsilon_mantissa, epsilon_shift, .. } = *norm;
            let (shift, epsilon_shift, cols) = (shift.into(), epsilon_shift.into(), cols as u32);
            let params = |rows| LayerNorm { rows, cols, shift, epsilon_mantissa, epsilon_shift };
            context.by_rows(&op, |rows| (params(rows as u32), grid(rows as u64)));
        }
        Op::RmsNorm { input, norm, groups, out } => {
            let others = [(2, Slice::all(&context.constants.vectors[&norm.scale]))];
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &others, counts: true };
            let Norm { shift, epsilon_mantissa, epsilon_shift, .. } = *norm;
            let (shift, epsilon_shift, groups) = (shift.into(), epsilon_shift.into(), usize::from(*groups));
            let cols = (cols / groups) as u32;
            let params = |rows| RmsNorm { rows, cols, shift, epsilon_mantissa, epsilon_shift };
            context.by_rows(&op, |rows| (params((rows * groups) as u32), grid((rows * groups) as u64)));
        }
        Op::L2Normalize { input, out } => {
            let op = ByRows { op: name, tensors: &[(1, *input), (4, *out)], others: &[], counts: false };
            let make = |rows| (L2Normalize { rows: rows as u32, cols: cols as u32 }, grid(rows as u64));
            context.by_rows(&op, make);
        }
        Op::Rope { .. } => rope(context, op),
        Op::MeanPool { input, out } | Op::FirstPool { input, out } => pool(context, name, *input, *out),
        Op::Gather { input, out } => gather(context, *input, *out),
        Op::Attention { .. } | Op::Sample { .. } => unreachable!("these have their own functions"),
    }
}

/// Copies the rows of the tables that the positions name to the device, and sums them up there.
fn embed(context: &mut Context<'_>, tables: &[(ScaledRows, EmbedIndex)], out: TensorId) {
    let (rows, cols) = (context.tensors.rows(out), context.cols(out));
    let index: Vec<_> = tables.iter().map(|(_, index)| context.pass.embed_index(*index)).collect();
    let row_bytes = cols * (2 * tables.len()).max(4);
    for piece in plan::rows(rows, row_bytes, 1, context.gpu.binding) {
        let mut codes = Vec::with_capacity(tables.len() * piece.len() * cols);
        let mut scales = Vec::with_capacity(2 * tables.len() * piece.len());
        for ((table, _), index) in tables.iter().zip(&index) {
            let typed = "validation fixed the type of every parameter";
            let of_table = context.params.param(table.codes).as_i16().expect(typed);
            let mantissas = context.params.param(table.mantissa).as_u16().expect(typed);
            let shifts = context.params.param(table.shift).as_i16().expect(typed);
            for row in &index[piece.clone()] {
                let row = *row as usize;
                codes.extend_from_slice(&of_table[row * cols..(row + 1) * cols]);
                scales.extend([u32::from(mantissas[row]), i32::from(shifts[row]) as u32]);
            }
        }
        let codes = context.gpu.upload(&pairs(&codes));
        let scales = context.gpu.upload(&scales);
        let elements = piece.len() * cols;
        let params = Embed {
            elements: elements as u32,
            cols: cols as u32,
            rows: piece.len() as u32,
            tables: tables.len() as u32,
        };
        let bindings = [(1, Slice::all(&codes)), (2, Slice::all(&scales)), (4, context.tensors.slice(out, &piece))];
        let grid = per_element(elements as u64);
        context.recorder.dispatch(Kernel::of("embed"), &params, &bindings, true, grid, 0);
    }
}

/// Codes, two in a word.
fn pairs(codes: &[i16]) -> Vec<u32> {
    let word = |pair: &[i16]| u32::from(pair[0] as u16) | u32::from(pair.get(1).map_or(0, |c| *c as u16)) << 16;
    codes.chunks(2).map(word).collect()
}

fn matmul(context: &mut Context<'_>, op: &Op) {
    let Op::MatMul { input, weight, out, .. } = op else { unreachable!("only called for products") };
    let (rows, terms) = (context.tensors.rows(*out), context.cols(*input));
    let constants = context.constants;
    let (matrix, scales) = (&constants.matrices[&weight.codes], &constants.scales[&context.place]);
    let widest = row_bytes(context.program.tensor(*out)).max(row_bytes(context.program.tensor(*input)));
    for part in &matrix.parts {
        let work = (part.rows.len() * terms * 2 * matrix.digits) as u64;
        for piece in plan::rows(rows, widest, work, context.gpu.binding) {
            product(context, op, (matrix, part), scales, &piece, work);
        }
    }
}

/// Some rows times some weight rows.
fn product(
    context: &mut Context<'_>,
    op: &Op,
    (matrix, of_matrix): (&Matrix, &Part),
    scales: &wgpu::Buffer,
    rows: &Range<usize>,
    row_work: u64,
) {
    let Op::MatMul { input, out, .. } = op else { unreachable!("only called for products") };
    let tensor = context.program.tensor(*out);
    let to_codes = tensor.kind == TensorKind::I16;
    let stride = row_bytes(tensor) / 4;
    let params = MatMul {
        rows: rows.len() as u32,
        cols: of_matrix.rows.len() as u32,
        terms: context.program.tensor(*input).cols,
        steps: matrix.steps as u32,
        first: of_matrix.rows.start as u32,
        stride: stride as u32,
    };
    let bindings = [
        (1, context.tensors.slice(*input, rows)),
        (2, context.tensors.scales(*input, rows)),
        (3, Slice::all(&of_matrix.weights)),
        (4, context.tensors.slice(*out, rows)),
        (5, part(scales, &of_matrix.rows, 4 * 4)),
    ];
    // Pipelines for 1, 2, 4 and 8 rows.
    let few = rows.len().next_power_of_two();
    let (entry, by) = if few <= FEW_ROWS { ("vector", [4, few]) } else { ("tiled", [TILE, TILE]) };
    let few = (entry == "vector").then_some(("few", few as u32));
    let constants = [Some(("digits", matrix.digits as u32)), Some(("to_codes", to_codes.into())), few];
    let kernel = Kernel { op: "matmul", entry, constants };
    let grid = [of_matrix.rows.len().div_ceil(by[0]) as u32, rows.len().div_ceil(by[1]) as u32, 1];
    context.recorder.dispatch(kernel, &params, &bindings, true, grid, row_work * rows.len() as u64);
}

fn rope(context: &mut Context<'_>, op: &Op) {
    let Op::Rope { input, table, heads, head_dim, out, .. } = op else { unreachable!("only called for rotations") };
    let (rotary_dim, gpu) = (context.program.param(*table).cols as usize, context.gpu);
    let stride = row_bytes(context.program.tensor(*out)) / 4;
    if !context.inputs.angles.contains_key(table) {
        let angles = angles(context.params, *table, rotary_dim, &context.pass.positions);
        context.inputs.angles.insert(*table, gpu.upload(&angles));
    }
    let widest = row_bytes(context.program.tensor(*input)).max(4 * rotary_dim);
    for piece in plan::rows(context.tensors.rows(*out), widest, 1, gpu.binding) {
        let elements = piece.len() * stride;
        let params = Rope {
            elements: elements as u32,
            heads: (*heads).into(),
            head_dim: (*head_dim).into(),
            rotary_dim: rotary_dim as u32,
            stride: stride as u32,
        };
        // A table of no columns is bound all the same.
        let angles = &context.inputs.angles[table];
        let of_rows = if rotary_dim == 0 { Slice::all(angles) } else { part(angles, &piece, 4 * rotary_dim) };
        let bindings = [
            (1, context.tensors.slice(*input, &piece)),
            (2, of_rows),
            (3, Slice::all(&context.constants.shifts[&context.place])),
            (4, context.tensors.slice(*out, &piece)),
        ];
        context.recorder.dispatch(Kernel::of("rope"), &params, &bindings, true, per_element(elements as u64), 0);
    }
}

/// The rows of a table that positions name.
fn angles(params: &dyn Parameters, table: ParamId, cols: usize, positions: &[u32]) -> Vec<u32> {
    let table = params.param(table).as_i32().expect("validation fixed the type of every parameter");
    let rows = positions.iter().map(|position| *position as usize * cols);
    rows.flat_map(|at| table[at..at + cols].iter().map(|v| *v as u32)).collect()
}

fn pool(context: &mut Context<'_>, op: &'static str, input: TensorId, out: TensorId) {
    let (cols, gpu) = (context.cols(out), context.gpu);
    let words = || context.pass.spans.iter().flat_map(|span| [span.start as u32, span.end as u32]).collect::<Vec<_>>();
    let spans = context.inputs.spans.get_or_insert_with(|| gpu.upload(&words()));
    // The first pool reads no more of a sequence than its first row.
    let reads: Vec<Range<usize>> = match op {
        "mean_pool" => context.pass.spans.clone(),
        _ => context.pass.spans.iter().map(|span| span.start..span.start + 1).collect(),
    };
    for (sequences, rows) in plan::items(&reads, 4 * cols, gpu.binding) {
        let bound = plan::aligned(sequences.start)..sequences.end;
        let input = context.tensors.slice(input, &rows);
        let bindings = [(1, input), (2, Slice::all(spans)), (4, context.tensors.slice(out, &bound))];
        let (first, base, skip) = (sequences.start as u32, rows.start as u32, (sequences.start - bound.start) as u32);
        if op == "mean_pool" {
            let pieces = cols.div_ceil(16);
            let (cols, count) = (cols as u32, sequences.len() as u32);
            let params = MeanPool { sequences: count, cols, pieces: pieces as u32, first, base, skip };
            let grid = grid((pieces * sequences.len()) as u64);
            context.recorder.dispatch(Kernel::of(op), &params, &bindings, false, grid, 0);
        } else {
            let elements = sequences.len() * cols;
            let params = FirstPool { elements: elements as u32, cols: cols as u32, first, base, skip };
            context.recorder.dispatch(Kernel::of(op), &params, &bindings, false, per_element(elements as u64), 0);
        }
    }
}

fn gather(context: &mut Context<'_>, input: TensorId, out: TensorId) {
    let (cols, gpu) = (context.cols(out), context.gpu);
    let words = || context.pass.points.iter().map(|row| *row as u32).collect::<Vec<_>>();
    let numbers = context.inputs.points.get_or_insert_with(|| gpu.upload(&words()));
    let reads: Vec<Range<usize>> = context.pass.points.iter().map(|row| *row..row + 1).collect();
    for (points, rows) in plan::items(&reads, 4 * cols, gpu.binding) {
        let (bound, elements) = (plan::aligned(points.start)..points.end, points.len() * cols);
        let bindings = [
            (1, context.tensors.slice(input, &rows)),
            (2, Slice::all(numbers)),
            (4, context.tensors.slice(out, &bound)),
        ];
        let params = Gather {
            elements: elements as u32,
            cols: cols as u32,
            first: points.start as u32,
            base: rows.start as u32,
            skip: (points.start - bound.start) as u32,
        };
        context.recorder.dispatch(Kernel::of("gather"), &params, &bindings, false, per_element(elements as u64), 0);
    }
}

const _: () = assert!(SCALE_BYTES.is_multiple_of(4));
