//! Words whose launches are recorded once and replayed: the same bytes as the oracle's whatever changes between them, few calls
//! of the device, and nothing replayed that names memory which is no more.

use std::sync::Arc;

use lockstep_cuda::Products;
use lockstep_cuda::device::{Buffer, Device, Graph};
use lockstep_cuda::params::BinaryParams;
use lockstep_cuda::plan::{self, Node};
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::conformance::{DecoderShape, decoder};
use lockstep_kernels::program::{Program, TensorId, TensorKind};
use lockstep_kernels::value::{Batch, CacheId, Value};

mod talk;

use talk::{Calls, Counting, Talk, on, oracle, sequence};

fn device(order: Order) -> Arc<Counting> {
    Counting::new(Emulation::new(order, (9, 0)))
}

/// A decoder with and without graphs, held to the oracle. Returns the device of the one with graphs.
fn talk(shape: DecoderShape, order: Order) -> (Talk, Arc<Counting>) {
    let case = decoder(shape, &[1]);
    let with = device(order);
    let without = on(&device(order), &case, Products::Wgmma).without_graphs();
    let others: Vec<Box<dyn Executor>> = vec![Box::new(on(&with, &case, Products::Wgmma)), Box::new(without)];
    (Talk::new(case, others), with)
}

/// Batches that grow and shrink, prompts in between that take the memory of tensors, caches that come and go.
#[test]
fn batches_change_their_size() {
    for order in [Order::Ascending, Order::Descending] {
        let (mut talk, device) = talk(DecoderShape::SMALL, order);
        talk.prompt(1, 20);
        talk.words(&[1], 4);
        talk.prompt(2, 5);
        talk.words(&[1, 2], 3);
        talk.words(&[2, 1], 2);
        talk.prompt(3, 300);
        talk.words(&[1, 2, 3], 3);
        talk.words(&[3], 3);
        talk.drop(2);
        talk.prompt(2, 9);
        talk.words(&[3], 1);
        talk.words(&[2, 3], 3);
        // More rows than a product of vectors takes.
        for id in 10..16 {
            talk.fork(1, id);
        }
        talk.words(&[1, 2, 3, 10, 11, 12, 13, 14, 15], 3);
        let calls = device.take();
        assert!(calls.recorded >= 6 && calls.replayed > calls.recorded, "{calls:?}");
        drop(talk);
        assert_eq!(device.inner.allocated(), 0);
    }
}

/// Over the end of a page, which is one of a softmax block too, and beyond the blocks that the launches have room for.
#[test]
fn caches_grow() {
    let (mut talk, device) = talk(DecoderShape::SMALL, Order::Ascending);
    talk.prompt(1, 253);
    talk.words(&[1], 8);
    assert_eq!(device.take().recorded, 1, "a page more is no other graph");
    talk.prompt(2, 509);
    for id in 3..6 {
        talk.fork(2, id);
    }
    // From eight blocks to twelve.
    talk.words(&[2, 3, 4, 5], 7);
    assert_eq!(device.take().recorded, 2, "blocks beyond the room are another graph");
}

/// Pages are copied by whoever writes to one that is shared, are given back and come again elsewhere, while the graph stays.
#[test]
fn pages_move_under_a_graph() {
    let (mut talk, device) = talk(DecoderShape::SMALL, Order::Ascending);
    talk.prompt(1, 300);
    talk.words(&[1], 3);
    talk.fork(1, 2);
    talk.words(&[1], 2);
    talk.words(&[2], 2);
    talk.drop(1);
    talk.words(&[2], 1);
    talk.back(2, 257);
    talk.words(&[2], 2);
    talk.back(2, 254);
    talk.words(&[2], 4);
    let calls = device.take();
    assert_eq!((calls.recorded, calls.replayed), (1, 13), "all words but the first: {calls:?}");
}

/// Rows of several chunks, long rows, and heads that are normalised.
#[test]
fn wide_rows_are_hashed_in_one_launch() {
    let shape = DecoderShape { width: 520, head_norms: true, layers: 3, max_positions: 20, ..DecoderShape::SMALL };
    let (mut talk, _) = talk(shape, Order::Descending);
    talk.prompt(1, 3);
    talk.prompt(2, 2);
    talk.words(&[1, 2], 3);
}

/// One upload, one start and one wait, where layers by themselves take two waits each and all of their launches.
#[test]
fn a_word_takes_one_upload_one_start_and_one_wait() {
    let case = decoder(DecoderShape::SMALL, &[1]);
    let counts = |with_graphs: bool| {
        let device = device(Order::Ascending);
        let executor = on(&device, &case, Products::Wgmma);
        let executor = if with_graphs { executor } else { executor.without_graphs() };
        let mut talk = Talk::new(case.clone(), vec![Box::new(executor)]);
        talk.prompt(1, 5);
        device.take();
        [(); 4].map(|()| {
            talk.words(&[1], 1);
            device.take()
        })
    };
    // Of the embedding, two layers of 15 as in the executor's own test, and the output: gather, norm and codes, product, word.
    let launches = 1 + 2 * 15 + 4;
    let first = Calls { uploads: 1, launches: launches + 1, recorded: 0, replayed: 0, waits: 1 };
    let second = Calls { uploads: 1, launches: 0, recorded: 1, replayed: 1, waits: 1 };
    let later = Calls { recorded: 0, ..second };
    assert_eq!(counts(true), [first, second, later, later]);
    // A hash more for each of the two layers; a wait for each of four counts of clamped elements, two hashes, and the word.
    let alone = counts(false)[3];
    assert_eq!((alone.launches, alone.waits, alone.replayed), (launches + 2, 4 + 2 + 1, 0));
}

fn tensor(program: &Program, name: &str) -> TensorId {
    TensorId(program.tensors.iter().position(|t| t.name == name).expect("a tensor of that name") as u16)
}

/// A caller that goes another way than the pass that ran ahead: it gets what layers by themselves would have given.
#[test]
fn callers_may_depart_in_the_middle_of_a_pass() {
    let case = decoder(DecoderShape::SMALL, &[1]);
    let program = &case.program;
    let [residual, query, gated] = ["residual 0", "query 1 rotated", "gated 0"].map(|name| tensor(program, name));
    let logits = tensor(program, "logits");
    type Act<'a> = &'a dyn Fn(&mut dyn Executor) -> Result<Vec<Value>, BackendError>;
    let reads: Act<'_> = &|e| Ok(vec![e.read(gated)?]);
    let before: Act<'_> = &|e| {
        let refused = e.read(query).expect_err("layer 2 has not run").to_string();
        assert!(refused.contains("has not written"), "{refused}");
        Ok(vec![])
    };
    let writes: Act<'_> = &|e| {
        let Value::I32(mut rows) = e.read(residual)? else { panic!("i32") };
        rows[3] += 1 << 14;
        e.write(program.layers[1].output, Value::I32(rows)).map(|()| vec![])
    };
    let forks: Act<'_> = &|e| e.fork_cache(CacheId(1), CacheId(2), 6).map(|()| vec![]);
    let again: Act<'_> = &|e| e.run_layer(0).and_then(|_| e.run_layer(1)).map(|_| vec![]);
    let acts =
        [("reads", reads), ("reads too early", before), ("writes", writes), ("forks", forks), ("runs again", again)];
    for (name, act) in acts {
        let run = |executor: &mut dyn Executor| -> Vec<Value> {
            let mut got = Vec::new();
            let mut tokens: Vec<u32> = (0..7).collect();
            for (start, departs) in [(0, false), (7, false), (8, true), (9, false), (10, true)] {
                let sequences = vec![sequence(1, start, &(7, tokens.clone()))];
                executor.begin(&Batch { sequences }).expect("a valid batch");
                for layer in 0..program.layers.len() {
                    executor.run_layer(layer).expect("in order");
                    if departs && layer == 1 {
                        got.extend(act(executor).unwrap_or_else(|e| panic!("{name}: {e}")));
                    }
                }
                let outputs = program.layers.iter().map(|layer| layer.output).chain([logits]);
                got.extend(outputs.map(|tensor| executor.read(tensor).expect("written")));
                tokens.push(start as u32 + 30);
            }
            got
        };
        let wanted = run(oracle(&case).as_mut());
        assert!(wanted.iter().all(|value| matches!(value, Value::I32(_))));
        let got = run(&mut on(&device(Order::Ascending), &case, Products::Wgmma));
        for (n, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            assert_eq!(got, wanted, "{name}: value {n}");
        }
        assert_eq!(got.len(), wanted.len());
    }
}

/// A cache that goes in the middle of a pass is missed by the layer that needs it, and one that is cut lacks nothing earlier.
#[test]
fn caches_may_go_in_the_middle_of_a_pass() {
    let case = decoder(DecoderShape::SMALL, &[1]);
    let mut executor = on(&device(Order::Ascending), &case, Products::Wgmma);
    let pass = |executor: &mut dyn Executor, start: usize, tokens: usize| {
        let said = (5, (0..tokens as u32).collect());
        executor.begin(&Batch { sequences: vec![sequence(1, start, &said)] })
    };
    pass(&mut executor, 0, 5).expect("a prompt");
    for layer in 0..program_layers(&case.program) {
        executor.run_layer(layer).expect("in order");
    }
    pass(&mut executor, 5, 6).expect("it holds five positions");
    executor.run_layer(0).expect("in order");
    executor.run_layer(1).expect("in order");
    executor.drop_cache(CacheId(1));
    let refused = executor.run_layer(2).expect_err("its keys and values are gone").to_string();
    assert!(refused.contains("dropped during the pass"), "{refused}");
    // A pass that stops between layers leaves what was there before it.
    pass(&mut executor, 0, 5).expect("a new cache");
    for layer in 0..program_layers(&case.program) {
        executor.run_layer(layer).expect("in order");
    }
    pass(&mut executor, 5, 6).expect("it holds five positions");
    executor.run_layer(0).expect("in order");
    executor.run_layer(1).expect("in order");
    let refused = pass(&mut executor, 6, 7).expect_err("the second layer does not hold six").to_string();
    assert!(refused.contains("5 positions, not 6"), "{refused}");
    executor.truncate_cache(CacheId(1), 5).expect("as many as each layer holds");
    pass(&mut executor, 5, 6).expect("it holds five positions");
    assert_eq!(executor.run_layer(0).expect("in order").saturations, 0);
}

fn program_layers(program: &Program) -> usize {
    assert_eq!(program.tensor(program.layers[0].output).kind, TensorKind::I32);
    program.layers.len()
}

/// Kernels are launched one by one where the device records none, and it is asked once.
#[test]
fn a_device_without_graphs_will_do() {
    let case = decoder(DecoderShape::SMALL, &[1]);
    let device = Counting::new(Emulation::new(Order::Ascending, (9, 0)).refusing_graphs());
    let mut talk = Talk::new(case.clone(), vec![Box::new(on(&device, &case, Products::Wgmma))]);
    talk.prompt(1, 5);
    device.take();
    talk.words(&[1], 4);
    let calls = device.take();
    assert_eq!((calls.recorded, calls.replayed, calls.launches), (1, 0, 4 * 36), "{calls:?}");
    assert_eq!((calls.uploads, calls.waits), (4, 4));
}

/// A graph that names memory which was given back is not started, also where other memory lies at the same place by then.
#[test]
fn a_graph_of_memory_that_is_no_more_is_refused() {
    let device: Arc<dyn Device> = Arc::new(Emulation::new(Order::Ascending, (9, 0)));
    let of = |value: i32| Buffer::of(&device, &[value; 8]).expect("memory");
    let (a, b, out, count) = (of(1), of(2), of(0), of(0));
    let sum = |a: &Buffer| {
        let [a, b, out, saturations] = [a, &b, &out, &count].map(Buffer::address);
        plan::add(BinaryParams { a, b, out, saturations, len: 8, shift: 0, unused: 0 })
    };
    let node = |after| Node { launch: sum(&a), after };
    assert!(Graph::of(&device, &[node(None), node(Some(1))]).is_err(), "a launch waits for an earlier one");
    let graph = Graph::of(&device, &[node(None)]).expect("it records");
    assert_eq!(out.read::<i32>(1).expect("memory"), [0], "recording runs nothing");
    graph.replay().expect("all is there");
    assert_eq!(out.read::<i32>(8).expect("memory"), [3; 8]);
    // What is in memory when it is started counts.
    a.write(&[5_i32; 8]).expect("memory");
    graph.replay().expect("all is there");
    assert_eq!(out.read::<i32>(8).expect("memory"), [7; 8]);
    drop(a);
    let refused = graph.replay().expect_err("a is no more").to_string();
    assert!(refused.contains("32 bytes") && refused.contains("given back"), "{refused}");
    let again: Vec<Buffer> = (0..64).map(|_| of(9)).collect();
    assert!(graph.replay().is_err(), "{} new buffers of that size change nothing", again.len());
}
