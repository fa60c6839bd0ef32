//! `lockstep devices`

use clap::Args;
use lockstep_cuda::{Gpu, gpus};
use lockstep_kernels::cpu::Path;
use lockstep_shaders::{Adapter, Variant, adapters};
use serde_json::{Value, json};

use crate::backend::{all_threads, in_order};
use crate::exit::Outcome;

/// Arguments of `lockstep devices`.
#[derive(Args)]
#[command(
    after_help = "The first column is what --backend takes. A worker puts what it is given through the conformance \
    suite before it offers itself: a device that is listed may still turn out not to be exact, and is then not used.\n\
    The last line is what a worker's --backend auto stands for: devices before the processor, and of drivers that compute on \
    the processor themselves none. Several GPUs of one kind stand first, joined by a plus: a model that fits one of them is \
    loaded there, and one that fits none is shared by as few as it takes."
)]
pub struct DevicesArgs {
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Something to compute on.
struct Device {
    /// As `--backend` takes it.
    backend: String,
    name: String,
    kind: &'static str,
    driver: Option<String>,
    /// Bytes of its memory, where it tells.
    memory_bytes: Option<u64>,
    /// Bytes of the largest piece of a tensor.
    binding_bytes: Option<u64>,
    /// The forms of the shaders that it can run besides the portable one.
    variants: Vec<&'static str>,
    /// Why it can't be used; none where it can.
    reason: Option<String>,
}

impl Device {
    fn json(&self) -> Value {
        json!({
            "backend": self.backend, "name": self.name, "kind": self.kind, "driver": self.driver,
            "memory_bytes": self.memory_bytes, "binding_bytes": self.binding_bytes, "variants": self.variants,
            "usable": self.reason.is_none(), "reason": self.reason,
        })
    }

    fn line(&self) -> String {
        let state = self.reason.as_deref().map_or("usable".into(), |reason| format!("not usable: {reason}"));
        let driver = self.driver.iter().map(|driver| format!(", {driver}"));
        let memory = self.memory_bytes.map(|bytes| format!(", {:.1} GiB", bytes as f64 / f64::from(1 << 30)));
        let about: String = driver.chain(memory).collect();
        format!("{:<17} {} ({}{about}): {state}", self.backend, self.name, self.kind)
    }
}

/// Lists the devices.
pub fn run(args: &DevicesArgs) -> Outcome {
    let (gpus, adapters) = (gpus(), adapters());
    let order = in_order(gpus.as_deref().unwrap_or_default(), &adapters);
    let of_gpus = match gpus {
        Ok(found) if found.is_empty() => vec![no_gpu("NVIDIA's driver is here and has no GPU".into())],
        Ok(found) => found.into_iter().map(gpu).collect(),
        Err(why) => vec![no_gpu(why.to_string())],
    };
    let of_adapters = adapters.into_iter().enumerate().map(adapter);
    let devices: Vec<_> = cpu_paths().chain(of_gpus).chain(of_adapters).collect();
    devices.iter().for_each(|device| println!("{}", device.line()));
    println!("{:<17} {}", "auto", order.join(", then "));
    if args.json {
        let devices = devices.iter().map(Device::json).collect::<Vec<_>>();
        println!("{}", json!({ "devices": devices, "auto": order }));
    }
    Ok(())
}

fn cpu_paths() -> impl Iterator<Item = Device> {
    Path::ALL.into_iter().map(|path| {
        let missing = path.missing();
        Device {
            backend: format!("cpu/{}", path.name()),
            name: format!("{} threads", all_threads()),
            kind: "cpu",
            driver: None,
            memory_bytes: None,
            binding_bytes: None,
            variants: Vec::new(),
            reason: (!missing.is_empty()).then(|| format!("the processor lacks {}", missing.join(", "))),
        }
    })
}

fn gpu(gpu: Gpu) -> Device {
    Device {
        backend: format!("cuda/{}", gpu.number),
        name: gpu.name,
        kind: "nvidia gpu",
        driver: Some(format!("compute capability {}.{}", gpu.capability.0, gpu.capability.1)),
        memory_bytes: Some(gpu.memory_bytes),
        binding_bytes: None,
        variants: Vec::new(),
        reason: gpu.reason,
    }
}

/// Stands in the list for GPUs of which there are none.
fn no_gpu(reason: String) -> Device {
    Device {
        backend: "cuda".into(),
        name: "NVIDIA's GPUs".into(),
        kind: "nvidia gpu",
        driver: None,
        memory_bytes: None,
        binding_bytes: None,
        variants: Vec::new(),
        reason: Some(reason),
    }
}

fn adapter((number, adapter): (usize, Adapter)) -> Device {
    let variants = adapter.variants.into_iter().filter(|variant| *variant != Variant::Portable);
    Device {
        backend: format!("wgpu/{number}"),
        name: format!("{}, {}", adapter.name, adapter.api),
        kind: adapter.kind,
        driver: Some(adapter.driver),
        memory_bytes: adapter.memory_bytes,
        binding_bytes: Some(adapter.binding_bytes),
        variants: variants.map(|variant| variant.name().trim_start_matches('+')).collect(),
        reason: adapter.reason,
    }
}
