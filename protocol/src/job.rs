//! Jobs: what a client asks for, in canonical form, and the id that names it.
//!
//! The id is the hash of the [`JobHeader`], into which the tokens enter by count and root. So whoever
//! has the header can check the id, and whoever has the tokens can check the header.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::Geometry;
use crate::domain::Domain;
use crate::generation::{Generation, GenerationError};
use crate::ids::{JobId, ModelId, Nonce, RequestHash, Root, Seed};
use crate::limits::{MAX_LAYERS, MAX_POSITIONS, MAX_RUN_ROOTS, MAX_TEXT_BYTES};

/// The version of SPEC.md that this program implements. Jobs of another version are refused.
pub const SPEC_VERSION: u32 = 1;

/// What is done with the tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// One pass of an encoder; the output is the pooled vector. One commitment point, the last position.
    Embedding,
    /// A decoder goes on from the tokens; the output are its words. A commitment point for each of them.
    Generation(Box<Generation>),
}

impl JobKind {
    /// The most commitment points of a run.
    pub fn max_points(&self) -> u32 {
        match self {
            Self::Embedding => 1,
            Self::Generation(generation) => generation.max_tokens,
        }
    }

    /// What is generated, where anything is.
    pub fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Embedding => None,
            Self::Generation(generation) => Some(generation),
        }
    }

    /// Checks it, for a job of so many tokens.
    fn check(&self, token_count: usize) -> Result<(), JobError> {
        if token_count == 0 || token_count > MAX_POSITIONS {
            return Err(JobError::TokenCount { found: token_count });
        }
        let Some(generation) = self.generation() else {
            return Ok(());
        };
        generation.check()?;
        let positions = token_count + generation.max_tokens as usize - 1;
        if positions > MAX_POSITIONS { Err(JobError::TokenCount { found: positions }) } else { Ok(()) }
    }
}

impl Canonical for JobKind {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Embedding => writer.u16(1),
            Self::Generation(generation) => {
                writer.u16(2);
                generation.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Embedding),
            2 => Ok(Self::Generation(Box::new(reader.value()?))),
            tag => Err(DecodeError::InvalidTag { what: "job kind", tag: tag.into() }),
        }
    }
}

/// What the client sent, before it became tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestInput {
    /// A text, which the model's tokenizer turns into tokens.
    Text(String),
    /// Token ids as the client gave them.
    Tokens(Vec<u32>),
}

impl RequestInput {
    /// The hash that job and receipt carry. The job's secret nonce blinds it, so that nobody without
    /// the job can try texts against it.
    pub fn hash(&self, nonce: &Nonce) -> RequestHash {
        let mut writer = Writer::new();
        nonce.encode(&mut writer);
        self.encode(&mut writer);
        RequestHash::from_bytes(*Domain::Request.hash(&writer.into_bytes()).as_bytes())
    }
}

impl Canonical for RequestInput {
    const MIN_BYTES: usize = 5;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Text(text) => {
                writer.u8(1);
                writer.string(text);
            }
            Self::Tokens(tokens) => {
                writer.u8(2);
                writer.seq(tokens);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            1 => Ok(Self::Text(reader.string("request text", MAX_TEXT_BYTES)?.to_owned())),
            2 => Ok(Self::Tokens(reader.seq("request tokens", MAX_POSITIONS)?)),
            tag => Err(DecodeError::InvalidTag { what: "request input", tag: tag.into() }),
        }
    }
}

/// Why a job is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JobError {
    /// Written for another version of the specification.
    #[error("the job is for specification version {found}, not {SPEC_VERSION}")]
    SpecVersion {
        /// The job's version.
        found: u32,
    },
    /// No token or too many, those included that are to be generated.
    #[error("the job has {found} tokens; 1 to {MAX_POSITIONS} are allowed")]
    TokenCount {
        /// How many it has.
        found: usize,
    },
    /// No layer or too many.
    #[error("the model has {found} layers; 1 to {MAX_LAYERS} are allowed")]
    Layers {
        /// How many it has.
        found: u16,
    },
    /// What is to be generated is not allowed.
    #[error("{0}")]
    Generation(#[from] GenerationError),
    /// A run could have more roots than are kept.
    #[error("{found} roots could be streamed: {MAX_RUN_ROOTS} are allowed")]
    Roots {
        /// Layers times tokens.
        found: usize,
    },
}

/// A job with its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The version of SPEC.md that defines the result: [`SPEC_VERSION`].
    pub spec_version: u32,
    /// The model to run.
    pub model: ModelId,
    /// What to do with the tokens.
    pub kind: JobKind,
    /// The token ids, 1 to [`MAX_POSITIONS`], special tokens included.
    pub tokens: Vec<u32>,
    /// The blinded hash of what the client sent.
    pub request: RequestHash,
    /// The client's seed.
    pub seed: Seed,
    /// The client's secret nonce.
    pub nonce: Nonce,
}

impl Job {
    /// Checks version, token count and what is to be generated.
    ///
    /// # Errors
    /// [`JobError`], but for those about layers.
    pub fn check(&self) -> Result<(), JobError> {
        if self.spec_version != SPEC_VERSION {
            return Err(JobError::SpecVersion { found: self.spec_version });
        }
        self.kind.check(self.tokens.len())
    }

    /// The header, with the tokens by count and root.
    pub fn header(&self) -> JobHeader {
        JobHeader {
            spec_version: self.spec_version,
            model: self.model,
            kind: self.kind.clone(),
            token_count: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            token_root: token_root(&self.tokens),
            request: self.request,
            seed: self.seed,
            nonce: self.nonce,
        }
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.header().id()
    }
}

impl Canonical for Job {
    const MIN_BYTES: usize = 4 + 32 + 2 + 4 + 3 * 32;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.spec_version);
        self.model.encode(writer);
        self.kind.encode(writer);
        writer.seq(&self.tokens);
        self.request.encode(writer);
        self.seed.encode(writer);
        self.nonce.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let job = Self {
            spec_version: reader.u32()?,
            model: reader.value()?,
            kind: reader.value()?,
            tokens: reader.seq("job tokens", MAX_POSITIONS)?,
            request: reader.value()?,
            seed: reader.value()?,
            nonce: reader.value()?,
        };
        if job.tokens.is_empty() {
            return Err(DecodeError::InvalidValue { what: "job tokens" });
        }
        Ok(job)
    }
}

/// The plain BLAKE3 of the token ids as little-endian `u32`.
pub fn token_root(tokens: &[u32]) -> Root {
    let mut hasher = blake3::Hasher::new();
    let mut block = Vec::with_capacity(4 * tokens.len().min(4_096));
    for part in tokens.chunks(4_096) {
        block.clear();
        block.extend(part.iter().flat_map(|token| token.to_le_bytes()));
        hasher.update(&block);
    }
    hasher.finalize().into()
}

/// A job without its tokens: what the id is the hash of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobHeader {
    /// See [`Job::spec_version`].
    pub spec_version: u32,
    /// See [`Job::model`].
    pub model: ModelId,
    /// See [`Job::kind`].
    pub kind: JobKind,
    /// How many tokens.
    pub token_count: u32,
    /// Their [`token_root`].
    pub token_root: Root,
    /// See [`Job::request`].
    pub request: RequestHash,
    /// See [`Job::seed`].
    pub seed: Seed,
    /// See [`Job::nonce`].
    pub nonce: Nonce,
}

impl JobHeader {
    /// The job's id.
    pub fn id(&self) -> JobId {
        JobId::from_bytes(*Domain::JobId.hash(&to_bytes(self)).as_bytes())
    }

    /// Where this job commits, on a model with so many transformer layers. This follows from the job
    /// and the model alone, never from the schedule; a generation ends with its last token.
    ///
    /// # Errors
    /// [`JobError`], but for [`JobError::SpecVersion`].
    pub fn geometry(&self, layers: u16) -> Result<Geometry, JobError> {
        self.kind.check(self.token_count as usize)?;
        if layers == 0 || usize::from(layers) > MAX_LAYERS {
            return Err(JobError::Layers { found: layers });
        }
        let first = self.token_count - 1;
        let geometry = match &self.kind {
            JobKind::Embedding => Geometry::closed(first, layers),
            JobKind::Generation(generation) => Geometry::open(first, generation.max_tokens, layers),
        };
        let found = geometry.max_roots();
        if found > MAX_RUN_ROOTS { Err(JobError::Roots { found }) } else { Ok(geometry) }
    }
}

impl Canonical for JobHeader {
    const MIN_BYTES: usize = 4 + 32 + 2 + 4 + 4 * 32;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.spec_version);
        self.model.encode(writer);
        self.kind.encode(writer);
        writer.u32(self.token_count);
        self.token_root.encode(writer);
        self.request.encode(writer);
        self.seed.encode(writer);
        self.nonce.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            spec_version: reader.u32()?,
            model: reader.value()?,
            kind: reader.value()?,
            token_count: reader.u32()?,
            token_root: reader.value()?,
            request: reader.value()?,
            seed: reader.value()?,
            nonce: reader.value()?,
        })
    }
}
