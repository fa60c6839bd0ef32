//! Settings of a generation, and the words that it makes (SPEC 5.17).
//!
//! A **word** is what one point of a generation comes to: the token that was drawn and whether the generation ends with
//! it. All settings are integers; what is a fraction elsewhere counts in ten-thousandths here.

use std::cmp::Reverse;

use crate::fixed::{SCORE_FRAC, bit_length};
use crate::reference::sample::{LARGEST_WEIGHT, Scale, weight};

/// Low bits of a word that hold the token; the finish code lies above them.
pub const WORD_TOKEN_BITS: u32 = 24;
/// What stands for 1 in temperatures, penalties, biases and probabilities.
pub const ONE: u32 = 10_000;
/// Most stop strings of a generation.
pub const MAX_STOP_STRINGS: usize = 4;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 32;
/// Most of the likeliest tokens whose log-probabilities can be disputed.
pub const MAX_LIKELIEST: u8 = 20;

/// Finish code of a word after which the generation goes on.
pub const GO_ON: u8 = 0;
/// Finish code of a stop token.
pub const STOP_TOKEN: u8 = 1;
/// Finish code of a token that completes a stop string.
pub const STOP_STRING: u8 = 2;
/// Finish code of the last token that was asked for.
pub const LENGTH: u8 = 3;

/// The word of a token and a finish code. A token has at most [`WORD_TOKEN_BITS`] bits.
pub const fn word(token: u32, finish: u8) -> u32 {
    token & TOKEN_MASK | (finish as u32) << WORD_TOKEN_BITS
}

/// Token and finish code of a word.
pub const fn split_word(word: u32) -> (u32, u8) {
    (word & TOKEN_MASK, (word >> WORD_TOKEN_BITS) as u8)
}

const TOKEN_MASK: u32 = (1 << WORD_TOKEN_BITS) - 1;

/// Settings of one generation. Tokens of its sequence before `prompt_tokens` are its prompt, the others were generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens after which the generation ends in any case.
    pub max_tokens: u32,
    /// In ten-thousandths; 0 takes the likeliest token and draws nothing.
    pub temperature: u32,
    /// How many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: u32,
    /// Share of the weight, in ten-thousandths, that the likeliest tokens which are kept make up; 10,000 keeps all.
    pub top_p: u32,
    /// Least weight that is kept, in ten-thousandths of the largest; 0 keeps all.
    pub min_p: u32,
    /// Divides positive and multiplies other logits of tokens that were seen in prompt or generation, in
    /// ten-thousandths; 10,000 changes nothing.
    pub repetition_penalty: u32,
    /// Taken from the logits of tokens that were generated, in ten-thousandths.
    pub presence_penalty: i32,
    /// Taken from the logits of generated tokens for each time, in ten-thousandths.
    pub frequency_penalty: i32,
    /// Added to the logits of tokens, in ten-thousandths; strictly ascending tokens.
    pub logit_bias: Vec<(u32, i32)>,
    /// Strictly ascending.
    pub stop_tokens: Vec<u32>,
    /// At most [`MAX_STOP_STRINGS`] of 1 to [`MAX_STOP_BYTES`] bytes.
    pub stop_strings: Vec<Vec<u8>>,
}

impl Sampling {
    /// The likeliest token each time, until `max_tokens` were generated.
    pub const fn greedy(prompt_tokens: u32, max_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            max_tokens,
            temperature: 0,
            top_k: 0,
            top_p: ONE,
            min_p: 0,
            repetition_penalty: ONE,
            presence_penalty: 0,
            frequency_penalty: 0,
            logit_bias: Vec::new(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
        }
    }

    /// Checks what the op relies on: the order of the lists and the lengths of the stop strings. Numbers may be any.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !self.logit_bias.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("the tokens of the logit bias must ascend".into());
        }
        if !self.stop_tokens.is_sorted_by(|a, b| a < b) {
            return Err("stop tokens must ascend".into());
        }
        if self.stop_strings.len() > MAX_STOP_STRINGS {
            return Err(format!("{} stop strings; at most {MAX_STOP_STRINGS} are allowed", self.stop_strings.len()));
        }
        match self.stop_strings.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            Some(s) => Err(format!("a stop string of {} bytes; 1 to {MAX_STOP_BYTES} are allowed", s.len())),
            None => Ok(()),
        }
    }

    /// Whether what was said before changes logits.
    pub const fn penalises(&self) -> bool {
        self.repetition_penalty != ONE || self.presence_penalty != 0 || self.frequency_penalty != 0
    }

    /// Tokens in a sequence that ends at a point: those of the prompt, and those generated before the point's own.
    pub fn split<'a>(&self, history: &'a [u32]) -> (&'a [u32], &'a [u32]) {
        history.split_at(history.len().min(self.prompt_tokens as usize))
    }
}

/// Bytes of each token: `[vocabulary, width]`, in each row the number of bytes as 2 bytes little-endian, then the bytes.
#[derive(Clone, Copy, Debug)]
pub struct TokenBytes<'a> {
    /// Row-major.
    pub rows: &'a [i8],
    /// Bytes of a row.
    pub width: usize,
}

impl<'a> TokenBytes<'a> {
    /// What a token stands for; nothing beyond the table.
    pub fn of(self, token: u32) -> impl Iterator<Item = u8> + use<'a> {
        let start = (token as usize).saturating_mul(self.width);
        let row = self.rows.get(start..).and_then(|rows| rows.get(..self.width)).unwrap_or_default();
        row_bytes(row.iter().map(|byte| *byte as u8))
    }
}

/// The bytes that a row of the table holds, no more than it has room for.
pub(crate) fn row_bytes(row: impl Iterator<Item = u8>) -> impl Iterator<Item = u8> {
    let mut row = row.fuse();
    let [low, high] = [row.next(), row.next()].map(Option::unwrap_or_default);
    row.take(u16::from_le_bytes([low, high]).into())
}

/// Logarithms of probabilities, in Q20 and to base 2: never above 0, and [`i32::MIN`] for all that are below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogProbs {
    /// Of the token asked about; none if it is not in the vocabulary.
    pub token: Option<i32>,
    /// The likeliest tokens, by falling logit and then by rising index.
    pub top: Vec<(u32, i32)>,
}

/// Log-probabilities that the logits alone give, at temperature 1: of `token`, and of the `k` likeliest tokens (SPEC
/// 5.17.9). `frac` is at most 31.
pub fn logprobs(logits: &[i32], frac: u32, token: u32, k: usize) -> LogProbs {
    let max = logits.iter().copied().max().unwrap_or_default();
    let total = sum_of_weights(logits.iter().copied(), max, frac);
    let normalizer = Normalizer::new(max, total, frac);
    let of = |logit: i32| normalizer.logprob(logit);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let key = |i: &u32| (Reverse(logits[*i as usize]), *i);
    let k = k.min(order.len());
    if k > 0 && k < order.len() {
        order.select_nth_unstable_by_key(k - 1, key);
    }
    order.truncate(k);
    order.sort_unstable_by_key(key);
    let top = order.into_iter().map(|i| (i, of(logits[i as usize]))).collect();
    LogProbs { token: logits.get(token as usize).map(|logit| of(*logit)), top }
}

/// The sum of the weights of logits at temperature 1, of which the largest is `max`. A logit above it counts as it.
pub(crate) fn sum_of_weights(logits: impl Iterator<Item = i32>, max: i32, frac: u32) -> u64 {
    let scale = Scale::new(ONE, frac);
    logits.map(|logit| u64::from(weight(scale.distance(below(max, logit))))).sum()
}

/// How far a logit is below the largest; 0 where it is above.
fn below(max: i32, logit: i32) -> u32 {
    (i64::from(max) - i64::from(logit)).max(0) as u32
}

/// From logits to log-probabilities, by the largest logit and the sum of all weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalizer {
    scale: Scale,
    max: i32,
    /// `log2` of the sum of the weights in units of the largest, in Q20.
    total: u64,
}

impl Normalizer {
    /// Of a sum that may be any number: one below the largest weight counts as that.
    pub(crate) fn new(max: i32, total: u64, frac: u32) -> Self {
        let largest = u64::from(LARGEST_WEIGHT.ilog2()) << SCORE_FRAC;
        Self { scale: Scale::new(ONE, frac), max, total: log2(total).saturating_sub(largest) }
    }

    /// The log-probability of a logit.
    pub(crate) fn logprob(&self, logit: i32) -> i32 {
        let distance = self.scale.distance(below(self.max, logit));
        -(distance.saturating_add(self.total).min(1 << 31) as i64) as i32
    }
}

/// `log2(v)` in Q20, rounded down; 0 of 0. A digit of the fraction for each squaring.
fn log2(v: u64) -> u64 {
    if v == 0 {
        return 0;
    }
    let whole = bit_length(v) - 1;
    // In [1, 2) as Q63.
    let mut x = v << (63 - whole);
    let mut result = u64::from(whole);
    for _ in 0..SCORE_FRAC {
        let square = u128::from(x) * u128::from(x);
        let digit = square >> 127;
        x = (square >> (63 + digit as u32)) as u64;
        result = result << 1 | digit as u64;
    }
    result
}
