//! A device that is open: its queue, its limits, its pipelines, and what went wrong on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::budget::Budget;
use wgpu::{Buffer, BufferDescriptor, BufferUsages, ComputePipeline, MapMode, PollType};

/// An entry point of an op's shader, with its pipeline constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kernel {
    /// Basename of the op.
    pub op: &'static str,
    /// Name of the entry point.
    pub entry: &'static str,
    /// Names and values of its constants.
    pub constants: [Option<(&'static str, u32)>; 3],
}

impl Kernel {
    /// The entry point that is named like its op.
    pub fn of(op: &'static str) -> Self {
        Self { op, entry: op, constants: [None; 3] }
    }
}

pub(crate) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Name of the backend on this device.
    pub name: String,
    /// Bytes of one binding, at most.
    pub binding: u64,
    /// Memory that programs may take.
    pub budget: Budget,
    /// Name and text of each shader.
    shaders: &'static [(&'static str, &'static str)],
    pipelines: Mutex<BTreeMap<Kernel, ComputePipeline>>,
    fault: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    pub fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        name: String,
        binding: u64,
        budget: Budget,
        shaders: &'static [(&'static str, &'static str)],
    ) -> Self {
        let fault = Arc::new(Mutex::new(None));
        let (of_errors, of_loss) = (Arc::clone(&fault), Arc::clone(&fault));
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&of_errors, error.to_string())));
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&of_loss, format!("the device is lost: {message}"));
            }
        });
        Self { device, queue, name, binding, budget, shaders, pipelines: Mutex::default(), fault }
    }

    /// The first thing that went wrong on the device, from when on nothing of it is believed.
    pub fn check(&self) -> Result<(), BackendError> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => Err(BackendError::Device(format!("{}: {fault}", self.name))),
            None => Ok(()),
        }
    }

    /// The pipeline of a kernel, compiled by its first use.
    pub fn pipeline(&self, kernel: Kernel) -> ComputePipeline {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        pipelines.entry(kernel).or_insert_with(|| self.compile(kernel)).clone()
    }

    fn compile(&self, kernel: Kernel) -> ComputePipeline {
        let text = self.shaders.iter().find(|(op, _)| *op == kernel.op).map_or("", |(_, text)| *text);
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.op),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let constants = kernel.constants.iter().flatten().map(|(name, value)| (*name, f64::from(*value)));
        let constants: Vec<_> = constants.collect();
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.entry),
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
            cache: None,
        })
    }

    /// A buffer that shaders read and write, at least a word long.
    pub fn storage(&self, bytes: u64) -> Buffer {
        self.device.create_buffer(&BufferDescriptor {
            label: None,
            size: bytes.max(16).next_multiple_of(4),
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A buffer that shaders read, with words in it.
    pub fn upload(&self, words: &[u32]) -> Buffer {
        let buffer = self.storage(4 * words.len() as u64);
        if !words.is_empty() {
            self.queue.write_buffer(&buffer, 0, &bytes(words));
        }
        buffer
    }

    /// The first bytes of a buffer, once all that was submitted is done.
    pub fn download(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<u8>, BackendError> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = self.device.create_buffer(&BufferDescriptor {
            label: Some("download"),
            size: bytes,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        self.map(&staging)
    }

    /// Waits for the device, and copies out a buffer that can be mapped.
    fn map(&self, staging: &Buffer) -> Result<Vec<u8>, BackendError> {
        let failed = |what: &dyn std::fmt::Display| BackendError::Device(format!("{}: {what}", self.name));
        self.check()?;
        let (done, mapped) = mpsc::channel();
        staging.map_async(MapMode::Read, .., move |result| {
            // Nobody waits any more where this fails.
            let _ = done.send(result);
        });
        self.device.poll(PollType::wait_indefinitely()).map_err(|e| failed(&e))?;
        self.check()?;
        mapped.recv().map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let view = staging.get_mapped_range(..).map_err(|e| failed(&e))?;
        Ok(view.to_vec())
    }
}

/// Keeps the first fault.
fn note(fault: &Mutex<Option<String>>, what: String) {
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
}

/// Words as a device reads them.
pub(crate) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
