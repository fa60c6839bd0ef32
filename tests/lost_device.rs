//! A worker whose device is lost in the middle of a job: the job goes on elsewhere, and the answer arrives.

mod common;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::processes::{Coordinator, Process};
use common::{lockstep, run_json, shipped_package};
use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Params;
use lockstep_worker::{Config, ErrorKind, Event, Worker};
use serde_json::json;
use tokio::runtime::Runtime;

/// A backend whose device is lost at layer 3 of the shipped model, for good.
#[derive(Clone)]
struct Doomed {
    cpu: Cpu,
    is_lost: Arc<AtomicBool>,
}

impl Doomed {
    fn check(&self) -> Result<(), BackendError> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(BackendError::Device("the device is lost".into()));
        }
        Ok(())
    }
}

impl Backend for Doomed {
    fn name(&self) -> String {
        "doomed".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        self.check()?;
        let is_model = program.vocab_size == 4_096;
        Ok(Box::new(DoomedExecutor { inner: self.cpu.load(program, params)?, device: self.clone(), is_model }))
    }
}

struct DoomedExecutor {
    inner: Box<dyn Executor>,
    device: Doomed,
    /// Whether it is the shipped model, and none that the device is tested with.
    is_model: bool,
}

impl Wrapper for DoomedExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        if self.is_model && layer == 3 {
            self.device.is_lost.store(true, Ordering::SeqCst);
        }
        self.device.check()?;
        self.inner.run_layer(layer)
    }
}

#[test]
fn a_job_whose_device_is_lost_is_answered_by_another_worker() {
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(shipped_package(), &temp.path().join("c"), &["--audit-probability", "0"]);
    let (key, address) = coordinator.address.split_once('@').expect("KEY@HOST:PORT");
    let cpu = Cpu::new(None, 1).expect("a processor");
    let backend = Arc::new(Doomed { cpu, is_lost: Arc::default() });
    let data = temp.path().join("doomed");
    let config = Config::new(key.parse().expect("a key"), address.into(), data, NonZeroUsize::MIN);
    let runtime = Runtime::new().expect("threads");
    let mut doomed = runtime.block_on(async { Worker::start(config, backend) }).expect("it starts");
    let mut events = doomed.subscribe();
    let wish = json!({ "model": "shipped", "prompt": "A closure is", "max_tokens": 5, "temperature": 0 });
    let data = temp.path().join("other");
    let (other, (status, answer)) = std::thread::scope(|scope| {
        let (runtime, address) = (&runtime, &coordinator.address);
        let joined = scope.spawn(move || {
            // There is nobody else, so it is this one that begins.
            let lost = async {
                loop {
                    if let Event::DeviceLost { reason, .. } = events.recv().await.expect("events") {
                        return reason;
                    }
                }
            };
            assert!(runtime.block_on(lost).contains("the device is lost"));
            let mut command = lockstep();
            command.args(["worker", "--threads", "1", "--coordinator", address, "--data-dir"]);
            Process::start(command.arg(data))
        });
        let answer = coordinator.post("/v1/completions", &wish);
        (joined.join().expect("the other worker"), answer)
    });
    let ended = runtime.block_on(doomed.wait()).expect_err("its device is lost");
    assert_eq!(ended.kind(), ErrorKind::NoDevice, "{ended}");
    let other = other.after("worker ").trim().to_owned();
    assert_eq!(status, 200, "{answer}");
    let mut alone = lockstep();
    alone.args([
        "generate",
        "--json",
        "--temperature",
        "0",
        "--prompt",
        "A closure is",
        "--max-tokens",
        "5",
        "--package",
    ]);
    let alone = run_json(alone.arg(shipped_package()));
    assert_eq!(answer["choices"][0]["text"], alone["text"], "{answer}");
    let run = &answer["lockstep"]["receipts"][0]["worker"]["receipt"];
    assert_eq!((&run["worker"], &run["roots"]), (&json!(other), &alone["layer_roots"]));
}
