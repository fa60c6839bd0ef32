//! Keys and values of decoders, kept on the device between passes.
//!
//! A page holds the keys and the values of one softmax block in one attention op, as rows of positions. Pages of one size lie
//! in slabs: two buffers, each as large as a binding may be. Which cache holds which page is the same as on the host
//! ([`Caches`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::budget::Taken;
use lockstep_kernels::host::{Caches, PageShape, PageStore};
use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{Op, TensorKind};
use lockstep_kernels::reference::attention::BLOCK;
use wgpu::Buffer;

use crate::gpu::Gpu;
use crate::recorder::Recorder;
use crate::tensors::{Tensors, padded};

/// Pages of the first slab of a size; each later one has as many as there were before it.
const FIRST_PAGES: usize = 4;

/// Where a page is: the slab, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub slab: usize,
    pub index: usize,
}

/// Pages of one size that nobody holds.
type Free = Arc<Mutex<Vec<Place>>>;

/// One page, given back when its last holder drops it.
pub(crate) struct Page {
    place: Place,
    free: Free,
}

impl Page {
    pub const fn place(&self) -> Place {
        self.place
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.place);
    }
}

/// Storage of some pages: keys, and values.
struct Slab {
    buffers: [Buffer; 2],
    _taken: Taken,
}

/// Pages of one size.
#[derive(Default)]
struct Size {
    count: usize,
    free: Free,
}

#[derive(Default)]
struct Held {
    slabs: Vec<Slab>,
    /// By bytes of a row.
    sizes: BTreeMap<u64, Size>,
    /// Pages that are to be copied before anything is written to the copies, with the bytes of each.
    copies: Vec<(Place, Place, u64)>,
}

/// All pages of one executor.
pub(crate) struct Store {
    gpu: Arc<Gpu>,
    held: RefCell<Held>,
}

/// Bytes of a row of keys or of values.
fn row_bytes(shape: &PageShape) -> u64 {
    2 * padded(TensorKind::I16, shape.kv_heads * shape.dim) as u64
}

impl Store {
    pub fn new(gpu: Arc<Gpu>) -> Self {
        Self { gpu, held: RefCell::default() }
    }

    /// Keys and values of a slab.
    pub fn buffers(&self, slab: usize) -> [Buffer; 2] {
        self.held.borrow().slabs[slab].buffers.clone()
    }

    /// Adds a slab of pages with rows of so many bytes.
    fn grow(&self, row_bytes: u64) -> Result<(), BackendError> {
        let held = &mut *self.held.borrow_mut();
        let size = held.sizes.entry(row_bytes).or_default();
        let page_bytes = BLOCK as u64 * row_bytes;
        let most = usize::try_from(self.gpu.binding / page_bytes).unwrap_or(usize::MAX).max(1);
        let pages = size.count.max(FIRST_PAGES).min(most);
        let bytes = pages as u64 * page_bytes;
        let taken = self.gpu.budget.take(2 * bytes, "more keys and values")?;
        let buffers = [self.gpu.storage(bytes), self.gpu.storage(bytes)];
        self.gpu.check()?;
        let slab = held.slabs.len();
        held.slabs.push(Slab { buffers, _taken: taken });
        size.count += pages;
        let mut free = size.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend((0..pages).rev().map(|index| Place { slab, index }));
        Ok(())
    }

    fn take(&self, row_bytes: u64) -> Option<Page> {
        let free = Arc::clone(&self.held.borrow().sizes.get(&row_bytes)?.free);
        let place = free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Page { place, free })
    }

    /// Records the copies of pages that were asked for.
    fn copy_pages(&self, recorder: &mut Recorder) {
        let copies = std::mem::take(&mut self.held.borrow_mut().copies);
        for (from, to, bytes) in copies {
            let (sources, targets) = (self.buffers(from.slab), self.buffers(to.slab));
            for (source, target) in sources.iter().zip(&targets) {
                recorder.copy(source, from.index as u64 * bytes, target, to.index as u64 * bytes, bytes);
            }
        }
    }
}

impl PageStore for Store {
    type Page = Page;

    fn make(&self, shape: &PageShape) -> Result<Page, BackendError> {
        let row_bytes = row_bytes(shape);
        if let Some(page) = self.take(row_bytes) {
            return Ok(page);
        }
        self.grow(row_bytes)?;
        Ok(self.take(row_bytes).expect("a slab has pages"))
    }

    /// The copy is made by [`keep`], before anything is written to it.
    fn copy(&self, shape: &PageShape, page: &Page) -> Result<Page, BackendError> {
        let copy = self.make(shape)?;
        self.held.borrow_mut().copies.push((page.place, copy.place, BLOCK as u64 * row_bytes(shape)));
        Ok(copy)
    }
}

/// Positions side by side in one page, whose rows are side by side in the pass.
struct Run {
    place: Place,
    position: usize,
    row: usize,
    count: usize,
}

/// Keeps the keys and values that an attention is about to read, for later passes.
pub(crate) fn keep(
    caches: &mut Caches<Store>,
    recorder: &mut Recorder,
    pass: &Pass,
    tensors: &Tensors,
    op: &Op,
    line: usize,
) -> Result<(), BackendError> {
    let Op::Attention { k, v, heads, .. } = op else { return Ok(()) };
    let bytes = row_bytes(&PageShape::of(heads));
    for (sequence, span) in pass.batch.sequences.iter().zip(&pass.spans) {
        let Some(id) = sequence.cache else { continue };
        let mut runs: Vec<Run> = Vec::new();
        caches.append(id, line, sequence.start, span.len(), |page, _, position, row| {
            let (place, row) = (page.place, span.start + row);
            match runs.last_mut().filter(|run| run.place == place && run.position + run.count == position) {
                Some(run) => run.count += 1,
                None => runs.push(Run { place, position, row, count: 1 }),
            }
        })?;
        caches.store().copy_pages(recorder);
        for Run { place, position, row, count } in runs {
            let targets = caches.store().buffers(place.slab);
            let (from, to) = (row as u64 * bytes, (place.index * BLOCK + position) as u64 * bytes);
            for (source, target) in [tensors.buffer(*k), tensors.buffer(*v)].into_iter().zip(&targets) {
                recorder.encoder().copy_buffer_to_buffer(source, from, target, to, count as u64 * bytes);
            }
        }
    }
    Ok(())
}
