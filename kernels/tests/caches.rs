//! Caches of decoders: what they are refused for, what they share, what they hold, and what they are for.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor, Member};
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, decoder, encoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::joined::Joined;
use lockstep_kernels::program::{Layer, Op, PassShape, Program, Rows, Tensor, TensorId, TensorKind};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Params, Sampler, Sequence, Value};

const SHAPE: DecoderShape = DecoderShape::SMALL;
/// Of one cache: keys and values of two layers, 256 positions each.
const PAGES: u64 = 2 * 2 * 256 * 2 * 6 * 2;

/// On one backend, and with its layers on two.
fn loaded(case: &Case) -> [Box<dyn Executor>; 2] {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(None, 1).expect("the detected path"));
    let members = ["a", "b"].map(|name| Member { name: name.into(), backend: Arc::clone(&cpu) });
    let joined: Arc<dyn Backend> = Arc::new(Joined::new(members.into()));
    [cpu, joined].map(|backend| {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
        backend.load(Arc::clone(&case.program), params).expect("a valid program")
    })
}

/// Positions `start..end` of a sequence whose only point is the last one.
fn part(cache: u64, start: usize, end: usize) -> Sequence {
    let tokens = (0..end).map(|t| (t * t % SHAPE.vocab) as u32).collect();
    let sampling = Sampling::greedy(end as u32, 1);
    let sampler = Some(Sampler { sampling: Arc::new(sampling), draws: vec![7] });
    Sequence { tokens, start, cache: Some(CacheId(cache)), sampler }
}

/// The logits of all points.
fn run(executor: &mut dyn Executor, program: &Program, sequences: Vec<Sequence>) -> Result<Vec<i32>, BackendError> {
    executor.begin(&Batch { sequences })?;
    for layer in 0..program.layers.len() {
        executor.run_layer(layer)?;
    }
    let logits = program.tensors.iter().position(|t| t.name == "logits").expect("a decoder has logits");
    match executor.read(TensorId(logits as u16))? {
        Value::I32(logits) => Ok(logits),
        _ => panic!("logits are i32"),
    }
}

#[test]
fn what_a_batch_may_ask_of_caches() {
    let case = decoder(SHAPE, &[1]);
    for mut executor in loaded(&case) {
        let mut run = |sequences| run(executor.as_mut(), &case.program, sequences);
        run(vec![part(1, 0, 20)]).expect("a new cache");
        run(vec![part(1, 20, 21), part(2, 0, 3)]).expect("one that goes on beside a new one");
        let alone = Sequence { cache: None, ..part(0, 4, 6) };
        let with = |change: &dyn Fn(&mut Sequence)| {
            let mut sequence = part(1, 21, 22);
            change(&mut sequence);
            vec![sequence]
        };
        let draws = |sequence: &mut Sequence, draws| {
            sequence.sampler.as_mut().expect("it has one").draws = draws;
        };
        let prompt = |sequence: &mut Sequence, prompt_tokens| {
            let sampling = Sampling::greedy(prompt_tokens, 1);
            sequence.sampler.as_mut().expect("it has one").sampling = Arc::new(sampling);
        };
        for (sequences, why) in [
            (vec![part(3, 1, 2)], "no such cache"),
            (vec![part(1, 22, 23)], "21 positions, not 22"),
            (vec![part(1, 21, 22), part(1, 21, 22)], "the same cache"),
            (vec![alone], "4 positions are in no cache"),
            (with(&|s| s.start = 22), "nothing of 22 tokens"),
            (with(&|s| s.start = usize::MAX), "nothing of 22 tokens"),
            (with(&|s| draws(s, vec![])), "0 draws for 1 points"),
            (with(&|s| draws(s, vec![1, 2])), "2 draws for 1 points"),
            (with(&|s| prompt(s, 0)), "at least one token"),
            (with(&|s| prompt(s, 23)), "1 draws for 0 points"),
            (with(&|s| s.tokens[3] = SHAPE.vocab as u32), "outside the vocabulary"),
            (vec![part(1, 21, SHAPE.max_positions + 1)], "tokens; 1 to 700"),
        ] {
            let refused = run(sequences).expect_err(why).to_string();
            assert!(refused.contains(why), "{refused}; expected {why}");
        }
        // What was refused changed nothing.
        run(vec![part(1, 21, 22), part(2, 3, 4)]).expect("both are as they were");
    }
}

#[test]
fn an_encoder_has_neither_caches_nor_samplers() {
    let case = encoder(16, 2, 16, 1, false, &[2]);
    assert!(!case.program.is_decoder());
    for mut executor in loaded(&case) {
        for sequence in [
            Sequence { cache: Some(CacheId(1)), ..Sequence::new(vec![1]) },
            Sequence { sampler: part(1, 0, 1).sampler, ..Sequence::new(vec![1]) },
        ] {
            let refused = executor.begin(&Batch { sequences: vec![sequence] }).expect_err("no decoder");
            assert!(refused.to_string().contains("no decoder"), "{refused}");
        }
    }
}

#[test]
fn pages_are_shared_until_they_are_written() {
    let case = decoder(SHAPE, &[1]);
    for mut executor in loaded(&case) {
        let executor = executor.as_mut();
        let go = |executor: &mut dyn Executor, sequence| run(executor, &case.program, vec![sequence]).expect("a pass");
        assert_eq!(executor.cache_bytes(), 0);
        go(executor, part(1, 0, 300));
        assert_eq!(executor.cache_bytes(), 2 * PAGES);
        assert_eq!(case.program.cache_bytes(300), 2 * PAGES);
        assert_eq!((case.program.cache_bytes(0), case.program.cache_bytes(1)), (0, PAGES));
        executor.fork_cache(CacheId(1), CacheId(2), 300).expect("it has as many");
        executor.fork_cache(CacheId(1), CacheId(3), 256).expect("it has as many");
        assert_eq!(executor.cache_bytes(), 2 * PAGES);
        // A page of its own for each that writes where others read.
        let forked = go(executor, part(2, 300, 301));
        assert_eq!(executor.cache_bytes(), 3 * PAGES);
        assert_eq!(go(executor, part(1, 300, 301)), forked);
        assert_eq!(executor.cache_bytes(), 3 * PAGES);
        go(executor, part(3, 256, 257));
        assert_eq!(executor.cache_bytes(), 4 * PAGES);
        executor.truncate_cache(CacheId(2), 256).expect("it has as many");
        assert_eq!(executor.cache_bytes(), 3 * PAGES);
        executor.drop_cache(CacheId(1));
        assert_eq!(executor.cache_bytes(), 2 * PAGES);
        for (refused, why) in [
            (executor.fork_cache(CacheId(1), CacheId(4), 0), "no such cache"),
            (executor.fork_cache(CacheId(2), CacheId(4), 257), "256 positions, not 257"),
            (executor.truncate_cache(CacheId(2), 257), "256 positions, not 257"),
            (executor.truncate_cache(CacheId(9), 0), "no such cache"),
        ] {
            let refused = refused.expect_err(why).to_string();
            assert!(refused.contains(why), "{refused}");
        }
        // In place of a cache of that name.
        executor.fork_cache(CacheId(2), CacheId(3), 200).expect("it has as many");
        assert_eq!(executor.cache_bytes(), PAGES);
        [2, 3, 4].into_iter().for_each(|id| executor.drop_cache(CacheId(id)));
        assert_eq!(executor.cache_bytes(), 0);
    }
}

/// A pass that ends between layers, and caches that change under a pass.
#[test]
fn a_pass_that_stops_leaves_the_positions_before_it() {
    let case = decoder(SHAPE, &[1]);
    for mut executor in loaded(&case) {
        let whole = run(executor.as_mut(), &case.program, vec![part(9, 0, 40)]).expect("a pass");
        run(executor.as_mut(), &case.program, vec![part(1, 0, 30)]).expect("a pass");
        executor.begin(&Batch { sequences: vec![part(1, 30, 35)] }).expect("it has 30");
        for layer in 0..2 {
            executor.run_layer(layer).expect("in order");
        }
        let refused = executor.fork_cache(CacheId(1), CacheId(2), 35).expect_err("the last layer has 30");
        assert!(refused.to_string().contains("30 positions"), "{refused}");
        assert_eq!(run(executor.as_mut(), &case.program, vec![part(1, 30, 40)]).expect("it has 30"), whole);
        for change in [&(|e: &mut dyn Executor| e.drop_cache(CacheId(1))) as &dyn Fn(&mut dyn Executor), &|e| {
            e.truncate_cache(CacheId(1), 3).expect("it has 3")
        }] {
            run(executor.as_mut(), &case.program, vec![part(1, 0, 30)]).expect("a pass");
            executor.begin(&Batch { sequences: vec![part(1, 30, 31)] }).expect("it has 30");
            executor.run_layer(0).expect("nothing is kept in layer 0");
            change(executor.as_mut());
            assert!(matches!(executor.run_layer(1), Err(BackendError::Cache { .. })));
        }
    }
}

/// The model does what decoders do: no degenerate logits, and every earlier token matters.
#[test]
fn logits_depend_on_every_token_before() {
    let case = decoder(SHAPE, &[1]);
    for mut executor in loaded(&case) {
        let first = run(executor.as_mut(), &case.program, vec![part(1, 0, 9)]).expect("a pass");
        assert_eq!(first.len(), SHAPE.vocab);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), SHAPE.vocab, "{first:?}");
        for t in 0..9 {
            let mut sequence = part(1, 0, 9);
            sequence.tokens[t] ^= 1;
            let other = run(executor.as_mut(), &case.program, vec![sequence]).expect("a pass");
            assert!(first.iter().zip(&other).all(|(a, b)| a != b), "token {t}");
        }
    }
}

/// Without points the last layer has no rows; work and memory go by points.
#[test]
fn the_last_layer_goes_by_points() {
    let case = decoder(SHAPE, &[1]);
    let program = &case.program;
    assert!(program.is_decoder());
    for backend in [&Reference as &dyn Backend, &Cpu::new(None, 2).expect("the detected path")] {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
        let mut executor = backend.load(Arc::clone(program), params).expect("a valid program");
        let none = Sequence { sampler: None, ..part(1, 0, 5) };
        assert_eq!(run(executor.as_mut(), program, vec![none]).expect("a pass"), []);
        assert_eq!(run(executor.as_mut(), program, vec![part(1, 5, 6)]).expect("a pass").len(), SHAPE.vocab);
    }
    assert_eq!(program.macs(9, 3) - program.macs(9, 2), (SHAPE.vocab * SHAPE.width) as u64);
    let bytes = |points, cached| program.pass_bytes(&PassShape { positions: 9, sequences: 1, points, cached });
    assert!(bytes(1_000, 0) >= bytes(0, 0) + 4_000 * SHAPE.vocab as u128);
    assert!(bytes(1, 100_000) >= bytes(1, 0) + 100_000 * 4 * 12);
    assert_eq!(program.activation_bytes(9, 1), bytes(1, 0));
}

/// With fewer draws than points only the last ones are sampled, and give what they give among all.
#[test]
fn points_without_a_draw_are_not_sampled() {
    let case = decoder(SHAPE, &[1]);
    for backend in [&Reference as &dyn Backend, &Cpu::new(None, 2).expect("the detected path")] {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
        let mut executor = backend.load(Arc::clone(&case.program), params).expect("a valid program");
        let mut sampled = |draws: Vec<u64>| {
            let sampling = Sampling { temperature: 10_000, repetition_penalty: 11_000, ..Sampling::greedy(4, 30) };
            let sampler = Some(Sampler { sampling: Arc::new(sampling), draws });
            let sequence = Sequence { sampler, ..part(1, 0, 20) };
            let points = sequence.points();
            let logits = run(executor.as_mut(), &case.program, vec![sequence]).expect("a pass");
            let words = executor.read(case.program.layers.last().expect("a program has layers").output);
            let Value::I32(words) = words.expect("it was sampled") else { panic!("words are i32") };
            (points, logits, words)
        };
        let draws: Vec<u64> = (0..17).map(|point| point << 59).collect();
        let (points, logits, words) = sampled(draws.clone());
        assert_eq!((points, words.len()), (3..20, 17));
        for last in [1, 2, 16] {
            let (points, few, said) = sampled(draws[17 - last..].to_vec());
            assert_eq!(points, 20 - last..20);
            assert_eq!((&few[..], &said[..]), (&logits[(17 - last) * SHAPE.vocab..], &words[17 - last..]));
        }
    }
}

/// A decoder with one thing changed is refused, and says why.
#[test]
fn a_program_that_mixes_kinds_of_rows_is_refused() {
    let decoder = decoder(SHAPE, &[1]).program;
    decoder.validate().expect("a valid program");
    let refuse = |change: &dyn Fn(&mut Program), why: &str| {
        let mut program = Program::clone(&decoder);
        change(&mut program);
        let refused = program.validate().expect_err(why).to_string();
        assert!(refused.contains(why), "{refused}; expected {why}");
    };
    let attention = |program: &mut Program, change: &dyn Fn(&mut Op)| {
        let ops = program.layers[1].ops.iter_mut();
        ops.filter(|op| op.name() == "attention").for_each(change);
    };
    refuse(
        &|p| {
            attention(p, &|op| {
                if let Op::Attention { heads, .. } = op {
                    heads.causal = false
                }
            })
        },
        "causal",
    );
    refuse(
        &|p| {
            // Rows per point before the last layer.
            let out = p.tensors.len() as u16;
            p.tensors.push(Tensor {
                name: "early".into(),
                rows: Rows::Point,
                cols: SHAPE.width as u32,
                kind: TensorKind::I32,
            });
            let input = p.layers[0].output;
            p.layers[1].ops.insert(0, Op::Gather { input, out: TensorId(out) });
        },
        "last layer",
    );
    refuse(
        &|p| {
            // The same with an encoder's output.
            p.layers.pop();
            let input = p.layers[2].output;
            let [gathered, pooled] = [Rows::Point, Rows::Sequence].map(|rows| {
                let tensor =
                    Tensor { name: format!("{rows:?}"), rows, cols: SHAPE.width as u32, kind: TensorKind::I32 };
                p.tensors.push(tensor);
                TensorId(p.tensors.len() as u16 - 1)
            });
            let ops = vec![Op::Gather { input, out: gathered }, Op::FirstPool { input, out: pooled }];
            p.layers.push(Layer { name: "out".into(), ops, output: pooled });
        },
        "row per point",
    );
}
