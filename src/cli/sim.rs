//! `lockstep sim`

use std::num::NonZeroUsize;

use clap::Args;
use lockstep_sim::{Report, run as simulate};

use crate::backend;
use crate::exit::{Exit, Failure, Outcome};
use crate::progress;

/// Arguments of `lockstep sim`.
#[derive(Args)]
#[command(after_help = "Every seed is a world of its own: a coordinator, honest parties, cheats, and a network that \
loses, repeats and delays messages, with crashes at any step. The properties of SPEC.md are checked again after every \
step. The same seeds give the same report on every machine, whatever the threads.\n\nExit code 7: a property did not \
hold, a wrong verdict for example. The report names the seed and the command that shows it again.")]
pub struct SimArgs {
    /// The first world.
    #[arg(long, default_value = "0", value_name = "S")]
    first_seed: u64,
    /// How many worlds.
    #[arg(long, default_value = "1000", value_name = "N")]
    seeds: u64,
    /// Threads to use [default: all].
    #[arg(long, value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs worlds, and says what came of them.
pub fn run(args: &SimArgs) -> Outcome {
    let threads = args.threads.unwrap_or_else(backend::all_threads);
    let bar = progress::bar(args.seeds, "worlds");
    let report = simulate(args.first_seed, args.seeds, threads, &|done| bar.set_position(done));
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    if report.violations.is_empty() {
        return Ok(());
    }
    for violation in &report.violations {
        eprintln!("seed {}: {}\n  again: {}", violation.seed, violation.what, violation.replay);
    }
    let error = anyhow::anyhow!("{} of {} worlds broke a property", report.violations.len(), report.seeds);
    Err(Failure { exit: Exit::Refuted, error })
}

fn print(report: &Report) {
    let counts = &report.counts;
    let ended = counts.jobs_done + counts.jobs_failed;
    println!("{} worlds from seed {}", report.seeds, report.first_seed);
    println!("jobs: {ended} ended, {} of them without a result", counts.jobs_failed);
    println!(
        "disputes: {}, {} of them challenges and {} about partial runs; {} rounds at most, {} bytes at most; {} moves \
         taken, {} refused",
        counts.disputes,
        counts.challenges,
        counts.disputes_of_partial_runs,
        counts.rounds_max,
        counts.dispute_bytes_max,
        counts.moves,
        counts.refused
    );
    println!("wrong verdicts: {}", report.wrong_verdicts);
    list("verdicts", &counts.verdicts);
    list("elements in dispute", &counts.elements);
    list("disputes began at", &counts.disputes_at);
    for (kind, adversaries) in &counts.adversaries {
        list(&format!("adversaries ({kind})"), adversaries);
    }
    list("runs taken back", &counts.retractions);
    println!("runs of models that two parties shared: {}", counts.crew_runs);
    list("what cheats did there", &counts.stage_tricks);
    list("hand-overs proven wrong by", &counts.hand_overs_proven);
    println!(
        "pretenders: paid {} credits for lies, {} lost in bonds; operators: {}, {} jobs by distinct ones",
        counts.pretenders_gained,
        counts.pretenders_lost,
        counts.operators.len(),
        counts.jobs_of_distinct_operators
    );
    let faults = &counts.faults;
    println!(
        "faults: {} messages lost, {} twice, {} overtaken, {} late; {} partitions, {} crashes of parties",
        faults.dropped, faults.duplicated, faults.reordered, faults.delayed, faults.partitions, faults.party_crashes
    );
    let [before, between, within] = faults.coordinator_crashes;
    println!(
        "crashes of the coordinator: {before} before a commit, {between} right after one, {within} while it acted on one"
    );
    println!("ledger: {} postings, money conserved; log: {} entries", counts.postings, counts.log_entries);
}

fn list(what: &str, counts: &std::collections::BTreeMap<String, u64>) {
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("{what}: {}", counts.join(", "));
}
