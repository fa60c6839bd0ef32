//! Tests of this machine while it works, and the runs that hang on them.
//!
//! A worker tests itself from time to time, and before it plays a dispute about one of its runs: the packages in use are
//! hashed again, and the backend gives the known answers once more. A damaged package is pulled again, and a run that was
//! made from it is conceded where its dispute shows that. A backend that gives a wrong answer is used for nothing any more,
//! not even to look again: the worker takes back every run that it signed since the last good test, before anybody finds it
//! wrong, and ends. One that gives none, because its device is lost, is left too, but nothing is taken back for that. A device
//! that fails in a job is tested at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_kernels::backend::Backend;
use lockstep_protocol::limits::WORKER_UNPROVEN_RUNS;
use tokio::sync::mpsc::UnboundedSender;

use crate::batch::Key;
use crate::error::WorkerError;
use crate::event::{Event, Events};
use crate::preflight;
use crate::store::{Store, blocking};

/// Tests this machine, one test at a time.
pub(crate) struct SelfTest {
    backend: Arc<dyn Backend>,
    events: Events,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    /// When the last good test began.
    good: Instant,
    /// Runs that were signed since, the newest last.
    unproven: VecDeque<(Key, Instant)>,
}

impl std::fmt::Debug for SelfTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfTest").finish_non_exhaustive()
    }
}

impl SelfTest {
    /// Of a backend that has just passed.
    pub fn new(backend: Arc<dyn Backend>, events: Events) -> Self {
        let state = State { good: Instant::now(), unproven: VecDeque::new() };
        Self { backend, events, turn: tokio::sync::Mutex::default(), state: Mutex::new(state) }
    }

    /// How long until a test is due that is to be made so often.
    pub fn due_in(&self, period: Duration) -> Duration {
        period.saturating_sub(self.state().good.elapsed())
    }

    /// Remembers a run that was signed just now. Of too many, the oldest is forgotten.
    pub fn signed(&self, key: Key) {
        let unproven = &mut self.state().unproven;
        unproven.push_back((key, Instant::now()));
        if unproven.len() > WORKER_UNPROVEN_RUNS {
            unproven.pop_front();
        }
    }

    /// Tests the machine, unless a test that began after this call has passed meanwhile. Returns whether it is exact; where it
    /// is not, or does not work, `alarm` has the reason before anybody else hears of it.
    pub async fn test(&self, store: &Store, alarm: &UnboundedSender<WorkerError>) -> bool {
        let asked = Instant::now();
        let _turn = self.turn.lock().await;
        if self.state().good >= asked {
            return true;
        }
        let began = Instant::now();
        let damaged = store.check_all().await;
        let (backend, events) = (Arc::clone(&self.backend), self.events.clone());
        let answers = blocking(move || preflight::answers(&*backend, &events)).await;
        let answers = answers.unwrap_or_else(|failure| Err(WorkerError::Internal(failure.reason)));
        let failed = match answers {
            Ok(()) => {
                let mut state = self.state();
                state.good = began;
                state.unproven.retain(|(_, at)| *at >= began);
                self.events.emit(Event::SelfTested { damaged });
                return true;
            }
            Err(error) => error,
        };
        let reason = failed.to_string();
        let event = match failed {
            WorkerError::Backend(_) => Event::DeviceLost { backend: self.backend.name(), reason },
            _ => Event::SelfTestFailed { reason },
        };
        // A session that is over is followed by another, or by the end.
        let _ = alarm.send(failed);
        self.events.emit(event);
        false
    }

    /// Takes the runs that were signed since the last good test off the list.
    pub fn take_unproven(&self) -> Vec<Key> {
        self.state().unproven.drain(..).map(|(key, _)| key).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
