//! Golden vectors of sampling.

use lockstep_kernels::conformance::{Pattern, SplitMix, TOKEN_BYTES_WIDTH, random_sampling, random_token_bytes};
use lockstep_kernels::host::{HostOps, SampleArgs};
use lockstep_kernels::sampling::{Sampling, TokenBytes, logprobs, split_word};

use super::Object;

/// Of how many of the likeliest tokens the log-probabilities are given.
const LIKELY: usize = 3;

/// Words of small vocabularies under settings of every kind, a few draws each.
pub fn sample<K: HostOps>(k: &K) -> Vec<Object> {
    let vocabularies = [1, 2, 7, 30].into_iter().flat_map(|v| (0..30).map(move |n| (v, n)));
    vocabularies.map(|(vocab, n)| case(k, vocab, n)).collect()
}

fn case<K: HostOps>(k: &K, vocab: usize, n: usize) -> Object {
    let name = format!("{vocab} tokens, {n}");
    let mut rng = SplitMix::named(&format!("vectors sample {name}"));
    let frac = rng.range(0, 31) as u32;
    // Most of them as close together as weights can tell apart.
    let logits: Vec<i32> = if n.is_multiple_of(6) {
        Pattern::ALL[n / 6].i32s(&mut rng, 1, vocab)
    } else {
        let spread = (3_i64 << frac).min(i32::MAX.into());
        (0..vocab).map(|_| rng.range(-spread, spread) as i32).collect()
    };
    let history: Vec<u32> = (0..rng.range(1, 12)).map(|_| rng.range(0, vocab as i64 - 1) as u32).collect();
    let prompt_tokens = rng.range(1, history.len() as i64) as u32;
    let sampling = Sampling { prompt_tokens, ..random_sampling(&mut rng, vocab) };
    let table = random_token_bytes(&mut rng, vocab);
    let draws: Vec<u64> = (0..4).map(|i| if i == 0 { u64::MAX } else { rng.next_u64() }).collect();
    let token_bytes = TokenBytes { rows: &table, width: TOKEN_BYTES_WIDTH };
    let (sampled, ids) = (&sampling, &history);
    let args =
        |draw: &u64| SampleArgs { logits: &logits, frac, token_bytes, sampling: sampled, history: ids, draw: *draw };
    let mut words = vec![0; draws.len()];
    k.sample(&draws.iter().map(args).collect::<Vec<_>>(), &mut words);
    let case = Object::default().text("case", &name).raw("frac", frac).list("logits", &logits);
    let case = settings(case, &sampling).rows("token_bytes", &table, TOKEN_BYTES_WIDTH).list("history", &history);
    let draws: Vec<_> = draws.iter().map(|draw| format!("\"{draw}\"")).collect();
    let likely = logprobs(&logits, frac, split_word(words[0] as u32).0, LIKELY);
    let top = likely.top.iter().flat_map(|(token, value)| [*token as i32, *value]);
    let row: Vec<i32> = likely.token.into_iter().chain(top).collect();
    case.list("draws", &draws).list("words", &words).list("logprobs", &row)
}

fn settings(case: Object, s: &Sampling) -> Object {
    let bias: Vec<i64> = s.logit_bias.iter().flat_map(|(token, bias)| [i64::from(*token), i64::from(*bias)]).collect();
    let strings: Vec<_> = s.stop_strings.iter().map(|s| format!("{s:?}")).collect();
    case.raw("prompt_tokens", s.prompt_tokens)
        .raw("max_tokens", s.max_tokens)
        .raw("temperature", s.temperature)
        .raw("top_k", s.top_k)
        .raw("top_p", s.top_p)
        .raw("min_p", s.min_p)
        .raw("repetition_penalty", s.repetition_penalty)
        .raw("presence_penalty", s.presence_penalty)
        .raw("frequency_penalty", s.frequency_penalty)
        .rows("logit_bias", &bias, 2)
        .list("stop_tokens", &s.stop_tokens)
        .list("stop_strings", &strings)
}
