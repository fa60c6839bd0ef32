//! Attention of few rows, as in decoding: keys and values are read where they lie, once for each row, rather than packed
//! for many (SPEC 5.7).

use super::Isa;
use super::attention::clamped_scores;
use super::path::for_each_path;
use super::softmax::{Combined, weigh};
use crate::host::{AttentionArgs, AttentionRows, HeadBlock};
use crate::reference::attention::BLOCK;

/// Most rows of a sequence in one pass for which packing its keys and values does not pay.
pub(super) const FEW: usize = 4;

/// Query head `head` of row `row`; `out` is `[dim]`. Returns the number of clamped scores.
pub(super) fn head(
    isa: Isa,
    args: &AttentionArgs<'_>,
    sequence: &AttentionRows<'_>,
    row: usize,
    head: usize,
    out: &mut [i32],
) -> u64 {
    let dim = usize::from(args.heads.head_dim);
    let kv = head / usize::from(args.heads.heads / args.heads.kv_heads);
    let q = &args.q[(row * usize::from(args.heads.heads) + head) * dim..][..dim];
    let score_shift = u32::from(args.heads.score_shift[head]);
    let (mut sums, mut exact, mut weights) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
    let mut combined = Combined::new(1, dim);
    let mut saturations = 0;
    let seen = sequence.visible(row, args.heads);
    for (b, first) in (0..seen).step_by(BLOCK).enumerate() {
        let HeadBlock { keys, values, start, stride } = sequence.keys.block(b, kv, args.heads);
        let len = BLOCK.min(seen - first);
        let (sums, exact, weights) = (&mut sums[..len], &mut exact[..len], &mut weights[..len]);
        let block = combined.push();
        dots(isa, q, &keys[start..], stride, sums);
        saturations += clamped_scores(isa, sums, score_shift, exact);
        block.references[0] = Some(weigh(isa, exact, weights));
        block.weights[0] = weights.iter().map(|w| i64::from(*w)).sum();
        weighted(isa, weights, &values[start..], stride, block.values);
    }
    combined.finish(isa, 0, u32::from(args.heads.value_shift[head]), out);
    saturations
}

for_each_path! {
    /// `sums[j]` is the dot product of `q` with the row of `keys` that starts at `j * stride`.
    fn dots(q: &[i16], keys: &[i16], stride: usize, sums: &mut [i64]) {
        for (sum, key) in sums.iter_mut().zip(keys.chunks(stride)) {
            // Both halves of at most 512 products fit 32 bits; the sum of two products might not.
            let (mut low, mut high) = (0_i32, 0_i32);
            for (q, k) in q.iter().zip(key) {
                let product = i32::from(*q).wrapping_mul(i32::from(*k));
                low = low.wrapping_add(product & 0xffff);
                high = high.wrapping_add(product >> 16);
            }
            *sum = (i64::from(high) << 16).wrapping_add(i64::from(low));
        }
    }
}

/// Channels whose sums stay in registers while the positions of a block go by.
const CHANNELS: usize = 32;

/// `sums[c]` is the sum of `weights[j] * values[j * stride + c]`, for weights of 0 to 32,767.
fn weighted(isa: Isa, weights: &[i16], values: &[i16], stride: usize, sums: &mut [i64]) {
    for (i, sums) in sums.chunks_mut(CHANNELS).enumerate() {
        match <&mut [i64; CHANNELS]>::try_from(&mut *sums) {
            Ok(sums) => weighted_channels(isa, weights, &values[i * CHANNELS..], stride, sums),
            Err(_) => weighted_rest(isa, weights, &values[i * CHANNELS..], stride, sums),
        }
    }
}

for_each_path! {
    fn weighted_channels(weights: &[i16], values: &[i16], stride: usize, sums: &mut [i64; CHANNELS]) {
        // Both halves of at most 256 products fit 32 bits.
        let (mut low, mut high) = ([0_i32; CHANNELS], [0_i32; CHANNELS]);
        for (w, row) in weights.iter().zip(values.chunks(stride)) {
            let Some(row) = row.first_chunk::<CHANNELS>() else { return };
            for c in 0..CHANNELS {
                let product = i32::from(*w).wrapping_mul(i32::from(row[c]));
                low[c] = low[c].wrapping_add(product & 0xffff);
                high[c] = high[c].wrapping_add(product >> 16);
            }
        }
        for c in 0..CHANNELS {
            sums[c] = (i64::from(high[c]) << 16).wrapping_add(i64::from(low[c]));
        }
    }
}

for_each_path! {
    fn weighted_rest(weights: &[i16], values: &[i16], stride: usize, sums: &mut [i64]) {
        sums.fill(0);
        for (w, row) in weights.iter().zip(values.chunks(stride)) {
            for (sum, v) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i64::from(i32::from(*w).wrapping_mul(i32::from(*v))));
            }
        }
    }
}
