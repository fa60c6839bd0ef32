//! The jobs that all worlds are made of, so that the honest run of each is made once.

use std::sync::{Arc, OnceLock};

use lockstep_kernels::reference::Reference;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_job};
use lockstep_protocol::commitment::Geometry;
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::ids::{Nonce, RequestHash, Seed};
use lockstep_protocol::job::{Job, JobKind, SPEC_VERSION};
use lockstep_protocol::machine::Work;

use crate::models;
use crate::random::Random;

/// A model with something to do for it.
pub struct Case {
    /// Index into [`models::every`].
    pub model: usize,
    /// The job, but for nonce and request, which change no result.
    pub job: Job,
    honest: OnceLock<Arc<Rerun>>,
    hinted: OnceLock<Arc<Rerun>>,
}

/// Model and length of each embedding. One position; lengths around the edges of pooling blocks (56), of attention blocks
/// (256) and of one round of a descent (256 chunks).
const EMBEDDINGS: [(usize, usize); 15] = [
    (0, 1),
    (0, 3),
    (0, 20),
    (0, 57),
    (1, 2),
    (1, 9),
    (1, 30),
    (2, 1),
    (2, 4),
    (2, models::WIDE_POSITIONS),
    (3, 1),
    (3, 7),
    (3, 64),
    (0, 258),
    (3, models::MAX_POSITIONS),
];
/// Embeddings at the end of the list that take long.
const LONG_EMBEDDINGS: usize = 2;

/// What is asked of a decoder.
type Asked = fn() -> Generation;

/// Which decoder, how many tokens of prompt, and what is asked of it: a prompt of one token; a run of one point; greedy,
/// sampled from all tokens, filtered and penalised, and ended by a token or text that stops; without log-probabilities, and
/// with those of the drawn token, of some likely ones, and of more than the vocabulary's first few.
const GENERATIONS: [(usize, usize, Asked); 15] = [
    (0, 1, || Generation::greedy(1)),
    (0, 1, || listed(Generation::greedy(5), 2)),
    (0, 7, || listed(Generation::greedy(6), 4)),
    (0, 3, || sampled(4)),
    (0, 12, || listed(sampled(6), 6)),
    (0, 5, || filtered(6)),
    (0, 2, || listed(filtered(3), 5)),
    (0, 1, || listed(Generation::greedy(1), 3)),
    (0, 6, || listed(filtered(4), 1)),
    (1, 4, || listed(sampled(3), 21)),
    (0, 4, || listed(ended_by_text(8), 3)),
    (0, 9, || ended_by_token(8)),
    (1, 3, || sampled(4)),
    (1, 6, || listed(Generation::greedy(3), 8)),
    // The words lie on both sides of an attention block's end, and of a round of a descent.
    (0, 254, || listed(filtered(4), 5)),
];
/// Generations at the end of the list that take long.
const LONG_GENERATIONS: usize = 1;
/// How many worlds in a thousand have a case that takes long.
const LONG_PER_MILLE: u64 = 60;

/// Drawn from all tokens as the model has it.
fn sampled(max_tokens: u32) -> Generation {
    Generation { temperature: 10_000, ..Generation::greedy(max_tokens) }
}

/// Everything that may be asked of sampling, but for stops.
fn filtered(max_tokens: u32) -> Generation {
    Generation {
        temperature: 15_000,
        top_k: 50,
        top_p: 9_900,
        min_p: 10,
        repetition_penalty: 10_500,
        presence_penalty: 500,
        frequency_penalty: 1_000,
        logit_bias: vec![(3, 5_000)],
        ..Generation::greedy(max_tokens)
    }
}

/// With the log-probabilities of the drawn tokens and of the likeliest ones, so many together.
fn listed(asked: Generation, logprobs: u8) -> Generation {
    Generation { logprobs, ..asked }
}

/// Ended by a token, most of the time.
fn ended_by_token(max_tokens: u32) -> Generation {
    Generation { stop_tokens: (0..61).step_by(3).collect(), ..sampled(max_tokens) }
}

/// Ended by a text, most of the time.
fn ended_by_text(max_tokens: u32) -> Generation {
    Generation { stop_strings: vec![b"ba".to_vec(), b"aab".to_vec()], ..sampled(max_tokens) }
}

/// All cases: embeddings, then generations.
pub fn cases() -> &'static [Case] {
    static ALL: OnceLock<Vec<Case>> = OnceLock::new();
    ALL.get_or_init(|| {
        let embeddings = EMBEDDINGS.iter().map(|(model, length)| (*model, *length, JobKind::Embedding));
        let generations = GENERATIONS.iter().map(|(decoder, length, asked)| {
            (models::all().len() + decoder, *length, JobKind::Generation(Box::new(asked())))
        });
        let all = embeddings.chain(generations).enumerate();
        all.map(|(index, (model, length, kind))| Case::new(index as u64, model, length, kind)).collect()
    })
}

/// A case for a job.
pub fn draw(random: &mut Random) -> &'static Case {
    let (embeddings, generations) = cases().split_at(EMBEDDINGS.len());
    let (kind, long) =
        if random.per_mille(500) { (embeddings, LONG_EMBEDDINGS) } else { (generations, LONG_GENERATIONS) };
    let (short, long) = kind.split_at(kind.len() - long);
    if random.per_mille(LONG_PER_MILLE) { random.pick(long) } else { random.pick(short) }
}

impl Case {
    fn new(index: u64, model: usize, length: usize, kind: JobKind) -> Self {
        let mut random = Random::new("tokens", index);
        let package = models::every().nth(model).expect("every case names a model");
        let vocabulary = u64::from(package.program().vocab_size);
        let tokens = (0..length).map(|_| random.within(0..=vocabulary - 1) as u32).collect();
        let job = Job {
            spec_version: SPEC_VERSION,
            model: package.model_id(),
            kind,
            tokens,
            request: RequestHash::from_bytes([0; 32]),
            seed: Seed::from_bytes(random.bytes32()),
            nonce: Nonce::from_bytes([0; 32]),
        };
        Self { model, job, honest: OnceLock::new(), hinted: OnceLock::new() }
    }

    /// The model.
    pub fn package(&self) -> &'static Package {
        models::every().nth(self.model).expect("every case names a model")
    }

    /// Token ids of the input.
    pub fn tokens(&self) -> &[u32] {
        &self.job.tokens
    }

    /// Transformer layers of the model.
    pub fn layers(&self) -> u16 {
        (self.package().program().layers.len() - 2) as u16
    }

    /// Where the job commits.
    pub fn geometry(&self) -> Geometry {
        self.job.header().geometry(self.layers()).expect("the job's shape is that of its model")
    }

    /// Whether it is a generation.
    pub fn is_generation(&self) -> bool {
        self.job.kind != JobKind::Embedding
    }

    /// Values of a point's log-probabilities; 0 where none are asked for.
    pub fn logprob_values(&self) -> usize {
        self.job.kind.generation().map_or(0, Generation::logprob_values)
    }

    /// The words of an output, and the log-probabilities after them; of an embedding there are none of either.
    pub fn split_output<'a>(&self, output: &'a [i32]) -> (Vec<u32>, &'a [i32]) {
        let Some(asked) = self.job.kind.generation() else { return (Vec::new(), &[]) };
        let (words, logprobs) = output.split_at(output.len() / asked.values_per_point());
        (words_of(words), logprobs)
    }

    /// The words of the honest run.
    pub fn words(&self) -> Vec<u32> {
        self.split_output(&self.honest().output).0
    }

    /// What its kind is called in reports.
    pub fn kind(&self) -> &'static str {
        if self.is_generation() { "generation" } else { "embedding" }
    }

    /// Multiply-accumulates of a run, by its points.
    pub fn work(&self) -> Work {
        let (program, tokens) = (self.package().program(), self.tokens().len() as u64);
        if self.is_generation() {
            Work::of_points([1, 2, 3].map(|points| program.macs(tokens + points - 1, points)))
        } else {
            Work::fixed(program.macs(tokens, 0))
        }
    }

    /// What the job gives.
    pub fn honest(&self) -> &Arc<Rerun> {
        self.honest.get_or_init(|| Arc::new(self.rerun(&[])))
    }

    /// What it gives to somebody who is told these words: the same.
    pub fn of_hint(&self, hint: &[u32]) -> Arc<Rerun> {
        if hint.is_empty() {
            Arc::clone(self.honest())
        } else if hint == self.words() {
            Arc::clone(self.hinted.get_or_init(|| Arc::new(self.rerun(hint))))
        } else {
            Arc::new(self.rerun(hint))
        }
    }

    fn rerun(&self, hint: &[u32]) -> Rerun {
        rerun_job(self.package(), &Reference, &self.job, hint).expect("the models of the simulation run what fits them")
    }

    /// The tokens that the model read in an honest run, as far as words were fed back: all but the last.
    pub fn read_tokens(&self) -> Vec<u32> {
        let mut tokens = self.tokens().to_vec();
        if self.is_generation() {
            let words = self.words();
            let fed = &words[..words.len() - 1];
            tokens.extend(fed.iter().map(|word| lockstep_protocol::generation::word_token(*word)));
        }
        tokens
    }
}
