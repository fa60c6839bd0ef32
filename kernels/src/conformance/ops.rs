//! Cases for each op: shapes around every block size that a kernel may have, values at the edges of their types.

use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::{Divergence, Level, decoder_ops, sampling};
use crate::fixed::CODE_MAX;
use crate::program::{EmbedIndex, Heads, Norm, OP_NAMES, Op, Rows, ScaledRows, TensorId, TensorKind};

type Visit<'a> = &'a mut dyn FnMut(Case) -> Result<(), Divergence>;

/// Every case of every op, in the order of [`OP_NAMES`].
pub(super) fn visit(level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for op in OP_NAMES {
        match op {
            "embed" => embed(level, visit)?,
            "matmul" => matmul(level, visit)?,
            "attention" => attention(level, visit)?,
            "mean_pool" | "first_pool" => pool(op, level, visit)?,
            "rope" => decoder_ops::rope(patterns(level), visit)?,
            "multiply" => decoder_ops::multiply(shapes(level), patterns(level), visit)?,
            "gather" => decoder_ops::gather(shapes(level), patterns(level), visit)?,
            "sample" => sampling::sample(vocabularies(level), patterns(level), visit)?,
            _ => rows(op, level, visit)?,
        }
    }
    Ok(())
}

/// `quick` or `full`, by level.
fn pick<T>(level: Level, quick: T, full: T) -> T {
    if level == Level::Quick { quick } else { full }
}

const QUICK: &[Pattern] = &[Pattern::Mixed, Pattern::Spike, Pattern::Lowest];

/// Rows and columns around vector and block sizes.
fn shapes(level: Level) -> &'static [(usize, usize)] {
    pick(
        level,
        &[(3, 17), (2, 384)],
        &[
            (1, 1),
            (2, 2),
            (1, 3),
            (3, 15),
            (16, 16),
            (17, 17),
            (31, 31),
            (2, 32),
            (1, 33),
            (5, 63),
            (64, 64),
            (3, 65),
            (127, 127),
            (1, 128),
            (129, 129),
            (2, 255),
            (1, 256),
            (3, 257),
            (2, 1_023),
            (1, 1_024),
            (2, 1_025),
            (1, 8_192),
        ],
    )
}

fn vocabularies(level: Level) -> &'static [usize] {
    pick(level, &[1, 300], &[1, 2, 3, 17, 300, 4_096, 4_097, 8_193, 40_000])
}

fn patterns(level: Level) -> &'static [Pattern] {
    pick(level, QUICK, &Pattern::ALL)
}

/// Ops that map `[rows, cols]` to `[rows, cols]`.
fn rows(op: &'static str, level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for &(rows, cols) in shapes(level) {
        for &pattern in patterns(level) {
            // The shift or Q format that such an op has goes with the shape.
            let variant = (rows * 31 + cols) as i64;
            let name = format!("{rows}x{cols} {}", pattern.name());
            let mut rng = SplitMix::named(&format!("{op} {name}"));
            let (mut b, x) = Builder::with_input(rows, cols);
            let y = b.rows("y", cols, if op == "quantize" { TensorKind::Bfp } else { TensorKind::I32 });
            let under_test = row_op(&mut b, &mut rng, op, variant, x, y, cols);
            let z = b.rows("sum", cols, TensorKind::I32);
            let mut ops = vec![under_test];
            // A layer's output is i32, which block floating point rows are not.
            let output = if op == "quantize" { z } else { y };
            if output == z {
                ops.push(Op::Add { a: x, b: x, out: z });
            }
            b.layer(ops, output);
            let input = pattern.i32s(&mut rng, rows, cols);
            visit(b.case(op, name, &[rows], Some(input)))?;
        }
    }
    Ok(())
}

fn row_op(
    b: &mut Builder,
    rng: &mut SplitMix,
    op: &str,
    variant: i64,
    input: TensorId,
    out: TensorId,
    cols: usize,
) -> Op {
    let frac = (variant % 32) as u8;
    match op {
        "quantize" => Op::Quantize { input, out },
        "add" => Op::Add { a: input, b: input, out },
        "layer_norm" => {
            let norm = norm(b, rng, variant, cols);
            let bias = Pattern::Mixed.i32s(rng, 1, cols);
            Op::LayerNorm { input, norm, bias: b.vector("bias", bias), out }
        }
        "rms_norm" => {
            // Whole rows, and parts wherever the columns have such a divisor.
            let groups = [1, 2, 3, cols, 5, 8][variant as usize % 6];
            let groups = if cols.is_multiple_of(groups) { groups } else { 1 };
            Op::RmsNorm { input, norm: norm(b, rng, variant, cols / groups), groups: groups as u16, out }
        }
        "gelu" => Op::Gelu { input, frac, out },
        "silu" => Op::Silu { input, frac, out },
        "l2_normalize" => Op::L2Normalize { input, out },
        "shift" => Op::Shift { input, shift: frac, out },
        _ => unreachable!("{op} is not an op on rows alone"),
    }
}

/// A norm over `cols` elements, with constants that go with the variant.
pub(super) fn norm(b: &mut Builder, rng: &mut SplitMix, variant: i64, cols: usize) -> Norm {
    let scale = Pattern::Mixed.i32s(rng, 1, cols);
    Norm {
        scale: b.vector("scale", scale),
        shift: (variant % 62 + 1) as u8,
        epsilon_mantissa: if variant % 5 == 0 { 0 } else { 1 << 31 | rng.next_u64() as u32 },
        epsilon_shift: if variant % 7 == 0 { i16::MIN } else { (variant % 80 - 20) as i16 },
    }
}

/// Random mantissas as an importer makes them, and shifts around `middle`.
fn scaled(
    b: &mut Builder,
    rng: &mut SplitMix,
    name: &str,
    codes: ParamValue,
    rows: usize,
    cols: usize,
    middle: i64,
) -> ScaledRows {
    let mantissa = (0..rows).map(|_| rng.range(1 << 15, (1 << 16) - 1) as u16).collect();
    let shift = (0..rows).map(|_| rng.range(middle - 4, middle + 4) as i16).collect();
    b.scaled(name, codes, rows, cols, mantissa, shift)
}

fn codes16(pattern: Pattern, rng: &mut SplitMix, rows: usize, cols: usize) -> Vec<i16> {
    let limit = i64::from(CODE_MAX);
    pattern.fill(rng, rows, cols, -limit, limit).into_iter().map(|v| v as i16).collect()
}

fn codes8(pattern: Pattern, rng: &mut SplitMix, rows: usize, cols: usize) -> Vec<i8> {
    pattern.fill(rng, rows, cols, -128, 127).into_iter().map(|v| v as i8).collect()
}

fn embed(level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for &(rows, cols) in shapes(level) {
        for &pattern in patterns(level) {
            // From left shifts that saturate to right shifts that leave little.
            for middle in [-30, 0, 20, 60] {
                let name = format!("{rows}x{cols} {} shift {middle}", pattern.name());
                let mut rng = SplitMix::named(&format!("embed {name}"));
                let mut b = Builder::new(11, rows);
                let mut table = |b: &mut Builder, name: &str, count| {
                    let codes = ParamValue::I16(codes16(pattern, &mut rng, count, cols));
                    scaled(b, &mut rng, name, codes, count, cols, middle)
                };
                let tables = vec![
                    (table(&mut b, "tokens", 11), EmbedIndex::Token),
                    (table(&mut b, "positions", rows + 1), EmbedIndex::Position),
                    (table(&mut b, "types", 2), EmbedIndex::Constant(1)),
                ];
                let (x, y) = (b.rows("x", cols, TensorKind::I32), b.rows("y", cols, TensorKind::I32));
                b.layer(vec![Op::Embed { tables, out: x }], x);
                b.layer(vec![Op::Add { a: x, b: x, out: y }], y);
                visit(b.case("embed", name, &[rows, 1], None))?;
            }
        }
    }
    Ok(())
}

/// Rows, output columns and reduction of a product.
fn product_shapes(level: Level) -> &'static [[usize; 3]] {
    pick(
        level,
        &[[1, 17, 33], [7, 64, 65], [33, 33, 128], [2, 3, 16_384]],
        &[
            [1, 1, 1],
            [2, 3, 2],
            [1, 15, 3],
            [3, 16, 15],
            [4, 17, 16],
            [5, 31, 17],
            [6, 32, 31],
            [7, 33, 32],
            [8, 63, 33],
            [12, 64, 63],
            [13, 65, 64],
            [23, 127, 65],
            [24, 128, 127],
            [25, 129, 128],
            [47, 16, 129],
            [48, 33, 255],
            [49, 32, 256],
            [50, 17, 257],
            [64, 31, 1_023],
            [65, 8, 1_024],
            [3, 33, 1_025],
            [2, 17, 8_191],
            [7, 33, 8_192],
            [3, 18, 16_383],
            [7, 33, 16_384],
        ],
    )
}

fn matmul(level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for &[rows, n, k] in product_shapes(level) {
        for &pattern in patterns(level) {
            for wide in [false, true] {
                for kind in [TensorKind::I32, TensorKind::I16] {
                    visit(product(rows, n, k, pattern, wide, kind))?;
                }
            }
        }
    }
    Ok(())
}

fn product(rows: usize, n: usize, k: usize, pattern: Pattern, wide: bool, kind: TensorKind) -> Case {
    let weights = if wide { "w16" } else { "w8" };
    let name = format!("{rows}x{k} to {n} {weights} {kind:?} {}", pattern.name());
    let mut rng = SplitMix::named(&format!("matmul {name}"));
    let (mut b, x) = Builder::with_input(rows, k);
    // Weights at their edges wherever activations are not, and the other way round.
    let of_weights = if pattern == Pattern::Mixed { Pattern::Full } else { Pattern::Mixed };
    let of_weights = if matches!(pattern, Pattern::Lowest | Pattern::Highest) { pattern } else { of_weights };
    let codes = if wide {
        ParamValue::I16(codes16(of_weights, &mut rng, n, k))
    } else {
        ParamValue::I8(codes8(of_weights, &mut rng, n, k))
    };
    let weight = scaled(&mut b, &mut rng, "weight", codes, n, k, [22, 8, 40, 2][n % 4]);
    let bias = (!n.is_multiple_of(3)).then(|| {
        let bias = Pattern::Mixed.i32s(&mut rng, 1, n);
        b.vector("bias", bias)
    });
    let q = b.rows("q", k, TensorKind::Bfp);
    let y = b.rows("y", n, kind);
    let mut ops = vec![Op::Quantize { input: x, out: q }, Op::MatMul { input: q, weight, bias, out: y }];
    let output = if kind == TensorKind::I32 { y } else { b.rows("sum", k, TensorKind::I32) };
    if output != y {
        ops.push(Op::Add { a: x, b: x, out: output });
    }
    b.layer(ops, output);
    let input = pattern.i32s(&mut rng, rows, k);
    b.case("matmul", name, &[rows], Some(input))
}

/// Query heads, key heads, head size, sequence lengths.
pub(super) type Shape<'a> = (usize, usize, usize, &'a [usize]);

fn attention_shapes(level: Level) -> &'static [Shape<'static>] {
    pick(
        level,
        &[(2, 1, 17, &[33, 1, 4]), (1, 1, 8, &[257])],
        &[
            (1, 1, 1, &[1]),
            (2, 2, 15, &[2, 3]),
            (1, 1, 16, &[15, 16, 17]),
            (4, 2, 32, &[31, 33, 1]),
            (3, 3, 33, &[63, 65]),
            (2, 1, 64, &[127, 129]),
            (1, 1, 65, &[128]),
            (6, 2, 16, &[64]),
            (1, 1, 512, &[19]),
            (2, 1, 17, &[255]),
            (1, 1, 32, &[256]),
            (2, 2, 16, &[257]),
            (1, 1, 8, &[511, 512]),
            (2, 1, 4, &[513]),
            (1, 1, 4, &[1_025]),
        ],
    )
}

fn attention(level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for shape in attention_shapes(level) {
        for &pattern in patterns(level) {
            for causal in [false, true] {
                visit(heads(*shape, pattern, causal))?;
            }
        }
    }
    if level == Level::Full {
        // More blocks than a kernel may hold at once. The oracle takes the square of the length.
        for (length, causal) in [(2_049, false), (2_049, true), (4_097, true)] {
            visit(heads((1, 1, 2, &[length]), Pattern::Mixed, causal))?;
        }
    }
    Ok(())
}

/// Queries, keys and values are cut out of the input by products with a matrix of ones and zeros.
pub(super) fn heads((heads, kv_heads, dim, lengths): Shape<'_>, pattern: Pattern, causal: bool) -> Case {
    let masked = if causal { "causal " } else { "" };
    let name = format!("{heads}/{kv_heads} heads of {dim} over {lengths:?} {masked}{}", pattern.name());
    let mut rng = SplitMix::named(&format!("attention {name}"));
    let (nq, nkv) = (heads * dim, kv_heads * dim);
    let width = nq + 2 * nkv;
    let rows = lengths.iter().sum();
    let (mut b, x) = Builder::with_input(lengths.iter().copied().max().unwrap_or(1), width);
    let codes = b.rows("codes", width, TensorKind::Bfp);
    let mut ops = vec![Op::Quantize { input: x, out: codes }];
    let mut cut = |b: &mut Builder, name: &str, from: usize, len: usize| {
        let ones = (0..len * width).map(|i| i8::from(i % width == from + i / width)).collect();
        let name_of_weight = format!("{name}.cut");
        let ones = ParamValue::I8(ones);
        let weight = b.scaled(&name_of_weight, ones, len, width, vec![1 << 15; len], vec![15; len]);
        let out = b.rows(name, len, TensorKind::I16);
        ops.push(Op::MatMul { input: codes, weight, bias: None, out });
        out
    };
    let q = cut(&mut b, "q", 0, nq);
    let k = cut(&mut b, "k", nq, nkv);
    let v = cut(&mut b, "v", nq + nkv, nkv);
    let out = b.rows("mixed", nq, TensorKind::I32);
    // From scores that saturate to scores that are all alike.
    let heads = Heads {
        heads: heads as u16,
        kv_heads: kv_heads as u16,
        head_dim: dim as u16,
        causal,
        score_shift: (0..heads).map(|h| [7, 12, 0, 4, 62, 16][(h + dim) % 6]).collect(),
        value_shift: (0..heads).map(|h| [0, 3, 31][h % 3]).collect(),
    };
    ops.push(Op::Attention { q, k, v, heads, out });
    b.layer(ops, out);
    let limit = i64::from(CODE_MAX);
    let input = pattern.fill(&mut rng, rows, width, -limit, limit).into_iter().map(|v| v as i32).collect();
    b.case("attention", name, lengths, Some(input))
}

fn pool(op: &'static str, level: Level, visit: Visit<'_>) -> Result<(), Divergence> {
    for &(rows, cols) in shapes(level) {
        for &pattern in patterns(level) {
            visit(pooled(op, &[rows, 1, rows.div_ceil(2)], cols, pattern))?;
        }
    }
    if level == Level::Full {
        // Up to the longest sequence there is, beside a short one.
        for (rows, cols) in [(2_048, 3), (4_097, 2), (65_537, 1), (131_072, 2)] {
            for pattern in [Pattern::Lowest, Pattern::Highest, Pattern::Full] {
                visit(pooled(op, &[rows, 3], cols, pattern))?;
            }
        }
    }
    Ok(())
}

fn pooled(op: &'static str, lengths: &[usize], cols: usize, pattern: Pattern) -> Case {
    let name = format!("{lengths:?}x{cols} {}", pattern.name());
    let mut rng = SplitMix::named(&format!("{op} {name}"));
    let (mut b, input) = Builder::with_input(lengths.iter().copied().max().unwrap_or(1), cols);
    let out = b.tensor("pooled", Rows::Sequence, cols, TensorKind::I32);
    let pool = if op == "mean_pool" { Op::MeanPool { input, out } } else { Op::FirstPool { input, out } };
    b.layer(vec![pool], out);
    let input = pattern.i32s(&mut rng, lengths.iter().sum(), cols);
    b.case(op, name, lengths, Some(input))
}
