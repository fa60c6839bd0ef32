//! Many worlds, over threads.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::report::{Counts, Report, Violation};
use crate::world::{self, Broken};

/// Runs the worlds `first_seed..first_seed + seeds` and adds up what came of them. `progress` is told how many are done,
/// now and then and from any thread.
pub fn run(first_seed: u64, seeds: u64, threads: NonZeroUsize, progress: &(dyn Fn(u64) + Sync)) -> Report {
    run_with(first_seed, seeds, threads, progress, &world::run)
}

/// As [`run`], with another way to run a world.
pub(crate) fn run_with(
    first_seed: u64,
    seeds: u64,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
    world: &(dyn Fn(u64) -> (Counts, Option<Broken>) + Sync),
) -> Report {
    let report = Mutex::new(Report { first_seed, seeds, ..Report::default() });
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let seed = first_seed.wrapping_add(index);
                    let (counts, broken) = caught(seed, world);
                    take(&mut report.lock().unwrap_or_else(PoisonError::into_inner), seed, &counts, broken);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.violations.sort_by_key(|violation| violation.seed.wrapping_sub(first_seed));
    report
}

/// A world in which something panics is a finding, and no reason to lose the others.
fn caught(seed: u64, world: &dyn Fn(u64) -> (Counts, Option<Broken>)) -> (Counts, Option<Broken>) {
    catch_unwind(AssertUnwindSafe(|| world(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let what = format!("panic: {}", text.unwrap_or("without words"));
        (Counts::default(), Some(Broken { wrong_verdict: false, what }))
    })
}

fn take(report: &mut Report, seed: u64, counts: &Counts, broken: Option<Broken>) {
    report.counts.add(counts);
    if let Some(Broken { wrong_verdict, what }) = broken {
        report.wrong_verdicts += u64::from(wrong_verdict);
        let replay = format!("lockstep sim --first-seed {seed} --seeds 1");
        report.violations.push(Violation { seed, wrong_verdict, what, replay });
    }
}
