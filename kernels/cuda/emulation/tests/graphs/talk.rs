//! Generations on several executors in step: what one tells of a pass the others must tell too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use blake3::hazmat::HasherExt;
use lockstep_cuda::Products;
use lockstep_cuda::device::{Device, DeviceError};
use lockstep_cuda::executor::DeviceExecutor;
use lockstep_cuda::plan::{Launch, Node};
use lockstep_cuda_emulation::Emulation;
use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{Case, OwnedParams, SplitMix};
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::sampling::{Sampling, split_word};
use lockstep_kernels::value::{Batch, CacheId, Params, Sampler, Sequence, Value};

/// How often a device was asked for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub uploads: u32,
    pub launches: u32,
    pub recorded: u32,
    pub replayed: u32,
    pub waits: u32,
}

/// A device that counts.
pub struct Counting {
    pub inner: Emulation,
    calls: Mutex<Calls>,
}

impl Counting {
    pub fn new(inner: Emulation) -> Arc<Self> {
        Arc::new(Self { inner, calls: Mutex::default() })
    }

    fn count(&self, count: impl FnOnce(&mut Calls)) {
        count(&mut self.calls.lock().expect("nobody panics while counting"));
    }

    /// Since the last time.
    pub fn take(&self) -> Calls {
        std::mem::take(&mut *self.calls.lock().expect("nobody panics while counting"))
    }
}

impl Device for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capability(&self) -> (u32, u32) {
        self.inner.capability()
    }

    fn processors(&self) -> u32 {
        self.inner.processors()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn free(&self, address: u64) {
        self.inner.free(address);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.count(|calls| calls.uploads += 1);
        self.inner.upload(to, bytes)
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.count(|calls| calls.waits += 1);
        self.inner.download(from, bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.copy(from, to, bytes)
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.zero(at, bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        self.count(|calls| calls.launches += 1);
        self.inner.launch(launch)
    }

    fn record(&self, nodes: &[Node]) -> Result<u64, DeviceError> {
        self.count(|calls| calls.recorded += 1);
        self.inner.record(nodes)
    }

    fn replay(&self, graph: u64) -> Result<(), DeviceError> {
        self.count(|calls| calls.replayed += 1);
        self.inner.replay(graph)
    }

    fn forget(&self, graph: u64) {
        self.inner.forget(graph);
    }
}

/// The oracle, and executors that are held to it.
pub struct Talk {
    pub case: Case,
    oracle: Box<dyn Executor>,
    others: Vec<Box<dyn Executor>>,
    /// Of each cache: tokens of the prompt, and all tokens, of which the last is not in the cache yet.
    said: BTreeMap<u64, (usize, Vec<u32>)>,
}

/// What is heard of a pass.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    saturations: Vec<u64>,
    /// Chaining values of the outputs of layers that are committed.
    hashes: Vec<Vec<[u8; 32]>>,
    words: Vec<u32>,
}

/// A program on a device.
pub fn on(device: &Arc<Counting>, case: &Case, products: Products) -> DeviceExecutor {
    let device: Arc<dyn Device> = Arc::<Counting>::clone(device);
    DeviceExecutor::new(device, products, Arc::clone(&case.program), &*case.params).expect("a valid program")
}

/// A program on the oracle.
pub fn oracle(case: &Case) -> Box<dyn Executor> {
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    Reference.load(Arc::clone(&case.program), params).expect("a valid program")
}

impl Talk {
    pub fn new(case: Case, others: Vec<Box<dyn Executor>>) -> Self {
        let oracle = oracle(&case);
        Self { case, oracle, others, said: BTreeMap::new() }
    }

    /// A new sequence: reads a prompt of so many tokens, in one pass, and makes its first word.
    pub fn prompt(&mut self, id: u64, tokens: usize) {
        let mut rng = SplitMix::named(&format!("prompt {id}"));
        let vocabulary = i64::from(self.case.program.vocab_size);
        let prompt = (0..tokens).map(|_| rng.range(0, vocabulary - 1) as u32).collect();
        self.said.insert(id, (tokens, prompt));
        self.pass(&[(id, 0)]);
    }

    /// The next word of each of these sequences, so many times.
    pub fn words(&mut self, ids: &[u64], times: usize) {
        for _ in 0..times {
            let parts: Vec<_> = ids.iter().map(|id| (*id, self.said[id].1.len() - 1)).collect();
            self.pass(&parts);
        }
    }

    /// Another sequence that goes on where this one is.
    pub fn fork(&mut self, from: u64, to: u64) {
        let said = self.said[&from].clone();
        let held = said.1.len() - 1;
        self.each(|executor| executor.fork_cache(CacheId(from), CacheId(to), held));
        self.said.insert(to, said);
    }

    /// Goes back to where a sequence had so many tokens.
    pub fn back(&mut self, id: u64, tokens: usize) {
        self.each(|executor| executor.truncate_cache(CacheId(id), tokens - 1));
        let (prompt, said) = self.said.get_mut(&id).expect("a sequence");
        said.truncate(tokens);
        *prompt = tokens.min(*prompt);
    }

    pub fn drop(&mut self, id: u64) {
        self.said.remove(&id);
        self.each(|executor| {
            executor.drop_cache(CacheId(id));
            Ok(())
        });
    }

    fn each(&mut self, act: impl Fn(&mut dyn Executor) -> Result<(), BackendError>) {
        for executor in std::iter::once(&mut self.oracle).chain(&mut self.others) {
            act(executor.as_mut()).expect("as on the others");
        }
    }

    fn pass(&mut self, parts: &[(u64, usize)]) {
        let batch =
            Batch { sequences: parts.iter().map(|(id, start)| sequence(*id, *start, &self.said[id])).collect() };
        let wanted = hear(self.oracle.as_mut(), &self.case.program, &batch);
        for (n, executor) in self.others.iter_mut().enumerate() {
            let heard = hear(executor.as_mut(), &self.case.program, &batch);
            assert_eq!(heard, wanted, "executor {n}, sequences and first positions {parts:?}");
        }
        for ((id, _), word) in parts.iter().zip(wanted.words) {
            self.said.get_mut(id).expect("a sequence").1.push(split_word(word).0);
        }
    }
}

/// What a sequence computes from `start` on. Settings depend on what was said before.
pub fn sequence(id: u64, start: usize, (prompt, tokens): &(usize, Vec<u32>)) -> Sequence {
    let sampling = Sampling {
        temperature: 9_000,
        top_k: 30,
        repetition_penalty: 13_000,
        presence_penalty: 2_000,
        logit_bias: vec![(3, 5_000), (7, -9_000)],
        ..Sampling::greedy(*prompt as u32, 10_000)
    };
    let draw = SplitMix::named(&format!("draw {id} {}", tokens.len())).next_u64();
    Sequence {
        tokens: tokens.clone(),
        start,
        cache: Some(CacheId(id)),
        sampler: Some(Sampler { sampling: Arc::new(sampling), draws: vec![draw] }),
    }
}

fn hear(executor: &mut dyn Executor, program: &Program, batch: &Batch) -> Heard {
    executor.begin(batch).expect("a valid batch");
    let mut heard = Heard { saturations: vec![], hashes: vec![], words: vec![] };
    let last = program.layers.len() - 1;
    for (l, layer) in program.layers.iter().enumerate() {
        heard.saturations.push(executor.run_layer(l).expect("in order").saturations);
        if (1..last).contains(&l) {
            heard.hashes.push(hashes(executor, program, layer.output, batch));
        }
    }
    let Ok(Value::I32(words)) = executor.read(program.layers[last].output) else { panic!("words are i32") };
    heard.words = words.into_iter().map(i32::cast_unsigned).collect();
    heard
}

/// Chaining values of the chunks of a tensor's rows, by whoever can make them.
fn hashes(executor: &mut dyn Executor, program: &Program, tensor: TensorId, batch: &Batch) -> Vec<[u8; 32]> {
    let cols = program.tensor(tensor).cols as usize;
    let row_chunks = cols.div_ceil(256) as u64;
    let positions = batch.sequences.iter().flat_map(|s| s.start..s.tokens.len());
    let counters: Vec<u64> = positions.map(|position| position as u64 * row_chunks).collect();
    if let Some(values) = executor.chunk_values(tensor, &counters).expect("written") {
        return values;
    }
    let Ok(Value::I32(rows)) = executor.read(tensor) else { panic!("committed rows are i32") };
    let of_row = |(row, counter): (&[i32], u64)| {
        let mut bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.resize(row_chunks as usize * 1_024, 0);
        let value = |(chunk, bytes): (u64, &[u8])| {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset((counter + chunk) * 1_024).update(bytes);
            hasher.finalize_non_root()
        };
        (0..).zip(bytes.chunks(1_024)).map(value).collect::<Vec<_>>()
    };
    rows.chunks(cols).zip(counters).flat_map(of_row).collect()
}
