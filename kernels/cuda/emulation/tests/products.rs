//! Matrix products on everything that they can run on, at shapes around every tile, in both orders of threads.

use std::sync::Arc;

use lockstep_cuda::{Cuda, Products};
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::conformance::{self, Builder, Case, ParamValue, Pattern, SplitMix};
use lockstep_kernels::program::{Op, TensorKind};

/// Rows, outputs and reduction. Tiles have 64 or 128 rows and outputs, and take 32 to 128 codes at a time; the ring of stages
/// has up to four; the emulation has two multiprocessors, so the larger ones give a block several tiles.
const SHAPES: [[usize; 3]; 9] = [
    [9, 1, 1],
    [63, 65, 63],
    [64, 64, 64],
    [65, 63, 129],
    [127, 129, 128],
    [128, 128, 577],
    [129, 127, 192],
    [130, 300, 700],
    [9, 2, 16_384],
];

fn product([rows, n, k]: [usize; 3], pattern: Pattern, wide: bool, kind: TensorKind) -> Case {
    let name = format!("{rows}x{k} to {n}, {} wide {wide} {kind:?}", pattern.name());
    let mut rng = SplitMix::named(&name);
    let (mut b, x) = Builder::with_input(rows, k);
    let codes = if wide {
        ParamValue::I16(pattern.fill(&mut rng, n, k, -32_639, 32_639).into_iter().map(|v| v as i16).collect())
    } else {
        ParamValue::I8(pattern.fill(&mut rng, n, k, -128, 127).into_iter().map(|v| v as i8).collect())
    };
    let mantissa = (0..n).map(|_| rng.range(1 << 15, (1 << 16) - 1) as u16).collect();
    let shift = (0..n).map(|i| [8, 22, 30][i % 3]).collect();
    let weight = b.scaled("weight", codes, n, k, mantissa, shift);
    let bias = Pattern::Mixed.i32s(&mut rng, 1, n);
    let bias = Some(b.vector("bias", bias));
    let (q, y, out) = (b.rows("q", k, TensorKind::Bfp), b.rows("y", n, kind), b.rows("sum", k, TensorKind::I32));
    let ops = vec![
        Op::Quantize { input: x, out: q },
        Op::MatMul { input: q, weight, bias, out: y },
        Op::Add { a: x, b: x, out },
    ];
    b.layer(ops, out);
    let input = pattern.i32s(&mut rng, rows, k);
    b.case("matmul", name, &[rows], Some(input))
}

fn on(products: Products) {
    for order in [Order::Ascending, Order::Descending] {
        let cuda = Cuda::on(Arc::new(Emulation::new(order, (9, 0))), Some(products)).expect("a capable device");
        for shape in SHAPES {
            for (pattern, wide, kind) in [
                (Pattern::Full, false, TensorKind::I32),
                (Pattern::Full, true, TensorKind::I16),
                (Pattern::Lowest, false, TensorKind::I16),
                (Pattern::Lowest, true, TensorKind::I32),
            ] {
                let case = product(shape, pattern, wide, kind);
                conformance::check(&cuda, &case).unwrap_or_else(|d| panic!("{order:?}: {d}"));
            }
        }
    }
}

#[test]
fn dp4a() {
    on(Products::Dp4a);
}

#[test]
fn mma() {
    on(Products::Mma);
}

#[test]
fn wgmma() {
    on(Products::Wgmma);
}
