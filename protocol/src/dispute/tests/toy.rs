//! A toy layer: four steps whose elements are sums of what they read, and runs of it that may be altered anywhere.

use std::ops::Range;

use crate::dispute::{Evidence, EvidenceError, Lowering, Read, Recompute, Shape, Source, Tensor};
use crate::ids::Root;
use crate::limits::CHUNK_BYTES;
use crate::openings::{ChunkRange, Outboard, open_range};

/// The layer: `R_{l-1}` has `rows` rows of `cols` numbers, and so has `R_l`. Of row s, with T tokens (those of the job and
/// then the words that were generated) and P parameters:
///
/// 0. i16, all rows: `[t,i] = input[t,i]`
/// 1. i64: `[i] = a[(i + s) mod rows, i] + a[s,i]`
/// 2. i32: `[i] = token[(s + i) mod T] + param[token mod P]`
/// 3. i32, the row: `[i] = b[i] + c[i] + input[s,i]`
#[derive(Clone, Debug)]
pub struct Toy {
    pub rows: u64,
    pub cols: u64,
    pub tokens: Vec<u8>,
    pub words: Vec<u8>,
    pub params: Vec<u8>,
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(CHUNK_BYTES as u64)
}

/// Sign-extended, little-endian.
fn number(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}

fn put(bytes: &mut [u8], at: u64, width: u64, value: i64) {
    let (at, width) = (at as usize, width as usize);
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

impl Toy {
    pub fn new(rows: u64, cols: u64, tokens: &[u32]) -> Self {
        Self::with_words(rows, cols, tokens, &[])
    }

    pub fn with_words(rows: u64, cols: u64, tokens: &[u32], words: &[u32]) -> Self {
        let bytes = |tokens: &[u32]| tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let (tokens, words) = (bytes(tokens), bytes(words));
        Self { rows, cols, tokens, words, params: (0..2_500_u32).map(|at| (at * 37 + at / 7) as u8).collect() }
    }

    pub fn row_bytes(&self, width: u64) -> u64 {
        padded(self.cols * width)
    }

    /// What the referee computes.
    pub fn evaluate(recompute: &Recompute) -> i64 {
        recompute.data.iter().fold(0, |sum, bytes| sum.wrapping_add(number(bytes)))
    }

    pub fn input(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.rows * self.row_bytes(4)) as usize];
        for row in 0..self.rows {
            for col in 0..self.cols {
                let value = (row * 7_919 + col * 104_729) as u32 ^ 0x5555;
                put(&mut bytes, row * self.row_bytes(4) + col * 4, 4, i64::from(value as i32));
            }
        }
        bytes
    }

    /// The steps of a row, as an honest run has them.
    pub fn steps_of(&self, row: u64, input: &[u8]) -> Vec<Vec<u8>> {
        let cell = |bytes: &[u8], row: u64, col: u64, width: u64| {
            let at = (row * self.row_bytes(width) + col * width) as usize;
            number(&bytes[at..at + width as usize])
        };
        let mut steps: Vec<Vec<u8>> = self.shapes().iter().map(|shape| vec![0; shape.bytes as usize]).collect();
        for t in 0..self.rows {
            for i in 0..self.cols {
                put(&mut steps[0], t * self.row_bytes(2) + i * 2, 2, cell(input, t, i, 4));
            }
        }
        for i in 0..self.cols {
            let sum = cell(&steps[0], (i + row) % self.rows, i, 2) + cell(&steps[0], row, i, 2);
            put(&mut steps[1], i * 8, 8, sum);
            let token = self.token((row + i) % self.token_count());
            put(&mut steps[2], i * 4, 4, i64::from(token) + i64::from(self.params[self.param(token)] as i8));
            let out = cell(&steps[1], 0, i, 8) + cell(&steps[2], 0, i, 4) + cell(input, row, i, 4);
            put(&mut steps[3], i * 4, 4, out);
        }
        steps
    }

    /// `R_l`, without making the big step for each row.
    pub fn output(&self, input: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(input.len());
        let low = |row: u64, col: u64| {
            let at = (row * self.row_bytes(4) + col * 4) as usize;
            (number(&input[at..at + 2]), number(&input[at..at + 4]))
        };
        for row in 0..self.rows {
            let mut bytes = vec![0; self.row_bytes(4) as usize];
            for i in 0..self.cols {
                let token = self.token((row + i) % self.token_count());
                let c = i64::from(token) + i64::from(self.params[self.param(token)] as i8);
                let sum = low((i + row) % self.rows, i).0 + low(row, i).0 + c + low(row, i).1;
                put(&mut bytes, i * 4, 4, sum);
            }
            output.extend(bytes);
        }
        output
    }

    fn token_count(&self) -> u64 {
        (self.tokens.len() + self.words.len()) as u64 / 4
    }

    fn token(&self, at: u64) -> u32 {
        let (source, bytes) = self.token_at(at);
        let of = if source == Source::Tokens { &self.tokens } else { &self.words };
        u32::from_le_bytes(of[bytes.start as usize..bytes.end as usize].try_into().unwrap())
    }

    /// Where the bytes of a token are.
    fn token_at(&self, at: u64) -> (Source, Range<u64>) {
        let before = self.tokens.len() as u64 / 4;
        let (source, at) = if at < before { (Source::Tokens, at) } else { (Source::Words, at - before) };
        (source, at * 4..at * 4 + 4)
    }

    fn param(&self, token: u32) -> usize {
        token as usize % self.params.len()
    }

    fn shapes(&self) -> Vec<Shape> {
        [(self.rows, 2), (1, 8), (1, 4), (1, 4)]
            .map(|(rows, width)| Shape { bytes: rows * self.row_bytes(width), width: width as u8 })
            .to_vec()
    }
}

impl Lowering for Toy {
    fn output(&self) -> Shape {
        Shape { bytes: self.rows * self.row_bytes(4), width: 4 }
    }
    fn row_chunks(&self) -> u64 {
        self.row_bytes(4) / CHUNK_BYTES as u64
    }
    fn input_bytes(&self) -> u64 {
        self.rows * self.row_bytes(4)
    }
    fn steps(&self, _chunk: u64) -> Vec<Shape> {
        self.shapes()
    }
    fn reads(&self, chunk: u64, step: u16, element: u64) -> Vec<Read> {
        let row = chunk / self.row_chunks();
        let width = u64::from(self.shapes()[usize::from(step)].width);
        let (t, i) = (element / (self.row_bytes(width) / width), element % (self.row_bytes(width) / width));
        if i >= self.cols {
            return Vec::new();
        }
        let read = |source, width: u64, row: u64, col: u64| {
            let at = row * self.row_bytes(width) + col * width;
            Read { source, bytes: at..at + width }
        };
        match step {
            // The low half of the number.
            0 => vec![Read {
                bytes: read(Source::Input, 4, t, i).bytes.start..read(Source::Input, 4, t, i).bytes.start + 2,
                source: Source::Input,
            }],
            1 => vec![read(Source::Step(0), 2, (i + row) % self.rows, i), read(Source::Step(0), 2, row, i)],
            2 => {
                let (source, bytes) = self.token_at((row + i) % self.token_count());
                vec![Read { source, bytes }]
            }
            _ => vec![read(Source::Step(1), 8, 0, i), read(Source::Step(2), 4, 0, i), read(Source::Input, 4, row, i)],
        }
    }
    fn follow(&self, _chunk: u64, step: u16, _element: u64, data: &[Vec<u8>]) -> Vec<Read> {
        match (step, data) {
            (2, [token]) => {
                let at = self.param(u32::from_le_bytes(token[..].try_into().unwrap())) as u64;
                vec![Read { source: Source::Param(0), bytes: at..at + 1 }]
            }
            _ => Vec::new(),
        }
    }
    fn blob(&self, source: Source) -> Option<(Root, u64)> {
        match source {
            Source::Tokens => Some((blake3::hash(&self.tokens).into(), self.tokens.len() as u64)),
            Source::Param(0) => Some((blake3::hash(&self.params).into(), self.params.len() as u64)),
            _ => None,
        }
    }
}

/// A run of the toy: honest but for what was altered. Altering a step alters nothing that follows from it.
#[derive(Clone, Debug)]
pub struct Run {
    pub toy: Toy,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    /// Step, byte, and what it is changed by; for whatever row.
    pub altered: Vec<(u16, usize, u8)>,
    steps: Option<(u64, Vec<Vec<u8>>)>,
}

impl Run {
    pub fn honest(toy: &Toy) -> Self {
        let input = toy.input();
        let output = toy.output(&input);
        Self { toy: toy.clone(), input, output, altered: Vec::new(), steps: None }
    }

    /// Changes a byte of the output.
    pub fn lie(mut self, byte: usize, by: u8) -> Self {
        self.output[byte] ^= by;
        self
    }

    /// Changes a byte of a step.
    pub fn lie_in(mut self, step: u16, byte: usize, by: u8) -> Self {
        self.altered.push((step, byte, by));
        self
    }

    pub fn root(&self) -> Root {
        blake3::hash(&self.output).into()
    }

    pub fn tensor(&mut self, chunk: Option<u64>, tensor: Tensor) -> &[u8] {
        let Tensor::Step(step) = tensor else {
            return &self.output;
        };
        let row = chunk.expect("the row is known") / self.toy.row_chunks();
        if self.steps.as_ref().is_none_or(|(of, _)| *of != row) {
            let mut steps = self.toy.steps_of(row, &self.input);
            for (step, byte, by) in &self.altered {
                steps[usize::from(*step)][*byte] ^= by;
            }
            self.steps = Some((row, steps));
        }
        &self.steps.as_ref().unwrap().1[usize::from(step)]
    }
}

/// The value of a block, by hashing it.
pub fn block_value(bytes: &[u8], log: u8, index: u64) -> [u8; 32] {
    use blake3::hazmat::HasherExt;
    let start = (index << log) as usize * CHUNK_BYTES;
    let end = (start + (CHUNK_BYTES << log)).min(bytes.len());
    if (start, end) == (0, bytes.len()) {
        return *blake3::hash(bytes).as_bytes();
    }
    blake3::Hasher::new().set_input_offset(start as u64).update(&bytes[start..end]).finalize_non_root()
}

impl Evidence for Run {
    fn frontier(
        &mut self,
        chunk: Option<u64>,
        tensor: Tensor,
        log: u8,
        blocks: Range<u64>,
    ) -> Result<Vec<[u8; 32]>, EvidenceError> {
        let bytes = self.tensor(chunk, tensor);
        Ok(blocks.map(|index| block_value(bytes, log, index)).collect())
    }
    fn chunk(&mut self, chunk: u64, tensor: Tensor, index: u64) -> Result<Vec<u8>, EvidenceError> {
        let bytes = self.tensor(Some(chunk), tensor);
        Ok(bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap().to_vec())
    }
    fn open(&mut self, chunk: u64, source: Source, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        let bytes = match source {
            Source::Step(step) => self.tensor(Some(chunk), Tensor::Step(step)).to_vec(),
            Source::Input => self.input.clone(),
            Source::Tokens => self.toy.tokens.clone(),
            Source::Words => self.toy.words.clone(),
            Source::Param(_) => self.toy.params.clone(),
        };
        open_range(&bytes, &Outboard::new(&bytes).unwrap(), range).map_err(|error| EvidenceError(error.to_string()))
    }
    fn open_prefix(&mut self, rows: u32, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        let bytes = &self.output[..u64::from(rows) as usize * self.toy.row_bytes(4) as usize];
        open_range(bytes, &Outboard::new(bytes).unwrap(), range).map_err(|error| EvidenceError(error.to_string()))
    }
}

#[test]
fn the_toy_reads_what_it_computes_from() {
    let toy = Toy::new(5, 300, &[101, 7_592, 9, 102]);
    let mut run = Run::honest(&toy);
    for row in 0..5 {
        let (chunk, steps) = (row * toy.row_chunks(), toy.steps_of(row, &run.input));
        assert_eq!(steps[3], run.output[(row * toy.row_bytes(4)) as usize..][..toy.row_bytes(4) as usize]);
        for step in 0..4 {
            let width = usize::from(toy.shapes()[step].width);
            for element in 0..steps[step].len() / width {
                let mut data: Vec<Vec<u8>> = Vec::new();
                let mut take = |reads: Vec<Read>, run: &mut Run| {
                    for read in reads {
                        let bytes = match read.source {
                            Source::Step(step) => steps[usize::from(step)].clone(),
                            Source::Input => run.input.clone(),
                            Source::Tokens => toy.tokens.clone(),
                            Source::Words => toy.words.clone(),
                            Source::Param(_) => toy.params.clone(),
                        };
                        data.push(bytes[read.bytes.start as usize..read.bytes.end as usize].to_vec());
                    }
                    data.clone()
                };
                if element % 17 != 0 {
                    continue;
                }
                let first = take(toy.reads(chunk, step as u16, element as u64), &mut run);
                let data = take(toy.follow(chunk, step as u16, element as u64, &first), &mut run);
                let value = Toy::evaluate(&Recompute { chunk, step: step as u16, element: element as u64, data });
                let held = &steps[step][element * width..(element + 1) * width];
                assert_eq!(held, &value.to_le_bytes()[..width], "row {row} step {step} element {element}");
            }
        }
    }
}
