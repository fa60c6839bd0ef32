//! Somebody who cheats, in this process: the worker command has no way to.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Params;
use lockstep_protocol::ids::NodeId;
use lockstep_sim::adversary::{Change, Lie, LyingBackend, Target};
use lockstep_worker::{Config, Handle, Worker};
use tokio::runtime::Runtime;

/// The layer that is lied about.
pub const LAYER: usize = 3;

/// Layers of all-MiniLM-L6-v2 and of the shipped model, with embedding and output.
const MODEL_LAYERS: usize = 8;

/// One number of the product with the feed-forward matrix, as in the demo.
pub const LIE: Lie =
    Lie { layer: LAYER, op: 10, target: Target::Element { row: 2, col: 700 }, change: Change::Xor(1 << 20) };

/// A worker that tells a lie.
pub struct Liar {
    pub key: NodeId,
    gate: Gate,
    handle: Handle,
    runtime: Runtime,
}

impl Liar {
    /// Joins a coordinator at `KEY@HOST:PORT`. It runs the layer that it lies about once, for its first job, and then not
    /// before it is let go: so it can be held between that run and its first move in a dispute.
    pub fn join(address: &str, data: &Path) -> Self {
        Self::telling(LIE, address, data)
    }

    /// The same with another lie about [`LAYER`] of a model with as many layers.
    pub fn telling(lie: Lie, address: &str, data: &Path) -> Self {
        let (coordinator, address) = address.split_once('@').expect("KEY@HOST:PORT");
        let threads = NonZeroUsize::MIN;
        let cpu = Cpu::new(None, threads.get()).expect("a processor");
        let lying = LyingBackend::new(cpu.name(), cpu.kernels().clone(), &[lie]);
        let gate = Gate::default();
        let backend = Arc::new(Held { lying: Arc::new(lying), gate: gate.clone() });
        let config = Config::new(coordinator.parse().expect("a key"), address.into(), data.into(), threads);
        let runtime = Runtime::new().expect("threads");
        let handle = runtime.block_on(async { Worker::start(config, backend) }).expect("it starts");
        Self { key: handle.id(), gate, handle, runtime }
    }

    /// From now on it runs whatever it is to run.
    pub fn let_go(&self) {
        self.gate.open();
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.gate.open();
        self.handle.abort();
        // That it was aborted, or put out, is no news here.
        let _ = self.runtime.block_on(self.handle.wait());
    }
}

/// Lets one pass, and the others when it is open.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Passed>, Condvar)>);

#[derive(Default)]
struct Passed {
    one: bool,
    is_open: bool,
}

impl Gate {
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut passed = state.lock().expect("nobody panics with it");
        if passed.one {
            passed = changed.wait_while(passed, |passed| !passed.is_open).expect("nobody panics with it");
        }
        passed.one = true;
    }

    fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().expect("nobody panics with it").is_open = true;
        changed.notify_all();
    }
}

/// A backend that stands at the gate before the layer of the model that is lied about.
struct Held {
    lying: Arc<dyn Backend>,
    gate: Gate,
}

struct HeldExecutor {
    lying: Box<dyn Executor>,
    /// Of the model, and of none of the programs that a backend is tested with.
    gate: Option<Gate>,
}

impl Backend for Held {
    fn name(&self) -> String {
        self.lying.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let gate = (program.layers.len() == MODEL_LAYERS).then(|| self.gate.clone());
        Ok(Box::new(HeldExecutor { lying: self.lying.load(program, params)?, gate }))
    }
}

impl Wrapper for HeldExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.lying
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.lying
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if let Some(gate) = self.gate.as_ref().filter(|_| layer == LAYER) {
            gate.pass();
        }
        self.lying.run_layer(layer)
    }
}
