//! What workers stream of their runs: roots, and of a generation words, in batches of whatever has come.

use super::{Action, Input, Machine, Output, RejectReason};
use crate::ids::{JobId, LeaseEpoch, NodeId, Place, Root};
use crate::machine::entry::Entry;
use crate::machine::runs::Assignment;

impl Input {
    /// One more root of a run.
    pub fn root((node, job, epoch): (NodeId, JobId, LeaseEpoch), place: Place, root: Root) -> Self {
        Self::Streamed { node, job, epoch, said: vec![Streamed::Root(place, root)] }
    }

    /// One more word of a run, without log-probabilities.
    pub fn word((node, job, epoch): (NodeId, JobId, LeaseEpoch), word: u32) -> Self {
        Self::Streamed { node, job, epoch, said: vec![Streamed::Word(word, Vec::new())] }
    }
}

/// What a worker streams of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// The root of a layer.
    Root(Place, Root),
    /// The word of a point, directly before the root of the output layer there, and the log-probabilities that the job
    /// asks for.
    Word(u32, Vec<i32>),
}

/// A root that was taken into a live run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedRoot {
    /// Where.
    pub place: Place,
    /// The root.
    pub root: Root,
    /// Whether an earlier run of the job has another root there.
    pub differs: bool,
}

/// A root that was taken into the run of a lease.
pub(super) struct Taken {
    /// Its place in the stream.
    pub index: usize,
    /// Whether an earlier run of the job has another root there.
    pub differs: bool,
    /// A lease beside this one that has another root there, where the job is run in lockstep.
    pub opponent: Option<LeaseEpoch>,
    /// The word of the point that it completes.
    pub word: Option<u32>,
}

impl Entry {
    /// Takes the next root into the run of a live lease.
    pub fn take_root(&mut self, epoch: LeaseEpoch, place: Place, root: Root) -> Result<Taken, RejectReason> {
        let lease = &self.leases[&epoch];
        self.check_root(lease, place, &root)?;
        let index = lease.roots.len();
        let (differs, opponent) = (self.differs_at(index, &root), self.opponent_of(epoch, index, &root));
        let is_output = place.layer == self.geometry.streamed_layers();
        let lease = self.leases.get_mut(&epoch).expect("it is live");
        lease.roots.push(root);
        let word = lease.words.last().copied().filter(|_| is_output);
        Ok(Taken { index, differs, opponent, word })
    }
}

impl Output {
    /// Notes a root that was taken, with those before it where nothing happened in between.
    fn committed(&mut self, (node, job, epoch): Assignment, root: CommittedRoot) {
        match self.actions.last_mut() {
            Some(Action::Committed { node: n, job: j, epoch: e, roots }) if (*n, *j, *e) == (node, job, epoch) => {
                roots.push(root);
            }
            _ => self.actions.push(Action::Committed { node, job, epoch, roots: vec![root] }),
        }
    }
}

impl Machine {
    /// What a worker streams: taken one after the other, until something breaks the rules or stops the run.
    pub(super) fn streamed(&mut self, assignment: Assignment, said: Vec<Streamed>, out: &mut Output) {
        let (_, job, epoch) = assignment;
        let Some(lease) = self.lease(assignment, out) else {
            return;
        };
        let is_shared = !lease.crew.is_empty();
        if self.jobs[&job].is_halted(epoch) {
            // It was on its way when the worker was told to halt.
            return;
        }
        let mut has_roots = false;
        for said in said {
            has_roots |= matches!(said, Streamed::Root(..));
            let goes_on = match said {
                Streamed::Root(place, root) if is_shared => self.stage_root(assignment, place, root, out),
                Streamed::Root(place, root) => self.take_root(assignment, place, root, out),
                Streamed::Word(word, logprobs) if is_shared => self.stage_word(assignment, (word, logprobs), out),
                Streamed::Word(word, logprobs) => self.take_word(assignment, (word, logprobs), out),
            };
            if !goes_on {
                return;
            }
        }
        if has_roots {
            self.extend(job, epoch);
        }
    }

    /// Takes the next root into a run. Says whether it goes on: not where the root breaks the rules, or stops it.
    pub(super) fn take_root(&mut self, assignment: Assignment, place: Place, root: Root, out: &mut Output) -> bool {
        let (node, job, epoch) = assignment;
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        let taken = match entry.take_root(epoch, place, root) {
            Ok(taken) => taken,
            Err(reason) => {
                self.reject(assignment, reason, out);
                return false;
            }
        };
        out.committed((node, job, epoch), CommittedRoot { place, root, differs: taken.differs });
        if let Some(other) = taken.opponent {
            self.diverge(job, [epoch.min(other), epoch.max(other)], taken.index, out);
            return false;
        }
        if let Some(word) = taken.word {
            self.point_ended(assignment, word, out);
        }
        true
    }
}
