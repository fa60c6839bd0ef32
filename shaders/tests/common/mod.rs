//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::sync::Arc;

use lockstep_kernels::conformance::{Builder, Case, DecoderShape, ParamValue, Pattern, SplitMix, decoder};
use lockstep_kernels::program::{Op, Rows, TensorKind};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::Sampler;
use lockstep_shaders::{Options, Wgpu};

/// The backend, or none with a loud line where this machine has no adapter. With `LOCKSTEP_REQUIRE_ALL` set, that fails the
/// test.
pub fn open(options: Options) -> Option<Wgpu> {
    match Wgpu::open(options) {
        Ok(wgpu) => {
            eprintln!("on {wgpu:?}");
            Some(wgpu)
        }
        Err(why) => {
            assert!(std::env::var_os("LOCKSTEP_REQUIRE_ALL").is_none(), "a test that must run can't: {why}");
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

/// Products, row ops, pools, attention and points with more rows, and more weight rows, than 256 KiB hold.
pub fn wide_cases() -> Vec<Case> {
    let products = [(300, 700, 400, false), (70, 300, 1_200, true), (3, 1_000, 513, true)].into_iter().map(wide_case);
    products.chain([false, true].map(wide_pool)).chain([wide_decoder()]).collect()
}

/// Sequences that lie across the ends of bindings.
fn wide_pool(mean: bool) -> Case {
    let (lengths, cols) = ([100, 7, 60, 150, 1, 33], 300);
    let name = format!("{lengths:?}x{cols}");
    let (mut b, input) = Builder::with_input(150, cols);
    let out = b.tensor("pooled", Rows::Sequence, cols, TensorKind::I32);
    let (op, pool) =
        if mean { ("mean_pool", Op::MeanPool { input, out }) } else { ("first_pool", Op::FirstPool { input, out }) };
    b.layer(vec![pool], out);
    let values = Pattern::Mixed.i32s(&mut SplitMix::named(&name), lengths.iter().sum(), cols);
    b.case(op, name, &lengths, Some(values))
}

/// Queries, keys, values and outputs of sequences without caches, and points all over them.
fn wide_decoder() -> Case {
    let shape = DecoderShape {
        width: 200,
        heads: 12,
        kv_heads: 12,
        head_dim: 32,
        rotary_dim: 32,
        layers: 1,
        ..DecoderShape::SMALL
    };
    let lengths = [130, 600, 1, 41];
    let mut case = decoder(shape, &lengths);
    for (sequence, length) in case.batch.sequences.iter_mut().zip(lengths) {
        let sampling = Arc::new(Sampling::greedy(length.min(20) as u32, 1_000));
        let mut sampler = Sampler { sampling, draws: vec![] };
        sequence.sampler = Some(sampler.clone());
        sampler.draws = vec![1 << 63; sequence.points().len()];
        sequence.sampler = Some(sampler);
    }
    case
}

fn wide_case((rows, cols, n, wide): (usize, usize, usize, bool)) -> Case {
    let name = format!("{rows}x{cols} to {n}");
    let mut rng = SplitMix::named(&name);
    let (mut b, x) = Builder::with_input(rows, cols);
    let (limit, shift) = if wide { (32_639, 28) } else { (127, 20) };
    let codes = Pattern::Full.fill(&mut rng, n, cols, -limit, limit);
    let codes = if wide {
        ParamValue::I16(codes.into_iter().map(|c| c as i16).collect())
    } else {
        ParamValue::I8(codes.into_iter().map(|c| c as i8).collect())
    };
    let weight = b.scaled("weight", codes, n, cols, vec![40_000; n], vec![shift; n]);
    let (q, y) = (b.rows("q", cols, TensorKind::Bfp), b.rows("y", n, TensorKind::I32));
    let [codes, gelu, unit] = [TensorKind::I16, TensorKind::I32, TensorKind::I32].map(|k| b.rows("z", n, k));
    let ops = vec![
        Op::Quantize { input: x, out: q },
        Op::MatMul { input: q, weight, bias: None, out: y },
        Op::MatMul { input: q, weight, bias: None, out: codes },
        Op::Gelu { input: y, frac: 16, out: gelu },
        Op::L2Normalize { input: gelu, out: unit },
    ];
    b.layer(ops, unit);
    let input = Pattern::Mixed.i32s(&mut rng, rows, cols);
    b.case("model", name, &[rows], Some(input))
}
