//! What a coordinator bears: commitment records, idle workers, handshakes.
//!
//! - [`machine`]: the pure job machine by itself. [`coordinator`]: all of it, with store and QUIC; [`workers`]: its workers.
//!   `run`: what both are fed. `usage`: what they take.

pub mod coordinator;
pub mod machine;
mod run;
mod usage;
pub mod workers;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lockstep_protocol::limits::MAX_IN_FLIGHT;
use serde_json::json;

use crate::report::{Figure, Row};
use crate::samples::{Effort, Samples};
use crate::watch::Watch;

pub use run::{Shape, SignedRun, signed_run};
pub use usage::Usage;

/// Measures the pure machine.
///
/// # Errors
/// As of [`machine::measure`].
pub fn machine_row(workload: machine::Workload, samples: usize) -> Result<Row> {
    let watch = Watch::start();
    let effort = Effort { least: samples, most: samples, budget: Duration::ZERO };
    let seconds = effort.sample(|| machine::measure(workload))?;
    let machine::Workload { streams, idle, waiting, shape, together } = workload;
    let row = row("machine", streams, idle, waiting, shape).detail("together", together);
    Ok(rates(row, streams, shape, &seconds).seen(&watch.seen()))
}

/// Measures what it takes the pure machine to take a job in and give it out.
///
/// # Errors
/// As of [`machine::measure_assignments`].
pub fn assignment_row(idle: usize, have_model: bool, samples: usize) -> Result<Row> {
    let (watch, jobs) = (Watch::start(), MAX_IN_FLIGHT as usize);
    let effort = Effort { least: samples, most: samples, budget: Duration::ZERO };
    let seconds = effort.sample(|| machine::measure_assignments(idle, have_model, jobs))?;
    let through = if have_model { "assignment" } else { "assignment, no model" };
    let micros = seconds.0.iter().map(|seconds| 1e6 * seconds / jobs as f64).collect();
    Ok(row(through, 1, idle, jobs, Shape { layers: 1, points: 1 })
        .figure(Figure::of("assignment_micros", "us/job", &micros))
        .seen(&watch.seen()))
}

/// Measures a real coordinator; its data lie in a folder that the caller makes and drops.
///
/// # Errors
/// As of [`coordinator::measure`].
pub fn coordinator_row(workload: coordinator::Workload, data: &Path, launch: coordinator::Launch<'_>) -> Result<Row> {
    // The process of the workers has ended before the watch looks again, so its time counts as this program's.
    let watch = Watch::crowded();
    let measured = coordinator::measure(workload, data, launch)?;
    let (seen, records) = (watch.seen(), (workload.jobs * workload.shape.records()) as f64);
    let coordinator::Workload { idle, streams, jobs, shape, .. } = workload;
    let mut row = rates(row("coordinator", streams, idle, jobs, shape), jobs, shape, &Samples(measured.runs));
    // What a run takes for each of its records, in nanoseconds; none where the system does not say.
    let nanos = |of: fn(&Usage) -> Option<f64>| {
        let each: Option<Samples> = measured.used.iter().map(of).collect();
        each.map(|seconds| seconds.0.iter().map(|seconds| 1e9 * seconds / records).collect::<Samples>())
    };
    // Two cores are full when either the engine's one thread is, or both are.
    let derived = |used: &Usage| Some(records / (0.5 * used.process?).max(used.engine.unwrap_or(0.0)));
    if let Some(idle_workers) = measured.idle {
        for (name, heading, value) in [
            ("handshakes_per_second", "handshakes/s", Some(idle as f64 / idle_workers.joining)),
            ("workers_held", "held", Some(idle_workers.held as f64)),
            ("handshake_micros", "us/handshake", idle_workers.handshake.map(|seconds| 1e6 * seconds)),
            ("worker_memory_bytes", "bytes/worker", idle_workers.bytes),
            ("idle_micros_per_second", "us/s of idle worker", idle_workers.share.map(|share| 1e6 * share)),
        ] {
            row = value.into_iter().fold(row, |row, value| row.figure(Figure::once(name, heading, value)));
        }
    }
    let derived: Option<Samples> = measured.used.iter().map(derived).collect();
    for (name, heading, samples) in [
        ("coordinator_nanos", "ns of coordinator", nanos(|used| used.process)),
        ("engine_nanos", "of it engine", nanos(|used| used.engine)),
        ("store_nanos", "of it store", nanos(|used| used.store)),
        ("workers_nanos", "ns of workers", nanos(|used| used.other)),
        ("derived_records_per_second", "records/s of 2 cores", derived),
    ] {
        row = samples.into_iter().fold(row, |row, samples| row.figure(Figure::of(name, heading, &samples)));
    }
    Ok(row.seen(&seen))
}

fn row(what: &str, streams: usize, idle: usize, waiting: usize, shape: Shape) -> Row {
    Row::new([
        ("through", what.into()),
        ("streams", streams.into()),
        ("idle", idle.into()),
        ("jobs", waiting.into()),
        ("layers", shape.layers.into()),
        ("points", shape.points.into()),
    ])
}

fn rates(row: Row, runs: usize, shape: Shape, seconds: &Samples) -> Row {
    let records = (runs * shape.records()) as f64;
    row.figure(Figure::rate("records_per_second", "records/s", records, seconds))
        .figure(Figure::rate("runs_per_second", "runs/s", runs as f64, seconds))
        .detail("seconds", json!(seconds.0))
}
