//! How many complete disputes a second are refereed on so many threads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lockstep_model::dispute::LayerCase;
use lockstep_model::package::Package;
use lockstep_protocol::dispute::Verdict;

use super::Measured;
use crate::processor::thread_seconds;

/// What was done in some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Threads, each with disputes of its own.
    pub threads: usize,
    /// Disputes from the opening to the verdict.
    pub disputes: usize,
    /// Seconds that passed.
    pub seconds: f64,
    /// Seconds of processor time, of all threads.
    pub used: f64,
}

impl Rate {
    /// Disputes a second.
    pub fn per_second(&self) -> f64 {
        self.disputes as f64 / self.seconds
    }

    /// Disputes a second of processor time: what one core does that nothing else disturbs.
    pub fn per_core(&self) -> f64 {
        self.disputes as f64 / self.used
    }
}

impl Measured {
    /// Referees it once more, from the opening to the verdict.
    ///
    /// # Errors
    /// It was played about another package.
    pub fn referee(&self, package: &Package) -> Result<Verdict> {
        let game = self.game.clone();
        let case = LayerCase::new(package.manifest(), &game.terms.job, game.place)?;
        game.referee(&case)?.context("a dispute that was played has a verdict")
    }
}

/// Referees disputes that were played before, all of them in turn, for so long: every signature and opening is checked, the
/// disputed layer is lowered, the element is computed and the transcript is signed. Nothing is read or written.
///
/// # Errors
/// There is none, or one ends without a verdict.
pub fn rate(package: &Package, played: &[Measured], threads: usize, budget: Duration) -> Result<Rate> {
    ensure!(!played.is_empty(), "there is no dispute to referee");
    let start = Instant::now();
    let one = |thread: usize| {
        let (begun, mut disputes) = (thread_seconds(), 0);
        for measured in played.iter().cycle().skip(thread) {
            measured.referee(package)?;
            disputes += 1;
            if start.elapsed() >= budget {
                break;
            }
        }
        Ok::<_, anyhow::Error>((disputes, thread_seconds() - begun))
    };
    let one = &one;
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a referee panicked"))?).collect()
    });
    let done: Result<Vec<(usize, f64)>> = done;
    let (disputes, used) = done?.into_iter().fold((0, 0.0), |(n, t), (disputes, used)| (n + disputes, t + used));
    Ok(Rate { threads, disputes, seconds: start.elapsed().as_secs_f64(), used })
}
