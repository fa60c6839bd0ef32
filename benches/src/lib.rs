//! Benchmarks: the engine behind `lockstep bench`. It measures and asserts nothing.

pub mod audit;
pub mod ceilings;
pub mod commit;
pub mod dispute;
pub mod environment;
pub mod lockstep;
pub mod model;
pub mod net;
pub mod ops;
pub mod perplexity;
mod processor;
pub mod report;
pub mod roofline;
mod rows;
pub mod samples;
mod system;
pub mod watch;
