//! How many complete disputes a second are refereed on so many threads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lockstep_model::dispute::LayerCase;
use lockstep_model::package::Package;
use lockstep_protocol::dispute::Verdict;

use super::Measured;
use crate::processor::thread_seconds;
use crate::report::{Figure, Row};
use crate::samples::Samples;
use crate::watch::{Seen, Watch};

/// What was done in several spans of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Threads, each with disputes of its own.
    pub threads: usize,
    /// Disputes from the opening to the verdict, in all spans that count.
    pub disputes: usize,
    /// Disputes a second, in each span.
    pub per_second: Samples,
    /// Disputes a second of processor time, in each span: what one core does that nothing else disturbs.
    pub per_core: Samples,
    /// What was to be seen meanwhile.
    pub seen: Seen,
}

impl Rates {
    /// The row of a report, beside those of single disputes.
    pub fn row(&self) -> Row {
        Row::new([("op", "all in turn".into()), ("referee_threads", self.threads.into())])
            .figure(Figure::of("disputes_per_second", "disputes/s", &self.per_second))
            .figure(Figure::of("disputes_per_core_second", "disputes/s of a core", &self.per_core))
            .detail("disputes", self.disputes)
            .detail("disputes_per_second_samples", self.per_second.0.clone())
            .detail("disputes_per_core_second_samples", self.per_core.0.clone())
            .seen(&self.seen)
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

/// Referees disputes that were played before, all of them in turn, `samples` times for so long, and once more before that does not
/// count: every signature and opening is checked, the disputed layer is lowered, the element is computed and the transcript
/// is signed. Nothing is read or written.
///
/// # Errors
/// There is none, or one ends without a verdict.
pub fn rates(
    package: &Package,
    played: &[Measured],
    threads: usize,
    budget: Duration,
    samples: usize,
) -> Result<Rates> {
    ensure!(!played.is_empty(), "there is no dispute to referee");
    span(package, played, threads, budget)?;
    let (watch, mut disputes) = (Watch::start(), 0);
    let (mut per_second, mut per_core) = (Samples::default(), Samples::default());
    for _ in 0..samples {
        let span = span(package, played, threads, budget)?;
        disputes += span.disputes;
        per_second.0.push(span.disputes as f64 / span.seconds);
        per_core.0.push(span.disputes as f64 / span.used);
    }
    Ok(Rates { threads, disputes, per_second, per_core, seen: watch.seen() })
}

/// What was done in some time.
struct Span {
    disputes: usize,
    /// Seconds that passed.
    seconds: f64,
    /// Seconds of processor time, of all threads.
    used: f64,
}

fn span(package: &Package, played: &[Measured], threads: usize, budget: Duration) -> Result<Span> {
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
    Ok(Span { disputes, seconds: start.elapsed().as_secs_f64(), used })
}
