//! Benchmarks: the engine behind `lockstep bench`. It measures and asserts nothing.

pub mod commit;
pub mod dispute;
