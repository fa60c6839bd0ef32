//! What came of many worlds.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::network::Faults;

/// What came of one world, or of many together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Jobs that ended with a result.
    pub jobs_done: u64,
    /// Jobs that ended without one.
    pub jobs_failed: u64,
    /// Jobs that ended with a wrong result, because nobody honest ran them.
    pub jobs_wrong_unaudited: u64,
    /// Disputes that ended.
    pub disputes: u64,
    /// Disputes about runs that were stopped at the first root that differed.
    pub disputes_of_partial_runs: u64,
    /// Disputes that somebody began after the job had ended.
    pub challenges: u64,
    /// Most rounds of a dispute.
    pub rounds_max: u64,
    /// Rounds of all disputes.
    pub rounds: u64,
    /// Moves that the coordinator took.
    pub moves: u64,
    /// Moves that it refused.
    pub refused: u64,
    /// Most bytes that both sides of a dispute sent.
    pub dispute_bytes_max: u64,
    /// Verdicts by kind and by who lost.
    pub verdicts: BTreeMap<String, u64>,
    /// Steps of which an element was found to be in dispute, by name.
    pub elements: BTreeMap<String, u64>,
    /// Why jobs ended without a result.
    pub failures: BTreeMap<String, u64>,
    /// Adversaries that signed a run, by kind of job and name.
    pub adversaries: BTreeMap<String, BTreeMap<String, u64>>,
    /// Where disputes began: kind of job, point and layer.
    pub disputes_at: BTreeMap<String, u64>,
    /// Accepted runs of models that two parties shared.
    pub crew_runs: u64,
    /// What cheats among those who shared a model did, and how often.
    pub stage_tricks: BTreeMap<String, u64>,
    /// What proved hand-overs wrong, and how often.
    pub hand_overs_proven: BTreeMap<String, u64>,
    /// Runs that were taken back, by who did.
    pub retractions: BTreeMap<String, u64>,
    /// Credits that pretenders were paid for wrong runs.
    pub pretenders_gained: u64,
    /// Bonds that they lost, in credits.
    pub pretenders_lost: u64,
    /// Operators whose workers' runs were accepted.
    pub operators: BTreeSet<String>,
    /// Jobs that ended and were to be run by distinct operators.
    pub jobs_of_distinct_operators: u64,
    /// Postings in the ledger.
    pub postings: u64,
    /// Entries of the log.
    pub log_entries: u64,
    /// What went wrong on purpose.
    pub faults: Faults,
}

impl Counts {
    /// Adds those of another world.
    pub fn add(&mut self, other: &Self) {
        self.jobs_done += other.jobs_done;
        self.jobs_failed += other.jobs_failed;
        self.jobs_wrong_unaudited += other.jobs_wrong_unaudited;
        self.disputes += other.disputes;
        self.disputes_of_partial_runs += other.disputes_of_partial_runs;
        self.challenges += other.challenges;
        self.rounds_max = self.rounds_max.max(other.rounds_max);
        self.rounds += other.rounds;
        self.moves += other.moves;
        self.refused += other.refused;
        self.dispute_bytes_max = self.dispute_bytes_max.max(other.dispute_bytes_max);
        let lists = [
            (&mut self.verdicts, &other.verdicts),
            (&mut self.elements, &other.elements),
            (&mut self.failures, &other.failures),
            (&mut self.disputes_at, &other.disputes_at),
            (&mut self.retractions, &other.retractions),
            (&mut self.stage_tricks, &other.stage_tricks),
            (&mut self.hand_overs_proven, &other.hand_overs_proven),
        ];
        lists.into_iter().for_each(|(sums, counts)| add(sums, counts));
        for (kind, counts) in &other.adversaries {
            add(self.adversaries.entry(kind.clone()).or_default(), counts);
        }
        self.crew_runs += other.crew_runs;
        self.pretenders_gained += other.pretenders_gained;
        self.pretenders_lost += other.pretenders_lost;
        self.operators.extend(other.operators.iter().cloned());
        self.jobs_of_distinct_operators += other.jobs_of_distinct_operators;
        self.postings += other.postings;
        self.log_entries += other.log_entries;
        self.faults.add(&other.faults);
    }
}

fn add(sums: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (name, count) in counts {
        *sums.entry(name.clone()).or_default() += count;
    }
}

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// In which world.
    pub seed: u64,
    /// Whether somebody honest lost a dispute, or a wrong element was laid at the wrong door.
    pub wrong_verdict: bool,
    /// What happened.
    pub what: String,
    /// The command that shows it again.
    pub replay: String,
}

/// What came of a run of the simulation. The same for the same seeds, whatever the threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first world.
    pub first_seed: u64,
    /// How many worlds.
    pub seeds: u64,
    /// Violations that are wrong verdicts.
    pub wrong_verdicts: u64,
    /// In order of seeds; the first one of each world.
    pub violations: Vec<Violation>,
    /// All worlds together.
    #[serde(flatten)]
    pub counts: Counts,
}
