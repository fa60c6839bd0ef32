//! The tokenizer in the keys of a GGUF file as the `tokenizer.json` that splits every text the same way.

use std::collections::BTreeSet;

use lockstep_protocol::limits::{MAX_STOP_TOKENS, MAX_TEMPLATE_BYTES};
use serde_json::{Map, Value as Json, json};

use super::config::{Keys, Refusal, integer};
use super::reader::Value;

/// Kinds in `tokenizer.ggml.token_type`.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// How one family splits a text before byte pairs are merged.
struct Splitting {
    /// The value of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// A regular expression that comes before the bytes; empty for GPT-2's own.
    pattern: &'static str,
    /// Whether each digit is a word.
    digits: bool,
    /// Whether texts are composed first.
    composed: bool,
    /// Whether a word that is a token needs no merges.
    ignore_merges: bool,
}

const LLAMA_3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN_2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const SPLITTINGS: [Splitting; 4] = [
    Splitting { names: &["gpt-2"], pattern: "", digits: false, composed: false, ignore_merges: false },
    Splitting { names: &["smollm"], pattern: "", digits: true, composed: false, ignore_merges: false },
    Splitting {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: LLAMA_3,
        digits: false,
        composed: false,
        ignore_merges: true,
    },
    Splitting { names: &["qwen2"], pattern: QWEN_2, digits: false, composed: true, ignore_merges: false },
];

/// The bytes of `tokenizer.json`.
pub(super) fn json(keys: &Keys<'_>) -> Result<Vec<u8>, Refusal> {
    let splitting = splitting(keys)?;
    let tokens = texts(keys, "tokenizer.ggml.tokens")?;
    let merges = texts(keys, "tokenizer.ggml.merges")?;
    let kinds = match keys.get("tokenizer.ggml.token_type") {
        None => vec![NORMAL; tokens.len()],
        Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        Some(_) => return Err(malformed("tokenizer.ggml.token_type does not go with the tokens")),
    };
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
        match *kind {
            NORMAL => {}
            CONTROL | USER_DEFINED => added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL,
            })),
            // Rows that pad the embedding table: no text becomes one of them.
            UNUSED => continue,
            other => {
                return Err(Refusal::Unsupported(format!("token {id} of kind {other} in a byte-level vocabulary")));
            }
        }
        if vocabulary.insert((*token).to_owned(), json!(id)).is_some() {
            return Err(malformed(&format!("token {token:?} is there twice")));
        }
    }
    let merges = merges.iter().map(|merge| pair(merge)).collect::<Result<Vec<_>, _>>()?;
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": splitting.composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer(splitting),
        "post_processor": post_processor(keys, &tokens)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges, "vocab": vocabulary, "merges": merges,
        },
    });
    serde_json::to_vec(&file).map_err(|e| malformed(&e.to_string()))
}

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(what.to_owned())
}

fn splitting(keys: &Keys<'_>) -> Result<&'static Splitting, Refusal> {
    let text = |key: &str| match keys.get(key) {
        Some(Value::Text(text)) => Some(*text),
        _ => None,
    };
    match text("tokenizer.ggml.model") {
        Some("gpt2") => {}
        Some("llama") => {
            let what = "the SentencePiece tokenizer \"llama\" in a GGUF file: import the Hugging Face folder, which has its \
                        tokenizer.json";
            return Err(Refusal::Unsupported(what.into()));
        }
        Some(other) => {
            return Err(Refusal::Unsupported(format!("the tokenizer {other:?} in a GGUF file: only \"gpt2\" is")));
        }
        None => return Err(malformed("tokenizer.ggml.model is missing")),
    }
    // Without the key nobody can know how words are split, and a guess would be another model.
    let pre = text("tokenizer.ggml.pre").ok_or_else(|| malformed("tokenizer.ggml.pre is missing"))?;
    let found = SPLITTINGS.iter().find(|s| s.names.contains(&pre));
    found.ok_or_else(|| {
        let known: Vec<&str> = SPLITTINGS.iter().flat_map(|s| s.names).copied().collect();
        Refusal::Unsupported(format!("tokenizer.ggml.pre {pre:?}: known are {}", known.join(", ")))
    })
}

fn texts<'a>(keys: &Keys<'a>, key: &str) -> Result<Vec<&'a str>, Refusal> {
    match keys.get(key) {
        Some(Value::Texts(texts)) => Ok(texts.clone()),
        _ => Err(malformed(&format!("{key} is missing"))),
    }
}

fn pair(merge: &str) -> Result<[&str; 2], Refusal> {
    match merge.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok([a, b]),
        _ => Err(malformed(&format!("the merge {merge:?} is no pair"))),
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn pre_tokenizer(splitting: &Splitting) -> Json {
    let first = if splitting.digits {
        json!({"type": "Digits", "individual_digits": true})
    } else if splitting.pattern.is_empty() {
        return byte_level(true);
    } else {
        json!({"type": "Split", "pattern": {"Regex": splitting.pattern}, "behavior": "Isolated", "invert": false})
    };
    json!({"type": "Sequence", "pretokenizers": [first, byte_level(splitting.pattern.is_empty())]})
}

/// A token before or behind every text, where the file asks for it.
fn post_processor(keys: &Keys<'_>, tokens: &[&str]) -> Result<Json, Refusal> {
    let mut special = Map::new();
    let mut piece = |flag: &str, id: &str| -> Result<Option<Json>, Refusal> {
        let flag = format!("tokenizer.ggml.{flag}");
        match keys.get(&flag) {
            None | Some(Value::Bool(false)) => return Ok(None),
            Some(Value::Bool(true)) => {}
            Some(_) => return Err(malformed(&format!("{flag} is no truth value"))),
        }
        let key = format!("tokenizer.ggml.{id}");
        let id = integer(&key, keys.get(&key))?;
        let token =
            id.and_then(|id| tokens.get(id as usize)).ok_or_else(|| malformed(&format!("{key} names no token")))?;
        special.insert((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Ok(Some(json!({"SpecialToken": {"id": token, "type_id": 0}})))
    };
    let (before, behind) = (piece("add_bos_token", "bos_token_id")?, piece("add_eos_token", "eos_token_id")?);
    if special.is_empty() {
        return Ok(Json::Null);
    }
    let around = |texts: &[&str]| -> Vec<Json> {
        let text = |(n, id): (usize, &&str)| json!({"Sequence": {"id": id, "type_id": n}});
        let texts = texts.iter().enumerate().map(text);
        before.iter().cloned().chain(texts).chain(behind.iter().cloned()).collect()
    };
    Ok(json!({
        "type": "TemplateProcessing", "single": around(&["A"]), "pair": around(&["A", "B"]), "special_tokens": special,
    }))
}

/// Tokens that end a generation, strictly ascending.
pub(super) fn stop_tokens(keys: &Keys<'_>, vocab_size: u32) -> Result<Vec<u32>, Refusal> {
    let mut ids = BTreeSet::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = integer(key, keys.get(key))? {
            if id >= vocab_size {
                return Err(malformed(&format!("{key} is {id}; the model has {vocab_size} tokens")));
            }
            ids.insert(id);
        }
    }
    debug_assert!(ids.len() <= MAX_STOP_TOKENS);
    Ok(ids.into_iter().collect())
}

/// The chat template.
pub(super) fn template(keys: &Keys<'_>) -> Result<Option<String>, Refusal> {
    match keys.get("tokenizer.chat_template") {
        None => Ok(None),
        Some(Value::Text("")) => Ok(None),
        Some(Value::Text(text)) if text.len() as u64 <= MAX_TEMPLATE_BYTES => Ok(Some((*text).to_owned())),
        Some(_) => Err(malformed(&format!("tokenizer.chat_template is no text of at most {MAX_TEMPLATE_BYTES} bytes"))),
    }
}
