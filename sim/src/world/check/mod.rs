//! The properties, checked again after every step.
//!
//! - The honest never lose: no verdict, no quarantine, no forfeit is about them, and nobody sets them aside.
//! - What is wrong is attributed to who claimed it.
//! - What somebody honest challenges falls within a bounded time, whoever else challenges it.
//! - A job that somebody honest ran ends with the right answer, or without one.
//! - Money is conserved, and the stored postings are the ledger in memory.
//! - The log only grows.
//! - What holds for runs, their operators and those who take them back: see `runs`.

mod runs;

use std::collections::{BTreeMap, BTreeSet};

use lockstep_model::dispute::{export, judge};
use lockstep_protocol::commitment::PointDigest;
use lockstep_protocol::dispute::{Claim, DisputeId, Ground, Reason, Side, SignedEntry, Terms, Verdict, What};
use lockstep_protocol::hand_over::HandOverProof;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, Millis, NodeId};
use lockstep_protocol::ledger::Ledger;
use lockstep_protocol::limits::{GRACE_MS, MAX_ROUNDS, MOVE_MIN_MS};
use lockstep_protocol::logprobs::rows;
use lockstep_protocol::machine::{Action, Record};

use self::runs::Runs;
use super::cast::Role;
use super::coordinator::Coordinator;
use super::job::Jobs;
use super::log::{Log, Watcher};
use super::party::Party;
use super::perform::acts_as;
use super::store::{Batch, Store};
use super::{Broken, Held};
use crate::report::Counts;
use crate::runs::Case;

/// So many steps lie between two looks at the log.
const STEPS_PER_LOOK: u64 = 16;

/// The clock goes on in steps of at most a second, in each round.
const SLACK_MS: u64 = 30_000;

/// A wrong answer falls within so much time after somebody honest first challenged it, in time that the coordinator served:
/// a few disputes with the slowest of players.
const CHALLENGE_FALLS_MS: u64 = 30 * 60 * 1_000;

/// What has been seen so far.
#[derive(Default)]
pub struct Check {
    watcher: Watcher,
    runs: Runs,
    steps: u64,
    /// Jobs of which an honest run was accepted.
    honestly_run: BTreeSet<JobId>,
    /// Disputes with their terms, and when they were opened: in time that the coordinator served.
    opened: BTreeMap<DisputeId, (Terms, Millis)>,
    /// Milliseconds for which the coordinator was down.
    down_ms: u64,
    /// Disputes with their verdicts.
    verdicts: BTreeMap<DisputeId, Verdict>,
    /// Challenges that ended without effect, because their run fell to something else, before they had a verdict.
    moot: BTreeSet<DisputeId>,
    /// Jobs that ended with a wrong answer, with who gave it.
    wrong: BTreeMap<JobId, Vec<NodeId>>,
    /// Jobs whose wrong answer somebody honest challenges, and since when.
    contested: BTreeMap<JobId, Millis>,
}

impl Check {
    /// After a step was written.
    ///
    /// # Errors
    /// A property does not hold.
    pub fn step(&mut self, batch: &Batch, parties: &[Party], jobs: &Jobs, counts: &mut Counts) -> Held {
        let honest = |node: &NodeId| is_honest(parties, node);
        for signed in &batch.entries {
            self.entry(signed, parties, jobs, counts)?;
        }
        for record in &batch.records {
            match record {
                Record::Challenged { .. } => counts.challenges += 1,
                Record::ChallengeEnded { dispute, .. } if !self.verdicts.contains_key(dispute) => {
                    self.moot.insert(*dispute);
                }
                Record::Quarantined { node, place, .. } if honest(node) => {
                    return Err(Broken::verdict(format!("the honest {node} is quarantined for {place}")));
                }
                Record::SetAside { node, .. } if honest(node) => {
                    return Err(Broken::verdict(format!("the honest {node} is set aside")));
                }
                Record::HandedOverWrong { job, proof } => {
                    proof.check().map_err(|error| Broken::verdict(format!("a proof that proves nothing: {error}")))?;
                    let is_word = proof.hand_over().layer > jobs.get(job).case.layers();
                    let kind = match **proof {
                        HandOverProof::Rows { .. } => "rows",
                        HandOverProof::Contradiction(..) if is_word => "words",
                        HandOverProof::Contradiction(..) => "contradiction",
                    };
                    *counts.hand_overs_proven.entry(kind.to_owned()).or_default() += 1;
                }
                Record::Ran { job, result, before, .. } => {
                    let receipt = &result.receipt.receipt;
                    let case = jobs.get(job).case;
                    let mut members = result.receipt.members().map(|(node, ..)| node);
                    if result.receipt.segments.is_empty() {
                        count_cheat(parties, &receipt.worker, case, counts);
                    } else {
                        counts.crew_runs += 1;
                    }
                    // A right run of a cheat that plays to lose counts for nothing.
                    if members.all(|node| honest(&node)) {
                        self.honestly_run.insert(*job);
                        let truth = case.honest();
                        if [before, &receipt.roots[..]].concat() != truth.roots || result.output != truth.output {
                            return Err(Broken::new("an honest run has other roots or words than an honest run"));
                        }
                    }
                }
                _ => {}
            }
        }
        self.runs.step(batch, parties, jobs, counts)
    }

    /// An entry of a dispute.
    fn entry(&mut self, signed: &SignedEntry, parties: &[Party], jobs: &Jobs, counts: &mut Counts) -> Held {
        let (id, at) = (signed.entry.dispute, signed.entry.at);
        match &signed.entry.what {
            What::Opened(terms) => {
                self.opened.insert(id, ((**terms).clone(), self.served(at)));
                if terms.claimant.receipt().is_none() {
                    counts.disputes_of_partial_runs += 1;
                    let case = jobs.get(&terms.job_id()).case;
                    Side::BOTH.into_iter().for_each(|side| count_cheat(parties, &terms.key(side), case, counts));
                }
                Ok(())
            }
            What::Moved { .. } => {
                counts.moves += 1;
                Ok(())
            }
            What::Credited { .. } | What::Notice { .. } => Ok(()),
            What::Verdict(verdict) => {
                if self.verdicts.insert(id, *verdict).is_some() {
                    return Err(Broken::verdict(format!("dispute {id} has two verdicts")));
                }
                self.verdict(id, verdict, at, parties, jobs, counts)
            }
        }
    }

    /// The honest never lose, and of two claims the one that is wrong does.
    fn verdict(
        &self,
        id: DisputeId,
        verdict: &Verdict,
        at: Millis,
        parties: &[Party],
        jobs: &Jobs,
        counts: &mut Counts,
    ) -> Held {
        let (terms, opened) = self.opened.get(&id).ok_or_else(|| Broken::new("a verdict without a beginning"))?;
        let case = jobs.get(&terms.job_id()).case;
        let ground = terms.ground().map_err(|error| Broken::new(error.to_string()))?;
        let claims = Side::BOTH.map(|side| {
            let (key, lost) = (terms.key(side), verdict.losers[side.index()]);
            (role_of(parties, &key), lost, is_right(terms.claim(side), &ground, case))
        });
        let words = |why: &str| {
            let [a, b] = claims.map(|(role, lost, right)| format!("{role:?} lost {lost} right {right}"));
            Broken::verdict(format!("dispute {id}: {why}; claimant {a}, challenger {b}: {verdict:?}"))
        };
        if claims.iter().any(|(role, lost, _)| *lost && role.is_some_and(Role::is_honest)) {
            return Err(words("somebody honest lost"));
        }
        if claims.iter().any(|(role, lost, right)| *lost && *right && *role == Some(Role::Faulty)) {
            return Err(words("somebody lost with a right run because of another one"));
        }
        if !verdict.losers.contains(&true) {
            return Err(words("nobody lost"));
        }
        let plays_right = |(role, _, right): &(Option<Role>, bool, bool)| *right && role.is_some_and(Role::is_honest);
        for (own, other) in [(0, 1), (1, 0)] {
            if plays_right(&claims[own]) && !claims[other].1 {
                return Err(words("whoever contradicted the honest did not lose"));
            }
        }
        let limit = terms.budgets_ms.iter().sum::<u64>() + MAX_ROUNDS as u64 * (MOVE_MIN_MS + GRACE_MS);
        if self.served(at).since(*opened) > limit + SLACK_MS {
            return Err(words("it took too long"));
        }
        counts.disputes += 1;
        *counts.disputes_at.entry(place_name(case, &ground)).or_default() += 1;
        let kind = match verdict.reason {
            Reason::Contradiction => "contradiction",
            Reason::Equivocation => "equivocation",
            Reason::Conceded => "conceded",
            Reason::Recomputed { .. } => "recomputed",
            Reason::Perjury => "perjury",
            Reason::Silence => "silence",
        };
        let loser = match verdict.losers {
            [true, true] => "both",
            [true, false] => "claimant",
            _ => "challenger",
        };
        *counts.verdicts.entry(format!("{kind}, {loser} lost")).or_default() += 1;
        Ok(())
    }

    /// After a step: the ledger, in memory or folded from the store.
    ///
    /// # Errors
    /// Its sums are not those of its accounts, or it has more or fewer postings than are stored.
    pub fn books(&self, ledger: &Ledger, stored: usize) -> Held {
        if ledger.postings() != stored as u64 {
            return Err(Broken::new(format!("{} postings were made, {stored} are stored", ledger.postings())));
        }
        let (mut free, mut held) = (0_u128, 0_u128);
        for (_, account) in ledger.accounts() {
            free += u128::from(account.free());
            held += account.held().map(|(_, amount)| u128::from(amount)).sum::<u128>();
        }
        let totals = ledger.totals();
        let there = u128::from(totals.issued) - u128::from(totals.burned);
        if free + held == there && free == u128::from(totals.free) && held == u128::from(totals.held) {
            Ok(())
        } else {
            Err(Broken::new(format!("accounts hold {free} + {held} credits, where {totals:?} are accounted for")))
        }
    }

    /// After a step: the log.
    ///
    /// # Errors
    /// It does not continue what it was.
    pub fn log(&mut self, log: &Log, keys: &Keypair, now: Millis) -> Held {
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS_PER_LOOK) {
            self.watcher.look(log, keys, now).map_err(Broken::new)?;
        }
        Ok(())
    }

    /// A job has ended.
    ///
    /// # Errors
    /// Its answer is wrong although somebody honest ran it.
    pub fn ended(&mut self, action: &Action, now: Millis, jobs: &Jobs, parties: &[Party], counts: &mut Counts) -> Held {
        if let Action::JobDone { job, .. } | Action::JobFailed { job, .. } = action {
            counts.jobs_of_distinct_operators += u64::from(jobs.get(job).spec.policy.distinct_operators);
        }
        let (job, outcome) = match action {
            Action::JobDone { job, outcome } => (job, outcome),
            Action::Overturned { job, refutation } => {
                self.wrong.retain(|of, workers| of != job || !workers.contains(&refutation.worker));
                self.fell_in_time(job, now)?;
                self.contested.remove(job);
                return Ok(());
            }
            Action::JobFailed { reason, .. } => {
                counts.jobs_failed += 1;
                *counts.failures.entry(reason.to_string()).or_default() += 1;
                return Ok(());
            }
            _ => return Ok(()),
        };
        counts.jobs_done += 1;
        let (truth, result) = (jobs.get(job).case.honest(), &outcome.result);
        let case = jobs.get(job).case;
        let (words, _) = case.split_output(&result.output);
        let is_of_roots = if case.is_generation() { words == case.words() } else { result.output == truth.output };
        if outcome.roots == truth.roots && !is_of_roots {
            return Err(Broken::new(format!("job {job} ends with an output that is not that of its roots")));
        }
        if outcome.roots == truth.roots && result.output == truth.output {
            return Ok(());
        }
        if self.honestly_run.contains(job) {
            return Err(Broken::verdict(format!(
                "job {job} ends with a wrong answer that somebody honest contradicted"
            )));
        }
        counts.jobs_wrong_unaudited += 1;
        let by: Vec<_> = outcome.result.receipt.members().map(|(node, ..)| node).collect();
        self.wrong.insert(*job, by.clone());
        if by.iter().all(|node| is_honest(parties, node)) {
            return Err(Broken::verdict("an honest answer is wrong"));
        }
        Ok(())
    }

    /// Somebody honest challenges the answer of a job, or tries to.
    pub fn contests(&mut self, job: JobId, now: Millis) {
        let now = self.served(now);
        self.contested.entry(job).or_insert(now);
    }

    fn fell_in_time(&self, job: &JobId, now: Millis) -> Held {
        let waited = self.contested.get(job).map_or(0, |since| self.served(now).since(*since));
        if waited > CHALLENGE_FALLS_MS {
            return Err(Broken::new(format!("the answer of job {job} stood for {waited} ms after a challenge of it")));
        }
        Ok(())
    }

    /// The coordinator was down for so long, which is charged to nobody.
    pub fn down(&mut self, ms: u64) {
        self.down_ms += ms;
    }

    fn served(&self, at: Millis) -> Millis {
        Millis(at.0.saturating_sub(self.down_ms))
    }

    /// After a start.
    ///
    /// # Errors
    /// A dispute has another verdict than before.
    pub fn restarted(&self, coordinator: &Coordinator) -> Held {
        for id in self.opened.keys() {
            if let Some(verdict) = coordinator.verdict(id)
                && verdict != self.verdicts.get(id).copied()
            {
                return Err(Broken::verdict(format!("dispute {id} has another verdict after a restart")));
            }
        }
        Ok(())
    }

    /// When everything has ended.
    ///
    /// # Errors
    /// The stored postings are no ledger, credits are still held for what is over, a transcript is judged otherwise offline, or a wrong answer stands although
    /// somebody honest could challenge it.
    pub fn end(&self, now: Millis, jobs: &Jobs, parties: &[Party], store: &Store, counts: &mut Counts) -> Held {
        let ledger = store.ledger()?;
        self.books(&ledger, store.postings())?;
        if ledger.totals().held > 0 {
            return Err(Broken::new(format!("everything has ended, and credits are held: {:?}", ledger.totals())));
        }
        let is_judged = |id: &DisputeId| self.verdicts.contains_key(id) || !self.moot.contains(id);
        for (id, (terms, _)) in self.opened.iter().filter(|(id, _)| is_judged(id)) {
            let manifest = jobs.get(&terms.job_id()).case.package().manifest_bytes();
            let entries = store.transcript(id)?;
            let judged = judge(&export(manifest.to_vec(), entries));
            let report = judged.map_err(|error| Broken::new(format!("the file of dispute {id}: {error}")))?;
            if Some(&report.verdict) != self.verdicts.get(id) {
                return Err(Broken::verdict(format!("dispute {id} is judged otherwise offline: {:?}", report.verdict)));
            }
            if let Some(element) = report.element {
                *counts.elements.entry(element.step).or_default() += 1;
            }
            counts.rounds += u64::from(report.rounds);
            counts.rounds_max = counts.rounds_max.max(report.rounds.into());
            counts.dispute_bytes_max = counts.dispute_bytes_max.max(report.referee_bytes);
        }
        self.contested.keys().try_for_each(|job| self.fell_in_time(job, now))?;
        // An honest party looks at every answer, and challenges it if it is wrong: unless it gave it itself.
        if let Some((job, by)) = self.wrong.first_key_value()
            && parties.iter().any(|party| party.role.is_honest())
        {
            return Err(Broken::verdict(format!("the wrong answer of job {job} by {by:?} stands")));
        }
        Ok(())
    }
}

fn role_of(parties: &[Party], node: &NodeId) -> Option<Role> {
    parties.iter().find(|party| party.id() == *node).map(|party| party.role)
}

fn is_honest(parties: &[Party], node: &NodeId) -> bool {
    role_of(parties, node).is_some_and(Role::is_honest)
}

fn count_cheat(parties: &[Party], node: &NodeId, case: &Case, counts: &mut Counts) {
    if let Some(Role::Cheat(adversary)) = role_of(parties, node) {
        let of_kind = counts.adversaries.entry(case.kind().to_owned()).or_default();
        *of_kind.entry(acts_as(adversary, case).name().to_owned()).or_default() += 1;
    }
}

/// Whether a claim is right up to the place at which it is disputed.
pub fn is_right(claim: &Claim, ground: &Ground, case: &Case) -> bool {
    let per_point = usize::from(case.layers()) + 1;
    let mut truth = case.honest().roots.chunks(per_point);
    let is_agreed =
        (0..ground.index).zip(&mut truth).all(|(at, roots)| claim.digest_at(at) == Some(PointDigest::of(roots)));
    let layers = usize::from(ground.place.layer);
    if let (true, Some(asked)) = (layers > per_point, case.job.kind.generation()) {
        // All roots are agreed, and log-probabilities disputed.
        let (_, truth) = case.split_output(&case.honest().output);
        let truth = rows(truth, asked).nth(ground.index).map(|row| (ground.index, row.values().to_vec()));
        return is_agreed && truth.is_some() && claim.shown_logprobs(asked) == truth;
    }
    let of_point = truth.next().map(|roots| &roots[..layers]);
    let claimed = claim.roots_at(ground.index).and_then(|roots| roots.get(..layers));
    is_agreed && of_point.is_some() && claimed == of_point
}

/// Where a dispute began, as reports call it.
fn place_name(case: &Case, ground: &Ground) -> String {
    let layer = match ground.place.layer {
        1 => "first layer",
        layer if layer > case.layers() + 1 => "log-probabilities",
        layer if layer > case.layers() => "output layer",
        _ => "later layer",
    };
    let point = match ground.index {
        _ if !case.is_generation() => return format!("embedding, {layer}"),
        0 => "first point",
        _ => "later point",
    };
    format!("generation, {point}, {layer}")
}
