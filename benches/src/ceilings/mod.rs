//! What this machine can do at the most: reading memory, multiplying bytes, hashing. Shares of these are what kernels are
//! judged by.

mod hash;
mod int8;
mod memory;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::report::{Figure, MOST_SPREAD, Row};
use crate::samples::{Effort, Samples};
use crate::watch::Watch;

pub use hash::SIZES;
pub use int8::Unit;

/// How much to measure with.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Threads; 1 is measured beside.
    pub threads: usize,
    /// Bytes of memory to read, of all threads together. Several times the caches, or it is a cache that is measured.
    pub memory_bytes: usize,
    /// Time for each ceiling.
    pub budget: Duration,
}

impl Workload {
    /// Enough for ceilings that hold.
    pub const fn thorough(threads: usize) -> Self {
        Self { threads, memory_bytes: 1 << 30, budget: Duration::from_secs(1) }
    }

    fn effort(self) -> Effort {
        Effort { least: 3, most: 200, budget: self.budget }
    }
}

/// What shares are taken of: rates with all threads, the best that was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes a second read from memory.
    pub memory: f64,
    /// Operations a second on bytes: a multiplication is one, an addition is one.
    pub int8: f64,
    /// The unit that has this peak.
    pub unit: Unit,
    /// What disturbed them, and so made them lower.
    pub disturbed: Vec<String>,
}

/// What one op is held against. A GPU's are measured by its backend; it may have no rate for bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Bytes a second from and to memory.
    pub memory: f64,
    /// Operations a second on bytes.
    pub int8: Option<f64>,
}

/// Seconds of the fastest run within the budget; the first one warms up.
pub fn best_of<E>(mut run: impl FnMut() -> Result<(), E>, budget: Duration) -> Result<f64, E> {
    let samples = Effort { least: 3, most: 200, budget }.sample(|| {
        let start = Instant::now();
        run().map(|()| start.elapsed().as_secs_f64())
    })?;
    Ok(samples.0.iter().copied().fold(f64::INFINITY, f64::min))
}

impl Ceilings {
    /// As a roof.
    pub const fn roof(&self) -> Roof {
        Roof { memory: self.memory, int8: Some(self.int8) }
    }

    /// Measures them. A ceiling is the best sample, since whatever disturbs a measurement makes it slower.
    pub fn measure(workload: Workload) -> Self {
        let best = |samples: &Samples| samples.0.iter().copied().fold(f64::INFINITY, f64::min);
        let Workload { threads, memory_bytes, .. } = workload;
        let watch = Watch::start();
        let memory = memory::read(threads, memory_bytes, workload.effort());
        let unit = Unit::best();
        let (int8, operations) = int8::peak(unit, threads, workload.effort());
        let mut disturbed = watch.seen().disturbances;
        disturbed.extend(apart("memory", &memory).into_iter().chain(apart("int8", &int8)));
        Self { memory: memory_bytes as f64 / best(&memory), int8: operations / best(&int8), unit, disturbed }
    }
}

/// That samples are so far apart that even the best one may be too slow.
fn apart(what: &str, samples: &Samples) -> Option<String> {
    let spread = samples.spread();
    (spread > MOST_SPREAD).then(|| format!("samples of {what} spread by {:.0}%", 100.0 * spread))
}

/// Measures all ceilings with one thread and with as many as asked for, and hands out each as soon as it is known.
///
/// # Errors
/// Whatever `take` says.
pub fn measure<E>(workload: Workload, take: &mut dyn FnMut(Row) -> Result<(), E>) -> Result<(), E> {
    let mut counts = vec![1, workload.threads];
    counts.dedup();
    for &threads in &counts {
        let bytes = workload.memory_bytes;
        let watch = Watch::start();
        let samples = memory::read(threads, bytes, workload.effort());
        take(row("memory read", threads, bytes, &samples, watch))?;
    }
    for unit in Unit::available() {
        for &threads in &counts {
            let watch = Watch::start();
            let (samples, operations) = int8::peak(unit, threads, workload.effort());
            let row = Row::new([("ceiling", format!("int8 {}", unit.name()).into()), ("threads", threads.into())])
                .figure(Figure::rate("tera_ops_per_second", "TOP/s", operations / 1e12, &samples));
            take(finish(row, &samples, watch))?;
        }
    }
    for bytes in SIZES {
        for &threads in &counts {
            let watch = Watch::start();
            let (samples, hashed) = hash::blake3(threads, bytes, workload.effort());
            let name = format!("blake3 {}", size(bytes));
            take(row(&name, threads, hashed, &samples, watch))?;
        }
    }
    Ok(())
}

fn row(name: &str, threads: usize, bytes: usize, samples: &Samples, watch: Watch) -> Row {
    let row = Row::new([("ceiling", name.into()), ("threads", threads.into())])
        .figure(Figure::rate("gigabytes_per_second", "GB/s", bytes as f64 / 1e9, samples))
        .detail("bytes", bytes);
    finish(row, samples, watch)
}

fn finish(row: Row, samples: &Samples, watch: Watch) -> Row {
    row.detail("seconds", json!(samples.0)).seen(&watch.seen())
}

fn size(bytes: usize) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) }
}

/// Seconds from the moment at which all threads have started until the last one is done with its work.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let (barrier, work) = (&barrier, &work);
    std::thread::scope(|scope| {
        let run = |thread| {
            move || {
                barrier.wait();
                let start = Instant::now();
                work(thread);
                (start, Instant::now())
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        let times: Vec<_> = running.into_iter().filter_map(|thread| thread.join().ok()).collect();
        let first = times.iter().map(|(start, _)| *start).min();
        let last = times.iter().map(|(_, end)| *end).max();
        last.zip(first).map_or(f64::NAN, |(last, first)| last.duration_since(first).as_secs_f64())
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn the_best_of_a_run_follows_one_that_warms_up() {
        let mut runs = 0;
        let mut run = || {
            runs += 1;
            Ok::<_, &str>(())
        };
        assert!(best_of(&mut run, Duration::ZERO).is_ok_and(|seconds| seconds >= 0.0 && seconds.is_finite()));
        assert_eq!(runs, 4);
        assert_eq!(best_of(|| Err("lost"), Duration::ZERO), Err("lost"));
    }

    #[test]
    fn every_ceiling_is_a_positive_rate() {
        let workload = Workload { threads: 2, memory_bytes: 1 << 20, budget: Duration::ZERO };
        let mut rows = Vec::new();
        let mut take = |row| {
            rows.push(row);
            Ok::<_, Infallible>(())
        };
        measure(workload, &mut take).expect("nothing is refused");
        assert_eq!(rows.len(), 2 * (1 + Unit::available().len() + SIZES.len()));
        for row in &rows {
            assert!(row.figures.iter().all(|figure| figure.value > 0.0 && figure.value.is_finite()), "{row:?}");
        }
        let ceilings = Ceilings::measure(workload);
        assert!(ceilings.memory > 0.0 && ceilings.int8 > 0.0);
        assert_eq!(ceilings.roof(), Roof { memory: ceilings.memory, int8: Some(ceilings.int8) });
        assert_eq!(ceilings.unit, Unit::available()[0]);
    }
}
