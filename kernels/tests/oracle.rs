//! Every op of the CPU backend against the oracle, on slices, on every path of this machine: operands at the edges of
//! their types, including codes that no program produces, because ops are total.

use lockstep_kernels::cpu::{Cpu, CpuKernels, Path};
use lockstep_kernels::host::{AttentionArgs, AttentionRows, BfpRows, HostOps, MatMulOut, NormArgs, Scaled};
use lockstep_kernels::program::{Heads, Norm, ParamId};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::ParamData;
use proptest::collection::vec;
use proptest::prelude::*;

const CASES: u32 = 48;

thread_local! {
    /// Of one test, so that no two of them want the same threads at once.
    static BACKENDS: Vec<(String, CpuKernels)> = {
        let kernels = |path: Path, threads| {
            let cpu = Cpu::new(Some(path), threads).expect("an available path");
            (format!("{} on {threads} threads", path.name()), cpu.kernels().clone())
        };
        Path::available().into_iter().chain([Path::AmxModel]).flat_map(|p| [kernels(p, 1), kernels(p, 3)]).collect()
    };
}

/// Every path of this machine, on one and on three threads.
fn backends() -> Vec<(String, CpuKernels)> {
    BACKENDS.with(Clone::clone)
}

/// Numbers of up to `bits` bits, with edges more often than chance would have them.
fn number(bits: u32) -> impl Strategy<Value = i64> + Clone {
    let (min, max) = (-1_i64 << (bits - 1), (1_i64 << (bits - 1)) - 1);
    prop_oneof![
        6 => min..=max,
        2 => -300_i64..300,
        1 => prop_oneof![Just(min), Just(min + 1), Just(max), Just(max - 1), Just(0), Just(-1), Just(1)],
        1 => (0..bits - 1, any::<bool>()).prop_map(|(b, minus)| if minus { -(1_i64 << b) } else { 1 << b }),
    ]
}

fn i32s(len: usize) -> impl Strategy<Value = Vec<i32>> {
    let full = vec(number(32).prop_map(|v| v as i32), len);
    let small = vec(-40_000..40_000, len);
    let equal = number(32).prop_map(move |v| vec![v as i32; len]);
    prop_oneof![4 => full, 3 => small, 1 => equal, 1 => Just(vec![0; len])]
}

fn i16s(len: usize) -> impl Strategy<Value = Vec<i16>> {
    let full = vec(number(16).prop_map(|v| v as i16), len);
    let equal = number(16).prop_map(move |v| vec![v as i16; len]);
    prop_oneof![6 => full, 1 => equal]
}

/// Shifts that matter, and shifts of any size.
fn shift() -> impl Strategy<Value = i16> + Clone {
    prop_oneof![6 => 0_i16..64, 2 => -40_i16..80, 1 => any::<i16>()]
}

fn spans(lengths: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    let span = |len: &usize| {
        start += len;
        start - len..start
    };
    lengths.iter().map(span).collect()
}

fn norm_args(scale: &[i32], shift: u8, epsilon: (u32, i16)) -> NormArgs<'_> {
    let norm = Norm { scale: ParamId(0), shift, epsilon_mantissa: epsilon.0, epsilon_shift: epsilon.1 };
    NormArgs { scale, norm }
}

fn epsilon() -> impl Strategy<Value = (u32, i16)> {
    prop_oneof![
        1 => Just((0, 0)),
        4 => (1_u32 << 31..=u32::MAX, -40_i16..60),
        1 => (1_u32 << 31..=u32::MAX, any::<i16>()),
    ]
}

#[derive(Debug, Clone)]
struct Product {
    rows: usize,
    cols: usize,
    n: usize,
    x: Vec<i16>,
    exponents: Vec<i32>,
    w: Vec<i16>,
    mantissa: Vec<u16>,
    shift: Vec<i16>,
    bias: Option<Vec<i32>>,
}

fn product() -> impl Strategy<Value = Product> {
    let exponent = prop_oneof![6 => 0_i32..18, 2 => -40..40, 1 => any::<i32>()];
    (1_usize..40, 1_usize..70, 1_usize..50).prop_flat_map(move |(rows, cols, n)| {
        let params = (
            i16s(rows * cols),
            vec(exponent.clone(), rows),
            i16s(n * cols),
            vec(any::<u16>(), n),
            vec(shift(), n),
            proptest::option::of(i32s(n)),
        );
        params.prop_map(move |(x, exponents, w, mantissa, shift, bias)| Product {
            rows,
            cols,
            n,
            x,
            exponents,
            w,
            mantissa,
            shift,
            bias,
        })
    })
}

/// The product by one backend, to both kinds of output; with its counts of clamped elements.
fn run_product<K: HostOps>(kernels: &K, p: &Product, codes: ParamData<'_>) -> (Vec<i32>, Vec<i16>, [u64; 2]) {
    let w = Scaled { codes, mantissa: &p.mantissa, shift: &p.shift, cols: p.cols };
    let prepared = kernels.prepare(codes, p.cols);
    let x = BfpRows { codes: &p.x, exponents: &p.exponents };
    let (mut wide, mut narrow) = (vec![0; p.rows * p.n], vec![0; p.rows * p.n]);
    let clamped = [
        kernels.matmul(x, w, &prepared, p.bias.as_deref(), MatMulOut::I32(&mut wide)),
        kernels.matmul(x, w, &prepared, p.bias.as_deref(), MatMulOut::I16(&mut narrow)),
    ];
    (wide, narrow, clamped)
}

fn check_product(p: &Product) -> Result<(), TestCaseError> {
    let bytes: Vec<i8> = p.w.iter().map(|w| *w as i8).collect();
    for codes in [ParamData::I8(&bytes), ParamData::I16(&p.w)] {
        let expected = run_product(&Reference, p, codes);
        for (name, kernels) in backends() {
            prop_assert_eq!(&run_product(&kernels, p, codes), &expected, "{}", name);
        }
    }
    Ok(())
}

/// Longest reductions, all operands at their extremes: nothing may wrap on the way.
#[test]
fn products_at_the_limit_of_the_reduction() {
    for cols in [16_384, 16_383, 257, 256, 255] {
        for x in [i16::MIN, -32_639, 32_639, i16::MAX] {
            for w in [i16::MIN, -32_639, -128, 127, 32_639, 32_640, i16::MAX] {
                let (rows, n) = (3, 17);
                let p = Product {
                    rows,
                    cols,
                    n,
                    x: vec![x; rows * cols],
                    exponents: vec![0, 9, -3],
                    w: vec![w; n * cols],
                    mantissa: vec![u16::MAX; n],
                    shift: (0..n as i16).map(|n| n * 3).collect(),
                    bias: None,
                };
                check_product(&p).expect("equal");
            }
        }
    }
}

type Attention = (Heads, Vec<usize>, Vec<i16>, Vec<i16>, Vec<i16>);

fn attention() -> impl Strategy<Value = Attention> {
    let shape = (1_u16..4, 1_u16..3, 1_u16..40, any::<bool>(), vec(1_usize..40, 1..4));
    shape.prop_flat_map(|(kv_heads, group, head_dim, causal, lengths)| {
        let heads = kv_heads * group;
        let (n, rows) = (usize::from(heads), lengths.iter().sum::<usize>());
        let (q, kv) = (rows * n * usize::from(head_dim), rows * usize::from(kv_heads * head_dim));
        (vec(0_u8..63, n), vec(0_u8..32, n), i16s(q), i16s(kv), i16s(kv)).prop_map(
            move |(score_shift, value_shift, q, k, v)| {
                let heads = Heads { heads, kv_heads, head_dim, causal, score_shift, value_shift };
                (heads, lengths.clone(), q, k, v)
            },
        )
    })
}

fn check_attention((heads, lengths, q, k, v): &Attention) -> Result<(), TestCaseError> {
    let spans = spans(lengths);
    let sequences: Vec<_> = spans.iter().map(|span| AttentionRows::whole(span.clone(), k, v, heads)).collect();
    let args = AttentionArgs { q, heads, sequences: &sequences };
    let mut expected = vec![0; q.len()];
    let clamped = Reference.attention(args, &mut expected);
    for (name, kernels) in backends() {
        let mut got = vec![0; q.len()];
        prop_assert_eq!(kernels.attention(args, &mut got), clamped, "{}", name);
        prop_assert_eq!(&got, &expected, "{}", name);
    }
    Ok(())
}

/// More than one softmax block, with scores so far apart that a distance needs all 32 bits.
#[test]
fn attention_over_blocks_at_the_extremes() {
    for causal in [false, true] {
        let (rows, dim) = (600, 5);
        let pick = |i: usize| [i16::MIN, i16::MAX, -32_639, 32_639, 0, 1][i * 7 % 11 % 6];
        let q: Vec<i16> = (0..rows * dim).map(|i| pick(i / dim)).collect();
        let k: Vec<i16> = (0..rows * dim).map(|i| pick(i / dim + i / dim / 256)).collect();
        let v: Vec<i16> = (0..rows * dim).map(pick).collect();
        for score_shift in [0, 2, 8, 13] {
            let (score_shift, value_shift) = (vec![score_shift], vec![0]);
            let heads = Heads { heads: 1, kv_heads: 1, head_dim: dim as u16, causal, score_shift, value_shift };
            check_attention(&(heads, vec![rows], q.clone(), k.clone(), v.clone())).expect("equal");
        }
    }
}

/// The sum of eight rows, each as far to the left as a rescaled element goes, leaves 64 bits.
#[test]
fn embedding_tables_that_overflow_together() {
    for (code, expected) in [(i16::MAX, i32::MAX), (i16::MIN, i32::MIN)] {
        let (codes, mantissa, shift) = ([code; 3], [u16::MAX], [i16::MIN]);
        let table = Scaled { codes: ParamData::I16(&codes), mantissa: &mantissa, shift: &shift, cols: 3 };
        let index = vec![vec![0]; 8];
        let mut out = [0; 3];
        assert_eq!(Reference.embed(&[table; 8], &index, &mut out), 3);
        assert_eq!(out, [expected; 3]);
        for (name, kernels) in backends() {
            let mut got = [0; 3];
            assert_eq!(kernels.embed(&[table; 8], &index, &mut got), 3, "{name}");
            assert_eq!(got, out, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn matmul(p in product()) {
        check_product(&p)?;
    }

    #[test]
    fn attention_heads(a in attention()) {
        check_attention(&a)?;
    }

    #[test]
    fn add((a, b) in (1_usize..20_000).prop_flat_map(|n| (i32s(n), i32s(n)))) {
        let mut expected = vec![0; a.len()];
        let clamped = Reference.add(&a, &b, &mut expected);
        for (name, kernels) in backends() {
            let mut got = vec![0; a.len()];
            prop_assert_eq!(kernels.add(&a, &b, &mut got), clamped, "{}", name);
            prop_assert_eq!(&got, &expected, "{}", name);
        }
    }

    #[test]
    fn quantize((cols, x) in (1_usize..300, 1_usize..80).prop_flat_map(|(c, r)| (Just(c), i32s(c * r)))) {
        let run = |kernels: &dyn Fn(&mut [i16], &mut [i32])| {
            let (mut codes, mut exponents) = (vec![0; x.len()], vec![0; x.len() / cols]);
            kernels(&mut codes, &mut exponents);
            (codes, exponents)
        };
        let expected = run(&|c, e| Reference.quantize(&x, cols, c, e));
        for (name, kernels) in backends() {
            prop_assert_eq!(&run(&|c, e| kernels.quantize(&x, cols, c, e)), &expected, "{}", name);
        }
    }

    #[test]
    fn norms(
        (cols, x, scale, bias) in (1_usize..300, 1_usize..70)
            .prop_flat_map(|(c, r)| (Just(c), i32s(c * r), i32s(c), i32s(c))),
        shift in 1_u8..=62,
        epsilon in epsilon(),
    ) {
        let args = norm_args(&scale, shift, epsilon);
        let mut expected = [vec![0; x.len()], vec![0; x.len()], vec![0; x.len()]];
        let clamped = [
            Reference.layer_norm(&x, args, &bias, &mut expected[0]),
            Reference.rms_norm(&x, args, &mut expected[1]),
        ];
        Reference.l2_normalize(&x, cols, &mut expected[2]);
        for (name, kernels) in backends() {
            let mut got = [vec![0; x.len()], vec![0; x.len()], vec![0; x.len()]];
            prop_assert_eq!(kernels.layer_norm(&x, args, &bias, &mut got[0]), clamped[0], "{}", name);
            prop_assert_eq!(kernels.rms_norm(&x, args, &mut got[1]), clamped[1], "{}", name);
            kernels.l2_normalize(&x, cols, &mut got[2]);
            prop_assert_eq!(&got, &expected, "{}", name);
        }
    }

    #[test]
    fn activations(x in (1_usize..20_000).prop_flat_map(i32s), frac in 0_u32..32) {
        let mut expected = [vec![0; x.len()], vec![0; x.len()]];
        Reference.gelu(&x, frac, &mut expected[0]);
        Reference.silu(&x, frac, &mut expected[1]);
        for (name, kernels) in backends() {
            let mut got = [vec![0; x.len()], vec![0; x.len()]];
            kernels.gelu(&x, frac, &mut got[0]);
            kernels.silu(&x, frac, &mut got[1]);
            prop_assert_eq!(&got, &expected, "{} frac {}", name, frac);
        }
    }

    #[test]
    fn pools((cols, lengths, x) in (1_usize..200, vec(1_usize..40, 1..5)).prop_flat_map(|(c, l)| {
        let len = c * l.iter().sum::<usize>();
        (Just(c), Just(l), i32s(len))
    })) {
        let spans = spans(&lengths);
        let mut expected = [vec![0; spans.len() * cols], vec![0; spans.len() * cols]];
        Reference.mean_pool(&x, cols, &spans, &mut expected[0]);
        Reference.first_pool(&x, cols, &spans, &mut expected[1]);
        for (name, kernels) in backends() {
            let mut got = [vec![0; spans.len() * cols], vec![0; spans.len() * cols]];
            kernels.mean_pool(&x, cols, &spans, &mut got[0]);
            kernels.first_pool(&x, cols, &spans, &mut got[1]);
            prop_assert_eq!(&got, &expected, "{}", name);
        }
    }

    #[test]
    fn embed(
        (cols, rows, codes, mantissa, shift) in (1_usize..80, 1_usize..20).prop_flat_map(|(c, r)| {
            (Just(c), Just(r), vec(i16s(c * r), 3), vec(vec(any::<u16>(), r), 3), vec(vec(shift(), r), 3))
        }),
        index in vec(0_u32..25, 1..60),
    ) {
        let tables: Vec<_> = (0..3).map(|i| {
            Scaled { codes: ParamData::I16(&codes[i]), mantissa: &mantissa[i], shift: &shift[i], cols }
        }).collect();
        let turned = |by: u32| index.iter().map(|i| (i + by) % (rows as u32 + 3)).collect::<Vec<_>>();
        let indices = [turned(0), turned(1), turned(7)];
        let mut expected = vec![0; index.len() * cols];
        let clamped = Reference.embed(&tables, &indices, &mut expected);
        for (name, kernels) in backends() {
            let mut got = vec![0; expected.len()];
            prop_assert_eq!(kernels.embed(&tables, &indices, &mut got), clamped, "{}", name);
            prop_assert_eq!(&got, &expected, "{}", name);
        }
    }
}
