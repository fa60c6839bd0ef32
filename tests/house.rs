//! Code about the code: the direction of the arrows, twins of ops, banned tokens, sizes of files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may depend on. Arrows point down only; a new arrow is a decision, and is made here.
const ARROWS: [(&str, &[&str]); 12] = [
    (".", &["benches", "coordinator", "cuda", "kernels", "link", "model", "protocol", "shaders", "sim", "worker"]),
    ("benches", &["coordinator", "kernels", "link", "model", "protocol", "shaders", "sim", "worker"]),
    ("sim", &["kernels", "model", "protocol"]),
    ("coordinator", &["kernels", "link", "model", "protocol"]),
    ("worker", &["kernels", "link", "model", "protocol", "shaders"]),
    ("link", &["protocol"]),
    ("shaders", &["kernels"]),
    ("kernels/cuda", &["kernels"]),
    ("kernels/cuda/emulation", &["cuda", "kernels"]),
    ("model", &["kernels", "protocol"]),
    ("kernels", &[]),
    ("protocol", &[]),
];

/// Crates of the pure core, and what must not occur in their sources outside tests. Clippy bans the same things by
/// type; this catches what hides behind a path or a macro.
const PURE: [(&str, &[&str]); 2] = [
    (
        "protocol",
        &["std::time", "std::fs", "std::net", "std::thread", "tokio", "getrandom", "HashMap", "HashSet", "f32", "f64"],
    ),
    ("kernels", &["std::time", "std::fs", "std::net", "getrandom", "HashMap", "HashSet", "f32", "f64"]),
];

/// Marks of unfinished work; spelled in two halves so that this file does not find itself.
const UNFINISHED: [&str; 6] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("#[ign", "ore"),
    concat!("dbg", "!("),
];

/// Longest file of sources, in lines.
const LONGEST_FILE: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` with one of the extensions, without build output and hidden folders.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {extensions:?} below {}", dir.display());
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn stems(dir: &str, extension: &str) -> BTreeSet<String> {
    let stem = |p: PathBuf| p.file_stem().and_then(|s| s.to_str()).map(str::to_owned);
    let direct = |p: &PathBuf| p.parent() == Some(&root().join(dir));
    files(&root().join(dir), &[extension]).into_iter().filter(direct).filter_map(stem).collect()
}

#[test]
fn arrows_point_down_only() {
    let arrows: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().expect("valid TOML");
    let members = workspace["workspace"]["members"].as_array().expect("a list of members");
    for member in members {
        let member = member.as_str().expect("a path");
        let allowed = arrows.get(member).unwrap_or_else(|| panic!("{member} is new: give it its arrows"));
        let manifest: toml::Table = read(&root().join(member).join("Cargo.toml")).parse().expect("valid TOML");
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        for name in dependencies.into_iter().flat_map(toml::Table::keys) {
            if let Some(target) = name.strip_prefix("lockstep-") {
                assert!(allowed.contains(&target), "{member} must not depend on {target}");
            }
        }
    }
}

#[test]
fn every_op_has_all_its_twins() {
    let ops: BTreeSet<String> = lockstep_kernels::program::OP_NAMES.iter().map(ToString::to_string).collect();
    let twins = ["kernels/src/reference", "kernels/src/cpu", "kernels/src/steps"].map(|dir| (dir, "rs"));
    let others = [("kernels/cuda", "cu"), ("kernels/vectors", "json"), ("shaders/wgsl", "wgsl")];
    for (dir, extension) in twins.into_iter().chain(others) {
        let have = stems(dir, extension);
        let missing: Vec<_> = ops.difference(&have).collect();
        assert!(missing.is_empty(), "{dir} lacks {missing:?}");
    }
    let spec = read(&root().join("SPEC.md"));
    for op in &ops {
        assert!(spec.contains(&format!("**{op}**")), "SPEC.md does not define {op}");
    }
}

#[test]
fn pure_crates_stay_pure() {
    for (dir, banned) in PURE {
        for path in files(&root().join(dir).join("src"), &["rs"]) {
            let text = read(&path);
            // Tests measure errors and make files; what ships does not.
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_test = path.components().any(|c| c.as_os_str() == "tests.rs" || c.as_os_str() == "tests");
            for (number, line) in shipped.lines().enumerate().filter(|_| !is_test) {
                let code = line.split("//").next().unwrap_or_default();
                for token in banned {
                    assert!(!code.contains(token), "{}:{}: {token} in the pure core", path.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for path in files(root(), &["rs", "py", "sh", "toml", "cu", "cuh", "cpp", "h", "wgsl"]) {
        let text = read(&path);
        for mark in UNFINISHED {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn files_hold_one_thing() {
    for path in files(root(), &["rs", "py", "sh", "cu", "cuh", "cpp", "h", "wgsl"]) {
        let lines = read(&path).lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines: split it", path.display());
    }
}

/// A dead link in the documents sends a newcomer nowhere.
#[test]
fn links_in_documents_lead_somewhere() {
    for path in files(root(), &["md"]) {
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let at = path.parent().expect("a file has a folder").join(target);
            assert!(at.exists(), "{}: {target} does not exist", path.display());
        }
    }
}

/// Each rule of disputes names the tests that hold it.
#[test]
fn the_tests_that_rules_of_disputes_name_are_there() {
    let text = read(&root().join("docs/disputes.md"));
    let (_, rules) = text.split_once("## Rules").expect("the rules have a section");
    let sources: String = files(root(), &["rs"]).iter().map(|file| read(file)).collect();
    let is_test = |name: &&str| name.contains('_') && !name.contains('/');
    let named: Vec<&str> = rules.split('`').skip(1).step_by(2).filter(is_test).collect();
    let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(named.len() > 40 && missing.is_empty(), "{} are named, missing: {missing:?}", named.len());
}
