//! Known shapes, as their published `config.json` has them.

use serde_json::{Map, Value, json};

/// A model's dimensions and variants.
#[derive(Debug)]
pub struct Shape {
    /// What the command line calls it.
    pub name: &'static str,
    family: &'static str,
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    context: u32,
    theta: f64,
    epsilon: f64,
    tied: bool,
}

/// Longest context unless another is asked for: rotary tables of 131,072 positions help nobody's benchmark.
pub const DEFAULT_POSITIONS: u32 = 8_192;

/// All shapes.
pub const SHAPES: [Shape; 7] = [
    Shape {
        name: "tiny",
        family: "llama",
        vocab_size: 512,
        hidden_size: 64,
        intermediate_size: 160,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context: 1_024,
        theta: 10_000.0,
        epsilon: 1e-5,
        tied: true,
    },
    Shape {
        name: "smollm2-135m",
        family: "llama",
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1_536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        context: 8_192,
        theta: 100_000.0,
        epsilon: 1e-5,
        tied: true,
    },
    Shape {
        name: "qwen2-0.5b",
        family: "qwen2",
        vocab_size: 151_936,
        hidden_size: 896,
        intermediate_size: 4_864,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        context: 32_768,
        theta: 1_000_000.0,
        epsilon: 1e-6,
        tied: true,
    },
    Shape {
        name: "qwen3-0.6b",
        family: "qwen3",
        vocab_size: 151_936,
        hidden_size: 1_024,
        intermediate_size: 3_072,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        context: 40_960,
        theta: 1_000_000.0,
        epsilon: 1e-6,
        tied: true,
    },
    Shape {
        name: "tinyllama-1.1b",
        family: "llama",
        vocab_size: 32_000,
        hidden_size: 2_048,
        intermediate_size: 5_632,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        context: 2_048,
        theta: 10_000.0,
        epsilon: 1e-5,
        tied: false,
    },
    Shape {
        name: "mistral-7b",
        family: "mistral",
        vocab_size: 32_000,
        hidden_size: 4_096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        context: 32_768,
        theta: 1_000_000.0,
        epsilon: 1e-5,
        tied: false,
    },
    Shape {
        name: "llama-8b",
        family: "llama",
        vocab_size: 128_256,
        hidden_size: 4_096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        context: 131_072,
        theta: 500_000.0,
        epsilon: 1e-5,
        tied: false,
    },
];

impl Shape {
    /// The shape of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// Longest context, unless `asked` for another; the model's own is the limit.
    pub fn positions(&self, asked: Option<u32>) -> u32 {
        asked.unwrap_or(DEFAULT_POSITIONS.min(self.context))
    }

    /// The `config.json`.
    pub(super) fn config(&self) -> Map<String, Value> {
        let config = json!({
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rms_norm_eps": self.epsilon,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
        });
        match config {
            Value::Object(map) => map,
            _ => unreachable!("the literal above is an object"),
        }
    }
}
