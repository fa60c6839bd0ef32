//! Small random decoders of odd shapes, of every family, against transformers in float32.
#![allow(clippy::disallowed_methods, reason = "the float model is a yardstick: it is never written into a package")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Op;
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, Sampler, Sequence, Value};
use lockstep_model::check::check;
use lockstep_model::import::{Options, import};
use lockstep_model::package::{Package, WeightMode};
use serde::Deserialize;
use tempfile::TempDir;

/// What transformers gives in float32 for these models, each on a text that it wrote itself (`scripts/families.py`).
const FIXTURE: &str = include_str!("families.json");

/// What a package has to keep to. Errors of logits are relative to the logits' deviation over the text.
struct Limits {
    /// Root of the mean square, over all logits.
    error: f64,
    /// The largest, over all logits.
    worst: f64,
    /// Positions with another likeliest token.
    other_top: f64,
    /// Perplexity of the text, more or less than that of the float model, in percent.
    text: f64,
    /// Perplexity that texts of the float model have on average, more than with the float model itself, in percent.
    expected: f64,
}

/// What each package keeps to. The targets of perplexity are 0.02% in w16, and in w8 0.1%: models as transformers initialises
/// them (`-initial`) meet both. The others have logits as far apart as a trained model's, and in w8 miss the target: Gaussian
/// weights are the hardest for 8 bits, and nothing about random inputs helps to round them. In one model the keys have biases
/// a hundred times those of the others, in another a channel of the residual stream is a thousand times the others, which
/// then have few bits left of 16: both have rare rows that come out worse.
fn limits(name: &str, weights: WeightMode) -> Limits {
    let initial = name.ends_with("-initial");
    let [error, worst, other_top, text, expected] = match (weights, name) {
        (WeightMode::W16, _) if initial => [0.0025, 0.03, 0.01, 0.02, 0.02],
        (WeightMode::W16, "qwen2-80-1") => [0.01, 0.25, 0.01, 0.05, 0.02],
        (WeightMode::W16, "spike") => [0.03, 1.5, 0.01, 0.5, 0.15],
        (WeightMode::W16, _) => [0.0025, 0.03, 0.01, 0.02, 0.002],
        (WeightMode::W8, _) if initial => [0.08, 0.8, 0.15, 0.1, 0.1],
        (WeightMode::W8, "qwen2-80-1") => [0.2, 3.0, 0.2, 8.0, 6.0],
        (WeightMode::W8, "spike") => [0.2, 6.0, 0.05, 1.0, 3.0],
        (WeightMode::W8, _) => [0.08, 0.8, 0.15, 1.5, 1.0],
    };
    Limits { error, worst, other_top, text, expected }
}

impl Limits {
    /// The names of those that a package does not keep to.
    fn broken_by(&self, found: &Distance) -> Vec<&'static str> {
        let checks = [
            ("error", found.error, self.error),
            ("worst", found.worst, self.worst),
            ("picked", found.picked, self.worst),
            ("other top", found.other_top, self.other_top),
            ("text", found.text.abs(), self.text),
            ("expected", found.expected.abs(), self.expected),
        ];
        checks.iter().filter(|(_, value, limit)| value >= limit).map(|(name, ..)| *name).collect()
    }
}

/// What transformers says of one model.
#[derive(Deserialize)]
struct Float {
    text: Vec<u32>,
    top: Vec<usize>,
    /// Of -ln p, over the text's tokens but the first.
    mean_nll: f64,
    /// Of the distributions that these were drawn from.
    mean_entropy: f64,
    /// Of all logits.
    deviation: f64,
    positions: Vec<usize>,
    columns: Vec<usize>,
    /// At these positions and columns.
    logits: Vec<Vec<f64>>,
}

/// How far a package is from the float model.
#[derive(Debug)]
struct Distance {
    error: f64,
    worst: f64,
    /// The largest error at those places of which transformers' own logits are kept.
    picked: f64,
    other_top: f64,
    text: f64,
    expected: f64,
    saturations: u64,
}

struct Reference {
    name: String,
    dir: PathBuf,
    float: Float,
    /// All of them, from the float64 model that the script holds to transformers.
    logits: Vec<f32>,
}

impl Reference {
    fn read(out: &Path, name: String, float: Float) -> Self {
        let dir = out.join(&name);
        let bytes = std::fs::read(dir.join("logits.f32")).unwrap();
        let logits = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Self { name, dir, float, logits }
    }

    fn package(&self, weights: WeightMode) -> Package {
        let file = self.dir.join(format!("{weights}.lsp"));
        let threads = NonZeroUsize::new(2).unwrap();
        let options = Options { weights, threads, name: "odd".into(), max_positions: None };
        import(&self.dir, &file, &options, &cpu(), &mut |_| {}).unwrap();
        Package::open_checked(&file, threads).unwrap()
    }

    fn distance(&self, package: &Package) -> Distance {
        let Float { text, top: tops, .. } = &self.float;
        let (found, saturations) = logits(package, text);
        let vocab = package.program().vocab_size as usize;
        let errors = || self.logits.iter().zip(&found).map(|(a, b)| (f64::from(*a) - b).abs());
        let error = (errors().map(|e| e * e).sum::<f64>() / found.len() as f64).sqrt();
        let rows: Vec<&[f64]> = found.chunks_exact(vocab).collect();
        let other_tops = rows.iter().zip(tops).filter(|(row, likeliest)| top(row) != **likeliest).count();
        let kept = self.float.positions.iter().zip(&self.float.logits);
        let picked = kept.flat_map(|(position, kept)| {
            let row = rows[*position];
            self.float.columns.iter().zip(kept).map(move |(column, logit)| (row[*column] - logit).abs())
        });
        // Of the text, and of all that the float model might have written instead.
        let (mut nll, mut cross) = (0.0, 0.0);
        for ((row, float), next) in rows.iter().zip(self.logits.chunks_exact(vocab)).zip(&text[1..]) {
            let ours = log_softmax(row.iter().copied());
            let theirs = log_softmax(float.iter().map(|x| f64::from(*x)));
            nll -= ours[*next as usize];
            cross += cross_entropy(&theirs, &ours);
        }
        let percent = |nll: f64, float: f64| 100.0 * (nll / (text.len() - 1) as f64 - float).exp_m1();
        let deviation = self.float.deviation;
        Distance {
            error: error / deviation,
            worst: errors().fold(0.0, f64::max) / deviation,
            picked: picked.fold(0.0, f64::max) / deviation,
            other_top: other_tops as f64 / text.len() as f64,
            text: percent(nll, self.float.mean_nll),
            expected: percent(cross, self.float.mean_entropy),
            saturations,
        }
    }
}

/// Of two rows of log-probabilities.
fn cross_entropy(theirs: &[f64], ours: &[f64]) -> f64 {
    theirs.iter().zip(ours).map(|(theirs, ours)| -theirs.exp() * ours).sum()
}

fn log_softmax(row: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let most = row.clone().fold(f64::NEG_INFINITY, f64::max);
    let total = row.clone().map(|x| (x - most).exp()).sum::<f64>().ln();
    row.map(|x| x - most - total).collect()
}

fn cpu() -> Cpu {
    Cpu::new(None, 2).unwrap()
}

fn top<T: PartialOrd>(row: &[T]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Logits of every position of one sequence, and how many values saturated.
fn logits(package: &Package, tokens: &[u32]) -> (Vec<f64>, u64) {
    let program = package.program();
    let last = program.layers.last().unwrap();
    let (tensor, frac) = last
        .ops
        .iter()
        .find_map(|op| match op {
            Op::Sample { logits, frac, .. } => Some((*logits, *frac)),
            _ => None,
        })
        .unwrap();
    let sampling = Sampling { prompt_tokens: 1, max_tokens: 1, ..Sampling::default() };
    let sampler = Sampler { sampling: Arc::new(sampling), draws: vec![0; tokens.len()] };
    let sequence = Sequence { sampler: Some(sampler), ..Sequence::new(tokens.to_vec()) };
    let mut executor = cpu().load(program.clone(), package.params()).unwrap();
    executor.begin(&Batch { sequences: vec![sequence] }).unwrap();
    let saturations = (0..program.layers.len()).map(|l| executor.run_layer(l).unwrap().saturations).sum();
    let Value::I32(logits) = executor.read(tensor).unwrap() else { panic!("logits are 32-bit") };
    let unit = 1.0 / f64::from(1_u32 << frac);
    (logits.into_iter().map(|x| f64::from(x) * unit).collect(), saturations)
}

/// The models, or `None` with a loud line.
fn references(out: &Path) -> Option<Vec<Reference>> {
    let Some(python) = std::env::var_os("LOCKSTEP_PYTHON") else {
        let what = "LOCKSTEP_PYTHON names no Python with the packages of scripts/requirements.txt: run scripts/test";
        assert!(std::env::var_os("LOCKSTEP_REQUIRE_ALL").is_none(), "{what}");
        eprintln!("SKIPPED: {what}");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/decoder_reference.py");
    let status = Command::new(python).arg(script).arg(out).status().unwrap();
    assert!(
        status.success(),
        "the models are not those of the fixture, or the float64 model is not that of transformers"
    );
    let floats: BTreeMap<String, Float> = serde_json::from_str(FIXTURE).unwrap();
    Some(floats.into_iter().map(|(name, float)| Reference::read(out, name, float)).collect())
}

#[test]
fn packages_keep_to_transformers_in_logits_and_perplexity() {
    let out = TempDir::new().unwrap();
    let Some(references) = references(out.path()) else { return };
    assert!(references.len() >= 32);
    println!("| model | tokens | perplexity | package | logit error | worst | other top-1 | text | expected |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut broken = Vec::new();
    for reference in references {
        for weights in [WeightMode::W16, WeightMode::W8] {
            let package = reference.package(weights);
            let found = reference.distance(&package);
            let (name, tokens) = (&reference.name, reference.float.text.len());
            println!(
                "| {name} | {tokens} | {:.2} | {weights} | {:.3}% | {:.2}% | {:.2}% | {:+.4}% | {:+.4}% |",
                reference.float.mean_nll.exp(),
                100.0 * found.error,
                100.0 * found.worst,
                100.0 * found.other_top,
                found.text,
                found.expected,
            );
            let wrong = limits(name, weights).broken_by(&found);
            broken.extend((!wrong.is_empty()).then(|| format!("{name} {weights}: {wrong:?}, {found:?}")));
            assert_eq!(found.saturations, 0, "{name} {weights}");
            check(&package, &reference.dir, NonZeroUsize::MIN).unwrap();
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
