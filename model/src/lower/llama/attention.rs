//! The first half of a layer: queries, keys and values, head by head (SPEC 27.6).

use std::f64::consts::LOG2_E;

use lockstep_kernels::fixed::SCORE_FRAC;
use lockstep_kernels::program::Norm;

use super::parts::{Lowering, Real};
use super::{AttentionPlan, Product, Rotated, names};
use crate::error::ModelError;
use crate::lower::formats::{self, NormRow, largest, rotated};
use crate::rope;

/// Most fractional bits that queries and keys have beyond their codes before they are rotated.
const ROPE_BITS: i32 = 12;
/// Attention's output has so many fractional bits more than its values.
const VALUE_GAIN: i32 = 15;
/// Most bits that query and key of a head give up together. A proof by norms is loose by several bits each, and by more
/// where a family's keys have large biases.
const MAX_BORROWED: i32 = 8;

impl Lowering<'_> {
    pub(super) fn attention(&mut self, l: u32) -> Result<AttentionPlan, ModelError> {
        let (c, p) = (self.config, names::layer(l));
        let (d, head_dim) = (c.hidden_size, c.head_dim as usize);
        let (queries, keys) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (row, norm, frac_in) = self.row_norm(&format!("{p}.input_layernorm"))?;
        let factor = self.query_factor();
        let (in_query, in_norm) = if c.has_head_norms() { (1.0, factor) } else { (factor, 1.0) };
        let query = self.read(l, "self_attn.q_proj", [queries, d], c.qkv_bias, in_query)?;
        let key = self.read(l, "self_attn.k_proj", [keys, d], c.qkv_bias, 1.0)?;
        let query_norm = self.head_norm(&format!("{p}.self_attn.q_norm"), in_norm)?;
        let key_norm = self.head_norm(&format!("{p}.self_attn.k_norm"), 1.0)?;
        let place = format!("{p} scores");
        let query_bounds = self.bounds(&row, &query, query_norm.as_ref());
        let key_bounds = self.bounds(&row, &key, key_norm.as_ref());
        let codes = |bounds: &[f64]| formats::heads(&place, &rotated(bounds, head_dim), head_dim);
        let (query_frac, key_frac) =
            formats::reach_scores(&place, codes(&query_bounds)?, codes(&key_bounds)?, MAX_BORROWED)?;
        let query = self.rotate(l, &row, (&query, query_norm.as_ref()), frac_in, &query_bounds, &query_frac)?;
        let key = self.rotate(l, &row, (&key, key_norm.as_ref()), frac_in, &key_bounds, &key_frac)?;
        let value = self.read(l, "self_attn.v_proj", [keys, d], c.qkv_bias, 1.0)?;
        let value_frac = formats::heads(&format!("{p} values"), &value.bounds(&row), head_dim)?;
        let (normed_rows, context_rows) = (self.tensors.normed_rows, self.tensors.context_rows);
        let value = self.product(l, &value, normed_rows, frac_in, |n| value_frac[n / head_dim])?;
        let output = self.read(l, "self_attn.o_proj", [d, queries], c.output_bias, 1.0)?;
        let (value_shift, context_frac) = value_shifts(&place, &value_frac, query_frac.len())?;
        let output = self.stream_product(l, &output, context_rows, context_frac)?;
        let score_shift = score_shifts(&place, &query_frac, &key_frac)?;
        Ok(AttentionPlan { norm, query, key, value, score_shift, value_shift, output })
    }

    /// `log2(e) / sqrt(head_dim)`, and YaRN's factor of both queries and keys.
    fn query_factor(&self) -> f64 {
        let factor = rope::attention_factor(&self.config.rope);
        LOG2_E / f64::from(self.config.head_dim).sqrt() * factor * factor
    }

    /// The norm over each head, where the family has one.
    fn head_norm(&self, prefix: &str, factor: f64) -> Result<Option<(String, NormRow)>, ModelError> {
        if !self.config.has_head_norms() {
            return Ok(None);
        }
        let row = NormRow::read_rms(&self.checkpoint.weights, prefix, self.config.head_dim, factor)?;
        Ok(Some((prefix.to_owned(), row)))
    }

    /// Bound of each element before the rotation.
    fn bounds(&self, row: &NormRow, real: &Real, norm: Option<&(String, NormRow)>) -> Vec<f64> {
        match norm {
            Some((_, head)) => head.peaks().repeat(real.matrix.scales.len() / self.config.head_dim as usize),
            None => real.bounds(row),
        }
    }

    /// Queries or keys with these bounds before the rotation and these formats after it.
    fn rotate(
        &mut self,
        l: u32,
        row: &NormRow,
        (real, norm): (&Real, Option<&(String, NormRow)>),
        frac_in: i32,
        bounds: &[f64],
        codes: &[i32],
    ) -> Result<Rotated, ModelError> {
        let head_dim = self.config.head_dim as usize;
        let wide = |(bounds, code): (&[f64], &i32)| formats::wide_within(&real.name, largest(bounds), code + ROPE_BITS);
        let wide = bounds.chunks_exact(head_dim).zip(codes).map(wide).collect::<Result<Vec<i32>, _>>()?;
        let shift = wide.iter().zip(codes).map(|(wide, code)| (wide - code) as u8).collect();
        let input = self.tensors.normed_rows;
        let Some((prefix, head)) = norm else {
            let product = self.product(l, real, input, frac_in, |n| wide[n / head_dim])?;
            return Ok(Rotated { product, head_norm: None, shift });
        };
        // All heads share the norm's scale, so their formats are one.
        let frac = formats::wide(&real.name, largest(&real.bounds(row)), i32::MAX)?;
        let product: Product = self.product(l, real, input, frac_in, |_| frac)?;
        let norm: Norm = self.builder.norm(prefix, head, self.config.rms_norm_eps, [frac, wide[0]])?;
        Ok(Rotated { product, head_norm: Some(norm), shift })
    }
}

/// Right shifts of each query head's dot products into scores.
fn score_shifts(place: &str, query: &[i32], key: &[i32]) -> Result<Vec<u8>, ModelError> {
    let shared = query.len() / key.len();
    let shift = |(h, q): (usize, &i32)| {
        let k = key[h / shared];
        u8::try_from(q + k - SCORE_FRAC as i32).ok().filter(|s| *s <= 62).ok_or_else(|| {
            ModelError::bounds(place, format!("head {h}: {q} + {k} fractional bits do not give scores of 20"))
        })
    };
    query.iter().enumerate().map(shift).collect()
}

/// Right shifts of each query head's output into the fractional bits that all share.
fn value_shifts(place: &str, value: &[i32], heads: usize) -> Result<(Vec<u8>, i32), ModelError> {
    let least = *value.iter().min().expect("a model has heads");
    let shift = |h: usize| {
        u8::try_from(value[h / (heads / value.len())] - least)
            .ok()
            .filter(|s| *s <= 31)
            .ok_or_else(|| ModelError::bounds(place, "heads' values differ by more than 2^31"))
    };
    Ok(((0..heads).map(shift).collect::<Result<_, _>>()?, least + VALUE_GAIN))
}
