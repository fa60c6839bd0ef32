//! Words of points: settings and histories to the device.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::Op;

use super::planner::Planner;
use super::{DeviceExecutor, Inputs};
use crate::device::Buffer;
use crate::params::SampleParams;
use crate::plan::{self, Launch, MOST_POINTS, SamplePoints};

/// Where sampling finds all but its tensors.
pub(super) struct SamplePlaces {
    pub points: u64,
    pub words: u64,
    /// Scratch of a word for each token of the vocabulary and point.
    pub seen: u64,
    pub weights: u64,
}

impl Planner<'_> {
    /// The words of so many points.
    pub fn sample(&self, op: &Op, at: &SamplePlaces, count: u32) -> Launch {
        let Op::Sample { logits, frac, token_bytes, out } = op else { unreachable!("only called for sample") };
        let params = SampleParams {
            logits: self.values.at(*logits),
            token_bytes: self.weights.at(*token_bytes),
            words: at.words,
            points: at.points,
            seen: at.seen,
            weights: at.weights,
            out: self.values.at(*out),
            vocabulary: self.cols(*logits),
            width: self.program.param(*token_bytes).cols,
            frac: (*frac).into(),
            unused: 0,
        };
        plan::sample(count, params)
    }
}

impl DeviceExecutor {
    pub(super) fn sample(&self, inputs: &Inputs, op: &Op) -> Result<(), BackendError> {
        let Op::Sample { logits, frac, .. } = op else { unreachable!("only called for sample") };
        let SamplePoints { points, words } = self.points(*frac);
        let vocabulary = self.program.tensor(*logits).cols as usize;
        let words = Buffer::of(&self.device, &words)?;
        let scratch = || Buffer::new(&self.device, MOST_POINTS.min(points.len()) * vocabulary * 4);
        let (seen, weights) = (scratch()?, scratch()?);
        for points in points.chunks(MOST_POINTS) {
            let list = Buffer::of(&self.device, points)?;
            let [points_at, words, seen, weights] = [&list, &words, &seen, &weights].map(Buffer::address);
            let places = SamplePlaces { points: points_at, words, seen, weights };
            self.device.launch(&self.planner(inputs).sample(op, &places, points.len() as u32))?;
        }
        Ok(())
    }

    /// All points of the pass, in order.
    pub(super) fn points(&self, frac: u8) -> SamplePoints {
        let mut all = SamplePoints::default();
        for sequence in &self.pass.batch.sequences {
            let Some(sampler) = &sequence.sampler else { continue };
            let points = sequence.points().map(|point| point + 1).zip(sampler.draws.iter().copied());
            all.add(&sampler.sampling, &sequence.tokens, frac, points);
        }
        all
    }
}
