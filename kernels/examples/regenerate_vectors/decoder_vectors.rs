//! Golden vectors of the ops that only decoders have.

use lockstep_kernels::conformance::{Pattern, SplitMix};
use lockstep_kernels::host::{HostOps, RopeArgs};

use super::{Object, inputs};

/// Rotations of all of a head, of a part of it and of nothing.
pub fn rope<K: HostOps>(k: &K) -> Vec<Object> {
    let mut cases = Vec::new();
    for (heads, dim, rotary) in [(1, 2, 2), (2, 5, 4), (3, 8, 8), (1, 19, 16)] {
        for pattern in Pattern::ALL {
            for angles in [true, false] {
                let of_table = if angles { "angles" } else { "any table" };
                let name = format!("{rotary} of {heads} heads of {dim}, {}, {of_table}", pattern.name());
                let mut rng = SplitMix::named(&format!("vectors rope {name}"));
                let positions = [0, 3, 1];
                let x = pattern.i32s(&mut rng, positions.len(), heads * dim);
                let (low, high) = if angles { (-1 << 30, 1 << 30) } else { (i32::MIN.into(), i32::MAX.into()) };
                let table = Pattern::Mixed.fill(&mut rng, 4, rotary, low, high);
                let table: Vec<i32> = table.into_iter().map(|v| v as i32).collect();
                let shift: Vec<u8> = (0..heads).map(|h| [16, 0, 32, 5][(h + dim + usize::from(angles)) % 4]).collect();
                let mut out = vec![0; x.len()];
                let args = RopeArgs { table: &table, rotary_dim: rotary, head_dim: dim, shift: &shift };
                let saturations = k.rope(&x, args, &positions, &mut out);
                let case = Object::default().text("case", &name).raw("heads", heads).raw("head_dim", dim);
                let case = case.list("shift", &shift).rows("angles", &table, rotary).list("positions", &positions);
                let case = case.rows("input", &x, heads * dim).rows("out", &out, heads * dim);
                cases.push(case.raw("saturations", saturations));
            }
        }
    }
    cases
}

/// Products with another tensor.
pub fn multiply<K: HostOps>(k: &K) -> Vec<Object> {
    let case = |(i, (name, cols, a, mut rng)): (usize, (String, usize, Vec<i32>, SplitMix))| {
        let b = Pattern::Mixed.i32s(&mut rng, 1, a.len());
        let shift = [31, 0, 62, 16, 1][i % 5];
        let mut out = vec![0; a.len()];
        let saturations = k.multiply(&a, &b, shift, &mut out);
        let case = Object::default().text("case", &name).raw("shift", shift);
        case.rows("a", &a, cols).rows("b", &b, cols).rows("out", &out, cols).raw("saturations", saturations)
    };
    inputs("multiply").into_iter().enumerate().map(case).collect()
}

/// Every number of bits that may be dropped.
pub fn shift<K: HostOps>(k: &K) -> Vec<Object> {
    let case = |shift: u32| {
        let mut rng = SplitMix::named(&format!("vectors shift {shift}"));
        let mut x = vec![0, 1, -1, 2, -2, i32::MAX, i32::MIN, i32::MIN + 1];
        let half = (1_i64 << shift) >> 1;
        x.extend([half - 1, half, half + 1].into_iter().flat_map(|v| [v as i32, -v as i32]));
        x.extend(Pattern::Full.i32s(&mut rng, 1, 10));
        let mut out = vec![0; x.len()];
        k.shift(&x, shift, &mut out);
        Object::default().text("case", &format!("{shift} bits")).raw("shift", shift).list("input", &x).list("out", &out)
    };
    (0..32).map(case).collect()
}

/// Some rows, and all of them.
pub fn gather<K: HostOps>(k: &K) -> Vec<Object> {
    let mut cases = Vec::new();
    for rows in [&[4][..], &[0, 1, 2, 3, 4], &[2, 3, 4], &[1, 4]] {
        for cols in [1, 6, 17] {
            let name = format!("rows {rows:?} of 5x{cols}");
            let mut rng = SplitMix::named(&format!("vectors gather {name}"));
            let x = Pattern::Mixed.i32s(&mut rng, 5, cols);
            let mut out = vec![0; rows.len() * cols];
            k.gather(&x, cols, rows, &mut out);
            let case = Object::default().text("case", &name).list("rows", rows).rows("input", &x, cols);
            cases.push(case.rows("out", &out, cols));
        }
    }
    cases
}
