//! Cosines and sines of rotary embeddings, defined over the reals and computed in 128-bit integers (SPEC 27.4 to 27.6).
//!
//! Mathematical libraries differ from each other by up to 4e-3 at position 131,071; these tables do not differ. A
//! frequency is a fixed-point number of turns for each position, so that an angle is one exact product whose whole turns
//! fall off at the top, however far the position.

use std::num::NonZeroUsize;

use crate::checkpoint::{AttentionFactor, RopeConfig, RopeScaling};
use crate::error::ModelError;
use crate::parallel;

/// Fractional bits of frequencies and of everything that leads to them.
const FRAC: u32 = 96;
const ONE: u128 = 1 << FRAC;
/// `ln 2`.
const LN_2: u128 = 0xb172_17f7_d1cf_79ab_c9e3_b398;
/// `1 / 2π`.
const PER_TURN: u128 = 0x28be_60db_9391_054a_7f09_d5f4;
/// `log2 2π`.
const LOG2_TURN: u128 = 0x2_a6c8_7349_8ddf_75b0_db2e_4f08;
/// Fractional bits of cosines and sines before they are rounded.
const WAVE_FRAC: u32 = 62;
/// `π / 2` with [`WAVE_FRAC`] fractional bits.
const QUARTER: u64 = 0x6487_ed51_10b4_611a;
/// Fractional bits of a table's entries.
pub const TABLE_FRAC: u32 = 30;

/// `[positions, head_dim]`: `cos_0, sin_0, cos_1, sin_1, ...` of each position, in Q1.30.
///
/// # Errors
/// A scaling whose blend is empty.
pub fn table(
    config: &RopeConfig,
    head_dim: u32,
    positions: u32,
    threads: NonZeroUsize,
) -> Result<Vec<i32>, ModelError> {
    let turns: Vec<u128> = frequencies(config, head_dim)?.into_iter().map(|f| mul(f, PER_TURN)).collect();
    let mut table = vec![0; positions as usize * head_dim as usize];
    parallel::for_each_piece(&mut table, head_dim as usize, threads, |position, row| {
        for (pair, per_position) in row.chunks_exact_mut(2).zip(&turns) {
            let (cos, sin) = wave((position as u128 * per_position) & (ONE - 1));
            pair.copy_from_slice(&[round(cos), round(sin)]);
        }
    });
    Ok(table)
}

/// What YaRN multiplies every cosine and sine by; 1 without it.
pub fn attention_factor(config: &RopeConfig) -> f64 {
    let RopeScaling::Yarn { factor, attention, .. } = config.scaling else { return 1.0 };
    let ln = mul(log2(fixed(factor)) as u128, LN_2);
    let m = |scale: f64| ONE + mul(mul(fixed(0.1), fixed(scale)), ln);
    let ratio = match attention {
        AttentionFactor::Given(factor) => return factor,
        AttentionFactor::FromFactor => m(1.0),
        AttentionFactor::Ratio(a, b) => div(m(a), m(b)),
    };
    // The conversion rounds once, to nearest even; the power of two is exact.
    ratio as f64 / ONE as f64
}

/// Radians for each position of the pairs `0..head_dim / 2`, each at most 1.
fn frequencies(config: &RopeConfig, head_dim: u32) -> Result<Vec<u128>, ModelError> {
    let base = log2(fixed(config.theta)) as u128;
    let (pairs, dim) = (u128::from(head_dim / 2), u128::from(head_dim));
    let plain = (0..pairs).map(|j| exp2_negative(2 * j * base / dim));
    match config.scaling {
        RopeScaling::None => Ok(plain.collect()),
        RopeScaling::Linear { factor } => Ok(plain.map(|f| div(f, fixed(factor))).collect()),
        RopeScaling::Llama3 { factor, low, high, original } => {
            let (factor, low, high) = (fixed(factor), fixed(low), fixed(high));
            let blend = |f: u128| {
                let turns = mul(f, PER_TURN) * u128::from(original);
                if turns < low {
                    return div(f, factor);
                }
                if turns > high {
                    return f;
                }
                let smooth = div(turns - low, high - low);
                div(mul(ONE - smooth, f), factor) + mul(smooth, f)
            };
            Ok(plain.map(blend).collect())
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } => {
            let at = |beta: f64| turns_at(beta, original, base, dim);
            let [low, high] = range(at(beta_fast), at(beta_slow), truncate, dim)?;
            let ramp = |j: u128| match j << FRAC {
                j if j <= low => 0,
                j if j >= high => ONE,
                j => div(j - low, high - low),
            };
            let blend = |(j, f): (u128, u128)| div(mul(ramp(j), f), fixed(factor)) + mul(ONE - ramp(j), f);
            Ok((0..pairs).zip(plain).map(blend).collect())
        }
    }
}

/// The index, not whole, of the frequency that makes `beta` turns over the original context, signed.
fn turns_at(beta: f64, original: u32, base: u128, dim: u128) -> i128 {
    let log = log2(fixed(original.into())) - LOG2_TURN as i128 - log2(fixed(beta));
    let magnitude = div(log.unsigned_abs() * dim, 2 * base) as i128;
    if log < 0 { -magnitude } else { magnitude }
}

/// Where YaRN's blend begins and ends.
fn range(fast: i128, slow: i128, truncate: bool, dim: u128) -> Result<[u128; 2], ModelError> {
    let one = ONE as i128;
    let (fast, slow) = match truncate {
        true => (fast.div_euclid(one) * one, (slow + one - 1).div_euclid(one) * one),
        false => (fast, slow),
    };
    let (low, high) = (fast.max(0), slow.min((dim as i128 - 1) * one));
    match high {
        _ if high > low => Ok([low as u128, high as u128]),
        // A thousandth keeps the blend from dividing by zero, as in the reference implementation.
        _ if high == low => Ok([low as u128, low as u128 + fixed(0.001)]),
        _ => Err(ModelError::Unsupported("rope scaling \"yarn\": its blend ends before it begins".into())),
    }
}

/// A double from 0 below 2^31, rounded down to 96 fractional bits.
fn fixed(x: f64) -> u128 {
    debug_assert!((0.0..2_147_483_648.0).contains(&x));
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 52) as i32, u128::from(bits & ((1 << 52) - 1)));
    match exponent - 1075 + FRAC as i32 {
        // Far below the last bit, with every subnormal.
        shift if shift <= -64 => 0,
        shift if shift < 0 => (fraction | 1 << 52) >> -shift,
        shift => (fraction | 1 << 52) << shift,
    }
}

/// `floor(a * b)`; the result is below 2^32.
fn mul(a: u128, b: u128) -> u128 {
    let half = |x: u128| (x >> 64, x & u128::from(u64::MAX));
    let ((ah, al), (bh, bl)) = (half(a), half(b));
    // a * b = high * 2^128 + low, by four products of 64 bits.
    let (low, middle) = (al * bl, ah * bl);
    let (middle, carry) = middle.overflowing_add(al * bh);
    let (low, carry_low) = low.overflowing_add(middle << 64);
    let high = ah * bh + (middle >> 64) + (u128::from(carry) << 64) + u128::from(carry_low);
    debug_assert!(high < ONE);
    high << (128 - FRAC) | low >> FRAC
}

/// `floor(a / b)` by long division; `b` is not 0 and below 2^127, the result is below 2^32.
fn div(a: u128, b: u128) -> u128 {
    let (mut quotient, mut rest) = (a / b, a % b);
    debug_assert!(quotient < 1 << (128 - FRAC) && b < 1 << 127);
    for _ in 0..FRAC {
        rest <<= 1;
        quotient = quotient << 1 | u128::from(rest >= b);
        rest -= if rest >= b { b } else { 0 };
    }
    quotient
}

/// `log2 x` of a positive number, rounded down bit by bit: each squaring gives the next.
fn log2(x: u128) -> i128 {
    let whole = x.ilog2() as i32 - FRAC as i32;
    let mut y = if whole >= 0 { x >> whole } else { x << -whole };
    let mut bits = 0_i128;
    for _ in 0..FRAC {
        y = mul(y, y);
        bits <<= 1;
        if y >= 2 * ONE {
            (y, bits) = (y >> 1, bits | 1);
        }
    }
    (i128::from(whole) << FRAC) + bits
}

/// `2^-x`.
fn exp2_negative(x: u128) -> u128 {
    // 2^-x = 2^(1 - fraction) / 2^(whole + 1): a series of positive terms.
    let (whole, rest) = ((x >> FRAC) as u32, mul(ONE - (x & (ONE - 1)), LN_2));
    let (mut term, mut sum) = (ONE, ONE);
    for k in 1.. {
        term = mul(term, rest) / k;
        if term == 0 {
            break;
        }
        sum += term;
    }
    sum.checked_shr(whole + 1).unwrap_or(0)
}

/// Cosine and sine of a fraction of a turn, with [`WAVE_FRAC`] fractional bits.
fn wave(turn: u128) -> (i64, i64) {
    let (quadrant, rest) = (turn >> (FRAC - 2), turn & ((1 << (FRAC - 2)) - 1));
    let half = 1 << (FRAC - 3);
    // Up to an eighth of a turn; beyond it the other function of what is left of the quarter.
    let folded = if rest > half { 2 * half - rest } else { rest };
    let x = (((folded >> (FRAC - 2 - WAVE_FRAC)) * u128::from(QUARTER)) >> WAVE_FRAC) as u64;
    let square = times(x, x);
    let one = 1_u64 << WAVE_FRAC;
    let series =
        |first: u64| (first..=first + 16).rev().step_by(2).fold(one, |sum, k| one - times(square, sum) / (k * (k + 1)));
    let (cos, sin) = (series(1) as i64, times(x, series(2)) as i64);
    let (cos, sin) = if rest > half { (sin, cos) } else { (cos, sin) };
    match quadrant {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

fn times(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> WAVE_FRAC) as u64
}

/// Half up.
fn round(wave: i64) -> i32 {
    let shift = WAVE_FRAC - TABLE_FRAC;
    ((wave + (1 << (shift - 1))) >> shift) as i32
}
