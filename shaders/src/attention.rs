//! The dispatches of attention: partial sums of blocks of positions, and then their combination, for as many rows at a time as
//! there is room for partial sums.

use std::ops::Range;

use lockstep_kernels::host::Caches;
use lockstep_kernels::program::{Heads, Op, TensorKind};
use lockstep_kernels::reference::attention::BLOCK;

use crate::gpu::Kernel;
use crate::ops::Context;
use crate::pages::Store;
use crate::plan;
use crate::recorder::Slice;
use crate::shader::Attention;
use crate::tensors::{padded, row_bytes};

/// Bytes of partial sums, at most.
const PARTIAL_BYTES: u64 = 64 << 20;

/// Keys and values that one dispatch reads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Some rows of this pass.
    Rows(Range<usize>),
    /// A slab of pages.
    Slab(usize),
}

/// What each row sees, and where that lies.
#[derive(Default)]
struct Sight {
    /// Positions that each row sees.
    visible: Vec<usize>,
    /// Of each row that, and where its sequence starts in the table.
    rows: Vec<u32>,
    /// Of each block of a sequence the number of its source, and its first row there.
    table: Vec<u32>,
    sources: Vec<Source>,
}

impl Sight {
    fn new(context: &Context<'_>, caches: &Caches<Store>, heads: &Heads, line: usize) -> Self {
        let mut sight = Self::default();
        let (all, row_bytes) = (context.pass.positions.len(), 2 * stride(heads.kv_heads, heads));
        for (sequence, span) in context.pass.batch.sequences.iter().zip(&context.pass.spans) {
            let first = sight.table.len() / 2;
            let positions = sequence.tokens.len();
            match sequence.cache {
                None => {
                    for row in span.clone().step_by(BLOCK) {
                        let window = plan::window(row, all, row_bytes, context.gpu.binding);
                        let within = row - window.start;
                        sight.place(Source::Rows(window), within);
                    }
                }
                Some(id) => {
                    for page in caches.pages(id, line) {
                        let place = page.data().place();
                        sight.place(Source::Slab(place.slab), place.index * BLOCK);
                    }
                }
            }
            for row in 0..span.len() {
                let seen = if heads.causal { sequence.start + row + 1 } else { positions };
                sight.visible.push(seen);
                sight.rows.extend([seen as u32, first as u32]);
            }
        }
        sight
    }

    fn place(&mut self, source: Source, row: usize) {
        let number = self.sources.iter().position(|known| *known == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.table.extend([number as u32, row as u32]);
    }
}

/// Codes of a row of so many heads.
fn stride(count: u16, heads: &Heads) -> usize {
    padded(TensorKind::I16, usize::from(count) * usize::from(heads.head_dim))
}

/// Dispatches an attention, whose keys and values are in the caches already where it has some.
pub(crate) fn run(context: &mut Context<'_>, caches: &Caches<Store>, op: &Op, line: usize) {
    let Op::Attention { q, k, v, heads, out } = op else { unreachable!("only called for attention") };
    let sight = Sight::new(context, caches, heads, line);
    let (rows, table) = (context.gpu.upload(&sight.rows), context.gpu.upload(&sight.table));
    let (count, dim) = (usize::from(heads.heads), usize::from(heads.head_dim));
    let (binding, row_bytes) = (context.gpu.binding, row_bytes(context.program.tensor(*out)));
    let room = PARTIAL_BYTES.min(binding);
    let pieces = plan::attention(&sight.visible, (count, dim), room, row_bytes, binding);
    let slots = pieces.iter().map(|(rows, blocks)| rows.len() * blocks).max().unwrap_or(0);
    let partials = context.gpu.storage((slots * count * (2 + 2 * dim) * 4) as u64);
    let shifts = &context.constants.shifts[&context.place];
    for (piece, blocks) in pieces {
        let bound = plan::aligned(piece.start)..piece.end;
        let of_source = |source: usize| Attention {
            heads: heads.heads.into(),
            sharing: (heads.heads / heads.kv_heads).into(),
            head_dim: dim as u32,
            query_stride: stride(heads.heads, heads) as u32,
            key_stride: stride(heads.kv_heads, heads) as u32,
            first: piece.start as u32,
            base: bound.start as u32,
            blocks: blocks as u32,
            source: source as u32,
        };
        let own = [(5, Slice::all(&rows)), (7, Slice::all(shifts)), (8, Slice::all(&partials))];
        for (number, source) in sight.sources.iter().enumerate() {
            let of_slab;
            let [keys, values] = match source {
                Source::Rows(window) => [*k, *v].map(|id| context.tensors.slice(id, window)),
                Source::Slab(slab) => {
                    of_slab = caches.store().buffers(*slab);
                    of_slab.each_ref().map(Slice::all)
                }
            };
            let operands = [(1, context.tensors.slice(*q, &bound)), (2, keys), (3, values), (6, Slice::all(&table))];
            let kernel = Kernel { entry: "blocks", ..Kernel::of("attention") };
            let grid = [blocks as u32, count as u32, piece.len() as u32];
            let work = (piece.len() * blocks * count * BLOCK * dim * 2) as u64;
            context.recorder.dispatch(kernel, &of_source(number), &[&operands[..], &own].concat(), true, grid, work);
        }
        let kernel = Kernel { entry: "combine", ..Kernel::of("attention") };
        let target = (4, context.tensors.slice(*out, &bound));
        let grid = [count as u32, piece.len() as u32, 1];
        context.recorder.dispatch(kernel, &of_source(0), &[&own[..], &[target]].concat(), false, grid, 0);
    }
}
