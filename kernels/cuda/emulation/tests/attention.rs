//! Attention on integer units and on tensor cores, at shapes around tiles, blocks and the digits that one instruction takes, in
//! both orders of threads.

use std::sync::Arc;

use lockstep_cuda::{Cuda, Products};
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::conformance::{self, Builder, Case, ParamValue, Pattern, SplitMix};
use lockstep_kernels::program::{Heads, Op, TensorId, TensorKind};

/// Query heads, key heads, head size, sequence lengths.
type Shape = (u16, u16, u16, &'static [usize]);

/// Tiles have 8 rows or 16, blocks 256 positions; an instruction takes 32 codes and 8 columns.
const SHAPES: [Shape; 7] = [
    (2, 1, 17, &[33, 8]),
    (1, 1, 6, &[9, 1]),
    (3, 3, 33, &[15, 17]),
    (1, 1, 32, &[257]),
    (2, 2, 64, &[16, 3]),
    (1, 1, 8, &[513]),
    (1, 1, 512, &[12]),
];

/// Queries, keys and values are the columns of the input, in this order.
fn attention((heads, kv_heads, head_dim, lengths): Shape, causal: bool, pattern: Pattern) -> Case {
    let name = format!("{heads}/{kv_heads} heads of {head_dim} over {lengths:?}, causal {causal}, {}", pattern.name());
    let mut rng = SplitMix::named(&name);
    let (queries, keys) = (usize::from(heads * head_dim), usize::from(kv_heads * head_dim));
    let width = queries + 2 * keys;
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let (mut b, x) = Builder::with_input(longest, width);
    let codes = b.rows("codes", width, TensorKind::Bfp);
    let mut ops = vec![Op::Quantize { input: x, out: codes }];
    // Each is cut out by a matrix of ones and zeros.
    let mut cut = |b: &mut Builder, name: &str, from: usize, len: usize| -> TensorId {
        let ones = (0..len * width).map(|i| i8::from(i % width == from + i / width)).collect();
        let ones = ParamValue::I8(ones);
        let weight = b.scaled(&format!("{name}.cut"), ones, len, width, vec![1 << 15; len], vec![15; len]);
        let out = b.rows(name, len, TensorKind::I16);
        ops.push(Op::MatMul { input: codes, weight, bias: None, out });
        out
    };
    let q = cut(&mut b, "q", 0, queries);
    let k = cut(&mut b, "k", queries, keys);
    let v = cut(&mut b, "v", queries + keys, keys);
    let out = b.rows("mixed", queries, TensorKind::I32);
    let score_shift = (0..heads).map(|h| [12, 0, 7][usize::from(h + head_dim) % 3]).collect();
    let value_shift = (0..heads).map(|h| [0, 3][usize::from(h) % 2]).collect();
    let heads = Heads { heads, kv_heads, head_dim, causal, score_shift, value_shift };
    ops.push(Op::Attention { q, k, v, heads, out });
    b.layer(ops, out);
    let input = pattern.fill(&mut rng, lengths.iter().sum(), width, -32_639, 32_639);
    b.case("attention", name, lengths, Some(input.into_iter().map(|v| v as i32).collect()))
}

#[test]
fn partials_are_exact() {
    for products in [Products::Dp4a, Products::Mma] {
        for order in [Order::Ascending, Order::Descending] {
            let cuda = Cuda::on(Arc::new(Emulation::new(order, (9, 0))), Some(products)).expect("a capable device");
            for shape in SHAPES {
                for (causal, pattern) in [(true, Pattern::Full), (false, Pattern::Full), (true, Pattern::Lowest)] {
                    let case = attention(shape, causal, pattern);
                    conformance::check(&cuda, &case).unwrap_or_else(|d| panic!("{order:?}: {d}"));
                }
            }
        }
    }
}
