//! Models of known shapes with random weights: what runs, commitments and disputes cost at real sizes, without
//! anybody's checkpoint. They go through the same lowering as any other, and say nothing that makes sense.
//!
//! A package follows from shape, mode, seed and context alone.

mod shape;
mod vocabulary;
mod weights;

use std::num::NonZeroUsize;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Config, DecoderConfig, Weights};
use crate::error::ModelError;
use crate::import::{self, ImportReport, Progress};
use crate::lower::{Decoder, Spill};
use crate::package::WeightMode;
use crate::tokenizer::Tokenizer;
pub use shape::{DEFAULT_POSITIONS, SHAPES, Shape};
#[cfg(test)]
pub(crate) use vocabulary::tokenizer_json;
pub(crate) use weights::RandomTensors;

/// Fractional bits of the residual stream. With these weights its values have a standard deviation of at most 2, and this
/// leaves room for 512.
const RESIDUAL_FRAC: i32 = 22;
/// Nothing is measured on a text: this is the digest of an empty one.
const NO_CALIBRATION: &[u8] = b"";
/// What was said, in order.
const TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{{ '\\n' }}{% endfor %}";

/// How to make one up.
#[derive(Clone, Debug)]
pub struct Options {
    /// How wide the codes are; 8-bit ones are the nearest.
    pub weights: WeightMode,
    /// All weights follow from it.
    pub seed: u64,
    /// Longest context; by default the shape's, up to [`DEFAULT_POSITIONS`].
    pub max_positions: Option<u32>,
    /// Threads; the package does not depend on them.
    pub threads: NonZeroUsize,
}

/// Writes a package of this shape. Memory holds one matrix at a time; beside `file` there is room needed for as much
/// again while it is written.
///
/// # Errors
/// A context that the shape does not have, and what the file system says.
pub fn synth(
    shape: &Shape,
    file: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ModelError> {
    let (checkpoint, config) = checkpoint(shape, options)?;
    let tokenizer = Tokenizer::from_json(&checkpoint.tokenizer, config.max_positions, config.vocab_size)?;
    progress(Progress { stage: "lowering", done: 0, total: 1 });
    let bytes = tokenizer.token_bytes()?;
    let spill = Some(Spill::beside(file));
    let mut decoder = Decoder::lower(&checkpoint, &config, &bytes, options.weights, options.threads, spill)?;
    let frac = RESIDUAL_FRAC.min(decoder.residual()[0]);
    let layers = decoder.residual().len() - 1;
    decoder.set_residual(&vec![frac; layers])?;
    let import_options = import::Options {
        weights: options.weights,
        threads: options.threads,
        name: format!("synth-{}-{}", shape.name, options.seed),
        max_positions: options.max_positions,
    };
    let calibration = Some(blake3::hash(NO_CALIBRATION).into());
    import::write(file, &checkpoint, &import_options, decoder.finish()?, calibration, progress)
}

/// The checkpoint that such a model would have been published as.
fn checkpoint(shape: &Shape, options: &Options) -> Result<(Checkpoint, DecoderConfig), ModelError> {
    let json = shape.config();
    let positions = shape.positions(options.max_positions);
    let config = DecoderConfig::parse(Path::new(shape.name), &json, Some(positions))?;
    let tokens = json.get("vocab_size").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let checkpoint = Checkpoint {
        config: Config::Decoder(config.clone()),
        weights: Weights::new(Box::new(RandomTensors::new(&config, options.seed, options.threads))),
        tokenizer: vocabulary::tokenizer_json(tokens).map_err(ModelError::Tokenizer)?,
        template: Some(TEMPLATE.into()),
        stop_tokens: vec![0],
        sources: Vec::new(),
    };
    Ok((checkpoint, config))
}

#[cfg(test)]
mod tests;
