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

/// One softmax block of positions in one attention op, counted as long as it lives.
#[derive(Debug)]
pub struct Page<P> {
    data: P,
    bytes: u64,
    gauge: Arc<AtomicU64>,
}

impl<P> Page<P> {
    fn new(data: P, shape: &PageShape, gauge: &Arc<AtomicU64>) -> Self {
        gauge.fetch_add(shape.bytes, Ordering::Relaxed);
        Self { data, bytes: shape.bytes, gauge: Arc::clone(gauge) }
    }

    /// The keys and values.
    pub const fn data(&self) -> &P {
        &self.data
    }
}

impl<P> Drop for Page<P> {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Of the keys and values of one attention op.
#[derive(Clone, Copy, Debug)]
pub struct PageShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Bytes of a page's keys and values.
    pub bytes: u64,
}

impl PageShape {
    /// Of a validated attention.
    pub fn of(heads: &Heads) -> Self {
        let (kv_heads, dim) = (heads.kv_heads.into(), heads.head_dim.into());
        Self { kv_heads, dim, bytes: page_bytes(heads) }
    }

    /// Elements of a page's keys.
    pub const fn len(&self) -> usize {
        self.kv_heads * BLOCK * self.dim
    }

    /// Whether there is no element; a valid attention has no such pages.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a kind of executor has its pages, each with the keys and values of a softmax block, laid out as it likes. What lies
/// beyond the length of the cache that holds a page has no meaning.
pub trait PageStore {
    /// One page.
    type Page;

    /// A new page.
    ///
    /// # Errors
    /// The device has no room, or fails.
    fn make(&self, shape: &PageShape) -> Result<Self::Page, BackendError>;

    /// A page with the same contents.
    ///
    /// # Errors
    /// As of [`make`](Self::make).
    fn copy(&self, shape: &PageShape, page: &Self::Page) -> Result<Self::Page, BackendError>;
}

/// Pages on the host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HostStore;

/// A page on the host.
#[derive(Clone, Debug)]
pub struct HostPage {
    pub(super) keys: Vec<i16>,
    pub(super) values: Vec<i16>,
}

impl PageStore for HostStore {
    type Page = HostPage;

    fn make(&self, shape: &PageShape) -> Result<HostPage, BackendError> {
        let empty = vec![0; shape.len()];
        Ok(HostPage { keys: empty.clone(), values: empty })
    }

    fn copy(&self, _: &PageShape, page: &HostPage) -> Result<HostPage, BackendError> {
        Ok(page.clone())
    }
}

impl HostPage {
    /// Writes one position, from rows of all heads.
    pub(super) fn set(&mut self, shape: &PageShape, position: usize, keys: &[i16], values: &[i16]) {
        let dim = shape.dim;
        for (page, row) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let heads = page.chunks_exact_mut(BLOCK * dim).zip(row.chunks_exact(dim));
            heads.for_each(|(page, row)| page[position * dim..(position + 1) * dim].copy_from_slice(row));
        }
    }
}

/// Why a pass can't go on with a cache that is no more.
const DROPPED: &str = "it was dropped during the pass";

/// What a cache holds for one attention op.
struct Line<P> {
    positions: usize,
    pages: Vec<Arc<Page<P>>>,
}

impl<P> Clone for Line<P> {
    fn clone(&self) -> Self {
        Self { positions: self.positions, pages: self.pages.clone() }
    }
}

impl<P> Line<P> {
    const EMPTY: Self = Self { positions: 0, pages: Vec::new() };

    fn truncate(&mut self, positions: usize) {
        self.positions = positions;
        self.pages.truncate(positions.div_ceil(BLOCK));
    }
}

/// All caches of one executor.
pub struct Caches<S: PageStore> {
    store: S,
    /// One for each attention op, in the order of the program.
    shapes: Vec<PageShape>,
    /// Number of attention ops before each layer.
    before: Vec<usize>,
    caches: BTreeMap<CacheId, Vec<Line<S::Page>>>,
    gauge: Arc<AtomicU64>,
}

impl<S: PageStore> Caches<S> {
    /// For a validated program.
    pub fn new(program: &Program, store: S) -> Self {
        let (mut shapes, mut before) = (Vec::new(), Vec::new());
        for layer in &program.layers {
            before.push(shapes.len());
            shapes.extend(layer.ops.iter().filter_map(|op| match op {
                Op::Attention { heads, .. } => Some(PageShape::of(heads)),
                _ => None,
            }));
        }
        Self { store, shapes, before, caches: BTreeMap::new(), gauge: Arc::default() }
    }

    /// Where its pages are.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The line of the first attention op of a layer, where it has one; those of others follow in their order.
    pub fn line(&self, layer: usize) -> usize {
        self.before[layer]
    }

    /// Whether a pass may start at `start`: the cache has all positions before it, or is yet to be made.
    ///
    /// # Errors
    /// What the cache lacks.
    pub fn check(&self, id: CacheId, start: usize) -> Result<(), String> {
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
    pub fn begin(&mut self, id: CacheId, start: usize) {
        let lines = self.caches.entry(id).or_insert_with(|| vec![Line::EMPTY; self.shapes.len()]);
        lines.iter_mut().for_each(|line| line.truncate(start));
    }

    /// Makes room for `rows` positions from `start` on, in place of all that a line had from there, and has `write` fill it:
    /// with the page, its shape, the position within the page, and the number of the row.
    ///
    /// # Errors
    /// The cache is gone or too short, or there is no page to be had.
    pub fn append(
        &mut self,
        id: CacheId,
        line: usize,
        start: usize,
        rows: usize,
        write: impl FnMut(&mut S::Page, &PageShape, usize, usize),
    ) -> Result<(), BackendError> {
        self.reserve(id, line, start, rows, write)?;
        self.commit(id, line, start + rows)
    }

    /// As [`append`](Self::append), but the line does not hold the positions before they are [committed](Self::commit): for
    /// who fills the room of all lines before the first of them is to be seen. Until then the cache is neither cut nor forked.
    ///
    /// # Errors
    /// As there.
    pub fn reserve(
        &mut self,
        id: CacheId,
        line: usize,
        start: usize,
        rows: usize,
        mut write: impl FnMut(&mut S::Page, &PageShape, usize, usize),
    ) -> Result<(), BackendError> {
        let shape = self.shapes[line];
        let refuse = |reason: &str| Err(BackendError::Cache { cache: id, reason: reason.into() });
        let Some(held) = self.caches.get_mut(&id).map(|lines| &mut lines[line]) else {
            return refuse(DROPPED);
        };
        if held.positions < start {
            return refuse("it was cut during the pass");
        }
        held.truncate(start);
        for row in 0..rows {
            let (index, position) = ((start + row) / BLOCK, (start + row) % BLOCK);
            if index == held.pages.len() {
                held.pages.push(Arc::new(Page::new(self.store.make(&shape)?, &shape, &self.gauge)));
            }
            let slot = &mut held.pages[index];
            if Arc::get_mut(slot).is_none() {
                *slot = Arc::new(Page::new(self.store.copy(&shape, &slot.data)?, &shape, &self.gauge));
            }
            let page = Arc::get_mut(slot).expect("nobody else has a page that was just made");
            write(&mut page.data, &shape, position, row);
        }
        Ok(())
    }

    /// Has a line hold its first `positions` positions, for which there is room.
    ///
    /// # Errors
    /// The cache is gone.
    pub fn commit(&mut self, id: CacheId, line: usize, positions: usize) -> Result<(), BackendError> {
        let Some(lines) = self.caches.get_mut(&id) else {
            return Err(BackendError::Cache { cache: id, reason: DROPPED.into() });
        };
        let held = &mut lines[line];
        assert!(positions.div_ceil(BLOCK) <= held.pages.len(), "room for {positions} positions was not made");
        held.positions = positions;
        Ok(())
    }

    /// The pages of a line; none of a cache that does not exist.
    pub fn pages(&self, id: CacheId, line: usize) -> &[Arc<Page<S::Page>>] {
        self.caches.get(&id).map_or(&[], |lines| &lines[line].pages)
    }

    /// See [`Executor::fork_cache`](crate::backend::Executor::fork_cache).
    ///
    /// # Errors
    /// `from` does not hold as many positions.
    pub fn fork(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        let mut lines = self.holding(from, positions)?.clone();
        lines.iter_mut().for_each(|line| line.truncate(positions));
        self.caches.insert(to, lines);
        Ok(())
    }

    /// See [`Executor::truncate_cache`](crate::backend::Executor::truncate_cache).
    ///
    /// # Errors
    /// The cache does not hold as many positions.
    pub fn truncate(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.holding(id, positions)?.iter_mut().for_each(|line| line.truncate(positions));
        Ok(())
    }

    /// Forgets a cache; nothing happens where there is none.
    pub fn drop(&mut self, id: CacheId) {
        self.caches.remove(&id);
    }

    /// Bytes that all caches together hold; what several share counts once.
    pub fn bytes(&self) -> u64 {
        self.gauge.load(Ordering::Relaxed)
    }

    /// A cache that exists and holds that many positions.
    fn holding(&mut self, id: CacheId, positions: usize) -> Result<&mut Vec<Line<S::Page>>, BackendError> {
        let refuse = |reason| BackendError::Cache { cache: id, reason };
        if !self.caches.contains_key(&id) {
            return Err(refuse("there is no such cache".into()));
        }
        self.check(id, positions).map_err(refuse)?;
        self.caches.get_mut(&id).ok_or_else(|| refuse("there is no such cache".into()))
    }
}
