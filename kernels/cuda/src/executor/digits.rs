//! Codes as the kernels keep them: of each row first all high digits, signed, then all low ones, unsigned, both padded with
//! zeros. Codes of 8 bits are high digits alone.

/// Rows of `cols` codes as digits, each digit of a row padded to `stride`.
pub fn split(codes: &[i16], cols: usize, stride: usize) -> Vec<u8> {
    let mut digits = vec![0; codes.len() / cols * 2 * stride];
    for (row, codes) in digits.chunks_exact_mut(2 * stride).zip(codes.chunks_exact(cols)) {
        let (high, low) = row.split_at_mut(stride);
        for ((high, low), code) in high.iter_mut().zip(low).zip(codes) {
            [*high, *low] = code.to_be_bytes();
        }
    }
    digits
}

/// The codes again.
pub fn join(digits: &[u8], stride: usize, cols: usize) -> Vec<i16> {
    let of_row = |row: &[u8]| -> Vec<i16> {
        let (high, low) = row.split_at(stride);
        high.iter().zip(low).take(cols).map(|(high, low)| i16::from_be_bytes([*high, *low])).collect()
    };
    digits.chunks_exact(2 * stride).flat_map(of_row).collect()
}

/// Rows of `cols` bytes, each padded to `stride`.
pub fn pad(codes: &[i8], cols: usize, stride: usize) -> Vec<u8> {
    let mut padded = vec![0; codes.len() / cols * stride];
    for (row, codes) in padded.chunks_exact_mut(stride).zip(codes.chunks_exact(cols)) {
        for (to, code) in row.iter_mut().zip(codes) {
            *to = code.cast_unsigned();
        }
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_every_code() {
        let codes: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        let digits = split(&codes, 256, 320);
        assert_eq!(digits.len(), 2 * 256 * 320);
        for (row, codes) in digits.chunks_exact(640).zip(codes.chunks_exact(256)) {
            for (i, code) in codes.iter().enumerate() {
                assert_eq!(256 * i32::from(row[i] as i8) + i32::from(row[320 + i]), i32::from(*code));
            }
            assert!(row[256..320].iter().chain(&row[576..]).all(|digit| *digit == 0));
        }
        assert_eq!(join(&digits, 320, 256), codes);
    }

    #[test]
    fn bytes_are_padded() {
        assert_eq!(pad(&[1, -2, 3, -4], 2, 3), [1, 254, 0, 3, 252, 0]);
    }
}
