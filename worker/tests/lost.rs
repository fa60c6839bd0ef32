//! A device that fails in the middle of a job: it is tested at once, and left where it fails again.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use common::{Coordinator, Peer, event, job, package, within};
use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Member, Wrapper};
use lockstep_kernels::joined::Joined;
use lockstep_kernels::program::Program;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::Params;
use lockstep_model::package::Package;
use lockstep_protocol::ids::LeaseEpoch;
use lockstep_protocol::messages::{FailureCode, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Event, Handle, Worker, WorkerError};
use tokio::sync::broadcast::Receiver;

/// The device works.
const WORKS: u8 = 0;
/// It fails once, at the next layer of the tests' model.
const STUMBLES: u8 = 1;
/// It fails at that layer, and whatever it is asked from then on.
const DIES: u8 = 2;
const DEAD: u8 = 3;

/// The reference on a device that can be broken.
#[derive(Clone)]
struct Fragile {
    state: Arc<AtomicU8>,
    /// By as many the tests' model, and any layers of it, is told from the programs that the device is tested with.
    tensors: usize,
}

impl Fragile {
    /// `is_model` where it is the tests' model, and no program that the device is tested with.
    fn check(&self, is_model: bool) -> Result<(), BackendError> {
        let breaks = |state| match (state, is_model) {
            (STUMBLES, true) => Some(WORKS),
            (DIES, true) => Some(DEAD),
            _ => None,
        };
        let broke = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, breaks).is_ok();
        if broke || self.state.load(Ordering::SeqCst) == DEAD {
            return Err(BackendError::Device("it fell off the bus".into()));
        }
        Ok(())
    }
}

impl Backend for Fragile {
    fn name(&self) -> String {
        "fragile".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        self.check(false)?;
        let is_model = program.tensors.len() == self.tensors;
        Ok(Box::new(FragileExecutor { inner: Reference.load(program, params)?, device: self.clone(), is_model }))
    }
}

struct FragileExecutor {
    inner: Box<dyn Executor>,
    device: Fragile,
    is_model: bool,
}

impl Wrapper for FragileExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        self.device.check(self.is_model && layer == 2)?;
        self.inner.run_layer(layer)
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    package: Package,
    device: Fragile,
    worker: Handle,
    events: Receiver<Event>,
    peer: Peer,
}

impl Scene {
    async fn new() -> Self {
        Self::on(|device| Arc::new(device)).await
    }

    /// With a backend that has the device.
    async fn on(backend: impl FnOnce(Fragile) -> Arc<dyn Backend>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (package, data) = (package(dir.path(), 32, 10), dir.path().join("w"));
        common::hold(&data, &package, &dir.path().join("small-32-10.lsp"));
        let tensors = package.program().tensors.len();
        let (coordinator, device) = (Coordinator::new(), Fragile { state: Arc::default(), tensors });
        let worker = Worker::start(coordinator.config(&data), backend(device.clone())).unwrap();
        let events = worker.subscribe();
        let peer = coordinator.welcome().await;
        Self { _dir: dir, package, device, worker, events, peer }
    }

    /// A run that is accepted.
    async fn run(&mut self, number: u8) {
        let job = job(self.package.model_id(), number, 9);
        self.peer.assign(&job, number.into()).await;
        self.peer.run().await.is_honest(&self.package, &job, number.into(), self.worker.id());
        self.peer.say(ToWorker::Accepted { job: job.id(), epoch: LeaseEpoch(number.into()) }).await;
    }

    /// A job in which the device fails; it is given back with the device's own words, which are returned.
    async fn fail(&mut self, number: u8, state: u8) -> String {
        let job = job(self.package.model_id(), number, 9);
        self.device.state.store(state, Ordering::SeqCst);
        self.peer.assign(&job, number.into()).await;
        let said = match self.peer.hear().await {
            Some(ToCoordinator::Failed { job: failed, code: FailureCode::Backend, reason, .. }) => {
                assert_eq!(failed, job.id());
                assert!(reason.contains("it fell off the bus"), "{reason}");
                reason
            }
            other => panic!("{other:?}"),
        };
        assert!(self.peer.run().await.broken, "its stream is no result");
        said
    }
}

/// What it signed before is not taken back: it was not wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_lost_is_left_and_said_to_be() {
    let mut scene = Scene::new().await;
    scene.run(1).await;
    scene.fail(2, DIES).await;
    let lost = |event| if let Event::DeviceLost { backend, reason } = event { Some((backend, reason)) } else { None };
    let (backend, reason) = event(&mut scene.events, lost).await;
    assert_eq!(backend, "fragile");
    assert!(reason.contains("op ") && reason.contains("it fell off the bus"), "{reason}");
    let said = scene.peer.hear().await;
    assert!(matches!(said, Some(ToCoordinator::Draining)), "{said:?}");
    scene.peer.connection.close(0_u32.into(), b"heard");
    let error = within(scene.worker.wait()).await.unwrap_err();
    assert!(matches!(error, WorkerError::Backend(BackendError::Device(_))), "{error}");
    assert_eq!(error.kind(), ErrorKind::NoDevice);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_passes_its_test_after_a_failure_goes_on() {
    let mut scene = Scene::new().await;
    scene.run(1).await;
    scene.fail(2, STUMBLES).await;
    let tested = |event| matches!(event, Event::SelfTested { .. }).then_some(());
    event(&mut scene.events, tested).await;
    scene.run(3).await;
}

/// One of two that share the model's layers: it has its name wherever the loss is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_devices_the_one_that_is_lost_is_named() {
    let joined = |device| {
        let members: [(&str, Arc<dyn Backend>); 2] = [("left", Arc::new(Reference)), ("right", Arc::new(device))];
        Arc::new(Joined::new(members.map(|(name, backend)| Member { name: name.into(), backend }).into())) as Arc<_>
    };
    let mut scene = Scene::on(joined).await;
    scene.run(1).await;
    scene.fail(2, STUMBLES).await;
    event(&mut scene.events, |event| matches!(event, Event::SelfTested { .. }).then_some(())).await;
    scene.run(3).await;
    let failed = scene.fail(4, DIES).await;
    assert!(failed.contains("right: it fell off the bus"), "{failed}");
    let lost = |event| if let Event::DeviceLost { backend, reason } = event { Some((backend, reason)) } else { None };
    let (backend, reason) = event(&mut scene.events, lost).await;
    assert_eq!(backend, "reference + fragile");
    assert!(reason.contains("right: fragile, op ") && reason.contains("it fell off the bus"), "{reason}");
    let said = scene.peer.hear().await;
    assert!(matches!(said, Some(ToCoordinator::Draining)), "{said:?}");
    scene.peer.connection.close(0_u32.into(), b"heard");
    assert_eq!(within(scene.worker.wait()).await.unwrap_err().kind(), ErrorKind::NoDevice);
}
