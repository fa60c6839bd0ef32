//! Tests of the machine while it works, and runs that the worker takes back by itself.

mod common;
#[path = "common/table.rs"]
mod table;
#[path = "common/watched.rs"]
mod watched;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Coordinator, Peer, job, package, within};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::Value;
use lockstep_link::keyfile::load_or_create;
use lockstep_model::package::Package;
use lockstep_protocol::dispute::Side;
use lockstep_protocol::ids::LeaseEpoch;
use lockstep_protocol::messages::{FailureCode, RefusalCode, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Event, Handle, Worker, WorkerError};
use table::{Liar, Table, claim, other_keys, terms};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use watched::Watched;

/// A device that is right until it breaks; then every layer of every program has an element that is not.
fn breaking(broken: &Arc<AtomicBool>) -> Watched {
    let broken = Arc::clone(broken);
    Watched::new(move |ran| {
        let output = ran.program.layers[ran.layer].output;
        if broken.load(Ordering::SeqCst)
            && let Ok(Value::I32(mut rows)) = ran.executor.read(output)
            && let Some(first) = rows.first_mut()
        {
            *first ^= 1;
            ran.executor.write(output, Value::I32(rows)).unwrap();
        }
    })
}

/// A worker whose device can be broken, and its coordinator.
struct Scene {
    _dir: tempfile::TempDir,
    package: Package,
    broken: Arc<AtomicBool>,
    worker: Handle,
    events: Receiver<Event>,
    peer: Peer,
    keys: lockstep_protocol::identity::Keypair,
}

impl Scene {
    async fn new(self_test: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (package, data) = (package(dir.path(), 32, 10), dir.path().join("w"));
        common::hold(&data, &package, &dir.path().join("small-32-10.lsp"));
        let keys = load_or_create(&data.join("worker.key")).unwrap();
        let (coordinator, broken) = (Coordinator::new(), Arc::default());
        let mut config = coordinator.config(&data);
        config.self_test = Some(self_test);
        let worker = Worker::start(config, Arc::new(breaking(&broken))).unwrap();
        let events = worker.subscribe();
        let peer = coordinator.welcome().await;
        Self { _dir: dir, package, broken, worker, events, peer, keys }
    }

    /// A run that is accepted.
    async fn run(&mut self, number: u8) {
        let job = job(self.package.model_id(), number, 9);
        self.peer.assign(&job, number.into()).await;
        self.peer.run().await.is_honest(&self.package, &job, number.into(), self.worker.id());
        self.peer.say(ToWorker::Accepted { job: job.id(), epoch: LeaseEpoch(number.into()) }).await;
    }

    /// A dispute about a job in which this worker is right.
    fn table(&self, number: u8) -> Table {
        let job = job(self.package.model_id(), number, 9);
        let mine = claim(&self.package, &Reference, &job, 50, &self.keys);
        let theirs = claim(&self.package, &Liar::at(2), &job, 51, &other_keys());
        let terms = terms(&job, Side::Claimant, mine, theirs);
        Table::new(&self.package, &job, terms, Side::Claimant, &Liar::at(2) as &dyn Backend)
    }

    async fn tested(&mut self) {
        self.hear(|event| matches!(event, Event::SelfTested { .. }).then_some(())).await;
    }

    /// Waits for an event. Where tests follow each other too fast to be heard, some are missed.
    async fn hear<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            match within(self.events.recv()).await {
                Ok(event) => {
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => panic!("the worker ended"),
            }
        }
    }
}

const NEVER: Duration = Duration::from_secs(365 * 86_400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_begins_with_a_test_of_the_machine_and_goes_on_where_it_passes() {
    let mut scene = Scene::new(NEVER).await;
    let mut table = scene.table(1);
    let (verdict, _) = table.play(&mut scene.peer).await;
    assert_eq!(verdict.losers, [false, true]);
    scene.tested().await;
}

/// What was signed before the last good test is not taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_breaks_takes_back_what_it_signed_since_its_last_good_test_and_ends() {
    let mut scene = Scene::new(NEVER).await;
    scene.run(1).await;
    scene.table(2).play(&mut scene.peer).await;
    scene.tested().await;
    for number in [3, 4] {
        scene.run(number).await;
    }
    scene.broken.store(true, Ordering::SeqCst);
    // It is asked in another dispute, and does not play.
    let mut table = scene.table(5);
    let ask = table.next_ask(&mut scene.peer).await.unwrap();
    scene.peer.say(ToWorker::Asked(Box::new(ask))).await;
    let mut taken_back = Vec::new();
    while taken_back.len() < 2 {
        match scene.peer.hear().await {
            Some(ToCoordinator::Retract { job, epoch }) => taken_back.push((job, epoch)),
            other => panic!("{other:?}"),
        }
    }
    let run = |number: u8| (job(scene.package.model_id(), number, 9).id(), LeaseEpoch(number.into()));
    assert_eq!(taken_back, [run(3), run(4)]);
    scene.peer.say(ToWorker::Refused { code: RefusalCode::Faulty, reason: "it took a run back".into() }).await;
    let error = within(scene.worker.wait()).await.unwrap_err();
    assert!(matches!(error, WorkerError::Diverges(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::NoDevice);
    let data = scene._dir.path().join("w").join("disputes");
    let played = std::fs::read_dir(data.join(table.referee.id().to_string()));
    assert!(played.is_err(), "no move was signed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_while_the_machine_breaks_is_given_back() {
    let mut scene = Scene::new(NEVER).await;
    // Committed to, and not revealed.
    let waiting = job(scene.package.model_id(), 1, 9);
    scene.peer.assign(&waiting, 1).await;
    let mut stream = scene.peer.stream().await;
    stream.read_to_commitment().await;
    scene.broken.store(true, Ordering::SeqCst);
    let mut table = scene.table(2);
    let ask = table.next_ask(&mut scene.peer).await.unwrap();
    scene.peer.say(ToWorker::Asked(Box::new(ask))).await;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match scene.peer.hear().await {
            Some(ToCoordinator::Retract { job, .. }) => heard.push((job, None)),
            Some(ToCoordinator::Failed { job, code, .. }) => heard.push((job, Some(code))),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [(waiting.id(), None), (waiting.id(), Some(FailureCode::Backend))]);
    scene.peer.connection.close(0_u32.into(), b"heard");
    within(scene.worker.wait()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_tested_from_time_to_time_and_ends_when_it_breaks() {
    let mut scene = Scene::new(Duration::from_millis(10)).await;
    scene.tested().await;
    scene.tested().await;
    scene.broken.store(true, Ordering::SeqCst);
    let failed = |event| if let Event::SelfTestFailed { reason } = event { Some(reason) } else { None };
    assert!(scene.hear(failed).await.contains("not exact"));
    scene.peer.connection.close(0_u32.into(), b"heard");
    let error = within(scene.worker.wait()).await.unwrap_err();
    assert!(matches!(error, WorkerError::Diverges(_)), "{error}");
}
