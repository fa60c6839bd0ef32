//! Golden vectors of the scalar functions and tables. Numbers of 64 bits are decimal strings, because not every JSON
//! reader keeps them whole.

use lockstep_kernels::conformance::SplitMix;
use lockstep_kernels::fixed;
use lockstep_kernels::tables::{GAUSS, SIGMOID, Table};

use crate::vectors::{Object, render};

/// The file.
pub fn file() -> String {
    let cases = [
        round_shift(),
        row_exponent(),
        rescale(),
        recip(),
        rsqrt(),
        exp2(),
        softmax_weight(),
        table("gauss", "4.1", &GAUSS),
        table("sigmoid", "4.2", &SIGMOID),
    ];
    render("fixed", "3 and 4", &cases)
}

/// A case whose rows are arguments followed by results.
fn function(name: &str, clause: &str, columns: &str, rows: &[Vec<String>]) -> Object {
    let rows: Vec<_> = rows.iter().map(|row| format!("[{}]", row.join(","))).collect();
    let case = Object::default().text("function", name).text("spec", clause).text("columns", columns);
    case.raw("rows", format!("[{}]", rows.join(",\n      ")))
}

fn quoted(v: impl ToString) -> String {
    format!("\"{}\"", v.to_string())
}

/// Numbers of every length, and their neighbours.
fn wide(name: &str, limit_bits: u32) -> Vec<u64> {
    let mut rng = SplitMix::named(&format!("vectors fixed {name}"));
    let edges = (0..limit_bits).flat_map(|b| [(1_u64 << b) - 1, 1 << b, (1 << b) + 1]);
    let random = (0..64).map(|_| rng.next_u64() >> (64 - limit_bits) >> rng.range(0, i64::from(limit_bits) - 1));
    let mut values: Vec<u64> = edges.chain(random).collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn round_shift() -> Object {
    let mut rng = SplitMix::named("vectors fixed round_shift");
    let mut rows = Vec::new();
    for s in 0..=64 {
        for a in [-3, -1, 1, 5, rng.range(-1 << 62, 1 << 62), 1 << 62, -1 << 62] {
            rows.push(vec![quoted(a), s.to_string(), quoted(fixed::round_shift(a, s))]);
        }
    }
    function("round_shift", "3.1", "a, s, result", &rows)
}

fn row_exponent() -> Object {
    let around = (14..32).flat_map(|b| (-2_i64..=2).map(move |d| (1_i64 << b) + d));
    let limits = (0..17).flat_map(|e| (-2_i64..=2).map(move |d| (32_639 << e) + (1 << e >> 1) + d));
    let mut values: Vec<u32> = around.chain(limits).filter_map(|v| u32::try_from(v).ok()).collect();
    values.extend([0, 1, 2]);
    values.retain(|v| *v <= 1 << 31);
    values.sort_unstable();
    values.dedup();
    let row = |v: u32| vec![v.to_string(), fixed::row_exponent(v).to_string()];
    function("row_exponent", "3.3", "max, exponent", &values.into_iter().map(row).collect::<Vec<_>>())
}

fn rescale() -> Object {
    let mut rng = SplitMix::named("vectors fixed rescale");
    let mut rows = Vec::new();
    for s in -40_i64..=66 {
        for a in [1, -1, (1 << 43) - 1, -1 << 43, rng.range(-1 << 43, 1 << 43)] {
            let m = rng.range(1 << 15, (1 << 16) - 1) as u16;
            rows.push(vec![quoted(a), m.to_string(), s.to_string(), quoted(fixed::rescale(a, m, s))]);
        }
    }
    function("rescale", "3.2", "a, m, s, result", &rows)
}

fn recip() -> Object {
    let row = |v: u64| vec![quoted(v), fixed::recip(v).to_string()];
    function("recip", "3.4", "v, r", &wide("recip", 64).into_iter().map(row).collect::<Vec<_>>())
}

fn rsqrt() -> Object {
    let row = |v: u64| {
        let (r, p) = fixed::rsqrt(v);
        vec![quoted(v), r.to_string(), p.to_string()]
    };
    function("rsqrt", "3.5", "v, r, p", &wide("rsqrt", 64).into_iter().map(row).collect::<Vec<_>>())
}

fn exp2() -> Object {
    let fractions = wide("exp2", 20).into_iter().filter(|f| *f < 1 << 20);
    let row = |f: u64| vec![f.to_string(), fixed::exp2_neg_fraction(f as u32).to_string()];
    function("exp2_neg_fraction", "3.6", "f, result", &fractions.map(row).collect::<Vec<_>>())
}

fn softmax_weight() -> Object {
    let row = |d: u64| vec![quoted(d), fixed::softmax_weight(d).to_string()];
    let distances = wide("softmax", 33).into_iter();
    function("softmax_weight", "3.7", "d, weight", &distances.map(row).collect::<Vec<_>>())
}

/// Every entry of a table.
fn table(name: &str, clause: &str, table: &Table) -> Object {
    let case = Object::default().text("table", name).text("spec", clause);
    case.raw("steps_per_unit", 1 << table.steps_log2).rows("entries", &table.entries, 16)
}
