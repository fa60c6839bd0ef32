//! Scaled dot-product attention with block-wise exact softmax (SPEC 5.7).

use super::matmul::dot;
use crate::fixed::{SCORE_FRAC, bit_length, recip, round_shift, sat32, softmax_weight};
use crate::host::{AttentionArgs, AttentionRows, HeadBlock};

/// Key positions in one softmax block; blocks are aligned to the sequence's start.
pub const BLOCK: usize = 256;

/// Guard bits when blocks are brought to a common reference.
pub const GUARD: u32 = 8;

/// One block's exact sums against its own integer reference.
struct Partial {
    /// `ceil(max score)` in whole log2 units.
    reference: i64,
    /// Sum of weights.
    weight: i64,
    /// Sum of weight * value, one per element of the head.
    values: Vec<i64>,
}

/// `out[t, h*D + c]`, the weighted mean of the values that row `t` sees. Returns the number of clamped scores.
pub fn attention(args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
    let width = usize::from(args.heads.heads) * usize::from(args.heads.head_dim);
    let rows = args.sequences.iter().flat_map(|sequence| sequence.rows.clone().map(move |t| (sequence, t)));
    rows.map(|(sequence, t)| position(&args, sequence, t, &mut out[t * width..(t + 1) * width])).sum()
}

/// All heads of row `t`, which lies in `sequence`: `out[h*D + c]`. Returns the number of clamped scores.
pub fn position(args: &AttentionArgs<'_>, sequence: &AttentionRows<'_>, t: usize, out: &mut [i32]) -> u64 {
    let heads = out.chunks_exact_mut(usize::from(args.heads.head_dim)).enumerate();
    heads.map(|(h, out)| row(args, sequence, t, h, out)).sum()
}

fn row(args: &AttentionArgs<'_>, sequence: &AttentionRows<'_>, t: usize, h: usize, out: &mut [i32]) -> u64 {
    let seen = sequence.visible(t, args.heads);
    let mut saturations = 0;
    let mut partials = Vec::new();
    for (b, start) in (0..seen).step_by(BLOCK).enumerate() {
        let block = sequence.keys.block(b, kv(args, h), args.heads);
        let keys = 0..BLOCK.min(seen - start);
        let scores = keys.map(|j| {
            let (q, k) = (query(args, t, h), element(block.keys, &block, j, args));
            let (score, clamped) = score(q.iter().copied(), k.iter().copied(), args.heads.score_shift[h]);
            saturations += u64::from(clamped);
            score
        });
        let scores: Vec<i32> = scores.collect();
        partials.push(partial(args, &block, &scores));
    }
    combine(&partials, args.heads.value_shift[h], out);
    saturations
}

/// The score of a key for a query, in Q20 log2 units, and whether it was clamped.
pub fn score(q: impl Iterator<Item = i16>, k: impl Iterator<Item = i16>, shift: u8) -> (i32, bool) {
    sat32(round_shift(dot(q.map(i64::from), k.map(i64::from)), shift.into()))
}

/// `ceil(max score)` of a block in whole log2 units.
pub fn block_reference(scores: impl Iterator<Item = i32>) -> i64 {
    let max = i64::from(scores.max().unwrap_or(0));
    (max + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC
}

/// The softmax weight of a score against a block's reference; a score above it, which no block has, weighs nothing.
pub fn weight(reference: i64, score: i32) -> u16 {
    let distance = (reference << SCORE_FRAC) - i64::from(score);
    u64::try_from(distance).map_or(0, softmax_weight)
}

fn partial(args: &AttentionArgs<'_>, block: &HeadBlock<'_>, scores: &[i32]) -> Partial {
    let reference = block_reference(scores.iter().copied());
    let mut values = vec![0_i64; usize::from(args.heads.head_dim)];
    let mut total = 0;
    for (j, score) in scores.iter().enumerate() {
        let w = weight(reference, *score);
        total += i64::from(w);
        for (sum, v) in values.iter_mut().zip(element(block.values, block, j, args)) {
            *sum += i64::from(w) * i64::from(*v);
        }
    }
    Partial { reference, weight: total, values }
}

/// Brings all blocks to the largest reference, sums them exactly, and divides once.
fn combine(partials: &[Partial], value_shift: u8, out: &mut [i32]) {
    let reference = partials.iter().map(|p| p.reference).max().expect("a row sees at least one block");
    let weight: i64 = partials.iter().map(|p| aligned(p.weight, reference - p.reference)).sum();
    for (c, y) in out.iter_mut().enumerate() {
        let sum: i64 = partials.iter().map(|p| aligned(p.values[c], reference - p.reference)).sum();
        *y = mean(sum, weight, value_shift);
    }
}

/// A block's sum with guard bits, brought from its own reference to one that is `distance >= 0` above.
pub fn aligned(sum: i64, distance: i64) -> i64 {
    round_shift(sum << GUARD, distance.min(63) as u32)
}

/// The mean, from the sums of weighted values and of weights over all blocks. The largest score of its block weighs
/// more than 2^14, so `weight` has at least 23 bits; for other weights the products wrap.
pub fn mean(sum: i64, weight: i64, value_shift: u8) -> i32 {
    let (r, bits) = (i64::from(recip(weight as u64)), bit_length(weight as u64));
    let quotient = round_shift(sum, bits.saturating_sub(16)).wrapping_mul(r);
    sat32(round_shift(quotient, 31 + u32::from(value_shift))).0
}

/// The key and value head that query head `h` reads.
fn kv(args: &AttentionArgs<'_>, h: usize) -> usize {
    h / usize::from(args.heads.heads / args.heads.kv_heads)
}

/// Query head `h` of row `t`.
fn query<'a>(args: &AttentionArgs<'a>, t: usize, h: usize) -> &'a [i16] {
    let dim = usize::from(args.heads.head_dim);
    let at = (t * usize::from(args.heads.heads) + h) * dim;
    &args.q[at..at + dim]
}

/// The key or value of position `j` of a block.
fn element<'a>(x: &'a [i16], block: &HeadBlock<'_>, j: usize, args: &AttentionArgs<'_>) -> &'a [i16] {
    let at = block.start + j * block.stride;
    &x[at..at + usize::from(args.heads.head_dim)]
}
