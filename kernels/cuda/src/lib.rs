//! CUDA kernels, and the backend that launches them.
//!
//! The kernels are the `.cu` files of this folder, each named after its op. They compute with integers alone and give
//! the oracle's bytes. `scripts/cuda_report.py` compiles them to PTX, which is embedded here, so an operator needs
//! NVIDIA's driver and nothing else.
//!
//! - [`params`]: what a kernel is told, the same structs as in `params.cuh`.
//! - [`plan`]: launches as plain data: which kernel, which grid, which parameters.
//! - [`device`]: the trait behind which a launch runs. [`driver`] is the real one; the crate `lockstep-cuda-emulation`
//!   runs the same kernels, compiled as C++, on the CPU.
//! - [`executor`]: a program on a device, the same code for both.
//! - [`yardstick`], [`vendor`]: what the device can do at the most, for benchmarks.

pub mod backend;
pub mod device;
pub mod driver;
pub mod executor;
pub mod params;
pub mod plan;
mod ptx;
pub mod vendor;
pub mod yardstick;

pub use backend::{Cuda, Products};
pub use driver::{Gpu, gpus};
