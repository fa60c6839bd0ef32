//! Hugging Face folder to package.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_protocol::ids::ModelId;

use crate::bounds;
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::lower::{Lowered, MemoryParams, ParamValues, RealMatrix, lower_bert};
use crate::package::{self, BlobInfo, Manifest, SPEC_VERSION, WeightMode};
use crate::parallel;
use crate::quantize::calibrate::{CALIBRATION_TEXT, grams};
use crate::quantize::{Feedback, Width};
use crate::tokenizer::Tokenizer;

/// The family that this version lowers.
pub(crate) const FAMILY: &str = "bert";

/// How to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// How wide the codes are.
    pub weights: WeightMode,
    /// Threads; the package does not depend on them.
    pub threads: NonZeroUsize,
    /// What people will call the model. It is part of the manifest, so of the model id.
    pub name: String,
}

/// Where an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, as in `lowering`.
    pub stage: &'static str,
    /// Steps of this stage that are done.
    pub done: u64,
    /// Steps of this stage.
    pub total: u64,
}

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// The BLAKE3 of the manifest.
    pub model_id: ModelId,
    /// Length of the package.
    pub bytes: u64,
    /// Parameters of the program.
    pub params: usize,
    /// Tensors of the checkpoint that the model does not use.
    pub unused: Vec<String>,
}

/// Reads a folder and writes a package. `backend` runs the calibration text of `w8`; every backend gives the same
/// package.
///
/// # Errors
/// What is wrong with the folder, what is not supported, a bound that can't be proven, and what the file system says.
pub fn import(
    dir: &Path,
    file: &Path,
    options: &Options,
    backend: &dyn Backend,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ModelError> {
    progress(Progress { stage: "reading", done: 0, total: 1 });
    let checkpoint = Checkpoint::open(dir)?;
    let config = &checkpoint.config;
    let tokenizer = Tokenizer::from_json(&checkpoint.tokenizer, config.max_position_embeddings, config.vocab_size)?;
    progress(Progress { stage: "lowering", done: 0, total: 1 });
    let mut lowered = lower_bert(&checkpoint, options.weights, options.threads)?;
    if options.weights == WeightMode::W8 {
        feed_back(&checkpoint, &mut lowered, &tokenizer, options.threads, backend, progress)?;
    }
    let Lowered { program, params, output_frac, unused, .. } = lowered;
    let params = MemoryParams(params);
    bounds::prove(&program, &params)?;
    progress(Progress { stage: "writing", done: 0, total: 1 });
    let manifest = manifest(&checkpoint, options, program, output_frac, &params.0);
    let model_id = package::write(file, &manifest, |i| {
        params.0.get(i).map_or_else(|| checkpoint.tokenizer.clone(), ParamValues::bytes)
    })?;
    let bytes = std::fs::metadata(file).map_err(ModelError::io("read", file))?.len();
    Ok(ImportReport { model_id, bytes, params: params.0.len(), unused })
}

fn manifest(
    checkpoint: &Checkpoint,
    options: &Options,
    program: lockstep_kernels::program::Program,
    output_frac: u8,
    params: &[ParamValues],
) -> Manifest {
    let infos = parallel::map(params.len(), options.threads, |i| BlobInfo::of(&params[i].bytes()));
    Manifest {
        spec_version: SPEC_VERSION,
        name: options.name.clone(),
        family: FAMILY.into(),
        weights: options.weights,
        program: Arc::new(program),
        output_frac,
        params: infos,
        tokenizer: BlobInfo::of(&checkpoint.tokenizer),
        template: None,
        stop_tokens: Vec::new(),
        sources: checkpoint.sources.clone(),
        calibration: calibration_digest(options.weights),
    }
}

/// BLAKE3 of the calibration text, where it is used.
pub(crate) fn calibration_digest(weights: WeightMode) -> Option<lockstep_protocol::ids::Digest> {
    (weights == WeightMode::W8).then(|| blake3::hash(CALIBRATION_TEXT.as_bytes()).into())
}

/// Replaces the nearest 8-bit codes by those that error feedback chooses.
fn feed_back(
    checkpoint: &Checkpoint,
    lowered: &mut Lowered,
    tokenizer: &Tokenizer,
    threads: NonZeroUsize,
    backend: &dyn Backend,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ModelError> {
    let is_narrow = |params: &[ParamValues], id: usize| matches!(params[id], ParamValues::I8(_));
    let narrow: Vec<_> =
        lowered.matrices.iter().filter(|m| is_narrow(&lowered.params, usize::from(m.codes.0))).cloned().collect();
    let sites: BTreeSet<_> = narrow.iter().map(|m| (m.layer, m.input)).collect();
    let sites: Vec<_> = sites.into_iter().collect();
    let wide = lower_bert(checkpoint, WeightMode::W16, threads)?;
    let (program, params) = (Arc::new(wide.program), Arc::new(MemoryParams(wide.params)));
    let mut calibrating = |done, total| progress(Progress { stage: "calibrating", done, total });
    let grams = grams(program, params, tokenizer, &sites, backend, threads, &mut calibrating)?;
    let feedback: Vec<Option<Feedback>> = parallel::map(sites.len(), threads, |i| Feedback::new(&grams[&sites[i]]));
    for (n, site) in narrow.iter().enumerate() {
        let at = sites.binary_search(&(site.layer, site.input)).expect("every site was collected");
        let Some(feedback) = &feedback[at] else {
            return Err(ModelError::tensor(&site.tensor, "its inputs are all zero over the calibration text"));
        };
        let declared = lowered.program.param(site.codes);
        let shape = [declared.rows, declared.cols];
        let matrix = RealMatrix::read(&checkpoint.weights, &site.tensor, shape, site.factor, Width::W8, threads)?;
        let codes = feedback.round(&matrix.values, &matrix.scales, threads);
        lowered.params[usize::from(site.codes.0)] = ParamValues::I8(codes);
        progress(Progress { stage: "rounding", done: n as u64 + 1, total: narrow.len() as u64 });
    }
    Ok(())
}
