//! Tensor names: llama.cpp's, and those of Hugging Face checkpoints, which the lowering asks for.

/// Outside the layers; the embedding table is the first.
pub(super) const HF_OF_GLOBAL: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Inside a layer, without `.weight` and `.bias`.
const HF_OF_PART: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The name that the lowering asks for; others keep theirs and are reported as unused.
pub(super) fn hf_name(name: &str) -> String {
    if let Some((_, hf)) = HF_OF_GLOBAL.iter().find(|(gguf, _)| *gguf == name) {
        return (*hf).to_owned();
    }
    in_layer(name).unwrap_or_else(|| name.to_owned())
}

fn in_layer(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // The canonical decimal only, so that two names never become one.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let (part, end) = rest.rsplit_once('.')?;
    let hf = HF_OF_PART.iter().find(|(gguf, _)| *gguf == part).map(|(_, hf)| *hf)?;
    matches!(end, "weight" | "bias").then(|| format!("model.layers.{layer}.{hf}.{end}"))
}

/// Whether the rows of this tensor are those of query heads (`Some(true)`) or key heads (`Some(false)`).
pub(super) fn rotated(name: &str) -> Option<bool> {
    let part = name.strip_prefix("blk.")?.split_once('.')?.1;
    match part {
        "attn_q.weight" | "attn_q.bias" => Some(true),
        "attn_k.weight" | "attn_k.bias" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(hf_name("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(hf_name("blk.12.attn_q.bias"), "model.layers.12.self_attn.q_proj.bias");
        assert_eq!(hf_name("blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        for kept in
            ["blk.01.attn_q.weight", "blk.x.attn_q.weight", "blk.1.attn_q.scale", "blk.1.ffn_gate_exps.weight", ""]
        {
            assert_eq!(hf_name(kept), kept);
        }
        assert_eq!(rotated("blk.3.attn_q.weight"), Some(true));
        assert_eq!(rotated("blk.3.attn_k.bias"), Some(false));
        assert_eq!(rotated("blk.3.attn_q_norm.weight"), None);
    }
}
