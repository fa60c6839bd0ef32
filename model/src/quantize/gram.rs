//! Second moments of a layer's inputs over the calibration text.

use std::num::NonZeroUsize;

use crate::exact::exp2;
use crate::parallel::for_each_piece;

/// `sum over sequences of (1/T) * sum over its T rows of x xᵗ`: every sequence weighs equally.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    /// `[d, d]`, row-major; only the lower triangle is kept up.
    pub sums: Vec<f64>,
    /// Width of the inputs.
    pub d: usize,
}

impl Gram {
    /// Nothing added yet.
    pub fn new(d: usize) -> Self {
        Self { sums: vec![0.0; d * d], d }
    }

    /// Adds one sequence of block floating point rows, `x[t,i] = codes[t,i] * 2^exponents[t]`.
    ///
    /// Element `(i, j)` is increased by `(x[t,i] * (1/T)) * x[t,j]` in ascending `t`, one rounding for each operation;
    /// threads share out rows `i`.
    pub fn add(&mut self, codes: &[i16], exponents: &[i32], threads: NonZeroUsize) {
        let d = self.d;
        let weight = 1.0 / exponents.len() as f64;
        let mut x = Vec::with_capacity(codes.len());
        for (row, e) in codes.chunks_exact(d).zip(exponents) {
            x.extend(row.iter().map(|q| f64::from(*q) * exp2(*e)));
        }
        for_each_piece(&mut self.sums, d, threads, |i, sums| {
            for row in x.chunks_exact(d) {
                let factor = row[i] * weight;
                for (sum, x) in sums[..=i].iter_mut().zip(row) {
                    *sum += factor * x;
                }
            }
        });
    }
}
