//! A second implementation, in Python and written from SPEC.md alone, gives the same roots and checks the same receipts.

mod common;

use common::{lockstep, minilm, minilm_package, run, run_json, second_implementation};

#[test]
fn it_gives_the_same_roots() {
    let (Some(dir), Some(w8)) = (minilm(), minilm_package()) else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let w16 = temp.path().join("w16.lsp");
    run_json(lockstep().args(["import", "--json", "--weights", "w16", "--out"]).arg(&w16).arg(&dir));
    // One softmax block, and two.
    let long = "Integer addition is associative. ".repeat(50);
    let texts = ["Who computed this?", "Ein Satz, 短い文, короткая фраза", &long];
    for package in [w8, &w16] {
        let Some(mut other) = second_implementation() else { return };
        let theirs = run_json(other.arg("--package").arg(package).args(texts));
        let ours = run_json(lockstep().args(["embed", "--json", "--package"]).arg(package).args(texts));
        for key in ["model_id", "layer_roots", "integers"] {
            assert_eq!(theirs[key], ours[key], "{}: {key}", package.display());
        }
    }
}

#[test]
fn it_gives_the_golden_vectors() {
    let Some(mut other) = second_implementation() else { return };
    let output = run(other.arg("--vectors").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/vectors")));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for op in lockstep_kernels::program::OP_NAMES {
        assert!(text.contains(op), "{op} was not compared: {text}");
    }
}
