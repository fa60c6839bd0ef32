//! The tensors of a GGUF file under the names, shapes and row order of a Hugging Face checkpoint.

use std::collections::BTreeMap;

use memmap2::Mmap;

use super::kind::Kind;
use super::reader::Tensor;
use crate::checkpoint::{TensorSource, f16_to_f32};
use crate::error::ModelError;

/// A mapped file.
#[derive(Debug)]
pub(super) struct GgufTensors {
    pub map: Mmap,
    pub tensors: BTreeMap<String, Located>,
}

/// A tensor, and how its rows are ordered.
#[derive(Debug)]
pub(super) struct Located {
    pub tensor: Tensor,
    /// The number of heads whose halves llama.cpp has interleaved: it rotates neighbours, the original rotates elements
    /// half a head apart.
    pub interleaved: Option<usize>,
}

impl TensorSource for GgufTensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|located| located.tensor.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let located = self.tensors.get(name).ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        let Tensor { kind, shape, bytes } = &located.tensor;
        let values = decode(*kind, &self.map[bytes.clone()]);
        let Some(heads) = located.interleaved else { return Ok(values) };
        if heads == 0 || !shape[0].is_multiple_of(2 * heads) {
            return Err(ModelError::tensor(name, format!("has {} rows for {heads} heads", shape[0])));
        }
        let cols = values.len() / shape[0];
        Ok(apart(&values, cols, shape[0] / heads))
    }
}

/// The elements of whole blocks.
fn decode(kind: Kind, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match kind {
        Kind::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Kind::F16 => bytes.chunks_exact(2).map(|b| f16_to_f32(half(b))).collect(),
        Kind::BF16 => bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(half(b)) << 16)).collect(),
        // A half times a byte has at most 19 significant bits: the product is exact.
        Kind::Q8_0 => bytes
            .chunks_exact(34)
            .flat_map(|block| {
                let scale = f16_to_f32(half(block));
                block[2..].iter().map(move |code| scale * f32::from(*code as i8))
            })
            .collect(),
    }
}

/// Rows of each head with neighbours put half a head apart again.
fn apart(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(cols * head_dim) {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = 2 * pair + half;
                out.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_back_to_where_they_were() {
        // Two heads of four rows: the file has 0, 2, 1, 3 of each.
        let file = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| [row as f32, 0.5]).concat();
        let rows: Vec<f32> = apart(&file, 2, 4).chunks(2).map(|row| row[0]).collect();
        assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn blocks_of_eight_bits() {
        let mut block = 0x3800u16.to_le_bytes().to_vec();
        block.extend((-16i8..16).map(|code| code as u8));
        let expected: Vec<f32> = (-16..16).map(|code| code as f32 * 0.5).collect();
        assert_eq!(decode(Kind::Q8_0, &block), expected);
        assert_eq!(decode(Kind::BF16, &[0x80, 0x3f]), [1.0]);
        assert_eq!(decode(Kind::F16, &[0, 0x3c]), [1.0]);
        assert_eq!(decode(Kind::F32, &1.5f32.to_le_bytes()), [1.5]);
    }
}
