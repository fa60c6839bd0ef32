//! The tokenizer in the keys of a GGUF file as the `tokenizer.json` that splits every text the same way.

mod sentencepiece;

use std::collections::BTreeSet;

use lockstep_protocol::limits::{MAX_STOP_TOKENS, MAX_TEMPLATE_BYTES};
use serde_json::{Map, Value as Json, json};

use super::config::{Keys, Refusal, integer};
use super::reader::Value;

/// Kinds in `tokenizer.ggml.token_type`.
const NORMAL: i128 = 1;
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;
const BYTE: i128 = 6;

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
    let file = match text(keys, "tokenizer.ggml.model") {
        Some("gpt2") => byte_pairs(keys)?,
        Some("llama") => sentencepiece::json(keys)?,
        Some(other) => {
            let what = format!("the tokenizer {other:?} in a GGUF file: only \"gpt2\" and \"llama\" are");
            return Err(Refusal::Unsupported(what));
        }
        None => return Err(malformed("tokenizer.ggml.model is missing")),
    };
    serde_json::to_vec(&file).map_err(|e| malformed(&e.to_string()))
}

/// What a file lists, by id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i128>,
}

impl<'a> Vocabulary<'a> {
    fn read(keys: &Keys<'a>) -> Result<Self, Refusal> {
        let tokens = texts(keys, "tokenizer.ggml.tokens")?;
        let kinds = match keys.get("tokenizer.ggml.token_type") {
            None => vec![NORMAL; tokens.len()],
            Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            Some(_) => return Err(malformed("tokenizer.ggml.token_type does not go with the tokens")),
        };
        Ok(Self { tokens, kinds })
    }

    /// `(id, token, kind)` of all that are in use: the others pad the embedding table, and no text becomes one of them.
    fn used(&self) -> impl Iterator<Item = (usize, &'a str, i128)> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate().map(|(id, (token, kind))| (id, *token, *kind));
        all.filter(|(.., kind)| *kind != UNUSED)
    }

    /// Ids by token.
    fn ids(&self) -> Result<Map<String, Json>, Refusal> {
        let mut ids = Map::new();
        for (id, token, _) in self.used() {
            if ids.insert(token.to_owned(), json!(id)).is_some() {
                return Err(malformed(&format!("token {token:?} is there twice")));
            }
        }
        Ok(ids)
    }

    /// Tokens that are found in a text as they stand, before it is split.
    fn added(&self) -> Vec<Json> {
        let added = self.used().filter(|(.., kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let added = added.map(|(id, token, kind)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            })
        });
        added.collect()
    }
}

/// Byte pairs over the byte-level alphabet.
fn byte_pairs(keys: &Keys<'_>) -> Result<Json, Refusal> {
    let (splitting, vocabulary) = (splitting(keys)?, Vocabulary::read(keys)?);
    let merges = texts(keys, "tokenizer.ggml.merges")?;
    if let Some((id, _, kind)) = vocabulary.used().find(|t| ![NORMAL, CONTROL, USER_DEFINED].contains(&t.2)) {
        return Err(Refusal::Unsupported(format!("token {id} of kind {kind} in a byte-level vocabulary")));
    }
    let merges = merges.iter().map(|merge| pair(merge)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": splitting.composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer(splitting),
        "post_processor": post_processor(keys, &vocabulary.tokens, false)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges, "vocab": vocabulary.ids()?, "merges": merges,
        },
    }))
}

fn text<'a>(keys: &Keys<'a>, key: &str) -> Option<&'a str> {
    match keys.get(key) {
        Some(Value::Text(text)) => Some(*text),
        _ => None,
    }
}

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(what.to_owned())
}

fn splitting(keys: &Keys<'_>) -> Result<&'static Splitting, Refusal> {
    // Without the key nobody can know how words are split, and a guess would be another model.
    let pre = text(keys, "tokenizer.ggml.pre").ok_or_else(|| malformed("tokenizer.ggml.pre is missing"))?;
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

/// A truth value, or what it is where the file does not say.
fn flag(keys: &Keys<'_>, name: &str, default: bool) -> Result<bool, Refusal> {
    let key = format!("tokenizer.ggml.{name}");
    match keys.get(&key) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(malformed(&format!("{key} is no truth value"))),
    }
}

/// A token before or behind every text, where the file asks for it. `begins`: whether one stands before a text where
/// the file does not say.
fn post_processor(keys: &Keys<'_>, tokens: &[&str], begins: bool) -> Result<Json, Refusal> {
    let mut special = Map::new();
    let mut piece = |name: &str, id: &str, default: bool| -> Result<Option<Json>, Refusal> {
        if !flag(keys, name, default)? {
            return Ok(None);
        }
        let key = format!("tokenizer.ggml.{id}");
        let id = integer(&key, keys.get(&key))?;
        let token =
            id.and_then(|id| tokens.get(id as usize)).ok_or_else(|| malformed(&format!("{key} names no token")))?;
        special.insert((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Ok(Some(json!({"SpecialToken": {"id": token, "type_id": 0}})))
    };
    let before = piece("add_bos_token", "bos_token_id", begins)?;
    let behind = piece("add_eos_token", "eos_token_id", false)?;
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
