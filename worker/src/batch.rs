//! What waits for the engine, and which of it runs together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_kernels::backend::BackendError;
use lockstep_protocol::ids::{JobId, LeaseEpoch, Place, Root};
use lockstep_protocol::job::JobHeader;
use lockstep_protocol::messages::{FailureCode, JobResult};
use tokio::sync::mpsc::UnboundedSender;

use crate::store::Model;

/// The name of an assignment.
pub(crate) type Key = (JobId, LeaseEpoch);

/// Why an assignment is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub code: FailureCode,
    pub reason: String,
    /// The device failed, or what drives it: it is tested before it is trusted again.
    pub is_of_device: bool,
}

impl Failure {
    pub fn new(code: FailureCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), is_of_device: false }
    }

    /// Backends may panic; nothing is known about the device then.
    pub fn panicked() -> Self {
        Self { is_of_device: true, ..Self::new(FailureCode::Backend, "the backend panicked") }
    }
}

impl From<&BackendError> for Failure {
    fn from(error: &BackendError) -> Self {
        let is_of_device = matches!(error, BackendError::Device(_));
        Self { is_of_device, ..Self::new(FailureCode::Backend, error.to_string()) }
    }
}

/// What the engine says about a task, in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// It runs, with so many others.
    Started { batch: usize },
    /// The root of one more place.
    Layer { place: Place, root: Root },
    /// The word of a point with the log-probabilities that the job asks for, just before the root of its last layer.
    Word { word: u32, logprobs: Vec<i32> },
    /// The end, with all roots in stream order and the time since the start.
    Done { result: Box<JobResult>, roots: Vec<Root>, elapsed: Duration },
    /// Another end.
    Failed(Failure),
}

/// One assignment as the engine sees it. Steps are few and small: as many as there are roots and words.
#[derive(Debug)]
pub(crate) struct Task {
    pub key: Key,
    pub header: JobHeader,
    /// Checked against the model's program.
    pub tokens: Vec<u32>,
    /// The words that somebody claims come out.
    pub hint: Vec<u32>,
    pub model: Arc<Model>,
    pub steps: UnboundedSender<Step>,
    pub cancelled: Arc<AtomicBool>,
}

impl Task {
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Nobody listens to a task that was cancelled.
    pub fn say(&self, step: Step) {
        let _ = self.steps.send(step);
    }
}

/// What the engine is to do next.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Embeddings of one model that run together.
    pub batch: Vec<Task>,
    /// Generations that came.
    pub generations: Vec<Task>,
}

/// Tasks in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Task>,
    closed: bool,
}

impl Queue {
    pub fn push(&self, task: Task) {
        self.state().waiting.push_back(task);
        self.changed.notify_one();
    }

    /// Lets [`Queue::next`] return `None`.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// All generations that came, and of the embeddings the first task with the later ones of its model up to `budget`
    /// tokens in all. Where there is none of either, it waits if it may.
    pub fn next(&self, budget: usize, may_wait: bool) -> Option<Work> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|task| !task.is_cancelled());
            if !state.waiting.is_empty() || !may_wait {
                return Some(take_work(&mut state.waiting, budget));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_work(waiting: &mut VecDeque<Task>, budget: usize) -> Work {
    let (generations, embeddings): (Vec<Task>, Vec<Task>) =
        std::mem::take(waiting).into_iter().partition(|task| task.header.kind.generation().is_some());
    *waiting = embeddings.into();
    Work { batch: take_batch(waiting, budget), generations }
}

fn take_batch(waiting: &mut VecDeque<Task>, budget: usize) -> Vec<Task> {
    let mut batch: Vec<Task> = waiting.pop_front().into_iter().collect();
    let mut tokens = batch.iter().map(|task| task.tokens.len()).sum::<usize>();
    let mut index = 0;
    while let Some(task) = waiting.get(index) {
        // A package that was pulled again is another one under the same id.
        let is_same = batch.first().is_some_and(|first| Arc::ptr_eq(&task.model, &first.model));
        if !is_same || tokens + task.tokens.len() > budget {
            index += 1;
            continue;
        }
        tokens += task.tokens.len();
        batch.extend(waiting.remove(index));
    }
    batch
}
