//! The Q formats of a decoder's residual stream, from runs of the model itself (SPEC 27.9).

use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::value::Params;

use crate::error::ModelError;
use crate::lower::Decoder;
use crate::quantize::calibrate::{each_layer, peak};

/// Bits between the largest value that was seen and the largest that fits.
const HEADROOM: i32 = 4;
/// Fractional bits of the first run, where the embedding allows them.
const FIRST_FRAC: i32 = 12;
/// Fewer of them after each run that overflows.
const STEP: i32 = 6;

/// Gives each layer as many fractional bits as leave 4 bits of headroom over what the calibration text needs, and over
/// the largest embedding, and never more than the layer before. `done(n, of)` is called after each layer.
///
/// # Errors
/// A stream beyond 31 bits, and what the backend says.
pub fn settle(
    decoder: &mut Decoder,
    texts: &[Vec<u32>],
    backend: &dyn Backend,
    done: &mut dyn FnMut(u64, u64),
) -> Result<(), ModelError> {
    let cap = (decoder.residual()[0] - HEADROOM).max(0);
    let layers = decoder.residual().len() - 1;
    let mut first = cap.min(FIRST_FRAC);
    let peaks = loop {
        decoder.set_residual(&vec![first; layers])?;
        let peaks = peaks(decoder, texts, backend, done)?;
        if peaks.iter().all(|p| *p < i32::MAX as u32) {
            break peaks;
        }
        if first == 0 {
            return Err(ModelError::bounds("residual stream", "it exceeds 2^31 on the calibration text"));
        }
        first = (first - STEP).max(0);
    };
    let room = |peak: &u32| 31 - HEADROOM - bits(*peak);
    let wanted: Vec<i32> = peaks.iter().map(|p| first + room(p)).collect();
    let formats = descending(cap, &wanted);
    decoder.set_residual(&formats)?;
    // With its own formats the model may come out a little larger: once more, and only down.
    let peaks = self::peaks(decoder, texts, backend, done)?;
    let refined: Vec<i32> = formats.iter().zip(&peaks).map(|(f, p)| f + room(p).min(0)).collect();
    decoder.set_residual(&descending(cap, &refined))
}

fn bits(peak: u32) -> i32 {
    (u32::BITS - peak.leading_zeros()) as i32
}

/// The largest formats within what is wanted that never increase.
fn descending(cap: i32, wanted: &[i32]) -> Vec<i32> {
    let mut least = cap;
    let fall = |f: &i32| {
        least = least.min(*f).max(0);
        least
    };
    wanted.iter().map(fall).collect()
}

/// The largest magnitude of each layer's residual stream.
fn peaks(
    decoder: &Decoder,
    texts: &[Vec<u32>],
    backend: &dyn Backend,
    done: &mut dyn FnMut(u64, u64),
) -> Result<Vec<u32>, ModelError> {
    let program = decoder.program();
    let params: Arc<dyn Params> = Arc::new(decoder.params());
    program.validate()?;
    let mut peaks = vec![0; decoder.residual().len() - 1];
    each_layer(&program, &params, texts, backend, &mut |layer, _, executor| {
        if let Some(largest) = layer.checked_sub(1).and_then(|l| peaks.get_mut(l)) {
            *largest = peak(&decoder.stream(layer), executor)?.max(*largest);
        }
        done(layer as u64 + 1, program.layers.len() as u64);
        Ok(())
    })?;
    Ok(peaks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_never_increase() {
        assert_eq!(descending(20, &[25, 18, 19, 7, -3, 30]), [20, 18, 18, 7, 0, 0]);
        assert_eq!([0, 1, 2, 3, 1 << 27].map(bits), [0, 1, 2, 2, 28]);
    }
}
