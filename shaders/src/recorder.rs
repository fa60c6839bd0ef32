//! The commands of a layer on their way to the device.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use wgpu::{BindGroupEntry, BindingResource, Buffer, BufferBinding, BufferDescriptor, BufferUsages, CommandEncoder};

use crate::gpu::{Gpu, Kernel};
use crate::plan::DISPATCH_WORK;
use crate::shader::Params;

/// Bytes from one dispatch's parameters to the next's: the largest alignment that any adapter asks for.
const SLOT: u64 = 256;
/// Dispatches that are submitted together, at most.
const SLOTS: u64 = 256;
/// Where the counter of clamped elements is bound, in shaders that clamp.
const CLAMPED: u32 = 15;

/// A part of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Slice<'a> {
    pub buffer: &'a Buffer,
    pub offset: u64,
    pub bytes: u64,
}

impl<'a> Slice<'a> {
    /// All of a buffer.
    pub fn all(buffer: &'a Buffer) -> Self {
        Self { buffer, offset: 0, bytes: buffer.size() }
    }
}

/// Collects dispatches and copies, and submits them.
pub(crate) struct Recorder {
    gpu: Arc<Gpu>,
    encoder: Option<CommandEncoder>,
    /// Parameters of the dispatches that are not yet submitted.
    uniforms: Buffer,
    params: Vec<u8>,
    work: u64,
    clamped: Buffer,
}

impl Recorder {
    pub fn new(gpu: Arc<Gpu>) -> Self {
        let uniforms = gpu.device.create_buffer(&BufferDescriptor {
            label: Some("parameters"),
            size: SLOT * SLOTS,
            usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let clamped = gpu.storage(8);
        Self { gpu, encoder: None, uniforms, params: Vec::new(), work: 0, clamped }
    }

    /// Commands to add to.
    pub fn encoder(&mut self) -> &mut CommandEncoder {
        self.encoder.get_or_insert_with(|| self.gpu.device.create_command_encoder(&Default::default()))
    }

    /// Copies bytes, also within one buffer.
    pub fn copy(&mut self, source: &Buffer, at: u64, target: &Buffer, to: u64, bytes: u64) {
        if source == target {
            // Which no device allows directly.
            let between = self.gpu.storage(bytes);
            self.encoder().copy_buffer_to_buffer(source, at, &between, 0, bytes);
            self.encoder().copy_buffer_to_buffer(&between, 0, target, to, bytes);
        } else {
            self.encoder().copy_buffer_to_buffer(source, at, target, to, bytes);
        }
    }

    /// Counts clamped elements from zero.
    pub fn begin_layer(&mut self) {
        let clamped = self.clamped.clone();
        self.encoder().clear_buffer(&clamped, 0, None);
    }

    /// Submits everything, and waits for the number of clamped elements.
    pub fn end_layer(&mut self) -> Result<u64, BackendError> {
        self.submit();
        let bytes = self.gpu.download(&self.clamped, 8)?;
        Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
    }

    /// Adds a dispatch. `work` is its number of multiply-accumulates, 0 where it is short in any case; `counts` is whether its
    /// shader clamps.
    pub fn dispatch(
        &mut self,
        kernel: Kernel,
        params: &dyn Params,
        bindings: &[(u32, Slice<'_>)],
        counts: bool,
        grid: [u32; 3],
        work: u64,
    ) {
        if self.params.len() as u64 >= SLOT * SLOTS || self.work.saturating_add(work) > 2 * DISPATCH_WORK {
            self.submit();
        }
        let words = crate::gpu::bytes(&params.words());
        let uniform = BufferBinding {
            buffer: &self.uniforms,
            offset: self.params.len() as u64,
            size: (words.len() as u64).try_into().ok(),
        };
        self.params.extend(&words);
        self.params.resize(self.params.len().next_multiple_of(SLOT as usize), 0);
        self.work += work;
        let mut entries = vec![BindGroupEntry { binding: 0, resource: BindingResource::Buffer(uniform) }];
        let clamped = [(CLAMPED, Slice::all(&self.clamped))];
        let all = bindings.iter().chain(clamped.iter().filter(|_| counts));
        entries.extend(all.map(|(binding, slice)| BindGroupEntry {
            binding: *binding,
            resource: BindingResource::Buffer(BufferBinding {
                buffer: slice.buffer,
                offset: slice.offset,
                size: slice.bytes.try_into().ok(),
            }),
        }));
        let pipeline = self.gpu.pipeline(kernel);
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.entry),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = self.encoder().begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
    }

    /// Submits what was recorded.
    pub fn submit(&mut self) {
        let Some(encoder) = self.encoder.take() else { return };
        if !self.params.is_empty() {
            self.gpu.queue.write_buffer(&self.uniforms, 0, &self.params);
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.params.clear();
        self.work = 0;
    }
}
