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
    Ok(finish(row, streams, shape, &seconds, &watch))
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
        .disturbed(watch.disturbances()))
}

/// Measures a real coordinator; its data lie in a folder that the caller makes and drops.
///
/// # Errors
/// As of [`coordinator::measure`].
pub fn coordinator_row(workload: coordinator::Workload, data: &Path, launch: coordinator::Launch<'_>) -> Result<Row> {
    let watch = Watch::start();
    let measured = coordinator::measure(workload, data, launch)?;
    let coordinator::Workload { idle, streams, jobs, shape, samples, .. } = workload;
    let row = row("coordinator", streams, idle, jobs, shape);
    let mut row = finish(row, jobs, shape, &Samples(measured.runs), &watch);
    let records = (samples * jobs * shape.records()) as f64;
    let Usage { process, engine, store, other, .. } = measured.used;
    // Two cores are full when either the engine's one thread is, or both are.
    let derived = process.map(|process| records / (0.5 * process).max(engine.unwrap_or(0.0)));
    let figures = [
        ("coordinator_nanos", "ns of coordinator", process.map(|seconds| 1e9 * seconds / records)),
        ("engine_nanos", "of it engine", engine.map(|seconds| 1e9 * seconds / records)),
        ("store_nanos", "of it store", store.map(|seconds| 1e9 * seconds / records)),
        ("workers_nanos", "ns of workers", other.map(|seconds| 1e9 * seconds / records)),
        ("derived_records_per_second", "records/s of 2 cores", derived),
    ];
    if let Some(idle_workers) = measured.idle {
        row = row
            .figure(Figure::exact("handshakes_per_second", "handshakes/s", idle as f64 / idle_workers.joining))
            .figure(Figure::exact("workers_held", "held", idle_workers.held as f64));
        for (name, heading, value) in [
            ("handshake_micros", "us/handshake", idle_workers.handshake.map(|seconds| 1e6 * seconds)),
            ("memory_of_worker", "bytes/worker", idle_workers.bytes),
            ("idle_micros_per_second", "us/s of idle worker", idle_workers.share.map(|share| 1e6 * share)),
        ] {
            row = with(row, name, heading, value);
        }
    }
    Ok(figures.into_iter().fold(row, |row, (name, heading, value)| with(row, name, heading, value)))
}

/// With a figure, where it is known.
fn with(row: Row, name: &'static str, heading: &'static str, value: Option<f64>) -> Row {
    match value {
        Some(value) => row.figure(Figure::exact(name, heading, value)),
        None => row,
    }
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

fn finish(row: Row, runs: usize, shape: Shape, seconds: &Samples, watch: &Watch) -> Row {
    let records = (runs * shape.records()) as f64;
    row.figure(Figure::rate("records_per_second", "records/s", records, seconds))
        .figure(Figure::rate("runs_per_second", "runs/s", runs as f64, seconds))
        .detail("seconds", json!(seconds.0))
        .disturbed(watch.disturbances())
}
