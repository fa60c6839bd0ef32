//! How fast a decoder reads prompts and makes words, commitments included, at several depths and batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockstep_kernels::backend::Backend;
use lockstep_model::generation::{Event, Generator, Limits, Request};
use lockstep_model::package::Package;
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
use lockstep_protocol::ids::Seed;
use serde_json::json;

use crate::audit::hashing;
use crate::report::{Figure, Row};
use crate::samples::{Effort, Samples};
use crate::watch::Watch;

/// What a depth is a multiple of: prefixes are kept in whole pages.
pub const PAGE: usize = 256;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of a prompt that are computed in a prefill.
    pub prefill: usize,
    /// Words that are made in a decode.
    pub decode: u32,
    /// Tokens before both that are there already, a multiple of [`PAGE`].
    pub depth: usize,
    /// Sequences side by side.
    pub batch: usize,
    /// Times that count; each runs once more to warm up.
    pub samples: usize,
}

/// Seconds of each sample.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Reading the prompts, the first word of each included.
    pub prefill: Samples,
    /// Making the words, from a prompt whose last token alone is new.
    pub decode: Samples,
    /// Hashing what a prefill commits to, by itself on one thread.
    pub prefill_hashing: Samples,
    /// The same of a decode.
    pub decode_hashing: Samples,
}

impl Measured {
    /// What commitments take of prefill and decode together, as if nothing overlapped.
    fn commit_share(&self) -> Samples {
        let sum = |a: &Samples, b: &Samples| a.0.iter().zip(&b.0).map(|(a, b)| a + b).collect::<Vec<_>>();
        Samples::ratios(&sum(&self.prefill_hashing, &self.decode_hashing), &sum(&self.prefill, &self.decode))
    }

    /// The row of a report.
    pub fn row(&self, workload: Workload, watch: &Watch) -> Row {
        let Workload { prefill, decode, depth, batch, .. } = workload;
        let tokens = |count: usize| (batch * count) as f64;
        Row::new([
            ("depth", depth.into()),
            ("batch", batch.into()),
            ("prefill", prefill.into()),
            ("decode", decode.into()),
        ])
        .figure(Figure::rate("prefill_tokens_per_second", "prefill t/s", tokens(prefill), &self.prefill))
        .figure(Figure::rate("decode_tokens_per_second", "decode t/s", tokens(decode as usize), &self.decode))
        .figure(Figure::of("commit_share", "commit share", &self.commit_share()))
        .detail("prefill_commit_share", self.prefill_hashing.median() / self.prefill.median())
        .detail("decode_commit_share", self.decode_hashing.median() / self.decode.median())
        .detail("prefill_seconds", json!(self.prefill.0))
        .detail("decode_seconds", json!(self.decode.0))
        .seen(&watch.seen())
    }
}

/// Measures a prefill and a decode. The two are apart, as in other programs: a prefill ends with the first word of each
/// sequence, a decode starts from one new token.
///
/// # Errors
/// The workload does not fit the model, or the backend fails.
pub fn measure(package: &Package, backend: &dyn Backend, workload: Workload) -> Result<Measured> {
    let Workload { prefill, decode, depth, batch, samples } = workload;
    ensure!(depth.is_multiple_of(PAGE), "a depth of {depth} is not a multiple of {PAGE}");
    ensure!(prefill > 0 && decode > 0 && batch > 0, "prefill, decode and batch are at least 1");
    let program = package.program();
    let longest = depth as u64 + (prefill as u64 + 1).max(1 + u64::from(decode));
    ensure!(
        longest <= u64::from(program.max_positions),
        "{longest} positions are asked for; the model has {}",
        program.max_positions
    );
    let one = Limits::of_one(program, longest);
    let kept = program.cache_bytes(depth as u64).saturating_add(1 << 30);
    let prefix_bytes = if depth > 0 { kept } else { 0 };
    let cache_bytes = one.cache_bytes.saturating_mul(batch as u64);
    let limits = Limits { sequences: batch, cache_bytes, prefix_bytes, ..one };
    let mut generator = Generator::new(Arc::clone(program), package.params(), backend, limits)?;
    let mut runs = Runs { vocab: program.vocab_size, depth, batch, count: 0 };
    if depth > 0 {
        // One token more than is kept, so that there is something left to compute.
        runs.run(&mut generator, 1, 1)?;
    }
    let effort = Effort { least: samples, most: samples, budget: Duration::ZERO };
    let hashed = |prompt, points| batch as f64 * hashing(program, prompt, points, false);
    Ok(Measured {
        prefill: effort.sample(|| runs.run(&mut generator, prefill, 1))?,
        decode: effort.sample(|| runs.run(&mut generator, 1, decode))?,
        prefill_hashing: (0..samples).map(|_| hashed(prefill, 1)).collect(),
        decode_hashing: (0..samples).map(|_| hashed(1, decode as usize)).collect(),
    })
}

struct Runs {
    vocab: u32,
    depth: usize,
    batch: usize,
    /// Runs so far.
    count: usize,
}

impl Runs {
    /// Token ids that count up: the same for all sequences up to the depth. Behind it each sequence of each run has its
    /// own, or it would start from what an earlier one left.
    fn prompt(&self, sequence: usize, new: usize) -> Vec<u32> {
        let token = |t: usize, salt: usize| ((17 + 31 * t + 7 * salt) % self.vocab as usize) as u32;
        let salt = 1 + self.count * self.batch + sequence;
        (0..self.depth).map(|t| token(t, 0)).chain((0..new).map(|t| token(self.depth + t, salt))).collect()
    }

    /// Seconds of all sequences side by side, each with so many new tokens and words.
    fn run(&mut self, generator: &mut Generator, new: usize, words: u32) -> Result<f64> {
        // Drawn at full temperature, so that the words differ; nothing ends a run early.
        let generation = Generation { temperature: SAMPLING_ONE, ..Generation::greedy(words) };
        let requests: Vec<Request> = (0..self.batch)
            .map(|s| Request::new(self.prompt(s, new), &generation, Seed::from_bytes([s as u8; 32]), Vec::new()))
            .collect();
        let is_first = self.count == 0;
        self.count += 1;
        let start = Instant::now();
        for request in requests {
            generator.submit(request)?;
        }
        let mut ended = Vec::new();
        let mut note = |_, event| {
            if let Event::Done(run) = event {
                ended.push((run.words.len(), run.reused_positions));
            }
        };
        while generator.step(&mut note)? {}
        let seconds = start.elapsed().as_secs_f64();
        ensure!(ended.len() == self.batch, "{} of {} runs ended", ended.len(), self.batch);
        ensure!(ended.iter().all(|(made, _)| *made == words as usize), "a run ended early");
        // Nothing is kept of runs in which numbers saturated, nor where there is no memory for it.
        let has_kept = ended.iter().all(|(_, reused)| *reused == self.depth);
        ensure!(self.depth == 0 || is_first || has_kept, "the model kept no prefix of {} tokens", self.depth);
        Ok(seconds)
    }
}
