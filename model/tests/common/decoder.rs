//! A tiny decoder with random weights as a Hugging Face folder.
#![allow(dead_code, reason = "each test file uses another part")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lockstep_kernels::cpu::Cpu;
use lockstep_model::ModelError;
use lockstep_model::import::{ImportReport, Options, import};
use lockstep_model::package::{Package, WeightMode};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Random, Tensors};

pub const HIDDEN: usize = 32;
pub const HEAD_DIM: usize = 24;
pub const HEADS: usize = 2;
pub const INNER: usize = 56;
pub const LAYERS: usize = 2;
pub const VOCAB: usize = 271;
pub const POSITIONS: u32 = 48;

pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": 1, "head_dim": HEAD_DIM, "intermediate_size": INNER, "tie_word_embeddings": true,
        "max_position_embeddings": POSITIONS, "rope_theta": 10_000.0, "eos_token_id": 2,
    })
}

pub fn tensors(seed: u64) -> Tensors {
    let mut random = Random(seed);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], middle: f64, spread: f64| {
        let elements = (0..shape.iter().product()).map(|_| (middle + spread * random.next()) as f32).collect();
        tensors.insert(name, (shape.to_vec(), elements));
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 0.0, 0.5);
    add("model.norm.weight".into(), &[HIDDEN], 1.0, 0.2);
    for l in 0..LAYERS {
        let p = format!("model.layers.{l}");
        for (part, rows, cols) in [
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            add(format!("{p}.{part}.weight"), &[rows, cols], 0.0, 0.25);
        }
        add(format!("{p}.input_layernorm.weight"), &[HIDDEN], 1.0, 0.2);
        add(format!("{p}.post_attention_layernorm.weight"), &[HIDDEN], 1.0, 0.2);
    }
    tensors
}

/// Byte-level BPE: three special tokens, the 256 bytes, one merge.
pub fn tokenizer() -> Value {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 0x100..;
    let mut vocab = Map::new();
    for (id, token) in ["<pad>", "<begin>", "<end>"].into_iter().enumerate() {
        vocab.insert(token.into(), json!(id));
    }
    for b in 0..=255_u8 {
        let c = if printable(b) { char::from(b) } else { char::from_u32(others.next().unwrap()).unwrap() };
        vocab.insert(c.to_string(), json!(3 + usize::from(b)));
    }
    vocab.insert("th".into(), json!(259));
    let special = |id: usize, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let byte = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<pad>"), special(1, "<begin>"), special(2, "<end>")],
        "pre_tokenizer": byte, "decoder": byte,
        "model": { "type": "BPE", "dropout": null, "vocab": vocab, "merges": [["t", "h"]] },
    })
}

pub struct Folder {
    pub dir: TempDir,
    pub tensors: Tensors,
}

impl Folder {
    pub fn new(seed: u64) -> Self {
        let folder = Self { dir: TempDir::new().unwrap(), tensors: tensors(seed) };
        folder.put("config.json", &config());
        folder.put("tokenizer.json", &tokenizer());
        folder.put_tensors("model.safetensors", |_| true);
        folder
    }

    /// The same with one field of the configuration changed.
    pub fn with(key: &str, value: Value) -> Self {
        let folder = Self::new(1);
        let mut edited = config();
        edited[key] = value;
        folder.put("config.json", &edited);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn put(&self, name: &str, value: &Value) {
        std::fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    /// Writes some of the tensors into a file.
    pub fn put_tensors(&self, file: &str, which: impl Fn(&str) -> bool) {
        let chosen = || self.tensors.iter().filter(|(name, _)| which(name));
        let bytes: BTreeMap<&String, Vec<u8>> =
            chosen().map(|(n, (_, e))| (n, e.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
        let view = |(n, (shape, _)): (&String, &(Vec<usize>, _))| {
            (n.clone(), TensorView::new(Dtype::F32, shape.clone(), &bytes[n]).unwrap())
        };
        std::fs::write(self.path(file), safetensors::serialize(chosen().map(view), None).unwrap()).unwrap();
    }

    pub fn import_to(
        &self,
        file: &Path,
        weights: WeightMode,
        threads: usize,
        max_positions: Option<u32>,
    ) -> Result<ImportReport, ModelError> {
        let backend = Cpu::new(None, threads).unwrap();
        let threads = NonZeroUsize::new(threads).unwrap();
        let options = Options { weights, threads, name: "tiny".into(), max_positions };
        import(self.dir.path(), file, &options, &backend, &mut |_| {})
    }

    pub fn import(&self, weights: WeightMode, max_positions: Option<u32>) -> Result<Package, ModelError> {
        let file = self.path(&format!("{weights}.lsp"));
        self.import_to(&file, weights, 1, max_positions)?;
        Package::open_checked(&file, NonZeroUsize::MIN)
    }

    /// Imports and expects an error that has all these parts.
    pub fn expect(&self, parts: &[&str]) {
        let error = self.import(WeightMode::W16, None).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error} should contain {part}");
        }
    }
}
