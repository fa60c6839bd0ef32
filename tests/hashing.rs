//! Commitments of rows that stay on their device: of what nobody records, 32 bytes come back for each KiB, and the roots are those
//! of the CPU. On whatever adapter there is, and on the CUDA kernels compiled for the CPU.

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::skipped;
use lockstep_cuda::Cuda;
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::backend::{Backend, BackendError, Executor, Member, Wrapper};
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, decoder, encoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::joined::Joined;
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Params, Value};
use lockstep_model::embed::embed;
use lockstep_model::generation::{Event, Generator, Limits, Recorder, Request};
use lockstep_model::output::Wanted;
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{Root, Seed};
use lockstep_shaders::{Options, Wgpu};

/// Bytes that came back from a device.
#[derive(Debug, Default)]
struct Counts {
    /// As values of tensors.
    read: AtomicU64,
    /// As chaining values.
    hashed: AtomicU64,
}

impl Counts {
    fn take(&self) -> [u64; 2] {
        [&self.read, &self.hashed].map(|count| count.swap(0, Ordering::SeqCst))
    }
}

/// Another backend, with what is read from it counted.
struct Counting {
    inner: Arc<dyn Backend>,
    counts: Arc<Counts>,
}

impl Counting {
    fn of(inner: Arc<dyn Backend>) -> Self {
        Self { inner, counts: Arc::default() }
    }
}

impl Backend for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let inner = self.inner.load(program, params)?;
        Ok(Box::new(CountingExecutor { inner, counts: Arc::clone(&self.counts) }))
    }
}

struct CountingExecutor {
    inner: Box<dyn Executor>,
    counts: Arc<Counts>,
}

impl Wrapper for CountingExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        let value = self.inner.read(tensor)?;
        let bytes = match &value {
            Value::I32(v) => 4 * v.len(),
            Value::I16(v) => 2 * v.len(),
            Value::Bfp { codes, exponents } => 2 * codes.len() + 4 * exponents.len(),
        };
        self.counts.read.fetch_add(bytes as u64, Ordering::SeqCst);
        Ok(value)
    }

    fn chunk_values(&mut self, tensor: TensorId, counters: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        let values = self.inner.chunk_values(tensor, counters)?;
        let bytes = values.as_ref().map_or(0, |values| 32 * values.len());
        self.counts.hashed.fetch_add(bytes as u64, Ordering::SeqCst);
        Ok(values)
    }
}

fn cpu() -> Cpu {
    Cpu::new(None, 2).expect("a path")
}

/// The backends that hash where their rows lie: each device alone, and two of its kind with the layers between them.
fn devices() -> Vec<Arc<dyn Backend>> {
    let cuda = || Cuda::on(Arc::new(Emulation::new(Order::Ascending, (8, 0))), None).expect("a capable device");
    let mut devices: Vec<Arc<dyn Backend>> = vec![Arc::new(cuda()), joined([Arc::new(cuda()), Arc::new(cuda())])];
    let wgpu = || Wgpu::open(Options::default());
    match wgpu().and_then(|first| Ok([first.clone(), first, wgpu()?])) {
        Ok([alone, first, second]) => {
            devices.extend([Arc::new(alone) as _, joined([Arc::new(first), Arc::new(second)])])
        }
        Err(why) => skipped(&why.to_string()),
    }
    devices
}

fn joined(devices: [Arc<dyn Backend>; 2]) -> Arc<dyn Backend> {
    Arc::new(Joined::evenly(devices.map(|backend| Member { name: backend.name(), backend }).into()))
}

/// Layers, and rows of theirs.
type Told = Vec<(usize, Vec<i32>)>;

/// Rows of layers 1 to L, in the order in which they are told.
#[derive(Clone, Debug, Default)]
struct Rows(Arc<Mutex<Told>>);

impl Recorder for Rows {
    fn reuse(&mut self, _: &[u32]) {}

    fn push(&mut self, layer: usize, rows: &[i32]) {
        self.0.lock().unwrap().push((layer, rows.to_vec()));
    }

    fn truncate(&mut self, _: usize) {}

    fn finish(self: Box<Self>, _: &[u32]) {}
}

/// Words of each sequence.
const WORDS: usize = 4;
/// Tokens of the prompts, which share their passes.
const PROMPTS: [usize; 2] = [19, 3];

/// Words and roots of generations, the first of them recorded where somebody is there for that.
fn generate(case: &Case, backend: &dyn Backend, recorder: Option<&Rows>) -> Vec<(Vec<u32>, Vec<Root>)> {
    let generation = Generation { temperature: 9_000, ..Generation::greedy(WORDS as u32) };
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let mut generator =
        Generator::new(Arc::clone(&case.program), params, backend, Limits::within(1 << 30)).expect("room");
    let mut recorder = recorder.map(|rows| Box::new(rows.clone()) as Box<dyn Recorder>);
    for (seed, length) in (1..).zip(PROMPTS) {
        let prompt = (0..length as u32).map(|t| t * t % case.program.vocab_size).collect();
        let request = Request::new(prompt, &generation, Seed::from_bytes([seed; 32]), vec![]);
        generator.submit_recorded(request, recorder.take()).expect("room");
    }
    let mut runs = Vec::new();
    let mut note = |id, event| {
        if let Event::Done(run) = event {
            runs.push((id, run));
        }
    };
    while generator.step(&mut note).expect("a pass") {}
    runs.sort_by_key(|(id, _)| *id);
    runs.into_iter().map(|(_, run)| (run.words, run.roots)).collect()
}

/// Positions that are computed; the last word of each is no input.
fn positions() -> u64 {
    PROMPTS.iter().map(|prompt| (prompt + WORDS - 1) as u64).sum()
}

#[test]
fn of_a_generation_words_and_chaining_values_come_back() {
    let shape = DecoderShape { width: 300, ..DecoderShape::SMALL };
    let case = decoder(shape, &[1]);
    let expected = generate(&case, &cpu(), None);
    for device in devices() {
        let device = Counting::of(device);
        assert_eq!(generate(&case, &device, None), expected, "{}", device.name());
        let words = (PROMPTS.len() * WORDS) as u64;
        // Two chunks of each row.
        let values = 2 * positions() * shape.layers as u64;
        assert_eq!(device.counts.take(), [4 * words, 32 * values], "{}", device.name());
    }
}

/// The first row of a tensor of narrow rows is its only chunk for a while, of which there is no chaining value: the pass that has it
/// reads its rows.
#[test]
fn narrow_rows_are_read_in_the_first_pass_alone() {
    let shape = DecoderShape::SMALL;
    let case = decoder(shape, &[1]);
    let expected = generate(&case, &cpu(), None);
    for device in devices() {
        let device = Counting::of(device);
        assert_eq!(generate(&case, &device, None), expected, "{}", device.name());
        let words = (PROMPTS.len() * WORDS) as u64;
        let first = PROMPTS.iter().sum::<usize>() as u64;
        let [of_prompts, others] = [first, positions() - first].map(|rows| rows * shape.layers as u64);
        let read = 4 * words + 4 * shape.width as u64 * of_prompts;
        assert_eq!(device.counts.take(), [read, 32 * others], "{}", device.name());
    }
}

#[test]
fn who_records_a_generation_gets_its_rows() {
    let shape = DecoderShape { width: 300, ..DecoderShape::SMALL };
    let case = decoder(shape, &[1]);
    let on_cpu = Rows::default();
    let expected = generate(&case, &cpu(), Some(&on_cpu));
    for device in devices() {
        let (device, rows) = (Counting::of(device), Rows::default());
        assert_eq!(generate(&case, &device, Some(&rows)), expected, "{}", device.name());
        assert_eq!(*rows.0.lock().unwrap(), *on_cpu.0.lock().unwrap(), "{}", device.name());
        let [read, _] = device.counts.take();
        let recorded = (PROMPTS[0] + WORDS - 1) * shape.layers * shape.width * 4;
        assert!(read >= recorded as u64, "{}: {read}", device.name());
    }
}

/// Roots of all layers of each sequence, and the outputs.
fn embedded(case: &Case, backend: &dyn Backend, wanted: Wanted) -> (Vec<Vec<Root>>, Vec<Vec<i32>>) {
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let mut executor = backend.load(Arc::clone(&case.program), params).expect("a valid program");
    let mut roots = vec![Vec::new(); case.batch.sequences.len()];
    let run = embed(executor.as_mut(), &case.program, &case.batch, wanted, |layer| {
        roots.iter_mut().enumerate().for_each(|(sequence, roots)| roots.push(layer.root(sequence)));
        ControlFlow::Continue(())
    });
    (roots, run.expect("a run").rows)
}

#[test]
fn of_an_embedding_the_output_and_chaining_values_come_back() {
    for (width, chunks) in [(300, 2), (60, 0)] {
        let case = encoder(width, 4, 80, 2, false, &[9, 3, 1]);
        let expected = embedded(&case, &cpu(), Wanted::Rows);
        for device in devices() {
            let device = Counting::of(device);
            assert_eq!(embedded(&case, &device, Wanted::Root), expected, "{}", device.name());
            // Three layers of 13 rows, and three rows of output.
            let read = if chunks == 0 { 42 } else { 3 };
            assert_eq!(device.counts.take(), [4 * width as u64 * read, 32 * 39 * chunks], "{}", device.name());
            assert_eq!(embedded(&case, &device, Wanted::Rows), expected, "{}", device.name());
            assert_eq!(device.counts.take(), [4 * width as u64 * 42, 0], "{}", device.name());
        }
    }
}
