//! Keys and values of decoders, kept between passes.
//!
//! A cache is, for each attention op, a list of pages of one softmax block each. Pages are shared between caches, and
//! copied by whoever writes to one that is shared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::BackendError;
use crate::program::{Heads, Op, Program, page_bytes};
use crate::reference::attention::BLOCK;
use crate::value::CacheId;

/// Keys and values of one block of positions in one attention op, each `[kv_heads][BLOCK][head_dim]`. What lies beyond
/// the length of the cache that holds the page has no meaning.
#[derive(Debug)]
pub struct Page {
    pub(super) keys: Vec<i16>,
    pub(super) values: Vec<i16>,
    held: Held,
}

/// Bytes of a page, counted as long as it lives.
#[derive(Debug)]
struct Held {
    bytes: u64,
    gauge: Arc<AtomicU64>,
}

impl Held {
    fn new(bytes: u64, gauge: &Arc<AtomicU64>) -> Self {
        gauge.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, gauge: Arc::clone(gauge) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Page {
    fn new(shape: &Shape, gauge: &Arc<AtomicU64>) -> Self {
        let empty = vec![0; shape.kv_heads * BLOCK * shape.dim];
        Self { keys: empty.clone(), values: empty, held: Held::new(shape.page_bytes, gauge) }
    }

    /// Writes one position, from rows of all heads.
    fn set(&mut self, shape: &Shape, position: usize, keys: &[i16], values: &[i16]) {
        let dim = shape.dim;
        for (page, row) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let heads = page.chunks_exact_mut(BLOCK * dim).zip(row.chunks_exact(dim));
            heads.for_each(|(page, row)| page[position * dim..(position + 1) * dim].copy_from_slice(row));
        }
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        let held = Held::new(self.held.bytes, &self.held.gauge);
        Self { keys: self.keys.clone(), values: self.values.clone(), held }
    }
}

/// Of the keys and values of one attention op.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kv_heads: usize,
    dim: usize,
    page_bytes: u64,
}

impl Shape {
    fn of(heads: &Heads) -> Self {
        let (kv_heads, dim) = (heads.kv_heads.into(), heads.head_dim.into());
        Self { kv_heads, dim, page_bytes: page_bytes(heads) }
    }
}

/// What a cache holds for one attention op.
#[derive(Clone, Debug, Default)]
struct Line {
    positions: usize,
    pages: Vec<Arc<Page>>,
}

impl Line {
    fn truncate(&mut self, positions: usize) {
        self.positions = positions;
        self.pages.truncate(positions.div_ceil(BLOCK));
    }
}

/// All caches of one executor.
pub(super) struct Caches {
    /// One for each attention op, in the order of the program.
    shapes: Vec<Shape>,
    /// Number of attention ops before each layer.
    before: Vec<usize>,
    caches: BTreeMap<CacheId, Vec<Line>>,
    gauge: Arc<AtomicU64>,
}

impl Caches {
    /// For a validated program.
    pub(super) fn new(program: &Program) -> Self {
        let (mut shapes, mut before) = (Vec::new(), Vec::new());
        for layer in &program.layers {
            before.push(shapes.len());
            shapes.extend(layer.ops.iter().filter_map(|op| match op {
                Op::Attention { heads, .. } => Some(Shape::of(heads)),
                _ => None,
            }));
        }
        Self { shapes, before, caches: BTreeMap::new(), gauge: Arc::default() }
    }

    /// The line of the first attention op of a layer, where it has one; those of others follow in their order.
    pub(super) fn line(&self, layer: usize) -> usize {
        self.before[layer]
    }

    /// Whether a pass may start at `start`: the cache has all positions before it, or is yet to be made.
    pub(super) fn check(&self, id: CacheId, start: usize) -> Result<(), String> {
        match self.caches.get(&id) {
            None if start == 0 => Ok(()),
            None => Err("there is no such cache".into()),
            Some(lines) => match lines.iter().map(|line| line.positions).min() {
                Some(held) if held < start => Err(format!("it holds {held} positions, not {start}")),
                _ => Ok(()),
            },
        }
    }

    /// Makes a cache ready for a pass from `start` on, which [`check`](Self::check) allowed.
    pub(super) fn begin(&mut self, id: CacheId, start: usize) {
        let lines = self.caches.entry(id).or_insert_with(|| vec![Line::default(); self.shapes.len()]);
        lines.iter_mut().for_each(|line| line.truncate(start));
    }

    /// Writes keys and values, `[rows, kv_heads * head_dim]`, from position `start` on, in place of all that a line had
    /// from there.
    pub(super) fn append(
        &mut self,
        id: CacheId,
        line: usize,
        start: usize,
        keys: &[i16],
        values: &[i16],
    ) -> Result<(), BackendError> {
        let shape = self.shapes[line];
        let refuse = |reason: &str| Err(BackendError::Cache { cache: id, reason: reason.into() });
        let Some(held) = self.caches.get_mut(&id).map(|lines| &mut lines[line]) else {
            return refuse("it was dropped during the pass");
        };
        if held.positions < start {
            return refuse("it was cut during the pass");
        }
        held.truncate(start);
        let width = shape.kv_heads * shape.dim;
        for (keys, values) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            let (page, position) = (held.positions / BLOCK, held.positions % BLOCK);
            if page == held.pages.len() {
                held.pages.push(Arc::new(Page::new(&shape, &self.gauge)));
            }
            Arc::make_mut(&mut held.pages[page]).set(&shape, position, keys, values);
            held.positions += 1;
        }
        Ok(())
    }

    /// The pages of a line; none of a cache that does not exist.
    pub(super) fn pages(&self, id: CacheId, line: usize) -> &[Arc<Page>] {
        self.caches.get(&id).map_or(&[], |lines| &lines[line].pages)
    }

    pub(super) fn fork(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        let mut lines = self.holding(from, positions)?.clone();
        lines.iter_mut().for_each(|line| line.truncate(positions));
        self.caches.insert(to, lines);
        Ok(())
    }

    pub(super) fn truncate(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.holding(id, positions)?.iter_mut().for_each(|line| line.truncate(positions));
        Ok(())
    }

    pub(super) fn drop(&mut self, id: CacheId) {
        self.caches.remove(&id);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.gauge.load(Ordering::Relaxed)
    }

    /// A cache that exists and holds that many positions.
    fn holding(&mut self, id: CacheId, positions: usize) -> Result<&mut Vec<Line>, BackendError> {
        let refuse = |reason| BackendError::Cache { cache: id, reason };
        if !self.caches.contains_key(&id) {
            return Err(refuse("there is no such cache".into()));
        }
        self.check(id, positions).map_err(refuse)?;
        self.caches.get_mut(&id).ok_or_else(|| refuse("there is no such cache".into()))
    }
}
