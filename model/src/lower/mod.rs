//! Configuration and weights to a program and its parameters. One file per family.

mod bert;
mod build;
mod formats;
mod llama;
mod matrix;
mod spill;

use std::sync::Arc;

use lockstep_kernels::program::{DType, ParamId, Program, TensorId};
use lockstep_kernels::value::{ParamData, Params};

pub use bert::lower_bert;
pub use llama::{Decoder, RESIDUAL_FRAC_CAP};
pub use matrix::RealMatrix;
pub use spill::{Spill, Spilled};

use crate::package::WeightMode;

/// Parameters in memory, as an import makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValues {
    /// 8-bit codes.
    I8(Vec<i8>),
    /// 16-bit codes or shifts.
    I16(Vec<i16>),
    /// Row mantissas.
    U16(Vec<u16>),
    /// Biases and norm vectors.
    I32(Vec<i32>),
    /// Any of these, in a file.
    Spilled(Spilled),
}

impl ParamValues {
    /// The elements, borrowed.
    pub fn data(&self) -> ParamData<'_> {
        match self {
            Self::I8(v) => ParamData::I8(v),
            Self::I16(v) => ParamData::I16(v),
            Self::U16(v) => ParamData::U16(v),
            Self::I32(v) => ParamData::I32(v),
            Self::Spilled(spilled) => spilled.data(),
        }
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::I8(_) => DType::I8,
            Self::I16(_) => DType::I16,
            Self::U16(_) => DType::U16,
            Self::I32(_) => DType::I32,
            Self::Spilled(spilled) => spilled.dtype(),
        }
    }

    /// The elements, little-endian.
    pub fn bytes(&self) -> Vec<u8> {
        param_bytes(self.data())
    }
}

/// A parameter's elements as they lie in a package, little-endian.
pub fn param_bytes(data: ParamData<'_>) -> Vec<u8> {
    fn write<T: Copy, const N: usize>(values: &[T], le: fn(T) -> [u8; N]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * N];
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, value)| *to = le(*value));
        bytes
    }
    match data {
        ParamData::I8(v) => write(v, i8::to_le_bytes),
        ParamData::I16(v) => write(v, i16::to_le_bytes),
        ParamData::U16(v) => write(v, u16::to_le_bytes),
        ParamData::I32(v) => write(v, i32::to_le_bytes),
    }
}

/// Where the codes of a matrix come from.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSite {
    /// The codes.
    pub codes: ParamId,
    /// The published tensor, `[rows, cols]`.
    pub tensor: String,
    /// What the published weights are multiplied by before they are quantised; one double rounding for each weight.
    pub factor: f64,
    /// The layer that multiplies by the matrix.
    pub layer: usize,
    /// What is multiplied, a `Bfp` tensor.
    pub input: TensorId,
}

/// A lowered model. Codes are the nearest ones; error feedback replaces those of 8 bits.
#[derive(Debug)]
pub struct Lowered {
    /// The validated program.
    pub program: Program,
    /// One entry for each of the program's parameters.
    pub params: Vec<Arc<ParamValues>>,
    /// The matrices of all matrix products.
    pub matrices: Vec<MatrixSite>,
    /// Fractional bits of the output; 0 for words.
    pub output_frac: u8,
    /// Tensors of the checkpoint that the model does not use.
    pub unused: Vec<String>,
    /// Which mode the codes are in.
    pub weights: WeightMode,
}

/// [`Params`] over a lowered model.
#[derive(Clone, Debug)]
pub struct MemoryParams(pub Vec<Arc<ParamValues>>);

impl Params for MemoryParams {
    fn param(&self, id: ParamId) -> ParamData<'_> {
        self.0[usize::from(id.0)].data()
    }
}
