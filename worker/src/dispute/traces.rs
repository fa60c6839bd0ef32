//! Runs that this worker made once more because they are disputed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::Trace;
use lockstep_protocol::ids::{JobId, Place};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{WORKER_TRACE_BYTES, WORKER_TRACES};

use crate::store::Model;

/// What a trace is of. Disputes about one place of a job share it.
pub(crate) type Subject = (JobId, Place);

/// The last few traces: a dispute asks for the same one in every round.
pub(crate) struct Traces {
    backend: Arc<dyn Backend>,
    /// The most recently used last, each with a bound of its memory.
    kept: Vec<(Subject, Trace, u128)>,
}

impl Traces {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, kept: Vec::new() }
    }

    /// The trace of a place of a job; runs it where it is not kept, on an executor of its own, so that assignments go on
    /// beside it.
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub fn get(&mut self, model: &Model, job: &Job, place: Place) -> Result<&mut Trace, String> {
        let subject = (job.id(), place);
        let kept = match self.kept.iter().position(|(of, ..)| *of == subject) {
            Some(at) => self.kept.remove(at),
            None => {
                let program = model.package.program();
                let bytes = program.activation_bytes(u64::from(place.point) + 1, 1);
                self.make_room(bytes);
                (subject, run(&*self.backend, model, job, place)?, bytes)
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
}

fn run(backend: &dyn Backend, model: &Model, job: &Job, place: Place) -> Result<Trace, String> {
    let (program, params) = (model.package.program(), model.package.params());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut executor = backend.load(Arc::clone(program), Arc::clone(&params)).map_err(|error| error.to_string())?;
        Trace::run(&mut *executor, program, params, &job.tokens, place).map_err(|error| error.to_string())
    }));
    ran.unwrap_or_else(|_| Err("the backend panicked".into()))
}
