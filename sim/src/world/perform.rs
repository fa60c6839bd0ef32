//! What a party claims to have computed.

use std::sync::Arc;

use lockstep_model::rerun::Rerun;
use lockstep_protocol::generation::word_root;
use lockstep_protocol::ids::{Root, Seed};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::trace::padded_row_bytes;

use super::cast::Role;
use crate::adversary::{Adversary, Change, Lie};
use crate::random::Random;
use crate::runs::{Basis, Case, Listed, Rows};

/// So many lies are tried until one shows in log-probabilities and in no root.
const MOST_TRIES: usize = 8;

/// What a party claims about a job.
#[derive(Clone, Debug)]
pub struct Performance {
    /// Roots and output.
    pub run: Arc<Rerun>,
    /// Where they come from.
    pub basis: Basis,
}

impl Performance {
    /// Of a generation its words.
    pub fn words(&self, case: &Case) -> Vec<u32> {
        case.split_output(&self.run.output).0
    }

    /// Their log-probabilities, where these are asked for.
    pub fn logprobs(&self, case: &Case) -> &[i32] {
        case.split_output(&self.run.output).1
    }

    /// Those of one point, counted from 0.
    pub fn logprobs_at(&self, case: &Case, index: usize) -> Vec<i32> {
        let rows = self.logprobs(case).chunks_exact(case.logprob_values().max(1));
        rows.into_iter().nth(index).unwrap_or_default().to_vec()
    }
}

/// Which adversary one acts as over a case: who could only do what it does in a generation, or in one of several points,
/// is a liar elsewhere.
pub fn acts_as(adversary: Adversary, case: &Case) -> Adversary {
    let has_points = case.honest().roots.len() > usize::from(case.layers()) + 1;
    match adversary {
        Adversary::Perjurer if !has_points => Adversary::ConsistentLiar,
        Adversary::Misquoter if case.logprob_values() == 0 => Adversary::ConsistentLiar,
        other => other,
    }
}

/// What a party of this role claims about a job over this case. `hint` is what it was told of the words. `shared` is the
/// stream of the gang: all of one world's colluders draw the same lie from it; `own` is the party's.
pub fn perform(role: Role, case: &'static Case, hint: &[u32], shared: &mut Random, own: &mut Random) -> Performance {
    let adversary = match role {
        Role::Honest => return Performance { run: case.of_hint(hint), basis: Basis::Honest },
        // A machine errs anywhere.
        Role::Faulty => return anything(case, own),
        Role::Cheat(adversary) => acts_as(adversary, case),
    };
    match adversary {
        Adversary::Twin => Performance { run: Arc::clone(case.honest()), basis: Basis::Honest },
        Adversary::SamplerCheat => output_cheat(case, own),
        Adversary::OutOfRange => lied(case.lied_visibly(own, |random| out_of_range(case, random))),
        Adversary::Padding => padding(case, own),
        Adversary::Perjurer => perjury(case, own),
        Adversary::Misquoter => misquoted(case, own),
        Adversary::OtherModel => Performance { run: Arc::new(case.of_other_model()), basis: Basis::OtherModel },
        Adversary::OtherTokens => other_tokens(case, own),
        Adversary::LazyAuditor => made_up(case, hint, own),
        Adversary::Colluder => anything(case, shared),
        // One of them has what the other copies.
        Adversary::Copier => {
            let claim = anything(case, shared);
            let basis = if own.per_mille(500) { claim.basis } else { Basis::Nothing };
            Performance { basis, ..claim }
        }
        _ => anything(case, own),
    }
}

fn lied((lie, run): (Lie, Rerun)) -> Performance {
    Performance { run: Arc::new(run), basis: Basis::Lies(vec![lie]) }
}

/// A lie about any element of any op.
fn anything(case: &Case, random: &mut Random) -> Performance {
    lied(case.lied_visibly(random, |random| case.draw_lie(random)))
}

/// A value that the op can't give, or nearly never: codes beyond 32,639, the ends of `i32`, exponents out of range; a word
/// of a token that is none, or with an end that has no meaning.
fn out_of_range(case: &Case, random: &mut Random) -> Lie {
    let program = case.package().program();
    let layer = program.layers.len() - 1;
    if case.is_generation() && random.per_mille(200) {
        let lie = case.lie_about(layer, program.layers[layer].ops.len() - 1, random);
        let words = [1 << 24 | 0xff_ffff, 4 << 24 | 1, -1, 2 << 24 | program.vocab_size.cast_signed()];
        return Lie { change: Change::Set(*random.pick(&words)), ..lie };
    }
    let extremes = [i32::MIN, i32::MAX, i32::from(i16::MIN), i32::from(i16::MAX), 32_640, -32_640, 63, -64];
    Lie { change: Change::Set(*random.pick(&extremes)), ..case.draw_lie(random) }
}

/// Another vector; another word, or one that was drawn otherwise.
fn output_cheat(case: &Case, random: &mut Random) -> Performance {
    let ops = &case.package().program().layers.last().expect("a program has layers").ops;
    let layer = case.package().program().layers.len() - 1;
    if case.is_generation() && random.per_mille(400) {
        let job = sampled_otherwise(&case.job, random);
        let run = case.of_other_job(&job);
        if run.roots != case.honest().roots {
            return Performance { run: Arc::new(run), basis: Basis::OtherJob(Box::new(job)) };
        }
    }
    let is_last = !case.is_generation() || random.per_mille(600);
    let op = if is_last { ops.len() - 1 } else { random.index(ops.len()) };
    lied(case.lied_visibly(random, |random| case.lie_about(layer, op, random)))
}

/// By another seed, with nothing left to chance, or from other tokens than was asked for.
fn sampled_otherwise(job: &Job, random: &mut Random) -> Job {
    let mut job = job.clone();
    let JobKind::Generation(asked) = &mut job.kind else { return job };
    match random.index(3) {
        0 => job.seed = Seed::from_bytes(random.bytes32()),
        1 => asked.temperature = if asked.temperature == 0 { 10_000 } else { 0 },
        _ => (asked.temperature, asked.top_k) = (20_000, 2),
    }
    job
}

/// Numbers where zeros have to be, in any layer and row, from the first point on that has the row.
fn padding(case: &Case, random: &mut Random) -> Performance {
    let layer = 1 + random.index(case.layers().into()) as u16;
    let row = random.index(case.read_tokens().len());
    let columns = case.columns(layer.into());
    let column = columns + random.index(padded_row_bytes(columns) / 4 - columns);
    let from = (row + 1).saturating_sub(case.tokens().len());
    changed_rows(case, Rows { layer, row, column, from, value: 1 + random.index(255) as i32 })
}

/// A row that was signed at an earlier point is another one from a later point on.
fn perjury(case: &Case, random: &mut Random) -> Performance {
    let points = case.honest().roots.len() / (usize::from(case.layers()) + 1);
    let layer = 1 + random.index(case.layers().into()) as u16;
    let from = 1 + random.index(points - 1);
    let row = random.index(case.tokens().len() + from - 1);
    let column = random.index(case.columns(layer.into()));
    changed_rows(case, Rows { layer, row, column, from, value: 1 << random.index(31) })
}

/// Other log-probabilities than those of the words: of other logits, or made up.
pub fn misquoted(case: &Case, random: &mut Random) -> Performance {
    if random.per_mille(400) {
        let layer = usize::from(case.layers()) + 1;
        let ops = case.package().program().layers[layer].ops.len();
        // Its rounding may swallow a lie, and the word may show it.
        for _ in 0..MOST_TRIES {
            let lie = case.lie_about(layer, random.index(ops - 1), random);
            let shows = |run: &Rerun| run.roots == case.honest().roots && run.output != case.honest().output;
            if let Some(run) = case.lied(&[lie]).filter(shows) {
                return lied((lie, run));
            }
        }
    }
    let (words, logprobs) = case.split_output(&case.honest().output);
    let (index, width) = (random.index(words.len()), case.logprob_values());
    let row = &logprobs[index * width..][..width];
    let listed = Listed { index, changes: changes(row, random) };
    Performance { run: Arc::new(case.with_listed(&listed)), basis: Basis::Listed(listed) }
}

/// Changes that a coordinator does not see through: of one value, of one token, or of the order of two. At times any.
fn changes(row: &[i32], random: &mut Random) -> Vec<(usize, i32)> {
    let likely = row.len() / 2;
    let (token, value) = (|n: usize| 1 + 2 * n, |n: usize| 2 + 2 * n);
    match random.index(5) {
        0 if likely > 0 => {
            let n = random.index(likely);
            vec![(token(n), row[token(n)] ^ 1)]
        }
        1 if likely > 1 => {
            let n = random.index(likely - 1);
            // Where both are equally likely, the order of their tokens is a lie too.
            vec![(token(n), row[token(n + 1)]), (token(n + 1), row[token(n)])]
        }
        2 if likely > 0 => {
            // Below the one before it, and above the one after it.
            let n = random.index(likely);
            let least = if n + 1 < likely { row[value(n + 1)] } else { i32::MIN };
            let changed =
                if row[value(n)] > least { row[value(n)] - 1 } else { row[value(n)].saturating_add(1).min(0) };
            vec![(value(n), changed)]
        }
        3 => vec![(random.index(row.len()), random.next_u64() as i32)],
        _ => vec![(0, if row[0] == 0 { -1 } else { row[0] + 1 })],
    }
}

fn changed_rows(case: &Case, rows: Rows) -> Performance {
    let (rows, run) = case.with_rows(rows);
    Performance { run: Arc::new(run), basis: Basis::Rows(rows) }
}

/// One token of the input is another.
fn other_tokens(case: &Case, random: &mut Random) -> Performance {
    let mut job = case.job.clone();
    let vocabulary = case.package().program().vocab_size;
    let at = random.index(job.tokens.len());
    job.tokens[at] = (job.tokens[at] + 1 + random.index(vocabulary as usize - 1) as u32) % vocabulary;
    Performance { run: Arc::new(case.of_other_job(&job)), basis: Basis::OtherJob(Box::new(job)) }
}

/// Roots of nothing, but for the output's, which anybody checks. The words are those that it was told, or any.
fn made_up(case: &Case, hint: &[u32], random: &mut Random) -> Performance {
    let per_point = usize::from(case.layers()) + 1;
    let mut run = Rerun::clone(case.honest());
    if let JobKind::Generation(asked) = &case.job.kind {
        let words = if hint.is_empty() { any_words(case, asked.max_tokens, random) } else { hint.to_vec() };
        run.roots = words.iter().flat_map(|word| vec![word_root(*word); per_point]).collect();
        let rows = vec![-1; words.len() * case.logprob_values()];
        run.output = words.iter().map(|word| word.cast_signed()).chain(rows).collect();
    }
    for point in run.roots.chunks_exact_mut(per_point) {
        point[..per_point - 1].iter_mut().for_each(|root| *root = Root::from_bytes(random.bytes32()));
    }
    Performance { run: Arc::new(run), basis: Basis::Nothing }
}

fn any_words(case: &Case, max_tokens: u32, random: &mut Random) -> Vec<u32> {
    let vocabulary = case.package().program().vocab_size;
    let count = 1 + random.index(max_tokens as usize);
    let mut words: Vec<_> = (0..count).map(|_| random.index(vocabulary as usize) as u32).collect();
    words[count - 1] |= if count == max_tokens as usize { 3 << 24 } else { 1 << 24 };
    words
}
