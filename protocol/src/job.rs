//! Jobs: what a client asks for, in canonical form, and the id that names it.
//!
//! The id is the hash of the [`JobHeader`], into which the tokens enter by count and root. So whoever
//! has the header can check the id, and whoever has the tokens can check the header.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::Geometry;
use crate::domain::Domain;
use crate::ids::{JobId, ModelId, Nonce, RequestHash, Root, Seed};
use crate::limits::{MAX_LAYERS, MAX_POSITIONS, MAX_TEXT_BYTES};

/// The version of SPEC.md that this program implements. Jobs of another version are refused.
pub const SPEC_VERSION: u32 = 1;

/// What is done with the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// One pass of an encoder; the output is the pooled vector. One commitment point, the last position.
    Embedding,
}

impl Canonical for JobKind {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Embedding => 1,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Embedding),
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
    /// No token or too many.
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
    /// Checks version and token count.
    ///
    /// # Errors
    /// [`JobError::SpecVersion`], [`JobError::TokenCount`].
    pub fn check(&self) -> Result<(), JobError> {
        if self.spec_version != SPEC_VERSION {
            return Err(JobError::SpecVersion { found: self.spec_version });
        }
        if self.tokens.is_empty() || self.tokens.len() > MAX_POSITIONS {
            return Err(JobError::TokenCount { found: self.tokens.len() });
        }
        Ok(())
    }

    /// The header, with the tokens by count and root.
    pub fn header(&self) -> JobHeader {
        JobHeader {
            spec_version: self.spec_version,
            model: self.model,
            kind: self.kind,
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
    /// and the model alone, never from the schedule.
    ///
    /// # Errors
    /// [`JobError::TokenCount`], [`JobError::Layers`].
    pub fn geometry(&self, layers: u16) -> Result<Geometry, JobError> {
        if self.token_count == 0 || self.token_count as usize > MAX_POSITIONS {
            return Err(JobError::TokenCount { found: self.token_count as usize });
        }
        if layers == 0 || usize::from(layers) > MAX_LAYERS {
            return Err(JobError::Layers { found: layers });
        }
        Ok(match self.kind {
            JobKind::Embedding => Geometry::new(vec![self.token_count - 1], layers),
        })
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
