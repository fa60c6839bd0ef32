//! Challenges: anybody with a receipt of its own and a stake may dispute a run, until the window closes.
//!
//! A challenge is played beside everything else, one of a run at a time and a few against one key. Its verdict refutes
//! the losers and confirms nothing: that a challenger lost says nothing about the run, and others may then challenge it.
//! Where the run falls to something else meanwhile, the challenge ends without effect. The challenger's stake is worth at least what the
//! defence costs; as much is held of the claimant where it has it.

use thiserror::Error;

use super::{Action, Machine, Output, Record};
use crate::dispute::{Claim, Reason, Side, Terms, TermsError, Verdict};
use crate::ids::{DisputeId, JobId, LeaseEpoch, Millis, NodeId, VerdictKind};
use crate::job::JobHeader;
use crate::ledger::{Award, Posting, Purpose, price_of_work};
use crate::limits::{CHALLENGE_WINDOW_MS, MAX_CHALLENGES, MAX_CHALLENGES_PER_CLAIMANT, MAX_CHALLENGES_PER_JOB};
use crate::machine::disputes::dispute_work;
use crate::machine::standing::Run;
use crate::receipt::{Refutation, SignedReceipt};

/// A run that somebody disputes who has no lease of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The job.
    pub job: JobHeader,
    /// Transformer layers of its model.
    pub layers: u16,
    /// Multiply-accumulates of one run.
    pub work_units: u64,
    /// When the job ended, on the machine's clock; `None` while it has not.
    pub ended: Option<Millis>,
    /// The run that is challenged, as it was accepted.
    pub claimant: SignedReceipt,
    /// The run of the challenger, signed with [`LeaseEpoch::CHALLENGE`].
    pub challenger: SignedReceipt,
}

/// Why a challenge is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChallengeError {
    /// The receipts are no dispute.
    #[error("{0}")]
    Terms(#[from] TermsError),
    /// The challenger's run was not made to challenge: nobody plays without having agreed to it.
    #[error("the challenger's run is not signed for a challenge: its lease epoch has to be {}", u64::MAX)]
    Consent,
    /// The challenger was found wrong before, or took a run back a short while ago.
    #[error("the challenger's key is barred")]
    Barred,
    /// The run was refuted or taken back already, or is none of the job.
    #[error("there is no such run that stands")]
    NoSuchRun,
    /// The window is over.
    #[error("the job ended too long ago")]
    TooLate,
    /// The challenger plays against this run already.
    #[error("this challenge is being played")]
    Again,
    /// Somebody else plays against this run.
    #[error("another challenge of this run is being played: try again when it has ended")]
    Contested,
    /// The key that is challenged plays as many challenges as one key has to.
    #[error("the challenged key plays {MAX_CHALLENGES_PER_CLAIMANT} challenges already: try again later")]
    Beset,
    /// As many challenges are played as are allowed, of this job or in all.
    #[error("too many challenges are being played: try again later")]
    Busy,
    /// The challenger has not the credits for its stake.
    #[error("a challenge takes {needed} free credits")]
    Stake {
        /// How many.
        needed: u64,
    },
}

impl Machine {
    /// Opens the dispute of a challenge, or says why not.
    pub(super) fn challenge(&mut self, challenge: &Challenge, out: &mut Output) {
        let (job, node) = (challenge.job.id(), challenge.challenger.receipt.worker);
        let stake = price_of_work(dispute_work(challenge.work_units, challenge.layers));
        let terms = match self.check_challenge(challenge, job, stake) {
            Ok(terms) => Box::new(terms),
            Err(reason) => {
                out.actions.push(Action::RefuseChallenge { job, node, reason });
                return;
            }
        };
        let claimant = terms.claimant.worker();
        let purpose = Purpose::Dispute { dispute: terms.id() };
        self.record(Record::Challenged { job, terms: terms.clone() }, out);
        self.post(Posting::Hold { from: node, purpose, amount: stake }, out);
        let amount = stake.min(self.ledger.free(&claimant));
        self.post(Posting::Hold { from: claimant, purpose, amount }, out);
        out.actions.push(Action::OpenDispute { job, terms });
    }

    fn check_challenge(&self, challenge: &Challenge, job: JobId, stake: u64) -> Result<Terms, ChallengeError> {
        let Challenge { job: header, layers, work_units, .. } = challenge;
        let [a, b] = [&challenge.claimant, &challenge.challenger].map(|signed| signed.receipt.worker);
        let budgets = [a, b].map(|worker| self.budget_ms(*work_units, *layers, &worker));
        let claims = [&challenge.claimant, &challenge.challenger].map(|signed| Claim::Receipt(signed.clone()));
        let [claimant, challenger] = claims;
        let terms = Terms::between(self.config.coordinator, header.clone(), *layers, claimant, challenger, budgets)?;
        let of_job = || self.challenges.values().filter(|(of, _)| *of == job);
        let of_run = || self.challenges_of((job, challenge.claimant.receipt.epoch));
        let against = self.challenges.values().filter(|(_, terms)| terms.claimant.worker() == a).count();
        let epoch = challenge.challenger.receipt.epoch;
        let checks = [
            (epoch == LeaseEpoch::CHALLENGE, ChallengeError::Consent),
            (!self.quarantined.contains(&b) && !self.is_set_aside(&b), ChallengeError::Barred),
            (self.may_be_challenged(job, challenge), ChallengeError::NoSuchRun),
            (self.is_in_window(job, challenge.ended), ChallengeError::TooLate),
            (!of_run().any(|(_, terms)| terms.challenger.worker() == b), ChallengeError::Again),
            (of_run().next().is_none(), ChallengeError::Contested),
            (against < MAX_CHALLENGES_PER_CLAIMANT, ChallengeError::Beset),
            (self.challenges.len() < MAX_CHALLENGES && of_job().count() < MAX_CHALLENGES_PER_JOB, ChallengeError::Busy),
            (self.ledger.free(&b) >= stake, ChallengeError::Stake { needed: stake }),
        ];
        checks.into_iter().find(|(fits, _)| !fits).map_or(Ok(terms), |(_, error)| Err(error))
    }

    /// The challenges of one run that are being played: one at most.
    fn challenges_of(&self, run: (JobId, LeaseEpoch)) -> impl Iterator<Item = (&DisputeId, &Terms)> {
        let is_of = move |job: &JobId, terms: &Terms| (*job, terms.claimant.epoch()) == run;
        self.challenges.iter().filter(move |(_, (job, terms))| is_of(job, terms)).map(|(id, (_, terms))| (id, terms))
    }

    /// Whether the run stands. Of an ended job the caller knows its runs, but for those that fell after its end. A worker that was found wrong elsewhere answers
    /// for its other runs all the same: or one lie that is found out would make the others final.
    fn may_be_challenged(&self, job: JobId, challenge: &Challenge) -> bool {
        let is_it = |run: &Run| run.receipt() == &challenge.claimant.receipt;
        let run = (job, challenge.claimant.receipt.epoch);
        !self.overturned.contains(&run) && self.jobs.get(&job).is_none_or(|entry| entry.standing().any(is_it))
    }

    fn is_in_window(&self, job: JobId, ended: Option<Millis>) -> bool {
        self.jobs.contains_key(&job) || ended.is_some_and(|at| self.now.since(at) <= CHALLENGE_WINDOW_MS)
    }

    /// Ends a challenge; `false` where the dispute is none.
    pub(super) fn challenge_judged(&mut self, dispute: DisputeId, verdict: &Verdict, out: &mut Output) -> bool {
        let Some((job, terms)) = self.challenges.get(&dispute).cloned() else {
            return false;
        };
        let upheld = verdict.losers[Side::Claimant.index()];
        self.record(Record::ChallengeEnded { job, dispute, upheld }, out);
        let purpose = Purpose::Dispute { dispute };
        for side in Side::BOTH {
            let (node, opponent) = (terms.key(side), terms.key(side.other()));
            if !verdict.losers[side.index()] {
                self.post(Posting::Release { node, purpose }, out);
                continue;
            }
            let opponent = Some(opponent).filter(|_| !verdict.losers[side.other().index()]);
            let amount = self.ledger.held(&node, &purpose).unwrap_or_default();
            let awards = opponent.map(|to| Award { to, amount }).into_iter().collect();
            self.post(Posting::Forfeit { node, purpose, awards }, out);
        }
        if upheld {
            self.overturn(job, &terms, dispute, verdict, out);
        }
        for side in Side::BOTH.into_iter().filter(|side| verdict.losers[side.index()]) {
            self.dismiss(terms.key(side), job, verdict, out);
        }
        true
    }

    /// Ends the challenge of a run that fell to something else: both sides have their stakes back. Whoever played it
    /// could not have known.
    pub(super) fn end_challenge_of(&mut self, run: (JobId, LeaseEpoch), out: &mut Output) {
        let open: Vec<_> = self.challenges_of(run).map(|(id, terms)| (*id, terms.clone())).collect();
        for (dispute, terms) in open {
            self.record(Record::ChallengeEnded { job: run.0, dispute, upheld: false }, out);
            for node in Side::BOTH.map(|side| terms.key(side)) {
                self.post(Posting::Release { node, purpose: Purpose::Dispute { dispute } }, out);
            }
        }
    }

    /// A loser gets nothing any more, or for a while: where it conceded and may, and where it was only silent. A machine
    /// that is off is no lie; what was staked on the run is lost all the same.
    pub(super) fn dismiss(&mut self, node: NodeId, job: JobId, verdict: &Verdict, out: &mut Output) {
        let is_silent = verdict.kind == VerdictKind::Timeout;
        if is_silent || (verdict.reason == Reason::Conceded && self.may_retract(&node)) {
            self.set_aside(node, job, out);
        } else {
            self.quarantine(node, job, verdict.place, verdict.kind, out);
        }
    }

    /// Takes a run that was challenged with success out of its job, or reports it where the job has ended.
    fn overturn(&mut self, job: JobId, terms: &Terms, dispute: DisputeId, verdict: &Verdict, out: &mut Output) {
        let (epoch, worker) = (terms.claimant.epoch(), terms.claimant.worker());
        let (place, kind) = (verdict.place, verdict.kind);
        if self.stands((job, epoch)) {
            let stage = self.jobs[&job].stage;
            self.record(Record::Refuted { job, epoch, dispute, kind, place }, out);
            self.forfeit(worker, (job, epoch), None, out);
            self.run_fell(job, stage, out);
        } else if let (false, Claim::Receipt(signed)) = (self.jobs.contains_key(&job), &terms.claimant) {
            let refutation = Refutation { worker, receipt: signed.receipt.digest(), place, dispute, kind };
            out.actions.push(Action::Overturned { job, refutation });
        }
    }

    /// After a restart: asks again for the disputes of all challenges.
    pub(super) fn resume_challenges(&self, out: &mut Output) {
        let open = |(job, terms): &(JobId, Terms)| Action::OpenDispute { job: *job, terms: Box::new(terms.clone()) };
        out.actions.extend(self.challenges.values().map(open));
    }
}
