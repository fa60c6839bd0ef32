//! Drawing a token, and whether the generation ends with it (SPEC 5.17). The weights are computed once; thresholds go
//! digit by digit, and only elements whose higher digits agree are looked at again.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::path::for_each_path;
use super::{CpuKernels, Isa};
use crate::fixed::{EXP2_COEFFICIENTS, SCORE_FRAC};
use crate::host::SampleArgs;
use crate::reference::sample::{
    Scale, Seen, adjusted, finish, least_weight, share, tail, target, top_k, top_p, weight,
};
use crate::sampling::word;

/// Bits of a digit of a threshold; three of them hold a weight.
const DIGIT_BITS: u32 = 11;
/// Weights that are summed before anybody looks for the token among them.
const BLOCK: usize = 4_096;

/// Twin of [`crate::reference::sample::sample`].
pub(super) fn sample(cpu: &CpuKernels, points: &[SampleArgs<'_>], out: &mut [i32]) {
    let work = points.iter().zip(out).collect();
    cpu.threads.each(work, |(args, word)| {
        *word = word_of(cpu.isa, *args) as i32;
        0
    });
}

fn word_of(isa: Isa, args: SampleArgs<'_>) -> u32 {
    let settings = args.sampling;
    let logits = adjust(args);
    let token = if settings.temperature == 0 { likeliest(isa, &logits) } else { draw(isa, &logits, args) } as u32;
    let (_, generated) = settings.split(args.history);
    let before = if settings.stop_strings.is_empty() { vec![] } else { tail(args.token_bytes, generated) };
    let number = generated.len() as u64 + 1;
    word(token, finish(settings, number, &before, args.token_bytes.of(token), token))
}

/// The logits with biases and penalties, of which few tokens have any.
fn adjust<'a>(args: SampleArgs<'a>) -> Cow<'a, [i32]> {
    let settings = args.sampling;
    let mut touched: BTreeMap<u32, Seen> =
        settings.logit_bias.iter().map(|(token, _)| (*token, Seen::default())).collect();
    if settings.penalises() {
        let (prompt, generated) = settings.split(args.history);
        for token in prompt {
            touched.entry(*token).or_default().prompt = true;
        }
        for token in generated {
            touched.entry(*token).or_default().generated += 1;
        }
    }
    let mut logits = Cow::Borrowed(args.logits);
    for (token, seen) in touched {
        if let Some(z) = args.logits.get(token as usize) {
            logits.to_mut()[token as usize] = adjusted(*z, token, seen, settings, args.frac);
        }
    }
    logits
}

fn likeliest(isa: Isa, logits: &[i32]) -> usize {
    let max = largest(isa, logits);
    logits.iter().position(|z| *z == max).unwrap_or(0)
}

for_each_path! {
    fn largest(logits: &[i32]) -> i32 {
        logits.iter().fold(i32::MIN, |max, z| max.max(*z))
    }
}

fn draw(isa: Isa, logits: &[i32], args: SampleArgs<'_>) -> usize {
    let settings = args.sampling;
    let scale = Scale::new(settings.temperature, args.frac);
    let max = largest(isa, logits);
    let mut weights = vec![0; logits.len()];
    if scale.shift > 0 {
        weigh(isa, logits, max, [scale.mantissa, scale.shift as u32], &mut weights);
    } else {
        let far = |z: &i32| weight(scale.distance(max.abs_diff(*z)));
        weights.iter_mut().zip(logits).for_each(|(w, z)| *w = far(z));
    }
    let mut least = 0;
    if let Some(k) = top_k(settings, weights.len() as u64) {
        least = threshold(&weights, k, |_| 1);
    }
    if let Some(p) = top_p(settings) {
        least = threshold(&weights, share(p, kept(isa, &weights, least)), u64::from);
    }
    least = least.max(least_weight(settings.min_p));
    let mut target = target(args.draw, kept(isa, &weights, least));
    for (b, block) in weights.chunks(BLOCK).enumerate() {
        let sum = kept(isa, block, least);
        if sum > target {
            return b * BLOCK + among(block, least, target);
        }
        target -= sum;
    }
    0
}

/// The index in a block where the sum of kept weights exceeds the target.
fn among(block: &[u32], least: u32, target: u64) -> usize {
    let mut sum = 0;
    let found = block.iter().position(|w| {
        sum += if *w >= least { u64::from(*w) } else { 0 };
        sum > target
    });
    found.unwrap_or(0)
}

for_each_path! {
    /// [`weight`] of the distance of each logit from the largest; `shift` is 1 to 60.
    fn weigh(logits: &[i32], max: i32, scale: [u32; 2], weights: &mut [u32]) {
        const FRACTION: u64 = (1 << SCORE_FRAC) - 1;
        /// From here on nothing is left of a weight.
        const FAR: u64 = 31 << SCORE_FRAC;
        let [mantissa, shift] = scale;
        let half = 1_u64 << ((shift - 1) & 63);
        let [c0, c1, c2, c3, c4] = EXP2_COEFFICIENTS;
        for (w, z) in weights.iter_mut().zip(logits) {
            // 32 bits times 31, and a half of at most 60: below 2^64.
            let product = u64::from(max.wrapping_sub(*z) as u32).wrapping_mul(u64::from(mantissa));
            let d = (product.wrapping_add(half) >> (shift & 63)).min(FAR);
            let f = (d & FRACTION) as i64;
            let mut p = c4;
            for c in [c3, c2, c1, c0] {
                // Every p fits i32 and f has 20 bits; adding `c` before the shift rounds and adds at once.
                p = i64::from(p as i32).wrapping_mul(f).wrapping_add((c << SCORE_FRAC) + (1 << (SCORE_FRAC - 1))) >> SCORE_FRAC;
            }
            *w = (p >> (d >> SCORE_FRAC)) as u32;
        }
    }
}

for_each_path! {
    /// Sum of the weights of at least `least`.
    fn kept(weights: &[u32], least: u32) -> u64 {
        weights.iter().fold(0_u64, |sum, w| sum.wrapping_add(u64::from(if *w >= least { *w } else { 0 })))
    }
}

/// The largest threshold for which the measures of all weights that reach it sum up to `need`; 0 where nothing does.
fn threshold(weights: &[u32], mut need: u64, measure: impl Fn(u32) -> u64) -> u32 {
    let mut prefix = 0;
    let mut rest = Cow::Borrowed(weights);
    for shift in [2 * DIGIT_BITS, DIGIT_BITS, 0] {
        let digit = |w: u32| (w >> shift) as usize & ((1 << DIGIT_BITS) - 1);
        let mut measures = [0; 1 << DIGIT_BITS];
        for w in rest.iter() {
            measures[digit(*w)] += measure(*w);
        }
        // The digit with which the sum from above reaches the need.
        let mut found = 0;
        for (d, sum) in measures.iter().enumerate().rev() {
            if *sum >= need {
                found = d;
                break;
            }
            need -= sum;
        }
        prefix |= (found as u32) << shift;
        rest = rest.iter().copied().filter(|w| digit(*w) == found).collect::<Vec<_>>().into();
    }
    prefix
}
