//! What a generator may take, and what it refuses.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::pass::MAX_ACTIVATION_BYTES;
use lockstep_kernels::program::{PassShape, Program};
use lockstep_protocol::trace::RowTree;

use super::Request;
use super::prefix::PAGE;

/// Bytes that the state of one layer's hash takes at most: a value for each bit of a count of chunks, and one chunk.
const TREE_BYTES: u64 = 64 * 32 + 2 * 1024;

/// What a generator may take. Nothing grows beyond it, and a request starts only when all that it may come to need is
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of keys and values of all running requests together.
    pub cache_bytes: u64,
    /// Bytes of kept prefixes; 0 keeps none.
    pub prefix_bytes: u64,
    /// Bytes of the activations of a pass.
    pub pass_bytes: u128,
    /// Positions of a pass, at least 1.
    pub pass_tokens: usize,
    /// Requests that run at the same time, at least 1.
    pub sequences: usize,
}

impl Limits {
    /// Positions of a pass by default: enough to read each weight once for many of them.
    pub const PASS_TOKENS: usize = 512;
    /// Requests at the same time by default.
    pub const SEQUENCES: usize = 64;

    /// Limits that together stay below `bytes`, half of it for running requests.
    pub fn within(bytes: u64) -> Self {
        Self {
            cache_bytes: bytes / 2,
            prefix_bytes: bytes / 4,
            pass_bytes: u128::from(bytes / 4).min(MAX_ACTIVATION_BYTES),
            pass_tokens: Self::PASS_TOKENS,
            sequences: Self::SEQUENCES,
        }
    }

    /// The fewest bytes of which [`Limits::within`] makes limits with which a model generates anything: the activations of
    /// a pass over one position fit, at any place of the context, and its keys and values.
    pub fn least_bytes(program: &Program) -> u64 {
        let pass = program.pass_bytes(&one_position(program.max_positions.into())).saturating_mul(4);
        let cache = u128::from(Self::bytes_for_cache(program.cache_bytes(1)));
        u64::try_from(pass.max(cache)).unwrap_or(u64::MAX)
    }

    /// The fewest bytes of which [`Limits::within`] leaves so many to the running requests.
    pub fn bytes_for_cache(cache_bytes: u64) -> u64 {
        cache_bytes.saturating_mul(2)
    }

    /// Enough for one request of so many positions, with nothing kept for others.
    pub fn of_one(program: &Program, positions: u64) -> Self {
        /// More makes no pass faster.
        const PASS_BYTES: u128 = 1 << 30;
        let needed = program.pass_bytes(&one_position(program.max_positions.into()));
        Self {
            cache_bytes: program.cache_bytes(positions),
            prefix_bytes: 0,
            pass_bytes: PASS_BYTES.max(needed),
            pass_tokens: Self::PASS_TOKENS,
            sequences: 1,
        }
    }

    /// Checks that a pass of one position always fits.
    pub(super) fn check(self, program: &Program) -> Result<Self, Refused> {
        if !program.is_decoder() || program.layers.len() < 3 {
            return Err(Refused::NotADecoder);
        }
        let pass_bytes = self.pass_bytes.min(MAX_ACTIVATION_BYTES);
        let needed = program.pass_bytes(&one_position(program.max_positions.into()));
        if needed > pass_bytes {
            return Err(Refused::PassMemory { needed, limit: pass_bytes });
        }
        Ok(Self { pass_bytes, pass_tokens: self.pass_tokens.max(1), sequences: self.sequences.max(1), ..self })
    }

    /// Checks a request against the program and these limits. Returns the bytes of cache that it may come to need.
    pub(super) fn reservation(&self, program: &Program, request: &Request) -> Result<u64, Refused> {
        let Request { prompt, sampling, .. } = request;
        if prompt.is_empty() || sampling.max_tokens == 0 {
            return Err(Refused::Empty);
        }
        if sampling.prompt_tokens as usize != prompt.len() {
            return Err(Refused::Settings("the settings are for a prompt of another length".into()));
        }
        sampling.check().map_err(Refused::Settings)?;
        if let Some(token) = prompt.iter().find(|token| **token >= program.vocab_size) {
            return Err(Refused::Token { token: *token, vocabulary: program.vocab_size });
        }
        // The last word is never an input.
        let positions = prompt.len() as u64 + u64::from(sampling.max_tokens) - 1;
        if positions > program.max_positions.into() {
            let (prompt, max_tokens) = (prompt.len(), sampling.max_tokens);
            return Err(Refused::TooLong { prompt, max_tokens, most: program.max_positions });
        }
        let needed = program.cache_bytes(positions);
        if needed > self.cache_bytes {
            return Err(Refused::CacheMemory { positions, needed, limit: self.cache_bytes });
        }
        Ok(needed)
    }

    /// Positions of a pass over one sequence, each with a point, that fit whatever comes before them.
    pub(super) fn alone(&self, program: &Program) -> usize {
        let mut most = self.pass_tokens;
        let shape = |most: usize| PassShape {
            positions: most as u64,
            points: most as u64,
            ..one_position(program.max_positions.into())
        };
        while most > 1 && program.pass_bytes(&shape(most)) > self.pass_bytes {
            most /= 2;
        }
        most
    }
}

fn one_position(cached: u64) -> PassShape {
    PassShape { positions: 1, sequences: 1, points: 1, cached }
}

/// Empty hashes of layers 1 to L.
pub(super) fn trees(program: &Program) -> Vec<RowTree> {
    let committed = &program.layers[1..program.layers.len() - 1];
    committed.iter().map(|layer| RowTree::new(program.tensor(layer.output).cols as usize)).collect()
}

/// What a kept prefix adds to those that it builds on.
pub(super) fn prefix_entry_bytes(program: &Program) -> u64 {
    program.cache_bytes(PAGE as u64).saturating_add(program.layers.len() as u64 * TREE_BYTES)
}

/// Why a request, or a model, is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The program has no points.
    #[error("the model does not generate text")]
    NotADecoder,
    /// The prompt has no token, or no token is to be generated.
    #[error("a generation needs at least one token of prompt and one to generate")]
    Empty,
    /// A token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens are below this.
        vocabulary: u32,
    },
    /// The settings contradict the request.
    #[error("{0}")]
    Settings(String),
    /// Prompt and generated tokens do not fit the model.
    #[error(
        "{prompt} tokens of prompt and up to {max_tokens} generated ones; the model takes {most} positions in all: \
         shorten the prompt or generate fewer"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens that would be generated.
        max_tokens: u32,
        /// Positions of the model.
        most: u32,
    },
    /// The keys and values may come to need more than there is for all requests together.
    #[error(
        "{positions} positions may need {needed} bytes of cache; the limit is {limit}: raise it, shorten the prompt or \
         generate fewer tokens"
    )]
    CacheMemory {
        /// Positions of the request.
        positions: u64,
        /// Bytes that it may need.
        needed: u64,
        /// Bytes that there are.
        limit: u64,
    },
    /// Not even one position fits.
    #[error("a pass over one position may need {needed} bytes; the limit is {limit}: raise it")]
    PassMemory {
        /// Bytes that it may need.
        needed: u128,
        /// Bytes that there are.
        limit: u128,
    },
    /// The backend does not load the model.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
