//! A published matrix with the scales of its rows.

use std::num::NonZeroUsize;

use super::ParamValues;
use crate::checkpoint::Weights;
use crate::error::ModelError;
use crate::parallel;
use crate::quantize::{RowScale, Width};

/// Real weights and how they will be quantised.
#[derive(Debug)]
pub struct RealMatrix {
    /// `[rows, cols]`, row-major: published weight times the site's factor.
    pub values: Vec<f64>,
    /// Elements in a row.
    pub cols: usize,
    /// One scale for each row.
    pub scales: Vec<RowScale>,
    /// Width of the codes.
    pub width: Width,
}

impl RealMatrix {
    /// Reads a tensor of `[rows, cols]` and finds its scales.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub fn read(
        weights: &Weights,
        tensor: &str,
        [rows, cols]: [u32; 2],
        factor: f64,
        width: Width,
        threads: NonZeroUsize,
    ) -> Result<Self, ModelError> {
        let published = weights.read(tensor, &[rows, cols])?;
        let values: Vec<f64> = published.iter().map(|w| f64::from(*w) * factor).collect();
        let cols = cols as usize;
        let scales = parallel::map(rows as usize, threads, |n| {
            RowScale::of(&values[n * cols..(n + 1) * cols], width.code_max())
        });
        Ok(Self { values, cols, scales, width })
    }

    /// One row of weights.
    pub fn row(&self, n: usize) -> &[f64] {
        &self.values[n * self.cols..(n + 1) * self.cols]
    }

    /// The most by which `code * scale` differs from the weight in row `n`.
    pub fn code_error(&self, n: usize) -> f64 {
        match self.width {
            Width::W16 => self.scales[n].value() * 0.5,
            Width::W8 => self.scales[n].value(),
        }
    }

    /// The codes nearest to each weight.
    pub fn nearest(&self, threads: NonZeroUsize) -> ParamValues {
        match self.width {
            Width::W16 => ParamValues::I16(self.codes(threads, |c| c as i16)),
            Width::W8 => ParamValues::I8(self.codes(threads, |c| c as i8)),
        }
    }

    fn codes<T: Copy + Default + Send>(&self, threads: NonZeroUsize, narrow: impl Fn(i32) -> T + Sync) -> Vec<T> {
        let mut codes = vec![T::default(); self.values.len()];
        parallel::for_each_piece(&mut codes, self.cols, threads, |n, codes| {
            for (code, w) in codes.iter_mut().zip(self.row(n)) {
                *code = narrow(self.scales[n].nearest(*w));
            }
        });
        codes
    }
}
