//! Log-probabilities of a point: maxima and sums of weights of blocks of logits, the likeliest tokens of each block, those
//! of all, and the row that a run signs (SPEC 24.18).

use std::cmp::Reverse;
use std::sync::Arc;

use super::ids::Ids;
use super::lower::Lowering;
use super::view::{Data, View};
use super::{At, BLOCK_COLS, Lowered, Part, PlanError, Read, Width, maxima};
use crate::sampling::{Normalizer, split_word, sum_of_weights};

/// Key of a token that there is not: below all others.
const NO_KEY: i64 = i64::MIN;
/// Stands for the token where there are fewer, and for its log-probability.
const NO_TOKEN: (i64, i64) = (-1, i32::MIN as i64);

/// What the log-probabilities are those of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logits {
    pub(super) view: View,
    /// Columns of the logits.
    pub(super) vocabulary: u64,
    pub(super) frac: u32,
}

#[derive(Debug)]
struct Logprobs {
    logits: Logits,
    ids: Ids,
    /// Positions up to the point.
    positions: u64,
    maxima: View,
    sums: View,
    likeliest: Option<Likeliest>,
}

/// The steps that find the likeliest tokens, by falling keys.
#[derive(Debug)]
struct Likeliest {
    /// How many.
    count: u64,
    /// Block after block, `count` of each.
    of_blocks: View,
    of_all: View,
}

/// Adds the steps.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    logits: Logits,
    likeliest: u64,
) -> Result<Arc<dyn Lowered>, PlanError> {
    let blocks = maxima::blocks(logits.vocabulary);
    let maxima = lowering.block(Part::Maxima, [1, blocks], Width::I32)?;
    let sums = lowering.block(Part::Sums, [1, blocks], Width::I64)?;
    let find = |lowering: &mut Lowering<'_>| {
        let of_blocks = lowering.block(Part::BlockLikeliest, [1, blocks * likeliest], Width::I64)?;
        let of_all = lowering.block(Part::Likeliest, [1, likeliest], Width::I64)?;
        Ok(Likeliest { count: likeliest, of_blocks, of_all })
    };
    let found = (likeliest > 0).then(|| find(lowering)).transpose()?;
    lowering.block(Part::Out, [1, 1 + 2 * likeliest], Width::I32)?;
    let (ids, positions) = (lowering.ids(), lowering.place.positions);
    Ok(Arc::new(Logprobs { logits, ids, positions, maxima, sums, likeliest: found }))
}

/// Orders tokens by their logits, and those with equal ones by falling index: the likeliest has the largest key.
fn key(logit: i32, token: u64) -> i64 {
    i64::from(logit) << 32 | i64::from(u32::MAX - token as u32)
}

/// Token and logit of a key.
fn split_key(key: i64) -> (u32, i32) {
    (u32::MAX - key as u32, (key >> 32) as i32)
}

/// The `n`th largest of some keys, counted from 0.
fn largest(keys: impl Iterator<Item = i64>, n: u64) -> i64 {
    let mut keys: Vec<i64> = keys.collect();
    let n = n as usize;
    if n < keys.len() { *keys.select_nth_unstable_by_key(n, |key| Reverse(*key)).1 } else { NO_KEY }
}

impl Logprobs {
    fn likeliest(&self) -> &Likeliest {
        self.likeliest.as_ref().expect("only a row that names the likeliest tokens has this step")
    }

    /// A block of the point's logits.
    fn block(&self, block: u64) -> Read {
        self.logits.view.read(self.positions - 1, maxima::block(self.logits.vocabulary, block))
    }

    /// A row of a step with a column for each block.
    fn all(&self, view: &View) -> Read {
        view.read(0, 0..maxima::blocks(self.logits.vocabulary))
    }

    /// The log-probability of a logit, given the reads of maxima and sums.
    fn logprob(&self, logit: i32, data: Data<'_>) -> i64 {
        let max = data.i32s(1).max().unwrap_or_default();
        let total = data.i64s(2).fold(0, i64::wrapping_add) as u64;
        Normalizer::new(max, total, self.logits.frac).logprob(logit).into()
    }

    /// What a column of the row is about: the drawn token, a likely one, or the value of a likely one.
    fn column(col: u64) -> Column {
        match col.checked_sub(1) {
            None => Column::Drawn,
            Some(col) if col % 2 == 0 => Column::Token(col / 2),
            Some(col) => Column::Value(col / 2),
        }
    }

    fn reads_of_row(&self, col: u64) -> Vec<Read> {
        let sums = || [self.all(&self.maxima), self.all(&self.sums)];
        let likely = |n| self.likeliest().of_all.one(0, n);
        match Self::column(col) {
            Column::Drawn => [self.ids.one(self.positions)].into_iter().chain(sums()).collect(),
            Column::Token(n) => vec![likely(n)],
            Column::Value(n) => [likely(n)].into_iter().chain(sums()).collect(),
        }
    }

    fn row(&self, col: u64, data: Data<'_>) -> i64 {
        let (none, key) = (NO_TOKEN, data.i64(0));
        match Self::column(col) {
            Column::Drawn if data.len() > 3 => self.logprob(data.i32(3), data),
            Column::Drawn => none.1,
            Column::Token(_) if key == NO_KEY => none.0,
            Column::Token(_) => split_key(key).0.into(),
            Column::Value(_) if key == NO_KEY => none.1,
            Column::Value(_) => self.logprob(split_key(key).1, data),
        }
    }
}

enum Column {
    Drawn,
    Token(u64),
    Value(u64),
}

impl Lowered for Logprobs {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        match part {
            Part::Maxima => vec![self.block(at.col)],
            Part::Sums => vec![self.block(at.col), self.all(&self.maxima)],
            Part::BlockLikeliest => vec![self.block(at.col / self.likeliest().count)],
            Part::Likeliest => {
                let Likeliest { count, of_blocks, .. } = self.likeliest();
                vec![of_blocks.read(0, 0..count * maxima::blocks(self.logits.vocabulary))]
            }
            _ => self.reads_of_row(at.col),
        }
    }

    fn follow(&self, part: Part, at: At, data: Data<'_>) -> Vec<Read> {
        let token = u64::from(split_word(data.u32(0)).0);
        let is_drawn = part == Part::Out && at.col == 0 && token < self.logits.vocabulary;
        is_drawn.then(|| self.logits.view.one(self.positions - 1, token)).into_iter().collect()
    }

    fn evaluate(&self, part: Part, at: At, data: Data<'_>) -> i64 {
        match part {
            Part::Maxima => data.i32s(0).max().unwrap_or_default().into(),
            Part::Sums => {
                let max = data.i32s(1).max().unwrap_or_default();
                sum_of_weights(data.i32s(0), max, self.logits.frac) as i64
            }
            Part::BlockLikeliest => {
                let Likeliest { count, .. } = self.likeliest();
                let (block, n) = (at.col / count, at.col % count);
                largest((block * BLOCK_COLS..).zip(data.i32s(0)).map(|(token, logit)| key(logit, token)), n)
            }
            Part::Likeliest => largest(data.i64s(0), at.col),
            _ => self.row(at.col, data),
        }
    }

    fn chunks(&self, part: Part) -> u64 {
        let vocabulary = self.logits.vocabulary;
        let (blocks, block) = (maxima::blocks(vocabulary), self.logits.view.chunks(vocabulary.min(BLOCK_COLS)));
        match part {
            Part::Maxima | Part::BlockLikeliest => block,
            Part::Sums => block + self.maxima.chunks(blocks),
            Part::Likeliest => {
                let Likeliest { count, of_blocks, .. } = self.likeliest();
                of_blocks.chunks(count * blocks)
            }
            // The word and its logit: that of a likely token takes one read less.
            _ => {
                Ids::word_chunks(1) + self.maxima.chunks(blocks) + self.sums.chunks(blocks) + self.logits.view.chunks(1)
            }
        }
    }
}
