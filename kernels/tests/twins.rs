//! One op, one basename, everywhere.

use std::collections::BTreeSet;

use lockstep_kernels::program::OP_NAMES;

/// Files without their extension, in a folder of this crate.
fn files(folder: &str, extension: &str) -> BTreeSet<String> {
    let path = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let names = entries.map(|e| e.expect("a readable folder").file_name().into_string().expect("plain names"));
    names.filter_map(|name| name.strip_suffix(extension).map(str::to_owned)).collect()
}

/// The folder holds a file for every op, these others, and nothing else.
fn assert_twins(folder: &str, extension: &str, others: &[&str]) {
    let expected: BTreeSet<String> = OP_NAMES.iter().chain(others).map(|name| (*name).to_owned()).collect();
    assert_eq!(files(folder, extension), expected, "{folder}/*{extension}");
}

#[test]
fn every_op_has_all_its_twins() {
    assert_twins("src/reference", ".rs", &["mod", "normalize"]);
    assert_twins(
        "src/cpu",
        ".rs",
        &["decode", "mod", "normalize", "packed", "path", "pool", "softmax", "table", "threads"],
    );
    assert_twins("cuda", ".cu", &["append", "attention_mma", "chunks", "matmul_mma", "matmul_wgmma", "row_steps"]);
    assert_twins("vectors", ".json", &["fixed"]);
}

#[test]
fn op_names_are_unique() {
    assert_eq!(OP_NAMES.iter().collect::<BTreeSet<_>>().len(), OP_NAMES.len());
}
