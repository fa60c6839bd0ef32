//! Cases for the op that draws words: vocabularies around block sizes, settings of every kind, histories of any length.

use super::Divergence;
use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::decoder_ops::sample_from;
use crate::program::{EmbedIndex, Op, Rows, TensorKind};
use crate::sampling::Sampling;

type Visit<'a> = &'a mut dyn FnMut(Case) -> Result<(), Divergence>;

/// Bytes of a row of [`random_token_bytes`].
pub const TOKEN_BYTES_WIDTH: usize = 12;

/// Every vocabulary with every pattern of logits, each sequence with settings of its own.
pub(super) fn sample(vocabularies: &[usize], patterns: &[Pattern], visit: Visit<'_>) -> Result<(), Divergence> {
    for &vocab in vocabularies {
        for &pattern in patterns {
            for near in [false, true] {
                visit(case(vocab, pattern, near))?;
            }
        }
    }
    Ok(())
}

/// `near` keeps the logits as close together as weights can tell apart.
fn case(vocab: usize, pattern: Pattern, near: bool) -> Case {
    const LENGTHS: [usize; 4] = [40, 1, 7, 3];
    let name = format!("{vocab} tokens, {}{}", pattern.name(), if near { ", near" } else { "" });
    let mut rng = SplitMix::named(&format!("sample {name}"));
    let mut b = Builder::new(vocab as u32, 40);
    let table = b.scaled("table", ParamValue::I16(vec![0; vocab]), 1, vocab, vec![0], vec![0]);
    let x = b.rows("x", vocab, TensorKind::I32);
    b.layer(vec![Op::Embed { tables: vec![(table, EmbedIndex::Constant(0))], out: x }], x);
    let logits = b.tensor("logits", Rows::Point, vocab, TensorKind::I32);
    let out = b.tensor("word", Rows::Point, 1, TensorKind::I32);
    let token_bytes = ParamValue::I8(random_token_bytes(&mut rng, vocab));
    let token_bytes = b.param("token bytes", token_bytes, vocab, TOKEN_BYTES_WIDTH);
    let frac = rng.range(0, 31) as u8;
    b.layer(vec![Op::Gather { input: x, out: logits }, Op::Sample { logits, frac, token_bytes, out }], out);
    let spread = 6_i64 << frac;
    let close = |v: i32| if near { (i64::from(v) % spread) as i32 } else { v };
    let input = pattern.i32s(&mut rng, LENGTHS.iter().sum(), vocab).into_iter().map(close).collect();
    let mut case = b.case("sample", name, &LENGTHS, Some(input));
    for (sequence, prompt) in [(0, 3), (1, 1), (3, 3)] {
        sample_from(&mut case, sequence, prompt);
        let sampler = case.batch.sequences[sequence].sampler.as_mut().expect("just given");
        sampler.sampling = Sampling { prompt_tokens: prompt, ..random_sampling(&mut rng, vocab) }.into();
    }
    case
}

/// Settings of every kind, also such as no job would have.
pub fn random_sampling(rng: &mut SplitMix, vocab: usize) -> Sampling {
    let mut pick = |choices: &[i64]| choices[rng.range(0, choices.len() as i64 - 1) as usize];
    let mut s = Sampling::greedy(pick(&[1, 2, 9_999]) as u32, pick(&[0, 1, 5, 1_000]) as u32);
    s.temperature = pick(&[0, 1, 100, 7_000, 10_000, 10_000, 20_000, 1_000_000, u32::MAX.into()]) as u32;
    s.top_k = pick(&[0, 0, 1, 2, 5, 40, vocab as i64 - 1, vocab as i64, vocab as i64 + 1, u32::MAX.into()]) as u32;
    s.top_p = pick(&[10_000, 10_000, 0, 1, 5_000, 9_000, 9_999, u32::MAX.into()]) as u32;
    s.min_p = pick(&[0, 0, 0, 1, 500, 9_999, 10_000, u32::MAX.into()]) as u32;
    s.repetition_penalty = pick(&[10_000, 10_000, 0, 1, 9_000, 11_000, u32::MAX.into()]) as u32;
    s.presence_penalty = pick(&[0, 0, 5_000, -20_000, i32::MIN.into(), i32::MAX.into()]) as i32;
    s.frequency_penalty = pick(&[0, 0, 1, -10_000, i32::MIN.into(), i32::MAX.into()]) as i32;
    let (biases, stops) = (pick(&[0, 0, 1, 4]), pick(&[0, 0, 2]));
    // Also one beyond the vocabulary.
    let token = |rng: &mut SplitMix| rng.range(0, vocab as i64) as u32;
    s.stop_tokens = (0..stops).map(|_| token(rng)).collect();
    s.stop_tokens.sort_unstable();
    s.stop_tokens.dedup();
    s.logit_bias = (0..biases).map(|_| (token(rng), rng.next_u64() as i32 >> rng.range(0, 31))).collect();
    s.logit_bias.sort_unstable();
    s.logit_bias.dedup_by_key(|bias| bias.0);
    let string = |rng: &mut SplitMix| (0..rng.range(1, 6)).map(|_| b"ab"[rng.range(0, 1) as usize]).collect();
    s.stop_strings = (0..rng.range(0, 4)).map(|_| string(rng)).collect();
    s
}

/// Short texts of two letters for each token, and rows that claim to be longer than they are.
pub fn random_token_bytes(rng: &mut SplitMix, vocab: usize) -> Vec<i8> {
    let row = |_| {
        let len = [0, 1, 1, 2, 3, 10, 11, 0xffff][rng.range(0, 7) as usize] as u16;
        let mut row = len.to_le_bytes().map(|b| b as i8).to_vec();
        row.resize_with(TOKEN_BYTES_WIDTH, || b"ab"[rng.range(0, 1) as usize] as i8);
        row
    };
    (0..vocab).flat_map(row).collect()
}
