//! Whether a package is a given checkpoint, in seconds: everything is derived again but the error feedback, and every
//! 8-bit code must be the floor or the ceiling of the published weight over its scale (SPEC 21.14).

use std::num::NonZeroUsize;
use std::path::Path;

use lockstep_kernels::program::{Param, ParamId};
use lockstep_kernels::value::{ParamData, Params};

use crate::checkpoint::{Checkpoint, Config};
use crate::error::ModelError;
use crate::import::calibration_digest;
use crate::lower::{Decoder, Lowered, MatrixSite, MemoryParams, RealMatrix, lower_bert};
use crate::package::{BlobInfo, Package};
use crate::quantize::Width;
use crate::tokenizer::Tokenizer;

/// What a check compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Parameters that are equal to the derived ones.
    pub equal: usize,
    /// Parameters whose codes are floors or ceilings.
    pub enclosed: usize,
}

/// Compares a package with the folder that it claims to be made from. The package's own digests are verified and its
/// bounds proven first.
///
/// # Errors
/// [`ModelError::Differs`] with the first difference by tensor, row and column; else what is wrong with either.
pub fn check(package: &Package, dir: &Path, threads: NonZeroUsize) -> Result<CheckReport, ModelError> {
    package.verify(threads)?;
    package.prove()?;
    let decoder = package.program().is_decoder();
    let checkpoint = Checkpoint::open(dir, decoder.then_some(package.program().max_positions))?;
    check_sources(package, &checkpoint)?;
    let lowered = lower(package, &checkpoint, threads)?;
    check_program(package, &lowered)?;
    let (derived, held) = (MemoryParams(lowered.params), package.params());
    let mut report = CheckReport { equal: 0, enclosed: 0 };
    for (i, param) in lowered.program.params.iter().enumerate() {
        let id = ParamId(i as u16);
        let site = lowered.matrices.iter().find(|m| m.codes == id);
        match (held.param(id), site) {
            (ParamData::I8(codes), Some(site)) => {
                check_enclosed(&checkpoint, site, param, codes, threads)?;
                report.enclosed += 1;
            }
            (found, _) => {
                check_equal(param, found, derived.param(id))?;
                report.equal += 1;
            }
        }
    }
    Ok(report)
}

/// The program and parameters, but for error feedback. The formats of a decoder's residual stream are measured, so they
/// are the package's; that they are possible is all that is checked without measuring again.
fn lower(package: &Package, checkpoint: &Checkpoint, threads: NonZeroUsize) -> Result<Lowered, ModelError> {
    let weights = package.manifest().weights;
    if package.manifest().family != checkpoint.config.family() {
        return Err(differs(format!("its family is {}", package.manifest().family)));
    }
    match &checkpoint.config {
        Config::Bert(config, postprocessing) => lower_bert(checkpoint, config, *postprocessing, weights, threads),
        Config::Decoder(config) => {
            let tokenizer = Tokenizer::from_json(&checkpoint.tokenizer, config.max_positions, config.vocab_size)?;
            let mut decoder = Decoder::lower(checkpoint, config, &tokenizer.token_bytes()?, weights, threads, None)?;
            let formats = decoder.residual_of(package.program()).ok_or_else(|| differs("it has fewer layers"))?;
            decoder.set_residual(&formats)?;
            decoder.finish()
        }
    }
}

fn differs(what: impl Into<String>) -> ModelError {
    ModelError::Differs(what.into())
}

fn check_sources(package: &Package, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let manifest = package.manifest();
    for (held, found) in manifest.sources.iter().zip(&checkpoint.sources) {
        if held != found {
            return Err(differs(format!("it was made from another {}", held.name)));
        }
    }
    if manifest.sources.len() != checkpoint.sources.len() {
        return Err(differs("it was made from other files"));
    }
    if manifest.tokenizer != BlobInfo::of(&checkpoint.tokenizer) {
        return Err(differs("the tokenizer is another"));
    }
    if manifest.template != checkpoint.template.as_ref().map(|t| BlobInfo::of(t.as_bytes())) {
        return Err(differs("the chat template is another"));
    }
    if manifest.stop_tokens != checkpoint.stop_tokens {
        return Err(differs("the stop tokens are others"));
    }
    if manifest.calibration != calibration_digest(&checkpoint.config, manifest.weights) {
        return Err(differs("it was calibrated on another text than this version's"));
    }
    Ok(())
}

fn check_program(package: &Package, lowered: &Lowered) -> Result<(), ModelError> {
    let (manifest, held, found) = (package.manifest(), package.program(), &lowered.program);
    if manifest.output_frac != lowered.output_frac {
        return Err(differs("the output's format differs"));
    }
    if let Some(l) = held.layers.iter().zip(&found.layers).position(|(a, b)| a != b) {
        return Err(differs(format!("the ops of layer {l} ({}) differ", found.layers[l].name)));
    }
    if **held != *found {
        return Err(differs("the program's tensors, parameters or sizes differ"));
    }
    Ok(())
}

/// Row and column of an element.
fn place(param: &Param, at: usize) -> String {
    let cols = param.cols as usize;
    format!("{} row {} column {}", param.name, at / cols, at % cols)
}

fn check_equal(param: &Param, held: ParamData<'_>, derived: ParamData<'_>) -> Result<(), ModelError> {
    fn first<T: PartialEq + std::fmt::Display>(a: &[T], b: &[T]) -> Option<(usize, String)> {
        let at = a.iter().zip(b).position(|(a, b)| a != b)?;
        Some((at, format!("holds {}, the checkpoint gives {}", a[at], b[at])))
    }
    let difference = match (held, derived) {
        (ParamData::I8(a), ParamData::I8(b)) => first(a, b),
        (ParamData::I16(a), ParamData::I16(b)) => first(a, b),
        (ParamData::U16(a), ParamData::U16(b)) => first(a, b),
        (ParamData::I32(a), ParamData::I32(b)) => first(a, b),
        _ => return Err(differs(format!("{} has another type", param.name))),
    };
    match difference {
        Some((at, what)) => Err(differs(format!("{} {what}", place(param, at)))),
        None => Ok(()),
    }
}

fn check_enclosed(
    checkpoint: &Checkpoint,
    site: &MatrixSite,
    param: &Param,
    codes: &[i8],
    threads: NonZeroUsize,
) -> Result<(), ModelError> {
    let shape = [param.rows, param.cols];
    let matrix = RealMatrix::read(&checkpoint.weights, &site.tensor, shape, site.factor, Width::W8, threads)?;
    let wrong = |(at, (code, w)): (usize, (&i8, &f64))| {
        let scale = matrix.scales[at / matrix.cols];
        (!scale.encloses(*w, i32::from(*code))).then(|| (at, *code, scale.floor(*w)))
    };
    match codes.iter().zip(&matrix.values).enumerate().find_map(wrong) {
        Some((at, code, floor)) => {
            let place = place(param, at);
            Err(differs(format!("{place} holds {code}, which is neither {floor} nor its ceiling")))
        }
        None => Ok(()),
    }
}
