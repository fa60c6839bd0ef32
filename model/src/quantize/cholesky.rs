//! Cholesky factorisation in one pinned order.

/// Overwrites the lower triangle of the symmetric `a` (`[d, d]`, row-major) by `L` with `L * Lᵗ = a`; the rest is left.
///
/// Right-looking: for each column `k` in ascending order, divide it by the root of its pivot, then subtract its outer
/// product from what is right of it. So element `(i, j)` receives its subtractions in ascending `k`, one rounding for
/// each product and each difference. Returns false when a pivot is not positive.
pub fn factor(a: &mut [f64], d: usize) -> bool {
    let mut column = vec![0.0; d];
    for k in 0..d {
        let pivot = a[k * d + k];
        if pivot.is_nan() || pivot <= 0.0 {
            return false;
        }
        let root = pivot.sqrt();
        a[k * d + k] = root;
        for i in k + 1..d {
            a[i * d + k] /= root;
            column[i] = a[i * d + k];
        }
        for i in k + 1..d {
            let factor = column[i];
            for (x, c) in a[i * d + k + 1..=i * d + i].iter_mut().zip(&column[k + 1..=i]) {
                *x -= factor * c;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_multiplies_back() {
        let d = 7;
        let b: Vec<f64> = (0..d * d).map(|i| ((i * 37 % 19) as f64 - 9.0) / 4.0).collect();
        let product =
            |l: &dyn Fn(usize, usize) -> f64, i: usize, j: usize| (0..d).map(|k| l(i, k) * l(j, k)).sum::<f64>();
        let full = |i: usize, j: usize| b[i * d + j];
        let mut a = vec![0.0; d * d];
        for i in 0..d {
            for j in 0..d {
                a[i * d + j] = product(&full, i, j) + if i == j { 1.0 } else { 0.0 };
            }
        }
        let original = a.clone();
        assert!(factor(&mut a, d));
        let lower = |i: usize, k: usize| if k <= i { a[i * d + k] } else { 0.0 };
        for i in 0..d {
            for j in 0..d {
                assert!((product(&lower, i, j) - original[i * d + j]).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn indefinite_is_refused() {
        assert!(!factor(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!factor(&mut [f64::NAN], 1));
    }
}
