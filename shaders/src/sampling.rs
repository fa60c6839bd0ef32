//! The dispatch of sampling: settings and penalties of each point as the shader reads them, and, of the token that it draws,
//! whether the generation ends with it. That is a question about text, which only the host has.

use std::collections::BTreeMap;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::host::SampleArgs;
use lockstep_kernels::reference::sample::{Scale, Seen, finish, in_units, least_weight, tail};
use lockstep_kernels::sampling::word;

use crate::gpu::{Gpu, Kernel};
use crate::plan::grid;
use crate::recorder::{Recorder, Slice};
use crate::shader::Sample;

/// The words of points, whose logits lie on the device: `[points, cols]`.
pub(crate) fn words(
    gpu: &Gpu,
    recorder: &mut Recorder,
    logits: Slice<'_>,
    cols: usize,
    points: &[SampleArgs<'_>],
) -> Result<Vec<i32>, BackendError> {
    let (mut settings, mut adjustments) = (Vec::new(), Vec::new());
    for point in points {
        let first = adjustments.len() / ADJUSTMENT;
        adjust(point, cols as u32, &mut adjustments);
        settings.extend(settings_of(point, first as u32, (adjustments.len() / ADJUSTMENT) as u32));
    }
    // A binding is never empty.
    adjustments.resize(adjustments.len().max(ADJUSTMENT), 0);
    let (settings, adjustments) = (gpu.upload(&settings), gpu.upload(&adjustments));
    let rows = gpu.storage((points.len() * cols * 4) as u64);
    let tokens = gpu.storage((points.len() * 4) as u64);
    let params = Sample { points: points.len() as u32, cols: cols as u32 };
    let others = [&settings, &adjustments, &tokens, &rows].map(Slice::all);
    let bindings = [(1, logits), (2, others[0]), (3, others[1]), (4, others[2]), (5, others[3])];
    recorder.dispatch(Kernel::of("sample"), &params, &bindings, false, grid(points.len() as u64), 0);
    recorder.submit();
    let tokens = gpu.download(&tokens, (points.len() * 4) as u64)?;
    let tokens = tokens.as_chunks::<4>().0.iter().map(|token| u32::from_le_bytes(*token));
    Ok(points.iter().zip(tokens).map(|(point, token)| word_of(point, token) as i32).collect())
}

/// As `Settings` in `sample.wgsl`.
fn settings_of(point: &SampleArgs<'_>, first: u32, end: u32) -> [u32; 11] {
    let settings = point.sampling;
    let scale = Scale::new(settings.temperature, point.frac);
    [
        scale.mantissa,
        scale.shift as u32,
        u32::from(settings.temperature == 0),
        settings.top_k,
        settings.top_p,
        least_weight(settings.min_p),
        point.draw as u32,
        (point.draw >> 32) as u32,
        settings.repetition_penalty.max(1),
        first,
        end,
    ]
}

/// Words of an `Adjustment` in `sample.wgsl`.
const ADJUSTMENT: usize = 7;

/// Appends what is done to logits of a point: to those of tokens that have a bias or were seen.
fn adjust(point: &SampleArgs<'_>, cols: u32, to: &mut Vec<u32>) {
    let settings = point.sampling;
    let mut tokens = BTreeMap::<u32, (Seen, i32)>::new();
    for (token, bias) in &settings.logit_bias {
        tokens.entry(*token).or_default().1 = *bias;
    }
    if settings.penalises() {
        let (prompt, generated) = settings.split(point.history);
        prompt.iter().for_each(|token| tokens.entry(*token).or_default().0.prompt = true);
        generated.iter().for_each(|token| tokens.entry(*token).or_default().0.generated += 1);
    }
    for (token, (seen, bias)) in tokens.into_iter().filter(|(token, _)| *token < cols) {
        let bias = in_units(bias.into(), point.frac);
        let frequency = i128::from(settings.frequency_penalty) * i128::from(seen.generated);
        let off = in_units(i128::from(settings.presence_penalty) + frequency, point.frac);
        let off = if seen.generated > 0 { off } else { 0 };
        let was_seen = seen.prompt || seen.generated > 0;
        to.extend([token, was_seen.into(), bias as u32, (bias >> 32) as u32]);
        to.extend([off as u32, (off >> 32) as u32, (off >> 64) as u32]);
    }
}

/// The word of a token that was drawn.
fn word_of(point: &SampleArgs<'_>, token: u32) -> u32 {
    let (_, generated) = point.sampling.split(point.history);
    let before = tail(point.token_bytes, generated);
    let number = generated.len() as u64 + 1;
    word(token, finish(point.sampling, number, &before, point.token_bytes.of(token), token))
}
