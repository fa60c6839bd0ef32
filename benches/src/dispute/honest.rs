//! The honest side's run, with everything kept that a worker keeps of it, and what it costs to have none of that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::value::{Batch, Sampler, Sequence, Value};
use lockstep_model::dispute::{Below, Trace};
use lockstep_model::generation::{draw, sampling};
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_recorded};
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

/// What it takes to have the disputed layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// All layers up to it, from the tokens, as where nothing is kept.
    pub prefill: Duration,
    /// The layer alone, without anything that a dispute needs of it.
    pub alone: Duration,
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
        let is_generation = self.package.program().is_decoder();
        self.run.output.iter().filter(|_| is_generation).map(|word| word.cast_unsigned()).collect()
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
        if let Some(below) = usize::from(place.layer).checked_sub(2) {
            let below = Below { rows: &self.rows[below], signed: self.last_roots() };
            let inputs = (self.job, &words[..]);
            if let Some(trace) = Trace::resume(executor, program, Arc::clone(&params), inputs, place, below)? {
                return Ok((trace, start.elapsed()));
            }
        }
        let trace = Trace::of_job(executor, program, params, self.job, &words, place)?;
        Ok((trace, start.elapsed()))
    }

    /// What the disputed layer takes by other means.
    pub fn costs(&self, backend: &dyn Backend, place: Place) -> Result<Costs> {
        let (program, params, words) = (self.package.program(), self.package.params(), self.words());
        let mut executor = backend.load(Arc::clone(program), Arc::clone(&params))?;
        let start = Instant::now();
        drop(Trace::of_job(&mut *executor, program, params, self.job, &words, place)?);
        let (prefill, layer) = (start.elapsed(), usize::from(place.layer));
        executor.begin(&Batch { sequences: vec![self.sequence(place)] })?;
        let first = if layer == 1 { 0 } else { layer };
        if first > 0 {
            executor.write(program.layers[layer - 1].output, Value::I32(self.rows[layer - 2].clone()))?;
        }
        let start = Instant::now();
        for layer in first..=layer {
            executor.run_layer(layer)?;
        }
        Ok(Costs { prefill, alone: start.elapsed() })
    }

    /// All positions up to the point, which is sampled where the layer is the last one.
    fn sequence(&self, place: Place) -> Sequence {
        let generated = self.words().into_iter().map(|word| split_word(word).0);
        let positions = place.point as usize + 1;
        let tokens = self.job.tokens.iter().copied().chain(generated).take(positions).collect();
        let is_last = usize::from(place.layer) == self.layers();
        let sampler = self.job.kind.generation().filter(|_| is_last).map(|generation| Sampler {
            sampling: Arc::new(sampling(generation, self.job.header().token_count)),
            draws: vec![draw(&self.job.seed, place.point)],
        });
        Sequence { sampler, ..Sequence::new(tokens) }
    }
}
