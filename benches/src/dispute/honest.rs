//! The honest side's run, with everything kept that a worker keeps of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::value::{Batch, Value};
use lockstep_model::dispute::{Below, Trace};
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_recorded};
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::Job;

use crate::rows::Rows;

/// The run of a job, and the output of each layer that another one follows.
pub(super) struct Honest<'a> {
    pub package: &'a Package,
    pub job: &'a Job,
    pub run: Rerun,
    rows: Vec<Vec<i32>>,
}

impl<'a> Honest<'a> {
    /// Runs the job.
    pub fn run(package: &'a Package, backend: &dyn Backend, job: &'a Job) -> Result<Self> {
        let rows = Rows::default();
        let run = rerun_recorded(package, backend, job, &[], Some(Box::new(rows.clone())))?;
        Ok(Self { package, job, run, rows: rows.take() })
    }

    /// The words of a generation.
    pub fn words(&self) -> Vec<u32> {
        words_of(self.split().0)
    }

    /// The log-probabilities of its points.
    pub fn logprobs(&self) -> &[i32] {
        self.split().1
    }

    fn split(&self) -> (&[i32], &[i32]) {
        let per_point = self.job.kind.generation().map(Generation::values_per_point);
        per_point.map_or((&[], &[]), |per_point| self.run.output.split_at(self.run.output.len() / per_point))
    }

    /// The last place of the run at this layer: all disputes are about that point.
    pub fn place(&self, layer: usize) -> Place {
        let points = self.run.roots.len() / self.layers();
        Place { point: (self.job.tokens.len() + points) as u32 - 2, layer: layer as u16 }
    }

    /// Layers 1 to L + 1.
    fn layers(&self) -> usize {
        self.package.program().layers.len() - 1
    }

    /// The roots of the last point.
    pub fn last_roots(&self) -> &[Root] {
        &self.run.roots[self.run.roots.len() - self.layers()..]
    }

    /// The roots of the whole run up to a place of the last point, with `last` there.
    pub fn roots_with(&self, place: Place, last: Root) -> Vec<Root> {
        let before = self.run.roots.len() - self.layers() + usize::from(place.layer) - 1;
        self.run.roots[..before].iter().copied().chain([last]).collect()
    }

    /// The disputed layer, as somebody has it whose executor this is: from the kept output of the one below; the first one
    /// from the tokens.
    pub fn trace(&self, executor: &mut dyn Executor, place: Place) -> Result<(Trace, Duration)> {
        let (program, params, words) = (self.package.program(), self.package.params(), self.words());
        let start = Instant::now();
        // Log-probabilities come after the last layer, and are made from what that reads.
        if let Some(below) = usize::from(place.layer).min(self.layers()).checked_sub(2) {
            let below = Below { rows: &self.rows[below], signed: self.last_roots() };
            let inputs = (self.job, &words[..]);
            if let Some(trace) = Trace::resume(executor, program, Arc::clone(&params), inputs, place, below)? {
                return Ok((trace, start.elapsed()));
            }
        }
        let trace = Trace::of_job(executor, program, params, self.job, &words, place)?;
        Ok((trace, start.elapsed()))
    }

    /// What all layers up to a place take from the tokens, as where nothing is kept.
    pub fn prefill(&self, backend: &dyn Backend, place: Place) -> Result<Duration> {
        let (program, params, words) = (self.package.program(), self.package.params(), self.words());
        let mut executor = backend.load(Arc::clone(program), Arc::clone(&params))?;
        let start = Instant::now();
        drop(Trace::of_job(&mut *executor, program, params, self.job, &words, place)?);
        Ok(start.elapsed())
    }

    /// What the middle layer takes over all positions, without anything that a dispute needs of it.
    pub fn middle(&self, backend: &dyn Backend) -> Result<Duration> {
        let program = self.package.program();
        let mut executor = backend.load(Arc::clone(program), self.package.params())?;
        // That there is one below, whose output is kept.
        let middle = self.layers().div_ceil(2).max(2).min(self.rows.len() + 1);
        let generated = self.words().into_iter().map(|word| split_word(word).0);
        let positions = self.place(middle).point as usize + 1;
        let tokens = self.job.tokens.iter().copied().chain(generated).take(positions).collect();
        executor.begin(&Batch::single(tokens))?;
        executor.write(program.layers[middle - 1].output, Value::I32(self.rows[middle - 2].clone()))?;
        let start = Instant::now();
        executor.run_layer(middle)?;
        Ok(start.elapsed())
    }
}
