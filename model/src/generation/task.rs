//! One generation: what is known of it, what is computed, and what a pass adds.

use std::ops::Range;
use std::sync::Arc;

use lockstep_kernels::sampling::{Sampling, split_word};
use lockstep_kernels::value::{CacheId, Sampler, Sequence};
use lockstep_protocol::generation::word_fits;
use lockstep_protocol::ids::{Place, Root, Seed};
use lockstep_protocol::trace::{RowTree, root_of_rows};

use super::pass::{Cut, Part, Passed};
use super::prefix::{Key, Lineage, PAGE};
use super::recorder::Recorder;
use super::sampling::draw;
use super::schedule::Slot;
use super::{Event, Request, Run, TaskId};

/// A generation that was taken on.
#[derive(Debug)]
pub(super) struct Task {
    pub id: TaskId,
    pub cache: CacheId,
    sampling: Arc<Sampling>,
    seed: Seed,
    /// Which log-probabilities are wanted; 0 is none.
    wanted: u8,
    /// The prompt, then the tokens of the words, then a draft: what the hint says comes next.
    tokens: Vec<u32>,
    words: Vec<u32>,
    /// The log-probabilities at all points so far.
    logprobs: Vec<i32>,
    /// All roots so far, in stream order.
    roots: Vec<Root>,
    /// Positions that are in the cache and in the trees.
    computed: usize,
    /// Of those, how many an earlier generation had computed.
    reused: usize,
    /// The hashes of the layers that are computed here, and of one that was received before them: of a whole model 1 to L.
    trees: Vec<RowTree>,
    /// Whoever is told the rows.
    pub recorder: Option<Box<dyn Recorder>>,
    /// The layer of the first of them.
    first_layer: u16,
    /// Whether the last layer is computed here.
    has_output: bool,
    pub lineage: Lineage,
    /// What its own rows clamped; `None` where that can't be told apart from what others did.
    pub saturations: Option<u64>,
    /// Bytes of cache that are set aside for it.
    pub reserved: u64,
    pub last_pass: u64,
}

/// A page that became complete, ready to be kept for others.
pub(super) struct Page {
    /// Positions up to its end.
    pub positions: usize,
    pub trees: Vec<RowTree>,
}

/// What a pass did for a task.
pub(super) struct Advance {
    /// The last word came.
    pub is_done: bool,
    /// The draft was wrong: the cache is to forget what comes after the positions that are computed now.
    pub is_rolled_back: bool,
    /// Complete pages, ascending.
    pub pages: Vec<Page>,
}

impl Task {
    /// A checked request. Of the hint, what can't be an input of the generation is left out.
    pub fn new(id: TaskId, cache: CacheId, request: Request, vocab: u32, reserved: u64, trees: Vec<RowTree>) -> Self {
        let Request { prompt, sampling, seed, hint, logprobs: wanted } = request;
        // The last word is never an input.
        let most = (sampling.max_tokens as usize).saturating_sub(1);
        let inputs = hint.into_iter().take(most).map(split_word);
        let mut tokens = prompt;
        tokens.extend(inputs.take_while(|(token, finish)| *finish == 0 && *token < vocab).map(|(token, _)| token));
        Self {
            id,
            cache,
            sampling: Arc::new(sampling),
            seed,
            wanted,
            tokens,
            words: Vec::new(),
            logprobs: Vec::new(),
            roots: Vec::new(),
            computed: 0,
            reused: 0,
            trees,
            recorder: None,
            first_layer: 1,
            has_output: true,
            lineage: Lineage::At(None),
            saturations: Some(0),
            reserved,
            last_pass: 0,
        }
    }

    /// Of a model of which only some layers are computed here: the layer of the first tree, and whether the last one is
    /// among them.
    pub fn of_slice(self, first_layer: u16, has_output: bool) -> Self {
        Self { first_layer, has_output, ..self }
    }

    fn prompt_tokens(&self) -> usize {
        self.sampling.prompt_tokens as usize
    }

    /// The positions that another generation may have computed: all of the prompt but the last, which has a point.
    pub fn reusable(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens() - 1]
    }

    /// Starts after what another generation computed.
    pub fn start_from(&mut self, key: Key, positions: usize, trees: &[RowTree]) {
        (self.computed, self.reused) = (positions, positions);
        self.trees = trees.to_vec();
        self.lineage = Lineage::At(Some(key));
        if let Some(recorder) = &mut self.recorder {
            recorder.reuse(&self.tokens[..positions]);
        }
    }

    pub fn slot(&self) -> Slot {
        Slot { left: self.tokens.len() - self.computed, last_pass: self.last_pass }
    }

    /// The hashes, between passes.
    pub fn trees(&self) -> &[RowTree] {
        &self.trees
    }

    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Points among the next `count` positions.
    pub fn points(&self, count: usize) -> usize {
        (self.computed + count).saturating_sub(self.computed.max(self.prompt_tokens() - 1))
    }

    /// Whether a word can be drawn at a point that comes after so many of the next pass.
    pub fn may_draw(&self, after: usize, word: u32) -> bool {
        word_fits(word, self.words.len() + after, self.sampling.max_tokens)
    }

    /// The tokens of the page that ends there.
    pub fn page(&self, end: usize) -> &[u32] {
        &self.tokens[end - PAGE..end]
    }

    /// The next `count` positions as a sequence of a pass.
    pub fn sequence(&self, count: usize) -> Sequence {
        self.sequence_of(self.computed..self.computed + count)
    }

    fn sequence_of(&self, positions: Range<usize>) -> Sequence {
        let tokens = self.tokens[..positions.end].to_vec();
        let first = positions.start.max(self.prompt_tokens() - 1);
        let draws = (first..positions.end).map(|point| draw(&self.seed, point as u32)).collect();
        let sampler = Sampler { sampling: Arc::clone(&self.sampling), draws };
        Sequence { tokens, start: positions.start, cache: Some(self.cache), sampler: Some(sampler) }
    }

    /// All positions of a finished run in parts of `most`, to run them once more.
    pub fn again(&self, most: usize) -> impl Iterator<Item = Sequence> + '_ {
        (0..self.computed).step_by(most).map(move |at| self.sequence_of(at..self.computed.min(at + most)))
    }

    /// Hands the hashes, and whoever is told the rows, to a pass of `count` positions, whose rows are `span`.
    pub fn part(&mut self, count: usize, span: Range<usize>, keeps_pages: bool) -> Part {
        let first_point = self.prompt_tokens() - 1;
        let end = self.computed + count;
        let points = self.points(count);
        let keeps_pages = keeps_pages && self.lineage != Lineage::Lost;
        let cut = |position: usize| {
            let root = position >= first_point;
            // Any point of a draft may be the last one that counts.
            let state = (root && points > 1) || (keeps_pages && (position + 1).is_multiple_of(PAGE));
            Cut { rows: position + 1 - self.computed, root, state }
        };
        let cuts = (self.computed..end).map(cut).filter(|cut| cut.root || cut.state).collect();
        let (trees, recorder) = (std::mem::take(&mut self.trees), self.recorder.take());
        let wants_logits = self.wanted > 0 && points > 0;
        Part { span, cuts, is_told: points == 1, wants_logits, trees, recorder, noted: Vec::new() }
    }

    /// Takes in what a pass computed, with these of its points, up to the first word that the draft did not foresee, and says
    /// what is new.
    pub fn accept(
        &mut self,
        mut part: Part,
        passed: &Passed,
        own: Range<usize>,
        say: &mut dyn FnMut(TaskId, Event),
    ) -> Advance {
        let start = self.computed;
        let end = start + part.span.len();
        let mut advance = Advance { is_done: false, is_rolled_back: false, pages: Vec::new() };
        self.computed = end;
        let points = part.cuts.iter().enumerate().filter(|(_, cut)| cut.root);
        for ((index, cut), point) in points.zip(own) {
            let (position, word) = (start + cut.rows - 1, passed.words[point]);
            let logits = passed.logits.as_ref().filter(|_| part.wants_logits);
            let logprobs = logits.map(|logits| logits.row(point, word, self.wanted)).unwrap_or_default();
            self.add_point(&part, index, position, (word, logprobs), say);
            let (token, finish) = split_word(word);
            advance.is_done = finish != 0;
            let drafted = self.tokens.get(position + 1).copied();
            if advance.is_done || drafted != Some(token) {
                self.tokens.truncate(position + 1);
                if !advance.is_done {
                    self.tokens.push(token);
                }
                self.computed = position + 1;
                break;
            }
        }
        advance.is_rolled_back = self.computed < end;
        for (index, cut) in part.cuts.iter().enumerate() {
            let positions = start + cut.rows;
            let is_page = positions.is_multiple_of(PAGE) && positions <= self.computed;
            let is_end = advance.is_rolled_back && positions == self.computed;
            if !cut.state || !(is_page || is_end) {
                continue;
            }
            let trees: Vec<RowTree> = part.noted.iter().filter_map(|layer| layer[index].state.clone()).collect();
            if is_end {
                part.trees.clone_from(&trees);
            }
            if is_page {
                advance.pages.push(Page { positions, trees });
            }
        }
        self.trees = part.trees;
        self.recorder = part.recorder;
        if let (Some(recorder), true) = (&mut self.recorder, advance.is_rolled_back) {
            recorder.truncate(self.computed);
        }
        advance
    }

    /// Tells whoever is told the rows that no more come.
    pub fn finish_recording(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(&self.tokens[..self.computed]);
        }
    }

    /// Says and keeps the roots and the word of one point, with its log-probabilities.
    fn add_point(
        &mut self,
        part: &Part,
        cut: usize,
        position: usize,
        (word, logprobs): (u32, Vec<i32>),
        say: &mut dyn FnMut(TaskId, Event),
    ) {
        let point = position as u32;
        for (layer, noted) in (self.first_layer..).zip(&part.noted) {
            let root = noted[cut].root.expect("a cut at a point has roots");
            if !part.is_told {
                say(self.id, Event::Root { place: Place { point, layer }, root });
            }
            self.roots.push(root);
        }
        self.logprobs.extend_from_slice(&logprobs);
        say(self.id, Event::Word { point, word, logprobs });
        self.words.push(word);
        if !self.has_output {
            return;
        }
        let root = root_of_rows(&[word.cast_signed()], 1);
        let layer = self.first_layer + part.noted.len() as u16;
        say(self.id, Event::Root { place: Place { point, layer }, root });
        self.roots.push(root);
    }

    /// The result of a task that is done.
    pub fn into_run(self) -> Run {
        Run {
            words: self.words,
            logprobs: self.logprobs,
            roots: self.roots,
            saturations: self.saturations.unwrap_or(0),
            reused_positions: self.reused,
        }
    }
}
