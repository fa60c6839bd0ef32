//! What ends a generation, and how a conversation becomes a prompt.

use std::collections::BTreeSet;

use lockstep_protocol::limits::{MAX_STOP_TOKENS, MAX_TEMPLATE_BYTES};
use serde_json::{Map, Value};

use super::Folder;
use super::config::CONFIG;
use crate::error::ModelError;

const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const EOS: &str = "eos_token_id";

/// The ids of `generation_config.json`, or where it has none, of `config.json`; strictly ascending.
pub(super) fn stop_tokens(
    folder: &mut Folder<'_>,
    config: &Map<String, Value>,
    vocab_size: u32,
) -> Result<Vec<u32>, ModelError> {
    let mut found = (CONFIG, config.get(EOS).cloned());
    if folder.has(GENERATION)? {
        let generation: Map<String, Value> = folder.json(GENERATION)?;
        if let Some(eos) = generation.get(EOS).filter(|v| !v.is_null()) {
            found = (GENERATION, Some(eos.clone()));
        }
    }
    let bad = |what: String| ModelError::checkpoint(&folder.path(found.0), format!("{EOS} {what}"));
    let listed = match found.1 {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids,
        Some(id) => vec![id],
    };
    if listed.len() > MAX_STOP_TOKENS {
        return Err(bad(format!("lists {} tokens; at most {MAX_STOP_TOKENS}", listed.len())));
    }
    let mut ids = BTreeSet::new();
    for id in &listed {
        let token = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < vocab_size);
        ids.insert(token.ok_or_else(|| bad(format!("is {id}; the model has {vocab_size} tokens")))?);
    }
    Ok(ids.into_iter().collect())
}

/// `chat_template.jinja`, or the one in `tokenizer_config.json`: a text, or the one named `default` of several.
pub(super) fn template(folder: &mut Folder<'_>) -> Result<Option<String>, ModelError> {
    if folder.has(TEMPLATE)? {
        let bytes = folder.bytes(TEMPLATE, MAX_TEMPLATE_BYTES)?;
        let text =
            String::from_utf8(bytes).map_err(|e| ModelError::checkpoint(&folder.path(TEMPLATE), e.to_string()))?;
        return Ok(Some(text).filter(|t| !t.is_empty()));
    }
    if !folder.has(TOKENIZER)? {
        return Ok(None);
    }
    let config: Map<String, Value> = folder.json(TOKENIZER)?;
    let named = |list: &Vec<Value>| list.iter().find(|t| t["name"] == "default").map(|t| t["template"].clone());
    let template = match config.get("chat_template") {
        Some(Value::Array(list)) => named(list),
        other => other.cloned(),
    };
    match template {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.len() as u64 <= MAX_TEMPLATE_BYTES => Ok(Some(text)),
        Some(_) => {
            let reason = format!("chat_template is no text of at most {MAX_TEMPLATE_BYTES} bytes");
            Err(ModelError::checkpoint(&folder.path(TOKENIZER), reason))
        }
    }
}
