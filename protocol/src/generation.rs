//! What a client asks of a decoder: how tokens are drawn, and when to stop. And the words in which a run says what it
//! drew.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::hex;
use crate::ids::Root;
use crate::job::token_root;
use crate::limits::{
    MAX_GENERATED_TOKENS, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_OUTPUT_VALUES, MAX_PENALTY, MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS, MAX_STOP_TOKENS, MAX_TEMPERATURE, MAX_TOKEN_BIAS,
};
use crate::trace::root_of_rows;

/// One, in the units in which sampling is asked for: 1e-4.
pub const SAMPLING_ONE: u32 = 10_000;
/// The bits of a word that are its token; those above say why the run ended with it.
pub const WORD_TOKEN_BITS: u32 = 24;
const WORD_TOKEN_MASK: u32 = (1 << WORD_TOKEN_BITS) - 1;

/// How tokens are drawn from logits, and when a run ends (SPEC.md 11.7). Numbers that are fractions are in units of 1e-4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Most tokens that are drawn, 1 to [`MAX_GENERATED_TOKENS`].
    pub max_tokens: u32,
    /// 0 takes the likeliest token; at most [`MAX_TEMPERATURE`].
    pub temperature: u32,
    /// How many of the likeliest tokens are drawn from; 0 is all. Below 2^24.
    pub top_k: u32,
    /// Which share of the probability is drawn from, 1 to 10,000, which is all.
    pub top_p: u32,
    /// Which part of the likeliest token's probability a token needs, 0 to 10,000.
    pub min_p: u32,
    /// What logits of tokens that were there before are divided by, 1,000 to [`MAX_PENALTY`]; 10,000 is none.
    pub repetition_penalty: u32,
    /// What is taken off the logits of tokens that were drawn before, within [`MAX_PENALTY`].
    pub presence_penalty: i32,
    /// The same for each time that a token was drawn.
    pub frequency_penalty: i32,
    /// What is added to the logits of tokens, ascending by token, each within [`MAX_TOKEN_BIAS`].
    pub logit_bias: Vec<(u32, i32)>,
    /// Tokens that end the run, ascending; at most [`MAX_STOP_TOKENS`].
    pub stop_tokens: Vec<u32>,
    /// Texts that end the run: at most [`MAX_STOP_STRINGS`] of 1 to [`MAX_STOP_STRING_BYTES`] bytes. In JSON as
    /// hexadecimal digits.
    #[serde(serialize_with = "write_texts", deserialize_with = "read_texts")]
    pub stop_strings: Vec<Vec<u8>>,
    /// Which log-probabilities are part of the output at each point ([`crate::logprobs`]): none for 0; for n, that of the
    /// token that was drawn and those of the n - 1 likeliest ones, at most [`MAX_LOGPROBS`]. It changes no word.
    pub logprobs: u8,
}

/// Why a generation is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GenerationError {
    /// A number is out of its range.
    #[error("{field} is {found}, outside of {min} to {max}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it is.
        found: i64,
        /// The least that it may be.
        min: i64,
        /// The most that it may be.
        max: i64,
    },
    /// A list is too long.
    #[error("{field} has {found} items; at most {max} are allowed")]
    Count {
        /// Which field.
        field: &'static str,
        /// How many it has.
        found: usize,
        /// How many it may have.
        max: usize,
    },
    /// The output would be too long.
    #[error("max_tokens and logprobs ask for an output of {found} values; at most {MAX_OUTPUT_VALUES} are allowed")]
    Output {
        /// How many values.
        found: usize,
    },
    /// A list that has to ascend does not.
    #[error("{field} is not in ascending order")]
    Order {
        /// Which field.
        field: &'static str,
    },
}

impl Generation {
    /// The likeliest token each time, with no penalty and no text that stops.
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            max_tokens,
            temperature: 0,
            top_k: 0,
            top_p: SAMPLING_ONE,
            min_p: 0,
            repetition_penalty: SAMPLING_ONE,
            presence_penalty: 0,
            frequency_penalty: 0,
            logit_bias: Vec::new(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            logprobs: 0,
        }
    }

    /// Checks all ranges.
    ///
    /// # Errors
    /// The first thing that is out of its range.
    pub fn check(&self) -> Result<(), GenerationError> {
        let (one, penalty) = (i64::from(SAMPLING_ONE), i64::from(MAX_PENALTY));
        let numbers = [
            ("max_tokens", self.max_tokens.into(), 1, MAX_GENERATED_TOKENS as i64),
            ("temperature", self.temperature.into(), 0, MAX_TEMPERATURE.into()),
            ("top_k", self.top_k.into(), 0, WORD_TOKEN_MASK.into()),
            ("top_p", self.top_p.into(), 1, one),
            ("min_p", self.min_p.into(), 0, one),
            ("repetition_penalty", self.repetition_penalty.into(), one / 10, penalty),
            ("presence_penalty", self.presence_penalty.into(), -penalty, penalty),
            ("frequency_penalty", self.frequency_penalty.into(), -penalty, penalty),
            ("logprobs", self.logprobs.into(), 0, i64::from(MAX_LOGPROBS) + 1),
        ];
        numbers.into_iter().try_for_each(|(field, found, min, max)| range(field, found, min, max))?;
        let found = self.max_tokens as usize * self.values_per_point();
        if found > MAX_OUTPUT_VALUES {
            return Err(GenerationError::Output { found });
        }
        let counts = [
            ("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIAS),
            ("stop_tokens", self.stop_tokens.len(), MAX_STOP_TOKENS),
            ("stop_strings", self.stop_strings.len(), MAX_STOP_STRINGS),
        ];
        if let Some((field, found, max)) = counts.into_iter().find(|(_, found, max)| found > max) {
            return Err(GenerationError::Count { field, found, max });
        }
        let tokens: Vec<_> = self.logit_bias.iter().map(|(token, _)| *token).collect();
        ascending("logit_bias", &tokens)?;
        ascending("stop_tokens", &self.stop_tokens)?;
        let bias = i64::from(MAX_TOKEN_BIAS);
        self.logit_bias.iter().try_for_each(|(_, value)| range("logit_bias", (*value).into(), -bias, bias))?;
        let lengths = self.stop_strings.iter().map(|text| text.len() as i64);
        lengths.into_iter().try_for_each(|found| range("stop_strings", found, 1, MAX_STOP_STRING_BYTES as i64))
    }

    /// Values of a point's log-probabilities: that of the drawn token, and of each likely one the token and its own.
    pub fn logprob_values(&self) -> usize {
        (2 * usize::from(self.logprobs)).saturating_sub(1)
    }

    /// Values that a point adds to the output: the word, and its log-probabilities.
    pub fn values_per_point(&self) -> usize {
        1 + self.logprob_values()
    }
}

fn range(field: &'static str, found: i64, min: i64, max: i64) -> Result<(), GenerationError> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(GenerationError::Range { field, found, min, max }) }
}

/// Tokens in ascending order, none twice, all below 2^24.
fn ascending(field: &'static str, tokens: &[u32]) -> Result<(), GenerationError> {
    let max = i64::from(WORD_TOKEN_MASK);
    tokens.iter().try_for_each(|token| range(field, (*token).into(), 0, max))?;
    if tokens.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(GenerationError::Order { field }) }
}

impl Canonical for Generation {
    const MIN_BYTES: usize = 6 * 4 + 2 * 4 + 3 * 4 + 1;
    fn encode(&self, writer: &mut Writer) {
        for value in [self.max_tokens, self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty] {
            writer.u32(value);
        }
        writer.i32(self.presence_penalty);
        writer.i32(self.frequency_penalty);
        writer.length(self.logit_bias.len());
        for (token, bias) in &self.logit_bias {
            writer.u32(*token);
            writer.i32(*bias);
        }
        writer.seq(&self.stop_tokens);
        writer.length(self.stop_strings.len());
        self.stop_strings.iter().for_each(|text| writer.bytes(text));
        writer.u8(self.logprobs);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            max_tokens: reader.u32()?,
            temperature: reader.u32()?,
            top_k: reader.u32()?,
            top_p: reader.u32()?,
            min_p: reader.u32()?,
            repetition_penalty: reader.u32()?,
            presence_penalty: reader.i32()?,
            frequency_penalty: reader.i32()?,
            logit_bias: {
                let count = reader.length("logit bias", MAX_LOGIT_BIAS, 8)?;
                (0..count).map(|_| Ok((reader.u32()?, reader.i32()?))).collect::<Result<_, DecodeError>>()?
            },
            stop_tokens: reader.seq("stop tokens", MAX_STOP_TOKENS)?,
            stop_strings: {
                let count = reader.length("stop strings", MAX_STOP_STRINGS, 4)?;
                let text = |_| reader.bytes("stop string", MAX_STOP_STRING_BYTES).map(<[u8]>::to_vec);
                (0..count).map(text).collect::<Result<_, _>>()?
            },
            logprobs: reader.u8()?,
        })
    }
}

fn write_texts<S: Serializer>(texts: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| hex::Hex(text).to_string()))
}

fn read_texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
    let texts: Vec<String> = Vec::deserialize(deserializer)?;
    let read = |text: &String| hex::parse_bytes(text).map_err(serde::de::Error::custom);
    texts.iter().map(read).collect()
}

/// Why a run of a generation goes on or ends after a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WordFinish {
    /// It goes on.
    GoesOn,
    /// The token is one that stops.
    StopToken,
    /// A text that stops is complete.
    StopString,
    /// As many tokens were drawn as were asked for.
    Length,
}

/// The finish bits of a word; `None` where they have no meaning.
pub fn word_finish(word: u32) -> Option<WordFinish> {
    match word >> WORD_TOKEN_BITS {
        0 => Some(WordFinish::GoesOn),
        1 => Some(WordFinish::StopToken),
        2 => Some(WordFinish::StopString),
        3 => Some(WordFinish::Length),
        _ => None,
    }
}

/// The token of a word.
pub fn word_token(word: u32) -> u32 {
    word & WORD_TOKEN_MASK
}

/// The root of layer L + 1 at a point: of one row with the word that was drawn there.
pub fn word_root(word: u32) -> Root {
    root_of_rows(&[word.cast_signed()], 1)
}

/// The output root of a run: the plain BLAKE3 of its words as little-endian `u32`.
pub fn words_root(words: &[u32]) -> Root {
    token_root(words)
}

/// The words of an output, as a result carries them.
pub fn words_of(output: &[i32]) -> Vec<u32> {
    output.iter().map(|value| value.cast_unsigned()).collect()
}

/// Whether the word at `index` of a run that may have `max_tokens` words can be one: its finish bits have a meaning, the
/// last one that is allowed ends the run, and no other one ends it for its length.
pub fn word_fits(word: u32, index: usize, max_tokens: u32) -> bool {
    let is_last = index + 1 == max_tokens as usize;
    match word_finish(word) {
        None => false,
        Some(WordFinish::GoesOn) => !is_last && index < max_tokens as usize,
        Some(WordFinish::Length) => is_last,
        Some(_) => index < max_tokens as usize,
    }
}

/// Whether these can be the first words of a run: each fits, and none comes after one that ended it.
pub fn words_fit(words: &[u32], max_tokens: u32) -> bool {
    let fits = |(index, word): (usize, &u32)| {
        let is_end = index + 1 == words.len();
        word_fits(*word, index, max_tokens) && (is_end || !ends_run(*word))
    };
    words.iter().enumerate().all(fits)
}

/// Whether a run ends with this word.
pub fn ends_run(word: u32) -> bool {
    word_finish(word).is_some_and(|finish| finish != WordFinish::GoesOn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};
    use crate::job::JobKind;

    fn full() -> Generation {
        Generation {
            max_tokens: 7,
            temperature: 9_000,
            top_k: 40,
            top_p: 9_500,
            min_p: 100,
            repetition_penalty: 11_000,
            presence_penalty: -5_000,
            frequency_penalty: 2_500,
            logit_bias: vec![(3, -10_000), (77, 25_000)],
            stop_tokens: vec![1, 2],
            stop_strings: vec![b"\n\n".to_vec(), vec![0xff]],
            logprobs: 5,
        }
    }

    #[test]
    fn a_generation_survives_both_encodings() {
        let kind = JobKind::Generation(Box::new(full()));
        assert_eq!(from_bytes::<JobKind>(&to_bytes(&kind)).unwrap(), kind);
        let json = serde_json::to_value(&kind).unwrap();
        assert_eq!(json["generation"]["stop_strings"], serde_json::json!(["0a0a", "ff"]));
        assert_eq!(json["generation"]["logit_bias"], serde_json::json!([[3, -10_000], [77, 25_000]]));
        assert_eq!(serde_json::from_value::<JobKind>(json).unwrap(), kind);
        assert_eq!(serde_json::to_value(JobKind::Embedding).unwrap(), "embedding");
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        assert_eq!(full().check(), Ok(()));
        type Change = fn(&mut Generation);
        let changes: [(&str, Change); 17] = [
            ("max_tokens", |g| g.max_tokens = 0),
            ("max_tokens", |g| g.max_tokens = MAX_GENERATED_TOKENS as u32 + 1),
            ("temperature", |g| g.temperature = MAX_TEMPERATURE + 1),
            ("top_k", |g| g.top_k = 1 << 24),
            ("top_p", |g| g.top_p = 0),
            ("min_p", |g| g.min_p = 10_001),
            ("repetition_penalty", |g| g.repetition_penalty = 999),
            ("presence_penalty", |g| g.presence_penalty = -100_001),
            ("frequency_penalty", |g| g.frequency_penalty = i32::MIN),
            ("logit_bias", |g| g.logit_bias = vec![(2, 0), (2, 1)]),
            ("logit_bias", |g| g.logit_bias = vec![(2, i32::MAX)]),
            ("logit_bias", |g| g.logit_bias = vec![(1 << 24, 0)]),
            ("stop_tokens", |g| g.stop_tokens = vec![5, 4]),
            ("stop_strings", |g| g.stop_strings = vec![vec![]]),
            ("stop_strings", |g| g.stop_strings = vec![vec![1]; 5]),
            ("logprobs", |g| g.logprobs = 22),
            ("max_tokens and logprobs", |g| (g.logprobs, g.max_tokens) = (21, 1_561)),
        ];
        for (field, change) in changes {
            let mut generation = full();
            change(&mut generation);
            let error = generation.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn a_run_ends_with_its_first_word_that_says_so_and_not_later_than_asked() {
        let (stop, text, length) = (1 << 24 | 5, 2 << 24 | 5, 3 << 24 | 5);
        assert!(words_fit(&[5, 6, length], 3) && words_fit(&[5, stop], 3) && words_fit(&[text], 3));
        assert!(words_fit(&[5, 6, stop], 3), "the last token that is allowed stops the run");
        assert!(words_fit(&[5, 6], 3) && words_fit(&[], 3), "a run that goes on");
        assert!(!words_fit(&[5, 6, 7], 3), "the last word has to end the run");
        assert!(!words_fit(&[5, length], 3), "not for its length");
        assert!(!words_fit(&[stop, 6], 3), "it went on after a stop");
        assert!(!words_fit(&[5, 6, length, 7], 3) && !words_fit(&[4 << 24], 3));
        assert_eq!((word_token(stop), word_finish(text)), (5, Some(WordFinish::StopString)));
        assert_eq!(word_root(7), root_of_rows(&[7], 1));
    }
}
