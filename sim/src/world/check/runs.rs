//! The accepted runs of all jobs: who made them, whether they stand, what was staked on them and what was paid.
//!
//! - Where policy asks for distinct operators, no two runs that stand, or that are disputed, are of one.
//! - A run that is taken back forfeits its bond, which is worth the audits and what keeps a lie from paying, and is never
//!   paid for.
//! - Who is proven to have handed over something wrong forfeits its bond.
//! - Somebody with a faulty machine is quarantined by nobody, and loses what was staked on the run that it spoilt, once.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::dispute::{Side, Terms};
use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId};
use lockstep_protocol::ledger::{Posting, Purpose, deterrent, price_of_work};
use lockstep_protocol::machine::{JobSpec, Record};

use super::super::cast::Role;
use super::super::job::Jobs;
use super::super::party::Party;
use super::super::store::Batch;
use super::super::{Broken, Held};
use crate::adversary::Adversary;
use crate::report::Counts;

/// An accepted run.
struct Accepted {
    node: NodeId,
    /// Everybody who has layers of it; of a run by one alone, that one.
    members: Vec<NodeId>,
    operator: Option<&'static str>,
    is_right: bool,
    stands: bool,
}

/// All of them.
#[derive(Default)]
pub struct Runs {
    of: BTreeMap<JobId, BTreeMap<LeaseEpoch, Accepted>>,
    held: BTreeMap<(NodeId, Purpose), u64>,
    /// What each dispute is about.
    disputed: BTreeMap<Purpose, JobId>,
    /// Runs that were taken back.
    retracted: BTreeSet<(JobId, LeaseEpoch)>,
    /// Who lost what it had staked because its machine is faulty.
    ruined: BTreeSet<NodeId>,
}

impl Runs {
    /// After a batch was written.
    ///
    /// # Errors
    /// A property does not hold.
    pub fn step(&mut self, batch: &Batch, parties: &[Party], jobs: &Jobs, counts: &mut Counts) -> Held {
        for record in &batch.records {
            self.record(record, batch, parties, jobs, counts)?;
        }
        for posting in &batch.postings {
            self.posting(posting, parties, counts)?;
        }
        Ok(())
    }

    fn record(&mut self, record: &Record, batch: &Batch, parties: &[Party], jobs: &Jobs, counts: &mut Counts) -> Held {
        match record {
            Record::Ran { job, result, before, .. } => {
                let receipt = &result.receipt.receipt;
                let operator = party(parties, &receipt.worker)?.operator;
                let of = jobs.get(job);
                let truth = of.case.honest();
                let is_right = [before, &receipt.roots[..]].concat() == truth.roots && result.output == truth.output;
                let members = result.receipt.members().map(|(node, ..)| node).collect();
                let run = Accepted { node: receipt.worker, members, operator, is_right, stands: true };
                self.of.entry(*job).or_default().insert(receipt.epoch, run);
                counts.operators.extend(operator.map(str::to_owned));
                self.operators(*job, &of.spec)
            }
            Record::HandedOverWrong { job, proof } => {
                let said = proof.hand_over();
                let lease = Purpose::Lease { job: *job, epoch: said.epoch };
                let pays = |posting: &Posting| match posting {
                    Posting::Forfeit { node, purpose, .. } => (*node, *purpose) == (said.worker, lease),
                    _ => false,
                };
                if batch.postings.iter().any(pays) {
                    return Ok(());
                }
                Err(Broken::verdict(format!(
                    "{} was proven to hand over something wrong, and keeps its bond",
                    said.worker
                )))
            }
            Record::Retracted { job, epoch } => self.retracted(*job, *epoch, batch, parties, jobs, counts),
            Record::Refuted { job, epoch, .. } => {
                self.falls(*job, *epoch);
                Ok(())
            }
            Record::Judged { job, losers, .. } => {
                losers.iter().for_each(|epoch| self.falls(*job, *epoch));
                Ok(())
            }
            Record::Challenged { job, terms } => {
                self.disputed.insert(Purpose::Dispute { dispute: terms.id() }, *job);
                Ok(())
            }
            Record::Disputed { job, terms } => self.disputed_by_operators(*job, terms, parties, jobs),
            Record::Quarantined { node, .. } if party(parties, node)?.role == Role::Faulty => {
                Err(Broken::verdict(format!("{node}, whose machine is faulty, is quarantined")))
            }
            _ => Ok(()),
        }
    }

    fn falls(&mut self, job: JobId, epoch: LeaseEpoch) {
        if let Some(run) = self.of.get_mut(&job).and_then(|runs| runs.get_mut(&epoch)) {
            run.stands = false;
        }
    }

    /// No two runs that stand are of one operator, or of one that nobody knows.
    fn operators(&self, job: JobId, spec: &JobSpec) -> Held {
        let standing: Vec<_> = self.of[&job].values().filter(|run| run.stands).map(|run| run.operator).collect();
        let known: BTreeSet<_> = standing.iter().copied().flatten().collect();
        if !spec.policy.distinct_operators || standing.len() < 2 || known.len() == standing.len() {
            return Ok(());
        }
        Err(Broken::new(format!("runs of job {job} are by {standing:?}, where each has to be by another operator")))
    }

    /// Nor are those that differ while they run.
    fn disputed_by_operators(&self, job: JobId, terms: &Terms, parties: &[Party], jobs: &Jobs) -> Held {
        let [a, b] = Side::BOTH.map(|side| terms.key(side));
        let [a, b] = [party(parties, &a)?.operator, party(parties, &b)?.operator];
        if jobs.get(&job).spec.policy.distinct_operators && (a.is_none() || a == b) {
            return Err(Broken::new(format!("job {job} was run by {a:?} and {b:?} beside each other")));
        }
        Ok(())
    }

    fn retracted(
        &mut self,
        job: JobId,
        epoch: LeaseEpoch,
        batch: &Batch,
        parties: &[Party],
        jobs: &Jobs,
        counts: &mut Counts,
    ) -> Held {
        let run = self.of.get(&job).and_then(|runs| runs.get(&epoch));
        let run = run.ok_or_else(|| Broken::new("a run is taken back that never was"))?;
        let purpose = Purpose::Lease { job, epoch };
        let is_forfeit =
            |posting: &&Posting| matches!(posting, Posting::Forfeit { purpose: what, .. } if *what == purpose);
        let forfeits: Vec<_> = batch.postings.iter().filter(is_forfeit).collect();
        // Of several who have layers of a run, one takes it back.
        let node = match forfeits[..] {
            [Posting::Forfeit { node, .. }] if run.members.contains(node) => *node,
            _ => run.node,
        };
        let name = match party(parties, &node)?.role {
            Role::Honest => return Err(Broken::verdict(format!("a run of the honest {node} is taken back"))),
            Role::Faulty => "faulty machine",
            Role::Cheat(adversary) => adversary.name(),
        };
        *counts.retractions.entry(name.to_owned()).or_default() += 1;
        self.falls(job, epoch);
        self.retracted.insert((job, epoch));
        let lost = self.held.get(&(node, purpose)).copied().unwrap_or_default();
        let least = price_of_retraction(&jobs.get(&job).spec);
        if forfeits.len() != 1 || lost < least {
            return Err(Broken::new(format!("a run is taken back for {lost} credits, where {least} are the least")));
        }
        Ok(())
    }

    fn posting(&mut self, posting: &Posting, parties: &[Party], counts: &mut Counts) -> Held {
        match posting {
            Posting::Hold { from, purpose, amount } => {
                *self.held.entry((*from, *purpose)).or_default() += amount;
            }
            Posting::Release { node, purpose } => {
                self.held.remove(&(*node, *purpose));
            }
            Posting::Forfeit { node, purpose, .. } => {
                let lost = self.held.remove(&(*node, *purpose)).unwrap_or_default();
                self.lost(node, purpose, lost, parties, counts)?;
            }
            Posting::Pay { to, purpose: Purpose::Lease { job, epoch }, amount } => {
                let run = self.of.get(job).and_then(|runs| runs.get(epoch));
                let run = run
                    .filter(|run| run.stands && run.members.contains(to) && !self.retracted.contains(&(*job, *epoch)));
                let Some(run) = run else {
                    return Err(Broken::new(format!("{to} is paid for a run of job {job} that does not stand")));
                };
                if party(parties, to)?.role == Role::Cheat(Adversary::Pretender) && !run.is_right {
                    counts.pretenders_gained += amount;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody loses what it has staked.
    fn lost(&mut self, node: &NodeId, purpose: &Purpose, lost: u64, parties: &[Party], counts: &mut Counts) -> Held {
        let party = party(parties, node)?;
        match party.role {
            Role::Honest => Err(Broken::verdict(format!("the honest {node} forfeits credits"))),
            Role::Faulty => {
                let job = match purpose {
                    Purpose::Lease { job, .. } => Some(*job),
                    _ => self.disputed.get(purpose).copied(),
                };
                let is_spoilt = job.is_some() && job == party.spoils();
                if is_spoilt && self.ruined.insert(*node) {
                    return Ok(());
                }
                Err(Broken::verdict(format!("{node} loses {lost} credits for {purpose}, more than its fault costs")))
            }
            Role::Cheat(Adversary::Pretender) if matches!(purpose, Purpose::Lease { .. }) => {
                counts.pretenders_lost += lost;
                Ok(())
            }
            Role::Cheat(_) => Ok(()),
        }
    }
}

/// The least that it costs to take a run of a job back: its audits, and what keeps a lie from paying.
fn price_of_retraction(spec: &JobSpec) -> u64 {
    let price = price_of_work(spec.work_bound());
    deterrent(price, spec.policy.per_mille.max(1)) + u64::from(spec.policy.auditors) * price
}

fn party<'a>(parties: &'a [Party], node: &NodeId) -> Result<&'a Party, Broken> {
    let party = parties.iter().find(|party| party.id() == *node);
    party.ok_or_else(|| Broken::new(format!("nobody is {node}")))
}
