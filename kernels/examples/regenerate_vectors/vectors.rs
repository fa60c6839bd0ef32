//! Golden vectors of each op: small inputs and parameters, and what a set of kernels makes of them.

#[path = "decoder_vectors.rs"]
mod decoder_vectors;
#[path = "sample_vectors.rs"]
mod sample_vectors;

use std::ops::Range;

use lockstep_kernels::conformance::{Pattern, SplitMix};
use lockstep_kernels::host::{AttentionArgs, AttentionRows, BfpRows, HostOps, MatMulOut, NormArgs, Scaled};
use lockstep_kernels::program::{Heads, Norm, ParamId};
use lockstep_kernels::value::ParamData;

/// A JSON object on one line for each field, in the order of writing.
#[derive(Default)]
pub struct Object(Vec<String>);

impl Object {
    /// Adds a field whose value is JSON already.
    pub fn raw(mut self, name: &str, value: impl ToString) -> Self {
        self.0.push(format!("\"{name}\": {}", value.to_string()));
        self
    }

    /// Adds a string.
    pub fn text(self, name: &str, value: &str) -> Self {
        self.raw(name, format!("\"{value}\""))
    }

    /// Adds a list of numbers.
    pub fn list<T: ToString>(self, name: &str, values: &[T]) -> Self {
        self.raw(name, list(values))
    }

    /// Adds a list of rows, each on its own line unless they are very short.
    pub fn rows<T: ToString>(self, name: &str, values: &[T], cols: usize) -> Self {
        let rows: Vec<_> = values.chunks(cols).map(list).collect();
        self.raw(name, format!("[{}]", rows.join(if cols > 4 { ",\n      " } else { "," })))
    }

    fn render(&self) -> String {
        format!("    {{\n      {}\n    }}", self.0.join(",\n      "))
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    format!("[{}]", values.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

/// A whole file.
pub fn render(name: &str, clause: &str, cases: &[Object]) -> String {
    let cases: Vec<_> = cases.iter().map(Object::render).collect();
    let cases = cases.join(",\n");
    format!("{{\n  \"name\": \"{name}\",\n  \"spec\": \"{clause}\",\n  \"cases\": [\n{cases}\n  ]\n}}\n")
}

/// The vectors of one op, as the kernels compute them.
pub fn file<K: HostOps>(op: &str, kernels: &K) -> String {
    let clause = 1 + lockstep_kernels::program::OP_NAMES.iter().position(|o| *o == op).expect("an op's name");
    let cases = match op {
        "embed" => embed(kernels),
        "quantize" => quantize(kernels),
        "matmul" => matmul(kernels),
        "add" => add(kernels),
        "layer_norm" | "rms_norm" => norm(op, kernels),
        "attention" => attention(kernels),
        "gelu" | "silu" => activation(op, kernels),
        "mean_pool" | "first_pool" => pool(op, kernels),
        "l2_normalize" => l2_normalize(kernels),
        "rope" => decoder_vectors::rope(kernels),
        "multiply" => decoder_vectors::multiply(kernels),
        "shift" => decoder_vectors::shift(kernels),
        "gather" => decoder_vectors::gather(kernels),
        "sample" => sample_vectors::sample(kernels),
        _ => panic!("no vectors for {op}"),
    };
    render(op, &format!("5.{clause}"), &cases)
}

fn shapes() -> [(usize, usize); 5] {
    [(1, 1), (2, 3), (3, 8), (2, 17), (1, 65)]
}

/// Every pattern at every small shape.
fn inputs(op: &str) -> Vec<(String, usize, Vec<i32>, SplitMix)> {
    let mut inputs = Vec::new();
    for (rows, cols) in shapes() {
        for pattern in Pattern::ALL {
            let name = format!("{rows}x{cols} {}", pattern.name());
            let mut rng = SplitMix::named(&format!("vectors {op} {name}"));
            let x = pattern.i32s(&mut rng, rows, cols);
            inputs.push((name, cols, x, rng));
        }
    }
    inputs
}

fn mantissas(rng: &mut SplitMix, n: usize) -> Vec<u16> {
    (0..n).map(|_| rng.range(1 << 15, (1 << 16) - 1) as u16).collect()
}

fn shifts(rng: &mut SplitMix, n: usize, low: i64, high: i64) -> Vec<i16> {
    (0..n).map(|_| rng.range(low, high) as i16).collect()
}

fn codes16(pattern: Pattern, rng: &mut SplitMix, rows: usize, cols: usize) -> Vec<i16> {
    pattern.fill(rng, rows, cols, -32_768, 32_767).into_iter().map(|v| v as i16).collect()
}

fn embed<K: HostOps>(k: &K) -> Vec<Object> {
    let mut cases = Vec::new();
    for (low, high) in [(0, 20), (16, 40), (60, 70), (-30, 5)] {
        for (rows, cols) in [(3, 1), (4, 7), (2, 33)] {
            let name = format!("{rows}x{cols}, shifts {low} to {high}");
            let mut rng = SplitMix::named(&format!("vectors embed {name}"));
            let (codes, table_rows) = (codes16(Pattern::Full, &mut rng, 2 * 5, cols), 5);
            let (mantissa, shift) = (mantissas(&mut rng, 10), shifts(&mut rng, 10, low, high));
            let index: Vec<Vec<u32>> = (0..2).map(|_| (0..rows).map(|_| rng.range(0, 4) as u32).collect()).collect();
            let table = |i: usize| Scaled {
                codes: ParamData::I16(&codes[i * table_rows * cols..(i + 1) * table_rows * cols]),
                mantissa: &mantissa[i * table_rows..(i + 1) * table_rows],
                shift: &shift[i * table_rows..(i + 1) * table_rows],
                cols,
            };
            let mut out = vec![0; rows * cols];
            let saturations = k.embed(&[table(0), table(1)], &index, &mut out);
            let mut case = Object::default().text("case", &name);
            for (i, index) in index.iter().enumerate() {
                let t = table(i);
                let codes = t.codes.as_i16().expect("just made");
                case = case
                    .rows(&format!("table_{i}_codes"), codes, cols)
                    .list(&format!("table_{i}_mantissa"), t.mantissa)
                    .list(&format!("table_{i}_shift"), t.shift)
                    .list(&format!("table_{i}_index"), index);
            }
            cases.push(case.rows("out", &out, cols).raw("saturations", saturations));
        }
    }
    cases
}

fn quantize<K: HostOps>(k: &K) -> Vec<Object> {
    let case = |(name, cols, x, _): (String, usize, Vec<i32>, SplitMix)| {
        let (mut codes, mut exponents) = (vec![0; x.len()], vec![0; x.len() / cols]);
        k.quantize(&x, cols, &mut codes, &mut exponents);
        let case = Object::default().text("case", &name).rows("input", &x, cols);
        case.rows("codes", &codes, cols).list("exponents", &exponents)
    };
    inputs("quantize").into_iter().map(case).collect()
}

fn matmul<K: HostOps>(k: &K) -> Vec<Object> {
    let mut cases = Vec::new();
    for (rows, n, cols) in [(1, 1, 1), (2, 3, 5), (3, 17, 16), (2, 4, 65)] {
        for pattern in [Pattern::Mixed, Pattern::Full, Pattern::Lowest, Pattern::Highest] {
            for wide in [false, true] {
                let weights = if wide { "w16" } else { "w8" };
                let name = format!("{rows}x{cols} to {n}, {weights}, {}", pattern.name());
                let mut rng = SplitMix::named(&format!("vectors matmul {name}"));
                let x = codes16(pattern, &mut rng, rows, cols);
                let exponents: Vec<i32> = (0..rows).map(|_| rng.range(0, 16) as i32).collect();
                let w16 = codes16(pattern, &mut rng, n, cols);
                let w8: Vec<i8> = w16.iter().map(|w| (w >> 8) as i8).collect();
                let (mantissa, shift) = (mantissas(&mut rng, n), shifts(&mut rng, n, -4, 56));
                let bias = Pattern::Mixed.i32s(&mut rng, 1, n);
                let codes = if wide { ParamData::I16(&w16) } else { ParamData::I8(&w8) };
                let w = Scaled { codes, mantissa: &mantissa, shift: &shift, cols };
                let (prepared, bfp) = (k.prepare(codes, cols), BfpRows { codes: &x, exponents: &exponents });
                let (mut y32, mut y16) = (vec![0; rows * n], vec![0; rows * n]);
                let clamped = k.matmul(bfp, w, &prepared, Some(&bias), MatMulOut::I32(&mut y32));
                let clamped_codes = k.matmul(bfp, w, &prepared, Some(&bias), MatMulOut::I16(&mut y16));
                let case = Object::default().text("case", &name).rows("codes", &x, cols);
                let case = case.list("exponents", &exponents);
                let case = if wide { case.rows("weight", &w16, cols) } else { case.rows("weight", &w8, cols) };
                let case = case.list("mantissa", &mantissa).list("shift", &shift).list("bias", &bias);
                let case = case.rows("out_i32", &y32, n).raw("saturations_i32", clamped);
                cases.push(case.rows("out_i16", &y16, n).raw("saturations_i16", clamped_codes));
            }
        }
    }
    cases
}

fn add<K: HostOps>(k: &K) -> Vec<Object> {
    let case = |(name, cols, a, mut rng): (String, usize, Vec<i32>, SplitMix)| {
        let b = Pattern::Mixed.i32s(&mut rng, 1, a.len());
        let mut out = vec![0; a.len()];
        let saturations = k.add(&a, &b, &mut out);
        let case = Object::default().text("case", &name).rows("a", &a, cols).rows("b", &b, cols);
        case.rows("out", &out, cols).raw("saturations", saturations)
    };
    inputs("add").into_iter().map(case).collect()
}

fn norm<K: HostOps>(op: &str, k: &K) -> Vec<Object> {
    let case = |(i, (name, cols, x, mut rng)): (usize, (String, usize, Vec<i32>, SplitMix))| {
        // Only RMSNorm knows parts of a row.
        let groups = if op == "rms_norm" && i % 3 == 1 { [1, 3, 2, 17, 5][i / 8] } else { 1 };
        let scale = Pattern::Mixed.i32s(&mut rng, 1, cols / groups);
        let bias = Pattern::Mixed.i32s(&mut rng, 1, cols);
        let shift = [30, 1, 62, 40, 24][i % 5];
        let epsilon_mantissa = if i % 4 == 0 { 0 } else { 1 << 31 | rng.next_u64() as u32 };
        let epsilon_shift = [31, -40, 60, 0, 20, 1_000][i % 6];
        let args = NormArgs { scale: &scale, norm: Norm { scale: ParamId(0), shift, epsilon_mantissa, epsilon_shift } };
        let mut out = vec![0; x.len()];
        let case = Object::default().text("case", &name).rows("input", &x, cols).list("scale", &scale);
        let case = case.raw("shift", shift).raw("epsilon_mantissa", epsilon_mantissa);
        let case = case.raw("epsilon_shift", epsilon_shift);
        let (case, saturations) = if op == "layer_norm" {
            (case.list("bias", &bias), k.layer_norm(&x, args, &bias, &mut out))
        } else {
            (case.raw("groups", groups), k.rms_norm(&x, args, &mut out))
        };
        case.rows("out", &out, cols).raw("saturations", saturations)
    };
    inputs(op).into_iter().enumerate().map(case).collect()
}

fn spans(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let span = |len: &usize| {
        start += len;
        start - len..start
    };
    lengths.iter().map(span).collect()
}

fn attention<K: HostOps>(k: &K) -> Vec<Object> {
    let shapes: [(u16, u16, u16, &[usize]); 5] =
        [(1, 1, 1, &[1]), (2, 1, 3, &[4, 1]), (2, 2, 4, &[9]), (4, 2, 5, &[3, 6]), (1, 1, 1, &[300])];
    let mut cases = Vec::new();
    for (heads, kv_heads, head_dim, lengths) in shapes {
        for pattern in [Pattern::Mixed, Pattern::Full, Pattern::Lowest, Pattern::Small] {
            for causal in [false, true] {
                let masked = if causal { ", causal" } else { "" };
                let name =
                    format!("{heads}/{kv_heads} heads of {head_dim} over {lengths:?}, {}{masked}", pattern.name());
                let mut rng = SplitMix::named(&format!("vectors attention {name}"));
                let rows = lengths.iter().sum();
                let (q_cols, kv_cols) = (usize::from(heads * head_dim), usize::from(kv_heads * head_dim));
                let q = codes16(pattern, &mut rng, rows, q_cols);
                let keys = codes16(pattern, &mut rng, rows, kv_cols);
                let v = codes16(Pattern::Mixed, &mut rng, rows, kv_cols);
                let score_shift = (0..heads).map(|_| [0, 6, 9, 62][rng.range(0, 3) as usize]).collect();
                let value_shift = (0..heads).map(|_| rng.range(0, 4) as u8).collect();
                let shape = Heads { heads, kv_heads, head_dim, causal, score_shift, value_shift };
                let spans = spans(lengths);
                let mut out = vec![0; q.len()];
                let whole = |span: &Range<usize>| AttentionRows::whole(span.clone(), &keys, &v, &shape);
                let sequences: Vec<_> = spans.iter().map(whole).collect();
                let args = AttentionArgs { q: &q, heads: &shape, sequences: &sequences };
                let saturations = k.attention(args, &mut out);
                let case = Object::default().text("case", &name).raw("heads", heads).raw("kv_heads", kv_heads);
                let case = case.raw("head_dim", head_dim).raw("causal", causal).list("lengths", lengths);
                let case = case.list("score_shift", &shape.score_shift).list("value_shift", &shape.value_shift);
                let case = case.rows("q", &q, q_cols).rows("k", &keys, kv_cols).rows("v", &v, kv_cols);
                cases.push(case.rows("out", &out, q_cols).raw("saturations", saturations));
            }
        }
    }
    cases
}

fn activation<K: HostOps>(op: &str, k: &K) -> Vec<Object> {
    let case = |frac: u32| {
        let mut rng = SplitMix::named(&format!("vectors {op} {frac}"));
        let mut x = vec![0, 1, -1, i32::MAX, i32::MIN, i32::MIN + 1];
        x.extend(Pattern::Full.i32s(&mut rng, 1, 40));
        // Around zero, around one step of the table, and around its end.
        for middle in [0_i64, 1 << frac >> 6, 1 << frac >> 7, 1 << frac, 8 << frac, 16 << frac] {
            for near in [-2, -1, 0, 1, 2, rng.range(-1_000, 1_000)] {
                x.extend(i32::try_from(middle + near).ok().into_iter().flat_map(|x| [x, x.wrapping_neg()]));
            }
        }
        let mut out = vec![0; x.len()];
        if op == "gelu" {
            k.gelu(&x, frac, &mut out)
        } else {
            k.silu(&x, frac, &mut out)
        }
        let case = Object::default().text("case", &format!("{frac} fractional bits")).raw("frac", frac);
        case.list("input", &x).list("out", &out)
    };
    (0..32).map(case).collect()
}

fn pool<K: HostOps>(op: &str, k: &K) -> Vec<Object> {
    let mut cases = Vec::new();
    for lengths in [&[1][..], &[2, 1], &[3, 5, 2]] {
        for cols in [1, 6, 17] {
            for pattern in Pattern::ALL {
                let name = format!("{lengths:?}x{cols} {}", pattern.name());
                let mut rng = SplitMix::named(&format!("vectors {op} {name}"));
                let x = pattern.i32s(&mut rng, lengths.iter().sum(), cols);
                let spans = spans(lengths);
                let mut out = vec![0; spans.len() * cols];
                if op == "mean_pool" {
                    k.mean_pool(&x, cols, &spans, &mut out);
                } else {
                    k.first_pool(&x, cols, &spans, &mut out);
                }
                let case = Object::default().text("case", &name).list("lengths", lengths).rows("input", &x, cols);
                cases.push(case.rows("out", &out, cols));
            }
        }
    }
    cases
}

fn l2_normalize<K: HostOps>(k: &K) -> Vec<Object> {
    let case = |(name, cols, x, _): (String, usize, Vec<i32>, SplitMix)| {
        let mut out = vec![0; x.len()];
        k.l2_normalize(&x, cols, &mut out);
        Object::default().text("case", &name).rows("input", &x, cols).rows("out", &out, cols)
    };
    inputs("l2_normalize").into_iter().map(case).collect()
}
