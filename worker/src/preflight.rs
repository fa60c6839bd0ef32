//! Before a worker offers itself: is the backend exact, and how fast is it?

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_kernels::conformance::{self, Case, Difference, Level, Summary};
use lockstep_kernels::value::{Params, Sequence};

use crate::error::WorkerError;
use crate::event::{Event, Events};

/// Puts the backend through the quick conformance suite and measures it. Returns multiply-accumulates a second.
pub(crate) fn check(backend: &dyn Backend, events: &Events) -> Result<u64, WorkerError> {
    let Summary { cases, elements, .. } = suite(backend, events)?;
    let macs_per_second = measure(backend)?;
    let backend = backend.name();
    events.emit(Event::Checked { backend, cases, elements, macs_per_second });
    Ok(macs_per_second)
}

/// Puts the backend through the quick conformance suite once more.
pub(crate) fn answers(backend: &dyn Backend, events: &Events) -> Result<(), WorkerError> {
    let suite = catch_unwind(AssertUnwindSafe(|| suite(backend, events)));
    suite.unwrap_or_else(|_| Err(WorkerError::Internal("the backend panicked in a test".into()))).map(drop)
}

fn suite(backend: &dyn Backend, events: &Events) -> Result<Summary, WorkerError> {
    let mut op = "";
    let summary = conformance::run(backend, Level::Quick, &mut |progress| {
        if op != progress.op {
            op = progress.op;
            events.emit(Event::Checking { op, done: progress.done });
        }
    });
    summary.map_err(|found| match found.difference {
        // It did not come to a wrong result, but to none.
        Difference::Failed { error } => {
            let place = format!("{}, op {}, case \"{}\"", found.backend, found.op, found.case);
            WorkerError::Backend(BackendError::Device(format!("{place}: {error}")))
        }
        _ => WorkerError::Diverges(Box::new(found)),
    })
}

/// Runs a made-up encoder layer of ordinary size a few times, and says how many multiply-accumulates a second it took
/// in the fastest pass, so that a machine that was busy for a moment is not called slow for ever.
fn measure(backend: &dyn Backend) -> Result<u64, BackendError> {
    const ENOUGH: Duration = Duration::from_millis(200);
    const MAX_PASSES: usize = 32;
    let case = conformance::encoder(256, 4, 1_024, 1, false, &[128]);
    let mut executor = load(backend, &case)?;
    let (start, mut best) = (Instant::now(), Duration::MAX);
    for _ in 0..MAX_PASSES {
        let pass = Instant::now();
        executor.begin(&case.batch)?;
        for layer in 0..case.program.layers.len() {
            executor.run_layer(layer)?;
        }
        best = best.min(pass.elapsed());
        if start.elapsed() > ENOUGH {
            break;
        }
    }
    let macs = |s: &Sequence| case.program.macs(s.tokens.len() as u64, s.points().len() as u64);
    let macs: u64 = case.batch.sequences.iter().map(macs).sum();
    let nanos = best.as_nanos().max(1);
    Ok(u64::try_from(u128::from(macs) * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

fn load(backend: &dyn Backend, case: &Case) -> Result<Box<dyn lockstep_kernels::backend::Executor>, BackendError> {
    let params: Arc<dyn Params> = Arc::<conformance::OwnedParams>::clone(&case.params);
    backend.load(Arc::clone(&case.program), params)
}
