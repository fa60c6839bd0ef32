//! Runs of this worker that are disputed: their disputed layer, from what was kept of the run, or else the run made once
//! more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::{Below, Trace};
use lockstep_protocol::dispute::Ground;
use lockstep_protocol::ids::{JobId, LeaseEpoch, Place, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{WORKER_TRACE_BYTES, WORKER_TRACES};

use crate::kept::KeptRuns;
use crate::stage::Inputs;
use crate::store::Model;

/// What a trace is of. Disputes about one place of a job share it.
pub(crate) type Subject = (JobId, Place);

/// What a trace is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From<'a> {
    /// The output of the layer below, where it is kept and has the root that was signed at the disputed point; else the
    /// tokens.
    KeptRuns {
        /// The signed roots of the point.
        signed: &'a [Root],
    },
    /// The tokens, whatever is kept.
    Tokens,
    /// The rows that a worker before this one handed over, up to its first layer; where that is 1, the tokens.
    Received {
        /// The lease of the run.
        epoch: LeaseEpoch,
        /// The first layer that is this worker's.
        first: u16,
        /// The signed roots of the point.
        signed: &'a [Root],
    },
}

/// The last few traces: a dispute asks for the same one in every round.
pub(crate) struct Traces {
    backend: Arc<dyn Backend>,
    runs: Arc<KeptRuns>,
    inputs: Inputs,
    /// The most recently used last, each with a bound of its memory.
    kept: Vec<(Subject, Trace, u128)>,
}

impl Traces {
    pub fn new(backend: Arc<dyn Backend>, (runs, inputs): (Arc<KeptRuns>, Inputs)) -> Self {
        Self { backend, runs, inputs, kept: Vec::new() }
    }

    /// The trace of the place of a job that a dispute begins at; makes it where it is not there, on an executor of its own, so that assignments go on
    /// beside it.
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub fn get(&mut self, model: &Model, job: &Job, ground: &Ground, from: From<'_>) -> Result<&mut Trace, String> {
        let place = ground.place;
        let subject = (job.id(), place);
        let kept = match self.kept.iter().position(|(of, ..)| *of == subject) {
            Some(at) => self.kept.remove(at),
            None => {
                let program = model.package.program();
                let bytes = program.activation_bytes(u64::from(place.point) + 1, 1);
                self.make_room(bytes);
                (subject, self.make(model, job, ground, from)?, bytes)
            }
        };
        self.kept.push(kept);
        let (_, trace, _) = self.kept.last_mut().expect("it was just put there");
        Ok(trace)
    }

    /// Drops the trace of a place.
    pub fn forget(&mut self, subject: &Subject) {
        self.kept.retain(|(of, ..)| of != subject);
    }

    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// Drops the traces that were not used for longest, until there is room for one more.
    fn make_room(&mut self, bytes: u128) {
        let held = |kept: &[(Subject, Trace, u128)]| kept.iter().map(|(.., bytes)| bytes).sum::<u128>();
        while !self.kept.is_empty()
            && (self.kept.len() >= WORKER_TRACES || held(&self.kept) + bytes > u128::from(WORKER_TRACE_BYTES))
        {
            self.kept.remove(0);
        }
    }

    fn make(&self, model: &Model, job: &Job, ground: &Ground, from: From<'_>) -> Result<Trace, String> {
        let place = ground.place;
        let (program, params) = (model.package.program(), model.package.params());
        // Log-probabilities, which come after the last layer, are made from what that reads.
        let last = u16::try_from(program.layers.len() - 1).unwrap_or(u16::MAX);
        let below = place.layer.min(last).checked_sub(1).and_then(|below| self.runs.output(&job.id(), below));
        let made = catch_unwind(AssertUnwindSafe(|| {
            let loaded = model.load(&*self.backend);
            let mut executor = loaded.map_err(|error| error.to_string())?;
            if let From::Received { epoch, first, signed } = from
                && first > 1
            {
                let rows =
                    self.inputs.read(&job.id(), epoch).ok_or("the rows that were received are not kept any more")?;
                let below = Below { rows: &rows, signed };
                let made =
                    Trace::of_received(&mut *executor, program, params, (job, &ground.words), place, (first, below));
                let made = made.map_err(|error| error.to_string())?;
                return made.ok_or_else(|| "the rows that are kept are not those that were received".to_owned());
            }
            if let (From::KeptRuns { signed }, Some(rows)) = (from, &below) {
                let (inputs, below) = ((job, &ground.words[..]), Below { rows, signed });
                let resumed = Trace::resume(&mut *executor, program, Arc::clone(&params), inputs, place, below);
                if let Some(trace) = resumed.map_err(|error| error.to_string())? {
                    return Ok(trace);
                }
            }
            let made = Trace::of_job(&mut *executor, program, params, job, &ground.words, place);
            made.map_err(|error| error.to_string())
        }));
        made.unwrap_or_else(|_| Err("the backend panicked".into()))
    }
}
