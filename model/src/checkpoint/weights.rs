//! `model.safetensors`, or the shards that its index names, memory-mapped: a list of named tensors, read as `f32` and
//! checked to be finite.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lockstep_protocol::limits::{
    MAX_SAFETENSORS_HEADER_BYTES, MAX_SAFETENSORS_SHARDS, MAX_SAFETENSORS_TENSORS, MAX_SOURCE_NAME_BYTES,
};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::Folder;
use crate::error::ModelError;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where the tensors of a checkpoint come from.
pub(crate) trait TensorSource: std::fmt::Debug + Send + Sync {
    /// Names of all tensors, ascending.
    fn names(&self) -> Vec<&str>;

    /// A tensor's shape, rows first.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// A tensor's elements, row-major; finite or not.
    ///
    /// # Errors
    /// When it is missing or in a type that is not read.
    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError>;
}

/// The tensors of a checkpoint.
#[derive(Debug)]
pub struct Weights(Box<dyn TensorSource>);

/// Mapped safetensors files.
#[derive(Debug, Default)]
struct Safetensors {
    /// One for each file.
    maps: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Which file.
    map: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Of the file.
    bytes: Range<usize>,
}

/// Which file holds each tensor. What else the index says is not needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(folder: &mut Folder<'_>) -> Result<Weights, ModelError> {
    open_files(folder).map(|files| Weights(Box::new(files)))
}

fn open_files(folder: &mut Folder<'_>) -> Result<Safetensors, ModelError> {
    let mut weights = Safetensors::default();
    if folder.has(FILE)? || !folder.has(INDEX)? {
        weights.add(folder, FILE)?;
        return Ok(weights);
    }
    let index: Index = folder.json(INDEX)?;
    let bad = |reason: String| ModelError::checkpoint(&folder.path(INDEX), reason);
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    if files.len() > MAX_SAFETENSORS_SHARDS || index.weight_map.len() > MAX_SAFETENSORS_TENSORS {
        return Err(bad(format!("names {} files and {} tensors: too many", files.len(), index.weight_map.len())));
    }
    if let Some(name) = files.iter().find(|name| !is_plain(name)) {
        return Err(bad(format!(
            "names the file {name:?}: shards lie beside it, as in model-00001-of-00002.safetensors"
        )));
    }
    for file in &files {
        weights.add(folder, file)?;
    }
    let files: Vec<&String> = files.into_iter().collect();
    let bad = |reason: String| ModelError::checkpoint(&folder.path(INDEX), reason);
    for (name, entry) in &weights.tensors {
        if index.weight_map.get(name) != Some(files[entry.map]) {
            return Err(bad(format!("does not say that tensor {name:?} is in {}", files[entry.map])));
        }
    }
    match index.weight_map.iter().find(|(name, _)| !weights.tensors.contains_key(*name)) {
        Some((name, file)) => Err(bad(format!("says that tensor {name:?} is in {file}, where it is not"))),
        None => Ok(weights),
    }
}

/// A file name without any path.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.ends_with(".safetensors")
        && name.len() <= MAX_SOURCE_NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(plain)
}

/// Maps a file and remembers it as a source.
pub(super) fn map(folder: &mut Folder<'_>, name: &str) -> Result<Mmap, ModelError> {
    let path = folder.path(name);
    let (file, length) = folder.open(name)?;
    if length < 8 {
        return Err(ModelError::checkpoint(&path, "is shorter than a header"));
    }
    // SAFETY: the mapping is read-only and private to this value. Another process that shortens the file meanwhile
    // can end this one by a bus error; that a checkpoint lies still during import is the operator's part.
    let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", &path))?;
    folder.remember(name, &map);
    Ok(map)
}

/// The format's own rules (header inside the file, tensors side by side without gap or overlap, shapes that fit
/// their bytes) are the safetensors crate's; the caps are ours.
fn parse(map: &[u8], number: usize) -> Result<BTreeMap<String, Entry>, String> {
    let header = map.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or("is shorter than a header")?;
    if header > MAX_SAFETENSORS_HEADER_BYTES {
        return Err(format!("its header claims {header} bytes; at most {MAX_SAFETENSORS_HEADER_BYTES} are read"));
    }
    let file = SafeTensors::deserialize(map).map_err(|e| format!("is not a sound safetensors file: {e}"))?;
    if file.len() > MAX_SAFETENSORS_TENSORS {
        return Err(format!("has {} tensors; at most {MAX_SAFETENSORS_TENSORS} are read", file.len()));
    }
    let base = map.as_ptr() as usize;
    let entry = |view: safetensors::tensor::TensorView<'_>| {
        let start = view.data().as_ptr() as usize - base;
        Entry {
            map: number,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: start..start + view.data().len(),
        }
    };
    Ok(file.iter().map(|(name, view)| (name.to_string(), entry(view))).collect())
}

impl Safetensors {
    /// Adds the tensors of a file; a name that is there already is an error.
    fn add(&mut self, folder: &mut Folder<'_>, file: &str) -> Result<(), ModelError> {
        let map = map(folder, file)?;
        let tensors = parse(&map, self.maps.len()).map_err(|e| ModelError::checkpoint(&folder.path(file), e))?;
        if let Some(name) = tensors.keys().find(|name| self.tensors.contains_key(*name)) {
            return Err(ModelError::tensor(name, "is in two files"));
        }
        self.tensors.extend(tensors);
        self.maps.push(map);
        Ok(())
    }
}

impl TensorSource for Safetensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let entry = self.tensors.get(name).ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        let bytes = &self.maps[entry.map][entry.bytes.clone()];
        Ok(match entry.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16_to_f32(u16::from_le_bytes([b[0], b[1]]))).collect(),
            Dtype::BF16 => bytes
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            other => return Err(ModelError::tensor(name, format!("is {other:?}; F32, F16 and BF16 are read"))),
        })
    }
}

impl Weights {
    /// Tensors from somewhere else.
    pub(crate) fn new(source: Box<dyn TensorSource>) -> Self {
        Self(source)
    }

    /// Names of all tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names().into_iter()
    }

    /// A tensor's elements, row-major.
    ///
    /// # Errors
    /// When it is missing, has another shape or type, or holds a NaN or an infinity: the element is named.
    pub fn read(&self, name: &str, shape: &[u32]) -> Result<Vec<f32>, ModelError> {
        let found = self.0.shape(name).ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        if !found.iter().map(|n| *n as u64).eq(shape.iter().map(|n| u64::from(*n))) {
            let reason = format!("has shape {found:?}; the configuration asks for {shape:?}");
            return Err(ModelError::tensor(name, reason));
        }
        let values = self.0.values(name)?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let cols = shape.last().map_or(1, |n| *n as usize);
                let reason = format!("element [{}, {}] is {}", at / cols, at % cols, values[at]);
                Err(ModelError::tensor(name, reason))
            }
        }
    }
}

/// IEEE half precision, exactly.
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(h >> 15) << 31, u32::from(h >> 10 & 31), u32::from(h & 1023));
    match exponent {
        // Subnormal halves are multiples of 2^-24, which are normal floats.
        0 => f32::from_bits(sign | (fraction as f32 / 16_777_216.0).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(f16_to_f32(bits), value);
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
