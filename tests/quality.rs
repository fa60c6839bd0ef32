//! The shipped model's perplexity on the whole held-out text, against the float model: the table of docs/quality.md.

mod common;

use std::path::Path;

use common::{float_perplexity, lockstep, run_json};
use serde_json::{Value, json};

/// What transformers gives in float32 (`scripts/perplexity.py --transformers`).
const TRANSFORMERS: f64 = 32.258_97;
/// How far a package may be from float: 0.02% and 0.1%.
const MODES: [(&str, f64); 2] = [("w16", 2e-4), ("w8", 1e-3)];

fn perplexity(told: &Value) -> f64 {
    told["perplexity"].as_f64().expect("a number")
}

#[test]
fn the_shipped_model_keeps_the_perplexity_of_the_float_model() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let (model, text) = (assets.join("tiny-llama"), assets.join("heldout.txt"));
    let Some(mut script) = float_perplexity() else { return };
    let float = run_json(script.arg("--model").arg(&model).arg("--text").arg(&text));
    assert!((perplexity(&float) / TRANSFORMERS - 1.0).abs() < 1e-6, "{float}");
    let temp = tempfile::tempdir().expect("a folder");
    for (mode, limit) in MODES {
        let file = temp.path().join(mode);
        run_json(lockstep().args(["import", "--json", "--weights", mode, "--out"]).arg(&file).arg(&model));
        let told = run_json(lockstep().args(["perplexity", "--json", "--text"]).arg(&text).arg("--package").arg(&file));
        assert_eq!((&told["scored_tokens"], &told["saturations"]), (&float["scored_tokens"], &json!(0)), "{told}");
        let relative = perplexity(&told) / perplexity(&float) - 1.0;
        println!("{mode}: {:.5}, {:+.4}% of {:.5}", perplexity(&told), 100.0 * relative, perplexity(&float));
        assert!(relative.abs() < limit, "{mode}: {told} against {float}");
    }
}
