//! The shapes that ops are measured at where none is asked for: those of the models that the docs speak of.
//!
//! Of a decoder one row, which is a word, and a prompt; of the encoder the rows of one text. Logits are made at one row
//! only, since of a prompt only the last one has any. Each op is measured at each distinct shape once.

use super::cases::{Spec, Variant};

/// Rows of a decoder's prompt.
const PROMPT: usize = 512;
/// Rows of an encoder's text.
const TEXT: usize = 128;
/// Positions that are in a cache when the next word is made.
const CACHES: [usize; 2] = [512, 2048];

struct Decoder {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
}

struct Encoder {
    hidden: usize,
    heads: usize,
    ffn: usize,
}

/// `SmolLM2` with 135 million parameters and `TinyLlama` with 1.1 billion.
const DECODERS: [Decoder; 2] = [
    Decoder { hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, ffn: 1536, vocab: 49_152 },
    Decoder { hidden: 2048, heads: 32, kv_heads: 4, head_dim: 64, ffn: 5632, vocab: 32_000 },
];

/// `all-MiniLM-L6-v2`.
const ENCODER: Encoder = Encoder { hidden: 384, heads: 12, ffn: 1536 };

/// All of an op; none where there is no such op.
pub fn defaults(op: &str) -> Vec<Spec> {
    let mut specs = Vec::new();
    let mut add = |shape: &[usize], variants: &[Variant]| {
        for spec in variants.iter().filter_map(|variant| Spec::new(op, shape, *variant).ok()) {
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        }
    };
    if op == "attention" {
        for Decoder { heads, kv_heads, head_dim, .. } in DECODERS {
            add(&[PROMPT, heads, kv_heads, head_dim], &[Variant::Causal]);
            for cached in CACHES {
                add(&[cached, heads, kv_heads, head_dim], &[Variant::Decode]);
            }
        }
        let Encoder { hidden, heads, .. } = ENCODER;
        add(&[TEXT, heads, heads, hidden / heads], &[Variant::Full]);
        return specs;
    }
    let variants = Variant::of(op);
    for decoder in DECODERS {
        for rows in [1, PROMPT] {
            for rest in decoder.shapes(op, rows) {
                add(&[&[rows], &rest[..]].concat(), variants);
            }
        }
    }
    for rest in ENCODER.shapes(op) {
        add(&[&[TEXT], &rest[..]].concat(), variants);
    }
    specs
}

impl Decoder {
    /// What follows the rows in the shapes of an op.
    fn shapes(&self, op: &str, rows: usize) -> Vec<Vec<usize>> {
        let &Self { hidden, heads, kv_heads, head_dim, ffn, vocab } = self;
        let mut shapes = match op {
            // Queries and what attention puts out, keys and values, gate and up, down.
            "matmul" => vec![
                vec![hidden, heads * head_dim],
                vec![hidden, kv_heads * head_dim],
                vec![hidden, ffn],
                vec![ffn, hidden],
            ],
            "rope" => vec![vec![heads, head_dim]],
            "embed" | "rms_norm" | "add" | "shift" | "gather" => vec![vec![hidden]],
            "quantize" => vec![vec![hidden], vec![ffn]],
            "silu" | "multiply" => vec![vec![ffn]],
            _ => Vec::new(),
        };
        if rows == 1 {
            match op {
                "matmul" => shapes.push(vec![hidden, vocab]),
                "sample" => shapes.push(vec![vocab]),
                _ => {}
            }
        }
        shapes
    }
}

impl Encoder {
    /// What follows the rows in the shapes of an op.
    fn shapes(&self, op: &str) -> Vec<Vec<usize>> {
        let &Self { hidden, ffn, .. } = self;
        match op {
            "matmul" => vec![vec![hidden, hidden], vec![hidden, ffn], vec![ffn, hidden]],
            "embed" | "layer_norm" | "add" | "mean_pool" | "first_pool" | "l2_normalize" => vec![vec![hidden]],
            "quantize" => vec![vec![hidden], vec![ffn]],
            "gelu" => vec![vec![ffn]],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::program::OP_NAMES;

    use super::*;

    #[test]
    fn every_op_has_shapes_and_what_is_none_has_not() {
        for op in OP_NAMES {
            let specs = defaults(op);
            assert!(!specs.is_empty(), "{op}");
            assert!(specs.iter().enumerate().all(|(i, spec)| !specs[..i].contains(spec)), "{op}: {specs:?}");
        }
        assert!(defaults("nothing").is_empty());
    }

    /// Written out, so that a table of the docs can be checked against it.
    #[test]
    fn the_products_are_those_of_the_models() {
        let of = |variant| {
            let specs = defaults("matmul").into_iter().filter(move |spec| spec.variant == variant);
            specs.map(|spec| spec.to_string()).collect::<Vec<_>>()
        };
        let expected = [
            "1x576x576",
            "1x576x192",
            "1x576x1536",
            "1x1536x576",
            "1x576x49152",
            "512x576x576",
            "512x576x192",
            "512x576x1536",
            "512x1536x576",
            "1x2048x2048",
            "1x2048x256",
            "1x2048x5632",
            "1x5632x2048",
            "1x2048x32000",
            "512x2048x2048",
            "512x2048x256",
            "512x2048x5632",
            "512x5632x2048",
            "128x384x384",
            "128x384x1536",
            "128x1536x384",
        ];
        assert_eq!(of(Variant::W8), expected);
        assert_eq!(of(Variant::W16), expected);
        let attention: Vec<String> =
            defaults("attention").iter().map(|spec| format!("{} {spec}", spec.variant.name())).collect();
        let decoders = ["9x3x64", "32x4x64"].map(|heads| {
            [format!("causal 512x{heads}"), format!("decode 512x{heads}"), format!("decode 2048x{heads}")]
        });
        assert_eq!(attention[..6], decoders.concat());
        assert_eq!(attention[6..], ["full 128x12x12x32"]);
    }
}
