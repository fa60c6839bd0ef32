//! How well a model foresees a text, from its exact logits.

use std::sync::Arc;

use anyhow::{Result, bail};
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::program::{Op, PassShape, Program, TensorId};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Sampler, Sequence, Value};
use lockstep_model::package::Package;

/// Positions of a pass, where their logits fit.
const PASS: usize = 128;
/// Bytes of the activations of a pass.
const PASS_BYTES: u128 = 1 << 30;

/// A text in windows, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// All tokens of the text.
    pub tokens: &'a [u32],
    /// Tokens of a window, at least 2.
    pub window: usize,
    /// Most windows.
    pub most: usize,
}

impl Windows<'_> {
    /// How many there are; a last one of a single token is none.
    pub fn count(&self) -> usize {
        let last = usize::from(self.tokens.len() % self.window > 1);
        (self.tokens.len() / self.window + last).min(self.most)
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Sum of the negative natural logarithms of the scored tokens' probabilities.
    pub nll: f64,
    /// Tokens that were scored.
    pub scored: usize,
    /// Elements that saturated.
    pub saturations: u64,
}

impl Measured {
    /// The mean negative logarithm.
    pub fn mean(&self) -> f64 {
        self.nll / self.scored as f64
    }

    /// Its exponential.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }
}

/// Scores every token of each window but its first. `progress` hears how many windows are done.
///
/// # Errors
/// The package is no decoder, the windows do not fit it, or the backend fails.
pub fn measure(
    package: &Package,
    backend: &dyn Backend,
    windows: &Windows<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<Measured> {
    let program = package.program();
    let mut executor = backend.load(Arc::clone(program), package.params())?;
    let mut measured = Measured::default();
    for (index, window) in windows.tokens.chunks(windows.window).take(windows.count()).enumerate() {
        score(&mut *executor, program, window, &mut measured)?;
        progress(index + 1);
    }
    Ok(measured)
}

fn score(executor: &mut dyn Executor, program: &Program, window: &[u32], measured: &mut Measured) -> Result<()> {
    let Some((logits, frac)) = logits_of(program) else { bail!("the model does not generate text") };
    // Every position has logits where a prompt has one token; the words that come with them are of no use here.
    let sampling = Arc::new(Sampling::greedy(1, u32::MAX));
    let cache = CacheId(0);
    executor.drop_cache(cache);
    // Nothing comes after the last token.
    let inputs = &window[..window.len() - 1];
    let pass = pass_positions(program);
    for start in (0..inputs.len()).step_by(pass) {
        let end = inputs.len().min(start + pass);
        let sampler = Some(Sampler { sampling: Arc::clone(&sampling), draws: vec![0; end - start] });
        let sequence = Sequence { tokens: inputs[..end].to_vec(), start, cache: Some(cache), sampler };
        executor.begin(&Batch { sequences: vec![sequence] })?;
        for layer in 0..program.layers.len() {
            measured.saturations += executor.run_layer(layer)?.saturations;
        }
        let Value::I32(rows) = executor.read(logits)? else { bail!("logits are i32") };
        for (row, next) in rows.chunks(program.vocab_size as usize).zip(&window[start + 1..]) {
            measured.nll += nll(row, frac, *next);
            measured.scored += 1;
        }
    }
    Ok(())
}

/// The logits and their fractional bits.
fn logits_of(program: &Program) -> Option<(TensorId, u8)> {
    program.layers.iter().flat_map(|layer| &layer.ops).find_map(|op| match op {
        Op::Sample { logits, frac, .. } => Some((*logits, *frac)),
        _ => None,
    })
}

fn pass_positions(program: &Program) -> usize {
    let (mut pass, cached) = (PASS, program.max_positions.into());
    let shape = |pass: usize| PassShape { positions: pass as u64, sequences: 1, points: pass as u64, cached };
    while pass > 1 && program.pass_bytes(&shape(pass)) > PASS_BYTES {
        pass /= 2;
    }
    pass
}

/// `-ln(softmax(row * 2^-frac)[token])`.
fn nll(row: &[i32], frac: u8, token: u32) -> f64 {
    let unit = (-f64::from(frac)).exp2();
    let most = row.iter().copied().max().unwrap_or(0);
    let below = |logit: i32| (f64::from(logit) - f64::from(most)) * unit;
    let total: f64 = row.iter().map(|logit| below(*logit).exp()).sum();
    total.ln() - below(row[token as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_costs_nothing_and_what_is_even_costs_its_logarithm() {
        assert!((nll(&[5 << 16; 8], 16, 3) - 8_f64.ln()).abs() < 1e-12);
        assert!(nll(&[100 << 16, 0, 0], 16, 0) < 1e-12);
        assert!((nll(&[0, 1 << 10], 10, 0) - (1.0 + 1_f64.exp()).ln()).abs() < 1e-12);
    }

    #[test]
    fn a_last_window_of_one_token_is_left_out() {
        let count = |tokens: usize, most: usize| Windows { tokens: &vec![0; tokens], window: 4, most }.count();
        assert_eq!([0, 1, 2, 4, 5, 6, 8].map(|tokens| count(tokens, 9)), [0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(count(100, 3), 3);
    }
}
