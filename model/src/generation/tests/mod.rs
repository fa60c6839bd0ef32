mod fixture;
mod records;

use std::collections::BTreeMap;

use lockstep_kernels::backend::{Backend, Member};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::joined::Joined;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::sampling::{Sampling, WORD_TOKEN_BITS, split_word};
use proptest::prelude::*;

use self::fixture::{Expected, Model, VOCAB, decoder, expected};
use super::*;

fn roomy() -> Limits {
    Limits { pass_tokens: 64, ..Limits::within(1 << 30) }
}

fn generator(model: &Model, backend: &dyn Backend, limits: Limits) -> Generator {
    Generator::new(Arc::clone(&model.program), Arc::clone(&model.params), backend, limits).unwrap()
}

fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|t| ((t * t + 7 * t + 13 * seed) % VOCAB) as u32).collect()
}

/// A request that draws its tokens.
fn request(len: usize, max_tokens: u32, seed: u8) -> Request {
    let sampling = Sampling { temperature: 9_000, top_p: 9_500, ..Sampling::greedy(len as u32, max_tokens) };
    let (prompt, hint) = (prompt(len, usize::from(seed)), Vec::new());
    // Some want log-probabilities: of none but the drawn token, of one more, or of two.
    Request { prompt, sampling, seed: Seed::from_bytes([seed; 32]), hint, logprobs: seed % 4 }
}

/// What a generator said about one request.
#[derive(Default)]
struct Heard {
    places: Vec<Place>,
    roots: Vec<Root>,
    words: Vec<u32>,
    logprobs: Vec<i32>,
    run: Option<Run>,
}

fn hear(heard: &mut BTreeMap<TaskId, Heard>, id: TaskId, event: Event) {
    let heard = heard.entry(id).or_default();
    assert!(heard.run.is_none(), "nothing comes after the end");
    match event {
        Event::Root { place, root } => {
            heard.places.push(place);
            heard.roots.push(root);
        }
        Event::Word { point, word, logprobs } => {
            let layers = heard.places.iter().filter(|place| place.point == point).count();
            assert_eq!(layers, 2, "a word comes between the roots of layers L and L + 1");
            heard.words.push(word);
            heard.logprobs.extend(logprobs);
        }
        Event::Done(run) => heard.run = Some(run),
    }
}

/// Runs all requests to their end.
fn run_all(generator: &mut Generator, requests: &[Request]) -> Vec<Heard> {
    let ids: Vec<TaskId> = requests.iter().map(|request| generator.submit(request.clone()).unwrap()).collect();
    let mut heard = BTreeMap::new();
    while generator.step(&mut |id, event| hear(&mut heard, id, event)).unwrap() {}
    assert_eq!((generator.requests(), generator.running()), (0, 0));
    ids.iter().map(|id| heard.remove(id).unwrap()).collect()
}

/// All that was said is what comes out by the plainest means, in stream order.
fn assert_is(heard: &Heard, request: &Request, expected: &Expected) {
    let run = heard.run.as_ref().expect("the run ended");
    assert_eq!((&run.words, &run.logprobs), (&expected.words, &expected.logprobs));
    assert_eq!(heard.logprobs, run.logprobs);
    assert_eq!(run.roots, expected.roots);
    assert_eq!(run.saturations, expected.saturations);
    assert_eq!((&heard.words, &heard.roots), (&run.words, &run.roots));
    let first = request.prompt.len() as u32 - 1;
    let places = (first..first + run.words.len() as u32).flat_map(|point| (1..=3).map(move |layer| (point, layer)));
    assert!(heard.places.iter().map(|place| (place.point, place.layer)).eq(places));
}

#[test]
fn oracle_and_fast_twin_say_what_comes_out_by_the_plainest_means() {
    let model = decoder(false);
    let requests: Vec<Request> = (1..6).map(|n| request(3 * usize::from(n), 9, n)).collect();
    let plain: Vec<Expected> = requests.iter().map(|request| expected(&model, &Reference, request)).collect();
    assert!(plain.iter().any(|run| run.words.windows(2).any(|pair| pair[0] != pair[1])), "tokens differ");
    let cpu = Cpu::new(None, 2).unwrap();
    for backend in [&Reference as &dyn Backend, &cpu] {
        let mut generator = generator(&model, backend, roomy());
        for ((heard, request), plain) in run_all(&mut generator, &requests).iter().zip(&requests).zip(&plain) {
            assert_is(heard, request, plain);
        }
        assert_eq!(generator.cache_bytes(), 0, "what was for one run is given back");
    }
}

#[test]
fn an_audit_of_an_honest_run_is_one_pass() {
    let model = decoder(false);
    let mut request = request(40, 20, 1);
    let cpu = Cpu::new(None, 1).unwrap();
    let plain = expected(&model, &cpu, &request);
    request.hint = plain.words.clone();
    let mut generator = generator(&model, &cpu, roomy());
    let heard = run_all(&mut generator, std::slice::from_ref(&request));
    assert_is(&heard[0], &request, &plain);
    assert_eq!(generator.passes, 1);
}

#[test]
fn a_hint_that_is_wrong_anywhere_changes_nothing() {
    let model = decoder(false);
    let plain_request = request(250, 12, 3);
    let cpu = Cpu::new(None, 1).unwrap();
    let plain = expected(&model, &cpu, &plain_request);
    let mut hints: Vec<Vec<u32>> = (0..plain.words.len())
        .map(|at| {
            let mut words = plain.words.clone();
            words[at] = (words[at] + 1) % VOCAB as u32;
            words
        })
        .collect();
    hints.push(plain.words[..5].to_vec());
    hints.push([plain.words.as_slice(), &[1, 2, 3]].concat());
    hints.push(plain.words.iter().map(|word| split_word(*word).0).chain([4; 900]).collect());
    hints.push(vec![u32::MAX; 3]);
    hints.push(vec![VOCAB as u32; 3]);
    hints.push(vec![1 << WORD_TOKEN_BITS | split_word(plain.words[0]).0]);
    for hint in hints {
        let request = Request { hint, ..plain_request.clone() };
        for pass_tokens in [7, 300] {
            let mut generator = generator(&model, &cpu, Limits { pass_tokens, ..roomy() });
            let heard = run_all(&mut generator, std::slice::from_ref(&request));
            assert_is(&heard[0], &request, &plain);
        }
    }
}

#[test]
fn a_prefix_that_was_computed_before_is_not_computed_again() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let first = request(600, 3, 1);
    let shared = |len: usize, tail: u32| {
        let mut request = request(len, 4, 1);
        request.prompt[len - 1] = tail;
        request
    };
    let others = [shared(600, 5), shared(512, 6), shared(520, 7), shared(300, 8), shared(256, 9), shared(257, 2)];
    let mut generator = generator(&model, &cpu, roomy());
    let heard = run_all(&mut generator, std::slice::from_ref(&first));
    assert_is(&heard[0], &first, &expected(&model, &cpu, &first));
    let kept = generator.cache_bytes();
    assert_eq!(kept, model.program.cache_bytes(512), "two whole pages are kept");
    let heard = run_all(&mut generator, &others);
    for (heard, request) in heard.iter().zip(&others) {
        assert_is(heard, request, &expected(&model, &cpu, request));
    }
    let reused: Vec<usize> = heard.iter().map(|heard| heard.run.as_ref().unwrap().reused_positions).collect();
    // A prompt of whole pages computes its last one: the last position has a point.
    assert_eq!(reused, [512, 256, 512, 256, 0, 256]);
}

#[test]
fn kept_prefixes_stay_within_their_bytes() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let entry = memory::prefix_entry_bytes(&model.program);
    for entries in [0, 1, 3] {
        let mut generator = generator(&model, &cpu, Limits { prefix_bytes: entries * entry, ..roomy() });
        for seed in 0..5 {
            let request = request(530, 2, seed);
            let heard = run_all(&mut generator, std::slice::from_ref(&request));
            assert_is(&heard[0], &request, &expected(&model, &cpu, &request));
            assert!(generator.prefixes.len() as u64 <= entries);
            assert!(generator.cache_bytes() <= entries * model.program.cache_bytes(256));
        }
    }
}

#[test]
fn memory_is_set_aside_before_a_request_starts() {
    let model = decoder(false);
    let page = model.program.cache_bytes(1);
    // Two pages for each of them.
    let requests: Vec<Request> = (0..4).map(|seed| request(250, 8, seed)).collect();
    let limits = Limits { cache_bytes: 4 * page, prefix_bytes: 0, ..roomy() };
    let mut generator = generator(&model, &Cpu::new(None, 1).unwrap(), limits);
    for request in &requests {
        generator.submit(request.clone()).unwrap();
    }
    let mut done = 0;
    while generator.step(&mut |_, event| done += usize::from(matches!(event, Event::Done(_)))).unwrap() {
        assert!(generator.running() <= 2 && generator.cache_bytes() <= 4 * page);
    }
    assert_eq!(done, 4);
}

#[test]
fn what_can_never_run_is_refused_with_a_reason() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let mut generator = generator(&model, &cpu, Limits { cache_bytes: model.program.cache_bytes(256), ..roomy() });
    let empty = Request { prompt: Vec::new(), ..request(0, 3, 1) };
    assert!(matches!(generator.submit(empty), Err(Refused::Empty)));
    assert!(matches!(generator.submit(request(5, 0, 1)), Err(Refused::Empty)));
    let mut outside = request(5, 3, 1);
    outside.prompt[2] = VOCAB as u32;
    assert!(matches!(generator.submit(outside), Err(Refused::Token { token: 61, vocabulary: 61 })));
    assert!(matches!(generator.submit(request(600, 102, 1)), Err(Refused::TooLong { most: 700, .. })));
    assert!(matches!(generator.submit(request(250, 8, 1)), Err(Refused::CacheMemory { positions: 257, .. })));
    assert!(generator.submit(request(250, 7, 1)).is_ok());
    let contradiction = Request { prompt: prompt(4, 1), ..request(5, 3, 1) };
    assert!(matches!(generator.submit(contradiction), Err(Refused::Settings(_))));
    let mut disordered = request(5, 3, 1);
    disordered.sampling.stop_tokens = vec![2, 1];
    assert!(matches!(generator.submit(disordered), Err(Refused::Settings(_))));
    let least = Limits::least_bytes(&model.program);
    assert!(Limits::within(least).check(&model.program).is_ok());
    assert!(Limits::within(least).cache_bytes >= model.program.cache_bytes(1));
    assert!([0, 1, 4_097].iter().all(|bytes| Limits::within(Limits::bytes_for_cache(*bytes)).cache_bytes == *bytes));
    let below = Limits::within(least - 1);
    assert!(below.check(&model.program).is_err() || below.cache_bytes < model.program.cache_bytes(1));
    let tight = Limits { pass_bytes: 1_000, ..roomy() };
    let (program, params) = (Arc::clone(&model.program), Arc::clone(&model.params));
    assert!(matches!(Generator::new(program, params, &cpu, tight), Err(Refused::PassMemory { .. })));
    let encoder = lockstep_kernels::conformance::encoder(48, 3, 80, 2, false, &[1]);
    let refused = Generator::new(encoder.program, encoder.params, &cpu, roomy());
    assert!(matches!(refused, Err(Refused::NotADecoder)));
}

#[test]
fn a_request_that_is_cancelled_leaves_nothing_and_disturbs_nobody() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let mut generator = generator(&model, &cpu, Limits { prefix_bytes: 0, ..roomy() });
    let stays = request(20, 30, 1);
    let ids: Vec<TaskId> =
        [stays.clone(), request(30, 60, 2), request(40, 50, 3)].map(|r| generator.submit(r).unwrap()).to_vec();
    let mut heard = BTreeMap::new();
    generator.cancel(ids[2]);
    for _ in 0..5 {
        generator.step(&mut |id, event| hear(&mut heard, id, event)).unwrap();
    }
    generator.cancel(ids[1]);
    generator.cancel(ids[1]);
    while generator.step(&mut |id, event| hear(&mut heard, id, event)).unwrap() {}
    assert_is(&heard[&ids[0]], &stays, &expected(&model, &cpu, &stays));
    assert!(heard[&ids[1]].run.is_none() && !heard.contains_key(&ids[2]));
    assert_eq!(generator.cache_bytes(), 0);
}

#[test]
fn settings_that_end_a_run_early_end_it() {
    let model = decoder(false);
    let cpu = Cpu::new(None, 1).unwrap();
    let base = request(17, 40, 9);
    let free = expected(&model, &cpu, &base);
    let token = |index: usize| split_word(free.words[index]).0;
    let mut stop = base.clone();
    stop.sampling.stop_tokens = vec![token(6)];
    let said = TokenText::of(&model.program, Arc::clone(&model.params)).unwrap();
    let bytes: Vec<u8> = (0..5).flat_map(|index| said.bytes(token(index))).collect();
    let mut text = base.clone();
    text.sampling.stop_strings = vec![bytes[bytes.len().saturating_sub(6)..].to_vec()];
    let requests = [base, stop, text];
    let mut generator = generator(&model, &cpu, roomy());
    let heard = run_all(&mut generator, &requests);
    for (heard, request) in heard.iter().zip(&requests) {
        assert_is(heard, request, &expected(&model, &cpu, request));
    }
    let ends: Vec<(usize, u8)> =
        heard.iter().map(|h| (h.words.len(), split_word(*h.words.last().unwrap()).1)).collect();
    assert!(ends[0] == (40, 3) && ends[1].0 <= 7 && ends[1].1 == 1 && ends[2].0 <= 5 && ends[2].1 == 2, "{ends:?}");
}

#[test]
fn what_clamped_is_counted_for_each_run_alone() {
    let model = decoder(true);
    let cpu = Cpu::new(None, 1).unwrap();
    let mut requests: Vec<Request> = (0..5).map(|n| request(30 + 60 * usize::from(n), 6, n)).collect();
    let plain: Vec<Expected> = requests.iter().map(|request| expected(&model, &cpu, request)).collect();
    assert!(plain.iter().all(|run| run.saturations > 0), "the model is loud");
    // One that goes too far on the way.
    requests[1].hint = plain[1].words.iter().map(|word| word ^ 1).collect();
    let mut generator = generator(&model, &cpu, roomy());
    for ((heard, request), plain) in run_all(&mut generator, &requests).iter().zip(&requests).zip(&plain) {
        assert_is(heard, request, plain);
    }
    for (request, plain) in requests.iter().zip(&plain) {
        assert_is(&run_all(&mut generator, std::slice::from_ref(request))[0], request, plain);
    }
    assert_eq!(generator.cache_bytes(), 0, "nothing that clamped is kept");
}

/// One request of a random schedule: how long its prompt is, what it shares, how it is hinted.
#[derive(Clone, Debug)]
struct Wish {
    len: usize,
    seed: u8,
    max_tokens: u32,
    hint: u8,
    at: usize,
}

fn wish() -> impl Strategy<Value = Wish> {
    let len = prop_oneof![4 => 1_usize..40, 1 => 250_usize..262, 1 => 508_usize..530];
    (len, 0_u8..3, 1_u32..9, 0_u8..4, 0_usize..9).prop_map(|(len, seed, max_tokens, hint, at)| Wish {
        len,
        seed,
        max_tokens,
        hint,
        at,
    })
}

/// The reference, the processor on one or two threads, or the layers over two or three of these.
fn backend(which: usize) -> Arc<dyn Backend> {
    match which {
        0 => Arc::new(Reference),
        1 | 2 => Arc::new(Cpu::new(None, which).unwrap()),
        _ => {
            let member = |n: usize| Member { name: n.to_string(), backend: backend(n) };
            Arc::new(Joined::new((0..which - 1).map(member).collect()))
        }
    }
}

fn limits() -> impl Strategy<Value = (usize, usize, u64, u64)> {
    let pass = prop_oneof![1_usize..20, 20_usize..700];
    (pass, 1_usize..5, 3_u64..12, prop_oneof![Just(0_u64), 1_u64..6])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_schedule_changes_a_byte(
        wishes in prop::collection::vec((wish(), 0_usize..6), 1..7),
        (pass_tokens, sequences, pages, prefixes) in limits(),
        which in 0_usize..5,
        is_loud: bool,
    ) {
        let model = decoder(is_loud);
        let oracle = Cpu::new(None, 1).unwrap();
        let backend = backend(which);
        let limits = Limits {
            cache_bytes: pages * model.program.cache_bytes(1),
            prefix_bytes: prefixes * memory::prefix_entry_bytes(&model.program),
            pass_tokens,
            sequences,
            ..Limits::within(1 << 30)
        };
        let mut generator = generator(&model, &*backend, limits);
        let (mut heard, mut submitted) = (BTreeMap::new(), Vec::new());
        for (wish, steps) in wishes {
            let mut request = request(wish.len, wish.max_tokens, wish.seed);
            let plain = expected(&model, &oracle, &request);
            request.hint = match wish.hint {
                0 => Vec::new(),
                1 => plain.words.clone(),
                2 => plain.words.iter().enumerate().map(|(i, w)| if i == wish.at { w ^ 1 } else { *w }).collect(),
                _ => plain.words.iter().copied().chain([3; 20]).collect(),
            };
            submitted.push((generator.submit(request.clone()).unwrap(), request, plain));
            for _ in 0..steps {
                generator.step(&mut |id, event| hear(&mut heard, id, event)).unwrap();
            }
        }
        while generator.step(&mut |id, event| hear(&mut heard, id, event)).unwrap() {}
        for (id, request, plain) in &submitted {
            assert_is(&heard[id], request, plain);
        }
        prop_assert!(generator.cache_bytes() <= prefixes * model.program.cache_bytes(1));
    }
}
