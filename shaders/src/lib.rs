//! WGSL kernels and the wgpu backend.
