//! `config.json` of a decoder of the Llama family. What is not lowered is refused by name.

use std::path::Path;

use lockstep_protocol::limits::{MAX_CHECKPOINT_DIMENSION, MAX_CHECKPOINT_LAYERS};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{CONFIG, within};
use super::rope::{self, RopeConfig};
use crate::error::ModelError;

/// Families that share one lowering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
}

impl Family {
    const ALL: [(Self, &str, &str); 4] = [
        (Self::Llama, "llama", "LlamaForCausalLM"),
        (Self::Mistral, "mistral", "MistralForCausalLM"),
        (Self::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Self::Qwen3, "qwen3", "Qwen3ForCausalLM"),
    ];

    /// The family of a `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        Self::ALL.iter().find(|f| f.1 == model_type).map(|f| f.0)
    }

    /// Its `model_type`, the family in a manifest.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|f| f.0 == self).map_or("", |f| f.1)
    }

    fn architecture(self) -> &'static str {
        Self::ALL.iter().find(|f| f.0 == self).map_or("", |f| f.2)
    }
}

/// Checked dimensions and variants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which one.
    pub family: Family,
    /// Tokens are below this.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Transformer layers.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: u32,
    /// Elements of one head, even; `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: u32,
    /// Width of the feed-forward part.
    pub intermediate_size: u32,
    /// Longest sequence: the model's, or the lower cap that was asked for.
    pub max_positions: u32,
    /// Epsilon of every RMSNorm; finite, at least 0 and below 1.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Rotary embeddings.
    pub rope: RopeConfig,
}

impl DecoderConfig {
    /// Reads a `config.json` that does not come from a folder; `path` is for messages, `cap` limits the positions.
    ///
    /// # Errors
    /// What is malformed or not lowered.
    pub(crate) fn parse(path: &Path, json: &Map<String, Value>, cap: Option<u32>) -> Result<Self, ModelError> {
        let family = json.get("model_type").and_then(Value::as_str).and_then(Family::of);
        let family = family.ok_or_else(|| ModelError::checkpoint(path, "has no known model_type"))?;
        read(path, json, family, cap)
    }

    /// Whether queries and keys are normalised, head by head.
    pub fn has_head_norms(&self) -> bool {
        self.family == Family::Qwen3
    }
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: u32,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    max_position_embeddings: u32,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    pretraining_tp: Option<u32>,
    partial_rotary_factor: Option<f64>,
    architectures: Option<Vec<String>>,
}

/// Fields of relatives of these models. The reference implementations of the four families do not read them, so a
/// configuration that has one describes another model.
const FOREIGN: [&str; 22] = [
    "alibi",
    "attn_logit_softcapping",
    "attention_multiplier",
    "auto_map",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "moe_intermediate_size",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "q_lora_rank",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "scale_emb",
    "text_config",
];

/// Reads the configuration of a decoder; `path` is for messages, `cap` is the caller's limit of positions.
pub(super) fn read(
    path: &Path,
    json: &Map<String, Value>,
    family: Family,
    cap: Option<u32>,
) -> Result<DecoderConfig, ModelError> {
    refuse_foreign(json)?;
    let raw: Raw =
        serde_json::from_value(Value::Object(json.clone())).map_err(|e| ModelError::checkpoint(path, e.to_string()))?;
    refuse_variants(&raw, family)?;
    check_sizes(&raw, path)?;
    let heads = raw.num_attention_heads;
    let head_dim = head_dim(&raw, family, path)?;
    let kv_heads = match (raw.num_key_value_heads, family) {
        (Some(n), _) => n,
        (None, Family::Llama) => heads,
        (None, _) => return Err(ModelError::checkpoint(path, "num_key_value_heads is missing")),
    };
    within(path, "num_key_value_heads", kv_heads, heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(ModelError::checkpoint(path, "num_key_value_heads does not divide num_attention_heads"));
    }
    let epsilon = raw.rms_norm_eps.unwrap_or(1e-6);
    if !(0.0..1.0).contains(&epsilon) {
        return Err(ModelError::checkpoint(path, format!("rms_norm_eps is {epsilon}")));
    }
    let own = raw.max_position_embeddings;
    let max_positions = positions(own, cap)?;
    check_window(&raw, json.contains_key("sliding_window"), family, max_positions)?;
    let bias = raw.attention_bias == Some(true);
    let (qkv_bias, output_bias) = match family {
        Family::Llama | Family::Qwen3 => (bias, bias),
        Family::Mistral => (false, false),
        Family::Qwen2 => (true, false),
    };
    Ok(DecoderConfig {
        family,
        vocab_size: raw.vocab_size,
        hidden_size: raw.hidden_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: raw.intermediate_size,
        max_positions,
        rms_norm_eps: epsilon,
        tie_word_embeddings: raw.tie_word_embeddings == Some(true),
        qkv_bias,
        output_bias,
        mlp_bias: family == Family::Llama && raw.mlp_bias == Some(true),
        rope: rope::read(json, path, own)?,
    })
}

/// The model's own limit, or the caller's lower one.
fn positions(own: u32, cap: Option<u32>) -> Result<u32, ModelError> {
    match cap {
        Some(0) => Err(ModelError::Unsupported("a model without positions".into())),
        Some(cap) if cap > own => {
            Err(ModelError::Unsupported(format!("{cap} positions: the model is made for at most {own}")))
        }
        _ => Ok(cap.unwrap_or(own)),
    }
}

fn refuse_foreign(json: &Map<String, Value>) -> Result<(), ModelError> {
    let neutral = |v: &Value| v.is_null() || v == &Value::Bool(false);
    match FOREIGN.iter().find(|name| json.get(**name).is_some_and(|v| !neutral(v))) {
        Some(&"quantization_config") => {
            Err(ModelError::Unsupported("quantization_config: import the unquantised checkpoint".into()))
        }
        Some(&"auto_map") => {
            Err(ModelError::Unsupported("auto_map: the model is defined by code of its own in the folder".into()))
        }
        Some(name) => Err(ModelError::Unsupported(format!("{name} in {CONFIG}: no model of this family has it"))),
        None => Ok(()),
    }
}

fn refuse_variants(raw: &Raw, family: Family) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::Unsupported(what));
    if let Some(names) = &raw.architectures
        && names.iter().any(|n| n != family.architecture())
    {
        let [first @ .., last] = Family::ALL.map(|(_, _, architecture)| architecture);
        let lowered = format!("{} and {last} are lowered, each under its own model_type", first.join(", "));
        return refuse(format!("architectures {names:?} of model_type {:?}: only {lowered}", family.name()));
    }
    if let Some(act) = &raw.hidden_act
        && act != "silu"
    {
        return refuse(format!("hidden_act {act:?}: only \"silu\" is lowered"));
    }
    if let Some(tp) = raw.pretraining_tp.filter(|tp| *tp > 1) {
        return refuse(format!("pretraining_tp {tp}: set it to 1, which gives the same model up to rounding"));
    }
    if let Some(factor) = raw.partial_rotary_factor.filter(|f| *f != 1.0) {
        return refuse(format!("partial_rotary_factor {factor}: these families rotate whole heads"));
    }
    Ok(())
}

/// What the families with a window have where the configuration does not name it; `null` is none.
const DEFAULT_WINDOW: u32 = 4_096;

/// A window that never ends inside the context changes nothing.
fn check_window(raw: &Raw, is_named: bool, family: Family, max_positions: u32) -> Result<(), ModelError> {
    let on = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => raw.use_sliding_window == Some(true),
    };
    let (window, said) = if is_named { (raw.sliding_window, "") } else { (Some(DEFAULT_WINDOW), " (by default)") };
    match window.filter(|w| on && *w < max_positions) {
        Some(window) => Err(ModelError::Unsupported(format!(
            "sliding_window {window}{said} under {max_positions} positions: cap the context with --max-positions {window}"
        ))),
        None => Ok(()),
    }
}

fn check_sizes(raw: &Raw, path: &Path) -> Result<(), ModelError> {
    within(path, "vocab_size", raw.vocab_size, MAX_CHECKPOINT_DIMENSION)?;
    within(path, "hidden_size", raw.hidden_size, MAX_CHECKPOINT_DIMENSION)?;
    within(path, "num_hidden_layers", raw.num_hidden_layers, MAX_CHECKPOINT_LAYERS)?;
    within(path, "num_attention_heads", raw.num_attention_heads, u16::MAX.into())?;
    within(path, "intermediate_size", raw.intermediate_size, MAX_CHECKPOINT_DIMENSION)?;
    within(path, "max_position_embeddings", raw.max_position_embeddings, MAX_CHECKPOINT_DIMENSION)
}

fn head_dim(raw: &Raw, family: Family, path: &Path) -> Result<u32, ModelError> {
    let head_dim = match (raw.head_dim, family) {
        (Some(n), _) => n,
        (None, Family::Qwen3) => 128,
        (None, _) if raw.hidden_size.is_multiple_of(raw.num_attention_heads) => {
            raw.hidden_size / raw.num_attention_heads
        }
        (None, _) => return Err(ModelError::checkpoint(path, "num_attention_heads does not divide hidden_size")),
    };
    within(path, "head_dim", head_dim, u16::MAX.into())?;
    if head_dim % 2 == 1 {
        return Err(ModelError::Unsupported(format!("head_dim {head_dim}: rotary pairs need an even one")));
    }
    // What queries and values take must stay a dimension, too.
    match head_dim.checked_mul(raw.num_attention_heads) {
        Some(n) => within(path, "num_attention_heads * head_dim", n, MAX_CHECKPOINT_DIMENSION).map(|()| head_dim),
        None => Err(ModelError::checkpoint(path, "num_attention_heads * head_dim is too large")),
    }
}
