//! What is kept of recent runs, so that a dispute about one of them costs a layer and not the run once more.
//!
//! Only memory, bounded by bytes and by age: where nothing is kept any more, also after a restart, the run is made once
//! more. What is kept is not believed: it is used where it has the root that this worker signed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_protocol::ids::JobId;

/// The outputs of layers 1 and on of one run: rows without padding. The last layer's is not among them, since no layer
/// follows it.
pub(crate) type Layers = Vec<Arc<[i32]>>;

/// The layer outputs of recent runs.
#[derive(Debug)]
pub(crate) struct KeptRuns {
    most_bytes: u64,
    longest: Duration,
    runs: Mutex<VecDeque<Run>>,
}

#[derive(Debug)]
struct Run {
    job: JobId,
    since: Instant,
    bytes: u64,
    layers: Layers,
}

impl KeptRuns {
    pub fn new(most_bytes: u64, longest: Duration) -> Self {
        Self { most_bytes, longest, runs: Mutex::default() }
    }

    /// Whether a run of so many bytes is kept at all.
    pub fn fits(&self, bytes: u64) -> bool {
        bytes <= self.most_bytes
    }

    /// Keeps a run in place of an earlier one of the same job. The oldest go where there is no room.
    pub fn keep(&self, job: JobId, layers: Layers) {
        let bytes = layers.iter().map(|rows| size_of_val(&**rows) as u64).sum::<u64>();
        if !self.fits(bytes) {
            return;
        }
        let mut runs = self.runs();
        runs.retain(|run| run.job != job);
        while runs.iter().map(|run| run.bytes).sum::<u64>().saturating_add(bytes) > self.most_bytes {
            runs.pop_front();
        }
        runs.push_back(Run { job, since: Instant::now(), bytes, layers });
    }

    /// The output of a layer of a job's run, counted from 1; `None` where it is not kept.
    pub fn output(&self, job: &JobId, layer: u16) -> Option<Arc<[i32]>> {
        let runs = self.runs();
        let run = runs.iter().find(|run| run.job == *job)?;
        run.layers.get(usize::from(layer).checked_sub(1)?).map(Arc::clone)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 32])
    }

    fn rows(count: usize) -> Layers {
        vec![vec![7; count].into(), vec![8; count].into()]
    }

    const LONG: Duration = Duration::from_secs(3_600);

    #[test]
    fn the_oldest_runs_go_where_there_is_no_room() {
        let kept = KeptRuns::new(2 * 2 * 10 * 4, LONG);
        (1..=3).for_each(|number| kept.keep(job(number), rows(10)));
        assert_eq!(kept.output(&job(1), 1), None);
        assert_eq!(kept.output(&job(2), 1).as_deref(), Some(&[7; 10][..]));
        assert_eq!(kept.output(&job(3), 2).as_deref(), Some(&[8; 10][..]));
        assert_eq!((kept.output(&job(3), 0), kept.output(&job(3), 3)), (None, None));
        // One that never fits puts no other out.
        kept.keep(job(4), rows(1_000));
        assert!(kept.output(&job(2), 1).is_some() && kept.output(&job(4), 1).is_none());
        // A run that is made again takes the place of its own.
        kept.keep(job(3), rows(10));
        assert!(kept.output(&job(2), 1).is_some());
    }

    #[test]
    fn what_is_too_old_is_not_kept_and_nothing_is_where_there_is_no_room_at_all() {
        let old = KeptRuns::new(1_000, Duration::ZERO);
        old.keep(job(1), rows(1));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(old.output(&job(1), 1), None);
        let none = KeptRuns::new(0, LONG);
        none.keep(job(1), rows(1));
        assert_eq!(none.output(&job(1), 1), None);
    }
}
