//! Layers over several stages give what one machine gives, wherever the cuts are.

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::conformance::{Case, DecoderShape, decoder, encoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Op;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::{Batch, CacheId, Params};
use lockstep_model::bounds;
use lockstep_model::embed::embed;
use lockstep_model::generation::{Event, Generator, Limits, Mark, Request, StageError, StageRun};
use lockstep_model::output::Wanted;
use lockstep_protocol::generation::Generation;
use lockstep_protocol::hand_over::{HandOver, HandOverProof, ProofError};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId, NodeId, Nonce, Place, Root, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::trace::root_of_rows;

/// What a run comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    roots: Vec<(Place, Root)>,
    words: Vec<u32>,
    /// Of every point.
    logprobs: Vec<i32>,
    output: Vec<i32>,
    saturations: u64,
}

fn job(kind: JobKind, tokens: Vec<u32>) -> Job {
    let nonce = Nonce::from_bytes([3; 32]);
    let request = RequestInput::Tokens(tokens.clone()).hash(&nonce);
    let (model, seed) = (ModelId::from_bytes([1; 32]), Seed::from_bytes([7; 32]));
    Job { spec_version: 1, model, kind, tokens, request, seed, nonce }
}

fn generation(prompt: usize, max_tokens: u32, temperature: u32, vocab: u32) -> Job {
    let tokens = (0..prompt as u32).map(|at| (at * 7 + 1) % vocab).collect();
    let asked = Generation { temperature, logprobs: 3, ..Generation::greedy(max_tokens) };
    job(JobKind::Generation(Box::new(asked)), tokens)
}

/// One machine.
fn alone(case: &Case, backend: &dyn Backend, job: &Job) -> Outcome {
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let mut out = Outcome::default();
    if let Some(asked) = job.kind.generation() {
        let limits = Limits::of_one(&case.program, job.tokens.len() as u64 + u64::from(asked.max_tokens));
        let mut generator = Generator::new(Arc::clone(&case.program), params, backend, limits).unwrap();
        generator.submit(Request::new(job.tokens.clone(), asked, job.seed, Vec::new())).unwrap();
        let mut say = |_, event| match event {
            Event::Root { place, root } => out.roots.push((place, root)),
            Event::Word { word, logprobs, .. } => {
                out.words.push(word);
                out.logprobs.extend(logprobs);
            }
            Event::Done(run) => out.saturations = run.saturations,
        };
        while generator.step(&mut say).unwrap() {}
        return out;
    }
    let mut executor = backend.load(Arc::clone(&case.program), params).unwrap();
    let point = job.tokens.len() as u32 - 1;
    let run = embed(&mut *executor, &case.program, &Batch::single(job.tokens.clone()), Wanted::Rows, |layer| {
        if layer.layer > 0 {
            let place = Place { point, layer: layer.layer as u16 };
            out.roots.push((place, root_of_rows(layer.rows(0).unwrap(), layer.output.cols())));
        }
        std::ops::ControlFlow::Continue(())
    });
    let mut run = run.unwrap();
    out.output = run.rows.remove(0);
    out.saturations = run.saturations;
    out
}

/// A stage with its executor, and what it said.
struct Seat {
    run: StageRun,
    executor: Box<dyn Executor>,
    first: u16,
    roots: Vec<(Place, Root)>,
    words: Vec<u32>,
    logprobs: Vec<i32>,
}

/// Stages that begin at these layers, the first of them at 0.
fn together(case: &Case, backend: &dyn Backend, job: &Job, starts: &[usize], hint: &[u32], chunk: usize) -> Outcome {
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let layers = case.program.layers.len();
    let ends = starts[1..].iter().map(|start| start - 1).chain([layers - 1]);
    let mut seats: Vec<Seat> = (starts.iter().zip(ends).enumerate())
        .map(|(number, (first, last))| {
            let slice = Slice::of(&case.program, *first..=last).unwrap();
            slice.program().validate().unwrap();
            bounds::prove(slice.program(), &*slice.select(Arc::clone(&params))).unwrap();
            let executor = slice.load(backend, Arc::clone(&params)).unwrap();
            let cache = CacheId(number as u64 + 40);
            let run = StageRun::new(Arc::clone(&case.program), slice, job, hint.to_vec(), cache).unwrap();
            Seat { run, executor, first: *first as u16, roots: vec![], words: vec![], logprobs: vec![] }
        })
        .collect();
    let mut out = Outcome::default();
    loop {
        let count = seats[0].run.pass_of(chunk);
        let (mut rows, mut marks, mut words, mut output) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for seat in &mut seats {
            assert_eq!(seat.run.received_marks(count, &rows), marks, "the receiver comes to the sender's roots");
            proven_from_any_piece(&seat.run, count, &rows, &marks);
            let passed = seat.run.pass(&mut *seat.executor, count, &rows).unwrap();
            (rows, marks, words, output) = (passed.rows, passed.marks, passed.words, passed.output);
        }
        let mut done = Vec::new();
        for seat in &mut seats {
            let (roots, heard, logprobs) = (&mut seat.roots, &mut seat.words, &mut seat.logprobs);
            let ended = seat.run.accept(&mut *seat.executor, &words, &output, &mut |event| match event {
                Event::Root { place, root } => roots.push((place, root)),
                Event::Word { word, logprobs: of_point, .. } => {
                    heard.push(word);
                    logprobs.extend(of_point);
                }
                Event::Done(_) => panic!("a stage has no whole run"),
            });
            done.push(ended.unwrap());
        }
        assert!(done.iter().all(|ended| *ended == done[0]), "all stages end at once");
        out.output = output;
        if done[0] {
            break;
        }
    }
    for seat in &mut seats {
        out.saturations += seat.run.finish(&mut *seat.executor, 3).unwrap();
        assert_eq!(seat.executor.cache_bytes(), 0, "nothing is kept");
        assert_eq!(seat.run.left(), 0);
        // Of the received layer the sender says the same.
        let own = seat.roots.iter().filter(|(place, _)| place.layer >= seat.first);
        let received = seat.roots.iter().filter(|(place, _)| place.layer < seat.first);
        assert!(received.clone().all(|at| out.roots.contains(at)), "the received roots are the sender's");
        out.roots.extend(own.copied());
    }
    out.roots.sort_by_key(|(place, _)| *place);
    out.words = seats[0].words.clone();
    out.logprobs = seats.pop().expect("a last stage").logprobs;
    assert!(seats.iter().all(|seat| seat.logprobs.is_empty()), "the last stage alone has logits");
    assert!(seats.iter().all(|seat| seat.words == out.words));
    out
}

/// Every piece of a pass that is received: it is cut where the sender cuts it, and what its receiver has at hand is enough to prove
/// another root wrong, and this one not.
fn proven_from_any_piece(run: &StageRun, count: usize, rows: &[i32], marks: &[Mark]) {
    let Some(from) = marks.first().map(|mark| mark.first) else { return };
    let cuts: Vec<_> = marks.iter().map(|mark| (mark.rows - from) as usize).collect();
    assert_eq!(run.received_cuts(count), cuts);
    let keys = Keypair::from_seed([1; 32]);
    let (job, epoch, worker) = (JobId::from_bytes([2; 32]), LeaseEpoch(3), keys.id());
    let coordinator = NodeId::from_bytes([4; 32]);
    for Mark { first, rows: end, before, values, root } in marks.iter().copied() {
        let [at, to] = [first, end].map(|row| (row - from) as usize * run.received_cols());
        let check = |root| {
            let (layer, pass) = (1, 0);
            let said =
                HandOver { coordinator, job, epoch, layer, pass, first, rows: end, before, values, root, worker };
            let (signed, state) = (said.sign(&keys), run.received_state(&rows[..at]));
            HandOverProof::Rows { signed, state, values: rows[at..to].to_vec() }.check()
        };
        assert_eq!(check(root), Err(ProofError::Right));
        assert_eq!(check(Root::from_bytes([9; 32])), Ok(()));
    }
}

/// All ways to cut the layers into two and three stages.
fn cuts(layers: usize) -> Vec<Vec<usize>> {
    let two = (2..layers).map(|cut| vec![0, cut]);
    let three = (2..layers).flat_map(|a| (a + 1..layers).map(move |b| vec![0, a, b]));
    two.chain(three).collect()
}

fn loud(mut case: Case) -> Case {
    for op in Arc::make_mut(&mut case.program).layers.iter_mut().flat_map(|layer| &mut layer.ops) {
        if let Op::Rope { shift, .. } = op {
            shift.iter_mut().for_each(|shift| *shift -= 2);
        }
    }
    case
}

#[test]
fn an_encoder_over_stages_gives_what_one_machine_gives_wherever_it_is_cut() {
    let case = encoder(32, 4, 64, 4, false, &[16]);
    let job = job(JobKind::Embedding, (0..13).map(|at| at * 5 % 29).collect());
    let cpu = Cpu::new(None, 1).unwrap();
    for backend in [&Reference as &dyn Backend, &cpu] {
        let expected = alone(&case, backend, &job);
        assert!(!expected.output.is_empty());
        for starts in cuts(case.program.layers.len()) {
            assert_eq!(together(&case, backend, &job, &starts, &[], 512), expected, "{starts:?}");
        }
    }
}

#[test]
fn a_decoder_over_stages_gives_what_one_machine_gives_wherever_it_is_cut() {
    let case = decoder(DecoderShape { layers: 3, ..DecoderShape::SMALL }, &[1]);
    let vocab = case.program.vocab_size;
    let cpu = Cpu::new(None, 1).unwrap();
    for (backend, temperature) in [(&Reference as &dyn Backend, 0), (&Reference, 9_000), (&cpu, 9_000)] {
        let job = generation(9, 8, temperature, vocab);
        let expected = alone(&case, backend, &job);
        assert!(expected.words.len() > 1);
        let mut wrong = expected.words.clone();
        wrong[expected.words.len() / 2] ^= 1;
        for starts in cuts(case.program.layers.len()) {
            for (hint, chunk) in [(&[][..], 512), (&[], 4), (&expected.words, 512), (&expected.words, 5), (&wrong, 512)]
            {
                let found = together(&case, backend, &job, &starts, hint, chunk);
                assert_eq!(found, expected, "{starts:?}, {} words of hint, {chunk}", hint.len());
            }
        }
    }
}

#[test]
fn what_clamps_is_counted_once_wherever_it_is_cut_and_whatever_was_claimed() {
    let case = loud(decoder(DecoderShape { layers: 3, ..DecoderShape::SMALL }, &[1]));
    let job = generation(9, 8, 9_000, case.program.vocab_size);
    let expected = alone(&case, &Reference, &job);
    assert!(expected.saturations > 0, "nothing clamps");
    let mut wrong = expected.words.clone();
    wrong[1] ^= 1;
    for starts in cuts(case.program.layers.len()) {
        for hint in [&[][..], &expected.words, &wrong] {
            assert_eq!(together(&case, &Reference, &job, &starts, hint, 512), expected, "{starts:?}");
        }
    }
}

#[test]
fn a_slice_has_the_parameters_of_its_layers_and_no_others() {
    let case = decoder(DecoderShape { layers: 3, ..DecoderShape::SMALL }, &[1]);
    let slices: Vec<Slice> =
        [0..=1, 2..=3, 4..=4].map(|layers| Slice::of(&case.program, layers).unwrap()).into_iter().collect();
    let mut all: Vec<_> = slices.iter().flat_map(|slice| slice.params().to_vec()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), case.program.params.len(), "together they read everything");
    assert!(slices.iter().all(|slice| slice.params().len() < case.program.params.len()));
    let macs = |slice: &Slice| slice.program().macs(9, 1);
    assert_eq!(slices.iter().map(macs).sum::<u64>(), case.program.macs(9, 1));
    for none in [0..=0, 2..=5] {
        assert!(Slice::of(&case.program, none).is_none());
    }
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let mut executor = slices[1].load(&Reference, params).unwrap();
    executor.begin(&Batch::single(vec![1, 2])).unwrap();
    for layer in [0, 1, 4] {
        executor.run_layer(layer).unwrap_err();
    }
}

#[test]
fn a_stage_takes_no_pass_and_no_words_that_do_not_fit() {
    let case = decoder(DecoderShape { layers: 3, ..DecoderShape::SMALL }, &[1]);
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let job = generation(9, 8, 0, case.program.vocab_size);
    let slice = Slice::of(&case.program, 2..=3).unwrap();
    let mut executor = slice.load(&Reference, params).unwrap();
    let mut run = StageRun::new(Arc::clone(&case.program), slice.clone(), &job, vec![], CacheId(0)).unwrap();
    let cols = run.received_cols();
    let mut pass = |count: usize, rows: usize| run.pass(&mut *executor, count, &vec![0; rows]).map(drop);
    assert!(matches!(pass(0, 0), Err(StageError::Count { .. })));
    assert!(matches!(pass(10, 10 * cols), Err(StageError::Count { count: 10, left: 9 })));
    assert!(matches!(pass(9, 9 * cols - 1), Err(StageError::Shape { .. })));
    pass(9, 9 * cols).unwrap();
    assert!(matches!(pass(1, cols), Err(StageError::Turn)));
    assert!(matches!(run.accept(&mut *executor, &[], &[], &mut |_| {}), Err(StageError::Shape { expected: 1, .. })));
    run.accept(&mut *executor, &[3], &[], &mut |_| {}).unwrap();
    assert!(matches!(run.accept(&mut *executor, &[3], &[], &mut |_| {}), Err(StageError::Turn)));
    let embedding = Job { kind: JobKind::Embedding, ..job };
    assert!(StageRun::new(Arc::clone(&case.program), slice, &embedding, vec![], CacheId(0)).is_err());
}
