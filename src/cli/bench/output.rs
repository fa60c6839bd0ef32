//! How all benchmarks report: the same flags, the same formats.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use lockstep_benches::report::{Format, Report, compare::compare};
use lockstep_kernels::backend::Backend;
use lockstep_model::package::Package;
use serde_json::Value;

use crate::backend;
use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};

/// Longest report that is read.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// Flags of every benchmark.
#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    /// Print JSON lines: one object for each row.
    #[arg(long, global = true)]
    json: bool,
    /// Print a Markdown table.
    #[arg(long, global = true, conflicts_with = "json")]
    markdown: bool,
    /// Print comma-separated values.
    #[arg(long, global = true, conflicts_with_all = ["json", "markdown"])]
    csv: bool,
}

impl OutputArgs {
    const fn format(self) -> Format {
        match self {
            Self { json: true, .. } => Format::Json,
            Self { markdown: true, .. } => Format::Markdown,
            Self { csv: true, .. } => Format::Csv,
            _ => Format::Table,
        }
    }

    /// Prints a report.
    pub fn print(self, report: &Report) {
        print!("{}", report.render(self.format()));
    }
}

/// Prints how the second report differs from the first.
pub fn print_comparison(files: &[PathBuf], output: OutputArgs) -> Outcome {
    let read = |path: &Path| files::text(path, MAX_REPORT_BYTES);
    let [first, second] = files else { unreachable!("the command line takes two files") };
    let report = compare(&read(first)?, &read(second)?).or_exit(Exit::Configuration)?;
    output.print(&report);
    Ok(())
}

/// Where a benchmark runs.
#[derive(Args)]
pub struct DeviceArgs {
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    pub backend: String,
    /// Threads to use [default: all].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

impl DeviceArgs {
    /// Threads to use.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(backend::all_threads)
    }

    /// Opens the backend.
    ///
    /// # Errors
    /// As of [`backend::open`].
    pub fn open(&self) -> Result<Arc<dyn Backend>, Failure> {
        backend::open(&self.backend, self.threads())
    }

    /// Opens the backend, as what it is.
    ///
    /// # Errors
    /// As of [`backend::open`].
    pub fn open_local(&self) -> Result<backend::Local, Failure> {
        backend::Local::open(&self.backend, self.threads(), None)
    }
}

/// Says of all rows which model they are about, and what ran it.
pub fn stamp(report: &mut Report, package: &Package, backend: &str, threads: NonZeroUsize) {
    let labels = [
        ("model", Value::from(package.manifest().name.clone())),
        ("backend", backend.into()),
        ("threads", threads.get().into()),
    ];
    report.stamp(&labels, &[("model_id", package.model_id().to_string().into())]);
}
