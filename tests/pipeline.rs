//! A model that is too large for one worker, over several processes: the same bytes as on one machine, a worker that is
//! killed, a coordinator that is killed, a worker that lies about one of its layers, and one that lies about what it hands over.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::processes::{Coordinator, PATIENCE, Process};
use common::{lockstep, run_json, second_implementation, second_judge, shipped_package};
use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{Program, Rows, TensorId};
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::{Params, Value as Tensor};
use lockstep_link::{Client, Frames, send};
use lockstep_model::package::Package;
use lockstep_protocol::hand_over::{HandOver, HandOverProof, SignedHandOver};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, NodeId, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{
    Hello, JobMessage, Offer, PROTOCOL_VERSION, Stage, StageMessage, ToCoordinator, ToWorker,
};
use lockstep_protocol::trace::root_of_rows;
use lockstep_worker::{Config, Pipeline, Worker};
use serde_json::{Value, json};

const PROMPT: &str = "# Closures\n\nA closure is";

/// Bytes that workers can hold, so that each of these ranges fits one, and no two of them.
fn room(cuts: &[(usize, usize)]) -> u64 {
    let package = Package::open(shipped_package()).expect("a package");
    let program = package.program();
    let bytes = |(first, last): &(usize, usize)| {
        let slice = Slice::of(program, *first..=*last).expect("layers");
        slice.params().iter().filter_map(|param| program.param(*param).bytes()).sum::<u64>()
    };
    cuts.iter().map(bytes).max().expect("at least one")
}

/// Three workers are needed, and enough.
fn third() -> u64 {
    room(&[(0, 1), (2, 5), (6, 7)])
}

/// The same for two.
fn half() -> u64 {
    room(&[(0, 3), (4, 7)])
}

struct World {
    coordinator: Coordinator,
    temp: tempfile::TempDir,
    workers: BTreeMap<String, (Process, String)>,
    room: u64,
}

impl World {
    fn new(workers: usize, room: u64, options: &[&str]) -> Self {
        let temp = tempfile::tempdir().expect("a folder");
        let coordinator = Coordinator::start(shipped_package(), &temp.path().join("c"), options);
        let mut world = Self { coordinator, temp, workers: BTreeMap::new(), room };
        (0..workers).for_each(|number| world.join(&format!("w{number}")));
        world
    }

    fn join(&mut self, name: &str) {
        let room = self.room.to_string();
        let options = ["--pipeline-listen", "127.0.0.1:0", "--max-model-bytes", &room];
        let process = self.coordinator.worker_with(&self.temp.path().join(name), &options);
        let key = process.after("worker ").trim().to_owned();
        self.workers.insert(key, (process, name.to_owned()));
    }

    fn address(&self) -> (NodeId, SocketAddr) {
        let (coordinator, address) = self.coordinator.address.split_once('@').expect("KEY@HOST:PORT");
        (coordinator.parse().expect("a key"), address.parse().expect("an address"))
    }

    fn busy(&self) -> Vec<String> {
        let busy = |worker: &Value| worker["in_flight"].as_u64().is_some_and(|count| count > 0);
        let workers = self.coordinator.workers();
        let ids = workers.iter().filter(|worker| busy(worker)).map(|worker| text(&worker["id"]));
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids
    }

    /// What the receipt says, once it was checked here and by the second implementation, and the run made again.
    fn verify(&self, receipt: &Value) -> Vec<String> {
        let file = self.temp.path().join("receipt.json");
        fs::write(&file, receipt.to_string()).expect("a file");
        let package = shipped_package();
        let told =
            run_json(lockstep().args(["verify", "--json", "--require-rerun", "--package"]).arg(package).arg(&file));
        assert_eq!((&told["valid"], &told["rerun"]), (&json!(true), &json!(true)), "{told}");
        let named: Vec<_> = told["workers"].as_array().expect("a list").iter().map(|it| text(&it["worker"])).collect();
        assert_eq!(named, members(&receipt["worker"]));
        if let Some(mut other) = second_implementation() {
            let checked = run_json(other.arg("--package").arg(package).arg("--check-receipt").arg(&file));
            assert_eq!(checked["receipt"]["signatures_checked"], true);
        }
        members(&receipt["worker"])
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// Who computed a run, in the order of their layers.
fn members(run: &Value) -> Vec<String> {
    let segments = run["segments"].as_array().cloned().unwrap_or_default();
    let others = segments.iter().map(|signed| text(&signed["segment"]["worker"]));
    others.chain([text(&run["receipt"]["worker"])]).collect()
}

fn wish(tokens: u32, extra: &Value) -> Value {
    let mut wish = json!({ "model": "shipped", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0 });
    for (key, value) in extra.as_object().expect("an object") {
        wish[key] = value.clone();
    }
    wish
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn three_workers_give_what_one_machine_gives() {
    let world = World::new(3, third(), &["--audit-probability", "0"]);
    for extra in [json!({}), json!({ "temperature": 0.8, "top_p": 0.95, "seed": 7 })] {
        let (code, answer) = world.coordinator.post("/v1/completions", &wish(12, &extra));
        assert_eq!(code, 200, "{answer}");
        let receipt = &answer["lockstep"]["receipts"][0];
        let crew = world.verify(receipt);
        let mut keys: Vec<String> = world.workers.keys().cloned().collect();
        keys.sort();
        assert_eq!(crew, keys, "equal workers go by key");
    }
    let local = run_json(
        lockstep()
            .args(["generate", "--json", "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--package"])
            .arg(shipped_package()),
    );
    let (_, answer) = world.coordinator.post("/v1/completions", &wish(12, &json!({})));
    assert_eq!(answer["choices"][0]["text"], local["text"]);
    assert_eq!(answer["lockstep"]["receipts"][0]["worker"]["receipt"]["roots"], local["layer_roots"]);
    // Nobody has pulled more than its layers.
    let whole = fs::metadata(shipped_package()).expect("the package").len();
    for (_, name) in world.workers.values() {
        let folder = fs::read_dir(world.temp.path().join(name).join("packages")).expect("the store");
        let files: Vec<_> = folder.flatten().map(|entry| entry.metadata().expect("a file")).collect();
        assert_eq!(files.len(), 1);
        assert!(held(&files[0]) < whole / 2, "{} of {whole}", held(&files[0]));
    }
}

#[cfg(unix)]
fn held(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.blocks() * 512
}

#[cfg(not(unix))]
fn held(_: &fs::Metadata) -> u64 {
    0
}

/// `kill -9` of the worker in the midst of the layers, in the midst of a text. Where the text was there already when the
/// kill came, another one is begun.
#[test]
fn a_killed_worker_is_replaced_and_the_client_gets_the_whole_text() {
    let mut world = World::new(4, third(), &["--audit-probability", "0"]);
    let local = run_json(
        lockstep()
            .args(["generate", "--json", "--prompt", PROMPT, "--max-tokens", "160", "--temperature", "0", "--package"])
            .arg(shipped_package()),
    );
    for _ in 0..8 {
        wait_for("idle workers", || world.busy().is_empty().then_some(()));
        let mut events = world.coordinator.stream("/v1/completions", &wish(160, &json!({ "stream": true })));
        let mut said = String::new();
        let mut receipt = Value::Null;
        let mut take = |event: &Value| {
            said.push_str(event["choices"][0]["text"].as_str().unwrap_or_default());
            if event["lockstep"]["receipts"][0].is_object() {
                receipt = event["lockstep"]["receipts"][0].clone();
            }
        };
        take(&events.next().expect("a first word"));
        let busy = world.busy();
        let killed = busy.get(1).cloned();
        let name = killed.as_ref().map(|key| {
            let (mut process, name) = world.workers.remove(key).expect("it is one of ours");
            process.kill();
            name
        });
        events.for_each(|event| take(&event));
        assert_eq!(json!(said), local["text"], "the text goes on without a gap and without a repetition");
        let crew = world.verify(&receipt);
        assert_eq!(crew.len(), 3);
        match (killed, name) {
            (Some(key), _) if !crew.contains(&key) => return,
            (_, Some(name)) => world.join(&name),
            _ => {}
        }
    }
    panic!("no kill came before the end of a text");
}

#[test]
fn a_killed_coordinator_gives_the_job_out_again() {
    let options = ["--audit-probability", "0"];
    let mut world = World::new(3, third(), &options);
    let (code, kept) = world.coordinator.post("/v1/completions", &wish(160, &json!({ "lockstep": { "wait": false } })));
    assert_eq!(code, 202, "{kept}");
    let (job, access) = (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]));
    let (_, status) = world.coordinator.get(&format!("/v1/jobs/{job}?access={access}"));
    assert!(!status.contains("failed"), "{status}");
    world.coordinator = world.coordinator.restart(shipped_package(), &world.temp.path().join("c"), &options);
    let receipt = world.coordinator.receipt(&job, &access);
    assert_eq!(world.verify(&receipt).len(), 3);
}

/// A backend that is wrong in one number of every transformer layer that it has.
struct Bent(Cpu);

struct BentExecutor {
    inner: Box<dyn Executor>,
    outputs: Vec<Option<TensorId>>,
}

impl Backend for Bent {
    fn name(&self) -> String {
        self.0.name()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        // Of the shipped model only, so that it passes the checks at its start.
        let is_it = program.vocab_size == 4_096;
        let output = |(at, layer): (usize, &lockstep_kernels::program::Layer)| {
            let lies = is_it && at > 0 && program.tensor(layer.output).rows == Rows::Position;
            lies.then_some(layer.output)
        };
        let outputs = program.layers.iter().enumerate().map(output).collect();
        Ok(Box::new(BentExecutor { inner: self.0.load(Arc::clone(&program), params)?, outputs }))
    }
}

impl Wrapper for BentExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let report = self.inner.run_layer(layer)?;
        if let Some(output) = self.outputs[layer] {
            let Tensor::I32(mut rows) = self.inner.read(output)? else { panic!("a layer's output is i32") };
            rows[3] ^= 1 << 9;
            self.inner.write(output, Tensor::I32(rows))?;
        }
        Ok(report)
    }
}

/// One crew runs, another audits; one worker of the four lies, and loses the dispute about its layer, alone.
#[test]
fn a_worker_that_lies_about_its_layer_is_the_one_that_is_convicted() {
    let world = World::new(3, half(), &["--audit-probability", "1"]);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let (coordinator, address) = world.coordinator.address.split_once('@').expect("KEY@HOST:PORT");
    let mut config = Config::new(
        coordinator.parse().expect("a key"),
        address.into(),
        world.temp.path().join("liar"),
        NonZeroUsize::MIN,
    );
    let listen = "127.0.0.1:0".parse().expect("an address");
    config.pipeline = Some(Pipeline { listen, model_bytes: world.room });
    let backend = Arc::new(Bent(Cpu::new(None, 1).expect("a processor")));
    let mut liar = runtime.block_on(async { Worker::start(config, backend) }).expect("it starts");
    let key = liar.id().to_string();
    wait_for("four workers", || (world.coordinator.workers().len() == 4).then_some(()));
    let (code, kept) = world.coordinator.post("/v1/completions", &wish(5, &json!({ "lockstep": { "wait": false } })));
    assert_eq!(code, 202, "{kept}");
    let (job, access) = (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]));
    let receipt = world.coordinator.receipt(&job, &access);
    // The answer is right, whoever gave it first.
    let crew = world.verify(&receipt);
    assert!(!crew.contains(&key), "{receipt}");
    let list = run_json(lockstep().args(["dispute", "list", "--json", "--url", &world.coordinator.http]));
    let id = text(&list["data"][0]["id"]);
    let file = world.temp.path().join("dispute");
    let mut export = lockstep();
    export.args(["dispute", "export", &id, "--url", &world.coordinator.http, "--access-token", &access, "--out"]);
    assert!(export.arg(&file).status().expect("it runs").success());
    let told = run_json(lockstep().args(["judge", "--json"]).arg(&file));
    assert_eq!((&told["kind"], &told["losers"]), (&json!("proven"), &json!([key])), "{told}");
    if let Some(mut other) = second_judge() {
        let judged = run_json(other.arg(&file));
        assert_eq!(judged["kind"], "proven", "{judged}");
    }
    alone_loses(&world, &key);
    liar.abort();
    // It was put out, which is no news here.
    let _ = runtime.block_on(liar.wait());
}

/// Who lost a bond, as often as it did.
fn forfeits(world: &World) -> Vec<String> {
    let ledger = run_json(lockstep().args(["ledger", "--history", "--json", "--url", &world.coordinator.http]));
    let lines = ledger["history"].as_array().expect("a list");
    lines.iter().filter_map(|line| line["posting"]["forfeit"]["node"].as_str().map(str::to_owned)).collect()
}

/// The others are still there, and so are their bonds.
fn alone_loses(world: &World, key: &str) {
    let here: Vec<String> = world.coordinator.workers().iter().map(|worker| text(&worker["id"])).collect();
    assert!(world.workers.keys().all(|honest| here.contains(honest)) && !here.iter().any(|here| here == key));
    assert_eq!(forfeits(world), [key]);
}

/// A session of a worker of pipelines that computes nothing.
struct Idle {
    _client: Client,
    connection: quinn::Connection,
    up: quinn::SendStream,
    down: Frames<ToWorker>,
}

const SENT: &str = "the other side is there";

impl Idle {
    async fn join(keys: &Keypair, coordinator: (NodeId, SocketAddr), model_bytes: u64) -> Self {
        let mut client = Client::new(keys, coordinator.0);
        let connection = client.connect(coordinator.1).await.expect(SENT);
        let (mut up, down) = connection.open_bi().await.expect(SENT);
        let (software, backend) = ("none".to_owned(), "none".to_owned());
        let offer = Some(Offer { model_bytes, port: 9 });
        let (protocol, threads, memory_bytes, macs_per_second, max_in_flight) = (PROTOCOL_VERSION, 1, 1 << 30, 0, 1);
        let models = Vec::new();
        let hello =
            Hello { protocol, software, backend, threads, memory_bytes, macs_per_second, max_in_flight, models, offer };
        send(&mut up, &ToCoordinator::Hello(hello)).await.expect(SENT);
        Self { _client: client, connection, up, down: Frames::new(down) }
    }

    /// What the coordinator says next that is not passed over; none where the session is over.
    async fn hear<T>(&mut self, mut wanted: impl FnMut(ToWorker) -> Option<T>) -> Option<T> {
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        for sequence in 1.. {
            // A session that is over is heard of below.
            let _ = send(&mut self.up, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await;
            loop {
                tokio::select! {
                    _ = beat.tick() => break,
                    heard = self.down.next() => {
                        let Ok(Some(message)) = heard else { return None };
                        if let Some(found) = wanted(message) {
                            return Some(found);
                        }
                    }
                }
            }
        }
        None
    }

    /// Waits for layers of a job, and says that it begins with them.
    async fn begin(&mut self) -> (quinn::SendStream, LeaseEpoch, Job, Vec<Stage>) {
        let staged = |message| match message {
            ToWorker::AssignStage { epoch, job, crew, .. } => Some((epoch, job, crew)),
            _ => None,
        };
        let (epoch, job, crew) = self.hear(staged).await.expect(SENT);
        let mut stream = self.connection.open_uni().await.expect(SENT);
        send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await.expect(SENT);
        (stream, epoch, job, crew)
    }
}

/// Gets the first layers, and hands rows over of which it signs another root than they have. It ends when the coordinator ends
/// its session.
async fn hands_over_wrong(keys: Keypair, coordinator: (NodeId, SocketAddr), model_bytes: u64) {
    let mut idle = Idle::join(&keys, coordinator, model_bytes).await;
    let (_stream, epoch, job, crew) = idle.begin().await;
    assert_eq!(crew[0].node, keys.id(), "who can hold most comes first");
    let _neighbour = wrong_rows(&keys, coordinator.0, &job, (epoch, &crew)).await;
    idle.hear(|_| None::<()>).await;
}

/// Zeros in the place of the prompt's rows, and of whoever has the first layers a signature over them, with a root that they do
/// not have.
fn signed_wrong(
    keys: &Keypair,
    coordinator: NodeId,
    job: &Job,
    (epoch, crew): (LeaseEpoch, &[Stage]),
) -> (Vec<i32>, SignedHandOver) {
    let package = Package::open(shipped_package()).expect("a package");
    let (program, count, layer) = (package.program(), job.tokens.len(), crew[0].last);
    let columns = program.tensor(program.layers[usize::from(layer)].output).cols as usize;
    let (values, before) = (vec![0; count * columns], root_of_rows(&[], 1));
    let (job, worker, pass, first, rows) = (job.id(), keys.id(), 0, 0, count as u32);
    let (of_values, root) = (HandOver::values_root(&values), Root::from_bytes([9; 32]));
    let said = HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values: of_values, root, worker };
    (values, said.sign(keys))
}

/// Hands wrong rows over to the next worker.
async fn wrong_rows(
    keys: &Keypair,
    coordinator: NodeId,
    job: &Job,
    (epoch, crew): (LeaseEpoch, &[Stage]),
) -> (Client, impl Send + use<>) {
    let mut client = Client::new(keys, crew[1].node);
    let connection = client.connect(crew[1].address.parse().expect("an address")).await.expect(SENT);
    let (mut down, _) = connection.open_bi().await.expect(SENT);
    let (values, signed) = signed_wrong(keys, coordinator, job, (epoch, crew));
    let messages = [
        StageMessage::Open { job: job.id(), epoch },
        StageMessage::Pass { count: signed.hand_over.rows },
        StageMessage::Rows { values },
        StageMessage::HandedOver(Box::new(signed)),
    ];
    for message in &messages {
        send(&mut down, message).await.expect(SENT);
    }
    (client, down)
}

/// The neighbour shows what it was handed; the coordinator takes the bond, logs the proof, and gives the job to others.
#[test]
fn a_worker_that_signs_a_wrong_hand_over_is_the_one_that_is_convicted() {
    let world = World::new(2, half(), &["--audit-probability", "0"]);
    let coordinator = world.address();
    let keys = Keypair::from_seed([66; 32]);
    let key = keys.id().to_string();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let liar = runtime.spawn(hands_over_wrong(keys, coordinator, world.room + 1));
    wait_for("three workers", || (world.coordinator.workers().len() == 3).then_some(()));
    let (code, kept) = world.coordinator.post("/v1/completions", &wish(5, &json!({ "lockstep": { "wait": false } })));
    assert_eq!(code, 202, "{kept}");
    let (job, access) = (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]));
    let receipt = world.coordinator.receipt(&job, &access);
    runtime.block_on(liar).expect("it was put out, and nothing else");
    let crew = world.verify(&receipt);
    assert!(crew.len() == 2 && !crew.contains(&key), "{receipt}");
    alone_loses(&world, &key);
    let (code, proof) = world.coordinator.get(&format!("/v1/log/proof?job={job}&access={access}"));
    assert!(code == 200 && proof.contains("handed_over_wrong"), "{proof}");
}

/// Whoever handed something wrong over and hangs up, which ends the lease, is convicted all the same.
#[test]
fn a_worker_that_hangs_up_before_it_is_proven_wrong_does_not_get_away() {
    let mut world = World::new(0, half(), &["--audit-probability", "0"]);
    let (coordinator, room) = (world.address(), world.room);
    let [liar, victim] = [66, 67].map(|seed| Keypair::from_seed([seed; 32]));
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let join = |keys: Keypair, room| runtime.block_on(Idle::join(&keys, coordinator, room));
    let (mut one, mut other) = (join(liar.clone(), room + 1), join(victim, room));
    wait_for("two workers", || (world.coordinator.workers().len() == 2).then_some(()));
    let (code, kept) = world.coordinator.post("/v1/completions", &wish(5, &json!({ "lockstep": { "wait": false } })));
    assert_eq!(code, 202, "{kept}");
    let stream = runtime.block_on(async {
        let ((_, epoch, job, crew), (mut stream, ..)) = tokio::join!(one.begin(), other.begin());
        one.connection.close(0_u32.into(), b"gone");
        let over = |message| matches!(message, ToWorker::Cancel { .. }).then_some(());
        other.hear(over).await.expect("the lease is over");
        let (values, signed) = signed_wrong(&liar, coordinator.0, &job, (epoch, &crew));
        let proof = JobMessage::Proof(Box::new(HandOverProof::Rows { signed, state: Vec::new(), values }));
        send(&mut stream, &proof).await.expect(SENT);
        stream
    });
    wait_for("verdict", || {
        let refused = |message| match message {
            ToWorker::Refused { reason, .. } => Some(Some(reason)),
            _ => Some(None),
        };
        let reason = runtime.block_on(join(liar.clone(), room + 1).hear(refused))?;
        reason.map(|reason| assert!(reason.contains("caught"), "{reason}"))
    });
    drop((stream, other));
    ["w0", "w1"].into_iter().for_each(|name| world.join(name));
    let (job, access) = (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]));
    world.verify(&world.coordinator.receipt(&job, &access));
    alone_loses(&world, &liar.id().to_string());
    let (code, proof) = world.coordinator.get(&format!("/v1/log/proof?job={job}&access={access}"));
    assert!(code == 200 && proof.contains("handed_over_wrong"), "{proof}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let coordinator = format!("{}@127.0.0.1:1", "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1");
    let output = lockstep().args(["worker", "--coordinator", &coordinator, "--max-model-bytes", "5"]).output();
    let output = output.expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("--pipeline-listen"), "{stderr}");
}
