//! Scaled dot-product attention with block-wise exact softmax (SPEC 5.7).

use std::ops::Range;

use crate::fixed::{SCORE_FRAC, bit_length, recip, round_shift, sat32, softmax_weight};
use crate::host::AttentionArgs;

/// Key positions in one softmax block; blocks are aligned to the sequence's start.
pub const BLOCK: usize = 256;

/// Guard bits when blocks are brought to a common reference.
pub const GUARD: u32 = 8;

/// One block's exact sums against its own integer reference.
struct Partial {
    /// `ceil(max score)` in whole log2 units.
    reference: i64,
    /// Sum of weights.
    weight: u64,
    /// Sum of weight * value, one per element of the head.
    values: Vec<i64>,
}

/// `out[t, h*D + c]`, the weighted mean of the values that row `t` sees. Returns the number of clamped scores.
pub fn attention(args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
    let width = usize::from(args.heads.heads) * usize::from(args.heads.head_dim);
    let rows = args.spans.iter().flat_map(|span| span.clone().map(move |t| (span, t)));
    rows.map(|(span, t)| position(&args, span, t, &mut out[t * width..(t + 1) * width])).sum()
}

/// All heads of row `t`, which lies in the sequence `span`: `out[h*D + c]`. Returns the number of clamped scores.
pub fn position(args: &AttentionArgs<'_>, span: &Range<usize>, t: usize, out: &mut [i32]) -> u64 {
    let heads = out.chunks_exact_mut(usize::from(args.heads.head_dim)).enumerate();
    heads.map(|(h, out)| row(args, span, t, h, out)).sum()
}

fn row(args: &AttentionArgs<'_>, span: &Range<usize>, t: usize, h: usize, out: &mut [i32]) -> u64 {
    let end = if args.heads.causal { t + 1 } else { span.end };
    let mut saturations = 0;
    let mut partials = Vec::new();
    for start in (span.start..end).step_by(BLOCK) {
        let keys = start..end.min(start + BLOCK);
        let scores = keys.clone().map(|j| {
            let (score, clamped) = score(args, t, j, h);
            saturations += u64::from(clamped);
            score
        });
        let scores: Vec<i32> = scores.collect();
        partials.push(partial(args, keys, &scores, h));
    }
    combine(&partials, u32::from(args.heads.value_shift[h]), out);
    saturations
}

/// The score of key `j` for row `t`, in Q20 log2 units.
fn score(args: &AttentionArgs<'_>, t: usize, j: usize, h: usize) -> (i32, bool) {
    let (q, k) = (head(args.q, args.heads.heads, t, h, args), head(args.k, args.heads.kv_heads, j, kv(args, h), args));
    let dot = q.iter().zip(k).map(|(q, k)| i64::from(*q) * i64::from(*k)).sum();
    sat32(round_shift(dot, u32::from(args.heads.score_shift[h])))
}

fn partial(args: &AttentionArgs<'_>, keys: Range<usize>, scores: &[i32], h: usize) -> Partial {
    let max = i64::from(*scores.iter().max().expect("a block has at least one key"));
    let reference = (max + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC;
    let mut values = vec![0_i64; usize::from(args.heads.head_dim)];
    let mut weight = 0;
    for (j, score) in keys.zip(scores) {
        let w = softmax_weight(((reference << SCORE_FRAC) - i64::from(*score)) as u64);
        weight += u64::from(w);
        for (sum, v) in values.iter_mut().zip(head(args.v, args.heads.kv_heads, j, kv(args, h), args)) {
            *sum += i64::from(w) * i64::from(*v);
        }
    }
    Partial { reference, weight, values }
}

/// Brings all blocks to the largest reference, sums them exactly, and divides once.
fn combine(partials: &[Partial], value_shift: u32, out: &mut [i32]) {
    let reference = partials.iter().map(|p| p.reference).max().expect("a row sees at least one block");
    let scaled = |p: &Partial, v: i64| round_shift(v << GUARD, (reference - p.reference) as u32);
    let weight: i64 = partials.iter().map(|p| scaled(p, p.weight as i64)).sum();
    let (r, bits) = (i64::from(recip(weight as u64)), bit_length(weight as u64));
    for (c, y) in out.iter_mut().enumerate() {
        let sum: i64 = partials.iter().map(|p| scaled(p, p.values[c])).sum();
        // The largest score of its block weighs more than 2^14, so `weight` has at least 23 bits.
        *y = sat32(round_shift(round_shift(sum, bits - 16) * r, 31 + value_shift)).0;
    }
}

/// The key and value head that query head `h` reads.
fn kv(args: &AttentionArgs<'_>, h: usize) -> usize {
    h / usize::from(args.heads.heads / args.heads.kv_heads)
}

/// Elements of head `h` in row `t` of a tensor with `heads` heads.
fn head<'a>(x: &'a [i16], heads: u16, t: usize, h: usize, args: &AttentionArgs<'_>) -> &'a [i16] {
    let dim = usize::from(args.heads.head_dim);
    let at = (t * usize::from(heads) + h) * dim;
    &x[at..at + dim]
}
