//! Names of the tensors of a checkpoint of the Llama family.

use crate::checkpoint::{Checkpoint, DecoderConfig};
use crate::error::ModelError;

/// Prefix of layer `l`, counted from 0.
pub fn layer(l: u32) -> String {
    format!("model.layers.{l}")
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm";
pub const HEAD: &str = "lm_head.weight";

/// Whether a layer has a tensor with this name after its prefix.
fn in_layer(config: &DecoderConfig, part: &str) -> bool {
    match part {
        "input_layernorm.weight" | "post_attention_layernorm.weight" => true,
        "self_attn.q_proj.weight" | "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => true,
        "self_attn.o_proj.weight" | "mlp.gate_proj.weight" | "mlp.up_proj.weight" | "mlp.down_proj.weight" => true,
        "self_attn.q_proj.bias" | "self_attn.k_proj.bias" | "self_attn.v_proj.bias" => config.qkv_bias,
        "self_attn.o_proj.bias" => config.output_bias,
        "self_attn.q_norm.weight" | "self_attn.k_norm.weight" => config.has_head_norms(),
        "mlp.gate_proj.bias" | "mlp.up_proj.bias" | "mlp.down_proj.bias" => config.mlp_bias,
        _ => false,
    }
}

/// Refuses tensors that the configuration does not describe; returns those that it does and inference does not use: a
/// tied head's copy, and the frequencies that old files hold.
pub fn check(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<Vec<String>, ModelError> {
    let mut unused = Vec::new();
    for name in checkpoint.weights.names() {
        let part = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        // `+0` and `00` parse too, and nobody would read such a tensor.
        let exists = |l: &str| l.parse().is_ok_and(|n: u32| n < config.num_hidden_layers && n.to_string() == l);
        let known = match part {
            Some((l, "self_attn.rotary_emb.inv_freq")) if exists(l) => {
                unused.push(name.to_owned());
                true
            }
            Some((l, part)) => exists(l) && in_layer(config, part),
            None if name == HEAD && config.tie_word_embeddings => {
                unused.push(name.to_owned());
                true
            }
            None => matches!(name, EMBEDDING | HEAD | "model.norm.weight"),
        };
        if !known {
            let reason = format!("is not part of the {} model that config.json describes", config.family.name());
            return Err(ModelError::tensor(name, reason));
        }
    }
    Ok(unused)
}
