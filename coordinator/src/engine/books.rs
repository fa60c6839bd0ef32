//! The ledger as others may see it: without what would tell who runs a job that has not ended.

use std::collections::VecDeque;

use lockstep_protocol::ids::JobId;
use lockstep_protocol::ledger::{Ledger, Posting, Purpose};

/// The durable postings in order: those that are public, as a ledger, and those after the first one about a job that has
/// not ended. A worker that saw who else holds a bond for its job would learn that it is being audited, or audits.
#[derive(Debug, Default)]
pub struct Books {
    public: Ledger,
    waiting: VecDeque<Posting>,
}

impl Books {
    /// What all postings so far make.
    pub fn public(&self) -> &Ledger {
        &self.public
    }

    /// Takes a durable posting, which waits for [`Books::publish`].
    pub fn take(&mut self, posting: Posting) {
        self.waiting.push_back(posting);
    }

    /// Publishes what may be: all before the first posting about a job that has not ended.
    pub fn publish(&mut self, is_open: impl Fn(&JobId) -> bool) {
        let may_go = |posting: &Posting| match posting.purpose() {
            Some(Purpose::Lease { job, .. }) => !is_open(job),
            Some(Purpose::Admission {} | Purpose::Dispute { .. }) | None => true,
        };
        while let Some(posting) = self.waiting.pop_front_if(|posting| may_go(posting)) {
            if let Err(error) = self.public.post(&posting) {
                // The machine's own ledger took the same postings in the same order.
                tracing::error!(%error, "a posting that was made can't be shown");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::ids::{LeaseEpoch, NodeId};

    use super::*;

    #[test]
    fn who_runs_a_job_is_shown_once_it_has_ended() {
        let (worker, auditor) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let (job, other) = (JobId::from_bytes([3; 32]), JobId::from_bytes([4; 32]));
        let hold = |from, job, epoch| {
            let purpose = Purpose::Lease { job, epoch: LeaseEpoch(epoch) };
            Posting::Hold { from, purpose, amount: 1 }
        };
        let mut books = Books::default();
        for to in [worker, auditor] {
            books.take(Posting::Issue { to, amount: 10 });
        }
        for posting in [hold(worker, other, 1), hold(worker, job, 2), hold(auditor, other, 3)] {
            books.take(posting);
        }
        books.publish(|open| *open == job);
        assert_eq!((books.public().postings(), books.public().free(&worker)), (3, 9));
        books.publish(|_| false);
        assert_eq!((books.public().postings(), books.public().free(&auditor)), (5, 9));
    }
}
