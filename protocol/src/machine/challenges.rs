//! Challenges: anybody with a receipt of its own and a stake may dispute a run, until the window closes.
//!
//! A challenge is played beside everything else, also beside others of the same run, a few against one key; the next ones
//! wait for their turn, in the order in which they came. Its verdict refutes the losers and confirms nothing: that a
//! challenger lost says nothing about the run. Where the run falls to something else meanwhile, the challenge ends
//! without effect.
//!
//! # Why nobody saves a lie by challenging it
//! Half of a lost stake is burned, the other half is what the defence costs, so a liar pays for each sham challenge
//! of its own run even if both sides are its keys. Shams do not keep others out: while few are played everybody gets a turn
//! at once; who has to wait stakes twice the highest stake that is pending against the key, and so is behind few others
//! at any time. A challenge that waits is not too late any more, and the window of a run stays open while any
//! challenge of it is pending and an hour longer. So shams delay, at a cost that doubles, and never decide.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{Action, Machine, Output, Record};
use crate::dispute::{Claim, Reason, Side, Terms, TermsError, Verdict};
use crate::ids::{DisputeId, JobId, LeaseEpoch, Millis, NodeId, Root, VerdictKind};
use crate::job::JobHeader;
use crate::ledger::{Award, Posting, Purpose, price_of_work};
use crate::limits::{
    CHALLENGE_AGAIN_MS, CHALLENGE_WINDOW_MS, CHALLENGES_PER_DOUBLING, MAX_CHALLENGES, MAX_CHALLENGES_PER_CLAIMANT,
    MAX_PLAYED_CHALLENGES,
};
use crate::machine::disputes::dispute_work;
use crate::machine::standing::Run;
use crate::receipt::Refutation;

/// A run that somebody disputes who has no lease of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The job.
    pub job: JobHeader,
    /// Transformer layers of its model.
    pub layers: u16,
    /// Multiply-accumulates of the run that is challenged.
    pub work_units: u64,
    /// When the job ended, on the machine's clock; `None` while it has not.
    pub ended: Option<Millis>,
    /// The run that is challenged, as it was accepted, with its words and its roots at the disputed point.
    pub claimant: Claim,
    /// The run of the challenger, signed with [`LeaseEpoch::CHALLENGE`], with the same.
    pub challenger: Claim,
    /// The roots at the point before, on which both agree; none where the first point is disputed.
    pub before: Vec<Root>,
}

impl Challenge {
    /// Whether the challenger signed a whole run, to challenge with it.
    fn is_agreed_to(&self) -> bool {
        let epoch = self.challenger.receipt().map(|signed| signed.receipt.epoch);
        epoch == Some(LeaseEpoch::CHALLENGE)
    }
}

/// A challenge that is played, or waits for its turn.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// The order in which challenges came.
    pub number: u64,
    /// The job.
    pub job: JobId,
    /// The dispute.
    pub terms: Terms,
}

/// All that is known of challenges.
#[derive(Clone, Debug, Default)]
pub(super) struct Challenges {
    /// Those that are played or wait.
    pub pending: BTreeMap<DisputeId, Pending>,
    /// How many ever came.
    count: u64,
    /// Runs that lost a challenge: nobody is challenged about them again.
    overturned: BTreeSet<(JobId, LeaseEpoch)>,
    /// When a challenge of a run ended last, where that was a short while ago.
    ended: BTreeMap<(JobId, LeaseEpoch), Millis>,
}

impl Challenges {
    /// Takes a new one in.
    pub fn insert(&mut self, job: JobId, terms: Terms) {
        self.pending.insert(terms.id(), Pending { number: self.count, job, terms });
        self.count += 1;
    }

    /// One has ended; `false` where there is no such.
    pub fn remove(&mut self, dispute: &DisputeId, upheld: bool, at: Millis) -> bool {
        let Some(Pending { job, terms, .. }) = self.pending.remove(dispute) else {
            return false;
        };
        let run = (job, terms.claimant.epoch());
        if upheld {
            self.overturned.insert(run);
        }
        self.ended.retain(|_, ended| at.since(*ended) <= CHALLENGE_AGAIN_MS);
        self.ended.insert(run, at);
        true
    }

    /// Those that are played: in the order in which they came, as many as there is room for. The end of one lets others
    /// in and stops none.
    pub fn played(&self) -> BTreeSet<DisputeId> {
        let mut in_order: Vec<_> = self.pending.iter().collect();
        in_order.sort_unstable_by_key(|(_, pending)| pending.number);
        let (mut played, mut defended) = (BTreeSet::new(), BTreeMap::<NodeId, usize>::new());
        for (id, pending) in in_order {
            let defences = defended.entry(pending.terms.key(Side::Claimant)).or_default();
            if played.len() < MAX_PLAYED_CHALLENGES && *defences < MAX_CHALLENGES_PER_CLAIMANT {
                *defences += 1;
                played.insert(*id);
            }
        }
        played
    }

    fn of_run(&self, run: (JobId, LeaseEpoch)) -> impl Iterator<Item = (&DisputeId, &Pending)> {
        self.pending.iter().filter(move |(_, pending)| (pending.job, pending.terms.claimant.epoch()) == run)
    }
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
    /// The challenger plays against this run already, or waits to.
    #[error("this challenge is pending")]
    Again,
    /// As many challenges are pending as are allowed.
    #[error("too many challenges are pending: try again later")]
    Busy,
    /// The challenger has not the credits for its stake.
    #[error("a challenge takes {needed} free credits")]
    Stake {
        /// How many.
        needed: u64,
    },
}

impl Machine {
    /// The challenges that are played or wait for their turn: which jobs they are about, and who disputes what.
    pub fn pending_challenges(&self) -> impl Iterator<Item = (&JobId, &Terms)> {
        self.challenges.pending.values().map(|pending| (&pending.job, &pending.terms))
    }

    /// Takes a challenge in, and opens its dispute if it does not have to wait; or says why not.
    pub(super) fn challenge(&mut self, challenge: &Challenge, out: &mut Output) {
        let (job, node) = (challenge.job.id(), challenge.challenger.worker());
        let least = 2 * price_of_work(dispute_work(challenge.work_units, challenge.layers)).min(u64::MAX / 2);
        let (terms, stake) = match self.check_challenge(challenge, job, least) {
            Ok((terms, stake)) => (Box::new(terms), stake),
            Err(reason) => {
                out.actions.push(Action::RefuseChallenge { job, node, reason });
                return;
            }
        };
        let (claimant, dispute) = (terms.key(Side::Claimant), terms.id());
        let purpose = Purpose::Dispute { dispute };
        self.record(Record::Challenged { job, terms: terms.clone() }, out);
        self.post(Posting::Hold { from: node, purpose, amount: stake }, out);
        let amount = least.min(self.ledger.free(&claimant));
        self.post(Posting::Hold { from: claimant, purpose, amount }, out);
        out.actions.push(if self.challenges.played().contains(&dispute) {
            Action::OpenDispute { job, terms }
        } else {
            Action::ChallengeWaits { job, dispute }
        });
    }

    /// The terms of a challenge that is allowed, and what the challenger has to stake.
    fn check_challenge(&self, challenge: &Challenge, job: JobId, least: u64) -> Result<(Terms, u64), ChallengeError> {
        let Challenge { job: header, layers, work_units, .. } = challenge;
        let claims = [challenge.claimant.clone(), challenge.challenger.clone()];
        let (before, coordinator) = (challenge.before.clone(), self.config.coordinator);
        let mut terms = Terms::between(coordinator, header.clone(), *layers, claims, before, [0; 2])?;
        let [a, b] = Side::BOTH.map(|side| terms.key(side));
        terms.budgets_ms = [a, b].map(|worker| self.budget_ms(*work_units, *layers, &worker));
        let run = (job, challenge.claimant.epoch());
        let mut of_run = self.challenges.of_run(run);
        let stake = self.stake(least, &a);
        let needed = stake.unwrap_or(u64::MAX);
        let checks = [
            (challenge.is_agreed_to(), ChallengeError::Consent),
            (!self.quarantined.contains(&b) && !self.is_set_aside(&b), ChallengeError::Barred),
            (self.may_be_challenged(run, challenge), ChallengeError::NoSuchRun),
            (self.is_in_window(run, challenge.ended), ChallengeError::TooLate),
            (!of_run.any(|(_, pending)| pending.terms.key(Side::Challenger) == b), ChallengeError::Again),
            (stake.is_some(), ChallengeError::Busy),
            (self.ledger.free(&b) >= needed, ChallengeError::Stake { needed }),
        ];
        checks.into_iter().find(|(fits, _)| !fits).map_or(Ok((terms, needed)), |(_, error)| Err(error))
    }

    /// What the next challenger of a key stakes: `least`, and who would have to wait twice the highest stake
    /// that is pending against the key; and, as there are more in all, ever more. `None` where there is no room.
    pub(super) fn stake(&self, least: u64, claimant: &NodeId) -> Option<u64> {
        let pending = &self.challenges.pending;
        if pending.len() >= MAX_CHALLENGES {
            return None;
        }
        let crowd = 1_u64.checked_shl((pending.len() / CHALLENGES_PER_DOUBLING) as u32)?;
        let staked = |(dispute, pending): (&DisputeId, &Pending)| {
            self.ledger.held(&pending.terms.key(Side::Challenger), &Purpose::Dispute { dispute: *dispute })
        };
        let against = || pending.iter().filter(|(_, pending)| pending.terms.key(Side::Claimant) == *claimant);
        if against().count() < MAX_CHALLENGES_PER_CLAIMANT {
            return Some(least.max(crowd));
        }
        let highest = against().filter_map(staked).max().unwrap_or_default();
        Some(least.max(crowd).max(highest.checked_mul(2)?))
    }

    /// Whether the run stands. Of an ended job the caller knows its runs, but for those that fell after its end. A worker that was found wrong elsewhere answers
    /// for its other runs all the same: or one lie that is found out would make the others final.
    fn may_be_challenged(&self, run: (JobId, LeaseEpoch), challenge: &Challenge) -> bool {
        let is_it = |run: &Run| Some(&run.result.receipt) == challenge.claimant.receipt();
        !self.challenges.overturned.contains(&run)
            && self.jobs.get(&run.0).is_none_or(|entry| entry.standing().any(is_it))
    }

    /// Whether a run may be challenged still: its window, which does not run out while somebody challenges it.
    fn is_in_window(&self, run: (JobId, LeaseEpoch), ended: Option<Millis>) -> bool {
        let is_recent = |at: Millis, window: u64| self.now.since(at) <= window;
        self.jobs.contains_key(&run.0)
            || ended.is_some_and(|at| is_recent(at, CHALLENGE_WINDOW_MS))
            || self.challenges.of_run(run).next().is_some()
            || self.challenges.ended.get(&run).is_some_and(|at| is_recent(*at, CHALLENGE_AGAIN_MS))
    }

    /// Ends a challenge; `false` where the dispute is none.
    pub(super) fn challenge_judged(&mut self, dispute: DisputeId, verdict: &Verdict, out: &mut Output) -> bool {
        let Some(Pending { job, terms, .. }) = self.challenges.pending.get(&dispute).cloned() else {
            return false;
        };
        let before = self.challenges.played();
        let upheld = verdict.losers[Side::Claimant.index()];
        self.record(Record::ChallengeEnded { job, dispute, upheld, at: self.now }, out);
        for side in Side::BOTH {
            self.settle_stake(dispute, &terms, side, verdict, out);
        }
        if upheld {
            self.release_challenges((job, terms.claimant.epoch()), out);
            self.overturn(job, &terms, dispute, verdict, out);
        }
        for side in Side::BOTH.into_iter().filter(|side| verdict.losers[side.index()]) {
            self.dismiss(terms.key(side), job, verdict, out);
        }
        self.open_next(&before, out);
        true
    }

    /// Gives a side its stake back, or takes it: half of it goes to the other side, unless that lost too, and the rest is
    /// burned.
    fn settle_stake(&mut self, dispute: DisputeId, terms: &Terms, side: Side, verdict: &Verdict, out: &mut Output) {
        let (node, opponent, purpose) = (terms.key(side), terms.key(side.other()), Purpose::Dispute { dispute });
        if !verdict.losers[side.index()] {
            return self.post(Posting::Release { node, purpose }, out);
        }
        let amount = self.ledger.held(&node, &purpose).unwrap_or_default() / 2;
        let opponent = Some(opponent).filter(|_| !verdict.losers[side.other().index()]);
        let awards = opponent.map(|to| Award { to, amount }).into_iter().collect();
        self.post(Posting::Forfeit { node, purpose, awards }, out);
    }

    /// Ends the challenges of a run that fell to something else: all have their stakes back. Whoever played
    /// could not have known.
    pub(super) fn end_challenges_of(&mut self, run: (JobId, LeaseEpoch), out: &mut Output) {
        let before = self.challenges.played();
        self.release_challenges(run, out);
        self.open_next(&before, out);
    }

    fn release_challenges(&mut self, run: (JobId, LeaseEpoch), out: &mut Output) {
        let pending: Vec<_> = self.challenges.of_run(run).map(|(id, pending)| (*id, pending.terms.clone())).collect();
        for (dispute, terms) in pending {
            self.record(Record::ChallengeEnded { job: run.0, dispute, upheld: false, at: self.now }, out);
            for node in Side::BOTH.map(|side| terms.key(side)) {
                self.post(Posting::Release { node, purpose: Purpose::Dispute { dispute } }, out);
            }
        }
    }

    /// Opens the disputes of those whose turn has come, where these were played before.
    fn open_next(&self, before: &BTreeSet<DisputeId>, out: &mut Output) {
        for dispute in self.challenges.played().difference(before) {
            let Pending { job, terms, .. } = self.challenges.pending[dispute].clone();
            out.actions.push(Action::OpenDispute { job, terms: Box::new(terms) });
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
        let (epoch, worker) = (terms.claimant.epoch(), terms.key(Side::Claimant));
        let (place, kind) = (verdict.place, verdict.kind);
        if self.stands((job, epoch)) {
            let stage = self.jobs[&job].stage;
            self.record(Record::Refuted { job, epoch, dispute, kind, place }, out);
            self.forfeit(worker, (job, epoch), None, out);
            self.run_fell(job, stage, out);
        } else if let (false, Some(signed)) = (self.jobs.contains_key(&job), terms.claimant.receipt()) {
            let refutation = Refutation { worker, receipt: signed.receipt.digest(), place, dispute, kind };
            out.actions.push(Action::Overturned { job, refutation });
        }
    }

    /// After a restart: asks again for the disputes of all challenges that are played.
    pub(super) fn resume_challenges(&self, out: &mut Output) {
        self.open_next(&BTreeSet::new(), out);
    }
}
