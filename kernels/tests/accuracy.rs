//! How far the integer functions are from the real ones: the maximum errors that SPEC sections 3 to 5 state.
//!
//! These are the only tolerances in this crate, and they compare with real functions, never one backend with another.

use lockstep_kernels::conformance::SplitMix;
use lockstep_kernels::host::{AttentionArgs, AttentionRows, NormArgs};
use lockstep_kernels::program::{Heads, Norm};
use lockstep_kernels::reference::{attention, gelu, l2_normalize, layer_norm, rms_norm, silu};

/// Gauss error function by its power series; for |x| <= 6, exact to about 1e-13.
fn erf(x: f64) -> f64 {
    let (mut sum, mut term, mut n) = (0.0, x, 0.0);
    while f64::abs(term) > 1e-18 {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    sum * f64::exp(-x * x) * 2.0 / std::f64::consts::PI.sqrt()
}

/// The largest error of an activation in units of `max(1, |x|)`, over 2 million inputs in Q24 across the table and beyond.
fn activation_error(op: fn(&[i32], u32, &mut [i32]), real: fn(f64) -> f64) -> f64 {
    const FRAC: u32 = 24;
    let input: Vec<i32> = (-(1 << 20)..1 << 20).map(|i: i32| i * 317 + i % 7).collect();
    let mut out = vec![0; input.len()];
    op(&input, FRAC, &mut out);
    let unit = f64::from(2_u32.pow(FRAC)).recip();
    let error = |(x, y): (&i32, &i32)| {
        let x = f64::from(*x) * unit;
        (f64::from(*y) * unit - real(x)).abs() / x.abs().max(1.0)
    };
    input.iter().zip(&out).map(error).fold(0.0, f64::max)
}

#[test]
fn gelu_is_as_close_as_stated() {
    let real = |x: f64| if x.abs() > 8.4 { x.max(0.0) } else { x * 0.5 * (1.0 + erf(x / 2_f64.sqrt())) };
    let worst = activation_error(gelu::gelu, real);
    assert!((5e-7..2.0e-6).contains(&worst), "{worst:e}");
}

#[test]
fn silu_is_as_close_as_stated() {
    let worst = activation_error(silu::silu, |x| x / (1.0 + f64::exp(-x)));
    assert!((5e-7..3.1e-6).contains(&worst), "{worst:e}");
}

/// Rows of several sizes and spreads, with and without one element 10^4 times the others.
fn rows(cols: usize) -> Vec<Vec<i32>> {
    let mut rng = SplitMix::named("accuracy");
    let mut rows = Vec::new();
    for bits in [6, 12, 17, 24, 30] {
        for spike in [false, true] {
            let limit = if spike { 1 << (bits - 6) } else { 1 << bits };
            let mut row: Vec<i32> = (0..cols).map(|_| rng.range(-limit, limit) as i32).collect();
            if spike {
                row[cols / 3] = (limit * 10_000).min(1 << 30) as i32;
            }
            rows.push(row);
        }
    }
    rows
}

/// The largest error of a norm of unit scale, in units of `max(1, |normalised value|)`.
fn norm_error(op: impl Fn(&[i32], NormArgs<'_>, &mut [i32]), centred: bool) -> f64 {
    let mut worst: f64 = 0.0;
    for cols in [64, 384, 4_096] {
        // sqrt(cols) in Q20; a result in Q20 as well.
        let root = f64::sqrt(cols as f64);
        let scale = vec![(root * 1_048_576.0).round() as i32; cols];
        let norm =
            Norm { scale: lockstep_kernels::program::ParamId(0), shift: 30, epsilon_mantissa: 0, epsilon_shift: 0 };
        for row in rows(cols) {
            let mut out = vec![0; cols];
            op(&row, NormArgs { scale: &scale, norm }, &mut out);
            let mean = if centred { row.iter().map(|x| f64::from(*x)).sum::<f64>() / cols as f64 } else { 0.0 };
            let square = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / cols as f64;
            let real = |x: &i32| (f64::from(*x) - mean) / square.sqrt();
            let error = |(x, y): (&i32, &i32)| (f64::from(*y) / 1_048_576.0 - real(x)).abs() / real(x).abs().max(1.0);
            worst = row.iter().zip(&out).map(error).fold(worst, f64::max);
        }
    }
    worst
}

#[test]
fn layer_norm_is_as_close_as_stated() {
    let op = |x: &[i32], args: NormArgs<'_>, out: &mut [i32]| {
        let bias = vec![0; args.scale.len()];
        assert_eq!(layer_norm::layer_norm(x, args, &bias, out), 0);
    };
    let worst = norm_error(op, true);
    assert!((5e-8..2e-6).contains(&worst), "{worst:e}");
}

#[test]
fn rms_norm_is_as_close_as_stated() {
    let worst = norm_error(|x, args, out| assert_eq!(rms_norm::rms_norm(x, args, out), 0), false);
    assert!((5e-8..2e-6).contains(&worst), "{worst:e}");
}

#[test]
fn l2_normalize_is_as_close_as_stated() {
    let mut worst: f64 = 0.0;
    for row in rows(384) {
        let mut out = vec![0; row.len()];
        l2_normalize::l2_normalize(&row, row.len(), &mut out);
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let error = |(x, y): (&i32, &i32)| (f64::from(*y) / 2_f64.powi(30) - f64::from(*x) / length).abs();
        worst = row.iter().zip(&out).map(error).fold(worst, f64::max);
    }
    assert!((1e-10..2e-7).contains(&worst), "{worst:e}");
}

/// Softmax over scores of standard deviation 0.5 to 32 log2 units, over up to three blocks: the output's error in
/// units of the largest value.
#[test]
fn softmax_is_as_close_as_stated() {
    const DIM: usize = 16;
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: DIM as u16,
        causal: false,
        score_shift: vec![0],
        value_shift: vec![0],
    };
    let mut rng = SplitMix::named("softmax");
    let mut worst: f64 = 0.0;
    for positions in [1, 2, 255, 256, 257, 700] {
        for limit in [600, 5_000] {
            let mut codes = |low: i64, high: i64| -> Vec<i16> {
                (0..positions * DIM).map(|_| rng.range(low, high) as i16).collect()
            };
            let (q, k, v) = (codes(-limit, limit), codes(-limit, limit), codes(-32_639, 32_639));
            let mut out = vec![0; positions * DIM];
            let sequences = [AttentionRows::whole(0..positions, &k, &v, &heads)];
            attention::attention(AttentionArgs { q: &q, heads: &heads, sequences: &sequences }, &mut out);
            for t in 0..positions {
                worst = worst.max(attention_error(&q, &k, &v, &out, t, DIM));
            }
        }
    }
    assert!((2e-5..2e-4).contains(&worst), "{worst:e}");
}

fn attention_error(q: &[i16], k: &[i16], v: &[i16], out: &[i32], t: usize, dim: usize) -> f64 {
    let score = |j: usize| -> f64 {
        let dot: f64 = (0..dim).map(|c| f64::from(q[t * dim + c]) * f64::from(k[j * dim + c])).sum();
        dot / 2_f64.powi(20)
    };
    let scores: Vec<f64> = (0..k.len() / dim).map(score).collect();
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp2()).collect();
    let total: f64 = weights.iter().sum();
    let error = |c: usize| {
        let real = weights.iter().enumerate().map(|(j, w)| w * f64::from(v[j * dim + c])).sum::<f64>() / total;
        (f64::from(out[t * dim + c]) / 32_768.0 - real).abs() / 32_639.0
    };
    (0..dim).map(error).fold(0.0, f64::max)
}
