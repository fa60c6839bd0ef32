//! The parameters of a decoder and the Q formats that are proven (SPEC 27.5 to 27.7).

use std::num::NonZeroUsize;

use lockstep_kernels::program::{ScaledRows, TensorId};

use super::emit::Tensors;
use super::{Decoder, Dependent, FeedPlan, HeadPlan, LayerPlan, NormPlan, Product, RESIDUAL_FRAC_CAP, names};
use crate::checkpoint::{Checkpoint, DecoderConfig};
use crate::error::ModelError;
use crate::lower::build::{Builder, width};
use crate::lower::formats::{self, NormRow, gated_peaks, largest, read_vector};
use crate::lower::matrix::RealMatrix;
use crate::lower::{MatrixSite, ParamValues, Spill};
use crate::package::WeightMode;
use crate::quantize::Width;
use crate::rope;
use crate::tokenizer::TokenBytes;

/// Most fractional bits of gates and of what they open.
const GATE_FRAC_CAP: i32 = 31;
/// Most fractional bits of logits.
const LOGITS_FRAC_CAP: i32 = 30;

pub struct Lowering<'a> {
    pub checkpoint: &'a Checkpoint,
    pub config: &'a DecoderConfig,
    mode: WeightMode,
    threads: NonZeroUsize,
    pub builder: Builder,
    pub tensors: Tensors,
    dependents: Vec<Dependent>,
    matrices: Vec<MatrixSite>,
    /// Fractional bits of the embedding.
    embedding_frac: i32,
}

/// A matrix and its bias over the reals, and where it stands.
pub struct Real {
    pub name: String,
    pub matrix: RealMatrix,
    bias: Option<Vec<f64>>,
    factor: f64,
}

impl Real {
    /// Bound of each element of the product with a norm's output.
    pub fn bounds(&self, row: &NormRow) -> Vec<f64> {
        match &self.bias {
            Some(bias) => row.product(&self.matrix, bias),
            None => row.product(&self.matrix, &vec![0.0; self.matrix.scales.len()]),
        }
    }
}

/// See [`Decoder::lower`].
pub fn lower(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    bytes: &TokenBytes,
    mode: WeightMode,
    threads: NonZeroUsize,
    spill: Option<Spill>,
) -> Result<Decoder, ModelError> {
    let unused = names::check(checkpoint, config)?;
    let mut builder = Builder { spill, ..Builder::default() };
    let tensors = Tensors::declare(&mut builder, config);
    let (dependents, matrices) = (Vec::new(), Vec::new());
    let mut lowering =
        Lowering { checkpoint, config, mode, threads, builder, tensors, dependents, matrices, embedding_frac: 0 };
    let table = lowering.embedding()?;
    let angles = rope::table(&config.rope, config.head_dim, config.max_positions, threads)?;
    let rope = lowering.builder.param("rope".into(), config.max_positions, ParamValues::I32(angles))?;
    let layers = (0..config.num_hidden_layers).map(|l| lowering.layer(l)).collect::<Result<Vec<_>, _>>()?;
    let head = lowering.head(bytes)?;
    let residual = vec![lowering.embedding_frac; layers.len() + 1];
    let (config, Lowering { builder, tensors, dependents, matrices, .. }) = (config.clone(), lowering);
    let weights = mode;
    Ok(Decoder { config, weights, builder, tensors, table, rope, layers, head, dependents, matrices, unused, residual })
}

impl Lowering<'_> {
    fn embedding(&mut self) -> Result<ScaledRows, ModelError> {
        let table = self.vocabulary(names::EMBEDDING, Width::W16)?;
        let peak = table.values.iter().fold(0.0_f64, |max, w| max.max(w.abs()));
        self.embedding_frac = formats::wide("embeddings", peak * (1.0 + 1.0 / 256.0), RESIDUAL_FRAC_CAP)?;
        let frac = self.embedding_frac;
        self.builder.scaled_rows(names::EMBEDDING, &table, 0, |_| frac, self.threads)
    }

    /// A matrix with a row for each token.
    fn vocabulary(&self, tensor: &str, width: Width) -> Result<RealMatrix, ModelError> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        RealMatrix::read(&self.checkpoint.weights, tensor, shape, 1.0, width, self.threads)
    }

    fn head(&mut self, bytes: &TokenBytes) -> Result<HeadPlan, ModelError> {
        let (row, norm, frac_in) = self.row_norm(names::FINAL_NORM)?;
        let tensor = if self.config.tie_word_embeddings { names::EMBEDDING } else { names::HEAD };
        let matrix = self.vocabulary(tensor, width(self.mode))?;
        let bound = largest(&row.product(&matrix, &vec![0.0; matrix.scales.len()]));
        let logits = formats::wide("logits", bound, LOGITS_FRAC_CAP)?;
        let weight = self.builder.scaled_rows(names::HEAD, &matrix, frac_in, |_| logits, self.threads)?;
        let layer = self.config.num_hidden_layers as usize + 1;
        let input = self.tensors.last_rows;
        self.matrices.push(MatrixSite { codes: weight.codes, tensor: tensor.into(), factor: 1.0, layer, input });
        let table = ParamValues::I8(bytes.table(self.config.vocab_size)?);
        let token_bytes = self.builder.param("token_bytes".into(), self.config.vocab_size, table)?;
        Ok(HeadPlan { norm, weight, logits_frac: logits as u8, token_bytes })
    }

    /// A norm of the residual stream; its output has as many fractional bits as its bound allows.
    pub(super) fn row_norm(&mut self, prefix: &str) -> Result<(NormRow, NormPlan, i32), ModelError> {
        let row = NormRow::read_rms(&self.checkpoint.weights, prefix, self.config.hidden_size, 1.0)?;
        let peak = largest(&row.peaks());
        let frac = formats::wide_row(prefix, peak, peak, i32::MAX)?;
        let norm = self.builder.norm(prefix, &row, self.config.rms_norm_eps, [0, frac])?;
        Ok((row, NormPlan(norm), frac))
    }

    fn layer(&mut self, l: u32) -> Result<LayerPlan, ModelError> {
        Ok(LayerPlan { attention: self.attention(l)?, feed: self.feed_forward(l)? })
    }

    fn feed_forward(&mut self, l: u32) -> Result<FeedPlan, ModelError> {
        let (p, d, inner) = (names::layer(l), self.config.hidden_size, self.config.intermediate_size);
        let bias = self.config.mlp_bias;
        let (row, norm, frac_in) = self.row_norm(&format!("{p}.post_attention_layernorm"))?;
        let gate = self.read(l, "mlp.gate_proj", [inner, d], bias, 1.0)?;
        let gate_bounds = gate.bounds(&row);
        let peak = largest(&gate_bounds);
        let gate_frac = formats::wide_row(&gate.name, peak, peak, GATE_FRAC_CAP)?;
        let up = self.read(l, "mlp.up_proj", [inner, d], bias, 1.0)?;
        let up_bounds = up.bounds(&row);
        let up_frac = formats::wide(&up.name, largest(&up_bounds), GATE_FRAC_CAP)?;
        let product = largest(&gated_peaks(&gate_bounds, &up_bounds));
        let gated_frac = formats::wide(&format!("{p} gated"), product, gate_frac + up_frac)?;
        let (feed_rows, gated_rows) = (self.tensors.feed_rows, self.tensors.gated_rows);
        let gate = self.product(l, &gate, feed_rows, frac_in, |_| gate_frac)?;
        let up = self.product(l, &up, feed_rows, frac_in, |_| up_frac)?;
        let down = self.read(l, "mlp.down_proj", [d, inner], bias, 1.0)?;
        let down = self.stream_product(l, &down, gated_rows, gated_frac)?;
        let product_shift = (gate_frac + up_frac - gated_frac) as u8;
        Ok(FeedPlan { norm, gate, gate_frac: gate_frac as u8, up, product_shift, down })
    }

    /// A matrix of layer `l`, and its bias where it has one, both times a factor.
    pub(super) fn read(
        &self,
        l: u32,
        part: &str,
        shape: [u32; 2],
        bias: bool,
        factor: f64,
    ) -> Result<Real, ModelError> {
        let (name, weights) = (format!("{}.{part}", names::layer(l)), &self.checkpoint.weights);
        let width = width(self.mode);
        let matrix = RealMatrix::read(weights, &format!("{name}.weight"), shape, factor, width, self.threads)?;
        let scaled = |bias: Vec<f64>| bias.into_iter().map(|b| b * factor).collect();
        let read = || read_vector(weights, &format!("{name}.bias"), shape[0]).map(scaled);
        let bias = if bias { Some(read()?) } else { None };
        Ok(Real { name, matrix, bias, factor })
    }

    /// The parameters of a product whose output formats are proven.
    pub(super) fn product(
        &mut self,
        l: u32,
        real: &Real,
        input: TensorId,
        frac_in: i32,
        frac_out: impl Fn(usize) -> i32,
    ) -> Result<Product, ModelError> {
        let tensor = format!("{}.weight", real.name);
        let weight = self.builder.scaled_rows(&tensor, &real.matrix, frac_in, &frac_out, self.threads)?;
        let bias = match &real.bias {
            Some(bias) => Some(self.builder.bias(&format!("{}.bias", real.name), bias, &frac_out)?),
            None => None,
        };
        let site = MatrixSite { codes: weight.codes, tensor, factor: real.factor, layer: l as usize + 1, input };
        self.matrices.push(site);
        Ok(Product { weight, bias })
    }

    /// The same for a product that is added to the residual stream.
    pub(super) fn stream_product(
        &mut self,
        l: u32,
        real: &Real,
        input: TensorId,
        frac_in: i32,
    ) -> Result<Product, ModelError> {
        let (layer, frac) = (l as usize + 1, self.embedding_frac);
        let product = self.product(l, real, input, frac_in, |_| frac)?;
        let shifts = real.matrix.scales.iter().map(|s| s.shift + frac_in).collect();
        self.dependents.push(Dependent::Shift { layer, param: product.weight.shift, shifts });
        if let (Some(param), Some(values)) = (product.bias, real.bias.clone()) {
            self.dependents.push(Dependent::Bias { layer, param, values });
        }
        Ok(product)
    }
}
