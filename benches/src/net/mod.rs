//! What a coordinator bears: commitment records, idle workers, handshakes.
//!
//! - [`machine`]: the pure job machine by itself. [`coordinator`]: all of it, with store and QUIC. `run`: what both are fed.

pub mod coordinator;
pub mod machine;
mod run;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::report::{Figure, Row};
use crate::samples::{Effort, Samples};
use crate::watch::Watch;

pub use run::Shape;

/// Measures the pure machine.
///
/// # Errors
/// As of [`machine::measure`].
pub fn machine_row(workload: machine::Workload, samples: usize) -> Result<Row> {
    let watch = Watch::start();
    let effort = Effort { least: samples, most: samples, budget: Duration::ZERO };
    let seconds = effort.sample(|| machine::measure(workload))?;
    let machine::Workload { streams, idle, waiting, shape } = workload;
    Ok(finish(row("machine", streams, idle, waiting, shape), streams, shape, &seconds, &watch))
}

/// Measures a real coordinator; its data lie in a folder that the caller makes and drops.
///
/// # Errors
/// As of [`coordinator::measure`].
pub fn coordinator_row(workload: coordinator::Workload, threads: usize, data: &Path) -> Result<Row> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let watch = Watch::start();
    let measured = runtime.block_on(coordinator::measure(workload, data))?;
    let coordinator::Workload { idle, streams, jobs, shape, .. } = workload;
    let row = row("coordinator", streams, idle, jobs, shape);
    let mut row = finish(row, jobs, shape, &Samples(measured.runs), &watch);
    if idle > 0 {
        row = row
            .figure(Figure::exact("handshakes_per_second", "handshakes/s", idle as f64 / measured.joining))
            .figure(Figure::exact("workers_held", "held", measured.held as f64));
        if let Some(bytes) = measured.worker_bytes {
            row = row.figure(Figure::exact("memory_of_worker", "bytes/worker", bytes));
        }
    }
    Ok(row)
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
