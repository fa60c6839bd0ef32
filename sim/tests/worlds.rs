//! Some hundred worlds, with every adversary and every kind of fault in them.

use std::num::NonZeroUsize;

use lockstep_sim::adversary::Adversary;

#[test]
fn hundreds_of_worlds_keep_every_property() {
    let threads = NonZeroUsize::new(2).expect("two threads");
    let report = lockstep_sim::run(0, 400, threads, &|_| {});
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    let counts = &report.counts;
    for adversary in Adversary::ALL {
        assert!(counts.adversaries.contains_key(adversary.name()), "nobody is a {}", adversary.name());
    }
    let faults = &counts.faults;
    let kinds = [faults.dropped, faults.duplicated, faults.reordered, faults.delayed, faults.sessions_broken];
    let failures = [faults.partitions, faults.party_crashes];
    assert!(kinds.iter().chain(&failures).chain(&faults.coordinator_crashes).all(|count| *count > 0), "{faults:?}");
    assert!(counts.challenges > 20 && counts.disputes_of_partial_runs > 20, "{counts:?}");
    assert!(counts.disputes > 400 && counts.jobs_done > 300, "{counts:?}");
}
