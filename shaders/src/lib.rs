//! The `wgpu` backend: each op of the op list as a hand-written WGSL shader, run on Vulkan, Metal or Direct3D 12.
//!
//! `wgsl/<op>.wgsl` is the twin of `kernels/src/reference/<op>.rs`, and gives the same bytes on every adapter. Modules that
//! several ops share lie in `wgsl/shared`; the build links each op with what it imports (WESL imports), so that no program
//! puts shader text together. All arithmetic is on `u32`, in two words where 64 bits are needed, because that is what every
//! adapter has and what wraps alike on all of them.
//!
//! - [`Wgpu`]: the backend. [`adapters`] lists what this machine has.
//! - `shader`: the linked shaders, and their parameter structs, which tests compare with what naga reflects.
//! - `plan`: how work is cut into dispatches, as plain data that is tested without any adapter.
//! - `gpu`, `recorder`: a device, and the commands of a layer on their way to it.
//! - `tensors`, `matrix`, `pages`: activations, weights and caches on the device.
//! - `executor`, `ops`, `attention`, `sampling`: the program, op by op.

mod adapter;
mod attention;
#[cfg(test)]
mod audit;
mod executor;
mod gpu;
mod matrix;
mod ops;
mod pages;
mod plan;
mod recorder;
mod sampling;
mod shader;
mod tensors;

pub use adapter::{Adapter, Options, Variant, Wgpu, adapters};
