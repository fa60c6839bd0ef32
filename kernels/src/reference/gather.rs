//! The rows at the points of a pass (SPEC 5.16).

/// `out[p,i] = input[rows[p],i]`.
pub fn gather(input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
    for (row, y) in rows.iter().zip(out.chunks_exact_mut(cols)) {
        y.copy_from_slice(&input[row * cols..(row + 1) * cols]);
    }
}
