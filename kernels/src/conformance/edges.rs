//! Fixed cases at the edges of what a program may ask for, whatever the level.

use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::{Divergence, Level};
use crate::program::{EmbedIndex, Norm, Op, Rows, ScaledRows, TensorId, TensorKind};

type Visit<'a> = &'a mut dyn FnMut(Case) -> Result<(), Divergence>;

/// Every edge case.
pub(super) fn visit(level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    let lengths: &[usize] = if level == Level::Quick { &[64] } else { &[1, 64, 65, 16_384] };
    for &cols in lengths {
        for wide in [false, true] {
            for kind in [TensorKind::I32, TensorKind::I16] {
                visit(product_shifts(cols, wide, kind))?;
            }
        }
    }
    for op in ["layer_norm", "rms_norm"] {
        for shift in [1, 2, 30, 61, 62] {
            visit(norm_shift(op, shift))?;
        }
    }
    visit(row_exponents())?;
    for frac in (0..32).step_by(if level == Level::Quick { 7 } else { 1 }) {
        visit(activations(frac))?;
    }
    visit(sequence_rows())?;
    visit(shared_weight())?;
    visit(eight_tables())
}

fn ramp(rows: usize, cols: usize, limit: i32) -> Vec<i32> {
    // Rows of one sign, of the other, alternating, and zero but for one element.
    let element = |i: usize| match (i / cols % 4, i % cols) {
        (0, _) => limit,
        (1, _) => -limit,
        (2, c) if c % 2 == 0 => limit,
        (2, _) => -limit,
        (_, c) => i32::from(c == 0) * limit,
    };
    (0..rows * cols).map(element).collect()
}

/// Shifts that leave one bit or none of the sum, the least and the greatest, against weights at both ends.
fn product_shifts(cols: usize, wide: bool, kind: TensorKind) -> Case {
    let shifts: Vec<i16> = (47..=66).chain([0, 1, 15, 31, 32, -1, -31, -64, 127, i16::MIN, i16::MAX]).collect();
    // Each shift with every row of weights.
    let n = shifts.len() * 4;
    let each = |s: &i16| std::iter::repeat_n(*s, 4);
    let weights = if wide { "w16" } else { "w8" };
    let name = format!("shifts at the edges, {cols} to {n} {weights} {kind:?}");
    let (mut b, x) = Builder::with_input(8, cols);
    let codes = if wide {
        ParamValue::I16(ramp(n, cols, 32_767).into_iter().map(|w| w as i16).collect())
    } else {
        ParamValue::I8(ramp(n, cols, 127).into_iter().map(|w| w as i8).collect())
    };
    let mantissa = (0..n).map(|i| [u16::MAX, 1 << 15][i / 4 % 2]).collect();
    let weight = b.scaled("weight", codes, n, cols, mantissa, shifts.iter().flat_map(each).collect());
    let bias = b.vector("bias", (0..n).map(|i| [0, i32::MAX, i32::MIN, 1, -1][i % 5]).collect());
    let (q, y) = (b.rows("q", cols, TensorKind::Bfp), b.rows("y", n, kind));
    let sum = b.rows("sum", cols, TensorKind::I32);
    let product = Op::MatMul { input: q, weight, bias: Some(bias), out: y };
    b.layer(vec![Op::Quantize { input: x, out: q }, product, Op::Add { a: x, b: x, out: sum }], sum);
    // Codes at the limit without an exponent, and with the largest.
    let input = ramp(4, cols, 32_639).into_iter().chain(ramp(4, cols, i32::MAX)).collect();
    b.case("matmul", name, &[8], Some(input))
}

fn norm_of(b: &mut Builder, rng: &mut SplitMix, cols: usize, shift: u8) -> Norm {
    let scale = Pattern::Mixed.i32s(rng, 1, cols);
    Norm { scale: b.vector("scale", scale), shift, epsilon_mantissa: 1 << 31, epsilon_shift: 31 }
}

fn norm_shift(op: &'static str, shift: u8) -> Case {
    const COLS: usize = 33;
    let name = format!("shift {shift}");
    let mut rng = SplitMix::named(&format!("{op} {name}"));
    let (mut b, input) = Builder::with_input(12, COLS);
    let norm = norm_of(&mut b, &mut rng, COLS, shift);
    let out = b.rows("y", COLS, TensorKind::I32);
    let under_test = if op == "layer_norm" {
        let bias = Pattern::Mixed.i32s(&mut rng, 1, COLS);
        Op::LayerNorm { input, norm, bias: b.vector("bias", bias), out }
    } else {
        Op::RmsNorm { input, norm, groups: 1, out }
    };
    b.layer(vec![under_test], out);
    let input = [ramp(4, COLS, i32::MAX), ramp(4, COLS, 1), Pattern::Mixed.i32s(&mut rng, 4, COLS)].concat();
    b.case(op, name, &[12], Some(input))
}

/// Rows whose largest magnitude lies where the exponent changes.
fn row_exponents() -> Case {
    let around = (0..17_u32).flat_map(|e| (-2..=2).map(move |d| (32_639_i64 << e) + (1_i64 << e >> 1) + d));
    let largest: Vec<i64> = around.chain([0, 1, i64::from(i32::MAX)]).filter(|v| *v <= i64::from(i32::MAX)).collect();
    let rows: Vec<[i32; 3]> = largest.iter().map(|v| [*v as i32, -(*v as i32), (*v / 2) as i32]).collect();
    let rows = [rows, vec![[i32::MIN, 1, -1]]].concat();
    let (mut b, x) = Builder::with_input(rows.len(), 3);
    let (q, sum) = (b.rows("q", 3, TensorKind::Bfp), b.rows("sum", 3, TensorKind::I32));
    b.layer(vec![Op::Quantize { input: x, out: q }, Op::Add { a: x, b: x, out: sum }], sum);
    b.case("quantize", "where the exponent changes".into(), &[rows.len()], Some(rows.concat()))
}

/// Inputs around zero, around the steps of the tables, and around their ends.
fn activations(frac: u8) -> Case {
    let middles = [0, 1 << frac >> 7, 1 << frac >> 6, 1 << frac, 8 << frac, 16 << frac, 1 << 31];
    let near = middles.into_iter().flat_map(|m: i64| [-2, -1, 0, 1, 2].map(|d| m + d));
    let input: Vec<i32> = near.flat_map(|x| [x, -x]).filter_map(|x| i32::try_from(x).ok()).collect();
    let (mut b, x) = Builder::with_input(1, input.len());
    let (gelu, silu) = (b.rows("gelu", input.len(), TensorKind::I32), b.rows("silu", input.len(), TensorKind::I32));
    b.layer(vec![Op::Gelu { input: x, frac, out: gelu }, Op::Silu { input: x, frac, out: silu }], silu);
    b.case("gelu", format!("edges of the tables at {frac} fractional bits"), &[1], Some(input))
}

fn square(b: &mut Builder, rng: &mut SplitMix, cols: usize) -> ScaledRows {
    let codes = Pattern::Full.fill(rng, cols, cols, -127, 127).into_iter().map(|w| w as i8).collect();
    b.scaled("weight", ParamValue::I8(codes), cols, cols, vec![40_000; cols], vec![24; cols])
}

/// Every op that may work on rows that belong to sequences does so.
fn sequence_rows() -> Case {
    const COLS: usize = 19;
    let mut rng = SplitMix::named("ops on rows of sequences");
    let (mut b, input) = Builder::with_input(9, COLS);
    let weight = square(&mut b, &mut rng, COLS);
    let (norm, rms) = (norm_of(&mut b, &mut rng, COLS, 40), norm_of(&mut b, &mut rng, COLS, 36));
    let bias = Pattern::Mixed.i32s(&mut rng, 1, COLS);
    let bias = b.vector("bias", bias);
    let of = |b: &mut Builder, name: &str, kind| b.tensor(name, Rows::Sequence, COLS, kind);
    let [pooled, y, normed, rooted, sum, gelu, silu, unit] =
        ["pooled", "y", "normed", "rooted", "sum", "gelu", "silu", "unit"].map(|n| of(&mut b, n, TensorKind::I32));
    let (q, codes) = (of(&mut b, "q", TensorKind::Bfp), of(&mut b, "codes", TensorKind::I16));
    let ops = vec![
        Op::FirstPool { input, out: pooled },
        Op::Quantize { input: pooled, out: q },
        Op::MatMul { input: q, weight, bias: Some(bias), out: y },
        Op::MatMul { input: q, weight, bias: None, out: codes },
        Op::LayerNorm { input: y, norm, bias, out: normed },
        Op::RmsNorm { input: normed, norm: rms, groups: 1, out: rooted },
        Op::Add { a: rooted, b: pooled, out: sum },
        Op::Gelu { input: sum, frac: 20, out: gelu },
        Op::Silu { input: gelu, frac: 20, out: silu },
        Op::L2Normalize { input: silu, out: unit },
    ];
    b.layer(ops, unit);
    let lengths = [3, 1, 9, 2, 1];
    let input = Pattern::Mixed.i32s(&mut rng, lengths.iter().sum(), COLS);
    b.case("model", "ops on rows of sequences".into(), &lengths, Some(input))
}

/// One matrix under two products, in one layer and in the next.
fn shared_weight() -> Case {
    const COLS: usize = 40;
    let mut rng = SplitMix::named("a shared weight");
    let (mut b, x) = Builder::with_input(5, COLS);
    let weight = square(&mut b, &mut rng, COLS);
    let product = |b: &mut Builder, input: TensorId, i: usize, kind| {
        let q = b.rows(&format!("q {i}"), COLS, TensorKind::Bfp);
        let out = b.rows(&format!("y {i}"), COLS, kind);
        (vec![Op::Quantize { input, out: q }, Op::MatMul { input: q, weight, bias: None, out }], out)
    };
    let (first, y) = product(&mut b, x, 0, TensorKind::I32);
    let (second, z) = product(&mut b, y, 1, TensorKind::I32);
    b.layer([first, second].concat(), z);
    let (third, _) = product(&mut b, z, 2, TensorKind::I16);
    let (fourth, last) = product(&mut b, z, 3, TensorKind::I32);
    b.layer([third, fourth].concat(), last);
    let input = Pattern::Full.i32s(&mut rng, 5, COLS);
    b.case("matmul", "a shared weight".into(), &[5], Some(input))
}

/// As many tables as an embedding may have, with rows that overflow together and shifts at the edges.
fn eight_tables() -> Case {
    const COLS: usize = 21;
    let mut b = Builder::new(4, 6);
    let tables = [-30, -1, 0, 1, 15, 62, 63, 64].iter().enumerate().map(|(i, shift)| {
        let codes = ParamValue::I16(ramp(8, COLS, 32_767).into_iter().map(|w| w as i16).collect());
        let mantissa = vec![[u16::MAX, 1 << 15][i % 2]; 8];
        let index = [EmbedIndex::Token, EmbedIndex::Position, EmbedIndex::Constant(i as u32)][i % 3];
        (b.scaled(&format!("table {i}"), codes, 8, COLS, mantissa, vec![*shift; 8]), index)
    });
    let tables = tables.collect();
    let (x, y) = (b.rows("x", COLS, TensorKind::I32), b.rows("y", COLS, TensorKind::I32));
    b.layer(vec![Op::Embed { tables, out: x }], x);
    b.layer(vec![Op::Add { a: x, b: x, out: y }], y);
    b.case("embed", "eight tables".into(), &[6, 1, 4], None)
}
