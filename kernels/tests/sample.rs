//! Sampling: the fast twin against the oracle, its frequencies against the weights, and its edges.

use std::collections::BTreeMap;

use lockstep_kernels::conformance::{Pattern, SplitMix, TOKEN_BYTES_WIDTH, random_sampling, random_token_bytes};
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::host::{HostOps, SampleArgs};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::reference::sample::{Scale, weight};
use lockstep_kernels::sampling::{
    GO_ON, LENGTH, ONE, STOP_STRING, STOP_TOKEN, Sampling, TokenBytes, logprobs, split_word, word,
};
use proptest::prelude::*;

/// The word of one point.
fn word_of<K: HostOps>(kernels: &K, args: SampleArgs<'_>) -> u32 {
    let mut out = [0];
    kernels.sample(&[args], &mut out);
    out[0] as u32
}

fn each_path() -> Vec<Cpu> {
    Path::available().into_iter().map(|path| Cpu::new(Some(path), 1).expect("an available path")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn every_path_draws_what_the_oracle_draws(seed: u64, size in 0_u32..13, frac in 0_u32..32) {
        let mut rng = SplitMix::named(&seed.to_string());
        let vocab = rng.range(1, 1 << size) as usize;
        let pattern = Pattern::ALL[rng.range(0, 7) as usize];
        let mut logits = pattern.i32s(&mut rng, 1, vocab);
        // Distances of the size that weights tell apart.
        if rng.range(0, 1) == 0 {
            let near = 1_i64 << frac;
            logits = logits.iter().map(|_| rng.range(-8 * near, 8 * near).clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect();
        }
        let history: Vec<u32> = (0..rng.range(1, 80)).map(|_| rng.range(0, vocab as i64 - 1) as u32).collect();
        let (sampling, table) = (random_sampling(&mut rng, vocab), random_token_bytes(&mut rng, vocab));
        for draw in [0, u64::MAX, rng.next_u64(), rng.next_u64()] {
            let token_bytes = TokenBytes { rows: &table, width: TOKEN_BYTES_WIDTH };
            let args = SampleArgs { logits: &logits, frac, token_bytes, sampling: &sampling, history: &history, draw };
            let expected = word_of(&Reference, args);
            prop_assert!((split_word(expected).0 as usize) < vocab);
            for cpu in each_path() {
                prop_assert_eq!(word_of(cpu.kernels(), args), expected, "{:?} {:?}", cpu.path(), &sampling);
            }
        }
    }
}

/// What is drawn with these settings from these logits; nothing stands for any token.
fn tokens(logits: &[i32], frac: u32, sampling: &Sampling, draws: impl Iterator<Item = u64>) -> BTreeMap<u32, u64> {
    let cpu = Cpu::new(None, 1).expect("a path");
    let token_bytes = TokenBytes { rows: &[], width: TOKEN_BYTES_WIDTH };
    let mut counts = BTreeMap::new();
    for draw in draws {
        let args = SampleArgs { logits, frac, token_bytes, sampling, history: &[0], draw };
        *counts.entry(split_word(word_of(cpu.kernels(), args)).0).or_default() += 1;
    }
    counts
}

fn sampled(temperature: u32) -> Sampling {
    Sampling { temperature, ..Sampling::greedy(1, 100) }
}

/// Draws that are evenly spread.
fn spread(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| (u128::from(2 * i + 1) * (1 << 64) / u128::from(2 * count)) as u64)
}

#[test]
#[allow(clippy::float_arithmetic, reason = "compared with the real softmax")]
fn frequencies_follow_the_softmax_at_every_temperature() {
    let mut rng = SplitMix::named("frequencies");
    let logits: Vec<i32> = (0..40).map(|_| rng.range(-4 << 16, 4 << 16) as i32).collect();
    for temperature in [3_000, 10_000, 25_000] {
        let real: Vec<f64> =
            logits.iter().map(|z| (f64::from(*z) / 65_536.0 / (f64::from(temperature) / 1e4)).exp()).collect();
        let total: f64 = real.iter().sum();
        let (count, random) =
            (100_000, tokens(&logits, 16, &sampled(temperature), (0..100_000).map(|_| rng.next_u64())));
        let even = tokens(&logits, 16, &sampled(temperature), spread(count));
        for (i, p) in real.iter().map(|p| p / total).enumerate() {
            let of = |counts: &BTreeMap<u32, u64>| counts.get(&(i as u32)).copied().unwrap_or(0) as f64;
            let expected = p * count as f64;
            assert!((of(&even) - expected).abs() <= 2.0 + 1e-5 * expected, "{i}: {} and {expected}", of(&even));
            let deviation = (expected * (1.0 - p)).sqrt();
            assert!((of(&random) - expected).abs() <= 5.0 * deviation + 2.0, "{i}: {} and {expected}", of(&random));
        }
    }
}

#[test]
fn thresholds_keep_what_they_say() {
    // Weights 2^30, 2^29, 2^28 twice, 2^26: distances of whole powers of two at a temperature of log2(e).
    let kept = |sampling: &Sampling| tokens(&[0, 1, 2, 2, 4].map(|d| -d << 20), 20, sampling, spread(20_000));
    let keys = |s: &Sampling| kept(s).into_keys().collect::<Vec<_>>();
    let base = sampled(14_427);
    assert_eq!(keys(&base), [0, 1, 2, 3, 4]);
    assert_eq!(keys(&Sampling { top_k: 1, ..base.clone() }), [0]);
    assert_eq!(keys(&Sampling { top_k: 2, ..base.clone() }), [0, 1]);
    // Ties are in.
    assert_eq!(keys(&Sampling { top_k: 3, ..base.clone() }), [0, 1, 2, 3]);
    assert_eq!(keys(&Sampling { top_p: 0, ..base.clone() }), [0]);
    assert_eq!(keys(&Sampling { top_p: 4_800, ..base.clone() }), [0]);
    assert_eq!(keys(&Sampling { top_p: 5_000, ..base.clone() }), [0, 1]);
    assert_eq!(keys(&Sampling { top_p: 7_400, ..base.clone() }), [0, 1, 2, 3]);
    assert_eq!(keys(&Sampling { top_p: 9_999, ..base.clone() }), [0, 1, 2, 3, 4]);
    // Top-p counts what top-k kept: two thirds and more of the first two.
    assert_eq!(keys(&Sampling { top_k: 2, top_p: 6_600, ..base.clone() }), [0]);
    assert_eq!(keys(&Sampling { min_p: 10_000, ..base.clone() }), [0]);
    assert_eq!(keys(&Sampling { min_p: 4_999, ..base.clone() }), [0, 1]);
    assert_eq!(keys(&Sampling { min_p: 2_499, ..base.clone() }), [0, 1, 2, 3]);
    assert_eq!(keys(&Sampling { min_p: 1, ..base }), [0, 1, 2, 3, 4]);
}

#[test]
fn extremes() {
    let equal = tokens(&[i32::MIN; 7], 31, &sampled(1), spread(7_000));
    assert!((0..7).all(|i| equal[&i] == 1_000), "{equal:?}");
    let ends = [i32::MIN, i32::MAX, i32::MIN, i32::MAX];
    assert_eq!(tokens(&ends, 0, &sampled(u32::MAX), spread(8)).into_keys().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(tokens(&ends, 31, &sampled(u32::MAX), spread(8)).len(), 4);
    assert_eq!(tokens(&ends, 5, &Sampling::greedy(1, 9), spread(8)).into_keys().collect::<Vec<_>>(), [1]);
    for temperature in [0, 1, u32::MAX] {
        let one = Sampling { top_k: 9, top_p: 1, min_p: 10_000, ..sampled(temperature) };
        assert_eq!(tokens(&[-5], 3, &one, [0, u64::MAX].into_iter()).into_keys().collect::<Vec<_>>(), [0]);
    }
}

/// Whole distances give powers of two, and the mantissa loses no more than it says.
#[test]
#[allow(clippy::float_arithmetic, reason = "compared with real logarithms")]
fn distances_are_as_exact_as_stated() {
    for temperature in [1, 100, 6_931, 10_000, 14_427, 123_456, 1_000_000, u32::MAX] {
        for frac in [0, 1, 8, 20, 31] {
            let scale = Scale::new(temperature, frac);
            for difference in [0, 1, 1_000, 1 << 20, u32::MAX] {
                let real = f64::from(difference) / 2_f64.powi(frac as i32) / (f64::from(temperature) / 1e4);
                let real = real * std::f64::consts::LOG2_E * 2_f64.powi(20);
                let error = (scale.distance(difference).min(1 << 60) as f64 - real.min(2_f64.powi(60))).abs();
                assert!(error <= 0.5 + real * 2_f64.powi(-29), "{temperature} {frac} {difference}: {error}");
            }
        }
    }
    assert_eq!([0, 1, 30, 31, 1 << 40].map(|d| weight(d << 20)), [1 << 30, 1 << 29, 1, 0, 0]);
}

fn word_after(history: &[u32], sampling: &Sampling) -> (u32, u8) {
    // Token 0 is "ab", 1 is "c", 2 nothing, 3 "d".
    let rows: Vec<i8> =
        [*b"\x02\0ab", *b"\x01\0c\0", *b"\0\0\0\0", *b"\x01\0d\0"].concat().iter().map(|b| *b as i8).collect();
    let token_bytes = TokenBytes { rows: &rows, width: 4 };
    let args = SampleArgs { logits: &[0, 9, 0, 0], frac: 0, token_bytes, sampling, history, draw: 0 };
    let answers = each_path().into_iter().map(|cpu| word_of(cpu.kernels(), args));
    let expected = word_of(&Reference, args);
    assert!(answers.into_iter().all(|a| a == expected));
    split_word(expected)
}

#[test]
fn generations_end_by_token_then_string_then_length() {
    let stop = |strings: &[&[u8]]| Sampling {
        stop_strings: strings.iter().map(|s| s.to_vec()).collect(),
        ..Sampling::greedy(1, 100)
    };
    assert_eq!(word_after(&[3], &stop(&[])), (1, GO_ON));
    assert_eq!(word_after(&[3], &stop(&[b"c"])), (1, STOP_STRING));
    assert_eq!(word_after(&[3, 0], &stop(&[b"x", b"bc"])), (1, STOP_STRING));
    assert_eq!(word_after(&[3, 0, 2, 2], &stop(&[b"abc"])), (1, STOP_STRING));
    // Not with bytes of the prompt, and not where the match had ended before.
    assert_eq!(word_after(&[0], &stop(&[b"bc"])), (1, GO_ON));
    assert_eq!(word_after(&[3, 0], &stop(&[b"ab"])), (1, GO_ON));
    // Bytes of 31 tokens before the new one.
    let text: Vec<u8> = [&[b'd'; 31][..], b"c"].concat();
    assert_eq!(word_after(&[3; 32], &stop(&[&text])), (1, STOP_STRING));
    let mut history = vec![3; 33];
    history[2] = 2;
    assert_eq!(word_after(&history, &stop(&[&text])), (1, GO_ON));
    let both = Sampling { stop_tokens: vec![0, 1], max_tokens: 2, ..stop(&[b"c"]) };
    assert_eq!(word_after(&[3, 3], &both), (1, STOP_TOKEN));
    assert_eq!(word_after(&[3, 3], &Sampling { stop_tokens: vec![], ..both.clone() }), (1, STOP_STRING));
    let length = Sampling { stop_tokens: vec![], stop_strings: vec![], ..both };
    assert_eq!(word_after(&[3, 3], &length), (1, LENGTH));
    assert_eq!(word_after(&[3], &length), (1, GO_ON));
}

#[test]
fn penalties_and_biases_move_logits_as_stated() {
    let greedy = Sampling::greedy(1, 100);
    let after = |history: &[u32], s: Sampling| word_after(history, &s).0;
    // The largest logit is 9, that of token 1; all others are 0. Terms are rounded half up to whole units here.
    assert_eq!(after(&[0], Sampling { logit_bias: vec![(1, -84_999)], ..greedy.clone() }), 1);
    assert_eq!(after(&[0], Sampling { logit_bias: vec![(1, -85_001)], ..greedy.clone() }), 0);
    assert_eq!(after(&[0], Sampling { logit_bias: vec![(3, 95_000)], ..greedy.clone() }), 3);
    // Presence and frequency count what was generated, not the prompt.
    let s = Sampling { presence_penalty: 100_000, ..greedy.clone() };
    assert_eq!([after(&[1], s.clone()), after(&[1, 0], s.clone()), after(&[1, 1], s)], [1, 1, 0]);
    let s = Sampling { frequency_penalty: 40_000, ..greedy.clone() };
    assert_eq!([after(&[1, 1, 1], s.clone()), after(&[1, 1, 1, 1], s)], [1, 0]);
    // A negative one helps.
    assert_eq!(after(&[1, 3, 3], Sampling { frequency_penalty: -50_000, ..greedy.clone() }), 3);
    // Repetition counts both; 9 / 20 is nearest to 0, which ties with the others.
    let s = Sampling { repetition_penalty: 200_000, ..greedy };
    assert_eq!([after(&[1], s.clone()), after(&[0, 1], s.clone()), after(&[0, 0], s)], [0, 0, 1]);
}

#[test]
#[allow(clippy::float_arithmetic, reason = "compared with the real logarithm")]
fn log_probabilities_are_those_of_the_softmax() {
    let mut rng = SplitMix::named("logprobs");
    let logits: Vec<i32> = (0..500).map(|_| rng.range(-6 << 18, 6 << 18) as i32).collect();
    let total: f64 =
        logits.iter().map(|z| (f64::from(*z) / 2_f64.powi(18)).exp2().powf(std::f64::consts::LOG2_E)).sum();
    let real = |i: u32| (f64::from(logits[i as usize]) / 2_f64.powi(18) - total.ln()) * std::f64::consts::LOG2_E;
    let close = |i: u32, q20: i32| (f64::from(q20) / 2_f64.powi(20) - real(i)).abs() < 1e-5;
    let of = logprobs(&logits, 18, 123, 20);
    assert!(close(123, of.token.expect("in the vocabulary")) && of.top.iter().all(|(i, q20)| close(*i, *q20)));
    let mut order: Vec<u32> = (0..500).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(logits[*i as usize]), *i));
    assert_eq!(of.top.iter().map(|(i, _)| *i).collect::<Vec<_>>(), order[..20]);
    let equal = logprobs(&[7; 4], 3, 9, 9);
    assert_eq!((equal.token, equal.top), (None, (0..4).map(|i| (i, -2 << 20)).collect()));
    assert_eq!(logprobs(&[i32::MAX], 0, 0, 0).token, Some(0));
    assert!(logprobs(&[], 0, 0, 3).top.is_empty());
    assert_eq!(logprobs(&[i32::MIN, i32::MAX], 0, 0, 1).token, Some(i32::MIN));
    // 2^31 / 2^20 powers of two below the likeliest one is as far as a number reaches: 1,419.6 natural units.
    let below = |units: i32| logprobs(&[i32::MAX - units, i32::MAX], 20, 0, 0).token.expect("in the vocabulary");
    assert_eq!((below(i32::MAX), below(1_420 << 20)), (i32::MIN, i32::MIN));
    assert!((i32::MIN + 1..-2_047 << 20).contains(&below(1_419 << 20)), "{}", below(1_419 << 20));
    assert!((-10..=0).contains(&(below(1) + (1 << 20))), "{}", below(1));
}

#[test]
fn words_hold_what_they_were_made_of() {
    for (token, finish) in [(0, GO_ON), (1, STOP_TOKEN), ((1 << 24) - 1, LENGTH), (77, STOP_STRING)] {
        assert_eq!(split_word(word(token, finish)), (token, finish));
    }
    assert_eq!(word(5, STOP_STRING), 5 + (2 << 24));
}

#[test]
fn settings_that_the_op_can_not_rely_on_are_refused() {
    let check = |change: fn(&mut Sampling)| {
        let mut s = Sampling::greedy(1, ONE);
        change(&mut s);
        s.check().err().unwrap_or_default()
    };
    assert_eq!(check(|_| ()), "");
    assert!(check(|s| s.logit_bias = vec![(3, 1), (3, 2)]).contains("logit bias"));
    assert!(check(|s| s.stop_tokens = vec![2, 1]).contains("stop tokens"));
    assert!(check(|s| s.stop_strings = vec![vec![1]; 5]).contains("5 stop strings"));
    assert!(check(|s| s.stop_strings = vec![vec![]]).contains("0 bytes"));
    assert!(check(|s| s.stop_strings = vec![vec![1; 33]]).contains("33 bytes"));
}
