//! The golden vectors are what their one command gives, and every path reproduces them.

#[path = "../examples/regenerate_vectors/scalars.rs"]
mod scalars;
#[path = "../examples/regenerate_vectors/vectors.rs"]
mod vectors;

use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::program::OP_NAMES;
use lockstep_kernels::reference::Reference;

const HINT: &str = "scripts/regenerate-vectors";

fn stored(name: &str) -> String {
    let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}; {HINT}"))
}

/// Fails at the first line that differs.
fn assert_same(name: &str, who: &str, text: &str) {
    let stored = stored(name);
    for (n, (expected, got)) in stored.lines().zip(text.lines()).enumerate() {
        assert_eq!(got, expected, "{name}.json line {}, by {who}; if this is meant: {HINT}", n + 1);
    }
    assert_eq!(text.len(), stored.len(), "{name}.json, by {who}; if this is meant: {HINT}");
}

#[test]
fn the_oracle_gives_the_stored_vectors() {
    for op in OP_NAMES {
        assert_same(op, "the oracle", &vectors::file(op, &Reference));
    }
    assert_same("fixed", "the oracle", &scalars::file());
}

#[test]
fn every_path_gives_the_stored_vectors() {
    for path in Path::ALL {
        match Cpu::new(Some(path), 2) {
            Ok(cpu) => {
                for op in OP_NAMES {
                    assert_same(op, path.name(), &vectors::file(op, cpu.kernels()));
                }
            }
            Err(why) => eprintln!("SKIPPED: {why}"),
        }
    }
}

/// Small enough to read, and JSON that any parser takes.
#[test]
fn files_are_small_and_parse() {
    for name in OP_NAMES.into_iter().chain(["fixed"]) {
        let text = stored(name);
        assert!(text.len() <= 150_000, "{name}.json has {} bytes", text.len());
        let value: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert!(value["cases"].as_array().is_some_and(|cases| cases.len() > 5), "{name}.json has too few cases");
    }
}
