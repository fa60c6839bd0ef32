//! Normalizers, pre-tokenizers and decoders that a `tokenizer.json` may name.

use serde_json::{Value, json};

use super::bytes::Writing;
use super::inspect::allowed;

const NORMALIZERS: [&str; 10] =
    ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Strip", "Prepend", "Replace"];
const PRE_TOKENIZERS: [&str; 8] =
    ["BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "ByteLevel", "Metaspace", "Digits", "Split"];
const DECODERS: [&str; 7] = ["WordPiece", "ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip"];
/// What sentencepiece writes for a space.
const META: &str = "\u{2581}";

/// Patterns by which known models cut text into words. They backtrack little; any other pattern could be made to take
/// forever on a short text.
const PATTERNS: [&str; 10] = [
    // GPT-2.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // GPT-4, Llama 3 and Qwen 2 and 3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Tekken, of newer Mistral models.
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // DeepSeek, whose distillations are Llama and Qwen models.
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
];

/// Whether a normalizer may be used.
pub(super) fn normalizer(part: &Value) -> Result<(), String> {
    match allowed("normalizer", part, &NORMALIZERS)? {
        // A text that grows by a factor in every one of 16 steps would fill memory.
        "Prepend" if part["prepend"] != META => Err(refused("normalizer", "Prepend", part)),
        "Replace" if !replaces(part, " ", META) => Err(refused("normalizer", "Replace", part)),
        _ => Ok(()),
    }
}

/// Whether a pre-tokenizer may be used.
pub(super) fn pre_tokenizer(part: &Value) -> Result<(), String> {
    match allowed("pre_tokenizer", part, &PRE_TOKENIZERS)? {
        "Metaspace" if part["replacement"] != META => Err(refused("pre_tokenizer", "Metaspace", part)),
        "Split" => split(part),
        _ => Ok(()),
    }
}

fn split(part: &Value) -> Result<(), String> {
    let known = match (part["pattern"]["Regex"].as_str(), part["pattern"]["String"].as_str()) {
        (Some(regex), None) => PATTERNS.contains(&regex),
        (None, Some(text)) => (1..=16).contains(&text.len()),
        _ => false,
    };
    if known { Ok(()) } else { Err(refused("pre_tokenizer", "Split", part)) }
}

/// Whether a decoder may be named, and how it reads tokens, where that is what it says.
pub(super) fn decoder(part: &Value) -> Result<Option<Writing>, String> {
    match allowed("decoder", part, &DECODERS)? {
        "ByteLevel" => Ok(Some(Writing::ByteLevel)),
        "Metaspace" if part["replacement"] != META => Err(refused("decoder", "Metaspace", part)),
        "Replace" if !replaces(part, META, " ") => Err(refused("decoder", "Replace", part)),
        "Metaspace" | "Replace" | "ByteFallback" => Ok(Some(Writing::Metaspace)),
        // They join pieces, or take off the space in front of a text, which a continuation keeps.
        _ => Ok(None),
    }
}

fn replaces(part: &Value, from: &str, to: &str) -> bool {
    part["pattern"] == json!({ "String": from }) && part["content"] == to
}

fn refused(what: &str, name: &str, part: &Value) -> String {
    let mut shown = part.to_string();
    shown.truncate((0..=200).rev().find(|n| shown.is_char_boundary(*n)).unwrap_or(0));
    format!("the {what} {name:?} is not supported with these settings: {shown}")
}
