//! Words of points: settings and histories to the device.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::Op;

use super::DeviceExecutor;
use crate::device::Buffer;
use crate::params::SampleParams;
use crate::plan::{self, SamplePoints};

/// Points of one launch: each needs scratch of eight bytes for each token of the vocabulary.
const POINTS: usize = 64;

impl DeviceExecutor {
    pub(super) fn sample(&self, op: &Op) -> Result<(), BackendError> {
        let Op::Sample { logits, frac, token_bytes, out } = op else { unreachable!("only called for sample") };
        let SamplePoints { points, words } = self.points(*frac);
        let vocabulary = self.cols(*logits);
        let words = Buffer::of(&self.device, &words)?;
        let scratch = || Buffer::new(&self.device, POINTS.min(points.len()) * vocabulary as usize * 4);
        let (seen, weights) = (scratch()?, scratch()?);
        for points in points.chunks(POINTS) {
            let list = Buffer::of(&self.device, points)?;
            let params = SampleParams {
                logits: self.values.at(*logits),
                token_bytes: self.weights.at(*token_bytes),
                words: words.address(),
                points: list.address(),
                seen: seen.address(),
                weights: weights.address(),
                out: self.values.at(*out),
                vocabulary,
                width: self.program.param(*token_bytes).cols,
                frac: (*frac).into(),
                unused: 0,
            };
            self.device.launch(&plan::sample(points.len() as u32, params))?;
        }
        Ok(())
    }

    /// All points of the pass, in order.
    fn points(&self, frac: u8) -> SamplePoints {
        let mut all = SamplePoints::default();
        for sequence in &self.pass.batch.sequences {
            let Some(sampler) = &sequence.sampler else { continue };
            let points = sequence.points().map(|point| point + 1).zip(sampler.draws.iter().copied());
            all.add(&sampler.sampling, &sequence.tokens, frac, points);
        }
        all
    }
}
