//! Hugging Face folder to package.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Params;
use lockstep_protocol::ids::{Digest, ModelId};

use crate::bounds;
use crate::checkpoint::{BertConfig, Checkpoint, Config, DecoderConfig, Postprocessing, Weights};
use crate::error::ModelError;
use crate::lower::{Decoder, Lowered, MatrixSite, MemoryParams, ParamValues, RealMatrix, Spill, lower_bert};
use crate::package::{self, BlobInfo, Manifest, SPEC_VERSION, WeightMode};
use crate::parallel;
use crate::quantize::calibrate::{DECODER_TEXT, ENCODER_TEXT, Grams, each_layer, tokens};
use crate::quantize::{Feedback, Width};
use crate::residual;
use crate::tokenizer::Tokenizer;

/// How to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// How wide the codes are.
    pub weights: WeightMode,
    /// Threads; the package does not depend on them.
    pub threads: NonZeroUsize,
    /// What people will call the model. It is part of the manifest, so of the model id.
    pub name: String,
    /// Caps a decoder's context below its own limit.
    pub max_positions: Option<u32>,
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

/// Reads a folder and writes a package. `backend` runs the calibration text; every backend gives the same package.
///
/// Of a decoder, memory holds one matrix in double precision, or one layer, at a time; beside `file` there is room needed
/// for its parameters in 16 bits, and for those of `w8` once more, while it is written.
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
    let checkpoint = Checkpoint::open(dir, options.max_positions)?;
    let config = &checkpoint.config;
    let tokenizer = Tokenizer::from_json(&checkpoint.tokenizer, config.max_positions(), config.vocab_size())?;
    progress(Progress { stage: "lowering", done: 0, total: 1 });
    let mut work = Work { checkpoint: &checkpoint, tokenizer, file, options, backend, progress };
    let lowered = match config {
        Config::Bert(config, postprocessing) => work.encoder(config, *postprocessing)?,
        Config::Decoder(config) => work.decoder(config)?,
    };
    let calibration = calibration_digest(config, options.weights);
    write(file, &checkpoint, options, lowered, calibration, progress)
}

/// Proves a lowered model and writes its package.
pub(crate) fn write(
    file: &Path,
    checkpoint: &Checkpoint,
    options: &Options,
    lowered: Lowered,
    calibration: Option<Digest>,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ModelError> {
    let Lowered { program, params, output_frac, unused, .. } = lowered;
    let params = MemoryParams(params);
    progress(Progress { stage: "proving", done: 0, total: 1 });
    bounds::prove(&program, &params)?;
    progress(Progress { stage: "writing", done: 0, total: 1 });
    let manifest = manifest(checkpoint, options, program, output_frac, &params.0, calibration);
    let others = [Some(&checkpoint.tokenizer[..]), checkpoint.template.as_deref().map(str::as_bytes)];
    let model_id = package::write(file, &manifest, |i| match params.0.get(i) {
        Some(param) => param.bytes(),
        None => others[i - params.0.len()].unwrap_or_default().to_vec(),
    })?;
    let bytes = std::fs::metadata(file).map_err(ModelError::io("read", file))?.len();
    Ok(ImportReport { model_id, bytes, params: params.0.len(), unused })
}

fn manifest(
    checkpoint: &Checkpoint,
    options: &Options,
    program: Program,
    output_frac: u8,
    params: &[Arc<ParamValues>],
    calibration: Option<Digest>,
) -> Manifest {
    let infos = parallel::map(params.len(), options.threads, |i| BlobInfo::of(&params[i].bytes()));
    Manifest {
        spec_version: SPEC_VERSION,
        name: options.name.clone(),
        family: checkpoint.config.family().into(),
        weights: options.weights,
        program: Arc::new(program),
        output_frac,
        params: infos,
        tokenizer: BlobInfo::of(&checkpoint.tokenizer),
        template: checkpoint.template.as_ref().map(|t| BlobInfo::of(t.as_bytes())),
        stop_tokens: checkpoint.stop_tokens.clone(),
        sources: checkpoint.sources.clone(),
        calibration,
    }
}

/// BLAKE3 of the calibration text, where one is used.
pub(crate) fn calibration_digest(config: &Config, weights: WeightMode) -> Option<Digest> {
    let text = match config {
        Config::Bert(..) if weights == WeightMode::W16 => return None,
        Config::Bert(..) => ENCODER_TEXT,
        Config::Decoder(_) => DECODER_TEXT,
    };
    Some(blake3::hash(text.as_bytes()).into())
}

/// Replaces the codes of a matrix.
type SetCodes<'a> = dyn FnMut(&MatrixSite, ParamValues) -> Result<(), ModelError> + 'a;

/// An import under way.
struct Work<'a> {
    checkpoint: &'a Checkpoint,
    tokenizer: Tokenizer,
    /// What is written in the end, and beside it what memory need not hold.
    file: &'a Path,
    options: &'a Options,
    backend: &'a dyn Backend,
    progress: &'a mut dyn FnMut(Progress),
}

impl Work<'_> {
    fn encoder(&mut self, config: &BertConfig, postprocessing: Postprocessing) -> Result<Lowered, ModelError> {
        let lower = |weights| lower_bert(self.checkpoint, config, postprocessing, weights, self.options.threads);
        let mut lowered = lower(self.options.weights)?;
        if self.options.weights == WeightMode::W16 {
            return Ok(lowered);
        }
        let wide = lower(WeightMode::W16)?;
        let texts = tokens(ENCODER_TEXT, &self.tokenizer)?;
        let (program, sites) = (lowered.program.clone(), std::mem::take(&mut lowered.matrices));
        let mut set = |site: &MatrixSite, codes| {
            lowered.params[usize::from(site.codes.0)] = Arc::new(codes);
            Ok(())
        };
        self.feed_back(&program, &sites, (&wide.program, Arc::new(MemoryParams(wide.params))), &texts, &mut set)?;
        lowered.matrices = sites;
        Ok(lowered)
    }

    fn decoder(&mut self, config: &DecoderConfig) -> Result<Lowered, ModelError> {
        let bytes = self.tokenizer.token_bytes()?;
        let spill = || Some(Spill::beside(self.file));
        let lower = |weights| Decoder::lower(self.checkpoint, config, &bytes, weights, self.options.threads, spill());
        let texts = tokens(DECODER_TEXT, &self.tokenizer)?;
        let mut wide = lower(WeightMode::W16)?;
        let progress = &mut *self.progress;
        residual::settle(&mut wide, &texts, self.backend, &mut |done, total| {
            progress(Progress { stage: "measuring", done, total });
        })?;
        if self.options.weights == WeightMode::W16 {
            return wide.finish();
        }
        let mut narrow = lower(WeightMode::W8)?;
        narrow.set_residual(&wide.residual()[1..])?;
        let (program, sites) = (narrow.program(), narrow.matrices().to_vec());
        let reference = wide.program();
        let mut set = |site: &MatrixSite, codes| narrow.set_codes(site, codes);
        self.feed_back(&program, &sites, (&reference, Arc::new(wide.params())), &texts, &mut set)?;
        narrow.finish()
    }

    /// Chooses the codes of every 8-bit matrix by error feedback on what the 16-bit model multiplies.
    fn feed_back(
        &mut self,
        program: &Program,
        sites: &[MatrixSite],
        (wide, params): (&Program, Arc<dyn Params>),
        texts: &[Vec<u32>],
        set: &mut SetCodes<'_>,
    ) -> Result<(), ModelError> {
        let threads = self.options.threads;
        let rows: usize = texts.iter().map(Vec::len).sum();
        let mut layers: BTreeMap<usize, Vec<&MatrixSite>> = BTreeMap::new();
        for site in sites.iter().filter(|s| program.param(s.codes).dtype == lockstep_kernels::program::DType::I8) {
            layers.entry(site.layer).or_default().push(site);
        }
        let (mut grams, mut seen, total) = (Grams::default(), 0, wide.layers.len() as u64);
        each_layer(wide, &params, texts, self.backend, &mut |layer, spans, executor| {
            let Some(sites) = layers.get(&layer) else { return Ok(()) };
            if seen == 0 {
                grams = Grams::new(wide, sites.iter().map(|s| s.input));
            }
            grams.add(spans, executor, threads)?;
            seen += spans.last().map_or(0, |s| s.end);
            if seen == rows {
                round(&self.checkpoint.weights, program, sites, &std::mem::take(&mut grams), threads, set)?;
                (self.progress)(Progress { stage: "rounding", done: layer as u64 + 1, total });
                seen = 0;
            }
            Ok(())
        })
    }
}

/// Rounds the matrices of one layer.
fn round(
    weights: &Weights,
    program: &Program,
    sites: &[&MatrixSite],
    grams: &Grams,
    threads: NonZeroUsize,
    set: &mut SetCodes<'_>,
) -> Result<(), ModelError> {
    for (input, gram) in &grams.0 {
        let feedback = Feedback::new(gram);
        for site in sites.iter().filter(|s| s.input == *input) {
            let Some(feedback) = &feedback else {
                return Err(ModelError::tensor(&site.tensor, "its inputs are all zero over the calibration text"));
            };
            let declared = program.param(site.codes);
            let shape = [declared.rows, declared.cols];
            let matrix = RealMatrix::read(weights, &site.tensor, shape, site.factor, Width::W8, threads)?;
            set(site, ParamValues::I8(feedback.round(&matrix.values, &matrix.scales, threads)))?;
        }
    }
    Ok(())
}
