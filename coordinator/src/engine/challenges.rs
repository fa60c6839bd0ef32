//! Challenges: disputes about runs of jobs, by keys that have no lease of them.

use lockstep_protocol::ids::{Digest, DisputeId, JobId};
use lockstep_protocol::machine::{Action, Challenge, Input};
use lockstep_protocol::receipt::{Receipt, Refutation, StatementKind};
use tokio::sync::oneshot;

use super::Engine;
use super::effects::{Effect, Step};
use crate::events::Event;
use crate::store::{Stored, Write};

/// How a challenge went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChallengeOutcome {
    /// It is being played: the dispute.
    Opened(DisputeId),
    /// It is taken in, and its dispute is opened when its turn comes: as many are being played as may be.
    Waits(DisputeId),
    /// It is not allowed.
    Refused(String),
}

/// Who waits to hear how a challenge went.
pub type ChallengeReply = oneshot::Sender<ChallengeOutcome>;

impl Engine {
    /// Somebody disputes a run of a job that has ended.
    pub(super) fn challenge(&mut self, challenge: Challenge, reply: ChallengeReply, step: &mut Step) {
        let run = challenge.claimant.receipt().map(|signed| signed.receipt.digest());
        let falls = |receipt: &Receipt| run.is_some_and(|run| falls(receipt, &run));
        if self.receipt(challenge.job.id()).is_ok_and(|receipt| falls(&receipt)) {
            let outcome = ChallengeOutcome::Refused("the run was refuted or taken back already".to_owned());
            return step.effects.push(Effect::Challenged(reply, outcome));
        }
        let now = self.clock.now();
        let output = self.machine.handle(now, Input::Challenge(Box::new(challenge)));
        let outcome = output.actions.iter().find_map(|action| match action {
            Action::OpenDispute { terms, .. } => Some(ChallengeOutcome::Opened(terms.id())),
            Action::ChallengeWaits { dispute, .. } => Some(ChallengeOutcome::Waits(*dispute)),
            Action::RefuseChallenge { reason, .. } => Some(ChallengeOutcome::Refused(reason.to_string())),
            _ => None,
        });
        self.plan(output, None, step);
        let outcome = outcome.map(|outcome| match outcome {
            ChallengeOutcome::Opened(dispute) if !self.disputes.is_under_way(&dispute) => {
                ChallengeOutcome::Refused("the dispute can't be played, or was".to_owned())
            }
            outcome => outcome,
        });
        step.effects.extend(outcome.map(|outcome| Effect::Challenged(reply, outcome)));
    }

    /// The receipt of an ended job, with what is on its way to the disk.
    fn receipt(&self, job: JobId) -> Result<Receipt, String> {
        if let Some((_, receipt)) = self.amended.get(&job) {
            return Ok(receipt.clone());
        }
        match self.store.job(&job) {
            Ok(Some(Stored::Done(json))) => Receipt::from_json(&json).map_err(|error| error.to_string()),
            Ok(_) => Err("it is not in the store".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A change of a receipt is durable.
    pub(super) fn amended_is_kept(&mut self, job: JobId) {
        if let Some((pending, _)) = self.amended.get_mut(&job) {
            *pending -= 1;
            if *pending == 0 {
                self.amended.remove(&job);
            }
        }
    }

    /// A run of a job that has ended lost a challenge: its receipt says so from now on. A run falls once: where two
    /// challenges of it are played at the same time, the first verdict does it.
    pub(super) fn overturn(&mut self, job: JobId, refutation: &Refutation, step: &mut Step) {
        let mut receipt = match self.receipt(job) {
            Ok(receipt) => receipt,
            Err(error) => return tracing::error!(%job, error, "a receipt can't be amended"),
        };
        if falls(&receipt, &refutation.receipt) {
            return;
        }
        receipt.add_refutation(refutation, &self.keys, self.clock.now());
        if let Some(signed) = receipt.statements.last() {
            step.writes.push(Write::Stated { job, statement: signed.statement.digest() });
        }
        step.writes.push(Write::Amended { job, receipt: receipt.to_json() });
        step.effects.push(Effect::Amended(job));
        step.effects.push(Effect::Emit(Event::Overturned { job, node: refutation.worker }));
        let pending = self.amended.get(&job).map_or(0, |(pending, _)| *pending);
        self.amended.insert(job, (pending + 1, receipt));
    }
}

/// Whether a run was refuted or taken back, as its receipt says.
fn falls(receipt: &Receipt, run: &Digest) -> bool {
    receipt.statements.iter().any(|signed| match &signed.statement.kind {
        StatementKind::Refuted { receipt, .. } | StatementKind::Withdrawn { receipt } => receipt == run,
        StatementKind::Accepted {} | StatementKind::Audited { .. } => false,
    })
}
