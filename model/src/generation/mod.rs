//! Text generation: many sequences at once, each with the commitments that its job asks for.
//!
//! - [`Generator`] takes requests and advances all of them pass by pass. What a request gives never depends on who
//!   shares a pass, how prompts are cut, what was computed before, or on a hint.
//! - `schedule`: who gets how many positions in a pass. `pass`: one pass, every layer hashed on the way.
//! - `task`: one generation. `prefix`: prefixes that were computed before. [`Recorder`]: whoever wants the rows.
//! - `stage`: one job through some of a model's layers, in step with whoever has the others.
//! - `sampling`: a job's settings and draws, as the program's last op wants them. [`TokenText`], [`Utf8Stream`]: words
//!   to text.
//!
//! A *hint* is a claim of what a generation says, as an auditor is given it. It is checked like the draft of
//! speculative decoding: prompt and hint go through the model together, and at the first word that differs the rest of
//! the hint is dropped and the generation goes on by itself. So an audit of an honest run is one prefill, and a wrong
//! hint costs time and changes nothing.

mod logprobs;
mod memory;
mod pass;
mod prefix;
mod recorder;
mod sampling;
mod schedule;
mod stage;
mod task;
#[cfg(test)]
mod tests;
mod text;

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::program::{PassShape, Program};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Params};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{Place, Root, Seed};

pub(crate) use logprobs::Logits;
pub use memory::{Limits, Refused};
pub use recorder::Recorder;
pub use sampling::{draw, sampling};
pub use stage::{Mark, StageError, StagePass, StageRun};
pub use text::{TokenText, Utf8Stream};

use pass::{Part, Passed};
use prefix::{Lineage, Prefixes};
use schedule::next_pass;
use task::{Advance, Task};

/// What to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Settings; their count of prompt tokens is that of `prompt`.
    pub sampling: Sampling,
    /// Decides every draw.
    pub seed: Seed,
    /// The words that somebody says come out, from the first one on; may be empty, too long or wrong.
    pub hint: Vec<u32>,
    /// Which log-probabilities are wanted, as a job says it ([`Generation::logprobs`]).
    pub logprobs: u8,
}

impl Request {
    /// What a job asks for.
    pub fn new(prompt: Vec<u32>, generation: &Generation, seed: Seed, hint: Vec<u32>) -> Self {
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let logprobs = generation.logprobs;
        Self { sampling: sampling(generation, prompt_tokens), prompt, seed, hint, logprobs }
    }
}

/// Names a request in its generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(u64);

/// What a generator says about a request, in stream order: for each point the roots of layers 1 to L, the word, and the
/// root of layer L + 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The root of one more place.
    Root {
        /// Where.
        place: Place,
        /// The root.
        root: Root,
    },
    /// The word at a point.
    Word {
        /// The position after which it was sampled.
        point: u32,
        /// Token and finish.
        word: u32,
        /// Its log-probabilities, where the request wants them: one row ([`lockstep_protocol::logprobs`]).
        logprobs: Vec<i32>,
    },
    /// The end. Nothing is said of the request any more.
    Done(Run),
}

/// A complete generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its words; the last one says why it ended.
    pub words: Vec<u32>,
    /// The log-probabilities of all points, where the request wants them.
    pub logprobs: Vec<i32>,
    /// The roots of all places in stream order.
    pub roots: Vec<Root>,
    /// Elements that saturated in all layers at all positions together.
    pub saturations: u64,
    /// Positions that were not computed because an earlier request had the same prefix.
    pub reused_positions: usize,
}

impl Run {
    /// What a result carries: the words, and after them the log-probabilities.
    pub fn output(&self) -> Vec<i32> {
        self.words.iter().map(|word| word.cast_signed()).chain(self.logprobs.iter().copied()).collect()
    }
}

/// A loaded decoder with its running and waiting requests.
///
/// After an error of a backend nothing is known about the caches: the generator is dropped, and its requests with it.
pub struct Generator {
    program: Arc<Program>,
    executor: Box<dyn Executor>,
    limits: Limits,
    waiting: VecDeque<Task>,
    running: Vec<Task>,
    prefixes: Prefixes,
    /// Names tasks and caches.
    next_id: u64,
    passes: u64,
}

impl Generator {
    /// Loads a decoder.
    ///
    /// # Errors
    /// [`Refused::NotADecoder`], [`Refused::PassMemory`], and [`Refused::Backend`] where the backend does not load the
    /// program.
    pub fn new(
        program: Arc<Program>,
        params: Arc<dyn Params>,
        backend: &dyn Backend,
        limits: Limits,
    ) -> Result<Self, Refused> {
        let limits = limits.check(&program)?;
        let executor = backend.load(Arc::clone(&program), params)?;
        let prefixes = Prefixes::new(limits.prefix_bytes, memory::prefix_entry_bytes(&program));
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Ok(Self { program, executor, limits, waiting, running, prefixes, next_id: 0, passes: 0 })
    }

    /// Takes a request on. It starts when there is memory for all that it may come to need.
    ///
    /// # Errors
    /// Where it is malformed, or could never run within the limits.
    pub fn submit(&mut self, request: Request) -> Result<TaskId, Refused> {
        self.submit_recorded(request, None)
    }

    /// As [`submit`](Self::submit), with somebody who is told the rows.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_recorded(
        &mut self,
        request: Request,
        recorder: Option<Box<dyn Recorder>>,
    ) -> Result<TaskId, Refused> {
        let reserved = self.limits.reservation(&self.program, &request)?;
        let (id, cache) = (TaskId(self.next_id), CacheId(self.next_id));
        self.next_id += 1;
        let trees = memory::trees(&self.program);
        let mut task = Task::new(id, cache, request, self.program.vocab_size, reserved, trees);
        task.recorder = recorder;
        self.waiting.push_back(task);
        Ok(id)
    }

    /// Drops a request, whatever it came to. Of one that is done nothing is left to drop.
    pub fn cancel(&mut self, id: TaskId) {
        self.waiting.retain(|task| task.id != id);
        if let Some(index) = self.running.iter().position(|task| task.id == id) {
            let mut task = self.running.remove(index);
            task.finish_recording();
            self.executor.drop_cache(task.cache);
        }
    }

    /// Requests that are not done.
    pub fn requests(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Requests of which something was computed, or will be in the next pass.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Bytes that all caches hold now, those of kept prefixes included.
    pub fn cache_bytes(&self) -> u64 {
        self.executor.cache_bytes()
    }

    /// Runs one pass and says what came of it. Returns whether there is more to do.
    ///
    /// # Errors
    /// Whatever the backend says; see [`Generator`] for what is left then.
    pub fn step(&mut self, say: &mut dyn FnMut(TaskId, Event)) -> Result<bool, BackendError> {
        self.admit()?;
        let slots: Vec<_> = self.running.iter().map(Task::slot).collect();
        let counts = self.fitting_pass(&slots);
        let chosen: Vec<usize> = (0..counts.len()).filter(|&index| counts[index] > 0).collect();
        if chosen.is_empty() {
            return Ok(false);
        }
        self.passes += 1;
        let sequences = chosen.iter().map(|&index| self.running[index].sequence(counts[index])).collect();
        let batch = Batch { sequences };
        let keeps_pages = self.prefixes.is_on();
        let spans = chosen.iter().zip(batch.spans());
        let mut parts: Vec<Part> =
            spans.map(|(&index, span)| self.running[index].part(counts[index], span, keeps_pages)).collect();
        let last = |&index: &usize| {
            let task = &self.running[index];
            (task.id, (task.computed() + counts[index] - 1) as u32)
        };
        let points: Vec<(TaskId, u32)> = chosen.iter().map(last).collect();
        let passed = pass::run(&mut *self.executor, &self.program, &batch, &mut parts, &mut |part, layer, root| {
            let (id, point) = points[part];
            say(id, Event::Root { place: Place { point, layer }, root });
        })?;
        self.accept(&chosen, &batch, parts, &passed, say)?;
        Ok(self.requests() > 0)
    }

    /// Starts waiting requests in their order while there is memory for them.
    fn admit(&mut self) -> Result<(), BackendError> {
        let mut reserved: u64 = self.running.iter().map(|task| task.reserved).sum();
        while self.running.len() < self.limits.sequences
            && let Some(mut task) =
                self.waiting.pop_front_if(|task| reserved + task.reserved <= self.limits.cache_bytes)
        {
            reserved += task.reserved;
            if let Some(hit) = self.prefixes.find(task.reusable()) {
                self.executor.fork_cache(hit.cache, task.cache, hit.positions)?;
                task.start_from(hit.key, hit.positions, hit.trees);
            }
            self.running.push(task);
        }
        Ok(())
    }

    /// The next pass, cut down until its activations fit.
    fn fitting_pass(&self, slots: &[schedule::Slot]) -> Vec<usize> {
        let mut budget = self.limits.pass_tokens;
        loop {
            let counts = next_pass(slots, budget);
            if budget == 1 || self.program.pass_bytes(&self.shape(&counts)) <= self.limits.pass_bytes {
                return counts;
            }
            budget /= 2;
        }
    }

    fn shape(&self, counts: &[usize]) -> PassShape {
        let mut shape = PassShape::default();
        for (task, count) in self.running.iter().zip(counts).filter(|(_, count)| **count > 0) {
            shape.positions += *count as u64;
            shape.sequences += 1;
            shape.points += task.points(*count) as u64;
            shape.cached += task.computed() as u64;
        }
        shape
    }

    /// Lets every task of a pass take in what the pass gave.
    fn accept(
        &mut self,
        chosen: &[usize],
        batch: &Batch,
        parts: Vec<Part>,
        passed: &Passed,
        say: &mut dyn FnMut(TaskId, Event),
    ) -> Result<(), BackendError> {
        let mut done = Vec::new();
        for ((&index, part), points) in chosen.iter().zip(parts).zip(batch.point_spans()) {
            let task = &mut self.running[index];
            task.last_pass = self.passes;
            let advance = task.accept(part, passed, points, say);
            let is_own = chosen.len() == 1 && !advance.is_rolled_back;
            if passed.saturations > 0 {
                task.saturations = task.saturations.filter(|_| is_own).map(|own| own + passed.saturations);
            }
            if advance.is_rolled_back && !advance.is_done {
                self.executor.truncate_cache(task.cache, task.computed())?;
            }
            if advance.is_done {
                done.push(index);
            }
            self.keep_pages(index, advance)?;
        }
        // From the last one on, so that the numbers of those before stay what they are.
        for index in done.into_iter().rev() {
            let mut task = self.running.remove(index);
            if task.saturations.is_none() {
                task.saturations = Some(self.count_again(&task)?);
            }
            self.executor.drop_cache(task.cache);
            task.finish_recording();
            say(task.id, Event::Done(task.into_run()));
        }
        Ok(())
    }

    /// Keeps the pages that a pass completed. Of a run that clamped anything none is kept: whoever started from them
    /// could not know its own count.
    fn keep_pages(&mut self, index: usize, advance: Advance) -> Result<(), BackendError> {
        let task = &mut self.running[index];
        for page in advance.pages.into_iter().filter(|_| task.saturations == Some(0)) {
            let Lineage::At(parent) = task.lineage else { break };
            let cache = CacheId(self.next_id);
            self.next_id += 1;
            let tokens = task.page(page.positions);
            let from = (task.cache, cache, page.positions);
            task.lineage = self.prefixes.insert(&mut *self.executor, parent, tokens, from, page.trees)?;
        }
        Ok(())
    }

    /// What a run clamped in all: its positions are run once more without anybody else's. Programs are made so that
    /// this is rare.
    fn count_again(&mut self, task: &Task) -> Result<u64, BackendError> {
        self.executor.drop_cache(task.cache);
        let mut saturations = 0;
        for sequence in task.again(self.limits.alone(&self.program)) {
            let batch = Batch { sequences: vec![sequence] };
            self.executor.begin(&batch)?;
            let layers = self.program.layers.len() - usize::from(batch.points() == 0);
            for layer in 0..layers {
                saturations += self.executor.run_layer(layer)?.saturations;
            }
        }
        Ok(saturations)
    }
}
