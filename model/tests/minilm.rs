//! The real all-MiniLM-L6-v2, from `$LOCKSTEP_MINILM` or where `scripts/fetch-minilm.py` puts it.

mod common;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_model::check::check;
use lockstep_model::import::{Options, import};
use lockstep_model::package::{Package, WeightMode};
use lockstep_model::tokenizer::TooLong;
use tempfile::TempDir;

fn folder() -> Option<PathBuf> {
    let cache = || {
        let home = || std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from).or_else(home);
        base.unwrap_or_default().join("lockstep/all-MiniLM-L6-v2")
    };
    let dir = std::env::var_os("LOCKSTEP_MINILM").map_or_else(cache, PathBuf::from);
    if dir.join("model.safetensors").is_file() {
        return Some(dir);
    }
    let what = format!("no model at {}: run scripts/fetch-minilm.py, or set LOCKSTEP_MINILM", dir.display());
    assert!(std::env::var_os("LOCKSTEP_REQUIRE_ALL").is_none(), "{what}");
    eprintln!("SKIPPED: {what}");
    None
}

fn imported(dir: &Path, weights: WeightMode, threads: usize) -> (TempDir, Package) {
    let out = TempDir::new().unwrap();
    let file = out.path().join("minilm.lsp");
    let backend = Cpu::new(None, threads).unwrap();
    let threads = NonZeroUsize::new(threads).unwrap();
    let options = Options { weights, threads, name: "all-MiniLM-L6-v2".into(), max_positions: None };
    let report = import(dir, &file, &options, &backend, &mut |_| {}).unwrap();
    assert_eq!(report.unused, ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]);
    let package = Package::open_checked(&file, threads).unwrap();
    assert_eq!(package.model_id(), report.model_id);
    check(&package, dir, threads).unwrap();
    (out, package)
}

/// What the other texts are compared with.
const TEXT: &str = "The treaty was ratified by all but two member states.";

#[test]
fn the_same_package_at_every_thread_count() {
    let Some(dir) = folder() else { return };
    for weights in [WeightMode::W16, WeightMode::W8] {
        let (_a, one) = imported(&dir, weights, 1);
        let (_b, two) = imported(&dir, weights, 2);
        assert_eq!(one.model_id(), two.model_id());
        let known = match weights {
            WeightMode::W16 => "2193d567c9857a2886be182a004dcf04b8096e4cde0fa5d047d4cfd93d23efdc",
            WeightMode::W8 => "66fc5c81778e3140ca2e38bc4af330cd72d123106de65d6326c8b20b75b969fb",
        };
        assert_eq!(one.model_id().to_string(), known);
    }
}

#[test]
fn both_modes_agree_and_meanings_are_near() {
    let Some(dir) = folder() else { return };
    let cpu = Cpu::new(None, 2).unwrap();
    let vectors = |weights| {
        let (_out, package) = imported(&dir, weights, 2);
        let tokenizer = package.tokenizer().unwrap();
        assert_eq!(tokenizer.limit(), 512);
        let embed = |text: &str| {
            let tokens = tokenizer.encode(text, TooLong::Refuse).unwrap();
            let (vector, saturations) = common::run(&package, &cpu as &dyn Backend, tokens);
            assert_eq!(saturations, 0);
            vector
        };
        [TEXT, "All except two countries approved the agreement.", "My cat hates the vacuum cleaner."].map(embed)
    };
    let (wide, narrow) = (vectors(WeightMode::W16), vectors(WeightMode::W8));
    for (wide, narrow) in wide.iter().zip(&narrow) {
        assert!(common::distance(wide, narrow) < 1e-3);
        assert!((wide.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-6);
    }
    let [a, b, c] = &wide;
    assert!(common::distance(a, b) < 0.4 && common::distance(a, c) > 0.8);
}

/// A text and its embedding by the float32 model of `scripts/quality.py`.
#[derive(serde::Deserialize)]
struct Known {
    text: String,
    embedding: Vec<f64>,
}

#[test]
fn embeddings_are_those_of_the_float32_model() {
    let Some(dir) = folder() else { return };
    let known: Vec<Known> = serde_json::from_str(include_str!("minilm_float32.json")).unwrap();
    assert_eq!(known.len(), 8);
    let cpu = Cpu::new(None, 2).unwrap();
    for (weights, most) in [(WeightMode::W16, 1e-5), (WeightMode::W8, 1e-3)] {
        let (_out, package) = imported(&dir, weights, 2);
        let tokenizer = package.tokenizer().unwrap();
        for Known { text, embedding } in &known {
            let tokens = tokenizer.encode(text, TooLong::Refuse).unwrap();
            let (vector, _) = common::run(&package, &cpu as &dyn Backend, tokens);
            let distance = common::distance(&vector, embedding);
            assert!(distance <= most, "{weights}: 1 - cosine is {distance:e} for {text:?}");
        }
    }
}
