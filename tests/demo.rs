//! The demo does what it says.

mod common;

use common::{lockstep, minilm, run, run_json};
use serde_json::{Value, json};

/// What both demos show: the cheat, and nobody else, is found at the layer that it altered and convicted by one number.
fn the_cheat_is_convicted(out: &Value) {
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
    assert_eq!(element["step"], json!("matmul.out"));
    let claimed = element["claimed"].as_array().expect("two claims");
    assert_eq!(claimed.iter().filter(|claimed| **claimed == element["right"]).count(), 1, "{out}");
    assert!(out["changed_file_refused"].as_str().is_some_and(|why| why.len() > 15), "{out}");
}

/// Needs nothing that is not in the repository.
#[test]
fn text_is_streamed_and_the_cheat_is_caught_in_the_middle_of_it() {
    let cache = tempfile::tempdir().expect("a folder");
    let output = run(lockstep().args(["demo", "--json"]).env("XDG_CACHE_HOME", cache.path()));
    let (stdout, story) = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8")).into();
    let out: Value = serde_json::from_str(&stdout).expect("one JSON object and nothing else");
    // A person sees how the dispute narrows, to one number, and who loses it.
    let told =
        ["differs", "is the first to differ", "1 KiB revealed by each", "opened against", "the referee recomputes"];
    let mut rest = &story[..];
    for step in told {
        let at = rest.find(step).unwrap_or_else(|| panic!("{step:?} is not told in its turn: {story}"));
        rest = &rest[at..];
    }
    assert!(rest.contains("loses (proven"), "{story}");
    the_cheat_is_convicted(&out);
    // Found at the position that it altered, long before the end of the text.
    assert_eq!(out["first_difference"]["point"], out["altered_position"], "{out}");
    let element = &out["element"];
    assert_eq!((&element["row"], &element["column"]), (&out["altered_position"], &json!(7)), "{out}");
    let answers = out["answers"].as_array().expect("a list");
    assert!(answers.len() >= 2 && Some(answers.len() as u64) == out["jobs"].as_u64(), "{out}");
    for answer in answers {
        assert!(answer["text"].as_str().is_some_and(|text| text.len() > 20), "{answer}");
        assert_eq!(answer["points_committed"], answer["tokens"], "{answer}");
        let pieces = answer["streamed_pieces"].as_u64().expect("a number");
        assert!(answer["revoked"] == true || pieces > 10, "it came as it was written: {answer}");
    }
}

#[test]
fn embeddings_are_verified_and_the_cheat_is_found() {
    let Some(dir) = minilm() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let out = run_json(
        lockstep()
            .args(["demo", "--embeddings", "--json"])
            .env("LOCKSTEP_MINILM", dir)
            .env("XDG_CACHE_HOME", cache.path()),
    );
    the_cheat_is_convicted(&out);
    let element = &out["element"];
    assert_eq!((&element["row"], &element["column"]), (&json!(2), &json!(700)), "{out}");
}
