//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use lockstep_kernels::conformance::{Builder, Case, ParamValue, Pattern, SplitMix};
use lockstep_kernels::program::{Op, TensorKind};
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

/// Products and row ops with more rows, and more weight rows, than 256 KiB hold.
pub fn wide_cases() -> Vec<Case> {
    [(300, 700, 400, false), (70, 300, 1_200, true), (3, 1_000, 513, true)].into_iter().map(wide_case).collect()
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
