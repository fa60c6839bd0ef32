//! `lockstep bench`: that it runs, and that what it reports is what it says. Never how fast.

mod common;

use std::collections::BTreeSet;

use common::{lockstep, run, run_json, save_package, small_packages};
use lockstep_kernels::program::OP_NAMES;
use serde_json::json;

#[test]
fn a_liar_about_any_op_loses_its_dispute() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut ops = BTreeSet::new();
    let decoder = save_package(temp.path(), lockstep_sim::models::decoder());
    // Few enough positions for the model with the shortest sequences; a decoder's word does not show every lie.
    let small = small_packages(temp.path()).into_iter().map(|package| (package, "6"));
    for (package, positions) in small.chain([(decoder, "70")]) {
        let mut command = lockstep();
        command
            .args(["bench", "dispute", "--json", "--threads", "1", "--positions", positions, "--package"])
            .arg(&package);
        let out = run_json(&mut command);
        let disputes = out["disputes"].as_array().expect("a list");
        assert_eq!(out["claimant_loses"], json!(disputes.len()), "{out}");
        for dispute in disputes {
            assert_eq!(
                (&dispute["verdict"], &dispute["kind"]),
                (&json!("claimant_loses"), &json!("proven")),
                "{dispute}"
            );
            let op = dispute["op"].as_str().expect("a name");
            // The referee came to the very op that was lied about.
            assert!(dispute["step"].as_str().is_some_and(|step| step.starts_with(&format!("{op}."))), "{dispute}");
            assert!(dispute["rounds"].as_u64().is_some_and(|rounds| (2..=6).contains(&rounds)), "{dispute}");
            assert!(dispute["referee_bytes"].as_u64().is_some_and(|bytes| bytes <= 128 << 10), "{dispute}");
            for seconds in ["referee_micros", "player_seconds", "layer_seconds", "prefill_seconds", "game_seconds"] {
                assert!(dispute[seconds].as_f64().is_some_and(|s| s > 0.0), "{seconds} of {dispute}");
            }
            ops.insert(op.to_owned());
        }
    }
    assert_eq!(ops, OP_NAMES.iter().map(ToString::to_string).collect(), "every op was lied about");
}

#[test]
fn what_no_dispute_can_be_about_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let package = small_packages(temp.path()).remove(0);
    let garbage = temp.path().join("garbage.lsp");
    std::fs::write(&garbage, b"not a package").expect("a file");
    for (package, positions, says) in
        [(&package, "301", "300"), (&garbage, "8", "garbage.lsp"), (&temp.path().join("none"), "8", "none")]
    {
        let mut command = lockstep();
        let output = run(command.args(["bench", "dispute", "--positions", positions, "--package"]).arg(package));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}
