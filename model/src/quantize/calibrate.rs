//! Inputs of every 8-bit matrix over the pinned calibration text, from the 16-bit model itself.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Batch, Params, Value};

use super::Gram;
use crate::error::ModelError;
use crate::tokenizer::{Tokenizer, TooLong};

/// The pinned text; its digest is in every `w8` manifest.
pub const CALIBRATION_TEXT: &str = include_str!("../../calibration.txt");
/// The line between two texts.
const SEPARATOR: &str = "%%";

/// The texts of a calibration file, in order.
pub fn texts(file: &str) -> Vec<String> {
    let mut texts = vec![Vec::new()];
    for line in file.lines() {
        if line == SEPARATOR {
            texts.push(Vec::new());
        } else {
            texts.last_mut().expect("there is always a text").push(line);
        }
    }
    texts.into_iter().map(|lines| lines.join("\n")).collect()
}

/// Gram matrices of the given `Bfp` tensors after the given layers, over the pinned text. Long texts are cut at the
/// model's limit. `done(n, of)` is called after each text.
///
/// # Errors
/// What tokenizer and backend say.
pub fn grams(
    program: Arc<Program>,
    params: Arc<dyn Params>,
    tokenizer: &Tokenizer,
    sites: &[(usize, TensorId)],
    backend: &dyn Backend,
    threads: NonZeroUsize,
    done: &mut dyn FnMut(u64, u64),
) -> Result<BTreeMap<(usize, TensorId), Gram>, ModelError> {
    let width = |tensor: TensorId| program.tensor(tensor).cols as usize;
    let mut grams: BTreeMap<_, _> = sites.iter().map(|site| (*site, Gram::new(width(site.1)))).collect();
    let mut executor = backend.load(Arc::clone(&program), params)?;
    let texts = texts(CALIBRATION_TEXT);
    for (n, text) in texts.iter().enumerate() {
        let tokens = tokenizer
            .encode(text, TooLong::Truncate)
            .map_err(|e| ModelError::Tokenizer(format!("calibration text {n}: {e}")))?;
        executor.begin(&Batch::single(tokens))?;
        for layer in 0..program.layers.len() {
            executor.run_layer(layer)?;
            for ((_, tensor), gram) in grams.iter_mut().filter(|((l, _), _)| *l == layer) {
                let Value::Bfp { codes, exponents } = executor.read(*tensor)? else {
                    let reason = "a matrix product reads block floating point rows".into();
                    return Err(BackendError::Value { tensor: *tensor, reason }.into());
                };
                gram.add(&codes, &exponents, threads);
            }
        }
        done(n as u64 + 1, texts.len() as u64);
    }
    Ok(grams)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is measured must not be what was tuned on.
    #[test]
    fn calibration_and_quality_texts_are_disjoint() {
        let measured: Vec<String> =
            serde_json::from_str(include_str!("../../../scripts/quality_sentences.json")).unwrap();
        let tuned: BTreeSet<String> = texts(CALIBRATION_TEXT).iter().map(|t| t.trim().to_lowercase()).collect();
        assert!(measured.len() >= 64 && tuned.len() >= 64);
        for text in &measured {
            assert!(!tuned.contains(&text.trim().to_lowercase()), "{text:?} is in both");
        }
    }
}
