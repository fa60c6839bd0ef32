//! A tiny BERT with random weights as a Hugging Face folder, and the same network in plain doubles.
#![allow(clippy::disallowed_methods, reason = "the float model is a yardstick: it is never written into a package")]
#![allow(dead_code, reason = "each test file uses another part")]

pub mod decoder;

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::Batch;
use lockstep_model::ModelError;
use lockstep_model::embed::{embed, to_real};
use lockstep_model::import::{ImportReport, Options, import};
use lockstep_model::output::Wanted;
use lockstep_model::package::{Package, WeightMode};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const HIDDEN: usize = 40;
pub const HEADS: usize = 5;
pub const INNER: usize = 96;
pub const LAYERS: usize = 2;
pub const VOCAB: usize = 61;
pub const POSITIONS: usize = 23;
pub const EPSILON: f64 = 1e-12;

/// Tensors of a folder: shape and elements.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub struct Folder {
    pub dir: TempDir,
    pub tensors: Tensors,
}

/// A small generator of pseudo-random numbers in (-1, 1), about normal.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        (0..4).map(|_| self.uniform()).sum::<f64>() / 2.0
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1 << 30) - 1.0
    }
}

pub fn random_tensors(seed: u64) -> Tensors {
    let mut random = Random(seed);
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize], middle: f64, spread: f64| {
        let elements = (0..shape.iter().product()).map(|_| (middle + spread * random.next()) as f32).collect();
        tensors.insert(name.into(), (shape.to_vec(), elements));
    };
    add("embeddings.word_embeddings.weight", &[VOCAB, HIDDEN], 0.0, 0.2);
    add("embeddings.position_embeddings.weight", &[POSITIONS, HIDDEN], 0.0, 0.1);
    add("embeddings.token_type_embeddings.weight", &[2, HIDDEN], 0.0, 0.1);
    add("pooler.dense.weight", &[HIDDEN, HIDDEN], 0.0, 0.1);
    add("pooler.dense.bias", &[HIDDEN], 0.0, 0.1);
    let mut norms = vec!["embeddings.LayerNorm".to_string()];
    for l in 0..LAYERS {
        let p = format!("encoder.layer.{l}");
        for (part, rows, cols) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INNER, HIDDEN),
            ("output.dense", HIDDEN, INNER),
        ] {
            add(&format!("{p}.{part}.weight"), &[rows, cols], 0.0, 0.25);
            add(&format!("{p}.{part}.bias"), &[rows], 0.0, 0.1);
        }
        norms.extend([format!("{p}.attention.output.LayerNorm"), format!("{p}.output.LayerNorm")]);
    }
    for norm in norms {
        add(&format!("{norm}.weight"), &[HIDDEN], 1.0, 0.3);
        add(&format!("{norm}.bias"), &[HIDDEN], 0.0, 0.2);
    }
    tensors
}

pub fn config() -> Value {
    json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
        "position_embedding_type": "absolute", "layer_norm_eps": EPSILON, "type_vocab_size": 2,
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
    })
}

/// Words `w0` to `w50`, with padding and truncation that an import must drop.
fn tokenizer() -> Value {
    let mut vocab: BTreeMap<String, usize> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].iter().enumerate().map(|(i, t)| (t.to_string(), i)).collect();
    vocab.extend((0..51).map(|i| (format!("w{i}"), i + 4)));
    let special = |t: &str, id: usize| json!({ "id": t, "ids": [id], "tokens": [t] });
    json!({
        "version": "1.0",
        "truncation": { "max_length": 7, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": {
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": "[SEP]", "type_id": 0 } },
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { "[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3) },
        },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    })
}

impl Folder {
    pub fn new(seed: u64) -> Self {
        Self::with(random_tensors(seed), "mean_tokens", true)
    }

    pub fn with(tensors: Tensors, pooling: &str, normalize: bool) -> Self {
        let folder = Self { dir: TempDir::new().unwrap(), tensors };
        folder.put("config.json", &config());
        folder.put("tokenizer.json", &tokenizer());
        let module = |i: usize, path: &str, kind: &str| json!({ "idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}") });
        let mut modules = vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
        if normalize {
            modules.push(module(2, "2_Normalize", "Normalize"));
        }
        folder.put("modules.json", &json!(modules));
        let mut modes = serde_json::Map::new();
        modes.insert("word_embedding_dimension".into(), json!(HIDDEN));
        for mode in ["cls_token", "mean_tokens", "max_tokens"] {
            modes.insert(format!("pooling_mode_{mode}"), json!(mode == pooling));
        }
        std::fs::create_dir(folder.path("1_Pooling")).unwrap();
        folder.put("1_Pooling/config.json", &Value::Object(modes));
        folder.put_tensors(Dtype::F32);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn put(&self, name: &str, value: &Value) {
        std::fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    /// Writes the weights; half types must hold them exactly.
    pub fn put_tensors(&self, dtype: Dtype) {
        let narrow = |x: f32| match dtype {
            Dtype::BF16 => ((x.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let bytes: BTreeMap<&String, Vec<u8>> =
            self.tensors.iter().map(|(n, (_, e))| (n, e.iter().flat_map(|x| narrow(*x)).collect())).collect();
        let views = self
            .tensors
            .iter()
            .map(|(name, (shape, _))| (name.clone(), TensorView::new(dtype, shape.clone(), &bytes[name]).unwrap()));
        std::fs::write(self.path("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    pub fn import_to(&self, file: &Path, weights: WeightMode, threads: usize) -> Result<ImportReport, ModelError> {
        let options =
            Options { weights, threads: NonZeroUsize::new(threads).unwrap(), name: "tiny".into(), max_positions: None };
        import(self.dir.path(), file, &options, &Reference, &mut |_| {})
    }

    pub fn import(&self, weights: WeightMode) -> Result<Package, ModelError> {
        let file = self.path(&format!("{weights}.lsp"));
        self.import_to(&file, weights, 1)?;
        Package::open_checked(&file, NonZeroUsize::MIN)
    }

    fn rows(&self, name: &str) -> Vec<Vec<f64>> {
        let (shape, elements) = &self.tensors[name];
        elements.chunks(*shape.last().unwrap()).map(|r| r.iter().map(|x| f64::from(*x)).collect()).collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.rows(name).remove(0)
    }

    fn linear(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let (w, b) = (self.rows(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        x.iter().map(|x| w.iter().zip(&b).map(|(w, b)| dot(w, x) + b).collect()).collect()
    }

    fn norm(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let (g, b) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let row = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let root = (variance + EPSILON).sqrt();
            x.iter().zip(&g).zip(&b).map(|((x, g), b)| (x - mean) / root * g + b).collect()
        };
        x.iter().map(row).collect()
    }

    fn attention(&self, x: &[Vec<f64>], p: &str) -> Vec<Vec<f64>> {
        let [q, k, v] = ["query", "key", "value"].map(|s| self.linear(x, &format!("{p}.self.{s}")));
        let dim = HIDDEN / HEADS;
        let mut out = vec![vec![0.0; HIDDEN]; x.len()];
        for h in (0..HIDDEN).step_by(dim) {
            for (t, out) in out.iter_mut().enumerate() {
                let score = |k: &Vec<f64>| dot(&q[t][h..h + dim], &k[h..h + dim]) / (dim as f64).sqrt();
                let weights: Vec<f64> = k.iter().map(|k| score(k).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (v, w) in v.iter().zip(&weights) {
                    (h..h + dim).for_each(|c| out[c] += w / sum * v[c]);
                }
            }
        }
        out
    }

    /// The last layer's rows in doubles.
    pub fn hidden(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let table = |name: &str| self.rows(&format!("embeddings.{name}_embeddings.weight"));
        let (words, positions, types) = (table("word"), table("position"), table("token_type"));
        let embedded = tokens
            .iter()
            .enumerate()
            .map(|(t, id)| (0..HIDDEN).map(|i| words[*id as usize][i] + positions[t][i] + types[0][i]).collect());
        let mut x = self.norm(&embedded.collect::<Vec<_>>(), "embeddings.LayerNorm");
        for l in 0..LAYERS {
            let p = format!("encoder.layer.{l}");
            let context = self.attention(&x, &format!("{p}.attention"));
            let a = self.linear(&context, &format!("{p}.attention.output.dense"));
            x = self.norm(&sum(&x, &a), &format!("{p}.attention.output.LayerNorm"));
            let mut inner = self.linear(&x, &format!("{p}.intermediate.dense"));
            inner.iter_mut().flatten().for_each(|x| *x *= gauss(*x));
            let o = self.linear(&inner, &format!("{p}.output.dense"));
            x = self.norm(&sum(&x, &o), &format!("{p}.output.LayerNorm"));
        }
        x
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

/// The Gauss integral: `1/2 + φ(x) (x + x³/3 + x⁵/15 + ...)`.
fn gauss(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, 0.0, 3.0);
    while term.abs() > 1e-18 {
        sum += term;
        term *= x * x / n;
        n += 2.0;
    }
    0.5 + (-x * x / 2.0).exp() / (2.0 * PI).sqrt() * sum
}

pub fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len()).map(|i| rows.iter().map(|r| r[i]).sum::<f64>() / rows.len() as f64).collect()
}

/// `1 - cosine`, without cancellation.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    let (na, nb) = (dot(a, a).sqrt(), dot(b, b).sqrt());
    a.iter().zip(b).map(|(a, b)| (a / na - b / nb) * (a / na - b / nb)).sum::<f64>() / 2.0
}

/// Runs a package over one sequence.
pub fn run(package: &Package, backend: &dyn Backend, tokens: Vec<u32>) -> (Vec<f64>, u64) {
    let mut executor = backend.load(package.program().clone(), package.params()).unwrap();
    let go_on = |_: lockstep_model::embed::Layer<'_>| std::ops::ControlFlow::Continue(());
    let out = embed(&mut *executor, package.program(), &Batch::single(tokens), Wanted::Root, go_on).unwrap();
    (to_real(&out.rows[0], package.manifest().output_frac), out.saturations)
}
