//! Work split over a fixed number of threads. Nothing computed depends on how it is split.

use rayon::prelude::*;

use crate::backend::BackendError;

/// Elements below which another thread does not pay.
const WORTHWHILE: usize = 8_192;

/// Pieces per thread, so that a thread which loses its core does not hold up the others for long.
const PIECES: usize = 4;

/// A pool of exactly as many threads as asked for; one thread means the caller's own.
#[derive(Debug)]
pub(crate) struct Threads {
    pool: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// `count` of 0 counts as 1.
    pub(crate) fn new(count: usize) -> Result<Self, BackendError> {
        let count = count.max(1);
        if count == 1 {
            return Ok(Self { pool: None, count });
        }
        let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("kernel-{i}"));
        let pool = builder.build().map_err(|e| BackendError::Unavailable(format!("{count} threads: {e}")))?;
        Ok(Self { pool: Some(pool), count })
    }

    /// Number of threads.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` on the pool; free if the caller is already one of its threads.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs `work` on every item and adds up what it returns.
    pub(crate) fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) -> u64 + Sync) -> u64 {
        if self.pool.is_none() || items.len() < 2 {
            return items.into_iter().map(work).sum();
        }
        self.install(|| items.into_par_iter().with_max_len(1).map(&work).sum())
    }

    /// Maps `0..count` in order.
    pub(crate) fn map<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        if self.pool.is_none() || count < 2 {
            return (0..count).map(work).collect();
        }
        self.install(|| (0..count).into_par_iter().with_max_len(1).map(&work).collect())
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
