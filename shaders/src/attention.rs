//! The dispatches of attention: partial sums of blocks of positions, and then their combination, for as many rows at a time as
//! there is room for partial sums.

use std::collections::BTreeSet;

use lockstep_kernels::program::{Heads, Op, TensorKind};
use lockstep_kernels::reference::attention::BLOCK;

use crate::gpu::Kernel;
use crate::ops::Context;
use crate::pages::Pages;
use crate::plan;
use crate::recorder::Slice;
use crate::shader::Attention;
use crate::tensors::padded;

/// Bytes of partial sums, at most.
const PARTIAL_BYTES: u64 = 64 << 20;

/// What each row sees, and where that lies.
#[derive(Default)]
struct Sight {
    /// Positions that each row sees.
    visible: Vec<usize>,
    /// Of each row that, and where its sequence starts in the table.
    rows: Vec<u32>,
    /// Of each block of a sequence the buffer, 0 for those of this pass, and its first row there.
    table: Vec<u32>,
    /// Buffers in the table.
    slabs: BTreeSet<usize>,
}

impl Sight {
    fn new(context: &Context<'_>, pages: &Pages, heads: &Heads) -> Self {
        let mut sight = Self::default();
        for (sequence, span) in context.pass.batch.sequences.iter().zip(&context.pass.spans) {
            let first = sight.table.len() / 2;
            let positions = sequence.tokens.len();
            match sequence.cache {
                None => (0..positions).step_by(BLOCK).for_each(|block| sight.place(0, span.start + block)),
                Some(id) => pages.places(id).for_each(|(slab, row)| sight.place(slab + 1, row)),
            }
            for row in 0..span.len() {
                let seen = if heads.causal { sequence.start + row + 1 } else { positions };
                sight.visible.push(seen);
                sight.rows.extend([seen as u32, first as u32]);
            }
        }
        sight
    }

    fn place(&mut self, slab: usize, row: usize) {
        self.table.extend([slab as u32, row as u32]);
        self.slabs.insert(slab);
    }
}

/// Dispatches an attention, whose keys and values are in the caches already where it has some.
pub(crate) fn run(context: &mut Context<'_>, pages: &Pages, op: &Op, line: usize) {
    let Op::Attention { q, k, v, heads, out } = op else { unreachable!("only called for attention") };
    let sight = Sight::new(context, pages, heads);
    let (rows, table) = (context.gpu.upload(&sight.rows), context.gpu.upload(&sight.table));
    let (count, dim) = (usize::from(heads.heads), usize::from(heads.head_dim));
    let room = PARTIAL_BYTES.min(context.gpu.binding);
    let pieces = plan::attention(&sight.visible, count, dim, room);
    let slots = pieces.iter().map(|(rows, blocks)| rows.len() * blocks).max().unwrap_or(0);
    let partials = context.gpu.storage((slots * count * (2 + 2 * dim) * 4) as u64);
    let stride = |heads: u16| padded(TensorKind::I16, usize::from(heads) * dim) as u32;
    let shifts = &context.constants.shifts[&context.place];
    for (piece, blocks) in pieces {
        let of_slab = |slab: usize| Attention {
            heads: heads.heads.into(),
            sharing: (heads.heads / heads.kv_heads).into(),
            head_dim: dim as u32,
            query_stride: stride(heads.heads),
            key_stride: stride(heads.kv_heads),
            first: piece.start as u32,
            blocks: blocks as u32,
            slab: slab as u32,
        };
        let own = [(5, Slice::all(&rows)), (7, Slice::all(shifts)), (8, Slice::all(&partials))];
        for slab in &sight.slabs {
            let [keys, values] = match slab {
                0 => [context.tensors.buffer(*k), context.tensors.buffer(*v)],
                _ => pages.buffers(slab - 1, line).each_ref(),
            };
            let operands = [
                (1, Slice::all(context.tensors.buffer(*q))),
                (2, Slice::all(keys)),
                (3, Slice::all(values)),
                (6, Slice::all(&table)),
            ];
            let kernel = Kernel { entry: "blocks", ..Kernel::of("attention") };
            let grid = [blocks as u32, count as u32, piece.len() as u32];
            let work = (piece.len() * blocks * count * BLOCK * dim * 2) as u64;
            context.recorder.dispatch(kernel, &of_slab(*slab), &[&operands[..], &own].concat(), true, grid, work);
        }
        let kernel = Kernel { entry: "combine", ..Kernel::of("attention") };
        let target = (4, Slice::all(context.tensors.buffer(*out)));
        let grid = [count as u32, piece.len() as u32, 1];
        context.recorder.dispatch(kernel, &of_slab(0), &[&own[..], &[target]].concat(), false, grid, 0);
    }
}
