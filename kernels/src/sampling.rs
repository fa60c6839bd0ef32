//! Settings of a generation, and the words that it makes (SPEC 5.17).

/// How the tokens of one generation are sampled. Everything is an integer: factors and logarithmic amounts are in
/// steps of 1e-4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Tokens of the prompt, at least 1. The first word is sampled at position `prompt_tokens - 1`.
    pub prompt_tokens: u32,
    /// Most tokens that are generated, at least 1.
    pub max_tokens: u32,
    /// In 1e-4; 0 always takes the likeliest token.
    pub temperature: u32,
    /// Only so many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability are kept, in 1e-4; 10,000 keeps all.
    pub top_p: u32,
    /// Tokens less likely than this part of the likeliest are dropped, in 1e-4; 0 keeps all.
    pub min_p: u32,
    /// Factor against tokens that occurred, prompt included, in 1e-4; 10,000 changes nothing.
    pub repetition_penalty: u32,
    /// Taken from the logit of each generated token, in 1e-4.
    pub presence_penalty: i32,
    /// Taken from the logit of each generated token for each time it was generated, in 1e-4.
    pub frequency_penalty: i32,
    /// Tokens, ascending, and what is added to their logits, in 1e-4.
    pub logit_bias: Vec<(u32, i32)>,
    /// Tokens that end the generation, ascending.
    pub stop_tokens: Vec<u32>,
    /// Byte strings that end the generation: at most 4, of 1 to 32 bytes.
    pub stop_strings: Vec<Vec<u8>>,
}

/// Bits of a word that hold its token; how the generation stands is in those above.
pub const WORD_TOKEN_BITS: u32 = 24;

/// The word for a token, which is below 2^24, and a finish: 0 goes on, 1 stop token, 2 stop string, 3 length.
pub const fn word(token: u32, finish: u8) -> u32 {
    token & ((1 << WORD_TOKEN_BITS) - 1) | (finish as u32) << WORD_TOKEN_BITS
}

/// Token and finish of a word.
pub const fn split_word(word: u32) -> (u32, u8) {
    (word & ((1 << WORD_TOKEN_BITS) - 1), (word >> WORD_TOKEN_BITS) as u8)
}
