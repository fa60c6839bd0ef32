//! A batch as an executor takes it up: checked, with the rows that its sequences, positions and points have. What every
//! executor starts from, whatever it computes on.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::backend::BackendError;
use crate::host::SampleArgs;
use crate::program::{EmbedIndex, PassShape, Program, Rows};
use crate::sampling::TokenBytes;
use crate::value::{Batch, CacheId, Sequence};

/// Most memory that the activations of one batch may need. A failed allocation would end the whole process, so a batch
/// that might get there is refused before it begins.
pub const MAX_ACTIVATION_BYTES: u128 = 4 << 30;

/// A batch that [`check`] allowed, or an empty one.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// The batch.
    pub batch: Batch,
    /// Row range of each sequence.
    pub spans: Vec<Range<usize>>,
    /// Position of each row.
    pub positions: Vec<u32>,
    /// Row of each point.
    pub points: Vec<usize>,
}

impl Pass {
    /// Of a batch that [`check`] allowed.
    pub fn new(batch: Batch) -> Self {
        let spans = batch.spans();
        let rows = batch.sequences.iter().zip(&spans).map(|(s, span)| s.points().map(|p| span.start + p - s.start));
        let points = rows.flatten().collect();
        let mut pass = Self { batch, spans, positions: vec![], points };
        pass.positions = pass.embed_index(EmbedIndex::Position);
        pass
    }

    /// Number of rows of a tensor.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Position => self.positions.len(),
            Rows::Sequence => self.spans.len(),
            Rows::Point => self.points.len(),
        }
    }

    /// The row of an embedding table that each row of the pass reads.
    pub fn embed_index(&self, index: EmbedIndex) -> Vec<u32> {
        let mut rows = Vec::with_capacity(self.batch.rows());
        for sequence in &self.batch.sequences {
            match index {
                EmbedIndex::Token => rows.extend_from_slice(&sequence.tokens[sequence.start..]),
                EmbedIndex::Position => rows.extend(sequence.start as u32..sequence.tokens.len() as u32),
                EmbedIndex::Constant(row) => rows.extend(std::iter::repeat_n(row, sequence.rows())),
            }
        }
        rows
    }

    /// What each point is sampled from, in order; `logits` is `[points, cols]`.
    pub fn sample_args<'a>(
        &'a self,
        logits: &'a [i32],
        cols: usize,
        frac: u32,
        token_bytes: TokenBytes<'a>,
    ) -> Vec<SampleArgs<'a>> {
        let mut args = self.samples(frac, token_bytes);
        args.iter_mut().zip(logits.chunks_exact(cols)).for_each(|(args, logits)| args.logits = logits);
        args
    }

    /// What each point is sampled from, in order, but for the logits, of which there are none: for who has them elsewhere.
    pub fn samples<'a>(&'a self, frac: u32, token_bytes: TokenBytes<'a>) -> Vec<SampleArgs<'a>> {
        let mut args = Vec::with_capacity(self.points.len());
        for sequence in &self.batch.sequences {
            let Some(sampler) = &sequence.sampler else { continue };
            for (point, draw) in sequence.points().zip(&sampler.draws) {
                let (sampling, history) = (&*sampler.sampling, &sequence.tokens[..=point]);
                args.push(SampleArgs { logits: &[], frac, token_bytes, sampling, history, draw: *draw });
            }
        }
        args
    }
}

/// Whether a program can run a batch. `cached` tells whether a cache has all positions before one, or is yet to be made.
///
/// # Errors
/// The first sequence that it can't run, with the reason.
pub fn check(
    program: &Program,
    batch: &Batch,
    cached: impl Fn(CacheId, usize) -> Result<(), String>,
) -> Result<(), BackendError> {
    let mut caches = BTreeSet::new();
    for (sequence, checked) in batch.sequences.iter().enumerate() {
        let bad = |reason| Err(BackendError::Batch { sequence, reason });
        if let Err(reason) = check_sequence(program, checked) {
            return bad(reason);
        }
        let Some(id) = checked.cache else { continue };
        if !caches.insert(id) {
            return bad("another sequence of the batch has the same cache".into());
        }
        cached(id, checked.start).map_err(|reason| BackendError::Cache { cache: id, reason })?;
    }
    let bytes = program.pass_bytes(&shape(batch));
    if bytes > MAX_ACTIVATION_BYTES {
        let reason = format!("the batch may need {bytes} bytes of memory; at most {MAX_ACTIVATION_BYTES} are allowed");
        return Err(BackendError::Batch { sequence: 0, reason });
    }
    Ok(())
}

fn check_sequence(program: &Program, sequence: &Sequence) -> Result<(), String> {
    let ensure = |ok: bool, reason: &dyn Fn() -> String| if ok { Ok(()) } else { Err(reason()) };
    let Sequence { tokens, start, cache, sampler } = sequence;
    ensure((1..=program.max_positions as usize).contains(&tokens.len()), &|| {
        format!("{} tokens; 1 to {} are allowed", tokens.len(), program.max_positions)
    })?;
    if let Some(t) = tokens.iter().find(|t| **t >= program.vocab_size) {
        return Err(format!("token {t} is outside the vocabulary of {}", program.vocab_size));
    }
    ensure(*start < tokens.len(), &|| format!("nothing of {} tokens is left from {start} on", tokens.len()))?;
    ensure(*start == 0 || cache.is_some(), &|| format!("{start} positions are in no cache"))?;
    ensure(program.is_decoder() || cache.is_none() && sampler.is_none(), &|| {
        "the program is no decoder, and has neither caches nor samplers".into()
    })?;
    let Some(sampler) = sampler else { return Ok(()) };
    ensure(sampler.sampling.prompt_tokens > 0, &|| "a prompt has at least one token".into())?;
    sampler.sampling.check()?;
    let (draws, points) = (sampler.draws.len(), sequence.points().len());
    ensure(draws == points, &|| format!("{draws} draws for {points} points"))
}

/// What a batch takes.
fn shape(batch: &Batch) -> PassShape {
    PassShape {
        positions: batch.rows() as u64,
        sequences: batch.sequences.len() as u64,
        points: batch.points() as u64,
        cached: batch.sequences.iter().map(|s| s.start as u64).sum(),
    }
}
