//! What a model does with the pinned calibration text: the inputs of its 8-bit matrices, and how large its residual
//! stream grows.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::{Batch, Params, Value};

use super::Gram;
use crate::error::ModelError;
use crate::tokenizer::{Tokenizer, TooLong};

/// The pinned text of encoders; its digest is in every `w8` manifest of one.
pub const ENCODER_TEXT: &str = include_str!("../../calibration.txt");
/// The pinned text of decoders; its digest is in every manifest of one.
pub const DECODER_TEXT: &str = include_str!("../../calibration_decoder.txt");
/// The line between two texts.
const SEPARATOR: &str = "%%";
/// Texts are run together up to so many rows, which bounds the memory of activations. No result depends on it.
const GROUP_ROWS: usize = 512;

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

/// A calibration file as tokens. Long texts are cut at the model's limit.
///
/// # Errors
/// What the tokenizer says.
pub fn tokens(file: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ModelError> {
    let encode = |(n, text): (usize, &String)| {
        let tokens = tokenizer.encode(text, TooLong::Truncate);
        tokens.map_err(|e| ModelError::Tokenizer(format!("calibration text {n}: {e}")))
    };
    texts(file).iter().enumerate().map(encode).collect()
}

/// What is called after a layer ran over some of the texts: the layer, the texts' row ranges, and where to read.
pub type Visit<'a> = dyn FnMut(usize, &[Range<usize>], &mut dyn Executor) -> Result<(), ModelError> + 'a;

/// Runs all layers but the last over all texts, layer by layer, so that what is collected for one layer can be used up
/// before the next, and no more than one layer is loaded; the embedding is loaded with the layer after it.
///
/// # Errors
/// What the backend and the visitor say.
pub fn each_layer(
    program: &Program,
    params: &Arc<dyn Params>,
    texts: &[Vec<u32>],
    backend: &dyn Backend,
    visit: &mut Visit<'_>,
) -> Result<(), ModelError> {
    let groups: Vec<Batch> = grouped(texts).into_iter().map(|group| Batch::of(group.to_vec())).collect();
    let mut outputs: Vec<Option<Value>> = vec![None; groups.len()];
    let last = program.layers.len().saturating_sub(1);
    for first in (0..last).filter(|layer| *layer != 1) {
        let held = if first == 0 { 0..=1 } else { first..=first };
        let slice = Slice::of(program, held.clone()).expect("a program has layers after its embedding");
        let mut executor = slice.load(backend, Arc::clone(params))?;
        for l in held.filter(|l| *l < last) {
            for (batch, output) in groups.iter().zip(&mut outputs) {
                executor.begin(batch)?;
                if let Some(input) = output.take() {
                    executor.write(program.layers[l - 1].output, input)?;
                }
                executor.run_layer(l)?;
                visit(l, &batch.spans(), &mut *executor)?;
                *output = Some(executor.read(program.layers[l].output)?);
            }
        }
    }
    Ok(())
}

/// Neighbours together, as many as fit a group, at least one.
fn grouped(texts: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut groups, mut rest) = (Vec::new(), texts);
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = |text: &&Vec<u32>| {
            rows += text.len();
            rows <= GROUP_ROWS
        };
        let (group, more) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        groups.push(group);
        rest = more;
    }
    groups
}

/// Gram matrices of some `Bfp` tensors of one layer, each with how it is read.
#[derive(Debug, Default)]
pub struct Grams(pub BTreeMap<TensorId, Gram>);

impl Grams {
    /// Nothing added yet.
    pub fn new(program: &Program, tensors: impl Iterator<Item = TensorId>) -> Self {
        Self(tensors.map(|t| (t, Gram::new(program.tensor(t).cols as usize))).collect())
    }

    /// Adds the rows of some texts, text by text.
    ///
    /// # Errors
    /// What the backend says.
    pub fn add(
        &mut self,
        spans: &[Range<usize>],
        executor: &mut dyn Executor,
        threads: NonZeroUsize,
    ) -> Result<(), ModelError> {
        for (tensor, gram) in &mut self.0 {
            let Value::Bfp { codes, exponents } = executor.read(*tensor)? else {
                let reason = "a matrix product reads block floating point rows".into();
                return Err(BackendError::Value { tensor: *tensor, reason }.into());
            };
            for span in spans {
                let width = gram.d;
                gram.add(&codes[span.start * width..span.end * width], &exponents[span.clone()], threads);
            }
        }
        Ok(())
    }
}

/// The largest magnitude in some `I32` tensors.
///
/// # Errors
/// What the backend says.
pub fn peak(tensors: &[TensorId], executor: &mut dyn Executor) -> Result<u32, ModelError> {
    let mut peak = 0;
    for tensor in tensors {
        let Value::I32(values) = executor.read(*tensor)? else {
            let reason = "the residual stream has 32-bit rows".into();
            return Err(BackendError::Value { tensor: *tensor, reason }.into());
        };
        peak = values.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0).max(peak);
    }
    Ok(peak)
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
        let tuned: BTreeSet<String> = texts(ENCODER_TEXT).iter().map(|t| t.trim().to_lowercase()).collect();
        assert!(measured.len() >= 64 && tuned.len() >= 64);
        for text in &measured {
            assert!(!tuned.contains(&text.trim().to_lowercase()), "{text:?} is in both");
        }
    }

    #[test]
    fn groups_keep_the_order_and_the_limit() {
        let texts: Vec<Vec<u32>> = [1, 510, 1, 1, 512, 600, 3].map(|n| vec![n; n as usize]).to_vec();
        let sizes: Vec<Vec<u32>> = grouped(&texts).iter().map(|g| g.iter().map(|t| t[0]).collect()).collect();
        assert_eq!(sizes, [vec![1, 510, 1], vec![1], vec![512], vec![600], vec![3]]);
    }

    #[test]
    fn decoder_texts_are_many_and_of_many_lengths() {
        let lengths: Vec<usize> = texts(DECODER_TEXT).iter().map(String::len).collect();
        assert!(lengths.len() >= 24 && *lengths.iter().max().unwrap() > 1_000);
        assert!((1..20).contains(lengths.iter().min().unwrap()));
    }
}
