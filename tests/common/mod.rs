//! What the tests of the program share: running it, the real model, and what to do where it is missing.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use lockstep_model::package::{Package, write};
use serde_json::Value;

pub mod liar;
pub mod processes;

/// The program under test.
pub fn lockstep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

/// Runs to a successful end, and reads the JSON object on the last line.
pub fn run_json(command: &mut Command) -> Value {
    let output = run(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {stderr}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last:?}"))
}

/// The checkpoint of all-MiniLM-L6-v2, or `None` with a loud line where this machine does not have it. With
/// `LOCKSTEP_REQUIRE_ALL` set, its absence fails the test.
pub fn minilm() -> Option<PathBuf> {
    let default = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .map(|c| c.join("lockstep/all-MiniLM-L6-v2"))
    };
    let dir = std::env::var_os("LOCKSTEP_MINILM").map(PathBuf::from).or_else(default);
    let found = dir.filter(|d| d.join("model.safetensors").exists());
    if found.is_none() {
        skipped("all-MiniLM-L6-v2 is not on this machine: run scripts/fetch-minilm.py");
    }
    found
}

/// Says that a test did not run, and fails it where everything must run.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("LOCKSTEP_REQUIRE_ALL").is_none(), "a test that must run can't: {why}");
    eprintln!("SKIPPED: {why}");
}

/// A package of the real model in 8 bits, made once for all tests of a file.
pub fn minilm_package() -> Option<&'static Path> {
    static PACKAGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("minilm-w8-{}.lsp", std::process::id()));
        run_json(
            lockstep()
                .args(["import", "--json", "--weights", "w8", "--name", "minilm", "--out"])
                .arg(&file)
                .arg(minilm()?),
        );
        Some(file)
    };
    PACKAGE.get_or_init(make).as_deref()
}

/// A package of the model that ships with the program, called `shipped`, made once for all tests of a file.
pub fn shipped_package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shipped-w8-{}.lsp", std::process::id()));
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama");
        let import = ["import", "--json", "--weights", "w8", "--name", "shipped", "--out"];
        run_json(lockstep().args(import).arg(&file).arg(checkpoint));
        file
    })
}

/// Small packages with made-up weights that have every op between them, in this folder. They run in no time, and have no
/// tokenizer.
pub fn small_packages(folder: &Path) -> Vec<PathBuf> {
    lockstep_sim::models::all().iter().map(|package| save_package(folder, package)).collect()
}

/// One of the simulation's models as a file.
pub fn save_package(folder: &Path, package: &Package) -> PathBuf {
    let path = folder.join(format!("{}.lsp", package.manifest().name));
    write(&path, package.manifest(), |index| package.blob(index).to_vec()).expect("a package");
    path
}

/// The second implementation in Python, or `None` with a loud line.
pub fn second_implementation() -> Option<Command> {
    python("second_implementation")
}

/// Its judge of disputes, or `None` with a loud line.
pub fn second_judge() -> Option<Command> {
    python("second_implementation/judge.py")
}

/// The perplexity of a float model, or `None` with a loud line.
pub fn float_perplexity() -> Option<Command> {
    python("perplexity.py")
}

/// The test of the official OpenAI client, or `None` with a loud line.
pub fn openai_client() -> Option<Command> {
    python("../tests/openai_client.py")
}

/// A script, or `None` with a loud line.
fn python(script: &str) -> Option<Command> {
    let Some(python) = std::env::var_os("LOCKSTEP_PYTHON") else {
        skipped("LOCKSTEP_PYTHON names no Python with the packages of scripts/requirements.txt: run scripts/test");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script));
    Some(command)
}
