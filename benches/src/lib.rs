//! Benchmarks: the engine behind `lockstep bench`. It measures and asserts nothing.

pub mod audit;
pub mod commit;
pub mod dispute;
pub mod perplexity;
