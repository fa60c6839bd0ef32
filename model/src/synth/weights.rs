//! Random tensors: each follows from the seed, its name and its shape, so they are made when they are read and kept
//! nowhere.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use crate::checkpoint::{DecoderConfig, TensorSource};
use crate::error::ModelError;
use crate::parallel;

/// Standard deviation of matrices and biases, as Llama's initialisation has it.
const DEVIATION: f64 = 0.02;
/// Elements that one call of a thread makes.
const PIECE: usize = 1 << 16;

/// What fills a tensor.
#[derive(Clone, Copy, Debug)]
enum Filling {
    /// The scale of a norm.
    Ones,
    /// A bell curve around 0 with this standard deviation.
    Bell(f64),
}

/// The tensors of one model.
#[derive(Debug)]
pub(crate) struct RandomTensors {
    seed: u64,
    threads: NonZeroUsize,
    tensors: BTreeMap<String, (Vec<usize>, Filling)>,
}

impl RandomTensors {
    /// The tensors that a model of this configuration has.
    pub fn new(config: &DecoderConfig, seed: u64, threads: NonZeroUsize) -> Self {
        let (d, inner) = (config.hidden_size as usize, config.intermediate_size as usize);
        let queries = (config.num_attention_heads * config.head_dim) as usize;
        let keys = (config.num_key_value_heads * config.head_dim) as usize;
        // What is added to the residual stream adds up over twice as many blocks as there are layers.
        let adding = DEVIATION / f64::from(2 * config.num_hidden_layers).sqrt();
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], filling| tensors.insert(name, (shape.to_vec(), filling));
        let bell = Filling::Bell(DEVIATION);
        let vocabulary = [config.vocab_size as usize, d];
        add("model.embed_tokens.weight".into(), &vocabulary, bell);
        if !config.tie_word_embeddings {
            add("lm_head.weight".into(), &vocabulary, bell);
        }
        add("model.norm.weight".into(), &[d], Filling::Ones);
        for l in 0..config.num_hidden_layers {
            let mut add =
                |part: &str, shape: &[usize], filling| add(format!("model.layers.{l}.{part}"), shape, filling);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(&format!("{norm}.weight"), &[d], Filling::Ones);
            }
            for (part, rows, bias) in
                [("q", queries, config.qkv_bias), ("k", keys, config.qkv_bias), ("v", keys, config.qkv_bias)]
            {
                add(&format!("self_attn.{part}_proj.weight"), &[rows, d], bell);
                if bias {
                    add(&format!("self_attn.{part}_proj.bias"), &[rows], bell);
                }
            }
            if config.has_head_norms() {
                add("self_attn.q_norm.weight", &[config.head_dim as usize], Filling::Ones);
                add("self_attn.k_norm.weight", &[config.head_dim as usize], Filling::Ones);
            }
            add("self_attn.o_proj.weight", &[d, queries], Filling::Bell(adding));
            add("mlp.gate_proj.weight", &[inner, d], bell);
            add("mlp.up_proj.weight", &[inner, d], bell);
            add("mlp.down_proj.weight", &[d, inner], Filling::Bell(adding));
        }
        Self { seed, threads, tensors }
    }
}

impl TensorSource for RandomTensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (shape, filling) = self.tensors.get(name).ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        let mut values = vec![1.0; shape.iter().product()];
        if let Filling::Bell(deviation) = *filling {
            let key = key(self.seed, name);
            let scale = deviation / BELL_DEVIATION;
            // A last piece that is shorter is made like the others, so the split shows nowhere.
            let whole = values.len() / PIECE * PIECE;
            let (pieces, rest) = values.split_at_mut(whole);
            parallel::for_each_piece(pieces, PIECE, self.threads, |n, piece| fill(piece, key, n * PIECE, scale));
            fill(rest, key, whole, scale);
        }
        Ok(values)
    }
}

/// The first 64 bits of the keyed hash of the name.
fn key(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("lockstep 2026-11 v1 synthetic tensor");
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Standard deviation of the sum of four of 65,536 equally likely integers: `sqrt(4 * (2^32 - 1) / 12)`.
const BELL_DEVIATION: f64 = 37_837.226_6;

fn fill(piece: &mut [f32], key: u64, first: usize, scale: f64) {
    for (i, value) in piece.iter_mut().enumerate() {
        let bits = mix(key.wrapping_add((first + i) as u64));
        let sum: i64 = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i64).sum();
        // Twice the distance from the middle, which lies between two integers.
        *value = ((2 * sum - 4 * 65_535) as f64 * 0.5 * scale) as f32;
    }
}

/// The finaliser of SplitMix64, after its increment.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bell_has_its_deviation() {
        let mut values = vec![0.0; 1 << 18];
        fill(&mut values, 7, 0, DEVIATION / BELL_DEVIATION);
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-4, "{mean}");
        assert!((variance.sqrt() / DEVIATION - 1.0).abs() < 0.01, "{variance}");
    }

    #[test]
    fn elements_do_not_depend_on_the_split() {
        let mut whole = vec![0.0; 1_000];
        fill(&mut whole, 3, 0, 1.0);
        let mut part = vec![0.0; 400];
        fill(&mut part, 3, 600, 1.0);
        assert_eq!(whole[600..], part);
        assert_ne!(key(1, "a"), key(2, "a"));
        assert_ne!(key(1, "a"), key(1, "b"));
    }
}
