//! Sampling: adjusted logits, block maxima, weights, thresholds, block sums, the token, the word (SPEC 24.17).

use std::ops::Range;
use std::sync::Arc;

use super::ids::Ids;
use super::lower::Lowering;
use super::threshold::{Goal, Threshold};
use super::view::{Activation, Data, View};
use super::{At, BLOCK_COLS, Filter, Lowered, Part, PlanError, Read, Width, maxima};
use crate::program::ParamId;
use crate::reference::sample::{
    Scale, Seen, TAIL_TOKENS, adjusted, finish, least_weight, likeliest, target, top_k, top_p, weight,
};
use crate::sampling::{MAX_STOP_BYTES, Sampling, row_bytes, word};

/// Ids in one block of counts.
const BLOCK_IDS: u64 = 8_192;
/// Added to a count where the prompt has the token.
const IN_PROMPT: u32 = 1 << 20;

#[derive(Debug)]
struct Sample {
    settings: Sampling,
    draw: u64,
    frac: u32,
    /// Columns of the logits.
    vocabulary: u64,
    logits: View,
    ids: Ids,
    /// Positions up to the point.
    positions: u64,
    table: View,
    table_rows: u64,
    table_cols: u64,
    counts: Option<View>,
    adjusted: View,
    maxima: View,
    weighed: Option<Weighed>,
    token: View,
    tail: Option<View>,
}

/// Steps that a temperature above 0 takes.
#[derive(Debug)]
struct Weighed {
    weights: View,
    thresholds: Vec<Threshold>,
    sums: View,
}

/// What is sampled from, and how its words are told apart.
pub(super) struct Inputs {
    pub(super) logits: View,
    pub(super) vocabulary: u64,
    pub(super) frac: u8,
    pub(super) token_bytes: ParamId,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    inputs: Inputs,
    (settings, draw): (&Sampling, u64),
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let Inputs { logits, vocabulary, frac, token_bytes } = inputs;
    let (positions, blocks) = (lowering.place.positions, maxima::blocks(vocabulary));
    let seen = [positions.div_ceil(BLOCK_IDS), vocabulary];
    let counts = settings.penalises().then(|| lowering.block(Part::Counts, seen, Width::I32)).transpose()?;
    let adjusted = lowering.block(Part::Adjusted, [1, vocabulary], Width::I32)?;
    let maxima = lowering.block(Part::Maxima, [1, blocks], Width::I32)?;
    let weighed = (settings.temperature > 0).then(|| Weighed::lower(lowering, vocabulary, settings)).transpose()?;
    let token = lowering.block(Part::Token, [1, 1], Width::I32)?;
    let generated = positions - u64::from(settings.prompt_tokens);
    let has_tail = generated > 0 && !settings.stop_strings.is_empty();
    let tail = has_tail.then(|| lowering.block(Part::Tail, [1, MAX_STOP_BYTES as u64 - 1], Width::I16)).transpose()?;
    let out = lowering.rows(Part::Out, 1, Width::I32)?;
    let op = Sample {
        settings: settings.clone(),
        draw,
        frac: frac.into(),
        vocabulary,
        logits,
        ids: lowering.ids(),
        positions,
        table: lowering.param(token_bytes),
        table_rows: lowering.param_rows(token_bytes),
        table_cols: lowering.param_cols(token_bytes),
        counts,
        adjusted,
        maxima,
        weighed,
        token,
        tail,
    };
    Ok((Activation::Plain(out), Arc::new(op)))
}

impl Weighed {
    fn lower(lowering: &mut Lowering<'_>, len: u64, settings: &Sampling) -> Result<Self, PlanError> {
        let blocks = maxima::blocks(len);
        let weights = lowering.block(Part::Weights, [1, len], Width::I32)?;
        let mut thresholds = vec![];
        if let Some(k) = top_k(settings, len) {
            thresholds.push(Threshold::lower(lowering, Filter::TopK, weights, len, Goal::Number(k))?);
        }
        if let Some(p) = top_p(settings) {
            let kept = lowering.block(Part::Kept, [1, blocks], Width::I64)?;
            thresholds.push(Threshold::lower(lowering, Filter::TopP, weights, len, Goal::Share(p, kept))?);
        }
        let sums = lowering.block(Part::Sums, [1, blocks], Width::I64)?;
        Ok(Self { weights, thresholds, sums })
    }

    fn threshold(&self, filter: Filter) -> Option<&Threshold> {
        self.thresholds.iter().find(|threshold| threshold.filter() == filter)
    }

    /// The threshold that the sums of a part go by, if there is one.
    fn limit(&self, part: Part) -> Option<&Threshold> {
        if part == Part::Kept { self.threshold(Filter::TopK) } else { self.thresholds.last() }
    }
}

/// Weights of a read that reach a threshold, the others as 0.
fn kept(data: Data<'_>, read: usize, least: i64) -> impl Iterator<Item = u64> {
    data.i32s(read).map(move |w| u64::from(w as u32)).map(move |w| if w as i64 >= least { w } else { 0 })
}

impl Sample {
    fn weighed(&self) -> &Weighed {
        self.weighed.as_ref().expect("only a temperature above 0 has this step")
    }

    fn block(&self, view: &View, block: u64) -> Read {
        view.read(0, maxima::block(self.vocabulary, block))
    }

    /// A row of a step with a column for each block.
    fn all(&self, view: &View) -> Read {
        view.read(0, 0..maxima::blocks(self.vocabulary))
    }

    /// Positions of a block of ids.
    fn positions(&self, block: u64) -> Range<u64> {
        block * BLOCK_IDS..self.positions.min((block + 1) * BLOCK_IDS)
    }

    /// Positions whose tokens a stop string may begin in.
    fn tail_positions(&self) -> Range<u64> {
        let first = u64::from(self.settings.prompt_tokens).max(self.positions.saturating_sub(TAIL_TOKENS as u64));
        first..self.positions
    }

    /// The row of the table of token bytes, if there is one.
    fn bytes_of(&self, token: u32) -> Option<Read> {
        (u64::from(token) < self.table_rows).then(|| self.table.read(token.into(), 0..self.table_cols))
    }

    fn count(&self, at: At, data: Data<'_>) -> i64 {
        let ids = (0..data.len()).flat_map(|read| data.i32s(read));
        let matching =
            self.positions(at.row).zip(ids).filter(|(p, id)| u64::from(self.ids.id(*p, *id as u32)) == at.col);
        let count = |count: u32, (position, _)| {
            if self.ids.generated(position) { count + 1 } else { count | IN_PROMPT }
        };
        matching.fold(0, count).into()
    }

    fn adjusted(&self, at: At, data: Data<'_>) -> i64 {
        let mut seen = Seen::default();
        for count in (1..data.len()).map(|read| data.u32(read)) {
            seen.prompt |= count >= IN_PROMPT;
            seen.generated = seen.generated.wrapping_add(count % IN_PROMPT);
        }
        adjusted(data.i32(0), at.col as u32, seen, &self.settings, self.frac).into()
    }

    fn weight(&self, data: Data<'_>) -> i64 {
        let max = data.i32s(1).max().unwrap_or_default();
        // Maxima that are no maxima count as the element itself.
        let difference = (i64::from(max) - i64::from(data.i32(0))).max(0) as u32;
        weight(Scale::new(self.settings.temperature, self.frac).distance(difference)).into()
    }

    /// The least weight that counts in a part's sums; its threshold is the read with this number.
    fn least(&self, part: Part, data: Data<'_>, read: usize) -> i64 {
        let limit = self.weighed().limit(part).map_or(0, |_| data.i64(read));
        if part == Part::Kept { limit } else { limit.max(least_weight(self.settings.min_p).into()) }
    }

    /// Block of the token, and what the sum of its kept weights up to the token must exceed.
    fn drawn(&self, data: Data<'_>) -> (u64, u64) {
        let sums = || data.i64s(0).map(|sum| sum as u64);
        let mut target = target(self.draw, sums().fold(0, u64::wrapping_add));
        for (block, sum) in (0..).zip(sums()) {
            if sum > target {
                return (block, target);
            }
            target -= sum;
        }
        (maxima::blocks(self.vocabulary) - 1, target)
    }

    /// Block of the likeliest token.
    fn likeliest(data: Data<'_>) -> u64 {
        let maxima: Vec<i32> = data.i32s(0).collect();
        likeliest(&maxima).into()
    }

    /// The block that the token lies in.
    fn follow_token(&self, data: Data<'_>) -> Read {
        match &self.weighed {
            None => self.block(&self.adjusted, Self::likeliest(data)),
            Some(weighed) => self.block(&weighed.weights, self.drawn(data).0),
        }
    }

    fn token(&self, data: Data<'_>) -> i64 {
        let Some(weighed) = &self.weighed else {
            let logits: Vec<i32> = data.i32s(1).collect();
            return (Self::likeliest(data) * BLOCK_COLS) as i64 + i64::from(likeliest(&logits));
        };
        let (block, target) = self.drawn(data);
        let read = 1 + usize::from(weighed.limit(Part::Token).is_some());
        let mut sum = 0;
        let found = kept(data, read, self.least(Part::Token, data, 1)).position(|w| {
            sum += w;
            sum > target
        });
        (block * BLOCK_COLS) as i64 + found.unwrap_or(0) as i64
    }

    fn tail_byte(&self, at: At, data: Data<'_>) -> i64 {
        let text: Vec<u8> = (1..data.len()).flat_map(|read| row_bytes(data.u8s(read))).collect();
        let place = (text.len() as u64 + at.col).checked_sub(MAX_STOP_BYTES as u64 - 1);
        place.and_then(|place| text.get(place as usize)).map_or(-1, |byte| (*byte).into())
    }

    fn word(&self, data: Data<'_>) -> i64 {
        let token = data.u32(0);
        let tail = usize::from(self.tail.is_some());
        let before: Vec<u8> =
            if tail == 1 { data.i16s(1).filter_map(|byte| u8::try_from(byte).ok()).collect() } else { vec![] };
        let bytes = row_bytes(data.u8s(1 + tail));
        let number = self.positions - u64::from(self.settings.prompt_tokens) + 1;
        word(token, finish(&self.settings, number, &before, bytes, token)).into()
    }
}

impl Lowered for Sample {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        let block = |view| self.block(view, at.col);
        match part {
            Part::Counts => self.ids.read(self.positions(at.row)),
            Part::Adjusted => {
                let counts = self
                    .counts
                    .iter()
                    .flat_map(|counts| (0..self.positions.div_ceil(BLOCK_IDS)).map(|block| counts.one(block, at.col)));
                std::iter::once(self.logits.one(self.positions - 1, at.col)).chain(counts).collect()
            }
            Part::Maxima => vec![block(&self.adjusted)],
            Part::Weights => vec![self.adjusted.one(0, at.col), self.all(&self.maxima)],
            Part::Histogram(filter, digit) => {
                self.weighed().threshold(filter).map_or_else(Vec::new, |t| t.histogram_reads(digit, at))
            }
            Part::Digit(filter, digit) => {
                self.weighed().threshold(filter).map_or_else(Vec::new, |t| t.digit_reads(digit))
            }
            Part::Kept | Part::Sums => {
                let weighed = self.weighed();
                std::iter::once(block(&weighed.weights)).chain(weighed.limit(part).map(Threshold::read)).collect()
            }
            Part::Token => match &self.weighed {
                None => vec![self.all(&self.maxima)],
                Some(w) => std::iter::once(self.all(&w.sums)).chain(w.limit(part).map(Threshold::read)).collect(),
            },
            Part::Tail => self.ids.read(self.tail_positions()),
            _ => {
                let tail = self.tail.map(|tail| tail.read(0, 0..MAX_STOP_BYTES as u64 - 1));
                std::iter::once(self.token.one(0, 0)).chain(tail).collect()
            }
        }
    }

    fn follow(&self, part: Part, _: At, data: Data<'_>) -> Vec<Read> {
        match part {
            Part::Token => vec![self.follow_token(data)],
            Part::Tail => {
                let words = data.i32s(0).take(TAIL_TOKENS).zip(self.tail_positions());
                words.filter_map(|(word, position)| self.bytes_of(self.ids.id(position, word as u32))).collect()
            }
            Part::Out if !self.settings.stop_strings.is_empty() => self.bytes_of(data.u32(0)).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn evaluate(&self, part: Part, at: At, data: Data<'_>) -> i64 {
        match part {
            Part::Counts => self.count(at, data),
            Part::Adjusted => self.adjusted(at, data),
            Part::Maxima => data.i32s(0).max().unwrap_or_default().into(),
            Part::Weights => self.weight(data),
            Part::Histogram(filter, digit) => {
                self.weighed().threshold(filter).map_or(0, |t| t.histogram(digit, at, data))
            }
            Part::Digit(filter, digit) => self.weighed().threshold(filter).map_or(0, |t| t.digit(digit, at, data)),
            Part::Kept | Part::Sums => kept(data, 0, self.least(part, data, 1)).sum::<u64>() as i64,
            Part::Token => self.token(data),
            Part::Tail => self.tail_byte(at, data),
            _ => self.word(data),
        }
    }

    fn chunks(&self, part: Part) -> u64 {
        let (len, blocks) = (self.vocabulary.min(BLOCK_COLS), maxima::blocks(self.vocabulary));
        let limit = |w: &Weighed| w.limit(part).map_or(0, Threshold::read_chunks);
        let history = self.positions.div_ceil(BLOCK_IDS);
        match part {
            Part::Counts => self.ids.chunks(self.positions.min(BLOCK_IDS)),
            Part::Adjusted => self.logits.chunks(1) + self.counts.map_or(0, |counts| history * counts.chunks(1)),
            Part::Maxima => self.adjusted.chunks(len),
            Part::Weights => self.adjusted.chunks(1) + self.maxima.chunks(blocks),
            Part::Histogram(filter, _) | Part::Digit(filter, _) => {
                self.weighed().threshold(filter).map_or(0, |t| t.chunks(part))
            }
            Part::Kept | Part::Sums => self.weighed().weights.chunks(len) + limit(self.weighed()),
            Part::Token => match &self.weighed {
                None => self.maxima.chunks(blocks) + self.adjusted.chunks(len),
                Some(w) => w.sums.chunks(blocks) + limit(w) + w.weights.chunks(len),
            },
            Part::Tail => {
                let tokens = (self.positions - u64::from(self.settings.prompt_tokens)).min(TAIL_TOKENS as u64);
                Ids::word_chunks(tokens.max(1)) + tokens * self.table.chunks(self.table_cols)
            }
            _ => {
                let tail = self.tail.map_or(0, |tail| tail.chunks(MAX_STOP_BYTES as u64 - 1));
                let bytes = if self.settings.stop_strings.is_empty() { 0 } else { self.table.chunks(self.table_cols) };
                self.token.chunks(1) + tail + bytes
            }
        }
    }
}
