//! Several devices in one process, through the program: the roots are those of one device, wherever the layers lie. Without GPUs
//! this runs on processor paths, on a software driver, and on the CUDA kernels compiled for the CPU.

mod common;

use std::sync::Arc;

use common::processes::Coordinator;
use common::{lockstep, minilm_package, run, run_json, shipped_package, skipped};
use lockstep_cuda::Cuda;
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::backend::{Backend, BackendError, Member};
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, decoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::joined::Joined;
use lockstep_kernels::value::Params;
use lockstep_model::generation::{Event, Generator, Limits, Request};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{Root, Seed};
use lockstep_shaders::{Options, Wgpu};
use serde_json::{Value, json};

/// An adapter joined with itself, of whose memory its driver does not tell, or with the processor.
fn two_adapters() -> Option<String> {
    let told = run_json(lockstep().args(["devices", "--json"]));
    let devices = told["devices"].as_array().expect("a list").clone();
    let is_usable = |d: &&Value| d["usable"] == true && d["backend"].as_str().is_some_and(|b| b.starts_with("wgpu/"));
    let Some(first) = devices.iter().find(is_usable) else {
        skipped("no adapter can be used: a Vulkan driver is needed (Debian: apt-get install mesa-vulkan-drivers)");
        return None;
    };
    let name = first["backend"].as_str().expect("a name");
    Some(if first["memory_bytes"].is_null() { format!("{name}+{name}") } else { format!("{name}+cpu") })
}

/// What does not depend on the machine.
fn without_times(mut told: Value) -> Value {
    let object = told.as_object_mut().expect("an object");
    object.retain(|key, _| !key.ends_with("seconds") && !key.ends_with("per_second") && key != "backend");
    told
}

fn generated(backend: &str) -> Value {
    let options =
        ["--max-tokens", "12", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7", "--json", "--points"];
    let mut command = lockstep();
    command.args(["generate", "--prompt", "# Closures\n\nA closure is", "--backend", backend, "--package"]);
    without_times(run_json(command.arg(shipped_package()).args(options)))
}

#[test]
fn generations_have_the_words_and_roots_of_one_device() {
    let alone = generated("cpu");
    assert!(alone["layer_roots"].as_array().is_some_and(|roots| !roots.is_empty()));
    let joined = ["cpu+reference", "cpu/portable + reference+cpu"].map(str::to_owned);
    for backend in joined.into_iter().chain(two_adapters()) {
        assert_eq!(generated(&backend), alone, "{backend}");
    }
}

#[test]
fn embeddings_have_the_roots_of_one_device() {
    let Some(package) = minilm_package() else { return };
    let told = |backend| {
        let mut command = lockstep();
        command.args(["embed", "--json", "--backend", backend, "--package"]).arg(package);
        without_times(run_json(command.args(["Who computed this?", "Ein Satz mit Umlauten: äöü."])))
    };
    assert_eq!(told("cpu/portable+cpu"), told("cpu"));
}

#[test]
fn the_suite_tests_each_and_all_together() {
    let told = |backend| run_json(lockstep().args(["conformance", "--quick", "--json", "--backend", backend]));
    let (one, two) = (told("cpu"), told("cpu+reference"));
    assert_eq!((&two["failures"], &two["equal"]), (&json!(0), &json!(true)));
    assert!(two["cases"].as_u64() > one["cases"].as_u64().map(|cases| 2 * cases), "{two}");
    assert!(two["backend"].as_str().is_some_and(|name| name.starts_with("cpu/") && name.ends_with(" + reference")));
}

#[test]
fn a_joined_backend_that_is_not_there_says_which_part() {
    let ended = |backend| run(lockstep().args(["conformance", "--quick", "--backend", backend]));
    for (backend, code, says) in [("cpu+wgpu/9999", 3, "backend wgpu/9999"), ("cpu+abacus", 2, "\"abacus\"")] {
        let ended = ended(backend);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(code) && stderr.contains(says), "{stderr}");
    }
}

/// The part of its list that is not there is told, it serves with the next, and verifying runs its job again: over two devices,
/// and over one.
#[test]
fn a_worker_of_two_devices_serves() {
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(shipped_package(), &temp.path().join("c"), &["--audit-probability", "0"]);
    let options = ["--backend", "cpu+wgpu/9999,cpu+reference"];
    let mut joined = coordinator.worker_with(&temp.path().join("joined"), &options);
    joined.after(" + reference is exact in ");
    let wish = json!({ "model": "shipped", "prompt": "A closure is", "max_tokens": 5, "temperature": 0 });
    let (status, answer) = coordinator.post("/v1/completions", &wish);
    assert_eq!(status, 200, "{answer}");
    let [job, access] = ["/lockstep/jobs/0", "/lockstep/access"].map(|at| answer.pointer(at).and_then(Value::as_str));
    let receipt = coordinator.receipt(job.expect("a job"), access.expect("a token"));
    let path = temp.path().join("receipt.json");
    std::fs::write(&path, receipt.to_string()).expect("a file");
    for backend in ["cpu/portable+cpu", "cpu"] {
        let mut command = lockstep();
        command.args(["verify", "--json", "--backend", backend, "--package"]).arg(shipped_package());
        let verified = run_json(command.arg(&path));
        assert_eq!(verified["rerun"], true, "{verified}");
    }
    assert_eq!(joined.terminate(), Some(0));
}

/// Words and roots of two generations that share their passes, of which one fills a page.
fn generate(case: &Case, backend: &dyn Backend) -> Vec<(Vec<u32>, Vec<Root>)> {
    let generation = Generation { temperature: 9_000, ..Generation::greedy(5) };
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let limits = Limits::within(1 << 30);
    let mut generator = Generator::new(Arc::clone(&case.program), params, backend, limits).expect("room");
    for (seed, length) in [(1, 255), (2, 3)] {
        let prompt = (0..length).map(|t| t * t % case.program.vocab_size).collect();
        generator.submit(Request::new(prompt, &generation, Seed::from_bytes([seed; 32]), vec![])).expect("room");
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

fn member(name: &str, backend: impl Backend + 'static) -> Member {
    Member { name: name.into(), backend: Arc::new(backend) }
}

fn cpu() -> Cpu {
    Cpu::new(None, 2).expect("a path")
}

/// A device with little memory, and what it has no room for on the processor.
#[test]
fn what_a_device_has_no_room_for_is_elsewhere() {
    let case = decoder(DecoderShape { width: 300, layers: 4, ..DecoderShape::SMALL }, &[1]);
    let alone = generate(&case, &cpu());
    let bytes: u64 = case.program.params.iter().filter_map(|param| param.bytes()).sum();
    let emulation = Arc::new(Emulation::new(Order::Descending, (8, 0)));
    let cuda = Cuda::on(emulation, None).expect("a capable device").within(bytes * 3 / 4);
    let joined = Joined::new(vec![member("cuda/0", cuda.clone()), member("cpu", cpu())]);
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let loaded = joined.load(Arc::clone(&case.program), params).expect("room");
    let taken = bytes * 3 / 4 - cuda.free_bytes().expect("it tells");
    assert!(taken > bytes / 4 && taken < bytes * 3 / 4, "{taken} of {bytes}");
    drop(loaded);
    assert_eq!(generate(&case, &joined), alone);
}

/// Two adapters of which neither holds the model, then two that do not even together, and two that have room.
#[test]
fn adapters_share_a_model_that_fits_none() {
    let case = decoder(DecoderShape { width: 300, layers: 4, ..DecoderShape::SMALL }, &[1]);
    let bytes: u64 = case.program.params.iter().filter_map(|param| param.bytes()).sum();
    let of = |memory: u64| -> Result<Joined, BackendError> {
        let options = Options { memory_bytes: Some(memory), ..Options::default() };
        Ok(Joined::new(vec![member("wgpu/0", Wgpu::open(options)?), member("wgpu/1", Wgpu::open(options)?)]))
    };
    let [tight, short, roomy] = match [bytes * 2 / 3, bytes / 3, 1 << 30].map(of) {
        [Ok(tight), Ok(short), Ok(roomy)] => [tight, short, roomy],
        [Err(why), ..] | [_, Err(why), _] | [.., Err(why)] => return skipped(&why.to_string()),
    };
    let load = |joined: &Joined| {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
        joined.load(Arc::clone(&case.program), params)
    };
    let loaded = load(&tight).expect("room in both together");
    for member in tight.members() {
        let free = member.backend.free_bytes().expect("it tells");
        assert!(free > 0 && free < bytes * 2 / 3, "{}: {free} of {}", member.name, bytes * 2 / 3);
    }
    drop(loaded);
    let Err(BackendError::Unavailable(why)) = load(&short).map(drop) else { panic!("it is refused") };
    let third = bytes / 3;
    assert!(why.contains(&format!("wgpu/0 {third}, wgpu/1 {third}")), "{why}");
    assert_eq!(generate(&case, &Joined::evenly(roomy.members().to_vec())), generate(&case, &cpu()));
}
