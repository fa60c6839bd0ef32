//! A GGUF file and the folder that it could have been made from give the same model.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use lockstep_kernels::cpu::Cpu;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::kind::Kind;
use super::writer::Writer;
use crate::checkpoint::{DecoderConfig, TensorSource, f16_to_f32};
use crate::error::ModelError;
use crate::import::{Options, import};
use crate::package::{Package, WeightMode};
use crate::synth::{RandomTensors, tokenizer_json};
use crate::tokenizer::TooLong;

const THREADS: NonZeroUsize = NonZeroUsize::new(2).expect("not 0");
const VOCABULARY: u32 = 300;
const TEXTS: [&str; 4] = ["", "eternal ether", "Zürich  42\n\nit's", "<|endoftext|>a"];

fn config(family: &str, tied: bool) -> Value {
    json!({
        "model_type": family, "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 300, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
        "hidden_act": "silu", "eos_token_id": 0,
    })
}

/// A tensor as both formats store it.
struct Stored {
    shape: Vec<u32>,
    kind: Kind,
    bytes: Vec<u8>,
    /// What the bytes mean.
    values: Vec<f32>,
}

/// Rounds to what the type can say; vectors stay in single precision, as exporters leave them.
fn store(kind: Kind, shape: &[usize], values: &[f32]) -> Stored {
    let kind = if shape.len() == 1 { Kind::F32 } else { kind };
    let mut bytes = Vec::new();
    let mut means = Vec::new();
    match kind {
        Kind::F32 => values.iter().for_each(|v| {
            bytes.extend(v.to_le_bytes());
            means.push(*v);
        }),
        Kind::BF16 => values.iter().for_each(|v| {
            let upper = (v.to_bits() >> 16) as u16;
            bytes.extend(upper.to_le_bytes());
            means.push(f32::from_bits(u32::from(upper) << 16));
        }),
        Kind::F16 => values.iter().for_each(|v| {
            // Random weights are normal halves: truncate the exponent's offset and the fraction.
            let bits = v.to_bits();
            let exponent = (bits >> 23 & 255).saturating_sub(112);
            let half = (bits >> 16 & 0x8000) | if exponent == 0 { 0 } else { exponent << 10 | bits >> 13 & 1023 };
            bytes.extend((half as u16).to_le_bytes());
            means.push(f16_to_f32(half as u16));
        }),
        Kind::Q8_0 => values.chunks(32).for_each(|block| {
            let scale = 0x0c00u16;
            bytes.extend(scale.to_le_bytes());
            for value in block {
                let code = (value / f16_to_f32(scale)).round().clamp(-127.0, 127.0) as i8;
                bytes.push(code as u8);
                means.push(f32::from(code) * f16_to_f32(scale));
            }
        }),
    }
    Stored { shape: shape.iter().map(|n| *n as u32).collect(), kind, bytes, values: means }
}

/// A folder in the type of the file, except that safetensors have no blocks.
fn write_folder(dir: &Path, config: &Value, tensors: &BTreeMap<String, Stored>) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, t)| match t.kind {
            Kind::Q8_0 => (name, t.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            _ => (name, t.bytes.clone()),
        })
        .collect();
    let view = |(name, t): (&String, &Stored)| {
        let dtype = match t.kind {
            Kind::F16 => Dtype::F16,
            Kind::BF16 => Dtype::BF16,
            Kind::F32 | Kind::Q8_0 => Dtype::F32,
        };
        let shape = t.shape.iter().map(|n| *n as usize).collect();
        (name.clone(), TensorView::new(dtype, shape, &bytes[name]).expect("the shape fits"))
    };
    let views: BTreeMap<String, TensorView<'_>> = tensors.iter().map(view).collect();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("written");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("written");
    std::fs::write(dir.join("tokenizer.json"), tokenizer_json(VOCABULARY).expect("a size")).expect("written");
    std::fs::write(dir.join("chat_template.jinja"), "{{ messages }}").expect("written");
}

const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => PARTS.iter().fold(name.replace("model.layers.", "blk."), |name, (hf, gguf)| name.replace(hf, gguf)),
    }
}

/// llama.cpp's order of a head's rows: neighbours are half a head apart in the original.
fn interleave(stored: &Stored, head_dim: usize) -> Vec<u8> {
    let row = stored.bytes.len() / stored.shape[0] as usize;
    let rows: Vec<&[u8]> = stored.bytes.chunks(row).collect();
    let order = (0..rows.len()).map(|out| {
        let (head, at) = (out / head_dim, out % head_dim);
        rows[head * head_dim + at % 2 * (head_dim / 2) + at / 2]
    });
    order.flatten().copied().collect()
}

fn gguf_file(config: &Value, tensors: &BTreeMap<String, Stored>) -> Writer {
    let family = config["model_type"].as_str().expect("a text");
    let mut file = Writer::default();
    file.text("general.architecture", family);
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
    ] {
        file.u32(&format!("{family}.{key}"), config[field].as_u64().expect("an integer") as u32);
    }
    file.f32(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-5);
    file.f32(&format!("{family}.rope.freq_base"), 10_000.0);
    let tokenizer: Value = serde_json::from_slice(&tokenizer_json(VOCABULARY).expect("a size")).expect("JSON");
    let mut tokens = vec![String::new(); VOCABULARY as usize];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("a map") {
        tokens[id.as_u64().expect("an id") as usize] = token.clone();
    }
    let merges = tokenizer["model"]["merges"].as_array().expect("a list");
    let merges: Vec<String> =
        merges.iter().map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
    let mut kinds = vec![1; tokens.len()];
    kinds[0] = 3;
    file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &merges).u32("tokenizer.ggml.eos_token_id", 0);
    file.text("tokenizer.chat_template", "{{ messages }}");
    for (name, stored) in tensors {
        let rotated = family == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
        let bytes = if rotated { interleave(stored, 16) } else { stored.bytes.clone() };
        let kind = match stored.kind {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::Q8_0 => 8,
            Kind::BF16 => 30,
        };
        file.tensor(&gguf_name(name), &stored.shape, kind, bytes);
    }
    file
}

fn tensors(config: &Value, kind: Kind) -> BTreeMap<String, Stored> {
    let map = config.as_object().expect("an object");
    let config = DecoderConfig::parse(Path::new("config.json"), map, None).expect("sound");
    let random = RandomTensors::new(&config, 7, THREADS);
    let tensor = |name: &str| {
        let shape = random.shape(name).expect("it has one");
        (name.to_owned(), store(kind, shape, &random.values(name).expect("it is there")))
    };
    random.names().into_iter().map(tensor).collect()
}

fn package(from: &Path, to: &Path, weights: WeightMode) -> Result<Package, ModelError> {
    let options = Options { weights, threads: THREADS, name: "same".into(), max_positions: None };
    import(from, to, &options, &Cpu::new(None, THREADS.get())?, &mut |_| {})?;
    Package::open_checked(to, THREADS)
}

fn assert_same(family: &str, tied: bool, kind: Kind, weights: WeightMode) {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, file) = (config(family, tied), dir.path().join("model.gguf"));
    let tensors = tensors(&config, kind);
    write_folder(dir.path(), &config, &tensors);
    std::fs::write(&file, gguf_file(&config, &tensors).bytes()).expect("written");
    let folder = package(dir.path(), &dir.path().join("a.lsp"), weights).expect("the folder");
    let gguf = package(&file, &dir.path().join("b.lsp"), weights).expect("the file");
    assert_eq!(folder.program(), gguf.program());
    assert_eq!(folder.manifest().params, gguf.manifest().params);
    assert_eq!(folder.manifest().stop_tokens, gguf.manifest().stop_tokens);
    assert_eq!(folder.manifest().family, gguf.manifest().family);
    assert_eq!(folder.template().unwrap(), gguf.template().unwrap());
    assert_eq!(gguf.manifest().sources[0].name, "model.gguf");
    let tokenizers = [folder.tokenizer().expect("it loads"), gguf.tokenizer().expect("it loads")];
    for text in TEXTS {
        let [a, b] = tokenizers.each_ref().map(|t| t.encode(text, TooLong::Refuse));
        assert_eq!(a, b, "{text:?}");
    }
}

#[test]
fn llama_in_every_type() {
    for kind in [Kind::F32, Kind::F16, Kind::BF16, Kind::Q8_0] {
        assert_same("llama", kind == Kind::F16, kind, WeightMode::W16);
    }
}

#[test]
fn qwen2_with_biases_and_qwen3_with_head_norms() {
    assert_same("qwen2", true, Kind::F32, WeightMode::W16);
    assert_same("qwen3", false, Kind::BF16, WeightMode::W8);
}

/// A file with one more key or tensor is refused, for this reason.
fn refused(change: impl Fn(&mut Writer), why: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, path) = (config("llama", true), dir.path().join("model.gguf"));
    let mut file = gguf_file(&config, &tensors(&config, Kind::F32));
    change(&mut file);
    std::fs::write(&path, file.bytes()).expect("written");
    let error = package(&path, &dir.path().join("a.lsp"), WeightMode::W16).expect_err("not lowered").to_string();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

#[test]
fn what_is_another_function_is_refused_by_name() {
    refused(
        |f| {
            f.u32("llama.expert_count", 8);
        },
        "expert_count",
    );
    refused(
        |f| {
            f.u32("llama.attention.sliding_window", 64);
        },
        "sliding_window",
    );
    refused(
        |f| {
            f.u32("llama.rope.dimension_count", 8);
        },
        "8 rotated",
    );
    refused(
        |f| {
            f.text("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0);
        },
        "yarn",
    );
    refused(
        |f| {
            f.tensor("rope_freqs.weight", &[8], 0, vec![0; 32]);
        },
        "rope_freqs.weight",
    );
    refused(
        |f| {
            f.tensor("blk.0.attn_q.scale", &[1], 0, vec![0; 4]);
        },
        "blk.0.attn_q.scale",
    );
}

#[test]
fn tokenizers_that_cannot_be_built_exactly_are_refused_by_name() {
    let with = |model: &str, pre: Option<&str>| {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.gguf");
        let mut file = Writer::default();
        file.text("general.architecture", "llama").text("tokenizer.ggml.model", model);
        for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
        {
            file.u32(&format!("llama.{key}"), 1);
        }
        if let Some(pre) = pre {
            file.text("tokenizer.ggml.pre", pre);
        }
        std::fs::write(&path, file.bytes()).expect("written");
        package(&path, &dir.path().join("a.lsp"), WeightMode::W16).expect_err("no such tokenizer").to_string()
    };
    assert!(with("bert", None).contains("\"bert\""));
    assert!(with("gpt2", None).contains("tokenizer.ggml.pre is missing"));
    assert!(with("gpt2", Some("tekken")).contains("\"tekken\""));
}
