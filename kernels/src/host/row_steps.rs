//! Ops that work row by row, one on what the other wrote: all of them over some rows, then over the next, so that a row is still
//! in a near cache when it is read again.

use super::{HostOps, NormArgs};

/// An op that works row by row, as a step of several over the same rows.
#[derive(Debug)]
pub struct RowStep<'a> {
    /// What is done.
    pub op: RowOp<'a>,
    /// What it reads; both for ops of two inputs, else the first.
    pub inputs: [RowInput<'a>; 2],
    /// What it writes, `[rows, cols]`.
    pub out: RowOut<'a>,
    /// Elements in a row of its inputs and its output.
    pub cols: usize,
}

/// An op of a [`RowStep`], with its constants resolved.
#[derive(Clone, Copy, Debug)]
pub enum RowOp<'a> {
    /// SPEC 5.2.
    Quantize,
    /// SPEC 5.4.
    Add,
    /// SPEC 5.5.
    LayerNorm {
        /// Scale and epsilon.
        args: NormArgs<'a>,
        /// `[cols]`.
        bias: &'a [i32],
    },
    /// SPEC 5.6.
    RmsNorm(NormArgs<'a>),
    /// SPEC 5.8.
    Gelu {
        /// Fractional bits of the input.
        frac: u32,
    },
    /// SPEC 5.9.
    Silu {
        /// Fractional bits of the input.
        frac: u32,
    },
    /// SPEC 5.14.
    Multiply {
        /// Bits that are dropped.
        shift: u32,
    },
    /// SPEC 5.15.
    Shift {
        /// Bits that are dropped.
        shift: u32,
    },
}

/// What a [`RowStep`] reads.
#[derive(Clone, Copy, Debug)]
pub enum RowInput<'a> {
    /// Rows that were there before, `[rows, cols]`.
    Rows(&'a [i32]),
    /// What the step of this number wrote.
    Step(usize),
}

/// What a [`RowStep`] writes.
#[derive(Debug)]
pub enum RowOut<'a> {
    /// `[rows, cols]`.
    I32(&'a mut [i32]),
    /// Block floating point rows.
    Bfp {
        /// `[rows, cols]`.
        codes: &'a mut [i16],
        /// `[rows]`.
        exponents: &'a mut [i32],
    },
}

impl<'a> RowInput<'a> {
    /// Some elements of it.
    fn part(self, from: usize, len: usize) -> Self {
        match self {
            Self::Rows(rows) => Self::Rows(&rows[from..from + len]),
            Self::Step(step) => Self::Step(step),
        }
    }
}

impl<'a> RowOut<'a> {
    /// Cuts it after every `rows` rows of `cols` elements.
    fn cut(self, rows: usize, cols: usize) -> Vec<Self> {
        match self {
            Self::I32(out) => out.chunks_mut(rows * cols).map(RowOut::I32).collect(),
            Self::Bfp { codes, exponents } => {
                let blocks = codes.chunks_mut(rows * cols).zip(exponents.chunks_mut(rows));
                blocks.map(|(codes, exponents)| RowOut::Bfp { codes, exponents }).collect()
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::I32(out) => out.len(),
            Self::Bfp { codes, .. } => codes.len(),
        }
    }
}

/// The same steps over blocks of `rows` rows, of which the last one may have fewer.
pub fn blocks<'a>(steps: Vec<RowStep<'a>>, rows: usize) -> Vec<Vec<RowStep<'a>>> {
    let mut blocks: Vec<Vec<RowStep<'a>>> = Vec::new();
    for RowStep { op, inputs, out, cols } in steps {
        let outs = out.cut(rows, cols);
        blocks.resize_with(outs.len(), Vec::new);
        for ((number, out), block) in outs.into_iter().enumerate().zip(&mut blocks) {
            let inputs = inputs.map(|input| input.part(number * rows * cols, out.len()));
            block.push(RowStep { op, inputs, out, cols });
        }
    }
    blocks
}

/// One step after the other, over all of its rows. Returns how many elements were clamped.
pub fn run(kernels: &(impl HostOps + ?Sized), mut steps: Vec<RowStep<'_>>) -> u64 {
    let mut clamped = 0;
    for at in 0..steps.len() {
        let (done, rest) = steps.split_at_mut(at);
        let RowStep { op, inputs, out, cols } = &mut rest[0];
        let [a, b] = inputs.map(|input| match input {
            RowInput::Rows(rows) => rows,
            RowInput::Step(step) => match &done[step].out {
                RowOut::I32(out) => &**out,
                RowOut::Bfp { .. } => unreachable!("no step reads codes"),
            },
        });
        clamped += match (*op, out) {
            (RowOp::Quantize, RowOut::Bfp { codes, exponents }) => {
                kernels.quantize(a, *cols, codes, exponents);
                0
            }
            (RowOp::Add, RowOut::I32(out)) => kernels.add(a, b, out),
            (RowOp::LayerNorm { args, bias }, RowOut::I32(out)) => kernels.layer_norm(a, args, bias, out),
            (RowOp::RmsNorm(args), RowOut::I32(out)) => kernels.rms_norm(a, args, out),
            (RowOp::Gelu { frac }, RowOut::I32(out)) => {
                kernels.gelu(a, frac, out);
                0
            }
            (RowOp::Silu { frac }, RowOut::I32(out)) => {
                kernels.silu(a, frac, out);
                0
            }
            (RowOp::Multiply { shift }, RowOut::I32(out)) => kernels.multiply(a, b, shift, out),
            (RowOp::Shift { shift }, RowOut::I32(out)) => {
                kernels.shift(a, shift, out);
                0
            }
            _ => unreachable!("validation fixed the kind of every tensor"),
        };
    }
    clamped
}
