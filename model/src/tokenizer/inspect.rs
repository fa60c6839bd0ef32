//! What a `tokenizer.json` may ask for: looked at before the tokenizers library sees it.
//!
//! The file comes from whoever made the package. The library knows components that draw random numbers, that panic on
//! bad tables and that grow a letter to gigabytes; so only what known models use is let through, by name.

use serde_json::{Map, Value};

use super::bytes::Writing;
use super::components;

/// Most components in one `Sequence`; sequences do not nest.
const MAX_SEQUENCE: usize = 16;
/// Most pieces of a template.
const MAX_PIECES: usize = 32;
/// Most special tokens of a template, and most ids of one.
const MAX_SPECIAL: usize = 32;
/// Most added tokens.
const MAX_ADDED: usize = 4_096;
/// Longest added token and longest prefix of inner pieces, in bytes.
const MAX_CONTENT_BYTES: usize = 256;
/// Longest word that is cut into pieces, in characters: the work is its square.
const MAX_WORD_CHARS: u64 = 1_000;

const MODELS: [&str; 3] = ["WordPiece", "WordLevel", "BPE"];
const POST_PROCESSORS: [&str; 4] = ["TemplateProcessing", "BertProcessing", "ByteLevel", "Sequence"];

/// A file that passed.
#[derive(Debug)]
pub(super) struct Inspected {
    /// The very value that was looked at, as JSON, without truncation and padding.
    pub json: Vec<u8>,
    /// How many times the post-processor puts the text into its output, at least 1.
    pub copies: usize,
    /// How the decoder reads tokens as bytes, where it does.
    pub writing: Option<Writing>,
}

/// Looks at a file for a model with `vocab_size` tokens.
pub(super) fn inspect(json: &[u8], vocab_size: u32) -> Result<Inspected, String> {
    let mut root: Map<String, Value> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    // The limit is the model's, and nothing is padded.
    root.insert("truncation".into(), Value::Null);
    root.insert("padding".into(), Value::Null);
    model(root.get("model").unwrap_or(&Value::Null))?;
    chain("normalizer", root.get("normalizer"), "normalizers", components::normalizer)?;
    chain("pre_tokenizer", root.get("pre_tokenizer"), "pretokenizers", components::pre_tokenizer)?;
    let mut writing = None;
    chain("decoder", root.get("decoder"), "decoders", |part| {
        writing = components::decoder(part)?.or(writing);
        Ok(())
    })?;
    added_tokens(root.get("added_tokens"))?;
    let copies = post_processor(root.get("post_processor"), vocab_size)?;
    Ok(Inspected { json: serde_json::to_vec(&root).map_err(|e| e.to_string())?, copies, writing })
}

pub(super) fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|v| !v.is_null())
}

/// The type of a component, which must be one of these.
pub(super) fn allowed<'a>(what: &str, component: &'a Value, types: &[&str]) -> Result<&'a str, String> {
    let Some(name) = component.get("type").and_then(Value::as_str) else {
        return Err(format!("the {what} has no type"));
    };
    if types.contains(&name) {
        return Ok(name);
    }
    Err(format!("the {what} {name:?} is not supported: {}", types.join(", ")))
}

fn model(model: &Value) -> Result<(), String> {
    if present(model.get("dropout")).is_some() {
        return Err("the model has a dropout: its tokens would be drawn at random".into());
    }
    allowed("model", model, &MODELS)?;
    if let Some(chars) = present(model.get("max_input_chars_per_word"))
        && chars.as_u64().is_none_or(|n| n > MAX_WORD_CHARS)
    {
        return Err(format!("max_input_chars_per_word is {chars}; at most {MAX_WORD_CHARS}"));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if present(model.get(affix)).and_then(Value::as_str).is_some_and(|text| text.len() > MAX_CONTENT_BYTES) {
            return Err(format!("{affix} is too long"));
        }
    }
    Ok(())
}

/// One component, or one `Sequence` of them.
fn chain(
    what: &str,
    component: Option<&Value>,
    items: &str,
    mut check: impl FnMut(&Value) -> Result<(), String>,
) -> Result<(), String> {
    let Some(component) = present(component) else { return Ok(()) };
    if component.get("type").and_then(Value::as_str) != Some("Sequence") {
        return check(component);
    }
    let parts = component.get(items).and_then(Value::as_array).ok_or_else(|| format!("the {what} has no {items}"))?;
    if parts.len() > MAX_SEQUENCE {
        return Err(format!("the {what} has {} parts; at most {MAX_SEQUENCE}", parts.len()));
    }
    parts.iter().try_for_each(check)
}

fn added_tokens(tokens: Option<&Value>) -> Result<(), String> {
    let Some(tokens) = present(tokens).and_then(Value::as_array) else { return Ok(()) };
    if tokens.len() > MAX_ADDED {
        return Err(format!("there are {} added tokens; at most {MAX_ADDED}", tokens.len()));
    }
    let plain = |t: &Value| {
        t.get("content").and_then(Value::as_str).is_some_and(|c| (1..=MAX_CONTENT_BYTES).contains(&c.len()))
    };
    if tokens.iter().all(plain) { Ok(()) } else { Err("an added token is empty or too long".into()) }
}

fn post_processor(processor: Option<&Value>, vocab_size: u32) -> Result<usize, String> {
    let Some(processor) = present(processor) else { return Ok(1) };
    match allowed("post_processor", processor, &POST_PROCESSORS)? {
        "TemplateProcessing" => template(processor, vocab_size),
        // It moves offsets, which nobody reads.
        "ByteLevel" => Ok(1),
        "Sequence" => {
            let parts = processor.get("processors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let kinds: Vec<_> = parts.iter().filter_map(|p| p.get("type").and_then(Value::as_str)).collect();
            match kinds[..] {
                ["ByteLevel", "TemplateProcessing"] => template(&parts[1], vocab_size),
                _ => Err(format!("the post_processor Sequence {kinds:?}: ByteLevel, then TemplateProcessing")),
            }
        }
        _ => {
            for key in ["sep", "cls"] {
                token_id(&processor[key][1], vocab_size)?;
            }
            Ok(1)
        }
    }
}

fn token_id(id: &Value, vocab_size: u32) -> Result<(), String> {
    if id.as_u64().is_some_and(|id| id < u64::from(vocab_size)) {
        return Ok(());
    }
    Err(format!("the post_processor adds the token {id}; the model has {vocab_size} tokens"))
}

/// How often a template for one text names the text.
fn template(processor: &Value, vocab_size: u32) -> Result<usize, String> {
    let special = processor.get("special_tokens").and_then(Value::as_object);
    let special = special.ok_or("the template has no special_tokens")?;
    if special.len() > MAX_SPECIAL {
        return Err(format!("the template has {} special tokens; at most {MAX_SPECIAL}", special.len()));
    }
    for (name, token) in special {
        let list = |key: &str| token.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (ids, tokens) = (list("ids"), list("tokens"));
        if ids.len() != tokens.len() || ids.len() > MAX_SPECIAL {
            return Err(format!("the special token {name:?} is malformed"));
        }
        ids.iter().try_for_each(|id| token_id(id, vocab_size))?;
    }
    pieces(processor, "pair", special)?;
    let [a, b] = pieces(processor, "single", special)?;
    if a == 0 || b > 0 {
        return Err("the template for one text must name A and not B".into());
    }
    Ok(a)
}

/// How often the text and the second text stand in a template.
fn pieces(processor: &Value, key: &str, special: &Map<String, Value>) -> Result<[usize; 2], String> {
    let pieces = processor.get(key).and_then(Value::as_array).ok_or_else(|| format!("the template has no {key}"))?;
    if pieces.len() > MAX_PIECES {
        return Err(format!("the template has {} pieces; at most {MAX_PIECES}", pieces.len()));
    }
    let mut texts = [0; 2];
    for piece in pieces {
        let id = |kind: &str| piece.get(kind).and_then(|p| p.get("id")).and_then(Value::as_str);
        match (id("Sequence"), id("SpecialToken")) {
            (Some("A"), None) => texts[0] += 1,
            (Some("B"), None) => texts[1] += 1,
            (None, Some(token)) if special.contains_key(token) => {}
            _ => return Err(format!("the template has the piece {piece}, which is not declared")),
        }
    }
    Ok(texts)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
