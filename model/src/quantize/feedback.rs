//! Error feedback: 8-bit codes that make a row's *products* small in error, not its weights.
//!
//! With the Gram matrix `H = L Lᵗ` of the inputs, the squared error of a row of codes is `|Lᵗ (w - code * scale)|²`, and
//! `Lᵗ` is upper triangular. So columns are decided from the last to the first, each with knowledge of the errors made
//! so far (Babai's nearest plane, which is GPTQ without its inverse). The columns with the largest second moments are
//! decided first. Every code stays the floor or the ceiling of its own weight over the scale, so that anyone can check
//! a package against the published weights without repeating any of this.

use std::num::NonZeroUsize;

use super::cholesky::factor;
use super::{Gram, RowScale, Width};
use crate::exact::exp2;
use crate::parallel::for_each_piece;

/// A factored Gram matrix.
#[derive(Debug)]
pub struct Feedback {
    /// `order[p]` is the column at place `p`; second moments ascend, ties by column.
    order: Vec<usize>,
    /// `L` of the damped and permuted matrix, `[d, d]`.
    lower: Vec<f64>,
}

impl Feedback {
    /// Factors a Gram matrix, with its mean diagonal over 128 added to the diagonal.
    ///
    /// `None` when even that is not positive definite: inputs that are all zeros, or not finite.
    pub fn new(gram: &Gram) -> Option<Self> {
        let d = gram.d;
        let at = |i: usize, j: usize| gram.sums[i.max(j) * d + i.min(j)];
        let trace: f64 = (0..d).map(|i| at(i, i)).sum();
        let damping = trace / d as f64 * exp2(-7);
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|a, b| at(*a, *a).total_cmp(&at(*b, *b)).then(a.cmp(b)));
        let mut lower = vec![0.0; d * d];
        for (p, i) in order.iter().enumerate() {
            for (q, j) in order[..=p].iter().enumerate() {
                lower[p * d + q] = at(*i, *j) + if p == q { damping } else { 0.0 };
            }
        }
        factor(&mut lower, d).then_some(Self { order, lower })
    }

    /// 8-bit codes of a matrix, `[rows, d]`, row-major.
    pub fn round(&self, weights: &[f64], scales: &[RowScale], threads: NonZeroUsize) -> Vec<i8> {
        let d = self.order.len();
        let mut codes = vec![0_i8; weights.len()];
        for_each_piece(&mut codes, d, threads, |n, codes| {
            self.round_row(&weights[n * d..(n + 1) * d], scales[n], codes);
        });
        codes
    }

    fn round_row(&self, weights: &[f64], scale: RowScale, codes: &mut [i8]) {
        let d = self.order.len();
        // What the errors of decided columns add to the plane of each place.
        let mut carried = vec![0.0; d];
        for place in (0..d).rev() {
            let (w, row) = (weights[self.order[place]], &self.lower[place * d..=place * d + place]);
            let target = w + carried[place] / row[place];
            let code = choose(w, target, scale);
            codes[self.order[place]] = code as i8;
            let error = w - f64::from(code) * scale.value();
            for (c, l) in carried.iter_mut().zip(&row[..place]) {
                *c += l * error;
            }
        }
    }
}

/// The floor or the ceiling of `w / scale`, whichever times the scale is nearer to the target; the floor on a tie.
fn choose(w: f64, target: f64, scale: RowScale) -> i32 {
    let floor = scale.floor(w);
    let step = scale.value();
    let low = f64::from(floor) * step;
    let up = !scale.is_exact(w, floor) && target - low > (low + step) - target;
    let code = floor + i32::from(up);
    debug_assert!(code.abs() <= Width::W8.code_max());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pseudo(n: usize, seed: u64) -> Vec<f64> {
        let step = |i: u64| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed) >> 40;
        (0..n as u64).map(|i| step(i * 7 + 1) as f64 / f64::from(1 << 23) - 1.0).collect()
    }

    fn sample_gram(d: usize, threads: usize) -> Gram {
        let mut gram = Gram::new(d);
        for (s, rows) in [1, 5, 40].into_iter().enumerate() {
            let x = pseudo(rows * d, s as u64 + 3);
            let shared = pseudo(rows, 77);
            let codes: Vec<i16> =
                x.iter().enumerate().map(|(i, x)| ((x + 2.0 * shared[i / d]) * 9_000.0) as i16).collect();
            gram.add(&codes, &vec![-12; rows], NonZeroUsize::new(threads).unwrap());
        }
        gram
    }

    fn error(gram: &Gram, w: &[f64], codes: impl Fn(usize) -> f64) -> f64 {
        let d = gram.d;
        let e: Vec<f64> = w.iter().enumerate().map(|(i, w)| w - codes(i)).collect();
        let at = |i: usize, j: usize| gram.sums[i.max(j) * d + i.min(j)];
        (0..d).map(|i| (0..d).map(|j| e[i] * at(i, j) * e[j]).sum::<f64>()).sum()
    }

    #[test]
    fn feedback_beats_plain_rounding_and_encloses() {
        let (d, rows) = (24, 9);
        let gram = sample_gram(d, 1);
        let feedback = Feedback::new(&gram).unwrap();
        let weights = pseudo(rows * d, 5);
        let scales: Vec<_> = weights.chunks(d).map(|w| RowScale::of(w, 127)).collect();
        let codes = feedback.round(&weights, &scales, NonZeroUsize::MIN);
        let (mut fed, mut plain) = (0.0, 0.0);
        for n in 0..rows {
            let (w, c) = (&weights[n * d..][..d], &codes[n * d..][..d]);
            assert!(w.iter().zip(c).all(|(w, c)| scales[n].encloses(*w, i32::from(*c))));
            fed += error(&gram, w, |i| f64::from(c[i]) * scales[n].value());
            plain += error(&gram, w, |i| f64::from(scales[n].nearest(w[i])) * scales[n].value());
        }
        assert!(fed < 0.7 * plain, "{fed} against {plain}");
    }

    #[test]
    fn threads_leave_no_mark() {
        let (one, three) = (sample_gram(24, 1), sample_gram(24, 3));
        assert_eq!(one, three);
        let feedback = Feedback::new(&one).unwrap();
        let weights = pseudo(10 * 24, 9);
        let scales: Vec<_> = weights.chunks(24).map(|w| RowScale::of(w, 127)).collect();
        let round = |t| feedback.round(&weights, &scales, NonZeroUsize::new(t).unwrap());
        assert_eq!(round(1), round(3));
    }

    #[test]
    fn zero_inputs_have_no_factor() {
        assert!(Feedback::new(&Gram::new(4)).is_none());
    }
}
