//! What a sentence encoder does with the last layer: `modules.json` and the pooling module's configuration.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Folder;
use crate::error::ModelError;

const MODULES: &str = "modules.json";
const SENTENCE: &str = "sentence_bert_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";

/// How the rows of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over all positions.
    Mean,
    /// The first position.
    Cls,
}

/// What follows the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Postprocessing {
    /// Rows to one row.
    pub pooling: Pooling,
    /// Whether the row is scaled to unit length.
    pub normalize: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct SentenceConfig {
    #[serde(default)]
    do_lower_case: bool,
}

pub(super) fn read(folder: &mut Folder<'_>, hidden_size: u32) -> Result<Postprocessing, ModelError> {
    if !folder.has(MODULES)? {
        let reason = "is missing, so the pooling is unknown: a sentence-transformers folder is expected";
        return Err(ModelError::checkpoint(&folder.path(MODULES), reason));
    }
    let modules: Vec<Module> = folder.json(MODULES)?;
    let kinds: Vec<&str> = modules.iter().map(|m| m.r#type.rsplit('.').next().unwrap_or_default()).collect();
    let normalize = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            let what = format!("modules {kinds:?}: Transformer, Pooling and at most Normalize are lowered");
            return Err(ModelError::Unsupported(what));
        }
    };
    if !modules[0].path.is_empty() {
        return Err(ModelError::Unsupported(format!("a Transformer module in the folder {:?}", modules[0].path)));
    }
    check_sentence_config(folder)?;
    check_prompts(folder)?;
    Ok(Postprocessing { pooling: read_pooling(folder, &modules[1].path, hidden_size)?, normalize })
}

/// Lower-casing in front of the tokenizer would be lost: `tokenizer.json` is all that a package keeps.
fn check_sentence_config(folder: &mut Folder<'_>) -> Result<(), ModelError> {
    if !folder.has(SENTENCE)? {
        return Ok(());
    }
    let config: SentenceConfig = folder.json(SENTENCE)?;
    if config.do_lower_case {
        return Err(ModelError::Unsupported(format!("do_lower_case in {SENTENCE}")));
    }
    Ok(())
}

/// A prompt in front of every text would be lost. Prompts that a caller asks for by name are no default, and stay the
/// caller's. The file does not define the model otherwise, so it is no source.
fn check_prompts(folder: &mut Folder<'_>) -> Result<(), ModelError> {
    if !folder.has(PROMPTS)? {
        return Ok(());
    }
    let config: Map<String, Value> = folder.aside(PROMPTS)?;
    let Some(name) = config.get("default_prompt_name").filter(|n| !n.is_null()) else { return Ok(()) };
    let prompt = name.as_str().and_then(|n| config.get("prompts").and_then(|p| p.get(n)));
    // An empty prompt changes nothing.
    if prompt.and_then(Value::as_str) == Some("") {
        return Ok(());
    }
    Err(ModelError::Unsupported(format!("default_prompt_name {name} in {PROMPTS}: it would be put before every text")))
}

fn read_pooling(folder: &mut Folder<'_>, module: &str, hidden_size: u32) -> Result<Pooling, ModelError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if module.is_empty() || !module.chars().all(plain) {
        return Err(ModelError::checkpoint(&folder.path(MODULES), format!("module path {module:?}")));
    }
    let name = format!("{module}/config.json");
    let config: Map<String, Value> = folder.json(&name)?;
    let width = config.get("word_embedding_dimension").and_then(Value::as_u64);
    if width.is_some_and(|w| w != u64::from(hidden_size)) {
        let reason = "word_embedding_dimension differs from hidden_size in config.json";
        return Err(ModelError::checkpoint(&folder.path(&name), reason));
    }
    let on = |(key, value): (&String, &Value)| {
        (key.starts_with("pooling_mode") && value != &Value::Bool(false)).then(|| key.clone())
    };
    let modes: Vec<String> = config.iter().filter_map(on).collect();
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        _ => Err(ModelError::Unsupported(format!("pooling {modes:?}: mean_tokens or cls_token alone is lowered"))),
    }
}
