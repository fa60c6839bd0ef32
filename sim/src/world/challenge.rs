//! What comes after the end of a job: everybody looks at its answer, and may challenge it.

use lockstep_protocol::dispute::Claim;
use lockstep_protocol::ids::{JobId, Millis, Root};
use lockstep_protocol::logprobs::{ShownRow, first_difference};
use lockstep_protocol::machine::{self, Challenge, ChallengeError, Input};
use lockstep_protocol::receipt::SignedReceipt;

use super::cast::Role;
use super::coordinator::Task;
use super::{Broken, CONNECT_MS, Event, Held, SHAM_MS, TURNED_AWAY_MS, World};
use crate::adversary::Adversary;

/// The run that a job ended with, as everybody can look at it.
#[derive(Clone)]
pub struct Answer {
    /// What its worker signed.
    pub receipt: SignedReceipt,
    /// All its roots.
    pub roots: Vec<Root>,
    /// What it put out.
    pub output: Vec<i32>,
    /// When the job ended.
    pub ended: Millis,
}

impl World {
    /// Remembers what a job ended with; everybody may look at it, and challenge it.
    pub(super) fn note_end(&mut self, end: &machine::Action) {
        let (job, outcome) = match end {
            machine::Action::JobDone { job, outcome } => (job, outcome),
            machine::Action::Overturned { job, .. } => {
                self.answers.remove(job);
                return;
            }
            _ => return,
        };
        let result = &outcome.result;
        let (receipt, roots, output) = (result.receipt.clone(), outcome.roots.clone(), result.output.clone());
        self.answers.insert(*job, Answer { receipt, roots, output, ended: self.now });
        for party in 0..self.parties.len() {
            self.challenges += 1;
            // Shams come first, or they would be of no use.
            let is_sham = self.parties[party].role == Role::Cheat(Adversary::ShamChain);
            let after = if is_sham { 1 } else { self.random.within(100..=20_000) };
            self.after(after, Event::Challenge(party, *job));
        }
    }

    /// Whether a party contradicts the answer of a job.
    pub(super) fn wants_to_challenge(&mut self, party: usize, job: JobId) -> bool {
        let Some(Answer { receipt, roots, output, .. }) = self.answers.get(&job) else {
            return false;
        };
        let (role, id) = (self.parties[party].role, self.parties[party].id());
        let own = &self.parties[party].claimed(job, &self.jobs).run;
        let differs = own.roots != *roots || own.output != *output;
        let likes_to = match role {
            Role::Honest => true,
            // Whoever finds that its own machine errs has no quarrel with others.
            Role::Faulty => !self.parties[party].is_spoilt(job),
            Role::Cheat(Adversary::ShamChain) => {
                self.parties.iter().any(|party| party.role == role && party.id() == receipt.receipt.worker)
            }
            Role::Cheat(
                Adversary::FalseChallenger
                | Adversary::Flood
                | Adversary::Whitewasher
                | Adversary::Copier
                | Adversary::Twin,
            ) => self.random.per_mille(700),
            Role::Cheat(_) => self.random.per_mille(50),
        };
        differs && likes_to && !receipt.has_member(&id)
    }

    /// A party challenges the answer of a job, if it wants to. It does so over HTTP, again and again until it is heard.
    pub(super) fn challenge(&mut self, party: usize, job: JobId) -> Held {
        if self.coordinator.is_none() {
            self.after(CONNECT_MS, Event::Challenge(party, job));
            return Ok(());
        }
        self.challenges -= 1;
        if !self.wants_to_challenge(party, job) {
            return Ok(());
        }
        if self.parties[party].role.is_honest() {
            self.check.contests(job, self.now);
        }
        if let Some(coordinator) = &self.coordinator
            && !(self.direction.hears)(coordinator, &job)
        {
            self.challenge_again(party, job);
            return Ok(());
        }
        let Some(challenge) = self.challenge_of(party, job) else {
            return Ok(());
        };
        self.take(vec![Task::Machine(Input::Challenge(Box::new(challenge)))])?;
        if self.coordinator.is_none() {
            // It may have been heard, and is refused the second time then.
            self.challenges += 1;
            self.after(CONNECT_MS, Event::Challenge(party, job));
        }
        Ok(())
    }

    /// The challenge of a party; none where it has a run that nobody can sign.
    fn challenge_of(&mut self, party: usize, job: JobId) -> Option<Challenge> {
        let signed = self.parties[party].receipt(job, &self.jobs)?;
        let own = self.parties[party].claimed(job, &self.jobs).clone();
        let (answer, of) = (&self.answers[&job], self.jobs.get(&job));
        let claim = |signed: &SignedReceipt, words| Claim { words, ..signed.clone().into() };
        let (words, logprobs) = of.case.split_output(&answer.output);
        let mut claimant = claim(&answer.receipt, words);
        let mut challenger = claim(&signed, own.words(of.case));
        let of_roots = claimant.first_difference(&challenger);
        let point = match (of_roots, of.case.job.kind.generation()) {
            (Some(point), _) => point,
            (None, Some(asked)) => {
                let own = own.logprobs(of.case);
                let point = first_difference(logprobs, own, asked)?;
                claimant.logprobs = ShownRow::of(logprobs, asked, point);
                challenger.logprobs = ShownRow::of(own, asked, point);
                point
            }
            (None, None) => return None,
        };
        let at =
            |roots: &[Root], point: usize| roots.chunks(usize::from(of.spec.layers) + 1).nth(point).map(<[_]>::to_vec);
        for (claim, roots) in [(&mut claimant, &answer.roots), (&mut challenger, &own.run.roots)] {
            if point < claim.points().len() {
                claim.at = at(roots, point)?;
            }
        }
        Some(Challenge {
            job: of.spec.job.header(),
            layers: of.spec.layers,
            work_units: answer.receipt.receipt.work_units,
            ended: Some(answer.ended),
            before: of_roots
                .and_then(|point| point.checked_sub(1))
                .and_then(|before| at(&answer.roots, before))
                .unwrap_or_default(),
            claimant,
            challenger,
        })
    }

    /// A challenge is refused: somebody honest comes again where there is too much to do, and has no other reason to be
    /// turned away than that somebody else was faster.
    pub(super) fn refused(&mut self, action: machine::Action) -> Held {
        if let machine::Action::Unposted { posting, error } = &action {
            return Err(Broken::new(format!("the ledger refuses {posting:?}: {error}")));
        }
        let machine::Action::RefuseChallenge { job, node, reason } = action else {
            return Ok(());
        };
        let insists = |role: Role| role.is_honest() || role == Role::Cheat(Adversary::ShamChain);
        let Some(party) = self.parties.iter().position(|party| party.id() == node && insists(party.role)) else {
            return Ok(());
        };
        match reason {
            ChallengeError::NoSuchRun | ChallengeError::Again => Ok(()),
            // Whoever has not joined yet has no credits yet.
            ChallengeError::Busy | ChallengeError::Stake { .. } => {
                self.challenge_again(party, job);
                Ok(())
            }
            _ if !self.parties[party].role.is_honest() => Ok(()),
            _ => Err(Broken::new(format!("the challenge of somebody honest is refused: {reason}"))),
        }
    }

    /// A party comes again with its challenge; who is honest is in no hurry.
    fn challenge_again(&mut self, party: usize, job: JobId) {
        self.challenges += 1;
        let pause = if self.parties[party].role.is_honest() { TURNED_AWAY_MS } else { SHAM_MS };
        self.after(pause, Event::Challenge(party, job));
    }
}
