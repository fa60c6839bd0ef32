//! What an audit by prefill costs beside the generation that it checks, and what commitments cost in both.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::Program;
use lockstep_model::generation::{Event, Generator, Limits, Request, Run};
use lockstep_model::package::Package;
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
use lockstep_protocol::ids::Seed;
use lockstep_protocol::trace::RowTree;

use crate::report::{Figure, Row};
use crate::samples::Samples;
use crate::watch::Watch;

/// What to generate and audit.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub tokens: u32,
    /// Times that count; one audit more warms up.
    pub samples: usize,
}

/// Seconds of each sample, and of hashing alone.
#[derive(Clone, Debug, Default)]
pub struct AuditSamples {
    /// Generating, commitments included.
    pub generate: Vec<f64>,
    /// Auditing the same words.
    pub audit: Vec<f64>,
    /// Hashing what one generation commits to, on one thread, by itself.
    pub generate_hashing: Vec<f64>,
    /// The same for the audit, which keeps a state at every point.
    pub audit_hashing: Vec<f64>,
    /// Words that were generated.
    pub words: usize,
}

impl AuditSamples {
    /// Time of an audit as a share of the time of the generation.
    pub fn ratio(&self) -> Samples {
        Samples::ratios(&self.audit, &self.generate)
    }

    /// Share of hashing in a generation, as if nothing overlapped.
    pub fn commit_share(&self) -> Samples {
        Samples::ratios(&self.generate_hashing, &self.generate)
    }

    /// Share of hashing in an audit, as if nothing overlapped.
    pub fn audit_commit_share(&self) -> Samples {
        Samples::ratios(&self.audit_hashing, &self.audit)
    }

    /// The row of a report.
    pub fn row(&self, workload: Workload, watch: &Watch) -> Row {
        let [generate, audit] = [&self.generate, &self.audit].map(|seconds| Samples(seconds.clone()));
        Row::new([("prompt_tokens", workload.prompt.into()), ("tokens", self.words.into())])
            .figure(Figure::of("generate_median_seconds", "generation s", &generate))
            .figure(Figure::of("audit_median_seconds", "audit s", &audit))
            .figure(Figure::of("audit_ratio", "audit / generation", &self.ratio()))
            .figure(Figure::of("commit_share", "commit share", &self.commit_share()))
            .figure(Figure::of("audit_commit_share", "of the audit", &self.audit_commit_share()))
            .detail("generate_seconds", self.generate.clone())
            .detail("audit_seconds", self.audit.clone())
            .detail("generate_hashing_seconds", self.generate_hashing.clone())
            .detail("audit_hashing_seconds", self.audit_hashing.clone())
            .seen(&watch.seen())
    }
}

/// Generates from token ids that count up, then audits the words, with one sequence at a time in both.
///
/// # Errors
/// The workload does not fit the model, the backend fails, or an audit of the honest run differs from it.
pub fn measure(package: &Package, backend: &dyn Backend, workload: Workload) -> Result<AuditSamples> {
    let program = package.program();
    let limits = Limits::of_one(program, workload.prompt as u64 + u64::from(workload.tokens));
    let mut generator = Generator::new(Arc::clone(program), package.params(), backend, limits)?;
    let prompt: Vec<u32> = (0..workload.prompt as u32).map(|t| (17 + 31 * t) % program.vocab_size).collect();
    // Drawn at full temperature, so that the words differ; nothing ends the run early.
    let generation = Generation { temperature: SAMPLING_ONE, ..Generation::greedy(workload.tokens) };
    let request = |hint| Request::new(prompt.clone(), &generation, Seed::from_bytes([7; 32]), hint);
    let mut samples = AuditSamples::default();
    for sample in 0..=workload.samples {
        let (run, seconds) = timed(&mut generator, request(Vec::new()))?;
        let (again, audit_seconds) = timed(&mut generator, request(run.words.clone()))?;
        ensure!(run.roots == again.roots && run.words == again.words, "the audit differs from the run");
        samples.words = run.words.len();
        if sample > 0 {
            samples.generate.push(seconds);
            samples.audit.push(audit_seconds);
            samples.generate_hashing.push(hashing(program, workload.prompt, samples.words, false));
            samples.audit_hashing.push(hashing(program, workload.prompt, samples.words, true));
        }
    }
    Ok(samples)
}

fn timed(generator: &mut Generator, request: Request) -> Result<(Run, f64)> {
    let start = Instant::now();
    generator.submit(request)?;
    let mut done = None;
    let mut note = |_, event| {
        if let Event::Done(run) = event {
            done = Some(run);
        }
    };
    while generator.step(&mut note)? {}
    Ok((done.context("the generation did not end")?, start.elapsed().as_secs_f64()))
}

/// Seconds of hashing the rows of all layers, with a root at each point. The time does not depend on what is hashed.
pub(crate) fn hashing(program: &Program, prompt: usize, points: usize, keeps_states: bool) -> f64 {
    let start = Instant::now();
    for layer in &program.layers[1..program.layers.len() - 1] {
        let cols = program.tensor(layer.output).cols as usize;
        let mut tree = RowTree::new(cols);
        tree.push_rows(black_box(&vec![1; cols * (prompt - 1)]));
        let row = vec![1; cols];
        for _ in 0..points {
            tree.push_row(black_box(&row));
            black_box(tree.root());
            if keeps_states {
                black_box(tree.clone());
            }
        }
    }
    start.elapsed().as_secs_f64()
}
