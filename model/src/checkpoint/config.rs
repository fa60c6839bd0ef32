//! `config.json` of a BERT encoder, and which family a configuration is of. What is not lowered is refused by name.

use std::path::Path;

use lockstep_protocol::limits::{MAX_CHECKPOINT_DIMENSION, MAX_CHECKPOINT_LAYERS};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::decoder::{self, Family};
use super::{Config, Folder, pooling};
use crate::error::ModelError;

pub(super) const CONFIG: &str = "config.json";

/// Checked dimensions of a BERT encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Tokens are below this.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Transformer layers.
    pub num_hidden_layers: u32,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: u32,
    /// Width of the feed-forward part.
    pub intermediate_size: u32,
    /// Longest sequence.
    pub max_position_embeddings: u32,
    /// Rows of the token type table.
    pub type_vocab_size: u32,
    /// Epsilon of every LayerNorm; finite, at least 0 and below 1.
    pub layer_norm_eps: f64,
}

impl BertConfig {
    /// Elements of one attention head.
    pub fn head_dim(&self) -> u32 {
        self.hidden_size / self.num_attention_heads
    }
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    vocab_size: u32,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    intermediate_size: u32,
    max_position_embeddings: u32,
    type_vocab_size: u32,
    layer_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: Option<bool>,
    #[serde(default)]
    add_cross_attention: Option<bool>,
    #[serde(default)]
    quantization_config: Option<Value>,
}

/// Reads the configuration, and an encoder's pooling; `cap` is the caller's limit of a decoder's positions.
pub(super) fn read(folder: &mut Folder<'_>, cap: Option<u32>) -> Result<(Config, Map<String, Value>), ModelError> {
    // The type first: another family lacks other fields, and its name is the better message.
    let json: Map<String, Value> = folder.json(CONFIG)?;
    let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let config = match Family::of(kind) {
        Some(family) => Config::Decoder(decoder::read(&folder.path(CONFIG), &json, family, cap)?),
        None if kind == "bert" && cap.is_some() => {
            return Err(ModelError::Unsupported("a cap of an encoder's positions".into()));
        }
        None if kind == "bert" => {
            let bert = read_bert(folder, &json)?;
            let postprocessing = pooling::read(folder, bert.hidden_size)?;
            Config::Bert(bert, postprocessing)
        }
        None => {
            return Err(ModelError::Unsupported(format!(
                "model_type {kind:?}: bert, llama, mistral, qwen2 and qwen3 are lowered"
            )));
        }
    };
    Ok((config, json))
}

fn read_bert(folder: &Folder<'_>, json: &Map<String, Value>) -> Result<BertConfig, ModelError> {
    let path = folder.path(CONFIG);
    let raw: Raw = serde_json::from_value(Value::Object(json.clone()))
        .map_err(|e| ModelError::checkpoint(&path, e.to_string()))?;
    refuse_variants(&raw)?;
    check_sizes(&raw, &path)?;
    Ok(BertConfig {
        vocab_size: raw.vocab_size,
        hidden_size: raw.hidden_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        intermediate_size: raw.intermediate_size,
        max_position_embeddings: raw.max_position_embeddings,
        type_vocab_size: raw.type_vocab_size,
        layer_norm_eps: raw.layer_norm_eps,
    })
}

fn refuse_variants(raw: &Raw) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::Unsupported(what));
    debug_assert_eq!(raw.model_type, "bert");
    if let Some(names) = &raw.architectures
        && names.iter().any(|n| n != "BertModel")
    {
        return refuse(format!("architectures {names:?}: only BertModel is lowered"));
    }
    if raw.hidden_act != "gelu" {
        return refuse(format!("hidden_act {:?}: only \"gelu\" is lowered", raw.hidden_act));
    }
    if let Some(kind) = &raw.position_embedding_type
        && kind != "absolute"
    {
        return refuse(format!("position_embedding_type {kind:?}: only \"absolute\" is lowered"));
    }
    if raw.is_decoder == Some(true) {
        return refuse("is_decoder: only encoders are lowered".into());
    }
    if raw.add_cross_attention == Some(true) {
        return refuse("add_cross_attention is not lowered".into());
    }
    if raw.quantization_config.is_some() {
        return refuse("quantization_config: import the unquantised checkpoint".into());
    }
    Ok(())
}

/// Whether a dimension is positive and within its cap.
pub(super) fn within(path: &Path, name: &str, value: u32, cap: u32) -> Result<(), ModelError> {
    if (1..=cap).contains(&value) {
        return Ok(());
    }
    Err(ModelError::checkpoint(path, format!("{name} is {value}; 1 to {cap} is possible")))
}

fn check_sizes(raw: &Raw, path: &Path) -> Result<(), ModelError> {
    let within = |name: &str, value: u32, cap: u32| within(path, name, value, cap);
    within("vocab_size", raw.vocab_size, MAX_CHECKPOINT_DIMENSION)?;
    within("hidden_size", raw.hidden_size, MAX_CHECKPOINT_DIMENSION)?;
    within("num_hidden_layers", raw.num_hidden_layers, MAX_CHECKPOINT_LAYERS)?;
    within("num_attention_heads", raw.num_attention_heads, raw.hidden_size.min(u16::MAX.into()))?;
    within("intermediate_size", raw.intermediate_size, MAX_CHECKPOINT_DIMENSION)?;
    within("max_position_embeddings", raw.max_position_embeddings, MAX_CHECKPOINT_DIMENSION)?;
    within("type_vocab_size", raw.type_vocab_size, MAX_CHECKPOINT_DIMENSION)?;
    if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
        return Err(ModelError::checkpoint(path, "num_attention_heads does not divide hidden_size"));
    }
    within("hidden_size / num_attention_heads", raw.hidden_size / raw.num_attention_heads, u16::MAX.into())?;
    if !(raw.layer_norm_eps >= 0.0 && raw.layer_norm_eps < 1.0) {
        return Err(ModelError::checkpoint(path, format!("layer_norm_eps is {}", raw.layer_norm_eps)));
    }
    Ok(())
}
