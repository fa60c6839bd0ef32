//! The demo does what it says.

mod common;

use common::{lockstep, minilm, run_json};
use serde_json::json;

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
    assert_eq!(out["quarantined"], json!([cheat["key"]]), "{out}");
    assert!(out["rounds"].as_u64().is_some_and(|rounds| (2..=6).contains(&rounds)), "{out}");
    assert!(out["referee_bytes"].as_u64().is_some_and(|bytes| (1..=128 << 10).contains(&bytes)), "{out}");
    assert!(out["referee_micros"].as_u64().is_some_and(|micros| micros > 0), "{out}");
    assert_eq!((&out["kind"], &out["dispute_file_holds"]), (&json!("proven"), &json!(true)), "{out}");
    assert!(out["verdict"] == "claimant_loses" || out["verdict"] == "challenger_loses", "{out}");
    let element = &out["element"];
    assert_eq!((&element["step"], &element["row"], &element["column"]), (&json!("matmul.out"), &json!(2), &json!(700)));
    let claimed = element["claimed"].as_array().expect("two claims");
    assert_eq!(claimed.iter().filter(|claimed| **claimed == element["right"]).count(), 1, "{out}");
    assert!(out["changed_file_refused"].as_str().is_some_and(|why| why.len() > 15), "{out}");
}
