//! Thousands of worlds with cheats, faults and crashes, and the command that runs them.

use std::num::NonZeroUsize;
use std::process::Command;

/// Every property of every world holds: see `sim/src/world/check.rs`.
#[test]
fn thousands_of_worlds_keep_every_property() {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let report = lockstep_sim::run(1_000_000, 2_000, threads, &|_| {});
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert_eq!(report.wrong_verdicts, 0);
    let counts = &report.counts;
    assert!(counts.disputes > 2_000, "{counts:?}");
    // Every round descends, commits or reveals; one opens.
    assert!((1..=6).contains(&counts.rounds_max), "{counts:?}");
    assert!(counts.dispute_bytes_max <= 128 << 10, "{counts:?}");
    // Of a generation at its first point and later, in each at the first layer, a later one, that of the output, and
    // log-probabilities.
    assert_eq!(counts.disputes_at.len(), 11, "{counts:?}");
    assert!(counts.adversaries.values().all(|of_kind| of_kind.len() > 20), "{counts:?}");
    assert!(counts.retractions["faulty machine"] > 20 && counts.retractions["pretender"] > 1, "{counts:?}");
    assert!(counts.pretenders_lost > counts.pretenders_gained, "{counts:?}");
    assert!(counts.jobs_of_distinct_operators > 100 && counts.operators.len() > 2, "{counts:?}");
}

#[test]
fn the_command_reports_what_it_ran_and_the_same_again() {
    let run = || {
        let program = env!("CARGO_BIN_EXE_lockstep");
        let output = Command::new(program).args(["sim", "--first-seed", "7", "--seeds", "12", "--json"]).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = run();
    let report: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&report["first_seed"], &report["seeds"]), (&7.into(), &12.into()));
    assert_eq!(report["wrong_verdicts"], 0);
    assert_eq!(report["violations"], serde_json::json!([]));
    assert!(report["adversaries"].as_object().is_some_and(|kinds| kinds.len() == 2), "{report}");
    assert_eq!(run(), text);
}
