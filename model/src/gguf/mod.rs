//! GGUF files of Llama-like models, read as the Hugging Face checkpoint that they were made from: the same names, shapes,
//! row order, configuration and `tokenizer.json`. So there is one lowering, and F32, F16 and BF16 files give the program
//! and parameters of their folder.

mod config;
mod kind;
mod names;
mod reader;
mod source;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use memmap2::Mmap;
use serde_json::{Map, Value};

use crate::checkpoint::Weights;
use crate::error::ModelError;
use config::{Keys, Refusal};
use reader::Contents;
use source::{GgufTensors, Located};

/// What a file holds, as the files of a folder would.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// `config.json`.
    pub config: Map<String, Value>,
    /// The tensors.
    pub weights: Weights,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The chat template.
    pub template: Option<String>,
    /// Tokens that end a generation, strictly ascending; each is in the vocabulary.
    pub stop_tokens: Vec<u32>,
}

/// Reads a mapped file; `path` is for messages.
pub(crate) fn open(path: &Path, map: Mmap) -> Result<Gguf, ModelError> {
    let contents = reader::read(&map).map_err(|reason| ModelError::checkpoint(path, reason))?;
    let parts = parts(&contents).map_err(|refusal| match refusal {
        Refusal::Malformed(reason) => ModelError::checkpoint(path, reason),
        Refusal::Unsupported(what) => ModelError::Unsupported(what),
    })?;
    let Parts { config, tensors, tokenizer, template, stop_tokens } = parts;
    drop(contents);
    Ok(Gguf { config, weights: Weights::new(Box::new(GgufTensors { map, tensors })), tokenizer, template, stop_tokens })
}

struct Parts {
    config: Map<String, Value>,
    tensors: BTreeMap<String, Located>,
    tokenizer: Vec<u8>,
    template: Option<String>,
    stop_tokens: Vec<u32>,
}

fn parts(contents: &Contents<'_>) -> Result<Parts, Refusal> {
    let keys = Keys::of(contents)?;
    let config = config::json(&keys, contents)?;
    let (heads, kv_heads) = keys.heads()?;
    let interleaved = |name: &str| {
        let rotated = names::rotated(name).filter(|_| keys.has_interleaved_heads());
        rotated.map(|is_query| if is_query { heads } else { kv_heads } as usize)
    };
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &contents.tensors {
        let located = Located { tensor: tensor.clone(), interleaved: interleaved(name) };
        if tensors.insert(names::hf_name(name), located).is_some() {
            return Err(Refusal::Malformed(format!("tensor {name:?} is there under two names")));
        }
    }
    let vocab_size = config["vocab_size"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Ok(Parts {
        tensors,
        tokenizer: tokenizer::json(&keys)?,
        template: tokenizer::template(&keys)?,
        stop_tokens: tokenizer::stop_tokens(&keys, vocab_size)?,
        config,
    })
}

#[cfg(test)]
mod import_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod writer;
