//! What waits for the engine, and which of it runs together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
}

impl Failure {
    pub fn new(code: FailureCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// What the engine says about a task, in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// It runs, with so many others.
    Started { batch: usize },
    /// The root of one more place.
    Layer { place: Place, root: Root },
    /// The end, with the time since the start.
    Done { result: Box<JobResult>, elapsed: Duration },
    /// Another end.
    Failed(Failure),
}

/// One assignment as the engine sees it. Steps are few and small: as many as there are layers.
#[derive(Debug)]
pub(crate) struct Task {
    pub key: Key,
    pub header: JobHeader,
    /// Checked against the model's program.
    pub tokens: Vec<u32>,
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

    /// Lets [`Queue::next_batch`] return `None`.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for work: the first task, and the later ones of its model up to `budget` tokens in all.
    pub fn next_batch(&self, budget: usize) -> Option<Vec<Task>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|task| !task.is_cancelled());
            if !state.waiting.is_empty() {
                return Some(take_batch(&mut state.waiting, budget));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_batch(waiting: &mut VecDeque<Task>, budget: usize) -> Vec<Task> {
    let mut batch: Vec<Task> = waiting.pop_front().into_iter().collect();
    let mut tokens = batch.iter().map(|task| task.tokens.len()).sum::<usize>();
    let mut index = 0;
    while let Some(task) = waiting.get(index) {
        // A package that was pulled again is another one under the same id.
        let fits = Arc::ptr_eq(&task.model, &batch[0].model) && tokens + task.tokens.len() <= budget;
        if !fits {
            index += 1;
            continue;
        }
        tokens += task.tokens.len();
        batch.extend(waiting.remove(index));
    }
    batch
}
