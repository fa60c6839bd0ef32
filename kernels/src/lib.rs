//! Exact integer kernels.
//!
//! Everything that Lockstep computes is an exact integer function, defined in `SPEC.md`. Integer addition is
//! associative, so every device, thread count, batch and schedule gives the same bytes. The folder reads like this:
//!
//! - [`program`]: a model as straight-line ops over named tensors, and its structural check.
//! - [`sampling`]: settings of a generation, and the words that it makes.
//! - [`fixed`], [`tables`]: the scalar arithmetic that the ops share, clause by clause.
//! - [`reference`]: the oracle. Scalar, slow, obviously right, one file per op.
//! - [`cpu`]: the fast twin of each op, with instruction-set paths chosen at run time.
//! - [`steps`]: the dispute view of a layer, in which one element is recomputed from at most 64 KiB.
//! - [`backend`], [`host`]: the trait that every backend implements, and the executor that both host backends share.
//! - [`pass`]: a batch as every executor takes it up. [`budget`]: memory of a device.
//! - [`slice`]: some layers of a program as one of their own. [`joined`]: several devices as one backend.
//! - [`conformance`]: the suite that any backend is put through, byte for byte.
//!
//! One op has one basename everywhere: `layer_norm.rs` in `reference`, `cpu` and `steps`, `layer_norm.json` in
//! `vectors`.
#![deny(clippy::float_arithmetic)]
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian in memory; big-endian hosts are not supported");

pub mod backend;
pub mod budget;
pub mod conformance;
pub mod cpu;
pub mod fixed;
pub mod host;
pub mod joined;
pub mod pass;
pub mod program;
pub mod reference;
pub mod sampling;
pub mod slice;
pub mod steps;
pub mod tables;
pub mod value;
