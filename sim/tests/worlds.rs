//! Some hundred worlds, with every adversary and every kind of fault in them.

use std::num::NonZeroUsize;

use lockstep_sim::adversary::Adversary;

#[test]
fn hundreds_of_worlds_keep_every_property() {
    let threads = NonZeroUsize::new(2).expect("two threads");
    let report = lockstep_sim::run(0, 400, threads, &|_| {});
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    let counts = &report.counts;
    for (kind, adversaries) in &counts.adversaries {
        for adversary in Adversary::ALL {
            // There is one point in an embedding, so that nobody contradicts an earlier one, and there are no log-probabilities.
            let is_of_words = matches!(adversary, Adversary::Perjurer | Adversary::Misquoter);
            let makes_sense = !is_of_words || kind == "generation";
            assert_eq!(adversaries.contains_key(adversary.name()), makes_sense, "{} of an {kind}", adversary.name());
        }
    }
    let faults = &counts.faults;
    let kinds = [faults.dropped, faults.duplicated, faults.reordered, faults.delayed, faults.sessions_broken];
    let failures = [faults.partitions, faults.party_crashes];
    assert!(kinds.iter().chain(&failures).chain(&faults.coordinator_crashes).all(|count| *count > 0), "{faults:?}");
    assert!(counts.challenges > 20 && counts.disputes_of_partial_runs > 20, "{counts:?}");
    assert!(counts.disputes > 400 && counts.jobs_done > 300, "{counts:?}");
}
