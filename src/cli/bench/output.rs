//! How all benchmarks report: the same flags, the same formats.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use lockstep_benches::report::{Format, Report, Row, compare::compare};
use lockstep_kernels::backend::Backend;
use lockstep_model::package::Package;
use lockstep_protocol::ids::ModelId;

use super::limits;
use crate::backend::{self, Local};
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

    /// Begins a report.
    pub const fn begin(self, report: Report) -> Live {
        Live { report, format: self.format() }
    }
}

/// A report in the making: lines of JSON are printed as soon as they are known, so that what was measured is not lost with what was
/// not; tables at the end, when the width of their columns is.
pub struct Live {
    /// What is known so far.
    pub report: Report,
    format: Format,
}

impl Live {
    /// Adds a row.
    ///
    /// # Errors
    /// It can't be printed.
    pub fn push(&mut self, row: Row) -> anyhow::Result<()> {
        let line = self.report.push(row);
        if self.format == Format::Json { print(&line) } else { Ok(()) }
    }

    /// Prints what is still to be printed.
    ///
    /// # Errors
    /// It can't be printed.
    pub fn end(&self) -> anyhow::Result<()> {
        match (&self.report.json_summary, self.format) {
            (summary, Format::Json) => summary.iter().try_for_each(|summary| print(&format!("{summary}\n"))),
            (_, format) => print(&self.report.render(format)),
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Prints how the second report differs from the first.
pub fn print_comparison(files: &[PathBuf], output: OutputArgs) -> Outcome {
    let read = |path: &Path| {
        let text = files::text(path, MAX_REPORT_BYTES)?;
        let is_whole = text.len() <= MAX_REPORT_BYTES;
        is_whole
            .then_some(text)
            .with_context(|| {
                format!("{} is no report: it has more than {} MiB", path.display(), MAX_REPORT_BYTES >> 20)
            })
            .or_exit(Exit::Configuration)
    };
    let [first, second] = files else { unreachable!("the command line takes two files") };
    let report = compare(&read(first)?, &read(second)?).or_exit(Exit::Configuration)?;
    Ok(print(&report.render(output.format()))?)
}

/// Where a benchmark runs.
#[derive(Args)]
pub struct DeviceArgs {
    /// Backend.
    #[arg(long, default_value = "cpu", help = format!("One of {}", backend::NAMES))]
    backend: String,
    /// Threads to use [default: all].
    #[arg(long, value_parser = limits::threads())]
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
    /// As of [`Local::open`].
    pub fn open(&self) -> Result<Local, Failure> {
        self.open_with(self.threads())
    }

    /// Opens the backend with other threads.
    ///
    /// # Errors
    /// As of [`Local::open`].
    pub fn open_with(&self, threads: NonZeroUsize) -> Result<Local, Failure> {
        Local::open(&self.backend, threads, None)
    }
}

/// What a model is called.
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its id; none where it is made up.
    pub id: Option<ModelId>,
}

impl Named {
    /// As a package says.
    pub fn of(package: &Package) -> Self {
        Self { name: package.manifest().name.clone(), id: Some(package.model_id()) }
    }
}

/// A report about a model on a backend.
pub fn about(bench: &'static str, about: String, model: &Named, local: &Local, threads: NonZeroUsize) -> Report {
    let report = Report::new(bench, about)
        .label("model", model.name.clone())
        .label("backend", local.honest().name())
        .label("threads", threads.get())
        .detail("model_id", model.id.map(|id| id.to_string()));
    on(report, local)
}

/// With the device that a backend reaches, where the system does not show it otherwise.
pub fn on(mut report: Report, local: &Local) -> Report {
    if let (Local::Wgpu(wgpu), Some(environment)) = (local, &mut report.environment) {
        environment.adapter = Some(format!("{}, {}", wgpu.name(), wgpu.driver()));
    }
    report
}
