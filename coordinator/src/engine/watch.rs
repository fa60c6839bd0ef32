//! Watching a job: its words as they come, and its end.

use lockstep_protocol::ids::JobId;
use lockstep_protocol::limits::MAX_POINTS;
use lockstep_protocol::machine::Input;
use tokio::sync::{mpsc, oneshot};

use super::effects::Step;
use super::{Engine, JobEnd, Live};

/// What a watcher may leave unread: every word twice, and the end. Who leaves more is forgotten.
const WATCH_LAG: usize = 2 * MAX_POINTS + 1;

/// A word with the log-probabilities that its job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The token, and in the bits above why the run ended with it.
    pub word: u32,
    /// One row, as [`lockstep_protocol::logprobs`] has it, or nothing.
    pub logprobs: Vec<i32>,
}

/// What a watcher of a job is told.
#[derive(Clone, Debug)]
pub enum Progress {
    /// A word was generated. It is not audited, and the job has not ended. One with an index that was told before takes the
    /// place of that word and of all after it: another worker ran the job anew, and came to something else.
    Word {
        /// Which, counted from 0; never more than how many were told before.
        index: u32,
        /// What was drawn.
        word: Word,
    },
    /// The job has ended, or is waited for no more. Nothing comes after this. Its answer counts, whatever words were told before.
    Ended(JobEnd),
}

/// What comes to a watcher. It ends without [`Progress::Ended`] where the coordinator stops, or the watcher read too
/// little for too long.
pub type Watch = mpsc::Receiver<Progress>;

/// Who waits for a watch; it gets none where there is no such job, or no more.
pub type WatchReply = oneshot::Sender<Option<Watch>>;

impl Live {
    /// A new watcher; what was told so far comes first.
    fn watch(&mut self) -> Watch {
        self.watchers.retain(|watcher| !watcher.is_closed());
        let (sender, watch) = mpsc::channel(WATCH_LAG);
        for (index, word) in (0..).zip(&self.words) {
            // It has room for all of them.
            let _ = sender.try_send(Progress::Word { index, word: word.clone() });
        }
        self.watchers.push(sender);
        watch
    }

    /// Tells all watchers a word.
    fn tell(&mut self, index: u32, word: Word) {
        self.words.truncate(index as usize);
        self.words.push(word.clone());
        let told = |watcher: &mpsc::Sender<_>| watcher.try_send(Progress::Word { index, word: word.clone() }).is_ok();
        self.watchers.retain(told);
    }

    /// Tells all who wait that the job has ended; those that went away are passed over.
    pub(super) fn end(mut self, end: &JobEnd) {
        self.dismiss(end);
    }

    /// Tells all who wait that nobody is there who could run the job. They wait no more.
    pub(super) fn desert(&mut self) {
        self.dismiss(&JobEnd::Deserted);
    }

    fn dismiss(&mut self, end: &JobEnd) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(end.clone());
        }
        for watcher in self.watchers.drain(..) {
            let _ = watcher.try_send(Progress::Ended(end.clone()));
        }
    }

    /// Whether anybody waits for the job's end.
    fn is_awaited(&mut self) -> bool {
        self.watchers.retain(|watcher| !watcher.is_closed());
        self.waiters.retain(|waiter| !waiter.is_closed());
        !self.watchers.is_empty() || !self.waiters.is_empty()
    }
}

impl Engine {
    pub(super) fn watch(&mut self, job: JobId, reply: WatchReply) {
        // Whoever asked may be gone; the watch is dropped with the reply then.
        let _ = reply.send(self.jobs.get_mut(&job).map(Live::watch));
    }

    pub(super) fn word(&mut self, job: JobId, index: u32, word: Word) {
        if let Some(live) = self.jobs.get_mut(&job) {
            live.tell(index, word);
        }
    }

    /// A client wants a job no more. Where others wait for it, it goes on.
    pub(super) fn cancel(&mut self, job: JobId, step: &mut Step) {
        if self.jobs.get_mut(&job).is_some_and(|live| !live.is_awaited()) {
            self.input(Input::Cancel { job }, None, step);
        }
    }
}
