//! Which adapters this machine has, and opening one.

use std::fmt;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::budget::{Budget, Holding};
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Params;
use wgpu::{Backends, DeviceType, DownlevelFlags, Features, InstanceDescriptor, Limits};

use crate::executor::WgpuExecutor;
use crate::gpu::Gpu;
use crate::matrix;
use crate::shader::{INT64, PORTABLE, SUBGROUPS};

/// A form of the shaders. All give the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Runs on every adapter.
    #[default]
    Portable,
    /// Multiplies in 64 bits, which not every adapter can, and of which not every driver is sound.
    Int64,
    /// Reduces within subgroups, which not every adapter can.
    Subgroups,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Int64, Self::Subgroups];

    /// As in `wgpu+int64`; nothing of the portable one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "",
            Self::Int64 => "+int64",
            Self::Subgroups => "+subgroups",
        }
    }

    const fn needs(self) -> Features {
        match self {
            Self::Portable => Features::empty(),
            Self::Int64 => Features::SHADER_INT64,
            Self::Subgroups => Features::SUBGROUP,
        }
    }

    const fn shaders(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Portable => PORTABLE,
            Self::Int64 => INT64,
            Self::Subgroups => SUBGROUPS,
        }
    }
}

/// An adapter of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Name as its driver gives it.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub api: String,
    /// `discrete gpu`, `integrated gpu`, `virtual gpu`, `software` or `other`.
    pub kind: &'static str,
    /// Driver with its version, as far as it tells.
    pub driver: String,
    /// Bytes of the largest binding that it offers; larger tensors are split.
    pub binding_bytes: u64,
    /// Bytes of its memory; none where its driver does not say, or computes on the processor.
    pub memory_bytes: Option<u64>,
    /// The forms of the shaders that it can run.
    pub variants: Vec<Variant>,
    /// Why it can't be used; none where it can.
    pub reason: Option<String>,
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Number of the adapter in the list of [`adapters`]; the first that can be used where none is named.
    pub adapter: Option<usize>,
    /// The form of the shaders.
    pub variant: Variant,
    /// Takes bindings to be no larger than this, whatever the adapter offers: shows that what is split is the same.
    pub binding_bytes: Option<u64>,
    /// Takes no more memory for programs than this, whatever the adapter has.
    pub memory_bytes: Option<u64>,
}

/// Least bytes of a binding: what WebGPU promises everywhere.
const LEAST_BINDING: u64 = 128 << 20;

/// All adapters, those that are likely faster first.
pub fn adapters() -> Vec<Adapter> {
    found().iter().map(describe).collect()
}

fn found() -> Vec<wgpu::Adapter> {
    let descriptor = InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        ..InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let mut found = pollster::block_on(instance.enumerate_adapters(Backends::all()));
    found.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    found
}

const fn rank(kind: DeviceType) -> u8 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Cpu => 3,
        DeviceType::Other => 4,
    }
}

fn describe(adapter: &wgpu::Adapter) -> Adapter {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "discrete gpu",
        DeviceType::IntegratedGpu => "integrated gpu",
        DeviceType::VirtualGpu => "virtual gpu",
        DeviceType::Cpu => "software",
        DeviceType::Other => "other",
    };
    let compute = adapter.get_downlevel_capabilities().flags.contains(DownlevelFlags::COMPUTE_SHADERS);
    let reason = if compute { lacking(&limits) } else { Some("it has no compute shaders".into()) };
    Adapter {
        name: info.name.clone(),
        api: format!("{:?}", info.backend).to_lowercase(),
        kind,
        driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
        binding_bytes: limits.max_storage_buffer_binding_size,
        memory_bytes: if info.device_type == DeviceType::Cpu { None } else { memory(adapter) },
        variants: Variant::ALL.into_iter().filter(|v| adapter.features().contains(v.needs())).collect(),
        reason,
    }
}

/// Bytes of the largest heap that is the device's own, as Vulkan tells it.
#[cfg(any(target_os = "linux", target_os = "windows"))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: nothing of the adapter is changed or kept.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is one of this instance.
    let found = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = found.memory_heaps.iter().take(found.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// Elsewhere there is no Vulkan to ask.
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// The first limit that is less than the shaders need.
fn lacking(has: &Limits) -> Option<String> {
    let needed = Limits::default();
    let limits = [
        ("storage buffers of a stage", has.max_storage_buffers_per_shader_stage.into(), 8),
        ("threads of a workgroup", has.max_compute_invocations_per_workgroup.into(), 256),
        ("bytes of workgroup memory", has.max_compute_workgroup_storage_size.into(), 16_384),
        ("workgroups along an axis", has.max_compute_workgroups_per_dimension.into(), 65_535),
        ("bytes of a binding", has.max_storage_buffer_binding_size, LEAST_BINDING),
        ("bytes of a buffer", has.max_buffer_size, needed.max_buffer_size),
    ];
    let short = limits.iter().find(|(_, has, needed): &&(&str, u64, u64)| has < needed);
    short.map(|(what, has, needed)| format!("it offers {has} {what}, and {needed} are needed"))
}

/// The backend, on one device.
#[derive(Clone)]
pub struct Wgpu {
    gpu: Arc<Gpu>,
    driver: Arc<str>,
}

impl fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wgpu").field("name", &self.gpu.name).finish_non_exhaustive()
    }
}

impl Wgpu {
    /// Opens a device.
    ///
    /// # Errors
    /// There is no such adapter, or it can't be used, with the reason.
    pub fn open(options: Options) -> Result<Self, BackendError> {
        let found = found();
        let usable = |i: &usize| describe(&found[*i]).reason.is_none();
        let number = match options.adapter {
            Some(number) => number,
            None => (0..found.len()).find(usable).ok_or_else(|| none_usable(&found))?,
        };
        let adapter = found.get(number).ok_or_else(|| {
            BackendError::Unavailable(format!("there is no adapter {number}; this machine has {}", found.len()))
        })?;
        let about = describe(adapter);
        let unavailable = |why: String| BackendError::Unavailable(format!("{} can't be used: {why}", about.name));
        if let Some(reason) = &about.reason {
            return Err(unavailable(reason.clone()));
        }
        let offered = adapter.limits();
        let required_limits = Limits {
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            max_buffer_size: offered.max_buffer_size,
            ..Limits::default()
        };
        let variant = options.variant;
        if !about.variants.contains(&variant) {
            return Err(unavailable(format!("it lacks what the variant {} needs", variant.name())));
        }
        let required_features = variant.needs();
        let label = Some("lockstep");
        let descriptor = wgpu::DeviceDescriptor { label, required_features, required_limits, ..Default::default() };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| unavailable(e.to_string()))?;
        // Where a binding may end: the last multiple of its alignment.
        let offered = offered.max_storage_buffer_binding_size / 256 * 256;
        let binding = options.binding_bytes.map_or(offered, |forced| forced.min(offered));
        let name = format!("wgpu{}/{}/{}", variant.name(), about.api, about.name);
        let bytes = options.memory_bytes.into_iter().chain(about.memory_bytes).min();
        let budget = Budget::new(&name, bytes);
        let gpu = Arc::new(Gpu::new(device, queue, name, binding, budget, variant.shaders()));
        Ok(Self { gpu, driver: about.driver.into() })
    }

    /// The adapter's driver with its version, as far as it tells.
    pub fn driver(&self) -> &str {
        &self.driver
    }
}

fn none_usable(found: &[wgpu::Adapter]) -> BackendError {
    let reason = |adapter| {
        let about = describe(adapter);
        format!("{}: {}", about.name, about.reason.unwrap_or_default())
    };
    let reasons: Vec<_> = found.iter().map(reason).collect();
    BackendError::Unavailable(if reasons.is_empty() {
        "no adapter of Vulkan, Metal or Direct3D 12 was found; a driver is needed (for software Vulkan on Debian: apt-get \
         install mesa-vulkan-drivers)"
            .into()
    } else {
        format!("no adapter can be used: {}", reasons.join("; "))
    })
}

impl Backend for Wgpu {
    fn name(&self) -> String {
        self.gpu.name.clone()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.gpu.budget.bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gpu.budget.free()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        program.validate()?;
        let taken = self.gpu.budget.take(matrix::bytes_of(&program), "the weights of the model")?;
        Ok(Box::new(Holding::new(WgpuExecutor::new(Arc::clone(&self.gpu), program, params)?, taken)))
    }
}
