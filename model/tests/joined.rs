//! Several devices as one backend: wherever the layers lie, words, roots and outputs are those of one device; and the memory of
//! the devices decides where they lie.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Member, Wrapper};
use lockstep_kernels::budget::{Budget, Taken};
use lockstep_kernels::conformance::{Case, DecoderShape, decoder, encoder};
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::joined::Joined;
use lockstep_kernels::program::{Param, Program, TensorId};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::{Batch, Params, Sequence, Value};
use lockstep_model::embed::embed;
use lockstep_model::generation::{Event, Generator, Limits, Refused, Request, Run};
use lockstep_model::output::Wanted;
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{Root, Seed};
use proptest::prelude::*;

/// A backend with memory of its own for parameters, that can be lost.
struct Device {
    inner: Arc<dyn Backend>,
    budget: Budget,
    is_lost: Arc<AtomicBool>,
}

impl Device {
    fn new(inner: Arc<dyn Backend>, bytes: Option<u64>) -> Arc<Self> {
        Arc::new(Self { inner, budget: Budget::new("its device", bytes), is_lost: Arc::default() })
    }

    /// Bytes of parameters that are loaded.
    fn taken(&self) -> u64 {
        self.budget.bytes().unwrap_or(0) - self.budget.free().unwrap_or(0)
    }
}

impl Backend for Device {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.budget.bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.budget.free()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let taken = self.budget.take(bytes(&program), "the weights of the model")?;
        let (inner, is_lost) = (self.inner.load(program, params)?, Arc::clone(&self.is_lost));
        Ok(Box::new(DeviceExecutor { inner, is_lost, _taken: taken }))
    }
}

struct DeviceExecutor {
    inner: Box<dyn Executor>,
    is_lost: Arc<AtomicBool>,
    _taken: Taken,
}

impl Wrapper for DeviceExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(BackendError::Device("it fell off the bus".into()));
        }
        self.inner.run_layer(layer)
    }
}

fn bytes(program: &Program) -> u64 {
    program.params.iter().filter_map(Param::bytes).sum()
}

/// What some layers take by themselves.
fn bytes_of(case: &Case, layers: RangeInclusive<usize>) -> u64 {
    bytes(Slice::of(&case.program, layers).expect("it has them").program())
}

fn cpu(path: Option<Path>) -> Arc<dyn Backend> {
    Arc::new(Cpu::new(path, 2).expect("a path"))
}

fn join(devices: &[Arc<Device>]) -> Joined {
    let member = |(number, device): (usize, &Arc<Device>)| Member {
        name: format!("device/{number}"),
        backend: Arc::clone(device) as Arc<dyn Backend>,
    };
    Joined::new(devices.iter().enumerate().map(member).collect())
}

fn load(case: &Case, backend: &dyn Backend) -> Result<Box<dyn Executor>, BackendError> {
    backend.load(Arc::clone(&case.program), Arc::clone(&case.params) as Arc<dyn Params>)
}

fn deep(layers: usize) -> Case {
    decoder(DecoderShape { layers, ..DecoderShape::SMALL }, &[1])
}

/// Words and roots of generations that run together: one that grows beyond a page, a short one, a long one, and then one that
/// starts like that, from its page.
fn generate(case: &Case, backend: &dyn Backend) -> Result<Vec<Run>, BackendError> {
    let generation = Generation { temperature: 9_000, logprobs: 2, ..Generation::greedy(6) };
    let limits = Limits { pass_tokens: 100, ..Limits::within(1 << 30) };
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let mut generator = Generator::new(Arc::clone(&case.program), params, backend, limits).map_err(|refused| {
        let Refused::Backend(error) = refused else { panic!("{refused}") };
        error
    })?;
    let mut runs = Vec::new();
    for round in [&[253, 3, 270][..], &[280]] {
        for (seed, length) in (1..).zip(round) {
            let prompt = (0..*length).map(|t: u32| t * t % case.program.vocab_size).collect();
            let request = Request::new(prompt, &generation, Seed::from_bytes([seed; 32]), vec![]);
            generator.submit(request).expect("room");
        }
        let mut done = Vec::new();
        let mut note = |id, event| {
            if let Event::Done(run) = event {
                done.push((id, run));
            }
        };
        while generator.step(&mut note)? {}
        done.sort_by_key(|(id, _)| *id);
        runs.extend(done.into_iter().map(|(_, run)| run));
    }
    assert_eq!(runs.last().map(|run| run.reused_positions), Some(256), "the last one starts from a page");
    Ok(runs)
}

/// Roots of all layers of each sequence, and the outputs.
type Embedded = (Vec<Vec<Root>>, Vec<Vec<i32>>);

fn embedded(case: &Case, backend: &dyn Backend) -> Result<Embedded, BackendError> {
    let mut executor = load(case, backend)?;
    let mut roots = vec![Vec::new(); case.batch.sequences.len()];
    let run = embed(executor.as_mut(), &case.program, &case.batch, Wanted::Root, |layer| {
        roots.iter_mut().enumerate().for_each(|(sequence, roots)| roots.push(layer.root(sequence)));
        ControlFlow::Continue(())
    });
    Ok((roots, run.expect("a run").rows))
}

#[test]
fn two_and_three_devices_give_what_one_gives() {
    let (decoder, encoder) = (deep(3), encoder(48, 3, 80, 3, false, &[9, 1, 17]));
    let plain = (generate(&decoder, &Reference).expect("a run"), embedded(&encoder, &Reference).expect("a run"));
    let [fast, portable] = [None, Some(Path::Portable)].map(cpu);
    let reference: Arc<dyn Backend> = Arc::new(Reference);
    for backends in [
        vec![Arc::clone(&fast), Arc::clone(&reference)],
        vec![Arc::clone(&portable), Arc::clone(&fast)],
        vec![reference, fast, portable],
    ] {
        let devices: Vec<_> = backends.into_iter().map(|inner| Device::new(inner, None)).collect();
        let joined = join(&devices);
        let told = (generate(&decoder, &joined).expect("a run"), embedded(&encoder, &joined).expect("a run"));
        assert_eq!(told, plain, "{}", joined.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Rooms in percent of the model.
    #[test]
    fn wherever_the_layers_lie_nothing_changes(
        layers in 1_usize..6,
        rooms in prop::collection::vec((prop::option::weighted(0.8, 10_u64..160), 0_usize..3), 2..5),
    ) {
        let backend = |which: usize| match which {
            0 => Arc::new(Reference) as Arc<dyn Backend>,
            1 => cpu(Some(Path::Portable)),
            _ => cpu(None),
        };
        let (decoder, encoder) = (deep(layers), encoder(48, 3, 80, layers, false, &[9, 1, 17]));
        for case in [&decoder, &encoder] {
            let whole = bytes(&case.program);
            let devices: Vec<_> = (rooms.iter())
                .map(|(room, which)| Device::new(backend(*which), room.map(|percent| whole * percent / 100)))
                .collect();
            let joined = join(&devices);
            let loaded = match load(case, &joined) {
                Ok(loaded) => loaded,
                Err(BackendError::Unavailable(why)) => {
                    prop_assert!(rooms.iter().all(|(room, _)| room.is_some_and(|percent| percent < 100)), "{}", why);
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            let fits_one = rooms.iter().any(|(room, _)| room.is_some_and(|percent| percent * 3 / 4 > 100));
            let in_use = devices.iter().filter(|device| device.taken() > 0).count();
            prop_assert!(!fits_one || in_use == 1, "{} of {:?}", in_use, rooms);
            drop(loaded);
            if case.program.is_decoder() {
                prop_assert_eq!(generate(case, &joined).unwrap(), generate(case, &*cpu(None)).unwrap());
            } else {
                prop_assert_eq!(embedded(case, &joined).unwrap(), embedded(case, &*cpu(None)).unwrap());
            }
            prop_assert!(devices.iter().all(|device| device.taken() == 0), "all is given back");
        }
    }
}

/// A quarter of each stays free where that is possible, and then not.
#[test]
fn memory_decides_where_the_cut_is() {
    let case = deep(4);
    for (cut, spare) in (1..5).flat_map(|cut| [(cut, 3), (cut, 50)]) {
        // The first has room for the layers up to the cut and the second for the others, but neither for one more.
        let shares = [bytes_of(&case, 0..=cut), bytes_of(&case, cut + 1..=5)];
        let devices = shares.map(|bytes| Device::new(cpu(None), Some(bytes + bytes / spare + 1)));
        let _loaded = load(&case, &join(&devices)).expect("it fits");
        assert_eq!([devices[0].taken(), devices[1].taken()], shares, "after layer {cut}");
    }
}

/// No device has more than its share, and a second model goes where there is room.
#[test]
fn models_share_the_memory_of_all() {
    let case = deep(4);
    let whole = bytes(&case.program);
    let devices = [170, 190].map(|percent| Device::new(cpu(None), Some(whole * percent / 100)));
    let joined = join(&devices);
    assert_eq!(joined.memory_bytes(), devices[0].memory_bytes().zip(devices[1].memory_bytes()).map(|(a, b)| a + b));
    let taken = || [devices[0].taken(), devices[1].taken()];
    let first = load(&case, &joined).expect("room");
    assert_eq!(taken(), [0, whole]);
    let second = load(&case, &joined).expect("room");
    assert_eq!(taken(), [whole, whole]);
    let third = load(&case, &joined).expect("room in both together");
    assert!(taken().into_iter().all(|bytes| bytes > whole), "{:?}", taken());
    refused(load(&case, &joined), &["device/0", "device/1", &format!("take {whole} bytes")]);
    drop((first, second, third));
    assert_eq!(taken(), [0, 0]);
}

fn refused(loaded: Result<Box<dyn Executor>, BackendError>, parts: &[&str]) {
    let Err(BackendError::Unavailable(why)) = loaded.map(drop) else { panic!("it is refused") };
    assert!(parts.iter().all(|part| why.contains(part)), "{why}");
}

#[test]
fn what_fits_no_way_is_refused_with_the_bytes_of_every_device() {
    let case = deep(2);
    let layers = [0..=1, 2..=2, 3..=3].map(|layers| bytes_of(&case, layers));
    // All together would do, and the first two layers fit nowhere.
    let devices = [layers[0] - 1, layers[0] - 2, 7].map(|bytes| Device::new(cpu(None), Some(bytes)));
    let first = layers[0].to_string();
    let rooms = [format!("device/0 {}", layers[0] - 1), format!("device/1 {}", layers[0] - 2), "device/2 7".into()];
    let parts: Vec<&str> = rooms.iter().map(String::as_str).chain([&*first, "--pipeline-listen"]).collect();
    refused(load(&case, &join(&devices)), &parts);
    refused(load(&case, &Joined::new(Vec::new())), &["do not fit"]);
    assert!(devices.iter().all(|device| device.taken() == 0));
}

#[test]
fn a_device_that_is_lost_is_named() {
    let case = deep(3);
    let devices = [None, None, None].map(|bytes| Device::new(cpu(None), bytes));
    let joined = join(&devices);
    generate(&case, &joined).expect("all work");
    for (number, device) in devices.iter().enumerate() {
        device.is_lost.store(true, Ordering::SeqCst);
        match generate(&case, &joined) {
            Err(BackendError::Device(why)) => assert_eq!(why, format!("device/{number}: it fell off the bus")),
            other => panic!("{other:?}"),
        }
        device.is_lost.store(false, Ordering::SeqCst);
    }
}

/// What can be read and written, whichever device has it.
#[test]
fn values_are_found_where_they_are() {
    let case = deep(3);
    let params = Arc::clone(&case.params) as Arc<dyn Params>;
    let mut alone = Reference.load(Arc::clone(&case.program), params).expect("a program");
    let joined = join(&[None, None].map(|bytes| Device::new(cpu(None), bytes)));
    let mut executor = load(&case, &joined).expect("a program");
    let not_yet = |read: Result<Value, BackendError>| matches!(read, Err(BackendError::Value { .. }));
    assert!(executor.run_layer(0).is_err() && not_yet(executor.read(TensorId(0))), "no batch has begun");
    let batch = Batch::single((0..9).collect());
    let last = case.program.layers.len() - 1;
    let outs = |layer: usize| case.program.layers[layer].ops.iter().map(|op| op.out());
    for _ in 0..2 {
        for executor in [&mut alone, &mut executor] {
            executor.begin(&batch).expect("a batch");
        }
        assert!((0..=last).flat_map(outs).all(|tensor| not_yet(executor.read(tensor))));
        for layer in 0..=last {
            assert_eq!(executor.run_layer(layer).expect("a layer"), alone.run_layer(layer).expect("a layer"));
            // Those of earlier layers too.
            for tensor in (0..=layer).flat_map(outs) {
                assert_eq!(executor.read(tensor).expect("a value"), alone.read(tensor).expect("a value"));
            }
        }
        // From outside, and back to a layer that another device has.
        for layer in [3, 1, 2] {
            let before = case.program.layers[layer - 1].output;
            let Value::I32(rows) = alone.read(before).expect("a value") else { panic!("rows are i32") };
            let rows: Vec<i32> = rows.into_iter().map(|x| x ^ 64).collect();
            for executor in [&mut alone, &mut executor] {
                executor.write(before, Value::I32(rows.clone())).expect("it fits");
                executor.run_layer(layer).expect("a layer");
            }
            let output = case.program.layers[layer].output;
            assert_eq!(executor.read(output).expect("a value"), alone.read(output).expect("a value"));
        }
        assert!(executor.run_layer(last + 1).is_err());
        let beyond = TensorId(case.program.tensors.len() as u16);
        assert!(not_yet(executor.read(beyond)) && executor.write(beyond, Value::I32(vec![])).is_err());
        // A batch that is refused leaves nothing.
        let refused = Batch { sequences: vec![Sequence::new(vec![u32::MAX])] };
        assert!(executor.begin(&refused).is_err() && executor.run_layer(0).is_err());
        assert!(not_yet(executor.read(case.program.layers[0].output)));
    }
}
