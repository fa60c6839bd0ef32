//! The manifest: what a model id is the hash of.

use std::sync::Arc;

use lockstep_kernels::program::{Program, Rows};
use lockstep_protocol::canonical::{Canonical, DecodeError, Reader, Writer, from_bytes, to_bytes};
use lockstep_protocol::ids::{Digest, ModelId};
use lockstep_protocol::limits::{
    MAX_BLOB_BYTES, MAX_FAMILY_BYTES, MAX_MANIFEST_BYTES, MAX_NAME_BYTES, MAX_PROGRAM_IDS, MAX_SOURCE_NAME_BYTES,
    MAX_SOURCES, MAX_STOP_TOKENS, MAX_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES,
};

use super::program_codec::{decode_program, encode_program};
use crate::error::ModelError;

/// Version of SPEC.md that a package's numbers are defined by.
pub const SPEC_VERSION: u32 = 1;
/// Most fractional bits of an output.
pub const MAX_OUTPUT_FRAC: u8 = 62;

/// How wide the codes of matrices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightMode {
    /// 16 bits everywhere: the faithful mode.
    W16,
    /// 8 bits with error feedback; embedding tables and down projections keep 16.
    W8,
}

impl std::fmt::Display for WeightMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::W16 => "w16",
            Self::W8 => "w8",
        })
    }
}

impl std::str::FromStr for WeightMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "w16" => Ok(Self::W16),
            "w8" => Ok(Self::W8),
            _ => Err(format!("{text:?} is not a weight mode: w16 or w8")),
        }
    }
}

/// A file that the package was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Path inside the folder, with `/`.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Plain BLAKE3.
    pub digest: Digest,
}

/// A run of bytes and what they hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Length in bytes, at least 1.
    pub bytes: u64,
    /// Plain BLAKE3.
    pub digest: Digest,
}

impl BlobInfo {
    /// Describes bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, digest: blake3::hash(bytes).into() }
    }
}

/// Everything that defines a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// See [`SPEC_VERSION`].
    pub spec_version: u32,
    /// What people call it, 1 to 128 bytes without control characters.
    pub name: String,
    /// Which lowering made the program, as in `bert`.
    pub family: String,
    /// How wide the codes are.
    pub weights: WeightMode,
    /// The model as ops.
    pub program: Arc<Program>,
    /// The output's elements are integers times `2^-output_frac`.
    pub output_frac: u8,
    /// One blob for each of the program's parameters.
    pub params: Vec<BlobInfo>,
    /// `tokenizer.json`.
    pub tokenizer: BlobInfo,
    /// The chat template, UTF-8.
    pub template: Option<BlobInfo>,
    /// Tokens that end a generation, strictly ascending and below the vocabulary's size.
    pub stop_tokens: Vec<u32>,
    /// The files of the checkpoint, names strictly ascending.
    pub sources: Vec<SourceFile>,
    /// BLAKE3 of the calibration text; there exactly when `weights` is `W8` or the model is a decoder.
    pub calibration: Option<Digest>,
}

impl Manifest {
    /// Reads and checks a manifest. The program's structure is validated, its bounds are not yet proven.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ModelError::Package(format!("the manifest is longer than {MAX_MANIFEST_BYTES} bytes")));
        }
        // The version stands first, so that an older program can tell what it is looking at.
        match bytes.first_chunk::<4>().map(|b| u32::from_le_bytes(*b)) {
            Some(SPEC_VERSION) => {}
            Some(v) => return Err(ModelError::Package(format!("is for spec version {v}; this is {SPEC_VERSION}"))),
            None => return Err(ModelError::Package("the manifest is empty".into())),
        }
        let manifest: Self =
            from_bytes(bytes).map_err(|e| ModelError::Package(format!("the manifest does not decode: {e}")))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// The model id of these bytes.
    pub fn model_id(bytes: &[u8]) -> ModelId {
        blake3::hash(bytes).into()
    }

    /// All blobs in package order: parameters, the tokenizer, the chat template where there is one.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobInfo> {
        self.params.iter().chain([&self.tokenizer]).chain(&self.template)
    }

    /// Whether the model generates words.
    pub fn is_decoder(&self) -> bool {
        self.program.is_decoder()
    }

    /// What a manifest must satisfy beyond its encoding.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ModelError> {
        let ensure = |ok: bool, reason: &str| if ok { Ok(()) } else { Err(ModelError::Package(reason.into())) };
        ensure(self.spec_version == SPEC_VERSION, "is for another spec version")?;
        let plain =
            |text: &str, cap: usize| !text.is_empty() && text.len() <= cap && !text.chars().any(char::is_control);
        ensure(plain(&self.name, MAX_NAME_BYTES), "the name is empty, too long or has control characters")?;
        ensure(plain(&self.family, MAX_FAMILY_BYTES), "the family is empty, too long or has control characters")?;
        ensure(self.output_frac <= MAX_OUTPUT_FRAC, "the output has too many fractional bits")?;
        let decoder = self.program.is_decoder();
        let calibrated = decoder || self.weights == WeightMode::W8;
        ensure(self.calibration.is_some() == calibrated, "w8 and decoders, and only they, have a calibration")?;
        ensure(decoder || self.template.is_none(), "only a decoder has a chat template")?;
        ensure(decoder || self.stop_tokens.is_empty(), "only a decoder has stop tokens")?;
        ensure((1..=MAX_TOKENIZER_BYTES).contains(&self.tokenizer.bytes), "the tokenizer is empty or too long")?;
        let template = self.template.is_none_or(|t| (1..=MAX_TEMPLATE_BYTES).contains(&t.bytes));
        ensure(template, "the chat template is empty or too long")?;
        ensure(self.stop_tokens.len() <= MAX_STOP_TOKENS, "there are too many stop tokens")?;
        ensure(self.stop_tokens.is_sorted_by(|a, b| a < b), "stop tokens are not in order")?;
        ensure(self.sources.len() <= MAX_SOURCES, "there are too many source files")?;
        ensure(self.sources.iter().all(|s| plain(&s.name, MAX_SOURCE_NAME_BYTES)), "a source file's name is bad")?;
        ensure(self.sources.is_sorted_by(|a, b| a.name < b.name), "source files are not in order")?;
        self.program.validate()?;
        let inside = self.stop_tokens.last().is_none_or(|t| *t < self.program.vocab_size);
        ensure(inside, "a stop token is outside the vocabulary")?;
        ensure(self.params.len() == self.program.params.len(), "parameters and blobs differ in number")?;
        let fits = |(blob, param): (&BlobInfo, &lockstep_kernels::program::Param)| {
            // Two 32-bit sides fit in 64 bits; times the size of an element they may not.
            let bytes = (u64::from(param.rows) * u64::from(param.cols)).checked_mul(param.dtype.size() as u64);
            bytes == Some(blob.bytes) && blob.bytes <= MAX_BLOB_BYTES
        };
        ensure(self.params.iter().zip(&self.program.params).all(fits), "a blob's length is not its parameter's")?;
        let output = self.program.layers.last().map(|l| self.program.tensor(l.output).rows);
        ensure(decoder || output == Some(Rows::Sequence), "the last layer has no row for each sequence or point")
    }
}

impl Canonical for WeightMode {
    const MIN_BYTES: usize = 1;
    fn encode(&self, writer: &mut Writer) {
        writer.u8(match self {
            Self::W16 => 0,
            Self::W8 => 1,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            0 => Ok(Self::W16),
            1 => Ok(Self::W8),
            tag => Err(DecodeError::InvalidTag { what: "weight mode", tag: tag.into() }),
        }
    }
}

impl Canonical for BlobInfo {
    const MIN_BYTES: usize = 40;
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.bytes);
        self.digest.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { bytes: reader.u64()?, digest: reader.value()? })
    }
}

impl Canonical for SourceFile {
    const MIN_BYTES: usize = 44;
    fn encode(&self, writer: &mut Writer) {
        writer.string(&self.name);
        writer.u64(self.bytes);
        self.digest.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.string("source file name", MAX_SOURCE_NAME_BYTES)?.into(),
            bytes: reader.u64()?,
            digest: reader.value()?,
        })
    }
}

impl Canonical for Manifest {
    const MIN_BYTES: usize = 64;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.spec_version);
        writer.string(&self.name);
        writer.string(&self.family);
        self.weights.encode(writer);
        encode_program(&self.program, writer);
        writer.u8(self.output_frac);
        writer.seq(&self.params);
        self.tokenizer.encode(writer);
        writer.option(self.template.as_ref());
        writer.seq(&self.stop_tokens);
        writer.seq(&self.sources);
        writer.option(self.calibration.as_ref());
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            spec_version: reader.u32()?,
            name: reader.string("model name", MAX_NAME_BYTES)?.into(),
            family: reader.string("model family", MAX_FAMILY_BYTES)?.into(),
            weights: reader.value()?,
            program: Arc::new(decode_program(reader)?),
            output_frac: reader.u8()?,
            params: reader.seq("blobs", MAX_PROGRAM_IDS)?,
            tokenizer: reader.value()?,
            template: reader.option()?,
            stop_tokens: reader.seq("stop tokens", MAX_STOP_TOKENS)?,
            sources: reader.seq("source files", MAX_SOURCES)?,
            calibration: reader.option()?,
        })
    }
}
