//! Decoders of the Llama family: pre-norm transformer layers with rotary positions and gated feed-forward parts
//! (SPEC section 27). One lowering for Llama, Mistral, Qwen2 and Qwen3, which differ in biases and head norms.
//!
//! The residual stream's Q formats are the only thing that is measured and not proven. So a model is lowered once, and
//! [`Decoder::set_residual`] then changes the few parameters and shifts that depend on them.

mod attention;
mod emit;
mod names;
mod parts;

use std::num::NonZeroUsize;
use std::sync::Arc;

use lockstep_kernels::program::{Norm, ParamId, Program, ScaledRows, TensorId};

use super::build::{Builder, fixed, row_shift};
use super::{Lowered, MatrixSite, MemoryParams, ParamValues, Spill};
use crate::checkpoint::{Checkpoint, DecoderConfig};
use crate::error::ModelError;
use crate::package::WeightMode;
use crate::tokenizer::TokenBytes;
use emit::Tensors;

/// Most fractional bits of the residual stream.
pub const RESIDUAL_FRAC_CAP: i32 = 31;

/// A norm of an input without fractional bits.
#[derive(Clone, Copy, Debug)]
struct NormPlan(Norm);

impl NormPlan {
    /// The same norm of an input with fractional bits.
    fn reading(self, frac_in: i32) -> Norm {
        let Self(norm) = self;
        let more = if norm.epsilon_mantissa == 0 { 0 } else { 2 * frac_in as i16 };
        Norm { epsilon_shift: norm.epsilon_shift - more, ..norm }
    }
}

/// A matrix with its bias.
#[derive(Clone, Copy, Debug)]
struct Product {
    weight: ScaledRows,
    bias: Option<ParamId>,
}

/// Queries or keys: a product, its head norm where the family has one, and the rotation.
#[derive(Clone, Debug)]
struct Rotated {
    product: Product,
    head_norm: Option<Norm>,
    shift: Vec<u8>,
}

/// Everything that a layer's ops need besides the residual stream's format.
#[derive(Clone, Debug)]
struct LayerPlan {
    attention: AttentionPlan,
    feed: FeedPlan,
}

/// The first half of a layer.
#[derive(Clone, Debug)]
struct AttentionPlan {
    norm: NormPlan,
    query: Rotated,
    key: Rotated,
    value: Product,
    score_shift: Vec<u8>,
    value_shift: Vec<u8>,
    output: Product,
}

/// The second half of a layer.
#[derive(Clone, Debug)]
struct FeedPlan {
    norm: NormPlan,
    gate: Product,
    gate_frac: u8,
    up: Product,
    product_shift: u8,
    down: Product,
}

/// The last layer.
#[derive(Clone, Debug)]
struct HeadPlan {
    norm: NormPlan,
    weight: ScaledRows,
    logits_frac: u8,
    token_bytes: ParamId,
}

/// A parameter whose values depend on the residual stream's format in a layer, counted from 1.
#[derive(Clone, Debug)]
enum Dependent {
    /// Row shifts for an output without fractional bits.
    Shift { layer: usize, param: ParamId, shifts: Vec<i32> },
    /// A bias over the reals.
    Bias { layer: usize, param: ParamId, values: Vec<f64> },
}

/// A lowered decoder whose residual formats can still be changed.
pub struct Decoder {
    config: DecoderConfig,
    weights: WeightMode,
    builder: Builder,
    tensors: Tensors,
    table: ScaledRows,
    rope: ParamId,
    layers: Vec<LayerPlan>,
    head: HeadPlan,
    dependents: Vec<Dependent>,
    matrices: Vec<MatrixSite>,
    unused: Vec<String>,
    /// Fractional bits of the residual stream: of the embedding, then of each layer.
    residual: Vec<i32>,
}

impl Decoder {
    /// Lowers a decoder, with nearest codes, and the residual stream in the embedding's format throughout. Large
    /// parameters go to files where `spill` says so.
    ///
    /// # Errors
    /// Tensors that are missing, unknown, ill-shaped or not finite, and models that can't be bounded.
    pub fn lower(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        bytes: &TokenBytes,
        weights: WeightMode,
        threads: NonZeroUsize,
        spill: Option<Spill>,
    ) -> Result<Self, ModelError> {
        parts::lower(checkpoint, config, bytes, weights, threads, spill)
    }

    /// Fractional bits of the residual stream: of the embedding, then of each layer.
    pub fn residual(&self) -> &[i32] {
        &self.residual
    }

    /// Gives each layer's residual stream a format.
    ///
    /// # Errors
    /// Formats that are not one for each layer, each between 0 and the one before; biases that do not fit.
    pub fn set_residual(&mut self, layers: &[i32]) -> Result<(), ModelError> {
        let formats: Vec<i32> = self.residual[..1].iter().chain(layers).copied().collect();
        if layers.len() != self.layers.len() || !formats.is_sorted_by(|a, b| a >= b) || formats.iter().any(|f| *f < 0) {
            return Err(ModelError::bounds("residual stream", format!("the formats {formats:?} are not possible")));
        }
        for dependent in &self.dependents {
            let (param, frac) = (usize::from(dependent.param().0), formats[dependent.layer()]);
            let values = dependent.values(&self.builder.params[param].name, frac)?;
            self.builder.values[param] = Arc::new(values);
        }
        self.residual = formats;
        Ok(())
    }

    /// The formats that a program of this model uses, if it is one.
    pub fn residual_of(&self, program: &Program) -> Option<Vec<i32>> {
        let mut frac = self.residual[0];
        let layers = program.layers.get(1..=self.layers.len())?;
        let format = |layer| {
            frac -= emit::boundary(layer);
            frac
        };
        Some(layers.iter().map(format).collect())
    }

    /// The matrices of all matrix products.
    pub fn matrices(&self) -> &[MatrixSite] {
        &self.matrices
    }

    /// The parameters as they are now.
    pub fn params(&self) -> MemoryParams {
        MemoryParams(self.builder.values.clone())
    }

    /// Replaces the codes of a matrix.
    ///
    /// # Errors
    /// What the file system says, where they go to a file.
    pub fn set_codes(&mut self, site: &MatrixSite, codes: ParamValues) -> Result<(), ModelError> {
        self.builder.values[usize::from(site.codes.0)] = self.builder.keep(codes)?;
        Ok(())
    }

    /// The tensors whose magnitudes the format of a layer must hold.
    pub fn stream(&self, layer: usize) -> Vec<TensorId> {
        self.tensors.stream(layer)
    }

    /// The program with its parameters.
    ///
    /// # Errors
    /// A program beyond the limits of programs.
    pub fn finish(self) -> Result<Lowered, ModelError> {
        let program = self.program();
        program.validate()?;
        let Self { builder, matrices, unused, weights, .. } = self;
        Ok(Lowered { program, params: builder.values, matrices, output_frac: 0, unused, weights })
    }
}

impl Dependent {
    fn layer(&self) -> usize {
        match self {
            Self::Shift { layer, .. } | Self::Bias { layer, .. } => *layer,
        }
    }

    fn param(&self) -> ParamId {
        match self {
            Self::Shift { param, .. } | Self::Bias { param, .. } => *param,
        }
    }

    /// The parameter for a residual stream with `frac` fractional bits.
    fn values(&self, name: &str, frac: i32) -> Result<ParamValues, ModelError> {
        match self {
            Self::Shift { shifts, .. } => {
                let shift = |(n, shift): (usize, &i32)| row_shift(name, n, shift - frac);
                Ok(ParamValues::I16(shifts.iter().enumerate().map(shift).collect::<Result<_, _>>()?))
            }
            Self::Bias { values, .. } => {
                let code = |(n, b): (usize, &f64)| fixed(name, n, *b, frac);
                Ok(ParamValues::I32(values.iter().enumerate().map(code).collect::<Result<_, _>>()?))
            }
        }
    }
}
