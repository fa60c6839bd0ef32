//! What is sampled from: settings and histories of points, in one list of words.

use lockstep_kernels::reference::sample::{Scale, least_weight};
use lockstep_kernels::sampling::Sampling;

use crate::params::SamplePoint;

/// Most points of one launch: each needs scratch of eight bytes for each token of the vocabulary.
pub const MOST_POINTS: usize = 64;

/// Points, and the lists that they point into.
#[derive(Clone, Debug, Default)]
pub struct SamplePoints {
    /// In the order in which they were added.
    pub points: Vec<SamplePoint>,
    /// Histories, biases, stop tokens and stop strings.
    pub words: Vec<u32>,
}

impl SamplePoints {
    /// Adds points of one sequence: for each, how many of the tokens came before it, and its draw. Logits have `frac`
    /// fractional bits.
    pub fn add(
        &mut self,
        sampling: &Sampling,
        tokens: &[u32],
        frac: u8,
        points: impl IntoIterator<Item = (usize, u64)>,
    ) {
        let settings = self.settings(sampling, frac);
        let history = self.list(tokens.iter().copied());
        for (history_len, draw) in points {
            let (history_len, row) = (history_len as u32, self.points.len() as u32);
            self.points.push(SamplePoint { draw, history, history_len, row, ..settings });
        }
    }

    /// Adds a list; returns where it starts.
    fn list(&mut self, words: impl IntoIterator<Item = u32>) -> u32 {
        let at = self.words.len() as u32;
        self.words.extend(words);
        at
    }

    /// All but what differs between points.
    fn settings(&mut self, s: &Sampling, frac: u8) -> SamplePoint {
        let scale = Scale::new(s.temperature, frac.into());
        let strings = s.stop_strings.iter();
        let strings = strings.flat_map(|s| std::iter::once(s.len() as u32).chain(s.iter().map(|b| u32::from(*b))));
        SamplePoint {
            prompt_tokens: s.prompt_tokens,
            max_tokens: s.max_tokens,
            temperature: s.temperature,
            scale_mantissa: scale.mantissa,
            scale_shift: scale.shift,
            top_k: s.top_k,
            top_p: s.top_p,
            least_weight: least_weight(s.min_p),
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            bias: self.list(s.logit_bias.iter().flat_map(|(token, bias)| [*token, *bias as u32])),
            bias_len: s.logit_bias.len() as u32,
            stop_tokens: self.list(s.stop_tokens.iter().copied()),
            stop_tokens_len: s.stop_tokens.len() as u32,
            stop_strings: self.list(strings),
            stop_strings_len: s.stop_strings.len() as u32,
            ..SamplePoint::default()
        }
    }
}
