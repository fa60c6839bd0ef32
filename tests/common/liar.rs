//! Somebody who cheats, in this process: the worker command has no way to.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{Program, TensorId};
use lockstep_kernels::value::{Batch, CacheId, Params, Value};
use lockstep_protocol::ids::NodeId;
use lockstep_sim::adversary::{Change, Lie, LyingBackend, Target};
use lockstep_worker::{Config, Handle, Worker};
use tokio::runtime::Runtime;

/// The layer that is lied about.
pub const LAYER: usize = 3;

/// One number of the product with the feed-forward matrix, as in the demo.
pub const LIE: Lie =
    Lie { layer: LAYER, op: 10, target: Target::Element { row: 2, col: 700 }, change: Change::Xor(1 << 20) };

/// A worker that tells [`LIE`].
pub struct Liar {
    pub key: NodeId,
    handle: Handle,
    runtime: Runtime,
}

impl Liar {
    /// Joins a coordinator at `KEY@HOST:PORT`. It thinks for so long about the layer that it lies about, whenever it
    /// runs it.
    pub fn join(address: &str, data: &Path, pause: Duration) -> Self {
        let (coordinator, address) = address.split_once('@').expect("KEY@HOST:PORT");
        let threads = NonZeroUsize::MIN;
        let cpu = Cpu::new(None, threads.get()).expect("a processor");
        let lying = LyingBackend::new(cpu.name(), cpu.kernels().clone(), &[LIE]);
        let backend = Arc::new(Slow { lying: Arc::new(lying), pause });
        let config = Config::new(coordinator.parse().expect("a key"), address.into(), data.into(), threads);
        let runtime = Runtime::new().expect("threads");
        let handle = runtime.block_on(async { Worker::start(config, backend) }).expect("it starts");
        Self { key: handle.id(), handle, runtime }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.handle.abort();
        // That it was aborted, or put out, is no news here.
        let _ = self.runtime.block_on(self.handle.wait());
    }
}

/// A backend that takes its time in the layer that is lied about.
struct Slow {
    lying: Arc<dyn Backend>,
    pause: Duration,
}

struct SlowExecutor {
    lying: Box<dyn Executor>,
    pause: Duration,
}

impl Backend for Slow {
    fn name(&self) -> String {
        self.lying.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(SlowExecutor { lying: self.lying.load(program, params)?, pause: self.pause }))
    }
}

impl Executor for SlowExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.lying.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if layer == LAYER {
            std::thread::sleep(self.pause);
        }
        self.lying.run_layer(layer)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.lying.read(tensor)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.lying.write(tensor, value)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.lying.fork_cache(from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.lying.truncate_cache(id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.lying.drop_cache(id);
    }

    fn cache_bytes(&self) -> u64 {
        self.lying.cache_bytes()
    }
}
