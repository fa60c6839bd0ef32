//! A model as a Hugging Face folder, or as a GGUF file: configuration, weights and tokenizer; a sentence encoder's
//! pooling; a decoder's stop tokens and chat template.

mod chat;
mod config;
mod decoder;
mod pooling;
mod rope;
mod weights;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lockstep_protocol::limits::{MAX_CHECKPOINT_JSON_BYTES, MAX_TOKENIZER_BYTES};
use serde::de::DeserializeOwned;

pub use config::BertConfig;
pub use decoder::{DecoderConfig, Family};
pub use pooling::{Pooling, Postprocessing};
pub use rope::{AttentionFactor, RopeConfig, RopeScaling};
pub use weights::Weights;
pub(crate) use weights::{TensorSource, f16_to_f32};

use crate::error::ModelError;
use crate::gguf::{self, Gguf};
use crate::package::SourceFile;

/// An opened folder. Weights stay in their file until they are read.
#[derive(Debug)]
pub struct Checkpoint {
    /// Checked configuration.
    pub config: Config,
    /// The tensors.
    pub weights: Weights,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The chat template of a decoder.
    pub template: Option<String>,
    /// Tokens that end a generation, strictly ascending.
    pub stop_tokens: Vec<u32>,
    /// Every file that was read, by name.
    pub sources: Vec<SourceFile>,
}

/// What a model is.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A sentence encoder, and what follows its last layer.
    Bert(BertConfig, Postprocessing),
    /// A decoder.
    Decoder(DecoderConfig),
}

impl Config {
    /// Tokens are below this.
    pub fn vocab_size(&self) -> u32 {
        match self {
            Self::Bert(config, _) => config.vocab_size,
            Self::Decoder(config) => config.vocab_size,
        }
    }

    /// Longest sequence.
    pub fn max_positions(&self) -> u32 {
        match self {
            Self::Bert(config, _) => config.max_position_embeddings,
            Self::Decoder(config) => config.max_positions,
        }
    }

    /// The family in a manifest.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Bert(..) => "bert",
            Self::Decoder(config) => config.family.name(),
        }
    }
}

/// Reads files of one folder and remembers their digests.
struct Folder<'a> {
    dir: &'a Path,
    sources: Vec<SourceFile>,
}

impl Checkpoint {
    /// Opens a folder, or a GGUF file. `max_positions` caps the context of a decoder below its own limit.
    ///
    /// # Errors
    /// The first file that is missing, malformed or describes a model that is not supported.
    pub fn open(path: &Path, max_positions: Option<u32>) -> Result<Self, ModelError> {
        if path.is_file() { Self::open_gguf(path, max_positions) } else { Self::open_folder(path, max_positions) }
    }

    fn open_gguf(path: &Path, max_positions: Option<u32>) -> Result<Self, ModelError> {
        let bad = |what: &str| ModelError::checkpoint(path, what);
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| bad("has no name"))?;
        let mut folder = Folder { dir: path.parent().unwrap_or(Path::new("")), sources: Vec::new() };
        let map = weights::map(&mut folder, name)?;
        let Gguf { config, weights, tokenizer, template, stop_tokens } = gguf::open(path, map)?;
        let config = Config::Decoder(DecoderConfig::parse(path, &config, max_positions)?);
        Ok(Self { config, weights, tokenizer, template, stop_tokens, sources: folder.sources })
    }

    fn open_folder(dir: &Path, max_positions: Option<u32>) -> Result<Self, ModelError> {
        let mut folder = Folder { dir, sources: Vec::new() };
        let (config, json) = config::read(&mut folder, max_positions)?;
        let (mut template, mut stop_tokens) = (None, Vec::new());
        if let Config::Decoder(config) = &config {
            stop_tokens = chat::stop_tokens(&mut folder, &json, config.vocab_size)?;
            template = chat::template(&mut folder)?;
        }
        let tokenizer = folder.bytes("tokenizer.json", MAX_TOKENIZER_BYTES)?;
        let weights = weights::open(&mut folder)?;
        let mut sources = folder.sources;
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { config, weights, tokenizer, template, stop_tokens, sources })
    }
}

impl Folder<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether there is such a file; an error where that can't be told, since a file that is passed over may matter.
    fn has(&self, name: &str) -> Result<bool, ModelError> {
        let path = self.path(name);
        path.try_exists().map_err(ModelError::io("look for", &path))
    }

    /// Opens a regular file, so that a pipe or device can't stall the import.
    fn open(&self, name: &str) -> Result<(File, u64), ModelError> {
        let path = self.path(name);
        let metadata = std::fs::metadata(&path).map_err(ModelError::io("open", &path))?;
        if !metadata.is_file() {
            return Err(ModelError::checkpoint(&path, "is not a regular file"));
        }
        let file = File::open(&path).map_err(ModelError::io("open", &path))?;
        Ok((file, metadata.len()))
    }

    fn bytes(&mut self, name: &str, cap: u64) -> Result<Vec<u8>, ModelError> {
        let bytes = self.read(name, cap)?;
        self.remember(name, &bytes);
        Ok(bytes)
    }

    fn read(&self, name: &str, cap: u64) -> Result<Vec<u8>, ModelError> {
        let (file, _) = self.open(name)?;
        let path = self.path(name);
        let mut bytes = Vec::new();
        file.take(cap + 1).read_to_end(&mut bytes).map_err(ModelError::io("read", &path))?;
        if bytes.len() as u64 > cap {
            return Err(ModelError::checkpoint(&path, format!("is longer than {cap} bytes")));
        }
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ModelError> {
        let bytes = self.bytes(name, MAX_CHECKPOINT_JSON_BYTES)?;
        self.parse(name, &bytes)
    }

    /// A file that is only checked: it is not remembered as a source.
    fn aside<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        self.parse(name, &self.read(name, MAX_CHECKPOINT_JSON_BYTES)?)
    }

    fn parse<T: DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, ModelError> {
        serde_json::from_slice(bytes).map_err(|e| ModelError::checkpoint(&self.path(name), e.to_string()))
    }

    fn remember(&mut self, name: &str, bytes: &[u8]) {
        let source = SourceFile { name: name.into(), bytes: bytes.len() as u64, digest: blake3::hash(bytes).into() };
        self.sources.push(source);
    }
}
