//! What is kept of recent runs, so that a dispute about one of them costs a layer and not the run once more.
//!
//! Only memory, bounded by bytes and by age: where nothing is kept any more, also after a restart, the run is made once
//! more. What is kept is not believed: it is used where it has the root that this worker signed.
//!
//! A [`Recording`] takes rows as they are computed, in blocks of positions whose bytes count from their first row on. The
//! oldest runs make room for it; where what is under way takes all of the room, it keeps nothing. A generation that starts
//! from a prefix of an earlier one shares the blocks of that one, where they are still there, and keeps nothing otherwise.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_kernels::program::Program;
use lockstep_model::generation::Recorder;
use lockstep_protocol::ids::{JobId, ModelId};

/// Positions of a block. Prefixes that generations share are whole blocks.
const BLOCK: usize = 64;

/// The layer outputs of recent runs, and of those under way.
#[derive(Debug)]
pub(crate) struct KeptRuns {
    most_bytes: u64,
    longest: Duration,
    /// Bytes of all blocks that are alive.
    used: Arc<AtomicU64>,
    runs: Mutex<VecDeque<Run>>,
}

/// The outputs of layers 1 to L at the positions of some tokens, from the first one on. The last layer's is not among them,
/// since no layer follows it.
#[derive(Debug)]
struct Run {
    job: JobId,
    model: ModelId,
    tokens: Vec<u32>,
    since: Instant,
    blocks: Vec<Arc<Block>>,
}

/// The rows of so many positions, without padding, layer by layer.
#[derive(Debug)]
struct Block {
    layers: Vec<Vec<i32>>,
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Block {
    /// Gives back what no row takes.
    fn shrink(&mut self) {
        self.layers.iter_mut().for_each(Vec::shrink_to_fit);
        let bytes = self.layers.iter().map(|rows| size_of_val(&rows[..]) as u64).sum();
        self.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl KeptRuns {
    pub fn new(most_bytes: u64, longest: Duration) -> Self {
        Self { most_bytes, longest, used: Arc::default(), runs: Mutex::default() }
    }

    /// Begins to record a run of at least so many positions; `None` where that many do not fit.
    pub fn record(
        self: &Arc<Self>,
        job: JobId,
        model: ModelId,
        program: &Program,
        positions: usize,
    ) -> Option<Recording> {
        let inner = program.layers.len().saturating_sub(2);
        let outputs = program.layers.iter().skip(1).take(inner).map(|layer| layer.output);
        let cols: Vec<usize> = outputs.map(|output| program.tensor(output).cols as usize).collect();
        let blocks = positions.div_ceil(BLOCK) as u64;
        if blocks.saturating_mul(block_bytes(&cols)) > self.most_bytes {
            return None;
        }
        let filled = vec![0; cols.len()];
        let (shared, own) = (Vec::new(), Vec::new());
        Some(Recording { kept: Arc::clone(self), job, model, cols, shared, own, filled, is_lost: false })
    }

    /// The output of a layer of a job's run, counted from 1; `None` where it is not kept.
    pub fn output(&self, job: &JobId, layer: u16) -> Option<Vec<i32>> {
        let layer = usize::from(layer).checked_sub(1)?;
        let blocks = self.runs().iter().find(|run| run.job == *job)?.blocks.clone();
        let rows: Option<Vec<&[i32]>> = blocks.iter().map(|block| block.layers.get(layer).map(Vec::as_slice)).collect();
        Some(rows?.concat())
    }

    /// Keeps a run in place of an earlier one of the same job.
    fn keep(&self, run: Run) {
        let mut runs = self.runs();
        runs.retain(|other| other.job != run.job);
        runs.push_back(run);
    }

    /// The blocks of a run that begins with these tokens.
    fn prefix(&self, model: ModelId, tokens: &[u32]) -> Option<Vec<Arc<Block>>> {
        let runs = self.runs();
        let run = runs.iter().find(|run| run.model == model && run.tokens.starts_with(tokens))?;
        Some(run.blocks[..tokens.len() / BLOCK].to_vec())
    }

    /// An empty block, for which the oldest runs go; `None` where there is no room all the same.
    fn block(&self, cols: &[usize]) -> Option<Block> {
        let bytes = block_bytes(cols);
        let mut runs = self.runs();
        while self.used.load(Ordering::Relaxed).saturating_add(bytes) > self.most_bytes {
            runs.pop_front()?;
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let layers = cols.iter().map(|cols| Vec::with_capacity(BLOCK * cols)).collect();
        Some(Block { layers, bytes, used: Arc::clone(&self.used) })
    }

    /// The runs that are kept, without those that are too old.
    fn runs(&self) -> MutexGuard<'_, VecDeque<Run>> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        while runs.front().is_some_and(|run| run.since.elapsed() > self.longest) {
            runs.pop_front();
        }
        runs
    }
}

/// Bytes of a block of layers with so many columns.
fn block_bytes(cols: &[usize]) -> u64 {
    let rows = cols.iter().map(|cols| (size_of::<i32>() * cols) as u64).sum::<u64>();
    rows.saturating_mul(BLOCK as u64)
}

/// A run that is under way.
#[derive(Debug)]
pub(crate) struct Recording {
    kept: Arc<KeptRuns>,
    job: JobId,
    model: ModelId,
    /// Columns of layers 1 to L.
    cols: Vec<usize>,
    /// Blocks of an earlier run, all full.
    shared: Vec<Arc<Block>>,
    /// The blocks after these.
    own: Vec<Block>,
    /// Positions of each layer so far.
    filled: Vec<usize>,
    /// There was no room, or no beginning.
    is_lost: bool,
}

impl Recording {
    fn lose(&mut self) {
        self.is_lost = true;
        self.shared.clear();
        self.own.clear();
    }

    /// Appends rows to a layer; `None` where there is no room.
    fn append(&mut self, layer: usize, mut rows: &[i32]) -> Option<()> {
        let cols = *self.cols.get(layer)?;
        while !rows.is_empty() {
            let (index, within) = (self.filled[layer] / BLOCK - self.shared.len(), self.filled[layer] % BLOCK);
            if index == self.own.len() {
                self.own.push(self.kept.block(&self.cols)?);
            }
            let (now, later) = rows.split_at(rows.len().min((BLOCK - within) * cols));
            self.own[index].layers[layer].extend_from_slice(now);
            self.filled[layer] += now.len() / cols;
            rows = later;
        }
        Some(())
    }
}

impl Recorder for Recording {
    fn reuse(&mut self, tokens: &[u32]) {
        match self.kept.prefix(self.model, tokens).filter(|_| tokens.len().is_multiple_of(BLOCK)) {
            Some(blocks) => {
                self.shared = blocks;
                self.filled.fill(tokens.len());
            }
            None => self.lose(),
        }
    }

    fn push(&mut self, layer: usize, rows: &[i32]) {
        if !self.is_lost && layer.checked_sub(1).and_then(|layer| self.append(layer, rows)).is_none() {
            self.lose();
        }
    }

    fn truncate(&mut self, positions: usize) {
        let own = positions.saturating_sub(self.shared.len() * BLOCK);
        self.own.truncate(own.div_ceil(BLOCK));
        if let Some(last) = self.own.last_mut() {
            let within = own - (own - 1) / BLOCK * BLOCK;
            last.layers.iter_mut().zip(&self.cols).for_each(|(rows, cols)| rows.truncate(within * cols));
        }
        self.filled.iter_mut().for_each(|filled| *filled = positions.min(*filled));
    }

    fn finish(self: Box<Self>, tokens: &[u32]) {
        let Self { kept, job, model, shared, mut own, filled, is_lost, .. } = *self;
        if is_lost || tokens.is_empty() || filled.iter().any(|filled| *filled != tokens.len()) {
            return;
        }
        own.iter_mut().next_back().into_iter().for_each(Block::shrink);
        let blocks = shared.into_iter().chain(own.into_iter().map(Arc::new)).collect();
        kept.keep(Run { job, model, tokens: tokens.to_vec(), since: Instant::now(), blocks });
    }
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::conformance::{DecoderShape, decoder};

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);
    const MODEL: ModelId = ModelId::from_bytes([9; 32]);

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 32])
    }

    fn program() -> Arc<Program> {
        decoder(DecoderShape::SMALL, &[1]).program
    }

    /// Bytes of so many positions.
    fn bytes(positions: usize) -> u64 {
        ((program().layers.len() - 2) * positions * DecoderShape::SMALL.width * 4) as u64
    }

    fn room(blocks: usize) -> Arc<KeptRuns> {
        Arc::new(KeptRuns::new(bytes(blocks * BLOCK), LONG))
    }

    fn used(kept: &KeptRuns) -> u64 {
        kept.used.load(Ordering::Relaxed)
    }

    /// The row of a position in a layer.
    fn row(position: usize, layer: usize) -> Vec<i32> {
        (0..DecoderShape::SMALL.width).map(|col| (position * 100 + layer * 10 + col % 10) as i32).collect()
    }

    fn rows(positions: std::ops::Range<usize>, layer: usize) -> Vec<i32> {
        positions.flat_map(|position| row(position, layer)).collect()
    }

    fn push(recording: &mut Recording, positions: std::ops::Range<usize>) {
        for layer in 1..program().layers.len() - 1 {
            recording.push(layer, &rows(positions.clone(), layer));
        }
    }

    fn begin(kept: &Arc<KeptRuns>, number: u8, positions: usize) -> Box<Recording> {
        Box::new(kept.record(job(number), MODEL, &program(), positions).expect("it fits"))
    }

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).collect()
    }

    /// Records a run in passes of a few positions each.
    fn run(kept: &Arc<KeptRuns>, number: u8, positions: usize) {
        let mut recording = begin(kept, number, positions);
        (0..positions).step_by(7).for_each(|at| push(&mut recording, at..positions.min(at + 7)));
        recording.finish(&tokens(positions));
    }

    fn has(kept: &KeptRuns, number: u8, positions: usize) -> bool {
        let layers = program().layers.len() as u16 - 2;
        assert_eq!((kept.output(&job(number), 0), kept.output(&job(number), layers + 1)), (None, None));
        let is = |layer| kept.output(&job(number), layer).map(|found| found == rows(0..positions, usize::from(layer)));
        let found: Vec<_> = (1..=layers).map(is).collect();
        let is_there = found[0].is_some();
        assert!(found.iter().all(|found| *found == is_there.then_some(true)), "{found:?}");
        is_there
    }

    #[test]
    fn the_oldest_runs_go_where_there_is_no_room() {
        let kept = room(4);
        (1..=3).for_each(|number| run(&kept, number, BLOCK + 3));
        assert_eq!([1, 2, 3].map(|number| has(&kept, number, BLOCK + 3)), [false, true, true]);
        assert_eq!(used(&kept), bytes(2 * (BLOCK + 3)), "a block that is not full costs what is in it");
        // One that never fits puts no other out.
        assert!(kept.record(job(4), MODEL, &program(), 4 * BLOCK + 1).is_none());
        assert!(has(&kept, 2, BLOCK + 3));
        // A run that is made again takes the place of its own, once it is there.
        run(&kept, 2, 5);
        assert!(has(&kept, 2, 5) && has(&kept, 3, BLOCK + 3));
    }

    #[test]
    fn what_is_under_way_counts_and_keeps_its_room() {
        let kept = room(3);
        let mut long = begin(&kept, 1, 1);
        push(&mut long, 0..2 * BLOCK);
        // There is room for one block more: the second block of another run is one too many.
        let mut other = begin(&kept, 2, 1);
        push(&mut other, 0..BLOCK);
        push(&mut other, BLOCK..BLOCK + 1);
        other.finish(&tokens(BLOCK + 1));
        assert!(!has(&kept, 2, BLOCK + 1));
        // What it had is free again.
        push(&mut long, 2 * BLOCK..3 * BLOCK);
        long.finish(&tokens(3 * BLOCK));
        assert!(has(&kept, 1, 3 * BLOCK));
        assert_eq!(used(&kept), bytes(3 * BLOCK));
        drop(begin(&kept, 3, 1));
        assert!(has(&kept, 1, 3 * BLOCK), "one that records nothing costs nothing");
    }

    #[test]
    fn rows_of_wrong_drafts_are_forgotten() {
        for (wrong, right) in [(3 * BLOCK, BLOCK + 5), (3 * BLOCK, 2 * BLOCK), (BLOCK, 1), (BLOCK + 1, BLOCK)] {
            let kept = room(3);
            let mut recording = begin(&kept, 1, 1);
            for layer in 1..program().layers.len() - 1 {
                recording.push(layer, &[rows(0..right, layer), rows(1_000..1_000 + wrong - right, layer)].concat());
            }
            recording.truncate(right);
            assert_eq!(used(&kept), bytes(right.next_multiple_of(BLOCK)));
            push(&mut recording, right..3 * BLOCK);
            recording.finish(&tokens(3 * BLOCK));
            assert!(has(&kept, 1, 3 * BLOCK), "{wrong} {right}");
        }
    }

    #[test]
    fn runs_that_start_alike_share_what_they_have_in_common() {
        let kept = room(5);
        run(&kept, 1, 3 * BLOCK + 9);
        let mut second = begin(&kept, 2, 2 * BLOCK + 1);
        second.reuse(&tokens(2 * BLOCK));
        push(&mut second, 2 * BLOCK..2 * BLOCK + 10);
        second.truncate(2 * BLOCK + 4);
        second.finish(&tokens(2 * BLOCK + 4));
        assert!(has(&kept, 1, 3 * BLOCK + 9) && has(&kept, 2, 2 * BLOCK + 4));
        assert_eq!(used(&kept), bytes(3 * BLOCK + 9 + 4));
        // The first one goes, and what the second one needs of it stays.
        run(&kept, 3, 2 * BLOCK);
        assert!(!has(&kept, 1, 3 * BLOCK + 9) && has(&kept, 2, 2 * BLOCK + 4) && has(&kept, 3, 2 * BLOCK));
        assert_eq!(used(&kept), bytes(2 * BLOCK + 4 + 2 * BLOCK));
    }

    #[test]
    fn a_run_whose_beginning_is_not_kept_is_not_kept() {
        let kept = room(8);
        run(&kept, 1, 2 * BLOCK);
        let other = ModelId::from_bytes([8; 32]);
        let with_last = |last| tokens(2 * BLOCK - 1).into_iter().chain([last]).collect();
        for (model, prefix) in
            [(MODEL, with_last(77)), (other, tokens(2 * BLOCK)), (MODEL, tokens(3 * BLOCK)), (MODEL, tokens(5))]
        {
            let mut second = Box::new(kept.record(job(2), model, &program(), 1).expect("it fits"));
            second.reuse(&prefix);
            push(&mut second, prefix.len()..prefix.len() + 3);
            second.finish(&tokens(prefix.len() + 3));
            assert!(!has(&kept, 2, 0));
        }
    }

    #[test]
    fn what_is_too_old_is_not_kept_and_nothing_is_where_there_is_no_room_at_all() {
        let old = Arc::new(KeptRuns::new(bytes(3 * BLOCK), Duration::ZERO));
        run(&old, 1, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert!(!has(&old, 1, 1));
        assert!(room(0).record(job(1), MODEL, &program(), 1).is_none());
    }
}
