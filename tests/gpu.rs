//! The `wgpu` backend through the program: the same roots as on the CPU, the list of devices, and what happens where there is
//! none. Without a GPU this runs on a software driver.

mod common;

use std::sync::Arc;

use common::{lockstep, minilm_package, run, run_json, shipped_package, skipped};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{DecoderShape, OwnedParams, decoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::value::Params;
use lockstep_model::generation::{Event, Generator, Limits, Request};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::Seed;
use lockstep_shaders::{Options, Wgpu};
use serde_json::Value;

/// The devices that the program lists.
fn devices() -> Vec<Value> {
    let told = run_json(lockstep().args(["devices", "--json"]));
    told["devices"].as_array().expect("a list").clone()
}

fn is_usable(device: &Value) -> bool {
    assert_eq!(
        device["usable"] == true,
        device["reason"].is_null(),
        "a reason exactly where it can't be used: {device}"
    );
    device["usable"] == true
}

/// Whether an adapter is here; says loudly where none is.
fn has_adapter() -> bool {
    let mut devices = devices().into_iter();
    let found = devices.any(|d| d["backend"].as_str().is_some_and(|name| name.starts_with("wgpu/")) && is_usable(&d));
    if !found {
        skipped("no adapter can be used: a Vulkan driver is needed (Debian: apt-get install mesa-vulkan-drivers)");
    }
    found
}

/// What does not depend on the machine.
fn without_times(mut told: Value) -> Value {
    let object = told.as_object_mut().expect("an object");
    object.retain(|key, _| !key.ends_with("seconds") && !key.ends_with("per_second") && key != "backend");
    told
}

#[test]
fn every_listed_device_is_what_its_name_says() {
    let devices = devices();
    let portable = devices.iter().find(|d| d["backend"] == "cpu/portable").expect("every machine has it");
    assert!(is_usable(portable));
    for device in &devices {
        let name = device["backend"].as_str().expect("a name");
        if !is_usable(device) {
            let refused = run(lockstep().args(["conformance", "--quick", "--backend", name]));
            assert_eq!(refused.status.code(), Some(3), "{name}: {}", String::from_utf8_lossy(&refused.stderr));
        }
    }
}

#[test]
fn the_quick_suite_passes() {
    if !has_adapter() {
        return;
    }
    let told = run_json(lockstep().args(["conformance", "--quick", "--json", "--backend", "wgpu"]));
    assert_eq!(told["failures"], 0);
    assert!(told["backend"].as_str().is_some_and(|name| name.starts_with("wgpu/")), "{told}");
    for op in lockstep_kernels::program::OP_NAMES {
        assert!(told["ops"].as_array().is_some_and(|ops| ops.iter().any(|o| o == op)), "{op} is missing");
    }
}

#[test]
fn embeddings_have_the_roots_of_the_cpu() {
    let (true, Some(package)) = (has_adapter(), minilm_package()) else { return };
    let texts = ["Who computed this?", "Ein Satz mit Umlauten: äöü."];
    let told = |backend| {
        let mut command = lockstep();
        command.args(["embed", "--json", "--backend", backend, "--package"]).arg(package).args(texts);
        without_times(run_json(&mut command))
    };
    let (on_gpu, on_cpu) = (told("wgpu"), told("cpu"));
    assert_eq!(on_gpu["layer_roots"], on_cpu["layer_roots"]);
    assert_eq!(on_gpu, on_cpu);
}

/// Words are drawn on the device.
#[test]
fn generations_have_the_words_and_roots_of_the_cpu() {
    if !has_adapter() {
        return;
    }
    let options = ["--max-tokens", "12", "--temperature", "0.8", "--top-p", "0.95", "--top-k", "50", "--seed", "7"];
    let penalties = ["--repetition-penalty", "1.2", "--presence-penalty", "0.5", "--json", "--points"];
    let told = |backend| {
        let mut command = lockstep();
        command.args(["generate", "--backend", backend, "--prompt", "# Closures\n\nA closure is", "--package"]);
        without_times(run_json(command.arg(shipped_package()).args(options).args(penalties)))
    };
    let (on_gpu, on_cpu) = (told("wgpu"), told("cpu"));
    assert_eq!(on_gpu["layer_roots"], on_cpu["layer_roots"]);
    assert_eq!(on_gpu, on_cpu);
}

/// Rows wider than a chunk, of a long prompt and of a short one in the same pass.
#[test]
fn generations_with_wide_rows_have_the_roots_of_the_cpu() {
    let wgpu = match Wgpu::open(Options::default()) {
        Ok(wgpu) => wgpu,
        Err(why) => return skipped(&why.to_string()),
    };
    let shape = DecoderShape { width: 300, ..DecoderShape::SMALL };
    let case = decoder(shape, &[1]);
    let generation = Generation { temperature: 9_000, ..Generation::greedy(5) };
    let generate = |backend: &dyn Backend| {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
        let limits = Limits::within(1 << 30);
        let mut generator = Generator::new(Arc::clone(&case.program), params, backend, limits).expect("room");
        for (seed, length) in [(1, 300), (2, 3)] {
            let prompt = (0..length).map(|t| t * t % shape.vocab as u32).collect();
            let request = Request::new(prompt, &generation, Seed::from_bytes([seed; 32]), vec![]);
            generator.submit(request).expect("room");
        }
        let mut runs = Vec::new();
        loop {
            let more = generator.step(&mut |_, event| {
                if let Event::Done(run) = event {
                    runs.push((run.words, run.roots));
                }
            });
            if !more.expect("a pass") {
                break;
            }
        }
        runs
    };
    let on_cpu = generate(&Cpu::new(None, 2).expect("a path"));
    assert_eq!(on_cpu.len(), 2);
    assert_eq!(generate(&wgpu), on_cpu);
}

/// A worker says why it does not use a backend, and goes on with the next.
#[test]
fn a_worker_falls_back_with_a_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = "00".repeat(32);
    let coordinator = format!("{key}@127.0.0.1:1");
    let mut command = lockstep();
    command.args(["worker", "--coordinator", &coordinator, "--backend", "wgpu/9999,no-such-backend", "--data-dir"]);
    let ended = run(command.arg(folder.path()));
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(stderr.contains("wgpu/9999 is not used") && stderr.contains("going on with no-such-backend"), "{stderr}");
    assert_eq!(ended.status.code(), Some(2), "{stderr}");
}
