//! Drawing a token, and whether the generation ends with it (SPEC 5.17).

use std::collections::BTreeMap;

use crate::fixed::{SCORE_FRAC, bit_length, exp2_neg_fraction, round_shift, sat32};
use crate::host::SampleArgs;
use crate::sampling::{GO_ON, LENGTH, MAX_STOP_BYTES, ONE, STOP_STRING, STOP_TOKEN, Sampling, TokenBytes, word};

/// Weight of the likeliest token.
pub const LARGEST_WEIGHT: u32 = 1 << 30;

/// Tokens of which stop strings may hold bytes, besides the one that was just drawn.
pub const TAIL_TOKENS: usize = MAX_STOP_BYTES - 1;

/// `log2(e)` in Q48.
const LOG2_E: u64 = 406_082_553_034_800;

/// `out[t]` is the word of point `t`.
pub fn sample(points: &[SampleArgs<'_>], out: &mut [i32]) {
    for (args, word) in points.iter().zip(out) {
        *word = word_of(*args) as i32;
    }
}

fn word_of(args: SampleArgs<'_>) -> u32 {
    let settings = args.sampling;
    let adjusted = adjust(args);
    let token = if settings.temperature == 0 { likeliest(&adjusted) } else { draw(&adjusted, args) };
    let (_, generated) = settings.split(args.history);
    let before = tail(args.token_bytes, generated);
    let number = generated.len() as u64 + 1;
    word(token, finish(settings, number, &before, args.token_bytes.of(token), token))
}

/// How often a token was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether in the prompt.
    pub prompt: bool,
    /// How often in what was generated.
    pub generated: u32,
}

/// All logits with biases and penalties (SPEC 5.17.1).
fn adjust(args: SampleArgs<'_>) -> Vec<i32> {
    let (prompt, generated) = args.sampling.split(args.history);
    let mut seen = BTreeMap::<u32, Seen>::new();
    for token in prompt {
        seen.entry(*token).or_default().prompt = true;
    }
    for token in generated {
        seen.entry(*token).or_default().generated += 1;
    }
    let of = |token: u32| seen.get(&token).copied().unwrap_or_default();
    (0..).zip(args.logits).map(|(token, z)| adjusted(*z, token, of(token), args.sampling, args.frac)).collect()
}

/// One logit with its bias and penalties.
pub fn adjusted(logit: i32, token: u32, seen: Seen, settings: &Sampling, frac: u32) -> i32 {
    let bias = settings.logit_bias.binary_search_by_key(&token, |(token, _)| *token);
    let bias = bias.map_or(0, |found| settings.logit_bias[found].1);
    let mut y = i128::from(logit) + in_units(bias.into(), frac);
    if seen.prompt || seen.generated > 0 {
        let (one, penalty) = (i128::from(ONE), i128::from(settings.repetition_penalty.max(1)));
        y = if y > 0 { divide(y * one, penalty) } else { divide(y * penalty, one) };
    }
    if seen.generated > 0 {
        let frequency = i128::from(settings.frequency_penalty) * i128::from(seen.generated);
        y -= in_units(i128::from(settings.presence_penalty) + frequency, frac);
    }
    // Every term is below 2^100.
    sat32(y.clamp(i64::MIN.into(), i64::MAX.into()) as i64).0
}

/// Ten-thousandths as a number with `frac` fractional bits.
pub fn in_units(ten_thousandths: i128, frac: u32) -> i128 {
    divide(ten_thousandths << frac, ONE.into())
}

/// `a / b` rounded half up, for `b > 0`.
fn divide(a: i128, b: i128) -> i128 {
    (2 * a + b).div_euclid(2 * b)
}

/// The lowest index of the largest element.
pub fn likeliest(logits: &[i32]) -> u32 {
    let max = logits.iter().max();
    logits.iter().position(|z| Some(z) == max).unwrap_or(0) as u32
}

/// From differences of logits to distances in Q20, to base 2 and at a temperature (SPEC 5.17.3): a product with a mantissa of
/// 31 bits, shifted right, or left where that is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Below 2^31.
    pub mantissa: u32,
    /// -3 to 60.
    pub shift: i32,
}

impl Scale {
    /// For a temperature in ten-thousandths (0 counts as 1) and logits with `frac <= 31` fractional bits.
    pub fn new(temperature: u32, frac: u32) -> Self {
        let ratio = LOG2_E * u64::from(ONE) / u64::from(temperature.max(1));
        let drop = bit_length(ratio) as i32 - 31;
        let mantissa = if drop >= 0 { ratio >> drop } else { ratio << -drop };
        Self { mantissa: mantissa as u32, shift: 48 - drop + frac as i32 - SCORE_FRAC as i32 }
    }

    /// The distance of a difference.
    pub fn distance(self, difference: u32) -> u64 {
        let product = u64::from(difference) * u64::from(self.mantissa);
        match u32::try_from(self.shift) {
            Ok(shift) => round_shift(product as i64, shift) as u64,
            Err(_) => product.saturating_mul(1 << -self.shift),
        }
    }
}

/// The weight of a distance in Q20: at most [`LARGEST_WEIGHT`] (SPEC 5.17.4).
pub fn weight(distance: u64) -> u32 {
    let whole = distance >> SCORE_FRAC;
    if whole > 30 {
        return 0;
    }
    (exp2_neg_fraction((distance & ((1 << SCORE_FRAC) - 1)) as u32) >> whole) as u32
}

/// Draws a token by the weights of adjusted logits (SPEC 5.17.4 to 5.17.6).
fn draw(adjusted: &[i32], args: SampleArgs<'_>) -> u32 {
    let settings = args.sampling;
    let max = adjusted.iter().copied().max().unwrap_or_default();
    let scale = Scale::new(settings.temperature, args.frac);
    let weights: Vec<u32> = adjusted.iter().map(|y| weight(scale.distance(max.abs_diff(*y)))).collect();
    let kept = |least: u32| weights.iter().map(move |w| if *w >= least { u64::from(*w) } else { 0 });
    let mut least = 0;
    if let Some(k) = top_k(settings, weights.len() as u64) {
        least = threshold(&weights, k, |_| 1);
    }
    if let Some(p) = top_p(settings) {
        least = threshold(&weights, share(p, kept(least).sum()), u64::from);
    }
    least = least.max(least_weight(settings.min_p));
    let target = target(args.draw, kept(least).sum());
    let mut sum = 0;
    let found = kept(least).position(|w| {
        sum += w;
        sum > target
    });
    found.unwrap_or(0) as u32
}

/// How many tokens top-k keeps; none where it keeps all of the vocabulary.
pub fn top_k(settings: &Sampling, vocabulary: u64) -> Option<u64> {
    Some(u64::from(settings.top_k)).filter(|k| (1..vocabulary).contains(k))
}

/// The share that top-p keeps, in ten-thousandths; none where that is everything.
pub fn top_p(settings: &Sampling) -> Option<u32> {
    Some(settings.top_p).filter(|p| *p < ONE)
}

/// The least sum of weights that top-p keeps of `kept`.
pub fn share(p: u32, kept: u64) -> u64 {
    // Below `kept`, since p is below one.
    (u128::from(p) * u128::from(kept)).div_ceil(ONE.into()).max(1) as u64
}

/// The least weight that min-p keeps.
pub fn least_weight(min_p: u32) -> u32 {
    (u64::from(min_p.min(ONE)) * u64::from(LARGEST_WEIGHT)).div_ceil(ONE.into()) as u32
}

/// The largest threshold for which the measures of all weights that reach it sum up to `need` (SPEC 5.17.5); 0 where
/// nothing does.
fn threshold(weights: &[u32], need: u64, measure: impl Fn(u32) -> u64) -> u32 {
    let mut falling = weights.to_vec();
    falling.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    let reaches = |w: &&u32| {
        sum += measure(**w);
        sum >= need
    };
    falling.iter().find(reaches).copied().unwrap_or(0)
}

/// What the sum of weights up to the token must exceed: below `total`, evenly spread over the draws.
pub fn target(draw: u64, total: u64) -> u64 {
    ((u128::from(draw) * u128::from(total)) >> 64) as u64
}

/// The last bytes of what was generated, as many as a stop string may reach back to.
pub fn tail(table: TokenBytes<'_>, generated: &[u32]) -> Vec<u8> {
    let last = &generated[generated.len().saturating_sub(TAIL_TOKENS)..];
    let bytes: Vec<u8> = last.iter().flat_map(|token| table.of(*token)).collect();
    bytes[bytes.len().saturating_sub(MAX_STOP_BYTES - 1)..].to_vec()
}

/// The finish code of a token, the `number`th that is generated, after text that ends with `before` (SPEC 5.17.7).
pub fn finish(settings: &Sampling, number: u64, before: &[u8], bytes: impl Iterator<Item = u8>, token: u32) -> u8 {
    if settings.stop_tokens.contains(&token) {
        return STOP_TOKEN;
    }
    if !settings.stop_strings.is_empty() {
        let mut text = before.to_vec();
        text.extend(bytes);
        let mut ends = before.len() + 1..text.len() + 1;
        let stops = |end| settings.stop_strings.iter().any(|s| !s.is_empty() && text[..end].ends_with(s));
        if ends.any(stops) {
            return STOP_STRING;
        }
    }
    if number >= settings.max_tokens.into() { LENGTH } else { GO_ON }
}
