//! The board: where a dispute stands after both sides' moves of some rounds. Without clocks, signatures or keys. Referee,
//! player and judge share it, so they can't see different things.

use crate::dispute::rules::{self, Refusal};
use crate::dispute::table::{self, Event, Phase};
use crate::dispute::tree::{Block, Value, frontier_logs};
use crate::dispute::{Ground, Lowering, MoveBody, Read, Reason, Shape, Side, Source, Tensor, Verdict};
use crate::generation::words_root;
use crate::ids::Root;
use crate::limits::CHUNK_BYTES;

/// What is wrong with a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Illegal {
    /// It has no effect.
    Refused(Refusal),
    /// Its side loses by it.
    Lost(Reason),
}

impl From<Refusal> for Illegal {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The smallest block that is known to differ, and what each side says its value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Focus {
    pub tensor: Tensor,
    pub block: Block,
    pub values: [Value; 2],
}

/// An element for the referee to compute: with the reference kernels, from bytes that were proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recompute {
    /// The disputed chunk of the layer's output, which names the row.
    pub chunk: u64,
    /// The step.
    pub step: u16,
    /// The element, by its index in the padded tensor.
    pub element: u64,
    /// The bytes of what it reads: of [`Lowering::reads`] and then of [`Lowering::follow`], in order.
    pub data: Vec<Vec<u8>>,
}

/// What is still in dispute, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The disputed chunk of the layer's output, once it is found: it names the row.
    pub chunk: Option<u64>,
    /// The disputed step of that row, once it is found.
    pub step: Option<u16>,
    /// The chunks in dispute: of the step once there is one, or else of the layer's output. Of the last step they are
    /// counted in the layer's output too.
    pub chunks: std::ops::Range<u64>,
    /// The disputed element of the step, once it is found.
    pub element: Option<u64>,
}

/// Where a dispute stands.
#[derive(Clone, Debug)]
pub(super) struct Game {
    ground: Ground,
    phase: Phase,
    round: u16,
    focus: Focus,
    chunk: Option<u64>,
    steps: Vec<Shape>,
    step: Option<u16>,
    element: Option<u64>,
    /// The roots of the steps before the disputed one, on which both agree.
    agreed: Vec<Root>,
    revealed: [Vec<u8>; 2],
    /// What was opened.
    data: Vec<Vec<u8>>,
}

impl Game {
    /// The game before the first move.
    pub fn new(ground: Ground, lowering: &dyn Lowering) -> Self {
        let block = Block::whole(lowering.output().chunks());
        let values = ground.roots.map(|root| *root.as_bytes());
        let mut game = Self {
            ground,
            phase: Phase::Row,
            round: 0,
            focus: Focus { tensor: Tensor::Output, block, values },
            chunk: None,
            steps: Vec::new(),
            step: None,
            element: None,
            agreed: Vec::new(),
            revealed: [const { Vec::new() }; 2],
            data: Vec::new(),
        };
        if block.len() == 1 {
            game.row_found(lowering);
        }
        game
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The round that is played, counted from 0.
    pub fn round(&self) -> u16 {
        self.round
    }

    pub fn chunk(&self) -> Option<u64> {
        self.chunk
    }

    /// What is still in dispute.
    pub fn scope(&self) -> Scope {
        let first = self.focus.block.first();
        Scope {
            chunk: self.chunk,
            step: self.step,
            chunks: first..first + self.focus.block.len(),
            element: self.element,
        }
    }

    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    pub fn step(&self) -> Option<u16> {
        self.step
    }

    pub fn element(&self) -> Option<u64> {
        self.element
    }

    pub fn focus(&self) -> &Focus {
        &self.focus
    }

    /// For each step but the last: its block size and how many blocks it has.
    pub fn frontiers(&self) -> Vec<(u32, u64)> {
        let committed = &self.steps[..self.steps.len().saturating_sub(1)];
        let chunks: Vec<_> = committed.iter().map(Shape::chunks).collect();
        let logs = frontier_logs(&chunks);
        chunks.iter().zip(logs).map(|(chunks, log)| (log, chunks.div_ceil(1 << log))).collect()
    }

    /// The agreed prefix, if the disputed chunk lies in it: its root and length.
    pub fn prefix(&self, lowering: &dyn Lowering) -> Option<(Root, u64)> {
        let (rows, root) = self.ground.prefix?;
        let chunks = u64::from(rows) * lowering.row_chunks();
        (self.chunk? < chunks).then_some((root, chunks * CHUNK_BYTES as u64))
    }

    /// What the disputed element reads, as far as it does not depend on data.
    pub fn reads(&self, lowering: &dyn Lowering) -> Vec<Read> {
        match (self.chunk, self.step, self.element) {
            (Some(chunk), Some(step), Some(element)) => lowering.reads(chunk, step, element),
            _ => Vec::new(),
        }
    }

    /// What it reads further.
    pub fn follow(&self, lowering: &dyn Lowering, data: &[Vec<u8>]) -> Vec<Read> {
        match (self.chunk, self.step, self.element) {
            (Some(chunk), Some(step), Some(element)) => lowering.follow(chunk, step, element, data),
            _ => Vec::new(),
        }
    }

    /// Judges one side's move, whatever the other side does. Returns what it opened.
    pub fn check(&self, side: Side, body: &MoveBody, lowering: &dyn Lowering) -> Result<Vec<Vec<u8>>, Illegal> {
        rules::kind(self.phase, body)?;
        let (block, committed) = (&self.focus.block, &self.focus.values[side.index()]);
        let is_true = match body {
            MoveBody::Concede => return Err(Illegal::Lost(Reason::Conceded)),
            MoveBody::Descend { values } => {
                let children = block.children(block.next_log());
                rules::count("chaining values", (children.end - children.start) as usize, values.len())?;
                rules::merges(block, values, committed)
            }
            MoveBody::Ops { values } => {
                let blocks = self.frontiers().iter().map(|(_, blocks)| *blocks as usize).sum();
                rules::count("frontier values", blocks, values.len())?;
                true
            }
            MoveBody::Reveal { chunk } => {
                rules::count("bytes", CHUNK_BYTES, chunk.len())?;
                rules::hashes(block, chunk, committed)
            }
            MoveBody::Open { openings } => return Ok(self.opened_by(openings, lowering)?),
        };
        if is_true { Ok(Vec::new()) } else { Err(Illegal::Lost(Reason::Contradiction)) }
    }

    /// What openings prove.
    fn opened_by(&self, openings: &[Vec<u8>], lowering: &dyn Lowering) -> Result<Vec<Vec<u8>>, Refusal> {
        if let (Some(prefix), Some(chunk)) = (self.prefix(lowering), self.chunk) {
            rules::count("openings", 1, openings.len())?;
            let bytes = chunk * CHUNK_BYTES as u64..(chunk + 1) * CHUNK_BYTES as u64;
            return Ok(vec![rules::opens(0, &bytes, prefix, &openings[0])?]);
        }
        let mut data = Vec::with_capacity(openings.len());
        let reads = self.reads(lowering);
        let few = |reads: &[Read], before: usize| match openings.len().cmp(&(before + reads.len())) {
            std::cmp::Ordering::Less => rules::count("openings", before + reads.len(), openings.len()),
            _ => Ok(()),
        };
        few(&reads, 0)?;
        self.verify(&reads, openings, &mut data, lowering)?;
        let further = self.follow(lowering, &data);
        rules::count("openings", reads.len() + further.len(), openings.len())?;
        self.verify(&further, &openings[reads.len()..], &mut data, lowering)?;
        Ok(data)
    }

    fn verify(
        &self,
        reads: &[Read],
        openings: &[Vec<u8>],
        data: &mut Vec<Vec<u8>>,
        lowering: &dyn Lowering,
    ) -> Result<(), Refusal> {
        for (read, opening) in reads.iter().zip(openings) {
            let index = data.len();
            let tensor = self.root_of(read.source, lowering).ok_or(Refusal::Source { index })?;
            data.push(rules::opens(index, &read.bytes, tensor, opening)?);
        }
        Ok(())
    }

    /// Root and length of a tensor on which both sides agree. A step is one of these only before the disputed one.
    pub fn root_of(&self, source: Source, lowering: &dyn Lowering) -> Option<(Root, u64)> {
        match source {
            Source::Step(step) => {
                let step = usize::from(step);
                Some((*self.agreed.get(step)?, self.steps[step].bytes))
            }
            Source::Input => Some((self.ground.input?, lowering.input_bytes())),
            Source::Words => {
                let words = &self.ground.words;
                (!words.is_empty()).then(|| (words_root(words), 4 * words.len() as u64))
            }
            Source::Tokens | Source::Param(_) => lowering.blob(source),
        }
    }

    /// Plays a round of two legal moves that are no openings.
    pub fn play(&mut self, moves: [&MoveBody; 2], lowering: &dyn Lowering) -> Option<Verdict> {
        self.round += 1;
        match moves {
            [MoveBody::Descend { values: a }, MoveBody::Descend { values: b }] => {
                self.descend(a, b, lowering);
                None
            }
            [MoveBody::Ops { values: a }, MoveBody::Ops { values: b }] => {
                self.find_step(a, b);
                None
            }
            [MoveBody::Reveal { chunk: a }, MoveBody::Reveal { chunk: b }] => {
                self.revealed = [a.clone(), b.clone()];
                self.find_element(lowering)
            }
            _ => unreachable!("both moves are of the kind that was next"),
        }
    }

    fn descend(&mut self, a: &[Value], b: &[Value], lowering: &dyn Lowering) {
        let log = self.focus.block.next_log();
        let at = first_difference(a, b).expect("values that merge to different ones differ");
        self.focus.block = self.focus.block.child(log, at);
        self.focus.values = [a[at], b[at]];
        match (self.focus.block.len(), self.phase) {
            (1, Phase::Row) => self.row_found(lowering),
            (1, _) => self.pass(Event::ChunkFound),
            _ => self.pass(Event::Narrowed),
        }
    }

    /// The disputed block is one chunk of the layer's output.
    fn row_found(&mut self, lowering: &dyn Lowering) {
        let chunk = self.focus.block.first();
        self.chunk = Some(chunk);
        if self.prefix(lowering).is_some() {
            self.pass(Event::ChunkFound);
            return;
        }
        self.steps = lowering.steps(chunk);
        if self.steps.len() < 2 {
            self.step = Some(0);
            self.pass(Event::ChunkFound);
        } else {
            self.pass(Event::RowFound);
        }
    }

    /// The first step whose frontiers differ, or else the last one, which is the row itself.
    fn find_step(&mut self, a: &[Value], b: &[Value]) {
        let mut start = 0;
        for (step, (log, blocks)) in self.frontiers().into_iter().enumerate() {
            let part = start..start + blocks as usize;
            let (a, b, total) = (&a[part.clone()], &b[part.clone()], self.steps[step].chunks());
            start = part.end;
            if let Some(at) = first_difference(a, b) {
                let block = Block::at(total, log, at as u64);
                self.step = Some(step as u16);
                self.focus = Focus { tensor: Tensor::Step(step as u16), block, values: [a[at], b[at]] };
                self.pass(if block.len() == 1 { Event::ChunkFound } else { Event::StepFound });
                return;
            }
            self.agreed.push(Root::from_bytes(Block::whole(total).merge(a)));
        }
        self.step = Some((self.steps.len() - 1) as u16);
        self.pass(Event::ChunkFound);
    }

    /// The first element of the revealed chunks that differs. Padding is zero and needs no opening.
    fn find_element(&mut self, lowering: &dyn Lowering) -> Option<Verdict> {
        if self.prefix(lowering).is_some() {
            self.pass(Event::ElementFound);
            return None;
        }
        let (width, [a, b]) = (self.width(), &self.revealed);
        let at = a.chunks(width).zip(b.chunks(width)).position(|(a, b)| a != b);
        let at = at.expect("chunks with different hashes differ") as u64;
        let first = match self.focus.tensor {
            Tensor::Output => self.focus.block.first() % lowering.row_chunks(),
            Tensor::Step(_) => self.focus.block.first(),
        };
        self.element = Some(first * (CHUNK_BYTES / width) as u64 + at);
        if self.reads(lowering).is_empty() {
            return Some(self.decide(0));
        }
        self.pass(Event::ElementFound);
        None
    }

    /// Bytes of an element of the disputed step.
    fn width(&self) -> usize {
        let shape = self.step.and_then(|step| self.steps.get(usize::from(step)));
        shape.map_or(1, |shape| usize::from(shape.width))
    }

    /// Takes what [`Game::check`] found in an opening. Of a chunk that had a root at an earlier point, that decides.
    pub fn open(&mut self, data: Vec<Vec<u8>>, lowering: &dyn Lowering) -> Option<Verdict> {
        if self.prefix(lowering).is_some() {
            let losers = [0, 1].map(|side| self.revealed[side] != data[0]);
            return Some(self.end(Event::Decided, losers, Reason::Perjury));
        }
        self.data = data;
        self.pass(Event::Opened);
        None
    }

    /// What the referee has to compute now.
    pub fn recompute(&self) -> Option<Recompute> {
        let is_due = self.phase == Phase::Recompute;
        let (chunk, step, element) = (self.chunk?, self.step?, self.element?);
        is_due.then(|| Recompute { chunk, step, element, data: self.data.clone() })
    }

    /// Whoever claims another value than this one loses. At least one does.
    pub fn decide(&mut self, value: i64) -> Verdict {
        let width = self.width();
        let at = (self.element.unwrap_or_default() as usize * width) % CHUNK_BYTES;
        let right = &value.to_le_bytes()[..width];
        let losers = [0, 1].map(|side| self.revealed[side][at..at + width] != *right);
        self.end(Event::Decided, losers, Reason::Recomputed { value })
    }

    /// Ends the game by what a side did.
    pub fn fault(&mut self, side: Side, reason: Reason) -> Verdict {
        self.end(Event::Fault, side.alone(), reason)
    }

    /// Ends the game by what sides did not do.
    pub fn silence(&mut self, losers: [bool; 2]) -> Verdict {
        self.end(Event::Silence, losers, Reason::Silence)
    }

    fn end(&mut self, event: Event, losers: [bool; 2], reason: Reason) -> Verdict {
        self.pass(event);
        let (chunk, step, element) = (self.chunk, self.step, self.element);
        Verdict { kind: reason.kind(), losers, place: self.ground.place, chunk, step, element, reason }
    }

    fn pass(&mut self, event: Event) {
        self.phase = table::next(self.phase, event).expect("the table has every step that the game takes");
    }
}

fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}
