//! `lockstep devices`

use clap::Args;
use lockstep_kernels::cpu::Path;
use lockstep_shaders::adapters;
use serde_json::{Value, json};

use crate::exit::Outcome;

/// Arguments of `lockstep devices`.
#[derive(Args)]
#[command(
    after_help = "The first column is what --backend takes. A worker puts what it is given through the conformance \
    suite before it offers itself: a device that is listed may still turn out not to be exact, and is then not used."
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
    /// Bytes of the largest piece of a tensor.
    binding_bytes: Option<u64>,
    /// Whether the variant `wgpu+int64` can be used.
    int64: Option<bool>,
    /// Why it can't be used; none where it can.
    reason: Option<String>,
}

impl Device {
    fn json(&self) -> Value {
        json!({
            "backend": self.backend, "name": self.name, "kind": self.kind, "driver": self.driver,
            "binding_bytes": self.binding_bytes, "int64": self.int64, "usable": self.reason.is_none(), "reason": self.reason,
        })
    }
}

/// Lists the devices.
pub fn run(args: &DevicesArgs) -> Outcome {
    let devices: Vec<_> = cpu_paths().chain(wgpu_adapters()).collect();
    for device in &devices {
        let state = device.reason.as_deref().map_or("usable".into(), |reason| format!("not usable: {reason}"));
        let driver = device.driver.as_deref().map(|driver| format!(", {driver}")).unwrap_or_default();
        println!("{:<17} {} ({}{driver}): {state}", device.backend, device.name, device.kind);
    }
    if args.json {
        println!("{}", json!({ "devices": devices.iter().map(Device::json).collect::<Vec<_>>() }));
    }
    Ok(())
}

fn cpu_paths() -> impl Iterator<Item = Device> {
    Path::ALL.into_iter().map(|path| {
        let missing = path.missing();
        Device {
            backend: format!("cpu/{}", path.name()),
            name: format!("{} threads", crate::backend::all_threads()),
            kind: "cpu",
            driver: None,
            binding_bytes: None,
            int64: None,
            reason: (!missing.is_empty()).then(|| format!("the processor lacks {}", missing.join(", "))),
        }
    })
}

fn wgpu_adapters() -> impl Iterator<Item = Device> {
    adapters().into_iter().enumerate().map(|(number, adapter)| Device {
        backend: format!("wgpu/{number}"),
        name: format!("{}, {}", adapter.name, adapter.api),
        kind: adapter.kind,
        driver: Some(adapter.driver),
        binding_bytes: Some(adapter.binding_bytes),
        int64: Some(adapter.int64),
        reason: adapter.reason,
    })
}
