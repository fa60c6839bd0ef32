//! Keys and values of decoders, kept on the device between passes.
//!
//! A page holds the keys and values of one softmax block in every attention op. A cache is a list of pages; caches share
//! pages, and who writes to one that is shared copies it first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::{Op, Program, TensorKind};
use lockstep_kernels::reference::attention::BLOCK;
use lockstep_kernels::value::CacheId;
use wgpu::Buffer;

use crate::gpu::Gpu;
use crate::recorder::Recorder;
use crate::tensors::padded;

/// Pages of the first slab; each later one has as many as there were before it.
const FIRST_PAGES: usize = 4;

/// Storage of some pages: of each attention op the keys and the values.
struct Slab {
    lines: Vec<[Buffer; 2]>,
}

/// Where pages are that nobody holds.
type Free = Arc<Mutex<Vec<(usize, usize)>>>;

/// One page, given back when its last holder drops it.
struct Page {
    slab: usize,
    index: usize,
    free: Free,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push((self.slab, self.index));
    }
}

struct Cache {
    /// Positions held, for each attention op.
    positions: Vec<usize>,
    pages: Vec<Arc<Page>>,
}

impl Cache {
    fn truncate(&mut self, positions: usize) {
        self.positions.fill(positions);
        self.pages.truncate(positions.div_ceil(BLOCK));
    }
}

/// Rows of keys and values that a pass made, about to be kept.
pub(crate) struct Made<'a> {
    pub keys: &'a Buffer,
    pub values: &'a Buffer,
    /// Rows among them.
    pub rows: Range<usize>,
    /// Position of the first.
    pub start: usize,
}

/// All caches of one executor.
pub(crate) struct Pages {
    gpu: Arc<Gpu>,
    /// Bytes of a row of keys in each attention op, in the order of the program.
    row_bytes: Vec<u64>,
    /// Number of attention ops before each layer.
    before: Vec<usize>,
    caches: BTreeMap<CacheId, Cache>,
    slabs: Vec<Slab>,
    count: usize,
    free: Free,
}

impl Pages {
    /// For a validated program.
    pub fn new(gpu: Arc<Gpu>, program: &Program) -> Self {
        let (mut row_bytes, mut before) = (Vec::new(), Vec::new());
        for layer in &program.layers {
            before.push(row_bytes.len());
            row_bytes.extend(layer.ops.iter().filter_map(|op| match op {
                Op::Attention { heads, .. } => {
                    let width = usize::from(heads.kv_heads) * usize::from(heads.head_dim);
                    Some(2 * padded(TensorKind::I16, width) as u64)
                }
                _ => None,
            }));
        }
        Self { gpu, row_bytes, before, caches: BTreeMap::new(), slabs: vec![], count: 0, free: Free::default() }
    }

    /// The line of the first attention op of a layer, where it has one; those of others follow in their order.
    pub fn line(&self, layer: usize) -> usize {
        self.before[layer]
    }

    /// Whether a pass may start at `start`: the cache has all positions before it, or is yet to be made.
    pub fn check(&self, id: CacheId, start: usize) -> Result<(), String> {
        match self.caches.get(&id) {
            None if start == 0 => Ok(()),
            None => Err("there is no such cache".into()),
            Some(cache) => match cache.positions.iter().min() {
                Some(held) if *held < start => Err(format!("it holds {held} positions, not {start}")),
                _ => Ok(()),
            },
        }
    }

    /// Makes a cache ready for a pass from `start` on, which [`check`](Self::check) allowed.
    pub fn begin(&mut self, id: CacheId, start: usize) {
        let lines = self.row_bytes.len();
        let new = || Cache { positions: vec![0; lines], pages: vec![] };
        self.caches.entry(id).or_insert_with(new).truncate(start);
    }

    /// Keeps rows in one attention op, in place of all that it had from their first position on.
    pub fn append(
        &mut self,
        recorder: &mut Recorder,
        id: CacheId,
        line: usize,
        made: &Made<'_>,
    ) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Cache { cache: id, reason: reason.into() });
        let Some(held) = self.caches.get(&id).map(|cache| cache.positions[line]) else {
            return refuse("it was dropped during the pass");
        };
        if held < made.start {
            return refuse("it was cut during the pass");
        }
        let end = made.start + made.rows.len();
        for page in made.start / BLOCK..end.div_ceil(BLOCK) {
            self.own(recorder, id, page)?;
        }
        let cache = self.caches.get_mut(&id).expect("it was there");
        cache.positions[line] = end;
        let bytes = self.row_bytes[line];
        let mut position = made.start;
        while position < end {
            let count = (BLOCK - position % BLOCK).min(end - position);
            let page = &cache.pages[position / BLOCK];
            let to = (page.index * BLOCK + position % BLOCK) as u64 * bytes;
            let from = (made.rows.start + position - made.start) as u64 * bytes;
            let slab = &self.slabs[page.slab].lines[line];
            for (source, target) in [made.keys, made.values].into_iter().zip(slab) {
                recorder.encoder().copy_buffer_to_buffer(source, from, target, to, count as u64 * bytes);
            }
            position += count;
        }
        Ok(())
    }

    /// Makes a page of a cache its own: a new one where it has none, a copy where others hold it too.
    fn own(&mut self, recorder: &mut Recorder, id: CacheId, nth: usize) -> Result<(), BackendError> {
        let cache = &self.caches[&id];
        let shared = match cache.pages.get(nth) {
            Some(page) if Arc::strong_count(page) == 1 => return Ok(()),
            shared => shared.map(Arc::clone),
        };
        let page = self.take()?;
        if let Some(from) = &shared {
            for (line, bytes) in self.row_bytes.iter().enumerate() {
                let bytes = BLOCK as u64 * bytes;
                let (source, target) = (&self.slabs[from.slab].lines[line], &self.slabs[page.slab].lines[line]);
                for (source, target) in source.iter().zip(target) {
                    let (at, to) = (from.index as u64 * bytes, page.index as u64 * bytes);
                    recorder.copy(source, at, target, to, bytes);
                }
            }
        }
        let pages = &mut self.caches.get_mut(&id).expect("it was there").pages;
        match pages.get_mut(nth) {
            Some(old) => *old = Arc::new(page),
            None => pages.push(Arc::new(page)),
        }
        Ok(())
    }

    /// A page that nobody holds, out of a new slab where there is none.
    fn take(&mut self) -> Result<Page, BackendError> {
        if self.free.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.grow()?;
        }
        let place = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (slab, index) = place.expect("a slab has pages");
        Ok(Page { slab, index, free: Arc::clone(&self.free) })
    }

    fn grow(&mut self) -> Result<(), BackendError> {
        let widest = BLOCK as u64 * self.row_bytes.iter().max().copied().unwrap_or(1);
        let most = usize::try_from(self.gpu.binding / widest).unwrap_or(usize::MAX).max(1);
        let pages = self.count.max(FIRST_PAGES).min(most);
        let line = |bytes: &u64| {
            let bytes = pages as u64 * BLOCK as u64 * bytes;
            [self.gpu.storage(bytes), self.gpu.storage(bytes)]
        };
        let slab = Slab { lines: self.row_bytes.iter().map(line).collect() };
        self.gpu.check()?;
        let number = self.slabs.len();
        self.slabs.push(slab);
        self.count += pages;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend((0..pages).rev().map(|index| (number, index)));
        Ok(())
    }

    /// Slab and first row there of each page of a cache.
    pub fn places(&self, id: CacheId) -> impl Iterator<Item = (usize, usize)> {
        let pages = self.caches.get(&id).map_or(&[][..], |cache| &cache.pages);
        pages.iter().map(|page| (page.slab, page.index * BLOCK))
    }

    /// Keys and values of an attention op in a slab.
    pub fn buffers(&self, slab: usize, line: usize) -> &[Buffer; 2] {
        &self.slabs[slab].lines[line]
    }

    pub fn fork(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        let cache = self.holding(from, positions)?;
        let mut fork = Cache { positions: cache.positions.clone(), pages: cache.pages.clone() };
        fork.truncate(positions);
        self.caches.insert(to, fork);
        Ok(())
    }

    pub fn truncate(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.holding(id, positions)?.truncate(positions);
        Ok(())
    }

    pub fn drop(&mut self, id: CacheId) {
        self.caches.remove(&id);
    }

    /// Bytes of all pages that somebody holds.
    pub fn bytes(&self) -> u64 {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).len();
        let page: u64 = self.row_bytes.iter().map(|bytes| 2 * BLOCK as u64 * bytes).sum();
        (self.count - free) as u64 * page
    }

    /// A cache that exists and holds that many positions.
    fn holding(&mut self, id: CacheId, positions: usize) -> Result<&mut Cache, BackendError> {
        let refuse = |reason| BackendError::Cache { cache: id, reason };
        if !self.caches.contains_key(&id) {
            return Err(refuse("there is no such cache".into()));
        }
        self.check(id, positions).map_err(refuse)?;
        self.caches.get_mut(&id).ok_or_else(|| refuse("there is no such cache".into()))
    }
}
