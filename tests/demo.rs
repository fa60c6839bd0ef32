//! The demo does what it says.

mod common;

use common::{lockstep, minilm, run_json};

#[test]
fn the_honest_are_verified_and_the_cheat_is_found() {
    let Some(dir) = minilm() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let out =
        run_json(lockstep().args(["demo", "--json"]).env("LOCKSTEP_MINILM", dir).env("XDG_CACHE_HOME", cache.path()));
    assert_eq!(out["honest_verified"], true, "{out}");
    assert_eq!(out["cheater_found"], true, "{out}");
    assert_eq!(out["first_difference"]["layer"], out["altered_layer"], "{out}");
    assert_eq!(out["receipts_verified"], out["jobs"], "{out}");
    let cheat = out["workers"].as_array().expect("a list").iter().find(|w| w["honest"] == false).expect("a cheat");
    assert_eq!(out["quarantined"], serde_json::json!([cheat["key"]]), "{out}");
}
