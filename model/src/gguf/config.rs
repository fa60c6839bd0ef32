//! GGUF's keys as the `config.json` that means the same, so that one reader checks both.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::names::HF_OF_GLOBAL;
use super::reader::{Contents, Value};

/// Architectures by their `model_type`. Mistral's models are `llama` in GGUF, and the same function.
const ARCHITECTURES: [(&str, &str); 3] = [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];

/// Keys under the architecture that change the function, with what leaves it as it is.
const NEUTRAL: [(&str, i128); 6] = [
    ("expert_count", 0),
    ("expert_used_count", 0),
    ("attention.sliding_window", 0),
    ("attention.causal", 1),
    ("use_parallel_residual", 0),
    ("pooling_type", 0),
];

/// Typed access to the keys of one file.
pub(super) struct Keys<'a> {
    metadata: &'a BTreeMap<&'a str, Value<'a>>,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys of a file of a known architecture.
    pub fn of(contents: &'a Contents<'a>) -> Result<Self, Refusal> {
        let Some(Value::Text(architecture)) = contents.metadata.get("general.architecture") else {
            return Err(Refusal::Malformed("general.architecture is missing".into()));
        };
        if !ARCHITECTURES.iter().any(|(name, _)| name == architecture) {
            return Err(Refusal::Unsupported(format!(
                "the architecture {architecture:?}: llama, qwen2 and qwen3 are lowered"
            )));
        }
        Ok(Self { metadata: &contents.metadata, architecture })
    }

    /// Whether llama.cpp has interleaved the rows of queries and keys.
    pub fn has_interleaved_heads(&self) -> bool {
        self.architecture == "llama"
    }

    /// A key as it stands.
    pub fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.metadata.get(key)
    }

    fn own(&self, key: &str) -> Option<&'a Value<'a>> {
        self.get(&format!("{}.{key}", self.architecture))
    }

    /// An integer in the range of `u32`.
    pub fn integer(&self, key: &str) -> Result<Option<u32>, Refusal> {
        integer(&format!("{}.{key}", self.architecture), self.own(key))
    }

    fn required(&self, key: &str) -> Result<u32, Refusal> {
        self.integer(key)?.ok_or_else(|| Refusal::Malformed(format!("{}.{key} is missing", self.architecture)))
    }

    fn real(&self, key: &str) -> Result<Option<f64>, Refusal> {
        match self.own(key) {
            None => Ok(None),
            Some(Value::Real(value)) => Ok(Some(*value)),
            Some(other) => Err(Refusal::Malformed(format!("{}.{key} is {other:?}", self.architecture))),
        }
    }

    /// `(query heads, key and value heads)`.
    pub fn heads(&self) -> Result<(u32, u32), Refusal> {
        let heads = self.required("attention.head_count")?;
        Ok((heads, self.integer("attention.head_count_kv")?.unwrap_or(heads)))
    }
}

/// An integer key in the range of `u32`.
pub(super) fn integer(key: &str, value: Option<&Value<'_>>) -> Result<Option<u32>, Refusal> {
    match value {
        None => Ok(None),
        Some(Value::Integer(n)) => u32::try_from(*n).map(Some).map_err(|_| Refusal::Malformed(format!("{key} is {n}"))),
        Some(Value::Integers(_)) => Err(Refusal::Unsupported(format!("{key} differs from layer to layer"))),
        Some(_) => Err(Refusal::Malformed(format!("{key} is no integer"))),
    }
}

/// Why a sound file is not imported, or what is not sound about it.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The file contradicts itself.
    Malformed(String),
    /// The model is not lowered.
    Unsupported(String),
}

/// The `config.json` that means the same.
pub(super) fn json(keys: &Keys<'_>, contents: &Contents<'_>) -> Result<Map<String, Json>, Refusal> {
    for (key, neutral) in NEUTRAL {
        let differs = match keys.own(key) {
            None | Some(Value::Skipped) => false,
            Some(Value::Integer(n)) => *n != neutral,
            Some(Value::Bool(b)) => i128::from(*b) != neutral,
            Some(_) => true,
        };
        if differs {
            return Err(Refusal::Unsupported(format!("{}.{key} in a GGUF file", keys.architecture)));
        }
    }
    let tensor = |name: &str| contents.tensors.get(name);
    let hidden = keys.required("embedding_length")?;
    let (heads, kv_heads) = keys.heads()?;
    let rows = tensor(HF_OF_GLOBAL[0].0).map_or(0, |t| t.shape[0]);
    let head_dim = head_dim(keys, hidden, heads)?;
    let model_type = ARCHITECTURES.iter().find(|(name, _)| *name == keys.architecture).map_or("", |(_, t)| t);
    let has_bias = |part: &str| tensor(&format!("blk.0.{part}.bias")).is_some();
    let attention_bias = keys.architecture == "llama" && has_bias("attn_q");
    let mut config = json!({
        "model_type": model_type,
        "vocab_size": rows,
        "hidden_size": hidden,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": keys.required("feed_forward_length")?,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon")?,
        "hidden_act": "silu",
        "tie_word_embeddings": tensor("output.weight").is_none(),
        "attention_bias": attention_bias,
        "mlp_bias": keys.architecture == "llama" && has_bias("ffn_gate"),
        "rope_theta": keys.real("rope.freq_base")?.unwrap_or(10_000.0),
    });
    if let Some(scaling) = rope_scaling(keys, contents)? {
        config["rope_scaling"] = scaling;
    }
    match config {
        Json::Object(map) => Ok(map),
        _ => unreachable!("the literal above is an object"),
    }
}

fn head_dim(keys: &Keys<'_>, hidden: u32, heads: u32) -> Result<u32, Refusal> {
    let default = hidden.checked_div(heads).unwrap_or(0);
    let key = keys.integer("attention.key_length")?.unwrap_or(default);
    let value = keys.integer("attention.value_length")?.unwrap_or(default);
    let rotary = keys.integer("rope.dimension_count")?.unwrap_or(key);
    if key != value || key != rotary {
        let what =
            format!("heads of {key} for keys, {value} for values and {rotary} rotated: these families have one size");
        return Err(Refusal::Unsupported(what));
    }
    Ok(key)
}

/// Only what is the same function in both worlds. llama.cpp writes the factors of Llama 3.1 as a tensor.
fn rope_scaling(keys: &Keys<'_>, contents: &Contents<'_>) -> Result<Option<Json>, Refusal> {
    if contents.tensors.contains_key("rope_freqs.weight") {
        let what = "rope_freqs.weight (the frequencies of Llama 3.1): import the Hugging Face folder";
        return Err(Refusal::Unsupported(what.into()));
    }
    let kind = match keys.own("rope.scaling.type") {
        None => "none",
        Some(Value::Text(kind)) => kind,
        Some(_) => return Err(Refusal::Malformed("rope.scaling.type is no text".into())),
    };
    let factor = keys.real("rope.scaling.factor")?;
    match (kind, factor) {
        ("none", _) => match keys.real("rope.scale_linear")? {
            None => Ok(None),
            Some(1.0) => Ok(None),
            Some(scale) => Ok(Some(json!({"rope_type": "linear", "factor": scale}))),
        },
        ("linear", Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        ("linear", None) => Err(Refusal::Malformed("rope.scaling.factor is missing".into())),
        (other, _) => Err(Refusal::Unsupported(format!("rope.scaling.type {other:?}: import the Hugging Face folder"))),
    }
}
