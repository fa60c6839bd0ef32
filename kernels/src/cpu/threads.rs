//! Work split over a fixed number of threads. Nothing computed depends on how it is split.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use crate::backend::BackendError;

/// Elements below which another thread does not pay.
const WORTHWHILE: usize = 8_192;

/// Pieces per thread, so that a thread which loses its core does not hold up the others for long.
const PIECES: usize = 4;

/// Exactly as many threads as asked for, the caller's own among them.
#[derive(Debug)]
pub(crate) struct Threads {
    pool: Option<Pool>,
    count: usize,
}

impl Threads {
    /// `count` of 0 counts as 1.
    pub(crate) fn new(count: usize) -> Result<Self, BackendError> {
        let count = count.max(1);
        let pool = (count > 1).then(|| Pool::new(count - 1)).transpose();
        let pool = pool.map_err(|e| BackendError::Unavailable(format!("{count} threads: {e}")))?;
        Ok(Self { pool, count })
    }

    /// Number of threads.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` on every item, in any order, and adds up what it returns.
    pub(crate) fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) -> u64 + Sync) -> u64 {
        let Some(pool) = self.pool.as_ref().filter(|_| items.len() > 1) else {
            return items.into_iter().map(work).sum();
        };
        let (items, sum) = (Mutex::new(items.into_iter()), AtomicU64::new(0));
        pool.run(&|| {
            // Taken in a statement of its own, so that the lock is not held while the work is done.
            let take = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let mut own = 0;
            while let Some(item) = take() {
                own += work(item);
            }
            sum.fetch_add(own, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    /// Maps `0..count` in order.
    pub(crate) fn map<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
        self.each(results.iter_mut().enumerate().collect(), |(i, result)| {
            *result = Some(work(i));
            0
        });
        results.into_iter().map(|result| result.expect("every item is worked on")).collect()
    }

    /// Rows of `cols` elements in one piece of work over `rows` of them.
    pub(crate) fn piece(&self, rows: usize, cols: usize) -> usize {
        let even = rows.div_ceil(self.count * PIECES);
        even.max(WORTHWHILE.div_ceil(cols.max(1))).max(1)
    }

    /// Splits the rows of `out` into pieces; `work` gets each piece's first row and its slice.
    pub(crate) fn rows<T: Send>(
        &self,
        out: &mut [T],
        cols: usize,
        work: impl Fn(usize, &mut [T]) -> u64 + Sync,
    ) -> u64 {
        let piece = self.piece(out.len() / cols, cols);
        let pieces = out.chunks_mut(piece * cols).enumerate().map(|(i, out)| (i * piece, out)).collect();
        self.each(pieces, |(row, out)| work(row, out))
    }
}
